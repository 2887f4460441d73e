"""New connections that still come to this node, as the kernel's connection tracking tells them. Changes nothing.

A drained node is safe to stop when routers have moved their traffic away; what they think cannot be read, what they
send can. kube-proxy needs connection tracking, in each of its modes; where something else forwards, or this process has
no CAP_NET_ADMIN, nothing is seen.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from egress.host.conntrack import CTA_TUPLE_IP, NETLINK_NETFILTER, NFGEN
from netlink.wire import HEADER, RECEIVE, SOL_NETLINK, attributes
from routerd.model import IPAddress, IPNetwork

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nfnetlink_conntrack.h>
NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_CONNTRACK_NEW = 1
CT_NEW = 1 << 8
CTA_TUPLE_ORIG = 1
SOURCES, DESTINATIONS = (1, 3), (2, 4)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; …_DST
BUFFER = 4 << 20  # bytes; what is beyond it is lost, and enough is left to see that some come
MOST = 20_000  # messages in one look


@dataclass(frozen=True, slots=True)
class Expected:
    """What is looked for: connections to `addresses`, but those that begin here."""

    addresses: frozenset[IPAddress] = frozenset()
    own: frozenset[IPAddress] = frozenset()
    networks: tuple[IPNetwork, ...] = ()

    def counts(self, source: IPAddress, destination: IPAddress) -> bool:
        if destination not in self.addresses or source in self.own:
            return False
        return not any(source in network for network in self.networks if network.version == source.version)


@dataclass(slots=True)
class Arrivals:
    """Listens from one `take` to the next; not thread-safe."""

    _socket: socket.socket | None = field(default=None)

    def take(self, expected: Expected) -> frozenset[IPAddress]:
        """The addresses that new connections came to since the last call; none at the first."""
        if self._socket is None:
            self._socket = _listener()
            return frozenset()
        return frozenset(there for here, there in _begun(self._socket) if expected.counts(here, there))

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _listener() -> socket.socket | None:
    """None = there is none to be had here."""
    listener = None
    try:
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        listener.bind((0, 0))
        listener.setblocking(False)
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), BUFFER)
        listener.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_CONNTRACK_NEW)
    except OSError:
        if listener is not None:
            listener.close()
        return None
    return listener


def _begun(listener: socket.socket) -> Iterator[tuple[IPAddress, IPAddress]]:
    """Source and destination of each connection, as whoever began it wrote them."""
    for _ in range(MOST):
        try:
            data = listener.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: some were lost
            continue
        yield from begun_in(data)


def begun_in(data: bytes) -> Iterator[tuple[IPAddress, IPAddress]]:
    """The same, of one datagram of the kernel's."""
    start = 0
    while start + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, start)
        body = data[start + HEADER.size : start + length]
        start += max((length + 3) & ~3, HEADER.size)
        if kind != CT_NEW:
            continue
        ip = attributes(attributes(attributes(body, NFGEN.size).get(CTA_TUPLE_ORIG, b"")).get(CTA_TUPLE_IP, b""))
        source, destination = (next((ip[key] for key in keys if key in ip), b"") for keys in (SOURCES, DESTINATIONS))
        if len(source) == len(destination) and len(source) in (4, 16):
            yield ip_address(source), ip_address(destination)
