"""FRR as the lab's ToR: bgpd's configuration as text, its processes, and its answers parsed. Text in and out is pure.

Nothing of the system's FRR is used or touched but the programs: zebra and bgpd run in a mount namespace that shows them
`directory` as /var/tmp. There they find their configuration and leave sockets, pid files and the crash logs for which
FRR's path is fixed, so that all of it goes when the directory goes. FRR drops to its own user, who owns the directory.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.netns.lab.netns import CommandError, Namespace
from tests.netns.lab.tor import Route, TorPeer
from tests.waiting import PATIENCE, wait

PROGRAMS = Path("/usr/lib/frr")
INSIDE = Path("/var/tmp")
_MOUNT = 'mount --bind "$1" /var/tmp && shift && exec "$@"'
_REFUSED = "on config line "  # FRR goes on without the line
_FAMILIES = ("ipv4 unicast", "ipv6 unicast")
_NEIGHBOR = re.compile(r"^ neighbor (?P<address>\S+) description (?P<name>\S+)$", re.MULTILINE)
_WELL_KNOWN = {"no-export": "65535:65281", "no-advertise": "65535:65282", "local-AS": "65535:65283"}  # RFC 1997


def config_text(
    peers: Sequence[TorPeer], *, address: str, local_as: int, hold_time: int = 90, trace: bool = False, extra: str = ""
) -> str:
    """The whole bgpd.conf. Sessions are passive unless peers are `active`; nothing is announced to them.

    A policy in each direction is what FRR asks for before it takes a path from eBGP (RFC 8212). FRR keeps the paths of
    a peer that restarts gracefully without being told, and logs End-of-RIB with or without `trace`.
    """
    families = "".join(_family_text(family, peers) for family in _FAMILIES)
    return f"""\
log stdout informational
route-map ACCEPT permit 10
exit
route-map REJECT deny 10
exit
{extra}router bgp {local_as}
 bgp router-id {address}
 bgp log-neighbor-changes
 no bgp default ipv4-unicast
{"".join(_peer_text(peer, address, hold_time) for peer in peers)}{families}exit
"""


def _peer_text(peer: TorPeer, address: str, hold_time: int) -> str:
    bare, _, zone = peer.address.partition("%")
    is_found = not {":", "."} & set(bare)  # by its router advertisements, on the link of that name
    statements = [
        *([f"interface remote-as {peer.asn}"] if is_found else [f"remote-as {peer.asn}"]),
        f"description {peer.name}",
        *([] if is_found else [f"interface {zone}"] if zone else [f"update-source {peer.local or address}"]),
        "timers connect 1" if peer.active else "passive",
        f"timers {hold_time // 3} {hold_time}",
        *([f"password {peer.password}"] if peer.password else []),
        *(["ttl-security hops 1"] if peer.guarded else []),
        *(["bfd 3 50 50"] if peer.bfd else []),
        *(["capability extended-nexthop"] if peer.extended else []),
    ]
    return "".join(f" neighbor {bare} {statement}\n" for statement in statements)


def _family_text(family: str, peers: Sequence[TorPeer]) -> str:
    lines = [f" address-family {family}", "  maximum-paths 8", "  maximum-paths ibgp 8"]
    for peer in (each for each in peers if each.ipv6 or "ipv6" not in family):
        address = peer.address.partition("%")[0]
        lines += [
            f"  neighbor {address} route-map {'ACCEPT' if peer.accepts else 'REJECT'} in",
            f"  neighbor {address} route-map REJECT out",
            f"  neighbor {address} activate",
        ]
    return "\n".join([*lines, " exit-address-family\n"])


def peer_names(config: str) -> dict[str, str]:
    """Address -> name of the peers in a configuration of ours."""
    return {match["address"]: match["name"] for match in _NEIGHBOR.finditer(config)}


def parse_routes(text: str, names: Mapping[str, str]) -> dict[str, list[Route]]:
    """`show bgp … json detail` of one family as prefix -> paths, the best first."""
    tables: dict[str, Any] = json.loads(text).get("routes", {})
    routes: dict[str, list[Route]] = {}
    for prefix, value in tables.items():
        entries = value["paths"] if isinstance(value, dict) else value  # a list up to FRR 8, begun by a head
        paths = [_route(prefix, entry, names) for entry in entries if "nexthops" in entry]
        routes[prefix] = sorted(paths, key=lambda route: not route.best)
    return routes


def _route(prefix: str, entry: Mapping[str, Any], names: Mapping[str, str]) -> Route:
    hops = [hop["ip"] for hop in entry["nexthops"] if hop.get("scope") != "link-local"]
    best = bool(entry.get("bestpath", {}).get("overall"))
    peer = entry["peer"]["peerId"]
    return Route(prefix, names.get(peer, peer), hops[0], best, _attributes(entry, hops[0]))


def _attributes(entry: Mapping[str, Any], next_hop: str) -> dict[str, str]:
    """In the words of `Route`. FRR is silent about local-pref where it is the default, as with eBGP."""
    optional = {
        "med": entry.get("metric"),
        "community": _communities(entry.get("community", {})),
        "large_community": _communities(entry.get("largeCommunity", {})),
        "ext_community": entry.get("extendedCommunity", {}).get("string"),
    }
    return {
        "origin": entry["origin"],
        "as_path": entry["aspath"]["string"].replace("Local", ""),
        "next_hop": next_hop,
        "local_pref": str(entry.get("locPrf", 100)),
        **{name: str(value) for name, value in optional.items() if value not in {None, ""}},
    }


def _communities(value: Mapping[str, str]) -> str:
    return " ".join(_WELL_KNOWN.get(word, word) for word in value.get("string", "").split())


def parse_sessions(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """`show bgp summary json` as peer -> state; a session carries both families."""
    peers: dict[str, Any] = {}
    for family in json.loads(text).values():
        peers.update(family.get("peers", {}))
    return {names.get(address, address): peer["state"] for address, peer in peers.items()}


def ask(path: Path, *commands: str, timeout: float = PATIENCE) -> str:
    """Sends commands to a daemon's vty as vtysh does and returns the last answer. Each ends in NUL, each answer in
    three NUL and a status. Raises CommandError when the daemon refuses one, OSError when it does not answer."""
    answer = ""
    with socket.socket(socket.AF_UNIX) as vty:
        vty.settimeout(timeout)
        vty.connect(str(path))
        for command in ("enable", *commands):
            vty.sendall(command.encode() + b"\0")
            status, answer = _answer(vty)
            if status != 0:
                raise CommandError(f"FRR: {command}: status {status}: {answer.strip()}")
    return answer


def _answer(vty: socket.socket) -> tuple[int, str]:
    got = b""
    while got[-4:-1] != b"\0\0\0":
        more = vty.recv(1 << 16)
        if not more:
            raise ConnectionResetError(f"FRR closed its vty after {got!r}")
        got += more
    return got[-1], got[:-4].decode()


class Frr:
    """zebra and bgpd in one namespace; configuration, sockets and logs are in `directory`/frr."""

    kernel_protocol = "bgp"
    config_text = staticmethod(config_text)

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory / "frr"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._names: dict[str, str] = {}

    @property
    def log(self) -> Path:
        return self._directory / "bgpd.log"

    def start(self, config: str) -> None:
        """Starts zebra, which writes the kernel's routes, then bgpd; waits until both answer."""
        self._directory.mkdir(exist_ok=True)
        shutil.chown(self._directory, "frr", "frr")
        self._names = peer_names(config)
        self._processes = []
        plain = "log stdout informational\n"
        watched = [("bfdd", plain)] if " bfd 3 " in config else []
        for program, text in (("zebra", plain), *watched, ("bgpd", config)):
            self._start(program, text)

    def _start(self, program: str, config: str) -> None:
        path = self._directory / f"{program}.conf"
        path.write_text(config)
        shutil.chown(path, "frr", "frr")
        path.chmod(0o600)  # passwords
        command = [
            str(PROGRAMS / program), "-f", str(INSIDE / path.name), "-i", str(INSIDE / f"{program}.pid"),
            "-z", str(INSIDE / "zserv.api"), "--vty_socket", str(INSIDE), "-P", "0", "--log", "stdout",
            *(["--bfdctl", str(INSIDE / "bfdd.sock")] if program == "bfdd" else []),
        ]  # fmt: skip
        if program == "bfdd":
            command = ["chrt", "-f", "10", *command]  # a router's BFD does not wait for a busy test machine
        mounts = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _MOUNT, "sh", str(self._directory)]
        self._processes.append(self._namespace.popen([*mounts, *command], self._directory / f"{program}.log"))
        wait(lambda: self._answers(program), f"{program} answers")
        refused = [line for line in (self._directory / f"{program}.log").read_text().splitlines() if _REFUSED in line]
        if refused:
            raise ValueError(f"FRR refused its configuration: {refused[0].partition(_REFUSED)[2]}")

    def _answers(self, program: str) -> bool:
        try:
            ask(self._directory / f"{program}.vty", "show version")
        except OSError:
            return False
        return program != "zebra" or (self._directory / "zserv.api").exists()

    def configure(self, config: str) -> None:
        """Gives the running bgpd the lines of `config`: they add and replace; what is missing in them stays.

        A changed policy makes FRR ask the peer for its paths again (route refresh, RFC 2918).
        """
        self._names |= peer_names(config)
        lines = [line for line in config.splitlines() if line.strip()]
        self.vty("configure terminal", *lines, "end")

    def kill(self) -> None:
        """As a crash of both daemons: nothing is said to the peers."""
        for process in self._processes:
            process.kill()
            process.wait()

    def vty(self, *commands: str) -> str:
        """What bgpd says to the last of some commands."""
        return ask(self._directory / "bgpd.vty", *commands)

    def version(self) -> str:
        """As in "FRR 8.4.4"."""
        return f"FRR {self.vty('show version').split()[1]}"

    def routes(self) -> dict[str, list[Route]]:
        """The ToR's table, both families: prefix -> paths."""
        tables = [parse_routes(self.vty(f"show bgp {family} json detail"), self._names) for family in _FAMILIES]
        return {prefix: paths for table in tables for prefix, paths in table.items()}

    def sessions(self) -> dict[str, str]:
        """Peer -> state of its session."""
        return parse_sessions(self.vty("show bgp summary json"), self._names)

    def bfd(self) -> dict[str, str]:
        """Address -> state of its BFD session."""
        found = json.loads(ask(self._directory / "bfdd.vty", "show bfd peers json"))
        return {each["peer"]: each["status"] for each in found}

    def established(self, peer: str) -> int:
        """How often the session has come up."""
        return self._logged(peer, r"%ADJCHANGE: neighbor {}(?![\w:.]).* Up$")

    def ends_of_rib(self, peer: str) -> int:
        """How many End-of-RIB markers came from the peer."""
        return self._logged(peer, r"rcvd End-of-RIB for .* from {}(?![\w:.])")

    def _logged(self, peer: str, pattern: str) -> int:
        address = next(address for address, name in self._names.items() if name == peer)
        return len(re.findall(pattern.format(re.escape(address)), self.log.read_text(), re.MULTILINE))

    def look_around(self) -> Mapping[str, str]:
        """For people: what -> command."""
        vtysh = f"vtysh --vty_socket {self._directory} -c"
        return {
            "the ToR's BGP table": f"{vtysh} 'show bgp ipv4 unicast'",
            "its sessions": f"{vtysh} 'show bgp summary'",
        }
