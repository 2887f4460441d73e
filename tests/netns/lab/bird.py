"""BIRD 2 as the lab's ToR: its configuration as text, its process, and its answers parsed. Text in and out is pure."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.netns.lab.netns import Namespace, run
from tests.netns.lab.tor import Route, TorPeer
from tests.waiting import wait

_ROUTE = re.compile(
    r"^(?P<prefix>\S+)?\s+(?P<kind>unicast|blackhole|unreachable|prohibit)\s+\[(?P<protocol>\S+)[^\]]*\]"
    r"(?P<best>\s+\*)?\s+\((?P<preference>\d+)"
)
_VIA = re.compile(r"^\s+via (?P<address>\S+)")
_ATTRIBUTE = re.compile(r"^\s+BGP\.(?P<name>[a-z_]+):\s*(?P<value>.*)$")


def config_text(
    peers: Sequence[TorPeer], *, address: str, local_as: int, hold_time: int = 90, trace: bool = False, extra: str = ""
) -> str:
    """The whole bird.conf. Sessions are passive unless peers are `active`; nothing is announced to them."""
    return f"""\
router id {address};
log stderr all;
{"debug protocols { states, events, packets };" if trace else ""}
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
    passive on;
    direct;
    hold time {hold_time};
    graceful restart aware;
    long lived graceful restart off;
    error wait time 1, 2;
}}
{_bfd_text(peers)}{extra}{"".join(_peer_text(peer, address, local_as) for peer in peers)}"""


BFD = """protocol bfd {
    interface "*" { min rx interval 50 ms; min tx interval 50 ms; multiplier 3; };
}
"""


def _bfd_text(peers: Sequence[TorPeer]) -> str:
    return BFD if any(peer.bfd for peer in peers) else ""


def _peer_text(peer: TorPeer, address: str, local_as: int) -> str:
    channel = f"{{ import {'all' if peer.accepts else 'none'}; export none; gateway direct; }};"
    password = f' password "{peer.password}";' if peer.password else ""
    ipv6 = f" ipv6 {channel}" if peer.ipv6 else ""
    ipv4 = channel.replace("{", "{ extended next hop on;") if peer.extended else channel
    guard = " direct; ttl security on;" if peer.guarded else ""
    guard += " bfd on;" if peer.bfd else ""
    guard += " passive off; connect delay time 1; connect retry time 1;" if peer.active else ""
    return (
        f"protocol bgp {peer.name} from node {{ local {peer.local or address} as {local_as}; "
        f"neighbor {peer.address} as {peer.asn};{password}{guard} ipv4 {ipv4}{ipv6} }}\n"
    )


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
        attributes = {
            match["name"]: _value(match["name"], match["value"]) for line in block if (match := _ATTRIBUTE.match(line))
        }
        for via in vias or [""]:
            routes.setdefault(prefix, []).append(Route(prefix, head["protocol"], via, bool(head["best"]), attributes))
    return {key: sorted(paths, key=lambda route: not route.best) for key, paths in routes.items()}


def _value(name: str, text: str) -> str:
    """As `Route` wants it: communities without brackets, the global next hop if there is one."""
    if name.endswith("community"):
        return " ".join(":".join(re.findall(r"\w+", group)) for group in re.findall(r"\(([^)]*)\)", text))
    return text.removeprefix(":: ").split()[0] if name == "next_hop" else text.strip()


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


def parse_bfd(text: str) -> dict[str, str]:
    """`show bfd sessions`: address, interface, state, and more."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[2].lower() for row in rows if len(row) > 5 and row[0][0].isdigit() | (":" in row[0])}


class Bird:
    """BIRD in one namespace, with its configuration, socket and log in `directory`."""

    kernel_protocol = "bird"
    config_text = staticmethod(config_text)

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self._directory / "bird.ctl"

    @property
    def log(self) -> Path:
        return self._directory / "bird.log"

    def start(self, config: str) -> None:
        """Starts BIRD and waits until it answers."""
        path = self._directory / "bird.conf"
        path.write_text(config)
        command = ["bird", "-f", "-c", str(path), "-s", str(self.socket), "-P", str(self._directory / "bird.pid")]
        realtime = ["chrt", "-f", "10"] if BFD in config else []  # a router's BFD does not wait for a busy test machine
        self._process = self._namespace.popen([*realtime, *command], self.log)
        wait(lambda: self.socket.exists() and "is up" in self.birdc("show status"), "BIRD answers")

    def configure(self, config: str) -> None:
        """Replaces the configuration of the running BIRD."""
        (self._directory / "bird.conf").write_text(config)
        answer = self.birdc("configure")
        if "Reconfigured" not in answer and "Reconfiguration in progress" not in answer:
            raise ValueError(f"BIRD refused its configuration: {answer.strip()}")

    def kill(self) -> None:
        """As a crash: nothing is said to the peers."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def version(self) -> str:
        """As in "BIRD 2.0.12"."""
        return " ".join(self.birdc("show status").split()[:2])

    def birdc(self, command: str) -> str:
        """What `birdc COMMAND` prints."""
        return run(["birdc", "-s", str(self.socket), *command.split()], check=False)

    def routes(self) -> dict[str, list[Route]]:
        """The ToR's table, both families: prefix -> paths."""
        return parse_routes(self.birdc("show route all"))

    def sessions(self) -> dict[str, str]:
        """Node -> state of its session."""
        return parse_sessions(self.birdc("show protocols"))

    def bfd(self) -> dict[str, str]:
        """Address -> state of its BFD session."""
        return parse_bfd(self.birdc("show bfd sessions"))

    def established(self, peer: str) -> int:
        """How often the session has come up."""
        return self.log.read_text().count(f"{peer}: BGP session established")

    def ends_of_rib(self, peer: str) -> int:
        """How many End-of-RIB markers came from the peer."""
        return self.log.read_text().count(f"{peer}: Got END-OF-RIB")

    def look_around(self) -> Mapping[str, str]:
        """For people: what -> command."""
        birdc = f"birdc -s {self.socket}"
        return {"the ToR's BGP table": f"{birdc} show route", "its sessions": f"{birdc} show protocols"}
