"""What was made of the same inputs before, kept from plan to plan. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class Made(Generic[R]):
    """What a function made of its inputs, under each of some keys, kept while they are equal; the same objects are
    compared at once. What was given out is not changed.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[tuple[Any, ...], R]] = {}

    def __call__(self, key: Hashable, function: Callable[..., R], *inputs: Any) -> R:
        found = self._made.get(key)
        if found is None or found[0] != inputs:
            found = self._made[key] = inputs, function(*inputs)
        return found[1]

    def drop_but(self, keys: Collection[Hashable]) -> None:
        """Forgets what is under other keys."""
        for key in self._made.keys() - set(keys):
            del self._made[key]
