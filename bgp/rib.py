"""Adj-RIB-Out: the normal form of a path for one session, and the difference of two tables. Pure.

Paths pair by prefix and compare by value: next hop and every attribute. A path that a session cannot carry becomes a
`PathRefusal`, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bgp.path import AdjRibOut, Family, IPAddress, IPNetwork, Path, SpeakerPeer

MAX_U32 = 2**32 - 1
MAX_PREPEND = 32  # more than any policy uses, and far below one AS_PATH segment (255, RFC 4271, section 4.3)


@dataclass(frozen=True, slots=True)
class PathRefusal:
    """Why a path (or with `prefix` None, a whole peer) is not handed to ExaBGP."""

    peer: IPAddress
    prefix: IPNetwork | None
    reason: str
    message: str

    def __str__(self) -> str:
        what = f"{self.prefix} to peer {self.peer}" if self.prefix is not None else f"peer {self.peer}"
        return f"{what}: {self.reason}: {self.message}"


class Attributes(NamedTuple):
    """What paths of one UPDATE share. `local_as` matters only with `prepend`. `next_hop` None = self."""

    family: Family
    next_hop: IPAddress | None
    local_pref: int | None
    med: int | None
    prepend: int
    local_as: int
    communities: tuple[str, ...]


def family_of(address: IPAddress | IPNetwork) -> Family:
    return "ipv4 unicast" if address.version == 4 else "ipv6 unicast"


def attributes_of(path: Path, peer: SpeakerPeer) -> Attributes:
    """`path` is in normal form."""
    return Attributes(
        family_of(path.prefix),
        path.next_hop,
        path.local_pref,
        path.med,
        path.prepend,
        peer.local_as if path.prepend else 0,
        path.communities,
    )


def normal(path: Path, peer: SpeakerPeer) -> Path | PathRefusal:
    """`path` as it goes out on the session: what the session does not carry is left out, its own address is `None`.

    Returns `path` itself where nothing changes, so that comparing mostly compares identities.
    """
    refusal = _refusal(path, peer)
    if refusal is not None:
        return refusal
    next_hop = None if path.next_hop == peer.local_address else path.next_hop
    local_pref = path.local_pref if peer.is_ibgp else None
    prepend = 0 if peer.is_ibgp else path.prepend  # our own AS in an iBGP path would look like a loop (RFC 4271, 9)
    if (next_hop, local_pref, prepend) == (path.next_hop, path.local_pref, path.prepend):
        return path
    return Path(path.prefix, next_hop, local_pref, path.med, prepend, path.communities)


def _refusal(path: Path, peer: SpeakerPeer) -> PathRefusal | None:
    def refuse(reason: str, message: str) -> PathRefusal:
        return PathRefusal(peer.address, path.prefix, reason, message)

    version = path.prefix.version
    if family_of(path.prefix) not in peer.families:
        return refuse("FamilyNotConfigured", f"the session does not carry {family_of(path.prefix)}")
    if (path.next_hop or peer.local_address).version != version:
        return refuse(
            "NextHopFamily", f"the next hop must be IPv{version}: give the advertisement one, or peer over IPv{version}"
        )
    if not all(0 <= value <= MAX_U32 for value in (path.local_pref or 0, path.med or 0)):
        return refuse("AttributeRange", "local preference and MED are 32-bit numbers (RFC 4271, section 4.3)")
    if not 0 <= path.prepend <= MAX_PREPEND:
        return refuse("AttributeRange", f"AS-path prepend is 0 to {MAX_PREPEND}")
    bad = next((text for text in path.communities if not is_community(text)), None)
    if bad is not None:
        return refuse("BadCommunity", f"community {bad!r} is neither A:B (16 bits each) nor A:B:C (32 bits each)")
    return None


def is_community(text: str) -> bool:
    """Whether `text` is a normalised standard (RFC 1997) or large (RFC 8092) community."""
    parts = text.split(":")
    limit = {2: 0xFFFF, 3: MAX_U32}.get(len(parts), -1)
    return all(part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= limit for part in parts)


def normalised(rib: Iterable[Path], peer: SpeakerPeer) -> tuple[dict[IPNetwork, Path], list[PathRefusal]]:
    """A whole table in normal form, and what of it was refused."""
    table: dict[IPNetwork, Path] = {}
    refusals: list[PathRefusal] = []
    for path in rib:
        match normal(path, peer):
            case PathRefusal() as refusal:
                refusals.append(refusal)
            case taken:
                table[taken.prefix] = taken
    return table, refusals


def difference(desired: AdjRibOut, held: AdjRibOut) -> tuple[list[Path], list[IPNetwork]]:
    """Paths to announce (new ones, and changed ones, which replace), and prefixes to withdraw. Both normal forms."""
    announced = []
    for prefix, path in desired.items():
        have = held.get(prefix)
        if have is not path and have != path:
            announced.append(path)
    if len(desired) - len(announced) == len(held):
        return announced, []
    return announced, [prefix for prefix in held if prefix not in desired]


def by_prefix(paths: Iterable[Path]) -> Mapping[IPNetwork, Path]:
    return {path.prefix: path for path in paths}
