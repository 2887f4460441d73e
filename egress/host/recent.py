"""What the kernel's large tables hold, by what was read from them a moment ago and written since.

Reading 100,000 entries takes longer than a pod may wait. Of nftables the kernel says itself whether anything was
committed since; of a map nothing tells, so it is read anew after some seconds. After a failure nothing is known.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from egress.host.conntrack import NETLINK_NETFILTER, NFGEN
from netlink.wire import NetlinkSocket, attributes

KEPT_FOR = 10.0  # seconds
NFT_GET_GENERATION, NFTA_GEN_ID = 10 << 8 | 16, 1  # <linux/netfilter/nf_tables.h>
T = TypeVar("T")


def ruleset_generation() -> int | None:
    """Grows by one with each transaction of whoever, in this network namespace (Linux 3.18). None = unknown."""
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as nftables:
            answer = nftables.get(NFT_GET_GENERATION, NFGEN.pack(socket.AF_UNSPEC, 0, 0))
    except (OSError, StopIteration):
        return None
    value = attributes(answer, NFGEN.size).get(NFTA_GEN_ID, b"")
    return int(struct.unpack("!I", value)[0]) if len(value) == 4 else None


@dataclass(slots=True)
class RecentEntries:
    """Entries of a map that only this process writes."""

    clock: Callable[[], float] = time.monotonic
    _entries: dict[bytes, bytes] | None = None
    _read_at: float = 0.0
    _written: dict[bytes, bytes | None] = field(default_factory=dict)  # since; None = deleted

    def get(self, read: Callable[[], dict[bytes, bytes]]) -> dict[bytes, bytes]:
        """The same object while nothing was written; it is not to be changed."""
        if self._entries is None or self.clock() - self._read_at >= KEPT_FOR:
            before, self._read_at = self._entries, self.clock()
            self.forget()
            entries = read()
            self._entries = before if entries == before else entries
        elif self._written:
            entries = {**self._entries, **{key: value for key, value in self._written.items() if value is not None}}
            for key in (key for key, value in self._written.items() if value is None):
                entries.pop(key, None)
            self._entries, self._written = entries, {}
        return self._entries if self._entries is not None else {}

    def note(self, written: Mapping[bytes, bytes | None]) -> None:
        """What the kernel took; None = it is deleted."""
        if self._entries is not None:
            self._written |= written

    def forget(self) -> None:
        self._entries, self._written = None, {}


@dataclass(slots=True)
class RecentTable(Generic[T]):
    """Our table of nftables as a value, as long as the kernel says that nobody has committed anything else."""

    clock: Callable[[], float] = time.monotonic
    generation: Callable[[], int | None] = ruleset_generation
    _kept: tuple[int, Hashable, T] | None = None  # with the generation of which it is, and what it rests on beside
    _written_at: float | None = None  # None = it was read; what was written is read after some seconds

    def get(self, read: Callable[[], T], rests_on: Hashable = None) -> T:
        """`rests_on`: what else than transactions changes it; a set may hold a device, which goes."""
        is_old = self._written_at is not None and self.clock() - self._written_at >= KEPT_FOR
        before = self.generation()
        if self._kept is not None and self._kept[:2] == (before, rests_on) and not is_old:
            return self._kept[2]
        self.forget()
        table = read()
        if before is not None and self.generation() == before:
            self._kept = before, rests_on, table
        return table

    def write(self, present: T, wanted: T, commit: Callable[[], object]) -> None:
        """`commit` makes `wanted` of `present` in one transaction. What it raises is raised."""
        kept, since = self._kept, self._written_at
        self.forget()
        before = self.generation()
        commit()
        if kept is None or (kept[0], kept[2]) != (before, present):
            return
        if self.generation() == kept[0] + 1:
            self._kept = kept[0] + 1, kept[1], wanted
            self._written_at = self.clock() if since is None else since

    def forget(self) -> None:
        self._kept = self._written_at = None
