"""Two tables of BFD sessions on a wire, in a time that goes on at once: what is lost is the test's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from bfd.packet import Packet, decode
from bfd.session import Session, Timers
from bfd.table import Clock, Order, Send, Table

A, B = ip_address("10.0.0.1"), ip_address("10.0.0.2")
DELAY = 0.0005  # seconds


@dataclass
class End:
    """One end of the wire."""

    table: Table
    peer: object


@dataclass
class Wire:
    """`cut` says of (sender, packet) whether it is lost."""

    seed: int = 0
    now: float = 1000.0
    cut: Callable[[object, Packet], bool] = lambda sender, packet: False
    said: list[tuple[float, object, Packet]] = field(default_factory=list)
    on_the_way: list[tuple[float, object, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = {A: self.table(1), B: self.table(2)}

    def table(self, number: int) -> Table:
        chance = random.Random(self.seed + number)
        return Table(Clock(chance.random, lambda: chance.getrandbits(32)))

    def order(self, at: object, timers: Timers | None) -> None:
        peer = B if at == A else A
        assert at in (A, B)
        orders = {} if timers is None else {(peer, at): Order(peer, at, timers)}  # type: ignore[arg-type]
        self.tables[at].order(orders, self.now)  # type: ignore[index]

    def session(self, at: object) -> Session:
        (found,) = self.tables[at].sessions().values()  # type: ignore[index]
        return found

    def states(self) -> str:
        return " ".join(self.session(at).state.name for at in (A, B))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = min(
                [each[0] for each in self.on_the_way] + [table.next_due for table in self.tables.values()] + [end]
            )
            self.now = max(self.now, due)
            if due >= end:
                self.now = end
                return
            arrived = [each for each in self.on_the_way if each[0] <= self.now]
            self.on_the_way = [each for each in self.on_the_way if each[0] > self.now]
            for _, sender, data in arrived:
                at = B if sender == A else A
                self.send(self.tables[at].receive(data, (sender, at), 255, 1, self.now))  # type: ignore[arg-type]
            for table in self.tables.values():
                self.send(table.advance(self.now))

    def send(self, packets: list[Send]) -> None:
        for each in packets:
            packet = decode(each.data)
            assert isinstance(packet, Packet)
            self.said.append((self.now, each.local, packet))
            if not self.cut(each.local, packet):
                self.on_the_way.append((self.now + DELAY, each.local, each.data))

    def until(self, condition: Callable[[], bool], within: float) -> float:
        """Runs until it is so; seconds that it took."""
        began = self.now
        while not condition():
            assert self.now < began + within, f"not within {within} s: {self.states()}"
            self.run(0.0005)
        return self.now - began


__all__ = ["A", "B", "Wire"]
