"""Peers and paths as the speaker needs them. Pure; frozen values that compare by everything they carry.

A path is a prefix plus its attributes (RFC 4271, section 1.1). Communities are normalised strings: "64512:1" (RFC
1997), "64512:1:2" (large, RFC 8092).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Family = Literal["ipv4 unicast", "ipv6 unicast"]


@dataclass(frozen=True, slots=True)
class Path:
    """What is announced to one peer for one prefix. `local_pref` goes to iBGP peers only, whatever it says."""

    prefix: IPNetwork
    next_hop: IPAddress | None = None  # None = self: the session's local address
    local_pref: int | None = None
    med: int | None = None
    prepend: int = 0  # how many times the local AS is prepended (eBGP)
    communities: tuple[str, ...] = ()  # sorted


@dataclass(frozen=True, slots=True)
class SpeakerPeer:
    """One BGP session of this node. Times in seconds; `local_address` is decided (no "auto")."""

    address: IPAddress
    local_address: IPAddress
    local_as: int
    remote_as: int
    router_id: IPv4Address
    port: int = 179
    hold_time: int = 90
    password: str = field(default="", repr=False)  # TCP MD5 (RFC 2385)
    multihop_ttl: int | None = None
    graceful_restart_time: int = 120  # 0 = not offered (RFC 4724)
    families: tuple[Family, ...] = ("ipv4 unicast", "ipv6 unicast")
    description: str = ""

    @property
    def is_ibgp(self) -> bool:
        return self.local_as == self.remote_as


# The whole Adj-RIB-Out of one peer, by prefix.
AdjRibOut = Mapping[IPNetwork, Path]


@dataclass(frozen=True, slots=True)
class Desired:
    """What the speaker should hold: peers by address, and the whole Adj-RIB-Out of each.

    Every key of `ribs` is a key of `peers`. An empty mapping means: no peer, or withdraw everything from that peer.
    """

    peers: Mapping[IPAddress, SpeakerPeer]
    ribs: Mapping[IPAddress, AdjRibOut]
