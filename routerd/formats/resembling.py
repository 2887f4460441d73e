"""What looks like ours and is not read: told, with the name that would be read. Pure.

Annotations of Services are told by `wishes`, keys of our own documents are refused where they are read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from routerd.formats.document import Value
from routerd.formats.meta import Meta, read_meta
from routerd.model import EXCLUDE_LABEL, GATEWAY_LABEL, SERVICE_NAME_LABEL, EndpointSlice, Node, Refusal
from routerd.refs import BGP, NODE, Ref

LIKENESS = 0.9  # 1 = equal
NODE_LABELS = (EXCLUDE_LABEL, GATEWAY_LABEL)
_BGP = re.compile(r"^[\"']?(peers|address-pools)[\"']?:", re.MULTILINE)
_OURS = re.compile(r"^[\"']?apiVersion[\"']?:\s*[\"']?routerd\.io/", re.MULTILINE)
_PARTS = re.compile(r"\b(peer-address|peer-asn|addresses|protocol)\b")
_READ = (
    'routerd reads the key "config.yaml" of a ConfigMap bgp-config, the key "config" of metallb-system/config, and '
    "either key of any ConfigMap whose document says apiVersion: routerd.io/v1alpha1"
)


def unread_configuration(value: Value, meta: Meta) -> tuple[Refusal, ...]:
    """Of a ConfigMap that is not read as BGP configuration, each key whose text looks like one."""
    data = value.section.section("data")
    entries = data.entries.items() if data is not None else ()
    return tuple(_unread_key(meta, key, text) for key, text in entries if text.is_scalar and _is_bgp(text.text))


def _is_bgp(text: str) -> bool:
    return bool(_BGP.search(text) and _PARTS.search(text))


def _unread_key(meta: Meta, key: str, text: Value) -> Refusal:
    """About all sessions: what a node says of ConfigMaps is that it cannot read them."""
    name = f"ConfigMap {meta.namespace_or_default}/{meta.name}"
    hint = f'; did you mean "{meant}"?' if (meant := _key_meant(meta, key, text.text)) else f": {_READ}"
    message = f'{text.origin}: the key "{key}" of {name} looks like BGP configuration and is not read{hint}'
    return Refusal(Ref(BGP), "UnreadConfiguration", message)


def _key_meant(meta: Meta, key: str, text: str) -> str:
    """The key under which the ConfigMap would be read; "" if it would be under none."""
    if _OURS.search(text) or (meta.name == "bgp-config" and key != "config.yaml"):
        return "config.yaml"
    return "config" if (meta.namespace, meta.name) == ("metallb-system", "config") else ""


def node_labels(node: Node, value: Value) -> Iterator[Refusal]:
    """Labels and annotations of a node that are nearly one of the labels that count."""
    for word, given in (("labels", node.labels), ("annotations", node.annotations)):
        for key, text in given.items():
            meant = _label_meant(key, NODE_LABELS) if "/" in key or not text else ""  # a bare one with a value: users'
            if meant and not (word == "labels" and key == meant):
                what = f'the label "{meant}"' if word == "annotations" else f'"{meant}"'
                message = f'{value.origin}: {word}: "{key}" is not read; did you mean {what}?'
                yield Refusal(Ref(NODE, name=node.name), "UnknownLabel", message)


def slice_labels(found: EndpointSlice, value: Value) -> Iterator[Refusal]:
    """The label that says whose an EndpointSlice is, under another name."""
    if found.service:
        return
    for key in read_meta(value.uncapped()).labels:
        if _label_meant(key, (SERVICE_NAME_LABEL,)) or key.rpartition("/")[2] == "service-name":
            message = f'{value.origin}: labels: "{key}" is not read; did you mean "{SERVICE_NAME_LABEL}"?'
            yield Refusal(Ref("EndpointSlice", found.namespace, found.name), "UnknownLabel", message)


@lru_cache(maxsize=4096)  # many nodes have the same few keys
def _label_meant(key: str, known: tuple[str, ...]) -> str:
    """Nearly the key of a label, or its name in another domain of ours or Kubernetes'."""
    if key in known:
        return key
    domain, _, name = key.lower().rpartition("/")
    if domain in ("", "routerd.io", "kubernetes.io", "node.kubernetes.io", "k8s.io"):
        same = (each for each in known if each.rpartition("/")[2] == name)
        if (meant := next(same, "")) or domain == "routerd.io":
            return meant or next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.75)), "")
    return next(iter(difflib.get_close_matches(key.lower(), known, n=1, cutoff=LIKENESS)), "")


def kind_meant(group: str, name: str, known: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """Of the kinds that are `known`, as group and name, the one that this must be a misspelling of."""
    pairs = tuple(known)
    for other_group, other in pairs:
        is_near = difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio() >= LIKENESS - 0.05
        if is_near and group == other_group:
            return other_group, other
        if name == other and other in UNIQUE:
            return other_group, other
    return None


UNIQUE = frozenset({"AddressPool", "IPAddressPool", "EndpointSlice"})  # nobody else has kinds of these names
