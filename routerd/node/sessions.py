"""Which BGP sessions this node opens, and why not.

Pure: the configured peers, the node and the local address of each session in; sessions and refusals out. It resolves
no address: that takes the kernel's routes (`routerd/agent/local.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from bgp.path import Family, SessionKey, SpeakerPeer
from routerd.model import IPAddress, IPFamily, Node, Peer, Peering, PeerOverride, Refusal, Snapshot
from routerd.selectors import matches_any

FAMILIES: Mapping[IPFamily, Family] = {"IPv4": "ipv4 unicast", "IPv6": "ipv6 unicast"}

BGP_PORT = 179
OVERRIDABLE = ("address", "local_as", "router_id", "source_address", "listen_port", "password", "password_file")


def _first_ipv4(addresses: Iterable[IPAddress]) -> IPv4Address | None:
    return next((address for address in addresses if isinstance(address, IPv4Address)), None)


def session(
    peer: Peer, local: IPAddress | None, node: Node, router_id: IPv4Address | None = None
) -> SpeakerPeer | Refusal:
    """The session of `peer` on `node`; `local` is the address that the kernel would use, None = no route.

    `router_id` is the node's own setting, which wins over the peer's; without any it is an address of the node.
    """
    if peer.found:
        return Refusal(peer.ref, *_not_found(peer, node))
    if unusable := _unusable(peer, node):
        return Refusal(peer.ref, *unusable)
    if local is None:
        return Refusal(peer.ref, *_no_source(peer, node))
    router_id = router_id or peer.router_id or _first_ipv4((local, *node.addresses))
    if router_id is None:
        return Refusal(
            peer.ref,
            "NoRouterId",
            f"{node.name} has no IPv4 address to use as router id: set bgp.router-id, or router-id of the peer",
        )
    return SpeakerPeer(
        address=peer.address,
        local_address=local,
        local_as=peer.local_as,
        remote_as=peer.remote_as,
        router_id=router_id,
        port=BGP_PORT if peer.passive else peer.port,
        passive=peer.passive,
        listen_port=peer.listen_port or (BGP_PORT if peer.passive else 0),
        connect_retry=0 if peer.passive else peer.connect_retry,
        hold_time=peer.hold_time,
        keepalive_time=_keepalive_time(peer),
        password=peer.password,
        graceful_restart_time=peer.graceful_restart_time,
        families=tuple(FAMILIES[word] for word in peer.families),
        min_ttl=256 - peer.ttl_security if peer.ttl_security else 0,
        extended_next_hop=peer.extended_next_hop,
        max_prefixes=peer.max_prefixes,
        interface=peer.interface,
        description=peer.name,
        override=peer.overridden,
    )


def _keepalive_time(peer: Peer) -> int:
    """0 where it follows from the hold time anyway, or that turns the timers off."""
    usual = peer.hold_time // 3
    asked = usual if peer.keepalive_time is None else max(peer.keepalive_time, 1)
    return asked if asked < usual else 0


def _not_found(peer: Peer, node: Node) -> tuple[str, str]:
    if peer.found == "router":
        message = (
            f"{node.name} has heard no router advertisement on interface {peer.interface}: does the router send them, "
            "and has the agent CAP_NET_RAW?"
        )
        return "RouterNotFound", message
    by = f" by interface {peer.interface}" if peer.interface else ""
    return "RouterNotFound", f"{node.name} has no default route of IPv{peer.address.version}{by}"


def _no_source(peer: Peer, node: Node) -> tuple[str, str]:
    if peer.source_address is not None:
        return "NoLocalAddress", f"source address {peer.source_address} is not on any interface of {node.name}"
    if peer.source_interface:
        family = f"IPv{peer.address.version}"
        return "NoLocalAddress", f"{node.name} has no {family} address on interface {peer.source_interface}"
    by = f" by interface {peer.interface}" if peer.interface else ""
    return "NoRoute", f"{node.name} has no route to {peer.address}{by}: add one, or exclude the node"


def _unusable(peer: Peer, node: Node) -> tuple[str, str] | None:
    """Reason and message of a peer that is closed, or of an address that no session can have, whatever the routes."""
    if peer.closed:
        return "PeerConfigMissing", peer.closed
    if peer.address in node.addresses:
        return "PeerIsNode", f"{peer.address} is {node.name} itself: give the router's address, or exclude the node"
    for address in (peer.address, peer.source_address):
        if isinstance(address, IPv6Address) and address.is_link_local and not peer.interface:
            message = f"{address} is link-local: name the `interface` on which the router is, or use another address"
            return "LinkLocalPeer", message
        if address is not None and (address.is_unspecified or address.is_multicast):
            kind = "multicast" if address.is_multicast else "the unspecified address"
            return "InvalidPeerAddress", f"{address} is {kind}: no session can have it"
    return None


def _twin(opened: SpeakerPeer, others: Iterable[SpeakerPeer], peer: Peer) -> Refusal | None:
    """ExaBGP tells sessions apart by both addresses, without their interfaces."""
    for other in others:
        if (other.address.packed, other.local_address) == (opened.address.packed, opened.local_address):
            if other.address == opened.address:
                message = (
                    f"two entries have a session with {opened.address} from {opened.local_address}, and the first is "
                    "used: remove one of them, or give them source addresses that differ"
                )
                return Refusal(peer.ref, "DuplicatePeer", message)
            message = (
                f"{other.address} and {opened.address} are reached from one address, {opened.local_address}: "
                "give one of these interfaces another link-local address, or one of the routers"
            )
            return Refusal(peer.ref, "EqualLinkLocal", message)
    return None


def peers_here(peers: Iterable[Peer], node: Node) -> tuple[Peer, ...]:
    """The peers whose node selectors take `node`, as their overrides have them there."""
    return tuple(_as_here(peer, node) for peer in peers if matches_any(peer.node_selectors, node.labels))


def _as_here(peer: Peer, node: Node) -> Peer:
    override = next((each for each in peer.overrides if _takes(each, node)), None)
    return peer if override is None else overridden(peer, override)


def _takes(override: PeerOverride, node: Node) -> bool:
    return (not override.nodes or node.name in override.nodes) and matches_any(override.node_selectors, node.labels)


def idle_overrides(peer: Peer, nodes: Collection[Node]) -> Iterator[Refusal]:
    """Those that count on none of `nodes`, which are all, and names in them that no node has."""
    here = [node for node in nodes if matches_any(peer.node_selectors, node.labels)]
    names = {node.name for node in nodes}
    for number, override in enumerate(peer.overrides):
        taken = [node for node in here if _takes(override, node)]
        unknown = [name for name in override.nodes if name not in names]
        if unknown:
            why = f"no node is called {unknown[0]!r}"
        elif not taken:
            why = "it takes none of the peer's nodes"
        elif all(any(_takes(other, node) for other in peer.overrides[:number]) for node in taken):
            why = "each node that it takes is one of an override before it, which counts there"
        else:
            continue
        yield Refusal(peer.ref, "OverrideUnused", f"{override.name}: {why}")


def overridden(peer: Peer, override: PeerOverride) -> Peer:
    """A source address stands in place of the interface that would say one, and a password in place of its file. The
    peer is known by the name, or the address, that it has everywhere.
    """
    said = {name: value for name in OVERRIDABLE if (value := getattr(override, name)) is not None}
    if "source_address" in said:
        said["source_interface"] = ""
    if "password" in said or "password_file" in said:
        said = {"password": "", "password_file": "", **said}
    name = peer.label if "address" in said else peer.name
    return replace(peer, **said, name=name, overrides=(), overridden=override.name, closed=override.closed)


class Way(NamedTuple):
    """How a peer is reached, as configured: the session's local address follows from it, by the node's kernel."""

    address: IPAddress
    source_address: IPAddress | None = None
    source_interface: str = ""
    interface: str = ""


def way_to(peer: Peer) -> Way:
    return Way(peer.address, peer.source_address, peer.source_interface, peer.interface)


def entries_here(peers: Iterable[Peer], node: Node) -> dict[Way, Peer]:
    """The peers of `node`, of several entries of one way the first: only for these is the kernel asked anything."""
    entries: dict[Way, Peer] = {}
    for peer in peers_here(peers, node):
        entries.setdefault(way_to(peer), peer)
    return entries


def _with_password(peer: Peer, passwords: Mapping[str, str] | None) -> Peer:
    return replace(peer, password=(passwords or {}).get(peer.password_file, "")) if peer.password_file else peer


@dataclass(frozen=True, slots=True)
class Opened:
    """The sessions of a node, the entry that each is of, and why others have none."""

    sessions: Mapping[SessionKey, SpeakerPeer]
    entries: Mapping[SessionKey, Peer]
    refusals: tuple[Refusal, ...]


def sessions_of(
    peers: Iterable[Peer],
    node: Node,
    local_addresses: Mapping[Way, IPAddress | None],
    router_id: IPv4Address | None = None,
    passwords: Mapping[str, str] | None = None,
) -> Opened:
    """`local_addresses`: of `entries_here` -> local address, None = no route.

    `passwords`: of peers that name a file, by it; without one there is no session. None = nobody looked: without.
    """
    opened_by: dict[SessionKey, Peer] = {}
    sessions: dict[SessionKey, SpeakerPeer] = {}
    refusals: list[Refusal] = []
    here = peers_here(peers, node)
    used = entries_here(here, node)
    for peer in here:
        if peer is not used[way_to(peer)]:
            message = f"{peer.address} is a peer of {node.name} twice and the first is used: remove one of them"
            refusals.append(_as_said(Refusal(peer.ref, "DuplicatePeer", message), peer))
            continue
        opened = session(_with_password(peer, passwords), local_addresses.get(way_to(peer)), node, router_id)
        if passwords is not None and peer.password_file and peer.password_file not in passwords:
            message = f"{node.name} finds no password in {peer.password_file} of bgp.password-dir"
            opened = Refusal(peer.ref, "PasswordFile", message)
        if isinstance(opened, SpeakerPeer):
            opened = _twin(opened, sessions.values(), peer) or opened
        if isinstance(opened, Refusal):
            refusals.append(_as_said(opened, peer))
        else:
            sessions[opened.key], opened_by[opened.key] = opened, peer
    return Opened(sessions, opened_by, tuple(refusals))


def _as_said(refusal: Refusal, peer: Peer) -> Refusal:
    """With the override that says what the peer is here: it may be the one at fault."""
    return replace(refusal, message=f"by {peer.overridden}: {refusal.message}") if peer.overridden else refusal


# --- peers that are found


Found = Mapping[tuple[IPAddress, str], tuple[IPAddress, ...]]
"""By the unspecified address that stands for them, and the interface, "" = any. A link-local one has it as zone."""


def sought(peers: Iterable[Peer], here: Node) -> tuple[Peer, ...]:
    """Peers of this node that are to be found."""
    return tuple(peer for peer in peers if peer.found and matches_any(peer.node_selectors, here.labels))


def gateways(default_routes: Collection[tuple[IPAddress, str, int]]) -> Found:
    """Next hops of the best ones, by any and by each interface. `default_routes`: address, interface, metric."""
    found: dict[tuple[IPAddress, str], tuple[IPAddress, ...]] = {}
    for any_address in (IPv4Address(0), IPv6Address(0)):
        own = [each for each in default_routes if each[0].version == any_address.version]
        for name in {"", *(interface for _, interface, _ in own)} if own else ():
            hops = [each for each in own if name in ("", each[1])]
            best = min(metric for _, _, metric in hops)
            zoned = {_zoned(address, interface) for address, interface, metric in hops if metric == best}
            found[any_address, name] = tuple(sorted(zoned, key=int))
    return found


def _zoned(address: IPAddress, interface: str) -> IPAddress:
    return IPv6Address(f"{address}%{interface}") if address.version == 6 and address.is_link_local else address


def with_found(snapshot: Snapshot, here: Node, found: Found) -> Snapshot:
    """`snapshot` with this node's peers at the addresses that were found for them; others stay as they are."""
    if snapshot.bgp is None or not any(peer.found for peer in snapshot.bgp.peers):
        return snapshot
    peers = tuple(each for peer in snapshot.bgp.peers for each in _at(peer, here, found))
    return replace(snapshot, bgp=Peering(peers))


def _at(peer: Peer, here: Node, found: Found) -> Iterator[Peer]:
    is_here = peer.found and matches_any(peer.node_selectors, here.labels)
    addresses = found.get((peer.address, peer.interface), ()) if is_here else ()
    for address in addresses:
        zone = (address.scope_id if isinstance(address, IPv6Address) else None) or ""
        yield replace(peer, address=address, interface=peer.interface or zone, found="")
    if not addresses:
        yield peer
