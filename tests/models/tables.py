"""What the datapath's programs read and keep, decoded from the maps' bytes. Pure; decides nothing.

`Tables` is what user space wrote, `State` what the programs themselves keep between packets, `Packet` what they read
of one packet. Ports are in host order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack
from typing import Any, Literal, NamedTuple, TypeVar

from bpf import layout
from egress.entries import PROTOCOLS, MapEntries, Rules, RuleSpec
from egress.policy import NO_LIMITS, IPAddress, IPNetwork, Limits
from egress.trials import on_link

Echo = Literal["", "request", "reply"]
# "fragment": a later one, whose ports are not known; a first fragment is of the kind of its datagram.
Kind = Literal["flow", "icmp-error", "fragment", "bad-fragment", "unsupported", "malformed", "not-ip"]
About = Literal["unreachable", "too-big", "ttl"]
Value = TypeVar("Value")

TCP, UDP, SCTP, ICMP, ICMP6 = *(PROTOCOLS[name] for name in ("TCP", "UDP", "SCTP", "ICMP")), 58
ICMPS = (ICMP, ICMP6)


def icmp_of(version: int) -> int:
    return ICMP if version == 4 else ICMP6


class FlowKey(NamedTuple):
    pod: IPAddress
    remote: IPAddress
    ifindex: int
    pod_port: int
    remote_port: int
    protocol: int


class PortKey(NamedTuple):
    """A port of an egress IP towards one remote: the key of `reverse`."""

    egress_ip: IPAddress
    remote: IPAddress
    egress_port: int
    remote_port: int
    protocol: int


class FragmentKey(NamedTuple):
    """A datagram that is sent in fragments. ifindex: of the pod that sends it, 0 = it comes from the world."""

    source: IPAddress
    destination: IPAddress
    ifindex: int
    id: int
    protocol: int  # of IPv4


class Carried(NamedTuple):
    """What a probe says."""

    kind: int
    token: int
    service: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """What the programs read of a packet. Ports of an ICMP echo: the identifier on the side of the one who asks."""

    source: IPAddress
    destination: IPAddress
    protocol: int = UDP
    source_port: int = 0
    destination_port: int = 0
    kind: Kind = "flow"
    flags: str = ""  # of TCP, from "SAFR"
    echo: Echo = ""
    ttl: int = 64  # IPv6: hop limit
    mss: int = 0  # option of a SYN; 0 = it has none
    length: int = 60  # of the IP packet, bytes
    dont_fragment: bool = False  # of an IPv6 packet False: it has no such flag, and is never cut on its way
    options: bool = False  # of the IP header; in IPv6 an extension header
    quoted: Packet | None = None  # what an ICMP error quotes; None = too short to tell
    about: About = "unreachable"  # of an ICMP error
    first: bool = False  # whether it is a first fragment
    position: int = 0  # of a later fragment, bytes from the beginning of its datagram
    id: int = 0  # of a fragment
    said_protocol: int = 0  # by a later fragment of IPv6, while `protocol` is what its first one said
    sent_id: int = 0  # in place of a pod's own: what the programs drew, or the first fragment got
    carries: Carried | None = None  # a probe
    handed_in: bool = False  # of a later fragment: whether its first was handed to the host

    @property
    def version(self) -> int:
        return self.source.version

    @property
    def may_be_cut(self) -> bool:
        return self.version == 4 and not self.dont_fragment

    @property
    def is_icmp(self) -> bool:
        return self.protocol == icmp_of(self.version)

    @property
    def in_datagram(self) -> int:
        """Bytes of its datagram that a fragment holds."""
        options = {4: 4, 6: 8}[self.version] if self.options else 0
        return self.length - {4: 20, 6: 48}[self.version] - options

    def of_datagram(self, ifindex: int) -> FragmentKey:
        protocol = self.protocol if self.version == 4 else 0
        return FragmentKey(self.source, self.destination, ifindex, self.id, protocol)

    @property
    def seen(self) -> int:
        """What a flow remembers of this packet."""
        fin = layout.SEEN_FIN if "F" in self.flags else 0
        return layout.SEEN_PACKET | fin | (layout.SEEN_RST if "R" in self.flags else 0)

    @property
    def opens(self) -> bool:
        """Whether it asks for a new TCP connection."""
        return self.protocol == TCP and "S" in self.flags and "A" not in self.flags

    def sent_by(self, ifindex: int) -> FlowKey:
        """The flow's key, if a pod sent it by this device."""
        return FlowKey(self.source, self.destination, ifindex, self.source_port, self.destination_port, self.protocol)

    def sent_to(self, ifindex: int) -> FlowKey:
        """The flow's key, if it is for a pod behind this device."""
        return FlowKey(self.destination, self.source, ifindex, self.destination_port, self.source_port, self.protocol)

    @property
    def answers(self) -> PortKey:
        """Which port of an egress IP it is an answer to."""
        ports = self.destination_port, self.source_port
        return PortKey(self.destination, self.source, *ports, self.protocol)

    @property
    def bears(self) -> PortKey:
        """Which port of an egress IP it bears, once translated."""
        return PortKey(self.source, self.destination, self.source_port, self.destination_port, self.protocol)


@dataclass(frozen=True, slots=True)
class Flow:
    """A live flow at its source node. group 0 = begun from outside, left alone."""

    group: int = 0
    seen_out: int = 0
    seen_in: int = 0  # of one begun from outside
    egress_ip: IPAddress | None = None
    egress_port: int = 0
    gateway: int = 0
    id: int = 0
    settled: bool = True  # its gateway was found good since groups changed last
    exit_local: bool = False
    direct: bool = False  # its gateway gets it without the tunnel


PortState = Literal["claimed", "live", "resting", "dying"]


@dataclass(frozen=True, slots=True)
class Port:
    """Whose a port is. `rests` in seconds from now on; below 0 it has rested."""

    pod: IPAddress
    ifindex: int
    pod_port: int
    group: int
    id: int
    state: PortState = "live"
    seen_in: int = 0
    gateway: int = 0
    rests: float = 0.0


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a first fragment tells the later ones."""

    source_port: int
    destination_port: int
    protocol: int
    length: int  # bytes of the datagram
    sent_id: int
    handed_in: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    node: int
    up: bool
    order: int


@dataclass(frozen=True, slots=True)
class PortBlock:
    egress_ip: IPAddress
    first: int
    size: int
    closed: bool
    echoed: frozenset[int] = frozenset()  # by which gateways: bits, as layout.Block has them

    def holds(self, egress_ip: IPAddress | None, port: int) -> bool:
        return egress_ip == self.egress_ip and self.first <= port < self.first + self.size

    def has(self, port: PortKey) -> bool:
        return port.egress_ip == self.egress_ip and self.first <= port.egress_port < self.first + self.size


@dataclass(frozen=True, slots=True)
class GroupHere:
    gateways: tuple[Hop, ...]
    blocks: tuple[PortBlock, ...]


@dataclass(frozen=True, slots=True)
class EgressIp:
    """An egress IP that this node is a gateway of; `nodes` by granule. group 0 = it is in none any more."""

    nodes: tuple[int, ...]
    host_below: int  # a port below that is no node's is the host's
    group: int

    def node_of(self, port: int) -> int:
        return self.nodes[port >> layout.GRANULE_SHIFT]


@dataclass(frozen=True, slots=True)
class Tables:
    """What user space wrote, decoded; and the kernel's routes, which no map holds."""

    tunnel_port: int = 0
    tunnel_mtu: int = 0
    icmp_sources: Mapping[int, IPAddress] = field(default_factory=dict)  # by version
    nodes: Mapping[IPAddress, int] = field(default_factory=dict)  # tunnel endpoint -> number
    node_numbers: Mapping[int, tuple[IPAddress, bool]] = field(default_factory=dict)  # -> (endpoint, is this node)
    cluster: Mapping[IPNetwork, int] = field(default_factory=dict)  # -> layout.PLACE_…
    uplinks: frozenset[int] = frozenset()
    pods: Mapping[tuple[int, IPAddress], int] = field(default_factory=dict)  # (ifindex, address) -> policy set
    pod_devices: Mapping[IPAddress, int] = field(default_factory=dict)  # of selected pods
    network_policy: int = layout.POLICY_DIRECT
    pod_macs: Mapping[tuple[int, bytes], int] = field(default_factory=dict)  # (device beneath, MAC) -> policy set
    strict_devices: frozenset[int] = frozenset()
    policies: Mapping[int, Mapping[IPNetwork, Rules]] = field(default_factory=dict)
    groups: Mapping[int, GroupHere] = field(default_factory=dict)
    egress_ips: Mapping[IPAddress, EgressIp] = field(default_factory=dict)
    routes: Mapping[IPNetwork, int] = field(default_factory=dict)  # -> ifindex, 0 = unreachable
    mtus: Mapping[int, int] = field(default_factory=dict)  # of devices; others carry everything
    multiplier: int = 0  # of probes; 0 = nobody is watched
    out_of_service: int = 0  # this node as a gateway: layout.SERVICE_…
    ways_out: tuple[IPAddress, ...] = ()
    hands_over: bool = False  # another release is about to go on from here
    ranks: Mapping[int, int] = field(default_factory=dict)  # way to a node -> what its probes say; others serve
    link: int = 0  # the device by which nodes are reached without the tunnel; 0 = none are
    on_link: frozenset[tuple[int, int]] = frozenset()  # (number, IP version of packets): of nodes that need no tunnel
    neighbours: Mapping[bytes, int] = field(default_factory=dict)  # MAC -> number
    own_egress_ips: frozenset[IPAddress] = frozenset()
    tunnels: bool = True
    flow_mtu: int = 0
    asked: frozenset[int] = frozenset()  # numbers of nodes that said just now that they get what comes by the link
    flow_room: int = 1 << 20
    port_room: int = 1 << 20
    limits: Limits = NO_LIMITS


class Change(NamedTuple):
    """One write to the programs' own maps; value None deletes."""

    map: Literal["flows", "ports", "fragments"]
    key: tuple[Any, ...]
    value: Flow | Port | Fragment | None


class Use(NamedTuple):
    """What of the tables a pod has."""

    flows: int
    outside: int
    ports: int


@dataclass(slots=True)
class State:
    """What the programs keep between packets."""

    flows: dict[FlowKey, Flow] = field(default_factory=dict)
    ports: dict[PortKey, Port] = field(default_factory=dict)
    fragments: dict[FragmentKey, Fragment] = field(default_factory=dict)
    tokens: dict[int, frozenset[int]] = field(default_factory=dict)  # node number -> probes that wait for an answer

    def use(self, device: int = 0) -> Use:
        """Of the pod behind a device; 0 = of all."""
        groups = [flow.group for key, flow in self.flows.items() if device in (0, key.ifindex)]
        ports = [port for port in self.ports.values() if device in (0, port.ifindex)]
        return Use(sum(map(bool, groups)), groups.count(0), len(ports))

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            table: dict[Any, Any] = getattr(self, change.map)
            if change.value is None:
                table.pop(change.key, None)
            else:
                table[change.key] = change.value


# --- contents of the maps, decoded


def _policies(entries: MapEntries) -> dict[int, dict[IPNetwork, Rules]]:
    sets: dict[int, dict[IPNetwork, Rules]] = {}
    for raw_key, raw_value in entries.items():
        key, value = layout.decode(layout.PolicyKey, raw_key), layout.decode(layout.PolicyValue, raw_value)
        rules = (
            RuleSpec(r.group, r.protocol, r.first_port, r.last_port, bool(r.exit_local))
            for r in value.rules[: value.count]
        )
        prefix = layout.network_of(key.prefixlen, key.policy_set, key.destination)
        sets.setdefault(layout.policy_set_of(key), {})[prefix] = tuple(rules)
    return sets


def _group(raw: bytes) -> GroupHere:
    value = layout.decode(layout.GroupValue, raw)
    gateways = tuple(Hop(g.node, bool(g.up), g.order) for g in value.gateways[: value.gateway_count])
    blocks = (
        PortBlock(layout.ip_of(b.egress_ip), b.first, 1 << b.shift, bool(b.closed), _bits(b.echoed))
        for b in value.blocks[: value.block_count]
    )
    return GroupHere(gateways, tuple(blocks))


def _bits(word: int) -> frozenset[int]:
    return frozenset(place for place in range(word.bit_length()) if word >> place & 1)


def _pod(raw_key: bytes) -> tuple[int, IPAddress]:
    key = layout.decode(layout.PodKey, raw_key)
    return key.ifindex, layout.ip_of(key.address)


def _pod_mac(raw_key: bytes) -> tuple[int, bytes]:
    key = layout.decode(layout.PodMacKey, raw_key)
    return key.ifindex, bytes(key.mac)


def _egress_ip(raw: bytes) -> EgressIp:
    value = layout.decode(layout.EgressIpValue, raw)
    return EgressIp(tuple(value.nodes), value.host_below, value.group)


def _cidr(raw_key: bytes) -> IPNetwork:
    key = layout.decode(layout.CidrKey, raw_key)
    return layout.network_of(key.prefixlen, key.family, key.address)


def _node(raw: bytes) -> tuple[IPAddress, bool]:
    value = layout.decode(layout.NodeValue, raw)
    return layout.ip_of(value.address), bool(value.local)


def _icmp_sources(settings: layout.Settings) -> dict[int, IPAddress]:
    given = {4: settings.icmp_source4, 6: settings.icmp_source6}
    return {version: layout.ip_of(address) for version, address in given.items() if any(address)}


def _limits(settings: layout.Settings) -> Limits:
    return Limits(
        settings.flow_room, settings.port_room, settings.flows_per_pod, settings.ports_per_pod, settings.outside_flows
    )


def tables(entries: Mapping[str, MapEntries], routes: Mapping[IPNetwork, int], mtus: Mapping[int, int]) -> Tables:
    """The contents that `egress.entries.map_entries` made, decoded."""
    settings = layout.decode(layout.Settings, next(iter(entries["settings"].values())))
    return Tables(
        tunnel_port=settings.tunnel_port,
        tunnel_mtu=settings.tunnel_mtu,
        icmp_sources=_icmp_sources(settings),
        nodes={layout.ip_of(key): layout.number(value) for key, value in entries["nodes"].items()},
        node_numbers={layout.number(key): _node(value) for key, value in entries["node_numbers"].items()},
        cluster={_cidr(key): layout.number(value) for key, value in entries["cluster"].items()},
        uplinks=frozenset(map(layout.number, entries["uplinks"])),
        pods={_pod(key): layout.decode(layout.PodValue, value).policy_set for key, value in entries["pods"].items()},
        pod_devices={layout.ip_of(key): layout.number(value) for key, value in entries["pod_devices"].items()},
        network_policy=settings.network_policy,
        pod_macs={_pod_mac(key): layout.number(value) for key, value in entries["pod_macs"].items()},
        strict_devices=frozenset(map(layout.number, entries["strict_devices"])),
        policies=_policies(entries["policies"]),
        groups={layout.number(key): _group(value) for key, value in entries["groups"].items()},
        egress_ips={layout.ip_of(key): _egress_ip(value) for key, value in entries["egress_ips"].items()},
        routes=routes,
        mtus=mtus,
        limits=_limits(settings),
        multiplier=settings.probe_multiplier,
        out_of_service=settings.out_of_service,
        link=settings.direct_ifindex,
        on_link=on_link(entries["node_numbers"]) if settings.direct_ifindex else frozenset(),
        neighbours={key[:6]: layout.number(value) for key, value in entries["neighbours"].items()},
        own_egress_ips=frozenset(layout.ip_of(key) for key in entries["own_egress_ips"]),
        tunnels=bool(settings.tunnels),
        flow_mtu=settings.flow_mtu,
        ways_out=tuple(layout.ip_of(way) for way in (settings.way_out4, settings.way_out6) if any(way)),
    )


def granules(given: Mapping[int, Sequence[tuple[int, int]]]) -> bytes:
    """The table of an egress IP: node number -> (first port, number of ports)."""
    numbers = [0] * layout.GRANULES
    for node, blocks in given.items():
        for first, size in blocks:
            start, count = first // layout.GRANULE, size // layout.GRANULE
            numbers[start : start + count] = [node] * count
    return pack(f"!{layout.GRANULES}H", *numbers)


def longest(networks: Mapping[IPNetwork, Value], address: IPAddress) -> Value | None:
    """The value of the longest prefix that holds `address`."""
    holding = [network for network in networks if address.version == network.version and address in network]
    return networks[max(holding, key=lambda network: network.prefixlen)] if holding else None
