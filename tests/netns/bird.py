"""BIRD 2 as the lab's ToR: its configuration as text, its process, and its answers parsed. Text in and out is pure."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns.netns import Namespace, run, wait

_ROUTE = re.compile(
    r"^(?P<prefix>\S+)?\s+(?P<kind>unicast|blackhole|unreachable|prohibit)\s+\[(?P<protocol>\S+)[^\]]*\]"
    r"(?P<best>\s+\*)?\s+\((?P<preference>\d+)"
)
_VIA = re.compile(r"^\s+via (?P<address>\S+)")
_ATTRIBUTE = re.compile(r"^\s+BGP\.(?P<name>[a-z_]+):\s*(?P<value>.*)$")


@dataclass(frozen=True, slots=True)
class Route:
    """One path in the ToR's table. `protocol` is the peer's name: nodes are named as in the lab."""

    prefix: str
    protocol: str
    next_hop: str
    best: bool
    attributes: Mapping[str, str] = field(default_factory=dict)  # "local_pref", "med", "as_path", "community", …

    @property
    def local_pref(self) -> int:
        return int(self.attributes.get("local_pref", "100"))


@dataclass(frozen=True, slots=True)
class BirdPeer:
    """A node as the ToR sees it. `passwords` and timers may differ per node; times in seconds."""

    name: str
    address: str
    asn: int
    password: str = ""


def config_text(peers: list[BirdPeer], *, address: str, local_as: int, hold_time: int = 90, extra: str = "") -> str:
    """The whole bird.conf. Sessions are passive: the nodes connect; nothing is announced to them."""
    return f"""\
router id {address};
log stderr all;
protocol device {{ scan time 1; }}
protocol kernel {{
    ipv4 {{ import none; export where source = RTS_BGP; }};
    merge paths on limit 32;
}}
protocol kernel {{
    ipv6 {{ import none; export where source = RTS_BGP; }};
    merge paths on limit 32;
}}
template bgp node {{
    local {address} as {local_as};
    passive on;
    direct;
    hold time {hold_time};
    graceful restart aware;
    error wait time 1, 2;
    ipv4 {{ import all; export none; gateway direct; }};
    ipv6 {{ import all; export none; gateway direct; }};
}}
{extra}{"".join(_peer_text(peer) for peer in peers)}"""


def _peer_text(peer: BirdPeer) -> str:
    password = f' password "{peer.password}";' if peer.password else ""
    return f"protocol bgp {peer.name} from node {{ neighbor {peer.address} as {peer.asn};{password} }}\n"


def parse_routes(text: str) -> dict[str, list[Route]]:
    """`show route all` as prefix -> paths, the best first; several next hops of one path become several entries."""
    routes: dict[str, list[Route]] = {}
    prefix = ""
    for block in _blocks(text):
        head = _ROUTE.match(block[0])
        if head is None:
            continue
        prefix = head["prefix"] or prefix  # only the first path of a prefix repeats it
        vias = [match["address"] for line in block if (match := _VIA.match(line))]
        attributes = {match["name"]: match["value"].strip() for line in block if (match := _ATTRIBUTE.match(line))}
        for via in vias or [""]:
            routes.setdefault(prefix, []).append(Route(prefix, head["protocol"], via, bool(head["best"]), attributes))
    return {key: sorted(paths, key=lambda route: not route.best) for key, paths in routes.items()}


def _blocks(text: str) -> list[list[str]]:
    """The lines of each path: its first line and those that follow it."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if _ROUTE.match(line) or not blocks:
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def parse_sessions(text: str) -> dict[str, str]:
    """`show protocols` as BGP peer -> what BIRD says of it: "Established", "Passive", "Active", …"""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[5] if len(row) > 5 else "Down" for row in rows if len(row) > 1 and row[1] == "BGP"}


class Bird:
    """BIRD in one namespace, with its configuration, socket and log in `directory`."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self._directory / "bird.ctl"

    def start(self, config: str) -> None:
        """Starts BIRD and waits until it answers."""
        path = self._directory / "bird.conf"
        path.write_text(config)
        command = ["bird", "-f", "-c", str(path), "-s", str(self.socket), "-P", str(self._directory / "bird.pid")]
        self._process = self._namespace.popen(command, self._directory / "bird.log")
        wait(lambda: self.socket.exists() and "is up" in self.birdc("show status"), 5, "BIRD answers")

    def configure(self, config: str) -> None:
        """Replaces the configuration of the running BIRD."""
        (self._directory / "bird.conf").write_text(config)
        answer = self.birdc("configure")
        if "Reconfigured" not in answer and "Reconfiguration in progress" not in answer:
            raise ValueError(f"BIRD refused its configuration: {answer.strip()}")

    def birdc(self, command: str) -> str:
        """What `birdc COMMAND` prints."""
        return run(["birdc", "-s", str(self.socket), *command.split()], check=False)

    def routes(self) -> dict[str, list[Route]]:
        """The ToR's table, both families: prefix -> paths."""
        return parse_routes(self.birdc("show route all"))

    def sessions(self) -> dict[str, str]:
        """Node -> state of its session."""
        return parse_sessions(self.birdc("show protocols"))
