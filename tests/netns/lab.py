"""A lab of network namespaces: a ToR, nodes with pods, a client and a server beyond the ToR. Knows nothing of routerd.

        client 198.51.100.10 ──┐            ┌── fw 203.0.113.10 (answers to allowed sources only)
                               tor (BIRD 2, AS 64512)
                               │ br0 10.0.0.1/24, the nodes' L2
              ┌────────────────┼─────────────────┐
          gw1 10.0.0.11    gw2 10.0.0.12     worker 10.0.0.21
          10.244.1.0/24    10.244.2.0/24     10.244.3.0/24

The stand-in for a CNI routes pod networks between nodes and masquerades nothing: what routerd does not translate
reaches the ToR with the pod's own address. The ToR has static routes to the pod networks (metric 1024, so that BGP's
win), because a leak should be answered and seen, not lost for want of a way back.

Every process lives in one of the namespaces, so what is inside them is what must end. BPF pins go to a bpffs of the
lab's own, not to the host's /sys/fs/bpf: unmounting it removes them. A lab's directory is /run/routerd-lab/PREFIX.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeVar

from tests.netns import netns
from tests.netns.bird import Bird, BirdPeer, Route, config_text
from tests.netns.capture import SourceWatch
from tests.netns.netns import Namespace
from tests.netns.wiring import Cni, pod_lines, pod_sysctls, prepare_node

T = TypeVar("T")

LABS = Path("/run/routerd-lab")
NODE_NETWORK = "10.0.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
POD_NETWORK = "10.244.0.0/16"
CLIENT_NETWORK, CLIENT_ADDRESS = "198.51.100.0/24", "198.51.100.10"
FW_NETWORK, FW_ADDRESS = "203.0.113.0/24", "203.0.113.10"
GATEWAY = "routerd.io/egress-gateway"
TOR_ADDRESS, TOR_AS = "10.0.0.1", 64512
SERVERS = Path(__file__).with_name("servers.py")

# Refuses by source before a server sees anything, and remembers whom.
FW_RULES = """\
table ip fw {
    set allowed { type ipv4_addr; }
    set refused { type ipv4_addr; flags dynamic; counter; size 1024; }
    chain input {
        type filter hook input priority 0; policy accept;
        iifname "lo" accept
        ip saddr @allowed accept
        update @refused { ip saddr }
        meta l4proto tcp reject with tcp reset
        reject with icmp type admin-prohibited
    }
}
"""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node to build. `address` is on the nodes' L2 and is its InternalIP."""

    name: str
    address: str
    pod_cidr: str
    labels: Mapping[str, str] = field(default_factory=dict)


NODES = (
    NodeSpec("gw1", "10.0.0.11", "10.244.1.0/24", {"node.kubernetes.io/name": "node1", GATEWAY: ""}),
    NodeSpec("gw2", "10.0.0.12", "10.244.2.0/24", {"node.kubernetes.io/name": "node2", GATEWAY: ""}),
    NodeSpec("worker", "10.0.0.21", "10.244.3.0/24", {"node.kubernetes.io/name": "node3"}),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw: `text` of the answer, or how it was turned away in `refusal` ("refused", "timeout", …)."""

    text: str = ""
    refusal: str = ""

    @property
    def source(self) -> str:
        """The client's address as the server saw it, "" if there was no answer."""
        return self.text.partition(" saw ")[2].split(" ")[0].strip()

    def __str__(self) -> str:
        return self.text.strip() or self.refusal


class Host(Namespace):
    """A namespace with an address that can be a client or a server."""

    def __init__(self, lab: Lab, label: str, address: str) -> None:
        super().__init__(f"{lab.prefix}-{label}", label)
        self.address = address
        self.directory = lab.directory / label
        self.log = self.directory / "server.log"

    def start_server(self, *, http: int = 0, udp: int = 0, tcp: int = 0) -> None:
        """Starts `servers.py` on the given ports (0 = not) and waits until it listens."""
        command = [sys.executable, "-S", "-E", str(SERVERS), "--name", self.label, "--log", str(self.log)]
        for option, port in (("--http", http), ("--udp", udp), ("--tcp", tcp)):
            command += [option, str(port)] if port else []
        self.popen(command, self.directory / "server.err")
        netns.wait(lambda: "ready" in self.log_lines(), 10, f"server of {self.label} listens")

    def log_lines(self) -> list[str]:
        """What this host's server has logged: `PROTOCOL SOURCE:PORT what`."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def connect(self, address: str, port: int, timeout: float = 2.0) -> socket.socket:
        """A TCP connection from here; raises OSError. `timeout` (seconds) stays on the socket."""
        connection = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
        except OSError:
            connection.close()
            raise
        return connection

    def get(self, address: str, port: int = 80, path: str = "/", timeout: float = 2.0) -> Answer:
        """Fetches a page over HTTP, one connection per request."""
        request = http.client.HTTPConnection(address, port, timeout=timeout)
        try:
            request.sock = self.connect(address, port, timeout)
            request.request("GET", path, headers={"Connection": "close"})
            return Answer(text=request.getresponse().read().decode())
        except OSError as error:
            return Answer(refusal=_refusal(error))
        finally:
            request.close()

    def ask(self, address: str, port: int = 53, payload: bytes = b"question", timeout: float = 2.0) -> Answer:
        """One UDP datagram and its answer, as DNS would do it; the answer must come from the address asked."""
        with self.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
            question.settimeout(timeout)
            try:
                question.connect((address, port))
                question.send(payload)
                return Answer(text=question.recv(65535).decode())
            except OSError as error:
                return Answer(refusal=_refusal(error))

    def ping(self, address: str, timeout: int = 1) -> bool:
        """Whether one ICMP echo request is answered; `timeout` in whole seconds."""
        return "1 received" in self.run(["ping", "-n", "-c", "1", "-W", str(timeout), address], check=False)


def _refusal(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return "refused" if isinstance(error, ConnectionRefusedError) else (error.strerror or str(error))


class Node(Host):
    """A node of the cluster."""

    def __init__(self, lab: Lab, spec: NodeSpec) -> None:
        super().__init__(lab, spec.name, spec.address)
        self.spec = spec
        self.pin_dir = lab.bpffs / spec.name
        self._next_pod = ipaddress.IPv4Address(int(ipaddress.IPv4Network(spec.pod_cidr).network_address) + 1)

    def next_pod_address(self) -> str:
        self._next_pod += 1
        return str(self._next_pod)


class PodHost(Host):
    """A pod; `device` is the host side of its veth."""

    def __init__(self, lab: Lab, label: str, address: str, node: Node, labels: Mapping[str, str], of: str) -> None:
        super().__init__(lab, label, address)
        self.node = node
        self.labels = labels
        self.namespace = of
        self.device = f"pod-{label}"[:15]


class Tor(Host):
    """The ToR router: a bridge for the nodes' L2, links to client and fw, and a BGP daemon."""

    bgp: Bird

    def birdc(self, command: str) -> str:
        """What birdc prints."""
        return self.bgp.birdc(command)

    def routes(self) -> dict[str, list[Route]]:
        """The BGP table: prefix -> paths, best first."""
        return self.bgp.routes()

    def sessions(self) -> dict[str, str]:
        """Node -> state of its BGP session."""
        return self.bgp.sessions()

    def kernel_routes(self) -> dict[str, list[str]]:
        """What BGP put into the ToR's kernel: prefix -> next hops, sorted."""
        text = self.run(["ip", "-4", "route", "show", "proto", "bird"])
        return parse_kernel_routes(text)


def parse_kernel_routes(text: str) -> dict[str, list[str]]:
    """`ip -4 route` as prefix -> sorted next hops; a host route gets its /32."""
    table: dict[str, list[str]] = {}
    prefix = ""
    for line in text.splitlines():
        words = line.split()
        if not line.startswith(("\t", " ")):
            prefix = words[0] if "/" in words[0] else f"{words[0]}/32"
            table[prefix] = []
        if "via" in words:
            table[prefix].append(words[words.index("via") + 1])
    return {key: sorted(hops) for key, hops in table.items()}


class Fw(Host):
    """The server beyond the ToR."""

    def allow(self, address: str) -> None:
        """From now on `address` is served."""
        self.nft(f"add element ip fw allowed {{ {address} }}\n")

    def deny(self, address: str) -> None:
        """From now on `address` is refused, established connections too."""
        self.nft(f"delete element ip fw allowed {{ {address} }}\n")

    def refused(self) -> dict[str, int]:
        """Source address -> packets refused so far."""
        text = self.run(["nft", "list", "set", "ip", "fw", "refused"])
        words = text.replace(",", " ").split()
        places = [place for place, word in enumerate(words) if word == "counter" and words[place - 1].count(".") == 3]
        return {words[place - 1]: int(words[place + 2]) for place in places}

    def served(self) -> list[str]:
        """Source addresses served so far, in order."""
        return [line.split()[1].rpartition(":")[0] for line in self.log_lines() if line != "ready"]


class Lab:
    """Builds the lab on entry and removes everything on exit, whatever happened in between.

    `prefix` names the namespaces and must be unique on the machine; `keep` leaves the lab up on a clean exit.
    Raises LabError if another process has a lab of that name, or something that the lab needs is missing.
    """

    def __init__(
        self,
        prefix: str,
        *,
        nodes: Sequence[NodeSpec] = NODES,
        cni: Cni = "routed",
        pod_mtu: int = 1450,
        tor: Literal["bird"] = "bird",
        hold_time: int = 90,
        rp_filter: int = 2,
    ) -> None:
        if not prefix.replace("-", "").isalnum() or len(prefix) > 20:
            raise ValueError(f"prefix {prefix!r}: up to 20 letters, digits and hyphens")
        self.prefix = prefix
        self.directory = LABS / prefix
        self.bpffs = self.directory / "bpf"
        self.manifests = self.directory / "manifests"
        self.cni = cni
        self.pod_mtu = pod_mtu
        self.rp_filter = rp_filter
        self.hold_time = hold_time
        self.tor_kind = tor
        self.keep = False
        self.nodes = {spec.name: Node(self, spec) for spec in nodes}
        self.pods: dict[str, PodHost] = {}
        self.tor = Tor(self, "tor", TOR_ADDRESS)
        self.fw = Fw(self, "fw", FW_ADDRESS)
        self.client = Host(self, "client", CLIENT_ADDRESS)
        self._watches: list[SourceWatch] = []

    def __enter__(self) -> Self:
        check_environment()
        claim(self.directory)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.keep and kind is None:
            for watch in self._watches:
                watch.close()
            (self.directory / "owner").write_text("kept")
        else:
            self.close()

    def close(self) -> None:
        """Removes everything: processes, namespaces, pins, files."""
        with contextlib.ExitStack() as stack:
            stack.callback(remove, self.prefix)
            for watch in self._watches:
                stack.callback(watch.close)

    # --- what tests use ---------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def pod(self, name: str) -> PodHost:
        return self.pods[name]

    @staticmethod
    def wait(condition: Callable[[], T], timeout: float, what: str) -> T:
        """See `netns.wait`."""
        return netns.wait(condition, timeout, what)

    def add_pod(
        self, name: str, node: str, labels: Mapping[str, str] | None = None, *, namespace: str = "default",
        address: str = "", mtu: int = 0,
    ) -> PodHost:  # fmt: skip
        """Creates a pod and wires it to its node, as a CNI would; `mtu` 0 = the lab's."""
        home = self.nodes[node]
        pod = PodHost(self, name, address or home.next_pod_address(), home, dict(labels or {}), namespace)
        pod.directory.mkdir(parents=True)
        pod.create()
        home.ip(f"link add {pod.device} type veth peer name eth0 netns {pod.name}")
        outside, inside = pod_lines(self.cni, pod.device, pod.address, home.spec.pod_cidr, mtu or self.pod_mtu)
        home.sysctl(pod_sysctls(self.cni, pod.device))
        home.ip(*outside)
        pod.ip(*inside)
        self.pods[name] = pod
        return pod

    def remove_pod(self, name: str) -> None:
        """Deletes a pod, its processes and its device."""
        pod = self.pods.pop(name)
        netns.stop(pod.pids())
        netns.run(["ip", "-n", pod.node.name, "link", "del", pod.device])
        netns.run(["ip", "netns", "del", pod.name])
        shutil.rmtree(pod.directory)

    def watch(self) -> SourceWatch:
        """Starts a capture at all links of the ToR; closed with the lab."""
        number = len(self._watches)
        watch = SourceWatch(
            self.tor, [*self.nodes, "fw", "client"], cluster=[NODE_NETWORK, POD_NETWORK, SERVICE_NETWORK],
            guarded=[FW_NETWORK], pcap=self.directory / f"tor-{number}.pcap",
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
        self.fw.nft(FW_RULES)
        self.fw.start_server(http=80, udp=53, tcp=7)
        self.tor.bgp = Bird(self.tor, self.tor.directory)
        self.tor.bgp.start(self.tor_config())

    def tor_config(self, extra: str = "") -> str:
        """The ToR's configuration; `extra` is added to it."""
        peers = [BirdPeer(node.label, node.address, TOR_AS) for node in self.nodes.values()]
        return config_text(peers, address=TOR_ADDRESS, local_as=TOR_AS, hold_time=self.hold_time, extra=extra)

    def _build_tor(self) -> None:
        self.tor.sysctl({"net.ipv4.ip_forward": 1, "net.ipv4.fib_multipath_hash_policy": 1})
        self.tor.ip(
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"addr add {TOR_ADDRESS}/24 dev br0",
            "link set br0 up",
        )

    def _build_edge(self, host: Host, network: str) -> None:
        first = str(ipaddress.IPv4Network(network)[1])
        self.tor.ip(
            f"link add {host.label} type veth peer name eth0 netns {host.name}",
            f"addr add {first}/24 dev {host.label}",
            f"link set {host.label} up",
        )
        host.ip(f"addr add {host.address}/24 dev eth0", "link set eth0 up", f"route add default via {first}")

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


class LabError(Exception):
    """The lab cannot be built here; the message is one line that says what to do."""


def check_environment() -> None:
    """Raises LabError when privilege or a program is missing."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces: run it as root")
    for program, package in (
        ("ip", "iproute2"), ("bird", "bird2"), ("nft", "nftables"), ("ping", "iputils-ping"), ("mount", "mount"),
    ):  # fmt: skip
        if shutil.which(program) is None:
            raise LabError(f"{program} is missing: apt-get install {package}")


def claim(directory: Path) -> None:
    """Makes the lab's directory this process's; removes what a dead or kept lab of that name left."""
    if is_owned(directory):
        raise LabError(f"a lab named {directory.name} is being used by process {(directory / 'owner').read_text()}")
    remove(directory.name)
    directory.mkdir(parents=True)
    (directory / "owner").write_text(str(os.getpid()))


def is_owned(directory: Path) -> bool:
    """Whether a living process owns the lab (a kept lab has no owner)."""
    try:
        owner = (directory / "owner").read_text()
    except FileNotFoundError:
        return False
    return owner.isdigit() and int(owner) != os.getpid() and netns.is_alive(int(owner))


def remove(prefix: str) -> None:
    """Removes everything of lab `prefix`; what is not there is no error."""
    directory = LABS / prefix
    spaces = netns.names(f"{prefix}-")
    netns.stop([pid for name in spaces for pid in Namespace(name, name).pids()])
    subprocess.run(["umount", "-q", "-l", str(directory / "bpf")], capture_output=True, check=False)
    for name in spaces:
        netns.run(["ip", "netns", "del", name])
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        LABS.rmdir()


def remove_orphans() -> list[str]:
    """Removes labs whose owner was killed; returns their names. Kept labs stay."""
    found = sorted(LABS.iterdir()) if LABS.is_dir() else []
    orphans = [path for path in found if not is_owned(path) and _owner(path) not in {"kept", str(os.getpid())}]
    for path in orphans:
        remove(path.name)
    return [path.name for path in orphans]


def _owner(directory: Path) -> str:
    try:
        return (directory / "owner").read_text()
    except FileNotFoundError:
        return ""
