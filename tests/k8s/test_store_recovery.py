"""After an outage of the API server everything is read again soon, and not by everybody in the same moment.

The double shows it with real connections; a fleet of nodes, with the times of production, runs on virtual time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest

from routerd.model import NodeReport
from routerd.store.kubernetes.client import UNREACHABLE, ApiError, Client, Json
from routerd.store.kubernetes.contact import Contact, Pace, next_turn
from routerd.store.kubernetes.objects import Collection
from routerd.store.kubernetes.resources import for_agent
from routerd.store.kubernetes.watch import Reflector, Timings
from tests.k8s.store_lab import (
    QUICK,
    Cluster,
    Running,
    agent_store,
    bgp_config,
    cluster,
    ips,
    node,
    operator,
    service,
)
from tests.models.virtual_time import elapse, in_virtual_time, now
from tests.waiting import eventually

SLOW = replace(QUICK, first_pause=0.4, last_pause=600.0, away=0.4, spread=0.3)


# --- in front of the double


def counts(agent: Running) -> dict[str, int]:
    return {each.resource: each.watches + each.lists for each in agent.store.status().resources if each.watches}


def lists_of(agent: Running) -> dict[str, int]:
    return {each.resource: each.lists for each in agent.store.status().resources}


@asynccontextmanager
async def everything_read() -> AsyncIterator[tuple[Any, Running]]:
    async with cluster(node("node1"), service("web"), bgp_config()) as api, agent_store(api, timings=SLOW) as agent:
        await agent.synced()
        await eventually(lambda: len(counts(agent)) >= 8, "everything is watched")
        yield api, agent


async def outage(client: Client) -> None:
    """Until the client has noticed it and has tried in vain a few times."""
    await eventually(lambda: client.contact.is_lost, "the outage is noticed")
    before = client.requests.total()
    await eventually(lambda: client.requests.total() >= before + 3, "it is tried again")


OUTAGES = pytest.mark.parametrize(
    ("begin", "end"), [("refuse", "accept"), ("break_off", "heal")], ids=["refused", "502"]
)


@pytest.mark.parametrize("keeps_history", [True, False])
@OUTAGES
def test_every_resource_is_read_again_soon_after_an_outage(begin: str, end: str, keeps_history: bool) -> None:
    async def story() -> None:
        async with everything_read() as (api, agent):
            await asyncio.to_thread(getattr(api.server, begin))
            before, lists = counts(agent), lists_of(agent)
            await outage(agent.client)
            watching = [each for each in agent.store.reflectors if each.watches]
            await eventually(lambda: all(each.fault for each in watching), "every watch is broken")
            await asyncio.to_thread(getattr(api.server, end))
            if not keeps_history:
                api.server.fault(gone=len(before))
            await eventually(lambda: all(counts(agent)[each] > before[each] for each in before), "all watched")
            await eventually(lambda: not agent.store.snapshot().refusals, "nothing is stale")
            assert (lists_of(agent) == lists) is keeps_history  # what is known goes on: nothing has to be listed
            await api.apply(service("later"))
            await agent.until(lambda store: "default/later" in (store.snapshot().services or {}), "a change")

    asyncio.run(story())


@OUTAGES
def test_an_outage_costs_a_client_few_attempts(begin: str, end: str) -> None:
    async def story() -> None:
        async with everything_read() as (api, agent):
            await asyncio.to_thread(getattr(api.server, begin))  # until then kinds that are absent are asked for, too
            before, began = agent.client.requests.total(), now()
            broken = len(agent.store.reflectors)  # each tries once for itself when its watch breaks
            await eventually(lambda: agent.client.requests.total() >= before + broken + 6, "it tries again and again")
            assert agent.client.requests.total() - before - broken <= 1 + (now() - began) / (SLOW.pace.first / 2)

    asyncio.run(story())


def test_a_report_that_waits_is_written_soon_after_an_outage() -> None:
    async def story() -> None:
        async with everything_read() as (api, agent):
            await asyncio.to_thread(api.server.refuse)
            agent.store.write_node_report(NodeReport("node1", (ip_address("10.0.0.11"),)))
            await outage(agent.client)
            await asyncio.to_thread(api.server.accept)
            reporter = agent.store._reporter
            assert reporter is not None
            await eventually(lambda: reporter.writes, "the report")

    asyncio.run(story())


@pytest.mark.parametrize("method", ["patch", "replace"], ids=["status", "ledger"])
def test_what_the_operator_was_writing_is_written_soon_after_an_outage(method: str) -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api, operator(api, timings=SLOW) as one:
            await eventually(lambda: one.operator and one.operator.last, "the first decision")
            held = Held(getattr(one.client, method))
            setattr(one.client, method, held)
            await api.apply(*(service(f"s{each}", 1000 + each) for each in range(20)))
            await eventually(lambda: held.waiting, "a write")
            await asyncio.to_thread(api.server.refuse)
            held.goes.set()
            await eventually(lambda: held.failed, "the write is lost")
            await outage(one.client)
            await asyncio.to_thread(api.server.accept)
            for each in range(20):
                await served(api, f"s{each}")

    asyncio.run(story())


async def served(api: Cluster, name: str) -> None:
    async def addresses() -> list[str]:
        return ips(await api.get(f"/api/v1/namespaces/default/services/{name}"))

    await eventually(addresses, f"{name} has an address")


class Held:
    """Requests about services and ConfigMaps wait until they may go."""

    def __init__(self, request: Callable[..., Any]) -> None:
        self.request, self.waiting, self.failed, self.goes = request, 0, 0, asyncio.Event()

    async def __call__(self, path: str, body: Any, *more: Any) -> Any:
        if "/services/" in path or "/configmaps/" in path:
            self.waiting += 1
            await self.goes.wait()
        try:
            return await self.request(path, body, *more)
        except ApiError:
            self.failed += 1
            raise


# --- what one client knows


PACE = Pace(0.5, 5.0, 2.0)


def test_those_who_wait_try_in_turn_at_a_modest_rate() -> None:
    async def one(contact: Contact, tries: list[float]) -> None:
        while True:
            await contact.turn(PACE)
            tries.append(now())
            contact.failed(now())

    async def story() -> None:
        contact, tries = Contact(now), []
        await elapse(1.0)
        contact.failed(now())
        waiting = [asyncio.create_task(one(contact, tries)) for _ in range(11)]
        await elapse(60.0)
        gaps = [after - before for before, after in pairwise(tries)]
        assert min(gaps) >= 0.25 and max(gaps) <= 5.0
        assert 60 / 5 <= len(tries) <= 60 / 2.5 + 6
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    in_virtual_time(story())


def test_an_answer_wakes_the_others_within_the_spread() -> None:
    async def story() -> None:
        contact, woken = Contact(now), []

        async def one() -> None:
            await contact.turn(PACE)
            woken.append(now())

        await elapse(1.0)
        contact.failed(now())
        waiting = [asyncio.create_task(one()) for _ in range(200)]
        await elapse(0.1)
        contact.answered()
        assert not contact.is_lost
        back = now()
        await asyncio.gather(*waiting)
        assert back < min(woken) and max(woken) <= back + PACE.spread
        assert Counter(int(10 * (each - back)) for each in woken).most_common(1)[0][1] <= 30

    in_virtual_time(story())


def test_a_request_that_fails_while_others_are_answered_is_no_outage() -> None:
    contact = Contact(iter(range(100)).__next__)
    began = contact.clock()
    contact.answered()
    contact.failed(began)
    assert not contact.is_lost
    contact.failed(contact.clock())
    assert contact.is_lost


@pytest.mark.parametrize(
    ("after", "luck", "pause"), [(0, 0, 0.5), (0, 1, 0.25), (4, 0, 2.0), (10, 0, 5.0), (3600, 0, 5.0), (3600, 1, 2.5)]
)
def test_pauses_grow_with_the_outage(after: float, luck: float, pause: float) -> None:
    assert next_turn(100.0 + after, 100.0, PACE, luck) == 100 + after + pause


# --- a fleet

NODES = 60


@dataclass
class Server:
    """What the nodes of a fleet ask."""

    version: int = 10
    oldest: int = 0
    is_down: bool = False
    attempts: list[float] = field(default_factory=list)
    watching: int = 0
    down: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, contact: Contact) -> None:
        self.attempts.append(now())
        if self.is_down:
            contact.failed(now())
            raise ApiError(0, UNREACHABLE, "refused")
        contact.answered()

    def go(self) -> None:
        self.is_down = True
        self.down.set()

    def come_back(self, *, without_history: bool) -> None:
        self.is_down, self.down = False, asyncio.Event()
        if without_history:
            self.version += 1
            self.oldest = self.version


class OnServer(Client):
    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server, self.contact = server, Contact(now)

    async def get(self, path: str, **query: str) -> Json:
        self.server.answer(self.contact)
        await elapse(0.01)
        return {"metadata": {"resourceVersion": str(self.server.version)}, "items": []}

    @asynccontextmanager
    async def watch(self, path: str, *, silence: float, **query: str) -> AsyncIterator[AsyncIterator[Json]]:
        self.server.answer(self.contact)
        began = now()
        if int(query["resourceVersion"]) < self.server.oldest:
            raise ApiError(410, "Expired", "too old")
        self.server.watching += 1
        try:
            yield self._events()
        finally:
            self.server.watching -= 1
            self.contact.failed(began)

    async def _events(self) -> AsyncIterator[Json]:
        await self.server.down.wait()
        raise ApiError(0, UNREACHABLE, "the connection broke")
        yield {}


@dataclass(frozen=True)
class Seen:
    took: float  # seconds from the server being back until all is watched
    busiest: int  # requests in the busiest 100 ms since then
    asked: int  # requests since then
    tries: float  # a node's attempts in the outage after the first second, per second
    lists: int  # of all nodes, since the start


def recovery(outage: float, *, without_history: bool, from_backup: bool = False) -> Seen:
    async def story() -> Seen:
        server = Server()
        reflectors = list(fleet(server))
        tasks = [asyncio.create_task(each.run()) for each in reflectors]
        await elapse(60)
        assert server.watching == len(reflectors)
        server.go()
        await elapse(1.0)
        before = len(server.attempts)
        await elapse(outage - 1.0)
        tries = (len(server.attempts) - before) / NODES / max(outage - 1.0, 1.0)
        server.attempts.clear()
        server.version -= 5 * from_backup
        server.come_back(without_history=without_history)
        back = now()
        await eventually(lambda: server.watching == len(reflectors), "all is watched")
        took = now() - back
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        busiest = Counter(int(10 * (at - back)) for at in server.attempts).most_common(1)[0][1]
        return Seen(took, busiest, len(server.attempts), tries, sum(each.lists for each in reflectors))

    random.seed(1)
    found: Seen = in_virtual_time(story())
    return found


def fleet(server: Server) -> Iterator[Reflector]:
    for number in range(NODES):
        client = OnServer(server)
        for each in for_agent(f"node{number}", "routerd"):
            yield Reflector(client, Collection(each), lambda: None, Timings(), clock=now)


@pytest.mark.parametrize("without_history", [False, True])
@pytest.mark.parametrize("outage", [5.0, 20.0, 50.0])
def test_a_fleet_reads_again_within_8_seconds_and_not_at_once(outage: float, without_history: bool) -> None:
    seen = recovery(outage, without_history=without_history)
    assert seen.took < 8.0
    assert seen.busiest < 0.1 * seen.asked
    assert seen.tries < 2.0  # of a node that watches twelve resources
    resources = len(for_agent("", "routerd")) * NODES
    assert seen.lists == (2 if without_history else 1) * resources


@pytest.mark.parametrize("from_backup", [False, True])
def test_after_a_long_outage_all_is_listed_again_if_the_server_is_back_from_a_backup(from_backup: bool) -> None:
    seen = recovery(90.0, without_history=False, from_backup=from_backup)
    assert seen.took < 8.0
    assert seen.lists == (2 if from_backup else 1) * len(for_agent("", "routerd")) * NODES


def test_every_resource_that_is_stale_is_told_when_it_is_though_it_waits_for_its_turn() -> None:
    async def story() -> None:
        server = Server()
        reflectors = list(fleet(server))[:12]
        tasks = [asyncio.create_task(each.run()) for each in reflectors]
        await elapse(60)
        server.go()
        await elapse(Timings().stale - 0.1)
        assert not [each for each in reflectors if each.refusal()]
        await elapse(0.8)
        assert len([each for each in reflectors if each.refusal()]) == 12
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    in_virtual_time(story())
