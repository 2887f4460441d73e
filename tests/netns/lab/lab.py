"""A lab of network namespaces: a ToR, nodes with pods, a client and a server beyond the ToR. Knows nothing of routerd.

        client 198.51.100.10 ──┐            ┌── fw 203.0.113.10 (answers to allowed sources only)
                               tor (BIRD or FRR, AS 64512)
                               │ br0 10.0.0.1/24, the nodes' L2
              ┌────────────────┼─────────────────┐
          gw1 10.0.0.11    gw2 10.0.0.12     worker 10.0.0.21
          10.244.1.0/24    10.244.2.0/24     10.244.3.0/24

The stand-in for a CNI routes pod networks between nodes and masquerades nothing: what routerd does not translate
reaches the ToR with the pod's own address. The ToR has static routes to the pod networks (metric 1024, so that BGP's
win), because a leak should be answered and seen, not lost for want of a way back.

With `ipv6` everything has an IPv6 address, too, which ends in its IPv4 address (`wiring.six`): the same picture again.

Every process lives in one of the namespaces, so what is inside them is what must end. BPF pins go to a bpffs of the
lab's own, not to the host's /sys/fs/bpf: unmounting it removes them. A lab's directory is /run/routerd-lab-PREFIX.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from tests.netns.lab import netns
from tests.netns.lab.bird import Bird
from tests.netns.lab.capture import SourceWatch
from tests.netns.lab.frr import PROGRAMS, Frr
from tests.netns.lab.hosts import FW_RULES, Fw, Host, Node, NodeSpec, PodHost, Tor
from tests.netns.lab.netns import Namespace
from tests.netns.lab.tap import Tap
from tests.netns.lab.tor import Route, TorDaemon, TorPeer
from tests.netns.lab.wiring import Cni, pod_lines, pod_lines6, pod_sysctls, prepare_node, prepare_node6, six
from tests.waiting import PATIENCE, wait

T = TypeVar("T")

RUN, STEM = Path("/run"), "routerd-lab-"
NODE_NETWORK = "10.0.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
POD_NETWORK = "10.244.0.0/16"
CLIENT_NETWORK, CLIENT_ADDRESS = "198.51.100.0/24", "198.51.100.10"
FW_NETWORK, FW_ADDRESS = "203.0.113.0/24", "203.0.113.10"
CLUSTER_NETWORKS = (NODE_NETWORK, POD_NETWORK, SERVICE_NETWORK, six(NODE_NETWORK), six(POD_NETWORK))
GATEWAY = "routerd.io/egress-gateway"
TOR_ADDRESS, TOR_AS = "10.0.0.1", 64512
TOR_MAKES: Mapping[str, Callable[[Namespace, Path], TorDaemon]] = {"bird": Bird, "frr": Frr}

NODES = (
    NodeSpec("gw1", "10.0.0.11", "10.244.1.0/24", {"node.kubernetes.io/name": "node1", GATEWAY: ""}),
    NodeSpec("gw2", "10.0.0.12", "10.244.2.0/24", {"node.kubernetes.io/name": "node2", GATEWAY: ""}),
    NodeSpec("worker", "10.0.0.21", "10.244.3.0/24", {"node.kubernetes.io/name": "node3"}),
)


STANDING: list[Lab] = []  # in this process, checked after each test


class Lab:
    """Builds the lab on entry and removes everything on exit, whatever happened in between.

    `prefix` names the namespaces and must be unique on the machine; `keep` leaves the lab up on a clean exit.
    `tor` is the make of the ToR's BGP daemon, a key of TOR_MAKES.
    Raises LabError if another process has a lab of that name, or something that the lab needs is missing.
    """

    def __init__(
        self,
        prefix: str,
        *,
        nodes: Sequence[NodeSpec] = NODES,
        cni: Cni = "routed",
        pod_mtu: int = 1450,
        hold_time: int = 90,
        rp_filter: int = 2,
        tor: str = "bird",
        ipv6: bool = False,
    ) -> None:
        if tor not in TOR_MAKES:
            raise LabError(f"no ToR of make {tor!r}: it is one of {', '.join(TOR_MAKES)}")
        if not prefix.isalnum() or len(prefix) > 20:
            raise LabError(f"prefix {prefix!r}: up to 20 letters and digits")
        self.prefix = prefix
        self.directory = directory_of(prefix)
        self.bpffs = self.directory / "bpf"
        self.manifests = self.directory / "manifests"
        self.cni = cni
        self.pod_mtu = pod_mtu
        self.rp_filter = rp_filter
        self.ipv6 = ipv6
        self.hold_time = hold_time
        self.keep = False
        self.nodes = {spec.name: Node(self.directory, spec) for spec in nodes}
        self.pods: dict[str, PodHost] = {}
        self.neighbors: dict[str, Host] = {}
        self.make = tor
        self.tor = Tor(self.directory, "tor", TOR_ADDRESS)
        self.fw = Fw(self.directory, "fw", FW_ADDRESS)
        self.client = Host(self.directory, "client", CLIENT_ADDRESS)
        self.tap = Tap(self.tor, self.nodes, self._outside(), self._routes)
        self.route_log, self._routes_read = self.tor.directory / "routes.log", 0
        self._watches: list[SourceWatch] = []

    def __enter__(self) -> Self:
        check_environment(self.make)
        claim(self.prefix)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        STANDING.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.keep and kind is None:
            for watch in self._watches:
                watch.close()
            (self.directory / "owner").write_text("kept")
        else:
            self.close(check=kind is None)

    def close(self, *, check: bool = False) -> None:
        """Removes everything: processes, namespaces, pins, files. With `check` the tap has the last word."""
        with contextlib.ExitStack() as stack:
            stack.callback(remove, self.prefix)
            if self in STANDING:
                STANDING.remove(self)
            if check:
                stack.callback(self.tap.check)
            for watch in self._watches:
                stack.callback(watch.close)

    # --- what tests use ---------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def pod(self, name: str) -> PodHost:
        return self.pods[name]

    @staticmethod
    def wait(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
        """See `tests.waiting.wait`."""
        return wait(condition, what, timeout)

    def add_pod(
        self, name: str, node: str, labels: Mapping[str, str] | None = None, *, namespace: str = "default",
        address: str = "", mtu: int = 0,
    ) -> PodHost:  # fmt: skip
        """Creates a pod and wires it to its node, as a CNI would; `mtu` 0 = the lab's."""
        home = self.nodes[node]
        pod = PodHost(self.directory, name, address or home.next_pod_address(), home, dict(labels or {}), namespace)
        pod.directory.mkdir(parents=True)
        pod.create()
        home.ip(f"link add {pod.device} type veth peer name eth0 netns {pod.name}")
        outside, inside = pod_lines(self.cni, pod.device, pod.address, home.spec.pod_cidr, mtu or self.pod_mtu)
        home.sysctl(pod_sysctls(self.cni, pod.device))
        home.ip(*outside)
        pod.ip(*inside)
        if self.ipv6:
            outside, inside = pod_lines6(self.cni, pod.device, pod.address, home.spec.pod_cidr)
            home.ip(*outside)
            pod.ip(*inside)
        self.pods[name] = pod
        self.tap.pods[node] |= {pod.address, six(pod.address)}
        return pod

    def remove_pod(self, name: str) -> None:
        """Deletes a pod, its processes and its device."""
        pod = self.pods.pop(name)
        netns.stop(pod.pids())
        netns.run(["ip", "-n", pod.node.name, "link", "del", pod.device])
        netns.run(["ip", "netns", "del", pod.name])
        shutil.rmtree(pod.directory)

    def add_neighbor(self, name: str, address: str, network: str) -> Host:
        """A host on the nodes' L2 with a network of its own there; the ToR has that network's first address."""
        host = Host(self.directory, name, address)
        first, length = ipaddress.IPv4Network(network)[1], ipaddress.IPv4Network(network).prefixlen
        host.directory.mkdir()
        host.create()
        self.tor.ip(
            f"link add {name} type veth peer name eth0 netns {host.name}",
            f"link set {name} master br0 up",
            f"addr add {first}/{length} dev br0",
        )
        host.ip(f"addr add {address}/{length} dev eth0", "link set eth0 up", f"route add default via {first}")
        self.neighbors[name] = host
        return host

    def watch(self) -> SourceWatch:
        """Starts a capture at all links of the ToR; closed with the lab."""
        number = len(self._watches)
        watch = SourceWatch(
            self.tor, [*self.nodes, *self.neighbors, "fw", "client"],
            cluster=CLUSTER_NETWORKS,
            guarded=[FW_NETWORK],
            pcap=self.directory / f"tor-{number}.pcap",
            tap=self.tap,
        )  # fmt: skip
        self._watches.append(watch)
        return watch

    # --- building ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for path in (self.manifests, self.bpffs):
            path.mkdir(parents=True)
        netns.run(["mount", "-t", "bpf", "-o", "mode=0700", f"lab-{self.prefix}", str(self.bpffs)])
        for host in (self.tor, self.fw, self.client, *self.nodes.values()):
            host.directory.mkdir()
            host.create()
        for node in self.nodes.values():
            node.pin_dir.mkdir()
        self._build_tor()
        self._build_edge(self.fw, FW_NETWORK)
        self._build_edge(self.client, CLIENT_NETWORK)
        for node in self.nodes.values():
            self._build_node(node)
        self.tap.start(CLUSTER_NETWORKS)
        self.tor.popen(["ip", "-o", "monitor", "route"], self.route_log)
        self.fw.nft(FW_RULES)
        self.fw.start_server(http=80, udp=53, tcp=7)
        self.tor.bgp = TOR_MAKES[self.make](self.tor, self.tor.directory)
        self.tor.bgp.start(self.tor_config())

    def _outside(self) -> frozenset[str]:
        return frozenset(each for host in (self.fw, self.client) for each in (host.address, six(host.address)))

    def _routes(self) -> dict[str, set[str]]:
        """Address -> nodes to which the ToR has a path of it, or a route of its own, or got one since it was asked
        last: what comes and goes between two looks was there.
        """
        shown = "".join(self.tor.run(["ip", family, "-o", "route", "show"]) for family in ("-4", "-6"))
        told = self.route_log.read_text()[self._routes_read :] if self.route_log.exists() else ""
        whole, self._routes_read = told[: told.rfind("\n") + 1], self._routes_read + told.rfind("\n") + 1
        return leading(
            {name: {node.address, six(node.address)} for name, node in self.nodes.items()},
            self.tor.bgp.routes() if hasattr(self.tor, "bgp") else {},
            shown + "".join(line for line in whole.splitlines(keepends=True) if not line.startswith("Deleted ")),
        )

    def tor_config(self, extra: str = "") -> str:
        """The ToR's configuration; `extra` is added to it."""
        peers = [TorPeer(node.label, node.address, TOR_AS) for node in self.nodes.values()]
        return self.tor.bgp.config_text(
            peers, address=TOR_ADDRESS, local_as=TOR_AS, hold_time=self.hold_time, extra=extra
        )

    def _build_tor(self) -> None:
        self.tor.sysctl({"net.ipv4.ip_forward": 1, "net.ipv4.fib_multipath_hash_policy": 1})
        self.tor.ip(
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"addr add {TOR_ADDRESS}/24 dev br0",
            "link set br0 up",
        )
        if self.ipv6:
            self.tor.sysctl({"net.ipv6.conf.all.forwarding": 1})
            self.tor.ip(f"addr add {six(TOR_ADDRESS + '/24')} dev br0")

    def _build_edge(self, host: Host, network: str) -> None:
        first = str(ipaddress.IPv4Network(network)[1])
        self.tor.ip(
            f"link add {host.label} type veth peer name eth0 netns {host.name}",
            f"addr add {first}/24 dev {host.label}",
            f"link set {host.label} up",
        )
        host.ip(f"addr add {host.address}/24 dev eth0", "link set eth0 up", f"route add default via {first}")
        if self.ipv6:
            self.tor.ip(f"addr add {six(first + '/24')} dev {host.label}")
            host.ip(f"addr add {six(host.address + '/24')} dev eth0", f"route add ::/0 via {six(first)}")

    def _build_node(self, node: Node) -> None:
        self.tor.ip(
            f"link add {node.label} type veth peer name eth0 netns {node.name}",
            f"link set {node.label} master br0 up",
            f"route add {node.spec.pod_cidr} via {node.address} metric 1024 onlink dev br0",
        )
        node.sysctl(
            {
                "net.ipv4.ip_forward": 1,
                "net.ipv4.conf.all.rp_filter": 0,
                "net.ipv4.conf.default.rp_filter": self.rp_filter,
                "net.ipv4.conf.eth0.rp_filter": self.rp_filter,
            }
        )
        others = (other.spec for other in self.nodes.values() if other is not node)
        node.ip(
            f"addr add {node.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {TOR_ADDRESS}",
            *(f"route add {other.pod_cidr} via {other.address}" for other in others),
            *prepare_node(self.cni, node.spec.pod_cidr),
        )
        if self.ipv6:
            self._build_node6(node)

    def _build_node6(self, node: Node) -> None:
        address, others = six(node.address), (other.spec for other in self.nodes.values() if other is not node)
        node.sysctl({"net.ipv6.conf.all.forwarding": 1})
        node.ip(
            f"addr add {six(node.address + '/24')} dev eth0",
            f"route add ::/0 via {six(TOR_ADDRESS)}",
            *(f"route add {six(other.pod_cidr)} via {six(other.address)}" for other in others),
            *prepare_node6(self.cni, node.spec.pod_cidr),
        )
        self.tor.ip(f"route add {six(node.spec.pod_cidr)} via {address} dev br0")


def leading(
    addresses: Mapping[str, set[str]], paths: Mapping[str, Sequence[Route]], routes: str
) -> dict[str, set[str]]:
    """Address -> names of those whose `addresses` paths or the lines of `ip -o route` have as next hop for it."""
    found: dict[str, set[str]] = {}
    for prefix, some in paths.items():
        found.setdefault(prefix.partition("/")[0], set()).update(path.protocol for path in some)
    for line in routes.splitlines():
        hops = {word for before, word in itertools.pairwise(line.split()) if before == "via"}
        owners = {name for name, own in addresses.items() if own & hops}
        found.setdefault(line.partition(" ")[0].partition("/")[0], set()).update(owners)
    return found


class LabError(Exception):
    """The lab cannot be built here; the message is one line that says what to do."""


def check_environment(tor: str = "bird") -> None:
    """Raises LabError when privilege or a program is missing; `tor` is the make of the ToR."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces: run it as root")
    daemon = (str(PROGRAMS / "bgpd"), "frr") if tor == "frr" else ("bird", "bird2")
    for program, package in (
        ("ip", "iproute2"), daemon, ("nft", "nftables"), ("ping", "iputils-ping"), ("mount", "mount"),
    ):  # fmt: skip
        if shutil.which(program) is None:
            raise LabError(f"{program} is missing: apt-get install {package}")


def directory_of(prefix: str) -> Path:
    """Where lab `prefix` keeps its files."""
    return RUN / f"{STEM}{prefix}"


def claim(prefix: str) -> None:
    """Makes the lab's directory this process's; removes what a dead or kept lab of that name left."""
    directory = directory_of(prefix)
    if is_owned(directory):
        raise LabError(f"a lab named {prefix} is being used by process {_owner(directory).split()[0]}")
    remove(prefix)
    fresh = RUN / f".{STEM}{prefix}.{os.getpid()}"  # renamed, so that nobody sees a lab without its owner
    fresh.mkdir()
    (fresh / "owner").write_text(f"{os.getpid()} {netns.start_time(os.getpid())}")
    fresh.rename(directory)


def is_owned(directory: Path) -> bool:
    """Whether a living process owns the lab (a kept lab has no owner)."""
    pid, _, started = _owner(directory).partition(" ")
    return pid.isdigit() and netns.start_time(int(pid)) == started


def _owner(directory: Path) -> str:
    try:
        return (directory / "owner").read_text()
    except FileNotFoundError:
        return ""


def remove(prefix: str) -> None:
    """Removes everything of lab `prefix`; what is not there is no error."""
    directory = directory_of(prefix)
    spaces = netns.names(f"{prefix}-")
    for _ in range(5):  # a supervisor may start a child between the look and the signal
        pids = [pid for name in spaces for pid in Namespace(name, name).pids()]
        if not pids:
            break
        netns.stop(pids)
    subprocess.run(["umount", "-q", "-l", str(directory / "bpf")], capture_output=True, check=False)
    for name in spaces:
        netns.run(["ip", "netns", "del", name])
    shutil.rmtree(directory, ignore_errors=True)


def remove_orphans() -> list[str]:
    """Removes labs whose owner was killed; returns their names. Kept labs stay."""
    orphans = [path for path in sorted(RUN.glob(f"{STEM}*")) if not is_owned(path) and _owner(path) != "kept"]
    for path in orphans:
        remove(path.name.removeprefix(STEM))
    return [path.name.removeprefix(STEM) for path in orphans]
