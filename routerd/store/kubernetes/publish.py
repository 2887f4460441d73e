"""The active operator's writes to status subresources, with Events beside them. `status` decides what to write.

A conflict is read again and decided again. Nothing is written when nothing changed, nor when the lease has run out, nor
while the API server is away: whoever keeps the lease tries.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from routerd.cluster.assign import Decision
from routerd.cluster.ledger import Ledger
from routerd.formats.kinds import KINDS
from routerd.log import event
from routerd.model import IPAddress, Refusal
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.events import Events, Writer
from routerd.store.kubernetes.resources import object_path
from routerd.store.kubernetes.status.nodes import address_patches, node_patches, welcome_patches
from routerd.store.kubernetes.status.patches import StatusPatch, is_said
from routerd.store.kubernetes.status.policies import policy_patches
from routerd.store.kubernetes.status.pools import pool_patches
from routerd.store.kubernetes.status.services import ServicePatches
from routerd.store.kubernetes.store import KubernetesStore
from routerd.store.kubernetes.watch import Timings

LOGGER = logging.getLogger("routerd.store")
AT_ONCE = 16  # requests in flight
WRITTEN = tuple(each for each in KINDS if "operator" in each.status_by)
TRIES = 5  # conflicts in a row over one object before a pause


class Publisher:
    """`run` while the lease is held; `wake` when the store or the decision changed."""

    def __init__(
        self,
        client: Client,
        store: KubernetesStore,
        lease: Writer,
        decided: Callable[[], Decision | None],
        timings: Timings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`decided` gives the last decision, None before the first one."""
        self._client, self._store, self._lease = client, store, lease
        self._decided, self._timings, self._clock = decided, timings, clock
        self._events = Events(client, lease, self._store.uid_of, timings)
        self._wake = asyncio.Event()
        self._failed: dict[str, tuple[int, float]] = {}  # by object: how often in a row, and when to try again
        self._undone = False  # the last pass: for want of contact or of the lease, which is no failure of an object's
        self._refusals: tuple[Refusal, ...] = ()
        self._services = ServicePatches()
        self._recorded: tuple[Ledger | None, frozenset[IPAddress]] = (None, frozenset())
        # By object, what was written and the version that came of it: a schema of another release drops what it does
        # not know, and the same write again would not change that.
        self._written: dict[str, tuple[str, StatusPatch]] = {}
        # Nodes with addresses of a cloud, and why some wait; None = it is not known yet.
        self.lacking: Callable[[], Mapping[str, str] | None] = dict
        self.writes = 0
        self.conflicts = 0

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Objects whose status is not written, with why."""
        return self._refusals

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. Events wait for no status, and no status for an Event."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._events.run(), name="events")
            group.create_task(self._publish(), name="status")

    async def _publish(self) -> None:
        while True:
            self._wake.clear()
            self._undone = False
            patches = self._plan()
            self._tell()
            await self._write_all(patches)
            if self._undone:
                await self._is_back()
            else:
                await self._is_woken()

    async def _is_back(self) -> None:
        """Contact may be back by now, through others: nothing would wake what was left undone."""
        if self._client.contact.is_lost:
            await self._client.contact.returned(self._timings.pace)
        else:
            await asyncio.sleep(self._timings.first_pause * random.uniform(0.5, 1.0))

    async def _is_woken(self) -> None:
        """Until something changed, or what failed is to be tried again."""
        due = min((when for _, when in self._failed.values()), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(due - self._clock(), 0.0)):
                await self._wake.wait()

    def _tell(self) -> None:
        snapshot = self._store.snapshot()
        decided = snapshot.allocations.refusals if snapshot.allocations else ()
        self._events.want((*snapshot.refusals, *decided, *self._refusals))

    def _plan(self) -> list[StatusPatch]:
        """Nothing before the first decision: until then it is not known which addresses are ours."""
        decision = self._decided()
        if decision is None:
            return []
        snapshot, objects = self._store.snapshot(), self._store.objects
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        recorded = lambda address: address in self._addresses(decision.ledger)  # noqa: E731
        services, refusals = self._services.of(self._store.view("Service"), snapshot, recorded)
        self._refusals = tuple(refusals)
        policies = policy_patches(objects("EgressPolicy"), snapshot, now)
        nodes = node_patches(objects("RouterdNode"), decision.silent, now)
        welcomed = welcome_patches(objects("Node"), objects("RouterdNode"), decision.silent)
        nodes += address_patches(objects("Node"), self.lacking(), now)
        return services + policies + pool_patches(objects, snapshot, decision.counts, now) + nodes + welcomed

    def _addresses(self, ledger: Ledger) -> frozenset[IPAddress]:
        if ledger is not self._recorded[0]:
            self._recorded = (ledger, frozenset(each.address for each in ledger.addresses))
        return self._recorded[1]

    async def _write_all(self, patches: list[StatusPatch]) -> None:
        """What is wrong with one object delays no other."""
        paths = {patch.path for patch in patches}
        self._failed = {path: failed for path, failed in self._failed.items() if path in paths}
        self._forget()
        now, limit = self._clock(), asyncio.Semaphore(AT_ONCE)

        async def one(patch: StatusPatch) -> None:
            async with limit:
                await self._write(patch)

        due = [patch for patch in patches if self._failed.get(patch.path, (0, now))[1] <= now]
        await asyncio.gather(*map(one, due))

    def _forget(self) -> None:
        """Drops what was written to objects that are gone: they come and go for as long as the operator runs."""
        if len(self._written) > sum(self._store.count(each.name) for each in WRITTEN):
            objects = [(each, one) for each in WRITTEN for one in self._store.objects(each.name)]
            paths = {object_path(each, one.name, one.namespace, "status") for each, one in objects}
            self._written = {path: written for path, written in self._written.items() if path in paths}

    async def _write(self, patch: StatusPatch) -> None:
        if patch.path in self._written and is_said(patch, *self._written[patch.path]):
            return
        if not self._lease.is_held() or self._client.contact.is_lost:
            self._undone = True
            return
        try:
            raw = await self._client.patch(patch.path, patch.body, patch.media)
        except ApiError as error:
            await self._after(patch, error)
            return
        self.writes += 1
        self._failed.pop(patch.path, None)
        self._written[patch.path] = (str(raw["metadata"]["resourceVersion"]), patch)
        self._store.take(patch.kind.name, raw)

    async def _after(self, patch: StatusPatch, error: ApiError) -> None:
        """A conflict is read again, and decided again at once; anything else later, and later each time."""
        try:
            if error.is_conflict:
                path = object_path(patch.kind, patch.name, patch.namespace)
                self._store.take(patch.kind.name, await self._client.get(path))
        except ApiError as fault:
            error = fault
        if error.is_unreachable and self._client.contact.is_lost:
            self._undone = True
            return
        if error.status == 404:
            self._written.pop(patch.path, None)
            return  # the watch will say so
        failures = self._failed.get(patch.path, (0, 0.0))[0] + 1
        self.conflicts += error.is_conflict
        if failures == 1 and not error.is_conflict:
            about = f"{patch.kind.plural}/{patch.name}"
            event(LOGGER, logging.WARNING, "status-not-written", object=about, reason=str(error))
        power = failures - (TRIES if error.is_conflict else 1)
        pause = min(self._timings.last_pause, self._timings.first_pause * 2 ** min(power, 16)) if power >= 0 else 0.0
        self._failed[patch.path] = (failures, self._clock() + pause * random.uniform(0.5, 1.0))
