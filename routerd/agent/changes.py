"""What an agent notes of changes: in its log refusals that come and go, sessions that go up and down; and how long
paths take. Decides nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

from bgp.path import Desired, SessionKey
from bgp.session import PeerStatus as Session
from routerd.log import LEVELS, event
from routerd.model import Refusal
from routerd.tell.status import Durations, PeerStatus

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


def _fields(peer: PeerStatus) -> dict[str, str]:
    return {"peer": peer.label, "address": str(peer.view.key.peer), "local": str(peer.view.key.local)}


class UpdateDelay:
    """How long it takes from a change until the speaker has acknowledged every path that comes of it.

    Changes that come before that are one with it: the first one counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed: float | None = None  # since when something is new that no round has taken up
        self._taken: float | None = None  # of what rounds have taken up, and the speaker was not told
        self._began = 0.0  # when the latest round did
        self._waiting: float | None = None  # since when paths are new that are not acknowledged
        self._desired: Desired | None = None  # that the speaker was told last
        self.seen = Durations()

    def changed(self) -> None:
        """Something is new in the store."""
        if self._changed is None:
            self._changed = self._clock()

    def round_begins(self) -> None:
        self._began = self._clock()
        self._taken, self._changed = self._changed if self._taken is None else self._taken, None

    def told(self, desired: Desired) -> None:
        """The speaker knows all that the latest round has decided; what alone the host had a part in began with it."""
        since, self._taken = self._began if self._taken is None else self._taken, None
        is_first, is_same = self._desired is None, self._desired == desired
        self._desired = desired
        if not is_first and not is_same and self._waiting is None:
            self._waiting = since

    def acknowledged(self) -> None:
        """By the speaker: all that it was told."""
        if self._waiting is not None:
            self.seen = self.seen.after(self._clock() - self._waiting)
            self._waiting = None


PATIENCE = 300.0  # seconds; a router that restarts is back before


class SessionLog:
    """A line when a session goes up or down, or cannot come up for another reason than before; one more when it has not
    been up for PATIENCE: a wrong password (TCP MD5) makes no event at all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._without: dict[SessionKey, float] = {}  # since when each is not up; inf = that was said
        self._last: dict[SessionKey, Session] = {}  # what the speaker said; that it is away says nothing of sessions

    def note(self, peers: Iterable[PeerStatus]) -> None:
        there = {peer.view.key: peer for peer in peers}
        for key, peer in there.items():
            now, before = peer.view.session, self._last.get(key, Session())
            if now.state != "unknown":
                self._note_absence(key, peer)
                self._note(before, now, _fields(peer))
                self._last[key] = now
        self._last = {key: session for key, session in self._last.items() if key in there}
        self._without = {key: since for key, since in self._without.items() if key in there}

    def _note_absence(self, key: SessionKey, peer: PeerStatus) -> None:
        session, now = peer.view.session, self._clock()
        if session.state == "up":
            self._without.pop(key, None)
        elif now - self._without.setdefault(key, now) >= PATIENCE:
            self._without[key] = math.inf
            reason = session.last_reason or "no answer from the peer"
            event(LOGGER, logging.ERROR, "session-not-up", seconds=int(PATIENCE), **_fields(peer), reason=reason)

    def _note(self, before: Session, now: Session, fields: Mapping[str, str]) -> None:
        if now.flaps != before.flaps:
            event(LOGGER, logging.WARNING, "session-down", **fields, reason=now.last_reason)
        elif now.state != "up" and now.last_reason != before.last_reason:
            event(LOGGER, logging.WARNING, "session-failed", **fields, reason=now.last_reason)
        if now.state == "up" and (before.state, before.since) != ("up", now.since):
            event(LOGGER, logging.INFO, "session-up", **fields, families=", ".join(now.families), hold=now.hold_time)
