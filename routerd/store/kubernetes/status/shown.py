"""Objects with a status that one process makes for people, and keeps as they should be: few at a time, on change alone.

Their kind is another maker's, and may be absent: that is looked for again. They are read once, and what others do to
them afterwards is noticed when they are written.
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
from routerd.store.kubernetes.contact import Pace
from routerd.store.kubernetes.resources import collection_path, object_path
from routerd.store.kubernetes.status.metallb import OWNER_LABEL, Shown

LOGGER = logging.getLogger("routerd.store")
PERIOD = 10.0  # seconds between two looks at what should be there, at least
BATCH = 5  # objects that are written after a look, at most
RATE = 25.0  # objects a second, each two writes at most, of all processes that have some
Status = Mapping[str, Any]


class ShownObjects:
    """`run` beside the store; `wanted` gives the objects by name; None = not known, or not ours to write now."""

    def __init__(self, client: Client, kind: Kind, namespace: str, owner: str, pace: Pace, absent: float) -> None:
        """`absent`: seconds between looks for the kind."""
        self._client, self._kind, self._namespace, self._owner = client, kind, namespace, owner
        self._pace, self._absent = pace, absent
        self.writers: Callable[[], int] = lambda: 1  # processes that have such objects
        self._there: dict[str, Status] | None = None  # None = to be read
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
                self._there = None
                self._log(error)
                await self._client.rest(error, max(self._absent, error.retry_after), self._pace)

    def _log(self, error: ApiError) -> None:
        """Once; that there is no such kind is ordinary."""
        if error.status != 404 and str(error) != self._logged:
            event(LOGGER, logging.WARNING, "status-not-written", object=self._kind.plural, reason=str(error))
            self._logged = str(error)

    async def _catch_up(self, wanted: Mapping[str, Shown]) -> int:
        """How many were written. What is too much goes first: it says what is not so."""
        if self._there is None:
            self._there = await self._read()
        there = self._there
        gone = (name for name in list(there) if name not in wanted)
        news = (name for name, each in wanted.items() if not _says(there.get(name), each.status))
        names = [*islice(gone, BATCH), *islice(news, BATCH)][:BATCH]
        for name in names:
            if name in wanted:
                await self._put(name, wanted[name])
                there[name] = wanted[name].status
            else:
                await self._remove(name)
                del there[name]
        return len(names)

    async def _read(self) -> dict[str, Status]:
        path = collection_path(self._kind, self._namespace)
        found = await self._client.get(path, labelSelector=f"{OWNER_LABEL}={self._owner}")
        return {str(each["metadata"]["name"]): each.get("status") or {} for each in found.get("items") or ()}

    async def _put(self, name: str, each: Shown) -> None:
        assert self._there is not None
        if name not in self._there:
            await self._make(name, each)
        path = object_path(self._kind, name, self._namespace, "status")
        await self._client.patch(path, {"status": dict(each.status)})

    async def _make(self, name: str, each: Shown) -> None:
        meta = {"name": name, "namespace": self._namespace, "labels": {**each.labels, OWNER_LABEL: self._owner}}
        body = {"apiVersion": self._kind.api_version, "kind": self._kind.name, "metadata": meta}
        try:
            await self._client.create(collection_path(self._kind, self._namespace), body)
        except ApiError as error:
            if error.reason != "AlreadyExists":  # else it was made, and its status was not written
                raise

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
