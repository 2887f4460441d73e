"""What counts as in the cluster, and never leaves through a gateway; which Services lead out of it. Pure.

Operators say it (configuration), nodes (addresses, pod CIDRs, their pods) and allocators (ClusterIPs, VIPs, the status
of a service). What users write, such as `externalIPs` of a service, exempts nothing: by it, whoever may write services
would take a destination out of another team's policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from ipaddress import ip_network
from itertools import chain

from egress.entries import OF_THE_LINK
from egress.policy import Detour, End
from ipam.pool import address_of, key_of
from routerd.claims import Came, Hosts
from routerd.memo import Last, PerObject, Tally
from routerd.model import (
    EndpointSlice,
    IPAddress,
    IPNetwork,
    Node,
    NodeAddresses,
    Pod,
    Service,
    ServiceAllocation,
    ServicePort,
    Snapshot,
)
from routerd.node.table import CACHED
from routerd.refs import Ref

API_SERVER = ("default", "kubernetes")  # the service whose endpoints are the API servers, outside the cluster or not


@dataclass(frozen=True, slots=True)
class Inside:
    """What the store does not tell."""

    cidrs: tuple[IPNetwork, ...] = ()  # cluster-cidrs
    external: tuple[IPNetwork, ...] = ()  # egress.in-cluster: where `externalIPs` of services count
    own: tuple[IPAddress, ...] = ()  # on this node's interfaces


def is_steered(pod: Pod) -> bool:
    """Pods with an address of their own. A finished pod's address may already be another pod's."""
    return bool(pod.addresses) and may_be_steered(pod)


def may_be_steered(pod: Pod) -> bool:
    """Also before it has an address."""
    return not pod.host_network and not pod.finished


@dataclass(frozen=True, slots=True)
class Index:
    """What is found in a snapshot without looking at everything."""

    of_api_server: Sequence[EndpointSlice]
    allocated: Mapping[str, ServiceAllocation]  # by service


class Known:
    """The networks and hosts of the cluster, kept from snapshot to snapshot (see `routerd.memo`)."""

    def __init__(self, service_cidrs: tuple[IPNetwork, ...] = ()) -> None:
        self.service_cidrs = service_cidrs
        self.hosts = Hosts(service_cidrs)
        self._allocated: Tally[ServiceAllocation, int] = Tally(lambda each: map(key_of, each.addresses))
        self._external: Tally[Service, int] = Tally(lambda each: map(key_of, each.external_ips))
        self._sets: dict[str, frozenset[int]] = {}  # what is small, by what it is
        self._kinds: Counter[int] = Counter()  # hosts, with of how many kinds each is
        self._read_networks: Last[frozenset[IPNetwork]] = Last()
        self._networks: frozenset[IPNetwork] = frozenset()
        self._hosts: frozenset[IPNetwork] = frozenset()
        self._whole: frozenset[IPNetwork] = frozenset()

    def update(self, snapshot: Snapshot, inside: Inside, index: Index | None = None) -> frozenset[IPNetwork]:
        """The same value again where nothing changed. `index`: of the snapshot, None = there is none."""
        services, pods = self.hosts.take(snapshot)
        networks = self._read_networks(_networks, snapshot.service_cidrs, snapshot.nodes, inside.cidrs)
        strays = self._strays(pods, networks)
        came = [
            services,
            self._of_allocations(snapshot, index.allocated if index else None),
            strays,
            self._of_externals(snapshot, inside.external),
        ]
        came.append(
            self._changed(
                "others",
                frozenset(map(key_of, (*_hosts(snapshot, index.of_api_server if index else None), *inside.own))),
            )
        )
        if self._count(came) or networks != self._networks:
            self._whole = networks | self._hosts
        self._networks = networks
        return self._whole

    def _count(self, came: Iterable[Came]) -> bool:
        """Whether the hosts are others."""
        kinds, touched = self._kinds, set[int]()
        for added, removed in came:
            kinds.update(added)
            kinds.subtract(removed)
            touched |= added | removed
        if not touched:
            return False
        gone = {number for number in touched if not kinds[number]}
        for number in gone:
            del kinds[number]
        hosts = (self._hosts - set(map(_host, gone))) | set(map(_host, touched - gone))
        is_same, self._hosts = hosts == self._hosts, hosts
        return not is_same

    def _changed(self, kind: str, now: frozenset[int]) -> Came:
        before, self._sets[kind] = self._sets.get(kind, frozenset()), now
        return set(now - before), set(before - now)

    def outside(self, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of `addresses` that are not in the cluster of the last snapshot."""
        return tuple(each for each in outside(addresses, self._networks) if not self._kinds[key_of(each)])

    def strays(self, pods: Iterable[Pod]) -> tuple[IPAddress, ...]:
        """See `strays`: in the networks of the last snapshot."""
        return _strays(pods, self._networks)

    def _of_allocations(self, snapshot: Snapshot, allocated: Mapping[str, ServiceAllocation] | None) -> Came:
        services = snapshot.allocations.services if snapshot.allocations else ()
        return self._allocated.update({each.service: each for each in services} if allocated is None else allocated)

    def _strays(self, came: Came, networks: frozenset[IPNetwork]) -> Came:
        """Pods that lie in none of the networks."""
        before = self._sets.get("strays", frozenset())
        if networks != self._networks:
            return self._changed("strays", _outside(self.hosts.pods.values, networks))
        return self._changed("strays", (before - came[1]) | _outside(came[0], networks))

    def _of_externals(self, snapshot: Snapshot, allowed: tuple[IPNetwork, ...]) -> Came:
        if not allowed:
            return set(), set()
        self._external.update(snapshot.services or {})
        named = frozenset(self._external.values)
        return self._changed("external", named - _outside(named, allowed))


def in_cluster(
    snapshot: Snapshot,
    inside: Inside,
    known: Known | None = None,
    index: Index | None = None,
) -> frozenset[IPNetwork]:
    """Networks and hosts of the cluster. `index`: of the snapshot."""
    return (known or Known(snapshot.service_cidrs)).update(snapshot, inside, index)


def outside(addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]) -> tuple[IPAddress, ...]:
    """Those of `addresses` that lie in none of the networks."""
    wanted = tuple(addresses)
    numbers = _outside(map(key_of, wanted), networks)
    return tuple(address for address in wanted if key_of(address) in numbers)


def strays(pods: Iterable[Pod], snapshot: Snapshot, inside: Inside) -> tuple[IPAddress, ...]:
    """Addresses of pods in no network that every node knows, sorted: with CNIs whose pools are no nodes' pod CIDRs."""
    return _strays(pods, _networks(snapshot.service_cidrs, snapshot.nodes, inside.cidrs))


def _strays(pods: Iterable[Pod], networks: Iterable[IPNetwork]) -> tuple[IPAddress, ...]:
    found = outside(_pod_addresses(pods), networks)
    return tuple(sorted(found, key=lambda address: (address.version, int(address))))


def external_ips(snapshot: Snapshot) -> dict[IPAddress, Ref]:
    """The services that name them."""
    return {a: service.ref for service in (snapshot.services or {}).values() for a in service.external_ips}


def endpoints(snapshot: Snapshot) -> dict[IPAddress, Ref]:
    """What ClusterIPs lead to, with the service."""
    services = snapshot.services or {}
    return {
        address: services[each.service_key].ref
        for each in snapshot.endpoint_slices or ()
        if each.service_key in services and services[each.service_key].cluster_ips
        for endpoint in each.endpoints
        for address in endpoint.addresses
    }


def _networks(
    service_cidrs: Iterable[IPNetwork], nodes: Mapping[str, Node] | None, cidrs: Iterable[IPNetwork]
) -> frozenset[IPNetwork]:
    return frozenset(
        (*cidrs, *service_cidrs, *(network for node in (nodes or {}).values() for network in node.pod_cidrs))
    )


def _pod_addresses(pods: Iterable[Pod]) -> Iterator[IPAddress]:
    return (address for pod in pods if is_steered(pod) for address in pod.addresses)


def _hosts(snapshot: Snapshot, of_api_server: Iterable[EndpointSlice] | None) -> Iterator[IPAddress]:
    """Those that are few."""
    for node in (snapshot.nodes or {}).values():
        yield from node.addresses
    for further in snapshot.allocations.nodes if snapshot.allocations else ():
        yield from further.addresses
    slices = snapshot.endpoint_slices or () if of_api_server is None else of_api_server
    for endpoint_slice in filter(_is_api_servers, slices):
        yield from (address for endpoint in endpoint_slice.endpoints for address in endpoint.addresses)


def _is_api_servers(each: EndpointSlice) -> bool:
    """The API server writes one slice, of the service's name; another one with its label is somebody else's."""
    is_theirs = each.name == each.service or not each.origin.is_api
    return is_theirs and (each.namespace, each.service) == API_SERVER


def _outside(numbers: Iterable[int], networks: Iterable[IPNetwork]) -> frozenset[int]:
    """Those numbers (`key_of`) that lie in none of the networks."""
    wanted = tuple(numbers)
    if not wanted:
        return frozenset()
    heads: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        heads.setdefault(shift, set()).add(key_of(network.network_address) >> shift)
    return frozenset(n for n in wanted if not any(n >> shift in each for shift, each in heads.items()))


@lru_cache(maxsize=CACHED)
def _host(number: int) -> IPNetwork:
    return ip_network(address_of(number))


# --- Services that lead out of the cluster, by another node than the pod's own
#
# What a pod sends to a NodePort of another node is translated there: where the Service's endpoints are outside, it
# leaves that node with that node's address, or with the pod's. The same goes for an address of the Service that the
# pod's own node does not translate. An endpoint may be an address or NodePort of another Service, which leads on.
# Anybody may write EndpointSlices, so what they say of themselves counts for nothing: an address is a pod's, or another
# host's of the cluster, or it is outside.

Strangers = tuple[IPAddress, ...]  # endpoints that lie in no pod CIDR
Entry = tuple[str, ServicePort, int]  # a service, a port of it, IP version
Leads = Mapping[Entry, frozenset[End]]  # to where outside


@dataclass(slots=True)
class Detours:
    """Kept from snapshot to snapshot (see `routerd.memo`): nearly all endpoints are pods', and are looked at once."""

    _pod_cidrs: frozenset[IPNetwork] = frozenset()
    _strangers: PerObject[EndpointSlice, Strangers] = field(
        default_factory=lambda: PerObject(partial(_strangers, networks=()))
    )

    def find(self, snapshot: Snapshot, known: Known, nodes: frozenset[IPAddress]) -> frozenset[Detour]:
        """`known`: has known the snapshot's networks; `nodes`: the addresses of nodes."""
        pod_cidrs = frozenset(network for node in (snapshot.nodes or {}).values() for network in node.pod_cidrs)
        if pod_cidrs != self._pod_cidrs:
            self._pod_cidrs, self._strangers = pod_cidrs, PerObject(partial(_strangers, networks=pod_cidrs))
        services, slices = snapshot.services or {}, snapshot.endpoint_slices or ()
        suspects = [
            _Suspect(services[each.service_key], each.ports, found)
            for each, found in zip(slices, self._strangers(slices), strict=True)
            if found and each.service_key in services
        ]
        leads = _straight(suspects, known)
        return frozenset(_detours(_onward(leads, suspects, snapshot, nodes), snapshot)) if leads else frozenset()


def _strangers(each: EndpointSlice, networks: Iterable[IPNetwork]) -> Strangers:
    return outside((address for endpoint in each.endpoints for address in endpoint.addresses), networks)


@dataclass(frozen=True, slots=True)
class _Suspect:
    """Endpoints of a Service that are no pods of a pod CIDR."""

    service: Service
    ports: tuple[ServicePort, ...]
    addresses: Strangers

    def entries(self) -> Iterator[tuple[Entry, End]]:
        """What leads to which of them. Endpoints without ports may have any."""
        for port in self.service.ports:
            same = [each.port for each in self.ports if (each.protocol, each.name) == (port.protocol, port.name)]
            for number in same if self.ports else (0,):
                for address in self.addresses:
                    yield (self.service.key, port, address.version), (address, number)


def _straight(suspects: Iterable[_Suspect], known: Known) -> Leads:
    found: dict[Entry, frozenset[End]] = {}
    for suspect in suspects:
        away = {*outside(known.outside(suspect.addresses), OF_THE_LINK)}
        for entry, end in suspect.entries() if away else ():
            if end[0] in away:
                found[entry] = found.get(entry, frozenset()) | {end}
    return found


def _onward(leads: Leads, suspects: Iterable[_Suspect], snapshot: Snapshot, nodes: frozenset[IPAddress]) -> Leads:
    """With those that lead to these."""
    while True:
        ways = {
            (detour.protocol, address, detour.port): detour.ends
            for detour in _detours(leads, snapshot)
            for address in detour.addresses or nodes
            if address.version == detour.version
        }
        more: dict[Entry, frozenset[End]] = {}
        for entry, end in (each for suspect in suspects for each in suspect.entries()):
            ends = more.get(entry) or leads.get(entry, frozenset())
            if not (further := ways.get((entry[1].protocol, *end), frozenset())) <= ends:
                more[entry] = ends | further
        if not more:
            return leads
        leads = {**leads, **more}


def _detours(leads: Leads, snapshot: Snapshot) -> Iterator[Detour]:
    allocated = {
        each.service: each.addresses for each in (snapshot.allocations.services if snapshot.allocations else ())
    }
    for (key, port, version), ends in leads.items():
        service = (snapshot.services or {})[key]
        own = (*service.cluster_ips, *service.status_ips, *service.external_ips, *allocated.get(key, ()))
        addresses = frozenset(address for address in own if address.version == version)
        if addresses:
            yield Detour(port.protocol, port.port, ends, addresses)
        if port.node_port:
            yield Detour(port.protocol, port.node_port, ends)


def node_addresses(nodes: Mapping[str, Node], further: Iterable[NodeAddresses]) -> frozenset[IPAddress]:
    """Of every node; `further`: those that no Node object tells."""
    told = (*(node.addresses for node in nodes.values()), *(each.addresses for each in further))
    return frozenset(chain.from_iterable(told))
