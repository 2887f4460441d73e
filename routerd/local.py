"""What only this node's kernel knows: sources of sessions, addresses on interfaces. It changes nothing.

The source address comes from connecting a UDP socket, which sends nothing: the kernel's own look-up, rules and all.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from routerd.model import IPAddress, Peer

OUR_LINKS = "routerd."  # names of links that routerd makes begin so
UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETDOWN}
RT_SCOPE_UNIVERSE = 0  # linux/rtnetlink.h


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def source_towards(peer: IPAddress, port: int = 179) -> IPAddress | None:
    """The address that this node would use as source towards `peer`; None = no route."""
    with socket.socket(_family(peer), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(peer), port))
        except OSError as error:
            if error.errno in UNREACHABLE:
                return None
            raise
        return ip_address(probe.getsockname()[0])


def is_ours(address: IPAddress) -> bool:
    """Whether `address` is on an interface of this node."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as error:
            if error.errno in UNREACHABLE:
                return False
            raise
        return True


def session_addresses(
    peers: Iterable[Peer], before: Mapping[IPAddress, IPAddress | None]
) -> dict[IPAddress, IPAddress | None]:
    """Local address by peer address. A route that is away for a moment keeps the session's address of `before`.

    Else a flapping link would take the peer out of the speaker, and with it the graceful restart that saves the paths.
    """
    found: dict[IPAddress, IPAddress | None] = {}
    for peer in peers:
        if peer.source_address is not None:
            found[peer.address] = peer.source_address if is_ours(peer.source_address) else None
            continue
        source = source_towards(peer.address, peer.port)
        last = before.get(peer.address)
        found[peer.address] = source if source is not None or last is None or not is_ours(last) else last
    return found


def interface_addresses() -> tuple[IPAddress, ...]:
    """Global addresses on this node's interfaces, sorted, less those on links of ours. Runs its own event loop."""
    from pyroute2 import IPRoute  # 0.1 s of import, and not needed for the first round

    with IPRoute() as route:
        ours = {link["index"] for link in route.get_links() if link.get_attr("IFLA_IFNAME").startswith(OUR_LINKS)}
        found = [
            ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            for message in route.get_addr()
            if message["scope"] == RT_SCOPE_UNIVERSE and message["index"] not in ours
        ]
    return tuple(sorted(set(found), key=lambda address: (address.version, int(address))))
