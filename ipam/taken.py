"""Addresses in pools that are somebody's already, so that no pool gives them. Pure; keys as in `ipam.pool`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

Range = tuple[int, int]  # first and last key


@dataclass(frozen=True, slots=True)
class Taken:
    """`claims`: ranges of keys, each with words for whose it is. They may overlap; the smallest one is told.

    `soft`: keys that nobody may have anew, but that may be taken because a pool gave them.
    """

    claims: tuple[tuple[int, int, str], ...] = ()
    soft: frozenset[int] = frozenset()
    _ranges: tuple[Range, ...] = field(init=False)  # disjoint, sorted, none next to another

    def __post_init__(self) -> None:
        merged: list[Range] = []
        for first, last, _ in sorted(self.claims):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(merged[-1][1], last)
            else:
                merged.append((first, last))
        object.__setattr__(self, "_ranges", tuple(merged))

    def __contains__(self, key: int) -> bool:
        return self.end(key) is not None

    def is_firm(self, key: int) -> bool:
        """Whether it is somebody's, whoever got it from a pool."""
        return key in self and key not in self.soft

    def end(self, key: int) -> int | None:
        """The last key of the row of taken addresses that `key` is in; None if it is free."""
        index = bisect_right(self._ranges, (key + 1,)) - 1
        return self._ranges[index][1] if index >= 0 and key <= self._ranges[index][1] else None

    def whose(self, key: int) -> str:
        """Words for whose the address is; "" = nobody's."""
        sizes = [(last - first, words) for first, last, words in self.claims if first <= key <= last]
        return min(sizes, default=(0, ""))[1]

    def within(self, first: int, last: int) -> Iterator[Range]:
        """What of `first` … `last` is taken."""
        index = max(bisect_right(self._ranges, (first + 1,)) - 1, 0)
        for low, high in self._ranges[index:]:
            if low > last:
                return
            if high >= first:
                yield max(low, first), min(high, last)


NOTHING = Taken()
