"""Which peers this node watches by BFD, and what follows when one is gone. Pure.

A peer that BFD has seen and sees no more ends its BGP session at once, long before the hold time. What BFD has never
seen, and what its owner has switched off, is no failure (RFC 5882, section 3.2): the session is left to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bfd.control import Report, View
from bfd.session import Timers
from bfd.table import Order
from bgp.path import SpeakerPeer
from bgp.session import PeerStatus
from routerd.model import IPAddress, Peer, Refusal
from routerd.refs import PEER, Ref

START = "start `routerd bfd`"
Orders = Mapping[IPAddress, Order]


def orders(peers: Iterable[Peer], sessions: Mapping[IPAddress, SpeakerPeer]) -> dict[IPAddress, Order]:
    """Of the peers of this node with a session: those that ask for BFD."""
    return {
        peer.address: Order(
            peer.address,
            sessions[peer.address].local_address,
            Timers(peer.bfd.interval, peer.bfd.min_rx, peer.bfd.multiplier, peer.bfd.passive),
        )
        for peer in peers
        if peer.bfd is not None and peer.address in sessions
    }


def fallen(before: Report | None, now: Report, sessions: Mapping[IPAddress, PeerStatus]) -> tuple[IPAddress, ...]:
    """Peers that are gone since `before`, whose BGP sessions must end.

    Without a report before (this agent has just come), a session that was up when its peer went must end: who was there
    before us may not have lived to see it. Both times are of the wall clock.
    """
    known = before.sessions if before is not None and before.process == now.process else {}
    return tuple(
        peer
        for peer, view in now.sessions.items()
        if view.failed and _is_news(known.get(peer), view, sessions.get(peer))
    )


def _is_news(old: View | None, view: View, session: PeerStatus | None) -> bool:
    if old is not None:
        return old.falls != view.falls
    return session is not None and session.state == "up" and session.since < view.since


def refusals(wanted: Orders, report: Report | None, trouble: str) -> Iterable[Refusal]:
    """What is not watched, and why. `trouble`: what the process said that is connected and not understood."""
    for peer in wanted:
        ref = Ref(PEER, name=str(peer))
        if report is None:
            why = trouble or f"no bfd process is connected: {START}"
            yield Refusal(ref, "NoBFD", f"{why}; the session runs without BFD")
        elif report.problem:
            yield Refusal(ref, "NoBFD", f"{report.problem} The session runs without BFD")
        elif (view := report.sessions.get(peer)) is not None and view.state != "up":
            yield Refusal(ref, "BFDDown", f"BFD is {view.state}: {view.reason}: {_what_to_do(view)}")


def _what_to_do(view: View) -> str:
    if view.failed:
        return "the BGP session was ended, and comes back as soon as BGP reaches the peer"
    return "switch BFD on for this session at the router, or remove `bfd` here; the session runs without BFD"
