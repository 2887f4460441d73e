"""The agent's end of the relay's protocol (see `bgp.relay`): one connection, its requests and their answers.

It knows neither paths nor peers. Requests are answered in order; at most WINDOW of them are open.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

PROTOCOLS = frozenset({2})  # versions of the relay's protocol that this agent speaks
WINDOW = 32
LINE_LIMIT = 4 << 20  # bytes; the hello of some thousand peers
HELLO_TIMEOUT = 5.0  # seconds
Result = TypeVar("Result")


class LinkLost(Exception):
    """The relay is gone, or does not speak our protocol; the message says which."""


class NoAnswer(Exception):
    """The relay is there, and silent."""


@dataclass(slots=True)
class Answer:
    """What came back for one request. `output`: the lines it printed; `peers`: what a reload loaded."""

    ok: bool
    error: str = ""
    output: list[str] = field(default_factory=list)
    peers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """Who is at the other end. `peers`: session -> digest of the loaded configuration; `events`: the latest of each;
    `bulk`: whether ExaBGP takes the commands of `bgp.wire`.
    """

    exabgp: str
    pid: int
    started: float  # of the monotonic clock
    peers: dict[str, str]
    events: list[dict[str, Any]]
    bulk: bool


class Link:
    """Call `open` once, then `serve` in a task of its own; the other methods meanwhile."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._open: dict[int, tuple[asyncio.Future[Answer], Answer]] = {}
        self._window = asyncio.Semaphore(WINDOW)
        self._lost = False
        self._heard = 0  # answers and lines of answers so far
        self._unheard = -1  # what was heard when something last waited in vain

    async def open(self) -> Hello:
        """The relay's hello. Raises LinkLost."""
        try:
            hello = (await asyncio.wait_for(self._message(), HELLO_TIMEOUT))["hello"]
            if hello["protocol"] not in PROTOCOLS:
                raise LinkLost(f"restart the speaker: this agent does not speak its protocol {hello['protocol']}")
            return Hello(
                hello["exabgp"], hello["pid"], hello["started"], dict(hello["peers"]), list(hello["events"]),
                bool(hello.get("bulk")),
            )  # fmt: skip
        except (KeyError, TypeError, TimeoutError) as error:
            raise LinkLost("what connected is not a relay of routerd") from error

    async def serve(
        self, on_event: Callable[[dict[str, Any]], None], on_update: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> None:
        """Takes answers, events and updates until the relay goes; then every open request raises LinkLost."""
        try:
            while True:
                message = await self._message()
                if "event" in message:
                    on_event(message["event"])
                elif "update" in message:
                    on_update(message["update"])
                else:
                    self._take(message)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the connection; open requests raise LinkLost."""
        self._lost = True
        self._writer.close()
        for future, _ in self._open.values():
            if not future.done():
                future.set_exception(LinkLost("the relay is gone"))
        self._open.clear()

    async def heard_out(self, asking: Coroutine[Any, Any, Result], silence: float) -> Result:
        """What `asking` this link comes to: an answer of any length, but only while the relay goes on answering.

        Raises NoAnswer when it says nothing for `silence` seconds; and at once, while it has not said anything since.
        """
        task = asyncio.create_task(asking)
        try:
            heard = self._unheard
            while not task.done() and heard != self._heard:
                heard = self._heard
                await asyncio.wait({task}, timeout=silence)
            if task.done():
                return await task
            self._unheard = heard
            raise NoAnswer("the speaker does not answer: does ExaBGP hang, or is it stopped?")
        finally:
            task.cancel()

    async def command(self, text: str, *, alone: bool = False) -> Answer:
        """One API command. Raises LinkLost."""
        return await (await self.submit(text, alone=alone))

    async def submit(self, text: str, *, alone: bool = False) -> asyncio.Future[Answer]:
        """Sends a command when the window has room; the answer comes later. Raises LinkLost."""
        return await self._request({"command": text, **({"alone": True} if alone else {})})

    async def reload(self, configuration: str) -> Answer:
        """Loads a new configuration of the peers. Raises LinkLost."""
        return await (await self._request({"reload": configuration}))

    async def _request(self, request: dict[str, Any]) -> asyncio.Future[Answer]:
        await self._window.acquire()
        if self._lost:
            self._window.release()
            raise LinkLost("the relay is gone")
        self._number += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._answered)
        self._open[self._number] = (future, Answer(False))
        self._writer.write(json.dumps({"id": self._number, **request}).encode() + b"\n")
        return future

    def _answered(self, future: asyncio.Future[Answer]) -> None:
        self._window.release()
        if not future.cancelled():
            future.exception()  # seen, even if nobody waits for this one any more

    def _take(self, message: dict[str, Any]) -> None:
        entry = self._open.get(message.get("id", 0))
        self._heard += 1
        if entry is None:
            return
        future, answer = entry
        if "output" in message:
            answer.output.append(message["output"])
            return
        del self._open[message["id"]]
        answer.ok, answer.error, answer.peers = message["ok"], message.get("error", ""), message.get("peers")
        if not future.done():
            future.set_result(answer)

    async def _message(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
            if not line:
                raise LinkLost("the relay is gone")
            message = json.loads(line)
        except (ValueError, OSError) as error:
            raise LinkLost(f"the relay: {error}") from error
        if not isinstance(message, dict):
            raise LinkLost("what connected is not a relay of routerd")
        return message
