"""Many records as parts: texts that are named by their content. An index that names its parts is whole or not at all.

A part is a line of JSON for each record: the name of its table, then its row. Which records lie together follows from
their keys alone, so that one record that changes makes one part anew. Pure; the names are checked here, whatever keeps
index and parts need keep no order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from zlib import crc32

from routerd.errors import InputError
from routerd.formats.jsontext import parse_json
from routerd.formats.published.records import Table

INLINE_SIZE = 64 << 10  # bytes of all rows, up to which a document holds them itself
PART_SIZE = 64 << 10  # bytes; a part with a single bucket may be larger
BUCKETS = 1 << 12  # a power of two: parts are split by halves, down to one bucket
NAME = re.compile(r"[0-9a-f]{64}")
Records = Mapping[str, Sequence[Any]]  # by the name of their table


class Incomplete(InputError):
    """Parts that the index names are not there, or cut: they may come, or come again."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str  # SHA-256 of the text
    text: str  # ASCII


class Shards:
    """Records to parts. It remembers the text of every bucket, so that what did not change is not written anew."""

    def __init__(self, tables: Iterable[Table[Any]]) -> None:
        self._tables = {table.name: table for table in tables}
        self._buckets: list[list[tuple[str, Any]]] = [[] for _ in range(BUCKETS)]
        self._texts = [""] * BUCKETS
        self._parts: dict[range, Part] = {}

    def parts(self, records: Records) -> tuple[Part, ...]:
        """The same records give the same parts, whatever was asked before."""
        changed = self._take(records)
        before, self._parts = self._parts, {}
        for span in spans([len(text) for text in self._texts]):
            part = before.get(span)
            if part is None or not changed.isdisjoint(span):
                part = _part("".join(self._texts[span.start : span.stop]))
            self._parts[span] = part
        return tuple(self._parts.values())

    def _take(self, records: Records) -> set[int]:
        """The numbers of the buckets that changed."""
        buckets: list[list[tuple[str, Any]]] = [[] for _ in range(BUCKETS)]
        for name, table in self._tables.items():
            for record in records[name]:
                buckets[crc32(table.shard(record).encode()) % BUCKETS].append((name, record))
        changed = {number for number, bucket in enumerate(buckets) if bucket != self._buckets[number]}
        for number in changed:
            self._texts[number] = "".join(self._line(name, record) for name, record in buckets[number])
        self._buckets = buckets
        return changed

    def _line(self, name: str, record: Any) -> str:
        return json.dumps([name, *self._tables[name].to_row(record)], separators=(",", ":")) + "\n"


def _part(text: str) -> Part:
    return Part(sha256(text.encode()).hexdigest(), text)


def spans(sizes: Sequence[int]) -> Iterator[range]:
    """Which neighbouring buckets make one part: all, or each half by itself, and so on. Empty ones make none."""
    todo = [range(len(sizes))]
    while todo:
        span = todo.pop()
        size = sum(sizes[span.start : span.stop])
        if size <= PART_SIZE or len(span) == 1:
            if size:
                yield span
            continue
        half = len(span) // 2
        todo += [span[half:], span[:half]]


class Assembly:
    """Parts to records. A part that was read once is not parsed again."""

    def __init__(self, tables: Iterable[Table[Any]]) -> None:
        self._tables = {table.name: table for table in tables}
        self._read: dict[str, Records] = {}

    def forget(self, names: Iterable[str]) -> None:
        """These are fetched again."""
        for name in names:
            self._read.pop(name, None)

    def has(self, names: Iterable[str]) -> bool:
        """Whether all of these were read last."""
        return all(name in self._read for name in names)

    def records(self, names: Collection[str], fetch: Callable[[str], str | None]) -> dict[str, tuple[Any, ...]]:
        """All records of these parts, sorted by their keys; `fetch` gives a part's text, None if it is not there.

        Raises `Incomplete`, and InputError for what is not understood.
        """
        missing = [name for name in names if name not in self._read and not self._take(name, fetch(name))]
        if missing:
            more = f" (and {len(missing) - 1} more of {len(names)})" if len(missing) > 1 else ""
            raise Incomplete(f"part {missing[0]} is missing or cut{more}")
        self._read = {name: self._read[name] for name in names}
        return {name: self._joined(table) for name, table in self._tables.items()}

    def _joined(self, table: Table[Any]) -> tuple[Any, ...]:
        found = [record for part in self._read.values() for record in part.get(table.name, ())]
        return tuple(sorted(found, key=table.key))

    def _take(self, name: str, text: str | None) -> bool:
        if text is None or sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != name:
            return False
        found: dict[str, list[Any]] = {}
        try:
            for kind, *row in map(parse_json, text.splitlines()):
                found.setdefault(kind, []).append(self._tables[kind].from_row(*row))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"part {name} is not understood: {error!r}: was it written by a newer routerd?") from error
        self._read[name] = found
        return True
