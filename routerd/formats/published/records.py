"""Kinds of records as tables: a record is a row of plain cells, whatever keeps it. Pure; it knows no kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from routerd.formats.jsontext import parse_json

R = TypeVar("R")
SHOWN = 100  # characters of a row in an error
Row = list[Any]  # cells that JSON knows: text, numbers, booleans, lists


class NoRecord(ValueError):
    """A row that is no record of its table. The text names the table and begins with the row, where the key is."""


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """One kind of record. `from_row` takes the cells one by one, and raises what a cell that does not fit leads to."""

    name: str
    key: Callable[[R], Any]  # unique in the table; records are sorted by it
    shard: Callable[[R], str]  # records with the same text lie in the same part, as long as they live
    to_row: Callable[[R], Row]
    from_row: Callable[..., R]

    def read(self, row: Row) -> R:
        """Raises NoRecord."""
        try:
            return self.from_row(*row)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise no_record(self.name, row, repr(error)) from error


def no_record(table: str, row: Row, why: str) -> NoRecord:
    text = str(row)
    return NoRecord(f"table {table}, row {text if len(text) <= SHOWN else f'{text[:SHOWN]}…'}: {why}")


def lines(table: Table[R], records: Iterable[R]) -> str:
    """A line of JSON for each record, so that people can read and compare them."""
    return "".join(line(table, record) for record in records)


def line(table: Table[R], record: R) -> str:
    return f"{json.dumps(table.to_row(record))}\n"


def read_lines(table: Table[R], text: str) -> Iterator[R]:
    """Raises ValueError if a line is none of the table's."""
    return (table.read(parse_json(line)) for line in text.splitlines() if line)
