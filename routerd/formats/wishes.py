"""What a service asks for by annotations: addresses, a pool, a shared address, egress by its VIPs. Pure.

Each make names the same wish otherwise, and an old and a new name of one annotation are one key. Of several that say
different things the strongest counts, and the others are told.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from routerd.errors import InputError
from routerd.formats.document import MOST_ADDRESSES, Section, Value, parse_address, parse_network
from routerd.formats.meta import Meta
from routerd.model import LOWEST, EgressPolicy, IPAddress, IPNetwork, PortRange, Refusal
from routerd.refs import SERVICE, service_ref

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
EGRESS = "routerd.io/egress"
KUBE_VIP = "kube-vip.io/egress"
PORTS, DENIED = f"{KUBE_VIP}-destination-ports", f"{KUBE_VIP}-denied-networks"
# What these ask for cannot be, with what to do instead.
NOT_DONE: Mapping[str, str] = {
    f"{KUBE_VIP}-source-ports": "pods are selected whole: name destination ports",
    f"{KUBE_VIP}-allowed-networks": "it would take destinations out of other policies: write an EgressPolicy",
}
NOT_SUPPORTED = "EgressNotSupported"  # reason of a refusal
_PORT = re.compile(r"(tcp|udp|sctp):(\d{1,5})", re.IGNORECASE)
KNOWN = (*READ, EGRESS, KUBE_VIP, PORTS, DENIED)
CONFLICT, UNREAD, INVALID = "ConflictingAnnotations", "UnknownAnnotation", "InvalidObject"  # reasons of refusals
_LIKENESS = 0.95  # 1 = equal; what MetalLB and kube-vip write beside these is less alike
_OWN_LIKENESS = 0.8  # of names in our domain, where nobody else writes


@dataclass(frozen=True, slots=True)
class Wishes:
    """`sharing_namespaces`: see `model.Service`."""

    addresses: tuple[IPAddress, ...] = ()
    pool: str = ""
    sharing_key: str = ""
    sharing_namespaces: frozenset[str] | None = None
    refusals: tuple[Refusal, ...] = ()
    unread: bool = False  # which addresses, nobody can tell


def read_wishes(value: Value, spec: Section, meta: Meta) -> Wishes:
    """Annotations win over `spec.loadBalancerIP`, which they replaced.

    A mistake in addresses is a refusal and costs these alone: an agent that starts must know the rest of a Service, as
    policies select by it.
    """
    if not meta.annotations and spec.get("loadBalancerIP") is None:
        return NOTHING
    given = {key: meta.annotations[key].strip() for key in READ if meta.annotations.get(key, "").strip()}
    asked: dict[str, tuple[IPAddress, ...]] = {}
    wrong: tuple[Refusal, ...] = ()
    try:
        asked = _asked(value, spec, given)
    except InputError as error:
        ref = service_ref(f"{meta.namespace_or_default}/{meta.name}")
        wrong = (Refusal(ref, INVALID, f"{error} (it keeps the addresses that it has, and gets no other)"),)
    key = _first(given, SHARING)
    namespaces = frozenset(each.strip() for each in _first(given, SHARING_NAMESPACES).split(",")) - {""}
    is_everywhere = not key or _first(given, SHARED_EVERYWHERE) == key
    return Wishes(
        next(iter(asked.values()), ()),
        _first(given, POOL),
        key,
        None if is_everywhere else namespaces,
        (*wrong, *_conflicts(value, meta, given, asked), *_unread(value, meta)),
        unread=bool(wrong),
    )


NOTHING = Wishes()


def _asked(value: Value, spec: Section, given: Mapping[str, str]) -> dict[str, tuple[IPAddress, ...]]:
    """The addresses asked for, by what says so, the strongest first. Raises InputError."""
    asked = {key: _addresses(_place(value, key), text) for key, text in given.items() if key in ADDRESSES}
    single = spec.get("loadBalancerIP")
    return {**asked, "spec.loadBalancerIP": (single.address(),)} if single is not None and single.text else asked


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
    if key in KNOWN:
        return ""
    domain, _, name = key.rpartition("/")
    if domain == "routerd.io":
        names = {each.rpartition("/")[2].lower(): each for each in reversed(KNOWN)}
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=_OWN_LIKENESS)
        return names[near[0]] if near else ""
    return next(iter(difflib.get_close_matches(key, KNOWN, n=1, cutoff=_LIKENESS)), "")


def _told(place: Value, meta: Meta, reason: str, message: str) -> Refusal:
    ref = service_ref(f"{meta.namespace_or_default}/{meta.name}")
    return Refusal(ref, reason, f"{place.origin}: {message}")


# --- egress by its VIPs: a user's word about his own pods. So it has the lowest priority, and leads to everywhere: who
# may write a Service takes no destination out of a policy of the cluster's.


def read_egress(value: Value, meta: Meta) -> tuple[EgressPolicy | None, tuple[Refusal, ...]]:
    """The policy that the annotations of a Service are, if they are any. A mistake in them refuses it."""
    on = {key: meta.annotations.get(key, "").strip() for key in (EGRESS, KUBE_VIP)}
    if on[KUBE_VIP] != "true" and on[EGRESS] in ("", "false"):
        return None, ()
    key = f"{meta.namespace_or_default}/{meta.name}"
    try:
        ports, excluded = _limits(value, meta, on)
    except InputError as error:
        policy = _policy(meta, key, refused=True)
        return policy, (Refusal(service_ref(key), NOT_SUPPORTED, f"{error} (what its pods send out is dropped)"),)
    return _policy(meta, key, ports, excluded), ()


def _policy(
    meta: Meta,
    key: str,
    ports: tuple[PortRange, ...] = (),
    excluded: tuple[IPNetwork, ...] = (),
    *,
    refused: bool = False,
) -> EgressPolicy:
    return EgressPolicy(
        key, SERVICE, excluded=excluded, ports=ports, priority=LOWEST, created=meta.created, origin=meta.origin,
        refused=refused, service=key,
    )  # fmt: skip


def _limits(value: Value, meta: Meta, on: Mapping[str, str]) -> tuple[tuple[PortRange, ...], tuple[IPNetwork, ...]]:
    """Raises InputError."""
    if on[EGRESS] not in ("", "true", "false"):
        raise _place(value, EGRESS).error(f'found "{on[EGRESS]}", expected "true" or "false"')
    if on[KUBE_VIP] != "true":
        return (), ()
    for key, instead in NOT_DONE.items():
        if meta.annotations.get(key, "").strip():
            raise _place(value, key).error(f"{key} is not done: {instead}")
    return _ports(value, meta), _denied(value, meta)


def _parts(meta: Meta, key: str) -> list[str]:
    return [each.strip() for each in meta.annotations.get(key, "").split(",") if each.strip()]


def _ports(value: Value, meta: Meta) -> tuple[PortRange, ...]:
    """ "tcp:443,udp:53": to these alone it leaves with the VIP."""
    found = []
    for text in _parts(meta, PORTS):
        match = _PORT.fullmatch(text)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise _place(value, PORTS).error(f'found "{text}", expected PROTOCOL:PORT, such as tcp:443')
        protocol = cast(Literal["TCP", "UDP", "SCTP"], match[1].upper())
        found.append(PortRange(protocol, int(match[2]), int(match[2])))
    return tuple(found)


def _denied(value: Value, meta: Meta) -> tuple[IPNetwork, ...]:
    found = []
    for text in _parts(meta, DENIED):
        network = parse_network(text)
        if network is None:
            raise _place(value, DENIED).error(f'found "{text}", expected CIDRs with commas between them')
        found.append(network)
    return tuple(found)
