"""UDP as RFC 5881 wants it: port 3784, TTL 255, source ports from 49152; a device for probes. It knows no session."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from bfd.table import TTL, IPAddress

PORT = 3784  # UDP; section 4
FIRST_PORT, LAST_PORT = 49152, 65535  # of sources; section 4
TRAFFIC_CLASS = 0xC0  # CS6, network control
TRIES = 32  # source ports
_ROOM = 512  # bytes of a datagram that are read; a packet has 24
_BATCH = 64  # datagrams read in one turn
_IP_PKTINFO, _IP_RECVTTL = 8, 12  # linux/in.h; Python 3.11 has no names for them


@dataclass(frozen=True, slots=True)
class Datagram:
    """What came. `ttl` is IPv4's TTL or IPv6's hop limit, -1 = not told; `device` an interface index."""

    data: bytes
    source: IPAddress
    local: IPAddress  # to which it came
    ttl: int
    device: int


def listener(version: int) -> socket.socket:
    """Bound to port 3784 of every address of an IP version. Raises OSError."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    found = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if version == 4:
            found.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
            found.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        found.bind(("0.0.0.0" if version == 4 else "::", PORT))
    except OSError:
        found.close()
        raise
    return found


def received(sock: socket.socket) -> list[Datagram]:
    """Everything that waits in a listener, up to some number."""
    found: list[Datagram] = []
    with contextlib.suppress(BlockingIOError):
        while len(found) < _BATCH:
            data, ancillary, _, source = sock.recvmsg(_ROOM, 256)
            found.append(Datagram(data, ip_address(source[0].partition("%")[0]), *_ancillary(ancillary)))
    return found


def _ancillary(messages: list[tuple[int, int, bytes]]) -> tuple[IPAddress, int, int]:
    """Destination (unspecified = not told), TTL and device."""
    local: IPAddress = IPv4Address(0)
    ttl, device = -1, 0
    for level, kind, data in messages:
        if (level, kind) in ((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)):
            (ttl,) = struct.unpack_from("=i", data)
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            device, to = struct.unpack_from("=i4x4s", data)
            local = IPv4Address(to)
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            to, device = struct.unpack_from("=16sI", data)
            local = IPv6Address(to)
    return local, ttl, device


def sender(local: IPAddress) -> socket.socket:
    """For one session: bound to `local` and a source port of its own. Raises OSError."""
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    found = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if local.version == 4:
            found.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
            found.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TRAFFIC_CLASS)
        else:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, TTL)
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, TRAFFIC_CLASS)
        _bind(found, str(local))
    except OSError:
        found.close()
        raise
    return found


def _bind(sock: socket.socket, local: str) -> None:
    for left in reversed(range(TRIES)):
        try:
            sock.bind((local, random.randint(FIRST_PORT, LAST_PORT)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not left:
                raise
        else:
            return


def link(device: str) -> socket.socket:
    """Takes whole Ethernet frames for a device, and hears nothing (protocol 0). Raises OSError; needs CAP_NET_RAW."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        found.bind((device, 0))
    except OSError:
        found.close()
        raise
    return found
