"""ExaBGP's text: API commands rendered, its JSON events and its table parsed. Pure.

Checked against ExaBGP 5.0.15. A command names its sessions as `neighbor A local-ip B , neighbor …`; NLRI of one
command are of one family and share their attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, Literal

from bgp.path import ORIGINS, Family, IPNetwork, Path, SessionKey, SpeakerPeer, by_kind, normal_communities, session_key
from bgp.rib import Attributes, extended

SHOW_TABLE = "show adj-rib out json"
BFD_DOWN = 10  # subcode of Cease, RFC 9384


def announce(peers: Iterable[SessionKey], attributes: Attributes, prefixes: Iterable[IPNetwork]) -> str:
    """Announces `prefixes` (of the family of `attributes`), replacing what these peers have for them."""
    return f"{neighbors(peers)} announce attributes {_attributes(attributes)} nlri {_nlri(prefixes)}"


def withdraw(peers: Iterable[SessionKey], prefixes: Iterable[IPNetwork]) -> str:
    """Withdraws `prefixes`, all of one family. Withdrawing what is not announced is no error."""
    return f"{neighbors(peers)} withdraw attributes nlri {_nlri(prefixes)}"


def end_of_rib(peer: SessionKey, family: Family) -> str:
    """End-of-RIB (RFC 4724, section 2), sent after all that is queued. An error if the session is not up."""
    return f"{neighbors([peer])} announce eor {family}"


def flush(peers: Iterable[SessionKey], seconds: float) -> str:
    """Answered when the TCP of `peers` has all that is queued, an error after `seconds` (an older speaker: 5).
    One of the launcher's commands.
    """
    return f"{neighbors(peers)} routerd flush {seconds:g}"


def end_session(peer: SessionKey, subcode: int) -> str:
    """Ends an established session with Cease and `subcode` (RFC 4271, 6.7), graceful restart or not; ExaBGP connects
    again. One of the launcher's commands.
    """
    return f"{neighbors([peer])} routerd end {subcode}"


def neighbors(peers: Iterable[SessionKey]) -> str:
    """Whom a command is for; in front of it."""
    return " , ".join(f"neighbor {key.peer} local-ip {key.local}" for key in peers)


def _nlri(prefixes: Iterable[IPNetwork]) -> str:
    return " ".join(map(str, prefixes))


def _attributes(attributes: Attributes) -> str:
    standard, large, others = by_kind(attributes.communities)
    parts = [f"next-hop {attributes.next_hop or 'self'}"]
    if attributes.origin != "igp":
        parts.append(f"origin {attributes.origin}")
    if attributes.prepend:
        # A path given by hand is sent as it is: our AS once, as every eBGP path has it, and the extra times.
        parts.append(f"as-path [ {' '.join([str(attributes.local_as)] * (attributes.prepend + 1))} ]")
    if attributes.med is not None:
        parts.append(f"med {attributes.med}")
    if attributes.local_pref is not None:
        parts.append(f"local-preference {attributes.local_pref}")
    if standard:
        parts.append(f"community [ {' '.join(standard)} ]")
    if large:
        parts.append(f"large-community [ {' '.join(large)} ]")
    if others:
        numbers = (f"0x{extended.packed(text).hex()}" for text in others)
        parts.append(f"extended-community [ {' '.join(numbers)} ]")
    return " ".join(parts)


# --- events ---


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """A change of one session. `time` is of the monotonic clock; with "negotiated" come `families`,
    `extended_next_hop` (RFC 8950) and `hold_time` (seconds).
    """

    session: SessionKey
    kind: Literal["up", "down", "connected", "negotiated"]
    time: float
    reason: str = ""
    families: tuple[Family, ...] = ()
    hold_time: int = 0
    extended_next_hop: bool = False


def parse_event(event: Mapping[str, Any]) -> SessionEvent | None:
    """ExaBGP's JSON object as an event, or None if it is of a kind that is not needed here.

    Raises KeyError, TypeError or ValueError on an object that ExaBGP 5.0.15 does not write.
    """
    kind, session = event.get("type"), event.get("neighbor")
    if kind not in ("state", "negotiated") or not isinstance(session, dict):
        return None
    address, time = session["address"], float(event["time"])
    key = SessionKey(ip_address(address["peer"]), ip_address(address["local"]))
    if kind == "negotiated":
        agreed = session["negotiated"]
        families = tuple(family for family in _FAMILIES if family in agreed["families"])
        extended = "ipv4 unicast ipv6" in agreed["nexthop"]
        hold_time = int(agreed["hold_time"])
        return SessionEvent(key, "negotiated", time, families=families, hold_time=hold_time, extended_next_hop=extended)
    state = session["state"]
    if state not in ("up", "down", "connected"):
        return None
    return SessionEvent(key, state, time, reason=readable_reason(session.get("reason", "")) if state == "down" else "")


_FAMILIES: tuple[Family, ...] = ("ipv4 unicast", "ipv6 unicast")

# RFC 4271, section 4.5; subcodes of Cease from RFC 4486, 8538 and 9384, of OPEN errors from RFC 4271 and 5492.
_NOTIFICATIONS = {
    (1, 0): "message header error",
    (1, 1): "message header error: wrong marker, what comes is no BGP",
    (1, 2): "message header error: bad length",
    (1, 3): "message header error: unknown type of message",
    (2, 0): "OPEN: malformed",
    (2, 1): "OPEN: unsupported version",
    (2, 2): "OPEN: bad peer AS (one side expects another AS number)",
    (2, 3): "OPEN: bad BGP identifier (router id)",
    (2, 4): "OPEN: unsupported parameter",
    (2, 6): "OPEN: unacceptable hold time",
    (2, 7): "OPEN: unsupported capability",
    (3, 0): "UPDATE error",
    (4, 0): "hold timer expired",
    (5, 0): "state machine error",
    (6, 0): "cease",
    (6, 1): "cease: maximum number of prefixes reached",
    (6, 2): "cease: administrative shutdown",
    (6, 3): "cease: peer de-configured",
    (6, 4): "cease: administrative reset",
    (6, 5): "cease: connection rejected",
    (6, 6): "cease: other configuration change",
    (6, 7): "cease: connection collision",
    (6, 8): "cease: out of resources",
    (6, 9): "cease: hard reset",
    (6, 10): "cease: BFD down",
}


def readable_reason(reason: str) -> str:
    """ExaBGP's reason with the NOTIFICATION's code and subcode spelt out: "notification received (6,2): cease: …"."""
    if reason == "closing connection":
        return f"{reason}: no TCP connection could be opened, or the peer closed it without a NOTIFICATION"
    head, bracket, rest = reason.partition("(")
    if not head.startswith("notification ") or not bracket:
        return reason
    numbers = rest.partition(")")[0].split(",")
    if len(numbers) != 2 or not all(number.strip().isdigit() for number in numbers):
        return reason
    code, subcode = (int(number) for number in numbers)
    meaning = _NOTIFICATIONS.get((code, subcode)) or _NOTIFICATIONS.get((code, 0))
    return f"{reason}: {meaning}" if meaning else reason


# --- the table ---


def parse_table(
    lines: Iterable[str], peers: Mapping[SessionKey, SpeakerPeer]
) -> dict[SessionKey, dict[IPNetwork, Path]]:
    """The answer to SHOW_TABLE as session -> prefix -> path, in the normal form of `bgp.rib` where the peer is known.

    A path with an attribute that routerd does not set comes out with a next hop that is never wanted, and so differs.
    Raises KeyError, TypeError or ValueError on a line that ExaBGP 5.0.15 does not write.
    """
    table: dict[SessionKey, dict[IPNetwork, Path]] = {key: {} for key in peers}
    for line in lines:
        row = json.loads(line)
        key = _session(row["peer"]["address"], peers)
        path = _path(row["route"], peers.get(key))
        table.setdefault(key, {})[path.prefix] = path
    return table


def _session(text: str, peers: Iterable[SessionKey]) -> SessionKey:
    """Of stock ExaBGP, which says the peer alone, the only one of `peers`."""
    if "," in text:
        return session_key(text)
    (found,) = (key for key in peers if str(key.peer) == text)
    return found


_KNOWN = {
    "origin", "next-hop", "as-path", "med", "local-preference", "community", "large-community", "extended-community",
}  # fmt: skip


def _path(route: Mapping[str, Any], peer: SpeakerPeer | None) -> Path:
    nlri, attributes = route["nlri"], route["attributes"]
    prefix, next_hop = ip_network(nlri["prefix"]), ip_address(nlri["nexthop"])
    is_own = peer is not None and next_hop == peer.local_address and next_hop.version == prefix.version
    origin = attributes.get("origin", "igp")
    if not attributes.keys() <= _KNOWN or origin not in ORIGINS:
        return Path(prefix, type(next_hop)(0))
    others = map(_extended, attributes.get("extended-community", ()))
    return Path(
        prefix,
        None if is_own else next_hop,
        attributes.get("local-preference"),
        attributes.get("med"),
        max(0, len(_as_numbers(attributes.get("as-path"))) - 1),
        normal_communities([*attributes.get("community", ()), *attributes.get("large-community", ()), *others]),
        origin,
    )


_EXTENDED = {"target": "rt", "origin": "soo", "bandwith": "link-bandwidth"}  # spelt so by ExaBGP


def _extended(text: str) -> str:
    """Of an extended community as ExaBGP says it; what has no name in either place stays as it is.

    ExaBGP writes the number behind an AS number of two bytes as an address where it is a route origin's, and a route
    origin of an address as one of an AS number: that is not what was announced, and is announced again.
    """
    if text.startswith("0x"):
        return extended.text_of(bytes.fromhex(text[2:]))
    kind, _, rest = text.partition(":")
    admin, _, number = rest.rpartition(":")
    whole = str(int(IPv4Address(number))) if "." in number else number
    return f"{_EXTENDED[kind]}:{admin}:{whole}" if kind in _EXTENDED else text


def _as_numbers(path: Any) -> list[int]:
    if not path:
        return []
    segments = path.values() if isinstance(path, dict) else path
    return [number for segment in segments for number in segment["value"]]
