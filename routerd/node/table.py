"""Paths by prefix, folded from what each service, group or node says, and kept from round to round. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple, get_args

from bgp.path import ORIGINS, Path, normal_communities
from routerd.memo import by_identity, differing
from routerd.model import EndpointSlice, ExportRule, Gets, IPAddress, IPNetwork
from routerd.refs import EGRESS, NODE, SERVICE, Ref


class Wanted(NamedTuple):
    """A path and its owner."""

    path: Path
    owner: Ref
    peers: tuple[str, ...] = ()  # to whom alone, by label; () = to all


class Audience(NamedTuple):
    """Peers that get the same. `label` is that of one which advertisements name, "" of those that none does."""

    label: str = ""
    gets: tuple[Gets, ...] = get_args(Gets)  # beside what names it
    export: tuple[ExportRule, ...] = ()


EVERYBODY = Audience()
_KIND: Mapping[str, Gets] = {SERVICE: "services", NODE: "pod-cidrs", EGRESS: "egress"}


def heard(audience: Audience, wanted: Sequence[Wanted]) -> Sequence[Wanted]:
    """What of it such a peer gets."""
    if audience.gets == EVERYBODY.gets and not audience.export and not any(each.peers for each in wanted):
        return wanted
    meant = [
        each
        for each in wanted
        if (audience.label in each.peers if each.peers else _KIND[each.owner.kind] in audience.gets)
    ]
    return _exported(audience.export, meant) if audience.export else meant


def _exported(rules: Sequence[ExportRule], wanted: Sequence[Wanted]) -> list[Wanted]:
    return [kept for each in wanted if (kept := _by_rules(rules, each)) is not None]


def _by_rules(rules: Sequence[ExportRule], wanted: Wanted) -> Wanted | None:
    """As it goes out; None = it does not."""
    for rule in rules:
        if not rule.takes(wanted.path.prefix, _KIND[wanted.owner.kind]):
            continue
        if rule.action == "reject":
            return None
        if rule.communities:
            communities = normal_communities((*wanted.path.communities, *rule.communities))
            wanted = wanted._replace(path=replace(wanted.path, communities=communities))
        if rule.action == "accept":
            return wanted
    return wanted


CACHED = 1 << 17  # addresses; 20 MB when full


@lru_cache(maxsize=CACHED)  # building a network costs ten times more than the look-up, and addresses stay
def prefix_of(address: IPAddress, length: int) -> IPNetwork:
    """The network of `length` that `address` lies in. From a number: from an address it would go through text."""
    number = int(address) >> (address.max_prefixlen - length) << (address.max_prefixlen - length)
    return IPv4Network((number, length)) if address.version == 4 else IPv6Network((number, length))


Backends = tuple[str, int]  # "namespace/name" of a service, and IP version of endpoints


@dataclass(slots=True)
class Table:
    """`paths` and `owners` that were given out stay as they were: a change makes others."""

    paths: Mapping[IPNetwork, Path] = field(default_factory=dict)
    owners: Mapping[IPNetwork, tuple[Ref, ...]] = field(default_factory=dict)
    aggregates: frozenset[IPNetwork] = frozenset()  # those of `paths` that hold more than the address of a Service
    _said: dict[str, Sequence[Wanted]] = field(default_factory=dict)
    _sayers: dict[IPNetwork, set[str]] = field(default_factory=dict)

    def put(self, said: Mapping[str, Sequence[Wanted]]) -> None:
        """What these say now; nothing at all is an empty sequence."""
        touched: set[IPNetwork] = set()
        for sayer, wanted in said.items():
            if self._said.get(sayer, ()) == wanted:
                continue
            for path, *_ in self._said.pop(sayer, ()):
                self._sayers[path.prefix].discard(sayer)
                touched.add(path.prefix)
            for path, *_ in wanted:
                self._sayers.setdefault(path.prefix, set()).add(sayer)
                touched.add(path.prefix)
            if wanted:
                self._said[sayer] = wanted
        if touched:
            self._fold(touched)

    def _fold(self, touched: set[IPNetwork]) -> None:
        paths, owners = dict(self.paths), dict(self.owners)
        for prefix in touched:
            sayers = self._sayers[prefix]
            wanted = [each for sayer in sayers for each in self._said[sayer] if each.path.prefix == prefix]
            if not wanted:
                del self._sayers[prefix]
                paths.pop(prefix, None)
                owners.pop(prefix, None)
                continue
            paths[prefix] = reduce(_merged, (each.path for each in wanted))
            owners[prefix] = tuple(sorted({each.owner for each in wanted}))
        self.paths, self.owners = paths, owners
        wide = {prefix for prefix in touched if prefix.prefixlen < prefix.max_prefixlen}
        if wide:
            of_services = {p for p in wide if any(ref.kind == SERVICE for ref in owners.get(p, ()))}
            self.aggregates = self.aggregates - wide | of_services


def _merged(one: Path, other: Path) -> Path:
    """One prefix wanted twice is one path, whatever the order: the better preference, all communities."""
    if one == other:
        return one
    local_prefs = [p.local_pref for p in (one, other) if p.local_pref is not None]
    meds = [p.med for p in (one, other) if p.med is not None]
    return replace(
        one,
        local_pref=max(local_prefs, default=None),
        med=min(meds, default=None),
        prepend=min(one.prepend, other.prepend),
        communities=normal_communities(one.communities + other.communities),
        origin=min(one.origin, other.origin, key=ORIGINS.index),
    )


@dataclass(slots=True)
class Endpoints:
    """Where kube-proxy sends what it takes for an address of a service: to endpoints of the address' own family.

    It takes ready ones; where there are none, those that serve and terminate (KEP-1669): with externalTrafficPolicy
    Local on each node, else in the cluster. Either way a node, or a service, has one to send to if it has one of both.
    """

    usable: Mapping[Backends, frozenset[str]] = field(default_factory=dict)  # nodes, "" = of no node
    _slices: Mapping[int, EndpointSlice] = field(default_factory=dict)
    _by_service: dict[str, dict[int, EndpointSlice]] = field(default_factory=dict)
    _last: Sequence[EndpointSlice] = ()

    def slices_of(self, service: str) -> list[EndpointSlice]:
        """Those of the service "namespace/name"."""
        return [*self._by_service.get(service, {}).values()]

    def take(self, slices: Sequence[EndpointSlice]) -> set[str]:
        """The services of which something may be another."""
        if slices is self._last:
            return set()
        before, now = self._slices, by_identity(slices)
        put, gone = differing(before, now)
        for number in gone:
            del self._by_service[before[number].service_key][number]
        for number in put:
            self._by_service.setdefault(now[number].service_key, {})[number] = now[number]
        touched = {before[number].service_key for number in gone} | {now[number].service_key for number in put}
        usable = dict(self.usable)
        for key in touched:
            self._renew(usable, key)
        self.usable, self._slices, self._last = usable, now, slices
        return touched

    def _renew(self, usable: dict[Backends, frozenset[str]], key: str) -> None:
        slices = self._by_service[key]
        if not slices:
            del self._by_service[key]
        nodes: dict[int, set[str]] = {4: set(), 6: set()}
        for endpoint in (endpoint for each in slices.values() for endpoint in each.endpoints):
            if endpoint.addresses and (endpoint.ready or endpoint.draining):
                nodes[endpoint.addresses[0].version].add(endpoint.node)
        for version, found in nodes.items():
            usable.pop((key, version), None)
            if found:
                usable[key, version] = frozenset(found)
