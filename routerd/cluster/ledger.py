"""What the operator must remember: addresses with their owners, egress groups with their numbers. Values, no I/O.

Each kind of record is a row of `TABLES`, and stores loop over these: a further kind is a dataclass, a field of `Ledger`
and a row. `difference` says what one decision changes, together with its audit entries; a store writes exactly that, in
one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

from cloud.egress import Seat, read_seat, seat_row
from cloud.records import Holding, holding_row, read_holding
from ipam.pool import Use, key_of
from ipam.port_sets import PortSet, PortTable, State, Told, in_order
from ipam.round import Record
from routerd.cluster.pod_cidrs import BlockRecord, block_key
from routerd.formats.published.records import SHOWN, Row, Table, no_record
from routerd.memo import by_identity, differing
from routerd.model import IPAddress

R = TypeVar("R")
IN_USE = frozenset({"used", "active", "granted"})  # states of what waits for nothing
CELLS: Mapping[type, tuple[type, ...]] = {  # by the kind of their column
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (int,),  # a truth value is a number in SQLite
    list: (list,),
}


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """An egress group's number. A retired one keeps its number for a while, in case its address comes back."""

    id: int  # VNI, 1 … 2^24-1
    egress_ip: IPAddress
    state: Literal["active", "retired"] = "active"
    since: float = 0.0  # when the state began, seconds of the Unix epoch
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NumberRecord:
    """By which number tables of ports name a node. It rests when the node is gone, and is its own if it comes back."""

    number: int  # 1 … 65535
    node: str
    state: Literal["used", "resting"] = "used"
    since: float = 0.0  # when the state began, seconds of the Unix epoch


@dataclass(frozen=True, slots=True)
class PastSet:
    """Who had ports that are free again: for those who ask later."""

    egress_ip: IPAddress
    first: int  # port
    size: int  # ports
    granted: float  # seconds of the Unix epoch, as is the next
    returned: float
    node: str

    @property
    def key(self) -> tuple[int, int, float]:
        return key_of(self.egress_ip), self.first, self.granted


@dataclass(frozen=True, slots=True)
class Ledger:
    """The whole content. `generation` and `digest` are those of the last decision, published or about to be."""

    generation: int = 0
    digest: str = ""
    next_group: int = 1  # where the search for a free group number goes on
    addresses: tuple[Record, ...] = ()  # sorted by address, then owner
    groups: tuple[GroupRecord, ...] = ()  # sorted by id
    node_numbers: tuple[NumberRecord, ...] = ()  # sorted by number
    port_tables: tuple[PortTable, ...] = ()  # sorted by egress IP
    past_port_sets: tuple[PastSet, ...] = ()  # sorted by their keys
    cloud_instances: tuple[Holding, ...] = ()  # sorted by instance
    cloud_addresses: tuple[Seat, ...] = ()  # egress IPs that are a cloud's; sorted
    pod_cidrs: tuple[BlockRecord, ...] = ()  # sorted by block


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the append-only log."""

    time: float  # seconds of the Unix epoch
    what: str  # "assigned", "reserved", "released", "freed", "gateways:g1,g2", …
    owner: str
    address: str


AuditFields = tuple[str, str, str]  # an audit entry without its time


@dataclass(frozen=True, slots=True)
class LedgerTable(Table[R]):
    """`name` is that of the field of `Ledger`. `columns` names the cells of a row: text, number, or list = any JSON."""

    columns: Mapping[str, type]
    keys: int  # so many columns, the first ones, are the key
    # What was there before, if anything, and what is there now. None = the audit log says nothing of it.
    audit_put: Callable[[R | None, R], AuditFields | None]
    audit_deletion: Callable[[R], AuditFields | None]

    def read(self, row: Row) -> R:
        """Raises NoRecord, also for a cell of another kind than its column: neither SQLite nor JSON sees to that."""
        for (column, kind), cell in zip(self.columns.items(), row, strict=False):  # an earlier release's may differ
            if not isinstance(cell, CELLS[kind]):
                raise no_record(self.name, row, f"{column} is {cell!r}"[:SHOWN])
        return Table.read(self, row)

    def of(self, ledger: Ledger) -> tuple[R, ...]:
        records: tuple[R, ...] = getattr(ledger, self.name)
        return records


@dataclass(frozen=True, slots=True)
class TableChanges(Generic[R]):
    """What changes in one table. Records are deleted by their key."""

    put: tuple[R, ...] = ()
    deleted: tuple[R, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns one ledger into the next; `tables` by name."""

    before: Ledger
    after: Ledger
    tables: Mapping[str, TableChanges[Any]] = field(default_factory=dict)
    audit: tuple[AuditEntry, ...] = ()


def difference(before: Ledger, after: Ledger, now: float) -> Changes:
    """Records are compared by key, then by value; those that did not change are the same objects and cost nothing."""
    tables: dict[str, TableChanges[Any]] = {}
    audit: list[AuditEntry] = []
    for table in TABLES:
        if table.of(before) is table.of(after):
            tables[table.name] = TableChanges()
            continue
        left, come = by_identity(table.of(before)), by_identity(table.of(after))
        changed, gone = differing(left, come)  # what is the same object is not looked at
        old = {table.key(left[number]): left[number] for number in gone}
        new = {table.key(come[number]): come[number] for number in changed}
        put = {key: record for key, record in new.items() if old.get(key) != record}
        deleted = tuple(record for key, record in sorted(old.items()) if key not in new)
        tables[table.name] = TableChanges(tuple(put.values()), deleted)
        fields = [
            *map(table.audit_deletion, deleted),
            *(table.audit_put(old.get(key), record) for key, record in put.items()),
        ]
        audit += (AuditEntry(now, *each) for each in fields if each is not None)
    return Changes(before, after, tables, tuple(audit))


def rest_anew(ledger: Ledger, now: float) -> Ledger:
    """Whatever waits for its time waits for all of it from `now` on: the clock by which it rested was wrong."""

    def anew(records: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(each if each.state in IN_USE else replace(each, since=now) for each in records)

    def table_anew(table: PortTable) -> PortTable:
        """As another version, since what is published says how long ports rest."""
        return replace(table, sets=anew(table.sets), version=table.version + 1)

    return replace(
        ledger,
        addresses=anew(ledger.addresses),
        groups=anew(ledger.groups),
        node_numbers=anew(ledger.node_numbers),
        port_tables=tuple(map(table_anew, ledger.port_tables)),
        pod_cidrs=anew(ledger.pod_cidrs),
    )


# --- the tables


AUDIT_OF_STATE: Mapping[str, str] = {"used": "assigned", "reserved": "reserved", "cooling": "released"}


def _address_row(each: Record) -> Row:
    return [str(each.address), each.owner, each.pool, each.state, each.since, each.bound, _use_row(each.use)]


def _use_row(use: Use | None) -> Row:
    if use is None:
        return []
    return [use.sharing_key, sorted(use.ports), use.backend, use.scope, sorted(use.partners)]


def _address(
    address: str, owner: str, pool: str, state: Any, since: float, bound: bool, sharing: Row | None = None
) -> Record:
    """Rows of an earlier release end before `sharing`."""
    return Record(ip_address(address), owner, pool, state, since, bool(bound), _use(*sharing) if sharing else None)


def _use(key: str, ports: list[str], backend: str, scope: str, partners: list[str]) -> Use:
    return Use(key, frozenset(ports), backend, scope, frozenset(partners))


def _address_put(old: Record | None, new: Record) -> AuditFields:
    what = AUDIT_OF_STATE[new.state]
    if old is not None and old.state == new.state:
        what = f"pool:{new.pool}" if old.pool != new.pool else "changed"
    return what, new.owner, str(new.address)


def _address_deletion(old: Record) -> AuditFields:
    return "freed", old.owner, str(old.address)


ADDRESSES: LedgerTable[Record] = LedgerTable(
    name="addresses",
    columns={"address": str, "owner": str, "pool": str, "state": str, "since": float, "bound": bool, "sharing": list},
    keys=2,
    key=lambda each: (key_of(each.address), each.owner),
    shard=attrgetter("owner"),
    to_row=_address_row,
    from_row=_address,
    audit_put=_address_put,
    audit_deletion=_address_deletion,
)


def _group_row(each: GroupRecord) -> Row:
    return [each.id, str(each.egress_ip), each.state, each.since, list(each.gateways)]


def _group(
    number: int, egress_ip: str, state: Any, since: float, gateways: list[Any], slots: int = 0, epoch: int = 0
) -> GroupRecord:
    """In rows of an earlier release a gateway is a pair that begins with its name, and two numbers follow."""
    names = tuple(name for name, _ in (each if isinstance(each, list) else (each, None) for each in gateways))
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a gateway has no name")
    return GroupRecord(number, ip_address(egress_ip), state, since, names)


def _group_put(old: GroupRecord | None, new: GroupRecord) -> AuditFields:
    what = "group-retired" if new.state == "retired" else f"gateways:{','.join(new.gateways) or 'none'}"
    if old is None:
        what = f"group-created:{what}"
    return what, f"group/{new.id}", str(new.egress_ip)


def _group_deletion(old: GroupRecord) -> AuditFields:
    return "group-removed", f"group/{old.id}", str(old.egress_ip)


GROUPS: LedgerTable[GroupRecord] = LedgerTable(
    name="groups",
    columns={"id": int, "egress_ip": str, "state": str, "since": float, "gateways": list},
    keys=1,
    key=attrgetter("id"),
    shard=lambda each: str(each.id),
    to_row=_group_row,
    from_row=_group,
    audit_put=_group_put,
    audit_deletion=_group_deletion,
)

# --- ports of egress IPs


def _silent(*records: Any) -> None:
    """Nodes and sets come by thousands: tables and past sets are themselves what is kept for audits."""


NODE_NUMBERS: LedgerTable[NumberRecord] = LedgerTable(
    name="node_numbers",
    columns={"number": int, "node": str, "state": str, "since": float},
    keys=1,
    key=attrgetter("number"),
    shard=lambda each: f"number {each.number >> 8}",
    to_row=lambda each: [each.number, each.node, each.state, each.since],
    from_row=NumberRecord,
    audit_put=_silent,
    audit_deletion=_silent,
)


def _ports_row(each: PortTable) -> Row:
    """Sets in batches: those that came to their state at once share what is said of it."""
    batches: dict[tuple[State, float, int, float], Row] = {}
    for one in each.sets:
        batch = batches.setdefault((one.state, one.since, one.version, one.granted), [])
        batch.append([one.first, one.size, one.node])
    told = [[one.gateway, one.joined, one.left] for one in each.told]
    return [str(each.egress_ip), each.version, told, [[*head, batch] for head, batch in batches.items()]]


def _ports(egress_ip: str, version: int, told: list[list[int]], batches: list[list[Any]]) -> PortTable:
    address = ip_address(egress_ip)
    sets = (
        PortSet(address, int(first), int(size), int(node), state, since, int(number), granted)
        for state, since, number, granted, batch in batches
        for first, size, node in batch
    )
    return PortTable(address, version, in_order(sets), tuple(Told(*map(int, one)) for one in told))


PORT_TABLES: LedgerTable[PortTable] = LedgerTable(
    name="port_tables",
    columns={"egress_ip": str, "version": int, "told": list, "sets": list},
    keys=1,
    key=lambda each: key_of(each.egress_ip),
    shard=lambda each: f"ports {each.egress_ip}",
    to_row=_ports_row,
    from_row=_ports,
    audit_put=_silent,
    audit_deletion=_silent,
)


def _past(egress_ip: str, first: int, granted: float, size: int, returned: float, node: str) -> PastSet:
    return PastSet(ip_address(egress_ip), first, size, granted, returned, node)


PAST_PORT_SETS: LedgerTable[PastSet] = LedgerTable(
    name="past_port_sets",
    columns={"egress_ip": str, "first": int, "granted": float, "size": int, "returned": float, "node": str},
    keys=3,
    key=attrgetter("key"),
    shard=lambda each: f"past {each.egress_ip} {each.first >> 12}",
    to_row=lambda each: [str(each.egress_ip), each.first, each.granted, each.size, each.returned, each.node],
    from_row=_past,
    audit_put=_silent,
    audit_deletion=_silent,
)

# --- interfaces and addresses of a cloud's instances


def _holding_put(old: Holding | None, new: Holding) -> AuditFields | None:
    before, after = _networks(old), _networks(new)
    changes = [f"+{each}" for each in sorted(after - before)] + [f"-{each}" for each in sorted(before - after)]
    return (f"cloud:{','.join(changes)}", f"Instance/{new.instance}", "") if changes else None


def _networks(holding: Holding | None) -> set[str]:
    return {str(block.network) for _, block in holding.blocks() if block.state == "used"} if holding else set()


CLOUD_INSTANCES: LedgerTable[Holding] = LedgerTable(
    name="cloud_instances",
    columns={
        "instance": str,
        "node": str,
        "held": list,
        "intent": list,
        "served": float,
        "missing": float,
        "generation": int,
    },
    keys=1,
    key=attrgetter("instance"),
    shard=attrgetter("instance"),
    to_row=holding_row,
    from_row=read_holding,
    audit_put=_holding_put,
    audit_deletion=lambda old: ("cloud:gone", f"Instance/{old.instance}", ""),
)


def _seat_put(old: Seat | None, new: Seat) -> AuditFields | None:
    before = old.instance if old is not None else ""
    return (f"cloud:to:{new.instance or 'nobody'}", "EgressIP", str(new.address)) if before != new.instance else None


CLOUD_ADDRESSES: LedgerTable[Seat] = LedgerTable(
    name="cloud_addresses",
    columns={"address": str, "instance": str, "interface": str, "intent": list, "missing": float},
    keys=1,
    key=attrgetter("address"),
    shard=lambda each: str(each.address),
    to_row=seat_row,
    from_row=read_seat,
    audit_put=_seat_put,
    audit_deletion=lambda old: ("cloud:given-back", "EgressIP", str(old.address)),
)

# --- pod CIDRs of nodes


def _block(block: str, node: str, state: Any, since: float) -> BlockRecord:
    if state not in ("used", "resting"):
        raise ValueError(f"a block is {state}")
    return BlockRecord(ip_network(block), node, state, since)


POD_CIDRS: LedgerTable[BlockRecord] = LedgerTable(
    name="pod_cidrs",
    columns={"block": str, "node": str, "state": str, "since": float},
    keys=1,
    key=lambda each: block_key(each.block),
    shard=lambda each: f"pods {each.node}",
    to_row=lambda each: [str(each.block), each.node, each.state, each.since],
    from_row=_block,
    audit_put=lambda old, new: (
        "pods:given" if new.state == "used" else "pods:resting",
        f"Node/{new.node}",
        str(new.block),
    ),
    audit_deletion=lambda old: ("pods:freed", f"Node/{old.node}", str(old.block)),
)

# In the order in which they came: each further one is a version of the SQLite schema.
TABLES: tuple[LedgerTable[Any], ...] = (
    ADDRESSES,
    GROUPS,
    NODE_NUMBERS,
    PORT_TABLES,
    PAST_PORT_SETS,
    CLOUD_INSTANCES,
    CLOUD_ADDRESSES,
    POD_CIDRS,
)
