"""When what is due: one queue for every timer of the process. Pure: it is told the time."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
NEVER = float("inf")


class Wheel(Generic[Key]):
    """Each key has one time, in seconds of whatever clock. A time that moves away, as a detection time does with every
    packet, costs nothing until the old one comes.
    """

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._queued: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0

    def put(self, key: Key, due: float) -> None:
        """The time of `key` is `due` now; NEVER takes it out."""
        if due == NEVER:
            self.drop(key)
            return
        self._due[key] = due
        if self._queued.get(key, NEVER) > due:
            self._queue(key, due)

    def drop(self, key: Key) -> None:
        self._due.pop(key, None)
        self._queued.pop(key, None)

    def _queue(self, key: Key, due: float) -> None:
        self._queued[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))

    def take(self, now: float) -> Iterator[Key]:
        """Those that are due, the earliest first; each is out until it is put again."""
        while self._heap and self._heap[0][0] <= now:
            queued, _, key = heapq.heappop(self._heap)
            if self._queued.get(key) != queued:
                continue
            del self._queued[key]
            if self._due[key] > queued:
                self._queue(key, self._due[key])
            else:
                del self._due[key]
                yield key

    @property
    def next(self) -> float:
        """No later than the earliest time; NEVER where there is none."""
        return self._heap[0][0] if self._heap else NEVER
