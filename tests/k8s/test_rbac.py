"""Agent and operator under their own service accounts: nothing is refused, and nothing is granted that is not used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import pytest

from routerd.cluster.agents import Patience
from routerd.formats.published import parts as formats_parts
from routerd.model import GATEWAY_HEARTBEAT, Heartbeat, NodeReport, Refusal
from routerd.operator import loop
from routerd.refs import Ref
from routerd.store.kubernetes import parts
from routerd.store.kubernetes import store as kubernetes_store
from routerd.store.kubernetes.status import shown as shown_objects
from routerd.store.kubernetes.store import KubernetesStore
from tests.k8s import target
from tests.k8s.client import APPLY, Client, Json, good
from tests.k8s.deployment import foreign, install, token
from tests.k8s.proxy import Asked, Audit
from tests.k8s.store_lab import (
    Cluster,
    agent_store,
    bgp_config,
    cilium_pool,
    cluster,
    ips,
    metallb_pool,
    node,
    node_report,
    operator,
    policy,
    pool,
)
from tests.k8s.store_lab import service as a_service
from tests.waiting import eventually

ACCOUNTS = ("routerd-agent", "routerd-operator")
CLOSED = {"spec": {"taints": [{"key": "routerd.io/agent-not-ready", "effect": "NoSchedule"}]}}
SYNCED = {"type": "StoreSynced", "status": "True", "reason": "Synced", "message": ""}
READY = {"conditions": [{**SYNCED, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
CHANGING = "CustomResourceDefinition"  # its status is written meanwhile


@dataclass(frozen=True)
class Grant:
    """One verb on one resource, of one object if it has a name, to one of our service accounts."""

    account: str
    place: str  # "" = everywhere
    verb: str
    group: str
    resource: str
    name: str

    def allows(self, one: Audit) -> bool:
        asked = (one.user, one.verb, one.group, one.resource)
        place = self.place in ("", one.namespace)
        return asked == (self.account, self.verb, self.group, self.resource) and place and self.name in ("", one.name)


def granted(objects: Iterable[Json]) -> set[Grant]:
    """Everything that the roles which are installed grant."""
    objects = list(objects)
    roles = {(each["kind"], each["metadata"]["name"]): each for each in objects if each["kind"].endswith("Role")}
    bindings = [each for each in objects if each["kind"].endswith("RoleBinding")]
    return {
        grant
        for binding in bindings
        for subject in binding["subjects"]
        for grant in _grants(
            roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]], subject["name"],
            binding["metadata"].get("namespace", ""),
        )
    }  # fmt: skip


def _grants(role: Json, account: str, place: str) -> Iterator[Grant]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames", [""]):
                        yield Grant(account, place, verb, group, resource, name)


async def work(found: Cluster) -> None:
    """Everything that agent and operator ask of the API server, conflicts and a change of the leader included, and
    decisions in parts, of which old ones are removed.
    """
    tokens = [await asyncio.to_thread(token, found.admin, account) for account in ACCOUNTS]
    found.server.users |= dict(zip(tokens, ACCOUNTS, strict=True))
    found.server.fault(conflict_every=1, only=first_status_of_each())
    async with agent_store(found, token=tokens[0]) as store:
        await store.synced()
        store.store.report_health(lambda: READY)
        heartbeat = Heartbeat(GATEWAY_HEARTBEAT)
        store.store.write_node_report(NodeReport("node1", (ip_address("10.0.0.11"),), heartbeat=heartbeat))
        store.store.beat()
        await tell_of_a_pod(found, store.store)
        await shown(found, "/apis/routerd.io/v1alpha1/routerdnodes/node1")
        async with operator(found, "a", token=tokens[1], patience=Patience(gateway=0.1)) as one:
            await settled(found, count=1)
            assert one.publisher is not None
            one.publisher.lacking = lambda: {"node1": "SubnetFull"}
            one.publisher.wake()
            await eventually(lambda: is_without_addresses(found), "its node shows that it lacks addresses")
            await eventually(lambda: is_open(found), "the node is opened to pods")
            await eventually(lambda: is_called_absent(found), "no word comes of an agent")
        await show_a_service(found, store.store)
        async with operator(found, "b", token=tokens[1]):
            await settled(found, count=2)
            await found.apply(a_service("more", 81))
            await store.until(lambda one: "default/more" in given(one), "agents read the parts")
            await shown(found, "/apis/metallb.io/v1beta1/namespaces/routerd/configurationstates/routerd-operator")


async def tell_of_a_pod(found: Cluster, store: KubernetesStore) -> None:
    """Twice, as what goes and comes back."""
    about = Refusal(Ref("Pod", "default", "web-1"), "DeviceUnhooked", "it is on macvlan device eth0")

    async def count() -> int:
        events = (await found.get("/api/v1/events"))["items"]
        return sum(each["count"] for each in events if each["reason"] == about.reason)

    async def is_told(times: int) -> bool:
        return await count() == times

    for times in (1, 2):
        store.report_pods(lambda: (about,))
        await eventually(partial(is_told, times), f"an Event, {times} times")
        store.report_pods(tuple)
        await eventually(lambda: not store.events.standing, "what went is forgotten")


async def show_a_service(found: Cluster, store: KubernetesStore) -> None:
    """In an object of MetalLB's kind, which goes with what is announced."""
    path = "/apis/metallb.io/v1beta1/namespaces/routerd/servicebgpstatuses"

    async def peers() -> list[list[str]]:
        return [each.get("status", {}).get("peers", []) for each in (await found.get(path))["items"]]

    async def is_said(expected: list[list[str]]) -> bool:
        return await peers() == expected

    store.report_services(lambda: {"default/web": ("tor",)})
    await eventually(partial(is_said, [["tor"]]), "the peers of a Service")
    store.report_services(dict)
    await eventually(partial(is_said, []), "it is not announced any more")


async def is_open(found: Cluster) -> bool:
    return not (await found.get("/api/v1/nodes/node1"))["spec"].get("taints")


async def is_without_addresses(found: Cluster) -> bool:
    conditions = (await found.get("/api/v1/nodes/node1"))["status"].get("conditions", [])
    return [(each["type"], each["status"]) for each in conditions] == [("SufficientIP", "False")]


async def is_called_absent(found: Cluster) -> bool:
    status = (await found.get("/apis/routerd.io/v1alpha1/routerdnodes/ghost"))["status"]
    return bool(status["conditions"][0]["status"] == "Unknown")


def given(store: KubernetesStore) -> list[str]:
    """Which services have an address."""
    allocations = store.snapshot().allocations
    return [each.service for each in allocations.services] if allocations else []


async def shown(found: Cluster, path: str) -> None:
    """Waits for a status."""

    async def status() -> Json:
        return dict((await found.find(path)).get("status") or {})

    await eventually(status, f"{path} has a status")


async def settled(found: Cluster, count: int) -> None:
    """Waits for addresses and conditions, and until a refusal has been told `count` times."""
    for path in (
        "routerd.io/v1alpha1/addresspools/public", "routerd.io/v1alpha1/egresspolicies/bank",
        "routerd.io/v1alpha1/egresspolicies/lost", "cilium.io/v2/ciliumloadbalancerippools/cilium",
        "metallb.io/v1beta1/namespaces/default/ipaddresspools/metallb",
    ):  # fmt: skip
        await shown(found, f"/apis/{path}")

    async def addresses() -> list[str]:
        return ips(await found.get("/api/v1/namespaces/default/services/web"))

    async def is_told() -> bool:
        return any((each.get("count") or 0) >= count for each in (await found.get("/api/v1/events"))["items"])

    await eventually(addresses, "a VIP")
    await eventually(is_told, f"a refusal is told {count} times")


def first_status_of_each() -> Callable[[Asked], bool]:
    """True for the first write to the status of each object."""
    seen: set[tuple[str, str]] = set()

    def is_first(asked: Asked) -> bool:
        key = (asked.resource, asked.key)
        is_written = asked.subresource == "status" or (asked.resource, asked.verb) == ("nodes", "patch")
        if not is_written or key in seen:
            return False
        seen.add(key)
        return True

    return is_first


def test_roles_grant_exactly_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats_parts, "INLINE_SIZE", 0)
    monkeypatch.setattr(parts, "GRACE", 0.0)
    monkeypatch.setattr(loop, "LOOK", 0.05)
    monkeypatch.setattr(kubernetes_store, "PERIOD", 0.05)
    monkeypatch.setattr(shown_objects, "PERIOD", 0.05)

    async def run() -> list[Audit]:
        objects = install()
        async with cluster() as found:
            await found.apply(*objects[1:])  # the namespace is there
            await found.apply(*foreign())
            await found.serves(*foreign())
            await found.apply(
                node("node1") | CLOSED, node_report("ghost"), bgp_config(), pool("public", "192.0.3.0/24"),
                a_service("web"),
                policy("bank", egressIP="192.0.3.9"), policy("lost", "203.0.113.0/24", pool="absent"),
                cilium_pool("cilium", "198.51.100.0/28"), metallb_pool("metallb", "203.0.113.0/28"),
            )  # fmt: skip
            await work(found)
            return [each for each in found.server.audit if each.user in ACCOUNTS]

    audit, grants = asyncio.run(run()), granted(install())
    assert [each for each in audit if each.code in (401, 403)] == []
    assert grants - {grant for grant in grants for each in audit if grant.allows(each)} == set()


@pytest.fixture
def installed(api: Client) -> Iterator[list[Json]]:
    """What is installed, where nothing of it is; whatever is there afterwards is removed."""
    target.leave(api)
    objects = install()
    try:
        yield objects
    finally:
        for each in reversed(objects[1:]):
            target.remove(api, f"{collection(api, each)}/{each['metadata']['name']}")
        target.remove_namespace(api, objects[0]["metadata"]["name"])


def collection(api: Client, each: Json) -> str:
    """Where it is created."""
    version = each["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    resources = good(api.get(root)).body["resources"]
    resource = next(one for one in resources if one["kind"] == each["kind"] and "/" not in one["name"])
    place = f"/namespaces/{each['metadata']['namespace']}" if resource["namespaced"] else ""
    return f"{root}{place}/{resource['name']}"


def test_the_install_is_accepted_as_it_is(api: Client, installed: list[Json]) -> None:
    """Dry run on the server, then for good, then again without a change."""
    query = {"fieldManager": "kubectl", "fieldValidation": "Strict"}
    target.make_namespace(api, installed[0]["metadata"]["name"])
    for each in installed[1:]:
        path = collection(api, each)
        assert good(api.create(path, each, dryRun="All", **query)).code == 201
        made = good(api.create(path, each, **query)).body["metadata"]
        item = f"{path}/{each['metadata']['name']}"
        first = good(api.patch(item, each, APPLY, force="true", **query)).body["metadata"]
        again = good(api.patch(item, each, APPLY, force="true", **query)).body["metadata"]
        assert made["uid"] == first["uid"]
        assert first["resourceVersion"] == again["resourceVersion"] or each["kind"] == CHANGING
