"""Bulk commands for ExaBGP and the table that it answers with, as numbers: text in and out. Pure.

Attributes and prefixes are in hexadecimal digits as they are in an UPDATE (RFC 4271, section 4.3), AS numbers in four
bytes (RFC 6793). So nothing in a command has a name: ExaBGP finds its commands anywhere in a line, and a community that
is written `graceful-shutdown` has it shut down. `bgp.inside.commands` has the other end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from struct import iter_unpack, pack

from bgp.path import (
    ORIGINS,
    IPAddress,
    IPNetwork,
    Origin,
    Path,
    SessionKey,
    SpeakerPeer,
    by_kind,
    normal_communities,
    session_key,
)
from bgp.rib import Attributes, extended
from bgp.text import neighbors

NLRI_PER_COMMAND = 1000  # 10 kB, or 34 kB of IPv6; ExaBGP takes lines up to 1 MiB
SHOW_TABLE = "routerd table"

# Flags and type codes; flags as the RFCs have them: 0x40 well-known, 0x80 optional, 0xC0 optional transitive.
_ORIGIN, _AS_PATH, _MED, _LOCAL_PREF = 0x4001, 0x4002, 0x8004, 0x4005
_COMMUNITIES, _EXTENDED_COMMUNITIES, _LARGE_COMMUNITIES = 0xC008, 0xC010, 0xC020
_KNOWN = {_ORIGIN, _AS_PATH, _MED, _LOCAL_PREF, _COMMUNITIES, _EXTENDED_COMMUNITIES, _LARGE_COMMUNITIES}
_EXTENDED_LENGTH = 0x1000
_SEQUENCE = 2  # type of an AS_PATH segment


# A path without its prefix.
_Form = tuple[IPAddress | None, int | None, int | None, int, tuple[str, ...], Origin]


def announce(peers: Iterable[SessionKey], attributes: Attributes, prefixes: Iterable[IPNetwork]) -> str:
    """Announces `prefixes` (of the family of `attributes`), replacing what these peers have for them."""
    version = attributes.family[3]
    next_hop = attributes.next_hop.packed.hex() if attributes.next_hop is not None else "self"
    wire = attributes_bytes(attributes).hex() or "-"
    return f"{neighbors(peers)} routerd announce {version} {next_hop} {wire} {nlri_bytes(prefixes).hex()}"


def withdraw(peers: Iterable[SessionKey], prefixes: Sequence[IPNetwork]) -> str:
    """Withdraws `prefixes`, all of one family and at least one. Withdrawing what is not announced is no error."""
    return f"{neighbors(peers)} routerd withdraw {prefixes[0].version} {nlri_bytes(prefixes).hex()}"


def nlri_bytes(prefixes: Iterable[IPNetwork]) -> bytes:
    """Each as its length in bits and the bytes that it fills."""
    return b"".join(
        [
            bytes((length := prefix.prefixlen,)) + prefix.network_address.packed[: (length + 7) // 8]
            for prefix in prefixes
        ]
    )


def attributes_bytes(attributes: Attributes) -> bytes:
    """What is not the session's default, without the next hop: ORIGIN only if it is not IGP, AS_PATH only if
    our AS is prepended.
    """
    standard, large, others = by_kind(attributes.communities)
    parts = []
    if attributes.origin != "igp":
        parts.append(_attribute(_ORIGIN, bytes((ORIGINS.index(attributes.origin),))))
    if attributes.prepend:
        count = attributes.prepend + 1  # our AS once, as every eBGP path has it, and the extra times
        parts.append(_attribute(_AS_PATH, bytes((_SEQUENCE, count)) + pack("!I", attributes.local_as) * count))
    if attributes.med is not None:
        parts.append(_attribute(_MED, pack("!I", attributes.med)))
    if attributes.local_pref is not None:
        parts.append(_attribute(_LOCAL_PREF, pack("!I", attributes.local_pref)))
    if standard:
        parts.append(_attribute(_COMMUNITIES, b"".join(pack("!HH", *_numbers(text)) for text in standard)))
    if others:
        parts.append(_attribute(_EXTENDED_COMMUNITIES, b"".join(map(extended.packed, others))))
    if large:
        parts.append(_attribute(_LARGE_COMMUNITIES, b"".join(pack("!III", *_numbers(text)) for text in large)))
    return b"".join(parts)


def _numbers(community: str) -> Iterable[int]:
    return map(int, community.split(":"))


def _attribute(kind: int, value: bytes) -> bytes:
    if len(value) > 255:
        return pack("!HH", kind | _EXTENDED_LENGTH, len(value)) + value
    return pack("!HB", kind, len(value)) + value


def parse_table(
    lines: Iterable[str], peers: Mapping[SessionKey, SpeakerPeer]
) -> dict[SessionKey, dict[IPNetwork, Path]]:
    """The answer to SHOW_TABLE as session -> prefix -> path, in the normal form of `bgp.rib` where the peer is known.

    A path with an attribute that routerd does not set comes out with a next hop that is never wanted, and so differs.
    What is the same for several peers is one object. Raises ValueError on what is no such line.
    """
    table: dict[SessionKey, dict[IPNetwork, Path]] = {key: {} for key in peers}
    shared: dict[tuple[_Form, str], dict[IPNetwork, Path]] = {}
    for line in lines:
        session, version, hop, wire, nlris = line.split()
        key = session_key(session)
        form = _form(int(version), bytes.fromhex(hop), b"" if wire == "-" else bytes.fromhex(wire), peers.get(key))
        if (form, nlris) not in shared:
            prefixes = _prefixes(int(version), bytes.fromhex(nlris))
            shared[form, nlris] = {prefix: Path(prefix, *form) for prefix in prefixes}
        table.setdefault(key, {}).update(shared[form, nlris])
    return table


def _form(version: int, hop: bytes, wire: bytes, peer: SpeakerPeer | None) -> _Form:
    next_hop = ip_address(hop)
    values = dict(_attributes(wire))
    origin = values.get(_ORIGIN, b"\0")[0]
    if not values.keys() <= _KNOWN or origin >= len(ORIGINS):
        return type(next_hop)(0), None, None, 0, (), "igp"
    is_own = peer is not None and next_hop == peer.local_address and next_hop.version == version
    communities = [f"{high}:{low}" for high, low in iter_unpack("!HH", values.get(_COMMUNITIES, b""))]
    communities += ["{}:{}:{}".format(*each) for each in iter_unpack("!III", values.get(_LARGE_COMMUNITIES, b""))]
    communities += [extended.text_of(each) for (each,) in iter_unpack("8s", values.get(_EXTENDED_COMMUNITIES, b""))]
    return (
        None if is_own else next_hop,
        _number(values.get(_LOCAL_PREF)),
        _number(values.get(_MED)),
        max(0, values[_AS_PATH][1] - 1) if _AS_PATH in values else 0,
        normal_communities(communities),
        ORIGINS[origin],
    )


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big")


def _attributes(wire: bytes) -> Iterator[tuple[int, bytes]]:
    """Flags with type code, and value."""
    at = 0
    while at < len(wire):
        kind = int.from_bytes(wire[at : at + 2], "big")
        begin = at + 4 if kind & _EXTENDED_LENGTH else at + 3
        at = begin + int.from_bytes(wire[at + 2 : begin], "big")
        yield kind & ~_EXTENDED_LENGTH, wire[begin:at]


def _prefixes(version: int, data: bytes) -> Iterator[IPNetwork]:
    size, network = (4, IPv4Network) if version == 4 else (16, IPv6Network)
    at = 0
    while at < len(data):
        length = data[at]
        end = at + 1 + (length + 7) // 8
        yield network((data[at + 1 : end].ljust(size, b"\0"), length))
        at = end
