"""Desired states for the packet tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_network

from egress.policy import Block, Desired, Gateway, Group, IPAddress, Neighbour, Policy, Served, Transport, Watch
from tests.bpf.world import (
    EGRESS_IP,
    EGRESS_IP6,
    LINK_LOCALS,
    NODE_EGRESS_IP,
    NODE_MACS,
    NUMBERS,
    POD,
    POD2,
    POD6,
    POD26,
    POD_CIDRS,
    SELF,
    SELF6,
    VIP,
    VIP6,
    WORLD,
    WORLD6,
)
from tests.models.tables import granules

HERE, THERE, NO_GATEWAY, NODE_OWN, NO_PORTS, SERVED_BY_ALL, IN_ORDER, OF_VIP = range(7, 15)
UNPUBLISHED = 0
SELF_NUMBER, WORKER_NUMBER, WORKER2_NUMBER = 1, 2, 3
OWN = Block(EGRESS_IP, 40960, 4096)  # this node's ports; the worker has 32768-36863
OWN6 = Block(EGRESS_IP6, 40960, 4096)
NODE_OWN_BLOCK = Block(NODE_EGRESS_IP, 61440, 1024)
BOTH = (EGRESS_IP, EGRESS_IP6)
VIPS: tuple[IPAddress, ...] = (VIP, VIP6)
THROUGH_SELF = (Gateway("self", SELF_NUMBER),)
THROUGH_WORKERS = (Gateway("w", WORKER_NUMBER), Gateway("w2", WORKER2_NUMBER))
GROUPS = {
    HERE: Group(HERE, BOTH, THROUGH_SELF, (OWN, OWN6)),
    THERE: Group(THERE, BOTH, THROUGH_WORKERS, (OWN, OWN6)),
    NO_GATEWAY: Group(NO_GATEWAY, BOTH, (Gateway("w", WORKER_NUMBER, up=False),), (OWN, OWN6)),
    NODE_OWN: Group(NODE_OWN, (NODE_EGRESS_IP,), THROUGH_SELF, (NODE_OWN_BLOCK,), node_address=True),
    NO_PORTS: Group(NO_PORTS, BOTH, THROUGH_SELF, (Block(EGRESS_IP, 8192, 64, closed=True),)),
    SERVED_BY_ALL: Group(SERVED_BY_ALL, BOTH, (*THROUGH_SELF, *THROUGH_WORKERS), (OWN, OWN6)),
    IN_ORDER: Group(IN_ORDER, BOTH, THROUGH_WORKERS, (OWN, OWN6), in_order=True),
    OF_VIP: Group(OF_VIP, VIPS, (*THROUGH_SELF, *THROUGH_WORKERS), tuple(Block(each, 40960, 4096) for each in VIPS)),
}
UNDERLAY = IPv4Network("10.200.0.0/24")


SHARED = Served(granules({SELF_NUMBER: [(40960, 4096)], WORKER_NUMBER: [(32768, 4096)]}), group=SERVED_BY_ALL)
SERVED: dict[IPAddress, Served] = {
    EGRESS_IP: SHARED,
    EGRESS_IP6: SHARED,
    NODE_EGRESS_IP: Served(granules({SELF_NUMBER: [(61440, 1024)]}), node_address=True, group=NODE_OWN),
    **dict.fromkeys(VIPS, replace(SHARED, group=OF_VIP, vip=True)),
}


def desired(
    *policies: Policy, of: Sequence[str] | None = None, both: bool = False, transport: Transport = "vxlan"
) -> Desired:
    """This node with POD under the policies named in `of` (all of them), POD2 under none unless `both`, and every
    kind of group.
    """
    names = tuple(policy.name for policy in policies) if of is None else tuple(of)
    second = names if both else ()
    return Desired(
        node="self",
        node_address=SELF,
        pods={POD: names, POD6: names, POD2: second, POD26: second},
        policies={policy.name: policy for policy in policies},
        groups=GROUPS,
        served=SERVED,
        nodes=NUMBERS,
        icmp_sources=(SELF, SELF6),
        cluster=frozenset({UNDERLAY, *POD_CIDRS, *map(ip_network, VIPS)}),
        pod_cidrs=POD_CIDRS,
        watch=Watch(0.05, 3),
        transport=transport,
        neighbours={number: Neighbour(NODE_MACS[number], LINK_LOCALS[number]) for number in NODE_MACS},
    )


def by_forward_hook(wished: Desired) -> Desired:
    return replace(wished, network_policy="forward")


def to_world(group: int, *, exit_local: bool = False, transport: Transport = "vxlan") -> Desired:
    """POD sends everything through `group`."""
    return desired(Policy("world", group, (WORLD, WORLD6), exit_local=exit_local), transport=transport)
