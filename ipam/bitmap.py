"""A set of integer offsets that finds the lowest free one at once: a 64-ary tree of 64-bit words. Pure.

Level 0 has one bit per offset (1 = taken); a bit of level n + 1 says that the word below it is full. A search climbs
only past full words, so it costs a few steps per level, whatever is taken. Words are kept in dicts and absent ones are
zero: an empty tree of 2^128 offsets costs nothing, so one structure serves a /32, a /8 and an IPv6 /64.

It must not know addresses, owners or reasons: those are `ipam.pool`'s.
"""

from __future__ import annotations

_FULL = (1 << 64) - 1


class Bitmap:
    """Offsets 0 … size - 1, all free at first. Offsets outside raise `IndexError`."""

    __slots__ = ("_floor", "_levels", "size", "taken")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a bitmap needs at least one offset, not {size}")
        self.size = size
        self.taken = 0  # how many offsets are taken
        self._floor = 0  # all below are taken: a pool that fills from its beginning looks there again and again
        self._levels: list[dict[int, int]] = []
        bits = size
        while True:
            words, tail = divmod(bits, 64)
            # Bits past the end count as taken, so that no search has to compare with the size.
            self._levels.append({words: _FULL & (_FULL << tail)} if tail else {})
            bits = words + bool(tail)
            if bits == 1:
                break

    def __contains__(self, offset: int) -> bool:
        """Whether `offset` is taken."""
        self._check(offset)
        return bool(self._levels[0].get(offset >> 6, 0) >> (offset & 63) & 1)

    def occupy(self, offset: int) -> bool:
        """Takes `offset`; False if it was taken already."""
        self._check(offset)
        position = offset
        for level in self._levels:
            index = position >> 6
            word = level.get(index, 0)
            bit = 1 << (position & 63)
            if word & bit:
                return False  # only ever on level 0: a parent's bit is set by the word that fills up here
            level[index] = word = word | bit
            if word != _FULL:
                break
            position = index
        self.taken += 1
        return True

    def release(self, offset: int) -> bool:
        """Frees `offset`; False if it was free already."""
        self._check(offset)
        position = offset
        for level in self._levels:
            index = position >> 6
            word = level.get(index, 0)
            bit = 1 << (position & 63)
            if not word & bit:
                return False
            if word == bit:
                del level[index]
            else:
                level[index] = word ^ bit
            if word != _FULL:
                break
            position = index
        self.taken -= 1
        self._floor = min(self._floor, offset)
        return True

    def lowest_free(self, start: int = 0) -> int | None:
        """The lowest free offset that is at least `start`; None if there is none."""
        if start > self._floor:
            return self._free_from(start)
        found = self._free_from(self._floor)
        self._floor = self.size if found is None else found
        return found

    def _free_from(self, position: int) -> int | None:
        if position >= self.size:
            return None
        for height, level in enumerate(self._levels):
            free = ~level.get(position >> 6, 0) & (_FULL << (position & 63)) & _FULL
            if free:
                return self._descend(height, (position & ~63) | _lowest_bit(free))
            position = (position >> 6) + 1  # the next word, as a bit of the level above
            if position << 6 * (height + 1) >= self.size:
                return None
        return None

    def _descend(self, height: int, position: int) -> int:
        """The lowest free offset below bit `position` of level `height`, which is not full."""
        for level in reversed(self._levels[:height]):
            position = position << 6 | _lowest_bit(~level.get(position, 0) & _FULL)
        return position

    def _check(self, offset: int) -> None:
        if not 0 <= offset < self.size:
            raise IndexError(f"offset {offset} is not in 0 … {self.size - 1}")


def _lowest_bit(word: int) -> int:
    return (word & -word).bit_length() - 1
