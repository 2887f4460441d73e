"""What stands in the lab: nodes, pods, the ToR, the server beyond it, and what each can be asked to do.

`home` is the lab's directory, which ends in the prefix of the namespaces; each host has a directory in it.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns.lab.bird import Bird
from tests.netns.lab.netns import Namespace
from tests.netns.lab.tor import Route, TorDaemon
from tests.waiting import wait

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

    def __init__(self, home: Path, label: str, address: str) -> None:
        super().__init__(f"{home.name.rpartition('-')[2]}-{label}", label)
        self.address = address
        self.directory = home / label
        self.log = self.directory / "server.log"

    def start_server(self, *, http: int = 0, udp: int = 0, tcp: int = 0, address: str = "0.0.0.0") -> None:
        """Starts `servers.py` on the given ports (0 = not) of `address` and waits until it listens."""
        command = [sys.executable, "-S", "-E", str(SERVERS), "--name", self.label, "--log", str(self.log)]
        command += ["--address", address]
        for option, port in (("--http", http), ("--udp", udp), ("--tcp", tcp)):
            command += [option, str(port)] if port else []
        before = self.log_lines().count("ready")  # of servers started earlier
        self.popen(command, self.directory / "server.err")
        wait(lambda: self.log_lines().count("ready") > before, f"server of {self.label} listens")

    def log_lines(self) -> list[str]:
        """What this host's server has logged: `PROTOCOL SOURCE:PORT what`."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def connect(self, address: str, port: int, timeout: float = 10.0) -> socket.socket:
        """A TCP connection from here; raises OSError. `timeout` (seconds) stays on the socket."""
        connection = self.socket(family_of(address), socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
        except OSError:
            connection.close()
            raise
        return connection

    def get(self, address: str, port: int = 80, path: str = "/", timeout: float = 10.0) -> Answer:
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

    def ask(self, address: str, port: int = 53, payload: bytes = b"question", timeout: float = 10.0) -> Answer:
        """One UDP datagram and its answer, as DNS would do it; the answer must come from the address asked."""
        with self.socket(family_of(address), socket.SOCK_DGRAM) as question:
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


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _refusal(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return "refused" if isinstance(error, ConnectionRefusedError) else (error.strerror or str(error))


class Node(Host):
    """A node of the cluster."""

    def __init__(self, home: Path, spec: NodeSpec) -> None:
        super().__init__(home, spec.name, spec.address)
        self.spec = spec
        self.pin_dir = home / "bpf" / spec.name
        self._next_pod = ipaddress.IPv4Address(int(ipaddress.IPv4Network(spec.pod_cidr).network_address) + 1)

    def next_pod_address(self) -> str:
        self._next_pod += 1
        return str(self._next_pod)


class PodHost(Host):
    """A pod; `device` is the host side of its veth."""

    def __init__(self, home: Path, label: str, address: str, node: Node, labels: Mapping[str, str], of: str) -> None:
        super().__init__(home, label, address)
        self.node = node
        self.labels = labels
        self.namespace = of
        self.device = f"pod-{label}"[:15]


class Tor(Host):
    """The ToR router: a bridge for the nodes' L2, links to client and fw, and a BGP daemon."""

    bgp: TorDaemon

    @property
    def control(self) -> Path:
        """BIRD's socket; another make has none."""
        assert isinstance(self.bgp, Bird)
        return self.bgp.socket

    def routes(self) -> dict[str, list[Route]]:
        """The BGP table: prefix -> paths, best first."""
        return self.bgp.routes()

    def sessions(self) -> dict[str, str]:
        """Node -> state of its BGP session."""
        return self.bgp.sessions()

    def kernel_routes(self) -> dict[str, list[str]]:
        """What BGP put into the ToR's kernel: prefix -> next hops, sorted."""
        return kernel_routes(self, self.bgp)


def kernel_routes(tor: Namespace, daemon: TorDaemon) -> dict[str, list[str]]:
    """What a BGP daemon put into its namespace's kernel for IPv4: prefix -> next hops, sorted."""
    return parse_kernel_routes(tor.run(["ip", "-4", "route", "show", "proto", daemon.kernel_protocol]))


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
            table[prefix].append(words[words.index("via") + 1 + ("inet6" in words)])  # RFC 8950: "via inet6 fe80::1"
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
