"""The Kubernetes store in front of the API server double: objects, a store that runs, and bounded waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ipam.round import Timers
from routerd.assign import Settings
from routerd.leader import Candidate
from routerd.store.k8s_client import ApiError, Client
from routerd.store.k8s_lease import Lease, LeaseTimes
from routerd.store.k8s_resources import for_agent
from routerd.store.k8s_watch import Timings
from routerd.store.kubernetes import KubernetesStore
from tests.k8s.apiserver import ApiServer

CRDS = Path(__file__).parents[2] / "configs" / "deploy" / "crds.yaml"
PATIENCE = 8.0  # seconds
QUICK = Timings(
    silence=5.0, watch=60.0, first_pause=0.02, last_pause=0.1, absent=0.1, confirm=0.05, stale=0.1, heartbeat=60.0,
    gather=0.001,
)  # fmt: skip
SHORT_LEASE = LeaseTimes(1.5, 1.0, 0.05)
Json = dict[str, Any]


async def eventually(holds: Callable[[], object], what: str) -> None:
    """Waits for a condition. Raises AssertionError with `what` after a bounded time."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await asyncio.sleep(0.004)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE} s: {what}") from None


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
    spec = {"nodeName": node_name, "containers": [{"name": "c", "image": "i"}]}
    meta = {"name": name, "namespace": "default", "labels": labels or {}}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def pool(name: str, *blocks: str, uses: tuple[str, ...] = ("loadbalancer", "egress")) -> Json:
    spec = {"blocks": [{"cidr": block} for block in blocks], "uses": list(uses)}
    return {"apiVersion": "routerd.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}, "spec": spec}


def policy(name: str, destination: str = "198.51.100.0/24", **spec: Any) -> Json:
    body = {"selectors": [{"podSelector": {"matchLabels": {"app": name}}}], "destinationCIDRs": [destination], **spec}
    return {"apiVersion": "routerd.io/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": name}, "spec": body}


def bgp_config(peer: str = "10.0.0.1") -> Json:
    text = f"peers:\n- peer-address: {peer}\n  peer-asn: 64512\n  my-asn: 64512\naddress-pools:\n"
    text += "- name: default\n  protocol: bgp\n  addresses:\n  - 192.0.2.0/24\n"
    return config_map("kube-system", "bgp-config", {"config.yaml": text})


def config_map(place: str, name: str, data: dict[str, str]) -> Json:
    meta = {"name": name, "namespace": place}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


# --- a cluster


@dataclass
class Cluster:
    """The double with our CRDs and namespace, and requests to it as an administrator."""

    server: ApiServer
    client: Client

    async def get(self, path: str) -> Json:
        return await self.client.get(path)

    async def apply(self, *objects: Json) -> None:
        """Creates or replaces, status included."""
        for each in objects:
            await self._apply(each)

    async def _apply(self, each: Json) -> None:
        path = self.path(each)
        try:
            before = await self.client.get(f"{path}/{each['metadata']['name']}")
        except ApiError as error:
            if error.status != 404:
                raise
            await asyncio.to_thread(self.server.load, [each])
            return
        meta = {**each["metadata"], "resourceVersion": before["metadata"]["resourceVersion"]}
        kept = {key: before["spec"][key] for key in ("clusterIP", "clusterIPs") if key in before.get("spec", {})}
        body = {**each, "metadata": meta} | ({"spec": {**kept, **each["spec"]}} if "spec" in each else {})
        await self.client.replace(f"{path}/{meta['name']}", body)

    async def delete(self, each: Json) -> None:
        query = "?gracePeriodSeconds=0" if each["kind"] == "Pod" else ""
        await self.client.delete(f"{self.path(each)}/{each['metadata']['name']}{query}")

    def path(self, each: Json) -> str:
        resource = self.server.catalogue.of_kind(each["apiVersion"], each["kind"])
        assert resource is not None, each["kind"]
        root = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
        place = f"/namespaces/{each['metadata'].get('namespace', 'default')}" if resource.namespaced else ""
        return f"{root}{place}/{resource.plural}"

    def serves(self, kind: str, api_version: str = "routerd.io/v1alpha1") -> bool:
        return self.server.catalogue.of_kind(api_version, kind) is not None


@asynccontextmanager
async def cluster(*objects: Json, with_crds: bool = True, bookmarks: float = 60.0) -> AsyncIterator[Cluster]:
    with ApiServer(bookmarks=bookmarks) as server:
        client = Client(Path(server.kubeconfig))
        await client.open()
        try:
            found = Cluster(server, client)
            await asyncio.to_thread(server.load, [namespace("routerd"), *(crds() if with_crds else ())])
            if with_crds:
                await eventually(lambda: found.serves("RouterdNode"), "CRDs are served")
            await found.apply(*objects)
            yield found
        finally:
            await client.close()


@dataclass
class Running:
    """A store that runs, and what it told."""

    store: KubernetesStore
    client: Client
    changes: list[int] = field(default_factory=list)

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
    store = KubernetesStore(
        client, for_agent(node_name, "routerd"), namespace="routerd", node=node_name, timings=timings,
        on_change=lambda: changes.append(1),
    )  # fmt: skip
    try:
        async with running(store.run()):
            yield Running(store, client, changes)
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
    times: LeaseTimes = SHORT_LEASE,
    timings: Timings = QUICK,
    token: str = "",
    **more: Any,
) -> AsyncIterator[Candidate]:
    client = Client(Path(found.server.kubeconfig_for(token) if token else found.server.kubeconfig))
    await client.open()
    lease = Lease(client, "routerd", identity, times, **more)
    one = Candidate(client, "routerd", lease, Settings(Timers(cooldown=0.5)), timings)
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
