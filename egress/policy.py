"""What this node's egress datapath should do, as values; which families it translates, and how much for one pod. Pure.

The daemon resolves selectors and allocations; this room sees pods by address, policies by name and groups by VNI.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import unpack
from typing import Literal

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Version = Literal[4, 6]
Protocol = Literal["TCP", "UDP", "SCTP", "ICMP"]
Transport = Literal["auto", "vxlan", "direct"]
TunnelPackets = Literal["auto", "device"]
Hindrance = Literal["draining", "no-session", "no-uplink", "no-route", "no-upstream"]
NetworkPolicy = Literal["auto", "forward", "direct"]

VERSIONS: tuple[Version, ...] = (4, 6)
PART = 4  # of a table: what one pod may have of it unless said otherwise
TUNNEL_DEVICE = "routerd.vxlan"
FLOW_DEADLINE = 3600  # seconds
FORWARD_MARK = 0x1000  # free in what CNIs and kube-proxy take of the mark
UNSUPPORTED_FAMILY = "UnsupportedFamily"  # reason of a policy that is not translated, or not all of it


@dataclass(frozen=True, slots=True)
class Ports:
    """Destination ports of one protocol, both ends included; 0–0 means every port (and is all that ICMP has)."""

    protocol: Protocol
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """One egress policy. Order among policies of one destination prefix: priority (high first), created, name."""

    name: str
    group: int  # VNI; 0 = no group has been published: covered traffic is dropped (fail closed)
    destinations: tuple[IPNetwork, ...]
    excluded: tuple[IPNetwork, ...] = ()
    ports: tuple[Ports, ...] = ()  # () = every protocol that the datapath translates
    priority: int = 0
    created: str = ""
    exit_local: bool = False  # out by the pod's own node; answers come by gateways


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway of a group, as source nodes see it."""

    node: str
    number: int  # of the node, 1 … 65535
    up: bool = True


@dataclass(frozen=True, slots=True)
class Block:
    """Ports of an egress IP that this node translates within: a power of two of them, aligned. ICMP echo identifiers
    count as ports.
    """

    egress_ip: IPAddress
    first: int
    size: int
    closed: bool = False  # asked back: nothing new begins here


@dataclass(frozen=True, slots=True)
class Group:
    """What policies leave through, by any of its gateways or by the first that is up."""

    id: int
    egress_ips: tuple[IPAddress, ...]
    gateways: tuple[Gateway, ...]
    blocks: tuple[Block, ...] = ()  # of this node
    node_address: bool = False  # the address is on an interface of its only gateway: reserved ports
    in_order: bool = False  # a gateway is used while none before it is up

    @property
    def used_gateways(self) -> tuple[Gateway, ...]:
        up = tuple(gateway for gateway in self.gateways if gateway.up)
        return up[:1] if self.in_order else up


MOST_SERVED = 4096  # egress IPs for which a node has a table of ports: what its map takes


@dataclass(frozen=True, slots=True)
class Served:
    """An egress IP that this node is a gateway of. `granules`: the node of each 64 ports, 1,024 numbers of 16 bits in
    network byte order, 0 = nobody's.
    """

    granules: bytes
    node_address: bool = False
    group: int = 0  # whose gateways serve it; 0 = it is in none any more
    vip: bool = False  # a Service has it, too, and its ports below 32768

    @property
    def numbers(self) -> tuple[int, ...]:
        return unpack(f">{len(self.granules) // 2}H", self.granules)


End = tuple[IPAddress, int]  # a host outside and its port, 0 = any


@dataclass(frozen=True, slots=True)
class Detour:
    """A port of a Service by which hosts outside the cluster are reached: whichever node translates it sends on what
    comes, with its own address or the sender's.
    """

    protocol: Literal["TCP", "UDP", "SCTP"]
    port: int
    ends: frozenset[End]  # of one family
    addresses: frozenset[IPAddress] = frozenset()  # of the Service; none = it is a NodePort, at every address of a node

    @property
    def version(self) -> int:
        return next(iter(self.ends))[0].version


@dataclass(frozen=True, slots=True)
class Watch:
    """How gateways are watched: seconds between two probes, and how many without an answer make one dead."""

    interval: float
    multiplier: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node's own device on the network that nodes share: what its frames bear, and its IPv6 next hop."""

    mac: bytes  # 6 bytes
    link_local: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole egress state of one node."""

    node: str
    node_address: IPAddress | None  # this node's tunnel endpoint; None = it has none: it is guarded, and no more
    pods: Mapping[IPAddress, tuple[str, ...]] = field(
        default_factory=dict
    )  # pods here -> policies (() = decided: none)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    groups: Mapping[int, Group] = field(default_factory=dict)
    served: Mapping[IPAddress, Served] = field(default_factory=dict)  # egress IPs that this node is a gateway of
    nodes: Mapping[int, IPAddress] = field(default_factory=dict)  # number -> tunnel endpoint, of all known nodes
    icmp_sources: tuple[IPAddress, ...] = ()  # this node's own addresses that ICMP errors come from, one a family
    cluster: frozenset[IPNetwork] = frozenset()  # in-cluster: never sent out
    pod_cidrs: frozenset[IPNetwork] = frozenset()  # of this node
    pools: frozenset[IPNetwork] = frozenset()  # of which VIPs and egress IPs are
    detours: frozenset[Detour] = frozenset()
    node_addresses: frozenset[IPAddress] = frozenset()  # of every node, those on other interfaces too
    told_devices: Mapping[IPAddress, frozenset[str]] = field(
        default_factory=dict
    )  # host-side devices of whoever has the address, as the CNI said
    uplinks: tuple[str, ...] = ()  # devices by which egress traffic leaves this node
    tunnel_port: int = 8473  # UDP
    network_policy: NetworkPolicy = (
        "direct"  # whether the host's forward hook sees first packets of flows: enforcement.py
    )
    forward_mark: int = FORWARD_MARK  # the bit of the mark that such a packet bears
    flow_deadline: int = FLOW_DEADLINE  # seconds that a flow goes on which no policy sends its way any more
    transport: Transport = "vxlan"  # how packets go from this node to others
    tunnel_packets: TunnelPackets = "auto"  # whether the programs may make and take them, past the host's stack
    neighbours: Mapping[int, Neighbour] = field(default_factory=dict)  # number -> its device, of nodes that have one
    watch: Watch | None = None  # None = no gateway is taken for dead
    out_of_service: frozenset[Hindrance] = frozenset()  # why sources are asked to use other gateways than this node


# --- families


def egress_versions(destinations: Iterable[IPNetwork], given: Collection[IPAddress] = ()) -> tuple[Version, ...]:
    """Families of an egress IP with which some of the destinations are translated, () = none is: a packet leaves with
    an address of its own family. `given`: the egress IPs that the policy names, () = any will do.
    """
    packets = {network.version for network in destinations}
    of_given = {address.version for address in given}
    return tuple(version for version in VERSIONS if version in packets and (not given or version in of_given))


def unsupported(destinations: Iterable[IPNetwork], given: Collection[IPAddress]) -> str:
    """Why not all of a policy is translated, "" = all is. `given`: the egress IPs that the policy names."""
    dropped = [network for network in destinations if not egress_versions((network,), given)]
    if not dropped:
        return ""
    shown = ", ".join(map(str, dropped))
    addresses = ", ".join(map(str, given))
    return f"no egress IP of its family, but {addresses}: what the selected pods send to {shown} is dropped"


def selected_pods(desired: Desired) -> list[tuple[str, ...]]:
    """Policies of each address of a pod here that has some: a pod of both families counts twice."""
    return [names for names in desired.pods.values() if names]


# --- what one pod may have of the node's tables


@dataclass(frozen=True, slots=True)
class Quotas:
    """Most of each that the pod behind one device may have; 0 = a quarter of its table."""

    flows: int = 0
    ports: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """As the programs hold them; all 0 = nothing but the tables' own size."""

    flow_room: int = 0
    port_room: int = 0
    flows_per_pod: int = 0
    ports_per_pod: int = 0
    outside_flows: int = 0  # that began outside, of all pods: half of the table, of which one pod gets half at most


QUARTERS, NO_LIMITS = Quotas(), Limits()


def limits(flow_room: int, port_room: int, quotas: Quotas) -> Limits:
    """For tables of these sizes."""
    flows, ports = quotas.flows or flow_room // PART, quotas.ports or port_room // PART
    return Limits(flow_room, port_room, flows, ports, flow_room // 2)
