"""What goes to an agent's log: refusals that come and go, sessions that go up and down. Decides nothing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

from bgp.session import PeerStatus as Session
from routerd.log import LEVELS, event
from routerd.model import IPAddress, Refusal
from routerd.tell.status import PeerStatus

LOGGER = logging.getLogger("routerd.agent")


def log_refusals(before: tuple[Refusal, ...], after: tuple[Refusal, ...]) -> None:
    """A line when a refusal comes or goes, not in every round."""
    old, new = set(before), set(after)
    for refusal in after:
        if refusal not in old:
            fields = {"object": str(refusal.object), "reason": refusal.reason, "message": refusal.message}
            event(LOGGER, LEVELS[refusal.severity], "refused", **fields)
    ended = {str(refusal.object) for refusal in old - new} - {str(refusal.object) for refusal in new}
    for name in sorted(ended):
        event(LOGGER, logging.INFO, "refusal-gone", object=name)


PATIENCE = 300.0  # seconds; a router that restarts is back before


class SessionLog:
    """A line when a session goes up or down, or cannot come up for another reason than before; one more when it has not
    been up for PATIENCE: a wrong password (TCP MD5) makes no event at all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._without: dict[IPAddress, float] = {}  # since when each is not up; inf = that was said
        self._last: dict[
            IPAddress, Session
        ] = {}  # what the speaker last said; that it is away says nothing of sessions

    def note(self, peers: Iterable[PeerStatus]) -> None:
        there = {peer.view.address: peer for peer in peers}
        for address, peer in there.items():
            now, before = peer.view.session, self._last.get(address, Session())
            if now.state != "unknown":
                self._note_absence(address, peer)
                self._note(before, now, {"peer": peer.label, "address": str(address)})
                self._last[address] = now
        self._last = {address: session for address, session in self._last.items() if address in there}
        self._without = {address: since for address, since in self._without.items() if address in there}

    def _note_absence(self, address: IPAddress, peer: PeerStatus) -> None:
        session, now = peer.view.session, self._clock()
        if session.state == "up":
            self._without.pop(address, None)
        elif now - self._without.setdefault(address, now) >= PATIENCE:
            self._without[address] = math.inf
            reason = session.last_reason or "no answer from the peer"
            fields = {"peer": peer.label, "address": str(address), "reason": reason}
            event(LOGGER, logging.ERROR, "session-not-up", seconds=int(PATIENCE), **fields)

    def _note(self, before: Session, now: Session, fields: Mapping[str, str]) -> None:
        if now.flaps != before.flaps:
            event(LOGGER, logging.WARNING, "session-down", **fields, reason=now.last_reason)
        elif now.state != "up" and now.last_reason != before.last_reason:
            event(LOGGER, logging.WARNING, "session-failed", **fields, reason=now.last_reason)
        if now.state == "up" and (before.state, before.since) != ("up", now.since):
            event(LOGGER, logging.INFO, "session-up", **fields, families=", ".join(now.families), hold=now.hold_time)
