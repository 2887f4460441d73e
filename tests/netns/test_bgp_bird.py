"""The speaker against BIRD 2, on real parts: launcher, ExaBGP, relay and `Speaker`; BIRD in a namespace of its own.

One ToR address per session: t1 is eBGP over IPv4, t2 iBGP over IPv6, t3 eBGP over IPv4 with MD5.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest

from bgp.path import Desired, SpeakerPeer
from bgp.path import Path as BgpPath
from bgp.service import running_speaker, start_speaker, stop_speaker
from bgp.speaker import Speaker
from tests.netns.bird import Bird, Route
from tests.netns.netns import Namespace, entered, run, stop

NODE_AS, TOR_AS = 64512, 65000
ROUTER_ID = IPv4Address("10.9.0.1")
T1 = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), NODE_AS, TOR_AS, ROUTER_ID)
T2 = SpeakerPeer(ip_address("fd09::2"), ip_address("fd09::1"), NODE_AS, NODE_AS, ROUTER_ID)
T3 = SpeakerPeer(ip_address("10.8.0.2"), ip_address("10.8.0.1"), NODE_AS, TOR_AS, ROUTER_ID)
PLAIN = "s3cret; md5 # {x}"


def bird_config(password: str = PLAIN) -> str:
    channels = "ipv4 { import all; export none; }; ipv6 { import all; export none; gateway direct; };"
    return f"""\
router id 10.9.0.2;
log stderr all;
debug protocols {{ states, events, packets }};
protocol device {{}}
template bgp node {{
    passive on; direct; graceful restart on; graceful restart time 20; long lived graceful restart off;
    error wait time 1, 1; connect delay time 1; {channels}
}}
protocol bgp t1 from node {{ local 10.9.0.2 as {TOR_AS}; neighbor 10.9.0.1 as {NODE_AS}; }}
protocol bgp t2 from node {{ local fd09::2 as {NODE_AS}; neighbor fd09::1 as {NODE_AS}; }}
protocol bgp t3 from node {{ local 10.8.0.2 as {TOR_AS}; neighbor 10.8.0.1 as {NODE_AS}; password "{password}"; }}
"""


class Stage:
    """Two namespaces on one wire: the node with the speaker, and the ToR with BIRD."""

    def __init__(self, directory: Path) -> None:
        tag = f"bgpt{os.getpid()}"
        self.node, self.tor = Namespace(f"{tag}-node", "node"), Namespace(f"{tag}-tor", "tor")
        self.run_dir = directory / "run"
        (directory / "bird").mkdir()
        self.bird = Bird(self.tor, directory / "bird")
        self.log = directory / "bird" / "bird.log"

    def build(self) -> None:
        self.node.create()
        self.tor.create()
        run(
            [
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                self.node.name,
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                self.tor.name,
            ]
        )
        self.node.ip(
            "addr add 10.9.0.1/24 dev eth0",
            "addr add 10.8.0.1/24 dev eth0",
            "addr add fd09::1/64 dev eth0 nodad",
            "link set eth0 up",
        )
        self.tor.ip(
            "addr add 10.9.0.2/24 dev eth0", "addr add 10.8.0.2/24 dev eth0", "addr add fd09::2/64 dev eth0 nodad",
            "link set eth0 up",
        )  # fmt: skip
        self.bird.start(bird_config())

    def start_speaker(self) -> int:
        with entered(self.node.name):
            return start_speaker(self.run_dir)

    def remove(self) -> None:
        stop_speaker(self.run_dir)
        for namespace in (self.node, self.tor):
            with contextlib.suppress(Exception):
                stop(namespace.pids())
            run(["ip", "netns", "del", namespace.name], check=False)

    def kill_bird(self) -> None:
        """As a crash: nothing is said to the peers."""
        assert self.bird._process is not None
        self.bird._process.kill()
        self.bird._process.wait()

    def routes(self, protocol: str) -> dict[str, Route]:
        """What the ToR has from one session: prefix -> path."""
        return {
            prefix: path for prefix, paths in self.bird.routes().items() for path in paths if path.protocol == protocol
        }

    async def until(self, condition: Callable[[], object], what: str, timeout: float = 10.0) -> float:
        """Seconds until `condition` is true."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout:
                logs = "\n".join(path.read_text()[-3000:] for path in (self.log, self.run_dir / "exabgp.log"))
                raise AssertionError(f"not within {timeout:g} s: {what}\n{logs}")
            await asyncio.sleep(0.005)
        return time.monotonic() - started


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="routerd-bgp-") as directory:
        built = Stage(Path(directory))
        try:
            built.build()
            built.start_speaker()
            yield built
        finally:
            built.remove()


@contextlib.asynccontextmanager
async def agent(stage: Stage) -> AsyncIterator[Speaker]:
    """A `Speaker` for the time of the block; leaving the block is the agent going away."""
    speaker = Speaker(stage.run_dir / "relay.sock")
    task = asyncio.create_task(speaker.run())
    try:
        yield speaker
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def states(speaker: Speaker) -> set[str]:
    return {status.state for status in speaker.peers.values()}


def paths(*prefixes: str, **attributes: object) -> list[BgpPath]:
    return [BgpPath(ip_network(prefix), **attributes) for prefix in prefixes]  # type: ignore[arg-type]


def desired(*tables: tuple[SpeakerPeer, list[BgpPath]]) -> Desired:
    return Desired(
        {peer.address: peer for peer, _ in tables},
        {peer.address: {path.prefix: path for path in table} for peer, table in tables},
    )


def story(test: Callable[[Stage], Awaitable[None]]) -> Callable[[Stage], None]:
    def wrapped(stage: Stage) -> None:
        asyncio.run(asyncio.wait_for(test(stage), 60))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@story
async def test_paths_follow_the_desired_state(stage: Stage) -> None:
    """Attributes of eBGP and iBGP, both families; changes, withdrawals, and a peer that comes and goes."""
    v4 = paths("192.0.2.1/32", med=5, prepend=2, communities=("64512:1", "64512:7:8"), local_pref=300)
    v6 = paths("2001:db8::1/128", next_hop=ip_address("fd09::1"))
    v6_ibgp = paths("2001:db8::1/128", local_pref=300, communities=("65535:65281",))
    async with agent(stage) as speaker:
        speaker.set(desired((T1, v4 + v6), (T2, v6_ibgp)))
        assert await speaker.settled(10)
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")
        t1, t2 = stage.routes("t1"), stage.routes("t2")
        assert t1["192.0.2.1/32"].attributes == {
            "origin": "IGP", "as_path": "64512 64512 64512", "next_hop": "10.9.0.1", "med": "5", "local_pref": "100",
            "community": "(64512,1)", "large_community": "(64512, 7, 8)",
        }  # fmt: skip
        assert t1["2001:db8::1/128"].attributes["next_hop"].split()[0] == "fd09::1"
        assert t2["2001:db8::1/128"].attributes["local_pref"] == "300"
        assert t2["2001:db8::1/128"].attributes["community"] == "(65535,65281)"
        assert t2["2001:db8::1/128"].attributes["as_path"] == ""
        await stage.until(lambda: states(speaker) == {"up"}, "both sessions up")
        await stage.until(
            lambda: stage.log.read_text().count("Got END-OF-RIB") >= 4, "End-of-RIB of both families and peers"
        )

        # One more service: how long until the ToR has it?
        speaker.set(desired((T1, v4 + v6 + paths("192.0.2.2/32")), (T2, v6_ibgp)))
        seconds = await stage.until(lambda: "192.0.2.2/32" in stage.bird.birdc("show route"), "a new path at the ToR")
        print(f"from set() to the ToR's table: {seconds * 1000:.1f} ms")
        assert seconds < 0.5

        changed = paths("192.0.2.1/32", next_hop=ip_address("10.9.0.77"), med=6)
        speaker.set(desired((T1, changed), (T2, v6_ibgp)))
        await stage.until(lambda: stage.routes("t1").keys() == {"192.0.2.1/32"}, "withdrawals at the ToR")
        await stage.until(
            lambda: stage.routes("t1")["192.0.2.1/32"].attributes["next_hop"] == "10.9.0.77", "a new next hop"
        )
        assert stage.routes("t1")["192.0.2.1/32"].attributes["med"] == "6"

        # A third peer comes and the second goes; the first never notices.
        t3 = replace(T3, password=PLAIN)
        up_since = speaker.peers[T1.address].since
        speaker.set(desired((T1, changed), (t3, v4)))
        await stage.until(lambda: not stage.routes("t2"), "withdrawn before the session closes (graceful restart)")
        await stage.until(lambda: stage.routes("t3"), "paths of the new peer, MD5")
        assert await speaker.settled(5)
        status = speaker.peers
        assert status.keys() == {T1.address, T3.address}
        assert (status[T1.address].since, status[T1.address].flaps) == (up_since, 0)
        assert stage.log.read_text().count("t1: State changed to up") == 1


@story
async def test_an_agent_comes_back(stage: Stage) -> None:
    """The next agent adopts: no session flaps, what is stale goes, what is new comes."""
    async with agent(stage) as speaker:
        speaker.set(desired((T1, paths("192.0.2.1/32", "192.0.2.2/32")), (T2, paths("2001:db8::1/128"))))
        assert await speaker.settled(10)
        await stage.until(lambda: len(stage.routes("t1")) == 2 and stage.routes("t2"), "paths at the ToR")
    pid = running_speaker(stage.run_dir)
    assert stage.start_speaker() == pid  # a second start adopts
    async with agent(stage) as speaker:
        await stage.until(lambda: speaker.connected, "the relay's return")
        assert speaker.exabgp_version == "5.0.15"
        held = await speaker.observe()
        assert set(held[T1.address]) == {ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32")}
        speaker.set(desired((T1, paths("192.0.2.2/32", "192.0.2.3/32")), (T2, paths("2001:db8::1/128"))))
        assert await speaker.settled(5)
        await stage.until(lambda: stage.routes("t1").keys() == {"192.0.2.2/32", "192.0.2.3/32"}, "stale out, new in")
        await stage.until(lambda: states(speaker) == {"up"}, "both sessions still up")
        assert {status.flaps for status in speaker.peers.values()} == {0}
    logged = stage.log.read_text()
    assert (logged.count("t1: State changed to up"), logged.count("t2: State changed to up")) == (1, 1)


@story
async def test_bird_restarts(stage: Stage) -> None:
    """After a crash of the ToR it gets everything again, then End-of-RIB, without the agent doing a thing."""
    table = paths(*(f"192.0.2.{n}/32" for n in range(50)))
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table), (T2, [])))
        await stage.until(lambda: len(stage.routes("t1")) == 50, "paths at the ToR")
        stage.kill_bird()
        await stage.until(lambda: speaker.peers[T1.address].state == "down", "the session's end")
        marker = len(stage.log.read_text())
        stage.bird.start(bird_config())
        await stage.until(lambda: len(stage.routes("t1")) == 50, "paths at the new ToR")
        await stage.until(lambda: "t1: Got END-OF-RIB" in stage.log.read_text()[marker:], "End-of-RIB")
        assert speaker.peers[T1.address].flaps == 1


@story
async def test_exabgp_and_relay_are_killed(stage: Stage) -> None:
    """ExaBGP: graceful restart, no path is lost. Its relay: started again, no session notices."""
    table = paths(*(f"192.0.2.{n}/32" for n in range(50)))
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table)))
        await stage.until(lambda: len(stage.routes("t1")) == 50, "paths at the ToR")
        await stage.until(lambda: "t1: Got END-OF-RIB" in stage.log.read_text(), "End-of-RIB")
        pid = running_speaker(stage.run_dir)
        assert pid is not None

        relay = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(relay, signal.SIGKILL)
        await stage.until(lambda: not speaker.connected, "the relay's end")
        await stage.until(lambda: speaker.connected, "another relay")
        speaker.set(desired((T1, table[1:])))
        assert await speaker.settled(5)
        await stage.until(lambda: len(stage.routes("t1")) == 49, "a withdrawal through the other relay")
        assert speaker.peers[T1.address].state == "up"
        assert speaker.peers[T1.address].flaps == 0

        os.kill(pid, signal.SIGKILL)
        await stage.until(lambda: running_speaker(stage.run_dir) is None, "the speaker's end")
        least = 49
        stage.start_speaker()
        log_before = stage.log.read_text().count("t1: Got END-OF-RIB")

        def recovered() -> bool:
            nonlocal least
            least = min(least, len(stage.routes("t1")))
            return (
                stage.log.read_text().count("t1: Got END-OF-RIB") >= log_before + 2
                and speaker.peers[T1.address].state == "up"
            )

        await stage.until(recovered, "the session's return")
        assert least == 49
        assert await speaker.settled(5)
        assert len(stage.routes("t1")) == 49

    # Both: the session comes back by itself, the paths stay as stale ones until the next agent says what is left.
    pid = running_speaker(stage.run_dir)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await stage.until(lambda: running_speaker(stage.run_dir) is None, "the speaker's end")
    sessions_before = stage.log.read_text().count("t1: BGP session established")
    stage.start_speaker()
    await stage.until(
        lambda: stage.log.read_text().count("t1: BGP session established") > sessions_before, "the session's return"
    )
    assert len(stage.routes("t1")) == 49
    async with agent(stage) as speaker:
        speaker.set(desired((T1, table[2:])))
        await stage.until(lambda: len(stage.routes("t1")) == 48, "End-of-RIB ends what is stale")


@story
async def test_md5(stage: Stage) -> None:
    """A wrong password never comes up and is only a status; the right one does. Other sessions do not care."""
    wrong, right = replace(T3, password="wrong"), replace(T3, password=PLAIN)
    table = paths("192.0.2.1/32")
    async with agent(stage) as speaker:
        speaker.set(desired((wrong, table), (T1, table)))
        assert await speaker.settled(5)
        await stage.until(lambda: stage.routes("t1"), "the session without a password")
        assert speaker.peers[T3.address].state == "connecting"
        assert speaker.peers[T3.address].announced == 1
        speaker.set(desired((right, table), (T1, table)))
        await stage.until(lambda: stage.routes("t3"), "the session with the right password")
        assert speaker.peers[T1.address].flaps == 0
    logged = (stage.run_dir / "exabgp.log").read_text()
    assert "wrong" not in logged
    assert "s3cret" not in logged
