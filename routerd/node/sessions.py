"""Which BGP sessions this node opens, and why not.

Pure: the configured peers, the node and the local address of each session in; sessions and refusals out. It resolves
no address: that takes the kernel's routes (`routerd/agent/local.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from bgp.path import SpeakerPeer
from routerd.model import IPAddress, Node, Peer, Refusal
from routerd.selectors import matches_any

EBGP_MULTIHOP_TTL = 255


def _first_ipv4(addresses: Iterable[IPAddress]) -> IPv4Address | None:
    return next((address for address in addresses if isinstance(address, IPv4Address)), None)


def session(
    peer: Peer, local: IPAddress | None, node: Node, router_id: IPv4Address | None = None
) -> SpeakerPeer | Refusal:
    """The session of `peer` on `node`; `local` is the address that the kernel would use, None = no route.

    `router_id` is the node's own setting, which wins over the peer's; without any it is an address of the node.
    """
    if local is None and peer.source_address is not None:
        return Refusal(
            peer.ref, "NoLocalAddress", f"source address {peer.source_address} is not on any interface of {node.name}"
        )
    if local is None:
        return Refusal(peer.ref, "NoRoute", f"{node.name} has no route to {peer.address}: add one, or exclude the node")
    router_id = router_id or peer.router_id or _first_ipv4((local, *node.addresses))
    if router_id is None:
        return Refusal(
            peer.ref,
            "NoRouterId",
            f"{node.name} has no IPv4 address to use as router id: set bgp.router-id, or router-id of the peer",
        )
    is_ebgp = peer.local_as != peer.remote_as
    return SpeakerPeer(
        address=peer.address,
        local_address=local,
        local_as=peer.local_as,
        remote_as=peer.remote_as,
        router_id=router_id,
        port=peer.port,
        hold_time=peer.hold_time,
        password=peer.password,
        multihop_ttl=EBGP_MULTIHOP_TTL if is_ebgp and peer.ebgp_multihop else None,
        graceful_restart_time=peer.graceful_restart_time,
        description=peer.name,
    )


def peers_here(peers: Iterable[Peer], node: Node) -> tuple[Peer, ...]:
    """The peers whose node selectors take `node`."""
    return tuple(peer for peer in peers if matches_any(peer.node_selectors, node.labels))


def sessions_of(
    peers: Iterable[Peer],
    node: Node,
    local_addresses: Mapping[IPAddress, IPAddress | None],
    router_id: IPv4Address | None = None,
) -> tuple[dict[IPAddress, SpeakerPeer], list[Refusal]]:
    """Sessions by peer address. `local_addresses`: peer address -> local address, None = no route."""
    sessions: dict[IPAddress, SpeakerPeer] = {}
    refusals = []
    for peer in peers_here(peers, node):
        if peer.address in sessions:
            message = f"{peer.address} is a peer of {node.name} twice and the first is used: remove one of them"
            refusals.append(Refusal(peer.ref, "DuplicatePeer", message))
            continue
        opened = session(peer, local_addresses.get(peer.address), node, router_id)
        if isinstance(opened, Refusal):
            refusals.append(opened)
        else:
            sessions[peer.address] = opened
    return sessions, refusals
