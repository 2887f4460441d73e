"""Whoever wants sessions or probes: one connection to the bfd process, made for ever. It remembers what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from bfd.control import LINE_LIMIT, ControlError, Report, Wanted, parse_report, wanted_line
from bfd.probes import Probing
from bfd.table import Order

RETRY = 0.2  # seconds between attempts to connect


class Client:
    """`run` in a task; `set` and `probe` whenever what is wanted changes. Not thread-safe: one event loop."""

    def __init__(self, path: Path, *, on_report: Callable[[Report | None, Report | None], None] | None = None) -> None:
        """`on_report` is called with the report before and the new one, None = no process is connected; with None twice
        when only `refused` has changed.
        """
        self._path = path
        self._on_report = on_report
        self._wanted = Wanted()
        self._writer: asyncio.StreamWriter | None = None
        self._report: Report | None = None
        self.refused = ""  # why what answered is no bfd process of ours, "" = it is, or nobody answers

    @property
    def report(self) -> Report | None:
        """What the process said last; None while none is connected."""
        return self._report

    def set(self, orders: Iterable[Order]) -> None:
        """All sessions that are wanted. Before it is called the process keeps those that it has."""
        self._want(replace(self._wanted, sessions={order.ends: order for order in orders}))

    def probe(self, probing: Probing) -> None:
        """All probes that are wanted. Before it is called the process goes on as it does."""
        self._want(replace(self._wanted, probing=probing))

    def _want(self, wanted: Wanted) -> None:
        if wanted != self._wanted:
            self._wanted = wanted
            self._send()

    def _send(self) -> None:
        if self._writer is not None and self._wanted != Wanted():
            self._writer.write(wanted_line(self._wanted))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                ends = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
            except OSError:
                self._take(None)
            else:
                with contextlib.suppress(OSError):
                    await self._follow(*ends)
            await asyncio.sleep(RETRY)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refused = ""
        try:
            while line := await reader.readline():
                self._take(parse_report(line))
                if self._writer is None:
                    self._writer = writer
                    self._send()
        except (ControlError, ValueError) as error:
            refused = str(error)
        finally:
            self._writer = None
            writer.close()
            self._take(None, refused)

    def _take(self, report: Report | None, refused: str = "") -> None:
        before, self._report = self._report, report
        is_news = before is not None or report is not None or refused != self.refused
        self.refused = refused
        if self._on_report is not None and is_news:
            self._on_report(before, report)
