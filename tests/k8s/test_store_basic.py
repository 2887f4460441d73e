"""What a cluster holds is what the snapshot says; what changes there changes here."""

import asyncio
from ipaddress import ip_address

from routerd.model import NodeReport
from tests.k8s.store_lab import (
    agent_store,
    bgp_config,
    cluster,
    node,
    pod,
    policy,
    pool,
    service,
)


def test_a_snapshot_of_everything_and_of_own_pods_only() -> None:
    async def story() -> None:
        objects = (
            node("node1"), bgp_config(), service("web"), pod("mine"), pod("other", "node2", "10.244.2.5"),
            pool("egress", "10.168.61.0/28", uses=("egress",)), policy("team", pool="egress"),
        )  # fmt: skip
        async with cluster(*objects) as api, agent_store(api) as agent:
            await agent.synced()
            seen = agent.store.snapshot()
            assert seen.nodes is not None and list(seen.nodes) == ["node1"]
            assert seen.pods is not None and list(seen.pods) == ["default/mine"]
            assert seen.services is not None and "default/web" in seen.services
            assert seen.bgp is not None and [str(peer.address) for peer in seen.bgp.peers] == ["10.0.0.1"]
            assert seen.pools is not None and sorted(seen.pools) == ["default", "egress"]
            assert seen.policies is not None and list(seen.policies) == ["EgressPolicy/team"]
            assert seen.allocations is None
            assert seen.refusals == ()

    asyncio.run(story())


def test_changes_come_within_a_moment_and_only_once() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web")) as api, agent_store(api) as agent:
            await agent.synced()
            await api.apply(service("api"))
            await agent.until(lambda store: "default/api" in (store.snapshot().services or {}), "the new service")
            kept = (agent.store.snapshot().services or {})["default/web"]
            await api.delete(service("api"))
            await agent.until(lambda store: "default/api" not in (store.snapshot().services or {}), "it is gone")
            assert (agent.store.snapshot().services or {})["default/web"] is kept  # parsed once

    asyncio.run(story())


def test_a_node_reports_its_addresses_once() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            await agent.synced()
            report = NodeReport("node1", (ip_address("10.0.0.11"),))
            agent.store.write_node_report(report)
            reporter = agent.store._reporter
            assert reporter is not None
            await agent.until(lambda store: reporter.writes == 1, "the report is written")
            agent.store.write_node_report(report)
            found = await api.get("/apis/routerd.io/v1alpha1/routerdnodes/node1")
            assert found["status"]["addresses"] == ["10.0.0.11"]
            agent.store.write_node_report(NodeReport("node1", ()))
            await agent.until(lambda store: reporter.writes == 2, "the other report is written")

    asyncio.run(story())
