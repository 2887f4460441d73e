"""Carries TCP connections from the namespace it runs in to an address that only another namespace reaches.

    python -m tests.netns.lab.relay OTHER_NAMESPACE LISTEN_ADDRESS LISTEN_PORT ADDRESS PORT

OTHER_NAMESPACE is a path, which is opened once. Bytes pass as they are: TLS is between the two ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

from tests.netns.lab import netns

CHUNK = 65536  # bytes


async def relay(outside: str, listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Until cancelled."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            there = await connected(outside, target)
            with contextlib.closing(there[1]):
                ways = [asyncio.ensure_future(pump(reader, there[1])), asyncio.ensure_future(pump(there[0], writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()

    async with await asyncio.start_server(carry, *listen) as server:
        await server.serve_forever()


async def connected(outside: str, target: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from the other namespace. Raises OSError."""
    with netns.entered(outside):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, target)
    except BaseException:
        connection.close()
        raise
    return await asyncio.open_connection(sock=connection)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one of them ends."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


def main() -> None:
    outside, here, port, there, target = sys.argv[1:]
    kept = os.open(outside, os.O_RDONLY | os.O_CLOEXEC)
    asyncio.run(relay(f"/proc/self/fd/{kept}", (here, int(port)), (there, int(target))))


if __name__ == "__main__":
    main()
