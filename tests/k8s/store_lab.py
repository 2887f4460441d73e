"""The Kubernetes store in front of an API server: objects, and a store that runs.

The API server is `target`'s; the code under test speaks to it through `proxy`, the tests themselves directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ipam.round import Timers
from routerd.cluster.agents import Patience
from routerd.cluster.assign import AssignSettings
from routerd.operator.leader import Candidate
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.lease import Lease, LeaseTimes
from routerd.store.kubernetes.store import KubernetesStore, Scope
from routerd.store.kubernetes.watch import Timings
from tests.k8s import client as plain
from tests.k8s import target
from tests.k8s.proxy import Proxy
from tests.waiting import eventually

CRDS = Path(__file__).parents[2] / "configs" / "deploy" / "crds.yaml"
NAMESPACES = ("routerd", "default", "kube-system")  # where tests put things
AT_ONCE = 16  # requests
NAMESPACE_DEPTH = 4  # slashes in the path of a namespace
QUICK = Timings(
    silence=5.0, watch=60.0, first_pause=0.02, last_pause=0.1, absent=0.1, unserved=0.1, confirm=0.05, stale=0.1,
    heartbeat=60.0, gather=0.001,
)  # fmt: skip
LEASE = LeaseTimes(60.0, 50.0, 0.05)  # held for longer than any test; its end gives it back
Json = dict[str, Any]


# --- objects


def crds() -> list[Json]:
    return [each for each in yaml.safe_load_all(CRDS.read_text()) if each]


def namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def node(name: str, address: str = "10.0.0.11", labels: dict[str, str] | None = None) -> Json:
    status = {"addresses": [{"type": "InternalIP", "address": address}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}}, "status": status}


def service(name: str, port: int = 80, **spec: Any) -> Json:
    ports = [{"port": port, "protocol": "TCP"}]
    body = {"type": "LoadBalancer", "ports": ports, "selector": {"app": name}, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": body}


def pod(name: str, node_name: str = "node1", address: str = "10.244.1.5", labels: dict[str, str] | None = None) -> Json:
    spec = {"nodeName": node_name, "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
    meta = {"name": name, "namespace": "default", "labels": labels or {}}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def pool(name: str, *blocks: str, uses: tuple[str, ...] = ("loadbalancer", "egress")) -> Json:
    spec = {"blocks": [{"cidr": block} for block in blocks], "uses": list(uses)}
    return {"apiVersion": "routerd.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}, "spec": spec}


def metallb_pool(name: str, *addresses: str, namespace: str = "default", **spec: object) -> Json:
    meta = {"name": name, "namespace": namespace}
    body = {"addresses": list(addresses), **spec}
    return {"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": meta, "spec": body}


def cilium_pool(name: str, *blocks: str) -> Json:
    spec = {"blocks": [{"cidr": block} for block in blocks]}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumLoadBalancerIPPool", "metadata": {"name": name}, "spec": spec}


def policy(name: str, destination: str = "198.51.100.0/24", **spec: Any) -> Json:
    body = {"selectors": [{"podSelector": {"matchLabels": {"app": name}}}], "destinationCIDRs": [destination], **spec}
    return {"apiVersion": "routerd.io/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": name}, "spec": body}


def bgp_config(peer: str = "10.0.0.1") -> Json:
    text = f"peers:\n- peer-address: {peer}\n  peer-asn: 64512\n  my-asn: 64512\naddress-pools:\n"
    text += "- name: default\n  protocol: bgp\n  addresses:\n  - 192.0.2.0/24\n"
    return config_map("kube-system", "bgp-config", {"config.yaml": text})


def node_report(name: str, seconds: int = 10, ready: str = "True") -> Json:
    """What an agent has said of its node."""
    when = "2026-01-01T00:00:00Z"
    condition = {"type": "Ready", "status": ready, "reason": "Ready", "message": "", "lastTransitionTime": when}
    status = {"addresses": [], "heartbeatSeconds": seconds, "lastSeen": when, "conditions": [condition]}
    return {"apiVersion": "routerd.io/v1alpha1", "kind": "RouterdNode", "metadata": {"name": name}, "status": status}


def config_map(place: str, name: str, data: dict[str, str]) -> Json:
    meta = {"name": name, "namespace": place}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


# --- a cluster


@dataclass
class Cluster:
    """Requests to the API server as an administrator, and `server`: the proxy that its other clients go through."""

    server: Proxy
    client: Client
    admin: plain.Client  # the same, synchronously
    made: list[str] = field(default_factory=list)  # paths of objects
    # from discovery: resources by apiVersion and kind, and the plurals of those that have a status of its own
    resources: dict[tuple[str, str], Json] = field(default_factory=dict)
    with_status: set[str] = field(default_factory=set)

    async def get(self, path: str) -> Json:
        return await self.client.get(path)

    async def find(self, path: str) -> Json:
        """The object, {} if it is not there."""
        try:
            return await self.client.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    async def apply(self, *objects: Json) -> None:
        """Creates or replaces, status included, one after the other."""
        for each in objects:
            await self._apply(each)

    async def load(self, *objects: Json) -> None:
        """Creates many, several at once."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(each: Json) -> None:
            async with free:
                await self._apply(each)

        if objects:
            await one(objects[0])  # so that discovery is asked once
        await asyncio.gather(*(one(each) for each in objects[1:]))

    async def _apply(self, each: Json) -> None:
        collection = await self.path(each)
        path = f"{collection}/{each['metadata']['name']}"
        self.made.append(path)
        try:
            meta = {key: value for key, value in each["metadata"].items() if key != "resourceVersion"}
            await self.client.create(collection, target.marked({**each, "metadata": meta}))
        except ApiError as error:
            if error.status != 409:
                raise
            await self._replace(path, target.marked(each))
        if "status" in each and collection.rpartition("/")[2] in self.with_status:
            await self.client.patch(f"{path}/status", {"status": each["status"]})

    async def _replace(self, path: str, each: Json) -> None:
        before = await self.client.get(path)
        meta = {**each["metadata"], "resourceVersion": before["metadata"]["resourceVersion"]}
        kept = {key: before["spec"][key] for key in _allocated(each, before) if key in before.get("spec", {})}
        body = {**each, "metadata": meta} | ({"spec": {**kept, **each["spec"]}} if "spec" in each else {})
        await self.client.replace(path, body)

    async def delete(self, each: Json) -> None:
        query = "?gracePeriodSeconds=0" if each["kind"] == "Pod" else ""
        await self.client.delete(f"{await self.path(each)}/{each['metadata']['name']}{query}")

    async def path(self, each: Json) -> str:
        """Of the collection that an object belongs to."""
        resource = await self._resource(each["apiVersion"], each["kind"])
        place = f"/namespaces/{each['metadata'].get('namespace', 'default')}" if resource["namespaced"] else ""
        return f"{_root(each['apiVersion'])}{place}/{resource['name']}"

    async def _resource(self, api_version: str, kind: str) -> Json:
        """Discovery shows a kind a moment after it is served."""
        if (api_version, kind) not in self.resources:
            await eventually(lambda: self._discovers(api_version, kind), f"{kind} of {api_version} is in discovery")
        return self.resources[api_version, kind]

    async def _discovers(self, api_version: str, kind: str) -> bool:
        for each in (await self.find(_root(api_version))).get("resources", ()):
            name, _, subresource = each["name"].partition("/")
            if not subresource:
                self.resources[api_version, each["kind"]] = each
            elif subresource == "status":
                self.with_status.add(name)
        return (api_version, kind) in self.resources

    async def serves(self, *definitions: Json) -> None:
        """Waits until the kinds of these CRDs can be listed."""
        for spec in (each["spec"] for each in definitions):
            path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
            await eventually(lambda path=path: self._lists(path), f"{path} is served")

    async def _lists(self, path: str) -> bool:
        """False while the kind is not served, or its cache is still being filled."""
        try:
            await self.client.get(path)
        except ApiError as error:
            if error.status not in (404, 429):
                raise
            return False
        return True


def _allocated(each: Json, before: Json) -> tuple[str, ...]:
    """Fields of a spec that the server filled and that stay."""
    is_local = [one.get("spec", {}).get("externalTrafficPolicy") == "Local" for one in (each, before)]
    return "clusterIP", "clusterIPs", *(("healthCheckNodePort",) if all(is_local) else ())


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


@asynccontextmanager
async def cluster(*objects: Json, with_crds: bool = True) -> AsyncIterator[Cluster]:
    """As empty as a new one but for namespace routerd, our CRDs and `objects`; and so again afterwards."""
    with target.a_server() as admin, Proxy(admin) as proxy:
        client = Client(Path(admin.kubeconfig))
        await client.open()
        found = Cluster(proxy, client, admin)
        try:
            await asyncio.to_thread(_prepare, admin, with_crds)
            try:
                if with_crds:
                    await found.serves(*crds())
                await found.apply(*objects)
                yield found
            finally:
                if target.named():
                    await asyncio.to_thread(_clean, found)
        finally:
            await client.close()


def _prepare(admin: plain.Client, with_crds: bool) -> None:
    for name in NAMESPACES:
        target.make_namespace(admin, name)
    if with_crds:
        for each in crds():
            target.created(admin, target.DEFINITIONS, each)
    else:
        target.remove_definitions(admin, *(each["metadata"]["name"] for each in crds()))


def _clean(found: Cluster) -> None:
    """What the test made, and what the code under test made meanwhile. Our CRDs stay for the next test."""
    definitions = {f"{target.DEFINITIONS}/{each['metadata']['name']}" for each in crds()}
    for path in reversed(found.made):
        if path.startswith("/api/v1/namespaces/") and path.count("/") == NAMESPACE_DEPTH:
            target.remove_namespace(found.admin, path.rpartition("/")[2])
        elif path not in definitions:
            target.remove(found.admin, path)
    reports = "/apis/routerd.io/v1alpha1/routerdnodes"
    for each in found.admin.get(reports, limit=500).body.get("items") or ():  # a page is never refused with 429
        target.remove(found.admin, f"{reports}/{each['metadata']['name']}")
    target.empty(found.admin, "routerd")
    for name in NAMESPACES:
        found.admin.delete(f"/api/v1/namespaces/{name}/events")


@dataclass
class Running:
    """A store that runs, and what it told."""

    store: KubernetesStore
    client: Client
    changes: list[int] = field(default_factory=list)
    node: str = ""

    async def until(self, holds: Callable[[KubernetesStore], object], what: str) -> None:
        await eventually(lambda: holds(self.store), what)

    async def synced(self) -> None:
        await self.until(lambda store: store.snapshot().is_synced, "the snapshot is complete")


@asynccontextmanager
async def agent_store(
    found: Cluster, node_name: str = "node1", timings: Timings = QUICK, token: str = ""
) -> AsyncIterator[Running]:
    client = Client(Path(found.server.kubeconfig_for(token) if token else found.server.kubeconfig))
    await client.open()
    changes: list[int] = []
    store = KubernetesStore(client, Scope.of_agent(node_name, "routerd"), lambda: changes.append(1), timings)
    try:
        async with running(store.run()):
            yield Running(store, client, changes, node_name)
    finally:
        await client.close()


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    """`work` as a task that ends with the block."""
    task = asyncio.create_task(work)
    try:
        yield task
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def operator(
    found: Cluster,
    identity: str = "operator-a",
    times: LeaseTimes = LEASE,
    timings: Timings = QUICK,
    token: str = "",
    cooldown: float = 0.5,
    patience: Patience | None = None,
    **more: Any,
) -> AsyncIterator[Candidate]:
    client = Client(Path(found.server.kubeconfig_for(token) if token else found.server.kubeconfig))
    await client.open()
    lease = Lease(client, "routerd", identity, times, **more)
    one = Candidate(
        client, "routerd", lease, AssignSettings(Timers(cooldown=cooldown)), timings, patience=patience or Patience()
    )  # fmt: skip
    try:
        async with running(one.run()):
            yield one
    finally:
        await client.close()


def ips(found: Json) -> list[str]:
    """The addresses in a service's status."""
    return [each["ip"] for each in found.get("status", {}).get("loadBalancer", {}).get("ingress", [])]


def names(found: Iterable[str] | None) -> list[str] | None:
    return None if found is None else sorted(found)
