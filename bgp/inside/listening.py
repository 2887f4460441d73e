"""Peers that connect to us: the sockets on which ExaBGP listens, in place of its own class for it.

There is one socket for each place, a local address with a port and an interface, at which a session of the
configuration may begin. A connection is that of the session whose peer's address it comes from, from whatever port; of
anybody else, or from too far away, it is closed, and the sessions that wait there say so. Stock ExaBGP searches all
peers for it, does not bind an address that the host has not yet, does not start where it cannot have a port, keeps the
MD5 key of a peer that has gone, and drops a router that comes back while its old session seems to be up.

Runs inside ExaBGP's process; it imports ExaBGP, and nothing of the agent.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

RETRY = 1.0  # seconds until a place that could not be had is tried again, and its interface looked at
OPEN_WAIT = 30.0  # seconds for the OPEN of a router whose session seems up
TELL_AGAIN = 60.0  # seconds until it is told again who was sent away
AT_ONCE = 32  # connections that are taken in one turn of the loop, which has others to do
BACKLOG = 64
TTL = 255  # of the answer to a SYN, too: a router with TTL security takes no other
IP_FREEBIND, IPV6_FREEBIND = 15, 78  # <linux/in.h>, <linux/in6.h>
TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28  # <linux/tcp.h>
IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73  # <linux/in.h>, <linux/in6.h>
CEASE, CONNECTION_REJECTED = 6, 5  # RFC 4486, section 4

IPAddress = IPv4Address | IPv6Address


class Place(NamedTuple):
    """Where connections come in. `interface` "" = by any."""

    local: IPAddress
    port: int
    interface: str

    def __str__(self) -> str:
        return f"{self.local} port {self.port}" + (f" on {self.interface}" if self.interface else "")


Sessions = Mapping[IPAddress, Any]  # by the peer's address, ExaBGP's neighbors


def places(neighbors: Iterable[Any]) -> dict[Place, dict[IPAddress, Any]]:
    """Of those that may connect to us."""
    found: dict[Place, dict[IPAddress, Any]] = {}
    for neighbor in neighbors:
        if neighbor["listen"]:
            local, peer = (ip_address(neighbor[key].top()) for key in ("local-address", "peer-address"))
            place = Place(local, neighbor["listen"], neighbor["source-interface"] or "")
            found.setdefault(place, {})[peer] = neighbor
    return found


def least_ttl(sessions: Sessions) -> int:
    """What none of the sessions of a place takes less than; 0 = some of them takes any."""
    return min((neighbor["incoming-ttl"] or 0 for neighbor in sessions.values()), default=0)


def ttl_of_syn(header: bytes) -> int:
    """TTL or hop limit of the packet that began a connection, of its saved headers; 0 = the kernel has kept none, as
    under a flood of SYNs, which it answers with cookies.
    """
    if len(header) < 20:
        return 0
    return header[8] if header[0] >> 4 == 4 else header[7]


@dataclass(slots=True)
class Listening:
    """A socket that listens, and the MD5 keys that the kernel has for it."""

    socket: socket.socket
    index: int = 0  # of the interface: a new one of the same name gets nothing by a socket of the old one
    keys: dict[IPAddress, tuple[str, bool]] = field(default_factory=dict)


@dataclass(slots=True)
class Failure:
    """Why a place could not be had, and the names of sessions that say so."""

    why: str
    told: set[str] = field(default_factory=set)


class Listener:
    """Has the methods that ExaBGP's loop calls: `listen_on`, `close_unwanted`, `incoming` and `stop`."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._wanted: dict[Place, dict[IPAddress, Any]] = {}
        self._open: dict[Place, Listening] = {}
        self._failed: dict[Place, Failure] = {}
        self._tried = 0.0
        self._silent: dict[tuple[Place, IPAddress], tuple[socket.socket, float]] = {}  # of sessions that are up; until
        self._sent_away: dict[tuple[Place, IPAddress | None], float] = {}  # when it was told; None = strangers

    def listen_on(self, *_: object) -> bool:
        """`close_unwanted`, which is called last, does it all. No port is worth a speaker that does not start."""
        return True

    def close_unwanted(self, _: object) -> None:
        """The configuration was loaded: its places are had, and no others."""
        self._wanted = places(self._reactor.configuration.neighbors.values())
        for place in self._open.keys() - self._wanted.keys():
            self._open.pop(place).socket.close()
        self._failed.clear()
        self._sent_away.clear()
        for place in self._wanted:
            self._have(place)

    def tell_again(self) -> None:
        """There is a new relay, which has heard of nothing."""
        for failure in self._failed.values():
            failure.told.clear()

    def _have(self, place: Place) -> None:
        from exabgp.reactor.network.error import NetworkError

        sessions, listening = self._wanted[place], self._open.get(place)
        if listening is not None and listening.index != index_of(place.interface):
            self._open.pop(place).socket.close()
            listening = None
        try:
            if listening is None:
                listening = self._open[place] = begin(place, sessions)
            else:
                settle(listening, sessions)
        except (OSError, NetworkError) as error:
            self._fail(place, str(error.strerror if isinstance(error, OSError) else error))
        else:
            self._failed.pop(place, None)

    def _fail(self, place: Place, why: str) -> None:
        """Each session says so once: an attempt follows every second."""
        from exabgp.logger import log

        if (listening := self._open.pop(place, None)) is not None:
            listening.socket.close()  # rather none than one without the keys of all
        failure, reason = self._failed.get(place), f"cannot listen on {place}: {why}"
        if failure is None or failure.why != why:
            failure = self._failed[place] = Failure(why)
            log.error(lambda: reason, "network")
        for neighbor in self._wanted[place].values():
            if neighbor.name() not in failure.told and self._tell(neighbor, reason):
                failure.told.add(neighbor.name())

    def _tell(self, neighbor: Any, why: str) -> bool:
        """Whether it was told: not of a session that is up, and not while the relay is not there yet."""
        from exabgp.reactor.api.processes import ProcessError

        peer = self._reactor._peers.get(neighbor.name())
        if peer is not None and peer.established():
            return False
        try:
            self._reactor.processes.down(neighbor, why)
        except (ProcessError, KeyError):
            return False
        return True

    def incoming(self) -> bool:
        """Takes what has connected. False: there is nothing that the loop must do about it."""
        now = time.monotonic()
        if now - self._tried >= RETRY:
            self._tried = now
            for place in [place for place in self._wanted if place.interface or place in self._failed]:
                self._have(place)
        for (place, address), (connection, until) in [*self._silent.items()]:
            del self._silent[place, address]
            self._take(place, connection, address, until)
        for place, listening in [*self._open.items()]:
            with suppress(OSError):  # there is none, or it has gone already
                for _ in range(AT_ONCE):
                    connection, (address, *_) = listening.socket.accept()
                    self._meet(place, connection, ip_address(address.partition("%")[0]), now + OPEN_WAIT)
        return False

    def _meet(self, place: Place, connection: socket.socket, address: IPAddress, until: float) -> None:
        neighbor = self._wanted[place].get(address)
        if neighbor is None:
            connection.close()
            why = f"{address} connected to {place}, and no session there is with it"
            self._tell_of(place, None, why, self._wanted[place].values())
        elif not near_enough(connection, neighbor):
            connection.close()
            self._tell_of(place, address, f"{address} connected to {place} from too far away", [neighbor])
        else:
            self._take(place, connection, address, until)

    def _tell_of(self, place: Place, address: IPAddress | None, why: str, neighbors: Iterable[Any]) -> None:
        """Who was sent away, so that a session that waits for its router says more than that it does."""
        now, key = time.monotonic(), (place, address)
        if now - self._sent_away.get(key, -TELL_AGAIN) >= TELL_AGAIN:
            self._sent_away[key] = now
            for neighbor in neighbors:
                self._tell(neighbor, why)

    def _take(self, place: Place, connection: socket.socket, address: IPAddress, until: float) -> None:
        """What has gone already, as a look whether the port is open, changes nothing. A session that is up is not ended
        for a router that says nothing.
        """
        from exabgp.reactor.network.error import NetworkError

        neighbor = self._wanted.get(place, {}).get(address)
        peer = self._reactor._peers.get(neighbor.name()) if neighbor is not None else None
        heard = is_heard(connection)
        is_late = time.monotonic() >= until
        if peer is None or heard is False or (heard is None and peer.established() and is_late):
            connection.close()
            return
        if heard is None and peer.established():
            self._wait_for(place, connection, address, until)
            return
        try:
            incoming = accepted(connection, neighbor)
        except NetworkError:
            return  # it has gone already
        refused = peer.handle_connection(incoming)
        if refused is not None:
            self._reactor.asynchronous.schedule(str(uuid.uuid1()), "refusing a connection", refused)

    def _wait_for(self, place: Place, connection: socket.socket, address: IPAddress, until: float) -> None:
        """Of several silent ones of a router the last."""
        if (older := self._silent.pop((place, address), None)) is not None:
            older[0].close()
        self._silent[place, address] = connection, until

    def stop(self) -> None:
        for connection, _ in self._silent.values():
            connection.close()
        self._silent.clear()
        for listening in self._open.values():
            listening.socket.close()
        self._open.clear()
        self._wanted.clear()
        self._failed.clear()


def index_of(interface: str) -> int:
    """The kernel's; 0 = there is none of that name."""
    try:
        return socket.if_nametoindex(interface) if interface else 0
    except OSError:
        return 0


def is_heard(connection: socket.socket) -> bool | None:
    """Whether the other end has said something that is not read yet; False = it has gone, None = not yet."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return None
    except OSError:
        return False


def begin(place: Place, sessions: Sessions) -> Listening:
    """Raises OSError, or one of ExaBGP's errors of the network.

    The host need not have the address yet. The port may be another place's, too, by an interface of its own.
    """
    from exabgp.reactor.network.tcp import bind_to_device

    is_v4 = place.local.version == 4
    family = socket.AF_INET if is_v4 else socket.AF_INET6
    listening = Listening(socket.socket(family, socket.SOCK_STREAM), index_of(place.interface))
    try:
        listening.socket.setblocking(False)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            listening.socket.setsockopt(socket.SOL_SOCKET, option, 1)
        level, ttl, freebind = (
            (socket.IPPROTO_IP, socket.IP_TTL, IP_FREEBIND)
            if is_v4
            else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, IPV6_FREEBIND)
        )
        listening.socket.setsockopt(level, ttl, TTL)
        listening.socket.setsockopt(level, freebind, 1)
        listening.socket.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
        if place.interface:
            bind_to_device(listening.socket, place.interface)
        settle(listening, sessions)
        listening.socket.bind((str(place.local), place.port))
        listening.socket.listen(BACKLOG)
    except BaseException:
        listening.socket.close()
        raise
    return listening


def settle(listening: Listening, sessions: Sessions) -> None:
    """The kernel takes of each peer what its session takes: signed by its password, from near enough."""
    from exabgp.reactor.network.tcp import md5

    wanted = {
        peer: (neighbor["md5-password"], neighbor["md5-base64"])
        for peer, neighbor in sessions.items()
        if neighbor["md5-password"]
    }
    for peer in listening.keys.keys() - wanted.keys():
        md5(listening.socket, str(peer), 0, None, None)
        del listening.keys[peer]
    for peer, key in wanted.items():
        if listening.keys.get(peer) != key:
            md5(listening.socket, str(peer), 0, *key)
            listening.keys[peer] = key
    is_v4 = listening.socket.family == socket.AF_INET
    level, option = (socket.IPPROTO_IP, IP_MINTTL) if is_v4 else (socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT)
    listening.socket.setsockopt(level, option, least_ttl(sessions))


def near_enough(connection: socket.socket, neighbor: Any) -> bool:
    """Whether its first packet had the TTL that the session asks for (GTSM, RFC 5082): the socket that listens asks for
    what the least strict one of its sessions does. Where the kernel has kept none, what comes from now on must have it
    (`accepted`).
    """
    asked = neighbor["incoming-ttl"] or 0
    if not asked:
        return True
    ttl = ttl_of_syn(connection.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 256))
    return ttl == 0 or ttl >= asked


def accepted(connection: socket.socket, neighbor: Any) -> Any:
    """ExaBGP's connection, with the TTLs of this session. Raises its NetworkError."""
    from exabgp.reactor.listener import set_accepted_ttl
    from exabgp.reactor.network.incoming import Incoming
    from exabgp.reactor.network.tcp import set_minimum_ttl

    peer, local = neighbor["peer-address"], neighbor["local-address"]
    incoming = Incoming(peer.afi, peer.top(), local.top(), connection)
    set_accepted_ttl(incoming, neighbor)
    set_minimum_ttl(connection, peer.afi, peer.top(), neighbor["incoming-ttl"])
    return incoming


def take_anew(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A router that opens another session while one seems to be up has lost that: its paths are kept, as was agreed,
    and a new one begins (RFC 4724, section 5). Without graceful restart the old one stays until its hold time is over.

    A peer that is left alone for what it announced does not get around that by connecting itself.
    """

    def handle_connection(peer: Any, connection: Any) -> Any:
        if time.monotonic() < getattr(peer, "routerd_left_alone", 0.0):
            return connection.notification(CEASE, CONNECTION_REJECTED, "it announced too many prefixes before")
        if peer.established() and _restarts_gracefully(peer):
            peer._reset("the router has connected anew")
        return stock(peer, connection)

    return handle_connection


def _restarts_gracefully(peer: Any) -> bool:
    from exabgp.bgp.message.open.capability import Capability

    negotiated, code = peer.proto.negotiated, Capability.CODE.GRACEFUL_RESTART
    return all(each.capabilities.announced(code) for each in (negotiated.sent_open, negotiated.received_open))
