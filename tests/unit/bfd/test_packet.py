"""Control packets: bytes as the RFC draws them, and whatever else comes is refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bfd.packet import LENGTH, MAX_INTERVAL, Malformed, Packet, State, decode, encode

# Section 4.1's fields in their order: a Down with which a session begins, and an Up that polls.
DOWN = "20 40 03 18  00 00 00 01  00 00 00 00  00 0f 42 40  00 00 c3 50  00 00 00 00"
UP_POLL = "20 e0 03 18  01 02 03 04  a1 b2 c3 d4  00 00 c3 50  00 00 c3 50  00 00 00 00"
EXPIRED = "21 40 03 18  01 02 03 04  00 00 00 00  00 0f 42 40  00 00 c3 50  00 00 00 00"
FINAL = "20 d8 05 18  00 00 00 07  00 00 00 08  00 00 00 01  00 00 00 00  00 00 27 10"  # C too

WIRE = [
    (DOWN, Packet(State.DOWN, 3, 1, 0, 1_000_000, 50_000)),
    (UP_POLL, Packet(State.UP, 3, 0x01020304, 0xA1B2C3D4, 50_000, 50_000, poll=True)),
    (EXPIRED, Packet(State.DOWN, 3, 0x01020304, 0, 1_000_000, 50_000, diagnostic=1)),
    (FINAL, Packet(State.UP, 5, 7, 8, 1, 0, 10_000, final=True, independent=True)),
]


@pytest.mark.parametrize(("text", "packet"), WIRE)
def test_packets_are_the_bytes_of_the_rfc(text: str, packet: Packet) -> None:
    assert encode(packet) == bytes.fromhex(text)
    assert decode(bytes.fromhex(text)) == packet


def changed(offset: int, value: int) -> bytes:
    data = bytearray(bytes.fromhex(UP_POLL))
    data[offset] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (bytes.fromhex(UP_POLL)[:23], "truncated"),
        (changed(0, 0x00), "version"),
        (changed(0, 0x40), "version"),
        (changed(3, 23), "length"),
        (changed(3, 25), "length"),  # more than came
        (changed(2, 0), "multiplier-zero"),
        (changed(1, 0xC1), "multipoint"),
        (changed(1, 0xC4), "authenticated"),
        (changed(1, 0xF0), "poll-and-final"),
        (bytes.fromhex(UP_POLL)[:4] + bytes(4) + bytes.fromhex(UP_POLL)[8:], "discriminator-zero"),
        (bytes.fromhex(UP_POLL)[:8] + bytes(4) + bytes.fromhex(UP_POLL)[12:], "no-session-named"),
        (bytes.fromhex(DOWN.replace("20 40", "20 80")), "no-session-named"),
    ],
)
def test_what_is_malformed_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    assert decode(data) == Malformed(reason)


def test_a_peer_that_is_down_need_not_name_the_session() -> None:
    for first in ("20 40", "20 00"):
        assert isinstance(decode(bytes.fromhex(DOWN.replace("20 40", first))), Packet)


def test_bytes_after_the_packet_are_not_looked_at() -> None:
    assert decode(bytes.fromhex(UP_POLL) + b"more") == decode(bytes.fromhex(UP_POLL))


uint32 = st.integers(0, MAX_INTERVAL)
packets = st.builds(
    Packet,
    state=st.sampled_from(State),
    multiplier=st.integers(1, 255),
    my_discriminator=st.integers(1, MAX_INTERVAL),
    your_discriminator=st.integers(1, MAX_INTERVAL),
    desired_min_tx=uint32,
    required_min_rx=uint32,
    required_min_echo_rx=uint32,
    diagnostic=st.integers(0, 31),
    poll=st.booleans(),
    independent=st.booleans(),
    demand=st.booleans(),
)


@given(packets)
def test_what_was_encoded_is_decoded(packet: Packet) -> None:
    assert decode(encode(packet)) == packet


@given(st.binary(max_size=3 * LENGTH))
def test_any_bytes_are_a_packet_or_refused_and_a_packet_says_the_same_again(data: bytes) -> None:
    found = decode(data)
    if isinstance(found, Packet):
        assert decode(encode(found)) == found
    else:
        assert found.reason
