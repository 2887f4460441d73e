"""The operator's ledger and its published allocations in two ConfigMaps, written under a lease.

Every write bears the resourceVersion that it rests on, and the generation of the lease. Taking over rewrites both
documents, so a former operator that was paused in the middle of a write comes too late: its resourceVersion is
outdated, and what it reads then bears a later lease. The ledger is recorded before allocations are published, and the
status of a service is written from published allocations only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from routerd.cluster.ledger import AuditEntry, Changes, Ledger
from routerd.errors import StoreError
from routerd.formats.document import MAX_DIGITS
from routerd.log import event
from routerd.model import Allocations
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.documents import AUDIT_ENTRIES, FENCE, allocations_data, ledger_data, read_ledger
from routerd.store.kubernetes.resources import ALLOCATIONS, CONFIG_MAPS, LEDGER, collection_path

LOGGER = logging.getLogger("routerd.store")
TRIES = 8  # writes in conflict with others, after which the whole round is made again
T = TypeVar("T")


class Outdated(StoreError):
    """A later lease has written: this operator is not the active one any more."""


class FencedConfigMap:
    """A ConfigMap that only the holder of the lease writes. `fence` is the lease's generation."""

    def __init__(
        self, client: Client, namespace: str, name: str, fence: int, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        self._client = client
        self._collection = collection_path(CONFIG_MAPS, namespace)
        self._namespace = namespace
        self._may_write = may_write
        self.name = name
        self.fence = fence
        self.written_by = 0  # lease of the last writer; 0 = nobody
        self._version: str | None = None  # resourceVersion; "" = there is none, None = unknown
        self._data: Mapping[str, str] = {}
        self.raw: Mapping[str, Any] = {}  # as the API server has it

    async def read(self) -> Mapping[str, str]:
        """Raises ApiError."""
        try:
            raw = await self._client.get(f"{self._collection}/{self.name}")
        except ApiError as error:
            if error.status != 404:
                raise
            raw = {}
        self._note(raw)
        return self._data

    def _note(self, raw: Mapping[str, Any]) -> None:
        meta = raw.get("metadata") or {}
        fence = str((meta.get("annotations") or {}).get(FENCE, "0"))
        self.written_by = int(fence) if fence.isdecimal() and len(fence) <= MAX_DIGITS else 0
        self.raw = raw
        self._version, self._data = str(meta.get("resourceVersion") or ""), raw.get("data") or {}

    async def write(self, data: Mapping[str, str]) -> None:
        """Once, on top of what was read last. Raises ApiError on a conflict: read again, then decide; Outdated."""
        if self._version is None:
            await self.read()
        if self.written_by > self.fence:
            raise Outdated(f"ConfigMap {self.name}: lease {self.fence} is outdated by {self.written_by}")
        if self.written_by == self.fence and self._version and self._data == data:
            return
        if not self._may_write():
            raise Outdated(f"ConfigMap {self.name}: the lease {self.fence} has run out")
        version, self._version = self._version, None  # whatever happens to the write, it must be read again
        self._note(await self._put(version, data))

    async def _put(self, version: str | None, data: Mapping[str, str]) -> Mapping[str, Any]:
        meta: dict[str, Any] = {
            "name": self.name,
            "namespace": self._namespace,
            "annotations": {FENCE: str(self.fence)},
        }
        meta["labels"] = {"app.kubernetes.io/managed-by": "routerd"}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(data)}
        if not version:
            return await self._client.create(self._collection, body)
        meta["resourceVersion"] = version
        return await self._client.replace(f"{self._collection}/{self.name}", body)


class KubernetesLedger:
    """See `routerd.operator.loop.LedgerFile`; its methods are called in a worker thread, `take` in the loop."""

    def __init__(
        self,
        ledger: FencedConfigMap,
        allocations: FencedConfigMap,
        loop: asyncio.AbstractEventLoop,
        on_published: Callable[[Mapping[str, Any], Allocations], None],
    ) -> None:
        """`on_published` is called in the loop with the ConfigMap as the API server has it."""
        self._ledger, self._allocations, self._loop = ledger, allocations, loop
        self._on_published = on_published
        self._audit: tuple[AuditEntry, ...] = ()

    @property
    def lease(self) -> int:
        return self._ledger.fence

    def read(self) -> Ledger:
        return self._wait(self._read())

    def record(self, changes: Changes) -> None:
        """Writes one decision; raises StoreError if the ledger is another than the decision rests on."""
        if changes.before != changes.after:
            self._wait(self._record(changes))

    def publish(self, allocations: Allocations) -> None:
        """Writes the document that agents read. It follows from the ledger alone, so a conflict is written over."""
        self._wait(self._publish(allocations))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _read(self) -> Ledger:
        ledger, self._audit = read_ledger(await self._ledger.read())
        return ledger

    async def _record(self, changes: Changes) -> None:
        audit = (*self._audit, *changes.audit)[-AUDIT_ENTRIES:]
        data = ledger_data(changes.after, audit)
        await self._insist(self._ledger, data, lambda: self._check(changes))
        self._audit = audit
        for entry in changes.audit:
            about = {"what": entry.what, "owner": entry.owner, "address": entry.address}
            event(LOGGER, logging.INFO, "audit", lease=self.lease, **about)

    async def _check(self, changes: Changes) -> None:
        if await self._read() != changes.before:
            raise StoreError(f"ConfigMap {self._ledger.name} was changed by someone else: deciding again")

    async def _publish(self, allocations: Allocations) -> None:
        async def again() -> None:
            await self._allocations.read()

        await self._insist(self._allocations, allocations_data(allocations), again)
        self._on_published(self._allocations.raw, allocations)

    async def _insist(
        self, document: FencedConfigMap, data: Mapping[str, str], again: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Writes; after a conflict it reads `again`, which raises unless the decision still holds."""
        for left in reversed(range(TRIES)):
            try:
                await document.write(data)
                return
            except ApiError as error:
                if error.status != 409 or not left:
                    raise
            await again()


async def take(
    client: Client,
    namespace: str,
    generation: int,
    may_write: Callable[[], bool] = lambda: True,
    on_published: Callable[[Mapping[str, Any], Allocations], None] = lambda raw, allocations: None,
) -> KubernetesLedger:
    """Takes both documents over, under a fence later than every one before. Raises StoreError."""
    ledger = FencedConfigMap(client, namespace, LEDGER, generation, may_write)
    allocations = FencedConfigMap(client, namespace, ALLOCATIONS, generation, may_write)
    await ledger.read()
    await allocations.read()
    # A Lease that was deleted begins at 0 again; the documents remember.
    fence = max(generation, ledger.written_by + 1, allocations.written_by + 1)
    ledger.fence = allocations.fence = fence
    opened = KubernetesLedger(ledger, allocations, asyncio.get_running_loop(), on_published)
    before, audit = read_ledger(ledger._data)
    await ledger.write(ledger_data(before, audit))
    if allocations._version:
        await allocations.write(allocations._data)
    return opened
