"""Operators in front of an API server, asked over HTTP what a kubelet and Prometheus ask."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from routerd.config import Config, OperatorConfig, StoreConfig
from routerd.operator.leader import candidate
from tests.k8s.store_lab import Cluster, bgp_config, cluster, node, service
from tests.models.web import answer, free_port, ok

ACTIVE = "routerd_operator_active 1.0"


@asynccontextmanager
async def candidates(api: Cluster, directory: Path, count: int) -> AsyncIterator[list[int]]:
    """So many operators, each with a directory of its own there; gives their ports."""
    ports, tasks = [free_port() for _ in range(count)], []
    store = StoreConfig(kind="kubernetes", kubeconfig=Path(api.server.kubeconfig))
    for port in ports:
        settings = OperatorConfig(
            lease_duration=3, lease_renew_deadline=2, lease_retry=1, metrics_listen=(ip_address("127.0.0.1"), port)
        )
        config = Config("a", store, operator=settings, run_dir=directory / str(port))
        tasks.append(asyncio.create_task(candidate(config)))
    try:
        yield ports
        assert not [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def numbers(port: int, *wanted: str) -> dict[str, float]:
    """The samples once these lines are among them."""
    text = await answer(port, "/metrics", lambda code, text: set(wanted) <= set(text.splitlines()))
    return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)}


def test_the_active_one_tells_what_it_does_and_the_one_that_waits_is_ready(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api, candidates(api, tmp_path, 2) as ports:
            for port in ports:
                assert await answer(port, "/readyz", ok) == "ready\n"
            used = 'routerd_operator_pool_addresses{pool="default",state="used"} 1.0'
            wrote = "routerd_operator_status_writes_total 1.0"
            one = await first_to_lead(ports)
            other = next(port for port in ports if port != one)
            found = await numbers(one, ACTIVE, used, wrote)
            assert found["routerd_operator_generation"] == 1
            assert found["routerd_operator_decision_duration_seconds_count"] >= 1
            transitions = 'routerd_operator_lease_transitions_total{{change="{}"}}'.format
            assert found[transitions("acquired")] - found[transitions("lost")] == 1
            assert found['routerd_store_responses_total{code="200",method="PATCH"}'] >= 1
            assert found['routerd_store_lists_total{resource="services"}'] == 1
            waits = await numbers(other, "routerd_operator_active 0.0", "routerd_ready 1.0")
            assert waits[transitions("acquired")] - waits[transitions("lost")] == 0
            assert not [name for name in waits if name.startswith("routerd_operator_pool_addresses")]

    asyncio.run(story())


async def first_to_lead(ports: list[int]) -> int:
    waiting = {asyncio.create_task(numbers(port, ACTIVE)): port for port in ports}
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    return waiting[done.pop()]


def test_without_the_api_server_an_operator_lives_and_loses_the_lease(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api, candidates(api, tmp_path, 1) as (port,):
            before = await numbers(port, ACTIVE, "routerd_operator_status_writes_total 1.0")
            await asyncio.to_thread(api.server.refuse)
            lost = 'routerd_operator_lease_transitions_total{change="lost"} 1.0'
            found = await numbers(port, lost, "routerd_operator_active 0.0")
            assert found['routerd_store_stale_seconds{resource="services"}'] > 0
            assert found['routerd_store_responses_total{code="none",method="GET"}'] > 0
            assert await answer(port, "/healthz", ok) == "alive\n"
            assert await answer(port, "/readyz", ok) == "ready\n"
            await asyncio.to_thread(api.server.accept)
            again = 'routerd_operator_lease_transitions_total{change="acquired"} 2.0'
            after = await numbers(port, ACTIVE, again)
            count = "routerd_operator_decision_duration_seconds_count"
            assert after[count] >= before[count]  # counters go on over a change of the active one
            assert after["routerd_operator_status_writes_total"] >= 1

    asyncio.run(story())


def test_an_operator_that_starts_without_the_api_server_lives_and_is_not_ready(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api:
            await asyncio.to_thread(api.server.refuse)
            async with candidates(api, tmp_path, 1) as (port,):
                assert await answer(port, "/healthz", ok) == "alive\n"
                why = await answer(port, "/readyz", lambda code, text: code == 503)
                assert why.startswith("not read from the store yet: nodes, services")
                await asyncio.to_thread(api.server.accept)
                await answer(port, "/readyz", ok)

    asyncio.run(story())
