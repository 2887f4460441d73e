"""The active operator's writes to status subresources and Events. What to write is decided in `k8s_status`.

A conflict is read again and decided again. Nothing is written when nothing changed, nor when the lease has run out.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ipam.pool import Counts
from routerd.ledger import Ledger
from routerd.log import event
from routerd.model import IPAddress, Refusal
from routerd.store.k8s_client import ApiError, Client
from routerd.store.k8s_events import Events
from routerd.store.k8s_status import StatusPatch, policy_patches, pool_patches, service_patches
from routerd.store.k8s_watch import Timings
from routerd.store.kubernetes import KubernetesStore

LOGGER = logging.getLogger("routerd.store")
AT_ONCE = 16  # requests in flight
TRIES = 5  # rounds in a row with conflicts before a pause


class Publisher:
    """`run` while the lease is held; `wake` when the store or the decision changed."""

    def __init__(
        self,
        client: Client,
        store: KubernetesStore,
        identity: str,
        *,
        ledger: Callable[[], Ledger | None],
        counts: Callable[[], Mapping[str, Counts]],
        may_write: Callable[[], bool],
        timings: Timings,
    ) -> None:
        self._client, self._store, self._timings = client, store, timings
        self._ledger, self._counts, self._may_write = ledger, counts, may_write
        self._events = Events(client, identity, self._uid_of)
        self._wake = asyncio.Event()
        self._wake.set()
        self._refusals: tuple[Refusal, ...] = ()
        self._recorded: tuple[Ledger | None, frozenset[IPAddress]] = (None, frozenset())
        # By object, what was written and the version that came of it: a schema of another release drops what it does
        # not know, and the same write again would not change that.
        self._written: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.writes = 0
        self.conflicts = 0

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        failures = conflicts = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            results = await self._write_all(self._plan())
            failed, in_conflict = results.count("failed"), results.count("conflict")
            failures = failures + 1 if failed else 0
            conflicts = conflicts + 1 if in_conflict else 0
            if failed or conflicts > TRIES:
                power = min(max(failures, conflicts - TRIES) - 1, 16)
                pause = min(self._timings.last_pause, self._timings.first_pause * 2**power)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            if failed or in_conflict:
                self._wake.set()
            if self._may_write():
                snapshot = self._store.snapshot()
                decided = snapshot.allocations.refusals if snapshot.allocations else ()
                await self._events.tell((*snapshot.refusals, *decided, *self._refusals))

    def _plan(self) -> list[StatusPatch]:
        """Nothing before the first decision: until then it is not known which addresses are ours."""
        if self._ledger() is None:
            return []
        snapshot, known = self._store.snapshot(), self._store.known
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        services, refusals = service_patches(known("Service"), snapshot, self._addresses())
        self._refusals = tuple(refusals)
        policies = policy_patches(known("EgressPolicy"), snapshot, now)
        return services + policies + pool_patches(known("AddressPool"), snapshot, self._counts(), now)

    def _addresses(self) -> frozenset[IPAddress]:
        ledger = self._ledger()
        if ledger is not self._recorded[0]:
            self._recorded = (ledger, frozenset(each.address for each in ledger.addresses) if ledger else frozenset())
        return self._recorded[1]

    def _uid_of(self, kind: str, namespace: str, name: str) -> str:
        known = self._store.known(kind)
        return next((each.uid for each in known if (each.namespace, each.name) == (namespace, name)), "")

    async def _write_all(self, patches: list[StatusPatch]) -> list[str]:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(patch: StatusPatch) -> str:
            async with limit:
                return await self._write(patch)

        return list(await asyncio.gather(*map(one, patches)))

    async def _write(self, patch: StatusPatch) -> str:
        """ "written", "conflict", "gone", "failed"; "late" without the lease."""
        if not self._may_write():
            return "late"
        if self._written.get(patch.path) == (patch.version, patch.status):
            return "written"
        try:
            raw = await self._client.patch(patch.path, patch.body)
        except ApiError as error:
            return await self._failed(patch, error)
        self.writes += 1
        self._written[patch.path] = (str(raw["metadata"]["resourceVersion"]), patch.status)
        self._store.take(patch.resource.kind, raw)
        return "written"

    async def _failed(self, patch: StatusPatch, error: ApiError) -> str:
        if error.status == 404:
            self._written.pop(patch.path, None)
            return "gone"  # the watch will say so
        try:
            if not error.is_conflict:
                raise error
            path = patch.resource.object_path(patch.name, patch.namespace)
            self._store.take(patch.resource.kind, await self._client.get(path))
        except ApiError as fault:
            if fault.status == 404:
                return "gone"
            about = f"{patch.resource.plural}/{patch.name}"
            event(LOGGER, logging.WARNING, "status-not-written", object=about, reason=str(fault))
            return "failed"
        self.conflicts += 1
        return "conflict"
