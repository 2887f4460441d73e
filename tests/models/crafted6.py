"""What a pod may make of an IPv6 frame, in groups: what must not leave its node, and what leaves through a gateway.

The brothers of IPv4's in tests/attacks/test_selected_pod.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv6Address

from tests.bpf.packets import Shape, build, checksum
from tests.models.tables import ICMP6, SCTP, TCP, UDP, Packet

ETHERNET, HEADER = 14, 40
HOP, ROUTING, FRAGMENT, AUTH, DESTINATION = 0, 43, 44, 51, 60
PADDING = b"\x01\x04\0\0\0\0"  # an option that fills a header of 8 bytes (RFC 8200, section 4.2)
VLAN, PROVIDER = b"\x81\x00", b"\x88\xa8"


def put(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


def tagged(tag: bytes, frame: bytes) -> bytes:
    return frame[:12] + tag + frame[12:]


def with_headers(frame: bytes, *headers: tuple[int, bytes]) -> bytes:
    """Extension headers, each a protocol number and what follows its next header."""
    following, chain = frame[ETHERNET + 6], b""
    for number, rest in reversed(headers):
        chain, following = bytes([following]) + rest + chain, number
    head = put(frame[: ETHERNET + HEADER], ETHERNET + 6, bytes([following]))
    size = int.from_bytes(frame[ETHERNET + 4 : ETHERNET + 6]) + len(chain)
    return put(head, ETHERNET + 4, size.to_bytes(2)) + chain + frame[ETHERNET + HEADER :]


def fragment(position: int, more: bool, number: int = 7) -> tuple[int, bytes]:
    return FRAGMENT, struct.pack("!BHI", 0, position | more, number)


def routing(kind: int, *segments: str, left: int = 1) -> tuple[int, bytes]:
    """A routing header (RFC 8200, section 4.4; 0: RFC 5095, 2: RFC 6275, 3: RFC 6554, 4: RFC 8754)."""
    addresses = b"".join(IPv6Address(each).packed for each in segments)
    last = len(segments) - 1 if kind == 4 else 0
    return ROUTING, struct.pack("!BBBB3x", 2 * len(segments), kind, left, last) + addresses


class Crafted:
    """Frames of a pod with address `pod` to `remote`; nobody else's addresses are known here."""

    def __init__(self, pod: str, remote: str) -> None:
        self.pod, self.remote = pod, remote
        self.out = Packet(IPv6Address(pod), IPv6Address(remote), UDP, 4000, 53, length=80)
        self.syn = replace(self.out, protocol=TCP, source_port=4001, destination_port=80, flags="S")
        self.ping = replace(self.out, protocol=ICMP6, source_port=4002, destination_port=0, echo="request")

    def to(self, destination: str, packet: Packet | None = None) -> bytes:
        return build(replace(packet or self.out, destination=IPv6Address(destination)))

    def by(self, source: str, packet: Packet | None = None) -> bytes:
        return build(replace(packet or self.out, source=IPv6Address(source)))

    def of_protocol(self, number: int, body: bytes = bytes(40)) -> bytes:
        frame = build(replace(self.out, kind="unsupported", protocol=253, length=HEADER + len(body)))
        return put(frame[: ETHERNET + HEADER], ETHERNET + 6, bytes([number])) + body

    def inside(self, number: int, inner: bytes, node: str) -> bytes:
        """A packet to a node, in a header that says that its source route ends there (RFC 8754, section 4.3.1.2)."""
        frame = put(self.of_protocol(number, inner), ETHERNET + 24, IPv6Address(node).packed)
        return with_headers(frame, routing(4, node, left=0))

    def icmp(self, kind: int) -> bytes:
        frame = build(self.ping)
        body = put(put(frame[ETHERNET + HEADER :], 0, bytes([kind])), 2, b"\0\0")
        pseudo = frame[ETHERNET + 8 : ETHERNET + HEADER] + struct.pack("!II", len(body), ICMP6)
        return frame[: ETHERNET + HEADER] + put(body, 2, checksum(pseudo + body).to_bytes(2))

    def nothing(self, foreign: Iterable[str], via: Iterable[str], plain4: bytes) -> dict[str, list[bytes]]:
        """`foreign`: sources that are not the pod's; `via`: nodes. `plain4`: an IPv4 packet of another pod's."""
        out, syn = build(self.out), build(self.syn)
        body = ETHERNET + HEADER
        return {
            "sources": [
                self.to(b, replace(p, source=IPv6Address(a)))
                for a in foreign for p in (self.out, self.syn, self.ping)
                for b in (self.remote, "64:ff9b::203.0.113.10", "2001:db8::1", "::ffff:203.0.113.10")
            ],
            "tags": [tagged(tag + n.to_bytes(2), out) for tag in (VLAN, PROVIDER) for n in (0, 1, 100, 4095)],
            "two tags": [tagged(tag + b"\0\0" + VLAN + b"\0\0", out) for tag in (VLAN, PROVIDER)],
            "frames of other kinds": [
                out[:12] + b"\x88\x47" + b"\0\0\x21\x40" + out[14:],  # MPLS, explicit null of IPv6
                out[:12] + b"\x88\x64" + b"\x11\0\0\x01\0\x52\0\x57" + out[14:],  # PPPoE
                out[:12] + b"\0\x58\xaa\xaa\x03\0\0\0\x86\xdd" + out[14:],  # SNAP
                out[:12] + b"\x08\x00" + out[14:],  # said to be IPv4
            ],
            "versions": [put(out, ETHERNET, bytes([n << 4])) for n in (0, 4, 5, 7, 15)],
            "lengths": [put(out, ETHERNET + 4, n.to_bytes(2)) for n in (0, 1, 7, 41, 1000, 65535)],
            "cut": [out[:n] for n in (15, 20, 53, 54, 55, 61)] + [syn[:n] for n in (55, 60, 67, 73)],
            "UDP lengths": [put(out, body + 4, n.to_bytes(2)) for n in (0, 7, 1000)],
            "TCP headers": [put(syn, body + 12, bytes([n << 4])) for n in (0, 4, 15)],
            "a jumbogram": [  # RFC 2675
                put(with_headers(out, (HOP, b"\0\xc2\x04" + size.to_bytes(4))), ETHERNET + 4, b"\0\0")
                for size in (0, 48, 65536, 2**32 - 1)
            ],
            "later fragments": [
                with_headers(out, fragment(position, more)) for position in (8, 1480, 65528) for more in (False, True)
            ],
            "fragments that overlap or cut the transport header": [
                with_headers(syn, fragment(8, more=True)),
                build(replace(self.syn, kind="bad-fragment", first=True, id=8, length=88), Shape(cut=8)),
            ],
            "a fragment of a fragment": [with_headers(out, fragment(0, True), fragment(0, True, 8)),
                                         with_headers(out, fragment(0, True), fragment(8, False, 8))],
            "SCTP in fragments": [with_headers(build(replace(self.out, protocol=SCTP)), fragment(0, True))],
            "protocols": [self.of_protocol(n) for n in (1, 2, 33, 46, 47, 50, 59, 89, 103, 112, 115, 135, 136, 137,
                                                        139, 140, 142, 143, 253, 254, 255)],
            "headers that do not end": [
                self.of_protocol(n, bytes([n, 0, *PADDING]) * 5) for n in (HOP, DESTINATION)
            ] + [self.of_protocol(n, bytes([UDP, 200, *bytes(38)])) for n in (HOP, ROUTING, DESTINATION, AUTH)]
            + [self.of_protocol(n, b"") for n in (HOP, ROUTING, FRAGMENT, DESTINATION, AUTH, UDP, TCP, ICMP6)],
            "too many headers": [with_headers(out, *[(DESTINATION, b"\0" + PADDING)] * 7)],
            "tunnels": [
                self.of_protocol(4, plain4),
                self.of_protocol(41, self.by("2001:db8:5::5")[ETHERNET:]),
                self.of_protocol(41, out[ETHERNET:]),
                self.of_protocol(47, b"\0\0\x86\xdd" + out[ETHERNET:]),
                self.of_protocol(47, b"\0\0\x65\x58" + out),
            ],
            "source routes": [
                with_headers(self.to(each), routing(kind, self.remote)) for each in via for kind in (0, 2, 3, 4, 253)
            ],
            "source routes that end at a node, which takes out what is inside": [
                self.inside(number, inner, each)
                for each in via for number, inner in ((4, plain4), (41, out[ETHERNET:]))
            ],
            "a second source route": [
                with_headers(self.to(each), routing(4, each, left=0), routing(kind, self.remote))
                for each in via for kind in (0, 4)
            ],
            "ICMP": [self.icmp(n) for n in (0, 1, 2, 3, 4, 100, 127, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139,
                                            141, 143, 144, 146, 151, 153, 157, 160, 200, 255)],
            "destinations of nobody": [
                self.to(a, p)
                for a in ("::", "::1", "::ffff:203.0.113.10", "ff01::1", "ff02::1", "ff05::2", "ff0e::1", "fe80::1")
                for p in (self.out, self.syn, self.ping)
            ],
            "tunnel port": [self.to(each, replace(self.out, destination_port=8473)) for each in via],
        }  # fmt: skip

    def through_a_gateway(self, egress_ip: str) -> dict[str, bytes]:
        out, syn = build(self.out), build(self.syn)
        return {
            "UDP": out,
            "TCP": syn,
            "echo": build(self.ping),
            "SCTP": build(replace(self.out, protocol=SCTP)),
            "SCTP without its checksum": build(replace(self.out, protocol=SCTP), Shape(summed=False)),
            "to all on the link": b"\xff" * 6 + out[6:],
            "to a group on the link": b"\x33\x33\0\0\0\x01" + out[6:],
            "to a foreign device": b"\x02\xde\xad\xbe\xef\0" + out[6:],
            "options for hops": with_headers(out, (HOP, b"\0" + PADDING)),
            "options for the destination": with_headers(syn, (DESTINATION, b"\0" + PADDING)),
            "an unknown option": with_headers(out, (DESTINATION, b"\0\x1e\x04\0\0\0\0")),
            "authenticated": with_headers(out, (AUTH, b"\x04" + bytes(22))),
            "six headers": with_headers(out, *[(DESTINATION, b"\0" + PADDING)] * 5),
            "a source route that has ended": with_headers(out, routing(4, self.remote, left=0)),
            "its own only fragment": with_headers(out, fragment(0, more=False)),
            "first fragment": build(replace(self.out, first=True, id=9, length=88)),
            "padding": out + b"secret",
            "port 0": build(replace(self.out, destination_port=0)),
            **{f"TCP flags {flags or 'none'}": build(replace(self.syn, flags=flags)) for flags in ("", "F", "SAFR")},
            "the egress IP": self.to(egress_ip),
            **{f"to {each}": self.to(each) for each in ("64:ff9b::203.0.113.10", "64:ff9b:1::1", "2002:cb00:710a::1",
                                                        "2001::1", "2001:db8::1", "100::1", "::203.0.113.10")},
        }  # fmt: skip
