"""How the CNI plugins ask the agent: one request and one answer a connection, as `cni.wire` has them.

It moves bytes. The socket is for root (mode 0600), as whose child the plugin runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from cni.wire import MOST_BYTES
from routerd.serve.api import UnixServer
from routerd.serve.connections import Limits

CHUNK = 1 << 16  # bytes
# A plugin waits for a minute at most; a node that boots makes all its pods at once.
LIMITS = Limits(256, 70.0, CHUNK)


def plugin_socket(run_dir: Path) -> Path:
    return run_dir / "cni.sock"


def ipam_socket(run_dir: Path) -> Path:
    return run_dir / "ipam.sock"


class PluginServer(UnixServer):
    """Serves one socket until it is closed."""

    def __init__(self, path: Path, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        super().__init__(path, self._serve, LIMITS)
        self._answer = answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = bytearray()
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                request += chunk
                if len(request) > MOST_BYTES:
                    return
            writer.write(await self._answer(bytes(request)))
