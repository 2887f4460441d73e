"""Peers and paths as the speaker needs them. Pure; frozen values that compare by everything they carry.

A path is a prefix plus its attributes (RFC 4271, section 1.1). Communities are normalised strings: "64512:1" (RFC
1997), "64512:1:2" (large, RFC 8092), "rt:64512:1" (extended, RFC 4360: see `bgp.rib.extended`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal, NamedTuple, get_args

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Family = Literal["ipv4 unicast", "ipv6 unicast"]
Origin = Literal["igp", "egp", "incomplete"]  # RFC 4271, section 5.1.1; the earlier is preferred
ORIGINS: tuple[Origin, ...] = get_args(Origin)  # by their numbers
FAMILIES: tuple[Family, ...] = ("ipv4 unicast", "ipv6 unicast")

MAX_PREPEND = 32  # more than any policy uses, and far below one AS_PATH segment (255, RFC 4271, section 4.3)

WELL_KNOWN_COMMUNITIES = {  # RFC 1997, and the registry of IANA
    "graceful-shutdown": "65535:0",
    "blackhole": "65535:666",
    "no-export": "65535:65281",
    "no-advertise": "65535:65282",
    "no-export-subconfed": "65535:65283",
    "no-peer": "65535:65284",
}


def normal_communities(texts: Iterable[str]) -> tuple[str, ...]:
    """Each once, well-known names as numbers, in the order of the numbers, standard ones (RFC 1997) before large ones
    (RFC 8092) before extended ones (RFC 4360): what is equal compares equal. Texts that are none stay as they are.
    """

    def order(text: str) -> tuple[bool, int, list[int], str]:
        parts = text.split(":")
        return (
            text[:1].isalpha(),
            len(parts),
            [int(part) if part.isascii() and part.isdigit() else -1 for part in parts],
            text,
        )

    return tuple(sorted({WELL_KNOWN_COMMUNITIES.get(text, text) for text in texts}, key=order))


class Kinds(NamedTuple):
    """Communities of a path, each kind of which is an attribute of its own."""

    standard: tuple[str, ...]
    large: tuple[str, ...]
    extended: tuple[str, ...]


def by_kind(communities: Iterable[str]) -> Kinds:
    """`communities`: as `normal_communities` has them."""
    found: tuple[list[str], list[str], list[str]] = [], [], []
    for text in communities:
        is_numbers = text[:1].isdigit() and not text.startswith("0x")
        found[(0 if text.count(":") == 1 else 1) if is_numbers else 2].append(text)
    return Kinds(*map(tuple, found))


@dataclass(frozen=True, slots=True)
class Path:
    """What is announced to one peer for one prefix. `local_pref` goes to iBGP peers only, whatever it says."""

    prefix: IPNetwork
    next_hop: IPAddress | None = None  # None = self: the session's local address
    local_pref: int | None = None
    med: int | None = None
    prepend: int = 0  # how many times the local AS is prepended (eBGP)
    communities: tuple[str, ...] = ()  # as `normal_communities` has them
    origin: Origin = "igp"


class SessionKey(NamedTuple):
    """What tells the sessions of a node apart: the addresses of both ends, of which a link-local peer's has its
    interface as zone. Also in events, tables and configuration, as "PEER,LOCAL".
    """

    peer: IPAddress
    local: IPAddress

    def __str__(self) -> str:
        return f"{self.peer} from {self.local}"

    @property
    def token(self) -> str:
        return f"{self.peer},{self.local}"

    @property
    def order(self) -> tuple[int, int, str, int]:
        """For sorting: by family and number of the peer, and then by where the session comes from."""
        return self.peer.version, int(self.peer), str(self.peer), int(self.local)


def session_key(token: str) -> SessionKey:
    """Raises ValueError."""
    peer, _, local = token.rpartition(",")
    return SessionKey(ip_address(peer), ip_address(local))


def session_names(sessions: Iterable[SessionKey]) -> dict[SessionKey, str]:
    """How people tell these apart: by the peer's address, and where several have it, by where they are from, too."""
    keys = [*sessions]
    count = Counter(key.peer for key in keys)
    return {key: str(key.peer) if count[key.peer] == 1 else str(key) for key in keys}


@dataclass(frozen=True, slots=True)
class SpeakerPeer:
    """One BGP session of this node. Times in seconds; `local_address` is decided (no "auto").

    A link-local `address` has its interface as zone (RFC 4007), so that two links may have the same one.
    """

    address: IPAddress
    local_address: IPAddress
    local_as: int
    remote_as: int
    router_id: IPv4Address
    port: int = 179
    passive: bool = False  # the peer connects to us, and never we to it
    listen_port: int = 0  # where it may do so, from any port of its own; 0 = nowhere
    connect_retry: int = 0  # between attempts to connect, and for one, at most; 0 = as ever (`bgp.inside.patches`)
    hold_time: int = 90
    keepalive_time: int = 0  # between keepalives, at most; 0 = a third of the negotiated hold time
    password: str = field(default="", repr=False)  # TCP MD5 (RFC 2385)
    graceful_restart_time: int = 120  # 0 = not offered (RFC 4724)
    families: tuple[Family, ...] = FAMILIES
    min_ttl: int = 0  # what comes with less is not taken (GTSM, RFC 5082); 0 = all is
    extended_next_hop: bool = False  # IPv4 prefixes go out with the session's IPv6 address as next hop (RFC 8950)
    max_prefixes: int = 0  # of each family; the session ends when the peer announces more (RFC 4486); 0 = any number
    interface: str = ""  # by which alone the session goes; "" = by any
    imports: tuple[IPNetwork, ...] = ()  # paths of what is in these are taken; () = of nothing
    description: str = ""
    override: str = ""  # by which the node's session is other than those of other nodes; for people

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.address, self.local_address)

    @property
    def is_ibgp(self) -> bool:
        return self.local_as == self.remote_as


# The whole Adj-RIB-Out of one peer, by prefix.
AdjRibOut = Mapping[IPNetwork, Path]


@dataclass(frozen=True, slots=True)
class Desired:
    """What the speaker should hold: sessions, and the whole Adj-RIB-Out of each.

    Every key of `ribs` is a key of `peers`. An empty mapping means: no peer, or withdraw everything from that peer.
    """

    peers: Mapping[SessionKey, SpeakerPeer]
    ribs: Mapping[SessionKey, AdjRibOut]
