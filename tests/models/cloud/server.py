"""The fake cloud over HTTP on loopback: EC2's query protocol with signatures, and the metadata service (IMDSv2)."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.models.cloud import ec2_wire
from tests.models.cloud.core import Cloud
from tests.models.cloud.sigv4 import is_signed
from tests.models.cloud.state import Dropped, Refusal

ACCESS, SECRET = "AKIAFAKE", "secret+/of=the/fake"
ROLE = "routerd-operator"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, else each answer waits for a delayed acknowledgement
    cloud: Cloud
    session_tokens: set[str]

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read the cloud's own log."""

    def _reply(self, status: int, text: str, kind: str = "text/xml") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # --- EC2 ---

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        number = secrets.token_hex(8)
        try:
            self._reply(200, self._answer(body, number))
        except Refusal as refusal:
            self._reply(refusal.status, ec2_wire.error(refusal, number))
        except Dropped:
            self.close_connection = True

    def _answer(self, body: bytes, number: str) -> str:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not is_signed("POST", self.path, headers, body, {ACCESS: SECRET}):
            raise Refusal("SignatureDoesNotMatch", "the signature is not the one that AWS would compute", 403)
        action, parameters = ec2_wire.request(body.decode())
        return ec2_wire.answer(action, self.cloud.call(action, parameters), number)

    # --- metadata ---

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            self._reply(400, "", "text/plain")
            return
        token = secrets.token_urlsafe(24)
        self.session_tokens.add(token)
        self._reply(200, token, "text/plain")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.session_tokens:
            self._reply(401, "", "text/plain")
            return
        place = "/latest/meta-data/iam/security-credentials/"
        credentials = {
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "session",
            "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        pages = {place: ROLE, f"{place}{ROLE}": json.dumps(credentials)}
        found = pages.get(self.path)
        self._reply(404 if found is None else 200, found or "", "text/plain")


@contextmanager
def served(cloud: Cloud) -> Iterator[str]:
    """Its address, http://127.0.0.1:PORT, until the block ends."""
    handler = type("Bound", (Handler,), {"cloud": cloud, "session_tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
