"""Which paths this node announces to which peer, and why not.

Pure: a `Snapshot`, the node's name and the local address of each session in; `bgp.path.Desired` and refusals out. It
resolves no address, opens nothing, and does not know how a path gets to a peer. `None` out means that something it
needs has not been synced: touch nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import is_not
from typing import NamedTuple

from bgp.path import AdjRibOut, Desired, Family, Path, SessionKey, SpeakerPeer, normal_communities
from bgp.rib import MAX_U32
from routerd.memo import Renewed, differing
from routerd.model import (
    AddressPool,
    Advertisement,
    Allocations,
    EgressGroup,
    IPAddress,
    IPNetwork,
    Node,
    Peer,
    PoolWays,
    Refusal,
    Service,
    ServiceAllocation,
    Snapshot,
)
from routerd.node.checks import (
    NO_ENDPOINTS,
    NOT_CONFIGURED,
    Rules,
    Scene,
    allocated,
    beside_refusal,
    beside_vips,
    elsewhere,
    family_refusals,
    left_out,
    not_bgp,
    service_refusal,
    ways_here,
)
from routerd.node.drain import Drain, has_pods, noticed
from routerd.node.pools import PoolIndex
from routerd.node.sessions import Way, entries_here, sessions_of, way_to
from routerd.node.table import CACHED, EVERYBODY, Audience, Endpoints, Table, Wanted, heard, prefix_of
from routerd.refs import NODE, PATH, SERVICE, Ref

EGRESS_LOCAL_PREF = 1000  # of the preferred gateway
VERSIONS: Mapping[int, Family] = {4: "ipv4 unicast", 6: "ipv6 unicast"}


@dataclass(frozen=True, slots=True)
class Announcements:
    """What the speaker should hold, with the owners of each prefix and every "no"."""

    desired: Desired
    owners: Mapping[IPNetwork, tuple[Ref, ...]] = field(default_factory=dict)  # of what anybody gets
    refusals: tuple[Refusal, ...] = ()
    drain: Drain | None = None  # why the node leaves
    entries: Mapping[SessionKey, Peer] = field(default_factory=dict)  # what each session is configured by
    aggregates: frozenset[IPNetwork] = frozenset()  # prefixes that need a blackhole route first
    shares: Mapping[SessionKey, Mapping[IPNetwork, tuple[Ref, ...]]] = field(default_factory=dict)

    def owners_in(self, session: SessionKey, prefix: IPNetwork) -> tuple[Ref, ...]:
        """Those for whom this session carries the prefix; `shares` has the owners of what its peer is meant to get."""
        return self.shares.get(session, {}).get(prefix, ())


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
        others=_others(snapshot, allocations) if rules.external_ips or rules.cluster_ips else {},
        drain=drain,
        has_pods=drain is None or snapshot.pods is None or has_pods(node_name, snapshot.pods.values()),
        unannounced=tuple(each for each in snapshot.pod_pools.values() if rules.pod_pools and not each.announced),
    )


def _others(snapshot: Snapshot, allocations: Allocations) -> dict[IPAddress, Ref]:
    """Of egress groups, nodes and peers."""
    found = {address: group.ref for group in allocations.groups for address in group.egress_ips}
    found |= {address: node.ref for node in (snapshot.nodes or {}).values() for address in node.addresses}
    peers = snapshot.bgp.peers if snapshot.bgp else ()
    return found | {address: peer.ref for peer in peers for address in peer.addresses}


def _operator_refusals(allocations: Allocations) -> dict[Ref, Refusal]:
    return {refusal.object: refusal for refusal in allocations.refusals}


# --- paths ---------------------------------------------------------------------------------------------------------


def _length(advertisement: Advertisement, address: IPAddress) -> int:
    return advertisement.aggregation_length if address.version == 4 else advertisement.aggregation_length_v6


@lru_cache(maxsize=CACHED)  # equal paths of two rounds are one object, which the speaker compares at once
def _vip_path(address: IPAddress, advertisement: Advertisement) -> Path:
    prefix = prefix_of(address, _length(advertisement, address))
    return Path(
        prefix,
        local_pref=advertisement.local_pref,
        med=advertisement.med,
        prepend=advertisement.prepend,
        communities=normal_communities(advertisement.communities),
        origin=advertisement.origin,
    )


def service_paths(scene: Scene, service: Service) -> list[Wanted]:
    """One path for each address, if its family has an endpoint, and advertisement of its pool.

    The service must have passed the checks.
    """
    return _vip_paths(scene, service, left_out(scene, service))


def _vip_paths(scene: Scene, service: Service, without: Collection[int]) -> list[Wanted]:
    """`without`: IP versions that are left out."""
    ways = [
        (address, scene.pools.announcing(address, pool))
        for address, pool in allocated(scene, service)
        if address.version not in without
    ]
    return [
        Wanted(_vip_path(address, how), service.ref, how.peers)
        for address, pool in ways
        for how in ways_here(scene, pool, service)
    ]


def _service(scene: Scene, service: Service) -> Iterator[Wanted | Refusal]:
    if scene.rules.services and service.type == "LoadBalancer":
        yield from _vip(scene, service)
    yield from beside(scene, service)


def _vip(scene: Scene, service: Service) -> Iterator[Wanted | Refusal]:
    refusal = service_refusal(scene, service)
    if refusal is not None:
        yield refusal
        return
    yield from family_refusals(scene, service)
    yield from service_paths(scene, service)


def beside(scene: Scene, service: Service) -> Iterator[Wanted | Refusal]:
    """What this node announces of the Service's ExternalIPs and ClusterIPs, and why not the rest."""
    for kind in beside_vips(scene, service):
        for address in kind.addresses:
            no = beside_refusal(scene, service, kind, address)
            yield no or Wanted(Path(prefix_of(address, address.max_prefixlen)), service.ref)


def _pod_cidrs(scene: Scene) -> Iterator[Wanted | Refusal]:
    """Announced even with NetworkUnavailable: on many clusters that condition waits for exactly these routes.

    And by a node that leaves while pods run there, which nobody else can reach.
    """
    if scene.withdraws and not scene.has_pods:
        return
    for cidr in scene.node.pod_cidrs:
        silent = next((each for each in scene.unannounced if _touches(cidr, each.networks)), None)
        if silent is not None:
            message = f"pod CIDR {cidr} is not announced: pool {silent.name} has disableBGPExport"
            yield Refusal(scene.node.ref, "NotExported", message)
        else:
            yield Wanted(Path(cidr), scene.node.ref)


def _touches(cidr: IPNetwork, networks: Iterable[IPNetwork]) -> bool:
    return any(cidr.version == each.version and cidr.overlaps(each) for each in networks)


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
        return Refusal(group.address_ref, "PoolNotBgp", not_bgp(pool))
    if pool is not None and not any(True for _ in ways_here(scene, pool)):
        return Refusal(group.address_ref, "NotAdvertisedHere", elsewhere(scene, pool))
    return None


def _pool_of(scene: Scene, group: EgressGroup) -> AddressPool | None:
    """None: the address is its policy's own, whatever pool it may lie in."""
    return scene.pools.announcing(group.egress_ip, group.pool) if group.pool else None


def egress_paths(scene: Scene, group: EgressGroup, rank: int) -> Iterator[Wanted]:
    """Of each address of the group, whole, as its pool's advertisements say; the gateways' order is ours.

    A MED of the pool's is what the order begins with.
    """
    pool = _pool_of(scene, group)
    local_pref, med = egress_preference(rank)
    for how in ways_here(scene, pool) if pool is not None else (Advertisement(),):
        communities = normal_communities(how.communities)
        for address in group.egress_ips:
            prefix = prefix_of(address, address.max_prefixlen)
            med_here = min((how.med or 0) + med, MAX_U32)
            path = Path(prefix, None, local_pref, med_here, how.prepend, communities, how.origin)
            yield Wanted(path, group.ref, how.peers)


def _idle_vips(scene: Scene, group: EgressGroup) -> Iterator[Wanted | Refusal]:
    """A VIP is announced as its Service says. While no endpoint of its family is ready gateways do all the same: pods
    that are not ready leave with it, and must get the answers.
    """
    if not scene.rules.services:
        message = f"{NOT_CONFIGURED}: no answer to what leaves with the VIP comes here"
        yield Refusal(group.address_ref, "NotConfigured", message)
        return
    service = scene.services.get(group.service)
    refusal = service_refusal(scene, service) if service is not None else None
    if service is not None and (refusal is None or refusal.reason == NO_ENDPOINTS):
        yield from _vip_paths(scene, service, [each for each in VERSIONS if (service.key, each) in scene.usable])


def _egress_ip(scene: Scene, group: EgressGroup) -> Iterator[Wanted | Refusal]:
    if scene.node.name not in group.gateways or group.node_address:
        return  # an address on an interface is routed by the network that the interface is in
    if group.service:
        yield from _idle_vips(scene, group)
        return
    refusal = egress_refusal(scene, group)
    if refusal is not None:
        yield refusal
        return
    rank = group.gateways.index(scene.node.name) if group.gateway_mode == "active-standby" else 0
    yield from egress_paths(scene, group, rank)


# --- who says it


@dataclass(slots=True)
class Kept:
    """What the last announcements rested on and came to (see `routerd.memo`)."""

    endpoints: Endpoints = field(default_factory=Endpoints)
    tables: dict[Audience, Table] = field(default_factory=lambda: {EVERYBODY: Table()})
    audiences: Mapping[Way, Audience] = field(default_factory=dict)  # by the way to the peer
    touched: set[str] = field(default_factory=set)  # services whose endpoints changed since
    refusals: dict[str, tuple[Refusal, ...]] = field(default_factory=dict)  # by who says it, as in the table
    scene: Scene | None = None
    allocated: Renewed[str, ServiceAllocation] = field(default_factory=Renewed)  # by service
    _allocations: Sequence[ServiceAllocation] = ()
    ribs: dict[Carrier, Rib] = field(default_factory=dict)
    _parts: list[Mapping[IPNetwork, tuple[Ref, ...]]] = field(default_factory=list)  # what `_owners` was made of
    _owners: Mapping[IPNetwork, tuple[Ref, ...]] = field(default_factory=dict)

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
        for audience, table in self.tables.items():
            table.put({sayer: heard(audience, items) for sayer, items in wanted.items()})

    def owners(self) -> Mapping[IPNetwork, tuple[Ref, ...]]:
        """Of what anybody gets."""
        parts = [table.owners for table in self.tables.values()]
        if len(parts) == 1:
            return parts[0]
        if len(parts) != len(self._parts) or any(map(is_not, parts, self._parts)):
            found: dict[IPNetwork, set[Ref]] = {}
            for prefix, owners in (item for part in parts for item in part.items()):
                found.setdefault(prefix, set()).update(owners)
            self._parts, self._owners = parts, {prefix: tuple(sorted(refs)) for prefix, refs in found.items()}
        return self._owners

    def aggregates(self) -> frozenset[IPNetwork]:
        """In any session."""
        found = ((self.tables[carrier.audience].aggregates, rib.paths) for carrier, rib in self.ribs.items())
        return frozenset(prefix for aggregates, paths in found for prefix in aggregates if prefix in paths)


def _audiences(scene: Scene) -> dict[Way, Audience]:
    """By the way to this node's peers. Those that get something of their own have a table of their own."""
    pools: list[AddressPool | PoolWays] = [*scene.pools.by_name.values(), *scene.pools.former]
    named = {name for pool in pools for how in pool.advertisements for name in how.peers}
    return {
        way: Audience(peer.label if peer.label in named else "", peer.gets, peer.export)
        for way, peer in entries_here(scene.peers, scene.node).items()
    }


def _unknown_peers(scene: Scene) -> Iterator[Refusal]:
    """Names in advertisements that no peer has: on no node does anybody get what is for them."""
    known = {peer.label for peer in scene.peers}
    overridden = {str(address): peer.label for peer in scene.peers for address in peer.addresses[1:]}
    for pool in scene.pools.by_name.values():
        for name in sorted({name for how in pool.advertisements for name in how.peers} - known):
            why = (
                f"which is an address of some nodes for peer {overridden[name]!r}: name it so"
                if name in overridden
                else "and no peer has that name or address"
            )
            message = f"{pool.origin}: an advertisement is for peer {name!r}, {why}"
            yield Refusal(Ref("AddressPool", name=pool.name), "UnknownPeer", message)


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
        yield f"{SERVICE}/{key}", [*_service(scene, service)] if service is not None else ()


def _said_by_others(scene: Scene) -> Iterator[tuple[str, Sequence[Wanted | Refusal]]]:
    yield NODE, [*_pod_cidrs(scene)] if scene.rules.pod_cidrs else ()
    if scene.rules.egress_ips:
        for group in scene.groups:
            yield str(group.ref), [*_egress_ip(scene, group)]


def _refold(kept: Kept, scene: Scene) -> None:
    """Has those say it anew who may say something else."""
    kept.audiences = _audiences(scene)
    audiences = {EVERYBODY, *kept.audiences.values()}
    if audiences != kept.tables.keys():
        kept.tables, kept.refusals, kept.scene = {audience: Table() for audience in audiences}, {}, None
    stale = _stale(kept.scene, scene, kept.touched)
    gone = [str(group.ref) for group in kept.scene.groups] if kept.scene is not None else []
    kept.say({**dict(_said_by_services(scene, stale)), **dict.fromkeys(gone, ()), **dict(_said_by_others(scene))})
    kept.scene, kept.touched = scene, set()


# --- all of it -----------------------------------------------------------------------------------------------------


class Carrier(NamedTuple):
    """Sessions that carry the same: their audience, their own IP version, and those of the paths that they carry."""

    audience: Audience
    version: int
    versions: tuple[int, ...]
    extended: bool  # paths of IPv4 have the session's own address as next hop, whichever family it is of


@dataclass(frozen=True, slots=True)
class Rib:
    """What sessions of one kind carry of `source`. `hops`: the node's addresses of the other one."""

    source: Mapping[IPNetwork, Path]
    hops: tuple[IPAddress, ...]
    paths: AdjRibOut
    refusals: tuple[Refusal, ...] = ()


def _rib(paths: Mapping[IPNetwork, Path], carrier: Carrier, node: Node, last: Rib | None) -> Rib:
    """`paths` as such a session carries them: the other family needs a next hop of its own.

    `last`: what was made for such sessions before.
    """
    hops = tuple(address for address in node.addresses if address.version != carrier.version)
    if last is not None and last.source is paths and last.hops == hops:
        return last
    if all(prefix.version == carrier.version for prefix in paths) and carrier.version in carrier.versions:
        return Rib(paths, hops, paths)
    rib: dict[IPNetwork, Path] = {}
    refusals = []
    for prefix, path in paths.items():
        if prefix.version not in carrier.versions:
            continue
        if prefix.version == carrier.version or (carrier.extended and prefix.version == 4):
            rib[prefix] = path
        elif hops:
            rib[prefix] = replace(path, next_hop=hops[0])
        else:
            message = (
                f"{node.name} has no IPv{prefix.version} address to be the next hop in an IPv{carrier.version} session"
                + (": with extended-next-hop it can be one of IPv6" if prefix.version == 4 else "")
            )
            refusals.append(Refusal(Ref(PATH, name=str(prefix)), "NoNextHop", message))
    return Rib(paths, hops, rib, tuple(refusals))


def announcements(
    snapshot: Snapshot,
    node_name: str,
    rules: Rules,
    local_addresses: Mapping[Way, IPAddress | None],
    drain: Drain | None = None,
    kept: Kept | None = None,
    passwords: Mapping[str, str] | None = None,
) -> Announcements | None:
    """Everything that `node_name` announces. `local_addresses`: as `sessions_of` has it.

    `drain`: why the node leaves, None = it stays. `kept`: of the same node's last announcements; it is renewed.
    `passwords`: as `sessions_of` has it.
    """
    kept = kept or Kept()
    scene = scene_of(snapshot, node_name, rules, drain, kept)
    if scene is None:
        return None
    _refold(kept, scene)
    paths = {audience: table.paths for audience, table in kept.tables.items()}
    refusals = [refusal for sayer in sorted(kept.refusals) for refusal in kept.refusals[sayer]]
    if drain is not None:
        paths = {who: {prefix: noticed(path) for prefix, path in found.items()} for who, found in paths.items()}
    opened = sessions_of(scene.peers, scene.node, local_addresses, rules.router_id, passwords)
    carriers = {
        key: _carrier(each, kept.audiences[way_to(opened.entries[key])]) for key, each in opened.sessions.items()
    }
    kept.ribs = {
        each: _rib(paths[each.audience], each, scene.node, kept.ribs.get(each)) for each in {*carriers.values()}
    }
    refusals += dict.fromkeys(refusal for rib in kept.ribs.values() for refusal in rib.refusals)
    ribs = {key: kept.ribs[carrier].paths for key, carrier in carriers.items()}
    refusals += [*opened.refusals, *_unknown_peers(scene)]
    desired = Desired(opened.sessions, ribs)
    shares = {key: kept.tables[carrier.audience].owners for key, carrier in carriers.items()}
    return Announcements(desired, kept.owners(), tuple(refusals), drain, opened.entries, kept.aggregates(), shares)


def _carrier(session: SpeakerPeer, audience: Audience) -> Carrier:
    versions = tuple(version for version, family in VERSIONS.items() if family in session.families)
    return Carrier(audience, session.local_address.version, versions, session.extended_next_hop)
