"""Agent and operator under their own service accounts: nothing is refused, and nothing is granted that is not used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path

from routerd.model import NodeReport
from tests.k8s.apiserver import ApiServer
from tests.k8s.apiserver.access import Audit, Rule
from tests.k8s.apiserver.call import Call
from tests.k8s.client import Client, Json
from tests.k8s.conftest import good
from tests.k8s.deployment import cilium, install, token
from tests.k8s.store_lab import Cluster, agent_store, bgp_config, cluster, eventually, ips, node, operator, policy, pool
from tests.k8s.store_lab import service as a_service

CUSTOM = (("RouterdNode",), ("CiliumEgressNATPolicy", "cilium.io/v2alpha1"))
Grant = tuple[str, int, str, str, str]  # role, rule, verb, resource, name


def granted(objects: Iterable[Json]) -> set[Grant]:
    """Every verb on every resource (and name) of every role that is installed."""
    return {grant for each in objects if each["kind"] in ("Role", "ClusterRole") for grant in _grants(each)}


def _grants(role: Json) -> Iterator[Grant]:
    name = role["metadata"]["name"]
    shown = f"ClusterRole/{name}" if role["kind"] == "ClusterRole" else f"Role/routerd/{name}"
    for index, rule in enumerate(role["rules"]):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for item in rule.get("resourceNames", [""]):
                        yield shown, index, verb, f"{resource}.{group}", item


def used(audit: Iterable[Audit]) -> set[Grant]:
    return {_use(each, each.rule) for each in audit if each.rule is not None}


def _use(one: Audit, rule: Rule) -> Grant:
    name = one.name if rule.names else ""
    return rule.role, rule.index, one.verb, f"{one.resource}.{one.group}", name


async def work(found: Cluster) -> None:
    """Everything that agent and operator ask of the API server, conflicts and a change of the leader included."""
    server = found.server
    api = Client(Path(server.kubeconfig))
    agent, leader = token(api, "routerd-agent"), token(api, "routerd-operator")
    server.fault(conflict_every=1, only=first_status_of_each())
    async with agent_store(found, token=agent) as store:
        await store.synced()
        store.store.write_node_report(NodeReport("node1", (ip_address("10.0.0.11"),)))
        await eventually(lambda: _status(server, "routerd.io/routerdnodes", "node1"), "the node's report")
        async with operator(found, "a", token=leader):
            await eventually(lambda: _is_settled(server, count=1), "the first operator is done")
        async with operator(found, "b", token=leader):
            await eventually(lambda: _is_settled(server, count=2), "the second operator tells it again")


def first_status_of_each() -> Callable[[Call], bool]:
    """True for the first write to the status of each object."""
    seen: set[tuple[str, str]] = set()

    def is_first(call: Call) -> bool:
        key = (call.resource.plural, call.key)
        if call.subresource != "status" or key in seen:
            return False
        seen.add(key)
        return True

    return is_first


def _status(server: ApiServer, table: str, key: str) -> Json:
    row = server.run(lambda: server.storage.get(table, key))
    return dict(row.object.get("status") or {}) if row else {}


def _is_settled(server: ApiServer, count: int) -> bool:
    """Addresses and conditions are there, and a refusal has been told `count` times."""
    events = server.run(lambda: server.storage.all("/events"))
    wanted = (("addresspools", "public"), ("egresspolicies", "bank"), ("egresspolicies", "lost"))
    return (
        bool(ips({"status": _status(server, "/services", "default/web")}))
        and all(_status(server, f"routerd.io/{table}", key) for table, key in wanted)
        and any((row.object.get("count") or 0) >= count for row in events)
    )


def test_roles_grant_exactly_what_is_used() -> None:
    async def run() -> tuple[list[Audit], set[Grant]]:
        objects = install()
        async with cluster(with_crds=False) as found:
            await asyncio.to_thread(found.server.load, [*objects[1:], *cilium()])  # the namespace is there
            await eventually(lambda: all(found.serves(*each) for each in CUSTOM), "CRDs are served")
            await found.apply(
                node("node1"), bgp_config(), pool("public", "192.0.3.0/24"), a_service("web"),
                policy("bank", egressIP="192.0.3.9"), policy("lost", "203.0.113.0/24", pool="absent"),
            )  # fmt: skip
            await work(found)
            return found.server.audit, granted(objects)

    audit, grants = asyncio.run(run())
    ours = [each for each in audit if each.user.startswith("system:serviceaccount:routerd:")]
    assert [each for each in ours if each.code in (401, 403)] == []
    assert used(ours) == grants


def test_the_install_is_accepted_as_it_is() -> None:
    """Dry run on the server, then for good, then again without a change."""
    with ApiServer() as server:
        api = Client(Path(server.kubeconfig))
        objects = install()
        good(api.create("/api/v1/namespaces", objects[0]))
        for each in objects[1:]:
            resource = server.catalogue.of_kind(each["apiVersion"], each["kind"])
            assert resource is not None, each["kind"]
            root = f"/apis/{resource.api_version}" if resource.group else "/api/v1"
            place = f"/namespaces/{each['metadata']['namespace']}" if resource.namespaced else ""
            path, query = f"{root}{place}/{resource.plural}", {"fieldManager": "kubectl", "fieldValidation": "Strict"}
            assert good(api.create(path, each, dryRun="All", **query)).code == 201
            made = good(api.create(path, each, **query))
            item = f"{path}/{each['metadata']['name']}"
            same = good(api.patch(item, each, "application/apply-patch+yaml", force="true", **query))
            assert (
                same.body["spec" if "spec" in each else "metadata"]
                and same.body["metadata"]["uid"] == (made.body["metadata"]["uid"])
            )
