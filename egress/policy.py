"""What this node's egress datapath should do, as values. Pure; IPv4 unless a name says otherwise.

The daemon resolves selectors and allocations; this room sees pods by address, policies by name and groups by VNI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Protocol = Literal["TCP", "UDP", "ICMP"]


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
    destinations: tuple[IPv4Network, ...]
    excluded: tuple[IPv4Network, ...] = ()
    ports: tuple[Ports, ...] = ()  # () = every protocol that the datapath translates
    priority: int = 0
    created: str = ""
    destinations6: tuple[IPv6Network, ...] = ()  # not translated: what of it is covered is dropped
    excluded6: tuple[IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway of a group, as source nodes see it. `address` is its tunnel endpoint."""

    node: str
    address: IPv4Address
    slot: int
    up: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """What policies leave through. `gateways` is in order of preference."""

    id: int
    egress_ip: IPv4Address
    gateways: tuple[Gateway, ...]
    slots: int = 1
    node_address: bool = False  # the address is on an interface of its gateway: reserved port range


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole egress state of one node."""

    node: str
    node_address: IPv4Address  # this node's tunnel endpoint
    pods: Mapping[IPv4Address, tuple[str, ...]] = field(
        default_factory=dict
    )  # pods here -> policies (() = decided: none)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    groups: Mapping[int, Group] = field(default_factory=dict)
    nodes: frozenset[IPv4Address] = frozenset()  # tunnel endpoints of all known nodes
    cluster: frozenset[IPv4Network] = frozenset()  # in-cluster: never sent out
    pod_cidrs: frozenset[IPv4Network] = frozenset()  # of this node
    pods6: Mapping[IPv6Address, tuple[str, ...]] = field(default_factory=dict)  # pods here -> policies
    pod_cidrs6: frozenset[IPv6Network] = frozenset()  # of this node
    cluster6: frozenset[IPv6Network] = frozenset()  # in-cluster
    uplinks: tuple[str, ...] = ()  # devices by which egress traffic leaves this node
    tunnel_port: int = 8473  # UDP
