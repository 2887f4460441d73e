"""What the operator must remember: addresses with their owners, egress groups with their numbers. Values, no I/O.

`difference` says what one decision changes, together with its audit entries; `routerd.store.embedded.ledger` writes
exactly that, in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ipam.round import Record
from routerd.model import GatewaySlot, IPAddress


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """An egress group's number. A retired one keeps number and epoch for a while, in case its address comes back."""

    id: int  # VNI, 1 … 2^24-1
    egress_ip: IPAddress
    state: Literal["active", "retired"] = "active"
    since: float = 0.0  # when the state began, seconds of the Unix epoch
    gateways: tuple[GatewaySlot, ...] = ()
    slots: int = 1
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """The whole content. `generation` and `digest` are those of the last decision, published or about to be."""

    generation: int = 0
    digest: str = ""
    next_group: int = 1  # where the search for a free group number goes on
    addresses: tuple[Record, ...] = ()  # sorted by address, then owner
    groups: tuple[GroupRecord, ...] = ()  # sorted by id


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the append-only log."""

    time: float  # seconds of the Unix epoch
    what: str  # "assigned", "reserved", "released", "freed", "gateways:g1:0:epoch:1", …
    owner: str
    address: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns one ledger into the next. Deletions are by key: (address, owner), and group id."""

    before: Ledger
    after: Ledger
    put_addresses: tuple[Record, ...]
    deleted_addresses: tuple[Record, ...]
    put_groups: tuple[GroupRecord, ...]
    deleted_groups: tuple[GroupRecord, ...]
    audit: tuple[AuditEntry, ...]


AUDIT_OF_STATE: Mapping[str, str] = {"used": "assigned", "reserved": "reserved", "cooling": "released"}


def difference(before: Ledger, after: Ledger, now: float) -> Changes:
    """Records are compared by key, then by value; those that did not change are the same objects and cost nothing."""
    old_addresses = {(record.address, record.owner): record for record in before.addresses}
    new_addresses = {(record.address, record.owner): record for record in after.addresses}
    old_groups = {record.id: record for record in before.groups}
    new_groups = {record.id: record for record in after.groups}
    put = tuple(record for key, record in new_addresses.items() if old_addresses.get(key) != record)
    gone = tuple(record for key, record in old_addresses.items() if key not in new_addresses)
    put_groups = tuple(record for key, record in new_groups.items() if old_groups.get(key) != record)
    gone_groups = tuple(record for key, record in old_groups.items() if key not in new_groups)
    audit = (
        *(AuditEntry(now, "freed", record.owner, str(record.address)) for record in gone),
        *(_address_entry(now, old_addresses.get((record.address, record.owner)), record) for record in put),
        *(AuditEntry(now, "group-removed", f"group/{record.id}", str(record.egress_ip)) for record in gone_groups),
        *(_group_entry(now, old_groups.get(record.id), record) for record in put_groups),
    )
    return Changes(before, after, put, gone, put_groups, gone_groups, audit)


def _address_entry(now: float, old: Record | None, new: Record) -> AuditEntry:
    what = AUDIT_OF_STATE[new.state]
    if old is not None and old.state == new.state:
        what = f"pool:{new.pool}" if old.pool != new.pool else "changed"
    return AuditEntry(now, what, new.owner, str(new.address))


def _group_entry(now: float, old: GroupRecord | None, new: GroupRecord) -> AuditEntry:
    gateways = ",".join(f"{gateway.node}:{gateway.slot}" for gateway in new.gateways)
    what = "group-retired" if new.state == "retired" else f"gateways:{gateways or 'none'}:epoch:{new.epoch}"
    if old is None:
        what = f"group-created:{what}"
    return AuditEntry(now, what, f"group/{new.id}", str(new.egress_ip))
