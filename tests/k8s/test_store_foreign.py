"""Kinds of others that are read: with their CRDs, without them, and what cannot be done with an object."""

import asyncio
from ipaddress import ip_address, ip_network

from routerd.store.kubernetes.store import KubernetesStore
from tests.k8s.deployment import foreign
from tests.k8s.store_lab import (
    Cluster,
    Json,
    agent_store,
    bgp_config,
    cluster,
    ips,
    names,
    node,
    operator,
    pool,
    service,
)
from tests.waiting import eventually

WEB = "/api/v1/namespaces/default/services/web"


def metallb_pool(name: str, *addresses: str, namespace: str = "default", **spec: object) -> Json:
    meta = {"name": name, "namespace": namespace}
    body = {"addresses": list(addresses), **spec}
    return {"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": meta, "spec": body}


async def define(api: Cluster) -> None:
    await api.apply(*foreign())
    await api.serves(*foreign())


def pools(store: KubernetesStore) -> list[str] | None:
    return names(store.snapshot().pools)


def test_pools_of_metallb_come_change_and_go() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), pool("ours", "198.51.100.0/28")) as api:
            await define(api)
            await api.apply(metallb_pool("theirs", "203.0.113.0/28"))
            async with agent_store(api) as agent:
                await agent.synced()
                assert (pools(agent.store), agent.store.snapshot().refusals) == (["default", "ours", "theirs"], ())
                wider = ip_network("203.0.113.0/24")
                await api.apply(metallb_pool("theirs", "203.0.113.0/24", autoAssign=False))
                await agent.until(lambda store: wider in (store.snapshot().pools or {})["theirs"].blocks, "the change")
                await api.delete(metallb_pool("theirs"))
                await agent.until(lambda store: pools(store) == ["default", "ours"], "it is gone")

    asyncio.run(story())


def test_without_metallb_its_pools_are_none_and_they_are_found_when_it_comes() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api, agent_store(api) as agent:
            await agent.synced()
            assert (pools(agent.store), agent.store.snapshot().refusals) == (["default"], ())
            await define(api)
            await api.apply(metallb_pool("theirs", "203.0.113.0/28"))
            await agent.until(lambda store: pools(store) == ["default", "theirs"], "the pool")

    asyncio.run(story())


def test_a_service_gets_an_address_of_metallb_s_pool_and_its_status_stays_metallb_s() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api:
            await define(api)
            await api.apply(metallb_pool("theirs", "203.0.113.0/28"), service("web"))
            path = f"{await api.path(metallb_pool('theirs'))}/theirs"
            before = await api.get(path)
            async with operator(api) as one:
                await eventually(lambda: one.publisher and one.publisher.writes, "the status of the service")
                (address,) = ips(await api.get(WEB))
                assert ip_address(address) in ip_network("203.0.113.0/28")
                assert await api.get(path) == before

    asyncio.run(story())


def test_a_pool_that_is_refused_says_so_in_an_event_of_its_own() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api:
            await define(api)
            await api.apply(
                metallb_pool("a", "203.0.113.0/28", serviceAllocation={"priority": -1}),
                metallb_pool("b", "198.51.100.0/24"), metallb_pool("b", "192.0.2.0/24", namespace="routerd"),
            )  # fmt: skip
            async with operator(api):
                about = {"a": "InvalidPriority", "b": "Duplicate"}
                assert {each["involvedObject"]["name"]: each["reason"] for each in await events(api, 2)} == about
                for each in await events(api, 2):
                    found = each["involvedObject"]
                    assert (found["kind"], found["apiVersion"]) == ("IPAddressPool", "metallb.io/v1beta1")
                    assert found["uid"] and found["namespace"] == each["metadata"]["namespace"]

    asyncio.run(story())


async def events(api: Cluster, count: int) -> list[Json]:
    """Waits for so many that are about pools."""

    async def enough() -> list[Json]:
        items = (await api.get("/api/v1/events"))["items"]
        found = [each for each in items if each["involvedObject"]["kind"] == "IPAddressPool"]
        return found if len(found) >= count else []

    return await eventually(enough, f"{count} events about pools")
