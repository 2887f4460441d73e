"""`Speaker` against a fake relay: what it sends, what it makes of rejections, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from bgp import conf
from bgp.path import Desired, SpeakerPeer
from bgp.path import Path as BgpPath
from bgp.speaker import Speaker, SpeakerUnavailable
from bgp.text import BFD_DOWN
from routerd.agent.reconcile import Reconciler
from routerd.agent.rooms import Rooms
from tests.models.rooms import EgressModel, World, state
from tests.models.virtual_time import in_virtual_time
from tests.waiting import eventually

A = SpeakerPeer(ip_address("10.0.0.2"), ip_address("10.0.0.1"), 64512, 65000, IPv4Address("10.0.0.1"))
B = replace(A, address=ip_address("10.0.1.2"), local_address=ip_address("10.0.1.1"))


def path(prefix: str, **attributes: object) -> BgpPath:
    return BgpPath(ip_network(prefix), **attributes)  # type: ignore[arg-type]


def desired(*tables: tuple[SpeakerPeer, list[BgpPath]]) -> Desired:
    return Desired(
        {peer.key: peer for peer, _ in tables},
        {peer.key: {entry.prefix: entry for entry in table} for peer, table in tables},
    )


class FakeRelay:
    """ExaBGP and its relay as far as `Speaker` can tell. `tables`: peer -> prefix -> attributes as text."""

    def __init__(self) -> None:
        self.peers: dict[str, str] = {}
        self.tables: dict[str, dict[str, str]] = {}
        self.commands: list[str] = []  # all, in order; "reload" for a reload
        self.rejects = "never"  # a command that holds this text is rejected
        self.refuses_configuration = False
        self.events: list[dict[str, Any]] = []
        self.is_silent = False  # takes everything and answers nothing
        self.unanswered: list[str] = []  # commands that came meanwhile
        self.pid = 7
        self.version = "5.0.15"
        self.bulk: list[str] | None = None  # lines of the table, of a speaker that takes bulk commands

    async def serve(self, socket: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            self._tell(writer, hello={
                "protocol": 2, "exabgp": self.version, "pid": self.pid, "started": 1.0, "peers": self.peers,
                "events": self.events, **({} if self.bulk is None else {"bulk": 1}),
            })  # fmt: skip
            while line := await reader.readline():
                if self.is_silent:
                    self.unanswered.append(json.loads(line).get("command", "reload"))
                else:
                    self._answer(writer, json.loads(line))
        finally:
            writer.close()

    def _tell(self, writer: asyncio.StreamWriter, **message: object) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    def _answer(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        number = request["id"]
        if "reload" in request:
            self.commands.append("reload")
            if self.refuses_configuration:
                return self._tell(writer, id=number, ok=False, error="line 3: no")
            self.peers = dict(re.findall(r"^# peer (\S+) (\S+)$", request["reload"], re.MULTILINE))
            self.tables = {peer: self.tables.get(peer, {}) for peer in self.peers}
            return self._tell(writer, id=number, ok=True, peers=self.peers)
        command = request["command"]
        if command == "show adj-rib out json":
            for peer, table in self.tables.items():
                for prefix, attributes in table.items():
                    self._tell(writer, id=number, output=_row(peer, prefix, attributes))
            return self._tell(writer, id=number, ok=True)
        if command == "routerd table" and self.bulk is not None:
            for row in self.bulk:
                self._tell(writer, id=number, output=row)
            return self._tell(writer, id=number, ok=True)
        self.commands.append(command)
        if self.rejects in command.split():
            return self._tell(writer, id=number, ok=False, error="no")
        self._carry_out(command)
        return self._tell(writer, id=number, ok=True)

    def _carry_out(self, command: str) -> None:
        peers = [",".join(ends) for ends in re.findall(r"neighbor (\S+) local-ip (\S+)", command)]
        attributes, _, prefixes = command.partition(" nlri ")
        for peer in peers:
            for prefix in prefixes.split():
                if "announce" in command:
                    self.tables[peer][prefix] = attributes.partition(" attributes ")[2]
                else:
                    self.tables[peer].pop(prefix, None)


def _row(peer: str, prefix: str, attributes: str) -> str:
    words = attributes.split()
    med = {"med": int(words[words.index("med") + 1])} if "med" in words else {}
    hop = peer.partition(",")[2]
    return json.dumps(
        {"peer": {"address": peer}, "route": {"nlri": {"prefix": prefix, "nexthop": hop}, "attributes": med}}
    )


def up(peer: SpeakerPeer) -> list[dict[str, Any]]:
    who = {"address": {"peer": str(peer.address), "local": str(peer.local_address)}}
    agreed = {"families": ["ipv4 unicast"], "nexthop": [], "hold_time": 90}
    return [
        {"type": "negotiated", "time": 5.0, "neighbor": {**who, "negotiated": agreed}},
        {"type": "state", "time": 6.0, "neighbor": {**who, "state": "up"}},
    ]


@contextlib.asynccontextmanager
async def running(socket: Path, relay: FakeRelay) -> AsyncIterator[Speaker]:
    speaker = Speaker(socket)
    tasks = [asyncio.create_task(speaker.run())]
    try:
        await eventually(socket.exists)
        tasks.append(asyncio.create_task(relay.serve(socket)))
        await eventually(lambda: speaker.connected)
        yield speaker
    finally:
        for task in reversed(tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


Story = Callable[[Path], Awaitable[None]]


def story(test: Story) -> Callable[[Path], None]:
    def wrapped(tmp_path: Path) -> None:
        in_virtual_time(test(tmp_path / "relay.sock"))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@story
async def test_unknown_touches_nothing(socket: Path) -> None:
    relay = FakeRelay()
    relay.peers, relay.tables = {"10.0.0.2,10.0.0.1": "ab"}, {"10.0.0.2,10.0.0.1": {"192.0.2.1/32": ""}}
    async with running(socket, relay) as speaker:
        speaker.set(None)
        assert not await speaker.settled(0.1)
        assert relay.commands == []
        assert (await speaker.observe())[A.key].keys() == {ip_network("192.0.2.1/32")}
        assert speaker.exabgp_version == "5.0.15"
    assert not speaker.connected


@story
async def test_no_speaker(socket: Path) -> None:
    speaker = Speaker(socket)
    speaker.set(desired((A, [])))
    assert not await speaker.settled(0.01)
    assert speaker.peers[A.key].state == "unknown"
    with pytest.raises(SpeakerUnavailable, match="routerd speaker"):
        await speaker.observe()


@story
async def test_a_running_speaker_is_adopted(socket: Path) -> None:
    """Only what differs is sent; then End-of-RIB to the session that is up."""
    relay = FakeRelay()
    relay.peers = {key.token: digest for key, digest in conf.digests({A.key: A}).items()}
    relay.tables = {"10.0.0.2,10.0.0.1": {"192.0.2.1/32": "", "192.0.2.2/32": "", "192.0.2.3/32": ""}}
    relay.events = up(A)
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [path("192.0.2.1/32"), path("192.0.2.2/32", med=4), path("192.0.2.4/32")])))
        assert await speaker.settled(5)
        assert relay.commands == [
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce attributes next-hop self med 4 nlri 192.0.2.2/32",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce attributes next-hop self nlri 192.0.2.4/32",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 withdraw attributes nlri 192.0.2.3/32",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce eor ipv4 unicast",
        ]
        status = speaker.peers[A.key]
        assert (status.state, status.since, status.announced, status.pending) == ("up", 6.0, 3, 0)


@story
async def test_a_speaker_that_takes_bulk_commands_is_told_numbers(socket: Path) -> None:
    relay = FakeRelay()
    relay.peers = {key.token: digest for key, digest in conf.digests({A.key: A}).items()}
    relay.bulk = ["10.0.0.2,10.0.0.1 4 0a000001 - 20c000020120c0000203"]
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [path("192.0.2.1/32"), path("192.0.2.2/32", med=4)])))
        assert await speaker.settled(5)
        assert relay.commands == [
            "neighbor 10.0.0.2 local-ip 10.0.0.1 routerd announce 4 self 80040400000004 20c0000202",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 routerd withdraw 4 20c0000203",
        ]


@story
async def test_paths_of_a_family_that_is_not_negotiated_are_not_said_to_be_announced(socket: Path) -> None:
    relay = FakeRelay()
    relay.peers = {key.token: digest for key, digest in conf.digests({A.key: A}).items()}
    relay.tables = {"10.0.0.2,10.0.0.1": {}}
    relay.events = up(A)  # without IPv6
    paths = [path("192.0.2.1/32"), path("2001:db8::1/128", next_hop=ip_address("fd00::1"))]
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, paths)))
        assert await speaker.settled(5)
        assert speaker.peers[A.key].announced == 1
        (refusal,) = speaker.refusals
        assert str(refusal) == (
            "peer 10.0.0.2 from 10.0.0.1: FamilyNotNegotiated: the router has not negotiated ipv6 unicast in this "
            "session: its paths (1) are not announced there; activate that address family for the session"
        )
        speaker.set(desired((A, paths[:1])))
        assert await speaker.settled(5)
        assert (speaker.peers[A.key].announced, speaker.refusals) == (1, ())


@story
async def test_which_sessions_a_desired_state_would_load_anew(socket: Path) -> None:
    relay = FakeRelay()
    relay.peers = {key.token: digest for key, digest in conf.digests({A.key: A, B.key: B}).items()}
    other = replace(A, address=ip_address("10.0.2.2"))
    async with running(socket, relay) as speaker:
        assert speaker.unloaded(desired((A, []), (B, []))) == {}
        wanted = desired((replace(A, password="x"), []), (other, []))
        assert speaker.unloaded(wanted) == {A.key: "changed", B.key: "gone", other.key: "new"}
        assert speaker.reset_by(wanted) == {A.key: ()}
        socket.with_name("exabgp.conf").write_text(conf.peers_text([A, B]))
        assert speaker.reset_by(wanted) == {A.key: ("password",)}


@story
async def test_end_of_rib_waits_until_the_desired_state_is_complete(socket: Path) -> None:
    relay = FakeRelay()
    relay.peers = {key.token: digest for key, digest in conf.digests({A.key: A}).items()}
    relay.tables = {"10.0.0.2,10.0.0.1": {}}
    relay.events = up(A)
    async with running(socket, relay) as speaker:
        whole = desired((A, [path("192.0.2.1/32"), path("192.0.2.2/32")]))
        speaker.set(desired((A, [path("192.0.2.1/32")])), complete=False)
        assert await speaker.settled(5)
        assert relay.commands == [
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce attributes next-hop self nlri 192.0.2.1/32"
        ]
        speaker.set(whole, complete=False)
        assert await speaker.settled(5)
        speaker.set(whole)
        assert await speaker.settled(5)
        assert relay.commands[1:] == [
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce attributes next-hop self nlri 192.0.2.2/32",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce eor ipv4 unicast",
        ]


@story
async def test_sessions_of_a_configuration_that_names_them_otherwise_are_known_to_be_up(socket: Path) -> None:
    """A speaker begins with the file of a release before: what is loaded then is the same to ExaBGP, and no session
    comes up anew.
    """
    relay = FakeRelay()
    relay.events = up(A)
    relay.tables = {"10.0.0.2,10.0.0.1": {}}
    async with running(socket, relay) as speaker:
        assert speaker.loaded == {A.key}
        speaker.set(desired((A, [path("192.0.2.1/32")])))
        assert await speaker.settled(5)
        assert speaker.peers[A.key].state == "up"
        assert relay.commands[-1] == "neighbor 10.0.0.2 local-ip 10.0.0.1 announce eor ipv4 unicast"


@story
async def test_what_a_peer_announced_stays_by_the_clock_of_exabgp_s_events(socket: Path) -> None:
    """It is the monotonic one, whatever the wall clock says (`test_patches`)."""
    relay = FakeRelay()
    importing, token = replace(A, imports=(ip_network("10.244.0.0/16"),)), A.key.token
    learnt = {ip_network("10.244.2.0/24"): (A.address,)}
    neighbor = {"address": {"peer": str(A.address), "local": str(A.local_address)}, "state": "down"}
    async with running(socket, relay) as speaker:
        speaker.set(desired((importing, [])))
        assert await speaker.settled(5)
        for update in (
            {"session": token, "side": {"local_as": 64512, "peer_as": 65000, "restart": 120}},
            {"session": token, "put": {"10.244.2.0/24": str(A.address)}, "end": 4},
            {"whole": True},
        ):
            speaker.received.take(update)
        assert speaker.learnt() == learnt
        down = {"type": "state", "neighbor": neighbor}
        speaker.received.take_event({**down, "time": time.monotonic()})
        assert speaker.learnt() == learnt
        speaker.received.take({"session": token, "down": time.monotonic() - 121})
        assert speaker.learnt() == {}


@story
async def test_a_removed_peer_loses_its_paths_first(socket: Path) -> None:
    relay = FakeRelay()
    async with running(socket, relay) as speaker:
        table = [path("192.0.2.1/32")]
        speaker.set(desired((A, table), (B, table)))
        assert await speaker.settled(5)
        relay.commands.clear()
        speaker.set(desired((A, table)))
        assert await speaker.settled(5)
        assert relay.commands == [
            "neighbor 10.0.1.2 local-ip 10.0.1.1 withdraw attributes nlri 192.0.2.1/32",
            "neighbor 10.0.1.2 local-ip 10.0.1.1 routerd flush 0.3", "reload",
        ]  # fmt: skip
        assert relay.tables == {"10.0.0.2,10.0.0.1": {"192.0.2.1/32": "next-hop self"}}


@story
async def test_acknowledged_is_not_sent(socket: Path) -> None:
    relay = FakeRelay()
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [path("192.0.2.1/32")]), (B, [path("192.0.2.1/32")])))
        assert await speaker.sent(5)
        speaker.set(desired((A, [path("192.0.2.1/32")]), (B, [])))
        relay.rejects = "flush"
        assert await speaker.settled(5)
        assert not await speaker.sent(5)
        assert not await speaker.sent(5)
        relay.rejects = "never"
        relay.commands.clear()
        assert await speaker.sent(5)
        assert await speaker.sent(5)
        assert relay.commands == ["neighbor 10.0.1.2 local-ip 10.0.1.1 routerd flush 0.3"]


@story
async def test_what_the_agent_before_left_queued_is_waited_for(socket: Path) -> None:
    relay = FakeRelay()
    relay.peers = {key.token: digest for key, digest in conf.digests({A.key: A}).items()}
    relay.tables, relay.rejects = {"10.0.0.2": {}}, "flush"
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [])))
        assert await speaker.settled(5)
        assert not await speaker.sent(5)


@story
async def test_a_peer_that_takes_no_withdrawals_is_not_removed_yet(socket: Path) -> None:
    relay = FakeRelay()
    async with running(socket, relay) as speaker:
        table = [path("192.0.2.1/32")]
        speaker.set(desired((A, table), (B, table)))
        assert await speaker.settled(5)
        relay.commands.clear()
        relay.rejects = "flush"
        speaker.set(desired((A, [*table, path("192.0.2.2/32")])))
        await eventually(lambda: relay.commands.count("neighbor 10.0.1.2 local-ip 10.0.1.1 routerd flush 0.3") >= 3)
        assert "reload" not in relay.commands
        assert relay.tables["10.0.0.2,10.0.0.1"].keys() == {"192.0.2.1/32", "192.0.2.2/32"}  # the others go on
        assert [(str(r.peer), r.reason) for r in speaker.refusals] == [("10.0.1.2 from 10.0.1.1", "WithdrawalsQueued")]
        relay.rejects = "never"
        await eventually(lambda: relay.peers.keys() == {"10.0.0.2,10.0.0.1"} and not speaker.refusals)


def test_a_peer_that_takes_nothing_for_long_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:

    @story
    async def test(socket: Path) -> None:
        relay = FakeRelay()
        relay.rejects = "flush"
        async with running(socket, relay) as speaker:
            speaker.set(desired((A, []), (B, [path("192.0.2.1/32")])))
            assert await speaker.settled(5)
            speaker.set(desired((A, [])))
            await eventually(lambda: relay.peers.keys() == {"10.0.0.2,10.0.0.1"})

    test(tmp_path)
    assert "removed without having taken its withdrawals: 10.0.1.2 from 10.0.1.1" in caplog.text


@story
async def test_one_bad_prefix_does_not_stop_the_rest(socket: Path) -> None:
    relay = FakeRelay()
    relay.rejects = "192.0.2.77/32"
    table = [path(f"192.0.2.{n}/32") for n in range(200)]
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, table), (B, table)))
        assert await speaker.settled(5)
        assert [(str(r.peer), str(r.prefix), r.reason) for r in speaker.refusals] == [
            ("10.0.0.2 from 10.0.0.1", "192.0.2.77/32", "RejectedByExaBGP"),
            ("10.0.1.2 from 10.0.1.1", "192.0.2.77/32", "RejectedByExaBGP"),
        ]  # fmt: skip
        assert len(relay.tables["10.0.0.2,10.0.0.1"]) == len(relay.tables["10.0.1.2,10.0.1.1"]) == 199
        relay.commands.clear()
        speaker.set(desired((A, table[:100]), (B, table[:100])))
        assert await speaker.settled(5)
        assert not any("announce" in command for command in relay.commands)  # not tried again
        speaker.set(desired((A, table[:50]), (B, table[:50])))
        assert await speaker.settled(5)
        assert speaker.refusals == ()


@story
async def test_a_refused_configuration_stops_only_what_needs_it(socket: Path) -> None:
    relay = FakeRelay()
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [path("192.0.2.1/32")])))
        assert await speaker.settled(5)
        relay.refuses_configuration = True
        speaker.set(desired((A, [path("192.0.2.2/32")]), (B, [path("192.0.2.2/32")])))
        assert await speaker.settled(5)
        assert relay.tables == {"10.0.0.2,10.0.0.1": {"192.0.2.2/32": "next-hop self"}}
        assert [(str(r.peer), r.reason, r.message) for r in speaker.refusals] == [
            ("10.0.1.2 from 10.0.1.1", "ConfigurationRefused", "line 3: no")
        ]
        relay.refuses_configuration = False
        speaker.set(desired((A, [path("192.0.2.2/32")]), (replace(B, hold_time=30), [path("192.0.2.2/32")])))
        assert await speaker.settled(5)
        assert relay.tables["10.0.1.2,10.0.1.1"].keys() == {"192.0.2.2/32"}
        assert speaker.refusals == ()


@story
async def test_a_new_exabgp_gets_everything(socket: Path) -> None:
    relay = FakeRelay()
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [path("192.0.2.1/32")])))
        assert await speaker.settled(5)
        fresh = FakeRelay()
        fresh.pid = 8
        task = asyncio.create_task(fresh.serve(socket))
        await eventually(lambda: fresh.tables.get("10.0.0.2,10.0.0.1"))
        assert await speaker.settled(5)
        assert fresh.commands == [
            "reload",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 announce attributes next-hop self nlri 192.0.2.1/32",
        ]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@story
async def test_a_relay_that_comes_before_the_end_of_the_last_is_seen_tells_anew(socket: Path) -> None:
    """What its peer withdrew in between goes with the End-of-RIB."""
    relay, token = FakeRelay(), A.key.token
    relay.events = up(A)
    importing = replace(A, imports=(ip_network("10.244.0.0/16"),))
    gone, stays = "10.244.2.0/24", "10.244.3.0/24"
    async with running(socket, relay) as speaker:
        speaker.set(desired((importing, [])))
        assert await speaker.settled(5)
        side = {"session": token, "side": {"local_as": 64512, "peer_as": 65000, "restart": 120}}
        for prefix in (gone, stays):
            speaker.received.take({**side, "put": {prefix: str(A.address)}, "end": 4})
        speaker.received.take({"whole": True})
        assert (speaker.learnt() or {}).keys() == {ip_network(gone), ip_network(stays)}
        relay.version = "5.0.16"
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(relay.serve(socket))
            await eventually(lambda: speaker.exabgp_version == relay.version)
            speaker.received.take({"session": token, "put": {stays: str(A.address)}, "end": 4})
            assert speaker.learnt() == {ip_network(stays): (A.address,)}
            following.cancel()


@story
async def test_something_else_on_the_socket(socket: Path) -> None:
    async with running(socket, FakeRelay()) as speaker:
        for greeting in (b"GET / HTTP/1.1\n", b'{"hello": {"protocol": 99}}\n', b"[]\n"):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(greeting)
            assert await reader.read() == b""
            writer.close()
        assert speaker.connected


@contextlib.asynccontextmanager
async def silenced(socket: Path, relay: FakeRelay) -> AsyncIterator[Speaker]:
    """It has told a peer of one path, and has met with silence since."""
    async with running(socket, relay) as speaker:
        speaker.set(desired((A, [path("192.0.2.1/32")])))
        assert await speaker.settled(5)
        relay.is_silent = True
        assert not await speaker.sent(0.05)
        yield speaker


@story
async def test_a_silent_relay_stops_nobody(socket: Path) -> None:
    relay = FakeRelay()
    async with silenced(socket, relay) as speaker:
        for _ in range(100):  # the window has room for 32 requests
            with pytest.raises(SpeakerUnavailable, match="does not answer"):
                await speaker.observe()
            assert not await speaker.sent(0.05)
        relay.is_silent = False
        speaker.set(desired((A, [path("192.0.2.1/32"), path("192.0.2.2/32")])))
        assert await speaker.sent(5)
        assert len((await speaker.observe())[A.key]) == 2


@story
async def test_a_session_is_ended_although_others_waited_in_vain(socket: Path) -> None:
    """No answer within a while is no reason to say nothing; what was said once is not said again before its answer."""
    relay = FakeRelay()
    async with silenced(socket, relay) as speaker:
        for _ in range(2):
            assert not await speaker.end(A.key, BFD_DOWN)
        assert relay.unanswered == [
            "neighbor 10.0.0.2 local-ip 10.0.0.1 routerd flush 0.3",
            "neighbor 10.0.0.2 local-ip 10.0.0.1 routerd end 10",
        ]
        assert not await speaker.end(B.key, BFD_DOWN)
        assert relay.unanswered[2:] == ["neighbor 10.0.1.2 local-ip 10.0.1.1 routerd end 10"]


@story
async def test_a_session_is_ended_as_soon_as_the_speaker_answers_again(socket: Path) -> None:
    relay = FakeRelay()
    async with silenced(socket, relay) as speaker:
        relay.is_silent = False
        for _ in range(2):
            assert await speaker.end(A.key, BFD_DOWN)
        assert relay.commands[-2:] == ["neighbor 10.0.0.2 local-ip 10.0.0.1 routerd end 10"] * 2
        relay.rejects = "end"
        assert not await speaker.end(A.key, BFD_DOWN)
    assert not await speaker.end(A.key, BFD_DOWN)


@story
async def test_new_pods_are_programmed_although_exabgp_says_nothing(socket: Path) -> None:
    relay, datapath = FakeRelay(), World(groups={3})
    relay.is_silent = True
    async with running(socket, relay) as speaker:
        store: Any = None
        assert await Rooms(store, speaker, None, ()).carried() == {}
        here = Reconciler(speaker, [EgressModel(datapath)], settle_timeout=0.05)
        assert (await here.round(state())).actions == ("prepare group 7",)
        await here.round(state())
    assert datapath.groups == {3, 7}  # nothing is taken away meanwhile
