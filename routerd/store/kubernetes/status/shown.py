"""Objects with a status that one process makes for people, and keeps as they should be: few at a time, on change alone.

Their kind is another maker's, and may be absent: that is looked for again, seldom, as every node does. They are read
once, and what others do to them afterwards is noticed when they are written. Ours bear a label of ours; another's of
the kind is left alone, also one that has the name of one of ours.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from routerd.formats.kinds import Kind
from routerd.log import event
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.resources import collection_path, object_path
from routerd.store.kubernetes.status.metallb import OWNER_LABEL, Shown
from routerd.store.kubernetes.watch import Timings

LOGGER = logging.getLogger("routerd.store")
PERIOD = 10.0  # seconds between two looks at what should be there, at least
BATCH = 5  # objects that are written after a look, at most
RATE = 25.0  # objects a second, each two writes at most, of all processes that have some
Status = Mapping[str, Any]


class ShownObjects:
    """`run` beside the store; `wanted` gives the objects by name; None = not known, or not ours to write now."""

    def __init__(self, client: Client, kind: Kind, namespace: str, owner: str, timings: Timings) -> None:
        self._client, self._kind, self._namespace, self._owner = client, kind, namespace, owner
        self._timings = timings
        self.writers: Callable[[], int] = lambda: 1  # processes that have such objects
        self._there: dict[str, Status] | None = None  # None = to be read
        self._others: set[str] = set()  # names that somebody else's have
        self._logged = ""
        self.wanted: Callable[[], Mapping[str, Shown] | None] = lambda: None

    async def run(self) -> None:
        """Until cancelled."""
        written = 0
        while True:
            await asyncio.sleep(max(PERIOD, max(written, 1) * self.writers() / RATE) * random.uniform(1, 1.25))
            wanted, written = self.wanted(), 0
            if wanted is None:
                continue
            try:
                written = await self._catch_up(wanted)
                self._logged = ""
            except ApiError as error:
                pause = max(self._pause(error), error.retry_after)
                self._there = None
                self._log(error)
                await self._client.rest(error, pause, self._timings.pace)

    def _pause(self, error: ApiError) -> float:
        """Long where it cannot be listed: there is no such kind, or an older role of ours says nothing of it."""
        if self._there is None and error.status in (403, 404):
            return self._timings.unserved * random.uniform(0.75, 1.25)
        return self._timings.last_pause

    def _log(self, error: ApiError) -> None:
        """Once; that there is no such kind is ordinary."""
        if error.status != 404 and str(error) != self._logged:
            event(LOGGER, logging.WARNING, "status-not-written", object=self._kind.plural, reason=str(error))
            self._logged = str(error)

    async def _catch_up(self, wanted: Mapping[str, Shown]) -> int:
        """How many were written. What is too much goes first: it says what is not so."""
        if self._there is None:
            self._there, self._others = await self._read(), set()
        there = self._there
        gone = (name for name in list(there) if name not in wanted)
        ours = (name for name in wanted if name not in self._others)
        news = (name for name in ours if not _says(there.get(name), wanted[name].status))
        names = [*islice(gone, BATCH), *islice(news, BATCH)][:BATCH]
        for name in names:
            if name not in wanted:
                await self._remove(name)
                del there[name]
            elif name in there or await self._make(name, wanted[name]):
                await self._say(name, wanted[name].status)
                there[name] = wanted[name].status
            else:
                self._leave(name)
        return len(names)

    def _leave(self, name: str) -> None:
        self._others.add(name)
        about = {"object": f"{self._kind.name}/{self._namespace}/{name}", "reason": "it is somebody else's"}
        event(LOGGER, logging.WARNING, "status-not-written", **about)

    async def _read(self, **selection: str) -> dict[str, Status]:
        """Ours."""
        path = collection_path(self._kind, self._namespace)
        found = await self._client.get(path, labelSelector=f"{OWNER_LABEL}={self._owner}", **selection)
        return {str(each["metadata"]["name"]): each.get("status") or {} for each in found.get("items") or ()}

    async def _say(self, name: str, status: Status) -> None:
        path = object_path(self._kind, name, self._namespace, "status")
        await self._client.patch(path, {"status": dict(status)})

    async def _make(self, name: str, each: Shown) -> bool:
        """False = somebody else's has that name."""
        meta = {
            "name": name,
            "namespace": self._namespace,
            "labels": {**each.labels, OWNER_LABEL: self._owner},
            "annotations": dict(each.annotations),
        }
        body = {"apiVersion": self._kind.api_version, "kind": self._kind.name, "metadata": meta}
        try:
            await self._client.create(collection_path(self._kind, self._namespace), body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            return name in await self._read(fieldSelector=f"metadata.name={name}")  # as of another agent of the node
        return True

    async def _remove(self, name: str) -> None:
        try:
            await self._client.delete(object_path(self._kind, name, self._namespace))
        except ApiError as error:
            if error.status != 404:
                raise


__all__ = ["Shown", "ShownObjects"]


def _says(there: Status | None, wanted: Status) -> bool:
    """What is empty need not stand there."""
    return there is not None and all((there.get(key) or None) == (value or None) for key, value in wanted.items())
