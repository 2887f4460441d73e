"""Faults that a test may put in front of the double. Set by a handle in Python only, never over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from . import errors
from .call import Call
from .errors import ApiError

GONE = "too old resource version: 1 (2)"


@dataclass(slots=True)
class Faults:
    """All are off at first. `only` narrows every fault but silence to the calls it is true for."""

    silent: bool = False  # connections are accepted and get no answer; open watches say nothing
    latency: float = 0.0  # seconds before each answer
    conflict_every: int = 0  # each n-th update or patch gets 409
    gone: int = 0  # so many of the next watches get 410
    gone_as_answer: bool = False  # 410 as the HTTP status, not as an ERROR event
    too_many: int = 0  # so many of the next requests get 429
    retry_after: int = 1  # seconds, with 429
    broken: int = 0  # so many of the next requests get 500
    only: Callable[[Call], bool] = lambda call: True
    writes: int = 0
    spoken: asyncio.Event = field(default_factory=asyncio.Event)  # set when silence ends

    def clear(self) -> None:
        fresh = Faults()
        for name in ("silent", "latency", "conflict_every", "gone", "gone_as_answer", "too_many", "retry_after",
                     "broken", "only", "writes"):  # fmt: skip
            setattr(self, name, getattr(fresh, name))
        self.spoken.set()
        self.spoken = asyncio.Event()

    async def before(self, call: Call) -> None:
        """Waits, or raises the ApiError that the request gets."""
        while self.silent:
            await self.spoken.wait()
        if not self.only(call):
            return
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.too_many > 0:
            self.too_many -= 1
            raise _too_many(self.retry_after)
        if self.broken > 0:
            self.broken -= 1
            raise ApiError(500, "InternalError", "Internal error occurred: the test wants it so")
        if call.verb in ("update", "patch") and self.conflict_every:
            self.writes += 1
            if self.writes % self.conflict_every == 0:
                raise errors.conflict(call.resource.group, call.resource.plural, call.name)
        if call.verb == "watch" and self.gone > 0 and self.gone_as_answer:
            self.gone -= 1
            raise errors.expired(GONE)

    def takes_watch(self, call: Call) -> ApiError | None:
        """The error with which a watch begins and ends."""
        if call.verb != "watch" or self.gone <= 0 or self.gone_as_answer or not self.only(call):
            return None
        self.gone -= 1
        return errors.expired(GONE)


def _too_many(seconds: int) -> ApiError:
    message = "the server has received too many requests and has asked us to try again later"
    return ApiError(429, "TooManyRequests", message, {"retryAfterSeconds": seconds}, {"Retry-After": str(seconds)})
