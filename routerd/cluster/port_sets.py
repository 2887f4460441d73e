"""Which node has which ports of which egress IP: groups, nodes and reports in, tables and numbers out. Pure.

Who gets what is `ipam.port_plan`'s; here stand the nodes that need ports, the gateways that are told, what an address
has room for, what is remembered and what is published of it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_

from ipam.pool import key_of
from ipam.port_plan import PortPlan, Wishes, plan_ports, retire, retire_due
from ipam.port_sets import LAST_NUMBER, RANGE, PortCounts, PortSet, PortTable, counts, ports_in
from ipam.port_work import Block, Space, Word
from routerd.cluster.ledger import Ledger, NumberRecord, PastSet
from routerd.cluster.port_rooms import rooms_of
from routerd.formats.published.bindings import binding_table
from routerd.model import (
    OF_PORTS,
    BindingTable,
    CoolingPorts,
    EgressGroup,
    IPAddress,
    Node,
    NodeNumber,
    NodeReport,
    PortBlock,
    PortReport,
    Refusal,
    Service,
    Snapshot,
)
from routerd.refs import Ref

NUMBER_REST = 3600.0  # seconds that the number of a node that is gone rests
MAX_PAST = 20_000  # sets that are remembered after they were free again, the latest
EXHAUSTED, SHORT = OF_PORTS  # reasons of refusals


@dataclass(frozen=True, slots=True)
class PortRules:
    """When nodes get ports, and for how many seconds what stays."""

    on_ask: bool = False  # only nodes that ask get any: every node's report is read within a second
    deadline: float = 3600.0  # that sets of an address which no policy has any more stay with their nodes
    history: float = 400 * 86400.0  # that it is remembered who had ports


@dataclass(frozen=True, slots=True)
class Ports:
    """The ledger's records as they should be, and what is published of them."""

    numbers: tuple[NumberRecord, ...]
    tables: tuple[PortTable, ...]
    past: tuple[PastSet, ...]
    bindings: tuple[BindingTable, ...]
    refusals: tuple[Refusal, ...] = ()
    counts: Mapping[IPAddress, PortCounts] = field(default_factory=dict)
    pending: Mapping[int, int] = field(default_factory=dict)  # by group: nodes that want ports and do not get them all
    next_due: float | None = None

    @property
    def published_numbers(self) -> tuple[NodeNumber, ...]:
        found = (NodeNumber(each.node, each.number) for each in self.numbers)
        return tuple(sorted(found, key=lambda each: each.node))


@dataclass(frozen=True, slots=True)
class _Planned:
    """What was planned of a group, and of what, at which time."""

    group: EgressGroup
    wanted: Mapping[int, int]
    rooms: tuple[int, ...]
    tables: tuple[PortTable | None, ...]
    plans: list[PortPlan]
    now: float

    def holds(self, wanted: Mapping[int, int], tables: tuple[PortTable | None, ...], now: float) -> bool:
        """Whether the plans of the same group, rooms, nodes and word are the same still.

        One that changed a table bears its time, so it is made again until the table is the ledger's.
        """
        dues = (plan.next_due for plan in self.plans)
        after = {table.egress_ip: table for plan in self.plans for table in plan.tables}
        return (
            self.wanted == wanted
            and all(map(is_, self.tables, tables))
            and all(table is not None and after.get(table.egress_ip) is table for table in tables)
            and self.now <= now
            and all(due is None or now < due for due in dues)
        )


class PlanKept:
    """Plans of groups, and what is told of tables, while what they rest on is the same (see `routerd.memo`)."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._word = Word(frozenset())
        self._plans: dict[int, _Planned] = {}  # by number of the group
        self._counts: dict[IPAddress, tuple[int, PortTable, PortCounts]] = {}

    def word(self, numbers: object, alive: Mapping[str, int], said: Mapping[str, PortReport]) -> Word:
        """What is known of nodes: the same value again where it is. Plans of another one are forgotten."""
        if self._of != (numbers, alive, said):
            self._of, self._word, self._plans = (numbers, alive, said), _word(alive, said), {}
        return self._word

    def plan(
        self,
        group: EgressGroup,
        wanted: Mapping[int, int],
        rooms: Mapping[IPAddress, int],
        tables: Mapping[IPAddress, PortTable],
        number: Mapping[str, int],
        now: float,
    ) -> list[PortPlan]:
        last = self._plans.get(group.id)
        of, at = tuple(rooms[each] for each in group.egress_ips), tuple(map(tables.get, group.egress_ips))
        if last is None or (last.group, last.rooms) != (group, of) or not last.holds(wanted, at, now):
            plans = _plans(group, wanted, rooms, tables, number, self._word, now)
            last = self._plans[group.id] = _Planned(group, wanted, of, at, plans, now)
        return last.plans

    def counts(self, rooms: Mapping[IPAddress, int], tables: Iterable[PortTable]) -> dict[IPAddress, PortCounts]:
        """Also forgets addresses without a table."""
        before, self._counts = self._counts, {}
        for table in tables:
            room, last = rooms.get(table.egress_ip, RANGE), before.get(table.egress_ip)
            if last is None or last[1] is not table or last[0] != room:
                last = room, table, counts(room, table)
            self._counts[table.egress_ip] = last
        return {address: found for address, (_, _, found) in self._counts.items()}

    def forget(self, groups: Container[int]) -> None:
        """Groups that are none of these."""
        self._plans = {number: plan for number, plan in self._plans.items() if number in groups}


def give_ports(
    groups: Sequence[EgressGroup],
    ledger: Ledger,
    snapshot: Snapshot,
    reports: Mapping[str, NodeReport],
    now: float,
    times: PortRules | None = None,
    kept: PlanKept | None = None,
    external: Mapping[str, Service] | None = None,
) -> Ports:
    """`now` is in seconds of the Unix epoch. `external`: the services with `externalIPs`, None = not known.

    Every node gets a set of every group at once, and more if it asks for more; or, `on_ask`, those that ask. Of a group
    without a gateway nobody gets any: nothing would leave by them, and a node that has the address on an interface may
    turn up, which leaves fewer to give. Of groups that policies have left, what nodes have is asked back.

    `kept`: of the last time; it is renewed.
    """
    times, kept = times or PortRules(), kept or PlanKept()
    external = (snapshot.services or {}) if external is None else external
    nodes = snapshot.nodes or {}
    former = {address: each.gateways for each in groups if not each.policies for address in each.egress_ips}
    groups = [each for each in groups if each.policies]
    living = sorted(name for name, node in nodes.items() if not node.fenced)
    tables = {table.egress_ip: table for table in ledger.port_tables}
    numbers = _numbered(ledger, nodes, nodes.keys() if groups else (), now)
    number = {each.node: each.number for each in numbers}
    alive = {name: number[name] for name in living if name in number}
    said = {name: report.ports for name, report in reports.items() if name in alive and report.ports is not None}
    word = kept.word(numbers, alive, said)
    wanted = _wanted(groups, alive, said, on_ask=times.on_ask)
    wanted |= {group.id: _held(group, wanted[group.id], tables) for group in groups if not group.gateways}
    rooms = rooms_of(groups, external.values())
    plans = {group.id: kept.plan(group, wanted[group.id], rooms.masks, tables, number, now) for group in groups}
    kept.forget(plans)
    made = [plan for of_group in plans.values() for plan in of_group]
    after = {table.egress_ip: table for plan in made for table in plan.tables}
    dues = [plan.next_due for plan in made]
    for address in tables.keys() - after.keys():
        gateways = frozenset(number[name] for name in former.get(address, ()) if name in alive)
        table = retire(tables[address], word, now, times.deadline, gateways)
        if table is not None:
            after[address] = table
            dues.append(retire_due(table, word, times.deadline))
    ordered = tuple(after[address] for address in sorted(after, key=key_of))
    dues += [each.since + NUMBER_REST for each in numbers if each.state == "resting" and now < each.since + NUMBER_REST]
    return Ports(
        numbers,
        ordered,
        _past(ledger, after, numbers, now, times.history),
        _bindings(ordered, tables, snapshot),
        (
            *rooms.refusals,
            *(refusal for group in groups for plan in plans[group.id] for refusal in _refusals(group, plan, numbers)),
        ),
        kept.counts(rooms.masks, ordered),
        {
            group: len({node for plan in found for node in (*plan.lacking, *plan.short)})
            for group, found in plans.items()
        },
        min((due for due in dues if due is not None), default=None),
    )


def bound_addresses(tables: Iterable[PortTable]) -> frozenset[IPAddress]:
    """Egress IPs of which nodes have ports."""
    return frozenset(table.egress_ip for table in tables if any(each.is_bound for each in table.sets))


def _plans(
    group: EgressGroup,
    wanted: Mapping[int, int],
    rooms: Mapping[IPAddress, int],
    tables: Mapping[IPAddress, PortTable],
    number: Mapping[str, int],
    word: Word,
    now: float,
) -> list[PortPlan]:
    """A plan for each family: a pod's packets leave in their own, so a node needs ports of both."""
    gateways = frozenset(number[name] for name in group.gateways if name in number)
    plans = []
    for version in sorted({address.version for address in group.egress_ips}):
        spaces = (Space(address, rooms[address]) for address in group.egress_ips if address.version == version)
        plans.append(plan_ports(Wishes(tuple(spaces), wanted, gateways), tables, word, now))
    return plans


def _wanted(
    groups: Iterable[EgressGroup], alive: Mapping[str, int], said: Mapping[str, PortReport], *, on_ask: bool
) -> dict[int, dict[int, int]]:
    """By group: the numbers of the nodes that need ports, and how many they want."""
    everybody = {} if on_ask else dict.fromkeys(alive.values(), 0)
    asked: dict[int, dict[int, int]] = {group.id: {} for group in groups}
    for name, report in said.items():
        for ask in report.asks:
            if ask.group in asked:
                asked[ask.group][alive[name]] = ask.ports
    return {group: {**everybody, **asks} if asks else everybody for group, asks in asked.items()}


def _held(group: EgressGroup, wanted: Mapping[int, int], tables: Mapping[IPAddress, PortTable]) -> dict[int, int]:
    """Those of `wanted` that have ports of the group, which they keep; no more than that."""
    found = (tables[address] for address in group.egress_ips if address in tables)
    holders = {each.node for table in found for each in table.sets if each.is_bound}
    return {number: 0 for number in wanted if number in holders}


def _word(alive: Mapping[str, int], said: Mapping[str, PortReport]) -> Word:
    unused: dict[IPAddress, dict[Block, int]] = {}
    applied: dict[IPAddress, dict[int, int]] = {}
    for name, report in said.items():
        for block in report.unused:
            unused.setdefault(block.egress_ip, {})[block.first, block.size, alive[name]] = block.version
        for table in report.applied:
            applied.setdefault(table.egress_ip, {})[alive[name]] = table.version
    return Word(frozenset(alive.values()), unused, applied)


# --- numbers of nodes


def _numbered(
    ledger: Ledger, nodes: Mapping[str, Node], needed: Collection[str], now: float
) -> tuple[NumberRecord, ...]:
    """One number for each node that needs one. A node beyond the last number has none, and so no ports."""
    in_use = _mentioned(ledger.port_tables) if any(each.state == "resting" for each in ledger.node_numbers) else set()
    records = {}
    for each in ledger.node_numbers:
        if each.node in nodes:
            record = each if each.state == "used" else replace(each, state="used", since=now)
        elif each.state == "used":
            record = replace(each, state="resting", since=now)
        else:
            record = each if each.since <= now else replace(each, since=now)
        if record.state == "used" or record.number in in_use or now < record.since + NUMBER_REST:
            records[record.number] = record
    known = {each.node for each in records.values()}
    cursor = max(records, default=0)
    for name in sorted(set(needed) - known)[: LAST_NUMBER - len(records)]:
        cursor = cursor % LAST_NUMBER + 1
        while cursor in records:
            cursor = cursor % LAST_NUMBER + 1
        records[cursor] = NumberRecord(cursor, name, since=now)
    if tuple(records.values()) == ledger.node_numbers:
        return ledger.node_numbers
    return tuple(records[number] for number in sorted(records))


def _mentioned(tables: Iterable[PortTable]) -> set[int]:
    """Numbers by which a table names somebody."""
    found: set[int] = set()
    for table in tables:
        found.update(each.node for each in table.sets)
        found.update(each.gateway for each in table.told)
    return found


# --- who had what


def _past(
    ledger: Ledger, after: Mapping[IPAddress, PortTable], numbers: Iterable[NumberRecord], now: float, history: float
) -> tuple[PastSet, ...]:
    """With the sets that are free again, without those that are too old, or too many."""
    freed = [each for table in ledger.port_tables for each in _freed(table, after.get(table.egress_ip))]
    past = ledger.past_port_sets
    if not freed and len(past) <= MAX_PAST and all(now < each.returned + history for each in past):
        return past
    names = {each.number: each.node for each in (*numbers, *ledger.node_numbers)}
    found = {each.key: each for each in past if now < each.returned + history}
    for each in freed:
        record = PastSet(each.egress_ip, each.first, each.size, each.granted, each.since, names.get(each.node, ""))
        found[record.key] = record
    latest = sorted(found.values(), key=lambda each: each.returned)[-MAX_PAST:]
    return tuple(sorted(latest, key=lambda each: each.key))


def _freed(before: PortTable, after: PortTable | None) -> list[PortSet]:
    """Sets that had cooled down, and are none any more."""
    if after is before:
        return []
    there = {(each.first, each.granted) for each in after.sets} if after else set()
    return [each for each in before.sets if not each.is_bound and (each.first, each.granted) not in there]


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose a port was. `until` None = it still is."""

    egress_ip: IPAddress
    first: int
    size: int
    node: str
    since: float  # seconds of the Unix epoch
    until: float | None = None


def holders(ledger: Ledger, address: IPAddress, port: int, at: float | None = None) -> tuple[Holder, ...]:
    """Who had the port at that moment, or has it; the latest first. Two in one moment are a fault of ours."""
    found = [each for each in _holders(ledger, address, port) if at is None or each.since <= at]
    found = [each for each in found if each.until is None or (at is not None and at < each.until)]
    return tuple(sorted(found, key=lambda each: -each.since))


def _holders(ledger: Ledger, address: IPAddress, port: int) -> Iterator[Holder]:
    names = {each.number: each.node for each in ledger.node_numbers}
    for table in ledger.port_tables:
        if table.egress_ip == address:
            for each in table.sets:
                if each.first <= port <= each.last:
                    until = None if each.is_bound else each.since
                    yield Holder(address, each.first, each.size, names.get(each.node, ""), each.granted, until)
    for past in ledger.past_port_sets:
        if past.egress_ip == address and past.first <= port < past.first + past.size:
            yield Holder(address, past.first, past.size, past.node, past.granted, past.returned)


# --- what is published


def _bindings(
    tables: Iterable[PortTable], before: Mapping[IPAddress, PortTable], snapshot: Snapshot
) -> tuple[BindingTable, ...]:
    """Tables that did not change are the published objects."""
    published = {each.egress_ip: each for each in snapshot.allocations.bindings} if snapshot.allocations else {}
    found = []
    for table in tables:
        old = published.get(table.egress_ip)
        is_same = old is not None and old.version == table.version and before.get(table.egress_ip) is table
        found.append(old if is_same and old is not None else binding_of(table))
    return tuple(found)


def binding_of(table: PortTable) -> BindingTable:
    bound = [each for each in table.sets if each.is_bound]
    blocks = (PortBlock(each.first, each.size, each.node, each.state == "returning") for each in bound)
    told = tuple(each.gateway for each in table.told)
    asked = max((each.version for each in bound if each.state == "returning"), default=0)
    more = {"told": told, "awaited": table.awaited, "cooling": _cooling(table), "asked": asked}
    return binding_table(table.egress_ip, table.version, blocks, **more)


def _cooling(table: PortTable) -> tuple[CoolingPorts, ...]:
    """Ranges that came to rest at once; neighbours are one range."""
    batches: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for each in table.sets:
        if each.is_bound:
            continue
        ranges = batches.setdefault((-int(-each.since // 1), each.version), [])
        if ranges and sum(ranges[-1]) == each.first:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + each.size)
        else:
            ranges.append((each.first, each.size))
    return tuple(CoolingPorts(since, version, tuple(batches[since, version])) for since, version in sorted(batches))


def _refusals(group: EgressGroup, plan: PortPlan, numbers: Iterable[NumberRecord]) -> Iterator[Refusal]:
    """How many addresses are missing."""
    messages: dict[str, str] = {}
    if not plan.lacking and not plan.short:
        return
    addresses = ", ".join(str(table.egress_ip) for table in plan.tables)
    if plan.lacking:
        names = {each.number: each.node for each in numbers}
        missing = _give(group, -(-len(plan.lacking) // RANGE.bit_count()))
        nodes = _some([names[number] for number in plan.lacking])
        messages[EXHAUSTED] = f"no ports of {addresses} are left for {nodes}: {missing}"
    if plan.short:
        ports = sum(plan.short.values())
        nodes = f"{len(plan.short)} node{'s' * (len(plan.short) > 1)}"
        missing = _give(group, -(-ports // ports_in(RANGE)))
        messages[SHORT] = f"{nodes} would use {ports} ports more than {addresses} has: {missing}"
    for reason, message in messages.items():
        yield from (Refusal(Ref.parse(policy), reason, message) for policy in group.policies)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _give(group: EgressGroup, addresses: int) -> str:
    if group.service:
        return "a VIP has half of the ports that an egress IP has; write a policy with a pool instead"
    return f"give the policy {addresses} more egress address{'es' * (addresses > 1)}"
