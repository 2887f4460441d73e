"""Whether the API server can be reached, as all who share one client learn it together. It makes no request.

While it is away, those who want something of it try in turn, one at a time: an outage costs a client one attempt in a
few seconds, however many resources it watches. As soon as one of them is answered the others wake, each after a moment
of its own: a server that comes back must not meet every node at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    first: float = 0.5
    """Between the first attempts of a client in an outage; half of the time that it has lasted later on."""
    longest: float = 5.0
    """Between attempts. With it, 5,000 nodes are 1,000 to 2,000 connections a second to what refuses them."""
    spread: float = 2.0
    """Within which the others of a client try once one was answered."""


def next_turn(after: float, lost: float, pace: Pace, luck: float) -> float:
    """When to try next, in an outage since `lost`. `luck` in 0…1 takes off up to half of the pause."""
    pause = min(pace.longest, max(pace.first, (after - lost) / 2))
    return after + pause * (1 - luck / 2)


class Contact:
    """One client's. Its methods are called in the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lost: float | None = None  # since when there is no answer
        self._answered = float("-inf")  # when the last answer came
        self._returned = float("-inf")  # when the last outage ended
        self._turn = 0.0  # when the last of those who wait will try
        self._back = asyncio.Event()

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def is_recovering(self, seconds: float) -> bool:
        """Whether there is an outage, or was one within so many seconds."""
        return self.is_lost or self.clock() - self._returned < seconds

    def answered(self) -> None:
        self._answered = self.clock()
        if self._lost is not None:
            self._lost, self._returned = None, self._answered
            self._back.set()
            self._back = asyncio.Event()

    def failed(self, began: float) -> None:
        """A request begun then was not answered. Where another one was meanwhile, the trouble is its own."""
        if self._lost is None and self._answered < began:
            self._lost = self._turn = self.clock()

    async def turn(self, pace: Pace, wait: float = 0.0) -> None:
        """Returns when the caller may try: in its turn after `wait` seconds, or because someone else was answered."""
        if self._lost is None:
            return
        back = self._back
        if not (wait and await _is_set_within(back, wait)):
            self._turn = next_turn(max(self._turn, self.clock()), self._lost, pace, random.random())
            if not await _is_set_within(back, self._turn - self.clock()):
                return
        await asyncio.sleep(random.uniform(0, pace.spread))

    async def returned(self, pace: Pace) -> None:
        """Returns when someone was answered. It is for those who need not try: others must."""
        if self._lost is not None:
            await self._back.wait()
            await asyncio.sleep(random.uniform(0, pace.spread))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
