"""The fake cloud over HTTP on loopback as Azure: Resource Manager with bearer tokens, the metadata service (IMDS)."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cloud.providers import arm
from tests.models.cloud.azure import names
from tests.models.cloud.core import Cloud
from tests.models.cloud.http import CloudHandler, serving
from tests.models.cloud.state import Dropped, Refusal

OPERATIONS = "Microsoft.Network/locations/operations/read"  # the permission
PLACE = f"{names.SUBSCRIPTION}/providers/Microsoft.Network/locations/{names.LOCATION}/operations/"
# Path, in lower case, and the operation of each method.
PATHS = (
    (r"(/subscriptions/[^/]+/resourcegroups/[^/]+)/providers/microsoft.network/networkinterfaces", arm.LIST, ""),
    (r"(.+/providers/microsoft.network/networkinterfaces/[^/]+)", arm.GET, arm.PUT),
    (r"(.+/virtualmachinescalesets/[^/]+)/networkinterfaces", arm.SET_LIST, ""),
    (r"(.+/virtualmachinescalesets/[^/]+/virtualmachines/[^/]+/networkinterfaces/[^/]+)", arm.SET_GET, ""),
    (r"(.+/virtualmachinescalesets/[^/]+/virtualmachines/[^/]+)", arm.VM_GET, arm.VM_PUT),
    (r"(.+/providers/microsoft.network/virtualnetworks/[^/]+)", arm.VNET, ""),
)


@dataclass
class Desk:
    """What the server remembers, and how it is told to behave."""

    tokens: set[str] = field(default_factory=set)
    audiences: set[str] = field(default_factory=set)
    failing: str = ""  # the code with which operations end; "" = they succeed
    without_operations: bool = False  # changes are taken, and only the resource shows what becomes of them
    says_nothing: bool = False  # of what it has taken
    turned: Callable[[str], str] = lambda text: text  # what becomes of a body on its way


class Handler(CloudHandler):
    desk: Desk

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/metadata/identity/oauth2/token":
            self._give_token()
        else:
            self._answer("GET", None)

    def do_PUT(self) -> None:
        self._answer("PUT", json.loads(self.body()))

    # --- metadata ---

    def _give_token(self) -> None:
        asked = dict(parse_qsl(urlsplit(self.path).query))
        if self.headers.get("Metadata") != "true" or "resource" not in asked or "api-version" not in asked:
            self._say(400, {"error": "invalid_request", "error_description": "Required metadata header not specified"})
            return
        token = secrets.token_urlsafe(24)
        self.desk.tokens.add(token)
        self.desk.audiences.add(asked["resource"])
        given = {"access_token": token, "expires_in": "86400", "expires_on": str(int(time.time()) + 86400)}
        self._say(200, given | {"resource": asked["resource"], "token_type": "Bearer"})

    # --- Resource Manager ---

    def _answer(self, method: str, body: Any) -> None:
        where = urlsplit(self.path)
        query = dict(parse_qsl(where.query))
        try:
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.desk.tokens:
                raise Refusal("InvalidAuthenticationToken", "The access token is invalid.", 401)
            if where.path.startswith(PLACE):
                self._say(200, self._operation(where.path.removeprefix(PLACE)))
                return
            name, id_ = self._operation_of(method, where.path.lower(), query.get("api-version", ""))
            self._say_done(name, id_, self._called(name, id_, query, body))
        except Refusal as refusal:
            after = {"Retry-After": f"{self.cloud.retry_after:.0f}"} if refusal.status == 429 else {}
            self._say(refusal.status, {"error": {"code": refusal.code, "message": refusal.message}}, **after)
        except Dropped:
            self.close_connection = True

    def _operation_of(self, method: str, path: str, version: str) -> tuple[str, str]:
        for pattern, get, put in PATHS:
            name = get if method == "GET" else put
            if name and (match := re.fullmatch(pattern, path)):
                if version < arm.OPERATIONS[name].version:  # a later one has it, too
                    raise Refusal("InvalidApiVersionParameter", version)
                return name, match[1]
        raise Refusal("NotFound", f"{method} {path}", 404)

    def _called(self, name: str, id_: str, query: dict[str, str], body: Any) -> Any:
        given = {"id": id_}
        if "$skiptoken" in query:
            given = {"url": f"{id_}?$skiptoken={query['$skiptoken']}"}
        if body is not None:
            given |= {"body": body, "etag": self.headers.get("If-Match", "")}
        return self.cloud.call(name, given)

    def _say_done(self, name: str, id_: str, answer: Any) -> None:
        if name in (arm.PUT, arm.VM_PUT):
            number = names.instance(id_) if name == arm.VM_PUT else names.last(id_)
            more = {} if self.desk.without_operations else {"Azure-AsyncOperation": f"{self._here}{PLACE}{number}"}
            self._say(202 if self.desk.says_nothing else 200, None if self.desk.says_nothing else answer, **more)
        elif "nextLink" in answer:
            more = f"{answer['nextLink'].partition('?')[2]}&api-version={arm.OPERATIONS[name].version}"
            self._say(200, {**answer, "nextLink": f"{self._here}{urlsplit(self.path).path}?{more}"})
        else:
            if name in (arm.GET, arm.VM_GET):
                self.cloud.advance(1)
            self._say(200, answer)

    def _operation(self, name: str) -> Any:
        """Who asks lets a second pass, also of the resource."""
        if self.cloud.permissions is not None and OPERATIONS not in self.cloud.permissions:
            raise Refusal("AuthorizationFailed", f"not allowed: {OPERATIONS}", 403)
        self.cloud.advance(1)
        changed = [self.cloud.enis[name]] if name in self.cloud.enis else self.cloud.of(name)
        if any(each.changing for each in changed):
            return {"status": "InProgress"}
        if self.desk.failing:
            return {"status": "Failed", "error": {"code": self.desk.failing, "message": "it did not work"}}
        return {"status": "Succeeded"}

    @property
    def _here(self) -> str:
        return f"http://{self.headers['Host']}"

    def _say(self, status: int, data: Any, **headers: str) -> None:
        self.reply(status, self.desk.turned(json.dumps(data)), "application/json", headers)


def served(cloud: Cloud, desk: Desk | None = None) -> AbstractContextManager[str]:
    """Its address, http://127.0.0.1:PORT, until the block ends."""
    return serving(Handler, cloud, desk=desk or Desk())
