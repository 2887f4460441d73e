"""Egress groups: policies that leave through one egress IP, their number and their gateways. Pure.

An address that a policy gives and a node reports on an interface belongs to that node alone. Otherwise the gateways are
chosen among the ready nodes that the policy selects, or that bear the gateway label; they have an IPv4 address to be
a tunnel endpoint. Nodes that drain are gateways only where no other node can be. No gateway is a group without
gateways: its traffic is dropped, and the refusal says which label is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from egress.gateways import MAX_GATEWAYS, Choice, choose
from ipam.plan import Grant
from routerd.cluster.ledger import GroupRecord, Ledger
from routerd.model import (
    GATEWAY_LABEL,
    EgressGroup,
    EgressPolicy,
    GatewaySlot,
    IPAddress,
    LabelSelector,
    Node,
    NodeReport,
    Refusal,
)

REPORT_PATIENCE = 15.0  # seconds that a new group waits for nodes to say which addresses they hold
LAST_GROUP = (1 << 24) - 1  # the VNI has 24 bits (RFC 7348, section 5)


@dataclass(frozen=True, slots=True)
class Groups:
    """`records` are the ledger's groups as they should be, sorted by id."""

    groups: tuple[EgressGroup, ...]
    records: tuple[GroupRecord, ...]
    next_group: int
    refusals: tuple[Refusal, ...]
    next_due: float | None


@dataclass(slots=True)
class _Numbers:
    """Group numbers: a cursor that rotates, so that a number that was given up rests for as long as possible."""

    by_address: dict[IPAddress, GroupRecord]
    taken: set[int]
    cursor: int
    now: float

    def record_of(self, address: IPAddress) -> GroupRecord:
        recorded = self.by_address.get(address)
        if recorded is not None:
            return recorded if recorded.state == "active" else replace(recorded, state="active", since=self.now)
        while self.cursor in self.taken:
            self.cursor = self.cursor % LAST_GROUP + 1
        self.taken.add(self.cursor)
        record = GroupRecord(self.cursor, address, since=self.now)
        self.cursor = self.cursor % LAST_GROUP + 1
        return record


@dataclass(slots=True)
class _Draft:
    groups: list[EgressGroup] = field(default_factory=list)
    records: list[GroupRecord] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    due: list[float] = field(default_factory=list)

    def wait(self, record: GroupRecord, members: Sequence[EgressPolicy], unreported: Sequence[str]) -> None:
        """The group is published without gateways: nothing announces its address, its traffic is dropped."""
        self.records.append(record)
        self.groups.append(EgressGroup(record.id, record.egress_ip, tuple(sorted(policy.key for policy in members))))
        self.due.append(record.since + REPORT_PATIENCE)
        message = f"waiting for the agents of {', '.join(sorted(unreported))} to report which addresses they hold"
        self.refusals += [Refusal(policy.ref, "AwaitingNodeReports", message) for policy in members]


def _may_be_held(record: GroupRecord, policy: EgressPolicy) -> bool:
    """A group that never had a gateway, and whose policy leaves it to the node that holds the address."""
    return not record.gateways and policy.gateways is None and policy.egress_ip is not None


def form_groups(
    policies: Mapping[str, EgressPolicy],
    grants: Mapping[str, Grant],
    ledger: Ledger,
    nodes: Mapping[str, Node],
    holders: Mapping[IPAddress, tuple[str, ...]],
    now: float,
    retention: float,
    limit: int = MAX_GATEWAYS,
    unreported: Sequence[str] = (),
    draining: Collection[str] = (),
) -> Groups:
    """One group for each egress IP that was granted. `holders`: which nodes have an address on an interface.

    `unreported`: nodes that have not said so yet. Until they have, or the patience is over, a new group whose gateway
    may be the holder of its address has no gateway: else the address would be announced from elsewhere for a moment.

    `draining`: nodes that leave: their groups move to others while they still serve. A group that no other node can
    take stays, as draining is a wish and an outage is not; `routerd drain --wait` on the node then says so.

    `retention`: for how many seconds a number without policies is not given to another egress IP.
    """
    numbers = _Numbers(
        {record.egress_ip: record for record in ledger.groups},
        {record.id for record in ledger.groups},
        ledger.next_group,
        now,
    )
    draft = _Draft()
    for address, members in sorted(_by_address(policies, grants).items(), key=lambda item: (item[0].version, item[0])):
        record = numbers.record_of(address)
        pinned = holders.get(address, ()) if members[0].egress_ip is not None else ()
        accepted, refused = _same_gateways(members) if not pinned else (list(members), [])
        draft.refusals += refused
        if unreported and not pinned and _may_be_held(record, accepted[0]) and now < record.since + REPORT_PATIENCE:
            draft.wait(record, accepted, unreported)
            continue
        candidates = [] if pinned else _candidates(record, accepted[0].gateways, nodes, draining)
        choice = _gateways(record, candidates, pinned, limit)
        gateways = tuple(GatewaySlot(node, slot) for node, slot in choice.gateways)
        chosen = replace(record, gateways=gateways, slots=choice.slots, epoch=choice.epoch)
        draft.records.append(record if chosen == record else chosen)
        draft.groups.append(_group(chosen, accepted, grants, node_address=bool(pinned)))
        if not gateways:
            draft.refusals += [Refusal(each.ref, "NoGateway", _no_gateway(each, nodes)) for each in accepted]
    idle = _retired(ledger, {record.id for record in draft.records}, now, retention)
    return Groups(
        tuple(sorted(draft.groups, key=lambda group: group.id)),
        tuple(sorted([*draft.records, *idle], key=lambda record: record.id)),
        numbers.cursor,
        tuple(draft.refusals),
        min((*(record.since + retention for record in idle), *draft.due), default=None),
    )


def addresses_on_nodes(
    nodes: Mapping[str, Node], reports: Mapping[str, NodeReport]
) -> dict[IPAddress, tuple[str, ...]]:
    """Which nodes have an address on an interface: what a node reports, else what Node.status says.

    Node.status alone may lack addresses, and may name external ones that are on no interface. Reports of unknown nodes
    do not count.
    """
    holders: dict[IPAddress, set[str]] = {}
    for name, node in nodes.items():
        report = reports.get(name)
        for address in report.addresses if report else node.addresses:
            holders.setdefault(address, set()).add(name)
    return {address: tuple(sorted(names)) for address, names in holders.items()}


def _by_address(
    policies: Mapping[str, EgressPolicy], grants: Mapping[str, Grant]
) -> dict[IPAddress, list[EgressPolicy]]:
    """Policies of each egress IP, the oldest first, then by name."""
    members: dict[IPAddress, list[EgressPolicy]] = {}
    for policy in sorted(policies.values(), key=lambda each: (each.created, each.key)):
        if policy.key in grants:
            members.setdefault(grants[policy.key].addresses[0], []).append(policy)
    return members


def _same_gateways(members: Sequence[EgressPolicy]) -> tuple[list[EgressPolicy], list[Refusal]]:
    first = members[0]
    accepted = [policy for policy in members if policy.gateways == first.gateways]
    message = f"{first.key} has the same egress IP and other gateways: give both the same node selector"
    refused = [
        Refusal(policy.ref, "GatewaysDiffer", message) for policy in members if policy.gateways != first.gateways
    ]
    return accepted, refused


def _gateways(record: GroupRecord, candidates: Sequence[str], pinned: tuple[str, ...], limit: int) -> Choice:
    previous = Choice(tuple((gateway.node, gateway.slot) for gateway in record.gateways), record.slots, record.epoch)
    if not pinned:
        return choose(str(record.egress_ip), candidates, previous, limit)
    # Nobody can stand in for a node's own address, so that node stays even while it is not ready.
    active = next((node for node, _ in previous.gateways if node in pinned), pinned[0])
    alone = Choice(((active, 0),), 1, previous.epoch)
    return alone if previous == alone and previous.epoch else replace(alone, epoch=previous.epoch + 1)


def _candidates(
    record: GroupRecord, selector: LabelSelector | None, nodes: Mapping[str, Node], draining: Collection[str]
) -> list[str]:
    """If all drain, those that are gateways now: who has left already may be off at any moment."""
    fit = [name for name, node in nodes.items() if is_selected(selector, node) and not _unfit(node)]
    present = {gateway.node for gateway in record.gateways}
    return [name for name in fit if name not in draining] or [name for name in fit if name in present] or fit


def is_selected(selector: LabelSelector | None, node: Node) -> bool:
    """Whether a policy with this selector may have `node` as gateway; None = the nodes labelled as such."""
    if selector is not None:
        return selector.matches(node.labels)
    return node.labels.get(GATEWAY_LABEL, "false") != "false"


def _unfit(node: Node) -> str:
    """A node that can be no gateway, in words; "" = it can. One that is only unschedulable still forwards."""
    if node.tunnel_endpoint is None:
        return f"{node.name} has no IPv4 address"
    return "" if node.ready and not node.network_unavailable else node.name


def _no_gateway(policy: EgressPolicy, nodes: Mapping[str, Node]) -> str:
    rule = f"label {GATEWAY_LABEL}" if policy.gateways is None else f"node selector {_text(policy.gateways)}"
    unfit = sorted(_unfit(node) for node in nodes.values() if is_selected(policy.gateways, node))
    if unfit:
        return f"no node with {rule} is ready ({', '.join(unfit)}): traffic of the policy is dropped until one is"
    holder = "" if policy.egress_ip is None else f", and no node reports {policy.egress_ip} on an interface"
    return f"no node matches {rule}{holder}: label a gateway node; traffic of the policy is dropped until then"


def _text(selector: LabelSelector) -> str:
    parts = [f"{key}={value}" for key, value in selector.match_labels]
    parts += [f"{each.key} {each.operator} {','.join(each.values)}".rstrip() for each in selector.match_expressions]
    return f"({', '.join(parts)})"


def _group(
    record: GroupRecord, members: Sequence[EgressPolicy], grants: Mapping[str, Grant], *, node_address: bool
) -> EgressGroup:
    from_pool = members[0].egress_ip is None or members[0].pool
    return EgressGroup(
        record.id,
        record.egress_ip,
        tuple(sorted(policy.key for policy in members)),
        record.gateways,
        record.slots,
        record.epoch,
        node_address=node_address,
        pool=grants[members[0].key].pool if from_pool else "",
    )


def _retired(ledger: Ledger, active: set[int], now: float, retention: float) -> list[GroupRecord]:
    """Groups without policies: kept for the retention, then their number is free."""
    idle = [record for record in ledger.groups if record.id not in active]
    retired = [record if record.state == "retired" else replace(record, state="retired", since=now) for record in idle]
    return [record for record in retired if min(record.since, now) + retention > now]
