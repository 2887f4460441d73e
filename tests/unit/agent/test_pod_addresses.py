"""The desk at which the IPAM plugin asks: on disk before it answers, and nobody asked but the disk."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from cni import wire
from routerd.agent.plugins.pod_addresses import GONE, LOOK, PodAddressDesk
from routerd.agent.rooms import WithBlocks
from routerd.clock import Clock
from routerd.model import Node, NodeBlocks, Pod, Snapshot
from routerd.node.checks import Rules
from routerd.node.desired import LocalFacts, Settings, compose
from routerd.store.embedded.disk import write_atomically
from tests.models import cluster
from tests.models.ipam_runtime import address, ask
from tests.models.virtual_time import elapse, in_virtual_time, now, settle
from tests.waiting import turns

WEB = "default/web-0"


def pod(name: str, uid: str = "", *addresses: str, node: str = "a") -> Pod:
    return Pod("default", name, node, tuple(map(ip_address, addresses)), uid=uid)


def store(*pods: Pod, **fields: object) -> Snapshot:
    """Node a has 10.1.11.0/24."""
    return cluster.snapshot(pods={each.key: each for each in pods}, **fields)


class World:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "pod-addresses.json"
        self.store = store()
        self.restart()

    def restart(self) -> None:
        """As after kill -9: what is not on disk is gone."""
        self.desk = PodAddressDesk("a", self.path, lambda: self.store, clock=lambda: 1000.0 + now())

    def says(self, found: Snapshot) -> None:
        self.store = found
        self.desk.changed()


def story(test: Callable[[World], Awaitable[None]], directory: Path) -> None:
    async def run() -> None:
        await test(World(directory))

    in_virtual_time(run())


def test_an_address_is_what_a_main_plugin_takes(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert await ask(world.desk, "ADD") == (
            0,
            {
                "cniVersion": "1.0.0",
                "ips": [{"address": "10.1.11.2/24", "gateway": "10.1.11.1"}],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        )
        _, old = await ask(world.desk, "ADD", "c2", cniVersion="0.4.0")
        assert old["ips"][0]["version"] == "4"
        section = {"type": "routerd-ipam", "routes": [{"dst": "10.0.0.0/8"}]}
        _, routed = await ask(world.desk, "ADD", "c3", ipam=section)
        assert routed["routes"] == section["routes"]

    story(test, tmp_path)


def test_what_was_told_is_known_after_a_kill(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.store = store(pod("web-0", "u1"))
        first = await address(world.desk, "c1", WEB, "u1")
        world.restart()
        world.store = Snapshot()  # the API server is away
        assert await address(world.desk, "c1", WEB, "u1") == first
        assert await address(world.desk, "c2", WEB, "u1") == first  # its sandbox is made anew
        assert await ask(world.desk, "DEL", "c1") == (0, None)  # late
        assert (await ask(world.desk, "CHECK", "c2"))[0] == 0
        assert (await ask(world.desk, "CHECK", "c1"))[1]["code"] == wire.UNKNOWN_CONTAINER
        assert await ask(world.desk, "STATUS") == (0, None)

    story(test, tmp_path)


def test_a_known_sandbox_is_made_anew_before_the_agent_has_read_which_blocks_the_operator_gave(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.store = store(pod("web-0", "u1"))
        first = await address(world.desk, "c1", WEB, "u1")
        world.restart()
        world.store = replace(world.store, nodes={"a": Node("a")}, allocations=None)
        assert await address(world.desk, "c2", WEB, "u1") == first
        assert "no pod CIDRs" in await address(world.desk, "c3", "default/web-1", "u2")

    story(test, tmp_path)


def test_an_address_rests_although_the_agent_began_before_the_clock_was_right(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        wall, hours = [1e9], 8 * 3600.0
        world.desk.clock = Clock(lambda: wall[0] + now(), now)
        await address(world.desk, "c1")
        await ask(world.desk, "DEL", "c1")
        wall[0] += hours
        await world.desk.look()
        (hold,) = world.desk.held.holds.values()
        assert (hold.state, hold.since) == ("cooling", wall[0] + now())

    story(test, tmp_path)


KILLED = """
import asyncio, os, sys
from pathlib import Path
from routerd.agent.plugins import pod_addresses as module
from tests.models import cluster
from tests.models.ipam_runtime import address
write = module.write_atomically
def write_and_die(path, text):
    write(path, text)
    os.kill(os.getpid(), 9)
module.write_atomically = write_and_die
desk = module.PodAddressDesk("a", Path(sys.argv[1]), cluster.snapshot)
asyncio.run(address(desk, "c1"))
"""


def test_an_agent_killed_between_the_disk_and_the_answer_gives_the_same_at_the_next_try(tmp_path: Path) -> None:
    path = tmp_path / "pod-addresses.json"
    done = subprocess.run([sys.executable, "-c", KILLED, path], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (hold,) = json.loads(path.read_text())["holds"]

    async def test(world: World) -> None:
        assert await address(world.desk, "c2") != f"{hold[0]}/24"
        assert await address(world.desk, "c1") == f"{hold[0]}/24"

    story(test, tmp_path)


def test_what_cannot_be_written_is_not_given(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.desk = PodAddressDesk("a", tmp_path / "gone" / "file", lambda: world.store)
        code, error = await ask(world.desk, "ADD")
        assert (code, error["code"]) == (1, wire.TRY_AGAIN)
        assert "cannot be written" in error["msg"]
        assert not world.desk.held.holds
        (tmp_path / "gone").mkdir()
        assert await address(world.desk) == "10.1.11.2/24"

    story(test, tmp_path)


def test_many_at_once_share_writes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from routerd.agent.plugins import pod_addresses

    written: list[str] = []
    real = write_atomically
    monkeypatch.setattr(pod_addresses, "write_atomically", lambda path, text: (written.append(text), real(path, text)))

    async def test(world: World) -> None:
        found = await asyncio.gather(*(address(world.desk, f"c{number}") for number in range(100)))
        assert len(set(found)) == 100
        assert len(written) <= 3

    story(test, tmp_path)


def test_whoever_stops_waiting_takes_nobody_along(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first = asyncio.create_task(address(world.desk, "c1"))
        second = asyncio.create_task(address(world.desk, "c2"))
        await turns(2)
        first.cancel()
        assert await second == "10.1.11.3/24"
        assert await address(world.desk, "c1") == "10.1.11.2/24"

    story(test, tmp_path)


def test_a_pod_waits_until_the_agent_has_read_of_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        waiting = asyncio.create_task(address(world.desk, "c1", WEB, "u1"))
        await settle()
        assert not waiting.done()
        world.says(store(pod("web-0", "u1")))
        assert await waiting == "10.1.11.2/24"
        began = now()
        assert await address(world.desk, "c2", "default/web-1", "u2") == (
            "routerd-ipam: the store has no Pod default/web-1 with uid u2 yet"
        )
        assert now() - began == 4.0  # of the 5 s that the plugin waits

    story(test, tmp_path)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Snapshot(), "the agent has not read nodes yet"),
        (replace(cluster.snapshot(), nodes={}), "the store has no Node a yet"),
        (
            replace(cluster.snapshot(), nodes={"a": Node("a")}),
            "Node a has no pod CIDRs: let its controller manager or the operator give it some",
        ),
        (replace(cluster.snapshot(), pods=None), "the agent has not read pods yet"),
        (
            replace(cluster.snapshot(), nodes={"a": cluster.node("a", 1, pod_cidrs=(ip_network("10.1.0.0/31"),))}),
            "10.1.0.0/31 has no room for a pod beside the host's own address",
        ),
    ],
)
def test_without_an_address_to_give_the_node_is_not_available(tmp_path: Path, found: Snapshot, message: str) -> None:
    async def test(world: World) -> None:
        world.store = found
        code, error = await ask(world.desk, "STATUS")
        assert (code, error["code"], error["msg"]) == (1, wire.NOT_AVAILABLE, f"routerd-ipam: {message}")
        assert await address(world.desk) == f"routerd-ipam: {message}"
        assert not world.desk.held.holds

    story(test, tmp_path)


def test_blocks_that_the_operator_gave_are_the_nodes(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        blocks = NodeBlocks("a", (ip_network("10.244.7.0/24"), ip_network("fd00:10:7::/64")))
        published = replace(cluster.allocations(), pod_cidrs=(blocks,))
        world.store = store(allocations=published)
        view = WithBlocks(lambda: world.store)
        assert view() is view()
        world.desk = PodAddressDesk("a", world.path, view)
        assert await address(world.desk) == "10.244.7.2/24 fd00:10:7::2/64"
        state = compose(view(), Settings("a", rules=Rules(pod_cidrs=True)), LocalFacts(cluster.LOCAL))
        assert state.announcements is not None
        announced = {prefix for rib in state.announcements.desired.ribs.values() for prefix in rib}
        assert blocks.blocks[0] in announced
        assert cluster.node("a", 11).pod_cidrs[0] not in announced

    story(test, tmp_path)


def test_addresses_that_pods_had_before_us_are_theirs(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        elsewhere, over = pod("b", "u2", "10.1.11.3", node="b"), replace(pod("job", "u3", "10.1.11.3"), finished=True)
        world.store = store(pod("old", "u1", "10.1.11.2"), elsewhere, over)
        assert await address(world.desk) == "10.1.11.3/24"

    story(test, tmp_path)


def test_what_runtimes_forget_to_end_is_freed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.store = store(pod("web-0", "u1"))
        await address(world.desk, "c1", WEB, "u1")
        await address(world.desk, "c2")  # no pod's: its runtime alone can tell
        task = asyncio.create_task(world.desk.run())
        await elapse(10 * GONE)
        world.says(replace(world.store, pods=None))  # it is not known
        await elapse(10 * GONE)
        world.says(store(pod("web-0", "another")))
        await elapse(GONE - LOOK)
        assert len(world.desk.held.holds) == 2
        await elapse(3 * LOOK)
        assert {each.state for each in world.desk.held.holds.values()} == {"used", "cooling"}
        assert (await ask(world.desk, "GC", **{"cni.dev/valid-attachments": []}))[0] == 0
        assert {each.state for each in world.desk.held.holds.values()} == {"cooling"}
        task.cancel()

    story(test, tmp_path)


def test_collection_spares_what_is_valid_and_other_networks(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for container in ("c1", "c2"):
            await ask(world.desk, "ADD", container)
        await ask(world.desk, "ADD", "c3", name="other")
        valid = [{"containerID": "c1", "ifname": "eth0"}]
        await ask(world.desk, "GC", **{"cni.dev/valid-attachments": valid})
        used = {each.attachment.container for each in world.desk.held.holds.values() if each.state == "used"}
        assert used == {"c1", "c3"}
        code, error = await ask(world.desk, "GC")
        assert (code, error["code"]) == (1, wire.WRONG_CONFIGURATION)

    story(test, tmp_path)


def test_a_check_compares_with_what_the_container_has(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        _, result = await ask(world.desk, "ADD")
        assert (await ask(world.desk, "CHECK", prevResult=result))[0] == 0
        other = {**result, "ips": [{"address": "10.1.11.9/24"}]}
        code, error = await ask(world.desk, "CHECK", prevResult=other)
        assert (code, error["code"]) == (1, wire.UNKNOWN_CONTAINER)

    story(test, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"format":2}', '{"format":1}', '{"format":1,"blocks":["x"],"holds":[],"last":[]}',
        '{"format":1,"blocks":[],"holds":[["10.1.11.2","lost",0,"pods","c1","eth0","",""]],"last":[]}',
        '{"format":1,"blocks":[],"holds":[["10.1.11.2"]],"last":[]}',
    ],
)  # fmt: skip
def test_a_damaged_memory_gives_nothing_twice(tmp_path: Path, text: str) -> None:
    async def test(world: World) -> None:
        world.path.write_text(text)
        world.restart()
        code, error = await ask(world.desk, "ADD")
        assert (code, error["code"]) == (1, wire.TRY_AGAIN)
        assert str(world.path) in error["msg"]
        assert (await ask(world.desk, "STATUS"))[1]["code"] == wire.NOT_AVAILABLE
        assert await ask(world.desk, "DEL") == (0, None)
        assert world.path.read_text() == text

    story(test, tmp_path)
