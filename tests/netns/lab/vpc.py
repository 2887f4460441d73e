"""A VPC in a network namespace that forwards as the fake cloud says: what is for an address goes to the interface that
has it, to its MAC and without ARP to the guest, and what an interface sends with a foreign source is dropped.

An attached interface appears in the instance's namespace as a device with its MAC, as hot-plugged ones do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from cloud.model import Vpc as VpcFacts
from tests.models.cloud.core import Cloud
from tests.models.cloud.state import Eni
from tests.netns.lab.hosts import Host
from tests.netns.lab.netns import Namespace

SUBNET, SUBNET6 = IPv4Network("10.0.0.0/24"), IPv6Network("2001:db8::/64")
BEYOND = "203.0.113.10"  # of a server that the VPC routes to
ABROAD = "198.51.100.10"  # of a server beyond a network that knows no pods
BEYOND6 = "2001:db8:cb00::10"
HOP6 = "fe80::2"  # whoever has an interface's prefix, behind its link
RULES = """\
table inet vpc {
    set given4 { type ifname . ipv4_addr; flags interval; }
    set given6 { type ifname . ipv6_addr; flags interval; }
    set links { type ifname; }
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        iifname @links iifname . ip saddr != @given4 counter drop
        iifname @links ip6 saddr != { ::, fe80::/10 } iifname . ip6 saddr != @given6 counter drop
    }
}
"""


@dataclass(slots=True)
class Vpc:
    """Of one subnet. `nodes`: namespaces by instance."""

    home: Path
    cloud: Cloud
    facts: VpcFacts
    nodes: Mapping[str, Namespace]
    host: Host = field(init=False)
    _links: dict[str, str] = field(init=False, default_factory=dict)  # by interface: the VPC's end
    _plugged: int = 0  # so many interfaces were, ever
    _given: set[tuple[str, str, str]] = field(init=False, default_factory=set)  # link, block, MAC
    _before: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.host = Host(self.home, "vpc", BEYOND)

    @property
    def router(self) -> str:
        """Of the subnet."""
        return str(self.facts.routers(SUBNET, ())[0])

    def create(self) -> None:
        self.host.create()
        self.host.ip(*(f"addr add {each} dev lo" for each in (self.router, BEYOND, ABROAD, BEYOND6)))
        self.host.sysctl({"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": 0})
        self.host.sysctl({"net.ipv6.conf.all.forwarding": 1})
        self.host.nft(RULES)

    def sync(self) -> None:
        """The cloud's clock goes on, and what it shows by then is wired."""
        now = time.monotonic()
        self.cloud.advance(now - self._before)
        self._before = now
        enis = [each for name in self.nodes for each in self.cloud.of(name) if _is_attached(each)]
        for eni in enis:
            if eni.id not in self._links:
                self._plug(eni)
        given = {(self._links[eni.id], block, eni.mac) for eni in enis for block in _blocks(eni)}
        for link, block, _ in self._given - given:
            self.host.ip(f"route del {block} dev {link}")
            self.host.nft(f"delete element inet vpc {_set(block)} {{ {link} . {block} }}\n")
        for link, block, mac in given - self._given:
            neighbours = [HOP6] if ":" in block else list(map(str, ip_network(block)))
            self.host.ip(*(f"neigh replace {each} lladdr {mac} dev {link} nud permanent" for each in neighbours))
            self.host.ip(f"route add {block} {f'via {HOP6} ' if HOP6 in neighbours else ''}dev {link}")
            self.host.nft(f"add element inet vpc {_set(block)} {{ {link} . {block} }}\n")
        self._given = given
        for gone in self._links.keys() - {eni.id for eni in enis}:
            self.host.ip(f"link del {self._links.pop(gone)}")

    def _plug(self, eni: Eni) -> None:
        assert eni.attachment is not None
        index, node, number = eni.attachment.index, self.nodes[eni.attachment.instance], self._plugged
        link, device = f"v{number}", f"eth{number if index else 0}"
        self._plugged += 1
        self.host.ip(
            f"link add {link} type veth peer name {device} address {eni.mac} netns {node.name}",
            f"link set {link} mtu 9001 up",
        )
        self.host.sysctl({f"net.ipv4.conf.{link}.proxy_arp": 1})
        self.host.ip(f"addr add {self.facts.routers(SUBNET, (SUBNET6,))[1]}/128 dev {link} nodad")
        self.host.nft(f"add element inet vpc links {{ {link} }}\n")
        if index == 0:  # what DHCP gives
            node.ip(
                f"link set {device} mtu 9001 up", f"addr add {eni.primary}/24 dev {device}",
                f"route add default via {self.router}",
            )  # fmt: skip
        self._links[eni.id] = link

    def dropped(self) -> int:
        """Packets with a source that the interface by which they came does not have."""
        text = self.host.run(["nft", "list", "chain", "inet", "vpc", "prerouting"])
        return sum(int(each.split()[0]) for each in text.split("packets ")[1:])


def _is_attached(eni: Eni) -> bool:
    return eni.attachment is not None and eni.attachment.status == "attached"


def _blocks(eni: Eni) -> list[str]:
    prefixes = map(str, (*eni.prefixes, *eni.prefixes6))
    return [*(f"{address}/32" for address in (eni.primary, *eni.addresses)), *prefixes]


def _set(block: str) -> str:
    return "given6" if ":" in block else "given4"
