"""The next call for each instance, if any: one at a time, and none while the last one is not settled. Pure.

Whatever is not known changes nothing: an instance whose type the cloud does not know, or that does not run, is left
alone, and a reason says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cloud.calls import Assign, AssignPrefix6, Attach, Bind, Call, Create, Delete, Detach
from cloud.demand import Demand, Demands, Rules
from cloud.model import (
    CLUSTER_TAG,
    CREATED_TAG,
    INSTANCE_TAG,
    INTENT_TAG,
    Instance,
    Interface,
    Inventory,
    Limits,
    Subnet,
    addresses,
)
from cloud.need import needed
from cloud.records import Holding, Holdings
from cloud.release import unassign

PREFIX = 16  # addresses of a /28
HOST_PODS = 2  # at least so many of a node's pods are on its own network, as Amazon's table of maxPods counts
# What is left alone for a while, because the cloud refused it: ("prefixes", subnet), ("addresses", subnet), or
# ("instance", instance).
Blocked = Collection[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an instance has less than it wants."""

    instance: str
    node: str
    reason: str  # a word that programs can rely on
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    calls: Mapping[str, Call] = field(default_factory=dict)  # by instance; who waits longest comes first
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """One instance, with everything that a decision about it needs."""

    instance: Instance
    limits: Limits
    holding: Holding
    demand: Demand
    interfaces: tuple[Interface, ...]  # attached, or on its way to or from it; sorted by index
    waiting: tuple[Interface, ...]  # made for it, attached to nothing
    inventory: Inventory
    rules: Rules
    blocked: Blocked

    @property
    def own(self) -> list[Interface]:
        """Those whose blocks are for pods."""
        return [each for each in self.interfaces if each.is_attached and self.rules.counts(each)]

    def takes_prefixes(self, subnet: str) -> bool:
        return self.rules.prefixes and self.limits.prefixes and ("prefixes", subnet) not in self.blocked

    def takes_addresses(self, subnet: str) -> bool:
        there = self.inventory.subnets.get(subnet)
        return there is not None and there.free > 0 and ("addresses", subnet) not in self.blocked

    def room(self, interface: Interface) -> int:
        """How many more addresses, or prefixes, it takes."""
        return self.limits.ipv4 - 1 - interface.others - sum(block.version == 4 for block in interface.blocks)

    def mixes(self, interface: Interface, prefixes: bool) -> bool:
        """Whether it takes prefixes, or single addresses, beside what it has."""
        lengths = {block.prefixlen for block in interface.blocks if block.version == 4}
        return self.rules.api.mixes or lengths <= {28 if prefixes else 32}

    def at_once(self, count: int) -> int:
        """Of so many, what one call gives."""
        return min(count, self.rules.api.at_once or count)

    @property
    def short(self) -> int:
        """IPv4 addresses to fetch. What it has, and what is still on record as another's, need not be fetched."""
        recorded = {block.network: block.state for _, block in self.holding.blocks()}
        blocks = recorded.keys() | {block for each in self.own for block in each.blocks}
        mine = (block for block in blocks if block.version == 4 and recorded.get(block, "used") == "used")
        return needed(self.rules.marks, sum(map(addresses, mine)), self.demand.used, self.demand.pending)


def plan(
    holdings: Holdings, inventory: Inventory, demands: Demands, rules: Rules, blocked: Blocked, now: float,
    token: Callable[[str], str],
) -> Plan:  # fmt: skip
    """`token` makes a new one for an instance's next interface."""
    interfaces = _by_instance(inventory, rules)
    calls: dict[str, Call] = {}
    reasons: list[Reason] = []
    for name in sorted(demands, key=lambda each: (_served(holdings, each), each)):
        holding, demand = holdings.get(name) or Holding(name), demands[name]
        found = _site(holding, demand, inventory, rules, blocked, interfaces)
        reasons += _kubelet(found) if isinstance(found, Site) else [found]
        if isinstance(found, Reason):
            continue
        if holding.intent is not None:
            if holding.intent.may_repeat:
                calls[name] = holding.intent.call  # with the same token, so that there is one interface
        elif ("instance", name) not in blocked:
            call, reason = _first(_calls(found, now, token))
            reasons += [reason] if reason is not None else []
            calls |= {name: call} if call is not None else {}
    return Plan(calls, tuple(reasons))


def _first(found: Iterable[Call | Reason]) -> tuple[Call | None, Reason | None]:
    """The first call, and the first reason before it: what is lacking holds up nothing else."""
    first: Reason | None = None
    for each in found:
        if not isinstance(each, Reason):
            return each, first
        first = first or each
    return None, first


def _served(holdings: Holdings, name: str) -> float:
    return holdings[name].served if name in holdings else 0.0


def _by_instance(inventory: Inventory, rules: Rules) -> Mapping[str, list[Interface]]:
    found: dict[str, list[Interface]] = {}
    for each in inventory.interfaces.values():
        name = each.instance or (each.tags.get(INSTANCE_TAG, "") if rules.is_ours(each) else "")
        found.setdefault(name, []).append(each)
    return found


def _site(
    holding: Holding, demand: Demand, inventory: Inventory, rules: Rules, blocked: Blocked,
    interfaces: Mapping[str, Iterable[Interface]],
) -> Site | Reason:  # fmt: skip
    def why(reason: str, message: str) -> Reason:
        return Reason(holding.instance, demand.node, reason, message)

    instance = inventory.instances.get(holding.instance)
    if instance is None:
        return why("InstanceUnknown", f"the cloud has no instance {holding.instance}")
    if not instance.running:
        return why("InstanceNotRunning", f"instance {instance.id} does not run")
    limits = inventory.limits.get(instance.type)
    if limits is None:
        return why("InstanceTypeUnknown", f"the cloud does not tell what an instance of type {instance.type} holds")
    there = sorted(interfaces.get(instance.id, ()), key=lambda each: (each.index, each.id))
    attached = [each for each in there if each.instance]
    waiting = [each for each in there if not each.instance and rules.may_have(each)]
    return Site(instance, limits, holding, demand, tuple(attached), tuple(waiting), inventory, rules, blocked)


def _calls(site: Site, now: float, token: Callable[[str], str]) -> Iterator[Call | Reason]:
    """In the order of their urgency: the first call counts."""
    yield from _attach(site)
    for each in site.own:
        if site.rules.is_ours(each) and not each.goes_with_instance and each.attachment:
            yield Bind(each.id, each.attachment)
    if site.short:
        yield from _more(site, now, token)
    if site.rules.ipv6:
        yield from _prefix6(site, token)
    if site.rules.releases and (call := unassign(site.holding, site.demand, site.rules.api.at_once, now)) is not None:
        yield call
    if site.rules.releases and not site.short:
        yield from _drop(site)


def _attach(site: Site) -> Iterator[Call | Reason]:
    index = _free_index(site)
    for each in site.waiting:
        if each.status == "available" and index is not None and (each.blocks or site.short):
            yield Attach(each.id, site.instance.id, index)


def _drop(site: Site) -> Iterator[Call | Reason]:
    """Interfaces that have given back all of their blocks, also by the records: a look may be late, and show one as it
    was before. The last ones first.
    """
    recorded = {held.id for held in site.holding.held if held.blocks}
    for each in site.waiting:
        if each.status == "available" and not each.blocks:
            yield Delete(each.id)
    for each in reversed(site.own):
        if site.rules.is_ours(each) and not each.blocks and each.id not in recorded:
            yield Detach(each.id, each.attachment, site.instance.id)


def _free_index(site: Site) -> int | None:
    taken = {each.index for each in site.interfaces}
    first = max(site.rules.first_index, 1)
    if len(taken) >= site.limits.interfaces:
        return None
    return next((index for index in range(first, site.limits.interfaces) if index not in taken), None)


def _prefix6(site: Site, token: Callable[[str], str]) -> Iterator[Call | Reason]:
    lacking = [each for each in site.own if all(block.version == 4 for block in each.blocks)]
    if not lacking or (not site.rules.api.prefix6_each and site.holding.available(6)):
        return
    subnets = site.inventory.subnets
    able = [each for each in lacking if each.subnet in subnets and subnets[each.subnet].cidr6 is not None]
    if not _takes_prefix6(site) or not able:
        yield _why(site, "NoIPv6", "no interface of it is in a subnet with IPv6, or its type takes no prefixes")
    else:
        yield AssignPrefix6(able[0].id, _token(site, token))


def _takes_prefix6(site: Site) -> bool:
    return site.limits.prefixes and site.limits.ipv6 > 0


def _token(site: Site, token: Callable[[str], str]) -> str:
    return token(site.instance.id) if site.rules.api.tokens else ""


def _why(site: Site, reason: str, message: str) -> Reason:
    return Reason(site.instance.id, site.demand.node, reason, f"instance {site.instance.id}: {message}")


def _more(site: Site, now: float, token: Callable[[str], str]) -> Iterator[Call | Reason]:
    """Prefixes on what is there, then from a sibling subnet, and only then single addresses in their place."""
    for prefixes in (True, False):
        for each in site.own:
            room = site.room(each) if site.mixes(each, prefixes) else 0
            if (count := site.at_once(_count(site, each.subnet, room, prefixes))) > 0:
                yield Assign(each.id, count, prefixes, _token(site, token))
        yield from _create(site, prefixes, now, token)
    yield from _why_none(site)


def _count(site: Site, subnet: str, room: int, prefixes: bool) -> int:
    """How many to ask for; 0 = this subnet does not give them."""
    if prefixes:
        return min(room, -(-site.short // PREFIX)) if site.takes_prefixes(subnet) else 0
    return min(room, site.short, site.inventory.subnets[subnet].free) if site.takes_addresses(subnet) else 0


def _create(site: Site, prefixes: bool, now: float, token: Callable[[str], str]) -> Iterator[Call | Reason]:
    if _free_index(site) is None or site.waiting:
        return
    groups = site.rules.groups_for(site.instance, site.inventory)
    if not groups:
        yield _why(site, "NoSecurityGroup", "no security group of its VPC has the tags of interfaces.security-groups")
        return
    for subnet in site.rules.subnets_for(site.instance, site.inventory):
        count = _count(site, subnet.id, site.limits.ipv4 - 1, prefixes)
        if not prefixes:
            count = min(count, subnet.free - 1)  # its primary address is one, too
        if count > 0:
            yield _creation(site, subnet, groups, site.at_once(count), prefixes, now, token)


def _creation(
    site: Site, subnet: Subnet, groups: tuple[str, ...], count: int, prefixes: bool, now: float,
    token: Callable[[str], str],
) -> Create:  # fmt: skip
    text = token(site.instance.id)
    tags = {
        **site.rules.tags,
        CLUSTER_TAG: site.rules.cluster,
        INSTANCE_TAG: site.instance.id,
        CREATED_TAG: str(int(now)),
        INTENT_TAG: text,
    }
    prefix6 = site.rules.ipv6 and _takes_prefix6(site) and subnet.cidr6 is not None and _lacks_prefix6(site)
    return Create(text, subnet.id, groups, count, prefixes, prefix6, tuple(sorted(tags.items())))


def _lacks_prefix6(site: Site) -> bool:
    """Whether a new interface brings one."""
    return site.rules.api.prefix6_each or not site.holding.available(6)


def _most(site: Site) -> str:
    if not site.rules.api.makes:
        there = sum(block.version == 4 for each in site.own for block in each.blocks)
        return f"its interfaces for pods hold no more than their {there} addresses or prefixes"
    return f"a {site.instance.type} holds {_blocks(site)} addresses or prefixes for pods"


def _blocks(site: Site) -> int:
    """How many addresses, or prefixes, it can have for pods."""
    rules = site.rules
    interfaces = site.limits.interfaces - rules.first_index if rules.api.makes else len(site.own)
    return (site.limits.ipv4 - 1) * interfaces


def _capacity(site: Site) -> int:
    """How many pods can have an address. Of both families the scarcer one counts: of IPv6 one prefix is enough."""
    rules = site.rules
    if rules.ipv6 and not _takes_prefix6(site):
        return 0
    most = _blocks(site) * (PREFIX if rules.prefixes and site.limits.prefixes else 1)
    return min(most, rules.marks.maximum or most)


def _kubelet(site: Site) -> list[Reason]:
    """Pods that a scheduler sends to a node which holds no more wait there, and nowhere else."""
    most, capacity = site.demand.most_pods, _capacity(site)
    if most <= capacity + HOST_PODS:
        return []
    message = f"its kubelet takes {most} pods, and there are {capacity} addresses for them: set maxPods to {{}} at most"
    return [_why(site, "MaxPodsTooHigh", message.format(capacity + HOST_PODS))]


def _why_none(site: Site) -> Iterator[Reason]:
    """While an interface waits for its attachment no subnet is asked for another one."""
    if _free_index(site) is None and all(site.room(each) <= 0 for each in site.own):
        yield _why(site, "InstanceFull", _most(site))
    elif not site.rules.subnets_for(site.instance, site.inventory):
        yield _why(site, "NoSubnet", f"no subnet of interfaces.subnets is in its VPC and zone ({site.instance.zone})")
    elif not site.waiting:
        yield _why(site, "SubnetFull", "no subnet that it may use has free addresses")
