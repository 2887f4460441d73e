"""A roll-out of 100 policies to 1,000 nodes on the API server double: until all have ports, writes, bytes, latency.

    make bench-ports        or: python -m tests.bench.rollout [--nodes N] [--policies N] [--asks N]

Double and operator are processes of their own. Here run the stores of two gateways and of one agent that is none, the
latter behind a relay that counts what it receives, and of all other nodes the part that asks for ports (`PortDesk`),
that writes the report, and that watches the node's share. Every node has a pod of every policy. A set counts as in use
when the index in force names a part that gives it to its node, the part has arrived, and the gateways have that
decision: what the node does then is its agent's matter.

Rows go to `build/bench/rollout.json`: `figure, value, bar, nodes, policies`. It judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from routerd.agent.ports import PortDesk
from routerd.formats.published.shares import PORTS, share_of
from routerd.model import GATEWAY_HEARTBEAT, Allocations, Heartbeat, NodeReport, PortReport
from routerd.node.desired import NodeState
from routerd.store.kubernetes import client as client_module
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.documents import ALLOCATIONS_KEY, report_status
from routerd.store.kubernetes.resources import (
    ALLOCATIONS,
    CONFIG_MAPS,
    PART_KEY,
    READERS_LABEL,
    REPORTS,
    collection_path,
    object_path,
)
from routerd.store.kubernetes.store import KubernetesStore, Scope
from routerd.store.kubernetes.watch import Timings
from tests.bench import report
from tests.bench.kubernetes import config, start, stop
from tests.k8s.store_lab import crds, namespace, node, policy
from tests.waiting import eventually

Json = dict[str, Any]
NAMESPACE = "routerd"
GATEWAYS = 2
MIB, KIB = 1 << 20, 1 << 10
WATCH = Timings(watch=3600.0)
MAPS = collection_path(CONFIG_MAPS, NAMESPACE)
PATIENCE = 180.0  # seconds
WINDOW = 10  # seconds over which writes are counted


# --- processes


@asynccontextmanager
async def api_server() -> AsyncIterator[Path]:
    """Its kubeconfig."""
    command = [sys.executable, "-m", "tests.models.apiserver"]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        yield Path((await child.stdout.readline()).decode().strip().partition("KUBECONFIG=")[2])
    finally:
        child.terminate()
        await child.wait()


@dataclass(slots=True)
class Relay:
    """Between one client and the server; it counts what the client receives."""

    host: str
    port: int
    received: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection(self.host, self.port)
        with suppress(ConnectionError):
            await asyncio.gather(self._pump(reader, out, counts=False), self._pump(there, writer, counts=True))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, counts: bool) -> None:
        while chunk := await source.read(1 << 16):
            self.received += len(chunk) if counts else 0
            target.write(chunk)
            await target.drain()
        target.close()


@asynccontextmanager
async def relayed(kubeconfig: Path, directory: Path) -> AsyncIterator[tuple[Path, Relay]]:
    """A kubeconfig that leads through a relay."""
    value = yaml.safe_load(kubeconfig.read_text())
    cluster = value["clusters"][0]["cluster"]
    host, _, port = cluster["server"].removeprefix("http://").partition(":")
    relay = Relay(host, int(port))
    server = await asyncio.start_server(relay.serve, "127.0.0.1")
    cluster["server"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    path = directory / "relayed.kubeconfig"
    path.write_text(yaml.safe_dump(value))
    try:
        yield path, relay
    finally:
        server.close()


@asynccontextmanager
async def opened(kubeconfig: Path) -> AsyncIterator[Client]:
    client = Client(kubeconfig)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def store_of(name: str, kubeconfig: Path) -> AsyncIterator[KubernetesStore]:
    async with opened(kubeconfig) as client:
        store = KubernetesStore(client, Scope.of_agent(name, NAMESPACE), timings=WATCH)
        task = asyncio.create_task(store.run())
        try:
            yield store
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# --- nodes


@dataclass(slots=True)
class Nodes:
    """Those that are not played by a whole store."""

    client: Client
    names: list[str]
    policies: frozenset[str]
    desks: dict[str, PortDesk] = field(init=False)
    said: dict[str, PortReport] = field(init=False)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)  # by name: sets of the nodes of a share
    considered: object = None

    def __post_init__(self) -> None:
        self.desks = {name: PortDesk(name) for name in self.names}
        self.said = {name: PortReport() for name in self.names}

    async def run(self, reader: KubernetesStore) -> None:
        async with asyncio.TaskGroup() as group:
            first: set[str] = set()
            for name in self.names:
                share = share_of(name)
                group.create_task(self._watch(share, is_first=share not in first))
                first.add(share)
                await asyncio.sleep(0.01)  # the double is one process
            group.create_task(self._report(reader))

    async def _watch(self, share: str, *, is_first: bool) -> None:
        """All watch; what one of them was told is read."""
        query = {"labelSelector": f"{READERS_LABEL}={share}", "timeoutSeconds": "3600"}
        while True:
            with suppress(ApiError):
                async with self.client.watch(MAPS, silence=3600.0, **query) as events:
                    async for event in events:
                        if is_first and event["type"] == "ADDED":
                            self._take(event["object"])
            await asyncio.sleep(1)

    def _take(self, raw: Json) -> None:
        lines = (json.loads(line) for line in raw["data"][PART_KEY].splitlines())
        name = raw["metadata"]["name"].removeprefix(f"{ALLOCATIONS}-")
        self.parts[name] = {found.node: len(found.own) for found in (PORTS.read(line[1:]) for line in lines)}

    async def _report(self, reader: KubernetesStore) -> None:
        """As an agent does: it looks each second, and when what is published has changed."""
        while True:
            allocations = reader.snapshot().allocations
            if allocations is not None and allocations.groups is not self.considered:
                self.considered = allocations.groups
                for desk in self.desks.values():
                    desk.consider(replace(allocations, bindings=()), NodeState(None, selecting=self.policies))
            due = [name for name, desk in self.desks.items() if desk.report not in (None, self.said.get(name))]
            await asyncio.gather(*map(self._say, due))
            await asyncio.sleep(0.2)

    async def _say(self, name: str) -> None:
        found = self.desks[name].report
        assert found is not None
        with suppress(ApiError):  # it is tried again
            await say(self.client, name, found)
            self.said[name] = found

    def sets(self, index: str) -> dict[str, int]:
        """By node, in the parts that the index names and that have arrived."""
        found: dict[str, int] = {}
        for name, nodes in self.parts.items():
            if name in index:
                found |= nodes
        return found


async def say(client: Client, name: str, ports: PortReport) -> None:
    status = {"portAsks": report_status(NodeReport(name, ports=ports))["portAsks"]}
    await client.patch(object_path(REPORTS, name, subresource="status"), {"status": status})


def index_of(store: KubernetesStore) -> str:
    document = store._published(ALLOCATIONS)
    return document.data[ALLOCATIONS_KEY] if document is not None else ""


def generation_of(store: KubernetesStore) -> int:
    allocations = store.snapshot().allocations
    return allocations.generation if allocations is not None else 0


async def until(holds: Callable[[], bool], what: str, pause: float = 0.05) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"bench: error: not within {PATIENCE:g} s: {what}")
        await asyncio.sleep(pause)
    return time.monotonic() - began


# --- the site


@dataclass(slots=True)
class Site:
    client: Client
    reader: KubernetesStore
    gateways: list[KubernetesStore]
    nodes: Nodes
    relay: Relay
    policies: int
    rows: list[report.Row] = field(default_factory=list)

    def told(self, figure: str, value: float, bar: float | None = None) -> None:
        verdict = f"   {report.at_most(value, bar)}" if bar is not None else ""
        print(f"{figure:<72} {value:>10.2f}{verdict}", flush=True)
        count = {"nodes": len(self.nodes.names) + GATEWAYS + 1, "policies": self.policies}
        self.rows.append({"figure": figure, "value": round(value, 3), "bar": bar, **count})

    def lacking(self, policies: int) -> int:
        """Nodes that have not so many sets in use."""
        index, generation = index_of(self.reader), generation_of(self.reader)
        if any(generation_of(each) < generation for each in self.gateways):
            return len(self.nodes.names)
        sets = self.nodes.sets(index) if "\nparts:" in index else {}
        return sum(sets.get(name, 0) < policies for name in self.nodes.names)

    async def writes(self) -> int:
        """Of all clients so far: every write is another version of the double."""
        return int((await self.client.get(MAPS, limit="1"))["metadata"]["resourceVersion"])

    async def roll_out(self) -> None:
        versions, before, generation = [await self.writes()], self.relay.received, generation_of(self.reader)
        for number in range(self.policies):
            await self.client.create(collection_path_of(), policy_of(number))
        began = time.monotonic()
        while (left := self.lacking(self.policies)) and time.monotonic() - began < PATIENCE:
            await asyncio.sleep(1)
            versions.append(await self.writes())
        took = time.monotonic() - began
        spans = [later - earlier for earlier, later in zip(versions, versions[WINDOW:], strict=False)]
        self.told("seconds from the roll-out until all sets are in use", took if not left else float("inf"), 60)
        self.told("writes a second until then", (versions[-1] - versions[0]) / took, 50)
        self.told("decisions of the operator until then", generation_of(self.reader) - generation)
        self.told(f"writes a second, the busiest {WINDOW} s", max(spans, default=0) / WINDOW)
        self.told("KiB received by an agent that is no gateway, roll-out", (self.relay.received - before) / KIB)
        self.told("KiB received by it since its start", self.relay.received / KIB, 1024)

    async def sizes(self) -> None:
        items = (await self.client.get(MAPS))["items"]
        found = [sum(map(len, (each.get("data") or {}).values())) for each in items]
        self.told("KiB of the largest ConfigMap", max(found) / KIB, 256)
        index = index_of(self.reader)
        self.told("KiB of the index", len(index) / KIB)
        for readers in ("", "gateways", share_of(self.nodes.names[0])):
            texts = [
                each["data"][PART_KEY]
                for each in items
                if each["metadata"]["name"].removeprefix(f"{ALLOCATIONS}-") in index
                and (each["metadata"].get("labels") or {}).get(READERS_LABEL, "") == readers
                and PART_KEY in each["data"]
            ]
            self.told(f"KiB in force for readers {readers or 'all'!r}", sum(map(len, texts)) / KIB)

    async def one_ask(self, times: int) -> None:
        """A pod of one more policy comes to a node: from the ask until its set is in use."""
        await self.client.create(collection_path_of(), policy_of(self.policies))
        await until(
            lambda: len((self.reader.snapshot().allocations or Allocations()).groups) > self.policies, "a group"
        )
        group = max(each.id for each in (self.reader.snapshot().allocations or Allocations()).groups)
        await asyncio.sleep(6)
        took = []
        for name in self.nodes.names[:times]:
            asks = self.nodes.said[name].asks
            began = time.monotonic()
            await say(self.client, name, PortReport((*asks, replace(asks[0], group=group))))
            await until(lambda name=name: self.has(name, self.policies + 1), f"a set of {name}", 0.005)  # type: ignore[misc]
            took.append(time.monotonic() - began)
            await asyncio.sleep(1)
        self.told("ms from one ask to its set in use, median", 1000 * statistics.median(took))
        self.told("ms from one ask to its set in use, p95", 1000 * statistics.quantiles(took, n=20)[-1], 1000)

    def has(self, name: str, policies: int) -> bool:
        generation = generation_of(self.reader)
        are_level = all(generation_of(each) >= generation for each in self.gateways)
        return are_level and self.nodes.sets(index_of(self.reader)).get(name, 0) >= policies


def collection_path_of() -> str:
    return "/apis/routerd.io/v1alpha1/egresspolicies"


def policy_of(number: int) -> Json:
    return policy(f"policy-{number:03}", egressIP=f"198.51.{100 + number // 250}.{number % 250}")


async def load(client: Client, names: Iterable[str]) -> None:
    await client.create("/api/v1/namespaces", namespace(NAMESPACE))
    for each in crds():
        await client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", each)
    await eventually(lambda: is_served(client), "the kinds are known")
    for place, name in enumerate(names):
        labels = {"routerd.io/egress-gateway": ""} if place < GATEWAYS else {}
        await client.create("/api/v1/nodes", node(name, f"10.0.{place // 250}.{place % 250 + 1}", labels))
        meta = {"apiVersion": REPORTS.api_version, "kind": REPORTS.name, "metadata": {"name": name}}
        await client.create(collection_path(REPORTS), meta)
        seen = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = {"addresses": [], "heartbeatSeconds": 300, "lastSeen": seen, "portAsks": []}
        await client.patch(object_path(REPORTS, name, subresource="status"), {"status": status})


async def is_served(client: Client) -> bool:
    with suppress(ApiError):
        await client.get(collection_path(REPORTS), limit="1")
        return True
    return False


async def serve(gateways: list[KubernetesStore], names: list[str]) -> None:
    """Their agents are there."""
    while True:
        for store, name in zip(gateways, names, strict=True):
            store.write_node_report(NodeReport(name, heartbeat=Heartbeat(GATEWAY_HEARTBEAT), ports=PortReport()))
            store.beat()
        await asyncio.sleep(5)


async def measure(options: argparse.Namespace, directory: Path) -> list[report.Row]:
    names = [f"node-{number:04}.example.net" for number in range(options.nodes)]
    async with (
        api_server() as kubeconfig,
        relayed(kubeconfig, directory) as (slow_path, relay),
        opened(kubeconfig) as client,
    ):
        await load(client, names)
        operator = start("operator", config(directory, str(kubeconfig)), directory / "operator.log")
        try:
            async with (
                store_of(names[0], kubeconfig) as first,
                store_of(names[1], kubeconfig) as second,
                store_of(names[GATEWAYS], slow_path) as reader,
            ):
                keys = frozenset(f"EgressPolicy/policy-{number:03}" for number in range(options.policies))
                nodes = Nodes(client, names[GATEWAYS + 1 :], keys)
                site = Site(client, reader, [first, second], nodes, relay, options.policies)
                tasks = [asyncio.create_task(nodes.run(reader)), asyncio.create_task(serve([first, second], names[:2]))]
                await until(lambda: generation_of(reader) > 0, "the operator has decided")
                await asyncio.sleep(5 + options.nodes / 100)
                site.told("KiB received by an agent that is no gateway, at its start", relay.received / KIB)
                await site.roll_out()
                await site.sizes()
                await site.one_ask(options.asks)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                return site.rows
        finally:
            stop(operator)
            print(
                "".join(line for line in (directory / "operator.log").read_text().splitlines(True) if "ERROR" in line)
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--asks", type=int, default=30)
    options = parser.parse_args()
    client_module.CONNECTIONS = 2 * options.nodes  # one pool plays all nodes
    client_module.CONNECT_TIMEOUT = client_module.REQUEST_TIMEOUT = 60.0  # and one process their server
    print(report.machine())
    report.forget("rollout")
    with tempfile.TemporaryDirectory(prefix="bench-rollout-") as directory:
        report.write("rollout", asyncio.run(measure(options, Path(directory))))


if __name__ == "__main__":
    main()
