"""The operator's ledger and its published allocations in two ConfigMaps with parts, written under a lease.

Every write bears the resourceVersion that it rests on, and the generation of the lease. Taking over rewrites both
documents, so a former operator that was paused in the middle of a write comes too late: its resourceVersion is
outdated, and what it reads then bears a later lease. The ledger is recorded before allocations are published, and the
status of a service is written from published allocations only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from routerd.cluster.ledger import AuditEntry, Changes, Ledger
from routerd.errors import StoreError
from routerd.formats.document import MAX_DIGITS
from routerd.formats.published.parts import Part
from routerd.formats.published.whole import AllocationsWriter
from routerd.log import event
from routerd.model import Allocations
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.documents import (
    AUDIT_ENTRIES,
    FENCE,
    Data,
    LedgerText,
    allocations_data,
    ledger_parts,
    named_parts,
)
from routerd.store.kubernetes.parts import Outdated, Parts
from routerd.store.kubernetes.resources import ALLOCATIONS, CONFIG_MAPS, LEDGER, collection_path

LOGGER = logging.getLogger("routerd.store")
TRIES = 8  # writes in conflict with others, after which the whole round is made again
T = TypeVar("T")
# Called in the loop with the ConfigMap as the API server has it, what it says, and the names of its parts.
OnPublished = Callable[[Mapping[str, Any], Allocations, Sequence[str]], None]


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
        self.writes = 0

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
        self.writes += 1
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


@dataclass(frozen=True, slots=True)
class Document:
    """A document and its parts, which are made before it and removed after it."""

    index: FencedConfigMap
    parts: Parts

    async def write(self, data: Data, parts: Sequence[Part], again: Callable[[], Awaitable[None]]) -> None:
        """After a conflict it reads `again`, which raises unless the decision still holds.

        Raises ApiError, and Outdated.
        """
        for left in reversed(range(TRIES)):
            try:
                await self.parts.put(parts)
                await self.index.write(data)
                break
            except ApiError as error:
                if error.status != 409 or not left:
                    raise
            await again()
        await self._prune(parts)

    async def _prune(self, parts: Sequence[Part]) -> None:
        """What cannot be removed costs room, and nothing else."""
        try:
            await self.parts.prune({part.name for part in parts})
        except StoreError as error:
            event(LOGGER, logging.WARNING, "parts-not-removed", document=self.index.name, reason=str(error))


class KubernetesLedger:
    """See `routerd.operator.loop.LedgerFile`; its methods are called in a worker thread, `take` in the loop."""

    def __init__(
        self,
        ledger: Document,
        allocations: Document,
        loop: asyncio.AbstractEventLoop,
        on_published: OnPublished,
    ) -> None:
        self._ledger, self._allocations, self._loop = ledger, allocations, loop
        self._on_published = on_published
        self._text, self._writer = LedgerText(), AllocationsWriter()
        self._audit: tuple[AuditEntry, ...] = ()
        self._recorded = Ledger()
        self._last_published: Allocations | None = None

    @property
    def lease(self) -> int:
        return self._ledger.index.fence

    @property
    def writes(self) -> int:
        """Requests so far that wrote, or were to."""
        return sum(each.writes for one in (self._ledger, self._allocations) for each in (one.index, one.parts))

    def read(self) -> Ledger:
        return self._wait(self._read())

    def record(self, changes: Changes) -> None:
        """Writes one decision; raises StoreError if the ledger is another than the decision rests on."""
        if changes.before == changes.after:
            return
        audit = (*self._audit, *changes.audit)[-AUDIT_ENTRIES:]
        data, parts = self._text.written(changes.after, audit)
        self._wait(self._ledger.write(data, parts, lambda: self._check(changes)))
        self._recorded, self._audit = changes.after, audit
        for entry in changes.audit:
            about = {"what": entry.what, "owner": entry.owner, "address": entry.address}
            event(LOGGER, logging.INFO, "audit", lease=self.lease, **about)

    def publish(self, allocations: Allocations) -> None:
        """Writes the document that agents read. It follows from the ledger alone, so a conflict is written over."""
        published = self._writer.written(allocations)
        data = allocations_data(published)
        self._wait(self._publish(data, published.parts, allocations))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def check(self) -> None:
        """Raises StoreError if the ledger cannot be read."""
        await self._read()

    async def _read(self) -> Ledger:
        data = await self._ledger.index.read()
        texts = {} if self._text.knows(data) else await self._ledger.parts.texts()
        self._recorded, self._audit = await asyncio.to_thread(self._text.read, data, texts.get)
        return self._recorded

    async def _check(self, changes: Changes) -> None:
        if await self._read() != changes.before:
            raise StoreError(f"ConfigMap {self._ledger.index.name} was changed by someone else: deciding again")

    async def _publish(self, data: Data, parts: Sequence[Part], allocations: Allocations) -> None:
        async def again() -> None:
            await self._allocations.index.read()

        if allocations == self._last_published:  # something of it is lost: perhaps more than the store has seen
            await again()
            for each in (self._ledger, self._allocations):
                each.parts.doubt()
            await self._ledger.parts.put(self._text.written(self._recorded, self._audit)[1])
        await self._allocations.write(data, parts, again)
        self._last_published = allocations
        self._on_published(self._allocations.index.raw, allocations, [part.name for part in parts])


async def take(
    client: Client,
    namespace: str,
    generation: int,
    may_write: Callable[[], bool] = lambda: True,
    on_published: OnPublished = lambda raw, allocations, parts: None,
) -> KubernetesLedger:
    """Takes both documents over, under a fence later than every one before. Raises StoreError."""
    ledger = FencedConfigMap(client, namespace, LEDGER, generation, may_write)
    allocations = FencedConfigMap(client, namespace, ALLOCATIONS, generation, may_write)
    recorded, published = await ledger.read(), await allocations.read()
    # A Lease that was deleted begins at 0 again; the documents remember.
    fence = max(generation, ledger.written_by + 1, allocations.written_by + 1)
    ledger.fence = allocations.fence = fence
    parts = [Parts(client, namespace, each.name, may_write) for each in (ledger, allocations)]
    await ledger.write(recorded or LedgerText().written(Ledger(), ())[0])
    if published:
        await allocations.write(published)
    # Only now nobody else can name other parts.
    await parts[0].adopt(ledger_parts(recorded))
    await parts[1].adopt(await asyncio.to_thread(named_parts, published))  # a large document is YAML of seconds
    opened = KubernetesLedger(
        Document(ledger, parts[0]), Document(allocations, parts[1]), asyncio.get_running_loop(), on_published
    )
    await opened.check()
    return opened
