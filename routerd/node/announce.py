"""Which paths this node announces to which peer, and why not.

Pure: a `Snapshot`, the node's name and the local address of each session in; `bgp.path.Desired` and refusals out. It
resolves no address, opens nothing, and does not know how a path gets to a peer. `None` out means that something it
needs has not been synced: touch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from bgp.path import AdjRibOut, Desired, Path, normal_communities
from routerd.model import (
    EXCLUDE_LABEL,
    OWN_CLASS,
    AddressPool,
    Advertisement,
    Allocations,
    EgressGroup,
    IPAddress,
    IPNetwork,
    Node,
    Peer,
    Refusal,
    Service,
    ServiceAllocation,
    Snapshot,
)
from routerd.node.drain import Drain, has_pods, noticed
from routerd.node.pools import PoolIndex
from routerd.node.sessions import sessions_of
from routerd.refs import PATH, Ref

EGRESS_LOCAL_PREF = 1000
EGRESS_MED = 2**31
EPOCH_STEP = 16  # ranks 0 … 15 fit between two epochs
MAX_U32 = 2**32 - 1
CACHED = 1 << 17  # addresses; 20 MB when full


@dataclass(frozen=True, slots=True)
class Rules:
    """What is announced, from configuration. `router_id` None = the peer's own, else from the node's addresses."""

    services: bool = True
    pod_cidrs: bool = False
    egress_ips: bool = True
    router_id: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Announcements:
    """What the speaker should hold, with the owners of each prefix and every "no"."""

    desired: Desired
    owners: Mapping[IPNetwork, tuple[Ref, ...]] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    drain: Drain | None = None  # why the node leaves


Backends = tuple[str, int]  # "namespace/name" of a service, and IP version of endpoints


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
    drain: Drain | None = None
    has_pods: bool = True  # with addresses of their own; asked of a node that leaves

    @property
    def withdraws(self) -> bool:
        return self.drain is not None and self.drain.withdraws


def scene_of(snapshot: Snapshot, node_name: str, rules: Rules, drain: Drain | None = None) -> Scene | None:
    """None when something that announcements need is not synced, or the store does not know this node."""
    allocations = snapshot.allocations
    if (
        snapshot.nodes is None
        or snapshot.services is None
        or snapshot.endpoint_slices is None
        or snapshot.bgp is None
        or snapshot.pools is None
        or allocations is None
        or node_name not in snapshot.nodes
    ):
        return None
    return Scene(
        node=snapshot.nodes[node_name],
        rules=rules,
        services=snapshot.services,
        usable=_usable_nodes(snapshot),
        pools=PoolIndex(snapshot.pools),
        allocated={allocation.service: allocation for allocation in allocations.services},
        refused=_operator_refusals(allocations),
        groups=allocations.groups,
        peers=snapshot.bgp.peers,
        drain=drain,
        has_pods=drain is None or snapshot.pods is None or has_pods(node_name, snapshot.pods.values()),
    )


def _usable_nodes(snapshot: Snapshot) -> dict[Backends, frozenset[str]]:
    """Where kube-proxy sends what it takes for an address of a service: to endpoints of the address' own family.

    It takes ready ones; where there are none, those that serve and terminate (KEP-1669): with externalTrafficPolicy
    Local on each node, else in the cluster. Either way a node, or a service, has one to send to if it has one of both.
    """
    nodes: dict[Backends, set[str]] = {}
    for endpoint_slice in snapshot.endpoint_slices or ():
        key = endpoint_slice.service_key
        for endpoint in endpoint_slice.endpoints:
            if endpoint.addresses and (endpoint.ready or endpoint.draining):
                nodes.setdefault((key, endpoint.addresses[0].version), set()).add(endpoint.node)
    return {backends: frozenset(usable) for backends, usable in nodes.items()}


def _operator_refusals(allocations: Allocations) -> dict[Ref, Refusal]:
    return {refusal.object: refusal for refusal in allocations.refusals}


# --- why a service is not announced from here --------------------------------------------------------------------


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
    return "" if scene.rules.services else "bgp.announce.loadbalancer is off in this node's configuration"


def _no_address(scene: Scene, service: Service) -> str:
    if service.key in scene.allocated and scene.allocated[service.key].addresses:
        return ""
    refusal = scene.refused.get(service.ref)
    if refusal is not None:
        return f"the operator gave no address: {refusal.reason}: {refusal.message}"
    return "the operator has not given the service an address: see that `routerd operator` runs and a pool has room"


def _pool_not_bgp(scene: Scene, service: Service) -> str:
    pools = [scene.pools.announcing(address, pool) for address, pool in _allocated(scene, service)]
    return "" if any(pool.protocol == "bgp" for pool in pools) else _not_bgp(pools[0])


def _not_bgp(pool: AddressPool) -> str:
    return f"pool {pool.name!r} has protocol {pool.protocol}: BGP does not announce it"


def _allocated(scene: Scene, service: Service) -> list[tuple[IPAddress, str]]:
    """Its addresses, each with the name of the pool that they were given from."""
    allocation = scene.allocated[service.key]
    return [(address, allocation.pool) for address in allocation.addresses]


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
    Check("may this node announce services?", "NodeExcluded", _node_excluded),
    Check("is this node's network available?", "NetworkUnavailable", _network_unavailable),
    Check("is this node in service?", "NodeDrained", _node_drained),
    Check("has it a ready endpoint?", "NoEndpoints", _no_endpoints),
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
    for version in _left_out(scene, service):
        is_anywhere = (service.key, version) in scene.usable
        where = f"{scene.node.name} (externalTrafficPolicy is Local)" if is_anywhere else "any node"
        message = f"no ready IPv{version} endpoint is on {where}: its IPv{version} addresses are not announced"
        yield Refusal(service.ref, "NoLocalEndpoints" if is_anywhere else "NoEndpoints", message)


def _left_out(scene: Scene, service: Service) -> Sequence[int]:
    """IP versions of its addresses that find no endpoint, while the other does: the service has passed the checks."""
    versions = _versions(scene, service)
    return [v for v in versions if not _is_carried(scene, service, v)] if len(versions) > 1 else ()


# --- paths ---------------------------------------------------------------------------------------------------------

Wanted = tuple[Path, Ref]  # a path and its owner


@lru_cache(maxsize=CACHED)  # building a network costs ten times more than the look-up, and addresses stay
def prefix_of(address: IPAddress, length: int) -> IPNetwork:
    """The network of `length` that `address` lies in. From a number: from an address it would go through text."""
    number = int(address) >> (address.max_prefixlen - length) << (address.max_prefixlen - length)
    return IPv4Network((number, length)) if address.version == 4 else IPv6Network((number, length))


def _length(advertisement: Advertisement, address: IPAddress) -> int:
    return advertisement.aggregation_length if address.version == 4 else advertisement.aggregation_length_v6


@lru_cache(maxsize=CACHED)  # equal paths of two rounds are one object, which the speaker compares at once
def _vip_path(address: IPAddress, advertisement: Advertisement) -> Path:
    prefix = prefix_of(address, _length(advertisement, address))
    return Path(prefix, local_pref=advertisement.local_pref, communities=normal_communities(advertisement.communities))


def service_paths(scene: Scene, service: Service) -> list[Path]:
    """One path for each address, if its family has an endpoint, and advertisement of its pool.

    The service must have passed the checks.
    """
    left_out = _left_out(scene, service)
    ways = [
        (address, scene.pools.announcing(address, pool))
        for address, pool in _allocated(scene, service)
        if address.version not in left_out
    ]
    return [_vip_path(address, how) for address, pool in ways if pool.protocol == "bgp" for how in pool.advertisements]


def _vips(scene: Scene) -> Iterator[Wanted | Refusal]:
    for key in sorted(scene.services):
        service = scene.services[key]
        if service.type != "LoadBalancer":
            continue
        refusal = service_refusal(scene, service)
        if refusal is not None:
            yield refusal
            continue
        yield from family_refusals(scene, service)
        for path in service_paths(scene, service):
            yield path, service.ref


def _pod_cidrs(scene: Scene) -> Iterator[Wanted]:
    """Announced even with NetworkUnavailable: on many clusters that condition waits for exactly these routes.

    And by a node that leaves while pods run there, which nobody else can reach.
    """
    if scene.withdraws and not scene.has_pods:
        return
    for cidr in scene.node.pod_cidrs:
        yield Path(cidr), scene.node.ref


def egress_preference(epoch: int, rank: int) -> tuple[int, int]:
    """(LOCAL_PREF, MED) of an egress IP at its `rank`-th gateway (0 = active).

    A later epoch beats every rank of the earlier ones, so that a takeover wins over the dead gateway's stale path.
    LOCAL_PREF decides inside an AS (higher wins), MED between ASes (lower wins): RFC 4271, sections 5.1.5 and 5.1.4.
    """
    rank = min(rank, EPOCH_STEP - 1)
    local_pref = min(EGRESS_LOCAL_PREF + EPOCH_STEP * epoch - rank, MAX_U32)
    med = max(EGRESS_MED - EPOCH_STEP * epoch + rank, 0)
    return local_pref, med


def egress_refusal(scene: Scene, group: EgressGroup) -> Refusal | None:
    """Why this gateway does not announce the address of `group`. One that leaves does until others have it."""
    if scene.drain is not None and scene.drain.goes_down:
        return Refusal(group.address_ref, "NodeDrained", scene.drain.message)
    if scene.node.tunnel_endpoint is None:
        message = f"{scene.node.name} has no IPv4 address to be a tunnel endpoint: it can be no gateway"
        return Refusal(group.address_ref, "NoTunnelEndpoint", message)
    pool = _pool_of(scene, group)
    if pool is not None and pool.protocol != "bgp":
        return Refusal(group.address_ref, "PoolNotBgp", _not_bgp(pool))
    return None


def _pool_of(scene: Scene, group: EgressGroup) -> AddressPool | None:
    """None: the address is its policy's own, whatever pool it may lie in."""
    return scene.pools.announcing(group.egress_ip, group.pool) if group.pool else None


def egress_path(scene: Scene, group: EgressGroup, rank: int) -> Path:
    pool = _pool_of(scene, group)
    communities = [c for advertisement in (pool.advertisements if pool else ()) for c in advertisement.communities]
    local_pref, med = egress_preference(group.epoch, rank)
    prefix = prefix_of(group.egress_ip, group.egress_ip.max_prefixlen)
    return Path(prefix, local_pref=local_pref, med=med, communities=normal_communities(communities))


def _egress_ips(scene: Scene) -> Iterator[Wanted | Refusal]:
    for group in scene.groups:
        nodes = [gateway.node for gateway in group.gateways]
        if scene.node.name not in nodes or group.node_address:
            continue  # an address on an interface is routed by the network that the interface is in
        refusal = egress_refusal(scene, group)
        if refusal is not None:
            yield refusal
            continue
        yield egress_path(scene, group, nodes.index(scene.node.name)), group.ref


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
        communities=normal_communities(one.communities + other.communities),
    )


def wanted_paths(scene: Scene) -> Iterator[Wanted | Refusal]:
    if scene.rules.services:
        yield from _vips(scene)
    if scene.rules.pod_cidrs:
        yield from _pod_cidrs(scene)
    if scene.rules.egress_ips:
        yield from _egress_ips(scene)


# --- all of it -----------------------------------------------------------------------------------------------------


def _rib(paths: Mapping[IPNetwork, Path], session_version: int, node: Node) -> tuple[AdjRibOut, list[Refusal]]:
    """`paths` as a session of that IP version carries them: the other family needs a next hop of its own."""
    if all(prefix.version == session_version for prefix in paths):
        return paths, []
    other = [address for address in node.addresses if address.version != session_version]
    rib: dict[IPNetwork, Path] = {}
    refusals = []
    for prefix, path in paths.items():
        if prefix.version == session_version:
            rib[prefix] = path
        elif other:
            rib[prefix] = replace(path, next_hop=other[0])
        else:
            message = (
                f"{node.name} has no IPv{prefix.version} address to be the next hop in an IPv{session_version} session"
            )
            refusals.append(Refusal(Ref(PATH, name=str(prefix)), "NoNextHop", message))
    return rib, refusals


def announcements(
    snapshot: Snapshot,
    node_name: str,
    rules: Rules,
    local_addresses: Mapping[IPAddress, IPAddress | None],
    drain: Drain | None = None,
) -> Announcements | None:
    """Everything that `node_name` announces. `local_addresses`: peer address -> local address, None = no route.

    `drain`: why the node leaves, None = it stays.
    """
    scene = scene_of(snapshot, node_name, rules, drain)
    if scene is None:
        return None
    paths: dict[IPNetwork, Path] = {}
    owners: dict[IPNetwork, tuple[Ref, ...]] = {}
    refusals: list[Refusal] = []
    for item in wanted_paths(scene):
        if isinstance(item, Refusal):
            refusals.append(item)
            continue
        path, owner = item
        count = len(paths)
        known = paths.setdefault(path.prefix, path)  # hashing a network is dear: once where it is new
        if len(paths) > count:
            owners[path.prefix] = (owner,)
        else:
            paths[path.prefix] = _merged(known, path)
            owners[path.prefix] = tuple(sorted({*owners[path.prefix], owner}))
    if drain is not None:
        paths = {prefix: noticed(path) for prefix, path in paths.items()}
    sessions, session_refusals = sessions_of(scene.peers, scene.node, local_addresses, rules.router_id)
    versions = {s.local_address.version for s in sessions.values()}
    ribs = {version: _rib(paths, version, scene.node) for version in versions}
    for _, rib_refusals in ribs.values():
        refusals.extend(rib_refusals)
    desired = Desired(
        peers=sessions,
        ribs={address: ribs[s.local_address.version][0] for address, s in sessions.items()},
    )
    return Announcements(desired, owners, tuple(refusals + session_refusals), drain)
