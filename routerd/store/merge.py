"""Objects of many files -> one snapshot: what is there twice or overlaps is refused, the rest goes on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, TypeVar

from routerd.formats.foreign.kube_ovn.joined import completed, known
from routerd.formats.foreign.metallb_bgp import with_bfd, without_profile
from routerd.formats.foreign.policies import Asked, with_asked, with_destinations, with_gateways
from routerd.formats.foreign.together import together
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.legacy_bgp.peers import without_place
from routerd.formats.objects import Entry, Loaded, unique
from routerd.memo import PerObject, Renewed, by_identity, differing
from routerd.model import (
    AddressPool,
    Allocations,
    BfdProfile,
    EgressPolicy,
    EndpointSlice,
    IPNetwork,
    Namespace,
    Node,
    NodeReport,
    Peer,
    Peering,
    Pod,
    PodPool,
    Refusal,
    Service,
    Snapshot,
)
from routerd.refs import Ref
from routerd.store.backends import with_backends
from routerd.store.closed import unreadable

T = TypeVar("T")


@dataclass(slots=True)
class _Pools:
    """Pools taken so far, and their blocks."""

    by_name: dict[str, AddressPool] = field(default_factory=dict)
    of_pods: dict[str, PodPool] = field(default_factory=dict)  # names of their own
    blocks: list[tuple[IPNetwork, str]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def take(self, written: Ref, pool: AddressPool) -> None:
        """`written`: the object that says it."""
        other = self.by_name.get(pool.name)
        if other is not None:
            self._refuse(written, pool, "Duplicate", f"pool {pool.name} is already defined at {other.origin}")
            return
        for block in pool.blocks:
            for taken, owner in self.blocks:
                if _overlap(taken, block):
                    place = self.by_name[owner].origin
                    message = f"{block} overlaps with {taken} of pool {owner} ({place}); pool {pool.name} is not used"
                    self._refuse(written, pool, "Conflicting", message)
                    return
        self.by_name[pool.name] = pool
        self.blocks.extend((block, pool.name) for block in pool.blocks)

    def take_for_pods(self, written: Ref, pool: PodPool) -> None:
        """What of it is a pool's of services stays that one's: `give_blocks` leaves it out."""
        if other := self.of_pods.get(pool.name):
            self._refuse(written, pool, "Duplicate", f"pool {pool.name} is already defined at {other.origin}")
            return
        for cidr in pool.cidrs:
            for other in self.of_pods.values():
                taken = next((each for each in other.cidrs if _overlap(each.network, cidr.network)), None)
                if taken is not None:
                    of = f"{taken.network} of pool {other.name} ({other.origin})"
                    message = f"{cidr.network} overlaps with {of}; pool {pool.name} is not used"
                    self._refuse(written, pool, "Conflicting", message)
                    return
        self.of_pods[pool.name] = pool

    def _refuse(self, written: Ref, pool: AddressPool | PodPool, reason: str, message: str) -> None:
        self.refusals.append(Refusal(written, reason, f"{pool.origin}: {message}"))


def merge(
    files: Iterable[Loaded],
    *,
    allocations: Allocations | None,
    refusals: tuple[Refusal, ...] = (),
    service_cidrs: tuple[IPNetwork, ...] = (),
    seen: Collection[str] = (),
) -> Snapshot:
    """`files` in the order of their names: of two equal keys the first wins. `seen`: policies that were known before.

    Policies are not known while one that is in force cannot be read.
    """
    files = tuple(files)
    entries, duplicates = unique(entry for file in files for entry in file.entries)
    misplaced = [_misplaced(entry) for entry in entries if isinstance(entry.object, Allocations | NodeReport)]
    pools = _Pools()
    for written, pool in _all_pools(entries):
        pools.take(written, pool)
    for entry in entries:
        if isinstance(entry.object, PodPool):
            pools.take_for_pods(entry.ref, entry.object)
    joined = together(
        (entry.object for entry in entries),
        pools.by_name,
        nothing=[ref for file in files for ref in file.nothing],
    )
    saying = tuple(pool for pool in pools.by_name.values() if pool.gateways is not None)
    named = known(entry.object for entry in entries)
    told = [completed(policy, named) for policy in _of(entries, EgressPolicy)]
    whole = (with_destinations(with_gateways(policy, saying), pools.by_name) for policy, _ in told)
    policies = {policy.key: policy for policy in whole}
    peers = [peer for config in _of(entries, LegacyConfig) for peer in config.peers]
    profiles = {profile.name: profile for profile in _of(entries, BfdProfile)}
    lost = unreadable(files, policies, allocations, seen)
    all_refusals = [
        *refusals,
        *(one for file in files for one in file.refusals),
        *duplicates,
        *misplaced,
        *pools.refusals,
        *joined.refusals,
        *(one for _, refusals in told for one in refusals),
        *lost,
        *(one for peer in peers for one in without_profile(peer, profiles)),
    ]
    services = {service.key: service for service in _of(entries, Service)}
    pods = {pod.key: pod for pod in _of(entries, Pod)}
    namespaces = {namespace.name: namespace for namespace in _of(entries, Namespace)}
    asked = Asked()
    of_users = asked.policies(pods, namespaces, joined.pools)
    all_refusals += asked.refusals
    return Snapshot(
        nodes={node.name: node for node in _of(entries, Node)},
        namespaces=namespaces,
        pods=pods,
        services=services,
        endpoint_slices=tuple(_of(entries, EndpointSlice)),
        bgp=Peering(_unique_peers((*(with_bfd(peer, profiles) for peer in peers), *joined.peers))),
        pools=joined.pools,
        pod_pools=pools.of_pods,
        policies=None if lost else with_asked(with_backends(policies, services), of_users),
        allocations=allocations,
        refusals=tuple(sorted(all_refusals, key=lambda one: one.order)),
        service_cidrs=service_cidrs,
    )


MANY: Mapping[type[Any], tuple[str, Callable[[Any], str]]] = {
    Node: ("nodes", attrgetter("name")),
    Namespace: ("namespaces", attrgetter("name")),
    Pod: ("pods", attrgetter("key")),
    Service: ("services", attrgetter("key")),
    EndpointSlice: ("endpoint_slices", lambda each: f"{each.namespace}/{each.name}"),
}
"""Kinds of which there are many: their part of the snapshot, and an object's name there."""
Objects = Mapping[str, Mapping[str, Any]]  # by part, then by name


@dataclass(frozen=True, slots=True)
class _Split:
    """What one file says, apart. `many` None = it says something twice."""

    few: Loaded
    many: Objects | None


class Merger:
    """Merges again and again, while only a few files change. Kept from time to time (`routerd.memo`).

    Parts of which there are many are those of the last time, with what files say that are others. While an object is
    there twice, everything is merged anew. The order of objects within a part is nobody's.
    """

    def __init__(self) -> None:
        self._split: PerObject[Loaded, _Split] = PerObject(_split)
        self._asked = Asked()
        self._begin()

    def _begin(self) -> None:
        self._files: Mapping[int, _Split] = {}  # by identity
        self._parts: dict[str, Renewed[str, Any]] = {part: Renewed() for part, _ in MANY.values()}
        self._slices: tuple[Mapping[str, EndpointSlice], tuple[EndpointSlice, ...]] = ({}, ())

    def merge(
        self,
        files: Iterable[Loaded],
        *,
        allocations: Allocations | None,
        refusals: tuple[Refusal, ...] = (),
        service_cidrs: tuple[IPNetwork, ...] = (),
        seen: Collection[str] = (),
    ) -> Snapshot:
        """As `merge`."""
        files = tuple(files)
        splits = self._split(files)
        if not self._take(splits):
            self._begin()
            return merge(files, allocations=allocations, refusals=refusals, service_cidrs=service_cidrs, seen=seen)
        few = [each.few for each in splits]
        merged = merge(few, allocations=allocations, refusals=refusals, service_cidrs=service_cidrs, seen=seen)
        slices = self._parts["endpoint_slices"]
        if self._slices[0] is not slices:
            self._slices = slices, tuple(slices.values())
        parts: dict[str, Any] = {**self._parts, "endpoint_slices": self._slices[1]}
        asked = self._asked.policies(self._parts["pods"], self._parts["namespaces"], merged.pools)
        policies = with_asked(with_backends(merged.policies, self._parts["services"]), asked)
        told = sorted((*merged.refusals, *self._asked.refusals), key=lambda one: one.order)
        return replace(merged, policies=policies, refusals=tuple(told), **parts)

    def _take(self, splits: Iterable[_Split]) -> bool:
        """Whether every object is there once."""
        before, self._files = self._files, by_identity(splits)
        put, gone = differing(before, self._files)
        left: dict[str, set[str]] = {part: set() for part in self._parts}
        come: dict[str, dict[str, Any]] = {part: {} for part in self._parts}
        for part, names in (pair for number in gone for pair in (before[number].many or {}).items()):
            left[part].update(names)
        for many in (self._files[number].many for number in put):
            if many is None:
                return False
            for part, objects in many.items():
                there = self._parts[part].keys() & objects.keys()
                if there - left[part] or come[part].keys() & objects.keys():
                    return False
                come[part].update(objects)
        for part, kept in self._parts.items():
            changed = {name: each for name, each in come[part].items() if kept.get(name) != each}
            lost = left[part] - come[part].keys()
            if changed or lost:
                self._parts[part] = kept.but(changed, lost)
        return True


def _split(file: Loaded) -> _Split:
    found: dict[str, dict[str, Any]] = {}
    few, count = [], 0
    for entry in file.entries:
        if type(entry.object) not in MANY:
            few.append(entry)
            continue
        part, name_of = MANY[type(entry.object)]
        found.setdefault(part, {})[name_of(entry.object)] = entry.object
        count += 1
    is_unique = sum(map(len, found.values())) == count
    return _Split(replace(file, entries=tuple(few)), found if is_unique else None)


def _misplaced(entry: Entry) -> Refusal:
    message = f"{entry.origin}: {entry.ref} is not read from manifests; name its file in the configuration (store)"
    return Refusal(entry.ref, "Misplaced", message)


def _of(entries: list[Entry], kind: type[T]) -> list[T]:
    return [entry.object for entry in entries if isinstance(entry.object, kind)]


def _all_pools(entries: list[Entry]) -> list[tuple[Ref, AddressPool]]:
    """Pools of every kind of source with what refusals call them, in the order of the files."""
    return [pair for entry in entries for pair in _pools_of(entry)]


def _pools_of(entry: Entry) -> list[tuple[Ref, AddressPool]]:
    if isinstance(entry.object, AddressPool):
        return [(entry.ref, entry.object)]
    pools = entry.object.pools if isinstance(entry.object, LegacyConfig) else ()
    return [(Ref("AddressPool", name=pool.name), pool) for pool in pools]


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _unique_peers(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    """Peers of all sources; one that says the same as an earlier one is left out."""
    return tuple({without_place(peer): peer for peer in reversed(list(peers))}.values())[::-1]
