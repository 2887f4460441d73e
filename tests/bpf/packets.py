"""Ethernet frames from descriptions of packets, and back. Pure; the parser refuses a frame with a wrong checksum."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from egress.policy import IPAddress
from tests.models.tables import ICMP, ICMP6, SCTP, TCP, UDP, About, Packet

ETHERNET = 14
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
ARP = 0x0806
MORE_FRAGMENTS, DONT_FRAGMENT = 0x2000, 0x4000
FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "A": 0x10}
TIMESTAMP, NODE_QUERY = 13, 139  # of ICMP and ICMPv6: neither echo nor error
ECHO_TYPES = {ICMP: {"request": 8, "reply": 0}, ICMP6: {"request": 128, "reply": 129}}
# (type, code) of ICMP errors; of an "unreachable" the code is the shape's.
ERRORS: dict[int, dict[About, tuple[int, int]]] = {
    ICMP: {"unreachable": (3, 1), "too-big": (3, 4), "ttl": (11, 0)},
    ICMP6: {"unreachable": (1, 0), "too-big": (2, 0), "ttl": (3, 0)},
}
FRAGMENT_HEADER, DESTINATION_OPTIONS = 44, 60


class BadPacket(Exception):
    """A frame that no host would take; the message says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a description leaves open."""

    destination_mac: bytes = b"\x02\0\0\0\0\x02"
    source_mac: bytes = b"\x02\0\0\0\0\x01"
    payload: bytes = b""  # repeated up to the packet's length
    summed: bool = True  # UDP may go without a checksum; of SCTP, and of nothing else, a device computes it later
    mss_at: int = 0  # NOP options before the MSS option of a SYN
    cut: int = 0  # bytes of transport header that a malformed packet has
    mtu: int = 0  # that "too big" tells
    last: bool = False  # of a datagram's fragments


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that carries a right one."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (CRC32C if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


CRC32C = 0x82F63B78
CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> bytes:
    """SCTP's checksum as it is on the wire (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def _pseudo(source: IPAddress, destination: IPAddress, protocol: int, length: int) -> bytes:
    """The pseudo header (RFC 793, section 3.1; RFC 8200, section 8.1)."""
    addresses = source.packed + destination.packed
    if source.version == 6:
        return addresses + struct.pack("!II", length, protocol)
    return addresses + struct.pack("!BBH", 0, protocol, length)


# --- build ------------------------------------------------------------------------------------------------------------


def build(packet: Packet, shape: Shape | None = None) -> bytes:
    """The frame of `packet`, `packet.length` bytes of IP."""
    shape = shape or Shape()
    ethertype = ARP if packet.kind == "not-ip" else ETHERTYPES[packet.version]
    return shape.destination_mac + shape.source_mac + struct.pack("!H", ethertype) + build_ip(packet, shape)


def build_ip(packet: Packet, shape: Shape) -> bytes:
    return _build4(packet, shape) if packet.version == 4 else _build6(packet, shape)


def _build4(packet: Packet, shape: Shape) -> bytes:
    options = b"\x01\x01\x01\0" if packet.options else b""
    body = _transport(packet, shape, packet.length - 20 - len(options))
    fragment = DONT_FRAGMENT if packet.dont_fragment else 0
    if _is_fragment(packet):
        fragment |= (0 if shape.last else MORE_FRAGMENTS) | packet.position // 8
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), packet.id, fragment, packet.ttl,
        packet.protocol, 0, packet.source.packed, packet.destination.packed,
    )  # fmt: skip
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def _build6(packet: Packet, shape: Shape) -> bytes:
    following, extensions = packet.protocol, b""
    if _is_fragment(packet):
        extensions = struct.pack("!BBHI", following, 0, packet.position | (not shape.last), packet.id)
        following = FRAGMENT_HEADER
    if packet.options:
        extensions = struct.pack("!BBBB4x", following, 0, 1, 4) + extensions
        following = DESTINATION_OPTIONS
    body = _transport(packet, shape, packet.length - 40 - len(extensions))
    head = struct.pack("!IHBB", 6 << 28, len(extensions) + len(body), following, packet.ttl)
    return head + packet.source.packed + packet.destination.packed + extensions + body


def _is_fragment(packet: Packet) -> bool:
    return packet.first or packet.position > 0


def _fill(shape: Shape, room: int) -> bytes:
    pattern = shape.payload or bytes(range(1, 252))
    return (pattern * (max(room, 0) // len(pattern) + 1))[: max(room, 0)]


def _transport(packet: Packet, shape: Shape, room: int) -> bytes:
    if packet.kind == "malformed" or (packet.kind == "bad-fragment" and packet.first):
        return _fill(shape, shape.cut)
    if packet.position:
        return _fill(shape, room)
    if packet.protocol == TCP:
        return _tcp(packet, shape, room)
    if packet.protocol == UDP:
        return _udp(packet, shape, room)
    if packet.protocol == SCTP:
        return _sctp(packet, shape, room)
    return _icmp(packet, shape, room) if packet.is_icmp else _fill(shape, room)


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
    if not shape.summed:
        return datagram
    total = checksum(_pseudo(packet.source, packet.destination, UDP, len(datagram)) + datagram) or 0xFFFF
    return datagram[:6] + struct.pack("!H", total) + datagram[8:]


def _sctp(packet: Packet, shape: Shape, room: int) -> bytes:
    ports, tag = (packet.source_port, packet.destination_port), 7
    whole = struct.pack("!HHII", *ports, tag, 0) + _fill(shape, room - 12)
    return whole[:8] + crc32c(whole) + whole[12:] if shape.summed else whole


def _icmp(packet: Packet, shape: Shape, room: int) -> bytes:
    if packet.kind == "icmp-error":
        kind, code = ERRORS[packet.protocol][packet.about]
        wide = packet.version == 6 and packet.about == "too-big"  # 32 bits (RFC 4443, section 3.2)
        rest = struct.pack("!I" if wide else "!xxH", shape.mtu)
        message = struct.pack("!BBH", kind, code, 0) + rest + _quote(packet, shape)
    elif packet.kind == "flow":
        identifier = packet.source_port if packet.echo == "request" else packet.destination_port
        kind = ECHO_TYPES[packet.protocol][packet.echo]
        message = struct.pack("!BBHHH", kind, 0, 0, identifier, 9) + _fill(shape, room - 8)
    else:
        other = TIMESTAMP if packet.version == 4 else NODE_QUERY
        message = struct.pack("!BBHHH", other, 0, 0, 1, 2) + _fill(shape, room - 8)
    pseudo = _pseudo(packet.source, packet.destination, ICMP6, len(message)) if packet.version == 6 else b""
    return message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]


def _quote(packet: Packet, shape: Shape) -> bytes:
    """The header and 64 bits (RFC 792), or less than that."""
    if packet.quoted is None:
        return b"\x45\0\0" if packet.version == 4 else b"\x60\0\0"
    inner = build_ip(packet.quoted, shape)
    if packet.version == 6:
        return inner[: 40 + (8 if packet.quoted.options else 0) + (8 if _is_fragment(packet.quoted) else 0) + 8]
    return inner[: (inner[0] & 15) * 4 + 8]


# --- parse ------------------------------------------------------------------------------------------------------------


def parse(frame: bytes) -> Packet:
    """What a frame says. BadPacket if a checksum in it is wrong, or a length."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype not in ETHERTYPES.values():
        raise BadPacket(f"Ethernet type {ethertype:#06x}")
    return parse_ip(frame[ETHERNET:])


def parse_ip(data: bytes, quoted: bool = False) -> Packet:
    """An IP packet. A quoted one is cut short: only its own header's checksum is looked at."""
    return _parse4(data, quoted) if data[0] >> 4 == 4 else _parse6(data, quoted)


def _parse4(data: bytes, quoted: bool) -> Packet:
    size = (data[0] & 15) * 4
    if checksum(data[:size]):
        raise BadPacket("IPv4 header checksum")
    length, identification, fragment = struct.unpack_from("!HHH", data, 2)
    if length != len(data) and not quoted:
        raise BadPacket(f"IPv4 length {length}, the packet has {len(data)}")
    fields: dict[str, Any] = {
        "source": ip_address(data[12:16]), "destination": ip_address(data[16:20]), "protocol": data[9],
        "ttl": data[8], "length": length, "options": size > 20, "dont_fragment": bool(fragment & DONT_FRAGMENT),
    }  # fmt: skip
    if fragment & 0x3FFF:
        return _with_piece(fields, (fragment & 0x1FFF) * 8, identification, data[size:])
    return _with_transport(fields, data[size:], quoted)


def _parse6(data: bytes, quoted: bool) -> Packet:
    payload, following, ttl = struct.unpack_from("!HBB", data, 4)
    if payload + 40 != len(data) and not quoted:
        raise BadPacket(f"IPv6 payload length {payload}, the packet has {len(data) - 40}")
    fields: dict[str, Any] = {
        "source": ip_address(data[8:24]), "destination": ip_address(data[24:40]), "ttl": ttl, "length": payload + 40,
    }  # fmt: skip
    rest = data[40:]
    if following == DESTINATION_OPTIONS:
        fields["options"], following, rest = True, rest[0], rest[(rest[1] + 1) * 8 :]
    if following == FRAGMENT_HEADER:
        following, place, identification = struct.unpack_from("!BxHI", rest)
        return _with_piece({**fields, "protocol": following}, place & ~7, identification, rest[8:])
    return _with_transport({**fields, "protocol": following}, rest, quoted)


def _with_piece(fields: dict[str, Any], position: int, identification: int, body: bytes) -> Packet:
    """The checksum of a first fragment is the whole datagram's."""
    if position:
        return Packet(**fields, kind="fragment", position=position, id=identification)
    if len(body) < 8:
        return Packet(**fields, kind="bad-fragment", first=True, id=identification)
    return Packet(**fields, **_transport_fields(fields["protocol"], body), first=True, id=identification)


def _with_transport(fields: dict[str, Any], body: bytes, quoted: bool) -> Packet:
    if not quoted:
        _check_transport(Packet(**fields), body)
    return Packet(**fields, **_transport_fields(fields["protocol"], body))


def _check_transport(packet: Packet, body: bytes) -> None:
    if packet.protocol == SCTP and body[8:12] not in (crc32c(body[:8] + bytes(4) + body[12:]), bytes(4)):
        raise BadPacket("SCTP checksum")
    name = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMP6: "ICMPv6"}.get(packet.protocol)
    no_sum = packet.version == 4 and packet.protocol == UDP and body[6:8] == b"\0\0"  # RFC 768
    if name is None or no_sum:
        return
    pseudo = b"" if packet.protocol == ICMP else _pseudo(packet.source, packet.destination, packet.protocol, len(body))
    if checksum(pseudo + body):
        raise BadPacket(f"{name} checksum")


def _transport_fields(protocol: int, body: bytes) -> dict[str, Any]:
    if protocol in (TCP, UDP, SCTP):
        source, destination = struct.unpack_from("!HH", body)
        fields: dict[str, Any] = {"source_port": source, "destination_port": destination}
        return fields | _tcp_fields(body) if protocol == TCP and len(body) >= 20 else fields
    if protocol not in (ICMP, ICMP6):
        return {"kind": "unsupported"}
    (identifier,) = struct.unpack_from("!H", body, 4)
    echo = next((echo for echo, kind in ECHO_TYPES[protocol].items() if kind == body[0]), "")
    if echo:
        return {"echo": echo, ("source_port" if echo == "request" else "destination_port"): identifier}
    kinds = {told: about for about, told in ERRORS[protocol].items()}
    about = kinds.get((body[0], body[1])) or next((kinds[told] for told in kinds if told[0] == body[0]), None)
    if about is None:
        return {"kind": "unsupported"}
    whole = len(body) >= 8 + (28 if protocol == ICMP else 48)
    return {"kind": "icmp-error", "about": about, "quoted": parse_ip(body[8:], quoted=True) if whole else None}


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
    """The outer frame of `frame` (RFC 7348), between the endpoints of `outer`; over IPv4 UDP without a checksum."""
    payload = struct.pack("!BBHI", 0x08, 0, 0, vni << 8) + frame
    overhead = 28 if outer.version == 4 else 48
    tunnel = Packet(outer.source, outer.destination, UDP, 49152, port, length=overhead + len(payload))
    return build(tunnel, Shape(payload=payload, summed=outer.version == 6))


def inside_vxlan(frame: bytes) -> tuple[IPAddress, int, bytes]:
    """(outer destination, VNI, inner frame) of a frame on the underlay."""
    outer = parse(frame)
    start = ETHERNET + (28 if outer.version == 4 else 48)
    (word,) = struct.unpack_from("!I", frame, start + 4)
    return outer.destination, word >> 8, frame[start + 8 :]


def is_vxlan(frame: bytes, source: IPAddress, port: int) -> bool:
    """Whether an endpoint's own tunnel packet over IPv4 is in the frame."""
    ports = struct.unpack_from("!H", frame, ETHERNET + 22) if len(frame) > ETHERNET + 28 else ()
    header = frame[ETHERNET : ETHERNET + 20]
    return frame[12:14] == b"\x08\0" and header[9] == UDP and header[12:16] == source.packed and ports == (port,)


def told_mtu(frame: bytes) -> int:
    """The MTU in an ICMP "fragmentation needed" (RFC 1191, section 4) or ICMPv6 "packet too big"."""
    packet = parse(frame)
    if packet.about != "too-big":
        raise BadPacket(f"an ICMP error about {packet.about}")
    if isinstance(packet.source, IPv6Address):
        return int(struct.unpack_from("!I", frame, ETHERNET + 40 + 4)[0])
    return int(struct.unpack_from("!H", frame, ETHERNET + 20 + 6)[0])
