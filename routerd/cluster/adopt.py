"""What was published and the ledger does not know is taken over before anything is given. Pure.

A ledger can be older than the published document: it was lost, restored from a backup, or is that of a host which was
the operator once. What is published is in use on the nodes, so it wins over what the ledger says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from ipam.pool import key_of
from ipam.round import Record
from routerd.cluster.groups import LAST_GROUP
from routerd.cluster.ledger import GroupRecord, Ledger
from routerd.formats.published.records import lines
from routerd.formats.published.tables import TABLES
from routerd.model import Allocations, EgressGroup, IPAddress, Unread, Writer
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


def digest_of(allocations: Allocations) -> str:
    """Of the content as it is written in parts, without generation and writer: a release that names a class or a field
    otherwise comes to the same.
    """
    rows = ((table.name, lines(table, getattr(allocations, table.name))) for table in TABLES)
    return sha256("".join(f"{name}\n{text}" for name, text in rows).encode()).hexdigest()


def adopt(ledger: Ledger, published: Allocations, own: Writer | None, now: float) -> Adopted:
    """The ledger with what is published, if that is newer; else the ledger itself. `now` as in `assign`."""
    if not _is_newer(published, ledger, own):
        return Adopted(ledger)
    theirs = {(record.address, record.owner): record for record in _records(published, now)}
    addresses, conflicts = _merged(ledger.addresses, theirs, now)
    groups, group_conflicts = _merged_groups(ledger.groups, published.groups, now)
    last = max((group.id for group in published.groups), default=0)
    merged = Ledger(
        published.generation,
        digest_of(published),
        max(ledger.next_group, last % LAST_GROUP + 1),
        addresses,
        groups,
    )
    return Adopted(merged, True, (*conflicts, *group_conflicts))


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
        for policy in group.policies:
            yield Record(group.egress_ip, policy, group.pool, "used", now, bound=not group.node_address)


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
    """Number and address are one pair on every node. An epoch never falls: peers prefer the later one."""
    records = {group.id: GroupRecord(group.id, group.egress_ip, "active", now, group.gateways, group.slots, group.epoch)
             for group in theirs}  # fmt: skip
    numbers = {group.egress_ip: group.id for group in theirs}
    conflicts = []
    for record in ours:
        number = numbers.get(record.egress_ip, record.id)
        other = records.get(number)
        if other is None:
            records[record.id] = record
        elif (other.id, other.egress_ip) == (record.id, record.egress_ip):
            since = record.since if record.state == "active" else now
            records[number] = replace(other, since=since, epoch=max(record.epoch, other.epoch))
        else:
            conflicts.append(
                f"group {record.id} was {record.egress_ip}: published as group {other.id}, {other.egress_ip}"
            )
    return tuple(records[number] for number in sorted(records)), conflicts
