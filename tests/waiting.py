"""Bounded waits on conditions. Tests pause nowhere else in real time: see `tests/unit/test_no_sleeps.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0  # seconds: a busy machine takes its time, and only a test that fails waits for all of it
STEP = 0.005  # seconds


class WaitTimeout(AssertionError):
    """A condition did not come true in time."""


def wait(condition: Callable[[], T], what: str, timeout: float = PATIENCE, interval: float = 0.02) -> T:
    """Polls until `condition` returns something true and returns it; `timeout` and `interval` in seconds.

    Raises WaitTimeout with `what` and the last value, so that a failure says how far it got.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise _too_late(timeout, what, value)
        time.sleep(interval)
    return value


async def eventually(
    condition: Callable[[], T | Awaitable[T]], what: str = "what is waited for", timeout: float = PATIENCE
) -> T:
    """The same in an event loop, by the loop's clock: where time is virtual it takes none."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not (value := await _known(condition())):
        if loop.time() > deadline:
            raise _too_late(timeout, what, value)
        await asyncio.sleep(STEP)
    return value


async def turns(count: int = 3) -> None:
    """Lets every task that can go on without a pause do so, this often. What may not be done by then is not waited for:
    in virtual time `settle` says it better."""
    for _ in range(count):
        await asyncio.sleep(0)


async def _known(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


def _too_late(timeout: float, what: str, value: object) -> WaitTimeout:
    return WaitTimeout(f"not within {timeout:g} s: {what} (last seen: {value!r})")
