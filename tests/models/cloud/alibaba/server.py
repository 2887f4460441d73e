"""The fake cloud over HTTP on loopback as Alibaba Cloud: ECS and VPC, the metadata service, STS.

As a proxy it is the metadata service, too: that one has an address which SDKs do not ask anybody for.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.models.cloud.alibaba import signature, wire
from tests.models.cloud.core import Cloud
from tests.models.cloud.http import CloudHandler, serving
from tests.models.cloud.state import Dropped, Refusal

ACCESS, SECRET = "LTAI-fake", "secret+/of=the/fake"
TEMPORARY, TEMPORARY_SECRET, SESSION = "STS.fake", "temporary-secret", "session"
ROLE, REGION = "routerd-operator", "cn-hangzhou"
ROLE_ARN, OIDC_TOKEN = "acs:ram::1:role/routerd", "header.payload.signature"
KEYS = {ACCESS: SECRET, TEMPORARY: TEMPORARY_SECRET}
STS = {
    "AccessKeyId": TEMPORARY, "AccessKeySecret": TEMPORARY_SECRET, "SecurityToken": SESSION,
    "Expiration": "2099-01-01T00:00:00Z",
}  # fmt: skip


class Handler(CloudHandler):
    tokens: set[str]
    nonces: set[str]

    # --- ECS, VPC and STS ---

    def do_POST(self) -> None:
        body = self.body()
        number = secrets.token_hex(16).upper()
        try:
            self.reply(200, json.dumps(self._answer(body, number)), "application/json")
        except Refusal as refusal:
            error = {"RequestId": number, "HostId": "fake", "Code": refusal.code, "Message": refusal.message}
            self.reply(refusal.status, json.dumps(error), "application/json")
        except Dropped:
            self.close_connection = True

    def _answer(self, body: bytes, number: str) -> Mapping[str, Any]:
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if "authorization" in headers:
            asked = signature.read_v3(self.command, headers, query, body, KEYS)
        else:
            query |= dict(parse_qsl(body.decode(), keep_blank_values=True))
            asked = signature.read_v1(self.command, query, KEYS)
        if code := asked.problem(self.nonces):
            raise Refusal(code)
        if asked.key == TEMPORARY and asked.session != SESSION:
            raise Refusal("InvalidSecurityToken.MismatchWithAccessKey")
        given = wire.request(asked.action, asked.version, asked.parameters)
        return wire.answer(asked.action, asked.version, self.cloud.call(asked.action, given), number)

    # --- metadata ---

    def do_PUT(self) -> None:
        is_token = urlsplit(self.path).path == "/latest/api/token"
        if not is_token or "X-aliyun-ecs-metadata-token-ttl-seconds" not in self.headers:
            self.reply(400, "")
            return
        token = secrets.token_urlsafe(24)
        self.tokens.add(token)
        self.reply(200, token)

    def do_GET(self) -> None:
        """The metadata service answers nothing without a token."""
        asked = dict(parse_qsl(urlsplit(self.path).query))
        if asked.get("Action") == "AssumeRoleWithOIDC":
            is_known = (asked["OIDCToken"], asked["RoleArn"]) == (OIDC_TOKEN, ROLE_ARN)
            self.reply(200 if is_known else 400, json.dumps({"Credentials": STS} if is_known else {}))
            return
        if self.headers.get("X-aliyun-ecs-metadata-token") not in self.tokens:
            self.reply(401, "")
            return
        place = "/latest/meta-data/ram/security-credentials/"
        pages = {
            place: ROLE,
            f"{place}{ROLE}": json.dumps({"Code": "Success", **STS}),
            "/latest/meta-data/region-id": REGION,
        }
        found = pages.get(urlsplit(self.path).path)
        self.reply(404 if found is None else 200, found or "")


def served(cloud: Cloud) -> AbstractContextManager[str]:
    """Its address, http://127.0.0.1:PORT, until the block ends."""
    return serving(Handler, cloud, tokens=set(), nonces=set())
