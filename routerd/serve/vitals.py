"""Whether a daemon lives, for its probes: the event loop beats, and another thread may ask.

An API server that is away is no reason for a restart, which would mend nothing: liveness must not look at it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from routerd.errors import EnvironmentFault
from routerd.log import event
from routerd.model import IPAddress

if TYPE_CHECKING:
    from routerd.tell.operator_status import OperatorStatus

LOGGER = logging.getLogger("routerd.process")
BEAT = 1.0  # seconds
LONGEST_BEAT = 15.0  # seconds without one after which the loop counts as stuck


class Heart:
    """Beats while the loop runs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    async def beat(self) -> None:
        while True:
            self.once()
            await asyncio.sleep(BEAT)

    def once(self) -> None:
        self._last = time.monotonic()

    def is_beating(self) -> bool:
        return time.monotonic() - self._last < LONGEST_BEAT


class Vitals:
    """An operator's. `status` is renewed with each beat, in the event loop; other threads read the frozen value."""

    def __init__(self, status: Callable[[], OperatorStatus], tasks: Callable[[], Iterable[asyncio.Task[None]]]) -> None:
        """`tasks` are those that must run for as long as the process does."""
        self._read, self._tasks, self._heart = status, tasks, Heart()
        self.status = status()

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            self.status = self._read()
            self._heart.once()
            await asyncio.sleep(BEAT)

    def dead_because(self) -> str:
        """One line for /healthz; "" while it lives."""
        if not self._heart.is_beating():
            return "the operator's loop does not run"
        ended = [task.get_name() for task in self._tasks() if task.done()]
        return f"ended: {', '.join(ended)}" if ended else ""


@contextmanager
def served(listen: tuple[IPAddress, int] | None, vitals: Vitals) -> Iterator[None]:
    """Metrics and probes of an operator, if it is asked to serve them.

    Where it cannot listen it says so and goes on: addresses are given all the same.
    """
    if listen is None:
        yield
        return
    from routerd.serve.web import HttpServer, operator_pages

    pages = operator_pages(lambda: vitals.status, vitals.dead_because)
    try:
        server = HttpServer(*listen, pages, setting="operator.metrics-listen")
    except EnvironmentFault as error:
        event(LOGGER, logging.ERROR, "no-metrics", reason=str(error))
        yield
        return
    try:
        yield
    finally:
        server.close()
