"""The operator on Kubernetes: the store always runs, decisions are made and written while the Lease is held."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import routerd
from routerd.cluster.agents import Agents, Patience
from routerd.cluster.assign import AssignSettings, Decision
from routerd.config import Config
from routerd.config.cloud import CloudSettings
from routerd.errors import StoreError
from routerd.log import event
from routerd.model import Allocations, IPNetwork, NodeReport, Snapshot, Writer
from routerd.operator.clouds import Clouds, clouds_of
from routerd.operator.loop import Operator
from routerd.operator.settings import assign_settings
from routerd.serve.api import Noted, RequestRefused, answering, operator_socket
from routerd.serve.notify import notify
from routerd.serve.vitals import Vitals, served
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.lease import Lease, LeaseTimes
from routerd.store.kubernetes.ledger import take
from routerd.store.kubernetes.publish import Publisher
from routerd.store.kubernetes.resources import LEDGER
from routerd.store.kubernetes.status.metallb import CONFIGURATION_STATES, OPERATOR, configuration_state
from routerd.store.kubernetes.status.shown import ShownObjects
from routerd.store.kubernetes.store import KubernetesStore, Scope
from routerd.store.kubernetes.watch import Timings
from routerd.tell.operator_status import OperatorStatus, Tenure, operator_status
from routerd.tell.status import Rounds

LOGGER = logging.getLogger("routerd.operator")


def own_identity() -> str:
    """Unique to this process: a container that is started again is another candidate."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:12]}"


def pod_of(identity: str) -> str:
    """The name of the pod (or host) whose process it is."""
    return identity.rpartition("_")[0]


@dataclass(slots=True)
class LeaderStore:
    """The store as the operator sees it while it is active: allocations that were published, by whoever was active."""

    store: KubernetesStore
    publish: Callable[[Allocations], None]
    wakes: list[Callable[[], None]]

    def snapshot(self) -> Snapshot:
        return self.store.snapshot()

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        return self.store.node_reports()

    def write_allocations(self, allocations: Allocations) -> None:
        self.publish(allocations)

    def on_change(self, callback: Callable[[], None]) -> None:
        self.wakes.append(callback)


@dataclass(slots=True)
class Candidate:
    """One operator process. `run` until cancelled, then `lease` is released."""

    client: Client
    namespace: str
    lease: Lease
    settings: AssignSettings = field(default_factory=AssignSettings)
    timings: Timings = field(default_factory=Timings)
    service_cidrs: tuple[IPNetwork, ...] = ()
    patience: Patience = field(default_factory=Patience)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    metallb_status: bool = True  # whether the configuration's state is shown as MetalLB shows it
    clouds: Clouds | None = field(init=False, default=None)
    operator: Operator | None = field(init=False, default=None)
    publisher: Publisher | None = field(init=False, default=None)
    tasks: tuple[asyncio.Task[None], ...] = field(init=False, default=())  # of `run`, which end with it
    store: KubernetesStore = field(init=False)
    _wakes: list[Callable[[], None]] = field(init=False, default_factory=list)
    _past: Tenure = field(init=False, default_factory=Tenure)  # without the present publisher's writes
    _rounds: Rounds = field(init=False, default_factory=Rounds)  # of former times as the active one, and failed ones
    _obstacle: str = field(init=False, default="")  # why the last attempt to take over failed

    def __post_init__(self) -> None:
        scope = Scope.of_operator(self.namespace, self.service_cidrs)
        self.store = KubernetesStore(self.client, scope, self._changed, self.timings)

    def _changed(self) -> None:
        for wake in self._wakes:
            wake()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            store = group.create_task(self.store.run(), name="store")
            self.tasks = (store, group.create_task(self._stand(), name="candidate"))

    async def _stand(self) -> None:
        try:
            while True:
                await self.lease.acquire()
                self._past = replace(self._past, acquired=self._past.acquired + 1)
                await self._lead()
                self._past = replace(self._past, lost=self._past.lost + 1)
        finally:
            await asyncio.shield(self.lease.release())

    async def _lead(self) -> None:
        """Until the lease is lost. Raises a fault of either task, which is no API error: both try again after one."""
        renewal = asyncio.create_task(self.lease.keep(), name="lease")
        work = asyncio.create_task(self._work(), name="leader")
        try:
            await asyncio.wait({renewal, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            renewal.cancel()
            work.cancel()
            results = await asyncio.gather(renewal, work, return_exceptions=True)
            self._wakes.clear()
            self._past, self._rounds = self._tenure(), self._all_rounds()
            self.operator = self.publisher = self.clouds = None
            self._obstacle = ""
        for fault in results:
            if isinstance(fault, Exception):  # and no cancellation
                raise fault

    async def _work(self) -> None:
        pause = self.timings.first_pause
        while True:
            began = time.perf_counter()
            try:
                ledger = await take(
                    self.client, self.namespace, self.lease.generation, self.lease.is_held, self.store.published
                )
                break
            except StoreError as error:
                self._obstacle = str(error)
                self._rounds = self._rounds.after(time.perf_counter() - began, self._obstacle)
                event(LOGGER, logging.ERROR, "take-over-failed", reason=str(error), retry=pause)
                await self._rest(error, pause)
                pause = min(pause * 2, self.timings.last_pause)
        view = LeaderStore(self.store, ledger.publish, self._wakes)
        writer = Writer(self.lease.identity, f"ConfigMap {self.namespace}/{LEDGER}", ledger.lease)
        self.publisher = Publisher(self.client, self.store, self.lease, self._last, self.timings)
        rules = replace(self.settings.port_rules, on_ask=True)
        self.operator = Operator(
            view, ledger, replace(self.settings, writer=writer, port_rules=rules), in_thread=True, rounds=self._rounds,
            on_decision=self.publisher.wake, rest=self._rest,
            agents=Agents(assumed=False, patience=self.patience),
        )  # fmt: skip
        self.clouds = clouds_of(self.cloud, self.operator)
        if self.clouds is not None:
            self.publisher.lacking, self.clouds.on_lacking = self.clouds.lacking, self.publisher.wake
        self._wakes.append(self.publisher.wake)
        event(LOGGER, logging.INFO, "operator-active", generation=ledger.lease)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.operator.run(), name="operator")
            group.create_task(self.operator.listen(), name="listener")
            group.create_task(self.publisher.run(), name="publisher")
            if self.clouds is not None:
                group.create_task(self.clouds.run(), name="clouds")
            if self.metallb_status:
                group.create_task(self._state_shown().run(), name="configuration-state")

    def _state_shown(self) -> ShownObjects:
        shown = ShownObjects(self.client, CONFIGURATION_STATES, self.namespace, OPERATOR, self.timings)
        shown.wanted = lambda: configuration_state(self.store.snapshot()) if self.lease.is_held() else None
        return shown

    async def answer(self, request: dict[str, Any]) -> Noted:
        """As `Operator.answer`, of the active one alone."""
        if self.operator is None:
            raise RequestRefused(self._why_not())
        return await self.operator.answer(request)

    def _why_not(self) -> str:
        """Why it does not decide, and who does."""
        holder = self.lease.holder
        if self.lease.is_held():
            return f"this operator is taking over: {self._obstacle or 'it reads the ledger'}"
        if holder is None:
            reason = "the Lease has not been read yet"
        elif holder == self.lease.identity:
            reason = "it has lost the Lease, and has seen nobody else take it"
        elif holder:
            reason = f"ask it: kubectl -n {self.namespace} exec {pod_of(holder)} -- routerd …"
        else:
            reason = "nobody is"
        return f"this operator is not the active one; {reason}"

    def status(self) -> OperatorStatus:
        operator, publisher, clouds = self.operator, self.publisher, self.clouds
        refusals = (*(publisher.refusals if publisher else ()), *(clouds.refusals() if clouds else ()))
        return operator_status(
            routerd.__version__, self.store.snapshot(), self.store.node_reports(), self._all_rounds(),
            self._last(), active=operator is not None and self.lease.is_held(),
            refusals=refusals, store=self.store.status(), tenure=self._tenure(),
            cloud_calls=clouds.counts if clouds else None,
        )  # fmt: skip

    def _tenure(self) -> Tenure:
        past, now = self._past, self.publisher
        if now is None:
            return past
        return replace(past, writes=past.writes + now.writes, conflicts=past.conflicts + now.conflicts)

    def _all_rounds(self) -> Rounds:
        return self.operator.rounds if self.operator else self._rounds

    async def _rest(self, error: Exception, seconds: float) -> None:
        if isinstance(error, ApiError):
            await self.client.rest(error, seconds, self.timings.pace)
        else:
            await asyncio.sleep(seconds)

    def _last(self) -> Decision | None:
        return self.operator.last if self.operator else None


async def candidate(config: Config) -> None:
    """`routerd operator` on Kubernetes, until cancelled. EnvironmentFault if the API server cannot be configured."""
    options, namespace = config.operator, config.store.namespace
    times = LeaseTimes(options.lease_duration, options.lease_renew_deadline, options.lease_retry)
    client = Client(config.store.kubeconfig)
    await client.open()
    try:
        lease = Lease(client, namespace, own_identity(), times)
        event(LOGGER, logging.INFO, "operator-started", namespace=namespace, identity=lease.identity)
        patience = Patience(options.gateway_patience, options.node_patience)
        contender = Candidate(
            client,
            namespace,
            lease,
            assign_settings(config),
            service_cidrs=config.service_cidrs,
            metallb_status=config.store.metallb_status,
            patience=patience,
            cloud=config.cloud,
        )
        vitals = Vitals(contender.status, lambda: contender.tasks)
        async with answering(operator_socket(config.run_dir), contender.answer):
            with served(options.metrics_listen, vitals):
                notify("READY=1")
                async with asyncio.TaskGroup() as group:
                    group.create_task(contender.run(), name="candidate")
                    group.create_task(vitals.beat(), name="heart")
    finally:
        await client.close()
