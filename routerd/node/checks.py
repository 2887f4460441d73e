"""Whether a node announces a service, and why not: one condition after the other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Literal

from routerd.claims import TAKEN
from routerd.model import (
    EXCLUDE_LABEL,
    OWN_CLASS,
    AddressPool,
    Advertisement,
    EgressGroup,
    IPAddress,
    IPNetwork,
    Node,
    Peer,
    PodPool,
    Refusal,
    Service,
    ServiceAllocation,
)
from routerd.node.drain import Drain
from routerd.node.pools import PoolIndex
from routerd.node.table import Backends
from routerd.refs import Ref
from routerd.selectors import matches_any

NO_ENDPOINTS = "NoEndpoints"  # reason of a refusal
NOT_CONFIGURED = "bgp.announce.loadbalancer is off in this node's configuration"


@dataclass(frozen=True, slots=True)
class Rules:
    """What is announced, from configuration. `router_id` None = the peer's own, else from the node's addresses."""

    services: bool = True
    pod_cidrs: bool = False
    pod_pools: bool = False  # nodes have blocks of pools of pods: what these say of announcements counts
    egress_ips: bool = True
    external_ips: tuple[IPNetwork, ...] = ()  # those of Services in these networks
    cluster_ips: tuple[IPNetwork, ...] = ()
    router_id: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """The synced parts of a snapshot, indexed for one node."""

    node: Node
    rules: Rules
    services: Mapping[str, Service]
    usable: Mapping[Backends, frozenset[str]]  # nodes with an endpoint that kube-proxy may send to ("" = no node's)
    pools: PoolIndex
    allocated: Mapping[str, ServiceAllocation]  # by service
    refused: Mapping[Ref, Refusal]  # the operator's, by object
    groups: tuple[EgressGroup, ...]
    peers: tuple[Peer, ...]
    others: Mapping[IPAddress, Ref] = field(default_factory=dict)  # whose addresses no Service may take
    drain: Drain | None = None
    has_pods: bool = True  # with addresses of their own; asked of a node that leaves
    unannounced: tuple[PodPool, ...] = ()  # those that are told to nobody

    @property
    def withdraws(self) -> bool:
        return self.drain is not None and self.drain.withdraws


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. `failure` gives the message of the "no", "" for yes; all messages say who must do what."""

    question: str
    reason: str
    failure: Callable[[Scene, Service], str]


def _not_load_balancer(_: Scene, service: Service) -> str:
    return "" if service.type == "LoadBalancer" else f"the service's type is {service.type}: only LoadBalancer has VIPs"


def _other_class(_: Scene, service: Service) -> str:
    if service.is_left_to_us:
        return ""
    return (
        f"spec.loadBalancerClass is {service.load_balancer_class}, so the service is another load balancer's: "
        f"make it anew without a class, or with {OWN_CLASS}"
    )


def _not_configured(scene: Scene, _: Service) -> str:
    return "" if scene.rules.services else NOT_CONFIGURED


def _no_address(scene: Scene, service: Service) -> str:
    if service.key in scene.allocated and scene.allocated[service.key].addresses:
        return ""
    if service.unread_wishes:
        return "it asks for addresses by a mistake, so that it gets none: mend what it asks for"
    refusal = scene.refused.get(service.ref)
    if refusal is not None:
        return f"the operator gave no address: {refusal.reason}: {refusal.message}"
    return "the operator has not given the service an address: see that `routerd operator` runs and a pool has room"


def _pool_not_bgp(scene: Scene, service: Service) -> str:
    pools = [scene.pools.announcing(address, pool) for address, pool in allocated(scene, service)]
    return "" if any(pool.protocol == "bgp" for pool in pools) else not_bgp(pools[0])


def not_bgp(pool: AddressPool) -> str:
    return f"pool {pool.name!r} has protocol {pool.protocol}: BGP does not announce it"


def allocated(scene: Scene, service: Service) -> list[tuple[IPAddress, str]]:
    """Its addresses, each with the name of the pool that they were given from."""
    allocation = scene.allocated[service.key]
    return [(address, allocation.pool) for address in allocation.addresses]


def ways_here(scene: Scene, pool: AddressPool, service: Service | None = None) -> Iterator[Advertisement]:
    """How this node announces what the pool holds for `service`. None: an egress IP, which is no service's."""
    for how in pool.advertisements if pool.protocol == "bgp" else ():
        is_meant = not how.services or (service is not None and matches_any(how.services, service.selectable))
        if is_meant and matches_any(how.node_selectors, scene.node.labels):
            yield how


def _not_advertised_here(scene: Scene, service: Service) -> str:
    pools = [scene.pools.announcing(address, pool) for address, pool in allocated(scene, service)]
    return "" if any(True for pool in pools for _ in ways_here(scene, pool, service)) else elsewhere(scene, pools[0])


def elsewhere(scene: Scene, pool: AddressPool) -> str:
    if not pool.advertisements:
        return f"no advertisement takes pool {pool.name!r}"
    said = "their selectors of nodes or services leave it out"
    return f"no advertisement of pool {pool.name!r} takes it on {scene.node.name}: {said}"


def _node_excluded(scene: Scene, _: Service) -> str:
    if EXCLUDE_LABEL not in scene.node.labels:
        return ""
    return f"node {scene.node.name} has the label {EXCLUDE_LABEL}: remove it to announce from here"


def _network_unavailable(scene: Scene, _: Service) -> str:
    if not scene.node.network_unavailable:
        return ""
    return f"node {scene.node.name} has condition NetworkUnavailable: its CNI or cloud provider must clear it"


def _node_drained(scene: Scene, _: Service) -> str:
    return scene.drain.message if scene.drain is not None and scene.drain.withdraws else ""


def _versions(scene: Scene, service: Service) -> Sequence[int]:
    """IP versions of its addresses. Asked in every round for every service, most of which have one address."""
    addresses = scene.allocated[service.key].addresses
    return (addresses[0].version,) if len(addresses) == 1 else sorted({address.version for address in addresses})


def _no_endpoints(scene: Scene, service: Service) -> str:
    if any((service.key, version) in scene.usable for version in _versions(scene, service)):
        return ""
    return "the service has no ready endpoint on any node"


def _no_local_endpoints(scene: Scene, service: Service) -> str:
    if any(_is_carried(scene, service, version) for version in _versions(scene, service)):
        return ""
    usable = (scene.usable.get((service.key, version), frozenset()) for version in _versions(scene, service))
    nodes = ", ".join(sorted(frozenset().union(*usable))[:3])
    return f"externalTrafficPolicy is Local and no ready endpoint is on {scene.node.name} (there are some on {nodes})"


def _is_carried(scene: Scene, service: Service, version: int) -> bool:
    """Whether traffic for its addresses of that IP version finds an endpoint from this node."""
    nodes = scene.usable.get((service.key, version), frozenset())
    return scene.node.name in nodes if service.external_traffic_policy == "Local" else bool(nodes)


SERVICE_CHECKS = (  # in this order: a check may rely on those before it
    Check("is it of type LoadBalancer?", "NotLoadBalancer", _not_load_balancer),
    Check("does its loadBalancerClass leave it to routerd?", "OtherClass", _other_class),
    Check("does this node announce services?", "NotConfigured", _not_configured),
    Check("has it an address?", "NoAddress", _no_address),
    Check("is the pool announced by BGP?", "PoolNotBgp", _pool_not_bgp),
    Check("is the pool announced by this node?", "NotAdvertisedHere", _not_advertised_here),
    Check("may this node announce services?", "NodeExcluded", _node_excluded),
    Check("is this node's network available?", "NetworkUnavailable", _network_unavailable),
    Check("is this node in service?", "NodeDrained", _node_drained),
    Check("has it a ready endpoint?", NO_ENDPOINTS, _no_endpoints),
    Check("has it a ready endpoint where its traffic policy wants one?", "NoLocalEndpoints", _no_local_endpoints),
)


def service_refusal(scene: Scene, service: Service) -> Refusal | None:
    """The first "no", or None when this node announces the service."""
    for check in SERVICE_CHECKS:
        message = check.failure(scene, service)
        if message:
            return Refusal(service.ref, check.reason, message)
    return None


def family_refusals(scene: Scene, service: Service) -> Iterator[Refusal]:
    """Of a service that this node announces, the addresses for whose family it has no endpoint."""
    for version in left_out(scene, service):
        is_anywhere = (service.key, version) in scene.usable
        where = f"{scene.node.name} (externalTrafficPolicy is Local)" if is_anywhere else "any node"
        message = f"no ready IPv{version} endpoint is on {where}: its IPv{version} addresses are not announced"
        yield Refusal(service.ref, "NoLocalEndpoints" if is_anywhere else NO_ENDPOINTS, message)


def left_out(scene: Scene, service: Service) -> Sequence[int]:
    """IP versions of its addresses that find no endpoint, while the other does: the service has passed the checks."""
    versions = _versions(scene, service)
    return [v for v in versions if not _is_carried(scene, service, v)] if len(versions) > 1 else ()


# --- addresses beside VIPs: whoever may write a Service may name any ExternalIP (CVE-2020-8554), so that only those in
# networks of the configuration are announced; ClusterIPs alike, which are unique in one cluster alone. An address of a
# node or a peer, or an egress IP, is not, whatever the networks: packets to it, those of sessions too, would come here,
# and answers to nodes that are no gateways. What a node does with packets to the others is kube-proxy's, which asks
# each kind for endpoints by a traffic policy of its own.


@dataclass(frozen=True, slots=True)
class Beside:
    """A kind of addresses that a Service has beside its VIPs. `key` and `networks`: of the configuration."""

    name: Literal["ExternalIP", "ClusterIP"]
    key: str
    networks: tuple[IPNetwork, ...]
    addresses: tuple[IPAddress, ...]
    policy: str
    is_local: bool


def beside_vips(scene: Scene, service: Service) -> Iterator[Beside]:
    """Those that the configuration has announced and the Service has."""
    if service.type == "ExternalName":
        return
    rules, external, internal = scene.rules, service.external_traffic_policy, service.internal_traffic_policy
    if rules.external_ips and service.external_ips:
        yield Beside(
            "ExternalIP",
            "bgp.announce.external-ips",
            rules.external_ips,
            service.external_ips,
            "externalTrafficPolicy",
            external == "Local",
        )
    if rules.cluster_ips and service.cluster_ips:
        yield Beside(
            "ClusterIP",
            "bgp.announce.cluster-ips",
            rules.cluster_ips,
            service.cluster_ips,
            "internalTrafficPolicy",
            internal == "Local",
        )


def beside_refusal(scene: Scene, service: Service, kind: Beside, address: IPAddress) -> Refusal | None:
    """The first "no", or None when this node announces the address."""

    def refuse(reason: str, message: str) -> Refusal:
        return Refusal(service.ref, reason, f"{kind.name} {address}: {message}")

    node = scene.node
    if not any(address in network for network in kind.networks):
        return refuse(f"{kind.name}NotAllowed", f"it lies outside {kind.key} ({_listed(kind.networks)})")
    if address in scene.others:
        return refuse(TAKEN, f"it is an address of {scene.others[address]}, and led there")
    if kind.name == "ExternalIP" and (message := _node_excluded(scene, service)):
        return refuse("NodeExcluded", message)
    if message := _network_unavailable(scene, service):
        return refuse("NetworkUnavailable", message)
    if message := _node_drained(scene, service):
        return refuse("NodeDrained", message)
    usable = scene.usable.get((service.key, address.version), frozenset())
    if not usable:
        return refuse(NO_ENDPOINTS, f"the service has no ready IPv{address.version} endpoint on any node")
    if kind.is_local and node.name not in usable:
        return refuse("NoLocalEndpoints", f"{kind.policy} is Local and no ready endpoint is on {node.name}")
    return None


def _listed(networks: Sequence[IPNetwork]) -> str:
    return ", ".join(map(str, networks))
