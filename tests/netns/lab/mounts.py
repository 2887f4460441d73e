"""Mount namespaces for tests: what a test mounts, nobody else sees, and the kernel removes it, also after a SIGKILL.

A thread has a namespace of its own; threads and processes that it starts inside are in it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from tests.netns.lab.netns import run

CLONE_NEWNS = 0x00020000
BPFFS = Path("/sys/fs/bpf")
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """The calling thread is in a mount namespace of its own inside the block. Named network namespaces that are made
    inside have their names in it alone: make them before."""
    home, directory = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), Path.cwd()
    try:
        _checked(_libc.unshare(CLONE_NEWNS), "unshare")
        try:
            run(["mount", "--make-rprivate", "/"])
            yield
        finally:
            _checked(_libc.setns(home, CLONE_NEWNS), "setns")
            os.chdir(directory)  # setns moves to the root
    finally:
        os.close(home)


@contextlib.contextmanager
def own_bpffs() -> Iterator[None]:
    """`own_mounts` with a new BPF file system at /sys/fs/bpf, whether or not the host has one."""
    with own_mounts():
        run(["mount", "-t", "bpf", f"bpf-{os.getpid()}", str(BPFFS)])
        yield


def mounted(process: str = "thread-self") -> list[str]:
    """Types of the file systems that a process has mounted at /sys/fs/bpf, one over the other (proc(5))."""
    rows = [line.split() for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines()]
    return [row[row.index("-") + 1] for row in rows if row[4] == str(BPFFS)]


def shown(where: Path = BPFFS) -> str:
    """Type of the file system that is seen at `where`."""
    return run(["stat", "-f", "-c", "%T", str(where)]).strip()
