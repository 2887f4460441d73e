"""An agent's word about ports: what it says follows from what it reads, and it says it when it is another."""

from __future__ import annotations

from dataclasses import replace

from routerd.agent.ports import PortDesk
from routerd.model import Allocations, AppliedTable, NodeNumber, Pod, PortAsk, PortReport, Snapshot
from routerd.node.desired import LocalFacts, Settings, compose
from tests.models import cluster


class Desk:
    def __init__(self, node: str = "a") -> None:
        self.node, self.told = node, 0
        self.desk = PortDesk(node, self.tell, clock=lambda: 0.0)

    def tell(self) -> None:
        self.told += 1

    def round(self, snapshot: Snapshot, *, done: bool = True) -> PortReport | None:
        state = compose(snapshot, Settings(self.node), LocalFacts(cluster.LOCAL))
        self.desk.consider(snapshot.allocations, state)
        if done and snapshot.allocations is not None:
            self.desk.is_applied(snapshot.allocations, state)
        return self.desk.report


def asks(*pods: Pod, node: str = "a", allocations: Allocations | None = None) -> tuple[PortAsk, ...]:
    there = {each.key: each for each in pods}
    report = Desk(node).round(cluster.snapshot(pods=there, allocations=allocations or cluster.allocations()))
    assert report is not None
    return report.asks


def test_it_asks_as_soon_as_a_selected_pod_is_scheduled_here() -> None:
    pod = replace(cluster.pod("web-1", "10.1.11.2"), addresses=())
    assert asks(pod) == (PortAsk(cluster.group().id),)
    assert asks(pod, node="b") == ()
    assert asks(replace(pod, node="b"), node="b") == (PortAsk(cluster.group().id),)


def test_it_does_not_ask_for_pods_that_no_policy_takes() -> None:
    pod = replace(cluster.pod("web-1", "10.1.11.2"), addresses=())
    others = (
        replace(pod, labels={}),
        replace(pod, finished=True),
        replace(pod, host_network=True),
        replace(pod, node=""),
    )
    assert [asks(each) for each in others] == [()] * 4


def test_nothing_is_said_before_everything_is_read() -> None:
    desk = Desk()
    assert desk.round(cluster.snapshot(pods=None)) is None
    assert desk.round(cluster.snapshot(allocations=None)) is None
    assert desk.told == 0


def test_news_is_told_once() -> None:
    desk = Desk()
    allocations = cluster.allocations()
    desk.round(cluster.snapshot(allocations=allocations))
    desk.round(cluster.snapshot(allocations=allocations))
    assert desk.told == 1
    later = replace(allocations, generation=allocations.generation + 1)
    desk.round(cluster.snapshot(allocations=later))
    assert desk.told == 1


def test_a_gateway_confirms_what_is_in_force_and_not_what_it_has_read() -> None:
    desk = Desk("b")
    allocations = cluster.allocations()
    (table,) = allocations.bindings
    report = desk.round(cluster.snapshot(allocations=allocations), done=False)
    assert report is not None and report.applied == ()
    report = desk.round(cluster.snapshot(allocations=allocations))
    assert report is not None and report.applied == (AppliedTable(table.egress_ip, table.version),)


def test_it_says_what_it_waited_for_its_turn_with() -> None:
    """Nothing else happens then: whoever writes the report looks."""
    desk, now = Desk(), [0.0]
    desk.desk.clock = lambda: now[0]
    numbers = tuple(NodeNumber(name, place + 1) for place, name in enumerate(["a", *map(str, range(500))]))
    pod = cluster.pod("web-1", "10.1.11.2")
    before = cluster.allocations(cluster.group(id=9, policies=()), numbers=numbers)
    after = replace(before, groups=(cluster.group(),))
    snapshot = cluster.snapshot(pods={pod.key: pod}, allocations=before)
    assert desk.round(snapshot) == PortReport()
    assert desk.round(replace(snapshot, allocations=after)) == PortReport()
    now[0] = 20.0
    assert desk.desk.report is not None and desk.desk.report.asks == (PortAsk(cluster.group().id),)
