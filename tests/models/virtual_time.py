"""An event loop in which time goes on at once where all would wait: hours of pauses take no time.

Everything that is waited for must be in this process: futures, events, pairs of Unix sockets of which both ends are
here, and threads of the loop's executor, beside which time stands still.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from tests.waiting import PATIENCE

MOMENT = 1e-6  # seconds; less than any pause that a test is about


class Leap(selectors.SelectSelector):
    now = 0.0
    working = 0  # calls in threads

    def select(self, timeout: float | None = None) -> Any:
        waits = self.working and timeout != 0
        found = super().select(PATIENCE if waits else 0)
        if not found:
            assert not waits, f"a thread does not come to its end within {PATIENCE:g} s"
            assert timeout is not None, "everything waits for ever"
            self.now += max(timeout, 0.0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.leap = Leap()
        self._threads = ThreadPoolExecutor()
        super().__init__(self.leap)

    def time(self) -> float:
        return self.leap.now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor or self._threads, func, *args)
        self.leap.working += 1
        future.add_done_callback(self._is_done)
        return future

    def _is_done(self, future: asyncio.Future[Any]) -> None:
        self.leap.working -= 1

    def close(self) -> None:
        self._threads.shutdown()
        super().close()


class ForwardLoop(asyncio.SelectorEventLoop):
    """A loop beside real connections, whose clock a test puts forward where it would pause."""

    ahead = 0.0  # seconds

    def time(self) -> float:
        return super().time() + self.ahead


def in_virtual_time(story: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)


async def beside(story: Callable[[], Awaitable[None]], *loops: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A story beside loops that only end with it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop()) for loop in loops]
        await story()
        for task in tasks:
            task.cancel()


def now() -> float:
    return asyncio.get_running_loop().time()


async def elapse(seconds: float) -> None:
    """Lets virtual time pass; in another loop it would be a real pause."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await asyncio.sleep(seconds)


async def settle() -> None:
    """Until whatever can go on without a pause has gone on: time moves only then."""
    await elapse(MOMENT)
