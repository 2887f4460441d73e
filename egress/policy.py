"""What this node's egress datapath should do, as values, and which families it translates. Pure.

The daemon resolves selectors and allocations; this room sees pods by address, policies by name and groups by VNI.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Version = Literal[4, 6]
Protocol = Literal["TCP", "UDP", "ICMP"]

VERSIONS: tuple[Version, ...] = (4, 6)
# What the programs can do: (version of the pod's packet, version of the egress IP that it leaves with). All else that a
# policy covers is dropped: by the programs in a version that they take, by the guard alone in one that they do not.
TRANSLATED: frozenset[tuple[Version, Version]] = frozenset({(4, 4)})
TAKEN = frozenset(packet for packet, _ in TRANSLATED)
LEFT_AS = frozenset(egress for _, egress in TRANSLATED)
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


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway of a group, as source nodes see it. `address` is its tunnel endpoint."""

    node: str
    address: IPAddress
    slot: int
    up: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """What policies leave through. `gateways` is in order of preference."""

    id: int
    egress_ip: IPAddress
    gateways: tuple[Gateway, ...]
    slots: int = 1
    node_address: bool = False  # the address is on an interface of its gateway: reserved port range


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
    nodes: frozenset[IPAddress] = frozenset()  # tunnel endpoints of all known nodes
    cluster: frozenset[IPNetwork] = frozenset()  # in-cluster: never sent out
    pod_cidrs: frozenset[IPNetwork] = frozenset()  # of this node
    uplinks: tuple[str, ...] = ()  # devices by which egress traffic leaves this node
    tunnel_port: int = 8473  # UDP


# --- families


def is_taken(of: IPAddress | IPNetwork) -> bool:
    """Whether the programs take packets of this family at all; of another one they see nothing, the guard does."""
    return of.version in TAKEN


def may_leave_as(egress_ip: IPAddress) -> bool:
    """Whether anything is translated to an address of this family."""
    return egress_ip.version in LEFT_AS


def egress_versions(destinations: Iterable[IPNetwork], given: Collection[IPAddress] = ()) -> tuple[Version, ...]:
    """Families of an egress IP with which some of the destinations are translated, () = none is. `given`: the egress
    IPs that the policy names, () = any will do.
    """
    packets = {network.version for network in destinations}
    of_given = {address.version for address in given}
    versions = [version for version in VERSIONS if not given or version in of_given]
    return tuple(egress for egress in versions if any((packet, egress) in TRANSLATED for packet in packets))


def unsupported(destinations: Iterable[IPNetwork], given: Collection[IPAddress]) -> str:
    """Why not all of a policy is translated, "" = all is. `given`: the egress IPs that the policy names."""
    dropped = [network for network in destinations if not egress_versions((network,), given)]
    if not dropped:
        return ""
    shown = ", ".join(map(str, dropped))
    if given and not any(map(may_leave_as, given)):
        addresses = ", ".join(f"IPv{address.version} address {address}" for address in given)
        return f"nothing is translated to the {addresses}: what pods send to {shown} is dropped"
    families = " and ".join(f"IPv{version}" for version in sorted({network.version for network in dropped}))
    return f"{families} is not translated yet: what the selected pods send to {shown} is dropped"


def selected_pods(desired: Desired) -> list[tuple[str, ...]]:
    """Policies of each address of a pod here that has some and is of a family that the programs take: a pod of both
    families counts once, one that has only the other family not at all.
    """
    return [names for address, names in desired.pods.items() if names and is_taken(address)]
