"""From start to signal: SIGTERM and SIGINT end a process's work, SIGHUP reads its configuration again.

A configuration that is refused leaves the work going on with the last good one, and the work is told.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from routerd.agent.loop import TaskReturned
from routerd.config import Config, load_config
from routerd.errors import InputError
from routerd.log import event
from routerd.serve.notify import notify
from routerd.tell.status import ConfigStatus

LOGGER = logging.getLogger("routerd.process")


@dataclass(slots=True)
class ConfigSource:
    """Where the configuration comes from; `path` None = the defaults. The work sets `on_status` to hear of refusals."""

    path: Path | None = None
    loader: Literal["libbpf", "bcc"] | None = None
    """The command line's --bpf-loader, which goes before the file's."""
    on_status: Callable[[ConfigStatus], None] = lambda state: None
    reloaded: bool = False
    """Whether the present configuration was read by SIGHUP."""

    def load(self) -> Config:
        """Raises InputError."""
        config = load_config(self.path) if self.path is not None else Config()
        return replace(config, egress=replace(config.egress, loader=self.loader)) if self.loader else config

    def reload(self, last: Config) -> Config:
        """The configuration as it is now, or `last` if that is refused."""
        try:
            config = self.load()
        except InputError as error:
            event(LOGGER, logging.ERROR, "configuration-refused", reason=str(error))
            self.on_status(ConfigStatus(stale=True, error=str(error)))
            return last
        self.on_status(ConfigStatus())
        self.reloaded = True
        return config


@dataclass(slots=True)
class _Signals:
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)


async def until_signal(source: ConfigSource, work: Callable[[Config, ConfigSource], Coroutine[Any, Any, None]]) -> None:
    """Runs `work` until a signal to stop; anew, in this process, when SIGHUP finds another configuration."""
    signals, config = _Signals(), source.load()
    signals.listen()
    while not signals.stop.is_set():
        task = asyncio.create_task(work(config, source))
        try:
            config = await _watched(task, signals, source, config)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    notify("STOPPING=1")
    event(LOGGER, logging.INFO, "stopped")


async def _watched(task: asyncio.Task[None], signals: _Signals, source: ConfigSource, config: Config) -> Config:
    """Returns at a signal to stop, or with another configuration; raises what the task raises."""
    while True:
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(wake.wait()) for wake in (signals.stop, signals.reload)]
        await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if task.done():
            task.result()
            raise TaskReturned("the work returned: it must run until a signal")
        if signals.stop.is_set():
            return config
        signals.reload.clear()
        reloaded = source.reload(config)
        if reloaded != config:
            event(LOGGER, logging.INFO, "configuration-changed", file=str(source.path or "defaults"))
            return reloaded
