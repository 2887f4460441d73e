"""Parts of a document of ours as ConfigMaps, named by their content: made before the document that names them.

A part changes nothing until a document names it, and only the document is fenced. What must not happen is that a former
operator, paused in the middle of a deletion, takes away a part that is in force again. So a deletion names the uid, and
an operator trusts the parts that the document names when it takes over, and those that it has made; any other one under
the same name is made anew, and then has another uid.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from routerd.errors import StoreError
from routerd.formats.published.parts import Part
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.resources import CONFIG_MAPS, PART_KEY, PART_LABEL, READERS_LABEL, collection_path

GRACE = 600.0  # seconds that a part is kept which is in force no more: an agent may have missed the document since
LOOK = 600.0  # seconds between looks at which parts are there: a list of all, for every version of the document
AT_ONCE = 16  # requests in flight
MOST = 128  # parts that are deleted after one decision
PAGE = 50  # parts in one answer: some MiB
NAMES_PAGE = 500  # parts in one answer, without their text


class Outdated(StoreError):
    """A later lease has written: this operator is not the active one any more."""


class Parts:
    """Of one document. `adopt` before all else."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        document: str,
        may_write: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._namespace, self._document = client, namespace, document
        self._collection = collection_path(CONFIG_MAPS, namespace)
        self._may_write, self._clock = may_write, clock
        self._trusted: dict[str, str] = {}  # uid by the part's name
        self._unused: dict[str, tuple[str, float]] = {}  # those not in force: uid, and since when
        self.writes = 0  # requests
        self._looked = -math.inf  # when

    async def adopt(self, named: Collection[str]) -> None:
        """Takes over: `named` are those that the document names. Raises ApiError."""
        self._looked = now = self._clock()
        for name, uid in (await self._uids()).items():
            if name in named:
                self._trusted[name] = uid
            else:
                self._unused[name] = uid, now

    async def texts(self) -> dict[str, str]:
        """Of all parts that are there. Raises ApiError."""
        items = await self._listed(self._client.get, limit=str(PAGE))
        return {self._part_of(raw): str((raw.get("data") or {}).get(PART_KEY)) for raw in items}

    async def put(self, parts: Iterable[Part]) -> None:
        """Makes those that are not there, or not any more: whether others took any away it looks now and then.

        Raises ApiError, and Outdated.
        """
        if self._trusted and self._clock() - self._looked >= LOOK:
            there, self._looked = await self._uids(), self._clock()
            self._trusted = {name: uid for name, uid in self._trusted.items() if there.get(name) == uid}
        missing = [part for part in parts if part.name not in self._trusted]
        for start in range(0, len(missing), AT_ONCE):
            await _all(self._make(part) for part in missing[start : start + AT_ONCE])

    def doubt(self) -> None:
        """Somebody has taken something away: `put` looks."""
        self._looked = -math.inf

    async def _uids(self) -> dict[str, str]:
        """Of all parts that are there, by name."""
        found = await self._listed(self._client.get_metadata, limit=str(NAMES_PAGE))
        return {self._part_of(raw): str(raw["metadata"]["uid"]) for raw in found}

    async def prune(self, in_force: Collection[str]) -> None:
        """After the document was written: deletes what has not been in force for `GRACE`. Raises ApiError."""
        now = self._clock()
        for name in self._trusted.keys() - set(in_force):
            self._unused[name] = self._trusted.pop(name), now
        due = [name for name, (_, since) in self._unused.items() if now - since >= GRACE][:MOST]
        for start in range(0, len(due), AT_ONCE):
            await _all(self._remove(name, self._unused.pop(name)[0]) for name in due[start : start + AT_ONCE])

    async def _make(self, part: Part) -> None:
        try:
            raw = await self._create(part)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            for raw in await self._listed(self._client.get, fieldSelector=f"metadata.name={self._name(part.name)}"):
                await self._remove(part.name, str(raw["metadata"]["uid"]))
            raw = await self._create(part)
        self._unused.pop(part.name, None)
        self._trusted[part.name] = str(raw["metadata"]["uid"])

    async def _create(self, part: Part) -> Mapping[str, Any]:
        self._check()
        labels = {"app.kubernetes.io/managed-by": "routerd", PART_LABEL: self._document}
        labels |= {READERS_LABEL: part.readers} if part.readers else {}
        meta = {"name": self._name(part.name), "namespace": self._namespace, "labels": labels}
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta,
            "data": {PART_KEY: part.text},
            "immutable": True,
        }
        return await self._client.create(self._collection, body)

    async def _remove(self, name: str, uid: str) -> None:
        """Whoever has made it anew meanwhile keeps it."""
        self._check()
        try:
            await self._client.delete(f"{self._collection}/{self._name(name)}", uid)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def _check(self) -> None:
        """Before each write."""
        if not self._may_write():
            raise Outdated(f"parts of ConfigMap {self._document}: the lease has run out")
        self.writes += 1

    def _name(self, name: str) -> str:
        return f"{self._document}-{name}"

    def _part_of(self, raw: Mapping[str, Any]) -> str:
        return str(raw["metadata"]["name"]).removeprefix(f"{self._document}-")

    async def _listed(
        self, get: Callable[..., Awaitable[Mapping[str, Any]]], **query: str
    ) -> Sequence[Mapping[str, Any]]:
        items: list[Mapping[str, Any]] = []
        query["labelSelector"] = f"{PART_LABEL}={self._document}"
        while True:
            page = await get(self._collection, **query)
            items += page.get("items") or ()
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return items
            query["continue"] = str(more)


async def _all(work: Iterable[Any]) -> None:
    """Until each has ended, then the first error if there was one."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
