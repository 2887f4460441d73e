"""What a pure function computed last, as a value beside it, so that one change of many objects costs little. Pure.

Objects of a snapshot are frozen, and one that did not change is the same object in the next snapshot. So what follows
from an object is kept by its identity, and a round looks only at those that are others. All loops over everything are
the interpreter's own; a mapping that knows what was changed in it (`Renewed`) needs none. Whoever keeps such a value
gets the same results with a new one, at the price of a first round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import compress
from operator import is_not
from typing import Any, Generic, Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")
H = TypeVar("H", bound=Hashable)


STEPS = 8  # renewals that a mapping remembers: whoever asks less often compares everything


class Renewed(dict[K, V]):
    """A mapping that knows in which keys it may differ from those that it was made of. Nobody changes it."""

    __slots__ = ("_mark", "_steps")

    def __init__(
        self, now: Mapping[K, V] | Iterable[tuple[K, V]] = (), before: Mapping[K, V] | None = None,
        touched: Iterable[K] = (),
    ) -> None:  # fmt: skip
        """`touched`: every key whose object is another one than `before`, that is new, or that is gone."""
        super().__init__(now)
        self._mark = object()
        self._steps: tuple[tuple[object, frozenset[K]], ...] = ()
        if isinstance(before, Renewed):
            self._steps = ((before._mark, frozenset(touched)), *before._steps)[:STEPS]

    def but(self, put: Mapping[K, V], gone: Iterable[K] = ()) -> Renewed[K, V]:
        """With these, and without those."""
        left = tuple(gone)
        made = Renewed(self, self, (*put, *left))
        made.update(put)
        for key in left:
            made.pop(key, None)
        return made

    def touched_since(self, before: Mapping[K, V]) -> set[K] | None:
        """None = it does not know."""
        touched: set[K] = set()
        for mark, keys in self._steps if isinstance(before, Renewed) else ():
            touched |= keys
            if mark is before._mark:  # type: ignore[attr-defined]
                return touched
        return None


def differing(before: Mapping[K, V], now: Mapping[K, V]) -> tuple[list[K], list[K]]:
    """Keys of `now` with another object than before, or that are new; and those that are gone."""
    if before is now:
        return [], []
    touched = now.touched_since(before) if isinstance(now, Renewed) else None
    if touched is not None:
        there = [key for key in touched if key in now]
        return [key for key in there if before.get(key) is not now[key]], [
            key for key in touched if key not in now and key in before
        ]
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


class Derived(Generic[V, K, R]):
    """What a function makes of each object of a mapping, under a key of its own; None = nothing.

    What it makes anew and is equal stays the same object.
    """

    def __init__(self, function: Callable[[V], tuple[K, R] | None]) -> None:
        self._function = function
        self._objects: Mapping[Any, V] = {}
        self._keys: dict[Any, K] = {}
        self._results: Renewed[K, R] = Renewed()

    def __call__(self, objects: Mapping[Any, V]) -> Renewed[K, R]:
        """The same value again where nothing changed."""
        put, gone = differing(self._objects, objects)
        self._objects, before = objects, self._results
        left = {self._keys.pop(key) for key in (*put, *gone) if key in self._keys}
        made: dict[K, R] = {}
        for key in put:
            if (found := self._function(objects[key])) is not None:
                self._keys[key], (name, result) = found[0], found
                made[name] = before[name] if name in before and before[name] == result else result
        touched = {name for name in {*left, *made} if name not in made or before.get(name) is not made[name]}
        if touched:
            self._results = before.but({name: made[name] for name in touched & made.keys()}, touched - made.keys())
        return self._results


class PerObject(Generic[V, R]):
    """What a function makes of each of many objects, kept for those that are the same ones as in the last call."""

    def __init__(self, function: Callable[[V], R]) -> None:
        self._function = function
        self._objects: dict[int, V] = {}  # by identity
        self._results: dict[int, R] = {}
        self._last: tuple[tuple[V, ...], Sequence[R]] = ((), ())

    def __call__(self, objects: Iterable[V]) -> Sequence[R]:
        """In the order of the objects."""
        kept = tuple(objects)
        if kept is self._last[0]:
            return self._last[1]
        numbers = list(map(id, kept))
        now = dict(zip(numbers, kept, strict=True))
        for number in now.keys() - self._objects.keys():
            self._results[number] = self._function(now[number])
        for number in self._objects.keys() - now.keys():
            del self._results[number]
        self._objects = now
        self._last = kept, list(map(self._results.__getitem__, numbers))
        return self._last[1]


class Last(Generic[R]):
    """What a function made of its inputs, kept while they are equal; the same objects are compared at once."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Any, ...], R] | None = None

    def __call__(self, function: Callable[..., R], *inputs: Any) -> R:
        if self._last is None or self._last[0] != inputs:
            self._last = inputs, function(*inputs)
        return self._last[1]


class Decided(Protocol):
    @property
    def next_due(self) -> float | None: ...


D = TypeVar("D", bound=Decided)


class UntilDue(Generic[D]):
    """What was decided last, kept while its inputs are equal and nothing of it is due."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Any, ...], float, D] | None = None

    def __call__(self, decide: Callable[[], D], now: float, *inputs: Any) -> D:
        """`now` counts when something is due, and after the clock was set back: what rests begins anew then."""
        if self._last is not None and self._last[0] == inputs:
            _, began, last = self._last
            if began <= now and (last.next_due is None or now < last.next_due):
                return last
        self._last = inputs, now, decide()
        return self._last[2]
