"""What a worker and a gateway want, a model of the node that carries it out, and what must hold in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from egress.entries import map_entries, observed_sets
from egress.host.links import PodDevice
from egress.nftables import guard
from egress.plan import Action, plan, wanted_attachments
from egress.policy import Block, Desired, Gateway, Group, IPAddress, Policy, Ports, Served
from tests.models.node import FakeNode
from tests.models.tables import Tables, granules, tables

WORKER, GATEWAY = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
POD, PLAIN = IPv4Address("10.1.0.5"), IPv4Address("10.1.0.6")
EGRESS_IP = IPv4Address("192.0.2.100")
WORLD = IPv4Network("0.0.0.0/0")
NODES = {1: WORKER, 2: GATEWAY}
GROUP = Group(7, (EGRESS_IP,), (Gateway("gw", 2),), (Block(EGRESS_IP, 1024, 1024),))
TABLE = Served(granules({1: [(1024, 1024)], 2: [(2048, 1024)]}), group=7)
SERVED: dict[IPAddress, Served] = {EGRESS_IP: TABLE}
POLICY = Policy("world", 7, (WORLD,))
DEVICES = {
    POD: PodDevice(5, "veth5", "veth5", bytes.fromhex("020000000005"), bytes(6)),
    PLAIN: PodDevice(6, "veth6", "veth6", bytes.fromhex("020000000006"), bytes(6)),
}


def on_worker(**changes: object) -> Desired:
    desired = Desired(
        "worker", WORKER, pods={POD: ("world",), PLAIN: ()}, policies={"world": POLICY}, groups={7: GROUP},
        nodes=NODES, cluster=frozenset({IPv4Network("10.0.0.0/8")}),
        pod_cidrs=frozenset({IPv4Network("10.1.0.0/24")}),
    )  # fmt: skip
    return replace(desired, **changes)  # type: ignore[arg-type]


def on_gateway(**changes: object) -> Desired:
    wish = {"served": SERVED, **changes}
    return on_worker(node="gw", node_address=GATEWAY, pods={}, pod_cidrs=frozenset(), **wish)


def carry_out(node: FakeNode, actions: Sequence[Action]) -> list[str]:
    for action in actions:
        node.apply(action)
    return [str(action) for action in actions if "map cluster" not in str(action)]


def settle(node: FakeNode, desired: Desired, rounds: int = 4) -> None:
    for _ in range(rounds):
        if not carry_out(node, plan(desired, node.observe())):
            return
    raise AssertionError(f"it does not come to rest: {[str(a) for a in plan(desired, node.observe())]}")


def settled(desired: Desired) -> FakeNode:
    node = FakeNode(DEVICES)
    settle(node, desired)
    return node


EXCLUDING = replace(POLICY, excluded=(IPv4Network("198.51.100.0/24"), IPv4Network("203.0.113.0/24")))
OFFICE = Policy(
    "office", 8, (IPv4Network("198.51.100.0/24"), IPv4Network("203.0.113.0/24")), ports=(Ports("TCP", 1, 9),)
)
OTHER_IP = IPv4Address("192.0.2.101")
OTHER = Group(8, (OTHER_IP,), (Gateway("worker", 1), Gateway("gw", 2)), (Block(OTHER_IP, 4096, 64),))
BOTH_SERVED: dict[IPAddress, Served] = {OTHER_IP: TABLE}
WISHES = [
    on_worker(),
    on_worker(pods={POD: (), PLAIN: ("world",)}),
    on_worker(pods={PLAIN: ("world",)}),
    on_worker(policies={"world": EXCLUDING}),
    on_worker(pods={POD: ("office", "world"), PLAIN: ("office",)}, policies={"world": EXCLUDING, "office": OFFICE},
              groups={7: GROUP, 8: OTHER}, served=BOTH_SERVED),
    on_worker(pods={POD: ("gone",)}, policies={}, groups={8: OTHER}, served=BOTH_SERVED),
    on_worker(pods={}, policies={}, groups={}),
    on_worker(groups={8: replace(OTHER, node_address=True)}, served={OTHER_IP: replace(TABLE, node_address=True)},
              policies={"world": replace(POLICY, group=0)}),
]  # fmt: skip


def contents_of(wishes: Sequence[Desired]) -> set[frozenset[tuple[bytes, bytes]]]:
    """Every complete set that pods may point to."""
    facts = FakeNode(DEVICES).observe().facts
    found: set[frozenset[tuple[bytes, bytes]]] = set()
    for wish in wishes:
        found |= set(observed_sets(map_entries(wish, facts, {})["policies"]).values())
    return found


def check_safe(node: FakeNode, wishes: Sequence[Desired], complete: set[frozenset[tuple[bytes, bytes]]]) -> None:
    """What must hold between any two actions."""
    if not node.maps.get("settings"):
        return
    decoded = tables(node.maps, {}, {})
    present = observed_sets(node.maps["policies"])
    for pod, number in decoded.pods.items():
        assert not number or present.get(number) in complete, f"{pod} points to an incomplete set {number}"
    for device in decoded.strict_devices:
        assert any(ifindex == device for ifindex, _ in decoded.pods), f"strict device {device} lacks its pods"
    _check_groups(decoded, wishes)
    _check_guard(node, decoded)


def _check_groups(decoded: Tables, wishes: Sequence[Desired]) -> None:
    """No rule in use leads to a group whose gateways have been taken away while somebody wants it."""
    used = {rule.group for n in decoded.pods.values() if n for rules in decoded.policies[n].values() for rule in rules}
    wanted = set.intersection(*(set(wish.groups) for wish in wishes))
    assert used & wanted <= set(decoded.groups)


def _check_guard(node: FakeNode, decoded: Tables) -> None:
    """A pod that the guard takes for decided has its entry and its program."""
    assert node.guard
    attached = {a.ifindex for a in node.attachments if a.program == "from_pod"}
    for pod, device in DEVICES.items():
        if f"{device.name} . {pod}" in node.guard.sets["decided"]:
            assert (device.ifindex, pod) in decoded.pods
            assert device.ifindex in attached


def is_at_rest(node: FakeNode, desired: Desired) -> bool:
    observed = node.observe()
    wanted = map_entries(desired, observed.facts, observed.maps["policies"])
    hooks = {(a.program, a.ifindex) for a in node.attachments}
    return (
        observed.maps == wanted
        and node.guard == guard.render(desired, observed.facts).digests()
        and hooks == set(wanted_attachments(desired, observed))
    )
