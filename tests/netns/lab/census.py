"""Who uses which port of an egress IP, as the far end sees it: datagrams that bear their sender's name, without end.

A conversation that shows another address or port than before has lost its mapping; a port that two show has two users.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from tests.netns.lab.hosts import Host
from tests.netns.lab.lab import FW_ADDRESS

PORT, EVERY = 9, 0.02  # seconds


class Census:
    """`each` conversations of every pod, inside the block."""

    def __init__(self, pods: Iterable[Host], fw: Host, source: str, each: int = 8) -> None:
        self.faults: list[str] = []
        self.heard: dict[str, float] = {}  # conversation -> when its last datagram came
        self._source = source
        self._ports: dict[str, int] = {}
        self._users: dict[int, str] = {}
        self._server = fw.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.bind((FW_ADDRESS, PORT))
        self._server.settimeout(0.1)
        self._flows = {
            f"{pod.label}/{n}": pod.socket(socket.AF_INET, socket.SOCK_DGRAM) for pod in pods for n in range(each)
        }
        for flow in self._flows.values():
            flow.connect((FW_ADDRESS, PORT))
            flow.setblocking(False)
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._send)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(5)
        for each in (self._server, *self._flows.values()):
            each.close()

    def are_all_heard(self, since: float) -> bool:
        """Whether each conversation has been heard after monotonic time `since`."""
        return all(self.heard.get(name, 0.0) > since for name in self._flows)

    def _send(self) -> None:
        while not self._ending.wait(EVERY):
            for name, flow in self._flows.items():
                with suppress(OSError):
                    flow.send(name.encode())

    def _serve(self) -> None:
        while not self._ending.is_set():
            with suppress(OSError):
                data, (address, port) = self._server.recvfrom(64)
                self._note(data.decode(), address, port)

    def _note(self, name: str, address: str, port: int) -> None:
        self.heard[name] = time.monotonic()
        if address != self._source:
            self.faults.append(f"{name} shows {address}")
        if (user := self._users.setdefault(port, name)) != name:
            self.faults.append(f"port {port} has two users: {user} and {name}")
        if (before := self._ports.setdefault(name, port)) != port:
            self.faults.append(f"{name} left by port {before}, now by {port}")
