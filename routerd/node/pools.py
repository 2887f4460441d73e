"""Which pool says how an address is announced: the one that it lies in now, whatever its pool is or was called. Pure.

An address that is allocated stays announced although its pool is renamed, split, merged, moved to another object or
deleted: the operator keeps it, and its document may be older than the pools, or the operator away.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from routerd.model import AddressPool, IPAddress

Point = tuple[int, int]  # version and number of an address


@dataclass(frozen=True, slots=True)
class PoolIndex:
    """The pools of a snapshot, which do not overlap, by address."""

    by_name: Mapping[str, AddressPool]
    _firsts: tuple[Point, ...] = field(init=False)
    _ranges: tuple[tuple[Point, AddressPool], ...] = field(init=False)  # last address and pool, as `_firsts`

    def __post_init__(self) -> None:
        blocks = [(_point(net.network_address), _point(net.broadcast_address), pool)
                  for pool in self.by_name.values() for net in pool.blocks]  # fmt: skip
        blocks.sort(key=lambda each: each[:2])
        object.__setattr__(self, "_firsts", tuple(first for first, _, _ in blocks))
        object.__setattr__(self, "_ranges", tuple((last, pool) for _, last, pool in blocks))

    def holding(self, address: IPAddress) -> AddressPool | None:
        """The pool that the address lies in; None if it lies in none."""
        point = _point(address)
        index = bisect_right(self._firsts, point) - 1
        if index < 0:
            return None
        last, pool = self._ranges[index]
        return pool if point <= last else None

    def announcing(self, address: IPAddress, name: str) -> AddressPool:
        """The pool that says how an allocated address is announced. `name` is the pool's that it was given from.

        The pool that it lies in, else that of its name, else one that says nothing in particular.
        """
        return self.holding(address) or self.by_name.get(name) or AddressPool(name, ())


def _point(address: IPAddress) -> Point:
    return address.version, int(address)
