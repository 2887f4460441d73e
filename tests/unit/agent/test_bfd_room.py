"""The seat of BFD: one action tells the process whom to watch, and a peer that is gone loses its BGP session."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from bfd.control import SOCKET, Report, View, parse_wanted, report_line
from bfd.probes import Probing
from bfd.session import Timers
from bfd.table import Order
from bgp.path import SessionKey
from bgp.session import PeerStatus
from routerd.agent.seats.bfd import AGAIN, BfdRoom, ProbeRoom
from routerd.agent.turn import Seat
from tests.models.virtual_time import elapse, in_virtual_time, now, settle
from tests.waiting import eventually

TOR, OTHER, HERE = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.9")
AT_TOR, AT_OTHER = SessionKey(TOR, HERE), SessionKey(OTHER, HERE)
PROBING = Probing("routerd.vxlan", HERE, 50_000, frozenset({3, 2}))
WANTED = {AT_TOR: Order(TOR, HERE, Timers())}
UP = View(TOR, HERE, "up", 100.0, 0, False, "up", 50_000, 150_000, "")
GONE = replace(UP, state="down", since=200.0, falls=1, failed=True, reason="nothing was heard")


def turn(room: BfdRoom | ProbeRoom, desired: object) -> list[str]:
    """The actions of a round."""
    done: list[str] = []
    Seat(room, threading.Event()).prepare(desired, True, done)
    return done


def test_a_round_tells_once_whom_to_watch(tmp_path: Path) -> None:
    room = BfdRoom(tmp_path, dict)
    assert turn(room, {}) == [], "nobody is watched, and nobody shall be"
    assert turn(room, WANTED) == ["bfd: watch 10.0.0.1 from 10.0.0.9"]
    assert turn(room, WANTED) == []
    assert turn(room, {}) == ["bfd: watch nobody"]
    assert turn(room, None) == [], "not synced: nothing is touched"


def test_a_round_tells_once_whom_to_probe(tmp_path: Path) -> None:
    sessions = BfdRoom(tmp_path, dict)
    room = ProbeRoom(sessions)
    assert turn(room, PROBING) == ["probe gateways: node 2, node 3"]
    assert turn(room, PROBING) == []
    assert turn(room, None) == [], "not synced: nothing is touched"
    by_link = replace(PROBING, gateways=frozenset(), direct=frozenset({3}))
    assert turn(room, by_link) == ["probe gateways: node 3 by the link"]
    assert turn(room, replace(PROBING, gateways=frozenset())) == ["probe gateways: none"]
    assert [each.reason for each in sessions.refusals()] == []


class Process:
    """What answers in place of `routerd bfd`, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.orders: list[dict[SessionKey, Order]] = []
        self.writer: asyncio.StreamWriter | None = None
        self._path = directory / SOCKET

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._accept, self._path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.say(UP)
        while line := await reader.readline():
            self.orders.append(parse_wanted(line).sessions)

    def say(self, *views: View) -> None:
        assert self.writer is not None
        self.writer.write(report_line(Report("a", True, "", {}, {(each.peer, each.local): each for each in views})))


def test_a_peer_that_is_gone_loses_its_session_once_the_speaker_knows_it(tmp_path: Path) -> None:
    async def story() -> None:
        sessions: dict[SessionKey, PeerStatus] = {}
        ended: list[SessionKey] = []
        room, process = BfdRoom(tmp_path, lambda: sessions), Process(tmp_path)
        connected = asyncio.Event()
        room.on_connect = connected.set

        async def end(peer: SessionKey) -> bool:
            ended.append(peer)
            return True

        server = await process.serve()
        task = asyncio.create_task(room.run(end))
        await connected.wait()
        assert turn(room, {}) == ["bfd: watch nobody"], "the process watches somebody of before"
        assert await asyncio.to_thread(turn, room, WANTED) == ["bfd: watch 10.0.0.1 from 10.0.0.9"]
        await eventually(lambda: process.orders[-1:] == [WANTED])
        process.say(GONE)
        await eventually(lambda: room.views()[AT_TOR].failed)
        assert [each.reason for each in room.refusals()] == ["BFDDown"]
        assert ended == []
        sessions[AT_TOR] = PeerStatus("up", since=50.0)
        room.look()
        await eventually(lambda: ended == [AT_TOR])
        room.look()
        process.say(UP)
        await eventually(lambda: room.views()[AT_TOR].state == "up")
        assert (room.refusals(), ended) == ((), [AT_TOR])
        server.close()
        assert process.writer is not None
        process.writer.close()
        await eventually(lambda: room.report is None)
        assert [each.reason for each in room.refusals()] == ["NoBFD"]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(story())


@asynccontextmanager
async def watching(
    directory: Path, sessions: dict[SessionKey, PeerStatus], end: Callable[[SessionKey], Awaitable[bool]]
) -> AsyncIterator[tuple[BfdRoom, Process]]:
    room, process = BfdRoom(directory, lambda: sessions), Process(directory)
    connected = asyncio.Event()
    room.on_connect = connected.set
    server = await process.serve()
    task = asyncio.create_task(room.run(end))
    try:
        await connected.wait()
        yield room, process
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        server.close()
        if process.writer is not None:
            process.writer.close()
            await settle()


def test_a_session_that_could_not_be_ended_is_ended_later_and_nobody_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        sessions = {AT_TOR: PeerStatus("up", since=50.0), AT_OTHER: PeerStatus("up", since=50.0)}
        asked: list[tuple[SessionKey, float]] = []
        speaks = asyncio.Event()

        async def end(peer: SessionKey) -> bool:
            asked.append((peer, now()))
            if peer == AT_OTHER:
                await speaks.wait()
            return peer == AT_OTHER or len(asked) > 3

        async with watching(tmp_path, sessions, end) as (_, process):
            process.say(replace(GONE, peer=OTHER), GONE)
            await eventually(lambda: len(asked) == 4)
            await elapse(10)
            assert [peer for peer, _ in asked] == [AT_OTHER, AT_TOR, AT_TOR, AT_TOR]
            first, *later = [when for peer, when in asked if peer == AT_TOR]
            assert later == pytest.approx([first + AGAIN, first + 2 * AGAIN], abs=0.01)
            speaks.set()
            await elapse(10)
            assert len(asked) == 4
            process.say(replace(GONE, peer=OTHER), replace(GONE, falls=2))
            await eventually(lambda: len(asked) == 5)

    in_virtual_time(story())
    ends = [record.getMessage() for record in caplog.records if "bfd-session-ended" in record.getMessage()]
    assert [line.partition("bfd-session-ended ")[2].partition(" reason")[0] for line in ends] == [
        "peer=10.0.0.1 local=10.0.0.9 ended=false", "peer=10.0.0.1 local=10.0.0.9 ended=true",
        "peer=10.0.0.2 local=10.0.0.9 ended=true",
        "peer=10.0.0.1 local=10.0.0.9 ended=true",
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["BFD is up again", "the session is down", "another session is up", "not watched"])
def test_what_has_changed_since_a_fall_is_judged_anew(tmp_path: Path, what: str) -> None:
    async def story() -> None:
        sessions = {AT_TOR: PeerStatus("up", since=50.0)}
        asked: list[SessionKey] = []

        async def end(peer: SessionKey) -> bool:
            asked.append(peer)
            return False

        async with watching(tmp_path, sessions, end) as (_, process):
            process.say(GONE)
            await eventually(lambda: asked)
            match what:
                case "BFD is up again":
                    process.say(replace(UP, falls=1))
                case "the session is down":
                    sessions[AT_TOR] = PeerStatus("down", since=201.0)
                case "another session is up":
                    sessions[AT_TOR] = PeerStatus("up", since=201.0)
                case _:
                    process.say()
            await elapse(10)
            assert asked == [AT_TOR]

    in_virtual_time(story())


def test_a_session_that_the_speaker_did_not_know_of_is_ended_when_it_does(tmp_path: Path) -> None:
    async def story() -> None:
        sessions = {AT_TOR: PeerStatus("up", since=50.0)}
        asked: list[SessionKey] = []

        async def end(peer: SessionKey) -> bool:
            asked.append(peer)
            return len(asked) > 1

        async with watching(tmp_path, sessions, end) as (room, process):
            process.say(GONE)
            await eventually(lambda: asked)
            sessions[AT_TOR] = PeerStatus("unknown", since=50.0)
            await elapse(10)
            assert asked == [AT_TOR]
            sessions[AT_TOR] = PeerStatus("up", since=50.0)
            room.look()
            await elapse(10)
            assert asked == [AT_TOR, AT_TOR]

    in_virtual_time(story())


def test_what_is_no_bfd_process_of_ours_is_told_at_once_and_no_connection(tmp_path: Path) -> None:
    async def story() -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'{"bfd": 2}\n')
            writer.close()

        async def end(peer: SessionKey) -> bool:
            return True

        room, told, connects = BfdRoom(tmp_path, dict), list[str](), list[None]()
        turn(room, WANTED)
        room.on_change = lambda: told.extend(each.message for each in room.refusals())
        room.on_connect = lambda: connects.append(None)
        server = await asyncio.start_unix_server(other, tmp_path / SOCKET)
        task = asyncio.create_task(room.run(end))
        await eventually(lambda: told)
        assert "does not speak its protocol 2" in told[0]
        server.close()
        (tmp_path / SOCKET).unlink()
        await eventually(lambda: len(told) == 2)
        assert (told[1].partition(":")[0], connects) == ("no bfd process is connected", [])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    in_virtual_time(story())
