"""Of egress policies of our own kind: what they got, and what is wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from routerd.model import OF_PORTS, EgressGroup, Refusal, Snapshot
from routerd.refs import Ref
from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.resources import POLICIES
from routerd.store.kubernetes.status.patches import (
    StatusPatch,
    condition,
    conflicting,
    patch_of,
    refusals_by_object,
    with_conditions,
)


def policy_patches(policies: Iterable[StoredObject], snapshot: Snapshot, now: str) -> list[StatusPatch]:
    """Of our own kind: Cilium's have no status. `now` in RFC 3339."""
    allocations = snapshot.allocations
    if allocations is None or snapshot.policies is None:
        return []
    refusals = refusals_by_object(snapshot, allocations)
    groups = {key: group for group in allocations.groups for key in group.policies}
    patches = []
    for stored in policies:
        ref = Ref("EgressPolicy", name=stored.name)
        group, refused = groups.get(str(ref)), refusals.get(ref, [])
        if group is None and not refused:
            continue  # not decided yet
        status = with_conditions(stored, _group_status(group), _policy_conditions(stored, group, refused), now)
        if status is not None:
            patches.append(patch_of(POLICIES, stored, status))
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
    return [ready, allocated, conflicting(refused, at)]
