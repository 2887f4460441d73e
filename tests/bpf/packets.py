"""Ethernet frames from descriptions of packets, and back. Pure; the parser refuses a frame with a wrong checksum."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from tests.models.tables import ICMP, TCP, UDP, Packet

ETHERNET = 14
IPV4, IPV6 = 0x0800, 0x86DD
MORE_FRAGMENTS, DONT_FRAGMENT = 0x2000, 0x4000
FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "A": 0x10}
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIMESTAMP = 0, 3, 8, 13
ECHO_TYPES = {"request": ECHO_REQUEST, "reply": ECHO_REPLY}
FRAGMENTATION_NEEDED = 4


class BadPacket(Exception):
    """A frame that no host would take; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a description leaves open."""

    destination_mac: bytes = b"\x02\0\0\0\0\x02"
    source_mac: bytes = b"\x02\0\0\0\0\x01"
    payload: bytes = b""  # repeated up to the packet's length
    udp_checksum: bool = True
    mss_at: int = 0  # NOP options before the MSS option of a SYN
    later_fragment: bool = False  # without the transport header
    cut: int = 0  # bytes of transport header that a malformed packet has
    icmp_code: int = 1
    mtu: int = 0  # that "fragmentation needed" tells


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that carries a right one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def _pseudo(source: IPv4Address, destination: IPv4Address, protocol: int, length: int) -> bytes:
    return source.packed + destination.packed + struct.pack("!BBH", 0, protocol, length)


# --- build ------------------------------------------------------------------------------------------------------------


def build(packet: Packet, shape: Shape | None = None) -> bytes:
    """The frame of `packet`, `packet.length` bytes of IP."""
    shape = shape or Shape()
    ethertype = IPV6 if packet.kind == "not-ipv4" else IPV4
    return shape.destination_mac + shape.source_mac + struct.pack("!H", ethertype) + build_ip(packet, shape)


def build_ip(packet: Packet, shape: Shape) -> bytes:
    options = b"\x01\x01\x01\0" if packet.options else b""
    room = packet.length - 20 - len(options)
    body = _transport(packet, shape, room)
    fragment = DONT_FRAGMENT if packet.dont_fragment else 0
    if packet.kind == "fragment":
        fragment |= MORE_FRAGMENTS | (185 if shape.later_fragment else 0)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), 7, fragment, packet.ttl,
        packet.protocol, 0, packet.source.packed, packet.destination.packed,
    )  # fmt: skip
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def _fill(shape: Shape, room: int) -> bytes:
    pattern = shape.payload or bytes(range(1, 252))
    return (pattern * (max(room, 0) // len(pattern) + 1))[: max(room, 0)]


def _transport(packet: Packet, shape: Shape, room: int) -> bytes:
    if packet.kind == "malformed":
        return _fill(shape, shape.cut)
    if packet.kind == "fragment" and shape.later_fragment:
        return _fill(shape, room)
    if packet.protocol == TCP:
        return _tcp(packet, shape, room)
    if packet.protocol == UDP:
        return _udp(packet, shape, room)
    return _icmp(packet, shape, room) if packet.protocol == ICMP else _fill(shape, room)


def _tcp_options(packet: Packet, shape: Shape) -> bytes:
    if not packet.mss:
        return b""
    options = b"\x01" * shape.mss_at + struct.pack("!BBH", 2, 4, packet.mss)
    return options + b"\x01" * (-len(options) % 4)


def _tcp(packet: Packet, shape: Shape, room: int) -> bytes:
    options = _tcp_options(packet, shape)
    words = (20 + len(options)) // 4
    flags = sum(FLAGS[flag] for flag in packet.flags)
    ports = packet.source_port, packet.destination_port
    header = struct.pack("!HHIIBBHHH", *ports, 1, 2, words << 4, flags, 512, 0, 0)
    segment = header + options + _fill(shape, room - 20 - len(options))
    total = checksum(_pseudo(packet.source, packet.destination, TCP, len(segment)) + segment)
    return segment[:16] + struct.pack("!H", total) + segment[18:]


def _udp(packet: Packet, shape: Shape, room: int) -> bytes:
    data = _fill(shape, room - 8)
    datagram = struct.pack("!HHHH", packet.source_port, packet.destination_port, 8 + len(data), 0) + data
    if not shape.udp_checksum:
        return datagram
    total = checksum(_pseudo(packet.source, packet.destination, UDP, len(datagram)) + datagram) or 0xFFFF
    return datagram[:6] + struct.pack("!H", total) + datagram[8:]


def _icmp(packet: Packet, shape: Shape, room: int) -> bytes:
    if packet.kind == "icmp-error":
        message = struct.pack("!BBHHH", UNREACHABLE, shape.icmp_code, 0, 0, shape.mtu) + _quote(packet, shape)
    elif packet.kind == "flow":
        identifier = packet.source_port if packet.echo == "request" else packet.destination_port
        message = struct.pack("!BBHHH", ECHO_TYPES[packet.echo], 0, 0, identifier, 9) + _fill(shape, room - 8)
    else:
        message = struct.pack("!BBHHH", TIMESTAMP, 0, 0, 1, 2) + _fill(shape, room - 8)
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def _quote(packet: Packet, shape: Shape) -> bytes:
    """The header and 64 bits (RFC 792), or less than that."""
    if packet.quoted is None:
        return b"\x45\0\0"
    inner = build_ip(packet.quoted, shape)
    return inner[: (inner[0] & 15) * 4 + 8]


# --- parse ------------------------------------------------------------------------------------------------------------


def parse(frame: bytes) -> Packet:
    """What a frame says. BadPacket if a checksum in it is wrong, or a length."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype != IPV4:
        raise BadPacket(f"Ethernet type {ethertype:#06x}")
    return parse_ip(frame[ETHERNET:])


def parse_ip(data: bytes, quoted: bool = False) -> Packet:
    """An IPv4 packet. A quoted one is cut short: only its own header's checksum is looked at."""
    size = (data[0] & 15) * 4
    if checksum(data[:size]):
        raise BadPacket("IPv4 header checksum")
    length, fragment = struct.unpack_from("!H2xH", data, 2)
    if length != len(data) and not quoted:
        raise BadPacket(f"IPv4 length {length}, the packet has {len(data)}")
    fields: dict[str, Any] = {
        "source": IPv4Address(data[12:16]), "destination": IPv4Address(data[16:20]), "protocol": data[9],
        "ttl": data[8], "length": length, "options": size > 20, "dont_fragment": bool(fragment & DONT_FRAGMENT),
    }  # fmt: skip
    if fragment & 0x3FFF:
        return Packet(**fields, kind="fragment")
    if not quoted:
        _check_transport(Packet(**fields), data[size:])
    return Packet(**fields, **_transport_fields(data[9], data[size:]))


def _check_transport(packet: Packet, body: bytes) -> None:
    name = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP"}.get(packet.protocol)
    if name is None or (packet.protocol == UDP and body[6:8] == b"\0\0"):  # no checksum (RFC 768)
        return
    pseudo = b"" if packet.protocol == ICMP else _pseudo(packet.source, packet.destination, packet.protocol, len(body))
    if checksum(pseudo + body):
        raise BadPacket(f"{name} checksum")


def _transport_fields(protocol: int, body: bytes) -> dict[str, Any]:
    if protocol in (TCP, UDP):
        source, destination = struct.unpack_from("!HH", body)
        fields: dict[str, Any] = {"source_port": source, "destination_port": destination}
        return fields | _tcp_fields(body) if protocol == TCP and len(body) >= 20 else fields
    if protocol != ICMP:
        return {"kind": "unsupported"}
    (identifier,) = struct.unpack_from("!H", body, 4)
    match body[0]:
        case 8:
            return {"echo": "request", "source_port": identifier}
        case 0:
            return {"echo": "reply", "destination_port": identifier}
        case 3:
            whole = len(body) >= 8 + 28
            return {"kind": "icmp-error", "quoted": parse_ip(body[8:], quoted=True) if whole else None}
    return {"kind": "unsupported"}


def _tcp_fields(body: bytes) -> dict[str, Any]:
    flags = "".join(flag for flag in "SAFR" if body[13] & FLAGS[flag])
    options, mss = body[20 : (body[12] >> 4) * 4], 0
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if options[0] == 2:
            (mss,) = struct.unpack_from("!H", options, 2)
        options = options[options[1] :]
    return {"flags": flags, "mss": mss}


def vxlan(frame: bytes, vni: int, port: int, outer: Packet) -> bytes:
    """The outer frame of `frame` (RFC 7348), between the endpoints of `outer`; UDP without a checksum."""
    payload = struct.pack("!BBHI", 0x08, 0, 0, vni << 8) + frame
    tunnel = Packet(outer.source, outer.destination, UDP, 49152, port, length=28 + len(payload))
    return build(tunnel, Shape(payload=payload, udp_checksum=False))


def inside_vxlan(frame: bytes) -> tuple[IPv4Address, int, bytes]:
    """(outer destination, VNI, inner frame) of a frame on the underlay."""
    outer = parse(frame)
    (word,) = struct.unpack_from("!I", frame, ETHERNET + 28 + 4)
    return outer.destination, word >> 8, frame[ETHERNET + 36 :]


def told_mtu(frame: bytes) -> int:
    """The MTU in an ICMP "fragmentation needed" (RFC 1191, section 4)."""
    kind, code, mtu = struct.unpack_from("!BB4xH", frame, ETHERNET + 20)
    if (kind, code) != (UNREACHABLE, FRAGMENTATION_NEEDED):
        raise BadPacket(f"ICMP type {kind} code {code}")
    return int(mtu)
