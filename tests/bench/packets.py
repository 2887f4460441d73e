"""Nanoseconds per packet of the eBPF programs: `make bench-packets`, or python -m tests.bench.packets.

Random flows, so that caches hold no more than they would; the time of a program that returns at once is subtracted, as
it was measured beside it. `from_pod` and `from_uplink` by BPF_PROG_TEST_RUN, one run a call, medians. `from_tunnel`
needs a tunnel key, which a test run cannot carry: it gets real VXLAN packets, and the kernel takes its time; those are
means of short batches, and the median of these. Rows go to `build/bench/packets.json`. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from statistics import median

from bpf import layout, syscall
from egress.policy import Desired, Gateway, Group, IPAddress, Served, Version
from tests.bench import crowd
from tests.bench.programs import DROP, TestRuns, empty_program, mean_time, statistics, test_runs
from tests.bench.report import Row, at_most, forget, machine, write
from tests.bpf.packets import Shape, build, vxlan
from tests.bpf.wishes import OWN, OWN6, THERE, to_world
from tests.bpf.world import (
    DEVICE_MAC,
    MACS,
    POD_MAC,
    SELF,
    TUNNEL_PORT,
    World,
    put_all,
)
from tests.models.tables import TCP, Flow, FlowKey, Packet, Port, PortKey, State, granules
from tests.netns.lab import netns

NEXT, REDIRECT = -1, 7
FLOWS, ROUNDS, BATCH = 2000, 31, 100
SIZES = {"pods": 1 << 17, "policies": 1 << 18}
BARS = {("from_tunnel", "out"): 300, ("from_uplink", "back"): 160, ("from_pod", "established"): 400}  # ns
EMPTY = 200  # what the empty program costs where these bars hold; where it costs more, they grow with it
SELF_NUMBER, GATEWAY_NUMBER = 1, 2  # the first of the other nodes is the gateway of the pods here


@dataclass(frozen=True, slots=True)
class Size:
    flows: int = FLOWS
    egress_ips: int = 1
    nodes: int = 1  # other nodes
    pods: int = 1  # with a policy of its own each


@dataclass(frozen=True, slots=True)
class Site:
    """Addresses of everything in a cluster of a size; flows are random, and the same in each run."""

    size: Size
    version: Version

    def address(self, four: str, six: str, number: int) -> IPAddress:
        return IPv4Address(four) + number if self.version == 4 else IPv6Address(six) + number

    def pod(self, number: int) -> IPAddress:
        return self.address("10.64.0.0", "2001:db8:64::", number + 1)

    def node(self, number: int) -> IPv4Address:
        return IPv4Address("10.201.0.0") + number

    @property
    def numbers(self) -> range:
        """Of the other nodes."""
        return range(GATEWAY_NUMBER, GATEWAY_NUMBER + self.size.nodes)

    @property
    def egress_ips(self) -> list[IPAddress]:
        return [self.address("192.0.2.100", "2001:db8:2::100", 0)] + [
            self.address("100.64.0.0", "2001:db8:100::", number) for number in range(1, self.size.egress_ips)
        ]

    @property
    def node_of_granule(self) -> list[int]:
        draw = random.Random(2)
        return [0] * 16 + [draw.choice(self.numbers) for _ in range(16, layout.GRANULES)]

    def desired(self) -> Desired:
        numbers = self.node_of_granule
        ports = [(number, granule * layout.GRANULE) for granule, number in enumerate(numbers) if number]
        table = granules({n: [(first, layout.GRANULE) for m, first in ports if m == n] for n in {*numbers} - {0}})
        group = Group(THERE, (OWN.egress_ip, OWN6.egress_ip), (Gateway("gateway", GATEWAY_NUMBER),), (OWN, OWN6))
        cluster = {ip_network((self.inside(number), 24 if self.version == 4 else 64)) for number in self.numbers}
        base = to_world(THERE)
        return replace(
            base, pods={}, policies={}, groups={THERE: group}, served=dict.fromkeys(self.egress_ips, Served(table)),
            nodes={SELF_NUMBER: SELF, **{number: self.node(number) for number in self.numbers}},
            cluster=frozenset({*cluster, *(ip_network(self.node(number)) for number in self.numbers)}),
        )  # fmt: skip

    def inside(self, number: int) -> IPAddress:
        """The pod network of a node."""
        return self.address("10.0.0.0", "2001:db8:10::", number << (8 if self.version == 4 else 64))

    # --- packets

    def _packets(self, ends: Callable[[random.Random], tuple[IPAddress, int, IPAddress, int]]) -> list[Packet]:
        draw = random.Random(1)
        found = {ends(draw): None for _ in range(self.size.flows)}
        while len(found) < self.size.flows:
            found[ends(draw)] = None
        return [
            Packet(source, destination, TCP, source_port, destination_port, flags="A", length=100)
            for source, source_port, destination, destination_port in found
        ]

    def _remote(self, draw: random.Random) -> tuple[IPAddress, int]:
        number = draw.getrandbits(17 if self.version == 4 else 64)
        return self.address("198.18.0.0", "2001:db8:18::", number), draw.choice((80, 443, 8080, 53))

    def from_pods(self) -> list[Packet]:
        def ends(draw: random.Random) -> tuple[IPAddress, int, IPAddress, int]:
            return self.pod(draw.randrange(self.size.pods)), draw.randint(32768, 60999), *self._remote(draw)

        return self._packets(ends)

    def opening(self) -> list[Packet]:
        return [replace(packet, flags="S", mss=1460) for packet in self.from_pods()]

    def in_cluster(self) -> list[Packet]:
        def ends(draw: random.Random) -> tuple[IPAddress, int, IPAddress, int]:
            destination = self.inside(draw.choice(self.numbers)) + draw.randint(1, 254)
            return self.pod(draw.randrange(self.size.pods)), draw.randint(32768, 60999), destination, 80

        return self._packets(ends)

    def back(self) -> list[Packet]:
        addresses = self.egress_ips

        def ends(draw: random.Random) -> tuple[IPAddress, int, IPAddress, int]:
            return *self._remote(draw), draw.choice(addresses), draw.randint(1024, 65535)

        return self._packets(ends)

    def out(self) -> list[Packet]:
        """The same flows from the inside."""
        return [
            replace(
                packet, source=packet.destination, destination=packet.source, source_port=packet.destination_port,
                destination_port=packet.source_port,
            )
            for packet in self.back()
        ]  # fmt: skip

    def tunnelled(self) -> list[bytes]:
        """Those of `out`, each from the node that has its port."""
        owner, shape = self.node_of_granule, Shape(destination_mac=MACS["tunnel"])
        frames = []
        for packet in self.out():
            outer = Packet(self.node(owner[packet.source_port >> layout.GRANULE_SHIFT]), SELF)
            frames.append(MACS["underlay"] + vxlan(build(packet, shape), THERE, TUNNEL_PORT, outer)[6:])
        return frames

    # --- contents of maps

    def established(self, ifindex: int) -> State:
        flows: dict[FlowKey, Flow] = {}
        ports: dict[PortKey, Port] = {}
        own = OWN if self.version == 4 else OWN6
        for number, packet in enumerate(self.from_pods(), start=1):
            key, port = packet.sent_by(ifindex), own.first + number % own.size
            flows[key] = Flow(THERE, layout.SEEN_PACKET, 0, own.egress_ip, port, GATEWAY_NUMBER, number)
            ports[PortKey(own.egress_ip, key.remote, port, key.remote_port, TCP)] = Port(
                key.pod, ifindex, key.pod_port, THERE, number, gateway=GATEWAY_NUMBER
            )
        return State(flows, ports)

    def put_pods(self, world: World) -> None:
        """Each with a policy set of its own: to the world through the group."""
        sets = range(1, self.size.pods + 1)
        put_all(world.maps["policies"], crowd.policies(self.version, THERE, sets))
        addresses = [self.pod(number) for number in range(self.size.pods)]
        put_all(world.maps["pods"], crowd.pods(world.ifindex["pod0"], addresses, sets, (POD_MAC, DEVICE_MAC)))


@dataclass
class Bench:
    version: Version
    rounds: int
    runs: TestRuns
    empty: int

    def row(self, site: Site, program: str, case: str, pairs: Sequence[tuple[float, float]]) -> Row:
        """`pairs`: (ns of the program, of the empty one) as measured one after the other."""
        size, ns, empty = site.size, median(a - b for a, b in pairs), median(b for _, b in pairs)
        row = {"program": program, "case": case, "flows": size.flows, "egress_ips": size.egress_ips}
        row |= {"nodes": size.nodes, "policies": size.pods, "ns": round(ns), "empty_ns": round(empty)}
        bar = BARS.get((program, case))
        said = at_most(round(ns), bar + max(0, round(empty) - EMPTY)) if bar else ""
        sizes = f"{size.egress_ips:>5} egress IPs {size.nodes:>5} nodes {size.pods:>7} pods and policies"
        print(f"{program:<12} {case:<12} {sizes} {ns:6.0f} ns (empty {empty:3.0f})   {said}", flush=True)
        return {**row, "family": f"IPv{self.version}", "rounds": len(pairs)}

    def test_runs(
        self, world: World, site: Site, program: str, case: str, packets: list[Packet], verdict: int,
        before: Callable[[], object] = lambda: None,
    ) -> Row:  # fmt: skip
        """`before` is called before each round."""
        device = "uplink" if program == "from_uplink" else "pod0"
        shape = Shape(destination_mac=MACS[device])
        frames, context = [build(packet, shape) for packet in packets], world.context(device)
        pairs = []
        for _ in range(self.rounds + 1):
            before()
            idle = self.runs.run(self.empty, frames, context, DROP)
            took = self.runs.run(world.program(program), frames, context, verdict)
            pairs.append((median(took), median(idle)))
        return self.row(site, program, case, pairs[1:])  # the first one is to warm up

    def source(self, pods: int) -> Iterator[Row]:
        site = Site(Size(pods=pods), self.version)
        with world_of(site) as world:
            wish = site.desired()
            world.fill(wish, site.established(world.ifindex["pod0"]))
            yield self.test_runs(world, site, "from_pod", "established", site.from_pods(), REDIRECT)
            yield self.test_runs(world, site, "from_pod", "first", site.opening(), REDIRECT, lambda: world.fill(wish))
            yield self.test_runs(world, site, "from_pod", "in_cluster", site.in_cluster(), NEXT)

    def gateway(self, egress_ips: int, nodes: int) -> Iterator[Row]:
        site = Site(Size(egress_ips=egress_ips, nodes=nodes), self.version)
        with world_of(site) as world:
            world.fill(site.desired())
            yield self.test_runs(world, site, "from_uplink", "back", site.back(), REDIRECT)
            yield self.real_packets(world, site)
            expected = {"reversed": (self.rounds + 1) * site.size.flows, "translated": (self.rounds + 1) * FLOWS}
            if world.counted() != expected:
                raise SystemExit(f"bench: error: counted {world.counted()}, not {expected}: another path was measured")

    def real_packets(self, world: World, site: Site) -> Row:
        frames, program = site.tunnelled(), world.program("from_tunnel")
        link = syscall.create_tcx_link(self.empty, world.ifindex["tunnel"], syscall.TCX_INGRESS)
        pairs = []
        try:
            with world.wire("underlay") as wire, statistics():
                for number in range(self.rounds + 1):
                    for first in range(0, len(frames), BATCH):
                        batch, took = frames[first : first + BATCH], []
                        for each in (program, self.empty):
                            syscall.update_link(link, each)
                            took.append(mean_time(each, batch, wire.put))
                        if number:
                            pairs.append((took[0], took[1]))
        finally:
            os.close(link)
        return self.row(site, "from_tunnel", "out", pairs)


@contextmanager
def world_of(site: Site) -> Iterator[World]:
    """A world with the site's pods, and routes to its nodes."""
    world = World(f"rbench{os.getpid()}", SIZES)
    try:
        netns.run(["ip", "route", "add", "10.201.0.0/16", "dev", "underlay"])
        site.put_pods(world)
        yield world
    finally:
        world.close()


def ratio(rows: Sequence[Row], program: str, case: str, column: str, bar: float) -> None:
    """From the smallest to the largest of a column, all else as small as it gets."""
    columns = ("egress_ips", "nodes", "policies")
    found = {
        row[column]: row["ns"]
        for row in rows
        if (row["program"], row["case"]) == (program, case) and all(row[c] == 1 for c in columns if c != column)
    }
    if len(found) < 2:
        return
    value = round(found[max(found)] / found[min(found)], 2)
    print(f"{program} {case}, {min(found):,} to {max(found):,} {column}: {value:.2f} x   {at_most(value, bar)}")


def measure(version: Version, rounds: int) -> list[Row]:
    rows: list[Row] = []
    with ExitStack() as stack:
        runs, empty = stack.enter_context(test_runs()), stack.enter_context(empty_program())
        bench = Bench(version, rounds, runs, empty)
        for pods in (1, 1000, 100_000):
            rows += bench.source(pods)
        for egress_ips, nodes in ((1, 1), (1000, 1), (1, 1000), (1000, 1000)):
            rows += bench.gateway(egress_ips, nodes)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-packets", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    given = parser.parse_args()
    forget("packets")
    print(f"make bench-packets: {machine()}, IPv{given.family}, {FLOWS:,} flows, medians of {given.rounds} rounds")
    rows = measure(given.family, given.rounds)
    for program, case in (("from_tunnel", "out"), ("from_uplink", "back")):
        ratio(rows, program, case, "egress_ips", 1.3)
        ratio(rows, program, case, "nodes", 1.1)
    ratio(rows, "from_pod", "established", "policies", 1.1)
    print(write("packets", rows))


if __name__ == "__main__":
    main()
