"""What one change costs in a large cluster, in CPU time.

    make bench-rounds        or: python -m tests.bench.rounds [--roles R,…] [--times N] [--services N] [--pods N] …

10,000 services with their endpoint slices, 50,000 pods on 500 nodes, 100 egress policies. Each role runs in a process
of its own, on what its store would give it: changes as the API server's watch tells them, or as files. Counted is all
that the process does for one change: taking it, merging it, deciding, planning, writing records and documents as text.
Not counted are HTTP, the kernel's maps (a model holds them) and ExaBGP. Prints median and worst and the peak of the
resident memory, and writes them to build/bench/rounds.json; the exit code is 1 if a median misses its bar.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from bgp import conf
from bgp import plan as bgp_plan
from bgp.path import AdjRibOut, SessionKey
from bgp.path import Desired as BgpDesired
from bgp.rib import Settled
from bgp.speaker import Loading
from egress import plan as egress_plan
from egress.host.links import PodDevice
from egress.kept import Kept
from egress.policy import Desired as EgressDesired
from egress.status import EgressStatus
from egress.undone import Undone
from fib.plan import Status as RouteStatus
from routerd.agent.loop import Agent, Parts
from routerd.agent.reconcile import Reconciler
from routerd.cluster.assign import assign
from routerd.cluster.ledger import Changes, Ledger
from routerd.daemon.processes import Callback, OperatorStore, settle_memory
from routerd.formats.published.whole import AllocationsWriter
from routerd.model import Allocations, NodeReport, Peer, Refusal, ServiceAllocation, Snapshot
from routerd.node.brake import Brake, Limits
from routerd.node.desired import EGRESS_ROOM, LocalFacts, Settings
from routerd.node.sessions import way_to
from routerd.operator.loop import Operator
from routerd.refs import EGRESS, Ref
from routerd.store.embedded.ledger import SqliteLedger
from routerd.store.embedded.published import PublishedFile
from routerd.store.embedded.store import FileStore
from routerd.store.kubernetes.client import Client
from routerd.store.kubernetes.documents import AUDIT_ENTRIES, LedgerText, allocations_data
from routerd.store.kubernetes.resources import ALLOCATIONS, PART_KEY, PART_LABEL, READERS_LABEL, Resource
from routerd.store.kubernetes.status.policies import policy_patches
from routerd.store.kubernetes.status.pools import pool_patches
from routerd.store.kubernetes.status.services import ServicePatches
from routerd.store.kubernetes.store import KubernetesStore, Scope
from routerd.tell.views import PeerView, Row
from tests.k8s.store_lab import config_map, namespace, node, pod, policy, pool, service
from tests.models.node import FakeNode
from tests.models.speaker import SpeakerModel
from upstream.targets import Upstream

BARS = {"agent": 50.0, "operator": 100.0}  # milliseconds of CPU
OUTPUT = Path("build/bench/rounds.json")
TEAMS = 40  # namespaces
PER_FILE = 500  # objects
PATIENCE = 600.0  # seconds
REST = 0.05  # seconds without a round, after which none follows
HERE = "node0"
NAMESPACE = "routerd"
GONE = "gone"  # key of an object that is deleted
SERVICE_CIDR = ip_network("10.96.0.0/12")
Json = dict[str, Any]


# --- the cluster


@dataclass(frozen=True, slots=True)
class Size:
    services: int = 10_000
    pods: int = 50_000
    nodes: int = 500
    policies: int = 100

    def address(self, number: int) -> str:
        """Of a pod, in the pod CIDR of its node."""
        return f"10.{128 + number % self.nodes // 256}.{number % self.nodes % 256}.{number // self.nodes + 1}"

    def pod(self, number: int) -> Json:
        labels = {"app": f"s{number % self.services}"}
        made = pod(f"pod-{number}", f"node{number % self.nodes}", self.address(number), labels)
        return _placed(made, number)

    def service(self, number: int) -> Json:
        made = service(f"s{number}", clusterIP=str(SERVICE_CIDR[number + 1]))
        return _placed(made, number)

    def endpoint_slice(self, number: int, *, ready: bool = True) -> Json:
        chosen = range(number, self.pods, self.services)
        items = [
            {"addresses": [self.address(each)], "nodeName": f"node{each % self.nodes}",
             "conditions": {"ready": ready if each == number else True}}
            for each in chosen
        ]  # fmt: skip
        meta = {"name": f"s{number}-x", "labels": {"kubernetes.io/service-name": f"s{number}"}}
        return _placed({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta,
                        "addressType": "IPv4", "endpoints": items}, number)  # fmt: skip

    def objects(self) -> Iterator[Json]:
        for number in range(TEAMS):
            yield namespace(f"team-{number}")
        for number in range(self.nodes):
            labels = {"routerd.io/egress-gateway": ""} if number < 2 else {}
            made = node(f"node{number}", f"10.0.{number // 250}.{number % 250 + 1}", labels)
            yield {**made, "spec": {"podCIDR": f"10.{128 + number // 256}.{number % 256}.0/24"}}
        yield from pools()
        yield peers()
        for number in range(self.policies):
            yield policy(f"s{number}", pool="egress")
        for number in range(self.services):
            yield self.service(number)
            yield self.endpoint_slice(number)
        for number in range(self.pods):
            yield self.pod(number)


def _placed(made: Json, number: int) -> Json:
    return {**made, "metadata": {**made["metadata"], "namespace": f"team-{number % TEAMS}"}}


def pools() -> list[Json]:
    return [pool("vips", "10.200.0.0/16", uses=("loadbalancer",)), pool("egress", "10.168.60.0/24", uses=("egress",))]


def peers() -> Json:
    lines = (f"- {{peer-address: 10.0.255.{last}, peer-asn: 64512, my-asn: 64512}}\n" for last in (1, 2))
    text = "".join(("peers:\n", *lines))
    return config_map("kube-system", "bgp-config", {"config.yaml": text})


# --- a node and its speaker, in memory


class ModelRoom:
    """`routerd.agent.egress.EgressRoom` on a model of the kernel."""

    name = EGRESS_ROOM

    def __init__(self, size: Size, more: int) -> None:
        """Devices of the pods here are there, and of those that will come."""
        pods = range(0, size.pods + more * size.nodes, size.nodes)
        devices = {IPv4Address(size.address(number)): _device(number) for number in pods}
        self.kernel, self.kept = FakeNode(devices, {"eth0": 2}), Kept()

    def observe(self, desired: EgressDesired) -> egress_plan.Observed:
        return self.kernel.observe()

    def plan(self, desired: EgressDesired, observed: egress_plan.Observed) -> tuple[egress_plan.Action, ...]:
        return egress_plan.plan(desired, observed, self.kept)

    def apply(self, action: egress_plan.Action) -> None:
        self.kernel.apply(action)

    def problems(self, desired: EgressDesired, observed: egress_plan.Observed) -> tuple[egress_plan.Problem, ...]:
        return egress_plan.problems(desired, observed)

    def undone(self, desired: EgressDesired, observed: egress_plan.Observed) -> Undone:
        return Undone(desired, observed)

    def carries(self, owner: Ref, undone: Undone | None) -> bool:
        return owner.kind != EGRESS or (undone is not None and undone.carries(int(owner.name)))

    def makes_new(self, action: egress_plan.Action) -> bool:
        return isinstance(action, egress_plan.CreateTunnel | egress_plan.LoadPrograms)


def _device(number: int) -> PodDevice:
    return PodDevice(number + 1000, f"veth{number}", f"veth{number}", bytes(6), bytes(6))


class ModelSpeaker:
    """Plans as the speaker does, and carries it out in memory."""

    def __init__(self) -> None:
        self.model = SpeakerModel()
        self.forms: dict[SessionKey, Settled] = {}

    def set(self, desired: BgpDesired | None, *, complete: bool = True) -> None:
        if desired is not None:
            held = conf.digests(self.model.peers)
            for action in bgp_plan.plan(
                desired, bgp_plan.Observed(held, self.model.tables), settled=self.forms
            ).actions:
                self.model.carry_out(action)

    async def settled(self, timeout: float) -> bool:
        return True

    async def sent(self, timeout: float) -> bool:
        return True

    async def observe(self) -> Mapping[SessionKey, AdjRibOut]:
        return self.model.tables

    def unloaded(self, desired: BgpDesired) -> Mapping[SessionKey, Loading]:
        return {}

    def reset_by(self, desired: BgpDesired) -> Mapping[SessionKey, tuple[str, ...]]:
        return {}


@dataclass
class Host:
    """What an agent asks its node."""

    store: KubernetesStore | FileStore

    def snapshot(self) -> Snapshot:
        return self.store.snapshot()

    def store_status(self) -> None:
        """Files, or a watch that is not there."""

    def surroundings(self, before: LocalFacts) -> LocalFacts:
        return before

    def facts(self, peers: tuple[Peer, ...], before: LocalFacts) -> LocalFacts:
        return LocalFacts({way_to(peer): ip_address("10.0.0.1") for peer in peers}, ("eth0",))

    def peers(self) -> Mapping[SessionKey, PeerView]:
        return {}

    def is_settled(self) -> bool:
        return True

    def refusals(self) -> tuple[Refusal, ...]:
        return ()

    def upstream(self) -> Upstream:
        return Upstream()

    def bfd_refused(self) -> Mapping[str, int]:
        return {}

    def egress(self) -> EgressStatus:
        return EgressStatus()

    def nat(self) -> tuple[Row, ...]:
        return ()

    def routes(self) -> RouteStatus:
        return RouteStatus()


# --- stores that are fed


class Watched:
    """A Kubernetes store whose watches say what the bench says."""

    def __init__(self, scope: Scope, on_change: Callable[[], None]) -> None:
        self.store = KubernetesStore(Client(), scope, on_change)
        self._versions = itertools.count(1)
        self._node = scope.node
        self.said: dict[tuple[str, str], Json] = {}  # the latest of those whose status is written
        for each in self.store.reflectors:
            each.collection.replace(())

    def say(self, *objects: Json) -> Json:
        """An event of a watch for each object, read from its JSON. Returns the last one."""
        raw: Json = {}
        for each in objects:
            if each["kind"] in ("Service", "EgressPolicy", "AddressPool"):
                self.said[each["kind"], each["metadata"]["name"]] = each
            meta = {"uid": each["metadata"]["name"], **each["metadata"], "resourceVersion": str(next(self._versions))}
            raw = json.loads(json.dumps({**each, "metadata": meta}))
            for reflector in self.store.reflectors:
                if self._is_for(reflector.collection.resource, raw):
                    collection = reflector.collection
                    collection.remove(raw) if raw.get(GONE) else collection.put(raw)
                    reflector.on_change()
        return raw

    def _is_for(self, resource: Resource, raw: Json) -> bool:
        meta = raw["metadata"]
        if resource.kind.name != raw["kind"] or resource.namespace not in ("", meta.get("namespace", "")):
            return False
        if raw["kind"] == "Pod" and self._node:
            return bool(raw["spec"]["nodeName"] == self._node)
        readers = (meta.get("labels") or {}).get(READERS_LABEL, "")
        if self._node and bool(readers) != bool(resource.part):
            return False
        if resource.part:
            return resource.label_selector == f"{READERS_LABEL}={readers}"
        return resource.field_selector in ("", f"metadata.name={meta['name']}") or "!=" in resource.field_selector


class Directory:
    """A file store, and files that change."""

    def __init__(self, path: Path, on_change: Callable[[], None]) -> None:
        self.path, self.published = path / "manifests", path / "allocations.yaml"
        (self.path / "changes").mkdir(parents=True)
        self.store = FileStore(self.path, self.published, service_cidrs=(SERVICE_CIDR,), on_change=on_change)

    def say(self, objects: Iterable[Json]) -> None:
        """Writes a file for each object; one of that name is another version of it."""
        for each in objects:
            target = self.path / "changes" / f"{each['kind']}-{each['metadata']['name']}.json"
            if each.get(GONE):
                target.unlink()
                continue
            temporary = target.with_suffix(".tmp")
            temporary.write_text(json.dumps(each))
            temporary.replace(target)

    def fill(self, objects: Iterable[Json]) -> None:
        for number, some in enumerate(_batches(objects, PER_FILE)):
            text = "\n---\n".join(map(json.dumps, some))
            (self.path / f"{number:04}.yaml").write_text(text)


def _batches(objects: Iterable[Json], size: int) -> Iterator[list[Json]]:
    left = iter(objects)
    while some := list(itertools.islice(left, size)):
        yield some


@dataclass
class Records:
    """The ledger and its documents as `KubernetesLedger` makes them, without an API server."""

    watched: Watched
    content: Ledger = field(default_factory=Ledger)
    text: LedgerText = field(default_factory=LedgerText)
    writer: AllocationsWriter = field(default_factory=AllocationsWriter)
    writes: int = 0

    def read(self) -> Ledger:
        return self.content

    def record(self, changes: Changes) -> None:
        if changes.before != changes.after:
            self.text.written(changes.after, changes.audit[-AUDIT_ENTRIES:])
            self.content = changes.after

    # --- and what the operator sees of the store

    def snapshot(self) -> Snapshot:
        return self.watched.store.snapshot()

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        return self.watched.store.node_reports()

    def write_allocations(self, allocations: Allocations) -> None:
        """The store is told what was published, as by the ledger: it reads no part of its own again."""
        published = self.writer.written(allocations)
        raw = self.watched.say(config_map(NAMESPACE, ALLOCATIONS, dict(allocations_data(published))))
        self.watched.store.published(raw, allocations, [part.name for part in published.parts])

    def on_change(self, callback: Callable[[], None]) -> None:
        """The store has its own."""


def published_objects(allocations: Allocations, writer: AllocationsWriter) -> list[Json]:
    """ConfigMaps with which an operator publishes: parts first."""
    published = writer.written(allocations)
    parts = [config_map(NAMESPACE, f"{ALLOCATIONS}-{part.name}", {PART_KEY: part.text}) for part in published.parts]
    for part, written in zip(parts, published.parts, strict=True):
        part["metadata"]["labels"] = {PART_LABEL: ALLOCATIONS}
        part["metadata"]["labels"] |= {READERS_LABEL: written.readers} if written.readers else {}
    return [*parts, config_map(NAMESPACE, ALLOCATIONS, dict(allocations_data(published)))]


# --- roles


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happens once in a while."""

    name: str
    objects: Callable[[int], list[Json]]  # of its n-th time


@dataclass
class Result:
    role: str
    store: str
    reading: float = 0.0  # seconds of CPU for everything at the start
    first: float = 0.0  # and for the first round
    changes: dict[str, list[float]] = field(default_factory=dict)  # milliseconds of CPU
    memory: float = 0.0  # MiB, at most
    profile: str = ""  # file
    only: str = ""  # words of the changes to measure

    def rows(self) -> list[dict[str, Any]]:
        common = {"bench": "rounds", "role": self.role, "store": self.store}
        about = {"reading_s": round(self.reading, 2), "first_s": round(self.first, 2), "peak_mib": round(self.memory)}
        common |= {"bar_ms": BARS[self.role], **about}
        return [
            {**common, "change": name, "median_ms": round(statistics.median(took), 1), "worst_ms": round(max(took), 1)}
            for name, took in self.changes.items()
        ]


@dataclass
class Bench:
    """One role's process: `say` tells its store of objects. `done` counts its rounds, None = `say` makes them."""

    result: Result
    say: Callable[[list[Json]], None]
    times: int
    done: Callable[[], int] | None = None

    async def measure(self, changes: Iterable[Change]) -> None:
        settle_memory()
        profile = cProfile.Profile() if self.result.profile else None
        for change in (each for each in changes if self.result.only in each.name):
            found = self.result.changes.setdefault(change.name, [])
            for number in range(self.times):
                objects, before = change.objects(number), self.count()
                began = time.process_time()
                if profile is not None:
                    profile.enable()
                self.say(objects)
                await self.quiet(before)
                if profile is not None:
                    profile.disable()
                found.append((time.process_time() - began) * 1e3)
        if profile is not None:
            profile.dump_stats(self.result.profile)
        self.result.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def count(self) -> int:
        return self.done() if self.done is not None else 0

    async def quiet(self, before: int) -> None:
        """Until there was a round after `before`, and no more follows."""
        deadline, seen = time.monotonic() + PATIENCE, before
        while self.done is not None and (seen == before or seen != self.count()):
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: error: no round within {PATIENCE:g} s")
            seen = self.count()
            await asyncio.sleep(REST)


def changes_of(size: Size, role: str, store: str) -> list[Change]:
    """Those that the role sees in this store."""

    def added(number: int) -> list[Json]:
        return [size.service(size.services + number), size.endpoint_slice(size.services + number)]

    found = [
        Change("a service is added", added),
        Change("a policy is added", lambda n: [policy(f"s{size.policies + n}", pool="egress")]),
        # of the first service that was added, as files hold it by itself
        Change("an endpoint flips", lambda n: [size.endpoint_slice(size.services, ready=n % 2 == 1)]),
        Change("a pod is added", lambda n: [size.pod(size.pods + size.nodes * n)]),
    ]
    if role == "agent":
        return found

    def other(number: int) -> Json:
        """Of those that were added: it asks for an address, and has its port changed."""
        made = size.service(size.services + number)
        ports = [{"port": 8000 + number, "protocol": "TCP"}]
        asks = {"lbipam.cilium.io/ips": f"10.200.200.{number + 1}"}
        meta = {**made["metadata"], "annotations": asks}
        return {**made, "metadata": meta, "spec": {**made["spec"], "ports": ports}}

    changed = [
        Change("a service asks for another", lambda n: [other(n)]),
        Change("a service is deleted", lambda n: [{**other(n), GONE: True}]),
    ]
    edited = Change("a pool is edited", lambda n: [pool("more", f"10.201.{n}.0/24", uses=("loadbalancer",))])
    return [*(found[:2] if store == "kubernetes" else found), *changed, edited]


def decided(size: Size) -> Allocations:
    """What an operator publishes for the cluster."""
    watched = Watched(Scope.of_operator(NAMESPACE, (SERVICE_CIDR,)), lambda: None)
    watched.say(*(each for each in size.objects() if each["kind"] not in ("Pod", "EndpointSlice", "Namespace")))
    watched.store.merge()
    return assign(watched.store.snapshot(), Ledger(), {}, time.time()).allocations


def with_more(allocations: Allocations, number: int) -> Allocations:
    """With a VIP for the n-th service that is added."""
    given = ServiceAllocation(f"team-{number % TEAMS}/s{number}", "vips", (IPv4Address("10.200.128.0") + number,))
    services = tuple(sorted((*allocations.services, given), key=lambda each: each.service))
    return replace(allocations, generation=allocations.generation + 1, services=services)


def documents_of(size: Size, times: int) -> tuple[list[Json], list[list[Json]]]:
    """ConfigMaps of the first allocations, and those that are new with each further service."""
    allocations, writer, known = decided(size), AllocationsWriter(), set[str]()
    found = []
    for number in range(times + 1):
        *parts, index = published_objects(allocations, writer)
        found.append([*(part for part in parts if part["metadata"]["name"] not in known), index])
        known |= {part["metadata"]["name"] for part in parts}
        allocations = with_more(allocations, size.services + number)
    return found[0], found[1:]


def agent_of(
    store: KubernetesStore | FileStore, room: ModelRoom, tasks: Mapping[str, Callable[[], Awaitable[None]]]
) -> Agent:
    host, brake = Host(store), Brake(Limits())
    return Agent(Parts(Settings(HERE), host, Reconciler(ModelSpeaker(), [room]), brake, tasks=tasks, period=PATIENCE))


async def agent_on_kubernetes(result: Result, size: Size, times: int) -> None:
    """What the operator publishes comes as a change of its own."""
    on_store, room = Callback(), ModelRoom(size, times)
    first, further = documents_of(size, times)
    watched = Watched(Scope.of_agent(HERE, NAMESPACE, (SERVICE_CIDR,)), on_store)
    body = agent_of(watched.store, room, {})
    on_store.to = body.wake
    began = time.process_time()
    watched.say(*size.objects(), *first)

    def say(objects: list[Json]) -> None:
        watched.say(*objects)
        watched.store.merge()

    bench = Bench(result, say, times, lambda: body.status.rounds.done)
    async with running(body.run()):
        watched.store.merge()
        result.reading = time.process_time() - began
        await bench.quiet(0)
        result.first = time.process_time() - began - result.reading
        published = Change("a VIP is published", lambda number: further[number])
        await bench.measure([*changes_of(size, "agent", "kubernetes"), published])


async def operator_on_kubernetes(result: Result, size: Size, times: int) -> None:
    """With the status of services, and with what comes back of both: one change is several rounds."""
    changed = asyncio.Event()
    watched = Watched(Scope.of_operator(NAMESPACE, (SERVICE_CIDR,)), changed.set)
    records = Records(watched)
    body, kept = Operator(records, records), ServicePatches()
    began = time.process_time()
    watched.say(*(each for each in size.objects() if each["kind"] not in ("Pod", "EndpointSlice", "Namespace")))

    def say(objects: list[Json]) -> None:
        watched.say(*objects)
        watched.store.merge()
        while changed.is_set():
            changed.clear()
            body.round()
            watched.say(*patched(watched, body, kept))
            watched.store.merge()

    result.reading = time.process_time() - began
    say([])
    result.first = time.process_time() - began - result.reading
    await Bench(result, say, times).measure(changes_of(size, "operator", "kubernetes"))


def patched(watched: Watched, body: Operator, kept: ServicePatches) -> list[Json]:
    """Objects with the status that the operator writes."""
    if body.last is None:
        return []
    store, moment, ledger = watched.store, "2026-01-01T00:00:00Z", body.last.ledger
    snapshot, objects = store.snapshot(), store.objects
    services, _ = kept.of(
        store.view("Service"), snapshot, lambda address: any(each.address == address for each in ledger.addresses)
    )
    policies = policy_patches(objects("EgressPolicy"), snapshot, moment)
    pools = pool_patches(objects, snapshot, body.last.counts, moment)
    found = [*services, *policies, *pools]
    return [{**watched.said[each.kind.name, each.name], "status": each.status} for each in found]


async def agent_on_files(result: Result, size: Size, times: int) -> None:
    on_store, room = Callback(), ModelRoom(size, times)
    with tempfile.TemporaryDirectory() as directory:
        files = Directory(Path(directory), on_store)
        files.fill(size.objects())
        PublishedFile(files.published).write(decided(size))
        body = agent_of(files.store, room, {"store": files.store.run})
        on_store.to = body.wake
        bench = Bench(result, files.say, times, lambda: body.status.rounds.done)
        began = time.process_time()
        async with running(body.run()):
            await until(lambda: body.status.ready)
            result.reading = time.process_time() - began
            await bench.measure(changes_of(size, "agent", "files"))


async def operator_on_files(result: Result, size: Size, times: int) -> None:
    """Its ledger is on disk."""
    on_store = Callback()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        files = Directory(Path(directory), on_store)
        files.fill(size.objects())
        ledger = SqliteLedger(Path(directory) / "ledger.db")
        stack.callback(ledger.close)
        store = OperatorStore(files.store)
        on_store.to = store.changed
        body = Operator(store, ledger)
        bench = Bench(result, files.say, times, lambda: body.rounds.done)
        began = time.process_time()
        async with running(files.store.run(), body.run()):
            await until(lambda: body.rounds.done > 0)
            result.reading = time.process_time() - began
            await bench.measure(changes_of(size, "operator", "files"))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(REST)


@contextlib.asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A fault of any of it ends the benchmark."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        yield
        for task in tasks:
            task.cancel()


ROLES = {
    "agent-kubernetes": agent_on_kubernetes,
    "operator-kubernetes": operator_on_kubernetes,
    "agent-files": agent_on_files,
    "operator-files": operator_on_files,
}


class InLoop(ThreadPoolExecutor):
    """Runs what is given to threads at once, so that a profile shows it."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            done.set_exception(error)
        return done


async def measured(size: Size, asked: argparse.Namespace) -> Result:
    result = Result(*asked.role.split("-"), profile=asked.profile, only=asked.only)
    if asked.profile:
        asyncio.get_running_loop().set_default_executor(InLoop())
    await ROLES[asked.role](result, size, asked.times)
    return result


def in_child(role: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The role in a process of its own, whose memory is nobody else's."""
    options = [f"--{name}={value}" for name, value in vars(asked).items() if name not in ("role", "roles")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.rounds", f"--role={role}", *options], stdout=subprocess.PIPE, check=True
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    for row in rows:
        verdict = "held" if row["median_ms"] <= row["bar_ms"] else "MISSED"
        figures = f"{row['median_ms']:7.1f} ms, worst {row['worst_ms']:7.1f}"
        print(f"{role:20} {row['change']:22} {figures}   bar {row['bar_ms']:g} {verdict}", flush=True)
    about = rows[0]
    print(f"{role:20} reading {about['reading_s']} s, first round {about['first_s']} s, peak {about['peak_mib']} MiB")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--roles", default=",".join(ROLES))
    parser.add_argument("--role", default="", help="one, in this process")
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--only", default="", help="words of the changes to measure")
    parser.add_argument("--profile", default="", help="the file that a profile of the changes is written to")
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    size = Size(asked.services, asked.pods, asked.nodes, asked.policies)
    if asked.role:
        print(json.dumps(asyncio.run(measured(size, asked)).rows()))
        return
    rows = [row for role in asked.roles.split(",") for row in in_child(role, asked)]
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sys.exit(int(any(row["median_ms"] > row["bar_ms"] for row in rows)))


if __name__ == "__main__":
    main()
