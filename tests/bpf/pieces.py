"""Datagrams cut into fragments as a sender does it, and put together again as a receiver does. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.bpf.packets import ETHERNET, FRAGMENT_HEADER, MORE_FRAGMENTS, BadPacket, checksum, parse

SIZE = 1376  # bytes of a datagram in each fragment


def cut(frame: bytes, identification: int, size: int = SIZE) -> list[bytes]:
    """The fragments of a frame without IP options, in order (RFC 791, section 3.2; RFC 8200, section 4.5)."""
    make = _fragment4 if frame[ETHERNET] >> 4 == 4 else _fragment6
    start = ETHERNET + (20 if frame[ETHERNET] >> 4 == 4 else 40)
    header, body = frame[ETHERNET:start], frame[start:]
    return [
        frame[:ETHERNET] + make(header, identification, at, at + size < len(body), body[at : at + size])
        for at in range(0, len(body), size)
    ]


def _fragment4(header: bytes, identification: int, position: int, more: bool, body: bytes) -> bytes:
    place = position // 8 | (MORE_FRAGMENTS if more else 0)
    lengths = struct.pack("!HHH", 20 + len(body), identification, place)
    made = header[:2] + lengths + header[8:10] + b"\0\0" + header[12:]
    return made[:10] + struct.pack("!H", checksum(made)) + made[12:] + body


def _fragment6(header: bytes, identification: int, position: int, more: bool, body: bytes) -> bytes:
    extension = struct.pack("!BBHI", header[6], 0, position | more, identification)
    length = struct.pack("!HB", len(extension) + len(body), FRAGMENT_HEADER)
    return header[:4] + length + header[7:] + extension + body


def join(frames: Sequence[bytes]) -> bytes:
    """The frame of the datagram whose fragments these are. BadPacket if they are not of one."""
    said = [parse(frame) for frame in frames]
    if len({(each.source, each.destination, each.protocol, each.id) for each in said}) != 1:
        raise BadPacket(f"fragments of several datagrams: {said}")
    version, at = said[0].version, sorted(range(len(frames)), key=lambda n: said[n].position)
    size = 20 if version == 4 else 48
    body = b"".join(frames[n][ETHERNET + size :] for n in at)
    header = frames[at[0]][: ETHERNET + size]
    if [said[n].position for n in at] != [
        sum(len(frames[m]) - ETHERNET - size for m in at[:n]) for n in range(len(at))
    ]:
        raise BadPacket("fragments with holes, or that overlap")
    if version == 4:
        whole = header[:16] + struct.pack("!HHH", 20 + len(body), 0, 0) + header[22:24] + b"\0\0" + header[26:]
        return whole[:24] + struct.pack("!H", checksum(whole[ETHERNET:])) + whole[26:] + body
    return header[:18] + struct.pack("!HB", len(body), header[54]) + header[21:54] + body
