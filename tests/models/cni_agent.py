"""A stand-in for the agent on the plugin's socket: it notes each request and answers with fixed bytes, or never."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class FixedAgent:
    reply: bytes | None  # None = it reads and says nothing, until the end of the test
    requests: list[bytes] = field(default_factory=list)


@contextmanager
def answering(path: Path, reply: bytes | None) -> Iterator[FixedAgent]:
    agent, over = FixedAgent(reply), threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, agent, over), name="fixed-agent")
        thread.start()
        try:
            yield agent
        finally:
            over.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            thread.join()


def _serve(listener: socket.socket, agent: FixedAgent, over: threading.Event) -> None:
    while not over.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(ConnectionError):
            agent.requests.append(_read(connection))
            if agent.reply is None:
                over.wait()
            else:
                connection.sendall(agent.reply)


def _read(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))
