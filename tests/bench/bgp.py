"""How fast paths reach a ToR through agent, relay and ExaBGP, and how fast BIRD itself takes them from another BIRD.

    make bench-bgp          or: python -m tests.bench.bgp [--paths N]

Prints seconds from the desired state's change until the ToR has every path. A measurement for people to read: no test
asserts these times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from ipaddress import IPv4Address, ip_network
from pathlib import Path

from bgp.path import Path as BgpPath
from tests.netns.lab.bird import Bird
from tests.netns.lab.stage import T1, Stage, agent, desired, states
from tests.netns.lab.tor import TorPeer

FIRST = int(IPv4Address("172.16.0.0"))


def prefixes(count: int) -> list[str]:
    return [f"{IPv4Address(FIRST + number)}/32" for number in range(count)]


def routes_at(bird: Bird) -> int:
    """How many paths the ToR has of its first peer."""
    words = bird.birdc("show route count protocol t1").split()
    return int(words[words.index("of") - 1]) if "of" in words else 0


async def until_there(bird: Bird, count: int) -> float:
    """Seconds until the ToR has `count` paths."""
    started = time.monotonic()
    while await asyncio.to_thread(routes_at, bird) != count:
        if time.monotonic() - started > 300:
            raise SystemExit(f"bench: error: {routes_at(bird)} of {count} paths after 300 s")
        await asyncio.sleep(0.01)
    return time.monotonic() - started


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def time_routerd(stage: Stage, count: int) -> None:
    async with agent(stage) as speaker:
        speaker.set(desired((T1, [])))
        await stage.until(lambda: states(speaker) == {"up"}, "session up")
        speaker.set(desired((T1, [BgpPath(ip_network(prefix)) for prefix in prefixes(count)])))
        added = await until_there(stage.bgp, count)
        speaker.set(desired((T1, [])))
        removed = await until_there(stage.bgp, 0)
        pid = stage.speaker_pid()
        print(f"routerd: {count} paths: {added:.2f} s, withdrawn: {removed:.2f} s, {resident_megabytes(pid):.0f} MB")


async def time_bird(stage: Stage, directory: Path, count: int) -> None:
    """Another BIRD in place of the speaker, which is told of the paths when the session is up."""
    directory.mkdir()
    static = "".join(f"route {prefix} blackhole;\n" for prefix in prefixes(count))
    peer = TorPeer("t1", "10.9.0.2", 65000, local="10.9.0.1")
    text = stage.bgp.config_text([peer], address="10.9.0.1", local_as=64512)
    text = text.replace("passive on;", "connect delay time 1;").replace("export none", "export all")
    text = text.replace("export where source = RTS_BGP", "export none")
    bird = Bird(stage.node, directory)
    bird.start(text)
    await stage.until(lambda: stage.bgp.established("t1"), "session up")
    started = time.monotonic()
    bird.configure(text + f"protocol static {{ ipv4;\n{static}}}\n")
    await until_there(stage.bgp, count)
    added = time.monotonic() - started
    bird.configure(text)
    print(f"BIRD: {count} paths: {added:.2f} s, withdrawn: {await until_there(stage.bgp, 0):.2f} s")


async def bench(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="routerd-bench-") as name:
        stage = Stage(Path(name), "bird")
        try:
            stage.build()
            stage.start_speaker()
            await time_routerd(stage, count)
        finally:
            stage.remove()
    with tempfile.TemporaryDirectory(prefix="routerd-bench-") as name:
        stage = Stage(Path(name), "bird")
        try:
            stage.build()
            await time_bird(stage, Path(name) / "sender", count)
        finally:
            stage.remove()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-bgp", description=__doc__, allow_abbrev=False)
    parser.add_argument("--paths", type=int, default=10_000)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: error: needs root: network namespaces", file=sys.stderr)
        return 1
    asyncio.run(bench(given.paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
