"""Rows as a table for people, JSON for programs, CSV for spreadsheets. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from routerd.tell.views import Row, Value


def _cell(value: Value) -> str:
    if value is None or value == "":
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Left-aligned columns, two spaces apart; headings in capitals as kubectl has them."""
    cells = [[column.upper().replace("_", "-") for column in columns]]
    cells += [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines) + "\n"


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
