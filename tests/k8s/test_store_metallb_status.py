"""Objects by which MetalLB shows how things stand: where their CRDs are, written on change, gone with what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from routerd.store.kubernetes.status import shown
from routerd.store.kubernetes.status.metallb import owner_of, service_statuses
from tests.k8s.deployment import foreign
from tests.k8s.store_lab import Cluster, Json, agent_store, bgp_config, cluster, config_map, namespace, node, operator
from tests.waiting import eventually

GROUP = "/apis/metallb.io/v1beta1/namespaces/routerd"
STATUSES = f"{GROUP}/servicebgpstatuses"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "PERIOD", 0.02)


async def define(api: Cluster) -> None:
    definitions = [each for each in foreign() if each["spec"]["group"] == "metallb.io"]
    await api.apply(*definitions)
    await api.serves(*definitions)


async def said(api: Cluster) -> dict[str, list[str]]:
    """Peers by Service and node."""
    found = [each.get("status") or {} for each in (await api.get(STATUSES))["items"]]
    return {f"{each['serviceNamespace']}/{each['serviceName']} {each['node']}": each["peers"] for each in found if each}


async def until(api: Cluster, expected: Mapping[str, Sequence[str]]) -> None:
    async def is_said() -> bool:
        return await said(api) == expected

    await eventually(is_said, f"{expected} is shown")


def test_peers_of_services_are_shown_by_each_node_and_go_with_them() -> None:
    async def story() -> None:
        async with cluster(node("node1"), node("node2", "10.0.0.12"), bgp_config()) as api:
            await define(api)
            async with agent_store(api) as one, agent_store(api, "node2") as other:
                other.store.report_services(lambda: {"default/web": ("tor",)})
                one.store.report_services(lambda: {"default/web": ("tor", "tor-b"), "default/mail": ("tor",)})
                await until(
                    api,
                    {
                        "default/web node1": ["tor", "tor-b"],
                        "default/mail node1": ["tor"],
                        "default/web node2": ["tor"],
                    },
                )
                one.store.report_services(lambda: {"default/web": ("tor-b",)})
                await until(api, {"default/web node1": ["tor-b"], "default/web node2": ["tor"]})
                one.store.report_services(lambda: None)  # it is not known: what is said stays
                other.store.report_services(dict)
                await until(api, {"default/web node1": ["tor-b"]})

    asyncio.run(story())


def test_an_agent_that_starts_again_writes_nothing_that_is_there_and_removes_what_is_not_so() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api:
            await define(api)
            async with agent_store(api) as agent:
                agent.store.report_services(lambda: {"default/web": ("tor",), "default/mail": ("tor",)})
                await until(api, {"default/web node1": ["tor"], "default/mail node1": ["tor"]})
            async with agent_store(api) as agent:
                agent.store.report_services(lambda: {"default/web": ("tor",)})
                await until(api, {"default/web node1": ["tor"]})
                assert (agent.client.requests["POST"], agent.client.requests["DELETE"]) == (0, 1)

    asyncio.run(story())


def test_without_the_kind_nothing_is_written_and_it_is_found_when_it_comes() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api, agent_store(api) as agent:
            agent.store.report_services(lambda: {"default/web": ("tor",)})
            await eventually(lambda: agent.client.responses["GET", 404] > 2, "it was looked for")
            assert agent.client.requests["POST"] == 0
            await define(api)
            await until(api, {"default/web node1": ["tor"]})

    asyncio.run(story())


def test_a_node_writes_few_objects_after_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"default/web-{number}": ("tor",) for number in range(20)}

    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api:
            await define(api)
            async with agent_store(api) as agent:
                looks = 0

                def told() -> Mapping[str, Sequence[str]]:
                    nonlocal looks
                    assert agent.client.requests["POST"] <= looks * shown.BATCH
                    looks += 1
                    return many

                agent.store.report_services(told)
                await until(api, {f"{key} node1": ["tor"] for key in many})
                assert looks >= len(many) // shown.BATCH

    asyncio.run(story())


def service_status(place: str, name: str, **labels: str) -> Json:
    """As MetalLB's speaker makes it, of the same node and Service."""
    of = {"metallb.io/node": "node1", "metallb.io/service-name": "web", "metallb.io/service-namespace": "default"}
    meta = {"name": name, "namespace": place, "labels": {**of, **labels}}
    status = {"node": "node1", "serviceName": "web", "serviceNamespace": "default", "peers": ["theirs"]}
    return {"apiVersion": "metallb.io/v1beta1", "kind": "ServiceBGPStatus", "metadata": meta, "status": status}


def configuration_state(place: str, name: str) -> Json:
    meta = {"name": name, "namespace": place, "labels": {"metallb.io/component-type": "controller"}}
    status = {"result": "Invalid", "errorSummary": "theirs", "lastError": "theirs"}
    return {"apiVersion": "metallb.io/v1beta1", "kind": "ConfigurationState", "metadata": meta, "status": status}


def test_objects_of_a_metallb_beside_are_left_alone() -> None:
    """Whatever their namespace, and also one that has the name of ours."""
    (own,) = service_statuses("node1", {"default/web": ()})
    theirs = [
        service_status("metallb-system", "bgp-x7k2p"),
        service_status("routerd", "bgp-x7k2p"),
        service_status("routerd", "bgp-of-another", **{"routerd.io/status-of": owner_of("node2")}),
        service_status("metallb-system", own),
        configuration_state("metallb-system", "controller"),
        configuration_state("routerd", "controller"),
        configuration_state("routerd", "routerd-operator"),
    ]

    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api:
            await define(api)
            await api.apply(namespace("metallb-system"), *theirs)
            paths = [f"{await api.path(each)}/{each['metadata']['name']}" for each in theirs]
            before = [await api.get(path) for path in paths]
            async with agent_store(api) as agent, operator(api) as one:
                agent.store.report_services(lambda: {"default/web": ("tor",), "default/mail": ("tor",)})

                async def is_shown() -> bool:
                    found = (await api.get(STATUSES))["items"]
                    return [(each.get("status") or {}).get("peers") for each in found].count(["tor"]) == 2

                await eventually(is_shown, "ours are there")
                await eventually(lambda: one.client.responses["POST", 409], "its name is somebody else's")
                agent.store.report_services(dict)
                await eventually(lambda: agent.client.responses["DELETE", 200] == 2, "ours are gone")
            assert [await api.get(path) for path in paths] == before

    asyncio.run(story())


def test_the_state_of_the_configuration_is_shown_by_the_operator() -> None:
    async def state(api: Cluster) -> Json:
        return dict((await api.find(f"{GROUP}/configurationstates/routerd-operator")).get("status") or {})

    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api:
            await define(api)
            async with operator(api):

                async def is_valid() -> bool:
                    return await state(api) == {"result": "Valid", "errorSummary": "", "lastError": ""}

                async def is_invalid() -> bool:
                    found = await state(api)
                    return found.get("result") == "Invalid" and "my-asn" in found["lastError"] == found["errorSummary"]

                await eventually(is_valid, "all is well")
                await api.apply(config_map("kube-system", "bgp-config", {"config.yaml": "peers: [{my-asn: x}]"}))
                await eventually(is_invalid, "the mistake is shown")
                await api.apply(bgp_config())
                await eventually(is_valid, "it is mended")

    asyncio.run(story())
