"""What a node says of itself, in virtual time: often where it may be a gateway, and only while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest

from egress.status import EgressStatus
from routerd.agent.presence import PodCounter, Presence
from routerd.errors import StoreError
from routerd.model import (
    GATEWAY_HEARTBEAT,
    GATEWAY_LABEL,
    NODE_HEARTBEAT,
    Allocations,
    EgressPolicy,
    LabelSelector,
    Node,
    NodeReport,
    Pod,
    PodCount,
    Snapshot,
)
from routerd.node.groups import may_be_gateway
from routerd.tell.status import AgentStatus, Rounds
from tests.models import cluster
from tests.models.virtual_time import elapse, in_virtual_time, now

HELD = ip_address("192.168.33.100")
EVERY_ROUND = 5


@dataclass
class Told:
    """A store that keeps what it was told, and when."""

    reports: list[NodeReport] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    fault: StoreError | None = None

    def write_node_report(self, report: NodeReport) -> None:
        if self.fault:
            raise self.fault
        if not self.reports or self.reports[-1] != report:
            self.reports.append(report)

    def beat(self) -> None:
        if self.fault:
            raise self.fault
        self.beats.append(now())


@dataclass
class Scene:
    """An agent whose rounds go on, and whose node is labelled a gateway."""

    store: Told = field(default_factory=Told)
    snapshot: Snapshot = field(
        default_factory=lambda: Snapshot(nodes={"g": Node("g", {GATEWAY_LABEL: ""})}, policies={})
    )
    is_ready: bool = True
    is_attached: bool = True
    stuck_at: int | None = None
    addresses: tuple[str, ...] = ()
    egress: bool = True
    presence: Presence = field(init=False)

    def status(self) -> AgentStatus:
        done = int(now() // EVERY_ROUND) + 1
        done = done if self.stuck_at is None else min(done, self.stuck_at)
        return AgentStatus(
            "g", "1", rounds=Rounds(done, whole=int(self.is_ready)), egress=EgressStatus(self.is_attached)
        )

    def measure(self) -> NodeReport:
        return NodeReport("g", tuple(map(ip_address, self.addresses)))

    def seconds(self) -> list[int]:
        return [each.heartbeat.seconds for each in self.store.reports if each.heartbeat is not None]

    def run(self, *steps: tuple[int, Callable[[], None]]) -> None:
        """Lets time pass, and does something after each stretch of it."""

        async def story() -> None:
            self.presence = Presence(self.store, self.measure, self.status, lambda: self.snapshot, egress=self.egress)  # type: ignore[arg-type]
            task = asyncio.create_task(self.presence.run())
            for seconds, then in steps:
                await elapse(seconds)
                then()
            task.cancel()

        in_virtual_time(story())


def nothing() -> None:
    """Only time passes."""


def test_a_gateway_beats_every_ten_seconds_and_any_other_node_every_five_minutes() -> None:
    scene = Scene()
    scene.run((95, nothing))
    assert scene.seconds() == [GATEWAY_HEARTBEAT]
    assert len(scene.store.beats) == 10
    other = Scene(snapshot=Snapshot(nodes={"g": Node("g")}, policies={}))
    other.run((1300, nothing))
    assert (other.seconds(), len(other.store.beats)) == ([NODE_HEARTBEAT], 5)


def test_the_last_word_of_a_node_that_goes_down_is_its_last_report_and_that_it_leaves() -> None:
    scene = Scene(addresses=("10.0.0.11",))
    scene.run((20, lambda: scene.presence.say_goodbye()))
    before, last = scene.store.reports[-2:]
    assert last == replace(before, draining=True) != before


def test_it_beats_as_a_gateway_as_soon_as_it_may_be_one() -> None:
    scene = Scene(snapshot=Snapshot(nodes={"g": Node("g")}, policies={}))

    def labelled() -> None:
        scene.snapshot = replace(scene.snapshot, nodes={"g": Node("g", {GATEWAY_LABEL: ""})})

    scene.run((100, labelled), (2, lambda: scene.store.beats.append(-1.0)), (30, nothing))
    assert scene.seconds() == [NODE_HEARTBEAT, GATEWAY_HEARTBEAT]
    assert scene.store.beats.index(-1.0) == 2


@pytest.mark.parametrize("how", ["not ready", "not attached", "stuck"])
def test_an_agent_that_does_not_serve_reports_and_does_not_beat(how: str) -> None:
    scene = Scene(
        is_ready=how != "not ready", is_attached=how != "not attached", stuck_at=2 if how == "stuck" else None
    )
    scene.run((300, nothing))
    assert scene.seconds() == [GATEWAY_HEARTBEAT]
    assert max(scene.store.beats, default=0) <= 40


def test_it_goes_on_where_it_left_off_when_it_serves_again() -> None:
    scene = Scene()

    def fails() -> None:
        scene.is_ready = False

    def recovers() -> None:
        scene.is_ready = True

    scene.run((50, fails), (100, recovers), (50, nothing))
    assert [each for each in scene.store.beats if 52 < each < 150] == []
    assert len([each for each in scene.store.beats if each >= 150]) == 5


def test_before_the_store_is_read_nothing_is_said_of_heartbeats() -> None:
    scene = Scene(snapshot=Snapshot())
    scene.run((60, nothing))
    assert (scene.store.reports, scene.store.beats) == ([NodeReport("g")], [])


def test_a_node_without_a_datapath_is_no_gateway_whatever_its_labels_say() -> None:
    scene = Scene(egress=False, is_attached=False)
    scene.run((60, nothing))
    assert (scene.seconds(), len(scene.store.beats)) == ([NODE_HEARTBEAT], 1)


def test_a_store_that_fails_is_told_again_later() -> None:
    scene = Scene()
    scene.store.fault = StoreError("the disk is full")

    def mended() -> None:
        scene.store.fault = None

    scene.run((100, mended), (60, nothing))
    assert scene.seconds() == [GATEWAY_HEARTBEAT]
    assert len(scene.store.beats) >= 5


RACK = LabelSelector((("rack", "a"),))
BY_RACK = EgressPolicy("p", gateways=RACK)
HELD_ONE = EgressPolicy("p", egress_ip=HELD)


@pytest.mark.parametrize(
    ("policy", "labels", "addresses", "gateways", "may"),
    [
        (None, {}, (), (), False),
        (None, {GATEWAY_LABEL: ""}, (), (), True),
        (None, {GATEWAY_LABEL: "false"}, (), (), False),
        (BY_RACK, {"rack": "a"}, (), (), True),
        (BY_RACK, {"rack": "b"}, (), (), False),
        (HELD_ONE, {}, (HELD,), (), True),
        (HELD_ONE, {}, (), (), False),
        (None, {}, (), ("g",), True),
        (None, {}, (), ("h",), False),
    ],
)
def test_who_may_be_a_gateway(
    policy: EgressPolicy | None, labels: dict[str, str], addresses: tuple[object, ...],
    gateways: tuple[str, ...], may: bool,
) -> None:  # fmt: skip
    snapshot = Snapshot(
        nodes={"g": Node("g", labels)}, policies={policy.key: policy} if policy else {},
        allocations=Allocations(1, groups=(cluster.group(gateways=gateways),)),
    )  # fmt: skip
    assert may_be_gateway(snapshot, "g", addresses) is may  # type: ignore[arg-type]


def test_pods_are_counted_that_want_an_address() -> None:
    counter = PodCounter("n1")
    assert counter.count(Snapshot()) is None
    address = (HELD,)
    pods = {
        "d/a": Pod("d", "a", "n1", address),
        "d/b": Pod("d", "b", "n1"),
        "d/c": Pod("d", "c", "n1", address, host_network=True),
        "d/e": Pod("d", "e", "n1", address, finished=True),
        "d/f": Pod("d", "f", "n2", address),
    }
    assert counter.count(Snapshot(pods=pods)) == PodCount(with_address=1, waiting=1)
    pods = {**pods, "d/b": Pod("d", "b", "n1", address), "d/a": Pod("d", "a", "n1", address, finished=True)}
    assert counter.count(Snapshot(pods=pods)) == PodCount(with_address=1, waiting=0)
