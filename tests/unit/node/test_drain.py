"""What a node that leaves announces, and why it does; the brake lets it go."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bgp.path import AdjRibOut
from routerd.model import Allocations, Node, Snapshot
from routerd.node.announce import Announcements, announcements
from routerd.node.brake import Brake, Limits
from routerd.node.checks import Rules
from routerd.node.desired import LocalFacts, Settings, compose
from routerd.node.drain import Drain, Orders, drain_of
from tests.models import cluster
from tests.models.cluster import LOCAL, SESSION

RULES = Rules(pod_cidrs=True)
ASKING = Drain("Drained", "node a is drained", withdraws=False)
WITHDRAWN = Drain("Drained", "node a is drained", withdraws=True)
DOWN = Drain("ShuttingDown", "node a goes down", withdraws=True)
VIP, EGRESS, POD_CIDR = "192.0.2.1/32", "198.51.100.7/32", "10.1.11.0/24"
NO_PODS: dict[str, object] = {"pods": {}}


def announced(drain: Drain | None, **fields: object) -> Announcements:
    found = announcements(cluster.snapshot(**fields), "a", RULES, LOCAL, drain)
    assert found is not None
    return found


def rib(drain: Drain | None, **fields: object) -> AdjRibOut:
    return announced(drain, **fields).desired.ribs[SESSION]


def prefixes(drain: Drain | None, **fields: object) -> set[str]:
    return set(map(str, rib(drain, **fields)))


def test_first_peers_are_asked_to_prefer_others() -> None:
    serving, asking = rib(None), rib(ASKING)
    assert set(asking) == set(serving) == {ip_network(each) for each in (VIP, EGRESS, POD_CIDR)}
    assert all(path.communities == ("65535:0",) and path.local_pref == 0 for path in asking.values())
    assert not any(path.communities for path in serving.values())


def test_then_nothing_leads_here_that_others_can_have() -> None:
    """The session stays, with nothing in it: what it withdrew cannot be kept by graceful restart."""
    moved = {"allocations": Allocations(2, (cluster.allocation("web", "192.0.2.1"),), (
        cluster.group(gateways=("b",)),
    ))}  # fmt: skip
    found = announced(WITHDRAWN, **NO_PODS, **moved)
    assert list(found.desired.peers) == [SESSION]
    assert found.desired.ribs[SESSION] == {}
    assert [(str(each.object), each.reason, each.message) for each in found.refusals] == [
        ("svc/default/web", "NodeDrained", "node a is drained")
    ]


def test_what_only_this_node_can_carry_stays_while_it_can() -> None:
    """An egress IP that the operator has not moved, and the pod CIDR of pods that still run; others are preferred."""
    assert prefixes(WITHDRAWN) == {EGRESS, POD_CIDR}
    assert all(path.communities == ("65535:0",) for path in rib(WITHDRAWN).values())
    assert prefixes(DOWN) == {POD_CIDR}, "it goes down, and whoever waits for a gateway waits in vain"
    finished = cluster.pod("web-1", "10.1.11.2", finished=True)
    assert prefixes(WITHDRAWN, pods={finished.key: finished}) == {EGRESS}
    elsewhere = cluster.pod("web-2", "10.1.12.2", node="b")
    assert prefixes(WITHDRAWN, pods={elsewhere.key: elsewhere}) == {EGRESS}


def node(**fields: object) -> Node:
    return cluster.node("a", 11, **fields)


@pytest.mark.parametrize(
    ("here", "orders", "cordoned", "reason"),
    [
        (node(), Orders(), False, ""),
        (node(unschedulable=True), Orders(), False, ""),
        (node(unschedulable=True), Orders(), True, "Cordoned"),
        (node(leaving="to-be-deleted", unschedulable=True), Orders(), True, "ToBeDeleted"),
        (node(leaving="to-be-deleted"), Orders(drained=True), False, "Drained"),
        (node(leaving="down"), Orders(drained=True), False, "ShuttingDown"),
        (node(), Orders(drained=True, marker="/run/routerd/shutdown"), False, "ShuttingDown"),
    ],
)
def test_the_gravest_reason_is_told(here: Node, orders: Orders, cordoned: bool, reason: str) -> None:
    found = drain_of(here, orders, cordoned=cordoned)
    assert (found.reason if found else "") == reason
    assert found is None or found.withdraws == (reason == "ShuttingDown")


@pytest.mark.parametrize(
    ("named", "leaves"),
    [
        ("maintenance", True), ("maintenance=yes", True), ("maintenance:NoExecute", True),
        ("maintenance=yes:NoExecute", True), ("maintenance=no", False), ("maintenance:NoSchedule", False),
        ("main", False), ("yes", False), ("", False),
    ],
)  # fmt: skip
def test_a_node_leaves_for_a_taint_that_is_named(named: str, leaves: bool) -> None:
    tainted = node(taints=("maintenance=yes:NoExecute", "other=:NoSchedule"))
    found = drain_of(tainted, Orders(), cordoned=False, taints=(named,))
    assert (found.reason if found else "") == ("Tainted" if leaves else "")
    assert drain_of(tainted, Orders(), cordoned=False) is None


def test_the_brake_does_not_hold_what_a_node_withdraws_that_leaves() -> None:
    """Also after a start, when all that is known of before is what the speaker carries."""
    snapshot = many_vips(40)
    settings = Settings("a")
    before = compose(snapshot, settings, LocalFacts(LOCAL))
    leaving = compose(snapshot, settings, LocalFacts(LOCAL, drain=WITHDRAWN))
    for carried in (True, False):
        brake = Brake(Limits(paths=20))
        if carried:
            assert before.announcements is not None
            brake.begin(before.announcements.desired.ribs)
        else:
            brake.apply(before, snapshot)
        held = brake.apply(leaving, snapshot).announcements
        assert brake.paths == 0
        assert held is not None and set(map(str, held.desired.ribs[SESSION])) == {EGRESS}


def many_vips(count: int) -> Snapshot:
    services = [cluster.service(f"s{number}") for number in range(count)]
    return cluster.snapshot(
        services={each.key: each for each in services},
        endpoint_slices=tuple(cluster.endpoints(each.name, "a") for each in services),
        allocations=Allocations(
            1,
            tuple(cluster.allocation(each.name, f"192.0.2.{number + 1}") for number, each in enumerate(services)),
            (cluster.group(),),
        ),
    )
