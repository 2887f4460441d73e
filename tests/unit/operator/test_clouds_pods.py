"""Operator, cloud and the desk of a node's agent together: what pods want is fetched, given, let go of, given back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_interface, ip_network
from pathlib import Path

import pytest

from cloud.backend import Backend
from cloud.demand import Demand, Rules
from cloud.need import Watermarks
from cloud.providers import ec2
from cloud.providers.account import Account
from cloud.records import Block, Held, Holding
from cloud.release import PATIENCE
from routerd.agent.plugins.pod_addresses import PodAddressDesk
from routerd.agent.rooms import WithBlocks
from routerd.cluster.instances import demands, published_interfaces
from routerd.config.cloud import CloudSettings
from routerd.model import CloudInterface, Node, NodeInterfaces, NodeReport, Pod, PodCount
from routerd.operator.clouds import clouds_of
from routerd.operator.loop import Operator
from tests.models.cloud.core import Cloud, Fault
from tests.models.cloud.direct import sender
from tests.models.ipam_runtime import ask
from tests.models.operator_world import FakeLedger, FakeStore, World
from tests.models.virtual_time import beside, elapse, in_virtual_time


@dataclass
class Scene:
    """An operator with a cloud of one instance, i-1; its node w1 has an agent that reads what is published."""

    directory: Path
    rules: Rules
    world: World = field(default_factory=World)
    cloud: Cloud = field(default_factory=Cloud)
    pods: dict[str, Pod] = field(default_factory=dict)
    speaks: bool = True  # whether the agent reports

    def __post_init__(self) -> None:
        self.cloud.add_subnet("subnet-1", "10.0.0.0/24")
        self.cloud.add_group("sg-1")
        self.cloud.add_instance("i-1", "subnet-1")
        self.world.node("w1", provider_id="aws:///a/i-1")
        self.operator = Operator(FakeStore(self.world), FakeLedger(), clock=lambda: self.cloud.now)
        found = clouds_of(CloudSettings("aws", rules=self.rules), self.operator)
        assert found is not None
        self.clouds = found
        found.open, found.clock = self.opened, lambda: self.cloud.now
        self.restart()

    def opened(self, settings: CloudSettings) -> Backend:
        return Account(ec2, sender(self.cloud), settings.rules)

    def restart(self) -> None:
        view = WithBlocks(lambda: replace(self.world.snapshot(), pods=self.pods, allocations=self.world.allocations))
        memory = self.directory / "pod-addresses.json"
        self.desk = PodAddressDesk("w1", memory, view, of_cloud=lambda node: True, clock=lambda: self.cloud.now)

    async def live(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.desk.look()
            if self.speaks:
                having = sum(bool(each.addresses) for each in self.pods.values())
                count, blocks = PodCount(having, len(self.pods) - having), self.desk.block_report()
                self.world.reports["w1"] = replace(self.world.reports["w1"], pods=count, blocks=blocks)
            await elapse(1)
            self.cloud.advance(1)

    async def start(self, name: str) -> str:
        """The address of a pod that comes, "" = it is refused; it waits then."""
        self.pods[f"default/{name}"] = Pod("default", name, "w1", uid=name)
        code, found = await ask(self.desk, "ADD", name, f"default/{name}", name)
        if code:
            return ""
        given = ip_interface(found["ips"][0]["address"]).ip
        self.pods[f"default/{name}"] = replace(self.pods[f"default/{name}"], addresses=(given,))
        return str(given)

    async def end(self, name: str) -> None:
        assert await ask(self.desk, "DEL", name) == (0, None)
        del self.pods[f"default/{name}"]

    def lacking(self) -> str:
        """As the node's condition says it."""
        found = self.clouds.lacking()
        return "nobody has looked" if found is None else found["w1"]

    def on_cloud(self) -> set[str]:
        """What the cloud has for pods of the instance."""
        ours = [each for each in self.cloud.of("i-1") if each.attachment and each.attachment.index]
        single = {f"{address}/32" for each in ours for address in each.addresses}
        return single | {str(prefix) for each in ours for prefix in each.prefixes}


def play(scene: Scene, story: Callable[[], Awaitable[None]]) -> None:
    in_virtual_time(beside(story, scene.operator.run, scene.clouds.run))


@pytest.mark.parametrize("prefixes", [False, True])
def test_a_nodes_pool_grows_with_its_pods_and_shrinks_after_them(tmp_path: Path, prefixes: bool) -> None:
    scene = Scene(tmp_path, Rules("test", Watermarks(pre_allocate=3), prefixes=prefixes))

    async def story() -> None:
        assert await scene.start("a") == ""
        await scene.live(20)
        names = [f"p{number}" for number in range(14)]
        scene.pods |= {f"default/{name}": Pod("default", name, "w1", uid=name) for name in names}
        await scene.live(60)
        given = {name: await scene.start(name) for name in ("a", *names)}
        assert len(set(given.values()) - {""}) == len(given)
        assert all(any(IPv4Address(each) in ip_network(block) for block in scene.on_cloud()) for each in given.values())
        for name in names:
            await scene.end(name)
        most = scene.on_cloud()
        await scene.live(int(PATIENCE) + 120)
        left = scene.on_cloud()
        assert left < most
        assert any(IPv4Address(given["a"]) in ip_network(block) for block in left)
        assert sum(ip_network(block).num_addresses for block in left) <= (16 if prefixes else 4)

    play(scene, story)


def test_a_block_of_which_a_pod_took_an_address_too_late_stays_as_long_as_the_pod(tmp_path: Path) -> None:
    """The report is late, so the operator marks a block that is in use by then."""
    scene = Scene(tmp_path, Rules("test", Watermarks(pre_allocate=1)))

    async def story() -> None:
        scene.pods = {f"default/{name}": Pod("default", name, "w1", uid=name) for name in "abcdef"}
        await scene.live(20)
        idle, scene.speaks = scene.desk.block_report(), False
        given = {name: await scene.start(name) for name in "abcdef"}
        assert "" not in given.values()
        scene.world.reports["w1"] = replace(scene.world.reports["w1"], pods=PodCount(0, 0), blocks=idle)
        await scene.live(10)
        published = scene.world.allocations.interfaces[0].interfaces[0].blocks
        assert len(published) < len(given)
        scene.speaks = True
        await scene.live(int(PATIENCE) + 120)
        assert {f"{each}/32" for each in given.values()} <= scene.on_cloud()

    play(scene, story)


def test_an_agent_that_is_away_loses_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Rules("test", Watermarks(pre_allocate=1)))

    async def story() -> None:
        scene.pods = {f"default/{name}": Pod("default", name, "w1", uid=name) for name in "abcdef"}
        await scene.live(20)
        given = [await scene.start(name) for name in "abcdef"]
        await scene.live(5)
        scene.speaks = False
        for name in "abcde":
            scene.pods.pop(f"default/{name}")
        scene.world.reports["w1"] = replace(scene.world.reports["w1"], pods=PodCount(1, 0))
        await scene.live(int(PATIENCE) + 120)
        assert {f"{each}/32" for each in given} <= scene.on_cloud()

    play(scene, story)


VPC = (IPv4Network("10.0.0.0/16"),)


def held(*blocks: Block, index: int = 1) -> Held:
    return Held(
        f"eni-{index}", "02:00:00:00:00:01", index, IPv4Address("10.0.0.9"), IPv4Network("10.0.0.0/24"), blocks, VPC
    )


def test_what_is_published_is_what_a_node_may_give() -> None:
    used, leaving, going = (Block(ip_network(f"10.0.0.{last}"), state) for last, state in
                            ((10, "used"), (11, "leaving"), (12, "going")))  # fmt: skip
    holdings = (
        Holding("i-1", "old", (held(used, leaving, going), held(leaving, index=2)), generation=9),
        Holding("i-2", "b", (held(used),), generation=9),
        Holding("i-3", "c", (held(going),), generation=8),
        Holding("i-4", "gone", (held(used),), generation=9),
        Holding("i-5", "d"),
    )
    twice = {name: Node(name, provider_id="aws:///a/i-2") for name in ("b1", "b2")}
    nodes = {"a": Node("a", provider_id="aws:///a/i-1"), **twice, "c": Node("c", provider_id="aws:///a/i-3"),
             "d": Node("d", provider_id="aws:///a/i-5")}  # fmt: skip
    mac, own = "02:00:00:00:00:01", IPv4Interface("10.0.0.9/24")
    first = CloudInterface(mac, own, (used.network,), (leaving.network,), VPC)
    second = CloudInterface(mac, own, (), (leaving.network,), VPC)
    expected = (NodeInterfaces("a", (first, second), 9), NodeInterfaces("c", (), 8))
    assert published_interfaces(holdings, nodes) == expected


def test_a_node_lacks_addresses_while_pods_wait_for_what_does_not_come_by_itself(tmp_path: Path) -> None:
    scene, told = Scene(tmp_path, Rules("test", Watermarks(pre_allocate=3))), []
    scene.clouds.on_lacking = lambda: told.append(scene.lacking().partition(":")[0])

    async def story() -> None:
        scene.pods = {f"default/{number}": Pod("default", str(number), "w1", uid="u") for number in range(17)}
        await scene.live(60)
        for number in range(16):
            assert await scene.start(str(number))
        await scene.live(20)
        assert told == [""], "there is one address, though less than the watermark says"
        scene.pods["default/18"] = Pod("default", "18", "w1", uid="u")
        await scene.live(20)
        assert told == ["", "InstanceFull"]

    play(scene, story)


def test_a_node_without_ipv6_lacks_addresses_where_pods_have_both_families(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Rules("test", ipv6=True))

    async def story() -> None:
        assert scene.lacking() == "nobody has looked"
        await scene.live(20)
        assert scene.on_cloud()
        assert scene.lacking().startswith("NoIPv6: ")

    play(scene, story)


def test_a_node_is_told_nothing_of_addresses_until_a_look_has_succeeded(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Rules("test"))
    scene.cloud.faults = [Fault("DescribeInstances", "throttled", 3)]

    async def story() -> None:
        await scene.live(20)
        assert scene.clouds.fault is not None
        assert scene.lacking() == "nobody has looked"
        await scene.live(60)
        assert scene.lacking() == ""

    play(scene, story)


def test_what_a_kubelet_takes_is_a_part_of_what_its_node_wants() -> None:
    node = Node("a", provider_id="aws:///a/i-1", most_pods=58)
    reports = {"a": NodeReport("a", pods=PodCount(3, 1))}
    assert demands({"a": node}, reports, {}) == {"i-1": Demand("a", 3, 1, most_pods=58)}
