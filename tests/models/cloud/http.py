"""What the fakes of all clouds need of HTTP on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.models.cloud.core import Cloud


class CloudHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, else each answer waits for a delayed acknowledgement
    cloud: Cloud

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read the cloud's own log."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, text: str, kind: str = "text/plain", headers: Mapping[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler: type[CloudHandler], cloud: Cloud, **fields: Any) -> Iterator[str]:
    """Its address, http://127.0.0.1:PORT, until the block ends. `fields`: more of the handler's own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"cloud": cloud, **fields}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
