"""Which pool says how an address is announced: the one that it lies in now, whatever its pool is or was called. Pure.

An address that is allocated stays announced although its pool is renamed, split, merged, moved to another object or
deleted: the operator keeps it, and its document may be older than the pools, or the operator away.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from routerd.model import AddressPool, IPAddress, PoolWays

Point = tuple[int, int]  # version and number of an address


@dataclass(frozen=True, slots=True)
class PoolIndex:
    """The pools of a snapshot, which do not overlap, by address."""

    by_name: Mapping[str, AddressPool]
    former: tuple[PoolWays, ...] = ()  # what is published of pools that may be gone
    _firsts: tuple[Point, ...] = field(init=False, compare=False)
    _ranges: tuple[tuple[Point, AddressPool], ...] = field(init=False, compare=False)  # last address, as `_firsts`

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

        The pool that it lies in, else that of its name, else what that said when it was there last.
        """
        return self.holding(address) or self.by_name.get(name) or self._former(name)

    def _former(self, name: str) -> AddressPool:
        ways = next((each for each in self.former if each.pool == name), PoolWays(name))
        return AddressPool(name, (), ways.protocol, advertisements=ways.advertisements)


def _point(address: IPAddress) -> Point:
    return address.version, int(address)
