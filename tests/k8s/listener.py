"""An aiohttp application on an address of its own, in a thread of its own, that can be made to refuse connections."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from aiohttp import web

from tests.waiting import PATIENCE

T = TypeVar("T")


class Listener:
    """Subclasses say what is answered. `with` serves until the block ends; `url` has no slash at its end.

    `connections` are the requests that wait for an answer or read one.
    """

    def __init__(self, *, name: str, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self.url = ""
        self.connections: dict[int, web.Request] = {}

    # --- of subclasses

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    async def opening(self) -> None:
        """In the server's loop, before the first request."""

    async def closing(self) -> None:
        """In the server's loop, while connections are still open."""

    # --- life

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(PATIENCE) or self._failure:
            raise self._failure or TimeoutError(f"{self._thread.name} did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._thread.name} did not end")

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
            self._started.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        app = web.Application(client_max_size=3 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._tracked)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        try:
            await self.opening()
            await self._listen()
            self._started.set()
            await self._stopping.wait()
        finally:
            await self.closing()
            await self._runner.cleanup()

    async def _listen(self) -> None:
        self._listener = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls)
        await self._listener.start()
        host, self._port = self._runner.addresses[0][:2]
        self.url = f"http{'s' if self._tls else ''}://{host}:{self._port}"

    async def _tracked(self, request: web.Request) -> web.StreamResponse:
        self.connections[id(request)] = request
        try:
            return await self.answer(request)
        finally:
            del self.connections[id(request)]

    # --- handles, for other threads

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` in the server's thread and give its result."""

        async def call() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    def refuse(self) -> None:
        """Close the port and every connection: connection refused, until `accept`."""

        async def stop() -> None:
            await self._listener.stop()
            self.cut(self.connections.values())
            server = self._runner.server
            for connection in list(server.connections) if server is not None else ():
                connection.force_close()  # those that wait for the client's next request, too
                if connection.transport is not None:
                    connection.transport.abort()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(PATIENCE)

    def accept(self) -> None:
        """Listen again on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE)

    @staticmethod
    def cut(requests: Iterable[web.Request]) -> None:
        """Close connections as a dead server does, in the middle of whatever they say. In the server's thread."""
        for request in list(requests):
            if request.transport is not None:
                request.transport.abort()
