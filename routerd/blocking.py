"""Runs what blocks (system calls, subprocesses) in another thread, so that the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def in_thread(
    function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """The function's result. Whoever is cancelled meanwhile waits until it has ended: nothing runs on unseen."""
    return await _joined(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)), None)


async def in_thread_until_cut(
    cut: threading.Event, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """As `in_thread`; `cut` is set when its caller is cancelled, so that the function may end early."""
    return await _joined(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)), cut)


async def _joined(running: asyncio.Future[Result], cut: threading.Event | None) -> Result:
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if cut is not None:
            cut.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen; the cancellation goes before it
        raise
