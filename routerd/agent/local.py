"""What only this node's kernel knows: sources of sessions, addresses on interfaces. It changes nothing.

The source address comes from connecting a UDP socket, which sends nothing: the kernel's own look-up, rules and all.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import chain
from pathlib import Path

from routerd.model import IPAddress, IPNetwork, NodeLink, Peer
from routerd.node.sessions import Found, Way, gateways, way_to

IPV6_ADDRESSES = Path("/proc/net/if_inet6")
GLOBAL_SCOPE = "00"
UNREACHABLE = {
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EADDRNOTAVAIL,
    errno.ENETDOWN, errno.ENODEV,
}  # fmt: skip


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _probe(address: IPAddress, interface: str) -> socket.socket:
    """A UDP socket that is bound to `interface`, if one is named. Raises OSError if there is none of that name."""
    probe = socket.socket(_family(address), socket.SOCK_DGRAM)
    if interface:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())  # needs no right, Linux 5.7
        except OSError:
            probe.close()
            raise
    return probe


def _bare(address: IPAddress) -> str:
    """Without a zone: the socket is bound to that interface."""
    return str(address).partition("%")[0]


def source_towards(peer: IPAddress, port: int = 179, interface: str = "") -> IPAddress | None:
    """The address that this node would use as source towards `peer`, by `interface` alone if given; None = no route."""
    try:
        with _probe(peer, interface) as probe:
            probe.connect((_bare(peer), port))
            return ip_address(_bare(probe.getsockname()[0]))
    except OSError as error:
        if error.errno in UNREACHABLE:
            return None
        raise


def is_ours(address: IPAddress, interface: str = "") -> bool:
    """Whether `address` is on an interface of this node; a link-local one on the one that is named."""
    try:
        with _probe(address, interface) as probe:
            probe.bind((_bare(address), 0))
    except OSError as error:
        if error.errno in UNREACHABLE:
            return False
        raise
    return True


def address_on(interface: str, version: int, last: IPAddress | None = None) -> IPAddress | None:
    """An address of that family on `interface` by which others can reach this node: `last` while it is there, else the
    first that stays.
    """
    from egress.devices import read_lasting_first
    from netlink.wire import NetlinkSocket

    try:
        with NetlinkSocket() as route:
            addresses = read_lasting_first(route, socket.if_nametoindex(interface))
    except OSError:  # addresses change while they are read: the one of before will do
        return last if _exists(interface) else None
    found = [a for a in addresses if a.version == version and not (a.is_loopback or a.is_link_local)]
    return last if last in found else next(iter(found), None)


def default_gateways() -> Found:
    """What default routes lead to now."""
    from egress.devices import read_next_hops
    from netlink.wire import NetlinkSocket

    with contextlib.suppress(OSError), NetlinkSocket() as route:
        own = [each for each in read_next_hops(route) if each.address.version == each.version]
        return gateways([(each.address, socket.if_indextoname(each.ifindex), each.metric) for each in own])
    return {}


def session_addresses(peers: Iterable[Peer], before: Mapping[Way, IPAddress | None]) -> dict[Way, IPAddress | None]:
    """The local address of each session. A route that is away for a moment keeps the session's address of `before`.

    Else a flapping link would take the peer out of the speaker, and with it the graceful restart that saves the paths.
    """
    return {way_to(peer): _session_address(peer, before.get(way_to(peer))) for peer in peers}


def _session_address(peer: Peer, last: IPAddress | None) -> IPAddress | None:
    if peer.source_address is not None:
        return peer.source_address if is_ours(peer.source_address, peer.interface) else None
    if peer.source_interface:
        return address_on(peer.source_interface, peer.address.version, last)
    source = source_towards(peer.address, peer.port, peer.interface)
    if peer.address.is_link_local and peer.interface:
        # A link that comes back has no address for a second (duplicate address detection), or another one than its own.
        return source if source is not None and source.is_link_local else last if _exists(peer.interface) else None
    return source if source is not None or last is None or not is_ours(last, peer.interface) else last


def _exists(interface: str) -> bool:
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(interface) > 0
    return False


def passwords_of(peers: Iterable[Peer], directory: Path, before: Mapping[str, str] | None) -> dict[str, str]:
    """By file of `directory`, without the newline that an editor leaves at its end.

    One that is away or empty for a moment, as while a Secret is renewed, keeps what it said `before`; one that never
    said anything, or is no text, is left out.
    """
    names = {peer.password_file for peer in peers if peer.password_file}
    found = {name: _password(directory / name) or (before or {}).get(name, "") for name in sorted(names)}
    return {name: password for name, password in found.items() if password}


def _password(file: Path) -> str:
    """Empty if there is none."""
    try:
        return file.read_text().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError):
        return ""


def global_ipv6(table: str) -> tuple[IPv6Address, ...]:
    """Addresses of global scope from the text of /proc/net/if_inet6 (address, index, length, scope, flags, name)."""
    fields = (line.split() for line in table.splitlines())
    return tuple(IPv6Address(bytes.fromhex(words[0])) for words in fields if words[3] == GLOBAL_SCOPE)


def interface_addresses() -> tuple[IPAddress, ...]:
    """Addresses on this node's interfaces by which others can reach it, sorted."""
    from egress.devices import read_addresses  # 0.1 s of import, which `routerd why` need not wait for
    from netlink.wire import NetlinkSocket

    with NetlinkSocket() as route:
        ipv4 = {address for _, address in read_addresses(route) if address.version == 4}
    reachable = (a for a in ipv4 if not (a.is_loopback or a.is_link_local or a.is_multicast))
    ipv6 = global_ipv6(IPV6_ADDRESSES.read_text()) if IPV6_ADDRESSES.exists() else ()  # absent without IPv6
    return tuple(sorted(reachable)) + tuple(sorted(ipv6))


def own_links(reachable: Collection[IPAddress]) -> tuple[NodeLink, ...]:
    """Ethernet interfaces with these addresses of this node, by them, sorted."""
    from egress.devices import read_addresses, read_links
    from netlink.wire import NetlinkSocket

    with NetlinkSocket() as route:
        links = {i: each for i, each in read_links(route).items() if each.is_ethernet and each.kind != "dummy"}
        addresses = [(index, address) for index, address in read_addresses(route) if index in links]
    local = {index: a for index, a in addresses if isinstance(a, IPv6Address) and a.is_link_local}
    found = ((index, address) for index, address in addresses if address in reachable)
    return tuple(
        NodeLink(address, links[index].mac.hex(":"), local.get(index))
        for index, address in sorted(found, key=lambda each: (each[1].version, int(each[1])))
    )


def own_networks() -> tuple[IPNetwork, ...]:
    """What this node's interfaces are in, and its default next hops, sorted: nothing there can be an egress IP."""
    from egress.devices import read_networks, read_next_hops
    from netlink.wire import NetlinkSocket

    with NetlinkSocket() as route:
        networks = read_networks(route).values()
        found = {*chain.from_iterable(networks), *(ip_network(hop.address) for hop in read_next_hops(route))}
    return tuple(sorted(found, key=lambda each: (each.version, int(each.network_address), each.prefixlen)))
