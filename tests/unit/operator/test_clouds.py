"""The operator's loop for a cloud, in virtual time: what nodes report becomes interfaces, recorded before sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cloud.backend import Backend, CloudFault
from cloud.calls import Call, Outcome
from cloud.demand import Rules
from cloud.model import Inventory
from cloud.need import Watermarks
from cloud.providers import ec2, ecs
from cloud.providers.account import Account
from routerd.config.cloud import CloudSettings
from routerd.errors import StoreError
from routerd.model import PodCount
from routerd.operator.clouds import Clouds, clouds_of
from routerd.operator.loop import Operator
from routerd.serve.api import RequestRefused
from routerd.store.embedded.ledger import SqliteLedger
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.core import Cloud, Fault
from tests.models.cloud.direct import account, sender
from tests.models.operator_world import FakeLedger, FakeStore, World
from tests.models.virtual_time import beside, elapse, in_virtual_time
from tests.waiting import PATIENCE

RULES = Rules("test", Watermarks(pre_allocate=3))


@dataclass
class Scene:
    """An operator with a cloud of one instance, i-1, which is node w1."""

    world: World = field(default_factory=World)
    cloud: Cloud = field(default_factory=Cloud)
    settings: CloudSettings = field(default_factory=lambda: CloudSettings("aws", rules=RULES))
    ledger: Any = field(default_factory=FakeLedger)
    operator: Operator = field(init=False)
    clouds: Clouds = field(init=False)

    def __post_init__(self) -> None:
        self.cloud.add_subnet("subnet-1", "10.0.0.0/24")
        self.cloud.add_group("sg-1")
        self.cloud.add_instance("i-1", "subnet-1")
        self.node("w1", "aws:///a/i-1", PodCount(0, 2))
        self.operator = Operator(FakeStore(self.world), self.ledger, clock=lambda: self.cloud.now)
        found = clouds_of(self.settings, self.operator)
        assert found is not None
        self.clouds = found
        found.open, found.clock = self.opened, lambda: self.cloud.now

    def opened(self, settings: CloudSettings) -> Backend:
        return Account(ec2, sender(self.cloud), settings.rules)

    def node(self, name: str, provider_id: str, pods: PodCount | None, **fields: Any) -> None:
        self.world.node(name, provider_id=provider_id, **fields)
        self.world.reports[name] = replace(self.world.reports[name], pods=pods)

    def want(self, with_address: int, waiting: int = 0) -> None:
        self.world.reports["w1"] = replace(self.world.reports["w1"], pods=PodCount(with_address, waiting))

    async def live(self, seconds: int) -> None:
        for _ in range(seconds):
            await elapse(1)
            self.cloud.advance(1)

    def available(self) -> dict[str, int]:
        return {each.instance: each.available() for each in self.ledger.read().cloud_instances}


def play(scene: Scene, story: Callable[[], Awaitable[None]]) -> None:
    in_virtual_time(beside(story, scene.operator.run, scene.clouds.run))


def refusals(scene: Scene) -> list[tuple[str, str]]:
    return [(str(each.object), each.reason) for each in scene.clouds.refusals()]


def test_what_pods_want_is_fetched_recorded_and_shown() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(20)
        assert scene.available() == {"i-1": 5}
        scene.want(5)
        await scene.live(10)
        assert scene.available() == {"i-1": 8}
        noted = await scene.operator.answer({"get": "cloud"})
        (row,) = noted.result
        assert (row["instance"], row["node"], row["addresses"], row["used"], row["waiting"]) == ("i-1", "w1", 8, 5, 0)
        assert noted.note == ""

    play(scene, story)
    assert scene.clouds.counts["CreateNetworkInterface", "done"] == 1


def test_without_a_cloud_the_question_is_refused() -> None:
    operator = Operator(FakeStore(World()), FakeLedger())
    assert clouds_of(CloudSettings(), operator) is None
    with pytest.raises(RequestRefused, match=r"cloud\.provider"):
        asyncio.run(operator.answer({"get": "cloud"}))


def test_a_round_of_the_operator_keeps_what_is_on_record_of_the_cloud() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(20)
        scene.world.pool("p", "192.0.2.0/29")
        scene.world.service("web")
        for callback in scene.operator.store.callbacks:  # type: ignore[attr-defined]
            callback()
        await scene.live(5)
        assert scene.available() == {"i-1": 5}
        assert scene.world.allocations.services

    play(scene, story)


def test_nothing_is_sent_that_is_not_on_record() -> None:
    """The ledger refuses, so the cloud is not even asked."""
    scene = Scene(settings=CloudSettings("aws", calls=False, rules=RULES))

    async def story() -> None:
        await scene.live(2)
        scene.ledger.fault = StoreError("disk full")
        scene.clouds.settings = replace(scene.settings, calls=True)
        await scene.live(60)
        assert scene.cloud.mutations() == {}
        scene.ledger.fault = None
        await scene.live(60)
        assert scene.available() == {"i-1": 5}

    play(scene, story)


def test_the_switch_stops_every_call() -> None:
    scene = Scene(settings=CloudSettings("aws", calls=False, rules=RULES))

    async def story() -> None:
        await scene.live(60)
        assert scene.cloud.log == []
        assert refusals(scene) == [("Cloud/aws", "CloudStopped")]
        assert "cloud.calls is off" in (await scene.operator.answer({"get": "cloud"})).note

    play(scene, story)


def test_a_look_that_fails_is_told_and_changes_nothing() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(20)
        before = scene.ledger.read().cloud_instances
        scene.cloud.permissions = set()
        scene.want(5, 5)
        await scene.live(60)
        assert scene.ledger.read().cloud_instances == before
        assert refusals(scene) == [("Cloud/aws", "CloudDenied")]
        scene.cloud.permissions = None
        await scene.live(60)
        assert refusals(scene) == []
        assert scene.available() == {"i-1": 9 + 4}

    play(scene, story)


def test_a_backend_that_cannot_be_opened_is_tried_again() -> None:
    scene = Scene()

    def closed(settings: CloudSettings) -> Backend:
        raise CloudFault("unreachable", "", "boto3 is not installed")

    async def story() -> None:
        scene.clouds.open = closed
        await scene.live(20)
        assert refusals(scene) == [("Cloud/aws", "CloudUnread")]
        scene.clouds.open = scene.opened
        await scene.live(40)
        assert scene.available() == {"i-1": 5}

    play(scene, story)


def test_nodes_that_are_no_instances_get_nothing() -> None:
    scene = Scene(settings=CloudSettings("aws", nodes={"pods": "vpc"}, rules=RULES))
    scene.cloud.add_instance("i-2", "subnet-1")
    scene.cloud.add_instance("i-3", "subnet-1")
    scene.cloud.add_instance("i-4", "subnet-1")
    scene.node("w1", "aws:///a/i-1", PodCount(0, 2), labels={})
    scene.node("w2", "", PodCount(0, 2), labels={"pods": "vpc"})
    scene.node("w3", "gce://p/z/i-2", PodCount(0, 2), labels={"pods": "vpc"})
    scene.node("w4", "aws:///a/i-3", None, labels={"pods": "vpc"})
    scene.node("w5", "aws:///a/i-4", PodCount(0, 2), labels={"pods": "vpc"})

    async def story() -> None:
        await scene.live(20)
        assert scene.available() == {"i-4": 5}

    play(scene, story)


def test_two_nodes_that_say_they_are_one_instance_are_not_believed() -> None:
    scene = Scene()
    scene.node("w2", "aws:///a/i-1", PodCount(0, 2))

    async def story() -> None:
        await scene.live(20)
        assert scene.available() == {}

    play(scene, story)


def test_a_node_whose_type_is_full_has_a_refusal() -> None:
    scene = Scene()
    scene.want(0, 100)

    async def story() -> None:
        await scene.live(60)
        assert refusals(scene) == [("node/w1", "InstanceFull")]

    play(scene, story)


def test_the_records_survive_in_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    scene = Scene(ledger=SqliteLedger(path))

    async def story() -> None:
        await scene.live(20)

    play(scene, story)
    before = scene.ledger.read().cloud_instances
    scene.ledger.close()
    again = SqliteLedger(path)
    assert again.read().cloud_instances == before != ()
    again.close()


def test_an_operator_that_is_killed_in_a_call_leaves_no_second_interface() -> None:
    scene = Scene()

    class Killed(Exception):
        pass

    class Deadly(Account):
        def send(self, call: Call) -> Outcome:
            super().send(call)
            raise Killed

    async def story() -> None:
        await scene.live(10)

    scene.clouds.open = lambda settings: Deadly(ec2, sender(scene.cloud), RULES)
    with pytest.raises(BaseExceptionGroup) as caught:
        play(scene, story)
    assert caught.group_contains(Killed)
    again = Scene(scene.world, Cloud(), ledger=scene.ledger)
    again.cloud = scene.cloud

    async def goes_on() -> None:
        await again.live(40)
        assert again.available() == {"i-1": 5}

    play(again, goes_on)
    assert len(scene.cloud.enis) == 2


def test_a_look_that_hangs_takes_no_thread_of_the_operator() -> None:
    """Its rounds are made in the loop's threads, of which there are few: here one."""
    scene = Scene()
    scene.operator.in_thread = True
    scene.operator.round()
    ends = threading.Event()

    async def story() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))

        class Hanging(Account):
            def describe(self, instances: Collection[str]) -> Inventory:
                loop.call_soon_threadsafe(begun.set)
                ends.wait()
                return super().describe(instances)

        scene.clouds.open = lambda settings: Hanging(ec2, sender(scene.cloud), settings.rules)
        turn = asyncio.create_task(scene.clouds.turn())
        try:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            await asyncio.wait_for(scene.operator.change(lambda ledger: ledger), PATIENCE)
        finally:
            ends.set()
            await turn

    asyncio.run(story())


def test_throttled_looks_wait() -> None:
    scene = Scene()
    scene.cloud.faults = [Fault("DescribeInstances", "throttled", 3)]

    async def story() -> None:
        await scene.live(20)
        assert refusals(scene) == [("Cloud/aws", "CloudUnread")]
        await scene.live(60)
        assert scene.available() == {"i-1": 5}

    play(scene, story)


def test_alibaba_cloud_has_rates_of_its_own_and_the_same_loop() -> None:
    rules = replace(RULES, api=ecs.API)
    scene = Scene(cloud=Cloud(ALIBABA_FRONT), settings=CloudSettings("alibaba", rules=rules))
    scene.clouds.open = lambda settings: account(scene.cloud, settings.rules)
    for number in range(2, 41):
        scene.cloud.add_instance(f"i-{number}", "subnet-1")
        scene.node(f"w{number}", f"cn-hangzhou.i-{number}", PodCount(0, 1))

    async def story() -> None:
        await scene.live(1)
        assert scene.clouds.counts["CreateNetworkInterface", "done"] == ecs.RATES["CreateNetworkInterface"].burst
        await scene.live(60)
        assert set(scene.available().values()) == {4, 5}

    play(scene, story)
    assert len(scene.available()) == 40
    assert {code for *_, code in scene.cloud.log} == {""}
