"""The seat of BFD: one action tells the process whom to watch, and a peer that is gone loses its BGP session."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from bfd.control import Report, View, parse_orders, report_line
from bfd.engine import SOCKET
from bfd.session import Timers
from bfd.table import Order
from bgp.session import PeerStatus
from routerd.agent.bfd import BfdRoom
from routerd.agent.turn import Seat
from routerd.model import IPAddress
from tests.waiting import eventually

TOR, HERE = ip_address("10.0.0.1"), ip_address("10.0.0.9")
WANTED = {TOR: Order(TOR, HERE, Timers())}
UP = View(TOR, HERE, "up", 100.0, 0, False, "up", 50_000, 150_000, "")
GONE = replace(UP, state="down", since=200.0, falls=1, failed=True, reason="nothing was heard")


def turn(room: BfdRoom, desired: object) -> list[str]:
    """The actions of a round."""
    done: list[str] = []
    Seat(room, threading.Event()).prepare(desired, True, done)
    return done


def test_a_round_tells_once_whom_to_watch(tmp_path: Path) -> None:
    room = BfdRoom(tmp_path, dict)
    assert turn(room, {}) == [], "nobody is watched, and nobody shall be"
    assert turn(room, WANTED) == ["bfd: watch 10.0.0.1"]
    assert turn(room, WANTED) == []
    assert turn(room, {}) == ["bfd: watch nobody"]
    assert turn(room, None) == [], "not synced: nothing is touched"


class Process:
    """What answers in place of `routerd bfd`, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.orders: list[dict[IPAddress, Order]] = []
        self.writer: asyncio.StreamWriter | None = None
        self._path = directory / SOCKET

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._accept, self._path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.say(UP)
        while line := await reader.readline():
            self.orders.append(parse_orders(line))

    def say(self, view: View) -> None:
        assert self.writer is not None
        self.writer.write(report_line(Report("a", True, "", {}, {TOR: view})))


def test_a_peer_that_is_gone_loses_its_session_once_the_speaker_knows_it(tmp_path: Path) -> None:
    async def story() -> None:
        sessions: dict[IPAddress, PeerStatus] = {}
        ended: list[IPAddress] = []
        room, process = BfdRoom(tmp_path, lambda: sessions), Process(tmp_path)
        connected = asyncio.Event()
        room.on_connect = connected.set

        async def end(peer: IPAddress) -> bool:
            ended.append(peer)
            return True

        server = await process.serve()
        task = asyncio.create_task(room.run(end))
        await connected.wait()
        assert turn(room, {}) == ["bfd: watch nobody"], "the process watches somebody of before"
        assert await asyncio.to_thread(turn, room, WANTED) == ["bfd: watch 10.0.0.1"]
        await eventually(lambda: process.orders[-1:] == [WANTED])
        process.say(GONE)
        await eventually(lambda: room.views()[TOR].failed)
        assert [each.reason for each in room.refusals()] == ["BFDDown"]
        assert ended == []
        sessions[TOR] = PeerStatus("up", since=50.0)
        room.look()
        await eventually(lambda: ended == [TOR])
        room.look()
        process.say(UP)
        await eventually(lambda: room.views()[TOR].state == "up")
        assert (room.refusals(), ended) == ((), [TOR])
        server.close()
        assert process.writer is not None
        process.writer.close()
        await eventually(lambda: room.report is None)
        assert [each.reason for each in room.refusals()] == ["NoBFD"]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(story())
