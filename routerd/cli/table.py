"""Rows as a table for people, JSON for programs, CSV for spreadsheets. Pure."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Sequence

from routerd.tell.views import Row, Value

WIDTH = 100  # characters of a line of a table
SENTENCE = 40  # characters in which sentences still read well
GAP = 2  # blanks between columns
_BREAK = re.compile(r"(?<=[ ,])")


def _cell(value: Value) -> str:
    if value is None or value == "":
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def table(columns: Sequence[str], rows: Sequence[Row], width: int = WIDTH) -> str:
    """Left-aligned columns, two spaces apart; headings in capitals as kubectl has them.

    A line has at most `width` characters if words and addresses allow it: what is longer goes on below, in its column.
    """
    cells = [[column.upper().replace("_", "-") for column in columns]]
    cells += [[_cell(row[column]) for column in columns] for row in rows]
    widths = _narrowed(list(zip(*cells, strict=True)), width - GAP * (len(columns) - 1))
    return "".join(_lines(line, widths) for line in cells)


def _lines(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One row: as many lines as its longest cell needs."""
    folded = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
    below = itertools.zip_longest(*folded, fillvalue="")
    lines = (zip(line, widths, strict=True) for line in below)
    return "".join((" " * GAP).join(part.ljust(width) for part, width in line).rstrip() + "\n" for line in lines)


def _narrowed(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths that add up to `room` at most. The last column gives way first, as that is where sentences are, then the
    widest, down to what cannot be folded.
    """
    widths = [max(map(len, column)) for column in columns]
    least = [max(len(part) for cell in column for part in _parts(cell)) for column in columns]
    widths[-1] = max(least[-1], min(widths[-1], max(SENTENCE, room - sum(widths[:-1]))))
    while (excess := sum(widths) - room) > 0:
        wide = max(range(len(widths)), key=lambda n: widths[n] if widths[n] > least[n] else -1)
        if widths[wide] <= least[wide]:
            break  # nothing can be folded further
        next_width = max((w for n, w in enumerate(widths) if n != wide and w < widths[wide]), default=0)
        widths[wide] = max(least[wide], widths[wide] - excess, min(next_width, widths[wide] - 1))
    return widths


def _parts(cell: str) -> list[str]:
    """What stays on one line: words, and entries of a list."""
    return [part.rstrip() for part in _BREAK.split(cell)]


def _folded(cell: str, width: int) -> list[str]:
    lines = [""]
    for part in _BREAK.split(cell):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _field(value: Value) -> Value:
    return str(value).lower() if isinstance(value, bool) else value


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """RFC 4180 with a heading; lines end in a plain newline."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _field(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def render(output: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    if output == "json":
        return json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n"
    return as_csv(columns, rows) if output == "csv" else table(columns, rows)
