"""One line per event, as logfmt or JSON, on the standard library's logging.

A line says what happened (`event=`), why (`reason=`) and to what; it never carries secrets: fields whose name says
that they hold one are masked. Log once, at the loop that acts; values deeper down carry the reason up to it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

_SECRET = re.compile(r"password|passwd|secret|token|private_key|access_key|credential", re.IGNORECASE)
_PLAIN = re.compile(r'[^\s"=\\\x00-\x1f\x7f]+')
_FIELDS = "routerd_fields"
Field = str | int | float | bool | None
LEVELS: Mapping[str, int] = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}  # by severity


def event(logger: logging.Logger, level: int, name: str, **fields: Field) -> None:
    """Logs event `name` with `fields`, in their order; `None` is left out."""
    if not logger.isEnabledFor(level):
        return
    shown = {key: _masked(key, value) for key, value in fields.items() if value is not None}
    logger.log(level, "%s", logfmt({"event": name, **shown}), extra={_FIELDS: {"event": name, **shown}})


def logfmt(fields: Mapping[str, Field]) -> str:
    """`key=value key="value with spaces"`. A value never spans lines."""
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


class LogfmtFormatter(logging.Formatter):
    """`time=… level=… logger=… event=…`; a message that is no event is put under `msg`."""

    def format(self, record: logging.LogRecord) -> str:
        return logfmt(_line(record, self))


class JsonFormatter(logging.Formatter):
    """The same fields as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_line(record, self), ensure_ascii=False, separators=(",", ":"))


def configure(level: int = logging.INFO, *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Sends every event of the process to `stream` (stderr). Called once, by the command line."""
    target = logging.StreamHandler(stream or sys.stderr)
    target.setFormatter(JsonFormatter() if as_json else LogfmtFormatter())
    logging.basicConfig(level=level, handlers=[target], force=True)


def _line(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Field]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, Field] = {"time": time, "level": record.levelname.lower(), "logger": record.name}
    fields: Mapping[str, Field] | None = getattr(record, _FIELDS, None)
    line.update(fields if fields is not None else {"msg": record.getMessage()})
    if record.exc_info:
        line["exception"] = formatter.formatException(record.exc_info)
    return line


def _masked(key: str, value: Field) -> Field:
    return "***" if _SECRET.search(key) else value


def _value(value: Field) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
