"""Accepts connections of clients that may be slow, many, or hostile, and serves each for a bounded time.

A full house never turns away who comes: whoever has been there longest goes. A probe is answered at once, so it gets
through however many hold their connections open, and those that do cannot take more than `most` descriptors. When the
process has no descriptor left, or the kernel no memory, accepting pauses and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from routerd.log import event

LOGGER = logging.getLogger("routerd.serve")
PAUSE = 1.0  # seconds after a fault of accept(2): EMFILE, ENFILE, ENOBUFS, ENOMEM
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """`most` connections at once; `seconds` for all of one, from accept to the last byte; bytes of a request."""

    most: int
    seconds: float
    request: int


class Connections:
    """Of one listening socket, which it owns. In the event loop that makes it; until `close`."""

    def __init__(self, listener: socket.socket, serve: Serve, limits: Limits) -> None:
        """`serve` answers one client. When its time or place is lost, it meets the end of the stream."""
        listener.setblocking(False)
        self._listener, self._serve, self._limits = listener, serve, limits
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    async def close(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        """One, so that those who are there have their turn before the next."""
        try:
            connection, _ = self._listener.accept()
            connection.setblocking(False)
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # gone before it was accepted
        except OSError as error:
            event(LOGGER, logging.WARNING, "accept-failed", reason=error.strerror, retry=PAUSE)
            self._loop.remove_reader(self._listener)
            self._retry = self._loop.call_later(PAUSE, self._listen)
            return
        task = self._loop.create_task(self._serve_one(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: connection.close())  # also where it was cancelled before it began

    async def _serve_one(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=self._limits.request)
        self._make_room()
        self._open[writer] = None
        timer = self._loop.call_later(self._limits.seconds, writer.transport.abort)
        try:
            await self._serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # the client's own loss
        finally:
            timer.cancel()
            self._open.pop(writer, None)
            writer.transport.abort()

    def _make_room(self) -> None:
        while len(self._open) >= self._limits.most:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()


async def read_until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    """What comes up to and with `end`; b"" if the client is gone, or its time, or sends more than it may."""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        return await reader.readuntil(end)
    return b""
