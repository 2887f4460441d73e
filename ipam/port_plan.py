"""Which node gets which ports of an egress IP: a pure function of tables, wishes, what nodes report, and the time.

A set that a living node has is never taken or moved; at most it is asked back, and the node returns it when it likes.
Nodes without a set come first, in the order of their numbers, then those that want more, the poorest first: the order
in which wishes arrive makes no difference. Where no room is left, blocks are asked back from those that have most.

It must not know policies or stores; which nodes need ports, and which are fenced, is the caller's to say.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from zlib import crc32

from ipam.pool import IPAddress
from ipam.port_sets import (
    FAIR_SIZE,
    MAX_BLOCKS,
    MIN_SIZE,
    RANGE,
    PortTable,
    first_size,
    ports_in,
    power_at_least,
)
from ipam.port_work import Space, Word, Work, dues


@dataclass(frozen=True, slots=True)
class Wishes:
    """Of one egress group. A node that is not named needs no ports: what it has is asked back."""

    spaces: tuple[Space, ...]
    ports: Mapping[int, int]  # number of a node -> ports that it wants in all, 0 = a first set
    gateways: Set[int] = frozenset()  # numbers


@dataclass(frozen=True, slots=True)
class PortPlan:
    """Tables as they should be, in the order of the spaces; those that did not change are the same objects."""

    tables: tuple[PortTable, ...]
    lacking: tuple[int, ...] = ()  # nodes that need ports and have none
    short: Mapping[int, int] = field(default_factory=dict)  # nodes that want more -> ports that they do not get
    next_due: float | None = None  # when the plan changes with no other input, seconds of the Unix epoch


def plan_ports(wishes: Wishes, tables: Mapping[IPAddress, PortTable], word: Word, now: float) -> PortPlan:
    """`now` is in seconds of the Unix epoch."""
    quiet = _quiet(wishes, tables, word)
    if quiet is not None:
        return PortPlan(quiet)
    works = [Work(space, tables.get(space.egress_ip, PortTable(space.egress_ip)), now) for space in wishes.spaces]
    held = _Held(wishes, works)
    for work in works:
        work.settle(word)
        work.tell(wishes.gateways & word.alive, word)
        work.ask_back(wishes.ports)
    held.count()
    held.waiting = len(word.alive - held.granted.keys())
    short = _serve(held, word)
    tables_after = tuple(work.result() for work in works)
    lacking = tuple(node for node in sorted(wishes.ports) if not held.granted.get(node) and node in word.alive)
    due = (when for table in tables_after for when in dues(table, word))
    return PortPlan(tables_after, lacking, short, min(due, default=None))


def _quiet(wishes: Wishes, tables: Mapping[IPAddress, PortTable], word: Word) -> tuple[PortTable, ...] | None:
    """The tables, if nothing is to be done, which is so nearly always and costs little; None if there may be."""
    told = wishes.gateways & word.alive
    granted: dict[int, int] = {}
    quiet = []
    for space in wishes.spaces:
        table = tables.get(space.egress_ip)
        if table is None or {each.gateway for each in table.told} != told:
            return None
        for each in table.sets:
            if each.state != "granted" or each.node not in word.alive or each.node not in wishes.ports:
                return None
            granted[each.node] = granted.get(each.node, 0) + each.size
        if space.room != RANGE and any(each.mask & ~space.room for each in table.sets):
            return None
        quiet.append(table)
    is_content = all(granted.get(node, 0) >= max(wanted, 1) for node, wanted in wishes.ports.items())
    return tuple(quiet) if is_content and not any(each.left for table in quiet for each in table.told) else None


def retire(
    table: PortTable, word: Word, now: float, deadline: float, gateways: Set[int] = frozenset()
) -> PortTable | None:
    """The table of an address that nobody wants any more; None once nobody may have a binding of it.

    Its sets are asked back, and taken after `deadline` seconds. Meanwhile `gateways` carry what runs.
    """
    work = Work(Space(table.egress_ip), table, now)
    work.settle(word)
    work.tell(gateways & word.alive, word)
    for each in list(work.sets.values()):
        if each.state == "granted":
            work.put(each, "returning")
        elif each.state == "returning" and now >= each.since + deadline:
            work.put(each, "cooling")
    after = work.result()
    return after if after.sets or after.told else None


def retire_due(table: PortTable, word: Word, deadline: float) -> float | None:
    """When `retire` changes the table with no other input."""
    waits = [each.since + deadline for each in table.sets if each.state == "returning"]
    return min([*waits, *dues(table, word)], default=None)


@dataclass(slots=True)
class _Held:
    """A group's addresses, and how many ports of them each node may use."""

    wishes: Wishes
    works: list[Work]
    granted: dict[int, int] = field(default_factory=dict)
    waiting: int = 0  # living nodes without any

    def count(self) -> None:
        self.granted = {}
        for work in self.works:
            for each in work.sets.values():
                if each.state == "granted":
                    self.granted[each.node] = self.granted.get(each.node, 0) + each.size

    def first_size(self, work: Work) -> int:
        """Nodes are spread over all addresses."""
        return first_size(ports_in(work.space.room), -(-len(self.wishes.ports) // len(self.works)))

    def order(self, node: int) -> list[Work]:
        """In which a node takes from several addresses: where it has some, then by rendezvous."""
        if len(self.works) == 1:
            return self.works
        key = lambda work: (not work.of(node, "granted"), crc32(f"{work.space.egress_ip} {node}".encode()))  # noqa: E731
        return sorted(self.works, key=key)

    def grant(self, work: Work, node: int, size: int) -> bool:
        if not work.grant(node, size):
            return False
        self.waiting -= node not in self.granted
        self.granted[node] = self.granted.get(node, 0) + size
        return True

    def leaves_room(self, size: int, node: int) -> bool:
        """Whether nodes that have nothing yet could still have something, if this one gets so much.

        As long as the addresses have room for a first set of every living node, it is kept from larger first sets; from
        nodes that want more, no more than half of the addresses.
        """
        total, free = (sum(ports_in(getattr(work, name)) for work in self.works) for name in ("room", "free"))
        is_first = node not in self.granted
        kept = MIN_SIZE * (self.waiting - is_first)
        if not is_first or MIN_SIZE * (self.waiting + len(self.granted)) > total:
            kept = min(kept, total // 2)
        return (is_first and size == MIN_SIZE) or free - size >= kept


# --- serving


def _serve(held: _Held, word: Word) -> dict[int, int]:
    """Newcomers, then growth, then what is asked back for those who got too little. Returns who is short of what."""
    ports = held.wishes.ports
    if not held.works:
        return {}
    newcomers = [node for node in sorted(ports) if node in word.alive and not held.granted.get(node)]
    missing = sum(_serve_newcomer(held, node) for node in newcomers)
    poor = {node for node in ports if node in word.alive and held.granted.get(node, 0) < FAIR_SIZE}
    short = {}
    for node in sorted(held.granted, key=lambda node: (held.granted[node], node)):
        if node in word.alive and held.granted[node] < ports.get(node, 0):
            lack = _grow(held, node, ports[node], is_fair=not poor - {node})
            if lack:
                short[node] = lack
    _ask_back(held, missing, sum(short.values()))
    return short


def _serve_newcomer(held: _Held, node: int) -> int:
    """A first set, of what size there is. Returns how many ports it lacks then."""
    for work in held.order(node):
        resumed = [each for each in work.of(node, "returning") if not each.mask & ~work.space.room]
        if resumed:  # asked back, and not returned: it may still have flows there
            each = max(resumed, key=lambda each: (each.size, -each.first))
            work.put(each, "granted")
            held.waiting -= node not in held.granted
            held.granted[node] = each.size
            return 0
    wanted = 0
    for work in held.order(node):
        size = held.first_size(work)
        while not held.leaves_room(size, node):
            size //= 2
        wanted = wanted or size
        while size >= MIN_SIZE:
            if held.grant(work, node, size):
                return max(0, wanted - size)
            size //= 2
    return wanted


def _grow(held: _Held, node: int, wanted: int, *, is_fair: bool) -> int:
    """Further blocks, large ones first. Returns how many ports it lacks then."""
    for work in held.order(node):
        own = work.of(node, "granted", "returning")
        blocks, here = len(own), sum(each.size for each in own)
        limit = ports_in(work.space.room) // (1 if is_fair else 4)
        size = power_at_least(wanted - held.granted[node])
        while held.granted[node] < wanted and blocks < MAX_BLOCKS and size >= MIN_SIZE:
            if here + size <= limit and held.leaves_room(size, node) and held.grant(work, node, size):
                blocks, here = blocks + 1, here + size
                size = min(size, power_at_least(wanted - held.granted[node]))
            else:
                size //= 2
    return max(0, wanted - held.granted[node])


def _ask_back(held: _Held, missing: int, short: int) -> None:
    """`missing` ports for newcomers: from those with more than a first set; `short` ones: from those with no use."""
    coming = sum(each.size for work in held.works for each in work.sets.values() if each.state != "granted")
    ports = held.wishes.ports
    if missing > coming:
        _collect(held, missing - coming, {})
    coming += max(0, missing - coming)
    if short > coming - missing:
        _collect(held, short - (coming - missing), ports)


def _collect(held: _Held, ports: int, wanted: Mapping[int, int]) -> None:
    """Asks so many ports back, from the richest first. Nobody falls below a first set, or what it wants."""
    heap: list[tuple[int, int, int]] = []
    for index, work in enumerate(held.works):
        here: dict[int, int] = {}
        for each in work.sets.values():
            if each.state == "granted":
                here[each.node] = here.get(each.node, 0) + each.size
        heap += [(-size, node, index) for node, size in here.items()]
    heapq.heapify(heap)
    while heap and ports > 0:
        size, node, index = heapq.heappop(heap)
        work = held.works[index]
        spare = held.granted[node] - max(held.first_size(work), wanted.get(node, 0))
        taken = _take(work, node, min(spare, -size - MIN_SIZE), power_at_least(ports))
        if taken:
            ports -= taken
            held.granted[node] -= taken
            heapq.heappush(heap, (size + taken, node, index))


def _take(work: Work, node: int, spare: int, ports: int) -> int:
    """Asks one block back, or the half of one: the smallest that has so many `ports`, else the largest, of at most
    `spare` ports. Returns how many ports that is.
    """
    own = work.of(node, "granted")
    offers = [(each.size, True, each.first) for each in own]
    if len(work.of(node, "granted", "returning")) < MAX_BLOCKS:
        offers += [(each.size // 2, False, each.first) for each in own if each.size > MIN_SIZE]
    offers = [offer for offer in offers if offer[0] <= spare]
    if not offers:
        return 0
    enough = [offer for offer in offers if offer[0] >= ports]
    size = min(enough)[0] if enough else max(offers)[0]
    _, is_whole, first = max(offer for offer in offers if offer[0] == size)
    if is_whole:
        work.put(work.sets[first], "returning")
    else:
        work.split(work.sets[first])
    return size
