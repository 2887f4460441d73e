"""What of the pools is somebody's already: a node's, a peer's, a network's own, the cluster's. Pure.

Other addresses of a network that nodes are in may be given: who makes a pool of them means it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from ipam.pool import IPAddress, IPNetwork, key_of
from ipam.taken import Range, Taken
from routerd.claims import RESERVED, hosts, of_service, ranges
from routerd.cluster.requests import is_ours
from routerd.memo import Derived, Last
from routerd.model import AddressPool, Allocations, Node, NodeReport, Refusal, Service, Snapshot
from routerd.refs import Ref

Single = tuple[IPAddress, str]  # an address, and words for whose it is
OVER_CLUSTER = "PoolOverCluster"  # reason of a refusal


@dataclass(frozen=True, slots=True)
class PoolSpace:
    """Every block of every pool: nearly all addresses lie in none, and must cost little."""

    blocks: Taken

    @classmethod
    def of(cls, pools: Iterable[AddressPool]) -> PoolSpace:
        return cls(Taken(tuple((*_range(block), "") for pool in pools for block in pool.blocks)))

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address | IPv6Address) and key_of(address) in self.blocks

    def overlaps(self, network: IPNetwork) -> bool:
        return any(True for _ in self.blocks.within(*_range(network)))


class Kept:
    """What services have of the pools, kept from snapshot to snapshot (see `routerd.memo`)."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._services: Derived[Service, str, Sequence[Single]] = Derived(lambda service: None)
        self._inside: Derived[Service, str, Service] = Derived(lambda service: None)
        self.networks: Last[list[tuple[IPNetwork, str]]] = Last()
        self.nodes: Last[tuple[list[Single], list[Single]]] = Last()

    def singles(self, space: PoolSpace, snapshot: Snapshot) -> Iterator[Single]:
        of = space, snapshot.service_cidrs
        if of != self._of:
            judge = Snapshot(service_cidrs=snapshot.service_cidrs)
            self._of = of
            self._services = Derived(partial(_taken_by, space, judge))
            self._inside = Derived(partial(_with_cluster_ip_in, space))
        found = self._services(snapshot.services or {})
        yield from hosts(space, replace(snapshot, services={}), _of_others)
        for key in sorted(found):
            yield from found[key]

    def inside(self, snapshot: Snapshot) -> list[Service]:
        """Services with a ClusterIP in the space of the last `singles`."""
        found = self._inside(snapshot.services or {})
        return [found[key] for key in sorted(found)]


def _taken_by(space: PoolSpace, judge: Snapshot, service: Service) -> tuple[str, Sequence[Single]] | None:
    found = tuple(of_service(space, judge, service, _of_others))
    return (service.key, found) if found else None


def _with_cluster_ip_in(space: PoolSpace, service: Service) -> tuple[str, Service] | None:
    return (service.key, service) if any(address in space for address in service.cluster_ips) else None


def taken_of(
    snapshot: Snapshot, reports: Mapping[str, NodeReport], kept: Kept | None = None
) -> tuple[Taken, tuple[Refusal, ...]]:
    """What no pool gives, and pools of which a part is the cluster's. `kept`: of the last time; it is renewed."""
    pools = (snapshot.pools or {}).values()
    kept, nodes = kept or Kept(), snapshot.nodes or {}
    space = PoolSpace.of(pools)
    networks = kept.networks(_networks, space, snapshot.service_cidrs, nodes)
    claims = [(*_range(network), words) for network, words in networks]
    said, seen = kept.nodes(_by_nodes, space, nodes, {**reports})
    claims += [(key_of(address), key_of(address), words) for address, words in (*kept.singles(space, snapshot), *said)]
    seen = [*seen, *_in_flows(space, snapshot.allocations)]
    firm = Taken(tuple(claims))
    soft: dict[int, str] = {}
    for address, words in seen:
        if (key := key_of(address)) not in firm:
            soft.setdefault(key, words)
    claims += [(key, key, words) for key, words in soft.items()]
    refusals = (*_pools_over(pools, networks), *_over_cluster_ips(pools, space, snapshot, kept.inside(snapshot)))
    return Taken(tuple(claims), frozenset(soft)), refusals


def _over_cluster_ips(
    pools: Collection[AddressPool], space: PoolSpace, snapshot: Snapshot, inside: Iterable[Service]
) -> Iterator[Refusal]:
    """Pools with a ClusterIP in them, of a family whose service CIDRs nobody has told. `inside`: who has one."""
    told = {cidr.version for cidr in snapshot.service_cidrs}
    found = [(address, service) for service in inside for address in service.cluster_ips
             if address.version not in told and address in space]  # fmt: skip
    for pool in pools if found else ():
        own = PoolSpace.of([pool])
        address, service = next((pair for pair in found if pair[0] in own), (None, None))
        if service is not None:
            message = (
                f"{address}, the ClusterIP of {service.ref}, lies in the pool, and any of its other addresses may "
                "become one: take the service CIDR out of the pool, and name it in service-cidrs"
            )
            yield Refusal(Ref("AddressPool", name=pool.name), OVER_CLUSTER, message)


def _pools_over(pools: Iterable[AddressPool], networks: Iterable[tuple[IPNetwork, str]]) -> Iterator[Refusal]:
    for pool in pools:
        over = [(block, network, words) for network, words in networks for block in pool.blocks
                if block.version == network.version and block.overlaps(network)]  # fmt: skip
        for block, network, words in over[:1]:
            part = max(block, network, key=lambda each: each.prefixlen)
            message = f"{part} is {words}: it is not given; take it out of the pool"
            yield Refusal(Ref("AddressPool", name=pool.name), OVER_CLUSTER, message)


def _of_others(service: Service) -> bool:
    return service.type == "LoadBalancer" and not is_ours(service)


def _networks(
    space: PoolSpace, service_cidrs: tuple[IPNetwork, ...], nodes: Mapping[str, Node]
) -> list[tuple[IPNetwork, str]]:
    of_cluster = ranges(Snapshot(nodes=nodes, service_cidrs=service_cidrs))
    return [pair for pair in (*RESERVED, *of_cluster) if space.overlaps(pair[0])]


def _by_nodes(
    space: PoolSpace, nodes: Mapping[str, Node], reports: Mapping[str, NodeReport]
) -> tuple[list[Single], list[Single]]:
    return [*_of_nodes(space, nodes, reports)], [*_seen_on(space, nodes, reports)]


def _of_nodes(
    space: PoolSpace, nodes: Mapping[str, Node], reports: Mapping[str, NodeReport]
) -> Iterator[tuple[IPAddress, str]]:
    """What Node objects say, and the networks that their agents report."""
    for name, node in nodes.items():
        for address in node.addresses:
            if address in space:
                yield address, f"an address of {node.ref}"
        for network in reports[name].networks if name in reports else ():
            for address, words in _own(network):
                if address in space:
                    yield address, f"{words} of {node.ref}"


def _seen_on(
    space: PoolSpace, nodes: Mapping[str, Node], reports: Mapping[str, NodeReport]
) -> Iterator[tuple[IPAddress, str]]:
    """What may be there because a pool gave it: kube-proxy in IPVS mode has VIPs on interfaces. And guesses."""
    for name, node in nodes.items():
        report = reports.get(name, NodeReport(name))
        for address in report.addresses:
            if address in space:
                yield address, f"on an interface of {node.ref}"
        for address, words in () if report.networks else _likely_own(node):
            if address in space:
                yield address, f"{words} of {node.ref}"


def _in_flows(space: PoolSpace, allocations: Allocations | None) -> Iterator[Single]:
    """Whoever left them comes back to them, and nobody else has them meanwhile."""
    for group in allocations.groups if allocations is not None else ():
        for address in () if group.policies or group.service else group.egress_ips:
            if address in space:
                yield address, "an egress IP that a policy has left, and flows may still have"


def _own(network: IPNetwork) -> tuple[tuple[IPAddress, str], ...]:
    """Addresses of a network that are no host's (RFC 1122, section 3.2.1.3; RFC 4291, section 2.6.1)."""
    first = network.network_address
    if network.prefixlen == network.max_prefixlen:
        return ((first, "a next hop"),)
    if network.prefixlen == network.max_prefixlen - 1:
        return ()  # both are hosts' (RFC 3021, RFC 6164)
    own = (first, f"the first address of the network {network}")
    last = (network.broadcast_address, f"the broadcast address of the network {network}")
    return (own, last) if network.version == 4 else (own,)


def _likely_own(node: Node) -> Iterator[tuple[IPAddress, str]]:
    """Of a node that has not said which networks it is in: of the /24 of its IPv4 address, the smallest usual one."""
    for address in node.addresses:
        if isinstance(address, IPv4Address):
            network = IPv4Network((int(address) & ~0xFF, 24))
            yield network.network_address, f"perhaps the first address of the network {network}"
            yield network.broadcast_address, f"perhaps the broadcast address of the network {network}"


def _range(network: IPNetwork) -> Range:
    return key_of(network.network_address), key_of(network.broadcast_address)
