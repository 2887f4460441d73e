"""HTTP for Prometheus and for probes: fixed paths, served from threads of its own.

A slow client cannot hold up a daemon's loop, and a page is made from a frozen value, so it needs no lock.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from routerd.errors import EnvironmentFault
from routerd.model import IPAddress
from routerd.tell.metrics import operator_registry, registry
from routerd.tell.status import AgentStatus

if TYPE_CHECKING:
    from routerd.tell.operator_status import OperatorStatus

REQUEST_TIMEOUT = 5.0  # seconds, for a client to send its request
CLOSE_WITHIN = 0.2  # seconds

Page = tuple[int, str, bytes]  # status, content type, body


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    pages: dict[str, Callable[[], Page]]

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], family: int) -> None:
        self.address_family = socket.AddressFamily(family)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, which may wait for DNS."""
        TCPServer.server_bind(self)


class _HttpHandler(BaseHTTPRequestHandler):
    server: _HttpServer
    timeout = REQUEST_TIMEOUT

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        status, content_type, body = page() if page else (404, "text/plain", b"not found\n")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not events."""


class HttpServer:
    """Serves fixed paths from threads of its own, so that a slow client cannot hold up a daemon's loop."""

    def __init__(
        self, address: IPAddress, port: int, pages: dict[str, Callable[[], Page]], setting: str = "metrics-listen"
    ) -> None:
        """EnvironmentFault if it cannot listen there. Port 0 takes a free one. `setting` is the key to change then."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            self._server = _HttpServer((str(address), port), _HttpHandler, family)
        except OSError as error:
            message = f"cannot listen on {address} port {port}: {error.strerror}: change {setting}"
            raise EnvironmentFault(message) from error
        self._server.pages = pages
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSE_WITHIN,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def pages(status: Callable[[], AgentStatus], is_alive: Callable[[], bool]) -> dict[str, Callable[[], Page]]:
    """`/metrics`, `/healthz` (the agent's loop runs) and `/readyz` (and everything is as it should be)."""

    def dead_because() -> str:
        return "" if is_alive() else "the agent's loop does not run"

    return _pages(registry(status), dead_because, lambda: status().not_ready_because())


def operator_pages(
    status: Callable[[], OperatorStatus], dead_because: Callable[[], str]
) -> dict[str, Callable[[], Page]]:
    """`/metrics`, `/healthz` (loop and tasks run) and `/readyz` (everything was read that a decision needs)."""
    return _pages(operator_registry(status), dead_because, lambda: status().not_ready_because())


def _pages(
    exposed: CollectorRegistry, dead_because: Callable[[], str], not_ready_because: Callable[[], str]
) -> dict[str, Callable[[], Page]]:
    return {
        "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(exposed)),
        "/healthz": lambda: _verdict(dead_because(), "alive"),
        "/readyz": lambda: _verdict(not_ready_because(), "ready"),
    }


def _verdict(fault: str, good: str) -> Page:
    return 503 if fault else 200, "text/plain; charset=utf-8", f"{fault or good}\n".encode()
