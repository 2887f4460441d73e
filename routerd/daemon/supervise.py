"""`routerd run`: starts the speaker, the agent and, where asked, the operator, each in a session of its own.

It starts again what dies, after a pause that doubles, and stops all of them at a signal, the speaker last. Peers with
graceful restart keep the paths (unless the host goes down), and the datapath keeps forwarding. It knows nothing of what
they do.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bgp.service import SpeakerStartError, SpeakerStopError, running_speaker, start_speaker, stop_speaker
from routerd import codes
from routerd.errors import EnvironmentFault
from routerd.log import event

LOGGER = logging.getLogger("routerd.run")
FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0  # seconds; a process that has run for the longer one starts over with the shorter
STOP_TIMEOUT = 10.0  # seconds until a process that does not stop is killed
SPEAKER_LOOK = 1.0  # seconds between looks at the speaker, which is not our child when it was adopted


@dataclass(slots=True)
class Child:
    """A process that must run: its name and command."""

    name: str
    command: Sequence[str]
    process: asyncio.subprocess.Process | None = field(default=None)

    async def keep(self) -> None:
        """Runs it for ever; EnvironmentFault if it says that the machine lacks something (and a restart is no help)."""
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            self.process = await asyncio.create_subprocess_exec(*self.command, start_new_session=True)
            event(LOGGER, logging.INFO, "started", process=self.name, pid=self.process.pid)
            code = await self.process.wait()
            if code == codes.ENVIRONMENT:
                raise EnvironmentFault(f"{self.name} cannot run: see its message above")
            pause = FIRST_PAUSE if time.monotonic() - started > LAST_PAUSE else pause
            event(LOGGER, logging.ERROR, "died", process=self.name, code=code, retry=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)

    def tell(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self) -> None:
        self.tell(signal.SIGTERM)
        if self.process is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self.process.wait()
        except TimeoutError:
            event(LOGGER, logging.ERROR, "killed", process=self.name, reason=f"did not stop in {STOP_TIMEOUT:g} s")
            self.process.kill()
            await self.process.wait()


async def keep_speaker(run_dir: Path) -> None:
    """Starts the speaker, or adopts a running one, and starts it again when it is gone."""
    pause = FIRST_PAUSE
    while True:
        if await asyncio.to_thread(running_speaker, run_dir) is None:
            try:
                speaker = await asyncio.to_thread(start_speaker, run_dir)
            except SpeakerStartError as error:
                event(LOGGER, logging.ERROR, "speaker-failed", reason=str(error), retry=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            event(LOGGER, logging.INFO, "started", process="speaker", pid=speaker.pid)
            pause = FIRST_PAUSE
        await asyncio.sleep(SPEAKER_LOOK)


def routerd_command(role: str, config: Path | None) -> list[str]:
    """The command line of another process of this routerd."""
    options = ["--config", str(config)] if config is not None else []
    return [sys.executable, "-m", "routerd.cli.main", *options, role]


async def run(children: Sequence[Child], speaker_run_dir: Path | None) -> None:
    """Keeps everything running until SIGTERM or SIGINT; passes SIGHUP on. `speaker_run_dir` None = no BGP."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _pass_on(children))
    keepers = [asyncio.create_task(child.keep(), name=child.name) for child in children]
    if speaker_run_dir is not None:
        keepers.append(asyncio.create_task(keep_speaker(speaker_run_dir), name="speaker"))
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([stopping, *keepers], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (stopping, *keepers):
            task.cancel()
        await asyncio.gather(stopping, *keepers, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in children))
        if speaker_run_dir is not None:
            await _stop_speaker(speaker_run_dir)


async def _stop_speaker(run_dir: Path) -> None:
    """One of another container is not ours to stop: its runtime would start it again."""
    try:
        await asyncio.to_thread(stop_speaker, run_dir)
    except SpeakerStopError as error:
        event(LOGGER, logging.WARNING, "speaker-left", reason=str(error))


def _pass_on(children: Sequence[Child]) -> Callable[[], None]:
    def hang_up() -> None:
        for child in children:
            child.tell(signal.SIGHUP)

    return hang_up
