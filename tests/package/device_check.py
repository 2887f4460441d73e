"""Runs as the only process of a virtual machine whose kernel has devices that the host's may lack: makes a worker, a
gateway and a remote in network namespaces, and one pod after the other on a device of each kind. Prints a line of JSON
for each: how a selected pod left, and what left the worker besides.

    python device_check.py KIND,KIND…      "load" only imports what it needs, so that its files are known
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

from pyroute2 import IPRoute

from bpf import loader
from egress.netdev import Datapath
from egress.plan import plan, problems
from egress.policy import Block, Desired, Gateway, Group, IPAddress, Policy, Served
from netlink.wire import NetlinkSocket, attribute
from tests.netns.lab import netns
from tests.netns.lab.netns import Namespace
from tests.waiting import wait

NODES = {"worker": (1, IPv4Address("10.0.0.21")), "gateway": (2, IPv4Address("10.0.0.11"))}
REMOTE, REMOTE6 = IPv4Address("203.0.113.10"), IPv6Address("2001:db8:f::10")
EGRESS_IP, EGRESS_IP6 = IPv4Address("198.51.100.7"), IPv6Address("2001:db8:e::7")
POD, POD6 = IPv4Address("10.244.1.5"), IPv6Address("fd01::5")
ON_LINK, ON_LINK6 = IPv4Address("10.0.0.55"), IPv6Address("fd00::55")
INSIDE = frozenset(map(ip_network, ("10.0.0.0/24", "10.244.0.0/16", "fd00::/64", "fd01::/64")))
PORTS = range(32768, 33792)  # of the egress IPs, the worker's
PORT, PATIENCE = 7, 10.0
RTM_NEWLINK, CREATE_NEW = 16, 0x600
IFINFO = struct.Struct("=BxHiII")
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA = 3, 18, 1, 2
IFLA_NETKIT_PEER_INFO, IFLA_NETKIT_MODE = 1, 5
NETKIT_MODES = {"netkit-l2": 0, "netkit-l3": 1}
PROTOCOLS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, 132)}


@dataclass(frozen=True, slots=True)
class Row:
    """What a pod on a device of this kind met. Sources are those that the remote saw; "" = there was no answer."""

    kind: str
    sources: dict[str, str] = field(default_factory=dict)  # by protocol and family
    past: tuple[str, ...] = ()  # sources of other packets that left the worker, but for its own
    told: tuple[str, ...] = ()  # reasons
    error: str = ""


# --- the network


def build() -> dict[str, Namespace]:
    """Worker, gateway and remote on one bridge of the first namespace."""
    netns.run(["ip", "link", "add", "lan", "type", "bridge"])
    netns.run(["ip", "link", "set", "lan", "up"])
    found = {}
    for name, last in (("worker", 21), ("gateway", 11), ("remote", 1)):
        found[name] = host = Namespace(name, name)
        host.create()
        netns.run(["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name])
        netns.run(["ip", "link", "set", name, "master", "lan", "up"])
        host.ip(f"addr add 10.0.0.{last}/24 dev eth0", f"addr add fd00::{last}/64 dev eth0", "link set eth0 up")
        host.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1, "net.ipv4.conf.all.rp_filter": 0})
    for name in NODES:
        found[name].ip("route add default via 10.0.0.1", "route add ::/0 via fd00::1")
    found["remote"].ip(
        f"addr add {REMOTE}/32 dev lo", f"addr add {REMOTE6}/128 dev lo",
        f"route add {EGRESS_IP} via 10.0.0.11", f"route add {EGRESS_IP6} via fd00::11",
        "route add 10.244.1.0/24 via 10.0.0.21", "route add fd01::/64 via fd00::21",
    )  # fmt: skip
    return found


def add_device(worker: Namespace, pod: Namespace, kind: str) -> tuple[IPAddress, IPAddress]:
    """Returns the addresses that the pod has."""
    if kind in NETKIT_MODES:
        with netns.entered(worker.name), NetlinkSocket() as route:
            add_netkit(route, NETKIT_MODES[kind])
        worker.ip(f"link set inner netns {pod.name}")
        pod.ip("link set inner name eth0")
        return routed(worker, pod)
    if kind in ("veth", "bridge"):
        worker.ip(f"link add host0 type veth peer name eth0 netns {pod.name}")
        return routed(worker, pod) if kind == "veth" else bridged(worker, pod)
    if kind == "nic":
        netns.run(["ip", "link", "set", hardware(), "name", "inner", "netns", pod.name])
        return on_link(pod)
    device, _, mode = kind.partition("-")
    worker.ip(f"link add link eth0 name inner netns {pod.name} type {device} mode {mode}")
    return on_link(pod)


def add_netkit(route: NetlinkSocket, mode: int) -> None:
    """The pair host0 and inner; Debian 12's iproute2 does not know the kind."""
    peer = attribute(IFLA_NETKIT_PEER_INFO, IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, b"inner\0"))
    data = attribute(IFLA_INFO_DATA, peer + attribute(IFLA_NETKIT_MODE, struct.pack("=I", mode)))
    info = attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"netkit\0") + data)
    route.request(RTM_NEWLINK, CREATE_NEW, IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, b"host0\0") + info)


def routed(worker: Namespace, pod: Namespace) -> tuple[IPAddress, IPAddress]:
    """As Calico wires a pod: every packet to one next hop, which the node answers for."""
    worker.ip("link set host0 up", "addr add fe80::1/64 dev host0 nodad")
    worker.sysctl({"net.ipv4.conf.host0.proxy_arp": 1, "net.ipv4.neigh.host0.proxy_delay": 0})
    pod.ip(
        "link set eth0 up", f"addr add {POD}/32 dev eth0", f"addr add {POD6}/128 dev eth0",
        "route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1 dev eth0",
        "route add ::/0 via fe80::1 dev eth0",
    )  # fmt: skip
    worker.ip(f"route add {POD}/32 dev host0", f"route add {POD6}/128 dev host0")
    return POD, POD6


def hardware() -> str:
    """The machine's network card."""
    (found,) = (path.parent.name for path in Path("/sys/class/net").glob("*/device"))
    return found


def on_link(pod: Namespace) -> tuple[IPAddress, IPAddress]:
    """With addresses of the nodes' network."""
    pod.ip(
        "link set inner name eth0", "link set eth0 up", f"addr add {ON_LINK}/24 dev eth0",
        f"addr add {ON_LINK6}/64 dev eth0", "route add default via 10.0.0.1", "route add ::/0 via fd00::1",
    )  # fmt: skip
    return ON_LINK, ON_LINK6


def bridged(worker: Namespace, pod: Namespace) -> tuple[IPAddress, IPAddress]:
    worker.ip(
        "link add cni0 type bridge", "addr add 10.244.1.1/24 dev cni0", "addr add fd01::1/64 dev cni0",
        "link set cni0 up", "link set host0 master cni0 up",
    )  # fmt: skip
    pod.ip(
        "link set eth0 up", f"addr add {POD}/24 dev eth0", f"addr add {POD6}/64 dev eth0",
        "route add default via 10.244.1.1", "route add ::/0 via fd01::1",
    )  # fmt: skip
    return POD, POD6


def remove_pod(worker: Namespace, kind: str) -> None:
    with suppress(netns.CommandError):  # not there, or there is none of this kind
        worker.ip("link delete host0")
    netns.run(["ip", "netns", "delete", "pod"])
    if kind == "bridge":
        worker.ip("link delete cni0")


# --- the datapath


def desired(node: str, pods: tuple[IPAddress, ...]) -> Desired:
    size = len(PORTS) // 64
    owners = bytes(2 * (PORTS.start // 64)) + b"\0\1" * size + bytes(2 * (1024 - PORTS.start // 64 - size))
    group = Group(
        7, (EGRESS_IP, EGRESS_IP6), (Gateway("gateway", 2),),
        tuple(Block(each, PORTS.start, len(PORTS)) for each in (EGRESS_IP, EGRESS_IP6)) if node == "worker" else (),
    )  # fmt: skip
    return Desired(
        node,
        NODES[node][1],
        pods=dict.fromkeys(pods, ("world",)) if node == "worker" else {},
        policies={"world": Policy("world", 7, (IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))},
        groups={7: group},
        served={each: Served(owners, group=7) for each in (EGRESS_IP, EGRESS_IP6)} if node == "gateway" else {},
        nodes=dict(NODES.values()),
        cluster=INSIDE,
        pod_cidrs=frozenset({IPv4Network("10.244.1.0/24"), IPv6Network("fd01::/64")}),
    )


def settle(datapaths: dict[str, Datapath], pods: tuple[IPAddress, ...]) -> tuple[str, ...]:
    """Programs everything, and says what is refused on the worker."""
    for node, datapath in datapaths.items():
        wanted = desired(node, pods)
        with netns.entered(node):
            for _ in range(8):
                for action in plan(wanted, datapath.observe(wanted)):
                    datapath.apply(action)
    with netns.entered("worker"):
        wait(lambda: not datapaths["worker"].try_port_sets().needed, "the gateway echoes the ports", interval=0.1)
        told = problems(desired("worker", pods), datapaths["worker"].observe(desired("worker", pods)))
    return tuple(sorted({each.reason for each in told}))


# --- packets


def serve(remote: Namespace) -> None:
    """Each client is told by which address it was seen."""
    for name, (kind, protocol) in PROTOCOLS.items():
        for address in (REMOTE, REMOTE6):
            with suppress(OSError):  # a kernel without the protocol
                server = remote.socket(family_of(address), kind, protocol)
                server.bind((str(address), PORT))
                threading.Thread(target=answer, args=(server, name), daemon=True).start()


def answer(server: socket.socket, protocol: str) -> None:
    if protocol == "udp":
        while True:
            _, client = server.recvfrom(64)
            server.sendto(client[0].encode(), client)
    server.listen()
    while True:
        connection, client = server.accept()
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            for _ in range(2):
                if connection.recv(64):
                    connection.sendall(client[0].encode())


def family_of(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def ask(pod: Namespace, protocol: str, source: IPAddress, patience: float) -> str:
    """The source that the remote saw, both times."""
    kind, number = PROTOCOLS[protocol]
    try:
        with pod.socket(family_of(source), kind, number) as client:
            client.settimeout(patience)
            client.bind((str(source), 0))  # the one address that an association names
            client.connect((str(REMOTE if source.version == 4 else REMOTE6), PORT))
            seen = []
            for _ in range(2):
                client.sendall(b"who am I?")
                seen.append(client.recv(64).decode())
            return "/".join(dict.fromkeys(seen))
    except OSError as error:
        return f"({error})" if not isinstance(error, TimeoutError) else ""


class Tap:
    """Sources of what leaves the worker for where policies lead, at the other end of its link."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self._socket.bind(("worker", 0))
        self._socket.settimeout(0.2)
        self.sources: set[IPAddress] = set()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            try:
                frame, about = self._socket.recvfrom(2048)
            except TimeoutError:
                continue
            except OSError:
                return
            if about[2] == 4:  # PACKET_OUTGOING: towards the worker
                continue
            kind = frame[12:14]
            if kind == b"\x08\x00":
                self._note(IPv4Address(frame[26:30]), IPv4Address(frame[30:34]))
            elif kind == b"\x86\xdd":
                self._note(IPv6Address(frame[22:38]), IPv6Address(frame[38:54]))

    def _note(self, source: IPAddress, destination: IPAddress) -> None:
        """Neighbours are looked for, and answered, on the link."""
        of_the_link = destination.is_multicast or destination.is_link_local
        if not of_the_link and not any(destination in each for each in INSIDE if each.version == destination.version):
            self.sources.add(source)

    def close(self) -> None:
        self._socket.close()


def own(address: IPAddress) -> bool:
    return address in (NODES["worker"][1], IPv6Address("fd00::21")) or address.is_link_local or address.is_unspecified


def try_kind(hosts: dict[str, Namespace], datapaths: dict[str, Datapath], kind: str) -> Row:
    pod = Namespace("pod", "pod")
    pod.create()
    try:
        addresses = add_device(hosts["worker"], pod, kind)
        told = settle(datapaths, addresses)
        tap = Tap()
        patience = PATIENCE if not told else 1.0
        sources = {
            f"{protocol}{a.version}": ask(pod, protocol, a, patience) for protocol in PROTOCOLS for a in addresses
        }
        past = tuple(sorted(str(each) for each in tap.sources if not own(each)))
        tap.close()
        return Row(kind, sources, past, told)
    finally:
        remove_pod(hosts["worker"], kind)


def main(kinds: list[str]) -> None:
    netns.NETNS_DIR.mkdir(parents=True, exist_ok=True)
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    hosts = build()
    serve(hosts["remote"])
    datapaths = {node: Datapath(Path("/sys/fs/bpf") / node) for node in NODES}
    for kind in kinds:
        try:
            row = try_kind(hosts, datapaths, kind)
        except (OSError, netns.CommandError) as error:
            row = Row(kind, error=f"{error}")
            traceback.print_exc(file=sys.stdout)
        print(json.dumps({"release": os.uname().release, **asdict(row)}), flush=True)


def load() -> None:
    """Opens what is opened late, where it changes nothing that others see: on a BPF file system of its own."""
    pins = Path("/sys/fs/bpf/rehearsal")
    loader.load(pins)
    datapath = Datapath(pins)
    datapath.observe(desired("worker", ()))
    datapath.close()
    with IPRoute() as route:
        list(route.get_links())


if __name__ == "__main__":
    load() if sys.argv[1] == "load" else main(sys.argv[1].split(","))
