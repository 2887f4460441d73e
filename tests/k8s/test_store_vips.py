"""A policy by reference to a Service: the pods of its selector, whichever of the two objects changes."""

import asyncio

from routerd.store.kubernetes.store import KubernetesStore
from tests.k8s.store_lab import Cluster, Json, agent_store, bgp_config, cluster, node, operator, policy, pool, service
from tests.waiting import eventually

STATUS = "/apis/routerd.io/v1alpha1/egresspolicies/out"


def by_service(name: str = "web") -> Json:
    made = policy("out", service={"name": name})
    del made["spec"]["selectors"]
    return made


def selected(store: KubernetesStore) -> list[tuple[tuple[str, str], ...]]:
    found = (store.snapshot().policies or {})["EgressPolicy/out"].selections
    return [each.pods.match_labels for each in found if each.pods is not None]


def test_an_agent_selects_what_the_service_selects() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web"), by_service()) as api, agent_store(api) as agent:
            await agent.synced()
            assert selected(agent.store) == [(("app", "web"),)]
            await api.apply(service("web", selector={"app": "v2"}))
            await agent.until(lambda store: selected(store) == [(("app", "v2"),)], "the Service's new selector")
            await api.delete(service("web"))
            await agent.until(lambda store: selected(store) == [], "nobody is selected")
            await api.apply(service("web"), service("shop"), by_service("shop"))
            await agent.until(lambda store: selected(store) == [(("app", "shop"),)], "the other Service")

    asyncio.run(story())


async def said(api: Cluster, reason: str) -> Json:
    """The policy's status, once its condition Allocated has that reason."""

    async def found() -> Json | None:
        status: Json = (await api.get(STATUS)).get("status", {})
        given = {each["type"]: each["reason"] for each in status.get("conditions", ())}
        return status if given.get("Allocated") == reason else None

    return await eventually(found, f"Allocated: {reason}")


def test_the_status_has_the_vip_or_says_why_not() -> None:
    async def story() -> None:
        vips = pool("vips", "198.51.100.0/28", uses=("loadbalancer",))
        async with cluster(node("node1"), vips, by_service()) as api, operator(api):
            await said(api, "NoService")
            await api.apply(service("web"))
            assert (await said(api, "Allocated"))["egressIP"] == "198.51.100.0"
            await api.apply(service("web", port=40000))
            await said(api, "ServicePortInUpperHalf")

    asyncio.run(story())
