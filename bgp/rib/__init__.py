"""Adj-RIB-Out: the normal form of a path for one session, and the difference of two tables. Pure.

Paths pair by prefix and compare by value: next hop and every attribute. A path that a session cannot carry becomes a
`PathRefusal`, never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from operator import not_
from typing import NamedTuple

from bgp.path import MAX_PREPEND, AdjRibOut, Family, IPAddress, IPNetwork, Origin, Path, SessionKey, SpeakerPeer
from bgp.rib import extended

MAX_U32 = 2**32 - 1
FEW = 1000  # pairs that are kept at least


@dataclass(frozen=True, slots=True)
class PathRefusal:
    """Why a path (or with `prefix` None, a whole peer) is not handed to ExaBGP."""

    peer: SessionKey
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
    origin: Origin = "igp"


def family_of(address: IPAddress | IPNetwork) -> Family:
    return "ipv4 unicast" if address.version == 4 else "ipv6 unicast"


# All of a path but its prefix, and of that the family: what `normal` and `attributes_of` depend on.
Form = tuple[IPAddress | None, int | None, int | None, int, tuple[str, ...], Origin, int]


def form_of(path: Path) -> Form:
    return (
        path.next_hop, path.local_pref, path.med, path.prepend, path.communities, path.origin, path.prefix.version,
    )  # fmt: skip


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
        path.origin,
    )


def normal(path: Path, peer: SpeakerPeer) -> Path | PathRefusal:
    """`path` as it goes out on the session: what the session does not carry is left out, its own address is `None`
    where the prefix is of the same family.

    Returns `path` itself where nothing changes, so that comparing mostly compares identities.
    """
    refusal = _refusal(path, peer)
    if refusal is not None:
        return refusal
    # ExaBGP's `self` is the router id for an IPv4 prefix in a session over IPv6
    own = None if path.prefix.version == peer.local_address.version else peer.local_address
    next_hop = own if path.next_hop in (None, peer.local_address) else path.next_hop
    local_pref = path.local_pref if peer.is_ibgp else None
    prepend = 0 if peer.is_ibgp else path.prepend  # our own AS in an iBGP path would look like a loop (RFC 4271, 9)
    if (next_hop, local_pref, prepend) == (path.next_hop, path.local_pref, path.prepend):
        return path
    return Path(path.prefix, next_hop, local_pref, path.med, prepend, path.communities, path.origin)


def _as_normal(path: Path, first: Path, taken: Path | PathRefusal) -> Path | PathRefusal:
    """`normal(path)`, by that of a path of the same form."""
    if taken is first:
        return path
    if isinstance(taken, PathRefusal):
        return replace(taken, prefix=path.prefix)
    form = taken.next_hop, taken.local_pref, taken.med, taken.prepend, taken.communities, taken.origin
    return Path(path.prefix, *form)


def _refusal(path: Path, peer: SpeakerPeer) -> PathRefusal | None:
    def refuse(reason: str, message: str) -> PathRefusal:
        return PathRefusal(peer.key, path.prefix, reason, message)

    version = path.prefix.version
    if family_of(path.prefix) not in peer.families:
        return refuse("FamilyNotConfigured", f"the session does not carry {family_of(path.prefix)}")
    if (path.next_hop or peer.local_address).version != version and not (version == 4 and peer.extended_next_hop):
        return refuse(
            "NextHopFamily", f"the next hop must be IPv{version}: give the advertisement one, or peer over IPv{version}"
        )
    if not all(0 <= value <= MAX_U32 for value in (path.local_pref or 0, path.med or 0)):
        return refuse("AttributeRange", "local preference and MED are 32-bit numbers (RFC 4271, section 4.3)")
    if not 0 <= path.prepend <= MAX_PREPEND:
        return refuse("AttributeRange", f"AS-path prepend is 0 to {MAX_PREPEND}")
    if not _are_communities(path.communities):
        bad = next(text for text in path.communities if not is_community(text))
        return refuse(
            "BadCommunity",
            f"community {bad!r} is neither A:B (16 bits each) nor A:B:C (32 bits each) nor {extended.FORM}",
        )
    return None


@lru_cache(maxsize=4096)
def _are_communities(texts: tuple[str, ...]) -> bool:
    return all(map(is_community, texts))


def is_community(text: str) -> bool:
    """Whether `text` is a normalised standard (RFC 1997), large (RFC 8092) or extended (RFC 4360) community."""
    if extended.is_named(text):
        return extended.is_extended(text)
    parts = text.split(":")
    limit = {2: 0xFFFF, 3: MAX_U32}.get(len(parts), -1)
    return all(part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= limit for part in parts)


@dataclass(frozen=True, slots=True)
class Difference:
    """What one session is to be told: paths in normal form (new ones, and changed ones, which replace) and prefixes."""

    announced: list[Path]
    withdrawn: list[IPNetwork]
    refusals: list[PathRefusal]


class Settled:
    """Paths of one session that were found to be held in another form, so that they need not be compared again while
    both are the same objects. Whoever begins with a new one gets the same differences.
    """

    def __init__(self) -> None:
        self._peer: SpeakerPeer | None = None
        self._pairs: dict[int, tuple[Path, Path]] = {}  # by identity of what is wanted: with what is held
        self._forms: dict[int, int] = {}  # identities of both

    def forms(self, peer: SpeakerPeer, wanted: AdjRibOut) -> Mapping[int, int]:
        """Identity of what is held by that of what is wanted."""
        if peer != self._peer or len(self._pairs) > 2 * len(wanted) + FEW:
            self._peer, self._pairs, self._forms = peer, {}, {}
        return self._forms

    def note(self, wanted: Path, held: Path) -> None:
        self._pairs[id(wanted)] = wanted, held
        self._forms[id(wanted)] = id(held)


def difference(desired: AdjRibOut, held: AdjRibOut, peer: SpeakerPeer, settled: Settled | None = None) -> Difference:
    """`held` is in normal form. Each prefix is looked up once: hashing a network is what costs most here.

    `settled`: of the same session; it is renewed.
    """
    announced: list[Path] = []
    refusals: list[PathRefusal] = []
    refused: set[IPNetwork] = set()
    settled = settled or Settled()
    held_of, known = settled.forms(peer, desired).get, set(map(id, held.values()))
    forms = map(held_of, map(id, desired.values()), map(id, desired.values()))
    others = [*compress(desired.items(), map(not_, map(known.__contains__, forms)))]
    found, is_ibgp = len(desired) - len(others), peer.is_ibgp
    known_forms: dict[Form, tuple[Path, Path | PathRefusal]] = {}
    plain_version = peer.local_address.version if family_of(peer.local_address) in peer.families else 0
    for prefix, path in others:
        have = held.get(prefix)
        if have is not None:
            found += 1
            if _is_plain(path, plain_version) and _is_same(have, path, is_ibgp):
                settled.note(path, have)
                continue
        form = form_of(path)
        if form not in known_forms:
            known_forms[form] = path, normal(path, peer)
        match _as_normal(path, *known_forms[form]):
            case PathRefusal() as refusal:
                refusals.append(refusal)
                refused.add(prefix)
            case taken if taken != have:
                announced.append(taken)
    if found == len(held) and not refused:
        return Difference(announced, [], refusals)
    withdrawn = [prefix for prefix in held if prefix not in desired or prefix in refused]
    return Difference(announced, withdrawn, refusals)


def _is_plain(path: Path, version: int) -> bool:
    """A short cut: a session over IP `version` carries it, and changes at most its local preference."""
    return (
        path.next_hop is None
        and path.med is None
        and not path.prepend
        and path.origin == "igp"
        and path.prefix.version == version
        and 0 <= (path.local_pref or 0) <= MAX_U32
        and _are_communities(path.communities)
    )


def _is_same(held: Path, plain: Path, is_ibgp: bool) -> bool:
    return (
        held.next_hop is None
        and held.med is None
        and not held.prepend
        and held.origin == "igp"
        and held.local_pref == (plain.local_pref if is_ibgp else None)
        and held.communities == plain.communities
    )
