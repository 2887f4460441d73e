"""Looks at the ToR's BGP table many times a second, and notes each path that should always be there and is not.

It speaks to BIRD's control socket itself, as birdc does: a process per look would take longer than what it looks for.
"""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Self

from tests.netns.lab.bird import parse_routes
from tests.waiting import PATIENCE

Paths = frozenset[tuple[str, str]]  # (prefix, node)


class BirdControl:
    """One connection to BIRD's control socket (its protocol: lines with a code, `0000` ends an answer)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._answer()

    def ask(self, command: str) -> str:
        """The text of the answer, without codes."""
        self._socket.sendall(command.encode() + b"\n")
        return self._answer()

    def close(self) -> None:
        self._socket.close()

    def _answer(self) -> str:
        data = b""
        while not _is_complete(data):
            more = self._socket.recv(1 << 16)
            if not more:
                break
            data += more
        # "1007-text" begins a kind of line, " text" continues it
        return "\n".join(_text(line) for line in data.decode().splitlines())


def _is_complete(data: bytes) -> bool:
    last = data[:-1].rpartition(b"\n")[2] if data.endswith(b"\n") else b""
    return last[:4].isdigit() and last[4:5] == b" " and last[:1] in b"089"


def _text(line: str) -> str:
    return line[5:] if line[:4].isdigit() else line[1:]


def paths(control: BirdControl) -> Paths:
    """Every path in the ToR's table, stale ones too."""
    found = parse_routes(control.ask("show route"))
    return frozenset((prefix, path.protocol) for prefix, some in found.items() for path in some)


class PathWatch:
    """A thread that looks for `wanted` (settable) at the ToR until `close`."""

    def __init__(self, path: Path, interval: float = 0.005) -> None:
        self.wanted: Paths = frozenset()
        self.looks = 0
        self.longest_gap = 0.0  # seconds between two looks
        self.changes = 0  # looks that showed another table than the look before
        self.missed: list[tuple[float, str, str]] = []  # (monotonic time, prefix, node)
        self.fault = ""
        self._control = BirdControl(path)
        self._interval = interval
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="paths", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(10)
        self._control.close()

    def _look(self) -> None:
        try:
            self._look_on()
        except OSError as error:
            self.fault = f"after {self.looks} looks: {error!r}"

    def _look_on(self) -> None:
        last, before = time.monotonic(), None
        while not self._closing.wait(self._interval):
            wanted = self.wanted
            seen = paths(self._control)
            now = time.monotonic()
            self.longest_gap, last = max(self.longest_gap, now - last), now
            self.looks += 1
            self.changes += before is not None and seen != before
            before = seen
            self.missed += [(now, prefix, node) for prefix, node in sorted(wanted - seen)]
