"""Pods' addresses of a cloud's interfaces: the desk gives what is published, and keeps what is not free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network
from pathlib import Path

from cni import wire
from ipam.pool import COOLDOWN
from routerd.agent.plugins.pod_addresses import PodAddressDesk
from routerd.agent.rooms import WithBlocks
from routerd.clock import Clock
from routerd.model import Allocations, BlockReport, CloudInterface, Node, NodeInterfaces, Pod, Snapshot
from tests.models import cluster
from tests.models.ipam_runtime import address, ask
from tests.models.virtual_time import elapse, in_virtual_time, now

MAC = "02:00:00:00:00:07"
ONE, TWO, PREFIX, V6 = map(ip_network, ("10.0.1.8/32", "10.0.1.9/32", "10.0.1.32/28", "2001:db8:1:2:3::/80"))


class World:
    """Node a is an instance of a cloud, and has a block of pod CIDRs that nobody means."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pod-addresses.json"
        self.pods: dict[str, Pod] = {}
        self.publish()
        self.restart()

    def publish(self, *blocks: object, mac: str = MAC, generation: int = 1) -> None:
        own = IPv4Interface("10.0.1.7/24")
        interfaces = (CloudInterface(mac, own, blocks),)  # type: ignore[arg-type]
        given = (NodeInterfaces("a", interfaces, generation),) if blocks else ()
        node = Node("a", pod_cidrs=(ip_network("10.9.0.0/24"),), provider_id="aws:///a/i-1")
        self.snapshot = replace(cluster.snapshot(), nodes={"a": node}, allocations=Allocations(interfaces=given))

    def restart(self) -> None:
        """As after kill -9: what is not on disk is gone."""
        view = WithBlocks(lambda: replace(self.snapshot, pods=self.pods))
        self.desk = PodAddressDesk("a", self.path, view, of_cloud=lambda node: True, clock=lambda: 1000.0 + now())

    def kept(self) -> tuple[list[str], list[str]] | None:
        report = self.desk.block_report()
        return None if report is None else ([str(each) for each in report.kept], [str(each) for each in report.busy])


def story(test: Callable[[World], Awaitable[None]], directory: Path) -> None:
    async def run() -> None:
        await test(World(directory))

    in_virtual_time(run())


def test_a_pod_has_the_subnets_mask_and_the_interface_as_its_gateway(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE, V6)
        code, found = await ask(world.desk, "ADD")
        assert (code, found["ips"]) == (
            0,
            [
                {"address": "10.0.1.8/24", "gateway": "10.0.1.7"},
                {"address": "2001:db8:1:2:3::1/128", "gateway": "fe80::1"},
            ],
        )

    story(test, tmp_path)


def test_with_ipv6_a_pod_waits_until_it_can_have_both(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.desk.dual = True
        world.publish(ONE)
        assert (await ask(world.desk, "STATUS"))[1]["code"] == wire.NOT_AVAILABLE
        assert "has no IPv6 prefix of the cloud yet" in await address(world.desk)
        world.publish(ONE, V6)
        world.desk.wired = frozenset
        assert "none is wired yet" in await address(world.desk)
        world.desk.wired = lambda: {MAC}
        assert await address(world.desk) == "10.0.1.8/24 2001:db8:1:2:3::1/128"

    story(test, tmp_path)


def test_a_pod_never_gets_ipv6_alone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(V6)
        assert "has no address of the cloud yet" in await address(world.desk)
        assert (await ask(world.desk, "STATUS"))[1]["code"] == wire.NOT_AVAILABLE
        world.publish(ONE, V6)
        assert await address(world.desk) == "10.0.1.8/24 2001:db8:1:2:3::1/128"

    story(test, tmp_path)


def test_every_address_of_a_prefix_is_a_pods(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(PREFIX)
        found = [await address(world.desk, f"c{number}") for number in range(17)]
        assert found[:16] == [f"10.0.1.{last}/24" for last in range(32, 48)]
        assert found[16] == "routerd-ipam: no IPv4 address of this node's 1 network interfaces is free"
        assert (await ask(world.desk, "STATUS"))[1]["code"] == wire.NOT_AVAILABLE

    story(test, tmp_path)


def test_until_the_first_fill_nothing_is_given_and_pod_cidrs_are_not_meant(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert "no address of the cloud yet" in await address(world.desk)
        assert (await ask(world.desk, "STATUS"))[1]["code"] == wire.NOT_AVAILABLE
        assert world.kept() == ([], [])
        world.publish(ONE)
        assert await ask(world.desk, "STATUS") == (0, None)
        assert await address(world.desk) == "10.0.1.8/24"

    story(test, tmp_path)


def test_beside_another_plugin_of_the_cloud_nothing_is_given(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE)
        world.desk.wired, world.desk.hindrance = lambda: frozenset(), lambda: "Terway makes interfaces"
        assert (await ask(world.desk, "STATUS"))[1]["msg"] == "routerd-ipam: Terway makes interfaces"
        assert await address(world.desk) == "routerd-ipam: Terway makes interfaces"

    story(test, tmp_path)


def test_a_block_that_is_taken_away_is_kept_until_its_last_address_is_free(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE, TWO)
        assert await address(world.desk, "c1") == "10.0.1.8/24"
        assert world.kept() == (["10.0.1.8/32", "10.0.1.9/32"], ["10.0.1.8/32"])
        world.publish(TWO)
        world.restart()
        assert world.kept() == (["10.0.1.8/32", "10.0.1.9/32"], ["10.0.1.8/32"])
        assert await address(world.desk, "c2") == "10.0.1.9/24"
        world.publish()
        assert await ask(world.desk, "DEL", "c2") == (0, None)
        assert "no address of the cloud" in await address(world.desk, "c3")
        world.restart()
        assert await ask(world.desk, "DEL", "c1") == (0, None)
        await elapse(COOLDOWN - 1)
        assert world.kept() == (["10.0.1.8/32"], ["10.0.1.8/32"])
        await elapse(1)
        assert world.kept() == ([], [])

    story(test, tmp_path)


def test_what_pods_have_of_whom_the_desk_knows_nothing_is_busy(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE, PREFIX)
        world.pods = {"default/old": Pod("default", "old", "a", (ip_address("10.0.1.40"),), uid="u")}
        assert world.kept() == (["10.0.1.8/32", "10.0.1.32/28"], ["10.0.1.32/28"])

    story(test, tmp_path)


def test_nothing_is_said_before_all_is_read_or_where_the_memory_is_lost(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE)
        read = world.snapshot
        world.snapshot = Snapshot(pods={})
        assert world.desk.block_report() is None
        world.snapshot = read
        assert world.desk.block_report() == BlockReport((ONE,))
        world.path.write_text("{")
        world.restart()
        assert world.desk.block_report() is None

    story(test, tmp_path)


def test_what_was_noted_holds_against_an_older_word_also_after_a_kill(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE, TWO, generation=5)
        assert await address(world.desk, "c1") == "10.0.1.8/24"
        world.publish(ONE, generation=6)
        assert world.desk.block_report() == BlockReport((ONE,), (ONE,), 5), "it could be killed, and read 5 again"
        await world.desk.look()
        assert world.desk.block_report() == BlockReport((ONE,), (ONE,), 6)
        world.restart()
        world.publish(ONE, TWO, generation=5)
        assert "no IPv4 address" in await address(world.desk, "c2")
        assert world.desk.block_report() == BlockReport((ONE,), (ONE,), 6)
        world.publish(ONE, TWO, generation=7)
        assert await address(world.desk, "c2") == "10.0.1.9/24"

    story(test, tmp_path)


def test_a_known_sandbox_is_made_anew_while_nothing_is_read(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish(ONE, V6)
        world.pods = {"default/web": Pod("default", "web", "a", uid="u1")}
        first = await ask(world.desk, "ADD", "c1", "default/web", "u1")
        world.snapshot = Snapshot()
        world.restart()
        assert await ask(world.desk, "ADD", "c2", "default/web", "u1") == first

    story(test, tmp_path)


def test_a_block_is_kept_while_an_address_rests_although_the_clock_was_set_ahead(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        wall = [1000.0]
        world.desk.clock = Clock(lambda: wall[0] + now(), now)
        world.publish(ONE, PREFIX)
        await address(world.desk)
        world.publish(PREFIX, generation=2)
        await world.desk.look()
        await ask(world.desk, "DEL")
        assert world.kept() == ([str(ONE), str(PREFIX)], [str(ONE)])
        wall[0] += 3600.0
        assert world.kept() == ([str(ONE), str(PREFIX)], [str(ONE)])
        await world.desk.look()
        await elapse(COOLDOWN)
        assert world.kept() == ([str(PREFIX)], [])

    story(test, tmp_path)
