"""What the operator shows in the status of objects, from published allocations. Pure: values in, merge patches out.

A service of another class, or one whose status bears an address that is neither ours nor in our pools, is left alone.
Every patch bears the resourceVersion and the uid of the object that it was decided for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipam.pool import Counts
from routerd.cluster.requests import is_ours
from routerd.formats.kinds import Kind
from routerd.memo import Derived, differing
from routerd.model import (
    OF_PORTS,
    Allocations,
    EgressGroup,
    IPAddress,
    Refusal,
    Service,
    ServiceAllocation,
    Snapshot,
)
from routerd.refs import Ref
from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.resources import POLICIES, POOLS, REPORTS, SERVICES, object_path

CONFLICTS = frozenset({"Conflicting", "PoolConflicting", "Duplicate", "AddressInUse", "PortInUse", "GatewaysDiffer"})


@dataclass(frozen=True, slots=True)
class StatusPatch:
    """A write to the status subresource."""

    kind: Kind
    name: str
    namespace: str
    version: str
    status: Mapping[str, Any]
    uid: str = ""

    @property
    def path(self) -> str:
        return object_path(self.kind, self.name, self.namespace, "status")

    @property
    def body(self) -> dict[str, Any]:
        meta = {"name": self.name, "resourceVersion": self.version, "uid": self.uid}
        shown = {"apiVersion": self.kind.api_version, "kind": self.kind.name}
        return {**shown, "metadata": meta, "status": dict(self.status)}


def _patch(kind: Kind, stored: StoredObject, status: Mapping[str, Any]) -> StatusPatch:
    return StatusPatch(kind, stored.name, stored.namespace, stored.version, status, stored.uid)


# --- services


Said = tuple[StoredObject, Service]


class ServicePatches:
    """Those of services, kept from time to time (`routerd.memo`): only services whose status may be another one than it
    should be are looked at.
    """

    def __init__(self) -> None:
        self._ours: Derived[StoredObject, str, Said] = Derived(_ours)
        self._said: Mapping[str, Said] = {}
        self._services: Sequence[ServiceAllocation] = ()
        self._granted: Mapping[str, ServiceAllocation] = {}
        self._open: set[str] = set()  # whose status is not what was granted

    def of(
        self, services: Mapping[Any, StoredObject], snapshot: Snapshot, recorded: Callable[[IPAddress], bool]
    ) -> tuple[list[StatusPatch], list[Refusal]]:
        """`recorded`: whether the address is in the ledger."""
        allocations = snapshot.allocations
        if allocations is None:
            return [], []
        said, granted = self._ours(services), self._granted
        if allocations.services is not self._services:
            granted = {each.service: each for each in allocations.services}
        parts = differing(self._said, said), differing(self._granted, granted)
        touched = {key for put, gone in parts for key in (*put, *gone)}
        self._said, self._granted, self._services = said, granted, allocations.services
        self._open = {key for key in self._open | touched if key in said and not _is_told(*said[key], granted.get(key))}
        denied = {refusal.object for refusal in allocations.refusals}
        found = [
            _service_patch(*said[key], granted.get(key), snapshot, recorded)
            for key in sorted(self._open)
            if key in granted or said[key][1].ref in denied  # else it is not decided yet
        ]
        patches = [each for each in found if isinstance(each, StatusPatch)]
        return patches, [each for each in found if isinstance(each, Refusal)]


def _ours(stored: StoredObject) -> tuple[str, Said] | None:
    service = _service(stored)
    return (service.key, (stored, service)) if service is not None and is_ours(service) else None


def _is_told(stored: StoredObject, service: Service, granted: ServiceAllocation | None) -> bool:
    addresses = granted.addresses if granted is not None else ()
    return service.status_ips == addresses and bool(addresses or not ingress_of(stored))


def _service_patch(
    stored: StoredObject,
    service: Service,
    granted: ServiceAllocation | None,
    snapshot: Snapshot,
    recorded: Callable[[IPAddress], bool],
) -> StatusPatch | Refusal:
    if stranger := _stranger(stored, service, snapshot, recorded):
        message = f'its status bears "{stranger}", which is neither ours nor in our pools: it is left alone'
        return Refusal(service.ref, "StatusOfOther", message)
    ingress = [{"ip": str(address)} for address in (granted.addresses if granted is not None else ())]
    return _patch(SERVICES, stored, {"loadBalancer": {"ingress": ingress}})


def _service(stored: StoredObject) -> Service | None:
    """As it is now: an object that is wrong still shows what it last said, on which nothing must be written."""
    if stored.error is not None:
        return None
    return next((one.object for one in stored.loaded.entries if isinstance(one.object, Service)), None)


def ingress_of(stored: StoredObject) -> list[Mapping[str, Any]]:
    return list((stored.status.get("loadBalancer") or {}).get("ingress") or ())


def _stranger(stored: StoredObject, service: Service, snapshot: Snapshot, recorded: Callable[[IPAddress], bool]) -> str:
    """The first entry of the status that someone else must have written, "" = none."""
    hostname = next((str(each["hostname"]) for each in ingress_of(stored) if each.get("hostname")), "")
    blocks = [block for pool in (snapshot.pools or {}).values() for block in pool.blocks]
    strange = (
        str(address)
        for address in service.status_ips
        if not recorded(address) and not any(address in block for block in blocks)
    )
    return hostname or next(strange, "")


# --- conditions


def condition(kind: str, holds: bool, reason: str, message: str, generation: int) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message[:32768],
        "observedGeneration": generation,
    }


def dated(conditions: list[dict[str, Any]], before: Iterable[Mapping[str, Any]], now: str) -> list[dict[str, Any]]:
    """With the time of the last transition: it stays while the condition's status does."""
    old = {str(each.get("type")): each for each in before}
    with_times = []
    for each in conditions:
        last = old.get(each["type"], {})
        since = last.get("lastTransitionTime") if last.get("status") == each["status"] else None
        with_times.append({**each, "lastTransitionTime": since or now})
    return with_times


def _with_conditions(
    stored: StoredObject, status: dict[str, Any], conditions: list[dict[str, Any]], now: str
) -> dict[str, Any] | None:
    """The whole status, or None if it is there already. What we do not set any more is removed."""
    whole = {**status, "observedGeneration": stored.generation}
    whole["conditions"] = dated(conditions, stored.status.get("conditions") or (), now)
    if whole == dict(stored.status):
        return None
    return {**dict.fromkeys(stored.status), **whole}


def _refusals_by_object(snapshot: Snapshot, allocations: Allocations) -> dict[Ref, list[Refusal]]:
    by_object: dict[Ref, list[Refusal]] = {}
    for refusal in (*snapshot.refusals, *allocations.refusals):
        by_object.setdefault(refusal.object, []).append(refusal)
    return by_object


def _conflicting(refusals: list[Refusal], generation: int) -> dict[str, Any]:
    conflict = next((each for each in refusals if each.reason in CONFLICTS), None)
    if conflict is None:
        return condition("Conflicting", False, "NoConflict", "", generation)
    return condition("Conflicting", True, conflict.reason, conflict.message, generation)


# --- egress policies


def policy_patches(policies: Iterable[StoredObject], snapshot: Snapshot, now: str) -> list[StatusPatch]:
    """Of our own kind: Cilium's have no status. `now` in RFC 3339."""
    allocations = snapshot.allocations
    if allocations is None or snapshot.policies is None:
        return []
    refusals = _refusals_by_object(snapshot, allocations)
    groups = {key: group for group in allocations.groups for key in group.policies}
    patches = []
    for stored in policies:
        ref = Ref("EgressPolicy", name=stored.name)
        group, refused = groups.get(str(ref)), refusals.get(ref, [])
        if group is None and not refused:
            continue  # not decided yet
        status = _with_conditions(stored, _group_status(group), _policy_conditions(stored, group, refused), now)
        if status is not None:
            patches.append(_patch(POLICIES, stored, status))
    return patches


def _group_status(group: EgressGroup | None) -> dict[str, Any]:
    if group is None:
        return {}
    return {
        "egressIP": str(group.egress_ip),
        "egressIPs": [str(address) for address in group.egress_ips],
        "id": group.id,
        "nodeAddress": group.node_address,
        "gateways": [{"node": name} for name in group.gateways],
        "gatewayMode": group.gateway_mode,
    }


def _policy_conditions(stored: StoredObject, group: EgressGroup | None, refused: list[Refusal]) -> list[dict[str, Any]]:
    at = stored.generation
    first = refused[0] if refused else Refusal(Ref(""), "Pending", "nothing is decided yet")
    addresses = ", ".join(map(str, group.egress_ips)) if group is not None else ""
    allocated = (
        condition("Allocated", True, "Allocated", f"egress IP {addresses}", at)
        if group is not None
        else condition("Allocated", False, first.reason, first.message, at)
    )
    if group is not None and group.gateways and all(each.reason in OF_PORTS for each in refused):
        nodes = ", ".join(group.gateways)
        ready = condition("Ready", True, "Ready", f"leaves by {nodes} as {addresses}", at)
    else:
        ready = condition("Ready", False, first.reason, first.message, at)
    return [ready, allocated, _conflicting(refused, at)]


# --- pools


def pool_patches(
    pools: Iterable[StoredObject], snapshot: Snapshot, counts: Mapping[str, Counts], now: str
) -> list[StatusPatch]:
    """Pools that come from ConfigMaps have no status."""
    allocations = snapshot.allocations
    if allocations is None or snapshot.pools is None:
        return []
    refusals = _refusals_by_object(snapshot, allocations)
    patches = []
    for stored in pools:
        refused = refusals.get(Ref("AddressPool", name=stored.name), [])
        count = counts.get(stored.name)
        if count is None and not refused:
            continue
        status = _with_conditions(stored, _counts(count), _pool_conditions(stored, refused), now)
        if status is not None:
            patches.append(_patch(POOLS, stored, status))
    return patches


def _counts(count: Counts | None) -> dict[str, Any]:
    if count is None:
        return {}
    # An IPv6 pool has more addresses than an int64 holds.
    names = ("total", "free", "used", "cooling", "reserved")
    return {name: min(getattr(count, name), 2**63 - 1) for name in names}


def _pool_conditions(stored: StoredObject, refused: list[Refusal]) -> list[dict[str, Any]]:
    at = stored.generation
    if refused:
        ready = condition("Ready", False, refused[0].reason, refused[0].message, at)
    else:
        ready = condition("Ready", True, "Ready", "", at)
    return [ready, _conflicting(refused, at)]


# --- nodes


def node_patches(reports: Iterable[StoredObject], silent: Mapping[str, str], now: str) -> list[StatusPatch]:
    """Nobody else says that what an agent said of its node is old. `silent`: since when, by node, in RFC 3339.

    An agent that is back says everything anew.
    """
    patches = []
    for stored in reports:
        before = [each for each in stored.status.get("conditions") or () if isinstance(each, Mapping)]
        if stored.name in silent and any(each.get("status") != "Unknown" for each in before):
            message = (
                f"no word of the agent since {silent[stored.name]}: it does not run, or cannot reach the API server"
            )
            said = {"status": "Unknown", "reason": "AgentAbsent", "message": message}
            patches.append(
                _patch(REPORTS, stored, {"conditions": dated([{**each, **said} for each in before], before, now)})
            )
    return patches
