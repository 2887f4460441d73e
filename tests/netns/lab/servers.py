"""Small servers that run inside pods and beyond the ToR, and say which source address they saw. Standard library only.

    python servers.py --name fw --log FILE [--address ADDRESS] [--http PORT] [--udp PORT] [--tcp PORT]

HTTP answers `NAME saw SOURCE`, and `/bytes/N` with N zero bytes;
UDP answers the same in front of the payload; TCP answers it once and then echoes.
One line per request or connection goes to the log: `PROTOCOL SOURCE:PORT what`; `ready` when all ports are bound.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6
from socketserver import BaseRequestHandler, BaseServer, TCPServer, ThreadingTCPServer, ThreadingUDPServer, UDPServer
from typing import ClassVar


class Log:
    """Appends lines to a file, flushed at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        with self._lock:
            self._file.write(line + "\n")


class Seen:
    """What the request classes below share: the server's name and its log."""

    name: ClassVar[str] = ""
    log: ClassVar[Log]

    @classmethod
    def note(cls, protocol: str, client: tuple[str, int], what: str) -> str:
        cls.log.write(f"{protocol} {client[0]}:{client[1]} {what}")
        return f"{cls.name} saw {client[0]}"


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = (Seen.note("http", self.client_address[:2], f"GET {self.path}") + "\n").encode()
        if self.path.startswith("/bytes/"):
            body = bytes(int(self.path.removeprefix("/bytes/")))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The log has its own line already."""


class Pages(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """Without asking for the host's name, which may take a resolver's time-out where there is no network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]


class Udp(BaseRequestHandler):
    def handle(self) -> None:
        payload, reply_socket = self.request
        seen = Seen.note("udp", self.client_address[:2], f"{len(payload)} bytes")
        reply_socket.sendto(seen.encode() + b" " + payload, self.client_address)


class Tcp(BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.request.sendall(Seen.note("tcp", self.client_address[:2], "open").encode() + b"\n")
            while data := self.request.recv(65536):
                self.request.sendall(data)


class TcpServer(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--address", default="0.0.0.0")
    for protocol in ("http", "udp", "tcp"):
        parser.add_argument(f"--{protocol}", type=int, metavar="PORT")
    options = parser.parse_args()
    Seen.name, Seen.log = options.name, Log(options.log)
    servers: list[BaseServer] = []
    TCPServer.address_family = UDPServer.address_family = AF_INET6 if ":" in options.address else AF_INET
    if options.http:
        servers.append(Pages((options.address, options.http), Http))
    if options.udp:
        servers.append(ThreadingUDPServer((options.address, options.udp), Udp))
    if options.tcp:
        servers.append(TcpServer((options.address, options.tcp), Tcp))
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    Seen.log.write("ready")
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
