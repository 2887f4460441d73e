"""Published allocations: one document, or an index with parts. What is in force is one decision, never a mix. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from routerd.errors import InputError
from routerd.formats.published import parts
from routerd.formats.published.allocations import parse_index, write_allocations, write_index
from routerd.formats.published.parts import Assembly, Incomplete, Part, Shards
from routerd.formats.published.tables import TABLES
from routerd.model import Allocations, Unread

Fetch = Callable[[str], str | None]  # the text of a part, by name; None = it is not there


@dataclass(frozen=True, slots=True)
class Published:
    """A document, and the parts that must be there before it."""

    text: str
    parts: tuple[Part, ...] = ()


class AllocationsWriter:
    """Allocations to text. It remembers what it wrote, so that what did not change costs little."""

    def __init__(self) -> None:
        self._shards = Shards(TABLES)

    def written(self, allocations: Allocations) -> Published:
        """The same value gives the same text."""
        found = self._shards.parts({table.name: getattr(allocations, table.name) for table in TABLES})
        if sum(len(part.text) for part in found) <= parts.INLINE_SIZE:
            return Published(write_allocations(allocations))
        return Published(write_index(allocations, [part.name for part in found]), found)


class WithoutParts(Incomplete):
    """`head` is what the index itself says."""

    def __init__(self, message: str, file: str, head: Allocations) -> None:
        super().__init__(message, file=file)
        self.head = head


def unread(error: InputError | None) -> Unread | None:
    """What a store says of published allocations that `AllocationsReader` could not read."""
    if error is None:
        return None
    return Unread(str(error), error.head if isinstance(error, WithoutParts) else None)


class AllocationsReader:
    """Text to allocations. It remembers the parts of what it read last.

    `stamp` tells a part that is there from another one under its name; None = it is not there.
    """

    def __init__(self, stamp: Callable[[str], object] = lambda name: None) -> None:
        self._assembly, self._stamp = Assembly(TABLES), stamp
        self._in_force: dict[str, object] = {}  # parts that the index names: stamps; None = not seen yet

    def read(self, text: str, file: str, fetch: Fetch) -> Allocations:
        """Raises InputError unless the file holds exactly one whole `Allocations`; `WithoutParts` if parts lack."""
        allocations, names = parse_index(text, file)
        self.is_in_force(names or ())
        if names is None:
            return allocations
        try:
            records: dict[str, Any] = {**self._assembly.records(names, fetch)}
            return replace(allocations, **records)
        except Incomplete as error:
            raise WithoutParts(error.message, file, allocations) from error
        except InputError as error:
            raise InputError(error.message, file=file) from error

    def is_in_force(self, names: Iterable[str]) -> None:
        """An index with these parts was read, or written by ourselves."""
        self._in_force = {name: self._stamp(name) for name in names}

    def changed(self) -> frozenset[str]:
        """The parts in force that are gone or were made anew since they were seen; they are read again then."""
        stamps = {name: self._stamp(name) for name in self._in_force}
        found = frozenset(name for name, seen in self._in_force.items() if seen is not None and seen != stamps[name])
        self._assembly.forget(found)
        self._in_force = stamps
        return found
