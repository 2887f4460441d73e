"""Ports of egress IPs behind an API server: asked for in a node's report, given in the allocations, given back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from routerd.model import (
    GATEWAY_HEARTBEAT,
    Allocations,
    AppliedTable,
    BindingTable,
    Heartbeat,
    NodeReport,
    PortAsk,
    PortBlock,
    PortReport,
    UnusedBlock,
)
from routerd.store.kubernetes import report as k8s_report
from tests.k8s.store_lab import agent_store, cluster, node, operator, policy
from tests.waiting import eventually

IP = ip_address("192.0.2.7")
ADDRESSES = (ip_address("10.0.0.11"),)


GATEWAY = {"routerd.io/egress-gateway": ""}


def objects() -> tuple[Any, ...]:
    return node("node1", labels=GATEWAY), policy("out", egressIP=str(IP))


async def until(agent: Any, holds: Callable[[Allocations], object], what: str) -> BindingTable:
    """The table that the agent sees, once `holds` is true of its allocations."""

    def wanted() -> BindingTable | None:
        allocations = agent.store.snapshot().allocations
        return allocations.bindings[0] if allocations and allocations.bindings and holds(allocations) else None

    return await eventually(wanted, what)


def says(agent: Any, *asks: PortAsk, **more: Any) -> None:
    heartbeat = Heartbeat(GATEWAY_HEARTBEAT)
    agent.store.write_node_report(NodeReport("node1", ADDRESSES, heartbeat=heartbeat, ports=PortReport(asks, **more)))
    agent.store.beat()


def test_ports_are_given_on_ask_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ask waits for no period."""

    async def story() -> None:
        async with cluster(*objects()) as api, operator(api), agent_store(api) as agent:
            says(agent)
            await until(agent, lambda found: found.groups[0].gateways, "a group")
            monkeypatch.setattr(k8s_report, "PERIOD", 3600.0)
            await eventually(lambda: agent.store._reporter.writes, "the first report")
            says(agent, PortAsk(1))
            table = await until(agent, lambda found: found.bindings[0].blocks(), "the first set")
            assert table.blocks() == (PortBlock(1024, 1024, 1),)
            says(agent, PortAsk(1, 3000))
            await until(agent, lambda found: len(found.bindings[0].blocks(1)) == 2, "more")
            says(agent)
            table = await until(agent, lambda found: found.bindings[0].returning, "it is asked back")
            unused = [UnusedBlock(IP, each.first, each.size, table.version) for each in table.blocks(1)]
            says(agent, unused=tuple(unused))
            table = await until(agent, lambda found: not found.bindings[0].blocks(), "it is nobody's")
            assert (table.awaited, table.told) == (table.version, (1,))
            says(agent, applied=(AppliedTable(IP, table.version),))
            raw = "/apis/routerd.io/v1alpha1/routerdnodes/node1"

            async def is_confirmed() -> bool:
                status = (await api.get(raw))["status"]
                return bool(status["portsApplied"] == [{"egressIP": str(IP), "version": table.version}])

            await eventually(is_confirmed, "the confirmation is in the API server, schema and all")

    asyncio.run(story())


def users(allocations: Allocations) -> dict[tuple[str, int], str]:
    """By egress IP and granule: the node that has it."""
    names = {each.number: each.node for each in allocations.numbers}
    return {
        (str(table.egress_ip), first): names[block.node]
        for table in allocations.bindings
        for block in table.blocks()
        for first in range(block.first, block.last, 64)
    }


async def asks(api: Any, name: str, rng: random.Random) -> None:
    """As that node's agent would write it."""
    path = f"/apis/routerd.io/v1alpha1/routerdnodes/{name}"
    found = [{"group": group, "ports": rng.choice([0, 0, 2000])} for group in (1, 2) if rng.random() < 0.7]
    await api.client.patch(f"{path}/status", {"status": {"addresses": [], "portAsks": found}})


def test_operators_that_end_at_any_moment_give_no_port_twice() -> None:
    """Each begins where the last one left, in the middle of whatever write: nothing moves, and at last all is given."""
    names = [f"node{number}" for number in range(1, 7)]
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)

    async def story() -> None:
        reports = [{"apiVersion": "routerd.io/v1alpha1", "kind": "RouterdNode", "metadata": {"name": n}} for n in names]
        both = (policy("out", egressIP=str(IP)), policy("second", egressIPs=["192.0.2.8", "192.0.2.9"]))
        nodes = (node(name, labels=GATEWAY) for name in names)
        async with cluster(*nodes, *both, *reports) as api, agent_store(api) as agent:
            before: dict[tuple[str, int], str] = {}
            for turn in range(8):
                async with operator(api, f"operator-{turn}"):
                    for name in rng.sample(names, 3):
                        await asks(api, name, rng)
                    await asyncio.sleep(rng.uniform(0, 0.6))
                now = users(agent.store.snapshot().allocations or Allocations())
                moved = {key for key in before.keys() & now.keys() if before[key] != now[key]}
                assert not moved, f"seed {seed}: {moved}"
                before = now
            async with operator(api, "the-last"):
                for name in names:
                    path = f"/apis/routerd.io/v1alpha1/routerdnodes/{name}/status"
                    wanted = [{"group": 1, "ports": 0}, {"group": 2, "ports": 0}]
                    await api.client.patch(path, {"status": {"addresses": [], "portAsks": wanted}})

                def all_have() -> bool:
                    now = users(agent.store.snapshot().allocations or Allocations())
                    first = {name for (address, _), name in now.items() if address == str(IP)}
                    second = {name for (address, _), name in now.items() if address != str(IP)}
                    return first == second == set(names)

                await eventually(all_have, f"seed {seed}: every node has ports of both groups")
                now = users(agent.store.snapshot().allocations or Allocations())
                assert not {key for key in before.keys() & now.keys() if before[key] != now[key]}, f"seed {seed}"

    asyncio.run(story())
