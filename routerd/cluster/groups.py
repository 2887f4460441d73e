"""Egress groups: policies that leave through one egress IP, their number and their gateways. Pure.

An address that a policy gives and a node reports on an interface belongs to that node alone. Otherwise the gateways are
chosen among the ready nodes that the policy selects, or that bear the gateway label; they have an IPv4 address to be
a tunnel endpoint, and an agent that serves (`agents.py`). Nodes that drain are gateways only where no other node can
be. Those of which nothing good is known any more stay while no other node can be one. No gateway is a group without
gateways: its traffic is dropped, and the refusal says which label or agent it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

from ipam.plan import Grant
from ipam.pool import key_of
from routerd.cluster.agents import Agents
from routerd.cluster.gateways import MAX_GATEWAYS, choose
from routerd.cluster.ledger import GroupRecord, Ledger
from routerd.model import (
    GATEWAY_LABEL,
    EgressGroup,
    EgressPolicy,
    GatewayMode,
    IPAddress,
    LabelSelector,
    Node,
    NodeReport,
    Refusal,
    is_gateway,
)

REPORT_PATIENCE = 15.0  # seconds that a new group waits for nodes to say which addresses they hold
LAST_GROUP = (1 << 24) - 1  # the VNI has 24 bits (RFC 7348, section 5)
AGENT_ABSENT = "AgentAbsent"  # reason of a refusal
HEARD_OF_ALL = Agents()


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

    def record_of(self, addresses: Sequence[IPAddress]) -> GroupRecord:
        """A group keeps its number while it keeps the address by which it is recorded."""
        found = [self.by_address[address] for address in addresses if address in self.by_address]
        if found:
            recorded = min(found, key=lambda each: each.state != "active")
            return recorded if recorded.state == "active" else replace(recorded, state="active", since=self.now)
        while self.cursor in self.taken:
            self.cursor = self.cursor % LAST_GROUP + 1
        self.taken.add(self.cursor)
        record = GroupRecord(self.cursor, addresses[0], since=self.now)
        self.cursor = self.cursor % LAST_GROUP + 1
        return record


@dataclass(slots=True)
class _Draft:
    groups: list[EgressGroup] = field(default_factory=list)
    records: list[GroupRecord] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    due: list[float] = field(default_factory=list)

    def wait(
        self,
        record: GroupRecord,
        addresses: Sequence[IPAddress],
        members: Sequence[EgressPolicy],
        unreported: Sequence[str],
    ) -> None:
        """The group is published without gateways: nothing announces its addresses, its traffic is dropped."""
        self.records.append(record)
        keys, further = tuple(sorted(policy.key for policy in members)), _further(record, addresses)
        self.groups.append(EgressGroup(record.id, record.egress_ip, keys, further_ips=further))
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
    agents: Agents = HEARD_OF_ALL,
    mode: GatewayMode = "ecmp",
    before: Iterable[EgressGroup] = (),
    bound: Collection[IPAddress] = (),
    announcing: Mapping[str, Sequence[str]] | None = None,
) -> Groups:
    """One group for the egress IPs of each policy, or of several that have the same. `holders`: which nodes have an
    address on an interface.

    `unreported`: nodes that have not said so yet. Until they have, or the patience is over, a new group whose gateway
    may be the holder of its address has no gateway: else the address would be announced from elsewhere for a moment.

    `draining`: nodes that leave: their groups move to others while they still serve. A group that no other node can
    take stays, as draining is a wish and an outage is not; `routerd drain --wait` on the node then says so.

    `agents`: which nodes have an agent. One that has none becomes no gateway, and is one no more as soon as another
    can be. Where none can, its gateways stay: an agent that is gone leaves its datapath, and may have left it whole.

    `mode`: how gateways share a group whose policies do not say.

    `before`: the groups that are published. What policies have left of them stays a group, without policies, while
    nodes have ports of it (`bound`).

    `announcing`: by policy that leaves with VIPs, the nodes that announce these.

    `retention`: for how many seconds a number without policies is not given to another egress IP.
    """
    numbers = _Numbers(
        {record.egress_ip: record for record in ledger.groups},
        {record.id for record in ledger.groups},
        ledger.next_group,
        now,
    )
    draft = _Draft()
    fit = cache(partial(_fit, nodes))  # many policies have one selector
    found, apart = _by_addresses(policies, grants)
    draft.refusals += apart
    for addresses, members in sorted(found, key=lambda each: key_of(each[0][0])):
        pinned, mixed = _on_nodes(addresses, members, holders)
        if mixed:
            draft.refusals += [Refusal(policy.ref, "AddressesApart", mixed) for policy in members]
            continue
        record = numbers.record_of(addresses)
        if record.since > now:  # of a clock that was ahead
            record = replace(record, since=now)
        accepted, refused = _same_gateways(members, mode) if not pinned else (list(members), [])
        draft.refusals += refused
        if unreported and not pinned and _may_be_held(record, accepted[0]) and now < record.since + REPORT_PATIENCE:
            draft.wait(record, addresses, accepted, unreported)
            continue
        if pinned:
            gateways: tuple[str, ...] = (_holder(record, pinned, agents),)
        else:
            able, may = fit(accepted[0].gateways), None
            if accepted[0].service:
                may = (announcing or {}).get(accepted[0].key, ())
                able = [name for name in may if not _unfit(nodes[name])]
            candidates = _candidates(record, able, draining, agents) or _last(record, nodes, accepted[0], may)
            gateways = choose(str(record.egress_ip), candidates, limit)
        chosen = replace(record, gateways=gateways)
        draft.records.append(record if chosen == record else chosen)
        shared = "ecmp" if pinned else accepted[0].gateway_mode or mode
        draft.groups.append(_group(chosen, addresses, accepted, grants, shared, node_address=bool(pinned)))
        draft.refusals += _without_agent(draft.groups[-1], accepted, nodes, agents)
    _keep_former(draft, numbers, before, bound, lambda each: _still(each, nodes, draining, agents))
    idle = _retired(ledger, {record.id for record in draft.records}, now, retention)
    return Groups(
        tuple(sorted(draft.groups, key=lambda group: group.id)),
        tuple(sorted([*draft.records, *idle], key=lambda record: record.id)),
        numbers.cursor,
        tuple(draft.refusals),
        min((*(record.since + retention for record in idle), *draft.due), default=None),
    )


def _keep_former(
    draft: _Draft,
    numbers: _Numbers,
    before: Iterable[EgressGroup],
    bound: Collection[IPAddress],
    still: Callable[[GroupRecord], tuple[str, ...]],
) -> None:
    """Egress IPs that policies have left while nodes have ports of them: what runs goes on by them, and they are
    announced for its answers. Nothing begins there, as the ports are asked back.
    """
    in_use = {address for group in draft.groups for address in group.egress_ips}
    for group in before:
        left = [address for address in group.egress_ips if address in bound and address not in in_use]
        if left:
            known = numbers.by_address.get(group.egress_ip)
            record = numbers.record_of(left)
            if not record.gateways:  # of an address that leaves the others of its group
                record = replace(record, gateways=known.gateways if known is not None else group.gateways)
            gateways = group.gateways if group.node_address else still(record)
            further = _further(record, left)
            draft.records.append(record)
            draft.groups.append(replace(group, id=record.id, egress_ip=record.egress_ip, policies=(),
                                        gateways=gateways, further_ips=further))  # fmt: skip


def without_former(groups: Groups, published: Collection[int], now: float, retention: float) -> Groups:
    """Numbers of groups that policies have left and that do not go on are retired at once, as of any that ended."""
    dropped = {group.id for group in groups.groups if not group.policies}.difference(published)
    if not dropped:
        return groups
    due = now + retention if groups.next_due is None else min(now + retention, groups.next_due)
    return replace(
        groups,
        records=tuple(
            replace(each, state="retired", since=now) if each.id in dropped else each for each in groups.records
        ),
        next_due=due,
    )


def _still(
    record: GroupRecord, nodes: Mapping[str, Node], draining: Collection[str], agents: Agents
) -> tuple[str, ...]:
    """Those of its gateways that can still be one, or all of them. Nobody is added: only a policy says who may be."""
    known = [name for name in record.gateways if name in nodes]
    good = _candidates(record, [name for name in known if not _unfit(nodes[name])], draining, agents)
    return tuple(name for name in known if name in good) or tuple(known)


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


def _by_addresses(
    policies: Mapping[str, EgressPolicy], grants: Mapping[str, Grant]
) -> tuple[list[tuple[tuple[IPAddress, ...], list[EgressPolicy]]], list[Refusal]]:
    """Policies that have the same egress IPs, the oldest first, then by name; others that share some are refused."""
    groups: list[tuple[tuple[IPAddress, ...], list[EgressPolicy]]] = []
    group_of: dict[IPAddress, int] = {}
    refusals = []
    for policy in sorted(policies.values(), key=lambda each: (each.created, each.key)):
        if policy.key not in grants:
            continue
        addresses = grants[policy.key].addresses
        shared = {group_of[address] for address in addresses if address in group_of}
        if not shared:
            group_of |= dict.fromkeys(addresses, len(groups))
            groups.append((addresses, [policy]))
            continue
        there, members = groups[min(shared)]
        if shared == {min(shared)} and set(there) == set(addresses):
            members.append(policy)
            continue
        shown = ", ".join(map(str, there))
        message = f"{members[0].key} shares some of its egress IPs ({shown}), and not all: give both the same"
        refusals.append(Refusal(policy.ref, "AddressesDiffer", message))
    return groups, refusals


def _on_nodes(
    addresses: Sequence[IPAddress], members: Sequence[EgressPolicy], holders: Mapping[IPAddress, tuple[str, ...]]
) -> tuple[tuple[str, ...], str]:
    """The nodes that have all of these addresses on an interface; or why they do not go together."""
    held = {address: holders[address] for address in addresses if holders.get(address)}
    if members[0].egress_ip is None or not held:
        return (), ""
    together = set.intersection(*map(set, held.values())) if len(held) == len(addresses) else set()
    if together:
        return tuple(sorted(together)), ""
    shown = ", ".join(f"{address} of {' and '.join(names)}" for address, names in held.items())
    return (), f"addresses on interfaces of nodes ({shown}) and others are no one group: give each a policy of its own"


def _further(record: GroupRecord, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    return tuple(address for address in addresses if address != record.egress_ip)


def _same_gateways(members: Sequence[EgressPolicy], mode: GatewayMode) -> tuple[list[EgressPolicy], list[Refusal]]:
    first, accepted, refused = members[0], [], []
    for policy in members:
        if policy.gateways != first.gateways:
            message = f"{first.key} has the same egress IP and other gateways: give both the same node selector"
        elif (policy.gateway_mode or mode) != (first.gateway_mode or mode):
            message = f"{first.key} has the same egress IP and another gateway mode: give both the same"
        else:
            accepted.append(policy)
            continue
        refused.append(Refusal(policy.ref, "GatewaysDiffer", message))
    return accepted, refused


def _holder(record: GroupRecord, pinned: tuple[str, ...], agents: Agents) -> str:
    """Nobody can stand in for a node's own address, so that node stays even while it is not ready, or has no agent.

    Of several that hold it, the one that is the gateway and has an agent.
    """
    holders = [name for name in pinned if agents.state(name) != "absent"] or pinned
    return next((name for name in record.gateways if name in holders), holders[0])


def _fit(nodes: Mapping[str, Node], selector: LabelSelector | None) -> list[str]:
    """Nodes that can be gateways of policies with that selector."""
    return [name for name, node in nodes.items() if is_gateway(selector, node) and not _unfit(node)]


def _candidates(record: GroupRecord, fit: Sequence[str], draining: Collection[str], agents: Agents) -> list[str]:
    """If all drain, those that are gateways now: who has left already may be off at any moment."""
    present = {*record.gateways}
    served = _served(fit, present, agents)
    return [name for name in served if name not in draining] or [name for name in served if name in present] or served


def _last(
    record: GroupRecord, nodes: Mapping[str, Node], policy: EgressPolicy, announcing: Collection[str] | None
) -> list[str]:
    """Its gateways, whose nodes are not ready: all of them may have lost the API server and nothing else. Whoever is
    off is probed in vain by the others, and left; none at all would be an outage for certain.

    `announcing`: nodes that announce its VIPs; None = they are none.
    """
    known = [name for name in record.gateways if name in nodes and not nodes[name].fenced]
    if announcing is None:
        announcing = [name for name in known if is_gateway(policy.gateways, nodes[name])]
    return [name for name in known if name in announcing and nodes[name].tunnel_endpoint]


def _served(fit: Sequence[str], present: Collection[str], agents: Agents) -> list[str]:
    """Those with an agent; else those that may have one; else those that are gateways now. See `agents.State`.

    One that is silent may be it because nobody is heard: it stays, and becomes none.
    """
    spoken = [name for name in fit if agents.may_serve(name) and (name in present or not agents.is_silent(name))]
    sure = [
        name
        for name in spoken
        if (state := agents.state(name)) == "serving" or (state == "unheard" and name in present)
    ]
    perhaps = [name for name in spoken if agents.state(name) != "absent"]
    return sure or perhaps or [name for name in fit if name in present]


def _without_agent(
    group: EgressGroup, members: Sequence[EgressPolicy], nodes: Mapping[str, Node], agents: Agents
) -> list[Refusal]:
    """For each policy of the group, if none of its gateways is ready and has an agent."""
    names = group.gateways
    if any(not agents.is_silent(name) and (group.node_address or not _unfit(nodes[name])) for name in names):
        return []
    if group.node_address:
        message = f"{names[0]}: {agents.why_not(names[0])}; it has the address and stays the gateway: start its agent"
        return [Refusal(each.ref, AGENT_ABSENT, message) for each in members]
    return [Refusal(each.ref, "NoGateway", _no_gateway(each, nodes, agents, names)) for each in members]


def absent_gateways(
    policies: Mapping[str, EgressPolicy], nodes: Mapping[str, Node], agents: Agents
) -> tuple[Refusal, ...]:
    """Ready nodes that would be gateways, and have no agent: also where others have taken their groups."""
    selectors = {each.gateways for each in policies.values() if each.gateways is not None or not each.service}
    return tuple(
        Refusal(node.ref, AGENT_ABSENT, f"{agents.why_not(name)}: start it; others take its groups, if any can")
        for name, node in nodes.items()
        if agents.is_lacking(name) and not _unfit(node) and any(is_gateway(selector, node) for selector in selectors)
    )


def _unfit(node: Node) -> str:
    """A node that can be no gateway, in words; "" = it can. One that is only unschedulable still forwards."""
    if node.tunnel_endpoint is None:
        return f"{node.name} has no address"
    return "" if node.ready and not node.network_unavailable else node.name


def _no_gateway(policy: EgressPolicy, nodes: Mapping[str, Node], agents: Agents, kept: Sequence[str]) -> str:
    stay = f"{', '.join(kept)} stay{'' if kept[1:] else 's'}"
    if policy.service:
        then = f"until one is, {stay}" if kept else "its traffic is dropped"
        return f"no node that may announce svc/{policy.service} is ready and has an agent that serves: {then}"
    rule = f"label {GATEWAY_LABEL}" if policy.gateways is None else f"node selector {_text(policy.gateways)}"
    matching = sorted((name for name, node in nodes.items() if is_gateway(policy.gateways, node)))
    if not matching:
        given = ", ".join(map(str, policy.egress_ips))
        holder = f", and no node reports {given} on an interface" if given else ""
        return f"no node matches {rule}{holder}: label a gateway node; traffic of the policy is dropped until then"
    problems = ", ".join(_unfit(nodes[name]) or f"{name}: {agents.why_not(name)}" for name in matching)
    what = "has an agent that serves" if any(not _unfit(nodes[name]) for name in matching) else "is ready"
    if kept:
        return f"no node with {rule} {what} ({problems}): until one {what.split()[0]}, {stay}"
    return f"no node with {rule} {what} ({problems}): traffic of the policy is dropped until one {what.split()[0]}"


def _text(selector: LabelSelector) -> str:
    parts = [f"{key}={value}" for key, value in selector.match_labels]
    parts += [f"{each.key} {each.operator} {','.join(each.values)}".rstrip() for each in selector.match_expressions]
    return f"({', '.join(parts)})"


def _group(
    record: GroupRecord,
    addresses: Sequence[IPAddress],
    members: Sequence[EgressPolicy],
    grants: Mapping[str, Grant],
    mode: GatewayMode,
    *,
    node_address: bool,
) -> EgressGroup:
    from_pool = members[0].egress_ip is None or members[0].pool
    return EgressGroup(
        record.id,
        record.egress_ip,
        tuple(sorted(policy.key for policy in members)),
        record.gateways,
        node_address=node_address,
        pool=grants[members[0].key].pool if from_pool else "",
        further_ips=_further(record, addresses),
        gateway_mode=mode,
        service=members[0].service,
    )


def _retired(ledger: Ledger, active: set[int], now: float, retention: float) -> list[GroupRecord]:
    """Groups without policies: kept for the retention, then their number is free."""
    idle = [record for record in ledger.groups if record.id not in active]
    retired = [record if record.state == "retired" else replace(record, state="retired", since=now) for record in idle]
    return [record for record in retired if min(record.since, now) + retention > now]
