"""The leak tap: counts in the ToR's kernel, at the link of each node, who sends to the world; judges whether they may.

Every lab has one from its first packet to its last, and a test fails after which something had left with a source
that is none of: an address of the node itself, an egress IP by one of its gateways, an address to which the ToR has, or
had since the last look, a route by that node (as strict uRPF would ask), an unselected pod of that node. A set of
nftables misses nothing: it counts each pair of source and destination by link, and what finds no room in it is counted,
too.

Frames to another node are not judged: they have not left yet. Nor are destinations in the cluster or on the link, nor
what a node sends back to the ToR as it came from there, unless it was for an egress IP.
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.netns.lab.netns import Namespace

ROOM = 65535  # pairs by link
ON_LINK = ("169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "fe80::/10", "ff00::/8")


@dataclass(frozen=True, slots=True)
class Seen:
    """Packets of `source` to `destination` that came by the link of node `link`."""

    link: str
    source: str
    destination: str

    def __str__(self) -> str:
        return f"{self.source} to {self.destination} by {self.link}"


@dataclass(frozen=True, slots=True)
class Permitted:
    """Who may show. Addresses as text; a link is the name of its node."""

    nodes: Mapping[str, frozenset[str]]  # link -> addresses of the node
    pods: Mapping[str, frozenset[str]]  # link -> addresses of its pods, whether selected or not
    selected: frozenset[str]
    egress: Mapping[str, frozenset[str]]  # egress IP -> links of its gateways
    excused: frozenset[tuple[str, str]]  # source and destination
    outside: frozenset[str]  # hosts beyond the ToR
    routed: Mapping[str, frozenset[str]]  # address -> links by which the ToR has a route to it

    def permits(self, seen: Seen) -> bool:
        is_sent_back = seen.source in self.outside and seen.destination not in self.egress
        is_inside = any(seen.destination in own for own in self.nodes.values())
        if is_sent_back or is_inside or (seen.source, seen.destination) in self.excused:
            return True
        if seen.source in self.egress:
            return seen.link in self.egress[seen.source]
        of_pod = seen.source in self.pods.get(seen.link, ()) and seen.source not in self.selected
        return of_pod or seen.source in self.nodes.get(seen.link, ()) or seen.link in self.routed.get(seen.source, ())


class Leaked(AssertionError):
    """Packets left with a source that must not show."""


def ruleset(links: Sequence[str], cluster: Iterable[str], macs: Iterable[str]) -> str:
    """The table: what goes to `macs`, the nodes, or into `cluster`, CIDRs of both families, is left out."""
    inside = {4: [], 6: []} | {v: [n for n in (*cluster, *ON_LINK) if _version(n) == v] for v in (4, 6)}
    sets = "".join(
        f"set inside{v} {{ type ipv{v}_addr; flags interval; auto-merge; elements = {{ {', '.join(inside[v])} }} }}\n"
        f"set seen{v} {{ type ifname . ipv{v}_addr . ipv{v}_addr; size {ROOM}; flags dynamic; }}\n"
        for v in (4, 6)
    )
    rules = "".join(
        f"{ip} daddr @inside{v} return\n"
        f"meta protocol {ip} update @seen{v} {{ iifname . {ip} saddr . {ip} daddr counter }} return\n"
        f"meta protocol {ip} counter name untold\n"
        for v, ip in ((4, "ip"), (6, "ip6"))
    )
    return (
        f"table netdev tap {{\n{sets}set nodes {{ type ether_addr; elements = {{ {', '.join(macs)} }} }}\n"
        f"counter untold {{ }}\nchain in {{ type filter hook ingress devices = {{ {', '.join(links)} }} priority -400\n"
        f"ether daddr @nodes return\n{rules}}}\n}}\n"
    )


def _version(network: str) -> int:
    return ipaddress.ip_network(network).version


def parse(text: str) -> tuple[dict[Seen, int], int]:
    """`nft -j list table`: packets by who was seen, and how many found no room."""
    seen: dict[Seen, int] = {}
    untold = 0
    for each in json.loads(text)["nftables"]:
        untold += each.get("counter", {}).get("packets", 0)
        if each.get("set", {}).get("name", "").startswith("seen"):
            for element in each["set"].get("elem", ()):
                link, source, destination = element["elem"]["val"]["concat"]
                seen[Seen(link, source, destination)] = element["elem"]["counter"]["packets"]
    return seen, untold


@dataclass
class Tap:
    """What is permitted is told by those who change it: what was counted before is judged by what held before."""

    tor: Namespace
    nodes: Mapping[str, Namespace]
    outside: frozenset[str]
    routes: Callable[[], Mapping[str, set[str]]]  # the ToR's: address -> links by which it would send to it
    leaks: Counter[Seen] = field(default_factory=Counter)
    pods: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    egress: dict[str, frozenset[str]] = field(default_factory=dict)
    _routed: Mapping[str, set[str]] = field(default_factory=dict)  # at the last look
    _excused: set[tuple[str, str]] = field(default_factory=set)
    _selected: Counter[str] = field(default_factory=Counter)  # how many say so
    _own: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _before: dict[Seen, int] = field(default_factory=dict)

    def start(self, cluster: Iterable[str]) -> None:
        macs = [link["address"] for node in self.nodes.values() for link in _links(node) if link["ifname"] == "eth0"]
        self.tor.nft(ruleset([*self.nodes], cluster, macs))

    def forbid(self, *addresses: str) -> None:
        """From now on these, of pods, must not show; whoever says so takes it back by `pardon`."""
        self.settle()
        self._selected.update(addresses)

    def pardon(self, *addresses: str) -> None:
        self.settle()
        self._selected.subtract(addresses)

    def lead(self, egress: Mapping[str, Iterable[str]]) -> None:
        """By which nodes egress IPs leave from now on. They never become anything else."""
        self.settle()
        self.egress |= {address: frozenset(links) for address, links in egress.items()}

    def expect_mac(self, mac: str) -> None:
        """A node is to have it from now on, too."""
        self.tor.nft(f"add element netdev tap nodes {{ {mac} }}")

    @contextmanager
    def excused(self, source: str, destination: str) -> Iterator[None]:
        """Inside the block this is meant: an answer of a selected pod to who asked it, say."""
        self.settle()
        self._excused.add((source, destination))
        yield
        self.settle()
        self._excused.discard((source, destination))

    def settle(self) -> Counter[Seen]:
        """Judges what came since the last time; all leaks so far."""
        seen, untold = parse(self.tor.run(["nft", "-j", "list", "table", "netdev", "tap"]))
        fresh = {each: packets for each, count in seen.items() if (packets := count - self._before.get(each, 0))}
        self._before = seen
        if fresh:
            permitted = self._permitted()
            self.leaks.update({each: packets for each, packets in fresh.items() if not permitted.permits(each)})
        if untold:
            raise Leaked(f"the tap had no room for {untold} packets")
        return self.leaks

    def check(self) -> None:
        """Raises Leaked with all that leaked since the last check."""
        leaks = dict(self.settle())
        self.leaks.clear()
        if leaks:
            raise Leaked("; ".join(f"{packets} packets of {each}" for each, packets in leaks.items()))

    def _permitted(self) -> Permitted:
        before, now = self._routed, self.routes()
        self._routed = now
        for link, node in self.nodes.items():  # a node may have had an address for a while
            self._own[link] |= {a["local"] for each in _links(node) for a in each["addr_info"] if "local" in a}
        return Permitted(
            {link: frozenset(addresses) for link, addresses in self._own.items()},
            {link: frozenset(addresses) for link, addresses in self.pods.items()},
            frozenset(address for address, count in self._selected.items() if count > 0),
            self.egress,
            frozenset(self._excused),
            self.outside,
            {address: frozenset(before.get(address, set()) | now.get(address, set())) for address in {*before, *now}},
        )


def _links(node: Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(node.run(["ip", "-j", "address", "show"]))
    return found
