"""Routers that say on a link that they are there: the peers of sessions without configured addresses (unnumbered).

Router advertisements (RFC 4861, section 4.2) are the only thing that such a ToR says of itself, and the only one by
which it finds the node: so the node sends them, too, with a lifetime of 0, which makes it nobody's default router. It
speaks on the links that it is told of, and on no other. A link without a link-local address, or none of that name, is
tried again: links come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

log = logging.getLogger(__name__)

SOLICITATION, ADVERTISEMENT = 133, 134  # ICMPv6 types
ALL_NODES, ALL_ROUTERS = "ff02::1", "ff02::2"
HOPS = 255  # what comes with less has crossed a router, and is not taken (RFC 4861, section 6.1.2)
INTERVAL = 10.0  # seconds between advertisements, as FRR has it on such links
AGAIN = 1.0  # seconds until a link that could not be used is tried again
SILENCE = 1800.0  # seconds; who says nothing for longer gives way to another one on the link
MOST = 4  # routers of a link
PACKETS = 64  # taken at once

SOLICIT = bytes([SOLICITATION]) + bytes(7)
ADVERTISE = bytes([ADVERTISEMENT]) + bytes(15)  # lifetime 0; the kernel makes the checksum (RFC 3542, section 3.1)
ICMP6_FILTER = 1  # <linux/icmpv6.h>; a bit for each type that is not taken
NOTHING, ONLY_ADVERTISEMENTS = bytes([255] * 32), ((1 << 256) - 1 ^ 1 << ADVERTISEMENT).to_bytes(32, "little")


def advertiser(packet: bytes, source: IPv6Address, hops: int) -> IPv6Address | None:
    """Who sent this router advertisement, None if it is none (RFC 4861, section 6.1.2). The kernel has checked it."""
    is_valid = len(packet) >= 16 and packet[0] == ADVERTISEMENT and packet[1] == 0
    return source if is_valid and hops == HOPS and source.is_link_local else None


@dataclass(frozen=True, slots=True)
class Heard:
    """Routers of one link, and when each was heard last, in seconds of the listener's clock."""

    last: Mapping[IPv6Address, float] = field(default_factory=dict)

    def after(self, router: IPv6Address, now: float) -> Heard:
        """Who is silent for long goes when somebody else is heard: a link that is down tells nothing of its router.

        Nobody takes the place of those who are heard, so that whoever makes up routers ends no session.
        """
        kept = {each: when for each, when in self.last.items() if now - when <= SILENCE}
        return Heard({**kept, router: now}) if router in kept or len(kept) < MOST else Heard(kept)

    def routers(self, interface: str) -> tuple[IPv6Address, ...]:
        """Sorted, with the interface as zone."""
        return tuple(IPv6Address(f"{each}%{interface}") for each in sorted(self.last))


@dataclass(slots=True)
class Link:
    """One link: its socket, the interface's index, and who was heard there."""

    socket: socket.socket
    index: int
    heard: Heard = field(default_factory=Heard)


class Routers:
    """`run` in a task; the other methods on its loop."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._wanted: frozenset[str] = frozenset()
        self._links: dict[str, Link] = {}
        self._kept: dict[str, Heard] = {}  # of links whose sockets were closed
        self._more = asyncio.Event()
        self.has_begun = False

    def begin(self, peers: Iterable[IPv4Address | IPv6Address]) -> None:
        """Those of them that are on a link count as heard just now: who had sessions with them ends none of these."""
        now = asyncio.get_running_loop().time()
        for peer in peers:
            if isinstance(peer, IPv6Address) and peer.scope_id:
                heard = self._kept.get(peer.scope_id, Heard())
                self._kept[peer.scope_id] = heard.after(IPv6Address(int(peer)), now)
        self.has_begun = True
        self.on_change()

    def want(self, interfaces: frozenset[str]) -> None:
        """On these routers are looked for from now on."""
        if interfaces != self._wanted:
            self._wanted = interfaces
            self._more.set()

    @property
    def found(self) -> Mapping[str, tuple[IPv6Address, ...]]:
        """By interface."""
        heard = {name: link.heard for name, link in self._links.items()}
        return {name: each.routers(name) for name, each in (self._kept | heard).items()}

    async def run(self) -> None:
        """Until cancelled. Nobody is forgotten before the first `want` says which links count."""
        try:
            await self._more.wait()
            while True:
                self._more.clear()
                is_whole = self._speak()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), INTERVAL if is_whole else AGAIN)
        finally:
            for name in list(self._links):
                self._close(name)

    def _speak(self) -> bool:
        """Solicits and advertises on each link; whether all could be used."""
        for name in (self._links.keys() | self._kept.keys()) - self._wanted:
            self._close(name)
            self._kept.pop(name)
        for name in sorted(self._wanted):
            try:
                link = self._links.get(name) or self._open(name)
                if not link.heard.last:
                    link.socket.sendto(SOLICIT, (ALL_ROUTERS, 0))
                link.socket.sendto(ADVERTISE, (ALL_NODES, 0))
            except OSError as error:
                _unusable(name, error)
                self._close(name)
        return self._links.keys() == self._wanted

    def _open(self, name: str) -> Link:
        """Raises OSError."""
        opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, NOTHING)  # of other links, until it is bound to one
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            index = socket.if_nametoindex(name)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            opened.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, ONLY_ADVERTISEMENTS)
        except OSError:
            opened.close()
            raise
        link = self._links[name] = Link(opened, index, self._kept.get(name, Heard()))
        asyncio.get_running_loop().add_reader(opened.fileno(), self._take, name)
        return link

    def _close(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is not None:
            self._kept[name] = link.heard
            asyncio.get_running_loop().remove_reader(link.socket.fileno())
            link.socket.close()

    def _take(self, name: str) -> None:
        link, before = self._links[name], self._links[name].heard.routers(name)
        for _ in range(PACKETS):
            try:
                packet, ancillary, _, source = link.socket.recvmsg(2048, 64)
            except BlockingIOError:
                break
            except OSError as error:
                _unusable(name, error)
                self._close(name)
                return
            router = advertiser(packet, IPv6Address(source[0].partition("%")[0]), _hops(ancillary))
            if router is not None and source[3] == link.index:  # one of before the filter may be of another link
                link.heard = link.heard.after(router, asyncio.get_running_loop().time())
        if link.heard.routers(name) != before:
            routers = ", ".join(map(str, link.heard.routers(name)))
            log.info("routers found: %s", routers, extra={"event": "routers_found", "routers": routers})
            self.on_change()


def _unusable(name: str, error: OSError) -> None:
    log.debug("no routers are heard on %s: %s", name, error, extra={"event": "link_unusable", "reason": str(error)})


def _hops(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The hop limit with which a packet came, 0 = it is not known."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT):
            return int(struct.unpack_from("=i", data)[0])
    return 0
