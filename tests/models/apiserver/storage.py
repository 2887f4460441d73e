"""Objects, their history under one global resourceVersion, and who is told of changes. One event loop, no threads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import errors

Json = dict[str, Any]
Change = Literal["ADDED", "MODIFIED", "DELETED"]
HISTORY = 200_000  # changes that are kept, then the older half is compacted


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of one object. `body` is its JSON behind `{"kind":…,"apiVersion":…,`; nobody changes `object`."""

    key: str
    version: int
    object: Json
    body: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One change. For DELETED `new` is the last state, with the resourceVersion of its removal."""

    version: int
    table: str
    change: Change
    old: Stored | None
    new: Stored


def encode(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def freeze(key: str, version: int, value: Json) -> Stored:
    """`value` with its resourceVersion set, encoded once for every reader."""
    value = {**value, "metadata": {**value["metadata"], "resourceVersion": str(version)}}
    rest = {name: item for name, item in value.items() if name not in ("kind", "apiVersion")}
    return Stored(key, version, value, encode(rest)[1:])


class Storage:
    """Tables by resource; every write takes the next resourceVersion. `listeners` hear each change."""

    def __init__(self) -> None:
        self.version = 1
        self.compacted = 0  # changes up to this version are forgotten
        self._tables: dict[str, dict[str, Stored]] = {}
        self._latest: dict[str, int] = {}
        self._history: list[Event] = []
        self._begun: dict[str, int] = {}
        self.listeners: list[Callable[[Event], None]] = []

    def get(self, table: str, key: str) -> Stored | None:
        return self._tables.get(table, {}).get(key)

    def all(self, table: str) -> list[Stored]:
        """In the order of their keys, as etcd has them."""
        rows = self._tables.get(table, {})
        return [rows[key] for key in sorted(rows)]

    def tables(self) -> Iterator[str]:
        return iter(list(self._tables))

    def put(self, table: str, key: str, value: Json) -> Stored:
        old = self.get(table, key)
        self.version += 1
        new = freeze(key, self.version, value)
        self._tables.setdefault(table, {})[key] = new
        self._record(Event(self.version, table, "MODIFIED" if old else "ADDED", old, new))
        return new

    def remove(self, table: str, key: str, last: Json | None = None) -> Stored:
        old = self._tables[table].pop(key)
        self.version += 1
        new = freeze(key, self.version, last or old.object)
        self._record(Event(self.version, table, "DELETED", old, new))
        return new

    def drop_table(self, table: str) -> None:
        for key in list(self._tables.get(table, {})):
            self.remove(table, key)

    def latest(self, table: str) -> int:
        """The version of its last change, 0 = none."""
        return self._latest.get(table, 0)

    def _record(self, event: Event) -> None:
        self._latest[event.table] = event.version
        self._history.append(event)
        if len(self._history) > HISTORY:
            self.compact(self._history[HISTORY // 2].version)
        for listener in list(self.listeners):
            listener(event)

    def begin(self, table: str) -> None:
        """Watches of it know nothing from before now."""
        self._begun[table] = self.version

    def since(self, table: str, version: int) -> list[Event]:
        """Changes after `version`, for a watch. Raises ApiError 410 if some of them are forgotten."""
        if version < (begun := self._begun.get(table, 0)):
            raise errors.too_old(version, begun)
        return self._changes(table, version)

    def _changes(self, table: str, version: int) -> list[Event]:
        if version < self.compacted:
            raise errors.too_old(version, self.compacted)
        found: list[Event] = []
        for event in reversed(self._history):
            if event.version <= version:
                break
            if event.table == table:
                found.append(event)
        return found[::-1]

    def at(self, table: str, version: int) -> list[Stored]:
        """The table as it was at `version`. Raises ApiError 410 if that is forgotten."""
        rows = dict(self._tables.get(table, {}))
        for event in reversed(self._changes(table, version)):
            if event.old is None:
                rows.pop(event.new.key, None)
            else:
                rows[event.old.key] = event.old
        return [rows[key] for key in sorted(rows)]

    def compact(self, version: int | None = None) -> int:
        """Forget the changes up to `version` (default: all). A watch may still start at exactly that version."""
        self.compacted = max(self.compacted, self.version if version is None else version)
        self._history = [event for event in self._history if event.version > self.compacted]
        return self.compacted
