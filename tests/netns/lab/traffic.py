"""Traffic that notices the smallest interruption: a long download, long-lived echoes with a checksum, new connections.

Each runs in a thread of its own until it is asked to end, and says what went wrong instead of raising.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import Self

from tests.netns.lab.hosts import Host
from tests.netns.lab.lab import FW_ADDRESS

CHUNK = 16384
PATIENCE = 20.0  # seconds that a connection may stand still; longer is lost


class Worker:
    """A thread with a fault. `work` is called until it returns False or `end` is called."""

    def __init__(self, name: str) -> None:
        self.fault = ""
        self.ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> str:
        """Waits for the last step; returns the fault, "" = none."""
        self.ending.set()
        self._thread.join(PATIENCE + 10)
        if self._thread.is_alive():
            self.fault = self.fault or f"{self._thread.name} does not end"
        return self.fault

    def _run(self) -> None:
        try:
            self.open()
            while self.step():
                pass
        except OSError as error:
            self.fault = f"{self._thread.name}: {type(error).__name__}: {error}"
        finally:
            self.close()

    def open(self) -> None:
        """Before the first step."""

    def step(self) -> bool:
        """One piece of work; False ends the thread."""
        raise NotImplementedError

    def close(self) -> None:
        """After the last step."""


class Download(Worker):
    """One HTTP download through the gateway: slow until `end`, then four times as fast, and complete.

    The second half comes at a sixteenth of the rate until then: it still runs after what is done to it, also where a
    busy machine takes a minute for that.
    """

    def __init__(self, host: Host, size: int = 32 << 20, rate: int = 4 << 20) -> None:
        """`size` in bytes, `rate` in bytes per second; a capture of every packet must keep up."""
        super().__init__(f"download of {host.label}")
        self.received = 0
        self._host, self._size, self._rate = host, size, rate
        self._expected = 0

    def open(self) -> None:
        self._connection = self._host.connect(FW_ADDRESS, 80, PATIENCE)
        self._connection.sendall(f"GET /bytes/{self._size} HTTP/1.0\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._connection.recv(1)
        self._expected = self._size

    def step(self) -> bool:
        data = self._connection.recv(CHUNK)
        self.received += len(data)
        if not data and self.received != self._expected:
            self.fault = f"download of {self._host.label} ended after {self.received} of {self._expected} bytes"
        pace = 4.0 if self.ending.is_set() else 1.0 if self.received < self._size / 2 else 1 / 16
        time.sleep(len(data) / (self._rate * pace))
        return bool(data)

    def close(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()


class Echo(Worker):
    """A TCP connection that lives as long as the test; what comes back must be what was sent, by its checksum."""

    def __init__(self, host: Host, address: str = FW_ADDRESS, port: int = 7, pause: float = 0.02) -> None:
        super().__init__(f"echo of {host.label}")
        self.rounds = 0
        self.source = ""
        self.longest = 0.0  # seconds that an answer took
        self._host, self._address, self._port, self._pause = host, address, port, pause
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()

    def open(self) -> None:
        self._connection = self._host.connect(self._address, self._port, PATIENCE)
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += self._connection.recv(1)
        self.source = greeting.decode().strip().partition(" saw ")[2]

    def step(self) -> bool:
        payload = os.urandom(512)
        begin = time.monotonic()
        self._connection.sendall(payload)
        answer = b""
        while len(answer) < len(payload):
            data = self._connection.recv(4096)
            if not data:
                self.fault = f"echo of {self._host.label}: closed after {self.rounds} rounds"
                return False
            answer += data
        self.longest = max(self.longest, time.monotonic() - begin)
        self._sent.update(payload)
        self._received.update(answer)
        self.rounds += 1
        if self._sent.digest() != self._received.digest():
            self.fault = f"echo of {self._host.label}: wrong bytes in round {self.rounds}"
            return False
        return not self.ending.wait(self._pause)

    def close(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()


class NewConnections(Worker):
    """One HTTP request after the other, each a connection; every one must show one of the expected sources."""

    def __init__(self, host: Host, sources: set[str], address: str = FW_ADDRESS, pause: float = 0.02) -> None:
        super().__init__(f"new connections of {host.label}")
        self.made = 0
        self.lost: list[str] = []
        self._host, self._sources, self._address, self._pause = host, sources, address, pause

    def step(self) -> bool:
        answer = self._host.get(self._address, timeout=PATIENCE)
        self.made += 1
        if answer.source not in self._sources:
            self.lost.append(f"{time.strftime('%X')} {self._host.label}: {answer}")
        return not self.ending.wait(self._pause)

    def end(self) -> str:
        return super().end() or "; ".join(self.lost[:3])
