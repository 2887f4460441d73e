"""The addresses of services. Pure.

A service of another class, or one whose status bears an address that is neither ours nor in our pools, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from routerd.cluster.requests import is_ours
from routerd.memo import Derived, differing
from routerd.model import IPAddress, Refusal, Service, ServiceAllocation, Snapshot
from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.resources import SERVICES
from routerd.store.kubernetes.status.patches import StatusPatch, patch_of

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
    return patch_of(SERVICES, stored, {"loadBalancer": {"ingress": ingress}})


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
