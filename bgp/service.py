"""The speaker's process from outside: start it, find it, stop it. It outlives whoever started it.

A speaker is known by the lock that it holds on RUN_DIR/speaker.pid; the number in the file is for people. It may be
of another container, which shares the directory and not the PID namespace: then it is found, and cannot be signalled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bgp.launcher import PID_FILE

LOG_FILE = "exabgp.log"  # rotated by ExaBGP
OUTPUT_FILE = "speaker.out"  # what the process prints: warnings at start and last words; begun anew at each start
START_TIMEOUT = 10.0  # seconds

_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux, fcntl(2)
_children: set[int] = set()  # started by this process, to be reaped when they end


class SpeakerStartError(Exception):
    """The speaker did not start; the message says why."""


class SpeakerStopError(Exception):
    """The speaker runs where it cannot be signalled; the message says where."""


@dataclass(frozen=True, slots=True)
class SpeakerProcess:
    """A speaker that runs. `pid` None: in a PID namespace in which the kernel has no number of it for us."""

    pid: int | None

    def __str__(self) -> str:
        return "in another PID namespace" if self.pid is None else f"process {self.pid}"


def running_speaker(run_dir: Path) -> SpeakerProcess | None:
    """The speaker of `run_dir`, None when there is none."""
    _reap()
    try:
        with (run_dir / PID_FILE).open() as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if kind == fcntl.F_UNLCK:
        return None
    return SpeakerProcess(pid if pid > 0 else None)  # kill(2) takes 0 for the caller's own group, and -1 for everybody


def start_speaker(run_dir: Path, *, python: str = sys.executable, timeout: float = START_TIMEOUT) -> SpeakerProcess:
    """Starts the speaker in a session of its own, or adopts the running one. `timeout` in seconds.

    It logs to RUN_DIR/exabgp.log. Raises SpeakerStartError with what it printed when it stops at once.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    running = running_speaker(run_dir)
    if running is not None:
        return running
    child = _spawn(run_dir, python)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        running = running_speaker(run_dir)
        if running is not None:
            return running
        if child not in _children:
            break
        time.sleep(0.01)
    raise SpeakerStartError(
        f"the speaker did not start: {_tail(run_dir / OUTPUT_FILE) or f'nothing within {timeout:g} s'}"
    )


def _spawn(run_dir: Path, python: str) -> int:
    child = os.posix_spawn(
        python,
        [python, "-m", "bgp.launcher", str(run_dir), "--log", str(run_dir / LOG_FILE)],
        {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(run_dir / OUTPUT_FILE), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    _children.add(child)
    return child


def _reap() -> None:
    for child in list(_children):
        try:
            ended = os.waitpid(child, os.WNOHANG)[0] != 0
        except ChildProcessError:
            ended = True
        if ended:
            _children.discard(child)


def stop_speaker(run_dir: Path, timeout: float = 10.0) -> bool:
    """Ends the speaker; whether there was one. Peers with graceful restart keep its paths, unless the host goes down.

    It is killed after `timeout` seconds. SpeakerStopError if it is in another PID namespace, or the first process of
    ours: a container's, which only its runtime can end for good.
    """
    found = running_speaker(run_dir)
    if found is None:
        return False
    pid = found.pid
    if pid is None or pid <= 1:
        raise SpeakerStopError(f"the speaker runs on, {found}: stop it where it was started")
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if running_speaker(run_dir) != found:
                return True
            time.sleep(0.01)
    return True


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-2000:].strip()
    except FileNotFoundError:
        return ""
