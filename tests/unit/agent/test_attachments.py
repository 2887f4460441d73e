"""The agent's answers to the CNI plugin, with rounds that the test makes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

import pytest

from cni import wire
from routerd.agent.plugins.attachments import Attachments
from routerd.model import IPAddress, Snapshot
from routerd.node.desired import LocalFacts, Settings, compose
from tests.models import cluster
from tests.models.virtual_time import in_virtual_time, now
from tests.waiting import eventually, turns

NEW, NEXT = ip_address("10.1.11.9"), ip_address("10.1.11.10")


@dataclass
class Decides:
    """What a round left undone: it decided these."""

    decided: set[IPAddress] = field(default_factory=lambda: {NEW, NEXT})

    def decides(self, address: IPAddress) -> bool:
        return address in self.decided


class World:
    """A desk, its store, and the rounds that it asked for."""

    def __init__(self, **options: Any) -> None:
        self.store = cluster.snapshot(pods={"default/web-2": cluster.pod("web-2", str(NEW), addresses=())})
        self.asked: list[str] = []
        self.undone = Decides()
        self.desk = Attachments(
            "a", lambda: self.store, lambda: self.asked.append("hurry"), lambda: self.asked.append("wake"), **options
        )

    def round(self, store: Snapshot | None = None) -> None:
        self.begin()
        self.end(store)

    def begin(self) -> None:
        self.taken = self.desk.take()

    def end(self, store: Snapshot | None = None) -> None:
        snapshot = store or self.store
        state = compose(snapshot, Settings("a"), LocalFacts(cluster.LOCAL, attached=self.taken))
        self.desk.consider(snapshot, state, {"egress": self.undone})

    async def ask(
        self, command: str, container: str = "c1", address: IPAddress = NEW, pod: str = "web-2", **network: Any
    ) -> Any:
        """Exit code and what is printed, as a value."""
        result = {"cniVersion": "1.0.0", "ips": [{"address": f"{address}/24"}]}
        configuration = {"cniVersion": "1.0.0", "name": "pods", "prevResult": result, **network}
        variables = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
        }  # fmt: skip
        head = "".join(f"{name}={value}\0" for name, value in variables.items())
        answer = await self.desk.answer(f"{head}\0{json.dumps(configuration)}".encode())
        first, _, body = answer.partition(b"\n")
        code, length = map(int, first.split())
        assert length == len(body)
        return code, json.loads(body) if body else None

    def addresses(self) -> dict[str, tuple[IPAddress, ...]]:
        return {key: found.addresses for key, found in self.desk.take().items()}


def story(test: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        await test(World(**options))

    in_virtual_time(run())


def test_a_pod_starts_when_a_round_that_knew_it_has_decided_it() -> None:
    async def test(world: World) -> None:
        world.begin()
        task = asyncio.create_task(world.ask("ADD"))
        await eventually(lambda: world.asked == ["hurry"])
        world.end()
        await turns()
        assert not task.done()  # that round had begun before
        world.round()
        code, result = await task
        assert (code, result["ips"]) == (0, [{"address": "10.1.11.9/24"}])

    story(test)


def test_many_pods_wait_for_one_round() -> None:
    async def test(world: World) -> None:
        names = [f"web-{number}" for number in range(16)]
        world.store = cluster.snapshot(pods={f"default/{n}": cluster.pod(n, str(NEW), addresses=()) for n in names})
        tasks = [asyncio.create_task(world.ask("ADD", container=name)) for name in names]
        await eventually(lambda: len(world.asked) == 16)
        world.round()
        assert {code for code, _ in await asyncio.gather(*tasks)} == {0}

    story(test)


def test_a_pod_that_cannot_be_decided_is_refused_in_time_with_the_reason() -> None:
    async def test(world: World) -> None:
        world.undone.decided = set()
        began = now()
        task = asyncio.create_task(world.ask("ADD", timeout=10))
        await turns()
        world.round()
        code, error = await task
        assert (code, error["code"], now() - began) == (1, wire.TRY_AGAIN, 8.0)
        assert error["msg"].startswith("routerd-cni: what EgressPolicy/web say is not in place for 10.1.11.9 yet")
        assert (await world.ask("ADD", onAgentAbsent="allow"))[0] == 0
        assert now() - began == 8.0 + 0.8 * wire.DEFAULT_TIMEOUT

    story(test)


def test_a_pod_that_the_store_has_not_yet_waits_for_it() -> None:
    async def test(world: World) -> None:
        known, world.store = world.store, cluster.snapshot()
        task = asyncio.create_task(world.ask("ADD"))
        await turns()
        world.round()
        await turns()
        assert not task.done()
        world.store = known
        world.round()
        assert (await task)[0] == 0

    story(test)


async def added(world: World, container: str = "c1", address: IPAddress = NEW) -> None:
    task = asyncio.create_task(world.ask("ADD", container, address))
    await turns()
    world.round()
    assert (await task)[0] == 0


def test_a_pod_that_ends_has_no_address_any_more() -> None:
    async def test(world: World) -> None:
        await added(world)
        assert world.addresses() == {"default/web-2": (NEW,)}
        assert await world.ask("DEL") == (0, None)
        assert world.addresses() == {"default/web-2": ()}
        assert world.asked == ["hurry", "wake"]
        assert await world.ask("DEL") == (0, None)  # again, and of one that nobody knows
        assert await world.ask("DEL", container="c9") == (0, None)
        assert world.asked == ["hurry", "wake"]

    story(test)


def test_the_end_of_an_old_sandbox_comes_late_and_takes_nothing_from_the_new_one() -> None:
    async def test(world: World) -> None:
        await added(world)
        await added(world, "c2", NEXT)
        assert await world.ask("DEL", container="c1") == (0, None)
        assert world.addresses() == {"default/web-2": (NEXT,)}

    story(test)


def test_what_is_not_listed_any_more_is_collected_in_its_own_network_alone() -> None:
    async def test(world: World) -> None:
        await added(world)
        listed = [{"containerID": "c1", "ifname": "eth0"}]
        for network in ({"cni.dev/valid-attachments": listed}, {"cni.dev/valid-attachments": [], "name": "other"}):
            assert await world.ask("GC", **network) == (0, None)
            assert world.addresses() == {"default/web-2": (NEW,)}
        assert await world.ask("GC", **{"cni.dev/valid-attachments": []}) == (0, None)
        assert world.addresses() == {"default/web-2": ()}

    story(test)


def test_pods_that_are_gone_from_the_store_are_forgotten() -> None:
    async def test(world: World) -> None:
        await added(world)
        world.store = cluster.snapshot(pods={"default/x": cluster.pod("x", str(NEXT))})
        assert await world.ask("DEL") == (0, None)
        await world.ask("ADD", timeout=1)
        assert list(world.desk.take()) == ["default/web-2"]

    story(test)


@pytest.mark.parametrize("later", ["ADD", "DEL", "GC"])
def test_a_pod_that_started_before_the_store_knew_it_is_not_forgotten(later: str) -> None:
    """It waited as long as it may, and was let go; the next pod comes before the store has either of them."""

    async def test(world: World) -> None:
        known, world.store = world.store, cluster.snapshot(pods={})
        assert (await world.ask("ADD", onAgentAbsent="allow"))[0] == 0
        valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
        for pod in ("web-3", "web-4"):
            assert (await world.ask("ADD", "c2", NEXT, pod, onAgentAbsent="allow"))[0] == 0
            if later != "ADD":
                assert (await world.ask(later, "c2", NEXT, pod, **valid))[0] == 0
        world.store = known
        assert world.addresses()["default/web-2"] == (NEW,)
        world.store = cluster.snapshot(pods={})
        await world.ask("ADD", "c2", NEXT, "web-3", onAgentAbsent="allow")
        assert "default/web-2" not in world.addresses(), "now it was there, and is gone"

    story(test)


def test_a_pod_that_ended_before_the_store_knew_it_is_forgotten() -> None:
    async def test(world: World) -> None:
        world.store = cluster.snapshot(pods={})
        for pod in ("web-2", "web-3"):
            assert (await world.ask("ADD", "c1", NEW, pod, onAgentAbsent="allow"))[0] == 0
            assert (await world.ask("DEL", "c1", NEW, pod))[0] == 0
        assert list(world.desk.take()) == ["default/web-3"], "until the next one"

    story(test)


@pytest.mark.parametrize(("timeout", "seconds"), [(10**400, 0.8 * wire.MOST_TIMEOUT), (-(10**400), 0.0)])
def test_a_timeout_beyond_all_bounds_is_the_nearest_one(timeout: int, seconds: float) -> None:
    async def test(world: World) -> None:
        began = now()
        assert (await world.ask("ADD", timeout=timeout))[0] == 1
        assert now() - began == pytest.approx(seconds)

    story(test)


def test_a_check_is_a_round_that_finds_the_pod_in_place() -> None:
    async def test(world: World) -> None:
        await added(world)
        task = asyncio.create_task(world.ask("CHECK"))
        await turns()
        world.round()
        assert await task == (0, None)
        world.undone.decided = set()
        task = asyncio.create_task(world.ask("CHECK"))
        await turns()
        world.round()
        assert (await task)[1]["code"] == wire.TRY_AGAIN

    story(test)


def test_the_node_is_available_once_the_agent_has_read_its_store() -> None:
    async def test(world: World) -> None:
        whole, world.store = world.store, Snapshot()
        code, error = await world.ask("STATUS")
        assert (code, error["code"], "policies" in error["msg"]) == (1, wire.NOT_AVAILABLE, True)
        assert await world.ask("STATUS", onAgentAbsent="allow") == (0, None)
        world.store = replace(whole, allocations=None)  # the operator's own pod is to come to this node first
        world.round()
        assert await world.ask("STATUS") == (0, None)
        world.store = replace(whole, nodes={})
        assert "the store has no Node a yet" in (await world.ask("STATUS"))[1]["msg"]

    story(test)


def test_without_egress_and_for_containers_of_nobodys_pod_nothing_is_waited_for() -> None:
    async def test(world: World) -> None:
        for command in ("ADD", "CHECK", "STATUS"):
            assert (await world.ask(command))[0] == 0

    story(test, guards=False)

    async def other(world: World) -> None:
        data = b'CNI_COMMAND=ADD\0CNI_CONTAINERID=c\0CNI_IFNAME=eth0\0\0{"prevResult": {"a": 1}}'
        assert await world.desk.answer(data) == b'0 7\n{"a":1}'
        assert world.asked == []

    story(other)


def test_a_pod_waits_for_nothing_where_no_policy_leads_anywhere() -> None:
    async def test(world: World) -> None:
        nowhere = cluster.policy(destinations=())
        world.store = replace(world.store, policies={nowhere.key: nowhere})
        world.round()
        assert (await world.ask("ADD"))[0] == 0
        assert (world.asked, world.addresses()) == (["wake"], {"default/web-2": (NEW,)})

    story(test)


def test_a_command_that_nobody_knows_is_not_done() -> None:
    async def test(world: World) -> None:
        code, error = await world.ask("UPDATE")
        assert (code, error["code"], error["msg"]) == (1, 4, "routerd-cni: CNI_COMMAND 'UPDATE' is not known")

    story(test)


def test_what_is_no_request_is_refused() -> None:
    async def test(world: World) -> None:
        answer = await world.desk.answer(b"nonsense")
        assert answer.startswith(b"1 ") and b'"code":6' in answer

    story(test)
