"""Times of eBPF programs: of each test run, and from the kernel's own statistics of real packets; and the program that
does nothing, whose time is the harness's.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bpf import syscall
from tests.bench.report import compiled
from tests.waiting import wait

PROG_LOAD, ENABLE_STATS = 5, 32
SCHED_CLS = 3
DROP = 2  # TC_ACT_SHOT


class _Load(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("instruction_count", ctypes.c_uint32),
        ("instructions", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
    ]


class _EnableStats(ctypes.Structure):
    _fields_ = [("type", ctypes.c_uint32)]  # 0 = run time


@contextmanager
def empty_program() -> Iterator[int]:
    """A descriptor of "return TC_ACT_SHOT"."""
    instructions = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, DROP, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    fd = syscall.bpf(PROG_LOAD, _Load(SCHED_CLS, 2, ctypes.addressof(instructions), ctypes.addressof(licence)))
    try:
        yield fd
    finally:
        os.close(fd)


# --- test runs


class TestRuns:
    """`runs.c`: one run a call."""

    def __init__(self, library: Path) -> None:
        self._run_each = ctypes.CDLL(str(library), use_errno=True).run_each

    def run(self, program: int, frames: Sequence[bytes], context: bytes, verdict: int) -> list[int]:
        """Nanoseconds of the program on each frame; all must be equally long and come to `verdict`."""
        size, count = len(frames[0]), len(frames)
        assert {*map(len, frames)} == {size}
        took, verdicts = (ctypes.c_uint32 * count)(), (ctypes.c_int32 * count)()
        done = self._run_each(program, b"".join(frames), size, count, context, len(context), took, verdicts)
        if done != count:
            raise OSError(ctypes.get_errno(), f"test run {done + 1} of {count}: {os.strerror(ctypes.get_errno())}")
        if {*verdicts} != {verdict}:
            raise SystemExit(
                f"bench: error: verdicts { ({*verdicts}) }, not {verdict} alone: another path was measured"
            )
        return list(took)


@contextmanager
def test_runs() -> Iterator[TestRuns]:
    with compiled("runs.c", "-shared", "-fPIC") as library:
        yield TestRuns(library)


# --- real packets


@contextmanager
def statistics() -> Iterator[None]:
    """The kernel takes every program's time inside the block (Linux 5.8), also those of others on this machine."""
    fd = syscall.bpf(ENABLE_STATS, _EnableStats(0))
    try:
        yield
    finally:
        os.close(fd)


def taken(program: int) -> tuple[int, int]:
    """(nanoseconds, runs) of a program since it was loaded, while `statistics` were on."""
    text = Path(f"/proc/self/fdinfo/{program}").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields["run_time_ns"]), int(fields["run_cnt"])


def mean_time(program: int, frames: Sequence[bytes], put: Callable[[bytes], None]) -> float:
    """Mean nanoseconds of the program on these frames, which `put` sends to where it is attached."""
    time_before, runs_before = taken(program)
    for frame in frames:
        put(frame)
    wait(lambda: taken(program)[1] - runs_before >= len(frames), "all packets have met the program", interval=0.001)
    time_after, runs_after = taken(program)
    return (time_after - time_before) / (runs_after - runs_before)
