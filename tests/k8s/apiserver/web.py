"""HTTP in front of the API: paths, bodies, discovery, watch streams. Decides nothing about objects."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import yaml
from aiohttp import web

from . import discovery, errors
from .api import Api
from .call import Call, User, parse_path, verb_of
from .errors import ApiError, bad_request
from .patching import APPLY
from .storage import encode
from .watching import Watcher, Watches, bookmark_line

JSON_TYPE = "application/json"
BEFORE_END = 2.0  # seconds before its timeout that a watch gets a last bookmark


class Site:
    """The aiohttp application. `bookmarks` is the seconds between bookmarks of a watch."""

    def __init__(self, api: Api, watches: Watches, *, bookmarks: float) -> None:
        self.api, self.watches, self.bookmarks = api, watches, bookmarks
        self.stopping = asyncio.Event()
        self.app = web.Application(client_max_size=3 * 2**20)
        self.app.router.add_route("*", "/{path:.*}", self.answer)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._dispatch(request)
        except ApiError as error:
            return _response(error.code, encode(error.status()), error.headers)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        user = User("kubernetes-admin", ("system:masters", "system:authenticated"))
        found = parse_path(self.api.catalogue, request.path)
        if found is None:
            return self._outside(request)
        resource, namespace, name, subresource = found
        verb = verb_of(request.method, name, request.query)
        if not verb or verb not in resource.verbs:
            raise errors.method_not_allowed()
        body = await _body(request)
        call = Call(verb, resource, namespace, name, subresource, dict(request.query), body, request.content_type, user)
        if verb == "watch":
            return await self._watch(request, call)
        verbs: dict[str, Callable[[Call], tuple[int, bytes]]] = {
            "get": self.api.get, "list": self.api.list, "create": self.api.create, "update": self.api.update,
            "patch": self.api.patch, "delete": self.api.delete, "deletecollection": self.api.deletecollection,
        }  # fmt: skip
        return _response(*verbs[verb](call))

    def _outside(self, request: web.Request) -> web.Response:
        path = request.path.rstrip("/")
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
                lines, _ = b"".join(watcher.lines), watcher.lines.clear()
                await response.write(lines)
            if watcher.closed or schedule.over:
                return
            watcher.ready.clear()
            try:
                await asyncio.wait_for(watcher.ready.wait(), schedule.wait())
            except TimeoutError:
                if schedule.bookmark_due():
                    watcher.push(bookmark_line(call.resource, self.api.storage.version))


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


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
