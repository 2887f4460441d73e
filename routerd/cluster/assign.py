"""The operator's decision: who owns which address, which nodes are gateways. A pure function.

Snapshot, ledger, node reports and the time go in; the document to publish and the ledger that must be recorded before
it come out. While any part that it needs is unknown (`None`) it changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from egress.policy import UNSUPPORTED_FAMILY, unsupported
from ipam.again import Planner
from ipam.plan import Grant, Plan
from ipam.pool import Counts, key_of
from ipam.port_sets import PortCounts
from ipam.round import Record, Request, Timers
from routerd.claims import Hosts
from routerd.cluster import taken
from routerd.cluster.adopt import Digests, adopt
from routerd.cluster.agents import Agents
from routerd.cluster.cloud_egress import with_holders
from routerd.cluster.conflicts import Limits, not_allowed, with_asks, without_overtaken
from routerd.cluster.gateways import MAX_GATEWAYS
from routerd.cluster.groups import (
    HEARD_OF_ALL,
    Groups,
    absent_gateways,
    addresses_on_nodes,
    form_groups,
    without_former,
)
from routerd.cluster.instances import published_interfaces
from routerd.cluster.ledger import Ledger
from routerd.cluster.pod_cidrs import Blocks, give_blocks, named_pools
from routerd.cluster.port_sets import PlanKept, PortRules, Ports, bound_addresses, give_ports
from routerd.cluster.requests import (
    KeptRequests,
    granted_to,
    names_namespaces,
    policy_of,
    policy_requests,
    pool_spec,
)
from routerd.cluster.vips import needing_ports, still_vips, vips_of
from routerd.memo import Derived, Last, Renewed, UntilDue, differing
from routerd.model import (
    AddressPool,
    Allocations,
    ClusterCIDR,
    EgressGroup,
    EgressPolicy,
    GatewayMode,
    IPAddress,
    IPNetwork,
    Node,
    NodeAddresses,
    NodeInterfaces,
    NodeLink,
    NodeReport,
    PoolWays,
    Refusal,
    Service,
    ServiceAllocation,
    Snapshot,
    Writer,
)
from routerd.refs import Ref

AGAIN = 8  # times at most that one call decides anew; what is still another then is the next round's


@dataclass(frozen=True, slots=True)
class AssignSettings:
    """Times in seconds."""

    timers: Timers = field(default_factory=Timers)
    group_retention: float = 3600.0  # a group number without policies: every node has long seen it go by then
    max_gateways: int = MAX_GATEWAYS
    gateway_mode: GatewayMode = "ecmp"  # of policies that do not say
    allowed_egress_ips: tuple[IPNetwork, ...] = ()  # () = every address that is nobody's
    port_rules: PortRules = field(default_factory=PortRules)
    cloud_networks: tuple[IPNetwork, ...] = ()  # egress IPs in these are held by one gateway's interface of a cloud
    direct: bool = False  # nodes have no tunnel (egress.transport)
    pod_cidrs: tuple[ClusterCIDR, ...] = ()  # of which nodes have blocks for their pods; () = others give them
    pod_pools: bool = False  # they have blocks of pools of pods as well
    writer: Writer | None = None  # who we are, for the document


@dataclass(frozen=True, slots=True)
class Decision:
    allocations: Allocations
    ledger: Ledger
    counts: Mapping[str, Counts] = field(default_factory=dict)  # by pool
    next_due: float | None = None  # when to decide again though nothing changed, seconds of the Unix epoch
    synced: bool = True  # False: something is unknown yet, nothing was decided
    adopted: bool = False  # what was published was newer than the ledger, and is taken over
    conflicts: tuple[str, ...] = ()  # what the ledger had otherwise then, one line each
    ports: Mapping[IPAddress, PortCounts] = field(default_factory=dict)  # by egress IP
    asks_pending: Mapping[int, int] = field(default_factory=dict)  # by group: nodes that do not get the ports they want
    silent: Mapping[str, str] = field(default_factory=dict)  # by node: since when nothing was heard of its agent


class Kept:
    """What the last decision of one ledger rested on (see `routerd.memo`). Not to be used by two at a time."""

    def __init__(self, service_cidrs: tuple[IPNetwork, ...] = ()) -> None:
        """`service_cidrs`: those of the snapshots, which are configuration."""
        self.service_cidrs = service_cidrs
        self.requests = KeptRequests()
        self.wanted: Renewed[str, Request] = Renewed()  # of services and policies together
        self._wanted_of: tuple[Mapping[str, Request], Mapping[str, Request]] = ({}, {})
        self.hosts = Hosts(service_cidrs)
        self.taken = taken.Kept()
        self.planner = Planner()
        self.given = Given()
        self.holders: Last[dict[IPAddress, tuple[str, ...]]] = Last()
        self.beside: Last[tuple[NodeAddresses, ...]] = Last()
        self.groups = KeptGroups()
        self.ports = KeptPorts()
        self.blocks: UntilDue[Blocks] = UntilDue()
        self.interfaces: Last[tuple[NodeInterfaces, ...]] = Last()
        self.digests = Digests()

    def want(self, services: Renewed[str, Request], policies: Mapping[str, Request]) -> set[str]:
        """Puts them together; returns the owners whose request is another, or gone."""
        before_services, before_policies = self._wanted_of
        parts = differing(before_services, services), differing(before_policies, policies)
        touched = {owner for put, gone in parts for owner in (*put, *gone)}
        self._wanted_of = services, policies
        if touched:
            self.wanted = Renewed({**services, **policies}, self.wanted, touched)
        return touched


class Given:
    """What services were given, sorted by their names: what did not change is the same object."""

    def __init__(self) -> None:
        self.all: tuple[ServiceAllocation, ...] = ()
        self.pools: Counter[str] = Counter()  # that they were given from, with how often
        self._names: list[str] = []
        self._of: tuple[Mapping[str, Request], Mapping[str, Grant]] = ({}, {})
        self._by_name: dict[str, ServiceAllocation] = {}

    def take(self, requests: Mapping[str, Request], grants: Mapping[str, Grant]) -> tuple[ServiceAllocation, ...]:
        """`requests` of services, by owner."""
        before, self._of = self._of, (requests, grants)
        parts = differing(before[0], requests), differing(before[1], grants)
        now: dict[str, ServiceAllocation | None] = {}
        for owner in {owner for put, gone in parts for owner in (*put, *gone)}:
            if owner in requests or owner in before[0]:  # else it is a policy
                grant, name = grants.get(owner) if owner in requests else None, Ref.parse(owner).key
                made = ServiceAllocation(name, grant.pool, grant.addresses) if grant is not None else None
                if self._by_name.get(name) != made:
                    now[name] = made
        if now:
            self._put(now)
        return self.all

    def _put(self, now: Mapping[str, ServiceAllocation | None]) -> None:
        for name, made in now.items():
            if (old := self._by_name.get(name)) is not None:
                self.pools[old.pool] -= 1
            if made is not None:
                self.pools[made.pool] += 1
            place = bisect_left(self._names, name)
            if made is None:
                del self._names[place], self._by_name[name]
                continue
            if name not in self._by_name:
                self._names.insert(place, name)
            self._by_name[name] = made
        self.pools = +self.pools
        self.all = tuple(map(self._by_name.__getitem__, self._names))


class KeptGroups:
    """The groups that were formed last, while nothing that they rest on is another and nothing is due."""

    def __init__(self) -> None:
        self._last: tuple[tuple[object, ...], float, Groups] | None = None

    def form(self, ledger: Ledger, now: float, of: tuple[Any, ...], form: Callable[[], Groups]) -> Groups:
        """`form` makes them of the ledger's groups, of `of`, and of `now`, which counts for records that are new."""
        of = (ledger.groups, ledger.next_group, *of)
        if self._last is not None and self._last[0] == of:
            _, began, groups = self._last
            is_settled = groups.records == ledger.groups and groups.next_group == ledger.next_group
            if is_settled and began <= now and (groups.next_due is None or now < groups.next_due):
                return groups
        groups = form()
        self._last = of, now, groups
        return groups


class KeptPorts:
    """What came of ports last."""

    def __init__(self) -> None:
        self._last: UntilDue[Ports] = UntilDue()
        self._external: Derived[Service, str, Service] = Derived(_with_external_ips)
        self._plans = PlanKept()

    def give(
        self,
        groups: Sequence[EgressGroup],
        ledger: Ledger,
        snapshot: Snapshot,
        reports: Mapping[str, NodeReport],
        now: float,
        rules: PortRules,
    ) -> Ports:
        published = snapshot.allocations.bindings if snapshot.allocations else ()
        external = self._external(snapshot.services or {})
        kept = (ledger.node_numbers, ledger.port_tables, ledger.past_port_sets)
        said = {name: report.ports for name, report in reports.items() if report.ports is not None}
        return self._last(
            lambda: give_ports(groups, ledger, snapshot, reports, now, rules, self._plans, external),
            now, groups, *kept, snapshot.nodes, published, external, said, rules,
        )  # fmt: skip


def _blocks(
    last: UntilDue[Blocks],
    settings: AssignSettings,
    ledger: Ledger,
    snapshot: Snapshot,
    reports: Mapping[str, NodeReport],
    now: float,
) -> Blocks:
    cidrs, nodes = settings.pod_cidrs, snapshot.nodes or {}
    pools = tuple(snapshot.pod_pools.values()) if settings.pod_pools else None
    vips = tuple(block for each in (snapshot.pools or {}).values() for block in each.blocks) if pools else ()
    is_asked = bool(cidrs) or pools is not None
    counts = {name: report.pods for name, report in reports.items() if report.pods is not None} if is_asked else {}
    said = {name: (node.pod_cidrs, node.labels, named_pools(node)) for name, node in nodes.items()} if is_asked else {}
    return last(
        lambda: give_blocks(cidrs, ledger.pod_cidrs, nodes, reports, snapshot.service_cidrs, now, pools, vips),
        now, cidrs, ledger.pod_cidrs, said, counts, pools, vips,
    )  # fmt: skip


def _with_external_ips(service: Service) -> tuple[str, Service] | None:
    return (service.key, service) if service.external_ips else None


def assign(
    snapshot: Snapshot,
    ledger: Ledger,
    reports: Mapping[str, NodeReport] | None,
    now: float,
    settings: AssignSettings | None = None,
    agents: Agents = HEARD_OF_ALL,
    kept: Kept | None = None,
) -> Decision:
    """`now` is in seconds of the Unix epoch. `reports` are by node name; `agents` is what was heard by them.

    `kept`: of the last decision with the same settings; it is renewed.

    What policies have left is told from what is published, and pools do not give it. So where that is another after a
    decision, it is decided once more: else the same would be decided otherwise a moment later.
    """
    settings, kept = settings or AssignSettings(), kept or Kept(snapshot.service_cidrs)
    before = _left(snapshot.allocations or Allocations(), ledger)
    first = decision = _assign(snapshot, ledger, reports, now, settings, agents, kept)
    for _ in range(AGAIN):
        after = _left(decision.allocations, decision.ledger)
        if not decision.synced or after == before:
            break
        before, seen = after, replace(snapshot, allocations=decision.allocations)
        decision = _assign(seen, decision.ledger, reports, now, settings, agents, kept)
    return replace(decision, adopted=first.adopted, conflicts=first.conflicts) if decision is not first else first


def _left(allocations: Allocations, ledger: Ledger) -> tuple[tuple[EgressGroup, ...], frozenset[IPAddress]]:
    """Groups that policies have left, and those of their addresses of which nodes have ports."""
    groups = tuple(group for group in allocations.groups if not group.policies)
    addresses = {address for group in groups for address in group.egress_ips}
    return groups, bound_addresses(table for table in ledger.port_tables if table.egress_ip in addresses)


def _assign(
    snapshot: Snapshot,
    ledger: Ledger,
    reports: Mapping[str, NodeReport] | None,
    now: float,
    settings: AssignSettings,
    agents: Agents,
    kept: Kept,
) -> Decision:
    snapshot = with_asks(snapshot, reports)
    previous = snapshot.allocations or Allocations()
    services, policies, pools, nodes = snapshot.services, snapshot.policies, snapshot.pools, snapshot.nodes
    if None in (services, policies, pools, nodes, snapshot.bgp, reports):
        return Decision(previous, ledger, synced=False)
    assert services is not None and policies is not None and pools is not None  # for the type checker
    assert nodes is not None and reports is not None
    if snapshot.namespaces is None and any(
        names_namespaces(pool) or pool.egress_annotations for pool in pools.values()
    ):
        return Decision(previous, ledger, synced=False)
    adopted = adopt(ledger, previous, settings.writer, now)
    ledger = adopted.ledger
    holders = kept.holders(addresses_on_nodes, nodes, {**reports})
    on_nodes = frozenset(holders)
    of_services = kept.requests(services, pools.values(), snapshot.namespaces or {})
    kept.hosts.take(snapshot)
    limits = Limits(snapshot, reports, holders, settings.allowed_egress_ips, kept.hosts, settings.cloud_networks)
    refused = limits.refused({key: each.egress_ips for key, each in policies.items() if each.egress_ips})
    refused |= not_allowed(policies, pools.values(), snapshot.namespaces or {}, ledger.addresses)
    taking = (policy for key, policy in policies.items() if key not in refused)
    of_policies = {each.owner: each for policy in taking for each in policy_requests(policy, on_nodes)}
    claimed, pools_over = taken.taken_of(snapshot, reports, kept.taken)
    specs = map(pool_spec, pools.values())
    touched = kept.want(of_services, of_policies)
    records = without_overtaken(ledger.addresses, policies)
    planned = kept.planner.plan(specs, records, kept.wanted, now, settings.timers, claimed, touched)
    found = {key: granted_to(policy, planned.grants) for key, policy in policies.items() if not policy.service}
    granted = {key: grant for key, grant in found.items() if grant is not None}
    needing, denied = needing_ports(previous.groups, reports), {each.owner for each in planned.denials}
    vips = vips_of(policies, services, planned.grants, pools, nodes, needing, denied)
    granted |= vips.grants
    refused |= limits.refused({key: grant.addresses for key, grant in granted.items()})
    granted = {key: grant for key, grant in granted.items() if key not in refused}
    draining = _leaving(nodes, reports)
    unreported = [name for name, node in nodes.items() if node.ready and name not in reports]
    bound = bound_addresses(ledger.port_tables)
    retention, limit, mode = settings.group_retention, settings.max_gateways, settings.gateway_mode
    groups = kept.groups.form(
        ledger, now, (
            policies, granted, nodes, holders, retention, limit, unreported, draining, agents.heard(), mode,
            previous.groups, bound, vips.announcing,
        ),
        lambda: form_groups(
            policies, granted, ledger, nodes, holders, now, retention, limit, unreported, draining, agents, mode,
            previous.groups, bound, vips.announcing,
        ),
    )  # fmt: skip
    formed = (
        each
        for each in groups.groups
        if each.policies or (still_vips(each, planned.grants) if each.service else limits.allows(each))
    )
    published, of_cloud = with_holders(
        tuple(formed), ledger.cloud_addresses, nodes, policies, settings.cloud_networks,
        direct=settings.direct,
    )  # fmt: skip
    silent_since = agents.silent()
    silent = (each for each in absent_gateways(policies, nodes, agents) if each.object.name not in draining)
    given = kept.given.take(of_services, planned.grants)
    ports = kept.ports.give(published, ledger, snapshot, reports, now, settings.port_rules)
    blocks = _blocks(kept.blocks, settings, ledger, snapshot, reports, now)
    bound = bound_addresses(ports.tables)
    published = tuple(each for each in published if each.policies or not bound.isdisjoint(each.egress_ips))
    groups = without_former(groups, {each.id for each in published}, now, retention)
    draft = Allocations(
        services=given,
        groups=published,
        refusals=_refusals(
            planned,
            groups,
            policies.values(),
            (*refused.values(), *vips.refusals, *pools_over, *silent, *of_cloud, *ports.refusals, *blocks.refusals),
        ),
        nodes=kept.beside(_beside_nodes, nodes, holders, silent_since, _links(nodes, reports)),
        pools=_ways({*kept.given.pools, *(each.pool for each in published)}, pools, previous.pools),
        numbers=ports.published_numbers,
        bindings=ports.bindings,
        pod_cidrs=blocks.published,
        interfaces=kept.interfaces(published_interfaces, ledger.cloud_instances, nodes),
        writer=settings.writer,
    )
    allocations, digest = _numbered(_with_same(draft, previous), previous, ledger, kept.digests)
    recorded = Ledger(
        allocations.generation, digest, groups.next_group, planned.records, groups.records, ports.numbers, ports.tables,
        ports.past, ledger.cloud_instances, ledger.cloud_addresses, blocks.records,
    )  # fmt: skip
    due = [when for when in (planned.next_due, groups.next_due, ports.next_due, blocks.next_due) if when is not None]
    return Decision(
        allocations,
        recorded,
        planned.counts,
        min(due, default=None),
        adopted=adopted.is_taken,
        conflicts=adopted.conflicts,
        ports=ports.counts,
        asks_pending=ports.pending,
        silent=silent_since,
    )


def release(ledger: Ledger, name: str, now: float) -> tuple[Ledger, tuple[Record, ...]]:
    """Ends reservations: `name` is an address, or the owner's name ("EgressPolicy/web"). They cool down first.

    Also says which records it changed; none means that nothing of that name is reserved. Addresses in use stay.
    """
    hits = [each for each in ledger.addresses if each.state == "reserved" and name in _names(each)]
    freed = {id(each): replace(each, state="cooling", since=now, bound=False) for each in hits}
    addresses = tuple(freed.get(id(each), each) for each in ledger.addresses)
    return replace(ledger, addresses=addresses), tuple(freed.values())


def _names(record: Record) -> tuple[str, ...]:
    """By which a record is released: a policy's further addresses with it."""
    return str(record.address), record.owner, policy_of(record.owner)


def _leaving(nodes: Mapping[str, Node], reports: Mapping[str, NodeReport]) -> frozenset[str]:
    """Nodes that are being taken out of service, by their own words or by what the cluster says of them."""
    said = {name for name, node in nodes.items() if node.leaving}
    return frozenset(said | {name for name, report in reports.items() if report.draining})


def _ways(used: Collection[str], pools: Mapping[str, AddressPool], before: Iterable[PoolWays]) -> tuple[PoolWays, ...]:
    """How addresses of each pool in use are announced, or were when it was there last; the default goes unsaid."""
    ways = {each.pool: each for each in before}
    ways |= {name: PoolWays(name, pool.protocol, pool.advertisements) for name, pool in pools.items()}
    return tuple(ways[name] for name in sorted(ways.keys() & set(used)) if ways[name] != PoolWays(name))


def _beside_nodes(
    nodes: Mapping[str, Node],
    holders: Mapping[IPAddress, tuple[str, ...]],
    silent: Mapping[str, str],
    links: Mapping[str, NodeLink],
) -> tuple[NodeAddresses, ...]:
    """Agents know their own interfaces only. What several nodes have, such as Docker's bridge, leads to none."""
    found: dict[str, list[IPAddress]] = {}
    for address, names in holders.items():
        if len(names) == 1 and address not in nodes[names[0]].addresses:
            found.setdefault(names[0], []).append(address)
    each = (
        NodeAddresses(name, tuple(sorted(found.get(name, ()), key=key_of)), silent.get(name, ""), links.get(name))
        for name in sorted(nodes)
    )
    return tuple(one for one in each if one.addresses or one.silent_since or one.link)


def _links(nodes: Mapping[str, Node], reports: Mapping[str, NodeReport]) -> dict[str, NodeLink]:
    """Of the interfaces that have the nodes' tunnel endpoints."""
    return {
        name: link
        for name, node in nodes.items()
        for link in (reports[name].links if name in reports else ())
        if link.address == node.tunnel_endpoint
    }


def _refusals(
    planned: Plan, groups: Groups, policies: Collection[EgressPolicy], conflicts: Iterable[Refusal]
) -> tuple[Refusal, ...]:
    """Every policy without a group is among them: the document tells which policies are known, see `store.closed`."""
    denied = (Refusal(Ref.parse(policy_of(each.owner)), each.reason, each.message) for each in planned.denials)
    has = {key: group.egress_ips for group in groups.groups for key in group.policies}
    given = ((policy, has.get(policy.key, policy.egress_ips)) for policy in policies)
    lacking = ((policy.ref, unsupported(policy.destinations, addresses)) for policy, addresses in given)
    families = (Refusal(ref, UNSUPPORTED_FAMILY, message) for ref, message in lacking if message)
    message = "refused where it was read: it has no egress IP, and what it covers is dropped"
    refused = (Refusal(policy.ref, "PolicyRefused", message) for policy in policies if policy.refused)
    return tuple(sorted({*denied, *families, *refused, *conflicts, *groups.refusals}, key=lambda each: each.order))


def _with_same(draft: Allocations, previous: Allocations) -> Allocations:
    """`draft` with those parts of `previous` that are equal: the same objects need not be written anew."""
    parts = ("groups", "refusals", "nodes", "pools", "numbers", "bindings", "pod_cidrs", "interfaces")
    pairs = ((name, getattr(previous, name)) for name in parts)
    return replace(draft, **{name: before for name, before in pairs if before == getattr(draft, name)})


def _numbered(draft: Allocations, previous: Allocations, ledger: Ledger, digests: Digests) -> tuple[Allocations, str]:
    """`draft` with its generation, which grows iff the content changes; and the digest of the content.

    The ledger's digest covers the moment between recording and publishing: a decision that was recorded and not
    published gets the same generation when it is made again.
    """
    generation = previous.generation
    same = replace(draft, generation=generation)
    if ledger.digest and generation == ledger.generation and same == previous:
        return previous, ledger.digest
    digest = digests.of(draft)
    if digest == ledger.digest and ledger.generation >= generation:
        return replace(draft, generation=ledger.generation), digest
    return replace(draft, generation=max(generation, ledger.generation) + 1), digest
