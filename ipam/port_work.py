"""One egress IP while who gets its ports is planned: what is taken, what rests, which gateways are told. Pure.

A `Work` lives for one call of `ipam.port_plan`; it must not outlive it, nor weigh wishes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from ipam.pool import IPAddress
from ipam.port_sets import COOLDOWN, RANGE, Mask, PortSet, PortTable, State, Told, find, in_order

Block = tuple[int, int, int]  # first port, ports, number of the node that has it


@dataclass(frozen=True, slots=True)
class Space:
    """What can be given of an egress IP."""

    egress_ip: IPAddress
    room: Mask = RANGE


@dataclass(frozen=True, slots=True)
class Word:
    """What is known of nodes."""

    alive: Set[int]  # numbers; the others are deleted or out of service: fenced
    # By egress IP: sets that were asked back, and of which their nodes had no flow left in that version of the table.
    unused: Mapping[IPAddress, Mapping[Block, int]] = field(default_factory=dict)
    # By egress IP: the number of a gateway, and the version that is in force there.
    applied: Mapping[IPAddress, Mapping[int, int]] = field(default_factory=dict)

    def is_unused(self, each: PortSet) -> bool:
        """Whether its node has said so since it was asked, and not of an earlier set."""
        return self.unused.get(each.egress_ip, {}).get((each.first, each.size, each.node), -1) >= each.version

    def has_applied(self, gateway: int, egress_ip: IPAddress, version: int) -> bool:
        """Whether the gateway has no binding any more that is not in this version. One that is fenced carries none."""
        return gateway not in self.alive or self.applied.get(egress_ip, {}).get(gateway, 0) >= version


def dues(table: PortTable, word: Word) -> Iterator[float]:
    return (each.since + COOLDOWN for each in table.sets if not each.is_bound and not pending(table, each, word))


def pending(table: PortTable, each: PortSet, word: Word) -> bool:
    """Whether a gateway may still carry packets of a set that was taken out."""
    return any(
        one.joined < each.version and not word.has_applied(one.gateway, table.egress_ip, each.version)
        for one in table.told
    )


@dataclass(slots=True)
class Work:
    """One address while it is planned."""

    space: Space
    table: PortTable
    now: float
    sets: dict[int, PortSet] = field(init=False)  # by first port
    told: dict[int, Told] = field(init=False)
    firsts: dict[int, set[int]] = field(init=False, default_factory=dict)  # by node, where its sets begin
    taken: Mask = field(init=False, default=0)
    version: int = field(init=False)  # of what changes now

    def __post_init__(self) -> None:
        self.sets = {}
        self.told = {each.gateway: each for each in self.table.told}
        self.version = max(self.table.version + 1, int(self.now))
        for each in self.table.sets:
            self._note(each)

    def _note(self, each: PortSet) -> None:
        self.sets[each.first] = each
        self.firsts.setdefault(each.node, set()).add(each.first)
        self.taken |= each.mask

    @property
    def room(self) -> Mask:
        return self.space.room

    @property
    def free(self) -> Mask:
        return self.space.room & ~self.taken

    def result(self) -> PortTable:
        sets, told = in_order(self.sets.values()), tuple(self.told[gateway] for gateway in sorted(self.told))
        if sets == self.table.sets and told == self.table.told:
            return self.table
        return PortTable(self.table.egress_ip, self.version, sets, told)

    def put(self, each: PortSet, state: State) -> None:
        """Another state, which begins now."""
        self.sets[each.first] = replace(each, state=state, since=self.now, version=self.version)

    def grant(self, node: int, size: int) -> bool:
        first = find(self.free, size)
        if first is None:
            return False
        granted = PortSet(self.space.egress_ip, first, size, node, "granted", self.now, self.version, self.now)
        self._note(granted)
        return True

    def settle(self, word: Word) -> None:
        """What fenced nodes have is nobody's, nor what was returned; what has cooled down is free.

        A clock that was set back begins anew.
        """
        for each in self.table.sets:
            is_returned = each.state == "returning" and word.is_unused(each)
            if each.is_bound and (each.node not in word.alive or is_returned):
                self.put(each, "cooling")
            elif each.state != "granted" and each.since > self.now:
                self.sets[each.first] = replace(each, since=self.now)
            elif not each.is_bound and self.now >= each.since + COOLDOWN and not pending(self.table, each, word):
                del self.sets[each.first]
                self.firsts[each.node].discard(each.first)
                self.taken &= ~each.mask

    def tell(self, gateways: Set[int], word: Word) -> None:
        """Notes who is told. One that left stays until it has confirmed, or is fenced."""
        for gateway in sorted(gateways):
            known = self.told.get(gateway)
            if known is None:
                self.told[gateway] = Told(gateway, self.version)
            elif known.left:
                self.told[gateway] = replace(known, left=0)
        for gateway, known in list(self.told.items()):
            if gateway in gateways:
                continue
            known = self.told[gateway] = known if known.left else replace(known, left=self.version)
            if word.has_applied(gateway, self.space.egress_ip, known.left):
                del self.told[gateway]

    def ask_back(self, needed: Container[int]) -> None:
        """Sets of nodes that need none, and those with ports that somebody else uses on the address by now."""
        for each in list(self.sets.values()):
            if each.state == "granted" and (each.node not in needed or each.mask & ~self.space.room):
                self.put(each, "returning")

    def of(self, node: int, *states: State) -> list[PortSet]:
        own = (self.sets[first] for first in sorted(self.firsts.get(node, ())))
        return [each for each in own if each.state in states]

    def split(self, each: PortSet) -> None:
        """Asks the upper half of a set back."""
        half = each.size // 2
        self.sets[each.first] = replace(each, size=half)
        upper = replace(each, first=each.first + half, size=half)
        self._note(upper)
        self.put(upper, "returning")
