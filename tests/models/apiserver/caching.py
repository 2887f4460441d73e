"""The caches that custom kinds are listed and watched from. Each begins with the first request for its kind. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable

from . import errors
from .call import Call
from .storage import Storage

FILLING = 0.02  # seconds until a cache can answer
RETRY_AFTER = 1  # seconds


class Caches:
    """A kind whose definition is made or changed has no cache, until it is asked for."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage, self._clock = storage, clock
        self._filled: dict[str, float] = {}  # when, by table

    def drop(self, table: str) -> None:
        self._filled.pop(table, None)

    def admit(self, call: Call) -> None:
        """Raises ApiError 429 for what the cache of a kind would answer but cannot yet."""
        if not call.resource.custom:
            return
        table = call.resource.store_key
        if table not in self._filled:
            self._filled[table] = self._clock() + FILLING
            self._storage.begin(table)
        if self._clock() < self._filled[table] and _is_cached(call):
            raise errors.initializing(RETRY_AFTER)


def _is_cached(call: Call) -> bool:
    """A page without selectors is read past the cache, as are single objects."""
    is_page = call.query.get("limit", "0") != "0" and not {"labelSelector", "fieldSelector"} & set(call.query)
    return call.verb == "watch" or (call.verb == "list" and not is_page)
