"""`routerd bfd` against BIRD's BFD and FRR's bfdd, in both families: who is silent, who restarts, and who notices."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from bfd.client import Client
from bfd.control import SOCKET, View
from bfd.engine import FILE
from bfd.session import Timers
from bfd.table import Order
from tests.netns.lab.lab import TOR_MAKES
from tests.netns.lab.stage import T1, T2, Stage, agent, desired, paths
from tests.waiting import PATIENCE, eventually, wait

ROOT = Path(__file__).parents[3]
UNIT = (ROOT / "configs" / "systemd" / "routerd-bfd.service").read_text()
FOUR, SIX = T1.address, T2.address
ORDERS = [Order(each.address, each.local_address, Timers()) for each in (T1, T2)]
CUT = """table inet cut {
  chain in { type filter hook input priority -300; drop; }
  chain out { type filter hook output priority -300; drop; }
}"""


class BfdProcess:
    """`routerd bfd` in the node's namespace, with the capabilities of its unit alone."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._config = stage.run_dir / "routerd.yaml"
        self.log = stage.run_dir / "bfd.log"
        stage.run_dir.mkdir(exist_ok=True)
        self._config.write_text(f"apiVersion: routerd.io/v1alpha1\nkind: Config\nrun-dir: {stage.run_dir}\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (bounds,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)
        granted = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in bounds.split())])
        confined = ["setpriv", f"--bounding-set={granted}", f"--inh-caps={granted}", "--no-new-privs"]
        command = [sys.executable, "-m", "routerd.cli.main", "--config", str(self._config), "bfd"]
        self.process = self._stage.node.popen([*confined, *command], self.log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(timeout=PATIENCE)


class Pair:
    """A ToR with BFD, our process, and whoever asked it for sessions."""

    def __init__(self, stage: Stage, process: BfdProcess) -> None:
        self.stage, self.process = stage, process
        self.client = Client(stage.run_dir / SOCKET)

    def view(self, peer: object = FOUR) -> View | None:
        report = self.client.report
        sessions = report.sessions if report is not None else {}
        return next((view for (address, _), view in sessions.items() if address == peer), None)

    def is_up(self) -> bool:
        ours = [view.state for view in map(self.view, (FOUR, SIX)) if view is not None]
        theirs = self.stage.bgp.bfd()
        return ours == ["up", "up"] and [theirs.get("10.9.0.1"), theirs.get("fd09::1")] == ["up", "up"]

    def falls(self) -> int:
        return sum(view.falls for view in map(self.view, (FOUR, SIX)) if view is not None)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        try:
            await eventually(condition, what)
        except AssertionError as late:
            told = f"{late}\n{self.client.report}\n{self.stage.bgp.bfd()}\n{self.process.log.read_text()[-3000:]}"
            raise AssertionError(told) from None

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """As long as an agent is there."""
        self.client = Client(self.stage.run_dir / SOCKET)
        self.client.set(ORDERS)
        task = asyncio.create_task(self.client.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture(scope="module", params=TOR_MAKES)
def built(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="routerd-bfd-") as directory:
        stage = Stage(Path(directory), request.param)
        try:
            stage.build(bfd=True)
            yield Pair(stage, BfdProcess(stage))
        finally:
            stage.remove()


@pytest.fixture
def pair(built: Pair) -> Iterator[Pair]:
    """Every story finds the process and the wire as they should be, whatever the one before did to them."""
    if built.process.process is None or built.process.process.poll() is not None:
        built.process.start()
    yield built
    built.stage.node.run(["nft", "flush", "ruleset"])


def story(test: Callable[[Pair], Awaitable[None]]) -> Callable[[Pair], None]:
    def wrapped(pair: Pair) -> None:
        asyncio.run(asyncio.wait_for(test(pair), 5 * PATIENCE))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@story
async def test_sessions_of_both_families_come_up_and_run_fast(pair: Pair) -> None:
    """A ToR's daemons begin BFD for a peer when BGP has it, so there is a speaker."""
    async with with_paths(pair):
        view = pair.view()
        assert view is not None
        await pair.until(lambda: (v := pair.view()) and (v.interval, v.detection) == (50_000, 150_000), "fast")
        report = pair.client.report
        assert report is not None and report.realtime, "CAP_SYS_NICE of the unit is enough"
        assert not report.problem


@asynccontextmanager
async def with_paths(pair: Pair) -> AsyncIterator[None]:
    """BGP and BFD up in both families, and a path at the ToR from each."""
    stage = pair.stage
    stage.start_speaker()
    async with agent(stage) as speaker, pair.asked():
        speaker.set(desired((T1, paths("192.0.2.1/32")), (T2, paths("2001:db8::1/128"))))
        await pair.until(lambda: stage.routes("t1") and stage.routes("t2"), "paths at the ToR")
        await pair.until(pair.is_up, "BFD up")
        yield


@story
async def test_a_silent_cut_takes_the_paths_from_the_tor_within_a_second(pair: Pair) -> None:
    """Both see it: the ToR by its BFD, though BGP's hold time is 90 s; and it all comes back."""
    async with with_paths(pair):
        falls = pair.falls()
        pair.stage.node.nft(CUT)
        began = time.monotonic()
        await pair.until(lambda: not (pair.stage.routes("t1") or pair.stage.routes("t2")), "no paths at the ToR")
        assert time.monotonic() - began < 1
        await pair.until(lambda: all(v and v.failed for v in map(pair.view, (FOUR, SIX))), "down")
        view = pair.view()
        assert view is not None and pair.falls() == falls + 2
        assert view.reason == "nothing was heard for the detection time of 150 ms"
        pair.stage.node.run(["nft", "delete", "table", "inet", "cut"])
        await pair.until(pair.is_up, "BFD up again")
        await pair.until(lambda: pair.stage.routes("t1") and pair.stage.routes("t2"), "paths again")


@story
async def test_what_this_node_says_no_more_is_seen_by_the_tor_and_told_back(pair: Pair) -> None:
    async with with_paths(pair):
        pair.stage.node.nft(CUT.replace("hook input priority -300; drop", "hook input priority -300"))
        await pair.until(lambda: (v := pair.view()) and v.failed, "down here")
        view = pair.view()
        assert view is not None and view.reason.startswith("the peer says that it is down")


@story
async def test_a_killed_process_is_a_dead_node_and_the_next_one_comes_up(pair: Pair) -> None:
    """The ToR cannot tell them apart, and BGP comes back by itself: who never came up is not waited for."""
    async with with_paths(pair):
        pair.process.stop(signal.SIGKILL)
        await pair.until(lambda: pair.stage.bgp.bfd().get("10.9.0.1") != "up", "the ToR has noticed")
        await pair.until(lambda: pair.client.report is None, "we know that nobody watches")
        pair.process.start()
        await pair.until(pair.is_up, "BFD up again")
        await pair.until(lambda: pair.stage.routes("t1") and pair.stage.routes("t2"), "paths again")


@story
async def test_a_restart_of_the_process_flaps_nothing(pair: Pair) -> None:
    """Also where nobody is there to say again what is wanted."""
    async with with_paths(pair):
        await pair.until(lambda: (v := pair.view()) and v.detection == 150_000, "fast")
        falls = pair.falls()
    established = [pair.stage.bgp.established(peer) for peer in ("t1", "t2")]
    pair.process.stop()
    assert (pair.stage.run_dir / FILE).exists()
    assert set(pair.stage.bgp.bfd().values()) == {"up"}
    wait_for_silence(pair)
    pair.process.start()
    async with pair.asked():
        await pair.until(pair.is_up, "BFD up")
        await pair.until(lambda: (v := pair.view()) and v.interval == 50_000, "fast again")
        assert pair.falls() == falls, pair.process.log.read_text()
        assert [pair.stage.bgp.established(peer) for peer in ("t1", "t2")] == established


def wait_for_silence(pair: Pair) -> None:
    """Longer than the fast detection time, in which the ToR would have noticed."""
    until = time.monotonic() + 0.5
    wait(lambda: time.monotonic() > until, "half a second")
    assert set(pair.stage.bgp.bfd().values()) == {"up"}


@story
async def test_a_speaker_that_stops_is_no_dead_node(pair: Pair) -> None:
    """BFD goes on, so the ToR keeps the paths of a graceful restart."""
    async with with_paths(pair):
        falls = pair.falls()
        os.kill(pair.stage.speaker_pid(), signal.SIGKILL)
        await pair.until(lambda: pair.stage.bgp.sessions()["t1"] != "Established", "BGP is gone")
        assert pair.stage.routes("t1") and pair.falls() == falls
        assert pair.view() and pair.view().state == "up"  # type: ignore[union-attr]


@story
async def test_what_is_not_wanted_any_more_is_told_as_such(pair: Pair) -> None:
    async with with_paths(pair):
        pair.client.set(())
        await pair.until(lambda: pair.view() is None, "no session")
        await pair.until(lambda: pair.stage.bgp.bfd().get("10.9.0.1") != "up", "the ToR knows")
        pair.client.set(ORDERS)
        await pair.until(pair.is_up, "BFD up again")


FLOOD = """
import os, random, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, {ttl})
sock.bind(("10.9.0.2", 0))
for _ in range({count}):
    sock.sendto({data}, ("10.9.0.1", 3784))
"""


@story
async def test_rubbish_and_forged_packets_end_nothing_and_are_counted(pair: Pair) -> None:
    """From the peer's own address: a flood of noise, a guess at the session, and packets from further away."""
    async with with_paths(pair):
        falls = pair.falls()
        guessed = 'bytes.fromhex("20400318") + os.urandom(8) + bytes.fromhex("000f424000000000000f4240")[:12]'
        far = 'bytes.fromhex("20400318000000010000000000 0f42400000c35000000000".replace(" ", ""))'
        for data, ttl in (("os.urandom(random.randrange(60))", 255), (guessed, 255), (far, 254)):
            text = FLOOD.format(ttl=ttl, count=5000, data=data)
            await asyncio.to_thread(pair.stage.tor.run, [sys.executable, "-c", text])
        wanted = {"truncated", "version", "unknown-session", "ttl"}
        await pair.until(lambda: (r := pair.client.report) and wanted <= r.refused.keys(), "counted")
        assert pair.falls() == falls


def test_a_port_that_another_program_has_is_told(pair: Pair) -> None:
    async def told() -> None:
        async with pair.asked():
            await pair.until(lambda: pair.client.report, "connected")
            pair.client.set(())
            await pair.until(lambda: pair.stage.node.run(["ss", "-Hlun", "sport = 3784"]) == "", "the port is free")
        other = pair.stage.node.popen(
            [sys.executable, "-c", "import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
             "s.bind(('', 3784))\nprint('bound',flush=True)\nimport sys; sys.stdin.read(); time.sleep(600)"],
            pair.stage.run_dir / "other.log",
        )  # fmt: skip
        await pair.until(lambda: "bound" in (pair.stage.run_dir / "other.log").read_text(), "another program")
        async with pair.asked():
            await pair.until(lambda: (r := pair.client.report) and "UDP port 3784 of IPv4" in r.problem, "told")
            other.kill()
            await pair.until(lambda: (r := pair.client.report) and not r.problem, "gone")

    asyncio.run(told())
