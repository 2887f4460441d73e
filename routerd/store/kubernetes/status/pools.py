"""What the operator shows in the status of pools, in the words of those whose kind a pool is. Pure.

Pools that come from ConfigMaps have no status. Of an object whose pool another one has (`Duplicate`, `Conflicting`) no
addresses are counted: they are the other one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ipam.pool import Counts
from routerd.formats.kinds import BY_NAME, Kind
from routerd.model import AddressPool, Refusal, Snapshot
from routerd.refs import Ref
from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.resources import POOLS
from routerd.store.kubernetes.status.patches import (
    CONFLICTS,
    StatusPatch,
    condition,
    conflicting,
    dated,
    patch_of,
    refusals_by_object,
    with_conditions,
)

Status = dict[str, Any]
LARGEST = 2**63 - 1  # an IPv6 pool has more addresses than an int64 holds


def pool_patches(
    objects: Callable[[str], Iterable[StoredObject]], snapshot: Snapshot, counts: Mapping[str, Counts], now: str
) -> list[StatusPatch]:
    """`objects`: those of a kind. `counts`: of pools by name. `now` in RFC 3339."""
    allocations, pools = snapshot.allocations, snapshot.pools
    if allocations is None or pools is None:
        return []
    refusals = refusals_by_object(snapshot, allocations)
    patches = []
    for kind, status_of in STATUSES:
        for stored in objects(kind.name):
            pool = _pool(stored)
            in_force = pool is not None and pool.name in pools and pools[pool.name].origin == pool.origin
            about = {
                Ref(kind.name, stored.namespace, stored.name),
                *([Ref("AddressPool", name=stored.name)] * in_force),
            }
            refused = [each for ref in sorted(about, key=str) for each in refusals.get(ref, ())]
            status = status_of(stored, counts.get(stored.name) if in_force else None, refused, now)
            if status is not None and status != dict(stored.status):
                patches.append(patch_of(kind, stored, status))
    return patches


def _pool(stored: StoredObject) -> AddressPool | None:
    return next((one.object for one in stored.loaded.entries if isinstance(one.object, AddressPool)), None)


def _of_ours(stored: StoredObject, count: Counts | None, refused: list[Refusal], now: str) -> Status | None:
    if count is None and not refused:
        return None
    return with_conditions(stored, _counted(count), _ready(stored, refused), now)


def _counted(count: Counts | None) -> Status:
    if count is None:
        return {}
    names = ("total", "free", "used", "cooling", "reserved")
    return {name: min(getattr(count, name), LARGEST) for name in names}


def _ready(stored: StoredObject, refused: list[Refusal]) -> list[Status]:
    at = stored.generation
    if refused:
        ready = condition("Ready", False, refused[0].reason, refused[0].message, at)
    else:
        ready = condition("Ready", True, "Ready", "", at)
    return [ready, conflicting(refused, at)]


def _of_cilium(stored: StoredObject, count: Counts | None, refused: list[Refusal], now: str) -> Status | None:
    """Its counts are messages of conditions that are neither true nor false, and a conflict is one that may be over."""
    before = [each for each in stored.status.get("conditions") or () if isinstance(each, Mapping)]
    conflict = next((each for each in refused if each.reason in CONFLICTS), None)
    at, said = stored.generation, []
    if conflict is not None:
        said.append(condition("cilium.io/PoolConflict", True, "cidr_overlap", conflict.message, at))
    elif any(each.get("type") == "cilium.io/PoolConflict" for each in before):
        said.append(condition("cilium.io/PoolConflict", False, "resolved", "", at))
    if count is not None:
        numbers = {"IPsTotal": count.total, "IPsAvailable": count.free, "IPsUsed": count.used}
        said += [
            {**condition(f"cilium.io/{name}", False, "noreason", str(number), at), "status": "Unknown"}
            for name, number in numbers.items()
        ]
    return {**stored.status, "conditions": dated(said, before, now)} if said else None


def _of_metallb(stored: StoredObject, count: Counts | None, refused: list[Refusal], now: str) -> Status | None:
    """Counts alone. What is neither assigned nor available cools down or is somebody's already."""
    if count is None:
        return None
    numbers = {
        "assignedIPv4": count.used - count.used_v6,
        "assignedIPv6": count.used_v6,
        "availableIPv4": count.free - count.free_v6,
        "availableIPv6": count.free_v6,
    }
    return {**stored.status, **{name: min(number, LARGEST) for name, number in numbers.items()}}


STATUSES: tuple[tuple[Kind, Callable[[StoredObject, Counts | None, list[Refusal], str], Status | None]], ...] = (
    (POOLS, _of_ours),
    (BY_NAME["cilium.io", "CiliumLoadBalancerIPPool"], _of_cilium),
    (BY_NAME["metallb.io", "IPAddressPool"], _of_metallb),
)
