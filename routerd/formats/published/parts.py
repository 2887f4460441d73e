"""Many records as parts: texts that are named by their content. An index that names its parts is whole or not at all.

A part is a line of JSON for each record: the name of its table, then its row. Which records lie together follows from
their keys alone, so that one record that changes makes one part anew. Pure; the names are checked here, whatever keeps
index and parts need keep no order.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from zlib import crc32

from routerd.errors import InputError
from routerd.formats.jsontext import parse_json
from routerd.formats.published.records import Table
from routerd.memo import by_identity, differing

INLINE_SIZE = 32 << 10  # bytes of all rows, up to which a document holds them itself
PART_SIZE = 64 << 10  # bytes; a part with a single bucket may be larger
BUCKETS = 1 << 12  # a power of two: parts are split by halves, down to one bucket
FEW = 64  # records that are put in their places one by one
NAME = re.compile(r"[0-9a-f]{64}")
EVERYBODY = ("",)
Records = Mapping[str, Sequence[Any]]  # by the name of their table


class Incomplete(InputError):
    """Parts that the index names are not there, or cut: they may come, or come again."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str  # SHA-256 of the text
    text: str  # ASCII
    readers: str = ""  # who needs it: "" = everybody, else a word that its writer and they agree on


class Shards:
    """Records to parts. It remembers the text of every bucket, so that what did not change is not written anew."""

    def __init__(self, tables: Iterable[Table[Any]], readers: Sequence[str] = EVERYBODY) -> None:
        """`readers`: buckets are for the first, the next, … of them, as many for each: a power of two."""
        self._tables = {table.name: table for table in tables}
        self._readers = readers
        self._last: dict[str, Sequence[Any]] = {}
        self._known: dict[str, dict[int, Any]] = {name: {} for name in self._tables}  # records by identity
        self._buckets: list[dict[tuple[str, int], Any]] = [{} for _ in range(BUCKETS)]
        self._texts = [""] * BUCKETS
        self._parts: dict[range, Part] = {}

    def parts(self, records: Records) -> tuple[Part, ...]:
        """The same records give the same parts, whatever was asked before."""
        changed = self._take(records)
        before, self._parts = self._parts, {}
        for span in spans([len(text) for text in self._texts], len(self._readers)):
            part = before.get(span)
            if part is None or not changed.isdisjoint(span):
                readers = self._readers[span.start * len(self._readers) // BUCKETS]
                part = _part("".join(self._texts[span.start : span.stop]), readers)
            self._parts[span] = part
        return tuple(self._parts.values())

    def _take(self, records: Records) -> set[int]:
        """The numbers of the buckets that changed."""
        touched: set[int] = set()
        for name, table in self._tables.items():
            if records[name] is self._last.get(name):
                continue
            self._last[name] = records[name]
            before, now = self._known[name], by_identity(records[name])
            put, gone = differing(before, now)
            for number in gone:
                bucket = _bucket(table, before[number])
                del self._buckets[bucket][name, number]
                touched.add(bucket)
            for number in put:
                bucket = _bucket(table, now[number])
                self._buckets[bucket][name, number] = now[number]
                touched.add(bucket)
            self._known[name] = now
        return {number for number in touched if self._renew(number)}

    def _renew(self, number: int) -> bool:
        """Whether the text of the bucket is another one."""
        before, bucket = self._texts[number], self._buckets[number]
        by_table: dict[str, list[Any]] = {name: [] for name in self._tables}
        for (name, _), record in bucket.items():
            by_table[name].append(record)
        lines = (
            self._line(name, record)
            for name, table in self._tables.items()
            for record in sorted(by_table[name], key=table.key)
        )
        self._texts[number] = "".join(lines)
        return self._texts[number] != before

    def _line(self, name: str, record: Any) -> str:
        return json.dumps([name, *self._tables[name].to_row(record)], separators=(",", ":")) + "\n"


def bucket_of(shard: str) -> int:
    return crc32(shard.encode()) % BUCKETS


def _bucket(table: Table[Any], record: Any) -> int:
    return bucket_of(table.shard(record))


def _part(text: str, readers: str = "") -> Part:
    return Part(sha256(text.encode()).hexdigest(), text, readers)


def spans(sizes: Sequence[int], shares: int = 1) -> Iterator[range]:
    """Which neighbouring buckets make one part: all of a share, or each half of it, and so on. Empty ones make none.

    `shares`: how many there are, as large as each other.
    """
    each = len(sizes) // shares
    todo = [range(first, first + each) for first in reversed(range(0, len(sizes), each))]
    while todo:
        span = todo.pop()
        size = sum(sizes[span.start : span.stop])
        if size <= PART_SIZE or len(span) == 1:
            if size:
                yield span
            continue
        half = len(span) // 2
        todo += [span[half:], span[:half]]


Line = tuple[str, Any]  # a record, with the name of its table


class Assembly:
    """Parts to records. A part that was read once is not parsed again, nor a line of one that was read before it."""

    def __init__(self, tables: Iterable[Table[Any]]) -> None:
        self._tables = {table.name: table for table in tables}
        self._read: dict[str, Mapping[str, Line]] = {}  # by name of the part; records by their text
        self._joined = {name: Joined(table) for name, table in self._tables.items()}

    def forget(self, names: Iterable[str]) -> None:
        """These are fetched again."""
        for name in names:
            self._read.pop(name, None)

    def has(self, names: Iterable[str]) -> bool:
        """Whether all of these were read last."""
        return all(name in self._read for name in names)

    def records(self, names: Collection[str], fetch: Callable[[str], str | None]) -> dict[str, tuple[Any, ...]]:
        """All records of these parts, sorted by their keys; `fetch` gives a part's text, None if it is not there.

        Records that are the same as before are the same objects. Raises `Incomplete`, and InputError for what is not
        understood.
        """
        left = [part for name, part in self._read.items() if name not in names]
        known = {text: line for part in left for text, line in part.items()}
        missing = [name for name in names if name not in self._read and not self._take(name, fetch(name), known)]
        if missing:
            more = f" (and {len(missing) - 1} more of {len(names)})" if len(missing) > 1 else ""
            raise Incomplete(f"part {missing[0]} is missing or cut{more}")
        self._read = {name: self._read[name] for name in names}
        found: dict[str, list[Any]] = {name: [] for name in self._tables}
        for part in self._read.values():
            for kind, record in part.values():
                found[kind].append(record)
        return {name: self._joined[name].take(found[name]) for name in self._tables}

    def _take(self, name: str, text: str | None, known: Mapping[str, Line]) -> bool:
        if text is None or sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != name:
            return False
        try:
            self._read[name] = {line: known.get(line) or self._line(line) for line in text.splitlines()}
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"part {name} is not understood: {error!r}: was it written by a newer routerd?") from error
        return True

    def _line(self, text: str) -> Line:
        kind, *row = parse_json(text)
        return kind, self._tables[kind].read(row)


class Joined:
    """Records of one table, sorted by their keys: the same value again while they are the same objects."""

    def __init__(self, table: Table[Any]) -> None:
        self._table = table
        self._known: Mapping[int, Any] = {}  # by identity
        self._sorted: tuple[Any, ...] = ()

    def take(self, records: Iterable[Any]) -> tuple[Any, ...]:
        before, self._known = self._known, by_identity(records)
        put, gone = differing(before, self._known)
        if len(put) + len(gone) > FEW:
            self._sorted = tuple(sorted(self._known.values(), key=self._table.key))
        elif put or gone:
            found, key = list(self._sorted), self._table.key
            for record in (before[number] for number in gone):
                place = bisect_left(found, key(record), key=key)
                while found[place] is not record:  # damaged parts may have two of one key
                    place += 1
                del found[place]
            for number in put:
                insort(found, self._known[number], key=key)
            self._sorted = tuple(found)
        return self._sorted
