"""What a pure function computed last, as a value beside it, so that one change of many objects costs little. Pure.

Objects of a snapshot are frozen, and one that did not change is the same object in the next snapshot. So what follows
from an object is kept by its identity, and a round looks only at those that are others. All loops over everything are
the interpreter's own. Whoever keeps such a value gets the same results with a new one, at the price of a first round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import compress
from operator import is_not
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
H = TypeVar("H", bound=Hashable)


def differing(before: Mapping[K, V], now: Mapping[K, V]) -> tuple[list[K], list[K]]:
    """Keys of `now` with another object than before, or that are new; and those that are gone."""
    if before is now:
        return [], []
    put = list(compress(now, map(is_not, map(before.get, now), now.values())))
    return put, list(before.keys() - now.keys())


def by_identity(objects: Iterable[V]) -> dict[int, V]:
    """Objects without a key of their own. They live as long as the result, so no other has the same identity."""
    kept = tuple(objects)
    return dict(zip(map(id, kept), kept, strict=True))


class Tally(Generic[V, H]):
    """What many objects contribute together: each value as long as anyone contributes it."""

    def __init__(self, contributed: Callable[[V], Iterable[H]]) -> None:
        self._contributed = contributed
        self._objects: Mapping[Any, V] = {}
        self._counts: Counter[H] = Counter()

    @property
    def values(self) -> Mapping[H, int]:
        """Values, with how many contribute them."""
        return self._counts

    def update(self, objects: Mapping[Any, V]) -> tuple[set[H], set[H]]:
        """Values that were not there before, and those that are gone."""
        put, gone = differing(self._objects, objects)
        more: Counter[H] = Counter()
        for key in put:
            more.update(self._contributed(objects[key]))
        for key in (*put, *gone):
            if key in self._objects:
                more.subtract(self._contributed(self._objects[key]))
        self._objects = objects
        return self._take(more)

    def _take(self, more: Mapping[H, int]) -> tuple[set[H], set[H]]:
        added: set[H] = set()
        removed: set[H] = set()
        for value, count in more.items():
            before = self._counts[value]
            if before + count:
                self._counts[value] = before + count
            else:
                del self._counts[value]
            if bool(before) != bool(before + count):
                (removed if before else added).add(value)
        return added, removed
