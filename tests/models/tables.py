"""What the datapath's programs read and keep, decoded from the maps' bytes. Pure; decides nothing.

`Tables` is what user space wrote, `State` what the programs themselves keep between packets, `Packet` what they read
of one packet. Ports are in host order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal, NamedTuple, TypeVar

from bpf import layout
from egress.entries import PROTOCOLS, MapEntries, Rules, RuleSpec

Echo = Literal["", "request", "reply"]
Kind = Literal["flow", "icmp-error", "fragment", "unsupported", "malformed", "not-ipv4"]
Value = TypeVar("Value")

TCP, UDP, ICMP = PROTOCOLS["TCP"], PROTOCOLS["UDP"], PROTOCOLS["ICMP"]


class FlowKey(NamedTuple):
    pod: IPv4Address
    remote: IPv4Address
    pod_port: int
    remote_port: int
    protocol: int


class NatKey(NamedTuple):
    flow: FlowKey
    group: int


class ReverseKey(NamedTuple):
    egress_ip: IPv4Address
    remote: IPv4Address
    egress_port: int
    remote_port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Packet:
    """What the programs read of a packet. Ports of an ICMP echo: the identifier on the side of the one who asks."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int = UDP
    source_port: int = 0
    destination_port: int = 0
    kind: Kind = "flow"
    flags: str = ""  # of TCP, from "SAFR"
    echo: Echo = ""
    ttl: int = 64
    mss: int = 0  # option of a SYN; 0 = it has none
    length: int = 60  # of the IP packet, bytes
    dont_fragment: bool = False
    options: bool = False  # of the IP header
    quoted: Packet | None = None  # what an ICMP error quotes; None = too short to tell

    @property
    def seen(self) -> int:
        """What a flow remembers of this packet."""
        fin = layout.SEEN_FIN if "F" in self.flags else 0
        return layout.SEEN_PACKET | fin | (layout.SEEN_RST if "R" in self.flags else 0)

    @property
    def opens(self) -> bool:
        """Whether it asks for a new TCP connection."""
        return self.protocol == TCP and "S" in self.flags and "A" not in self.flags

    @property
    def key_outbound(self) -> FlowKey:
        """The flow's key, if a pod sent it."""
        return FlowKey(self.source, self.destination, self.source_port, self.destination_port, self.protocol)

    @property
    def key_inbound(self) -> FlowKey:
        """The flow's key, if it is for a pod."""
        return FlowKey(self.destination, self.source, self.destination_port, self.source_port, self.protocol)


@dataclass(frozen=True, slots=True)
class Flow:
    """A live flow at its source node. group 0 = begun from outside, left alone."""

    group: int
    slot: int
    seen_out: int
    seen_in: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """Forward half of a mapping. node None = the pod is on the gateway itself."""

    egress_ip: IPv4Address
    node: IPv4Address | None
    egress_port: int
    seen_out: int


@dataclass(frozen=True, slots=True)
class Back:
    """Reverse half of a mapping."""

    pod: IPv4Address
    node: IPv4Address | None
    group: int
    pod_port: int
    seen_in: int


@dataclass(frozen=True, slots=True)
class Hop:
    address: IPv4Address
    slot: int
    up: bool
    local: bool


@dataclass(frozen=True, slots=True)
class GroupHere:
    """A group that this node is a gateway of; ports in host order, both ends included."""

    egress_ip: IPv4Address
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tables:
    """What user space wrote, decoded; and the kernel's routes, which no map holds."""

    tunnel_port: int = 0
    tunnel_mtu: int = 0
    nodes: frozenset[IPv4Address] = frozenset()
    cluster: Mapping[IPv4Network, int] = field(default_factory=dict)  # -> layout.PLACE_…
    uplinks: frozenset[int] = frozenset()
    pods: Mapping[tuple[int, IPv4Address], int] = field(default_factory=dict)  # (ifindex, address) -> policy set
    strict_devices: frozenset[int] = frozenset()
    local_pods: Mapping[IPv4Address, int] = field(default_factory=dict)  # -> ifindex
    policies: Mapping[int, Mapping[IPv4Network, Rules]] = field(default_factory=dict)
    paths: Mapping[int, tuple[Hop, ...]] = field(default_factory=dict)
    groups: Mapping[int, GroupHere] = field(default_factory=dict)
    egress_ips: Mapping[IPv4Address, bool] = field(default_factory=dict)  # -> is the node's own address
    routes: Mapping[IPv4Network, int] = field(default_factory=dict)  # -> ifindex, 0 = unreachable
    flow_room: int = 1 << 20
    nat_room: int = 1 << 20
    reverse_room: int = 1 << 20


class Change(NamedTuple):
    """One write to the programs' own maps; value None deletes."""

    map: Literal["flows", "nat", "reverse"]
    key: tuple[Any, ...]
    value: Flow | Mapped | Back | None


@dataclass(slots=True)
class State:
    """What the programs keep between packets."""

    flows: dict[FlowKey, Flow] = field(default_factory=dict)
    nat: dict[NatKey, Mapped] = field(default_factory=dict)
    reverse: dict[ReverseKey, Back] = field(default_factory=dict)

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            table: dict[Any, Any] = getattr(self, change.map)
            if change.value is None:
                table.pop(change.key, None)
            else:
                table[change.key] = change.value


# --- contents of the maps, decoded


def ip4(data: object) -> IPv4Address:
    address = layout.ip_of(data)
    assert isinstance(address, IPv4Address)
    return address


def _network(bits: int, address: object) -> IPv4Network:
    network = layout.network_of(bits, address)
    assert isinstance(network, IPv4Network)
    return network


def _policies(entries: MapEntries) -> dict[int, dict[IPv4Network, Rules]]:
    sets: dict[int, dict[IPv4Network, Rules]] = {}
    for raw_key, raw_value in entries.items():
        key, value = layout.decode(layout.PolicyKey, raw_key), layout.decode(layout.PolicyValue, raw_value)
        rules = (RuleSpec(r.group, r.protocol, r.first_port, r.last_port) for r in value.rules[: value.count])
        prefix = _network(key.prefixlen - layout.POLICY_SET_BITS, key.destination)
        sets.setdefault(key.policy_set, {})[prefix] = tuple(rules)
    return sets


def _hops(raw: bytes) -> tuple[Hop, ...]:
    value = layout.decode(layout.PathValue, raw)
    return tuple(Hop(ip4(g.address), g.slot, bool(g.up), bool(g.local)) for g in value.gateways[: value.count])


def _pod(raw_key: bytes) -> tuple[int, IPv4Address]:
    key = layout.decode(layout.PodKey, raw_key)
    return key.ifindex, ip4(key.address)


def _group(raw: bytes) -> GroupHere:
    value = layout.decode(layout.GroupValue, raw)
    return GroupHere(ip4(value.egress_ip), value.first_port, value.last_port)


def _cidr(raw_key: bytes) -> IPv4Network:
    key = layout.decode(layout.CidrKey, raw_key)
    return _network(key.prefixlen, key.address)


def tables(entries: Mapping[str, MapEntries], routes: Mapping[IPv4Network, int]) -> Tables:
    """The contents that `egress.entries.map_entries` made, decoded."""
    settings = layout.decode(layout.Settings, next(iter(entries["settings"].values())))
    return Tables(
        tunnel_port=settings.tunnel_port,
        tunnel_mtu=settings.tunnel_mtu,
        nodes=frozenset(map(ip4, entries["nodes"])),
        cluster={_cidr(key): layout.number(value) for key, value in entries["cluster"].items()},
        uplinks=frozenset(map(layout.number, entries["uplinks"])),
        pods={_pod(key): layout.number(value) for key, value in entries["pods"].items()},
        strict_devices=frozenset(map(layout.number, entries["strict_devices"])),
        local_pods={ip4(k): layout.decode(layout.LocalPod, v).ifindex for k, v in entries["local_pods"].items()},
        policies=_policies(entries["policies"]),
        paths={layout.number(key): _hops(value) for key, value in entries["paths"].items()},
        groups={layout.number(key): _group(value) for key, value in entries["groups"].items()},
        egress_ips={ip4(key): bool(layout.number(value)) for key, value in entries["egress_ips"].items()},
        routes=routes,
    )


def longest(networks: Mapping[IPv4Network, Value], address: IPv4Address) -> Value | None:
    """The value of the longest prefix that holds `address`."""
    holding = [network for network in networks if address in network]
    return networks[max(holding, key=lambda network: network.prefixlen)] if holding else None
