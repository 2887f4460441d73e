"""The state of each session, built from ExaBGP's events. Pure: time comes with the events."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bgp.path import Family, SessionKey, SpeakerPeer
from bgp.text import SessionEvent

State = Literal["up", "connecting", "down", "unknown"]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One session. "connecting": not up yet; "down": was up; "unknown": no speaker is connected.

    `since`: when it changed last, of the monotonic clock, 0 = not yet. `flaps`: times it went down. `announced`: paths
    that the peer takes, 0 while the session is not up; `pending`: paths to announce or withdraw.
    """

    state: State = "connecting"
    since: float = 0.0
    last_reason: str = ""
    flaps: int = 0
    families: tuple[Family, ...] = ()  # negotiated
    hold_time: int = 0  # seconds, negotiated
    announced: int = 0
    pending: int = 0


class Sessions:
    """Knows every session that ExaBGP told of, and which of them are owed an End-of-RIB."""

    def __init__(self) -> None:
        self._status: dict[SessionKey, PeerStatus] = {}
        self._negotiated: dict[SessionKey, SessionEvent] = {}
        self._due: set[SessionKey] = set()
        self._speaker: tuple[int, float] | None = None

    def restart(self, speaker: tuple[int, float]) -> None:
        """A relay has connected to `speaker` (pid, start time); the states follow as events. Flaps are kept.

        With another ExaBGP than before, every session that was up has gone down.
        """
        if self._speaker is not None and self._speaker != speaker:
            for key, status in self._status.items():
                if status.state == "up":
                    self._down(key, status, speaker[1], "ExaBGP was restarted")
        self._speaker = speaker

    def take(self, event: SessionEvent) -> None:
        status = self._status.get(event.session, PeerStatus())
        if event.kind == "negotiated":
            self._negotiated[event.session] = event
        elif event.kind == "up":
            self._up(event, status)
        elif event.kind == "down":
            if status.state == "up":
                self._down(event.session, status, event.time, event.reason)
            elif _says_why(event.reason) or not _says_why(status.last_reason):
                self._status[event.session] = replace(status, last_reason=event.reason)

    def _up(self, event: SessionEvent, status: PeerStatus) -> None:
        agreed = self._negotiated.get(event.session)
        # An up that is told again (a relay reconnected) is not a new one; End-of-RIB twice does no harm.
        since = status.since if status.state == "up" else event.time
        self._status[event.session] = replace(
            status,
            state="up",
            since=since,
            families=agreed.families if agreed else (),
            hold_time=agreed.hold_time if agreed else 0,
        )
        self._due.add(event.session)

    def _down(self, peer: SessionKey, status: PeerStatus, when: float, reason: str) -> None:
        self._due.discard(peer)
        self._status[peer] = replace(
            status, state="down", since=when, last_reason=reason, flaps=status.flaps + 1, families=(), hold_time=0
        )

    @property
    def up(self) -> frozenset[SessionKey]:
        return frozenset(key for key, status in self._status.items() if status.state == "up")

    def forget(self, peers: Iterable[SessionKey]) -> None:
        """Peers that were removed, or added anew."""
        for peer in peers:
            self._status.pop(peer, None)
            self._negotiated.pop(peer, None)
            self._due.discard(peer)

    def take_due(self, peers: Container[SessionKey]) -> Iterator[tuple[SessionKey, tuple[Family, ...]]]:
        """Of `peers`, those that are owed an End-of-RIB, and the families of it; each is given out once."""
        for peer in sorted(self._due, key=lambda key: key.order):
            if peer in peers:
                self._due.discard(peer)
                yield peer, self._status[peer].families

    def untaken(self, peer: SpeakerPeer) -> tuple[Family, ...]:
        """Families that the session is up without, though we offered them: no path of them reaches the peer.

        IPv4 is one of them where its prefixes need next hops of IPv6, and the peer does not take these.
        """
        agreed = self._negotiated.get(peer.key)
        if agreed is None or self._status.get(peer.key, PeerStatus()).state != "up":
            return ()
        taken = {*agreed.families} - ({"ipv4 unicast"} if peer.extended_next_hop > agreed.extended_next_hop else set())
        return tuple(family for family in peer.families if family not in taken)

    def status(self, peer: SpeakerPeer, connected: bool, *, announced: int, pending: int) -> PeerStatus:
        """`announced`: what the peer has while the session is up."""
        status, untaken = self._status.get(peer.key, PeerStatus()), self.untaken(peer)
        state: State = status.state if connected else "unknown"
        families = tuple(family for family in status.families if family not in untaken)
        announced = announced if state == "up" else 0
        reason = status.last_reason or (_awaited(peer) if state == "connecting" else "")
        return replace(status, state=state, last_reason=reason, families=families, announced=announced, pending=pending)


def _awaited(peer: SpeakerPeer) -> str:
    """A router that is to connect itself makes no event until it does."""
    where = f"{peer.local_address} port {peer.listen_port}"
    return f"the router has not connected to {where} yet" if peer.passive else ""


def _says_why(reason: str) -> bool:
    """A NOTIFICATION does; that the next attempt failed, too, does not."""
    return reason.startswith("notification ")
