"""HTTP for Prometheus and for probes: fixed paths, served from an event loop in a thread of its own.

A daemon's loop that is stuck is told, not shared; and a page is made from a frozen value, so it needs no lock.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from routerd.errors import EnvironmentFault
from routerd.model import IPAddress
from routerd.serve.connections import Connections, Limits, read_until
from routerd.tell.metrics import operator_registry, registry
from routerd.tell.status import AgentStatus

if TYPE_CHECKING:
    from routerd.tell.operator_status import OperatorStatus

LIMITS = Limits(most=64, seconds=10.0, request=16384)
BACKLOG = 128  # connections that the kernel holds until they are accepted

TEXT = "text/plain; charset=utf-8"
Page = tuple[int, str, bytes]  # status, content type, body
Pages = dict[str, Callable[[], Page]]


class HttpServer:
    """Serves fixed paths until it is closed."""

    def __init__(self, address: IPAddress, port: int, pages: Pages, setting: str = "metrics-listen") -> None:
        """EnvironmentFault if it cannot listen there. Port 0 takes a free one. `setting` is the key to change then."""
        family, both = socket.AF_INET, False
        if address.version == 6:
            family, both = socket.AF_INET6, socket.has_dualstack_ipv6()
        where = str(address), port
        try:
            self._listener = socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            message = f"cannot listen on {address} port {port}: {error.strerror}: change {setting}"
            raise EnvironmentFault(message) from error
        self.port = int(self._listener.getsockname()[1])
        self._pages = pages
        self._loop, self._closed = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    def _work(self) -> None:
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        connections = Connections(self._listener, self._serve, LIMITS)
        await self._closed.wait()
        await connections.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_until(reader, b"\r\n\r\n")
        if head:
            writer.write(_response(*self._page(head)))

    def _page(self, head: bytes) -> Page:
        """The answer to a request without a body (RFC 9112, section 3)."""
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return 400, TEXT, b"not HTTP/1\n"
        if method != "GET":
            return 501, TEXT, b"GET alone is answered\n"
        page = self._pages.get(target.partition("?")[0])
        return page() if page else (404, TEXT, b"not found\n")


def _response(status: int, content_type: str, body: bytes) -> bytes:
    """One answer, after which the connection ends."""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def pages(status: Callable[[], AgentStatus], is_alive: Callable[[], bool]) -> Pages:
    """`/metrics`, `/healthz` (the agent's loop runs) and `/readyz` (and everything is as it should be)."""

    def dead_because() -> str:
        return "" if is_alive() else "the agent's loop does not run"

    return _pages(registry(status), dead_because, lambda: status().not_ready_because())


def operator_pages(status: Callable[[], OperatorStatus], dead_because: Callable[[], str]) -> Pages:
    """`/metrics`, `/healthz` (loop and tasks run) and `/readyz` (everything was read that a decision needs)."""
    return _pages(operator_registry(status), dead_because, lambda: status().not_ready_because())


def _pages(exposed: CollectorRegistry, dead_because: Callable[[], str], not_ready_because: Callable[[], str]) -> Pages:
    return {
        "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(exposed)),
        "/healthz": lambda: _verdict(dead_because(), "alive"),
        "/readyz": lambda: _verdict(not_ready_because(), "ready"),
    }


def _verdict(fault: str, good: str) -> Page:
    return 503 if fault else 200, TEXT, f"{fault or good}\n".encode()
