"""Networks that a pod has beside its first one, as Multus' annotations tell. Pure.

What a node does rests on what the pod's network namespace holds: this is for people. Source: the Network Plumbing
Working Group's multi-network specification 1.3, 4.1.2 and 4.1.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from routerd.formats.jsontext import parse_json
from routerd.model import Labels

STATUS = "k8s.v1.cni.cncf.io/network-status"
WANTED = "k8s.v1.cni.cncf.io/networks"
MOST = 64  # networks of a pod that are told


def further_networks(annotations: Labels) -> tuple[str, ...]:
    """Each as "interface (network)", as far as it is told: what Multus says it has done, else what it is asked for.

    Of an annotation that cannot be read, that it is there: it means networks.
    """
    for key, read in ((STATUS, _done), (WANTED, _asked)):
        text = annotations.get(key, "").strip()
        if text:
            try:
                return tuple(read(text))[:MOST]
            except (ValueError, TypeError, AttributeError):
                return (f"what {key} says, which cannot be read",)
    return ()


def _done(text: str) -> Iterator[str]:
    for each in _listed(parse_json(text)):
        if each.get("default") is not True:
            pci = ((each.get("device-info") or {}).get("pci") or {}).get("pci-address", "")
            yield _named(each.get("interface"), each.get("name"), f"PCI {pci}" if pci else "")


def _asked(text: str) -> Iterator[str]:
    if text.startswith("["):
        for each in _listed(parse_json(text)):
            yield _named(each.get("interface"), "/".join(filter(None, (each.get("namespace"), each.get("name")))))
    else:
        for part in filter(None, (each.strip() for each in text.split(","))):
            network, _, interface = part.partition("@")
            yield _named(interface, network)


def _listed(found: Any) -> Iterable[dict[str, Any]]:
    if not isinstance(found, list):
        raise ValueError("not a list")
    return found


def _named(interface: object, *about: object) -> str:
    told = ", ".join(str(each) for each in about if each)
    return f"{interface} ({told})" if interface and told else str(interface or told)
