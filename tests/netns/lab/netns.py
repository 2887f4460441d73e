"""Network namespaces for tests: make, enter, run in, remove. Knows nothing of routerd or of the lab's topology.

A process is put into a namespace by setns(2) on the calling thread alone, before fork or socket(2). `ip netns exec`
is not used: it also gives the process a mount namespace with a fresh /sys, without the bpffs, so that every pin made
there would vanish with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.waiting import WaitTimeout, wait

CLONE_NEWNET = 0x40000000
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # <linux/sockios.h>, <linux/ethtool.h>
NETNS_DIR = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)
_children: dict[int, subprocess.Popen[bytes]] = {}  # what `popen` started and nobody has reaped yet


class CommandError(Exception):
    """A command failed. `str()` holds the command, its exit status and what it said."""


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread is in namespace `name` inside the block; its sockets, children and /proc/sys/net are too."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def run(command: Sequence[str], *, stdin: str = "", timeout: float = 20, check: bool = True) -> str:
    """Runs a command where the calling thread is and returns its standard output.

    With `check`, raises CommandError on a status other than 0; else standard error is appended to what is returned.
    """
    done = subprocess.run(list(command), input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise CommandError(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done.stdout if check else done.stdout + done.stderr


class Namespace:
    """One named network namespace (`/run/netns/NAME`). `label` is its short name in messages and log files."""

    def __init__(self, name: str, label: str) -> None:
        self.name = name
        self.label = label

    def create(self) -> None:
        run(["ip", "netns", "add", self.name])
        self.sysctl({"net.ipv6.conf.default.accept_dad": 0, "net.ipv6.conf.all.accept_dad": 0})
        self.ip("link set lo up")

    def ip(self, *lines: str) -> None:
        """Runs `ip` command lines inside as one batch; raises CommandError at the first that fails."""
        run(["ip", "-n", self.name, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def compute_checksums(self, device: str, *, offloaded: bool) -> None:
        """Of what the device sends: by its NIC, as veths do by leaving them out, or by the kernel."""
        value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, offloaded))
        request = struct.pack("=16sQ16x", device.encode(), ctypes.addressof(value))
        with entered(self.name), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)

    def sysctl(self, values: dict[str, int | str]) -> None:
        """Sets sysctls; the keys are written with dots, device names with slashes as in `net.ipv4.conf.eth0/1`."""
        with entered(self.name):
            for key, value in values.items():
                path = "/".join(part.replace("/", ".") for part in key.split("."))
                Path("/proc/sys", path).write_text(str(value))

    def run(self, command: Sequence[str], *, stdin: str = "", timeout: float = 20, check: bool = True) -> str:
        """`run` inside."""
        with entered(self.name):
            return run(command, stdin=stdin, timeout=timeout, check=check)

    def popen(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a process inside, in its own session, its output appended to `log`; it may outlive the lab's owner."""
        with log.open("ab") as out, entered(self.name):
            child = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        _children[child.pid] = child
        return child

    def nft(self, rules: str) -> None:
        """Loads an nftables ruleset inside."""
        self.run(["nft", "-f", "-"], stdin=rules)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, for use from any thread (a socket keeps the namespace it was made in)."""
        with entered(self.name):
            return socket.socket(family, kind, protocol)

    def pids(self) -> list[int]:
        """Processes inside."""
        return [int(word) for word in run(["ip", "netns", "pids", self.name]).split()]


def names(prefix: str) -> list[str]:
    """Names of the namespaces that start with `prefix`."""
    return (
        sorted(path.name for path in NETNS_DIR.glob("*") if path.name.startswith(prefix)) if NETNS_DIR.is_dir() else []
    )


def stop(pids: Sequence[int], grace: float = 2.0) -> None:
    """SIGTERM, then SIGKILL after `grace` seconds; returns when the processes are gone, and reaps our own children."""
    for sent, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        alive = [pid for pid in pids if is_alive(pid)]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        with contextlib.suppress(WaitTimeout):
            wait(lambda alive=alive: not any(map(is_alive, alive)), f"processes {alive} end", seconds, 0.01)
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return _stat(pid)[0] not in {"", "Z", "X"}


def start_time(pid: int) -> str:
    """When a process started, in ticks since boot; "" if it is gone. With the pid it names a process for good."""
    fields = _stat(pid)
    return fields[19] if fields[0] else ""


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on (proc(5), field 3); [""] for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return [""]
