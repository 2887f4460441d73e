"""The speaker against ToRs of other makes, BIRD and FRR, on real parts: launcher, ExaBGP, relay and `Speaker`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bgp.conf import digests
from bgp.path import normal_communities
from bgp.plan import Observed, plan
from bgp.rib import normal
from bgp.routers import Routers
from bgp.service import running_speaker, stop_speaker
from bgp.speaker import Speaker
from bgp.text import BFD_DOWN
from routerd.agent.local import default_gateways, session_addresses
from routerd.agent.rooms import WithRouters
from routerd.model import Node, Peer, Peering, Snapshot
from routerd.node.sessions import sessions_of
from tests.netns.lab.lab import TOR_MAKES
from tests.netns.lab.netns import entered
from tests.netns.lab.stage import L1, L2, NODE_AS, T1, T2, T3, T4, TOR_AS, Stage, agent, desired, paths, states
from tests.waiting import PATIENCE

CAP_NET_BIND_SERVICE = 10  # <linux/capability.h>
EXTENDED = ("rt:192.0.2.1:7", "rt:64512:7", "link-bandwidth:64512:125000000", "soo:4200000000:7")
SHOWN = {  # as the lab reads the ToR's own command line; BIRD has no name for the third, and says the bits of its float
    "bird": ("rt:192:0:2:1:7", "rt:64512:7", "unknown:0x4004:64512:1290693416", "ro:4200000000:7"),
    "frr": ("RT:192.0.2.1:7", "RT:64512:7", "LB:64512:125000000", "SoO:4200000000:7"),
}


@pytest.fixture(params=TOR_MAKES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="routerd-bgp-") as directory:
        built = Stage(Path(directory), request.param)
        try:
            built.build()
            built.start_speaker()
            yield built
        finally:
            built.remove()


def story(test: Callable[[Stage], Awaitable[None]]) -> Callable[[Stage], None]:
    def wrapped(stage: Stage) -> None:
        asyncio.run(asyncio.wait_for(test(stage), 5 * PATIENCE))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@story
async def test_paths_follow_the_desired_state(stage: Stage) -> None:
    """Attributes of eBGP and iBGP, both families; changes, withdrawals, and a peer that comes and goes."""
    v4 = paths("192.0.2.1/32", med=5, prepend=2, communities=("64512:1", "64512:7:8"), local_pref=300)
    v6 = paths("2001:db8::1/128", next_hop=ip_address("fd09::1"))
    v6_ibgp = paths("2001:db8::1/128", local_pref=300, communities=("65535:65281", *EXTENDED), origin="incomplete")
    async with agent(stage) as speaker:
        speaker.set(desired((T1, v4 + v6), (T2, v6_ibgp)))
        assert await speaker.settled(10)
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")
        t1, t2 = stage.routes("t1"), stage.routes("t2")
        assert t1["192.0.2.1/32"].attributes == {
            "origin": "IGP", "as_path": "64512 64512 64512", "next_hop": "10.9.0.1", "med": "5", "local_pref": "100",
            "community": "64512:1", "large_community": "64512:7:8",
        }  # fmt: skip
        assert t1["2001:db8::1/128"].attributes["next_hop"] == "fd09::1"
        assert t2["2001:db8::1/128"].attributes["local_pref"] == "300"
        assert t2["2001:db8::1/128"].attributes["community"] == "65535:65281"
        assert t2["2001:db8::1/128"].attributes["as_path"] == ""
        assert t2["2001:db8::1/128"].attributes["origin"].lower() == "incomplete"
        said = t2["2001:db8::1/128"].attributes["ext_community"]
        assert [word for word in SHOWN[stage.make] if word not in said] == [], said
        await stage.until(lambda: states(speaker) == {"up"}, "both sessions up")
        await stage.until(
            lambda: all(stage.bgp.ends_of_rib(peer) >= 2 for peer in ("t1", "t2")), "End-of-RIB of families and peers"
        )

        speaker.set(desired((T1, v4 + v6 + paths("192.0.2.2/32")), (T2, v6_ibgp)))
        await stage.until(lambda: "192.0.2.2/32" in stage.routes("t1"), "a new path at the ToR")

        changed = paths("192.0.2.1/32", next_hop=ip_address("10.9.0.77"), med=6)
        speaker.set(desired((T1, changed), (T2, v6_ibgp)))
        await stage.until(lambda: stage.routes("t1").keys() == {"192.0.2.1/32"}, "withdrawals at the ToR")
        await stage.until(
            lambda: stage.routes("t1")["192.0.2.1/32"].attributes["next_hop"] == "10.9.0.77", "a new next hop"
        )
        assert stage.routes("t1")["192.0.2.1/32"].attributes["med"] == "6"

        # A third peer comes and the second goes; the first never notices.
        up_since = speaker.peers[T1.key].since
        speaker.set(desired((T1, changed), (stage.t3, v4)))
        await stage.until(lambda: not stage.routes("t2"), "withdrawn before the session closes (graceful restart)")
        await stage.until(lambda: stage.routes("t3"), "paths of the new peer, MD5")
        assert await speaker.settled(5)
        status = speaker.peers
        assert status.keys() == {T1.key, T3.key}
        assert (status[T1.key].since, status[T1.key].flaps) == (up_since, 0)
        assert stage.bgp.established("t1") == 1


@story
async def test_a_session_is_ended_with_a_word_though_graceful_restart_is_on(stage: Stage) -> None:
    """So the ToR keeps no path of it (RFC 9384); it comes up again with graceful restart, and the other one stays."""
    async with agent(stage) as speaker:
        speaker.set(desired((T1, paths("192.0.2.1/32")), (T2, paths("2001:db8::1/128"))))
        await stage.until(lambda: stage.routes("t1") and stage.routes("t2"), "paths at the ToR")
        for _ in range(2):
            flaps, times = speaker.peers[T1.key].flaps, stage.bgp.established("t1")
            assert await speaker.end(T1.key, BFD_DOWN)
            await stage.until(lambda flaps=flaps: speaker.peers[T1.key].flaps > flaps, "it ended")
            assert speaker.peers[T1.key].last_reason == "notification sent (6,10): cease: BFD down"
            await stage.until(lambda times=times: stage.bgp.established("t1") > times, "it came up again")
            await stage.until(lambda: stage.routes("t1"), "its paths again")
        assert (speaker.peers[T2.key].flaps, stage.bgp.established("t2")) == (0, 1)
        os.kill(stage.speaker_pid(), signal.SIGKILL)
        await stage.until(lambda: stage.bgp.sessions()["t1"] != "Established", "BGP is gone")
        assert stage.routes("t1"), "graceful restart was agreed anew"


@story
async def test_an_agent_comes_back(stage: Stage) -> None:
    """The next agent adopts: no session flaps, what is stale goes, what is new comes."""
    communities = normal_communities(["64512:2:1", "no-export", "64512:10", "blackhole", "64512:9", "65535:0"])
    kept = paths("192.0.2.2/32", communities=(*communities, *EXTENDED), med=7, origin="egp")
    before = desired((T1, paths("192.0.2.1/32") + kept), (T2, paths("2001:db8::1/128")))
    async with agent(stage) as speaker:
        speaker.set(before)
        assert await speaker.settled(10)
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")
    running = running_speaker(stage.run_dir)
    assert stage.start_speaker() == running  # a second start adopts
    async with agent(stage) as speaker:
        await stage.until(lambda: speaker.connected, "the relay's return")
        assert speaker.exabgp_version == "5.0.15"
        held = await speaker.observe()
        assert set(held[T1.key]) == {ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32")}
        as_held = {
            address: {prefix: normal(path, before.peers[address]) for prefix, path in table.items()}
            for address, table in held.items()
        }
        assert plan(before, Observed(digests(before.peers), as_held)).actions == ()  # nothing is announced again
        speaker.set(desired((T1, kept + paths("192.0.2.3/32")), (T2, paths("2001:db8::1/128"))))
        assert await speaker.settled(5)
        await stage.until(lambda: stage.routes("t1").keys() == {"192.0.2.2/32", "192.0.2.3/32"}, "stale out, new in")
        await stage.until(lambda: states(speaker) == {"up"}, "both sessions still up")
        assert {status.flaps for status in speaker.peers.values()} == {0}
    assert (stage.bgp.established("t1"), stage.bgp.established("t2")) == (1, 1)


@story
async def test_the_tor_restarts(stage: Stage) -> None:
    """After a crash of the ToR it gets everything again, then End-of-RIB, without the agent doing a thing."""
    table = paths(*(f"192.0.2.{n}/32" for n in range(50)))
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table), (T2, [])))
        await stage.until(lambda: len(stage.routes("t1")) == 50, "paths at the ToR")
        stage.bgp.kill()
        await stage.until(lambda: speaker.peers[T1.key].state == "down", "the session's end")
        marker = stage.bgp.ends_of_rib("t1")
        stage.bgp.start(stage.config())
        await stage.until(lambda: len(stage.routes("t1")) == 50, "paths at the new ToR")
        await stage.until(lambda: stage.bgp.ends_of_rib("t1") >= marker + 2, "End-of-RIB")
        assert speaker.peers[T1.key].flaps == 1


@story
async def test_exabgp_and_relay_are_killed(stage: Stage) -> None:
    """ExaBGP: graceful restart, no path is lost. Its relay: started again, no session notices."""
    table = paths(*(f"192.0.2.{n}/32" for n in range(50)))
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table)))
        await stage.until(lambda: len(stage.routes("t1")) == 50, "paths at the ToR")
        await stage.until(lambda: stage.bgp.ends_of_rib("t1") >= 2, "End-of-RIB")
        pid = stage.speaker_pid()

        relay = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(relay, signal.SIGKILL)
        await stage.until(lambda: not speaker.connected, "the relay's end")
        await stage.until(lambda: speaker.connected, "another relay")
        speaker.set(desired((T1, table[1:])))
        assert await speaker.settled(5)
        await stage.until(lambda: len(stage.routes("t1")) == 49, "a withdrawal through the other relay")
        assert speaker.peers[T1.key].state == "up"
        assert speaker.peers[T1.key].flaps == 0

        os.kill(pid, signal.SIGKILL)
        await stage.until(lambda: running_speaker(stage.run_dir) is None, "the speaker's end")
        least = 49
        before = stage.bgp.ends_of_rib("t1")
        stage.start_speaker()

        def recovered() -> bool:
            nonlocal least
            least = min(least, len(stage.routes("t1")))
            return stage.bgp.ends_of_rib("t1") >= before + 2 and speaker.peers[T1.key].state == "up"

        await stage.until(recovered, "the session's return")
        assert least == 49
        assert await speaker.settled(5)
        assert len(stage.routes("t1")) == 49

    # Both: the session comes back by itself, the paths stay as stale ones until the next agent says what is left.
    pid = stage.speaker_pid()
    os.kill(pid, signal.SIGKILL)
    await stage.until(lambda: running_speaker(stage.run_dir) is None, "the speaker's end")
    sessions_before = stage.bgp.established("t1")
    stage.start_speaker()
    await stage.until(lambda: stage.bgp.established("t1") > sessions_before, "the session's return")
    assert len(stage.routes("t1")) == 49
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table[2:])))
        await stage.until(lambda: len(stage.routes("t1")) == 48, "End-of-RIB ends what is stale")


@story
async def test_md5(stage: Stage) -> None:
    """A wrong password never comes up and is only a status; the right one does. Other sessions do not care."""
    wrong, right = replace(T3, password="wrong"), stage.t3
    table = paths("192.0.2.1/32")
    async with agent(stage) as speaker:
        speaker.set(desired((wrong, table), (T1, table)))
        assert await speaker.settled(5)
        await stage.until(lambda: stage.routes("t1"), "the session without a password")
        assert speaker.peers[T3.key].state == "connecting"
        assert speaker.peers[T3.key].announced == 0
        speaker.set(desired((right, table), (T1, table)))
        await stage.until(lambda: stage.routes("t3"), "the session with the right password")
        assert speaker.peers[T1.key].flaps == 0
    logged = (stage.run_dir / "exabgp.log").read_text()
    assert "wrong" not in logged
    assert "s3cret" not in logged


@story
async def test_the_speaker_has_one_capability(stage: Stage) -> None:
    """CAP_NET_BIND_SERVICE, for port 179 where a peer is to connect itself. So in all of these stories: TCP MD5 asks
    for none, and where no peer is passive nothing listens.
    """
    status = Path(f"/proc/{stage.speaker_pid()}/status").read_text()
    held = re.findall(r"^Cap(?:Prm|Eff|Bnd|Inh|Amb):\s+([0-9a-f]+)$", status, re.MULTILINE)
    assert {int(each, 16) for each in held} <= {0, 1 << CAP_NET_BIND_SERVICE}
    async with agent(stage) as speaker:
        speaker.set(desired((T1, paths("192.0.2.1/32")), (T2, paths("2001:db8::1/128")), (stage.t3, [])))
        await stage.until(lambda: states(speaker) == {"up"}, "sessions of both families, with MD5 and without")
    sockets = stage.node.run(["ss", "-Htanp"]).splitlines()
    assert [line for line in sockets if line.startswith("LISTEN") or ":179 " in line.split()[3]] == []


@story
async def test_two_sessions_share_the_load(stage: Stage) -> None:
    """Equal paths become two next hops in the ToR's kernel; with a worse MED, or withdrawn, a next hop is not used."""
    vip = "192.0.2.1/32"
    async with agent(stage) as speaker:
        speaker.set(desired((T1, paths(vip, med=5)), (stage.t3, paths(vip, med=5))))
        await stage.until(lambda: stage.next_hops(vip) == ["10.8.0.1", "10.9.0.1"], "two next hops")
        speaker.set(desired((T1, paths(vip, med=5)), (stage.t3, paths(vip, med=6))))
        await stage.until(lambda: stage.next_hops(vip) == ["10.9.0.1"], "the better MED alone")
        speaker.set(desired((T1, []), (stage.t3, paths(vip, med=6))))
        await stage.until(lambda: stage.next_hops(vip) == ["10.8.0.1"], "the path that is left")


@story
async def test_one_router_has_two_sessions_with_the_node_from_two_addresses(stage: Stage) -> None:
    """Each has its paths, is told and changed for itself, also after the next agent has come."""
    stage.node.ip("addr add 10.9.0.4/24 dev eth0")
    stage.bgp.configure(stage.config(twin=True))
    v4, both = paths("192.0.2.1/32"), paths("192.0.2.1/32", "192.0.2.2/32")
    async with agent(stage) as speaker:
        speaker.set(desired((T1, v4), (T4, both)))
        await stage.until(lambda: len(stage.routes("t1")) == 1 and len(stage.routes("t4")) == 2, "paths at the ToR")
        await stage.until(lambda: stage.next_hops("192.0.2.2/32") == ["10.9.0.4"], "the kernel's route")
        assert await speaker.settled(5)
    async with agent(stage) as speaker:
        speaker.set(desired((T1, both), (T4, v4)))
        await stage.until(lambda: len(stage.routes("t1")) == 2 and len(stage.routes("t4")) == 1, "the other way round")
        assert {str(key): status.flaps for key, status in speaker.peers.items()} == {
            "10.9.0.2 from 10.9.0.1": 0, "10.9.0.2 from 10.9.0.4": 0,
        }  # fmt: skip
        assert await speaker.end(T4.key, BFD_DOWN)
        await stage.until(lambda: stage.bgp.established("t4") == 2, "one was ended, and is back")
        await stage.until(lambda: states(speaker) == {"up"} and stage.routes("t4"), "its path again")
        speaker.set(desired((T1, both)))
        await stage.until(lambda: not stage.routes("t4"), "withdrawn before the session closes")
        assert await speaker.settled(5)
        assert ([*speaker.peers], speaker.peers[T1.key].flaps) == ([T1.key], 0)
        assert stage.bgp.established("t1") == 1


@story
async def test_the_tor_changes_its_policy(stage: Stage) -> None:
    """It refuses what a peer announces, and takes it again: the paths are sent again on demand, no session flaps."""
    table = paths("192.0.2.1/32", "192.0.2.2/32")
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table), (T2, paths("2001:db8::1/128"))))
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")
        assert await speaker.settled(5)
        stage.bgp.configure(stage.config(refused="t1"))
        await stage.until(lambda: not stage.next_hops("192.0.2.1/32"), "all of t1 refused")
        stage.bgp.configure(stage.config())
        await stage.until(lambda: len(stage.routes("t1")) == 2, "paths taken again")
        assert stage.routes("t2")
        assert {status.flaps for status in speaker.peers.values()} == {0}
    assert (stage.bgp.established("t1"), stage.bgp.established("t2")) == (1, 1)


@story
async def test_a_tor_that_ends_every_session_is_asked_less_and_less(stage: Stage) -> None:
    """It takes the session, and says at once that it is administratively reset: the reason stays to be seen."""
    attempts: list[float] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(time.monotonic())
        capability = b"\x02\x06\x41\x04" + struct.pack("!I", TOR_AS)
        body = struct.pack("!BHH4sB", 4, TOR_AS, 90, b"\x0a\x09\x00\x02", len(capability)) + capability
        with closing(writer.transport), suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(19)
            writer.write(message(1, body) + message(4))
            await reader.readuntil(message(4))
            writer.write(message(3, b"\x06\x04"))
            await writer.drain()

    stage.bgp.kill()
    listener = stage.tor.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("10.9.0.2", 179))
    server = await asyncio.start_server(refuse, sock=listener)
    async with server, agent(stage) as speaker:
        speaker.set(desired((T1, [])))
        await stage.until(lambda: len(attempts) >= 4, "four attempts")
        assert attempts[3] - attempts[0] > 3.0  # 0.5, 1 and 2 s at least
        assert speaker.peers[T1.key].last_reason == "notification received (6,4): cease: administrative reset"


@story
async def test_a_router_that_announces_too_much_is_told_so_and_left_alone(stage: Stage) -> None:
    """A million prefixes where 1,000 are allowed: nothing of them is kept, and other sessions stay."""
    said, attempts = list[bytes](), list[int]()
    first = int(ip_address("16.0.0.0"))

    def update(begin: int) -> bytes:
        hop = bytes.fromhex("40010100 400206 02010000fde8 400304 0a090002")
        nlris = b"".join(b"\x20" + struct.pack("!I", first + begin + n) for n in range(800))
        return message(2, struct.pack("!HH", 0, len(hop)) + hop + nlris)

    class Flood(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            attempts.append(1)
            options = bytes.fromhex("0206 4104") + struct.pack("!I", TOR_AS) + bytes.fromhex("0208 4006 0078 00010100")
            body = struct.pack("!BHH4sB", 4, TOR_AS, 9, b"\x0a\x09\x00\x02", len(options)) + options
            transport.writelines([message(1, body), message(4), *(update(800 * number) for number in range(1250))])

        def data_received(self, data: bytes) -> None:
            said.append(data)

    listener = stage.tor.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("10.9.0.2", 1790))
    server = await asyncio.get_running_loop().create_server(Flood, sock=listener)
    async with server, agent(stage) as speaker:
        speaker.set(desired((T2, [])))
        await stage.until(lambda: states(speaker) == {"up"}, "the other session")
        before = resident_kib(stage.speaker_pid())
        many = replace(T1, port=1790, hold_time=9, max_prefixes=1000)
        speaker.set(desired((many, []), (T2, [])))
        await stage.until(lambda: speaker.peers[T1.key].last_reason.startswith("notification sent"), "the end")
        reason = "notification sent (6,1): cease: maximum number of prefixes reached"
        assert speaker.peers[T1.key].last_reason == reason
        cease = message(3, b"\x06\x01\x00\x01\x01" + struct.pack("!I", 1000))
        await stage.until(lambda: cease in b"".join(said), "the NOTIFICATION")
        assert speaker.peers[T2.key].flaps == 0 and len(attempts) == 1
        assert resident_kib(stage.speaker_pid()) - before < 16 << 10


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


@story
async def test_a_tor_that_takes_nothing_from_afar_has_the_paths(stage: Stage) -> None:
    """TTL security (RFC 5082): it drops what was not sent with a TTL of 255, without a word."""
    stage.bgp.kill()
    stage.bgp.start(stage.config(guarded=True))
    async with agent(stage) as speaker:
        speaker.set(desired((T1, paths("192.0.2.1/32")), (stage.t3, paths("192.0.2.3/32"))))
        await stage.until(lambda: stage.routes("t1") and stage.routes("t3"), "paths at the ToR")


@story
async def test_what_comes_from_afar_is_not_taken_where_that_was_asked(stage: Stage) -> None:
    """TTL security of ours, in both families: a ToR that sends with a lower TTL, as from behind a hop, is not heard."""
    async with agent(stage) as speaker:
        near, other = replace(T1, min_ttl=255), replace(T2, min_ttl=255)
        speaker.set(desired((near, paths("192.0.2.1/32")), (stage.t3, paths("192.0.2.3/32"))))
        await stage.until(lambda: stage.routes("t3"), "the other session's path")
        await stage.until(lambda: dropped_for_their_ttl(stage) > 0, "packets that the kernel dropped")
        assert not stage.routes("t1")
        stage.bgp.kill()
        stage.bgp.start(stage.config(guarded=True))
        anew = replace(near, hold_time=30)  # does not wait for the open attempt, whose end was dropped as well
        speaker.set(desired((anew, paths("192.0.2.1/32")), (other, paths("2001:db8::1/128"))))
        await stage.until(lambda: stage.routes("t1") and stage.routes("t2"), "paths at the ToR")


def dropped_for_their_ttl(stage: Stage) -> int:
    """TCPMinTTLDrop of the node's kernel."""
    names, values = (line.split() for line in stage.node.run(["cat", "/proc/self/net/netstat"]).splitlines()[:2])
    return int(dict(zip(names, values, strict=True))["TCPMinTTLDrop"])


@story
async def test_a_family_that_the_tor_does_not_negotiate_is_told_and_not_counted(stage: Stage) -> None:
    """Nor are next hops of IPv6 for prefixes of IPv4 (RFC 8950): no such path is sent, and the session stays."""
    stage.bgp.kill()
    stage.bgp.start(stage.config(ipv6=False))
    table = paths("192.0.2.1/32") + paths("2001:db8::1/128", "2001:db8::2/128", next_hop=ip_address("fd09::1"))
    both = paths("192.0.2.1/32") + paths("2001:db8::1/128")
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table), (replace(T2, extended_next_hop=True), both)))
        await stage.until(lambda: stage.routes("t1") and stage.routes("t2"), "paths at the ToR")
        await stage.until(lambda: states(speaker) == {"up"}, "both sessions up")
        assert await speaker.settled(5)
        t1, t2 = speaker.peers[T1.key], speaker.peers[T2.key]
        assert (t1.families, t1.announced) == (("ipv4 unicast",), 1)
        assert (t2.families, t2.announced) == (("ipv6 unicast",), 1)
        told = {refusal.peer: str(refusal) for refusal in speaker.refusals}
        assert "not negotiated ipv6 unicast" in told[T1.key]
        assert "not negotiated IPv6 next hops for ipv4 unicast (RFC 8950)" in told[T2.key]
        assert {refusal.reason for refusal in speaker.refusals} == {"FamilyNotNegotiated"}
        assert stage.routes("t1").keys() == {"192.0.2.1/32"}
        assert stage.routes("t2").keys() == {"2001:db8::1/128"}


@story
async def test_a_link_local_peer_is_one_of_its_interface(stage: Stage) -> None:
    """Two links on which the ToR has the same address. What one of them gets or loses, the other does not see.

    With a next hop of IPv6 for a prefix of IPv4 (RFC 8950).
    """
    stage.link("eth1", "eth2")
    stage.bgp.configure(stage.config(links=("eth1", "eth2")))
    first = replace(L1, extended_next_hop=True, password=stage.password)
    second = replace(L2, password=stage.password)
    v4, v6 = paths("192.0.2.1/32"), paths("2001:db8::1/128")
    async with agent(stage) as speaker:
        speaker.set(desired((first, v4 + v6), (second, v6), (T1, v4)))
        await stage.until(lambda: len(stage.routes("eth1")) == 2 and stage.routes("eth2"), "paths at the ToR")
        assert {route.attributes["next_hop"] for route in stage.routes("eth2").values()} == {"fe80::a2"}
        await stage.until(lambda: "fe80::a1" in stage.next_hops("192.0.2.1/32"), "the kernel's route")
        assert await speaker.settled(5)
        await stage.until(lambda: states(speaker) == {"up"}, "all sessions up")
        assert {key.peer: len(table) for key, table in (await speaker.observe()).items()} == {
            L1.address: 2, L2.address: 1, T1.address: 1,
        }  # fmt: skip
        speaker.set(desired((first, v6), (second, v6), (T1, v4)))
        await stage.until(lambda: stage.routes("eth1").keys() == {"2001:db8::1/128"}, "a withdrawal of one of them")
        speaker.set(desired((first, v6), (replace(second, hold_time=30), v6), (T1, v4)))
        await stage.until(lambda: stage.bgp.established("eth2") == 2, "another session of the one that was changed")
        await stage.until(lambda: stage.routes("eth2"), "its paths again")
        assert (stage.bgp.established("eth1"), stage.bgp.established("t1")) == (1, 1)
        speaker.set(desired((second, v6), (T1, v4)))
        await stage.until(lambda: not stage.routes("eth1"), "withdrawn before the session closes")
        assert stage.routes("eth2") and stage.routes("t1")


@story
async def test_a_router_is_found_by_what_it_says_on_the_link(stage: Stage) -> None:
    """No address is configured on the node. FRR has none of the node either, and finds it by what the node says."""
    stage.link("eth1")
    stage.bgp.configure(stage.config(found="eth1"))
    stage.node.ip("route add default via 10.9.0.2")
    stage.node.ip("route add 0.0.0.0/0 via inet6 fe80::9 dev eth1 metric 9")  # no gateway of IPv6's
    node = Node("node", addresses=(ip_address("10.9.0.1"),))
    link = Peer(
        ip_address("::%eth1"), TOR_AS, NODE_AS, found="router", interface="eth1", extended_next_hop=True, name="tor",
    )  # fmt: skip
    gateway = Peer(ip_address("0.0.0.0"), TOR_AS, NODE_AS, found="default-gateway", name="gateway")
    snapshot, routers = Snapshot(nodes={"node": node}, bgp=Peering((gateway, link))), Routers()
    within = WithRouters("node", routers)
    routers.begin(())
    with entered(stage.node.name):
        assert "fe80::9" not in str(default_gateways())
        looking = asyncio.create_task(routers.run())
        try:
            await stage.until(lambda: not to_be_found(within(snapshot)), "the router")
            found = within(snapshot).bgp
            assert found is not None and within(snapshot).bgp is found
            addresses = session_addresses(found.peers, {})
            opened = sessions_of(found.peers, node, addresses)
            assert ([str(key.peer) for key in opened.sessions], opened.refusals) == (["10.9.0.2", "fe80::1%eth1"], ())
            async with agent(stage) as speaker:
                speaker.set(
                    desired(*((each, paths("192.0.2.1/32", "2001:db8::1/128")) for each in opened.sessions.values()))
                )
                await stage.until(lambda: states(speaker) == {"up"}, "both sessions")
                hops = ["10.9.0.1", "fe80::a1"]
                await stage.until(lambda: stage.next_hops("192.0.2.1/32") == hops, "the kernel's route")
                assert "2001:db8::1/128" in stage.bgp.routes()
        finally:
            looking.cancel()


def to_be_found(snapshot: Snapshot) -> list[str]:
    assert snapshot.bgp is not None
    return [peer.label for peer in snapshot.bgp.peers if peer.found]


@story
async def test_an_edit_does_not_wait_for_a_session_that_a_silent_router_keeps_opening(stage: Stage) -> None:
    """It takes connections and says nothing: ExaBGP alone waits a minute for its OPEN before it looks at the edit."""
    holds: list[int] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer.transport), suppress(ConnectionError, asyncio.IncompleteReadError):
            opened = await reader.readexactly(29)
            holds.append(struct.unpack("!H", opened[22:24])[0])
            await reader.read()

    stage.bgp.kill()
    listener = stage.tor.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("10.9.0.2", 179))
    server = await asyncio.start_server(listen, sock=listener)
    async with server, agent(stage) as speaker:
        for hold in (90, 30, 9, 12):
            speaker.set(desired((replace(T1, hold_time=hold), [])))
            await stage.until(lambda hold=hold: holds[-1:] == [hold], f"an OPEN with a hold time of {hold} s")
    assert holds == [90, 30, 9, 12]


@story
async def test_a_router_opens_the_sessions(stage: Stage) -> None:
    """Passive peers of both families, with MD5 and without: what happens to one of them, the others do not see."""
    first, second, third = stage.passive
    twin = replace(first, local_address=T4.local_address)  # of an address that the node has not yet
    v4, v6 = paths("192.0.2.1/32"), paths("2001:db8::1/128")
    wrong = replace(third, password="wrong")
    async with agent(stage) as speaker:
        speaker.set(desired((first, v4), (second, v6), (wrong, v4), (twin, v4)))
        assert await speaker.settled(10)
        waiting = "the router has not connected to 10.9.0.1 port 179 yet"
        assert (speaker.peers[T1.key].state, speaker.peers[T1.key].last_reason) == ("connecting", waiting)
        stage.bgp.kill()
        stage.bgp.start(stage.config(active=True, twin=True))
        await stage.until(lambda: stage.routes("t1") and stage.routes("t2"), "paths at the ToR")
        assert speaker.peers[T3.key].state == "connecting"
        stage.node.ip("addr add 10.9.0.4/24 dev eth0")
        await stage.until(lambda: stage.routes("t4"), "the session with the address that has come")
        speaker.set(desired((first, v4), (second, v6), (third, v4), (twin, v4)))
        await stage.until(lambda: stage.routes("t3"), "the session with the right password")
        established = stage.node.run(["ss", "-Htn", "state", "established"]).splitlines()
        assert [line.split()[2].rpartition(":")[2] for line in established] == ["179"] * 4
        assert all(status.flaps == 0 for status in speaker.peers.values())

        stage.bgp.kill()
        stage.bgp.start(stage.config(active=True, twin=True))
        await stage.until(lambda: states(speaker) == {"up"} and stage.routes("t2"), "the sessions of the next ToR")
        count = stage.bgp.established("t1")
        speaker.set(desired((first, v4), (replace(second, hold_time=30), v6), (third, v4)))
        await stage.until(lambda: not stage.routes("t4"), "withdrawn before the session closes")
        await stage.until(lambda: stage.bgp.established("t2") > 2 and stage.routes("t2"), "another session of one")
        assert stage.bgp.established("t1") == count
        speaker.set(desired((T1, v4)))
        assert await speaker.settled(5)
        stage.bgp.kill()
        stage.bgp.start(stage.config())
        await stage.until(lambda: stage.routes("t1"), "a session of ours again")
    listening = stage.node.run(["ss", "-Htln"]).splitlines()
    assert [line for line in listening if ":179 " in line] == []


@story
async def test_a_router_that_lost_its_session_without_a_word_has_a_new_one_at_once(stage: Stage) -> None:
    """It connects from another port while the old session seems to be up (RFC 4724, section 5)."""
    passive = replace(T1, passive=True, listen_port=1790)
    stage.bgp.kill()
    restarts = bytes.fromhex("0204 4002 4078")  # parameter, capability 64 (RFC 4724, section 3): 120 s, no family
    opened = message(1, struct.pack("!BHH4sB", 4, TOR_AS, 90, T1.address.packed, len(restarts)) + restarts)
    async with agent(stage) as speaker:
        speaker.set(desired((passive, paths("192.0.2.1/32"))))
        assert await speaker.settled(10)
        with contextlib.ExitStack() as stack:
            for flaps in range(2):
                router = stack.enter_context(closing(stage.tor.socket(socket.AF_INET, socket.SOCK_STREAM)))
                router.bind(("10.9.0.2", 0))
                router.connect(("10.9.0.1", 1790))
                router.sendall(opened + message(4))
                await stage.until(lambda flaps=flaps: state_and_flaps(speaker) == ("up", flaps), "a session")


def state_and_flaps(speaker: Speaker) -> tuple[str, int]:
    return speaker.peers[T1.key].state, speaker.peers[T1.key].flaps


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271, section 4.1."""
    return b"\xff" * 16 + struct.pack("!HB", 19 + len(body), kind) + body


@story
async def test_a_restart_keeps_the_paths_and_a_shutdown_of_the_host_ends_them(stage: Stage) -> None:
    """SIGTERM both times. In the second case the ToR hears why, and has neither to wait nor to guess."""
    async with agent(stage) as speaker:
        speaker.set(desired((T1, paths("192.0.2.1/32", "192.0.2.2/32")), (T2, paths("2001:db8::1/128"))))
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")
        await stage.until(lambda: stage.bgp.ends_of_rib("t1") >= 2, "End-of-RIB")

        await asyncio.to_thread(stop_speaker, stage.run_dir)
        await stage.until(lambda: "t1" not in up(stage), "the ToR sees the session's end")
        assert len(stage.routes("t1")) == 2 and stage.routes("t2")
        stage.start_speaker()
        await stage.until(lambda: states(speaker) == {"up"}, "both sessions up again")
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")

        (stage.run_dir / "shutdown").touch()
        await asyncio.to_thread(stop_speaker, stage.run_dir)
        assert not stage.routes("t1") and not stage.routes("t2")
    assert "ending graceful restart" in (stage.run_dir / "speaker.out").read_text()


def up(stage: Stage) -> set[str]:
    return {name for name, state in stage.bgp.sessions().items() if state == "Established"}
