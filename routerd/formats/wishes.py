"""What a service asks for by annotations: addresses, a pool, a shared address. Pure.

Each make names the same wish otherwise, and an old and a new name of one annotation are one key. Of several that say
different things the strongest counts, and the others are told.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from routerd.formats.document import MOST_ADDRESSES, Section, Value, parse_address
from routerd.formats.meta import Meta
from routerd.model import IPAddress, Refusal
from routerd.refs import service_ref

# The strongest first: of each make the new name before the old one.
ADDRESSES = (
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
    "kube-vip.io/loadbalancerIPs",
    "projectcalico.org/loadBalancerIPs",  # a list in JSON
)
POOL = ("metallb.io/address-pool", "metallb.universe.tf/address-pool", "service.antrea.io/external-ip-pool")
SHARED_EVERYWHERE = ("metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip")
SHARED_IN_NAMESPACE = ("lbipam.cilium.io/sharing-key", "io.cilium/lb-ipam-sharing-key")
SHARING_NAMESPACES = ("lbipam.cilium.io/sharing-cross-namespace", "io.cilium/lb-ipam-sharing-cross-namespace")
SHARING = (*SHARED_EVERYWHERE, *SHARED_IN_NAMESPACE)
READ = (*ADDRESSES, *POOL, *SHARING, *SHARING_NAMESPACES)
CONFLICT, UNREAD = "ConflictingAnnotations", "UnknownAnnotation"  # reasons of refusals
_LIKENESS = 0.95  # 1 = equal; what MetalLB and kube-vip write beside these is less alike


@dataclass(frozen=True, slots=True)
class Wishes:
    """`sharing_namespaces`: see `model.Service`."""

    addresses: tuple[IPAddress, ...] = ()
    pool: str = ""
    sharing_key: str = ""
    sharing_namespaces: frozenset[str] | None = None
    refusals: tuple[Refusal, ...] = ()


def read_wishes(value: Value, spec: Section, meta: Meta) -> Wishes:
    """Annotations win over `spec.loadBalancerIP`, which they replaced. Raises InputError."""
    if not meta.annotations and spec.get("loadBalancerIP") is None:
        return NOTHING
    given = {key: meta.annotations[key].strip() for key in READ if meta.annotations.get(key, "").strip()}
    asked = {key: _addresses(_place(value, key), text) for key, text in given.items() if key in ADDRESSES}
    single = spec.get("loadBalancerIP")
    if single is not None and single.text:
        asked["spec.loadBalancerIP"] = (single.address(),)
    key = _first(given, SHARING)
    namespaces = frozenset(each.strip() for each in _first(given, SHARING_NAMESPACES).split(",")) - {""}
    is_everywhere = not key or _first(given, SHARED_EVERYWHERE) == key
    told = [*_conflicts(value, meta, given, asked), *_unread(value, meta)]
    return Wishes(
        next(iter(asked.values()), ()), _first(given, POOL), key, None if is_everywhere else namespaces, tuple(told)
    )


NOTHING = Wishes()


def _first(given: Mapping[str, str], keys: Iterable[str]) -> str:
    return next((given[key] for key in keys if key in given), "")


def _place(value: Value, annotation: str) -> Value:
    return value.section.require("metadata").section.require("annotations").section.require(annotation)


def _addresses(place: Value, text: str) -> tuple[IPAddress, ...]:
    """IP addresses with commas between them, or a list of them in JSON, as Calico has it."""
    texts = _list(place, text) if text.startswith("[") else text.split(",")
    if len(texts) > MOST_ADDRESSES:
        raise place.error(f"found {len(texts)} addresses, at most {MOST_ADDRESSES} are taken")
    return tuple(dict.fromkeys(_address(place, each.strip()) for each in texts))


def _list(place: Value, text: str) -> list[str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise place.error(f'found "{text}", expected a list of IP addresses in JSON')
    return found


def _address(place: Value, text: str) -> IPAddress:
    address = parse_address(text)
    if address is None:
        raise place.error(f'found "{text}", expected IP addresses with commas between them')
    if address.is_unspecified:
        raise place.error(f'found "{text}", expected an address: routerd asks no DHCP server')
    return address


def _conflicts(
    value: Value, meta: Meta, given: Mapping[str, str], asked: Mapping[str, tuple[IPAddress, ...]]
) -> Iterator[Refusal]:
    groups: list[dict[str, object]] = [{key: frozenset(addresses) for key, addresses in asked.items()}]
    groups += [
        {key: given[key] for key in keys if key in given}
        for keys in (POOL, SHARED_EVERYWHERE, SHARED_IN_NAMESPACE, SHARING_NAMESPACES)
    ]
    for group in groups:
        first, *others = group or [""]
        for other in others:
            if group[other] != group[first]:
                place = value if other.startswith("spec.") else _place(value, other)
                yield _told(place, meta, CONFLICT, f"{other} says otherwise than {first}, which counts: remove one")


def _unread(value: Value, meta: Meta) -> Iterator[Refusal]:
    for key in meta.annotations:
        if meant := _meant(key):
            yield _told(_place(value, key), meta, UNREAD, f'{key} is not read; did you mean "{meant}"?')


@lru_cache(maxsize=1024)
def _meant(key: str) -> str:
    """The annotation that one must be a misspelling of: nearly its name, or its name as one of routerd's own."""
    if key in READ:
        return ""
    domain, _, name = key.rpartition("/")
    if domain == "routerd.io":
        return next((each for each in READ if each.rpartition("/")[2].lower() == name.lower()), "")
    return next(iter(difflib.get_close_matches(key, READ, n=1, cutoff=_LIKENESS)), "")


def _told(place: Value, meta: Meta, reason: str, message: str) -> Refusal:
    ref = service_ref(f"{meta.namespace_or_default}/{meta.name}")
    return Refusal(ref, reason, f"{place.origin}: {message}")
