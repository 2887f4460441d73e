"""How fast paths reach a ToR: routerd's agent, relay and ExaBGP, beside stock ExaBGP, BIRD and FRR.

    make bench-bgp          or: python -m tests.bench.bgp [--speakers routerd,bird,…] [--cases 10000x1,…]

One BIRD for all receives; each speaker in turn has its session up, is given the paths, then has them taken away. A row
is `speaker, peers, paths, family, announce_s, withdraw_s, cpu_s, rss_mib`: seconds until the ToR has every path, and
none, CPU time of both and resident memory of the speaker's processes (the agent's are not counted). Sessions have a
hold time of 9 s; one that falls ends the bench. Bars are printed beside the figures and judge nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from bgp import conf
from bgp.path import Desired, IPNetwork, SpeakerPeer
from bgp.path import Path as BgpPath
from bgp.service import running_speaker, start_speaker, stop_speaker
from bgp.speaker import Speaker
from tests.bench import report
from tests.netns.lab.bird import Bird, config_text
from tests.netns.lab.frr import Frr
from tests.netns.lab.frr import config_text as frr_config_text
from tests.netns.lab.netns import Namespace, entered, run, stop
from tests.netns.lab.tor import TorPeer
from tests.waiting import wait

NODE_AS, TOR_AS, HOLD = 64512, 65000, 9
FIRST = {4: int(IPv4Address("172.16.0.0")), 6: int(IPv6Address("2001:db8:1::"))}
LONGEST = 600.0  # seconds for one step
PER_COMMAND = 1000  # prefixes that stock ExaBGP is told in one line


@dataclass(frozen=True, slots=True)
class Case:
    """So many paths to each of so many peers of one ToR."""

    paths: int
    peers: int
    family: int = 4

    def __str__(self) -> str:
        return f"{self.paths} IPv{self.family} paths, {self.peers} peer{'s' if self.peers > 1 else ''}"

    def prefixes(self) -> list[IPNetwork]:
        return [
            ip_network((FIRST[self.family] + number, 32 if self.family == 4 else 128)) for number in range(self.paths)
        ]


CASES = (Case(10_000, 1), Case(100_000, 1), Case(10_000, 1, 6), Case(100_000, 1, 6), Case(10_000, 32))


class Site:
    """A node and a ToR on one wire, an address of each for every session, and the BIRD that receives."""

    def __init__(self, directory: Path, case: Case) -> None:
        self.directory, self.case = directory, case
        tag = f"bgpb{os.getpid()}"
        self.node, self.tor = Namespace(f"{tag}-node", "node"), Namespace(f"{tag}-tor", "tor")
        (directory / "tor").mkdir()
        self.receiver = Bird(self.tor, directory / "tor")

    def address(self, number: int, last: int) -> str:
        return f"10.9.{number}.{last}" if self.case.family == 4 else f"fd09:{number}::{last}"

    def build(self) -> None:
        self.node.create()
        self.tor.create()
        run(["ip", "link", "add", "eth0", "netns", self.node.name, "type", "veth", "peer", "eth0",
             "netns", self.tor.name])  # fmt: skip
        length, numbers = 24 if self.case.family == 4 else 64, range(self.case.peers)
        for namespace, last in ((self.node, 1), (self.tor, 2)):
            namespace.ip(*(f"addr add {self.address(n, last)}/{length} dev eth0" for n in numbers), "link set eth0 up")
        peers = [TorPeer(f"t{n}", self.address(n, 1), NODE_AS, local=self.address(n, 2)) for n in numbers]
        text = config_text(peers, address="10.9.0.2", local_as=TOR_AS, hold_time=HOLD)
        text = text.replace("export where source = RTS_BGP", "export none")  # the kernel's time is not a speaker's
        self.receiver.start(text.replace("log stderr all;", "log stderr all;\ndebug protocols { events };"))

    def remove(self) -> None:
        for namespace in (self.node, self.tor):
            with contextlib.suppress(Exception):
                stop(namespace.pids())
            run(["ip", "netns", "del", namespace.name], check=False)

    def senders(self) -> list[TorPeer]:
        """Sessions as another daemon on the node has them."""
        return [TorPeer(f"t{n}", self.address(n, 2), TOR_AS, local=self.address(n, 1)) for n in range(self.case.peers)]

    def peers(self) -> list[SpeakerPeer]:
        """Sessions as routerd has them."""
        pairs = [(ip_address(self.address(n, 2)), ip_address(self.address(n, 1))) for n in range(self.case.peers)]
        return [SpeakerPeer(tor, own, NODE_AS, TOR_AS, IPv4Address("10.9.0.1"), hold_time=HOLD) for tor, own in pairs]

    def are_up(self) -> bool:
        return set(self.receiver.sessions().values()) == {"Established"}

    def have_fallen(self) -> int:
        return sum(self.receiver.established(peer.name) - 1 for peer in self.senders())

    def routes(self) -> int:
        """Paths in the ToR's table of the case's family."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.receiver.socket))
            control.sendall(f"show route count table master{self.case.family}\n".encode())
            with control.makefile() as lines:
                next(lines)  # the greeting
                answer = next(line for line in lines if " of " in line)
        return int(answer.partition(" of ")[0].rpartition("-")[2])  # "1007-20 of 20 routes for …"


async def until(site: Site, count: int) -> None:
    """Waits until the ToR has `count` paths. It counts them one by one: it is left alone for longer than that takes."""
    begin = time.monotonic()
    while True:
        asked = time.monotonic()
        if site.routes() == count:
            return
        if asked - begin > LONGEST:
            raise SystemExit(f"bench: error: {site.routes()} of {count} paths after {LONGEST:g} s")
        await asyncio.sleep(max(0.005, 3 * (time.monotonic() - asked)))


@dataclass(frozen=True, slots=True)
class Sender:
    """A speaker whose sessions are up. `pids` are its processes'."""

    announce: Callable[[], Awaitable[None]]
    withdraw: Callable[[], Awaitable[None]]
    pids: Callable[[], Sequence[int]]


@asynccontextmanager
async def routerd(site: Site) -> AsyncIterator[Sender]:
    run_dir = site.directory / "run"
    with entered(site.node.name):
        start_speaker(run_dir)
    speaker, peers = Speaker(run_dir / "relay.sock"), {peer.key: peer for peer in site.peers()}
    task = asyncio.create_task(speaker.run())

    async def give(paths: dict[IPNetwork, BgpPath]) -> None:
        speaker.set(Desired(peers, dict.fromkeys(peers, paths)))

    try:
        await give({})
        paths = {prefix: BgpPath(prefix) for prefix in site.case.prefixes()}
        yield Sender(lambda: give(paths), lambda: give({}), lambda: with_children(run_dir))
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        stop_speaker(run_dir)


def with_children(run_dir: Path) -> list[int]:
    found = running_speaker(run_dir)
    assert found is not None and found.pid is not None
    return [found.pid, *map(int, Path(f"/proc/{found.pid}/task/{found.pid}/children").read_text().split())]


@asynccontextmanager
async def exabgp(site: Site) -> AsyncIterator[Sender]:
    """Stock ExaBGP, its helper a `cat` of what we write."""
    commands = site.directory / "commands"
    os.mkfifo(commands)
    file = site.directory / "stock.conf"
    process = f'process relay {{\n    run "/bin/cat" "{commands}";\n    encoder json;\n}}\n'
    file.write_text(process + conf.peers_text(site.peers()))
    settings = {
        "exabgp_log_level": "CRITICAL", "exabgp_api_ack": "false", "exabgp_api_cli": "false", "exabgp_tcp_bind": "",
        "exabgp_daemon_user": "root", "exabgp_daemon_drop": "false",
    }  # fmt: skip
    with (site.directory / "stock.log").open("wb") as log, entered(site.node.name):
        child = subprocess.Popen(
            [Path(sys.executable).with_name("exabgp"), "server", file],
            env={**os.environ, **settings}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with os.fdopen(os.open(commands, os.O_RDWR), "w") as pipe:  # waits for no reader
            prefixes = list(map(str, site.case.prefixes()))

            def tell(words: str) -> None:
                for at in range(0, len(prefixes), PER_COMMAND):
                    pipe.write(f"{words} nlri {' '.join(prefixes[at : at + PER_COMMAND])}\n")
                pipe.flush()

            yield Sender(
                lambda: asyncio.to_thread(tell, "announce attributes next-hop self"),
                lambda: asyncio.to_thread(tell, "withdraw attributes"),
                lambda: [child.pid],
            )
    finally:
        child.kill()
        child.wait()


@asynccontextmanager
async def bird(site: Site) -> AsyncIterator[Sender]:
    (site.directory / "sender").mkdir()
    text = config_text(site.senders(), address="10.9.0.1", local_as=NODE_AS, hold_time=HOLD)
    text = text.replace("passive on;", "connect delay time 1;").replace("export none", "export all")
    text = text.replace("export where source = RTS_BGP", "export none")
    routes = "".join(f"route {prefix} blackhole;\n" for prefix in site.case.prefixes())
    given = f"{text}protocol static {{ ipv{site.case.family};\n{routes}}}\n"
    daemon = Bird(site.node, site.directory / "sender")
    daemon.start(text)
    pid = int((site.directory / "sender" / "bird.pid").read_text())
    yield Sender(
        lambda: asyncio.to_thread(daemon.configure, given),
        lambda: asyncio.to_thread(daemon.configure, text),
        lambda: [pid],
    )


@asynccontextmanager
async def frr(site: Site) -> AsyncIterator[Sender]:
    """The paths are in the node's kernel, from where bgpd takes them over zebra."""
    (site.directory / "sender").mkdir()
    site.node.ip(*(f"route add blackhole {prefix}" for prefix in site.case.prefixes()))
    text = frr_config_text(site.senders(), address="10.9.0.1", local_as=NODE_AS, hold_time=HOLD)
    daemon = Frr(site.node, site.directory / "sender")
    daemon.start(
        text.replace(" passive\n", " timers connect 1\n").replace("route-map REJECT out", "route-map ACCEPT out")
    )
    family = f"address-family ipv{site.case.family} unicast"

    def say(line: str) -> None:
        daemon.vty("configure terminal", f"router bgp {NODE_AS}", family, line, "end")

    pids = [int((site.directory / "sender" / "frr" / f"{name}.pid").read_text()) for name in ("zebra", "bgpd")]
    yield Sender(
        lambda: asyncio.to_thread(say, "redistribute kernel"),
        lambda: asyncio.to_thread(say, "no redistribute kernel"),
        lambda: pids,
    )


SPEAKERS = {"bird": bird, "frr": frr, "routerd": routerd, "exabgp": exabgp}


def cpu_seconds(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Sequence[int]) -> float:
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.partition("VmRSS:")[2].split()[0]) for text in texts) / 1024


@contextmanager
def site_of(case: Case) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="routerd-bench-") as name:
        site = Site(Path(name), case)
        try:
            site.build()
            yield site
        finally:
            site.remove()


async def measure(name: str, case: Case) -> report.Row:
    with site_of(case) as site:
        async with SPEAKERS[name](site) as sender:
            await asyncio.to_thread(wait, site.are_up, "sessions up", timeout=60)
            used, begin = cpu_seconds(sender.pids()), time.monotonic()
            await sender.announce()
            await until(site, case.paths * case.peers)
            there, memory = time.monotonic(), resident_mib(sender.pids())
            await sender.withdraw()
            await until(site, 0)
            gone = time.monotonic()
            if site.have_fallen():
                raise SystemExit(f"bench: error: {name}: {case}: {site.have_fallen()} sessions fell")
            return {
                "speaker": name, "peers": case.peers, "paths": case.paths, "family": case.family,
                "announce_s": round(there - begin, 3), "withdraw_s": round(gone - there, 3),
                "cpu_s": round(cpu_seconds(sender.pids()) - used, 2), "rss_mib": round(memory, 1),
            }  # fmt: skip


def verdicts(case: Case, rows: dict[str, report.Row]) -> Iterator[str]:
    """What of the bars can be said by the speakers that ran."""
    if "routerd" not in rows:
        return
    ours = rows["routerd"]["announce_s"]
    beside = {name: ours / rows[name]["announce_s"] for name in ("bird", "frr") if name in rows}
    if case.peers > 1:
        yield f"seconds: {report.at_most(ours, 12.0)}, aim 3; MiB: {report.at_most(rows['routerd']['rss_mib'], 120.0)}"
    if "bird" in beside:
        bar = 2.5 if case.paths <= 10_000 else 3.0
        judged = case.peers == 1
        yield f"{beside['bird']:.2f} x BIRD's time{': ' + report.at_most(beside['bird'], bar) if judged else ''}"
    if "frr" in beside:
        judged = case.peers == 1 and case.paths <= 10_000
        yield f"{beside['frr']:.2f} x FRR's time{': ' + report.at_most(beside['frr'], 1.0) if judged else ''}"


async def bench(speakers: Sequence[str], cases: Sequence[Case]) -> None:
    report.forget("bgp")
    print(report.machine())
    rows = []
    for case in cases:
        print(f"\n{case}")
        found = {}
        for name in speakers:
            row = found[name] = await measure(name, case)
            rows.append(row)
            print(
                f"  {name:<8} announced {row['announce_s']:7.2f} s   withdrawn {row['withdraw_s']:7.2f} s   "
                f"CPU {row['cpu_s']:6.2f} s   {row['rss_mib']:5.0f} MiB",
                flush=True,
            )
            report.write("bgp", rows)
        for line in verdicts(case, found):
            print(f"  {line}")


def case_of(text: str) -> Case:
    """`10000x32`, `10000x1v6`."""
    paths, _, rest = text.partition("x")
    peers, _, family = rest.partition("v")
    return Case(int(paths), int(peers), int(family or 4))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-bgp", description=__doc__, allow_abbrev=False)
    parser.add_argument("--speakers", default=",".join(SPEAKERS), help="some of bird, frr, routerd, exabgp")
    parser.add_argument("--cases", type=lambda text: [case_of(each) for each in text.split(",")], default=CASES)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: error: needs root: network namespaces", file=sys.stderr)
        return 1
    asyncio.run(bench(given.speakers.split(","), given.cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
