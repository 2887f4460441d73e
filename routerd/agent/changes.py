"""What goes to an agent's log: refusals that come and go, sessions that go up and down. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

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


class SessionLog:
    """A line when a session goes up or down, or cannot come up for another reason than before."""

    def __init__(self) -> None:
        self._last: dict[
            IPAddress, Session
        ] = {}  # what the speaker last said; that it is away says nothing of sessions

    def note(self, peers: Iterable[PeerStatus]) -> None:
        there = {peer.view.address: peer for peer in peers}
        for address, peer in there.items():
            now, before = peer.view.session, self._last.get(address, Session())
            if now.state != "unknown":
                self._note(before, now, {"peer": peer.label, "address": str(address)})
                self._last[address] = now
        self._last = {address: session for address, session in self._last.items() if address in there}

    def _note(self, before: Session, now: Session, fields: Mapping[str, str]) -> None:
        if now.flaps != before.flaps:
            event(LOGGER, logging.WARNING, "session-down", **fields, reason=now.last_reason)
        elif now.state != "up" and now.last_reason != before.last_reason:
            event(LOGGER, logging.WARNING, "session-failed", **fields, reason=now.last_reason)
        if now.state == "up" and (before.state, before.since) != ("up", now.since):
            event(LOGGER, logging.INFO, "session-up", **fields, families=", ".join(now.families), hold=now.hold_time)
