"""The socket of the CNI plugin: a request ends with the stream, and only so much of it is taken."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from cni.wire import MOST_BYTES
from routerd.serve.plugin import PluginServer


@pytest.mark.parametrize(
    ("size", "answered"), [(0, True), (100_000, True), (MOST_BYTES, True), (MOST_BYTES + 1, False)]
)
def test_a_request_is_answered_when_it_is_whole(tmp_path: Path, size: int, answered: bool) -> None:
    async def answer(request: bytes) -> bytes:
        return b"%d" % len(request)

    async def story() -> bytes:
        server = PluginServer(tmp_path / "cni.sock", answer)
        await server.start()
        try:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "cni.sock"))
            writer.write(b"x" * size)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                writer.write_eof()
            try:
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()
        finally:
            await server.close()

    assert (tmp_path / "cni.sock").exists() is False
    assert asyncio.run(story()) == (b"%d" % size if answered else b"")
    assert (tmp_path / "cni.sock").exists() is False
