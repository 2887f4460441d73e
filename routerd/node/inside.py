"""What counts as in the cluster: destinations that never leave through a gateway. Pure.

Operators say it (configuration), nodes (addresses, pod CIDRs, their pods) and allocators (ClusterIPs, VIPs, the status
of a service). What users write, such as `externalIPs` of a service, exempts nothing: by it, whoever may write services
would take a destination out of another team's policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from egress.policy import VERSIONS
from routerd.model import Allocations, EndpointSlice, IPAddress, IPNetwork, Pod, Snapshot
from routerd.node.announce import CACHED
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
    return bool(pod.addresses) and not pod.host_network and not pod.finished


def in_cluster(snapshot: Snapshot, inside: Inside) -> frozenset[IPNetwork]:
    """Networks and hosts of the cluster."""
    networks, pods = _networks(snapshot, inside), (snapshot.pods or {}).values()
    hosts = _numbers((*_hosts(snapshot), *inside.own, *_external(snapshot, inside.external)))
    for version, numbers in _outside(_pod_addresses(pods), networks).items():
        hosts[version] |= numbers
    return frozenset(networks).union(_host(version, number) for version in VERSIONS for number in hosts[version])


def outside(addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]) -> tuple[IPAddress, ...]:
    """Those of `addresses` that lie in none of the networks."""
    wanted = tuple(addresses)
    numbers = _outside(wanted, networks)
    return tuple(address for address in wanted if int(address) in numbers[address.version])


def strays(pods: Iterable[Pod], snapshot: Snapshot, inside: Inside) -> tuple[IPAddress, ...]:
    """Addresses of pods in no network that every node knows, sorted: with CNIs whose pools are no nodes' pod CIDRs."""
    found = outside(_pod_addresses(pods), _networks(snapshot, inside))
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


def _networks(snapshot: Snapshot, inside: Inside) -> set[IPNetwork]:
    nodes = (snapshot.nodes or {}).values()
    return {*inside.cidrs, *snapshot.service_cidrs, *(network for node in nodes for network in node.pod_cidrs)}


def _pod_addresses(pods: Iterable[Pod]) -> Iterator[IPAddress]:
    return (address for pod in pods if is_steered(pod) for address in pod.addresses)


def _hosts(snapshot: Snapshot) -> Iterator[IPAddress]:
    for node in (snapshot.nodes or {}).values():
        yield from node.addresses
    for service in (snapshot.services or {}).values():
        yield from snapshot.cluster_ips(service)
        if service.type == "LoadBalancer":
            yield from service.status_ips  # a controller's word: users may not write a status
    allocations = snapshot.allocations or Allocations()
    for allocation in allocations.services:
        yield from allocation.addresses
    for further in allocations.nodes:
        yield from further.addresses
    for endpoint_slice in filter(_is_api_servers, snapshot.endpoint_slices or ()):
        yield from (address for endpoint in endpoint_slice.endpoints for address in endpoint.addresses)


def _is_api_servers(each: EndpointSlice) -> bool:
    """The API server writes one slice, of the service's name; another one with its label is somebody else's."""
    is_theirs = each.name == each.service or not each.origin.is_api
    return is_theirs and (each.namespace, each.service) == API_SERVER


def _external(snapshot: Snapshot, allowed: tuple[IPNetwork, ...]) -> tuple[IPAddress, ...]:
    if not allowed:
        return ()
    named = external_ips(snapshot)
    return tuple(named.keys() - {*outside(named, allowed)})


def _numbers(addresses: Iterable[IPAddress]) -> dict[int, set[int]]:
    """By version, as numbers: hashing an address object is dear."""
    found: dict[int, set[int]] = {version: set() for version in VERSIONS}
    for address in addresses:
        found[address.version].add(int(address))
    return found


def _outside(addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]) -> dict[int, set[int]]:
    """Numbers by version of those that lie in none of the networks."""
    heads: dict[int, dict[int, set[int]]] = {version: {} for version in VERSIONS}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        heads[network.version].setdefault(shift, set()).add(int(network.network_address) >> shift)
    return {
        version: {n for n in numbers if not any(n >> shift in each for shift, each in heads[version].items())}
        for version, numbers in _numbers(addresses).items()
    }


@lru_cache(maxsize=CACHED)
def _host(version: int, number: int) -> IPNetwork:
    return IPv4Network((number, 32)) if version == 4 else IPv6Network((number, 128))
