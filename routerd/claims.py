"""Whose an address is already. Pure: a snapshot and what nodes say of their networks in, words for people out.

A gateway blackholes and announces an egress IP, so one that is somebody's is taken away from them: a peer's ends its
session. Only what operators, nodes and allocators say counts. A service's `externalIPs` are a user's word: by them one
team could take an egress IP from another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network

from ipam.pool import key_of
from routerd.memo import Last, Tally
from routerd.model import IPAddress, IPNetwork, Node, Pod, Service, Snapshot
from routerd.refs import POD, Ref

TAKEN = "AddressTaken"  # reason of a refusal
# No host's for anybody: RFC 6890 and RFC 1112. Ranges for documentation are as good as others.
RESERVED: tuple[tuple[IPNetwork, str], ...] = tuple(
    (ip_network(text), f"{words} ({text})")
    for text, words in (
        ("0.0.0.0/8", "an address of no network"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "in a reserved range"),
        ("::/128", "an address of no network"),
        ("::1/128", "a loopback address"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)


def is_reserved(address: IPAddress) -> bool:
    """Whether no host can have it."""
    return bool(_reserved().found((address,)))


def claims(
    addresses: Iterable[IPAddress],
    snapshot: Snapshot,
    networks: Mapping[str, tuple[IPNetwork, ...]],
    held: Collection[IPAddress] = (),
    known: Hosts | None = None,
    of_cloud: Collection[IPNetwork] = (),
) -> dict[IPAddress, str]:
    """Those of `addresses` that are somebody's, with words for whose: "the address of peer/tor".

    `networks`: by node, what its interfaces are in and its next hops. `held`: addresses on a node's interface with
    which that node may leave; no node has a claim on them. `known` has taken the snapshot, and spares a walk over it.
    `of_cloud`: egress IPs in these are a cloud's to give, so that the networks of nodes hold them by nature.
    """
    wanted = set(addresses)
    found: dict[IPAddress, str] = {}
    if not wanted:
        return found
    asked = wanted if known is None else set(filter(known.may_have, wanted))
    for address, words in hosts(asked, snapshot) if asked else ():
        found.setdefault(address, words)
    own = known.own_networks(networks) if known is not None else _own_ranges(networks)
    given = {each for each in wanted if any(each.version == one.version and each in one for one in of_cloud)}
    of_nodes = dict(_of_nodes(wanted - {*held}, snapshot, own, given))
    of_cluster = known.ranges(snapshot) if known is not None else Ranges.of(ranges(snapshot))
    return {**of_nodes, **of_cluster.found(wanted), **found, **_reserved().found(wanted)}


Came = tuple[set[int], set[int]]  # numbers (`ipam.pool.key_of`) that nobody had before, and that nobody has any more


class Hosts:
    """Addresses of peers, services and pods that count, kept from snapshot to snapshot (see `routerd.memo`)."""

    def __init__(self, service_cidrs: tuple[IPNetwork, ...] = ()) -> None:
        """`service_cidrs`: those of the snapshots, which are configuration."""
        self._judge = Snapshot(service_cidrs=service_cidrs)
        self.services: Tally[Service, int] = Tally(self._of_service)
        self.pods: Tally[Pod, int] = Tally(_of_pod)
        self._peers: frozenset[int] = frozenset()
        self._ranges: Last[Ranges] = Last()
        self._own: Last[Ranges] = Last()

    def ranges(self, snapshot: Snapshot) -> Ranges:
        """Networks of which the cluster gives addresses itself."""
        return self._ranges(_ranges, snapshot.service_cidrs, snapshot.nodes)

    def own_networks(self, networks: Mapping[str, tuple[IPNetwork, ...]]) -> Ranges:
        """What nodes say of their networks."""
        return self._own(_own_ranges, networks)

    def take(self, snapshot: Snapshot) -> tuple[Came, Came]:
        """What changed of services and of pods."""
        peers = snapshot.bgp.peers if snapshot.bgp else ()
        self._peers = frozenset(key_of(address) for peer in peers for address in peer.addresses)
        return self.services.update(snapshot.services or {}), self.pods.update(snapshot.pods or {})

    def may_have(self, address: IPAddress) -> bool:
        """Whether it is one of them."""
        number = key_of(address)
        return number in self.services.values or number in self.pods.values or number in self._peers

    def _of_service(self, service: Service) -> Iterator[int]:
        yield from map(key_of, self._judge.cluster_ips(service))
        if _balanced(service):
            yield from map(key_of, service.status_ips)  # a controller's word: users may not write a status


def _of_pod(pod: Pod) -> Iterator[int]:
    """A finished pod's address may already be another pod's."""
    return iter(()) if pod.host_network or pod.finished else map(key_of, pod.addresses)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Networks with words, indexed: there are as many as nodes, and an address is asked of all."""

    heads: Mapping[tuple[int, int], Mapping[int, tuple[int, str]]] = field(default_factory=dict)
    """By version and length of the host part; by the rest of the address, the place in the order and the words."""

    @classmethod
    def of(cls, ranges: Iterable[tuple[IPNetwork, str]]) -> Ranges:
        """Of several that hold an address the first one counts."""
        heads: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}
        for place, (network, words) in enumerate(ranges):
            shift = network.max_prefixlen - network.prefixlen
            by_head = heads.setdefault((network.version, shift), {})
            by_head.setdefault(int(network.network_address) >> shift, (place, words))
        return cls(heads)

    def words(self, address: IPAddress, *, alone: bool = False) -> str:
        """ "" = none holds it. `alone`: only what is no more than this address counts."""
        number, version = int(address), address.version
        found = [
            by_head[number >> shift]
            for (family, shift), by_head in self.heads.items()
            if family == version and number >> shift in by_head and not (alone and shift)
        ]
        return min(found)[1] if found else ""

    def found(self, wanted: Iterable[IPAddress], alone: Collection[IPAddress] = ()) -> dict[IPAddress, str]:
        """Those of `wanted` that lie in one; of those in `alone` that are one."""
        return {address: words for address in wanted if (words := self.words(address, alone=address in alone))}


@cache
def _reserved() -> Ranges:
    return Ranges.of(RESERVED)


def _balanced(service: Service) -> bool:
    return service.type == "LoadBalancer"


def hosts(
    wanted: Container[IPAddress], snapshot: Snapshot, balanced: Callable[[Service], bool] = _balanced
) -> Iterator[tuple[IPAddress, str]]:
    """Addresses of peers, services and pods that are `wanted`. `balanced`: whose load balancer's addresses count."""
    for peer in snapshot.bgp.peers if snapshot.bgp else ():
        for address in peer.addresses:
            if address in wanted:
                yield address, f"the address of {peer.ref}"
    for service in (snapshot.services or {}).values():
        yield from of_service(wanted, snapshot, service, balanced)
    for pod in (snapshot.pods or {}).values():
        if not pod.host_network and not pod.finished:
            for address in pod.addresses:
                if address in wanted:
                    yield address, f"the address of {Ref(POD, pod.namespace, pod.name)}"


def of_service(
    wanted: Container[IPAddress], snapshot: Snapshot, service: Service, balanced: Callable[[Service], bool]
) -> Iterator[tuple[IPAddress, str]]:
    """Addresses of a service that are `wanted`."""
    for address in snapshot.cluster_ips(service):
        if address in wanted:
            yield address, f"the ClusterIP of {service.ref}"
    for address in service.status_ips if balanced(service) else ():
        if address in wanted:
            yield address, f"the load balancer's address of {service.ref}"


def ranges(snapshot: Snapshot) -> Iterator[tuple[IPNetwork, str]]:
    """Networks of which the cluster gives addresses itself."""
    for cidr in snapshot.service_cidrs:
        yield cidr, f"in the service CIDR {cidr}"
    for node in (snapshot.nodes or {}).values():
        for cidr in node.pod_cidrs:
            yield cidr, f"in the pod CIDR {cidr} of {node.ref}"


def _ranges(service_cidrs: tuple[IPNetwork, ...], nodes: Mapping[str, Node] | None) -> Ranges:
    return Ranges.of(ranges(Snapshot(service_cidrs=service_cidrs, nodes=nodes)))


def _own_ranges(networks: Mapping[str, tuple[IPNetwork, ...]]) -> Ranges:
    return Ranges.of(_own_networks(networks))


def _own_networks(networks: Mapping[str, tuple[IPNetwork, ...]]) -> Iterator[tuple[IPNetwork, str]]:
    """A next hop is more than the network that it is in, and stands behind it in what a node says."""
    for name, each in sorted(networks.items()):
        for network in reversed(each):
            what = "a next hop" if network.prefixlen == network.max_prefixlen else f"in the network {network}"
            yield network, f"{what} of node/{name}"


def _of_nodes(
    wanted: set[IPAddress], snapshot: Snapshot, own: Ranges, given: Collection[IPAddress]
) -> Iterator[tuple[IPAddress, str]]:
    """The last word counts: an address is more than the network that it is in. Of several nodes the first by name."""
    yield from own.found(wanted, given).items()
    for node in (snapshot.nodes or {}).values():
        for address in wanted.intersection(node.addresses):
            yield address, f"an address of {node.ref}"
