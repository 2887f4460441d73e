"""A daemon asked over HTTP what a probe and Prometheus ask."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

from tests.waiting import PATIENCE, eventually


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answered:
            return answered.status, answered.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def answer(port: int, path: str, holds: Callable[[int, str], bool]) -> str:
    """The first answer that is as wanted."""
    said: list[str] = []

    async def wanted() -> bool:
        with suppress(OSError):
            code, text = await asyncio.to_thread(get, port, path)
            said[:] = [text]
            return holds(code, text)
        return False

    await eventually(wanted, f"{path} says so")
    return said[0]


def ok(code: int, text: str) -> bool:
    return code == 200
