"""Which routes a node should have in its table, and the next steps. Pure.

The table is looked up before `main`, so what stands in it would win. So nothing is put there to which `main` has a
route of somebody else's: to the prefix itself, or to a part of it. A default route, and one to more than the prefix, is
what ours are there to be better than. What is only learnt takes nothing out of a link's network, or out of the block of
a node, either: whoever announces it would get packets to neighbours.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NamedTuple

from fib import blackholes
from fib.blackholes import PutVerdicts, RemoveVerdicts, Verdict, named
from fib.spans import Spans, around

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

TABLE = 203  # rt_tables of iproute2 names none of this number
PROTOCOL = 204  # of routes and rules; free in iproute2's rt_protos
PRIORITY = 32_765  # of the rule: the last before that of main, so that of equal number those of others come first
ROOM = "NativeRouting"  # the object of what is told


class Hop(NamedTuple):
    """A neighbour, and the device by which it is reached."""

    address: IPAddress
    ifindex: int


Hops = frozenset[Hop]


@dataclass(frozen=True, slots=True)
class Desired:
    """Addresses of each prefix's node, the preferred first: one on each device is used, and flows are spread over
    these. `learnt`: next hops of a prefix that others told, for one to whose node no link leads; flows are spread over
    all of them. None = what they tell is not known yet: what is in the table stays beside `routes`.

    `aggregates`: what this node announces as a whole, each with the parts of it that are pools' (see `fib.blackholes`);
    None = not known. `spared`: addresses of nodes and peers, which no blackhole takes.
    """

    routes: Mapping[IPNetwork, tuple[IPAddress, ...]] = field(default_factory=dict)
    learnt: Mapping[IPNetwork, tuple[IPAddress, ...]] | None = field(default_factory=dict)
    aggregates: Mapping[IPNetwork, tuple[IPNetwork, ...]] | None = field(default_factory=dict)
    spared: frozenset[IPNetwork] = frozenset()

    @property
    def prefixes(self) -> frozenset[IPNetwork]:
        return frozenset(self.routes) | frozenset(self.learnt or ())


class Rule(NamedTuple):
    """Whoever has it, by its protocol it is ours. `received`: not for what the host itself sends."""

    version: int
    priority: int = PRIORITY
    table: int = TABLE
    received: bool = False

    def __str__(self) -> str:
        what = " of what is received" if self.received else ""
        return f"IPv{self.version} rule {self.priority} to table {self.table}{what}"


def blackhole_rule(version: int) -> Rule:
    return Rule(version, table=blackholes.TABLE, received=True)


@dataclass(frozen=True, slots=True)
class Observed:
    """`main`: the device on whose link each of its prefixes is; 0 = it leads elsewhere."""

    routes: Mapping[IPNetwork, Hops] = field(default_factory=dict)  # ours
    rules: frozenset[Rule] = frozenset()  # ours
    main: Mapping[IPNetwork, int] = field(default_factory=dict)
    links: Mapping[int, str] = field(default_factory=dict)  # names of Ethernet devices that are up
    dark: frozenset[int] = frozenset()  # those of them that have no carrier
    verdicts: Mapping[IPNetwork, Verdict] = field(default_factory=dict)  # ours, in the table of blackholes


@dataclass(frozen=True, slots=True)
class Status:
    """`observed`: at the last look, None = there was none. `writes`: routes put and removed since the start."""

    observed: Observed | None = None
    writes: int = 0


# --- actions


@dataclass(frozen=True, slots=True)
class Put:
    """In place of what there is to these prefixes, each at once."""

    routes: Mapping[IPNetwork, Hops]
    phase: Literal["prepare"] = "prepare"

    def __str__(self) -> str:
        return f"put routes to {named(self.routes, len(self.routes))}"


@dataclass(frozen=True, slots=True)
class Remove:
    prefixes: tuple[IPNetwork, ...]
    phase: Literal["prepare"] = "prepare"  # nothing that is announced leads to them

    def __str__(self) -> str:
        return f"remove routes to {named(self.prefixes, len(self.prefixes))}"


@dataclass(frozen=True, slots=True)
class AddRule:
    rule: Rule
    phase: Literal["prepare"] = "prepare"

    def __str__(self) -> str:
        return f"add {self.rule}"


@dataclass(frozen=True, slots=True)
class DeleteRule:
    rule: Rule
    phase: Literal["prepare", "retire"] = "prepare"

    def __str__(self) -> str:
        return f"delete {self.rule}"


Action = Put | Remove | AddRule | DeleteRule | PutVerdicts | RemoveVerdicts
State = Literal["installed", "pending", "not-on-link", "taken"]


@dataclass(frozen=True, slots=True)
class Problem:
    object: str
    reason: str
    message: str


# --- what follows


def plan(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """A route goes after what takes its place has come."""
    routes, verdicts = wanted(desired, observed), wanted_verdicts(desired, observed)
    rules = {Rule(version) for version in _versions(routes)}
    rules |= {blackhole_rule(version) for version in _versions(verdicts)}
    put = {prefix: hops for prefix, hops in routes.items() if observed.routes.get(prefix) != hops}
    other = {prefix: verdict for prefix, verdict in verdicts.items() if observed.verdicts.get(prefix) != verdict}
    gone = tuple(prefix for prefix in observed.routes if prefix not in routes)
    steps: list[Action] = [Put(put)] if put else []
    steps += [PutVerdicts(other)] if other else []
    steps += [AddRule(rule) for rule in sorted(rules - observed.rules)]
    steps += [Remove(gone)] if gone else []
    former = sorted(observed.rules - rules)
    steps += [DeleteRule(rule) for rule in former if rule.table != blackholes.TABLE]
    left = (prefix for prefix in observed.verdicts if prefix not in verdicts)
    free = tuple(sorted(left, key=observed.verdicts.__getitem__))  # "blackhole" before "throw"
    steps += [RemoveVerdicts(free)] if free else []
    return (*steps, *(DeleteRule(rule, "retire") for rule in former if rule.table == blackholes.TABLE))


def _versions(prefixes: Iterable[IPNetwork]) -> set[int]:
    return {prefix.version for prefix in prefixes}


def wanted_verdicts(desired: Desired, observed: Observed) -> Mapping[IPNetwork, Verdict]:
    """What the table of blackholes should have."""
    if desired.aggregates is None:
        return observed.verdicts
    parts = {part for parts in desired.aggregates.values() for part in parts}
    return blackholes.wanted(parts, desired.spared, observed.main)


def wanted(desired: Desired, observed: Observed, others: Container[IPNetwork] | None = None) -> dict[IPNetwork, Hops]:
    """What can be had of it here. `others`: what is `taken`, by who knows that already.

    The kernel sends by a device without a carrier, too: that is used if there is no
    other, as packets have no better way then, and the route is there when the carrier comes back.
    """
    others = taken(desired, observed) if others is None else others
    links, told = Links(observed), desired.learnt
    learnt = {p: links.each(addresses) for p, addresses in told.items()} if told is not None else observed.routes
    direct = {prefix: links.hops(addresses) for prefix, addresses in desired.routes.items()}
    ways = [learnt, direct]
    if observed.dark:
        ways += [{prefix: _alive(hops, observed.dark) for prefix, hops in one.items()} for one in ways]
    found = ((prefix, hops) for one in ways for prefix, hops in one.items() if hops)
    return {prefix: hops for prefix, hops in found if prefix not in others}


def _alive(hops: Hops, dark: frozenset[int]) -> Hops:
    return frozenset(hop for hop in hops if hop.ifindex not in dark)


def taken(desired: Desired, observed: Observed) -> dict[IPNetwork, IPNetwork]:
    """Prefixes to which, or to a part of which, `main` has a route: that one. And what is learnt of a link's network,
    or of a block in `routes`: that.
    """
    lengths: dict[int, set[int]] = {4: set(), 6: set()}
    learnt = desired.learnt if desired.learnt is not None else observed.routes
    prefixes = desired.routes.keys() | learnt.keys()
    for prefix in prefixes:
        lengths[prefix.version].add(prefix.prefixlen)
    found: dict[IPNetwork, IPNetwork] = {}
    for other in observed.main:
        for prefix in around(other, lengths[other.version]):
            if prefix in prefixes:
                found.setdefault(prefix, other)
    connected = (network for network, device in observed.main.items() if device and network.prefixlen)
    held = Spans((*desired.routes, *connected))
    beside = (prefix for prefix in learnt if prefix not in desired.routes and prefix not in found)
    holders = ((prefix, held.holding(prefix)) for prefix in beside)
    return found | {prefix: holder for prefix, holder in holders if holder is not None}


class Links:
    """Finds by which link a neighbour is reached, as `main` would."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        lengths = {(network.version, network.prefixlen) for network in observed.main}
        self._lengths = {v: sorted((n for version, n in lengths if version == v), reverse=True) for v in (4, 6)}
        self._known: dict[tuple[IPAddress, ...], Hops] = {}

    def hops(self, addresses: tuple[IPAddress, ...]) -> Hops:
        """The first address on each link."""
        if addresses not in self._known:
            first = {self._device(address): address for address in reversed(addresses)}
            self._known[addresses] = frozenset(Hop(each, device) for device, each in first.items() if device)
        return self._known[addresses]

    def each(self, addresses: tuple[IPAddress, ...]) -> Hops:
        """All that are on a link."""
        return frozenset(hop for address in addresses for hop in self.hops((address,)))

    def _device(self, address: IPAddress) -> int:
        """0 = it is on no link."""
        host = IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)
        networks = around(host, self._lengths[address.version])
        device = next((self._observed.main[each] for each in networks if each in self._observed.main), 0)
        return device if device in self._observed.links else 0


def states(desired: Desired, observed: Observed) -> dict[IPNetwork, State]:
    """How far each prefix has come."""
    others = taken(desired, observed)
    there = wanted(desired, observed, others)

    def state(prefix: IPNetwork) -> State:
        if prefix in others:
            return "taken"
        if prefix not in there:
            return "not-on-link"
        return "installed" if observed.routes.get(prefix) == there[prefix] else "pending"

    return {prefix: state(prefix) for prefix in desired.prefixes}


def problems(desired: Desired, observed: Observed) -> list[Problem]:
    """A node that is on no link is none: that is what the table is not for."""
    prefixes = desired.prefixes
    others = {prefix: other for prefix, other in taken(desired, observed).items() if prefix in prefixes}
    held = [prefix for prefix, other in others.items() if other.prefixlen < prefix.prefixlen]
    there = [prefix for prefix, other in others.items() if other.prefixlen >= prefix.prefixlen]
    told = (
        f"the main table has routes of others to {len(there)} of {len(prefixes)} prefixes of pods "
        f"({named(there, len(there))}): those stay in force; take them away, or native-routing out of the "
        "configuration",
        f"BGP peers announce {len(held)} prefixes ({named(held, len(held))}) of the network of a link, or of the "
        "block of a node: packets there go as they did; native-routing.learn should name networks of pods alone",
    )
    return [Problem(ROOM, "RouteTaken", text) for text, those in zip(told, (there, held), strict=True) if those]
