"""Asks all targets again and again, while this node is a gateway. What was found outlives the process, in a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from upstream.ask import CannotAsk, ask
from upstream.targets import Rules, Target, Upstream

IDLE = 0.5  # seconds between looks whether this node has become a gateway

Log = Callable[..., None]  # level, event, fields


class Watcher:
    """`run` in a task. `state` is a frozen value; `on_change` follows each new one that says something else."""

    def __init__(
        self,
        rules: Rules,
        marker: Path,
        log: Log,
        ask: Callable[[Target, float], Awaitable[str]] = ask,
    ) -> None:
        """`marker`: a file that is there while upstream is lost, so that a process that starts then does not begin with
        another opinion, and lead packets into the void until it knows better.
        """
        self._rules, self._marker, self._log, self._ask = rules, marker, log, ask
        self.serves: Callable[[], bool | None] = lambda: None  # whether this node is a gateway; None = not known yet
        self.on_change: Callable[[], None] = lambda: None
        self.state = Upstream(is_lost=marker.exists())

    async def run(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            began, serves = clock(), self.serves()
            if serves:
                self._take(await self._asked())
            elif serves is not None and self.state != Upstream():
                self._take(Upstream())
            pause = self._rules.interval if serves else IDLE
            await asyncio.sleep(max(0.0, began + pause - clock()))

    async def _asked(self) -> Upstream:
        targets = self._rules.targets
        try:
            errors = await asyncio.gather(*(self._ask(target, self._rules.timeout) for target in targets))
        except CannotAsk as refused:
            return self.state.unasked(str(refused))
        return self.state.after(dict(zip(targets, errors, strict=True)), self._rules)

    def _take(self, state: Upstream) -> None:
        before, self.state = self.state, state
        if state.is_lost != before.is_lost:
            self._keep(state)
        if state.problem and state.problem != before.problem:
            self._log(logging.WARNING, "upstream-not-asked", reason=state.problem)
        told = [(each.is_lost, each.problem, each.failing) for each in (before, state)]
        if told[0] != told[1] or before.targets.keys() != state.targets.keys():
            self.on_change()

    def _keep(self, state: Upstream) -> None:
        if state.is_lost:
            self._log(logging.WARNING, "upstream-lost", targets=", ".join(state.failing))
        else:
            self._log(logging.INFO, "upstream-back")
        with suppress(OSError):  # only the next process would miss it
            self._marker.touch() if state.is_lost else self._marker.unlink(missing_ok=True)
