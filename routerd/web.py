"""HTTP for Prometheus and for probes: fixed paths, served from threads of its own.

A slow client cannot hold up the agent's loop, and a page is made from a frozen value, so it needs no lock.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from routerd.errors import EnvironmentFault
from routerd.metrics import registry
from routerd.model import IPAddress
from routerd.status import AgentStatus

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
    """Serves fixed paths from threads of its own, so that a slow client cannot hold up the agent's loop."""

    def __init__(self, address: IPAddress, port: int, pages: dict[str, Callable[[], Page]]) -> None:
        """EnvironmentFault if it cannot listen there. Port 0 takes a free one."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            self._server = _HttpServer((str(address), port), _HttpHandler, family)
        except OSError as error:
            message = f"cannot listen on {address} port {port}: {error.strerror}: change metrics-listen"
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
    exposed = registry(status)

    def text(code: int, line: str) -> Page:
        return code, "text/plain; charset=utf-8", f"{line}\n".encode()

    def ready() -> Page:
        why = status().not_ready_because()
        return text(503, why) if why else text(200, "ready")

    return {
        "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(exposed)),
        "/healthz": lambda: text(200, "alive") if is_alive() else text(503, "the agent's loop does not run"),
        "/readyz": ready,
    }
