"""The process and who asks it, over a real socket: orders are kept, and each end outlives the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bfd.client import Client
from bfd.control import SOCKET, ControlError, Kept, Report, kept_text, parse_kept
from bfd.engine import FILE, Engine
from bfd.probes import Probing
from bfd.session import Timers
from bfd.table import Order
from tests.waiting import eventually

# Of a network for documents (RFC 5737), which is on no interface: no packet leaves.
PEER = ip_address("198.51.100.1")
ORDER = Order(PEER, ip_address("198.51.100.2"), Timers(20_000, 30_000, 4))


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Scene:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events: list[str] = []
        self.reports: list[Report | None] = []
        self.connections = 0  # to what is no bfd process
        self.client = Client(directory / SOCKET, on_report=lambda before, now: self.reports.append(now))

    def log(self, level: int, name: str, **fields: Any) -> None:
        self.events.append(f"{name} {fields.get('peer') or fields.get('reason') or ''}")

    def process(self) -> asyncio.Task[None]:
        return asyncio.create_task(Engine(self.directory, self.log, realtime=False).run())

    async def is_told(self, peers: set[object]) -> None:
        await eventually(lambda: (r := self.client.report) is not None and r.sessions.keys() == peers, str(peers))


def scene(test: Callable[[Scene], Awaitable[None]]) -> Callable[[Path], None]:
    def wrapped(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(Scene(tmp_path)), 60))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@scene
async def test_what_is_wanted_outlives_whoever_wanted_it_and_the_process(scene: Scene) -> None:
    process, client = scene.process(), asyncio.create_task(scene.client.run())
    await scene.is_told(set())
    scene.client.set([ORDER])
    await scene.is_told({ORDER.ends})
    await ended(client)
    assert scene.client.report is None
    await ended(process)
    assert parse_kept((scene.directory / FILE).read_bytes()).orders == {ORDER.ends: ORDER}
    assert not (scene.directory / SOCKET).exists()
    process, client = scene.process(), asyncio.create_task(Client(scene.directory / SOCKET).run())
    scene.client = Client(scene.directory / SOCKET)
    again = asyncio.create_task(scene.client.run())
    await scene.is_told({ORDER.ends})  # though nobody has said so to this process
    for task in (client, again, process):
        await ended(task)


@scene
async def test_a_client_that_was_there_first_says_again_to_each_process_what_it_wants(scene: Scene) -> None:
    client = asyncio.create_task(scene.client.run())
    scene.client.set([ORDER])
    for _ in range(2):
        process = scene.process()
        await scene.is_told({ORDER.ends})
        await ended(process)
        (scene.directory / FILE).unlink()
        await eventually(lambda: scene.client.report is None, "gone")
    assert scene.reports[-1] is None
    await ended(client)


@scene
async def test_who_speaks_another_protocol_is_told_so_and_nobody_is_hurt(scene: Scene) -> None:
    process = scene.process()
    await eventually((scene.directory / SOCKET).exists)
    reader, writer = await asyncio.open_unix_connection(scene.directory / SOCKET)
    await reader.readline()
    writer.write(b'{"sessions": [{"peer": "x"}]}\n')
    assert await reader.read() == b""
    writer.close()
    assert any(each.startswith("bfd-client-refused these are no sessions") for each in scene.events)
    await ended(process)

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scene.connections += 1
        writer.write(b'{"bfd": 2}\n')
        writer.close()

    server = await asyncio.start_unix_server(other, scene.directory / SOCKET)
    client = asyncio.create_task(scene.client.run())
    await eventually(lambda: "does not speak its protocol 2" in scene.client.refused)
    await eventually(lambda: scene.connections > 2)
    assert scene.reports == [None], "told at once, and not again while it stays so"
    server.close()
    (scene.directory / SOCKET).unlink()
    await eventually(lambda: not scene.client.refused, "nobody answers any more")
    assert scene.reports == [None, None]
    process = scene.process()
    await scene.is_told(set())
    await ended(client)
    await ended(process)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sessions": [], "good_until": 1' + "0" * 400 + "}"])
def test_a_file_that_would_end_its_reader_is_refused(text: str) -> None:
    with pytest.raises(ControlError):
        parse_kept(text.encode())


@scene
async def test_a_file_that_is_damaged_is_said_and_what_it_held_is_asked_for_anew(scene: Scene) -> None:
    (scene.directory / FILE).write_text(kept_text(Kept({ORDER.ends: ORDER}))[:-5])
    process, client = scene.process(), asyncio.create_task(scene.client.run())
    await scene.is_told(set())
    assert any(each.startswith("bfd-file-refused not JSON") for each in scene.events)
    scene.client.set([ORDER])
    await scene.is_told({ORDER.ends})
    await ended(client)
    await ended(process)


@scene
async def test_an_address_that_is_not_here_is_said_once_and_nothing_falls(scene: Scene) -> None:
    process, client = scene.process(), asyncio.create_task(scene.client.run())
    scene.client.set([ORDER])
    await eventually(lambda: f"bfd-no-source {PEER}" in scene.events)
    await scene.is_told({ORDER.ends})
    report = scene.client.report
    assert report is not None and not report.sessions[ORDER.ends].failed
    assert scene.events.count(f"bfd-no-source {PEER}") == 1
    await ended(client)
    await ended(process)


@scene
async def test_where_no_gateway_is_probed_any_more_no_socket_is_open(scene: Scene) -> None:
    probing = Probing("tunnel", PEER, 10_000, frozenset({2}))
    link, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with link, device, pytest.MonkeyPatch.context() as patch:
        patch.setattr("bfd.engine.link", lambda name: link)
        process, client = scene.process(), asyncio.create_task(scene.client.run())
        scene.client.probe(probing)
        assert await asyncio.get_running_loop().sock_recv(device, 200)
        scene.client.probe(replace(probing, gateways=frozenset()))
        await eventually(lambda: link.fileno() == -1)
        await ended(client)
        await ended(process)
