"""What was published and the ledger does not know is taken over before anything is given. Pure.

A ledger can be older than the published document: it was lost, restored from a backup, or is that of a host which was
the operator once. What is published is in use on the nodes, so it wins over what the ledger says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

from ipam.pool import key_of
from ipam.port_sets import PortSet, PortTable, State, Told, blocks_of, in_order
from ipam.round import Record
from routerd.cluster.groups import LAST_GROUP
from routerd.cluster.ledger import GroupRecord, Ledger, NumberRecord
from routerd.cluster.pod_cidrs import BlockRecord, block_key
from routerd.cluster.port_sets import binding_of
from routerd.cluster.requests import owner_of
from routerd.formats.published.bindings import OWNERS, STARTS
from routerd.formats.published.records import line, lines
from routerd.formats.published.tables import TABLES
from routerd.memo import PerObject
from routerd.model import (
    Allocations,
    BindingTable,
    EgressGroup,
    IPAddress,
    NodeBlocks,
    NodeNumber,
    PortBlock,
    Unread,
    Writer,
)
from routerd.refs import service_ref

Key = tuple[IPAddress, str]  # address and owner


@dataclass(frozen=True, slots=True)
class Adopted:
    """`conflicts`: one line for each thing that the ledger had otherwise."""

    ledger: Ledger
    is_taken: bool = False  # whether the document was newer than the ledger
    conflicts: tuple[str, ...] = ()


def is_foreign(other: Writer | None, own: Writer | None) -> bool:
    """Whether a document of `other` was written by another operator that is not one of our predecessors."""
    if other is None or own is None:
        return False
    if other.ledger != own.ledger:
        return True
    return other.lease > own.lease or (other.lease == own.lease and other.node != own.node)


class Digests:
    """Digests of allocations; the text of a record is kept (see `routerd.memo`)."""

    def __init__(self) -> None:
        self._lines = {table.name: PerObject(partial(line, table)) for table in TABLES}

    def of(self, allocations: Allocations) -> str:
        """See `digest_of`."""
        return _digest((name, "".join(texts(getattr(allocations, name)))) for name, texts in self._lines.items())


def digest_of(allocations: Allocations) -> str:
    """Of the content as it is written in parts, without generation and writer: a release that names a class or a field
    otherwise comes to the same.
    """
    return _digest((table.name, lines(table, getattr(allocations, table.name))) for table in TABLES)


def _digest(rows: Iterable[tuple[str, str]]) -> str:
    return sha256("".join(f"{name}\n{text}" for name, text in rows).encode()).hexdigest()


def adopt(ledger: Ledger, published: Allocations, own: Writer | None, now: float) -> Adopted:
    """The ledger with what is published, if that is newer; else the ledger itself. `now` as in `assign`."""
    if not _is_newer(published, ledger, own):
        return Adopted(ledger)
    theirs = {(record.address, record.owner): record for record in _records(published, now)}
    addresses, conflicts = _merged(ledger.addresses, theirs, now)
    groups, group_conflicts = _merged_groups(ledger.groups, published.groups, now)
    last = max((group.id for group in published.groups), default=0)
    numbers, number_conflicts = _merged_numbers(ledger.node_numbers, published.numbers, now)
    merged = Ledger(
        published.generation,
        digest_of(published),
        max(ledger.next_group, last % LAST_GROUP + 1),
        addresses,
        groups,
        numbers,
        _merged_tables(ledger.port_tables, published, now),
        ledger.past_port_sets,
        ledger.cloud_instances,
        ledger.cloud_addresses,
        _merged_blocks(ledger.pod_cidrs, published.pod_cidrs, now),
    )
    return Adopted(merged, True, (*conflicts, *group_conflicts, *number_conflicts))


def _merged_blocks(ours: Iterable[BlockRecord], published: Iterable[NodeBlocks], now: float) -> tuple[BlockRecord, ...]:
    """Who has a block by what is published has it; what else was recorded stays."""
    theirs = [BlockRecord(block, each.node, since=now) for each in published for block in each.blocks]
    records = {each.block: each for each in ours}
    for each in theirs:
        known = records.get(each.block)
        if known is None or (known.node, known.state) != (each.node, each.state):
            records[each.block] = each
    return tuple(sorted(records.values(), key=lambda each: block_key(each.block)))


def may_know_more(unread: Unread, is_first: bool, ledger: Ledger, own: Writer | None) -> bool:
    """Whether what cannot be read may say what the ledger does not know. `is_first`: nothing was read before either."""
    if unread.head is None:
        return is_first
    return _is_newer(unread.head, ledger, own)


def _is_newer(published: Allocations, ledger: Ledger, own: Writer | None) -> bool:
    """A decision is recorded before it is published: our own document is never newer than our ledger."""
    if published.generation != ledger.generation:
        return published.generation > ledger.generation
    return is_foreign(published.writer, own) and digest_of(published) != ledger.digest


def _records(published: Allocations, now: float) -> Iterator[Record]:
    for each in published.services:
        for address in each.addresses:
            yield Record(address, str(service_ref(each.service)), each.pool, "used", now)
    for group in published.groups:
        for policy in () if group.service else group.policies:
            for address, owner in _held(group, policy):
                yield Record(address, owner, group.pool, "used", now, bound=not group.node_address)


def _held(group: EgressGroup, policy: str) -> Iterator[tuple[IPAddress, str]]:
    """The addresses of a group and whose they are: what a pool gave is one of each family for each number."""
    numbers: Counter[int] = Counter()
    for address in group.egress_ips:
        yield address, owner_of(policy, numbers[address.version]) if group.pool else policy
        numbers[address.version] += 1


def _merged(ours: tuple[Record, ...], theirs: Mapping[Key, Record], now: float) -> tuple[tuple[Record, ...], list[str]]:
    """An address that is published is its published owners' alone; what such an owner had besides, it has left."""
    taken = {address for address, _ in theirs}
    owners = {owner for _, owner in theirs}
    records: dict[Key, Record] = dict(theirs)
    conflicts = []
    for record in ours:
        key = record.address, record.owner
        if key in theirs:
            records[key] = record if record.state == "used" else replace(theirs[key], bound=record.bound)
        elif record.address in taken:
            conflicts.append(f"{record.address} was {record.state} for {record.owner}: published for another")
        elif record.owner in owners and record.state == "used":
            conflicts.append(f"{record.address} was used by {record.owner}: published with another address")
            records[key] = replace(record, state="reserved" if record.bound else "cooling", since=now)
        else:
            records[key] = record
    return tuple(sorted(records.values(), key=lambda each: (key_of(each.address), each.owner))), conflicts


def _merged_groups(
    ours: tuple[GroupRecord, ...], theirs: tuple[EgressGroup, ...], now: float
) -> tuple[tuple[GroupRecord, ...], list[str]]:
    """Number and address are one pair on every node."""
    records = {group.id: GroupRecord(group.id, group.egress_ip, "active", now, group.gateways) for group in theirs}
    numbers = {group.egress_ip: group.id for group in theirs}
    conflicts = []
    for record in ours:
        number = numbers.get(record.egress_ip, record.id)
        other = records.get(number)
        if other is None:
            records[record.id] = record
        elif (other.id, other.egress_ip) == (record.id, record.egress_ip):
            since = record.since if record.state == "active" else now
            records[number] = replace(other, since=since)
        else:
            conflicts.append(
                f"group {record.id} was {record.egress_ip}: published as group {other.id}, {other.egress_ip}"
            )
    return tuple(records[number] for number in sorted(records)), conflicts


def _merged_numbers(
    ours: tuple[NumberRecord, ...], theirs: tuple[NodeNumber, ...], now: float
) -> tuple[tuple[NumberRecord, ...], list[str]]:
    """Tables that are in force name nodes by the published numbers."""
    records = {each.number: NumberRecord(each.number, each.node, since=now) for each in theirs}
    numbers = {each.node: each.number for each in theirs}
    conflicts = []
    for record in ours:
        number = numbers.get(record.node, record.number)
        other = records.get(number)
        if other is None or (other.number, other.node) == (record.number, record.node):
            records[number] = record
        else:
            conflicts.append(
                f"{record.node} was node number {record.number}: published as {other.number}, {other.node}"
            )
    return tuple(records[number] for number in sorted(records)), conflicts


def _merged_tables(ours: tuple[PortTable, ...], published: Allocations, now: float) -> tuple[PortTable, ...]:
    """What is published is in use on the nodes. What only the ledger has was taken out since, and rests from now on."""
    known = {table.egress_ip: table for table in ours}
    gateways = {address: {*group.gateways} for group in published.groups for address in group.egress_ips}
    numbers = {each.node: each.number for each in published.numbers}
    tables = {}
    for theirs in published.bindings:
        serving = {numbers[name] for name in gateways.get(theirs.egress_ip, ()) if name in numbers}
        tables[theirs.egress_ip] = _merged_table(known.get(theirs.egress_ip), theirs, serving, now)
    for table in ours:
        if table.egress_ip not in tables:
            nothing = BindingTable(table.egress_ip, table.version, bytes(OWNERS), bytes(STARTS))
            tables[table.egress_ip] = _merged_table(table, nothing, set(), now)
    return tuple(tables[address] for address in sorted(tables, key=key_of))


def _merged_table(ours: PortTable | None, theirs: BindingTable, serving: set[int], now: float) -> PortTable:
    """A later version than both, unless there is nothing to merge."""
    if ours is not None and binding_of(ours) == theirs:
        return ours
    address = theirs.egress_ip
    version = theirs.version if ours is None else max(theirs.version, ours.version) + 1
    sets = {
        each.first: PortSet(
            address,
            each.first,
            each.size,
            each.node,
            _state(each),
            now,
            theirs.asked if each.returning else theirs.version,
            now,
        )
        for each in theirs.blocks()
    }
    resting = [
        PortSet(address, first, size, 0, "cooling", float(each.since), each.version, float(each.since))
        for each in theirs.cooling
        for ports in each.ranges
        for first, size in blocks_of(*ports)
    ]
    if ours is not None:
        resting += [each for each in ours.sets if not each.is_bound]
        resting += [replace(each, state="cooling", since=now, version=version) for each in ours.sets if each.is_bound]
    taken = 0
    for each in (*sets.values(), *resting):
        if not taken & each.mask:
            sets[each.first] = each
            taken |= each.mask
    left = version if ours is not None or not theirs.awaited else theirs.awaited
    gateways = {*theirs.told, *(one.gateway for one in ours.told)} if ours is not None else theirs.told
    told = {number: Told(number, 0, 0 if number in serving else left) for number in gateways}
    return PortTable(address, version, in_order(sets.values()), tuple(told[number] for number in sorted(told)))


def _state(each: PortBlock) -> State:
    return "returning" if each.returning else "granted"
