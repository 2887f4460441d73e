"""All sessions of a node: whose a packet is, and what is to be sent when. No I/O; it is told the time.

A packet that is nobody's, or that RFC 5880 (6.8.6) or RFC 5881 (section 5) has discarded, is counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from bfd import session as machine
from bfd.packet import Malformed, Packet, State, decode, encode
from bfd.session import Session, Timers
from bfd.wheel import NEVER, Wheel

IPAddress = IPv4Address | IPv6Address
TTL = 255  # of every packet, sent or taken (GTSM; RFC 5881, section 5)
STAY = 10_000_000  # microseconds between packets that peers are told before a pause of the process


Ends = tuple[IPAddress, IPAddress]  # what tells sessions apart: the peer's address and ours


@dataclass(frozen=True, slots=True)
class Order:
    """A session that is wanted: with whom, from which of our addresses, how fast."""

    peer: IPAddress
    local: IPAddress
    timers: Timers = field(default_factory=Timers)

    @property
    def ends(self) -> Ends:
        return self.peer, self.local


@dataclass(frozen=True, slots=True)
class Send:
    """A datagram to `peer`, port 3784, from `local`; `discriminator` names the session, which has a port of its own."""

    discriminator: int
    peer: IPAddress
    local: IPAddress
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A session and whose it is. `until`: when one that is no longer wanted has said so for long enough."""

    order: Order
    session: Session
    until: float = NEVER

    @property
    def due(self) -> float:
        return min(self.session.next_tx, self.session.deadline, self.until)


@dataclass(frozen=True, slots=True)
class Clock:
    """What is not for a pure table to know: chance from 0 up to 1, numbers that nobody guesses (RFC 5880, 6.8.1)."""

    chance: Callable[[], float]
    discriminator: Callable[[], int]


class Table:
    """Not thread-safe: one loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[int, Entry] = {}  # by our discriminator
        self._by_ends: dict[Ends, int] = {}  # of those that are wanted
        self._wheel: Wheel[int] = Wheel()
        self.refused: Counter[str] = Counter()

    # --- what is wanted

    @property
    def orders(self) -> dict[Ends, Order]:
        return {ends: self._entries[number].order for ends, number in self._by_ends.items()}

    def order(self, orders: Mapping[Ends, Order], now: float) -> None:
        """From now on these sessions and no others. One that stays does not flap, whatever its timers."""
        for ends in self._by_ends.keys() - orders.keys():
            self._retire(ends, now)
        for ends, wanted in orders.items():
            if ends not in self._by_ends:
                self._add(wanted, now)
                continue
            entry = self._entries[self._by_ends[ends]]
            self._keep(Entry(wanted, machine.order(entry.session, wanted.timers, now)))

    def _add(self, order: Order, now: float) -> None:
        for number in [n for n, entry in self._entries.items() if entry.order.ends == order.ends]:
            self._forget(number)  # its AdminDown would contradict the new one
        number = self._clock.discriminator()
        while number == 0 or number in self._entries:
            number = self._clock.discriminator()
        self._by_ends[order.ends] = number
        self._keep(Entry(order, machine.new(number, order.timers, now, self._clock.chance())))

    def _retire(self, ends: Ends, now: float) -> None:
        entry = self._entries[self._by_ends.pop(ends)]
        off = machine.switch_off(entry.session, now)
        until = now + off.timers.multiplier * max(off.interval, off.timers.min_tx) / 1e6
        self._keep(replace(entry, session=off, until=until))

    # --- a pause of the process

    def prepare_pause(self, now: float) -> None:
        """Asks the peers of sessions that are up for patience: by a poll, packets will be rarer (RFC 5880, 6.8.3)."""
        for entry in self._wanted():
            if entry.session.state == State.UP:
                patient = replace(entry.session.timers, min_tx=max(STAY, entry.session.timers.min_tx))
                self._keep(replace(entry, session=machine.order(entry.session, patient, now)))

    @property
    def is_patience_granted(self) -> bool:
        """Whether every peer has answered the poll."""
        return not any(entry.session.polling for entry in self._wanted())

    def sessions(self) -> dict[Ends, Session]:
        """Of those that are wanted."""
        return {entry.order.ends: entry.session for entry in self._wanted()}

    def resume(self, order: Order, session: Session, now: float) -> None:
        """Goes on with a session that was up before a pause. The peer is told our intervals by a poll."""
        timers = order.timers
        up = replace(session, timers=timers, polling=True, tx_in_use=timers.min_tx, rx_in_use=timers.min_rx)
        self._by_ends[order.ends] = up.discriminator
        self._keep(Entry(order, replace(up, next_tx=now, deadline=now + up.detection / 1e6)))

    # --- packets and time

    def receive(self, data: bytes, ends: Ends, ttl: int, device: int, now: float) -> list[Send]:
        """The answer to a datagram of port 3784, `ends` its source and destination.

        Nobody's time runs out here: more datagrams may wait to be read.
        """
        packet = decode(data)
        if isinstance(packet, Malformed):
            return self._refuse(packet.reason)
        if ttl != TTL:
            return self._refuse("ttl")
        entry = self._whose(packet, ends, device)
        if isinstance(entry, str):
            return self._refuse(entry)
        session, wants_final = machine.receive(entry.session, packet, now, self._clock.chance(), device)
        self._keep(replace(entry, session=session))
        return [self._send(entry.order, session, machine.packet_of(session, final=True))] if wants_final else []

    def _refuse(self, reason: str) -> list[Send]:
        self.refused[reason] += 1
        return []

    def _whose(self, packet: Packet, ends: Ends, device: int) -> Entry | str:
        """The session, or why there is none. Who does not name us must come by the peer's device."""
        if packet.your_discriminator:
            entry = self._entries.get(packet.your_discriminator)
            if entry is None:
                return "unknown-session"
            return entry if entry.order.peer == ends[0] else "other-source"
        if ends not in self._by_ends:
            return "unknown-peer"
        entry = self._entries[self._by_ends[ends]]
        known = entry.session.remote.device if entry.session.state == State.UP else 0
        return "other-device" if known and device != known else entry

    def advance(self, now: float) -> list[Send]:
        """Everything that is due by `now`."""
        return [sent for number in list(self._wheel.take(now)) for sent in self._advance(self._entries[number], now)]

    def _advance(self, entry: Entry, now: float) -> Iterator[Send]:
        if entry.until <= now:
            self._forget(entry.session.discriminator)
            return
        session = entry.session
        if session.deadline <= now:
            session = machine.expire(session, now)
        if session.next_tx <= now:
            session, packet = machine.transmit(session, now, self._clock.chance())
            yield self._send(entry.order, session, packet)
        self._keep(replace(entry, session=session))

    @property
    def next_due(self) -> float:
        """No later than the next thing that is due."""
        return self._wheel.next

    # --- entries

    def _wanted(self) -> list[Entry]:
        return [self._entries[number] for number in self._by_ends.values()]

    def numbers(self) -> frozenset[int]:
        """Discriminators of all sessions, also those that only say goodbye."""
        return frozenset(self._entries)

    def _keep(self, entry: Entry) -> None:
        self._entries[entry.session.discriminator] = entry
        self._wheel.put(entry.session.discriminator, entry.due)

    def _forget(self, number: int) -> None:
        del self._entries[number]
        self._wheel.drop(number)

    @staticmethod
    def _send(order: Order, session: Session, packet: Packet) -> Send:
        return Send(session.discriminator, order.peer, order.local, encode(packet))
