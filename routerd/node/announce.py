"""Which paths this node announces to which peer, and why not.

Pure: a `Snapshot`, the node's name and the local address of each session in; `bgp.path.Desired` and refusals out. It
resolves no address, opens nothing, and does not know how a path gets to a peer. `None` out means that something it
needs has not been synced: touch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from bgp.path import AdjRibOut, Desired, Path, normal_communities
from routerd.memo import Renewed, differing
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
from routerd.node.table import Backends, Endpoints, Table, Wanted
from routerd.refs import NODE, PATH, SERVICE, Ref

EGRESS_LOCAL_PREF = 1000  # of the preferred gateway
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


def scene_of(
    snapshot: Snapshot, node_name: str, rules: Rules, drain: Drain | None = None, kept: Kept | None = None
) -> Scene | None:
    """None when something that announcements need is not synced, or the store does not know this node.

    `kept` is not touched beyond what it indexes.
    """
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
    kept = kept or Kept()
    kept.take(snapshot)
    return Scene(
        node=snapshot.nodes[node_name],
        rules=rules,
        services=snapshot.services,
        usable=kept.endpoints.usable,
        pools=PoolIndex(snapshot.pools, allocations.pools),
        allocated=kept.allocated,
        refused=_operator_refusals(allocations),
        groups=allocations.groups,
        peers=snapshot.bgp.peers,
        drain=drain,
        has_pods=drain is None or snapshot.pods is None or has_pods(node_name, snapshot.pods.values()),
    )


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


def _vip(scene: Scene, service: Service) -> Iterator[Wanted | Refusal]:
    if service.type != "LoadBalancer":
        return
    refusal = service_refusal(scene, service)
    if refusal is not None:
        yield refusal
        return
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


def egress_preference(rank: int) -> tuple[int, int]:
    """(LOCAL_PREF, MED) of an egress IP at its `rank`-th gateway: 0 is preferred, and all have it where they share it.

    LOCAL_PREF decides inside an AS (higher wins), MED between ASes (lower wins): RFC 4271, sections 5.1.5 and 5.1.4.
    """
    return EGRESS_LOCAL_PREF - rank, rank


def egress_refusal(scene: Scene, group: EgressGroup) -> Refusal | None:
    """Why this gateway does not announce the address of `group`. One that leaves does until others have it."""
    if scene.drain is not None and scene.drain.goes_down:
        return Refusal(group.address_ref, "NodeDrained", scene.drain.message)
    if scene.node.tunnel_endpoint is None:
        message = f"{scene.node.name} has no address to be a tunnel endpoint: it can be no gateway"
        return Refusal(group.address_ref, "NoTunnelEndpoint", message)
    pool = _pool_of(scene, group)
    if pool is not None and pool.protocol != "bgp":
        return Refusal(group.address_ref, "PoolNotBgp", _not_bgp(pool))
    return None


def _pool_of(scene: Scene, group: EgressGroup) -> AddressPool | None:
    """None: the address is its policy's own, whatever pool it may lie in."""
    return scene.pools.announcing(group.egress_ip, group.pool) if group.pool else None


def egress_paths(scene: Scene, group: EgressGroup, rank: int) -> tuple[Path, ...]:
    """One for each address of the group."""
    pool = _pool_of(scene, group)
    communities = [c for advertisement in (pool.advertisements if pool else ()) for c in advertisement.communities]
    local_pref, med = egress_preference(rank)
    normal = normal_communities(communities)
    prefixes = (prefix_of(address, address.max_prefixlen) for address in group.egress_ips)
    return tuple(Path(prefix, local_pref=local_pref, med=med, communities=normal) for prefix in prefixes)


def _egress_ip(scene: Scene, group: EgressGroup) -> Iterator[Wanted | Refusal]:
    if scene.node.name not in group.gateways or group.node_address:
        return  # an address on an interface is routed by the network that the interface is in
    refusal = egress_refusal(scene, group)
    if refusal is not None:
        yield refusal
        return
    rank = group.gateways.index(scene.node.name) if group.gateway_mode == "active-standby" else 0
    for path in egress_paths(scene, group, rank):
        yield path, group.ref


# --- who says it


@dataclass(slots=True)
class Kept:
    """What the last announcements rested on and came to (see `routerd.memo`)."""

    endpoints: Endpoints = field(default_factory=Endpoints)
    table: Table = field(default_factory=Table)
    touched: set[str] = field(default_factory=set)  # services whose endpoints changed since
    refusals: dict[str, tuple[Refusal, ...]] = field(default_factory=dict)  # by who says it, as in the table
    scene: Scene | None = None
    allocated: Renewed[str, ServiceAllocation] = field(default_factory=Renewed)  # by service
    _allocations: Sequence[ServiceAllocation] = ()
    ribs: dict[int, Rib] = field(default_factory=dict)  # by IP version of the session

    def take(self, snapshot: Snapshot) -> None:
        """What the next announcements rest on, as an index."""
        if snapshot.endpoint_slices is not None:
            self.touched |= self.endpoints.take(snapshot.endpoint_slices)
        services = snapshot.allocations.services if snapshot.allocations else ()
        if services is not self._allocations:
            now = {each.service: each for each in services}
            put, gone = differing(self.allocated, now)
            self.allocated, self._allocations = Renewed(now, self.allocated, (*put, *gone)), services

    def say(self, said: Mapping[str, Sequence[Wanted | Refusal]]) -> None:
        wanted: dict[str, Sequence[Wanted]] = dict.fromkeys(said, ())
        for sayer, items in said.items():
            if items:
                wanted[sayer] = [each for each in items if not isinstance(each, Refusal)]
            refused = tuple(each for each in items if isinstance(each, Refusal)) if items else ()
            if refused:
                self.refusals[sayer] = refused
            else:
                self.refusals.pop(sayer, None)
        self.table.put(wanted)


def _context(scene: Scene) -> Scene:
    """What may change what every service says."""
    return replace(scene, services={}, usable={}, allocated={}, refused={}, groups=(), peers=())


def _stale(before: Scene | None, scene: Scene, touched: Collection[str]) -> set[str]:
    """Keys of services that may say something else now, those that are gone among them."""
    if before is None or _context(before) != _context(scene):
        return {*(before.services if before is not None else ()), *scene.services}
    refs = (ref for refs in differing(before.refused, scene.refused) for ref in refs)
    parts = (differing(before.services, scene.services), differing(before.allocated, scene.allocated))
    return {*touched, *(key for put, gone in parts for key in (*put, *gone)), *(ref.key for ref in refs)}


def _said_by_services(scene: Scene, keys: Iterable[str]) -> Iterator[tuple[str, Sequence[Wanted | Refusal]]]:
    for key in sorted(keys):
        service = scene.services.get(key)
        yield f"{SERVICE}/{key}", [*_vip(scene, service)] if service is not None and scene.rules.services else ()


def _said_by_others(scene: Scene) -> Iterator[tuple[str, Sequence[Wanted | Refusal]]]:
    yield NODE, [*_pod_cidrs(scene)] if scene.rules.pod_cidrs else ()
    if scene.rules.egress_ips:
        for group in scene.groups:
            yield str(group.ref), [*_egress_ip(scene, group)]


def _refold(kept: Kept, scene: Scene) -> None:
    """Has those say it anew who may say something else."""
    stale = _stale(kept.scene, scene, kept.touched)
    gone = [str(group.ref) for group in kept.scene.groups] if kept.scene is not None else []
    kept.say({**dict(_said_by_services(scene, stale)), **dict.fromkeys(gone, ()), **dict(_said_by_others(scene))})
    kept.scene, kept.touched = scene, set()


# --- all of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rib:
    """What sessions of one IP version carry of `source`. `hops`: the node's addresses of the other one."""

    source: Mapping[IPNetwork, Path]
    hops: tuple[IPAddress, ...]
    paths: AdjRibOut
    refusals: tuple[Refusal, ...] = ()


def _rib(paths: Mapping[IPNetwork, Path], session_version: int, node: Node, last: Rib | None) -> Rib:
    """`paths` as a session of that IP version carries them: the other family needs a next hop of its own.

    `last`: what was made for that version before.
    """
    hops = tuple(address for address in node.addresses if address.version != session_version)
    if last is not None and last.source is paths and last.hops == hops:
        return last
    if all(prefix.version == session_version for prefix in paths):
        return Rib(paths, hops, paths)
    rib: dict[IPNetwork, Path] = {}
    refusals = []
    for prefix, path in paths.items():
        if prefix.version == session_version:
            rib[prefix] = path
        elif hops:
            rib[prefix] = replace(path, next_hop=hops[0])
        else:
            message = (
                f"{node.name} has no IPv{prefix.version} address to be the next hop in an IPv{session_version} session"
            )
            refusals.append(Refusal(Ref(PATH, name=str(prefix)), "NoNextHop", message))
    return Rib(paths, hops, rib, tuple(refusals))


def announcements(
    snapshot: Snapshot,
    node_name: str,
    rules: Rules,
    local_addresses: Mapping[IPAddress, IPAddress | None],
    drain: Drain | None = None,
    kept: Kept | None = None,
) -> Announcements | None:
    """Everything that `node_name` announces. `local_addresses`: peer address -> local address, None = no route.

    `drain`: why the node leaves, None = it stays. `kept`: of the same node's last announcements; it is renewed.
    """
    kept = kept or Kept()
    scene = scene_of(snapshot, node_name, rules, drain, kept)
    if scene is None:
        return None
    _refold(kept, scene)
    paths = kept.table.paths
    refusals = [refusal for sayer in sorted(kept.refusals) for refusal in kept.refusals[sayer]]
    if drain is not None:
        paths = {prefix: noticed(path) for prefix, path in paths.items()}
    sessions, session_refusals = sessions_of(scene.peers, scene.node, local_addresses, rules.router_id)
    versions = {s.local_address.version for s in sessions.values()}
    kept.ribs = {version: _rib(paths, version, scene.node, kept.ribs.get(version)) for version in versions}
    refusals += (refusal for rib in kept.ribs.values() for refusal in rib.refusals)
    ribs = {address: kept.ribs[s.local_address.version].paths for address, s in sessions.items()}
    return Announcements(Desired(sessions, ribs), kept.table.owners, tuple(refusals + session_refusals), drain)
