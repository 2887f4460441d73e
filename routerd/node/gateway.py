"""Whether this node may be a gateway, so that its agent beats as one. Pure.

It says yes whenever the operator may choose the node: a gateway that beats too seldom would be none.
"""

from __future__ import annotations

from collections.abc import Iterable

from routerd.model import IPAddress, Snapshot, is_gateway


def may_be_gateway(snapshot: Snapshot, name: str, addresses: Iterable[IPAddress]) -> bool | None:
    """A policy selects it, it is labelled, it has an egress IP on an interface, or a group has it now.

    `addresses` are those on its interfaces. None = not known yet.
    """
    if snapshot.nodes is None or snapshot.policies is None:
        return None
    node, policies = snapshot.nodes.get(name), snapshot.policies.values()
    if node is None:
        return False
    wanted = {address for policy in policies for address in policy.egress_ips}
    groups = snapshot.allocations.groups if snapshot.allocations is not None else ()
    return (
        any(is_gateway(selector, node) for selector in {None, *(policy.gateways for policy in policies)})
        or not wanted.isdisjoint(addresses)
        or any(name in group.gateways for group in groups)
    )
