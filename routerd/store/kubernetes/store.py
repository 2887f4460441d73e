"""The Kubernetes store: objects of the API server as snapshots, for the same roles as the embedded store.

Every kind is listed and watched by itself (`watch.py`); a part of the snapshot is None until each kind that it rests
on was read once, and keeps what was last read while the API server is away. This module puts the parts together and
passes this node's report on (`report.py`); what the operator writes is in `ledger.py` and `publish.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from routerd.errors import InputError, StoreError
from routerd.formats.foreign.policies import Asked, with_asked
from routerd.formats.kinds import KINDS, Kind
from routerd.formats.published.parts import Incomplete
from routerd.formats.published.whole import AllocationsReader, unread
from routerd.model import (
    GATEWAY_HEARTBEAT,
    Allocations,
    EgressPolicy,
    EndpointSlice,
    IPNetwork,
    Namespace,
    Node,
    NodeReport,
    Pod,
    Refusal,
    Service,
    Snapshot,
)
from routerd.refs import Ref
from routerd.store.backends import with_backends
from routerd.store.interface import Responses, StoreStatus
from routerd.store.kubernetes.client import Client
from routerd.store.kubernetes.documents import read_allocations, read_report, with_lease
from routerd.store.kubernetes.events import AgentOf, Events
from routerd.store.kubernetes.heartbeat import Heartbeats
from routerd.store.kubernetes.objects import RENEWED, Collection, Key, Models, Raw, StoredObject, key_of
from routerd.store.kubernetes.report import PERIOD, Reporter
from routerd.store.kubernetes.resources import (
    ALLOCATIONS,
    PART_KEY,
    Resource,
    for_agent,
    for_gateway,
    for_operator,
    heartbeat_lease,
)
from routerd.store.kubernetes.status.metallb import SERVICE_STATUSES, owner_of, service_statuses
from routerd.store.kubernetes.status.shown import Shown, ShownObjects
from routerd.store.kubernetes.watch import Reflector, Timings
from routerd.store.merge import merge

LOGGER = logging.getLogger("routerd.store")
CONFIGURING = frozenset(each.name for each in KINDS if each.placed)  # kinds that people write
TIMINGS = Timings()
SHARE = 1  # a merge is followed by a pause of this many times its length: churn cannot take the whole processor
LONGEST_PAUSE = 0.5  # seconds
LACKING = 5.0  # seconds that parts may lack before it is told


@dataclass(frozen=True, slots=True)
class Scope:
    """What one role reads, and for whom."""

    resources: tuple[Resource, ...]
    namespace: str  # of what routerd itself writes
    node: str = ""  # whose report is written, "" = none
    service_cidrs: tuple[IPNetwork, ...] = ()
    keep_status: bool = False  # of objects whose status is written

    @classmethod
    def of_agent(cls, node: str, namespace: str, service_cidrs: tuple[IPNetwork, ...] = ()) -> Scope:
        return cls(for_agent(node, namespace), namespace, node, service_cidrs)

    @classmethod
    def of_operator(cls, namespace: str, service_cidrs: tuple[IPNetwork, ...] = ()) -> Scope:
        return cls(for_operator(namespace), namespace, service_cidrs=service_cidrs, keep_status=True)


class KubernetesStore:
    """See `routerd.store.interface.Store`. Everything runs in the event loop; `client` is open while `run` runs."""

    def __init__(
        self,
        client: Client,
        scope: Scope,
        on_change: Callable[[], None] = lambda: None,
        timings: Timings = TIMINGS,
    ) -> None:
        self.namespace = scope.namespace
        self._scope = scope
        self._client = client
        self._on_change = on_change
        self._timings = timings
        self.reflectors = [self._reflector(each) for each in scope.resources]
        self._reporter = (
            Reporter(client, scope.node, self._uid_of_node, timings, self._changed_in("")) if scope.node else None
        )
        self._models: dict[str, tuple[str, Models[Any]]] = {  # by kind: the part that is made of them
            "Node": ("nodes", Models(Node, attrgetter("name"))),
            "Namespace": ("namespaces", Models(Namespace, attrgetter("name"))),
            "Pod": ("pods", Models(Pod, attrgetter("key"))),
            "Service": ("services", Models(Service, attrgetter("key"))),
            "EndpointSlice": ("endpoint_slices", Models(EndpointSlice, lambda each: f"{each.namespace}/{each.name}")),
        }
        self.events = Events(client, AgentOf(scope.node), self.uid_of, timings)
        self._told: Callable[[], Iterable[Refusal]] = tuple
        self._heartbeats = Heartbeats(client, scope.namespace, scope.node, self._uid_of_node, timings)
        self._service_statuses = ShownObjects(client, SERVICE_STATUSES, scope.namespace, owner_of(scope.node), timings)
        self._is_gateway = False  # this node may be one
        self._dirty = {each.collection.resource.kind.name for each in self.reflectors}
        self._changed = asyncio.Event()
        self._reader = AllocationsReader(self._part_stamp, scope.node)
        self._needs_gateways_parts = asyncio.Event()
        self._lacking: float | None = None  # since when parts lack that the document names, of `time.monotonic`
        self._next_look: asyncio.TimerHandle | None = None  # for these
        self._is_there, self._uid = False, ""  # the ConfigMap: seen since it was written; which one was written
        self._allocations: tuple[str, Allocations | None, InputError | None] = ("", None, None)
        self._reports: dict[str, NodeReport] | None = None
        self._read: dict[str, tuple[StoredObject, NodeReport | None]] = {}  # what they were read from
        self._beats: dict[str, str] = {}  # by name of the Lease
        self._merge_refusals: tuple[Refusal, ...] = ()
        self._policies: Mapping[str, EgressPolicy] | None = None  # as they are written
        self._asked = Asked()
        self._snapshot = Snapshot(service_cidrs=scope.service_cidrs)

    def _reflector(self, resource: Resource) -> Reflector:
        collection = Collection(resource, keep_status=self._scope.keep_status)
        return Reflector(self._client, collection, self._changed_in(resource.kind.name), self._timings)

    # --- what others call

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        """None = not read yet, or not read by this role."""
        if self._reports is None:
            return None
        return {name: with_lease(report, self._beat_of(name)) for name, report in self._reports.items()}

    def _beat_of(self, node: str) -> str:
        return self._beats.get(heartbeat_lease(node), "")

    def write_allocations(self, allocations: Allocations) -> None:
        """Raises StoreError: the operator that is active publishes with its ledger."""
        raise StoreError("only the active operator publishes allocations")

    def write_node_report(self, report: NodeReport) -> None:
        """Returns at once; the report is written beside, again and again until it is accepted."""
        if self._reporter is not None:
            if report.heartbeat is not None:
                self._is_gateway = report.heartbeat.seconds <= GATEWAY_HEARTBEAT
            self._reporter.want(report)

    def beat(self) -> None:
        """Returns at once. A node that is no gateway is seen by its report, which is written now and then."""
        if self._is_gateway:
            self._heartbeats.beat()

    def _uid_of_node(self) -> str:
        here = self.view("Node").get(("", self._scope.node))
        return here.uid if here is not None else ""

    def report_health(self, health: Callable[[], Mapping[str, Any]]) -> None:
        """`health` gives more of the status of this node's RouterdNode whenever a report is written."""
        if self._reporter is not None:
            self._reporter.health = health

    def report_pods(self, told: Callable[[], Iterable[Refusal]]) -> None:
        """`told` gives what is wrong with pods of this node: Events say it."""
        self._told = told

    def report_services(self, told: Callable[[], Mapping[str, Sequence[str]] | None]) -> None:
        """`told` gives the peers that this node announces each Service to: ServiceBGPStatuses say it."""
        node = self._scope.node

        def wanted() -> Mapping[str, Shown] | None:
            announced = told()
            return None if announced is None else service_statuses(node, announced)

        self._service_statuses.wanted = wanted
        self._service_statuses.writers = lambda: max(self.count("Node"), 1)

    def uid_of(self, kind: Kind, namespace: str, name: str) -> str:
        """ "" for what is not known."""
        there = (each.objects.get((namespace, name)) for each in self._collections() if each.resource.kind == kind)
        return next((each.uid for each in there if each is not None), "")

    async def _tell_of_pods(self) -> None:
        while True:
            self.events.want(self._told())
            await asyncio.sleep(PERIOD)

    def status(self) -> StoreStatus:
        answers = sorted(self._client.responses.items())
        return StoreStatus(
            tuple(each.status() for each in self.reflectors),
            dict(self._client.requests),
            tuple(
                Responses(method, str(code) if code else "none", count) for (method, code), count in answers if count
            ),
        )

    async def run(self) -> None:
        """Watches until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for each in self.reflectors:
                group.create_task(each.run(), name=f"watch-{each.collection.resource.label}")
            if self._reporter is not None:
                group.create_task(self._reporter.run(), name="report")
                group.create_task(self._heartbeats.run(), name="heartbeats")
                group.create_task(self._tell_of_pods(), name="pods")
                group.create_task(self.events.run(), name="events")
                group.create_task(self._service_statuses.run(), name="service-statuses")
                group.create_task(self._read_as_gateway(), name="watch-parts-for-gateways")
            group.create_task(self._merge_changes(), name="merge")

    async def _read_as_gateway(self) -> None:
        """From when on the node is a gateway until the end: one that is none any more may be one again."""
        await self._needs_gateways_parts.wait()
        reflector = self._reflector(for_gateway(self.namespace))
        self.reflectors.append(reflector)
        await reflector.run()

    def objects(self, kind: str) -> Iterable[StoredObject]:
        """Objects as read, with uid and resourceVersion: for those who write their status."""
        return [stored for each in self._of(kind) for stored in each.objects.values()]

    def view(self, kind: str) -> Mapping[Key, StoredObject]:
        """Objects of a kind that is one resource: the same value again while nothing changes (`routerd.memo`)."""
        return next((each.view() for each in self._of(kind)), {})

    def count(self, kind: str) -> int:
        return sum(len(each.objects) for each in self._of(kind))

    def take(self, kind: str, raw: Raw) -> None:
        """An object as the API server answered it to a request: the watch says the same a moment later, or has."""
        for each in self.reflectors:
            resource, (namespace, _) = each.collection.resource, key_of(raw)
            is_here = resource.kind.name == kind and resource.namespace in ("", namespace)
            if is_here and each.collection.listed and each.collection.put_answer(raw):
                each.on_change()

    def published(self, raw: Raw, allocations: Allocations, parts: Sequence[str]) -> None:
        """What this process itself has just published need not be read again."""
        self._allocations = (str((raw.get("metadata") or {}).get("resourceVersion")), allocations, None)
        self._reader.is_in_force(parts)
        self._is_there, self._uid = False, str((raw.get("metadata") or {}).get("uid") or "")
        self.take("ConfigMap", raw)
        self._changed_in("ConfigMap")()

    # --- changes

    def _changed_in(self, kind: str) -> Callable[[], None]:
        def changed() -> None:
            self._dirty.add(kind)
            self._changed.set()

        return changed

    async def _merge_changes(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._timings.gather)
            self._changed.clear()
            began = time.perf_counter()
            self.merge()
            if self._lacking is not None and self._next_look is None:
                self._next_look = asyncio.get_running_loop().call_later(LACKING, self._look_for_parts)
            await asyncio.sleep(min(SHARE * (time.perf_counter() - began), LONGEST_PAUSE))

    def _look_for_parts(self) -> None:
        self._next_look = None
        self._changed_in("ConfigMap")()

    def merge(self) -> None:
        """Makes the snapshot anew from what changed, and tells."""
        dirty, self._dirty = self._dirty, set()
        before, reports = self._snapshot, self._reports
        snapshot = self._cluster_parts(before, dirty)
        if dirty & CONFIGURING:
            snapshot = self._config_parts(snapshot)
        if dirty & {*CONFIGURING, "Service", "Pod", "Namespace"}:
            asked = self._asked.policies(snapshot.pods, snapshot.namespaces, snapshot.pools)
            policies = with_asked(with_backends(self._policies, snapshot.services), asked)
            if policies != snapshot.policies:
                snapshot = replace(snapshot, policies=policies)
        if "Lease" in dirty:
            self._beats = {each.name: each.data[RENEWED] for each in self.objects("Lease")}
        if self._is_read("node_reports") and ("RouterdNode" in dirty or self._reports is None):
            self._reports = self._read_reports()
        refusals = self._refusals()
        if refusals != before.refusals:
            snapshot = replace(snapshot, refusals=refusals)
        if snapshot is not before and snapshot != before:
            self._snapshot = snapshot
            self._on_change()
        elif self._reports != reports:
            self._on_change()

    # --- parts of the snapshot

    def _of(self, kind: str) -> list[Collection]:
        return [each for each in self._collections() if each.resource.kind.name == kind]

    def _collections(self) -> list[Collection]:
        return [each.collection for each in self.reflectors]

    def _is_read(self, part: str) -> bool:
        """Whether every kind that it rests on was read; False for a part that this role does not read."""
        read = [each.synced for each in self._collections() if part in each.resource.kind.parts]
        return bool(read) and all(read)

    def _cluster_parts(self, snapshot: Snapshot, dirty: set[str]) -> Snapshot:
        parts: dict[str, Any] = {}
        for kind, (part, models) in self._models.items():
            if kind in dirty and self._is_read(part):
                (collection,) = self._of(kind)
                parts[part] = models.look(collection.view())
        if "endpoint_slices" in parts:
            parts["endpoint_slices"] = tuple(parts["endpoint_slices"].values())
        return replace(snapshot, **parts) if parts else snapshot

    def _config_parts(self, snapshot: Snapshot) -> Snapshot:
        """Pools, peers and policies, which may lie in several kinds; and what was published."""
        loaded = [one for each in self._collections() if each.resource.kind.placed for one in each.loaded()]
        allocations = self._read_allocations() if self._is_read("bgp") else snapshot.allocations
        merged = merge([one for _, one in sorted(loaded, key=lambda one: one[0])], allocations=allocations)
        self._merge_refusals = merged.refusals
        if self._is_read("bgp"):
            snapshot = replace(snapshot, bgp=merged.bgp, allocations=allocations, unread=unread(self._unread()))
        if self._is_read("pools"):
            snapshot = replace(snapshot, pools=merged.pools, pod_pools=merged.pod_pools)
        if self._is_read("policies"):
            self._policies = merged.policies
        return snapshot

    def _read_allocations(self) -> Allocations | None:
        """None before the first ones are published; once known they stay, whatever becomes of the ConfigMap."""
        document = self._published(ALLOCATIONS)
        version, good, before = self._allocations
        changed = self._reader.changed()
        if document is None:
            was_deleted = any(each.deleted and each.deleted == self._uid for each in self._of("ConfigMap"))
            if good is None or self._is_there or was_deleted:  # else the watch has not shown yet what was published
                error = InputError("is gone", file=str(Ref("ConfigMap", self.namespace, ALLOCATIONS))) if good else None
                self._allocations = ("", good, error)
            return good
        self._is_there = True
        if document.version == version and not changed and not isinstance(before, Incomplete):
            return good
        place = f"ConfigMap/{document.namespace}/{document.name}"
        try:
            allocations = read_allocations(self._reader, document.data, place, self._part)
            self._allocations = (document.version, allocations, None)
        except InputError as error:
            self._allocations = (document.version, good, error)
        except ValueError as error:  # a mistake of ours: it costs the document, not the daemon
            self._allocations = (document.version, good, InputError(f"not understood: {error}", file=place))
        if self._reader.is_gateway:
            self._needs_gateways_parts.set()
        is_lacking = isinstance(self._allocations[2], Incomplete)
        self._lacking = (self._lacking or time.monotonic()) if is_lacking else None
        return self._allocations[1]

    def _unread(self) -> InputError | None:
        """Why what is published is not in force here. An agent's watches of the document and of its parts are several,
        so parts may come a moment later; an operator decides nothing meanwhile.
        """
        is_fresh = self._lacking is not None and time.monotonic() - self._lacking < LACKING
        return None if is_fresh and self._scope.node else self._allocations[2]

    def _published(self, name: str) -> StoredObject | None:
        """A ConfigMap of our namespace."""
        documents = (each.objects.get((self.namespace, name)) for each in self._of("ConfigMap"))
        return next((document for document in documents if document is not None), None)

    def _part_stamp(self, name: str) -> object:
        document = self._published(f"{ALLOCATIONS}-{name}")
        return (document.uid, document.version) if document is not None else None

    def _part(self, name: str) -> str | None:
        document = self._published(f"{ALLOCATIONS}-{name}")
        return document.data.get(PART_KEY) if document is not None else None

    def _read_reports(self) -> dict[str, NodeReport]:
        """A report is read again if it was written again: of a thousand nodes some are at any moment."""
        before = self._read
        self._read = {
            stored.name: (stored, before[stored.name][1])
            if stored.name in before and before[stored.name][0] is stored
            else (stored, read_report(stored.name, stored.status))
            for stored in self.objects("RouterdNode")
        }
        return {report.node: report for _, report in self._read.values() if report is not None}

    def _refusals(self) -> tuple[Refusal, ...]:
        refusals = [*self._merge_refusals, *self._asked.refusals]
        for each in self.reflectors:
            refusals += each.collection.refusals()
            refusals += [refusal] if (refusal := each.refusal()) is not None else []
        error = self._unread()
        if error is not None:
            message = f"{error} (what was last published stays in force)"
            refusals.append(Refusal(Ref("ConfigMap", self.namespace, ALLOCATIONS), "InvalidFile", message))
        if self._reporter is not None and (refusal := self._reporter.refusal()) is not None:
            refusals.append(refusal)
        return tuple(sorted(set(refusals), key=lambda one: one.order))


__all__ = ["KubernetesStore", "Timings"]
