"""Published allocations: one document, or an index with parts. What is in force is one decision, never a mix. Pure.

Who reads for a node that is no gateway needs no tables of ports: its own blocks are in a share of nodes (`shares.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from routerd.errors import InputError
from routerd.formats.published import parts
from routerd.formats.published.allocations import parse_index, write_allocations, write_index
from routerd.formats.published.bindings import BINDINGS
from routerd.formats.published.parts import Assembly, Incomplete, Part, Shards
from routerd.formats.published.shares import GATEWAYS, PORTS, READERS, NodePorts, Sharing, own_tables, share_of
from routerd.formats.published.tables import GROUPS, REFUSALS, TABLES
from routerd.model import Allocations, BindingTable, NodeNumber, Unread

POLICIES = (GROUPS, REFUSALS)  # what changes with policies, apart from what says the same for all of them
EVERYBODYS = tuple(table for table in TABLES if table not in (*POLICIES, BINDINGS))
Fetch = Callable[[str], str | None]  # the text of a part, by name; None = it is not there


@dataclass(frozen=True, slots=True)
class Published:
    """A document, and the parts that must be there before it."""

    text: str
    parts: tuple[Part, ...] = ()


class AllocationsWriter:
    """Allocations to text. It remembers what it wrote, so that what did not change costs little."""

    def __init__(self) -> None:
        self._shards = Shards(EVERYBODYS), Shards(POLICIES), Shards((BINDINGS,), (GATEWAYS,))
        self._sharing, self._shares = Sharing(), Shards((PORTS,), READERS)

    def written(self, allocations: Allocations) -> Published:
        """The same value gives the same text."""
        records = {table.name: getattr(allocations, table.name) for table in TABLES}
        found = [part for shards in self._shards for part in shards.parts(records)]
        if sum(len(part.text) for part in found) <= parts.INLINE_SIZE:
            return Published(write_allocations(allocations))
        found += self._shares.parts({PORTS.name: self._sharing.shared(allocations)})
        return Published(write_index(allocations, found), tuple(found))


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

    `stamp` tells a part that is there from another one under its name; None = it is not there. `node`: by which what
    it needs is read alone; "" = everything is. Of ports, what it then finds is its own blocks, unless it is a gateway.
    """

    def __init__(self, stamp: Callable[[str], object] = lambda name: None, node: str = "") -> None:
        self._assembly, self._stamp, self._node = Assembly((*TABLES, PORTS)), stamp, node
        self._in_force: dict[str, object] = {}  # parts that the index names: stamps; None = not seen yet
        self._own: tuple[BindingTable, ...] = ()  # as read last
        self.is_gateway = False  # it needs what gateways read

    def read(self, text: str, file: str, fetch: Fetch) -> Allocations:
        """Raises InputError unless the file holds exactly one whole `Allocations`; `WithoutParts` if parts lack."""
        allocations, named = parse_index(text, file)
        if named is None:
            self.is_in_force(())
            return allocations
        try:
            records = self._records(named, fetch)
        except Incomplete as error:
            raise WithoutParts(error.message, file, allocations) from error
        except InputError as error:
            raise InputError(error.message, file=file) from error
        return replace(allocations, **records)

    def _records(self, named: Mapping[str, str], fetch: Fetch) -> dict[str, Any]:
        """Of the parts that are for it. Its share says whether it needs those for gateways.

        An index that says of no part whom it is for is an earlier release's, which had no shares: its tables are all.
        """
        names = [name for name, readers in named.items() if self._is_reader(readers)]
        self.is_in_force(names)
        records: dict[str, Any] = {**self._assembly.records(names, fetch)}
        ports: tuple[NodePorts, ...] = records.pop(PORTS.name)
        if not self._node or not any(named.values()):
            return records
        mine = next((each for each in ports if each.node == self._node), None)
        was_gateway, self.is_gateway = self.is_gateway, mine is not None and mine.is_gateway
        if self.is_gateway and not was_gateway:
            return self._records(named, fetch)
        return records if self.is_gateway else {**records, "bindings": self._tables(mine, records["numbers"])}

    def _is_reader(self, readers: str) -> bool:
        return not self._node or readers in ("", share_of(self._node)) or (self.is_gateway and readers == GATEWAYS)

    def _tables(self, mine: NodePorts | None, numbers: tuple[NodeNumber, ...]) -> tuple[BindingTable, ...]:
        """The same value again while they are the same."""
        tables = own_tables(mine, numbers)
        if tables != self._own:
            self._own = tables
        return self._own

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
