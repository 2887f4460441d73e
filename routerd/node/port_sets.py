"""What this node says of ports of egress IPs: what it needs, what it gives back, what it has dropped. Pure.

A node asks for ports of a group when a pod that a policy of the group selects is *scheduled* to it, before the pod has
an address; and for more when those that it has are nearly used up. It uses a block only while the table that it has
applied last says that the block is its own and is not asked back: so what it has said of a block that was asked back
stays true until it is granted anew.

A new group may concern every node at once, so a node of many asks for its ports when it is its turn; but at once where
a policy that it served by another group has gone over to it, as the ports of that group are asked back.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

from egress.status import PortUse
from ipam.port_sets import GRANULE
from routerd.model import (
    Allocations,
    AppliedTable,
    BindingTable,
    IPAddress,
    PortAsk,
    PortBlock,
    PortReport,
    UnusedBlock,
)

LINGER = 300.0  # seconds that a node goes on asking after the last selected pod has gone: most are replaced
LOOK = 300.0  # seconds between two values of what is in use, if nothing else is to be said
IDLE = 1 / 8  # share in use, below which a node wants half
ASKS = 25.0  # a second, of all nodes of the cluster that ask for ports of a new group
MOST = 1 << 16  # ports of a group that a node wants, about as many as an address has


@dataclass(frozen=True, slots=True)
class PortMemory:
    """What the next report rests on besides what is read. Times are of a clock that nobody sets, in seconds."""

    needed: Mapping[int, float] = field(default_factory=dict)  # by group: when a pod was selected last
    considered: float = float("-inf")
    looked: float = float("-inf")  # when what is in use was told last
    held: Mapping[int, tuple[int, float]] = field(default_factory=dict)  # by group: ports in force here, since when
    report: PortReport | None = None
    turns: Mapping[int, float] = field(default_factory=dict)  # by group: before that it is not asked for
    served: frozenset[str] = frozenset()  # policies that select a pod here, of which a group was asked for

    @property
    def next_turn(self) -> float:
        """When something is to be said that nothing else brings up."""
        return min((turn for turn in self.turns.values() if turn > self.considered), default=float("inf"))


def own_blocks(
    allocations: Allocations, node: str, groups: Container[int]
) -> dict[int, tuple[tuple[IPAddress, PortBlock], ...]]:
    """By group, of these: all blocks of the node, in the order of the group's addresses and of their ports."""
    number = number_of(allocations, node)
    tables = {table.egress_ip: table for table in allocations.bindings}
    return {
        group.id: tuple((address, block) for address in group.egress_ips if address in tables
                        for block in tables[address].blocks(number))
        for group in allocations.groups
        if group.id in groups
    } if number else {}  # fmt: skip


def number_of(allocations: Allocations, node: str) -> int:
    """By which tables name the node; 0 = by none yet."""
    return next((each.number for each in allocations.numbers if each.node == node), 0)


def report_ports(
    node: str,
    allocations: Allocations,
    selecting: frozenset[str],
    applied: Allocations | None,
    use: PortUse | None,
    memory: PortMemory,
    now: float,
    applied_since: float = float("-inf"),
) -> PortMemory:
    """The next report, in a new memory. `now` is of a clock that nobody sets, in seconds, as is `applied_since`: from
    when on `applied` has been in force, without a break.

    `selecting`: keys of policies that select a pod scheduled here. `applied`: the allocations in force in the datapath;
    None = none yet. `use`: None = it is not known, and nothing is given back nor more asked for.
    """
    here = {group.id for group in allocations.groups if not selecting.isdisjoint(group.policies)}
    known = {group.id for group in allocations.groups}
    needed = {group: now if group in here else since for group, since in _since(memory, here, now).items()}
    needed = {group: since for group, since in needed.items() if group in known and now - since < LINGER}
    turns = _turns(node, allocations, memory, now)
    looks = now - memory.looked >= LOOK
    before = memory.report or PortReport()
    blocks = own_blocks(allocations, node, needed) if use is not None else {}
    held = (
        _held(blocks if applied is allocations else own_blocks(applied, node, needed), memory, now) if applied else {}
    )
    short = {group: ports for group, (ports, since) in held.items() if use and use.pressed.get(group, since) > since}
    asks = tuple(
        _ask(group, blocks.get(group, ()), before, use, short.get(group, 0), looks=looks)
        for group in sorted(needed)
        if turns[group] <= now
    )
    report = PortReport(asks, _unused(applied, node, use, applied_since, before), _confirmed(applied, node, before))
    asked = {each.group for each in asks}
    served = selecting & memory.served.union(*(each.policies for each in allocations.groups if each.id in asked))
    return PortMemory(needed, now, now if looks else memory.looked, held, report, turns, served)


def _turns(node: str, allocations: Allocations, memory: PortMemory, now: float) -> dict[int, float]:
    """From when on each group is asked for. Those that were there before this one may be at any time: a node that gets
    a pod waits for nothing, nor does one whose pods had ports until their policy got another egress IP.
    """
    nodes = len(allocations.numbers)
    round_ = nodes / ASKS if nodes > ASKS and memory.report is not None else 0.0
    turn = now if not round_ else now + (crc32(node.encode()) / 2**32 * round_ - now) % round_
    turns = {group.id: memory.turns.get(group.id, turn) for group in allocations.groups}
    at_once = {group.id for group in allocations.groups if not memory.served.isdisjoint(group.policies)}
    return {group: min(turn, now) if group in at_once else turn for group, turn in turns.items()}


Blocks = Mapping[int, tuple[tuple[IPAddress, PortBlock], ...]]


def _held(blocks: Blocks, memory: PortMemory, now: float) -> dict[int, tuple[int, float]]:
    """How long a search was before the node had these ports says nothing of them."""
    sizes = {group: _size(found) for group, found in blocks.items()}
    before = {group: memory.held.get(group, (0, now)) for group in sizes}
    return {group: before[group] if before[group][0] == size else (size, now) for group, size in sizes.items()}


def _size(blocks: Iterable[tuple[IPAddress, PortBlock]]) -> int:
    """Ports in which something may begin."""
    return sum(block.size for _, block in blocks if not block.returning)


def _since(memory: PortMemory, here: Iterable[int], now: float) -> dict[int, float]:
    return {**memory.needed, **dict.fromkeys(here, now)}


def _ask(
    group: int,
    blocks: Iterable[tuple[IPAddress, PortBlock]],
    before: PortReport,
    use: PortUse | None,
    short: int,
    *,
    looks: bool,
) -> PortAsk:
    """`short`: of how many ports the node has too few; 0 = of none."""
    said = next((each for each in before.asks if each.group == group), PortAsk(group))
    if use is None:
        return said
    usable = [(address, block) for address, block in blocks if not block.returning]
    used = sum(_flows(use, address, block) for address, block in usable)
    wanted = said.ports
    if short:
        wanted = max(wanted, min(2 * short, MOST))
    elif looks and used < IDLE * wanted:
        wanted //= 2
    return PortAsk(group, wanted, used if looks or wanted != said.ports else said.used)


def _flows(use: PortUse, address: IPAddress, block: PortBlock) -> int:
    return sum(use.used.get((address, first), 0) for first in range(block.first, block.first + block.size, GRANULE))


def _unused(
    applied: Allocations | None, node: str, use: PortUse | None, since: float, before: PortReport
) -> tuple[UnusedBlock, ...]:
    """Blocks that were asked back, in tables that are in force here, and without a flow.

    A flow may have begun before the block was closed, so only what was counted later says that there is none; what was
    said before stays.
    """
    if applied is None or use is None:
        return ()
    number = number_of(applied, node)
    said = {(each.egress_ip, each.first, each.size) for each in before.unused}
    return tuple(
        UnusedBlock(table.egress_ip, block.first, block.size, table.version)
        for table in applied.bindings
        if number and table.returning
        for block in table.blocks(number)
        if block.returning
        and (
            (table.egress_ip, block.first, block.size) in said
            or (use.counted > since and not _flows(use, table.egress_ip, block))
        )
    )


def _confirmed(applied: Allocations | None, node: str, before: PortReport) -> tuple[AppliedTable, ...]:
    """Tables that wait for this node's word, as they are in force; what was said stays while it is enough."""
    if applied is None:
        return before.applied
    number = number_of(applied, node)
    said = {each.egress_ip: each for each in before.applied}
    return tuple(
        _enough(table, said.get(table.egress_ip))
        for table in applied.bindings
        if number in table.told and table.awaited
    )


def _enough(table: BindingTable, said: AppliedTable | None) -> AppliedTable:
    if said is not None and table.awaited <= said.version <= table.version:
        return said
    return AppliedTable(table.egress_ip, table.version)
