"""A node's report at the API server: written when it changes, no oftener than bounded, in the end the last state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count, cycle
from typing import Any

import pytest

from routerd.model import NodeReport
from routerd.store.kubernetes import report as k8s_report
from routerd.store.kubernetes.watch import Timings
from tests.k8s.store_lab import agent_store, cluster, node
from tests.models.virtual_time import now
from tests.waiting import eventually

PATH = "/apis/routerd.io/v1alpha1/routerdnodes/node1"
REPORT = NodeReport("node1", (ip_address("10.0.0.11"),), draining=True)
PERIOD = 0.05


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_report, "PERIOD", PERIOD)
    monkeypatch.setattr(k8s_report, "NUMBERS", 4 * PERIOD)


def health(state: str = "up", paths: int = 2, generation: int = 1) -> dict[str, Any]:
    reason, status = ("Ready", "True") if state == "up" else ("SessionDown", "False")
    return {
        "generation": generation,
        "peers": [{"address": "10.0.0.1", "localAddress": "10.0.0.11", "name": "tor", "state": state, "paths": paths}],
        "conditions": [{"type": "Ready", "status": status, "reason": reason, "message": state}],
    }


@dataclass
class Node:
    """What an agent would say of its node; it begins to report when it is told to."""

    says: Callable[[], Mapping[str, Any]] = health

    def report(self, agent: Any) -> None:
        agent.store.report_health(lambda: self.says())
        agent.store.write_node_report(REPORT)


async def until(api: Any, holds: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
    """The status once `holds` is true of it."""

    async def wanted() -> dict[str, Any] | None:
        status = (await api.find(PATH)).get("status")
        return status if status and holds(status) else None

    return await eventually(wanted, what)


def ready(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(each for each in status.get("conditions") or [{}] if each.get("type", "Ready") == "Ready")


def test_all_of_it_is_there_and_the_columns_have_something_to_show() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            here = Node()
            here.report(agent)
            status = await until(api, lambda found: "conditions" in found, "the report")
            assert (status["addresses"], status["generation"]) == (["10.0.0.11"], 1)
            assert status["peers"] == health()["peers"]
            assert ready(status)["status"] == "True"
            assert ready(status)["lastTransitionTime"] == status["lastSeen"]

    asyncio.run(story())


def test_a_transition_is_dated_and_a_change_of_words_is_not() -> None:
    async def story() -> None:
        long_ago = "2026-01-01T00:00:00Z"
        known = [{**each, "lastTransitionTime": long_ago} for each in health("down")["conditions"]]
        there = {**health("down"), "conditions": known, "addresses": ["10.0.0.11"], "lastSeen": long_ago}
        object_ = {"apiVersion": "routerd.io/v1alpha1", "kind": "RouterdNode", "metadata": {"name": "node1"}}
        async with cluster(node("node1"), object_) as api, agent_store(api) as agent:
            await api.client.patch(f"{PATH}/status", {"status": there})
            here = Node(lambda: health("connecting"))
            here.report(agent)
            status = await until(api, lambda found: ready(found)["message"] == "connecting", "the other state")
            assert ready(status)["lastTransitionTime"] == long_ago
            here.says = health
            status = await until(api, lambda found: ready(found)["status"] == "True", "the transition")
            assert ready(status)["lastTransitionTime"] > long_ago

    asyncio.run(story())


def test_what_is_there_already_is_not_written_by_the_agent_that_starts_next() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api:
            async with agent_store(api) as agent:
                Node().report(agent)
                await until(api, lambda found: "conditions" in found, "the report")
            version = (await api.get(PATH))["metadata"]["resourceVersion"]
            said: list[int] = []

            def says() -> Mapping[str, Any]:
                said.append(1)
                return {} if len(said) < 3 else health()  # at first it knows nothing, then the same

            async with agent_store(api) as agent:
                Node(says).report(agent)
                await eventually(lambda: len(said) > 6, "it was looked at again and again")
                assert agent.client.requests["PATCH"] == 0
            assert (await api.get(PATH))["metadata"]["resourceVersion"] == version

    asyncio.run(story())


def test_a_flapping_peer_is_no_storm_and_the_last_state_is_written() -> None:
    async def story() -> None:
        states = cycle(["up", "down"])
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            here = Node()
            here.report(agent)
            await until(api, lambda found: "conditions" in found, "the report")
            before, began = agent.client.requests["PATCH"], now()

            def flaps() -> bool:
                state = next(states)
                here.says = lambda: health(state)
                return agent.client.requests["PATCH"] >= before + 5

            await eventually(flaps, "it is written now and then")
            took = now() - began
            here.says = lambda: health("down", generation=9)
            await until(api, lambda found: found["generation"] == 9, "the last state")
            status = await until(api, lambda found: ready(found)["status"] == "False", "the last state")
            assert status["peers"][0]["state"] == "down"
            made = agent.client.requests["PATCH"] - before
            assert made <= took / PERIOD + 6  # 4 periods more until the numbers, and the edges

    asyncio.run(story())


def test_numbers_that_change_all_the_time_wait_longer_than_states() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            here = Node()
            here.report(agent)
            await until(api, lambda found: "conditions" in found, "the report")
            before, began = agent.client.requests["PATCH"], now()
            numbers = count(2)

            def counts() -> bool:
                number = next(numbers)
                here.says = lambda: health(generation=number, paths=number)
                return agent.client.requests["PATCH"] >= before + 3

            await eventually(counts, "it is written now and then")
            assert agent.client.requests["PATCH"] - before <= (now() - began) / (4 * PERIOD) + 1
            last = here.says()["generation"]
            await until(api, lambda found: found["generation"] == last, "the last number")

    asyncio.run(story())


def test_somebody_elses_write_and_a_deletion_are_made_good() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            here = Node()
            here.report(agent)
            await until(api, lambda found: "conditions" in found, "the report")
            await agent.synced()
            kept, changes = await api.get(PATH), len(agent.changes)
            labelled = {**kept, "metadata": {**kept["metadata"], "labels": {"rack": "a"}}}
            await api.apply({key: value for key, value in labelled.items() if key != "status"})
            here.says = lambda: health("down")
            await until(api, lambda found: ready(found)["status"] == "False", "a write over a conflict")
            assert (await api.get(PATH))["metadata"]["labels"] == {"rack": "a"}
            await api.delete(kept)
            here.says = health
            await until(api, lambda found: ready(found)["status"] == "True", "the object is made anew")
            assert len(agent.changes) == changes  # it is ordinary: nothing was refused meanwhile

    asyncio.run(story())


def test_a_report_that_cannot_be_written_is_told_and_costs_nothing_else() -> None:
    async def story() -> None:
        async with cluster(node("node1"), with_crds=False) as api, agent_store(api) as agent:
            Node().report(agent)
            await agent.until(
                lambda store: [str(each.object) for each in store.snapshot().refusals] == ["RouterdNode/node1"],
                "it is told",
            )
            await agent.synced()
            await api.apply(node("node2", "10.0.0.12"))
            await agent.until(lambda store: "node2" in (store.snapshot().nodes or {}), "the store reads on")

    asyncio.run(story())


def test_a_silent_node_writes_its_heartbeats_only() -> None:
    async def story() -> None:
        looks: list[int] = []

        def says() -> Mapping[str, Any]:
            looks.append(1)
            return health()

        async with cluster(node("node1")) as api, agent_store(api) as agent:
            Node(says).report(agent)
            await until(api, lambda found: "conditions" in found, "the report")
            before = agent.client.requests.copy()
            seen = len(looks)
            await eventually(lambda: len(looks) > seen + 10, "it is looked at")
            assert agent.client.requests["PATCH"] == before["PATCH"]
        async with (
            cluster(node("node1")) as api,
            agent_store(api, timings=Timings(first_pause=0.02, heartbeat=0.1, gather=0.001)) as agent,
        ):
            Node().report(agent)
            await eventually(lambda: agent.client.requests["PATCH"] >= 3, "heartbeats")

    asyncio.run(story())


@pytest.mark.parametrize(("recovery", "told"), [(30.0, False), (0.0, True)])
def test_after_an_outage_what_is_not_read_again_yet_is_no_news(
    monkeypatch: pytest.MonkeyPatch, recovery: float, told: bool
) -> None:
    """The report is written again before everything is read again: nobody should hear "not synced" from then."""
    monkeypatch.setattr(k8s_report, "RECOVERY", recovery)

    def says(synced: bool) -> dict[str, Any]:
        state = {"status": str(synced), "reason": "Synced" if synced else "Stale", "message": ""}
        return {"generation": 1 if synced else 2, "conditions": [{"type": "StoreSynced", **state}]}

    async def story() -> None:
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            await agent.synced()
            here = Node(lambda: says(True))
            here.report(agent)
            await until(api, lambda status: "conditions" in status, "the report")
            await asyncio.to_thread(api.server.refuse)
            here.says = lambda: says(False)
            await eventually(lambda: agent.client.contact.is_lost, "the outage is noticed")
            await asyncio.to_thread(api.server.accept)
            found = await until(api, lambda status: status["generation"] == 2, "what else is new")
            assert (found["conditions"][0]["status"] == "False") is told

    asyncio.run(story())
