"""Which peers this node watches by BFD, and what follows when one is gone. Pure.

A peer that BFD has seen and sees no more ends its BGP session at once, long before the hold time. What BFD has never
seen, and what its owner has switched off, is no failure (RFC 5882, section 3.2): the session is left to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bfd.control import Report, View
from bfd.probes import Probing
from bfd.session import Timers
from bfd.table import Order
from bgp.path import SessionKey, session_names
from bgp.session import PeerStatus
from egress.status import Probed
from routerd.model import Peer, Refusal
from routerd.refs import BFD, PEER, Ref

START = "start `routerd bfd`"
Orders = Mapping[SessionKey, Order]


def orders(sessions: Mapping[SessionKey, Peer]) -> dict[SessionKey, Order]:
    """Of the sessions of this node: those whose entries ask for BFD."""
    return {
        key: Order(*key, Timers(peer.bfd.interval, peer.bfd.min_rx, peer.bfd.multiplier, peer.bfd.passive))
        for key, peer in sessions.items()
        if peer.bfd is not None
    }


@dataclass(frozen=True, slots=True)
class Judged:
    """Of which falls it was decided whether they end a session: how many of each peer, of one run of the process."""

    process: str = ""
    falls: Mapping[SessionKey, int] = field(default_factory=dict)


def judge(
    judged: Judged, report: Report, sessions: Mapping[SessionKey, PeerStatus]
) -> tuple[Judged, tuple[SessionKey, ...]]:
    """What is judged now, and the BGP sessions that must end, as their peers are gone. `sessions`: as the speaker says.

    A fall waits for its judgement until the speaker says how the session is. One that nobody saw (this agent has just
    come, or so has the process) ends what was up before it: who was there before us may not have lived to do it.
    """
    known = judged.falls if judged.process == report.process else {}
    falls: dict[SessionKey, int] = {}
    gone = []
    for ends, view in report.sessions.items():
        key = SessionKey(*ends)
        session = sessions.get(key)
        if view.failed and known.get(key) != view.falls:
            if session is None or session.state == "unknown":
                falls |= {key: known[key]} if key in known else {}
                continue
            if session.state == "up" and (key in known or session.since < view.since):
                gone.append(key)
        falls[key] = view.falls
    return Judged(report.process, falls), tuple(gone)


def unjudged(judged: Judged, session: SessionKey) -> Judged:
    """As if nobody had seen the last fall of `session`: what it asked for could not be done."""
    return replace(judged, falls={each: falls for each, falls in judged.falls.items() if each != session})


def refusals(wanted: Orders, report: Report | None, trouble: str) -> Iterable[Refusal]:
    """What is not watched, and why. `trouble`: what the process said that is connected and not understood."""
    for key, name in session_names(wanted).items():
        ref = Ref(PEER, name=name)
        if report is None:
            why = trouble or f"no bfd process is connected: {START}"
            yield Refusal(ref, "NoBFD", f"{why}; the session runs without BFD")
        elif report.problem:
            yield Refusal(ref, "NoBFD", f"{report.problem} The session runs without BFD")
        elif (view := report.sessions.get(key)) is not None and view.state != "up":
            yield Refusal(ref, "BFDDown", f"BFD is down: {view.reason}: {_what_to_do(view)}")


def _what_to_do(view: View) -> str:
    if view.failed:
        return "the BGP session was ended, and comes back as soon as BGP reaches the peer"
    return "switch BFD on for this session at the router, or remove `bfd` here; the session runs without BFD"


STILL = 2.0  # seconds, or three intervals where these are longer: no probe for so long was sent by nobody


def standing_still(probing: Probing | None, probed: Sequence[Probed]) -> Iterable[Refusal]:
    """A process that is there, and sends nothing: it was stopped, or does not get the CPU. `probed`: as just read."""
    if probing is None:
        return
    most = max(STILL, 3 * probing.interval / 1e6)
    if any(each.idle > most for each in probed if each.way in probing.ways):
        why = "the bfd process sends no probes, though it is told to: is it stopped, or its CPU taken?"
        yield Refusal(Ref(BFD), "GatewaysUnwatched", f"{why}; a gateway that dies is not noticed here")


def unwatched(probing: Probing | None, report: Report | None, trouble: str) -> Iterable[Refusal]:
    """Why gateways are not probed: one that dies is then left only when the operator replaces it."""
    if probing is None or not probing.ways:
        return
    if report is None:
        why = trouble or f"no bfd process is connected: {START}"
    elif report.probes is None:
        why = "the bfd process is of a release that sends no probes: restart it"
    else:
        why = report.probes.problem
    if why:
        yield Refusal(Ref(BFD), "GatewaysUnwatched", f"{why}; a gateway that dies is not noticed here")
