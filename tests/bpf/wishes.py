"""Desired states for the packet tests."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

from egress.policy import Desired, Gateway, Group, Policy
from tests.bpf.world import EGRESS_IP, NODE_EGRESS_IP, POD, POD2, POD_CIDRS, SELF, WORKER, WORKER2, WORLD

HERE, THERE, NO_GATEWAY, NODE_OWN, UNPUBLISHED = 7, 8, 9, 10, 0
GROUPS = {
    HERE: Group(HERE, EGRESS_IP, (Gateway("self", SELF, 0),)),
    THERE: Group(THERE, EGRESS_IP, (Gateway("w", WORKER, 0), Gateway("w2", WORKER2, 1)), slots=2),
    NO_GATEWAY: Group(NO_GATEWAY, EGRESS_IP, (Gateway("w", WORKER, 0, up=False),)),
    NODE_OWN: Group(NODE_OWN, NODE_EGRESS_IP, (Gateway("self", SELF, 0),), node_address=True),
}
UNDERLAY = IPv4Network("10.200.0.0/24")


def desired(*policies: Policy, of: Sequence[str] | None = None, both: bool = False) -> Desired:
    """This node with POD under the policies named in `of` (all of them), POD2 under none unless `both`, and every
    kind of group.
    """
    names = tuple(policy.name for policy in policies) if of is None else tuple(of)
    return Desired(
        node="self",
        node_address=SELF,
        pods={POD: names, POD2: names if both else ()},
        policies={policy.name: policy for policy in policies},
        groups=GROUPS,
        nodes=frozenset({SELF, WORKER, WORKER2}),
        cluster=frozenset({UNDERLAY, *POD_CIDRS}),
        pod_cidrs=POD_CIDRS,
    )


def to_world(group: int) -> Desired:
    """POD sends everything through `group`."""
    return desired(Policy("world", group, (WORLD,)))
