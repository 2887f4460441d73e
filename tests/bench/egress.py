"""Throughput through an egress gateway, beside plain routing and nftables: `make bench-egress`, or
python -m tests.bench.egress.

    pod ── worker ── gateway ── ToR ── remote          (one veth each, a network namespace each)

One such line for each mode, all at once, and modes take turns within each round:

    plain          routed, no translation                 plain_vxlan    the same, VXLAN between worker and gateway
    nft            the gateway's SNAT by an nftables map   nft_vxlan      the same behind VXLAN, which is not tracked
    nft_flowtable  nft, and what is established goes by    routerd_vxlan  our datapath behind VXLAN
                   a flow table, where the kernel has it   routerd_direct and without a tunnel
    routerd_forward  routerd_vxlan, first packets by the forward hook; measured where it is named
    routerd_device   routerd_vxlan, tunnel packets by the tunnel device; measured where it is named

Both families in one run. Packets take the same hops in all modes. Pods have an MTU of 1500, behind VXLAN 1450. The
worker of the nft modes chooses nothing: all that it forwards goes to the gateway. With `--netfilter` worker and gateway
have rules as kube-proxy makes them, in all modes. Rows go to `build/bench/egress.json`. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import product
from pathlib import Path
from statistics import median

from bpf import layout, loader
from egress.netdev import Datapath
from egress.policy import VERSIONS, Block, Desired, Gateway, Group, Policy, Served, Version
from tests.bench import crowd
from tests.bench.report import Row, at_least, compiled, forget, machine, ratios, write
from tests.bpf.world import put_all
from tests.models.tables import granules
from tests.netns.lab import netns
from tests.netns.lab.datapath import neighbour, reconcile
from tests.netns.lab.mounts import own_mounts
from tests.netns.lab.netns import Namespace
from tests.netns.lab.wiring import pod_lines, pod_lines6, pod_sysctls, six
from tests.waiting import wait

MODES = ("plain", "plain_vxlan", "nft", "nft_flowtable", "nft_vxlan", "routerd_vxlan", "routerd_direct")
PARTS = ("pod", "worker", "gateway", "tor", "remote")
WORKER, GATEWAY, NODES = "10.0.0.21", "10.0.0.11", "10.0.0.0/24"
UPLINK, TOR, REMOTE = "10.1.0.2", "10.1.0.1", "203.0.113.10"
OVER_WORKER, OVER_GATEWAY = "10.99.0.21", "10.99.0.11"  # ends of the VXLAN of the modes without us
POD, POD_NETWORK, EGRESS_IP = "10.244.3.10", "10.244.0.0/16", "192.0.2.100"
POD_DEVICE, GROUP, PORTS = "pod-bench", 7, 1024  # the ports that a node is given first
OTHERS = "10.128.0.0"  # pods that send nothing
MOST_PODS = 4000  # of one node; further policies are there without one
FIRST_SET = 1000
MTU, VXLAN_MTU = 1500, 1450
TIME_WAIT = 10  # seconds that nftables keeps a port after a FIN from the pod; so do we

LOADS = {"tcp_gbps": "stream", "rr_per_s": "rr", "conn_per_s": "conn", "udp64_kpps": "udp"}
UNITS = {"tcp_gbps": 8e-9, "rr_per_s": 1.0, "conn_per_s": 1.0, "udp64_kpps": 1e-3}
BARS = {
    ("routerd_vxlan", "nft_vxlan"): {"tcp_gbps": 1.1, "rr_per_s": 1.15, "conn_per_s": 1.2, "udp64_kpps": 1.2},
    ("routerd_forward", "routerd_vxlan"): {"tcp_gbps": 0.98, "rr_per_s": 0.98, "conn_per_s": 0.85, "udp64_kpps": 0.98},
    ("routerd_vxlan", "routerd_device"): {"tcp_gbps": 1.0, "rr_per_s": 1.0, "conn_per_s": 1.0, "udp64_kpps": 1.0},
    ("routerd_vxlan", "plain_vxlan"): {"tcp_gbps": 0.97, "rr_per_s": 0.98, "conn_per_s": 0.98, "udp64_kpps": 0.98},
    ("routerd_direct", "plain"): {"tcp_gbps": 0.93, "rr_per_s": 0.95, "conn_per_s": 0.92},
    ("routerd_direct", "nft"): {"conn_per_s": 1.1},
}  # fmt: skip
SENT = frozenset(reason.name for reason in layout.read_reasons().values() if not reason.is_drop)
NETFILTER = """
table inet filter {
    chain input { type filter hook input priority filter; ct state established,related accept; }
    chain forward { type filter hook forward priority filter; ct state invalid drop; ct state established accept; }
}
table inet services {
    chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.96.0.0/16 jump service; }
    chain output { type nat hook output priority -100; ip daddr 10.96.0.0/16 jump service; }
    chain postrouting { type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; }
    chain service { tcp dport 443 dnat ip to 10.0.0.1:6443; }
}
"""
UNTRACKED = """
table inet tunnel {
    chain came { type filter hook prerouting priority raw; udp dport 4789 notrack; }
    chain goes { type filter hook output priority raw; udp dport 4789 notrack; }
}
"""
COMPARED = (*BARS, ("nft_vxlan", "plain_vxlan"), ("nft", "plain"), ("nft_flowtable", "plain"))
FLOWTABLE = """
table inet fast {
    flowtable flows { hook ingress priority filter; devices = { eth0, up0 }; }
    chain forward { type filter hook forward priority filter; meta l4proto { tcp, udp } flow add @flows; }
}
"""


@dataclass
class Site:
    """One mode with so many policies, in namespaces of its own."""

    mode: str
    policies: int  # 0 = the mode knows none
    version: Version
    prefix: str
    netfilter: bool = False
    parts: dict[str, Namespace] = field(default_factory=dict)
    datapaths: dict[str, Datapath] = field(default_factory=dict)

    @property
    def tunnelled(self) -> bool:
        return self.mode.endswith(("_vxlan", "_forward", "_device"))

    @property
    def is_ours(self) -> bool:
        return self.mode.startswith("routerd")

    @property
    def source(self) -> str:
        """What the remote must see."""
        return self.text(POD if self.mode.startswith("plain") else EGRESS_IP)

    def text(self, address: str) -> str:
        return address if self.version == 4 else six(address)

    def create(self) -> None:
        """Namespaces alone."""
        for part in PARTS:
            self.parts[part] = Namespace(f"{self.prefix}-{part}", f"{part} of {self.mode}")
            self.parts[part].create()
            for name in ("all", "default"):
                self.parts[part].sysctl({f"net.ipv4.conf.{name}.rp_filter": 0, f"net.ipv6.conf.{name}.accept_dad": 0})

    def remove(self) -> None:
        for datapath in self.datapaths.values():
            datapath.close()
        for part in self.parts.values():
            netns.stop(part.pids(), grace=0.2)
            netns.run(["ip", "netns", "del", part.name], check=False)

    # --- wiring

    def build(self, pins: Path) -> None:
        for part in ("worker", "gateway", "tor"):
            self.parts[part].sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        self._link("worker", "eth0", f"{WORKER}/24", "gateway", "eth0", f"{GATEWAY}/24")
        self._link("gateway", "up0", f"{UPLINK}/24", "tor", "down0", f"{TOR}/24")
        self._link("tor", "world0", "203.0.113.1/24", "remote", "eth0", f"{REMOTE}/24")
        self._wire_pod()
        hop = OVER_GATEWAY if self.tunnelled and not self.is_ours else GATEWAY
        if self.tunnelled and not self.is_ours:
            self._vxlan("worker", WORKER, GATEWAY, OVER_WORKER)
            self._vxlan("gateway", GATEWAY, WORKER, OVER_GATEWAY)
        self._route("worker", "default", hop)
        self._route("gateway", "default", TOR)
        self._route("remote", "default", "203.0.113.1")
        self._route("tor", EGRESS_IP if self.source == self.text(EGRESS_IP) else POD, UPLINK)
        if self.is_ours:
            self._routerd(pins)
        else:
            self._route("gateway", POD, OVER_WORKER if self.tunnelled else WORKER)
        if self.mode.startswith("nft"):
            self._nft()
        if self.mode == "nft_flowtable":
            self.parts["gateway"].nft(FLOWTABLE)
        self._filter()

    def _link(self, one: str, device: str, address: str, other: str, far: str, far_address: str) -> None:
        self.parts[one].ip(f"link add {device} type veth peer name {far} netns {self.parts[other].name}")
        for part, name, given in ((one, device, address), (other, far, far_address)):
            self.parts[part].ip(
                f"addr add {given} dev {name}", f"addr add {six(given)} dev {name} nodad", f"link set {name} up"
            )

    def _wire_pod(self) -> None:
        worker, pod, cidr = self.parts["worker"], self.parts["pod"], "10.244.3.0/24"
        worker.ip(f"link add {POD_DEVICE} type veth peer name eth0 netns {pod.name}")
        worker.sysctl(pod_sysctls("routed", POD_DEVICE))
        mtu = VXLAN_MTU if self.tunnelled else MTU
        for outside, inside in (
            pod_lines("routed", POD_DEVICE, POD, cidr, mtu),
            pod_lines6("routed", POD_DEVICE, POD, cidr),
        ):
            worker.ip(*outside)
            pod.ip(*inside)

    def _vxlan(self, part: str, local: str, remote: str, address: str) -> None:
        """As ours: over IPv4, no checksum in the outer UDP header."""
        self.parts[part].ip(
            f"link add vx0 mtu {VXLAN_MTU} type vxlan id 42 local {local} remote {remote} dstport 4789"
            " noudpcsum nolearning",
            f"addr add {address}/24 dev vx0", f"addr add {six(address + '/24')} dev vx0 nodad", "link set vx0 up",
        )  # fmt: skip

    def _route(self, part: str, destination: str, hop: str) -> None:
        both = ((destination, hop), ("::/0" if destination == "default" else six(destination), six(hop)))
        self.parts[part].ip(*(f"route add {network} via {via}" for network, via in both))

    # --- translation

    def _nft(self) -> None:
        family, kind = ("ip", "ipv4_addr") if self.version == 4 else ("ip6", "ipv6_addr")
        sources = [POD, *(str(IPv4Address(OTHERS) + number) for number in range(1, self.policies))]
        elements = ", ".join(f"{self.text(source)} : {self.text(EGRESS_IP)}" for source in sources)
        gateway = self.parts["gateway"]
        gateway.run(
            ["nft", "-f", "-"], timeout=120,
            stdin=f"""
            table {family} egress {{
                map addresses {{ type {kind} : {kind}; elements = {{ {elements} }} }}
                chain out {{
                    type nat hook postrouting priority srcnat
                    oifname "up0" snat to {family} saddr map @addresses
                }}
            }}
            """,
        )  # fmt: skip
        gateway.sysctl({"net.netfilter.nf_conntrack_tcp_timeout_time_wait": TIME_WAIT})

    def _filter(self) -> None:
        """What else netfilter has to do. Where something is tracked the tunnel is not; ours has its own rule."""
        for part in ("worker", "gateway"):
            tracks = self.netfilter or (part == "gateway" and self.mode == "nft_vxlan")
            rules = NETFILTER * self.netfilter + UNTRACKED * (tracks and self.mode in ("plain_vxlan", "nft_vxlan"))
            if rules:
                self.parts[part].nft(rules)

    def _desired(self, part: str) -> Desired:
        numbers = {"gateway": 1, "worker": 2}
        addresses = {"gateway": IPv4Address(GATEWAY), "worker": IPv4Address(WORKER)}
        egress_ips = tuple(ip_address(text) for text in (EGRESS_IP, six(EGRESS_IP)))
        blocks = tuple(Block(address, 32768, PORTS) for address in egress_ips if part == "worker")
        served = Served(granules({numbers["worker"]: [(32768, PORTS)]}))
        networks = [ip_network(text) for each in (NODES, POD_NETWORK) for text in (each, six(each))]
        pods = {ip_address(text): ("world",) for text in (POD, six(POD)) if part == "worker"}
        return Desired(
            node=part, node_address=addresses[part], pods=pods,
            policies={"world": Policy("world", GROUP, tuple(crowd.WORLD.values()))},
            groups={GROUP: Group(GROUP, egress_ips, (Gateway("gateway", numbers["gateway"]),), blocks)},
            served=dict.fromkeys(egress_ips, served) if part == "gateway" else {},
            nodes={number: addresses[name] for name, number in numbers.items()},
            icmp_sources=(addresses[part], ip_address(six(str(addresses[part])))),
            cluster=frozenset(networks), pod_cidrs=frozenset(networks[2:]) if part == "worker" else frozenset(),
            network_policy="forward" if self.mode == "routerd_forward" else "direct",
            transport="vxlan" if self.tunnelled else "direct",
            tunnel_packets="device" if self.mode == "routerd_device" else "auto",
            neighbours={numbers[name]: neighbour(self.parts[name], addresses[name]) for name in numbers},
        )  # fmt: skip

    def _routerd(self, pins: Path) -> None:
        for part in ("gateway", "worker"):
            (pins / self.prefix).mkdir(exist_ok=True)
            self.datapaths[part] = Datapath(pins / self.prefix / part)
            reconcile(self.parts[part], self.datapaths[part], self._desired(part))
        with netns.entered(self.parts["worker"].name):
            wait(lambda: not self.datapaths["worker"].try_port_sets().total, "the port sets are tried", interval=0.01)
        sets = range(FIRST_SET + 1, FIRST_SET + self.policies)
        others = sets[:MOST_PODS]
        addresses = [ip_address(self.text(str(IPv4Address(OTHERS) + number))) for number in range(len(others))]
        with netns.entered(self.parts["worker"].name):
            ifindex = socket.if_nametoindex(POD_DEVICE)
        maps = loader.PinnedMaps(pins / self.prefix / "worker")
        put_all(maps["policies"], crowd.policies(self.version, GROUP, sets))
        put_all(maps["pods"], crowd.pods(ifindex, addresses, others, (bytes(6), bytes(6))))
        maps.close()

    # --- traffic

    def serve(self, load: Path, log: Path) -> None:
        self.parts["remote"].popen([str(load), "serve"], log)
        wait(lambda: "ready" in log.read_text(), f"server of {self.mode} listens")
        seen = self.parts["pod"].run([str(load), "who", self.text(REMOTE)]).strip()
        if seen.removeprefix("::ffff:") != self.source:
            raise SystemExit(f"bench: error: {self.mode}: the remote sees {seen}, not {self.source}")

    def figure(self, load: Path, metric: str, seconds: float) -> float:
        words = [str(load), LOADS[metric], self.text(REMOTE), f"{seconds:g}"]
        return float(self.parts["pod"].run(words, timeout=60 + seconds)) * UNITS[metric]

    def collect(self) -> None:
        """What the agent does every few seconds."""
        for datapath in self.datapaths.values():
            datapath.collect()

    def dropped(self) -> dict[str, int]:
        """Reasons by which one of our nodes dropped something, with packets."""
        found: dict[str, int] = {}
        for part, datapath in self.datapaths.items():
            with netns.entered(self.parts[part].name):
                counters = datapath.counters()
            found |= {
                f"{part} {name}": packets for name, (packets, _) in counters.items() if packets and name not in SENT
            }
        return found


@contextmanager
def sites(
    policies: Sequence[int], versions: Sequence[Version], modes: Sequence[str], load: Path, netfilter: Sequence[bool]
) -> Iterator[list[Site]]:
    """All sites, with their servers. What does not know policies is there once."""
    wanted = [(mode, n) for mode in modes for n in ([0] if mode.startswith("plain") else policies)]
    every = enumerate(product(versions, netfilter, wanted))
    made = [Site(mode, n, version, f"rbe{os.getpid()}-{i}", each) for i, (version, each, (mode, n)) in every]
    with ExitStack() as stack:
        pins, logs = (Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routerd-bench-"))) for _ in range(2))
        for site in made:
            stack.callback(site.remove)
            site.create()
        stack.enter_context(own_mounts())
        netns.run(["mount", "-t", "bpf", "bpf", str(pins)])
        for site in made:
            site.build(pins)
            site.serve(load, logs / f"{site.prefix}.log")
        yield made


def one_round(made: Sequence[Site], number: int, load: Path, seconds: float) -> list[Row]:
    """Every load on every site; the sites take turns within a load, and another one begins each time."""
    rows: list[Row] = [
        {"mode": site.mode, "policies": site.policies, "round": number, "family": f"IPv{site.version}"}
        | {"netfilter": site.netfilter}
        for site in made
    ]
    for turn, metric in enumerate(LOADS):
        first = (number + turn) % len(made)
        for place in (*range(first, len(made)), *range(first)):
            rows[place][metric] = float(f"{made[place].figure(load, metric, seconds):.5g}")
    for site in made:
        site.collect()
    return rows


def say_medians(rows: Sequence[Row]) -> None:
    """Of one family."""
    print(f"{rows[0]['family']:<15} {'policies':>8}" + "".join(f"{metric:>13}" for metric in LOADS))
    for mode, policies in dict.fromkeys((row["mode"], row["policies"]) for row in rows):
        of_it = [row for row in rows if (row["mode"], row["policies"]) == (mode, policies)]
        figures = "".join(f"{median(row[metric] for row in of_it):13,.1f}" for metric in LOADS)
        print(f"{mode:<15} {policies or '':>8}{figures}")


def say_ratios(rows: Sequence[Row]) -> None:
    """Medians of the ratios of each round, with quartiles; of one family."""
    there = {row["mode"] for row in rows}
    for mode, other in COMPARED:
        if {mode, other} <= there:
            for policies in sorted({row["policies"] for row in rows if row["mode"] == mode}):
                for metric in LOADS:
                    value, low, high = ratios(rows, metric, mode, other, policies)
                    bar = BARS.get((mode, other), {}).get(metric)
                    said = at_least(round(value, 3), bar) if bar else ""
                    name = f"{rows[0]['family']} {mode}/{other}, {policies:,} policies: {metric:<10}"
                    print(f"{name} {value:.3f} x ({low:.3f} to {high:.3f})   {said}")


def has_flowtables() -> bool:
    """Whether this kernel does."""
    words = ["unshare", "--net", "nft", "-f", "-"]
    rules = FLOWTABLE.replace("eth0, up0", "lo")
    return not subprocess.run(words, input=rules, text=True, capture_output=True, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-egress", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    parser.add_argument("--policies", default="1,100000", help="numbers of policies, with commas")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--family", type=int, choices=VERSIONS, action="append", help="one of both")
    parser.add_argument("--netfilter", action="store_true", help="rules as kube-proxy's on worker and gateway")
    given = parser.parse_args()
    forget("egress")
    print(f"make bench-egress: {machine()}, {given.rounds} rounds of {given.seconds:g} s a load")
    print(
        "worker and gateway have rules of netfilter" if given.netfilter else "netfilter has no rules but the modes' own"
    )
    policies, rows = [int(word) for word in given.policies.split(",")], list[Row]()
    modes, versions = given.modes.split(","), given.family or VERSIONS
    if "nft_flowtable" in modes and not has_flowtables():
        print("nft_flowtable is left out: this kernel has no flow tables")
        modes.remove("nft_flowtable")
    with compiled("load.c") as load, sites(policies, versions, modes, load, (given.netfilter,)) as made:
        for number in range(given.rounds + 1):
            found = one_round(made, number, load, given.seconds)
            rows += found if number else []  # the first is to warm up
            print(f"round {number} of {given.rounds}", flush=True)
        dropped = [(site, drops) for site in made if (drops := site.dropped())]
    for version in versions:
        of_it = [row for row in rows if row["family"] == f"IPv{version}"]
        say_medians(of_it)
        say_ratios(of_it)
    for site, drops in dropped:
        print(f"{site.mode}, IPv{site.version}, {site.policies:,} policies, dropped: {drops}")
    print(write("egress", rows))


if __name__ == "__main__":
    main()
