"""A BFD Control packet without authentication (RFC 5880, section 4.1): bytes to value and back. Pure.

Integers are in network byte order. What RFC 5880, 6.8.6 has a receiver discard without knowing the session is refused
here, with a reason; what depends on the session is not (`session.py`, `table.py`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
LENGTH = 24  # bytes, without authentication
MAX_INTERVAL = 2**32 - 1  # microseconds
_HEADER = struct.Struct("!BBBBIIIII")

_POLL, _FINAL, _INDEPENDENT, _AUTHENTICATED, _DEMAND, _MULTIPOINT = 0x20, 0x10, 0x08, 0x04, 0x02, 0x01


class State(IntEnum):
    """Sta, section 4.1."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3


class Diagnostic(IntEnum):
    """Diag, section 4.1: why the sender's session was last not up."""

    NONE = 0
    DETECTION_TIME_EXPIRED = 1
    ECHO_FAILED = 2
    NEIGHBOR_DOWN = 3
    FORWARDING_PLANE_RESET = 4
    PATH_DOWN = 5
    CONCATENATED_PATH_DOWN = 6
    ADMIN_DOWN = 7
    REVERSE_PATH_DOWN = 8


@dataclass(frozen=True, slots=True)
class Packet:
    """Intervals in microseconds. `diagnostic` is a number: those above 8 are reserved, and may come."""

    state: State
    multiplier: int
    my_discriminator: int
    your_discriminator: int = 0
    desired_min_tx: int = 1_000_000
    required_min_rx: int = 1_000_000
    required_min_echo_rx: int = 0
    diagnostic: int = 0
    poll: bool = False
    final: bool = False
    independent: bool = False
    """Control Plane Independent, C."""
    demand: bool = False


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a packet is discarded: a word for counters."""

    reason: str


def encode(packet: Packet) -> bytes:
    """24 bytes. struct.error on a number that does not fit its field: a mistake of ours."""
    flags = (
        _POLL * packet.poll | _FINAL * packet.final | _INDEPENDENT * packet.independent | _DEMAND * packet.demand
    )  # fmt: skip
    return _HEADER.pack(
        VERSION << 5 | packet.diagnostic,
        packet.state << 6 | flags,
        packet.multiplier,
        LENGTH,
        packet.my_discriminator,
        packet.your_discriminator,
        packet.desired_min_tx,
        packet.required_min_rx,
        packet.required_min_echo_rx,
    )


def decode(data: bytes) -> Packet | Malformed:
    """The checks of section 6.8.6 in their order; the length of the datagram stands for that of UDP's payload."""
    if len(data) < LENGTH:
        return Malformed("truncated")
    first, second, multiplier, length, mine, yours, tx, rx, echo = _HEADER.unpack_from(data)
    if reason := _fault(first >> 5, second, multiplier, length, len(data), mine, yours):
        return Malformed(reason)
    return Packet(
        state=State(second >> 6),
        multiplier=multiplier,
        my_discriminator=mine,
        your_discriminator=yours,
        desired_min_tx=tx,
        required_min_rx=rx,
        required_min_echo_rx=echo,
        diagnostic=first & 0x1F,
        poll=bool(second & _POLL),
        final=bool(second & _FINAL),
        independent=bool(second & _INDEPENDENT),
        demand=bool(second & _DEMAND),
    )


def _fault(version: int, flags: int, multiplier: int, length: int, size: int, mine: int, yours: int) -> str:
    """ "" = it is a packet."""
    state = State(flags >> 6)
    checks = (
        (version != VERSION, "version"),
        (length < LENGTH or length > size, "length"),
        (multiplier == 0, "multiplier-zero"),
        (bool(flags & _MULTIPOINT), "multipoint"),
        (mine == 0, "discriminator-zero"),
        (yours == 0 and state in (State.INIT, State.UP), "no-session-named"),
        (bool(flags & _AUTHENTICATED), "authenticated"),  # we use none: section 6.8.6
        (bool(flags & _POLL and flags & _FINAL), "poll-and-final"),  # section 4.1
    )
    return next((reason for is_so, reason in checks if is_so), "")
