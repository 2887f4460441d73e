"""Documents in parts: whatever becomes of the operator that writes them, one decision is in force, and all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from routerd.cluster.ledger import Ledger, difference
from routerd.errors import StoreError
from routerd.formats.published.bindings import binding_table
from routerd.formats.published.shares import GATEWAYS, share_of
from routerd.formats.published.whole import AllocationsReader
from routerd.model import Allocations, PortBlock, ServiceAllocation
from routerd.operator.leader import Candidate
from routerd.store.kubernetes import parts as parts_module
from routerd.store.kubernetes.client import UNREACHABLE, ApiError, Client
from routerd.store.kubernetes.documents import LedgerText
from routerd.store.kubernetes.ledger import KubernetesLedger, take
from routerd.store.kubernetes.resources import READERS_LABEL
from tests.k8s.store_lab import Cluster, Json, agent_store, bgp_config, cluster, node, operator, service
from tests.models.many import NODES, NUMBERS, allocations_of, ledger_of, seen_by, small_parts
from tests.waiting import eventually

MAPS = "/api/v1/namespaces/routerd/configmaps"
WRITES = ("POST", "PUT", "DELETE")
LAST = 60  # more requests than one decision takes


@pytest.fixture(autouse=True)
def quick_and_small() -> Iterator[None]:
    """Every decision is in parts, and those that are in force no more go at once."""
    with small_parts(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "GRACE", 0.0)
        yield


class Harried(Client):
    """A client whose `at`-th write is another's moment."""

    def __init__(self, kubeconfig: str, at: int = 0) -> None:
        super().__init__(Path(kubeconfig))
        self.at, self.writes = at, 0

    async def _request(self, method: str, path: str, *more: Any) -> Json:
        if method not in WRITES:
            return await super()._request(method, path, *more)
        self.writes += 1
        return (
            await self.moment(method, path, *more) if self.writes == self.at else await self.send(method, path, *more)
        )

    async def send(self, method: str, path: str, *more: Any) -> Json:
        return await super()._request(method, path, *more)

    async def moment(self, method: str, path: str, *more: Any) -> Json:
        raise NotImplementedError


Asking = TypeVar("Asking", bound=Harried)


class Killed(Harried):
    """Nothing is sent from that write on."""

    async def moment(self, method: str, path: str, *more: Any) -> Json:
        self.at = self.writes + 1
        raise ApiError(0, UNREACHABLE, "killed")


class KilledAfterwards(Killed):
    """That write is done, and nobody hears of it."""

    async def moment(self, method: str, path: str, *more: Any) -> Json:
        await self.send(method, path, *more)
        return await super().moment("", "")


class Paused(Harried):
    """That write is under way until `go`."""

    def __init__(self, kubeconfig: str, at: int) -> None:
        super().__init__(kubeconfig, at)
        self.is_paused, self.go = asyncio.Event(), asyncio.Event()

    async def moment(self, method: str, path: str, *more: Any) -> Json:
        self.is_paused.set()
        await self.go.wait()
        return await self.send(method, path, *more)


@asynccontextmanager
async def opened(client: Asking) -> AsyncIterator[Asking]:
    await client.open()
    try:
        yield client
    finally:
        await client.close()


def decision(number: int) -> tuple[Ledger, Allocations]:
    """What is decided in turns: the parts of the first come back with the third."""
    services = 9 if number % 2 else 12
    return replace(ledger_of(services, 2), generation=number), allocations_of(services, 2, number)


async def lead(client: Client, lease: int, number: int) -> None:
    """One operator from its take-over to its decision. Raises StoreError."""
    ledger = await take(client, "routerd", lease)
    await decide(ledger, number)


async def decide(ledger: KubernetesLedger, number: int) -> None:
    wanted, allocations = decision(number)
    before = await asyncio.to_thread(ledger.read)
    await asyncio.to_thread(ledger.record, difference(before, wanted, 0.0))
    await asyncio.to_thread(ledger.publish, allocations)


async def in_force(api: Cluster) -> tuple[int, int]:
    """The numbers of the decisions that are recorded and published, each of which is whole; 0 = none."""
    found: Mapping[str, Json] = {each["metadata"]["name"]: each for each in (await api.get(MAPS))["items"]}
    recorded, published = 0, 0
    if "routerd-ledger" in found:
        ledger, _ = LedgerText().read(found["routerd-ledger"]["data"], texts(found, "routerd-ledger"))
        recorded = ledger.generation
        assert ledger in (Ledger(), decision(recorded)[0])
    if "routerd-allocations" in found:
        text = found["routerd-allocations"]["data"]["allocations.yaml"]
        allocations = AllocationsReader().read(text, "f", texts(found, "routerd-allocations"))
        published = allocations.generation
        assert allocations == decision(published)[1]
    return recorded, published


def texts(found: Mapping[str, Json], document: str) -> Any:
    return lambda name: found.get(f"{document}-{name}", {"data": {}})["data"].get("part")


async def parts_there(api: Cluster) -> int:
    return sum("part" in (each.get("data") or {}) for each in (await api.get(MAPS))["items"])


@pytest.mark.parametrize("kind", [Killed, KilledAfterwards])
def test_killed_at_every_request_the_old_or_the_new_decision_is_in_force(kind: type[Killed]) -> None:
    async def story() -> None:
        async with cluster() as api, opened(Harried(api.server.kubeconfig)) as healthy:
            await lead(healthy, 1, 1)
            for step in range(1, LAST):
                number = 2 * step
                async with opened(kind(api.server.kubeconfig, step)) as doomed:
                    with suppress(StoreError):
                        await lead(doomed, number, number)
                    recorded, published = await in_force(api)
                    assert number >= recorded >= published >= number - 1
                await lead(healthy, number + 1, number + 1)
                assert await in_force(api) == (number + 1, number + 1)
                if doomed.writes < step:
                    assert step > 12
                    await lead(healthy, number + 2, number + 1)
                    assert await parts_there(api) < 30, "what the killed ones left is removed"
                    return
            raise AssertionError("it never came to its end")

    asyncio.run(story())


@pytest.mark.parametrize("decisions", [1, 3])
def test_a_leader_that_is_paused_in_any_request_spoils_nothing_when_it_wakes_up(decisions: int) -> None:
    """Meanwhile another one decides, perhaps several times: parts go, and come back under the same names."""

    async def story() -> None:
        async with cluster() as api, opened(Harried(api.server.kubeconfig)) as healthy:
            await lead(healthy, 1, 1)
            for step in range(1, LAST):
                number = 4 * step
                async with opened(Paused(api.server.kubeconfig, step)) as paused:
                    task = asyncio.create_task(lead(paused, number, number))
                    asleep = asyncio.create_task(paused.is_paused.wait())
                    await asyncio.wait({task, asleep}, return_when=asyncio.FIRST_COMPLETED)
                    asleep.cancel()
                    other = await take(healthy, "routerd", number + 1)
                    for later in range(number + 1, number + 1 + decisions):
                        await decide(other, later)
                    paused.go.set()
                    with suppress(StoreError):
                        await task
                    assert await in_force(api) == (number + decisions, number + decisions)
                if paused.writes < step:
                    assert step > 12
                    return
            raise AssertionError("it never came to its end")

    asyncio.run(story())


class Listing(Harried):
    """It counts looks at which parts are there."""

    lists = 0

    async def get_metadata(self, path: str, **query: str) -> Json:
        self.lists += 1
        return await super().get_metadata(path, **query)


def test_a_decision_lists_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is of every part of ten minutes; whether others took any away is looked at now and then."""

    async def story() -> None:
        async with cluster() as api, opened(Listing(api.server.kubeconfig)) as client:
            ledger = await take(client, "routerd", 1)
            await decide(ledger, 1)
            before = client.lists
            for number in range(2, 6):
                await decide(ledger, number)
            assert client.lists == before
            gone = await parts_of(api, "routerd-ledger")
            for each in gone:
                await api.delete(each)
            monkeypatch.setattr(parts_module, "LOOK", 0.0)
            await decide(ledger, 6)
            assert await in_force(api) == (6, 6)

    asyncio.run(story())


def test_an_agent_keeps_the_last_decision_while_a_part_is_missing_and_says_which() -> None:
    async def story() -> None:
        async with cluster() as api, opened(Harried(api.server.kubeconfig)) as client:
            ledger = await take(client, "routerd", 1)
            await decide(ledger, 1)
            async with agent_store(api) as agent:
                await agent.until(lambda store: store.snapshot().allocations == decision(1)[1], "the first decision")
                held = {each["metadata"]["name"] for each in (await api.get(MAPS))["items"]}
                await decide(ledger, 2)
                await agent.until(lambda store: store.snapshot().allocations == decision(2)[1], "the second one")
                seen = [str(key[1]) for each in agent.store.reflectors for key in each.collection.objects]
                assert not [name for name in seen if name.startswith("routerd-ledger")], "agents get no ledger"
            (new, *_) = [each for each in (await api.get(MAPS))["items"] if each["metadata"]["name"] not in held
                         and each["metadata"]["name"].startswith("routerd-allocations-")]  # fmt: skip
            await api.delete({**new, "apiVersion": "v1", "kind": "ConfigMap"})
            async with agent_store(api) as agent:
                await agent.until(lambda store: store.snapshot().refusals, "it says so")
                (refusal,) = agent.store.snapshot().refusals
                assert refusal.reason == "InvalidFile"
                assert f"part {new['metadata']['name'][20:]} is missing or cut" in refusal.message
                assert agent.store.snapshot().allocations is None
                await lead(client, 2, 2)  # the next leader makes it again
                await agent.until(lambda store: store.snapshot().allocations == decision(2)[1], "it is in force")
                await eventually(lambda: not agent.store.snapshot().refusals, "all is well")

    asyncio.run(story())


def with_ports(generation: int, *gateways: str) -> Allocations:
    """Some nodes have ports of two egress IPs, by these gateways."""
    blocks = [PortBlock(1024 + 64 * place, 64, place + 1) for place in range(len(NODES))]
    told = tuple(place + 1 for place, name in enumerate(NODES) if name in gateways)
    before = allocations_of(9, 2, generation)
    groups = tuple(replace(each, gateways=gateways) for each in before.groups)
    tables = tuple(binding_table(each.egress_ip, generation, blocks, told=told) for each in groups)
    return replace(before, groups=groups, numbers=NUMBERS, bindings=tables)


def test_an_agent_gets_its_nodes_ports_alone_until_the_node_is_a_gateway() -> None:
    async def story() -> None:
        first, second, name = with_ports(1, NODES[0]), with_ports(2, NODES[0], NODES[1]), NODES[1]
        async with cluster() as api, opened(Harried(api.server.kubeconfig)) as client:
            ledger = await take(client, "routerd", 1)
            async with agent_store(api, name) as agent:
                await asyncio.to_thread(ledger.publish, first)
                await agent.until(lambda store: store.snapshot().allocations == seen_by(name, first), "its ports")
                labels = {each["metadata"]["name"]: each["metadata"]["labels"] for each in await parts_of(api)}
                seen = {key[1] for each in agent.store.reflectors for key in each.collection.objects}
                readers = {label[READERS_LABEL] for part, label in labels.items() if READERS_LABEL in label}
                assert readers == {GATEWAYS, *map(share_of, NODES)}
                assert {labels[part].get(READERS_LABEL) for part in seen & labels.keys()} == {None, share_of(name)}
                await asyncio.to_thread(ledger.publish, second)
                await agent.until(lambda store: store.snapshot().allocations == second, "all ports, as a gateway")
                assert not agent.store.snapshot().refusals, "parts that are on their way are no fault"
                third = replace(with_ports(3, NODES[0], NODES[1]), bindings=second.bindings[:1])
                await asyncio.to_thread(ledger.publish, third)
                await agent.until(lambda store: store.snapshot().allocations == third, "it follows")

    asyncio.run(story())


def test_a_ledger_whose_part_is_gone_is_refused_with_what_to_do() -> None:
    async def story() -> None:
        async with cluster() as api, opened(Harried(api.server.kubeconfig)) as client:
            await lead(client, 1, 1)
            part = next(
                each for each in (await api.get(MAPS))["items"]
                if each["metadata"]["name"].startswith("routerd-ledger-")
            )  # fmt: skip
            await api.delete({**part, "apiVersion": "v1", "kind": "ConfigMap"})
            with pytest.raises(
                StoreError, match=r"routerd-ledger is damaged \(part .* is missing or cut\): restore it, .* all parts "
            ):
                await lead(client, 2, 2)

    asyncio.run(story())


async def parts_of(api: Cluster, document: str = "routerd-allocations") -> list[Json]:
    found = (await api.get(MAPS))["items"]
    return [{**each, "apiVersion": "v1", "kind": "ConfigMap"} for each in found
            if each["metadata"]["name"].startswith(f"{document}-")]  # fmt: skip


SERVICES = [service(f"web{number}", 80 + number) for number in range(6)]


async def given(one: Candidate) -> tuple[ServiceAllocation, ...]:
    """What is published and read, when it has all services."""

    def found() -> tuple[ServiceAllocation, ...]:
        allocations = one.store.snapshot().allocations
        return allocations.services if allocations and one.operator and one.operator.last else ()

    await eventually(lambda: len(found()) == len(SERVICES), "each service has an address")
    return found()


def test_a_lost_ledger_gives_nothing_while_the_parts_of_what_is_published_are_gone() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), *SERVICES) as api:
            async with operator(api) as one:
                in_force = await given(one)
            parts = await parts_of(api)
            for each in (*parts, *await parts_of(api, "routerd-ledger")):
                await api.delete(each)
            await api.client.delete(f"{MAPS}/routerd-ledger")
            before = await api.get(f"{MAPS}/routerd-allocations")
            async with operator(api, "operator-b") as one:
                await eventually(lambda: one.operator and one.operator.rounds.last_error, "a round fails")
                assert "bring it whole, with its parts, or delete it" in one.status().rounds.last_error
                assert (await api.get(f"{MAPS}/routerd-allocations"))["data"] == before["data"]
                for each in parts:
                    del each["metadata"]["resourceVersion"], each["metadata"]["uid"]
                    await api.apply(each)
                assert await given(one) == in_force

    asyncio.run(story())


@pytest.mark.parametrize("lost", ["a part", "every part", "the document", "all"])
def test_what_somebody_deletes_is_published_again_at_once(lost: str) -> None:
    """Also the ledger's parts with it, which the operator does not watch: the next one must be able to read them."""

    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), *SERVICES) as api:
            async with operator(api) as one, agent_store(api) as agent:
                in_force = await given(one)
                await agent.until(lambda store: store.snapshot().allocations, "the agent has read it")
                before = {each["metadata"]["name"] for each in (await api.get(MAPS))["items"]}
                parts = await parts_of(api, "routerd-ledger") + await parts_of(api)
                document = {"apiVersion": "v1", "kind": "ConfigMap", **await api.get(f"{MAPS}/routerd-allocations")}
                gone = {
                    "a part": parts[-1:],
                    "every part": parts,
                    "the document": [document],
                    "all": [*parts, document],
                }
                for each in gone[lost]:
                    await api.delete(each)

                async def is_whole() -> bool:
                    return before <= {each["metadata"]["name"] for each in (await api.get(MAPS))["items"]}

                await eventually(is_whole, "all is there again")
                await eventually(lambda: not one.store.snapshot().unread, "the operator has read it again")
                await agent.until(lambda store: not store.snapshot().refusals, "the agent has read it again")
                assert agent.store.snapshot().allocations == one.store.snapshot().allocations
            async with operator(api, "operator-b") as two:
                assert await given(two) == in_force

    asyncio.run(story())
