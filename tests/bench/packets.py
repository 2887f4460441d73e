"""Nanoseconds per packet of `from_pod`, by BPF_PROG_TEST_RUN: python -m tests.bench.packets

One repeated packet, so caches are warm: this compares cases with each other and releases with releases, not with a
network. "miss" looks up policies and leaves the packet alone; "hit" finds the flow and encapsulates.
"""

from __future__ import annotations

import os
import statistics
from ipaddress import IPv4Address, IPv4Network

from egress.policy import Policy
from tests.bpf.packets import build
from tests.bpf.wishes import THERE, desired
from tests.bpf.world import POD, REMOTE, World
from tests.models.tables import TCP, UDP, Flow, FlowKey, Packet, State

REPEAT, ROUNDS = 200_000, 5
PREFIXES = (1, 10_000)
OUT = Packet(POD, REMOTE, UDP, 40000, 53)
FLOW = FlowKey(POD, REMOTE, 40000, 53, UDP)


def prefixes(count: int) -> tuple[IPv4Network, ...]:
    """`count` prefixes of 24 bits; the first holds REMOTE."""
    first = IPv4Network(f"{REMOTE}/24", strict=False)
    others = (IPv4Network((0x14000000 + (n << 8), 24)) for n in range(1, count))
    return (first, *others)


def measure(world: World, packet: Packet) -> tuple[int, int]:
    """(median, best) ns per packet of several rounds."""
    runs = [world.time("from_pod", "pod0", build(packet), REPEAT) for _ in range(ROUNDS)]
    return round(statistics.median(runs)), min(runs)


def main() -> None:
    world = World(f"rbench{os.getpid()}")
    try:
        for count in PREFIXES:
            wish = desired(Policy("many", THERE, prefixes(count)))
            cases = {
                "miss": (uncovered(OUT), State()),
                "hit": (OUT, State({FLOW: Flow(THERE, 0, 1, 1)})),
                "in the cluster": (Packet(POD, IPv4Address("10.244.3.3"), TCP, 40000, 80, flags="A"), State()),
            }
            for name, (packet, state) in cases.items():
                world.fill(wish, state)
                median, best = measure(world, packet)
                print(f"{count:>6} prefixes  {name:<15} {median:>5} ns  (best of {ROUNDS}: {best})")
    finally:
        world.close()


def uncovered(packet: Packet) -> Packet:
    """The same to an address that no prefix covers."""
    return Packet(packet.source, IPv4Address("203.0.113.7"), UDP, packet.source_port, packet.destination_port)


if __name__ == "__main__":
    main()
