"""The fake cloud over HTTP on loopback: EC2's query protocol with signatures, and the metadata service (IMDSv2)."""

from __future__ import annotations

import json
import secrets
from contextlib import AbstractContextManager

from tests.models.cloud import ec2_wire
from tests.models.cloud.core import Cloud
from tests.models.cloud.http import CloudHandler, serving
from tests.models.cloud.sigv4 import is_signed
from tests.models.cloud.state import Dropped, Refusal

ACCESS, SECRET = "AKIAFAKE", "secret+/of=the/fake"
ROLE = "routerd-operator"


class Handler(CloudHandler):
    session_tokens: set[str]

    # --- EC2 ---

    def do_POST(self) -> None:
        body = self.body()
        number = secrets.token_hex(8)
        try:
            self.reply(200, self._answer(body, number), "text/xml")
        except Refusal as refusal:
            self.reply(refusal.status, ec2_wire.error(refusal, number), "text/xml")
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
            self.reply(400, "")
            return
        token = secrets.token_urlsafe(24)
        self.session_tokens.add(token)
        self.reply(200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.session_tokens:
            self.reply(401, "")
            return
        place = "/latest/meta-data/iam/security-credentials/"
        credentials = {
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "session",
            "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        pages = {place: ROLE, f"{place}{ROLE}": json.dumps(credentials)}
        found = pages.get(self.path)
        self.reply(404 if found is None else 200, found or "")


def served(cloud: Cloud) -> AbstractContextManager[str]:
    """Its address, http://127.0.0.1:PORT, until the block ends."""
    return serving(Handler, cloud, session_tokens=set())
