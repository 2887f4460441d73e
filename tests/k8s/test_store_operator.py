"""What the operator writes: VIPs, groups, conditions, events; and who of two operators does."""

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from routerd.cluster.agents import Patience
from routerd.model import GATEWAY_HEARTBEAT, Heartbeat, NodeReport
from routerd.operator import loop
from routerd.serve.api import RequestRefused
from routerd.store.kubernetes.client import Client
from routerd.store.kubernetes.lease import LeaseTimes
from routerd.store.kubernetes.ledger import take
from tests.k8s.store_lab import (
    Cluster,
    Json,
    Running,
    agent_store,
    bgp_config,
    cluster,
    ips,
    node,
    node_report,
    operator,
    policy,
    pool,
    service,
)
from tests.waiting import eventually

WEB = "/api/v1/namespaces/default/services/web"
TEAM = "/apis/routerd.io/v1alpha1/egresspolicies/team"
POLICY = "/apis/routerd.io/v1alpha1/egresspolicies/bank"


async def until(api: Cluster, path: str, holds: Callable[[Json], object], what: str) -> Json:
    """Reads an object again and again until it is there and as wanted."""

    async def wanted() -> Json | None:
        found = await api.find(path)
        return found if holds(found) else None

    return await eventually(wanted, what)


def test_a_service_gets_its_vip_and_agents_the_allocations() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api, agent_store(api) as agent:
            async with operator(api) as one:
                found = await until(api, WEB, ips, "a VIP")
                assert ips(found)[0].startswith("192.0.2.")
                await agent.until(lambda store: store.snapshot().allocations, "the allocations")
                published = agent.store.snapshot().allocations
                assert published is not None
                assert [str(each) for each in published.services[0].addresses] == ips(found)
                await api.apply(service("second", 81))
                second = await until(api, WEB.replace("web", "second"), ips, "another VIP")
                assert ips(second) != ips(found)
                publisher = one.publisher
                assert publisher is not None
                await eventually(lambda: publisher.writes == 2, "both writes are answered")
            lease = await api.get("/apis/coordination.k8s.io/v1/namespaces/routerd/leases/routerd-operator")
            assert lease["spec"]["holderIdentity"] == ""

    asyncio.run(story())


def test_an_address_in_the_status_is_adopted_first() -> None:
    async def story() -> None:
        kept = service("web") | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.77"}]}}}
        async with cluster(node("node1"), bgp_config(), service("early"), kept) as api, operator(api):
            await until(api, WEB.replace("web", "early"), ips, "the other one has a VIP")
            assert ips(await api.get(WEB)) == ["192.0.2.77"]

    asyncio.run(story())


def test_services_of_others_are_left_alone() -> None:
    async def story() -> None:
        status = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}
        host = {"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.net"}]}}}
        other_class = service("classed", loadBalancerClass="example.com/lb")
        objects = (service("foreign") | status, service("cloud", 81) | host, other_class, service("web", 82))
        async with cluster(node("node1"), bgp_config(), *objects) as api, operator(api):
            await until(api, WEB, ips, "ours has a VIP")
            assert ips(await api.get(WEB.replace("web", "foreign"))) == ["203.0.113.9"]
            assert "status" not in other_class and not ips(await api.get(WEB.replace("web", "classed")))
            cloud = await api.get(WEB.replace("web", "cloud"))
            assert cloud["status"]["loadBalancer"]["ingress"] == [{"hostname": "lb.example.net"}]
            events = await events_with(api, "StatusOfOther", 2)
            assert {each["involvedObject"]["name"] for each in events} == {"foreign", "cloud"}

    asyncio.run(story())


async def events_with(api: Cluster, reason: str, count: int = 1) -> list[Json]:
    found: list[Json] = []

    def enough(answer: Json) -> bool:
        found[:] = [each for each in answer["items"] if each["reason"] == reason]
        return len(found) >= count

    await until(api, "/api/v1/events", enough, f"{count} events {reason}")
    return found


def test_policies_and_pools_show_their_conditions() -> None:
    async def story() -> None:
        objects = (
            node("node1", labels={"routerd.io/egress-gateway": ""}), pool("egress", "10.168.61.0/28"),
            policy("team", pool="egress"), policy("lost", pool="nowhere"), pool("late", "10.168.61.8/29"),
        )  # fmt: skip
        async with cluster(*objects) as api, agent_store(api) as agent, operator(api):
            report = NodeReport("node1", (ip_address("10.0.0.11"),), heartbeat=Heartbeat(GATEWAY_HEARTBEAT))
            agent.store.write_node_report(report)
            path = "/apis/routerd.io/v1alpha1/egresspolicies/team"
            team = await until(api, path, lambda found: is_true(found, "Ready"), "the policy is ready")
            assert team["status"]["egressIP"].startswith("10.168.61.")
            assert team["status"]["gateways"] == [{"node": "node1"}]
            assert team["status"]["observedGeneration"] == 1
            lost = await until(api, path.replace("team", "lost"), lambda found: "status" in found, "the other one")
            assert not is_true(lost, "Allocated") and reason(lost, "Allocated") == reason(lost, "Ready")
            pools = "/apis/routerd.io/v1alpha1/addresspools/"
            late = await until(api, f"{pools}late", lambda found: is_true(found, "Conflicting"), "the later pool")
            assert not is_true(late, "Ready")
            first = await until(api, f"{pools}egress", lambda found: is_true(found, "Ready"), "the earlier pool")
            assert (first["status"]["total"], first["status"]["used"]) == (16, 1)
            await events_with(api, reason(lost, "Ready"))

    asyncio.run(story())


def test_a_gateway_whose_lease_is_not_renewed_is_replaced_and_its_report_does_not_say_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its Node is ready all the time. The agent of the other one beats."""
    monkeypatch.setattr(loop, "LOOK", 0.1)
    label = {"routerd.io/egress-gateway": ""}
    nodes = [node("gw1", labels=label), node("gw2", "10.0.0.12", labels=label)]
    reports = [node_report("gw1"), node_report("gw2")]

    async def story() -> None:
        objects = (*nodes, *reports, pool("egress", "10.168.61.0/28"), policy("team", pool="egress"))
        async with cluster(*objects) as api, agent_store(api, "gw1") as one, agent_store(api, "gw2") as two:
            for agent in (one, two):
                agent.store.write_node_report(NodeReport(agent.node, heartbeat=Heartbeat(GATEWAY_HEARTBEAT)))

            async def beats(*agents: Running, gateways: int) -> Json | None:
                for agent in agents:
                    agent.store.beat()
                found = await api.find(TEAM)
                names = [each["node"] for each in found.get("status", {}).get("gateways", [])]
                return found if len(names) == gateways else None

            async with operator(api, patience=Patience(gateway=3.0)):
                await eventually(lambda: beats(one, two, gateways=2), "both are gateways")
                await eventually(lambda: beats(two, gateways=1), "one is left")
                assert (await api.get(TEAM))["status"]["gateways"][0]["node"] == "gw2"
                (event,) = await events_with(api, "AgentAbsent")
                involved = event["involvedObject"]
                assert (involved["kind"], involved["name"]) == ("Node", "gw1")
                path = "/apis/routerd.io/v1alpha1/routerdnodes/gw1"
                found = await until(api, path, lambda it: of(it, "Ready").get("status") == "Unknown", "it is called so")
                assert of(found, "Ready")["message"].startswith("no word of the agent since ")
                await eventually(lambda: beats(one, two, gateways=2), "it is a gateway again")

    asyncio.run(story())


def test_a_node_is_opened_to_pods_once_its_own_agent_is_ready() -> None:
    def waiting(name: str) -> Json:
        ours, other = ({"key": key, "effect": "NoExecute"} for key in ("routerd.io/agent-not-ready", "team"))
        return node(name) | {"spec": {"taints": [{**ours, "effect": "NoSchedule"}, other, ours]}}

    def said(**statuses: str) -> Json:
        named = {"reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        return {"conditions": [{"type": kind, "status": status, **named} for kind, status in statuses.items()]}

    def taints(found: Json) -> list[str]:
        return [each["key"] for each in found["spec"].get("taints", [])]

    async def story() -> None:
        former = node_report("anew")
        former["status"] |= {**said(StoreSynced="True", DatapathAttached="True"), "nodeUID": "of-another-machine"}
        nodes = [waiting(name) for name in ("anew", "node1", "silent")]
        async with cluster(*nodes, former, bgp_config()) as api, agent_store(api) as agent, operator(api):
            agent.store.report_health(lambda: said(StoreSynced="True", DatapathAttached="False"))
            agent.store.write_node_report(NodeReport("node1", (ip_address("10.0.0.11"),)))
            path = "/apis/routerd.io/v1alpha1/routerdnodes/node1"
            await until(api, path, lambda it: of(it, "DatapathAttached"), "it has reported")
            await api.apply(service("web"))
            await until(api, WEB, ips, "a VIP")
            assert len(taints(await api.get("/api/v1/nodes/node1"))) == 3
            agent.store.report_health(lambda: said(StoreSynced="True", DatapathAttached="True"))
            await until(api, "/api/v1/nodes/node1", lambda it: taints(it) == ["team"], "pods may come")
            assert [len(taints(await api.get(f"/api/v1/nodes/{name}"))) for name in ("anew", "silent")] == [3, 3]

    asyncio.run(story())


def test_a_node_shows_whether_its_cloud_has_addresses_for_pods() -> None:
    async def story() -> None:
        of_kubelet = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        of_another = {"type": "SufficientIP", "status": "True", "reason": "SufficientIP", "message": "node has IPs"}
        here, there = node("node1"), node("node2")
        here["status"]["conditions"], there["status"]["conditions"] = [of_kubelet], [of_another]
        async with cluster(here, there, bgp_config(), service("web")) as api, operator(api) as one:
            await until(api, WEB, ips, "a VIP")
            publisher, path = one.publisher, "/api/v1/nodes/node1"
            assert publisher is not None
            times = []
            for why in ("SubnetFull: no subnet has free addresses", "InstanceFull: it holds no more", ""):
                message = f"routerd: {why or 'pods get addresses'}"
                publisher.lacking = lambda why=why: {"node1": why}  # type: ignore[misc]
                publisher.wake()
                found = await until(
                    api, path, lambda it, says=message: of(it, "SufficientIP").get("message") == says, why
                )
                condition = of(found, "SufficientIP")
                assert (condition["status"], condition["reason"]) == (
                    ("False", "InsufficientIP") if why else ("True", "SufficientIP")
                )
                assert of_kubelet.items() <= of(found, "Ready").items()
                times.append(condition["lastTransitionTime"])
            assert times[0] == times[1]
            await eventually(lambda: publisher.writes == 4, "the VIP and all three are answered")

            async def is_written_once(name: str, port: int) -> None:
                """The VIP of another service, and nothing else, though the Node has another version."""
                found = await api.get(path)
                await api.apply({**found, "metadata": {"name": "node1", "labels": {"last": name}}})
                writes = publisher.writes
                publisher.wake()
                await api.apply(service(name, port))
                await until(api, WEB.replace("web", name), ips, "another VIP")
                await eventually(lambda: publisher.writes > writes, "its write is counted")
                assert publisher.writes == writes + 1

            await is_written_once("more", 81)
            publisher.lacking = lambda: None
            await is_written_once("most", 82)
            publisher.lacking = dict
            publisher.wake()
            found = await until(api, path, lambda it: not of(it, "SufficientIP"), "it is a node of the cloud no more")
            assert of_kubelet.items() <= of(found, "Ready").items()
            assert of_another.items() <= of(await api.get("/api/v1/nodes/node2"), "SufficientIP").items()

    asyncio.run(story())


def of(found: Json, kind: str) -> Json:
    conditions = found.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})


def is_true(found: Json, kind: str) -> bool:
    return of(found, kind).get("status") == "True"


def reason(found: Json, kind: str) -> str:
    return str(of(found, kind).get("reason"))


def test_a_quiet_cluster_is_not_written_to() -> None:
    async def story() -> None:
        objects = (node("node1"), bgp_config(), service("web"), pool("p", "10.1.0.0/28"))
        async with cluster(*objects) as api, operator(api) as one:
            await until(api, WEB, ips, "a VIP")
            await until(api, "/apis/routerd.io/v1alpha1/addresspools/p", lambda f: is_true(f, "Ready"), "a pool")
            publisher = one.publisher
            assert publisher is not None
            await eventually(lambda: publisher.writes == 2, "both writes are answered")
            before = publisher.writes, await versions(api)
            for _ in range(5):
                publisher.wake()
                one._changed()
            await api.apply(node("node2"))
            await eventually(lambda: "node2" in (one.store.snapshot().nodes or {}), "the other node")
            assert (publisher.writes, await versions(api)) == before

    asyncio.run(story())


async def versions(api: Cluster) -> list[str]:
    """The resourceVersions of everything that the operator writes, save for the Lease."""
    maps = [f"/api/v1/namespaces/routerd/configmaps/{name}" for name in ("routerd-ledger", "routerd-allocations")]
    return [(await api.get(path))["metadata"]["resourceVersion"] for path in [WEB, *maps]]


def test_a_conflict_on_every_second_write_loses_nothing() -> None:
    async def story() -> None:
        objects = [service(f"s{each}", 1000 + each) for each in range(20)]
        async with cluster(node("node1"), bgp_config(), *objects) as api:
            api.server.fault(conflict_every=2)
            async with operator(api):
                for each in range(20):
                    await until(api, WEB.replace("web", f"s{each}"), ips, "a VIP")
                api.server.heal()
                found = [ips(await api.get(WEB.replace("web", f"s{each}"))) for each in range(20)]
                assert len({addresses[0] for addresses in found}) == 20

    asyncio.run(story())


def test_the_second_operator_takes_over_and_moves_nothing() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api:
            async with operator(api, "first"):
                vip = ips(await until(api, WEB, ips, "a VIP"))
                async with operator(api, "second") as second:
                    assert second.operator is None
                    before = await versions(api)
                    await eventually(lambda: second.store.snapshot().services, "the standby is warm")
                    assert second.operator is None and await versions(api) == before
            async with operator(api, "third"):
                await api.apply(service("more", 81))
                more = await until(api, WEB.replace("web", "more"), ips, "the new one serves")
                assert ips(await api.get(WEB)) == vip != ips(more)

    asyncio.run(story())


def test_a_reservation_is_shown_and_released_by_the_active_operator_alone() -> None:
    async def story() -> None:
        bank, of_bank = policy("bank", egressIP="10.168.60.100"), pool("bank", "10.168.60.0/24", uses=("egress",))
        async with (
            cluster(node("node1"), bgp_config(), of_bank, bank) as api,
            operator(api, "first-pod_1", cooldown=3600.0) as first,
        ):
            await until(api, POLICY, lambda found: is_true(found, "Allocated"), "the address is given")
            await api.delete(bank)

            async def states() -> set[tuple[str, str, str]]:
                rows = await first.answer({"get": "ledger"})
                return {(row["address"], row["owner"], row["state"]) for row in rows.result}

            async def is_reserved() -> bool:
                return await states() == {("10.168.60.100", "EgressPolicy/bank", "reserved")}

            await eventually(is_reserved, "the address is reserved")
            async with operator(api, "second-pod_2") as second:
                await eventually(lambda: second.lease.holder, "the second has seen who is active")
                with pytest.raises(RequestRefused, match="kubectl -n routerd exec first-pod -- routerd"):
                    await second.answer({"get": "ledger"})
            (released,) = (await first.answer({"do": "release", "name": "EgressPolicy/bank"})).result
            assert (released["address"], released["state"]) == ("10.168.60.100", "cooling")
            ledger = await api.get("/api/v1/namespaces/routerd/configmaps/routerd-ledger")
            assert "reserved" not in ledger["data"]["addresses"] and "cooling" in ledger["data"]["addresses"]

    asyncio.run(story())


class Stopped:
    """A clock that can be stopped for one process, as SIGSTOP does."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


def test_a_paused_leader_that_wakes_up_writes_nothing() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api:
            client = Client(Path(api.server.kubeconfig))
            await client.open()
            try:
                former = await take(client, "routerd", 1)
                state = await asyncio.to_thread(former.read)
                async with operator(api, "second"):
                    await until(api, WEB, ips, "the second one serves")
                    before = await versions(api)
                    await late_write(former, state)
                    assert await versions(api) == before
            finally:
                await client.close()

    asyncio.run(story())


async def late_write(former: Any, state: Any) -> None:
    """What the former leader was about to write when it was paused: refused, also when it reads again."""
    from dataclasses import replace

    from routerd.cluster.ledger import difference
    from routerd.errors import StoreError
    from routerd.model import Allocations, ServiceAllocation

    changes = difference(state, replace(state, generation=99, digest="late"), 0.0)
    allocations = Allocations(99, (ServiceAllocation("default/web", "default", (ip_address("192.0.2.200"),)),))
    for attempt in (lambda: former.record(changes), lambda: former.publish(allocations)) * 2:
        try:
            await asyncio.to_thread(attempt)
        except StoreError as error:
            assert "outdated" in str(error) or "changed by someone else" in str(error)
        else:
            raise AssertionError("a late write was taken")


def test_a_leader_without_lease_stops_writing_and_another_goes_on() -> None:
    async def story() -> None:
        times = LeaseTimes(1.0, 0.6, 0.05)
        async with cluster(node("node1"), bgp_config(), service("web")) as api:
            clock = Stopped()
            async with operator(api, "first", times, clock=clock) as first:
                await until(api, WEB, ips, "a VIP")
                async with operator(api, "second", times) as second:
                    api.server.fault(broken=10**6, only=lambda asked: asked.resource == "leases")
                    await eventually(lambda: first.operator is None, "the first gives up")
                    api.server.heal()
                    await eventually(lambda: first.operator or second.operator, "one of them takes over")
                    await api.apply(service("more", 81))
                    await until(api, WEB.replace("web", "more"), ips, "services are served again")

    asyncio.run(story())


def test_a_malformed_configmap_makes_an_event_with_its_line() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api, operator(api):
            vip = ips(await until(api, WEB, ips, "a VIP"))
            broken = bgp_config()
            broken["data"]["config.yaml"] += "  adresses: [\n"
            await api.apply(broken)
            (found, *_) = await events_with(api, "ConfigRefused")
            assert "ConfigMap/kube-system/bgp-config:11" in found["message"], found["message"]
            assert "what it last said stays in force" in found["message"]
            assert ips(await api.get(WEB)) == vip

    asyncio.run(story())


def test_nothing_is_decided_while_a_kind_cannot_be_read() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("web")) as api:
            api.server.fault(broken=10**6, only=lambda asked: asked.resource == "addresspools")
            async with operator(api) as one:
                await eventually(lambda: one.operator and one.store.snapshot().services, "all else is known")
                assert one.store.snapshot().pools is None
                assert not ips(await api.get(WEB))
                api.server.heal()
                await until(api, WEB, ips, "a VIP")

    asyncio.run(story())


def test_a_deleted_ledger_is_taken_from_what_was_published() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config(), service("first"), service("web", 81)) as api:
            async with operator(api):
                vip = ips(await until(api, WEB, ips, "a VIP"))
            await api.client.delete("/api/v1/namespaces/routerd/configmaps/routerd-ledger")
            async with operator(api):
                await until(api, "/api/v1/namespaces/routerd/configmaps/routerd-ledger", bool_of_addresses, "a ledger")
                assert ips(await api.get(WEB)) == vip

    asyncio.run(story())


def bool_of_addresses(found: Json) -> bool:
    return bool(found.get("data", {}).get("addresses"))
