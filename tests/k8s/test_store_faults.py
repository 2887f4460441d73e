"""The API server away, too old versions, dead watches, missing rights, absent kinds: nothing is lost or withdrawn."""

import asyncio
from dataclasses import replace

import pytest

from routerd.formats.kinds import read_by
from routerd.store.interface import ResourceStatus
from routerd.store.kubernetes.store import KubernetesStore
from routerd.store.kubernetes.watch import Reflector
from tests.k8s.store_lab import (
    QUICK,
    Cluster,
    Json,
    Running,
    agent_store,
    bgp_config,
    cluster,
    config_map,
    crds,
    node,
    pod,
    policy,
    service,
)
from tests.models.virtual_time import now
from tests.waiting import PATIENCE, eventually


def reflector(store: KubernetesStore, label: str) -> Reflector:
    return next(each for each in store.reflectors if each.collection.resource.label == label)


def services(store: KubernetesStore) -> set[str]:
    return {key.rpartition("/")[2] for key in store.snapshot().services or {}} - {"kubernetes"}


async def alive(api: Cluster, agent: Running, name: str) -> None:
    """A change still comes through."""
    await api.apply(service(name))
    await agent.until(lambda store: name in services(store), f"service {name} is seen")


def test_while_the_server_is_away_everything_stays_and_then_goes_on() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web"), bgp_config()) as api, agent_store(api) as agent:
            await agent.synced()
            before = agent.store.snapshot()
            await asyncio.to_thread(api.server.refuse)
            await agent.until(lambda store: "Stale" in reasons(store), "status says that the state is stale")
            assert replace(agent.store.snapshot(), refusals=()) == before
            await api.load(service("meanwhile"))
            await asyncio.to_thread(api.server.accept)
            await agent.until(lambda store: "meanwhile" in services(store), "what happened meanwhile")
            await agent.until(lambda store: not store.snapshot().refusals, "nothing is stale any more")
            assert reflector(agent.store, "nodes").lists <= 2

    asyncio.run(story())


def test_the_status_for_metrics_tells_staleness_lists_watches_and_requests() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web")) as api, agent_store(api) as agent:
            await agent.synced()
            await agent.until(lambda store: all(each.synced for each in told(store).values()), "everything is synced")
            first = told(agent.store)["services"]
            assert (first.lists, first.stale) == (1, 0.0)
            await asyncio.to_thread(api.server.refuse)
            await agent.until(lambda store: told(store)["services"].stale > 0.1, "the age of what is known")
            await api.load(service("meanwhile"))
            await asyncio.to_thread(api.server.compact)
            await asyncio.to_thread(api.server.accept)
            await agent.until(lambda store: told(store)["services"].lists == 2, "a new list")
            await agent.until(lambda store: not any(each.stale for each in told(store).values()), "nothing is stale")
            await agent.until(lambda store: told(store)["services"].watches > first.watches, "a new watch")
            assert agent.store.status().requests["GET"] >= sum(each.lists for each in told(agent.store).values())

    asyncio.run(story())


def told(store: KubernetesStore) -> dict[str, ResourceStatus]:
    return {each.resource: each for each in store.status().resources}


def reasons(store: KubernetesStore) -> set[str]:
    return {refusal.reason for refusal in store.snapshot().refusals}


@pytest.mark.parametrize("as_answer", [False, True], ids=["in the stream", "as an answer"])
def test_a_storm_of_410_withdraws_nothing(as_answer: bool) -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web"), service("gone")) as api, agent_store(api) as agent:
            await agent.synced()
            seen: list[set[str]] = []
            agent.store._on_change = lambda: seen.append(services(agent.store))
            lists = reflector(agent.store, "services").lists
            api.server.fault(gone=60, gone_as_answer=as_answer)
            await asyncio.to_thread(api.server.drop_watches)
            await api.delete(service("gone"))
            await agent.until(lambda store: services(store) == {"web"}, "the deletion is noticed by the new list")
            await eventually(lambda: api.server.faults.gone == 0, "the storm is over")
            await alive(api, agent, "after")
            assert all("web" in each for each in seen)
            assert 1 <= reflector(agent.store, "services").lists - lists <= 30

    asyncio.run(story())


def test_a_watch_that_died_silently_is_noticed_and_resumed() -> None:
    async def story() -> None:
        quick = replace(QUICK, silence=0.3)
        async with cluster(node("node1"), service("web")) as api, agent_store(api, timings=quick) as agent:
            await agent.synced()
            await asyncio.to_thread(api.server.mute_watches)
            before = reflector(agent.store, "services").lists
            await alive(api, agent, "later")
            assert reflector(agent.store, "services").lists == before  # resumed, not listed again

    asyncio.run(story())


def test_bookmarks_move_a_quiet_watch_on() -> None:
    """Changes to pods of other nodes are not heard of, but a watch that is opened again does not begin before them."""

    async def story() -> None:
        quick = replace(QUICK, silence=60.0, watch=3.0)  # the last bookmark comes two seconds before a watch's end
        async with cluster(node("node1")) as api, agent_store(api, timings=quick) as agent:
            await agent.synced()
            pods = reflector(agent.store, "pods")
            elsewhere = pod("elsewhere", "node2")
            await api.apply(elsewhere)
            version = int((await api.get("/api/v1/namespaces/default/pods/elsewhere"))["metadata"]["resourceVersion"])
            await eventually(lambda: int(pods._version) >= version, "a bookmark moved the version")
            assert (pods.lists, agent.store.snapshot().pods) == (1, {})

    asyncio.run(story())


def test_broken_connections_lose_and_invent_nothing() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web")) as api, agent_store(api) as agent:
            await agent.synced()
            for round_number in range(5):
                await asyncio.to_thread(api.server.drop_watches)
                await api.apply(service(f"s{round_number}"))
                await api.delete(service(f"s{round_number - 1}")) if round_number else None
            await agent.until(lambda store: services(store) == {"web", "s4"}, "all changes are seen")

    asyncio.run(story())


def test_a_server_that_asks_to_wait_is_not_asked_again_at_once() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web")) as api:
            api.server.fault(too_many=4, retry_after=1)
            began = now()
            async with agent_store(api) as agent:
                await agent.synced()
            assert agent.client.responses["GET", 429] == 4
            assert now() - began >= 1

    asyncio.run(story())


# --- rights

READ = ("list", "watch")


def role(*, services_verbs: tuple[str, ...]) -> list[Json]:
    """What a test's own user `reader` may do."""
    group = "rbac.authorization.k8s.io"
    others = sorted({each.group for each in read_by("agent")} - {""})
    rules = [
        {"apiGroups": [""], "resources": ["nodes", "namespaces", "pods", "configmaps"], "verbs": [*READ]},
        *([{"apiGroups": [""], "resources": ["services"], "verbs": [*services_verbs]}] if services_verbs else ()),
        {"apiGroups": others, "resources": ["*"], "verbs": [*READ]},
    ]
    meta = {"name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": "routerd"}
    ref = {"apiGroup": group, "kind": "ClusterRole", "name": "reader"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": "routerd"}},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": meta, "roleRef": ref,
         "subjects": [subject]},
    ]  # fmt: skip


async def token(api: Cluster) -> str:
    path = "/api/v1/namespaces/routerd/serviceaccounts/reader/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {}}
    return str((await api.client.create(path, body))["status"]["token"])


@pytest.mark.parametrize(("has", "lacks"), [((), "list"), (("list",), "watch")])
def test_a_missing_verb_is_named_and_nothing_is_withdrawn(has: tuple[str, ...], lacks: str) -> None:
    async def story() -> None:
        async with (
            cluster(node("node1"), service("web"), *role(services_verbs=has)) as api,
            agent_store(api, token=await token(api)) as agent,
        ):
            await agent.until(lambda store: "Forbidden" in reasons(store), "the refusal")
            (refusal,) = (each for each in agent.store.snapshot().refusals if each.reason == "Forbidden")
            assert str(refusal.object) == "store/services"
            assert f'verb "{lacks}" on services (group core) is missing' in refusal.message
            assert "system:serviceaccount:routerd:reader" in refusal.message
            assert (agent.store.snapshot().services is None) is (lacks == "list")
            await agent.until(lambda store: store.snapshot().nodes, "the rest is read")
            await api.apply(role(services_verbs=READ)[1])
            await agent.until(lambda store: not store.snapshot().refusals, "once granted it goes on")
            await alive(api, agent, "granted")

    asyncio.run(story())


def test_a_server_that_has_just_started_refuses_for_a_moment_and_nothing_is_told() -> None:
    async def story() -> None:
        patient = replace(QUICK, confirm=PATIENCE, stale=PATIENCE)
        async with cluster(node("node1"), service("web")) as api, agent_store(api, timings=patient) as agent:
            await agent.synced()
            told: list[set[str]] = []
            agent.store._on_change = lambda: told.append(reasons(agent.store))
            api.server.fault(forbidden=12)
            await asyncio.to_thread(api.server.drop_watches)
            await eventually(lambda: api.server.faults.forbidden == 0, "all have been refused")
            await alive(api, agent, "later")
            assert told and not any(told)
            assert agent.client.responses["GET", 403] == 12

    asyncio.run(story())


# --- kinds that come and go

DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/egresspolicies.routerd.io"


def test_a_kind_that_is_absent_is_empty_and_found_when_it_comes() -> None:
    async def story() -> None:
        async with cluster(node("node1"), service("web"), with_crds=False) as api, agent_store(api) as agent:
            await agent.synced()
            assert (agent.store.snapshot().policies, agent.store.snapshot().refusals) == ({}, ())
            await api.load(*crds())
            await api.serves(*crds())
            await api.apply(policy("team", egressIP="10.168.60.100"))
            await agent.until(lambda store: "EgressPolicy/team" in (store.snapshot().policies or {}), "the policy")
            await api.client.delete(DEFINITION)
            await agent.until(lambda store: store.snapshot().policies == {}, "the policy went with its kind")

    asyncio.run(story())


def test_a_kind_that_comes_is_read_before_the_server_has_filled_its_cache() -> None:
    async def story() -> None:
        patient = replace(QUICK, stale=PATIENCE)
        async with cluster(node("node1"), with_crds=False) as api, agent_store(api, timings=patient) as agent:
            await agent.synced()
            told: list[set[str]] = []
            agent.store._on_change = lambda: told.append(reasons(agent.store))
            await api.load(*crds())
            policies = reflector(agent.store, "egresspolicies.routerd.io")
            await eventually(lambda: policies.watches == 1, "the kind is watched, and nobody else has asked for it")
            await api.serves(*crds())
            await api.apply(policy("team", egressIP="10.168.60.100"))
            await agent.until(lambda store: "EgressPolicy/team" in (store.snapshot().policies or {}), "the policy")
            assert not any(told)

    asyncio.run(story())


def test_a_definition_that_changes_takes_nothing_away() -> None:
    """The server ends the watches of the kind and fills its cache anew."""

    async def story() -> None:
        objects, patient = (node("node1"), policy("team", egressIP="10.168.60.100")), replace(QUICK, stale=PATIENCE)
        async with cluster(*objects) as api, agent_store(api, timings=patient) as agent:
            await agent.synced()
            policies = reflector(agent.store, "egresspolicies.routerd.io")
            seen: list[tuple[bool, set[str]]] = []
            agent.store._on_change = lambda: seen.append(
                ("EgressPolicy/team" in (agent.store.snapshot().policies or {}), reasons(agent.store))
            )
            names = (await api.get(DEFINITION))["spec"]["names"]
            for each in ({**names, "shortNames": ["rdep", "changed"]}, names):
                opened = policies.watches
                await api.client.patch(DEFINITION, {"spec": {"names": each}})
                await eventually(lambda opened=opened: policies.watches > opened, "the watch is opened again")
            await api.apply(policy("later", egressIP="10.168.60.101"))
            await agent.until(lambda store: len(store.snapshot().policies or {}) == 2, "changes are seen")
            assert seen and all(one == (True, set()) for one in seen)

    asyncio.run(story())


def test_a_kind_that_seems_absent_for_a_moment_keeps_its_objects() -> None:
    async def story() -> None:
        objects = (node("node1"), policy("team", egressIP="10.168.60.100"))
        async with cluster(*objects) as api, agent_store(api, timings=replace(QUICK, confirm=PATIENCE)) as agent:
            await agent.synced()
            policies = reflector(agent.store, "egresspolicies.routerd.io")
            policies._version = ""
            api.server.fault(absent=lambda asked: asked.resource == "egresspolicies")
            await asyncio.to_thread(api.server.drop_watches)
            await eventually(lambda: policies.absent, "it seems to be absent")
            assert list(agent.store.snapshot().policies or {}) == ["EgressPolicy/team"]

    asyncio.run(story())


# --- configuration


def test_a_malformed_configmap_keeps_the_last_good_one() -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api, agent_store(api) as agent:
            await agent.synced()
            good = agent.store.snapshot().bgp
            broken = bgp_config()
            broken["data"]["config.yaml"] += "  adresses: [\n"
            await api.apply(broken)
            await agent.until(lambda store: "ConfigRefused" in reasons(store), "the refusal")
            (refusal,) = agent.store.snapshot().refusals
            assert str(refusal.object) == "ConfigMap/kube-system/bgp-config"
            assert refusal.message.startswith("ConfigMap/kube-system/bgp-config:11:1: could not parse config: yaml")
            assert agent.store.snapshot().bgp == good
            await api.apply(bgp_config("10.0.0.2"))
            await agent.until(lambda store: peers(store) == ["10.0.0.2"], "the mended one counts")
            assert agent.store.snapshot().refusals == ()

    asyncio.run(story())


def peers(store: KubernetesStore) -> list[str]:
    bgp = store.snapshot().bgp
    return [str(peer.address) for peer in bgp.peers] if bgp else []


def test_a_configmap_that_is_malformed_at_the_start_is_not_an_empty_one() -> None:
    async def story() -> None:
        broken = config_map("kube-system", "bgp-config", {"config.yaml": "peers: {"})
        async with cluster(node("node1"), broken) as api, agent_store(api) as agent:
            await agent.until(lambda store: "ConfigRefused" in reasons(store), "the refusal")
            await agent.until(lambda store: store.snapshot().nodes, "the rest is read")
            assert (agent.store.snapshot().bgp, agent.store.snapshot().pools) == (None, None)
            await api.apply(bgp_config())
            await agent.synced()

    asyncio.run(story())


def test_metallb_configmap_and_our_own_namespace_count_too() -> None:
    async def story() -> None:
        text = "peers:\n- peer-address: 10.0.0.9\n  peer-asn: 64512\n  my-asn: 64512\n"
        ours = "apiVersion: routerd.io/v1alpha1\n" + text.replace("10.0.0.9", "10.0.0.7")
        place: Json = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "metallb-system"}}
        objects = (place, config_map("metallb-system", "config", {"config": text}),
                   config_map("routerd", "peers", {"config.yaml": ours}),
                   config_map("default", "bgp-config", {"config.yaml": text}))  # fmt: skip
        async with cluster(node("node1"), *objects) as api, agent_store(api) as agent:
            await agent.synced()
            assert sorted(peers(agent.store)) == ["10.0.0.7", "10.0.0.9"]

    asyncio.run(story())


def test_churn_of_pods_reads_each_change_once_and_ends_where_the_server_is() -> None:
    async def story() -> None:
        async with cluster(node("node1")) as api, agent_store(api) as agent:
            await agent.synced()
            pods = [pod(f"p{each}", "node1" if each % 2 else "node2", f"10.244.1.{each}") for each in range(60)]
            await api.load(*pods)
            for each in pods[:30]:
                await api.delete(each)
            wanted = {f"default/p{each}" for each in range(31, 60, 2)}
            await agent.until(lambda store: set(store.snapshot().pods or {}) == wanted, "own pods, as they are now")
            assert len(agent.changes) < 200

    asyncio.run(story())
