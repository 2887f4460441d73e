"""What a node should have so that a pod's packets leave by the interface that has its address; the next steps. Pure.

A VPC delivers an address to the interface that has it, and drops what another one sends. So blocks of an interface have
a rule into a table of its own, whose only way out is its device; what goes to pods is asked of the main table first,
where main plugins put their routes. Answers of connections to the node itself that were handed to a pod (NodePort)
leave by the primary interface, where they came in, as do connections that have its address: a bit of connection mark
remembers them.

Rules and routes are ours by their protocol, so what others have is neither used nor touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Literal

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
PROTOCOL = 203  # of rules and routes
MAIN = 254
TABLES = 20_300  # the table of a device is this and its ifindex
TO_POD, TO_PRIMARY, FROM_POD = 512, 1024, 1536  # priorities of rules
MARK = 0x80  # of packets and connections: Amazon's own plugin has the same
NFT_TABLE = "routerd_eni"  # of family inet
LOOSE = "2"  # rp_filter: the source must be reachable, by whichever device (RFC 3704, 2.4)
MULTICAST = IPv4Network("224.0.0.0/4")
EVERYWHERE: Mapping[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
Phase = Literal["prepare", "retire"]


@dataclass(frozen=True, slots=True)
class Interface:
    """`gateways`: the router of its subnet, by an address of each family. `blocks`: of which pods have addresses."""

    mac: str
    gateways: tuple[IPAddress, ...]
    blocks: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class Desired:
    interfaces: tuple[Interface, ...] = ()
    metadata: tuple[IPAddress, ...] = ()  # addresses of the cloud's metadata service, which pods may not ask
    primary_mark: int = 0  # a bit of packets that leave by the primary interface, whoever has their source; 0 = none
    untranslated: tuple[IPNetwork, ...] = ()  # IPv4: elsewhere pods have the primary's address; () = nowhere


@dataclass(frozen=True, slots=True)
class Link:
    ifindex: int
    name: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """`source`, `destination`: of one family; /0 = any. `mark`: 0 = any."""

    priority: int
    table: int
    source: IPNetwork
    destination: IPNetwork
    mark: int = 0

    def __str__(self) -> str:
        parts = [f"from {self.source}"] if self.source.prefixlen or self.mark else []
        parts += [f"to {self.destination}"] if self.destination.prefixlen else []
        parts += [f"fwmark {self.mark:#x}"] if self.mark else []
        return f"rule {self.priority} {' '.join(parts)} table {self.table}"


@dataclass(frozen=True, slots=True)
class Route:
    """`gateway` None = the destination is on the device's own link."""

    table: int
    ifindex: int
    destination: IPNetwork
    gateway: IPAddress | None = None

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"route {self.destination}{via} of device {self.ifindex} in table {self.table}"


@dataclass(frozen=True, slots=True)
class Observed:
    links: Mapping[str, Link] = field(default_factory=dict)  # by MAC
    primary: Link | None = None  # of the default route
    rules: frozenset[Rule] = frozenset()  # ours, as are the routes
    routes: frozenset[Route] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)  # under /proc/sys/net, of primary and interfaces
    table: tuple[str, ...] | None = None  # comments of the nft table's rules; None = there is none
    others: tuple[str, ...] = ()  # who else makes interfaces for pods here
    own: frozenset[IPAddress] = frozenset()  # addresses in blocks that the host has itself


# --- actions


@dataclass(frozen=True, slots=True)
class SetLink:
    """Up, with this MTU."""

    ifindex: int
    name: str
    mtu: int
    phase: Phase = "prepare"

    def __str__(self) -> str:
        return f"set device {self.name} up with mtu {self.mtu}"


@dataclass(frozen=True, slots=True)
class Set:
    setting: str
    value: str
    phase: Phase = "prepare"

    def __str__(self) -> str:
        return f"set net/{self.setting} to {self.value}"


@dataclass(frozen=True, slots=True)
class Add:
    what: Rule | Route
    phase: Phase = "prepare"

    def __str__(self) -> str:
        return f"add {self.what}"


@dataclass(frozen=True, slots=True)
class Load:
    text: str
    phase: Phase = "prepare"

    def __str__(self) -> str:
        return f"load table inet {NFT_TABLE}"


@dataclass(frozen=True, slots=True)
class Delete:
    """`what` None = the nft table."""

    what: Rule | Route | None
    phase: Phase = "retire"

    def __str__(self) -> str:
        return f"delete {self.what or f'table inet {NFT_TABLE}'}"


Action = SetLink | Set | Add | Load | Delete


@dataclass(frozen=True, slots=True)
class Problem:
    object: str
    reason: str
    message: str


# --- what follows


def plan(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """What pods' packets are led to comes before the rules that lead there."""
    if _is_hindered(observed):
        return _rest(desired, observed)
    there = wirable(desired, observed)
    links = [link for each in there if not _is_up(link := observed.links[each.mac], observed)]
    settings, rules = _settings(there, observed), _rules(there, observed, desired.primary_mark)
    routes = [*_routes(there, observed)]
    chains = nft_chains(desired, there, observed)
    steps: list[Action] = [Set(name, each) for name, each in settings.items() if observed.settings.get(name) != each]
    steps += [SetLink(each.ifindex, each.name, _mtu(observed, each)) for each in links]
    steps += [Add(each) for each in routes if each not in observed.routes]
    steps += [Load(transaction(chains))] if chains and digests(chains) != observed.table else []
    steps += [Add(each) for each in rules if each not in observed.rules]
    steps += [Delete(each) for each in sorted(observed.rules - {*rules}, key=str)]
    steps += [Delete(each) for each in sorted(observed.routes - {*routes}, key=str)]
    return (*steps, *([Delete(None)] if observed.table is not None and not chains else []))


def _is_hindered(observed: Observed) -> bool:
    return observed.primary is None or bool(observed.others)


def _rest(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """Where nothing new is led anywhere: pods that run keep what leads to them, and what is closed to them, as long as
    their blocks are the node's.
    """
    blocks = {block for each in desired.interfaces for block in each.blocks}
    rules = {each for each in observed.rules if blocks & {each.source, each.destination}}
    tables = {each.table for each in rules}
    rules |= {each for each in observed.rules if rules and each.mark}
    routes = {each for each in observed.routes if each.table in tables}
    steps = [Delete(each) for each in sorted(observed.rules - rules, key=str)]
    steps += [Delete(each) for each in sorted(observed.routes - routes, key=str)]
    return (*steps, *([Delete(None)] if observed.table is not None and not rules else []))


def wired(desired: Desired, observed: Observed) -> frozenset[str]:
    """MACs of the interfaces whose addresses pods may use. What is sent to one that the host has stays with it."""
    waiting = [each for each in plan(desired, observed) if each.phase == "prepare"]
    there = (each for each in wirable(desired, observed) if not _own(each, observed))
    return frozenset() if waiting else frozenset(each.mac for each in there)


def _own(interface: Interface, observed: Observed) -> list[IPAddress]:
    return sorted(each for each in observed.own if any(each in block for block in interface.blocks))


def wirable(desired: Desired, observed: Observed) -> list[Interface]:
    """Those whose devices are there. Without a primary interface, or beside others, nothing is led anywhere."""
    if _is_hindered(observed):
        return []
    return [each for each in desired.interfaces if each.mac in observed.links]


def problems(desired: Desired, observed: Observed) -> list[Problem]:
    """An interface may be attached a while before its device appears."""
    if observed.others:
        return [Problem("Cloud", "CloudOtherCni", beside(observed.others))]
    if desired.interfaces and observed.primary is None:
        return [Problem("Cloud", "NoPrimaryInterface", "no device has a default route: pods get no address of a cloud")]
    missing = [each.mac for each in desired.interfaces if each.mac not in observed.links]
    message = "no device has the MAC address {}, of an interface of this instance: its addresses are not given yet"
    found = [Problem("Cloud", "NoDevice", message.format(mac)) for mac in missing]
    return found + [Problem("Cloud", "PodAddressOnHost", _at_home(own)) for own in _owns(desired, observed)]


def _owns(desired: Desired, observed: Observed) -> list[list[IPAddress]]:
    return [own for each in desired.interfaces if (own := _own(each, observed))]


def _at_home(own: Iterable[IPAddress]) -> str:
    return (
        f"this host itself has {', '.join(map(str, own))} of its pods' addresses: no pod gets one of their interface "
        "until they are off it; cloud-init gives a host all addresses of an interface at each boot, unless told not to"
    )


def beside(others: Iterable[str]) -> str:
    return (
        f"{' and '.join(others)} makes interfaces and routes for pods of this node: two of a kind would take them from "
        "each other, so its pods get no address of ours; take it off the node, or the node out of cloud.nodes"
    )


def _is_up(link: Link, observed: Observed) -> bool:
    return link.up and link.mtu == _mtu(observed, link)


def _mtu(observed: Observed, link: Link) -> int:
    return observed.primary.mtu if observed.primary else link.mtu


def _settings(there: Iterable[Interface], observed: Observed) -> dict[str, str]:
    """Answers come in where main has no route to whom they are from."""
    names = [observed.links[each.mac].name for each in there]
    if not names or observed.primary is None:
        return {}
    ways = dict.fromkeys([observed.primary.name, *names])
    settings = {"ipv4/ip_forward": "1"} | {f"ipv4/conf/{name}/rp_filter": LOOSE for name in ways}
    settings |= {f"ipv4/conf/{name}/forwarding": "1" for name in ways}
    has_6 = any(block.version == 6 for each in there for block in each.blocks)
    return settings | (_settings6(observed.primary.name, names, observed) if has_6 else {})


def _settings6(primary: str, names: Iterable[str], observed: Observed) -> dict[str, str]:
    """A router takes no advertisements, and forgets the default route that it has of one, unless it is told to take
    them all the same; those of the other interfaces would make a second default route (ip-sysctl, accept_ra).
    """
    settings = {f"ipv6/conf/{name}/accept_ra": "0" for name in names if name != primary}
    advertised = f"ipv6/conf/{primary}/accept_ra"
    if observed.settings.get(advertised) == "1":
        settings[advertised] = "2"
    return settings | {"ipv6/conf/all/forwarding": "1"}


def _rules(there: Iterable[Interface], observed: Observed, primary_mark: int) -> list[Rule]:
    blocks = [(block, TABLES + observed.links[each.mac].ifindex) for each in there for block in each.blocks]
    versions = sorted({block.version for block, _ in blocks})
    found = [Rule(TO_POD, MAIN, EVERYWHERE[block.version], block) for block, _ in blocks]
    found += [_marked(mark, version) for version in versions for mark in (MARK, primary_mark) if mark]
    return found + [Rule(FROM_POD, table, block, EVERYWHERE[block.version]) for block, table in blocks]


def _marked(mark: int, version: int) -> Rule:
    return Rule(TO_PRIMARY, MAIN, EVERYWHERE[version], EVERYWHERE[version], mark)


def _routes(there: Iterable[Interface], observed: Observed) -> Iterator[Route]:
    for each in there:
        ifindex = observed.links[each.mac].ifindex
        for gateway in each.gateways:
            yield Route(TABLES + ifindex, ifindex, ip_network(gateway))
            yield Route(TABLES + ifindex, ifindex, EVERYWHERE[gateway.version], gateway)


# --- the nft table


@dataclass(frozen=True, slots=True)
class Chain:
    hook: str
    rules: tuple[str, ...]


def nft_chains(desired: Desired, there: Iterable[Interface], observed: Observed) -> dict[str, Chain]:
    """By name; none where no block is wired."""
    there = tuple(there)
    blocks = [block for each in there for block in each.blocks]
    if not blocks or observed.primary is None:
        return {}
    primary = observed.primary.name
    outside = ", ".join(f'"{name}"' for name in sorted({primary, *(observed.links[each.mac].name for each in there)}))
    marks = (
        f'iifname "{primary}" fib daddr type local ct state new ct mark set ct mark or {MARK:#x}',
        f"iifname != {{ {outside} }} ct mark and {MARK:#x} == {MARK:#x} meta mark set meta mark or {MARK:#x}",
    )
    chains = {"prerouting": Chain("type filter hook prerouting priority mangle", marks)}
    blocks4 = ", ".join(str(block) for block in blocks if block.version == 4)
    if desired.untranslated and blocks4:
        chains |= _translation(desired, f"ip saddr {{ {blocks4} }}", primary)
    if closed := tuple(_closed(desired.metadata, blocks)):
        chains["forward"] = Chain("type filter hook forward priority filter", closed)
    return chains


def _translation(desired: Desired, of_pods: str, primary: str) -> dict[str, Chain]:
    """Of what pods begin, once a Service's address has become that of its endpoint: until then nobody knows where it
    goes. What others begin with a pod goes back as it came. What a gateway translates bears a mark of its own.

    The first packet of a connection, when it is not confirmed yet (nf_conntrack_core.c), decides for all of it, as with
    the kernel's translation: one that is open when the networks change would die of another source. What the kernel
    translates and bears no mark gets it anew: it is of an earlier agent, or somebody has cleared it.
    """
    inside = ", ".join(map(str, (*desired.untranslated, MULTICAST)))
    others = f" meta mark and {desired.primary_mark:#x} == 0" if desired.primary_mark else ""
    outbound = f"{of_pods} ip daddr != {{ {inside} }} fib daddr type != local"
    begun = f"{outbound} ct status & confirmed == 0{others}"
    running = f"{outbound} ct direction original ct status snat ct mark and {MARK:#x} == 0{others}"
    set_mark = f"ct mark set ct mark or {MARK:#x} meta mark set meta mark or {MARK:#x}"
    translated = f'{of_pods} oifname "{primary}" meta mark and {MARK:#x} == {MARK:#x} masquerade fully-random'
    return {
        "outside": Chain(
            "type filter hook prerouting priority dstnat + 1",
            (f"{running} {set_mark}", f"{begun} {set_mark}"),
        ),
        "postrouting": Chain("type nat hook postrouting priority srcnat", (translated,)),
    }


def _closed(metadata: Iterable[IPAddress], blocks: Iterable[IPNetwork]) -> Iterator[str]:
    for address in metadata:
        mine = ", ".join(str(block) for block in blocks if block.version == address.version)
        family = "ip" if address.version == 4 else "ip6"
        if mine:
            yield f"{family} saddr {{ {mine} }} {family} daddr {address} counter drop"


def digests(chains: Mapping[str, Chain]) -> tuple[str, ...]:
    """Of each rule, in the order in which a table that is as it was loaded has them as comments."""
    return tuple(_digest(name, rule) for name, chain in chains.items() for rule in chain.rules)


def _digest(chain: str, rule: str) -> str:
    return sha256(f"{chain} {rule}".encode()).hexdigest()[:16]


def transaction(chains: Mapping[str, Chain]) -> str:
    """For nft: the table anew, at once."""
    table = f"table inet {NFT_TABLE}"
    lines = [table, f"delete {table}", f"{table} {{"]
    for name, chain in chains.items():
        lines += [f"    chain {name} {{", f"        {chain.hook}; policy accept;"]
        lines += [*(f'        {rule} comment "{_digest(name, rule)}"' for rule in chain.rules), "    }"]
    return "\n".join([*lines, "}"]) + "\n"
