"""Objects of many files -> one snapshot: what is there twice or overlaps is refused, the rest goes on. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.legacy_bgp.peers import without_place
from routerd.formats.objects import Entry, Loaded
from routerd.model import (
    AddressPool,
    Allocations,
    EgressPolicy,
    EndpointSlice,
    IPNetwork,
    Namespace,
    Node,
    NodeReport,
    Peer,
    Peering,
    Pod,
    Refusal,
    Service,
    Snapshot,
)
from routerd.refs import Ref
from routerd.store.closed import is_policy, unreadable

T = TypeVar("T")


@dataclass(slots=True)
class _Pools:
    """Pools taken so far, and their blocks."""

    by_name: dict[str, AddressPool] = field(default_factory=dict)
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
                if taken.version == block.version and taken.overlaps(block):
                    place = self.by_name[owner].origin
                    message = f"{block} overlaps with {taken} of pool {owner} ({place}); pool {pool.name} is not used"
                    self._refuse(written, pool, "Conflicting", message)
                    return
        self.by_name[pool.name] = pool
        self.blocks.extend((block, pool.name) for block in pool.blocks)

    def _refuse(self, written: Ref, pool: AddressPool, reason: str, message: str) -> None:
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
    entries, duplicates = _unique(entry for file in files for entry in file.entries)
    misplaced = [_misplaced(entry) for entry in entries if isinstance(entry.object, Allocations | NodeReport)]
    pools = _Pools()
    for written, pool in _all_pools(entries):
        pools.take(written, pool)
    policies = {policy.key: policy for policy in _of(entries, EgressPolicy)}
    lost = unreadable(files, policies, allocations, seen)
    all_refusals = [
        *refusals,
        *(one for file in files for one in file.refusals),
        *duplicates,
        *misplaced,
        *pools.refusals,
        *lost,
    ]
    return Snapshot(
        nodes={node.name: node for node in _of(entries, Node)},
        namespaces={namespace.name: namespace for namespace in _of(entries, Namespace)},
        pods={pod.key: pod for pod in _of(entries, Pod)},
        services={service.key: service for service in _of(entries, Service)},
        endpoint_slices=tuple(_of(entries, EndpointSlice)),
        bgp=Peering(_peers(_of(entries, LegacyConfig))),
        pools=pools.by_name,
        policies=None if lost else policies,
        allocations=allocations,
        refusals=tuple(sorted(all_refusals, key=lambda one: one.order)),
        service_cidrs=service_cidrs,
    )


def _unique(entries: Iterable[Entry]) -> tuple[list[Entry], list[Refusal]]:
    first: dict[Ref, Entry] = {}
    refusals = []
    for entry in sorted(entries, key=lambda entry: is_policy(entry, refused=True)):  # a good one comes first
        other = first.setdefault(entry.ref, entry)
        if other is not entry:
            message = f"{entry.origin}: {entry.ref} is already defined at {other.origin}; this one is not used"
            refusals.append(Refusal(entry.ref, "Duplicate", message))
    return list(first.values()), refusals


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


def _peers(configs: list[LegacyConfig]) -> tuple[Peer, ...]:
    """Peers of all ConfigMaps; one that says the same as an earlier one is left out."""
    peers = [peer for config in configs for peer in config.peers]
    return tuple({without_place(peer): peer for peer in reversed(peers)}.values())[::-1]
