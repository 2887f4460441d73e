"""HTTP in front of the API: paths, bodies, discovery, watch streams. Decides nothing about objects."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import yaml
from aiohttp import web

from . import discovery, errors
from .access import Access, lifetime
from .api import Api
from .caching import Caches
from .call import Call, User, guess_path, parse_path, verb_of
from .errors import ApiError, bad_request
from .meta import now_text
from .patching import APPLY
from .resources import Resource
from .storage import encode
from .watching import Watcher, Watches

JSON_TYPE = "application/json"
CREATED = ("token", "binding", "eviction")  # subresources that are posted to
BEFORE_END = 2.0  # seconds before its timeout that a watch gets a last bookmark


class Site:
    """Answers. `bookmarks` is the seconds between bookmarks of a watch."""

    def __init__(self, api: Api, watches: Watches, access: Access, caches: Caches, *, bookmarks: float) -> None:
        self.api, self.watches, self.access, self.caches = api, watches, access, caches
        self.bookmarks = bookmarks
        self._verbs: dict[str, Callable[[Call], tuple[int, bytes]]] = {
            "get": api.get, "list": api.list, "create": api.create, "update": api.update,
            "patch": api.patch, "delete": api.delete, "deletecollection": api.deletecollection,
        }  # fmt: skip

    async def answer(self, request: web.Request) -> web.StreamResponse:
        try:
            user = self.access.user_of(request.headers.get("Authorization", ""), self.api.now())
            found = parse_path(self.api.catalogue, request.path)
            return await (self._outside(request, user) if found is None else self._inside(request, user, *found))
        except ApiError as error:
            return _response(error.code, encode(error.status()), error.headers)

    async def _inside(
        self, request: web.Request, user: User, resource: Resource, namespace: str, name: str, subresource: str
    ) -> web.StreamResponse:
        verb = verb_of(request.method, name, request.query)
        if not verb or verb not in (("create",) if subresource in CREATED else resource.verbs):
            raise errors.method_not_allowed()
        body = await _body(request)
        query = dict(request.query)
        call = Call(verb, resource, namespace, name, subresource, query, body, request.content_type, user)
        try:
            self.access.check(call)
            self.caches.admit(call)
            if verb == "watch":
                self.access.note(call, 200)
                return await self._watch(request, call)
            code, answer = self._handler(call)(call)
        except ApiError as error:
            self.access.note(call, error.code)
            raise
        self.access.note(call, code)
        return _response(code, answer)

    def _allowed(self, call: Call, code: int) -> None:
        """Notes the request as answered with `code`, or as refused. Raises ApiError 403."""
        try:
            self.access.check(call)
        except ApiError as error:
            self.access.note(call, error.code)
            raise
        self.access.note(call, code)

    def _handler(self, call: Call) -> Callable[[Call], tuple[int, bytes]]:
        if call.subresource == "token":
            return self._token
        if call.subresource in CREATED:
            return self.api.bind if call.subresource == "binding" else self.api.evict
        if call.resource.plural == "selfsubjectaccessreviews":
            return lambda call: (201, encode(self.access.review(call.user, call.body)))
        return self._verbs[call.verb]

    def _token(self, call: Call) -> tuple[int, bytes]:
        row = self.api.have(call)
        expires = lifetime(call.body or {}, self.api.now())
        status = {"token": self.access.issue(row, expires), "expirationTimestamp": now_text(expires)}
        head = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1"}
        return 201, encode({**head, **(call.body or {}), "status": status})

    async def _outside(self, request: web.Request, user: User) -> web.Response:
        path = request.path.rstrip("/")
        if guessed := guess_path(path):
            resource, namespace, name, subresource = guessed
            verb = verb_of(request.method, name, request.query)
            self._allowed(Call(verb, resource, namespace, name, subresource, dict(request.query), user=user), 404)
        else:
            self.access.check_path(user, path)
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        document = discovery.document(self.api.catalogue, path)
        if document is None:
            return web.Response(status=404, text="404 page not found\n")
        return _response(200, encode(document))

    # --- watch

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        watcher = self.watches.start(call)
        response = web.StreamResponse(headers={"Content-Type": JSON_TYPE})
        try:
            await response.prepare(request)
            await self._stream(response, watcher, call)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client went away: nothing to tell anybody
        finally:
            self.watches.stop(watcher)
        return response

    async def _stream(self, response: web.StreamResponse, watcher: Watcher, call: Call) -> None:
        schedule = _Schedule(call, self.bookmarks)
        while True:
            while watcher.lines:
                lines = b"".join(watcher.lines)
                watcher.lines.clear()
                await response.write(lines)
            if watcher.closed or schedule.over:
                return
            watcher.ready.clear()
            try:
                await asyncio.wait_for(watcher.ready.wait(), schedule.wait())
            except TimeoutError:
                if schedule.bookmark_due():
                    self.watches.bookmark(watcher)


class _Schedule:
    """When a watch ends and when its bookmarks are due."""

    def __init__(self, call: Call, period: float) -> None:
        text = call.query.get("timeoutSeconds", "")
        if text and not text.isdigit():
            raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        self._end = time.monotonic() + (int(text) if text and int(text) else 1800.0 + 900.0)
        self._period = period
        self._wanted = call.flag("allowWatchBookmarks")
        self._next = self._after(time.monotonic())

    def _after(self, now: float) -> float:
        if not self._wanted:
            return float("inf")
        last = self._end - BEFORE_END
        return min(now + self._period, last) if now < last else float("inf")

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def wait(self) -> float:
        return max(min(self._end, self._next) - time.monotonic(), 0.0)

    def bookmark_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = self._after(now)
        return True


# --- HTTP


def _response(code: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=code, body=body, headers={"Content-Type": JSON_TYPE, **(headers or {})})


async def _body(request: web.Request) -> Any:
    data = await request.read()
    if not data:
        return None
    try:
        if request.content_type in (APPLY, "application/yaml"):
            return yaml.safe_load(data)
        if request.method in ("POST", "PUT") and request.content_type not in (JSON_TYPE, "application/octet-stream"):
            raise errors.unsupported_media_type([JSON_TYPE, "application/yaml"])
        return json.loads(data)
    except (ValueError, yaml.YAMLError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None
