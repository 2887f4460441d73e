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
    cilium_pool,
    cluster,
    ips,
    metallb_pool,
    names,
    node,
    operator,
    pool,
    service,
)
from tests.waiting import eventually

WEB = "/api/v1/namespaces/default/services/web"


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


def test_an_advertisement_of_metallb_that_cannot_be_read_opens_no_pool() -> None:
    wrong = {"apiVersion": "metallb.io/v1beta1", "kind": "BGPAdvertisement"}
    wrong |= {"metadata": {"name": "a", "namespace": "default"}, "spec": {"communities": ["1:2:3:4"]}}

    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api:
            await define(api)
            await api.apply(metallb_pool("theirs", "203.0.113.0/28"), wrong)
            async with agent_store(api) as agent:
                await agent.synced()
                found = (agent.store.snapshot().pools or {})["theirs"]
                assert (found.labels, found.advertisements) == (None, ())

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


def test_a_service_gets_an_address_of_metallb_s_pool_which_shows_its_counts() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api:
            await define(api)
            await api.apply(metallb_pool("theirs", "203.0.113.0/28", "2001:db8::/120"), service("web"))
            path = f"{await api.path(metallb_pool('theirs'))}/theirs"
            async with operator(api):
                found = await status_with(api, path, "assignedIPv4")
                assert found == {"assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 15, "availableIPv6": 256}
                (address,) = ips(await api.get(WEB))
                assert ip_address(address) in ip_network("203.0.113.0/28")

    asyncio.run(story())


def test_pools_of_cilium_show_counts_and_conflicts_in_its_words() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web")) as api:
            await define(api)
            first, second = cilium_pool("a", "203.0.113.0/28"), cilium_pool("b", "203.0.113.8/29")
            path = await api.path(first)
            await api.apply(first)
            await api.apply(second)
            async with operator(api):
                assert await conditions(api, f"{path}/a", 3) == {
                    "cilium.io/IPsTotal": ("Unknown", "noreason", "16"),
                    "cilium.io/IPsAvailable": ("Unknown", "noreason", "15"),
                    "cilium.io/IPsUsed": ("Unknown", "noreason", "1"),
                }
                (conflict,) = (await conditions(api, f"{path}/b", 1)).items()
                assert conflict[0] == "cilium.io/PoolConflict" and conflict[1][:2] == ("True", "cidr_overlap")
                assert "203.0.113.8/29 overlaps with 203.0.113.0/28 of pool a" in conflict[1][2]
                await api.apply(cilium_pool("b", "198.51.100.0/29"))
                resolved = await conditions(api, f"{path}/b", 4)
                assert resolved["cilium.io/PoolConflict"] == ("False", "resolved", "")

    asyncio.run(story())


def test_where_another_controller_writes_the_status_of_its_pools_it_has_the_last_word() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web")) as api:
            await define(api)
            await api.apply(cilium_pool("a", "203.0.113.0/28"))
            pools = await api.path(cilium_pool("a"))
            path = f"{pools}/a"
            async with operator(api) as one:
                await conditions(api, path, 3)
                theirs = [{"type": "cilium.io/IPsUsed", "status": "Unknown", "reason": "noreason", "message": "7"}]
                await api.client.patch(f"{path}/status", {"status": {"conditions": theirs}})
                await api.apply(cilium_pool("sign", "198.51.100.0/28"))
                await conditions(api, f"{pools}/sign", 3)
                assert list((await conditions(api, path, 1)).values()) == [("Unknown", "noreason", "7")]
                assert one.publisher is not None and one.publisher.refusals == ()
                await api.apply(service("more", 81))
                more = await conditions(api, path, 3)
                assert more["cilium.io/IPsUsed"] == ("Unknown", "noreason", "2")

    asyncio.run(story())


async def status_with(api: Cluster, path: str, key: str) -> Json:
    async def found() -> Json:
        status = dict((await api.get(path)).get("status") or {})
        return status if key in status else {}

    return await eventually(found, f"{path} shows {key}")


async def conditions(api: Cluster, path: str, count: int) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message by type, once there are so many."""

    async def found() -> list[Json]:
        shown = list(((await api.get(path)).get("status") or {}).get("conditions") or ())
        return shown if len(shown) == count else []

    said = await eventually(found, f"{path} shows {count} conditions")
    return {each["type"]: (each["status"], each["reason"], each["message"]) for each in said}


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
