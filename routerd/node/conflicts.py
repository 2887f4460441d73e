"""The last defence: this node is no gateway of an egress IP that is somebody's. Pure.

The operator refuses such a policy. One that is older, or knows less than this node's kernel, may publish it all the
same; then nothing of it is blackholed or announced from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from routerd.claims import TAKEN, Hosts, claims
from routerd.model import EgressGroup, IPNetwork, Refusal, Snapshot
from routerd.refs import EGRESS, Ref


def without_conflicts(
    snapshot: Snapshot, node: str, networks: Iterable[IPNetwork], known: Hosts | None = None
) -> tuple[Snapshot, tuple[Refusal, ...]]:
    """The snapshot without `node` as gateway of such groups. An address that it has on an interface is its own."""
    allocations = snapshot.allocations
    here = [group for group in allocations.groups if _is_led_to(group, node)] if allocations else []
    addresses = (address for group in here for address in group.egress_ips)
    whose = claims(addresses, snapshot, {node: tuple(networks)}, known=known)
    if not whose or allocations is None:
        return snapshot, ()
    groups = (group if whose.keys().isdisjoint(group.egress_ips) else _without(group, node)
              for group in allocations.groups)  # fmt: skip
    refusals = [
        Refusal(Ref(EGRESS, name=str(address)), TAKEN, f"it is {whose[address]}: {node} is no gateway of it")
        for group in here
        for address in group.egress_ips
        if address in whose
    ]
    return replace(snapshot, allocations=replace(allocations, groups=tuple(groups))), tuple(refusals)


def _is_led_to(group: EgressGroup, node: str) -> bool:
    """Whether `node` blackholes and announces the address of `group`."""
    return not group.node_address and node in group.gateways


def _without(group: EgressGroup, node: str) -> EgressGroup:
    return replace(group, gateways=tuple(name for name in group.gateways if name != node))
