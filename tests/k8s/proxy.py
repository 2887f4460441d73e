"""A proxy between the code under test and an API server, whichever it is: it makes faults and remembers requests.

Faults are set by handles in Python only. Clients of the proxy are the administrator (the token in `kubeconfig`) or
whoever's token they send.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.k8s.client import Client, Json
from tests.k8s.listener import Listener

ADMIN_TOKEN = "administrator-of-the-proxy"
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
DROPPED = {"host", "authorization", "accept-encoding", "content-length", "transfer-encoding", "connection"}
KEPT = ("Content-Type", "Retry-After")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as RBAC sees it; all empty but `path` for what is no resource."""

    verb: str
    path: str
    group: str = ""
    resource: str = ""  # plural
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    version: str = ""  # resourceVersion of the query
    token: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Audit:
    """One request to a resource and the HTTP status that it got."""

    user: str  # "" = the administrator
    verb: str
    group: str
    resource: str  # "services/status"
    namespace: str
    name: str
    code: int


@dataclass(slots=True)
class Faults:
    """All are off at first. `only` narrows every fault but silence and absence to the requests it is true for."""

    silent: bool = False  # connections are accepted and get no answer
    bad_gateway: bool = False  # 502 from a proxy, and open connections break off
    conflict_every: int = 0  # each n-th update or patch gets 409
    gone: int = 0  # so many of the next watches get 410
    gone_as_answer: bool = False  # 410 as the HTTP status, not as an ERROR event
    too_many: int = 0  # so many of the next requests get 429
    retry_after: int = 1  # seconds, with 429
    broken: int = 0  # so many of the next requests get 500
    forbidden: int = 0  # so many of the next requests get 403
    only: Callable[[Asked], bool] = lambda asked: True
    absent: Callable[[Asked], bool] = lambda asked: False  # no such path is served
    writes: int = 0
    compacted: int = 0  # watches that begin before this version get 410
    spoken: asyncio.Event = field(default_factory=asyncio.Event)  # set when silence ends

    def clear(self) -> None:
        fresh = Faults()
        self.spoken.set()
        for each in fields(self):
            if each.name != "compacted":
                setattr(self, each.name, getattr(fresh, each.name))

    async def before(self, asked: Asked) -> Refusal | None:
        """Waits while there is silence. What the request gets instead of an answer."""
        while self.silent:
            await self.spoken.wait()
        if self.bad_gateway:
            return Refusal(502, "", "502 Bad Gateway")
        if self.absent(asked):
            return Refusal(404, "NotFound", "the server could not find the requested resource")
        return self._refused(asked) if self.only(asked) else None

    def _refused(self, asked: Asked) -> Refusal | None:
        if self.too_many > 0:
            self.too_many -= 1
            message = "the server has received too many requests and has asked us to try again later"
            return Refusal(429, "TooManyRequests", message, retry_after=self.retry_after)
        if self.broken > 0:
            self.broken -= 1
            return Refusal(500, "InternalError", "Internal error occurred: the test wants it so")
        if self.forbidden > 0:
            self.forbidden -= 1
            return Refusal(403, "Forbidden", f"{asked.resource} is forbidden: the test wants it so")
        if asked.verb in ("update", "patch") and self.conflict_every:
            self.writes += 1
            if self.writes % self.conflict_every == 0:
                message = (
                    f'Operation cannot be fulfilled on {asked.resource} "{asked.name}": the object has been modified'
                )
                return Refusal(409, "Conflict", message)
        return self._gone(asked) if asked.verb == "watch" else None

    def _gone(self, asked: Asked) -> Refusal | None:
        if self.gone > 0:
            self.gone -= 1
            return Refusal(410, "Expired", "too old resource version: 1 (2)", in_stream=not self.gone_as_answer)
        if asked.version.isdigit() and 0 < int(asked.version) < self.compacted:
            message = f"too old resource version: {asked.version} ({self.compacted})"
            return Refusal(410, "Expired", message, in_stream=True)
        return None


@dataclass(frozen=True, slots=True)
class Refusal:
    code: int
    reason: str
    message: str
    retry_after: int = 0  # seconds
    in_stream: bool = False  # as an ERROR event of a watch

    @property
    def status(self) -> Json:
        details = {"details": {"retryAfterSeconds": self.retry_after}} if self.retry_after else {}
        head: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", **details}
        return {**head, "message": self.message, "reason": self.reason, "code": self.code}

    def response(self) -> web.Response:
        if not self.reason:
            return web.Response(text=self.message, status=self.code)
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.in_stream:
            return web.json_response({"type": "ERROR", "object": self.status}, dumps=_line)
        return web.json_response(self.status, status=self.code, headers=headers)


def _line(value: Any) -> str:
    return json.dumps(value) + "\n"


class Proxy(Listener):
    """`with Proxy(client) as proxy:`; `client` is an administrator's of the API server behind it."""

    def __init__(self, client: Client) -> None:
        super().__init__(name="proxy")
        self._client = client
        self._directory = tempfile.TemporaryDirectory(prefix="proxy-")
        self._muted: set[int] = set()
        self._audit: list[Audit] = []
        self.faults = Faults()
        self.users: dict[str, str] = {ADMIN_TOKEN: ""}  # names of the bearers of tokens, for the audit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._directory.cleanup()
        super().__exit__(kind, error, trace)

    async def opening(self) -> None:
        self._admin = self._session(self._client.credentials)
        self._other = self._session(None)

    def _session(self, certificate: tuple[bytes, bytes] | None) -> ClientSession:
        tls = self._client.tls(certificate) if self._client.server.startswith("https") else False
        connector = TCPConnector(ssl=tls, limit=0)
        return ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=True)

    async def closing(self) -> None:
        self.faults.clear()
        self.cut(self.connections.values())
        await self._admin.close()
        await self._other.close()

    # --- requests

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = asked_of(request)
        if refusal := await self.faults.before(asked):
            self._note(asked, refusal.code)
            return refusal.response()
        is_admin = asked.token in ("", ADMIN_TOKEN)
        session = self._admin if is_admin else self._other
        bearer = self._client.bearer if is_admin else asked.token
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        headers |= {"Authorization": f"Bearer {bearer}"} if bearer else {}
        url, body = self._client.server + request.raw_path, await request.read() or None
        try:
            async with session.request(request.method, url, headers=headers, data=body) as found:
                self._note(asked, found.status)
                kept = {name: found.headers[name] for name in KEPT if name in found.headers}
                if asked.verb == "watch" and found.status == 200:
                    return await self._stream(request, found.content.iter_any(), kept)
                return web.Response(status=found.status, body=await found.read(), headers=kept)
        except ConnectionResetError:  # the client of the proxy went away
            return web.Response(status=502)

    async def _stream(self, request: web.Request, chunks: Any, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            async for chunk in chunks:
                while self.faults.silent:
                    await self.faults.spoken.wait()
                if id(request) not in self._muted:
                    await response.write(chunk)
            if id(request) in self._muted:
                await asyncio.Event().wait()  # until it is dropped
        finally:
            self._muted.discard(id(request))
        await response.write_eof()
        return response

    def _note(self, asked: Asked, code: int) -> None:
        if asked.resource:
            resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
            user = self.users.get(asked.token, "unknown")
            self._audit.append(Audit(user, asked.verb, asked.group, resource, asked.namespace, asked.name, code))

    # --- handles

    @property
    def kubeconfig(self) -> str:
        return self.kubeconfig_for(ADMIN_TOKEN)

    def kubeconfig_for(self, token: str) -> str:
        """A kubeconfig file for the bearer of `token`."""
        path = Path(self._directory.name) / f"{abs(hash(token))}.kubeconfig"
        value = {
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(value))
        return str(path)

    @property
    def audit(self) -> list[Audit]:
        """Every request to a resource so far."""
        return self.run(lambda: list(self._audit))

    def fault(self, **settings: Any) -> None:
        """Set fields of `Faults`: `proxy.fault(too_many=3, retry_after=2)`."""

        def put() -> None:
            for name, value in settings.items():
                setattr(self.faults, name, value)

        self.run(put)

    def heal(self) -> None:
        """End every fault; muted watches stay muted until they are dropped."""
        self.run(self.faults.clear)

    def compact(self) -> None:
        """The history up to now seems to be forgotten: watches from before get 410."""
        version = int(self._client.get("/api/v1/namespaces", limit=1).version)
        self.fault(compacted=version)

    def break_off(self) -> None:
        """As a load balancer that has lost its API server: until `heal`."""
        self.fault(bad_gateway=True)
        self.drop_watches()

    def drop_watches(self) -> None:
        """Break the connections of all watches, without an end of the stream."""
        self.run(lambda: self.cut(self._watches()))

    def mute_watches(self) -> None:
        """Open watches stay open and never say anything again."""
        self.run(lambda: self._muted.update(id(request) for request in self._watches()))

    def _watches(self) -> list[web.Request]:
        return [request for request in self.connections.values() if asked_of(request).verb == "watch"]


def asked_of(request: web.Request) -> Asked:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token if scheme.lower() == "bearer" else ""
    return parsed(request.method, request.path, dict(request.query), token)


def parsed(method: str, path: str, query: dict[str, str], token: str = "") -> Asked:
    """By the rules of the API's paths alone: what exists is not known here."""
    verb, parts = VERBS.get(method, ""), [unquote(part) for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return Asked(verb, path, token=token)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = [*rest, "", ""][:3]
    is_watch = query.get("watch", "").lower() in ("true", "1")
    if verb == "get" and (is_watch or not name):
        verb = "watch" if is_watch else "list"
    if verb == "delete" and not name:
        verb = "deletecollection"
    if not name and verb in ("list", "watch", "deletecollection"):
        name = _selected(query.get("fieldSelector", ""))
    version = query.get("resourceVersion", "")
    return Asked(verb, path, group, resource, subresource, namespace, name, version, token)


def _selected(selector: str) -> str:
    """A selection of one object by its name counts as a request for that name."""
    terms = (term.partition("=") for term in selector.split(","))
    return next((value.removeprefix("=") for field, _, value in terms if field == "metadata.name"), "")
