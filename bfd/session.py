"""One BFD session in asynchronous mode (RFC 5880, sections 6.2, 6.5, 6.8): frozen values in, frozen values out. Pure.

`now` is seconds of a monotonic clock, `chance` a number from 0 up to 1 that spreads transmissions (6.8.7). Whoever
drives a session calls

    receive    for each packet that is the session's
    expire     at `deadline`, when nothing came for the detection time
    transmit   at `next_tx`: the packet to send now
    order      when what is wanted of it changes

and sends what comes back. It knows no address and no socket. Neither echo nor demand mode of our own; a peer that asks
for demand is obeyed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bfd.packet import Diagnostic, Packet, State
from bfd.wheel import NEVER

SLOW = 1_000_000  # microseconds: the least interval while the session is not up (6.8.3)
ENDED_BY_US = "it is switched off here"


@dataclass(frozen=True, slots=True)
class Timers:
    """What is wanted: intervals in microseconds, and how many packets may be lost in a row before the peer is down."""

    min_tx: int = 50_000
    min_rx: int = 50_000
    multiplier: int = 3
    passive: bool = False  # says nothing before the peer does (6.1)


@dataclass(frozen=True, slots=True)
class Remote:
    """What the peer last said (bfd.Remote… of 6.8.1), and by which device it came."""

    discriminator: int = 0
    state: State = State.DOWN
    diagnostic: int = 0
    min_tx: int = 0
    min_rx: int = 1
    multiplier: int = 0
    demand: bool = False
    device: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """State variables of 6.8.1. `since` is when `state` began, `falls` how often it went from Up to Down."""

    discriminator: int
    timers: Timers = field(default_factory=Timers)
    state: State = State.DOWN
    diagnostic: Diagnostic = Diagnostic.NONE
    remote: Remote = field(default_factory=Remote)
    tx_in_use: int = SLOW  # microseconds; differs from what is advertised until a poll ends (6.8.3)
    rx_in_use: int = SLOW
    polling: bool = False
    next_tx: float = 0.0
    deadline: float = NEVER  # when the peer has been silent for the detection time, in whatever state
    since: float = 0.0
    falls: int = 0
    was_up: bool = False  # since it was last taken up by both: what never came up is no failure (RFC 5882, 3.2)
    reason: str = "nothing was heard from the peer yet"

    @property
    def desired_min_tx(self) -> int:
        """As advertised, microseconds."""
        return self.timers.min_tx if self.state == State.UP else max(self.timers.min_tx, SLOW)

    @property
    def interval(self) -> int:
        """Between transmissions, microseconds, before chance shortens it; 0 = none are wanted (6.8.7)."""
        return max(self.tx_in_use, self.remote.min_rx) if self.remote.min_rx else 0

    @property
    def detection(self) -> int:
        """Detection time, microseconds (6.8.4); 0 while the peer is unknown."""
        return self.remote.multiplier * max(self.rx_in_use, self.remote.min_tx)

    @property
    def has_failed(self) -> bool:
        """It was up and is not, and nobody wanted that."""
        return self.was_up and self.state in (State.DOWN, State.INIT)


def new(discriminator: int, timers: Timers, now: float, chance: float) -> Session:
    """A session that begins to speak within a second (unless it is passive)."""
    idle = Session(discriminator, timers, tx_in_use=max(timers.min_tx, SLOW), rx_in_use=timers.min_rx, since=now)
    return replace(idle, next_tx=NEVER if timers.passive else now + chance)


def packet_of(session: Session, *, final: bool = False) -> Packet:
    """What the session says now (6.8.7). A Final is never a Poll as well."""
    return Packet(
        state=session.state,
        multiplier=session.timers.multiplier,
        my_discriminator=session.discriminator,
        your_discriminator=session.remote.discriminator,
        desired_min_tx=session.desired_min_tx,
        required_min_rx=session.timers.min_rx,
        diagnostic=session.diagnostic,
        poll=session.polling and not final,
        final=final,
    )


def transmit(session: Session, now: float, chance: float) -> tuple[Session, Packet]:
    """The packet that is due, and when the next one will be."""
    return _scheduled(session, now, chance), packet_of(session)


def _scheduled(session: Session, now: float, chance: float) -> Session:
    """75 to 100 % of the interval, 75 to 90 % where one lost packet is enough to be down (6.8.7)."""
    if not speaks(session):
        return replace(session, next_tx=NEVER)
    least = 0.10 if session.timers.multiplier == 1 else 0.0
    share = 1.0 - least - (0.25 - least) * chance
    return replace(session, next_tx=now + session.interval * share / 1e6)


def speaks(session: Session) -> bool:
    """Whether packets are sent without being asked for (6.8.7)."""
    if session.timers.passive and not session.remote.discriminator:
        return False
    both_up = session.state == State.UP == session.remote.state
    return bool(session.remote.min_rx) and not (session.remote.demand and both_up and not session.polling)


def receive(session: Session, packet: Packet, now: float, chance: float, device: int = 0) -> tuple[Session, bool]:
    """6.8.6, from where the session is known; whether a Final is to be sent at once. `device`: by which it came."""
    before = session
    session = replace(session, remote=_remote(packet, device))
    if session.polling and packet.final:
        session = _poll_ended(session)
    if session.state == State.ADMIN_DOWN:
        return session, False
    session = _moved(session, packet, now)
    session = replace(session, deadline=now + session.detection / 1e6)
    if _says(session) != _says(before):
        session = _sooner(session, now, chance, at_once=session.state != before.state)
    return session, packet.poll


def _says(session: Session) -> tuple[State, bool, int]:
    """What of a session the time of its next packet rests on."""
    return session.state, speaks(session), session.interval


def _remote(packet: Packet, device: int) -> Remote:
    return Remote(
        packet.my_discriminator,
        packet.state,
        packet.diagnostic,
        packet.desired_min_tx,
        packet.required_min_rx,
        packet.multiplier,
        packet.demand,
        device,
    )


def _sooner(session: Session, now: float, chance: float, *, at_once: bool) -> Session:
    """What has changed is said at once (6.8.7); another interval counts from now, but never delays what is due."""
    if not speaks(session):
        return replace(session, next_tx=NEVER)
    due = now if at_once else _scheduled(session, now, chance).next_tx
    return replace(session, next_tx=min(session.next_tx, due))


def _moved(session: Session, packet: Packet, now: float) -> Session:
    """The table of 6.2, as 6.8.6 writes it."""
    state, heard = session.state, packet.state
    if heard == State.ADMIN_DOWN:
        reason = "the peer is administratively down"
        off = replace(session, was_up=False)  # nobody is to be blamed for it (RFC 5882, 3.2)
        return replace(off, reason=reason) if state == State.DOWN else _down(off, Diagnostic.NEIGHBOR_DOWN, reason, now)
    if state == State.DOWN and heard == State.DOWN:
        reason = session.reason if session.was_up else "the peer answers, and has not heard this end yet"
        return replace(_in(session, State.INIT, now), reason=reason)
    if (state, heard) in ((State.DOWN, State.INIT), (State.INIT, State.INIT), (State.INIT, State.UP)):
        return _up(session, now)
    if state == State.UP and heard == State.DOWN:
        reason = f"the peer says that it is down ({describe(packet.diagnostic)})"
        return _down(session, Diagnostic.NEIGHBOR_DOWN, reason, now)
    return session


def _in(session: Session, state: State, now: float) -> Session:
    return replace(session, state=state, since=now)


def _up(session: Session, now: float) -> Session:
    """The slow interval ends: a smaller one holds at once, and a poll tells the peer (6.8.3)."""
    up = replace(_in(session, State.UP, now), diagnostic=Diagnostic.NONE, was_up=True, polling=True, reason="")
    return replace(up, tx_in_use=min(up.tx_in_use, up.desired_min_tx))


def _down(session: Session, diagnostic: Diagnostic, reason: str, now: float) -> Session:
    fell = session.state == State.UP
    down = replace(
        _in(session, State.DOWN, now),
        diagnostic=diagnostic,
        polling=False,
        deadline=NEVER,
        falls=session.falls + fell,
        reason=reason if fell or not session.was_up else session.reason,
    )
    return replace(down, tx_in_use=down.desired_min_tx, rx_in_use=down.timers.min_rx)


def _poll_ended(session: Session) -> Session:
    """What is advertised now holds in full (6.8.3)."""
    return replace(session, polling=False, tx_in_use=session.desired_min_tx, rx_in_use=session.timers.min_rx)


def expire(session: Session, now: float) -> Session:
    """6.8.4, at `deadline`: the peer was silent for the detection time; who it was is forgotten (6.8.1)."""
    reason = f"nothing was heard for the detection time of {session.detection / 1000:g} ms"
    silent = session
    if session.state in (State.INIT, State.UP):
        silent = _down(session, Diagnostic.DETECTION_TIME_EXPIRED, reason, now)
    silent = replace(silent, remote=Remote(), deadline=NEVER)
    return replace(silent, next_tx=now if speaks(silent) else NEVER)


def order(session: Session, timers: Timers, now: float) -> Session:
    """Other timers, for a session that goes on: told by a poll while it is up (6.8.3)."""
    if timers == session.timers:
        return session
    changed = replace(session, timers=timers)
    if session.state != State.UP:
        changed = replace(changed, tx_in_use=changed.desired_min_tx, rx_in_use=timers.min_rx)
        return replace(changed, next_tx=min(changed.next_tx, now) if speaks(changed) else NEVER)
    return replace(
        changed,
        polling=True,
        tx_in_use=min(session.tx_in_use, timers.min_tx),
        rx_in_use=max(session.rx_in_use, timers.min_rx),
        next_tx=min(session.next_tx, now),
    )


def switch_off(session: Session, now: float) -> Session:
    """6.8.16: AdminDown, which the peer takes for no failure; to be said for a detection time of the peer's."""
    off = _in(session, State.ADMIN_DOWN, now)
    off = replace(off, diagnostic=Diagnostic.ADMIN_DOWN, polling=False, deadline=NEVER, reason=ENDED_BY_US)
    return replace(off, tx_in_use=session.tx_in_use, was_up=False, next_tx=now if speaks(off) else NEVER)


_WORDS = {
    Diagnostic.NONE: "it gives no reason",
    Diagnostic.DETECTION_TIME_EXPIRED: "it heard nothing from here for its detection time",
    Diagnostic.ECHO_FAILED: "its echo failed",
    Diagnostic.NEIGHBOR_DOWN: "it heard that this end is down",
    Diagnostic.FORWARDING_PLANE_RESET: "its forwarding plane was reset",
    Diagnostic.PATH_DOWN: "its path is down",
    Diagnostic.CONCATENATED_PATH_DOWN: "a concatenated path is down",
    Diagnostic.ADMIN_DOWN: "it is administratively down",
    Diagnostic.REVERSE_PATH_DOWN: "a reverse concatenated path is down",
}


def describe(diagnostic: int) -> str:
    """A diagnostic of the peer in words."""
    return _WORDS[Diagnostic(diagnostic)] if diagnostic in set(Diagnostic) else f"diagnostic {diagnostic}"
