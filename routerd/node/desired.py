"""The whole state that one node should have: what it announces and how its pods leave.

Pure: a `Snapshot`, rules from configuration, the node's name and facts that only its kernel knows in; the desired
values of `bgp` and `egress` out. A part that needs something not yet synced is None: touch nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bfd.probes import Probing
from egress.policy import (
    FLOW_DEADLINE,
    FORWARD_MARK,
    TUNNEL_DEVICE,
    Group,
    Hindrance,
    Neighbour,
    NetworkPolicy,
    Policy,
    Ports,
    Served,
    Transport,
    TunnelPackets,
    Watch,
)
from egress.policy import Desired as EgressDesired
from fib.plan import Desired as Routes
from routerd.memo import Derived, Last, by_identity, differing
from routerd.model import (
    NAMESPACE_NAME_LABEL,
    Allocations,
    EgressPolicy,
    IPAddress,
    IPNetwork,
    Labels,
    Namespace,
    Node,
    Pod,
    PodSelection,
    Refusal,
    Snapshot,
    selection_matches,
)
from routerd.node import announce
from routerd.node.announce import Announcements, announcements
from routerd.node.attached import Attached, Overlay, told_devices
from routerd.node.checks import Rules
from routerd.node.drain import Drain
from routerd.node.groups import (
    neighbours_of,
    not_on_link,
    policy_groups,
    published_groups,
    served,
    tunnel_endpoints,
    without_conflicts,
)
from routerd.node.inside import (
    API_SERVER,
    Detours,
    Index,
    Inside,
    Known,
    in_cluster,
    is_steered,
    may_be_steered,
    node_addresses,
)
from routerd.node.rooms.bfd import Orders, orders
from routerd.node.rooms.routes import direct_routes, learnt_routes, parts_of, spared_by
from routerd.node.rooms.wiring import PodsOfCloud, wiring
from routerd.node.sessions import Way
from routerd.refs import NODE, POD, Ref

DEFAULT_TUNNEL_PORT = 8473  # UDP
EGRESS_ROOM, BFD_ROOM, PROBE_ROOM, ENI_ROOM, FIB_ROOM = "egress", "bfd", "probes", "eni", "fib"  # the rooms' names


@dataclass(frozen=True, slots=True)
class Settings:
    """What configuration says about this node's state."""

    node: str
    rules: Rules = field(default_factory=Rules)
    cluster_cidrs: tuple[IPNetwork, ...] = ()  # in-cluster networks beside those that the store tells
    external_cidrs: tuple[IPNetwork, ...] = ()  # networks in which `externalIPs` of services are in-cluster
    tunnel_port: int = DEFAULT_TUNNEL_PORT
    watch: Watch | None = None  # of gateways
    transport: Transport = "vxlan"
    tunnel_packets: TunnelPackets = "auto"
    network_policy: NetworkPolicy = "direct"
    forward_mark: int = FORWARD_MARK
    flow_deadline: int = FLOW_DEADLINE  # seconds
    pods_of_cloud: PodsOfCloud | None = None  # None = no cloud's interfaces are for pods here
    cloud_networks: tuple[IPNetwork, ...] = ()  # of egress IPs that are addresses of a cloud
    learn: tuple[IPNetwork, ...] = ()  # in which routes are learnt from BGP peers
    announces: bool = True  # whether there is a speaker
    direct_routes: bool = False  # whether pods of nodes on one link with this one are reached without a tunnel


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What only this node's kernel and probes know."""

    sessions: Mapping[Way, IPAddress | None] = field(default_factory=dict)  # local addresses; None = no route
    uplinks: tuple[str, ...] = ()  # devices by which egress traffic leaves
    gateways_down: frozenset[str] = frozenset()  # nodes that our own probe holds down
    addresses: tuple[IPAddress, ...] = ()  # on our interfaces
    drain: Drain | None = None  # why this node leaves
    sessions_lost: bool = False  # it has BGP peers, and no session with any of them
    upstream_lost: bool = False  # what it asks upstream of it does not answer
    networks: tuple[IPNetwork, ...] = ()  # that our interfaces are in; our default next hops as /32 and /128
    attached: Mapping[str, Attached] = field(default_factory=dict)  # by pod: what the CNI's runtime told of its network
    learnt: Mapping[IPNetwork, tuple[IPAddress, ...]] | None = None  # next hops that peers told; None = not known yet
    passwords: Mapping[str, str] | None = field(default=None, repr=False)  # by file; None = nobody looked

    @property
    def out_of_service(self) -> frozenset[Hindrance]:
        """Why other nodes are to leave this one as a gateway."""
        found: set[Hindrance] = set()
        if self.drain is not None:
            found.add("draining")
        if self.sessions_lost:
            found.add("no-session")
        if self.upstream_lost:
            found.add("no-upstream")
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class NodeState:
    """None = something it needs is not synced: touch nothing of that part."""

    announcements: Announcements | None
    rooms: Mapping[str, Any] = field(default_factory=dict)  # desired value by name of the room
    refusals: tuple[Refusal, ...] = ()
    may_retire: bool = True  # whether what paths led to in the rooms may be taken away
    selecting: frozenset[str] | None = None  # keys of policies that select a pod scheduled here, with an address or not

    @property
    def egress(self) -> EgressDesired | None:
        return self.rooms.get(EGRESS_ROOM)

    @property
    def watched(self) -> Orders:
        """Peers that BFD watches."""
        return self.rooms.get(BFD_ROOM) or {}


@dataclass(slots=True)
class Taken:
    """The pods that were asked of one policy, by identity, and those of them that it takes."""

    policy: EgressPolicy
    asked: Mapping[int, Pod] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)


@dataclass(slots=True)
class Steering:
    """Which policies take which pod, kept for pods and policies that are the same ones (see `routerd.memo`)."""

    _context: tuple[Labels, Mapping[str, Namespace]] = field(default_factory=lambda: ({}, {}))
    _taken: dict[int, Taken] = field(default_factory=dict)  # by identity of the policy
    selecting: frozenset[str] = frozenset()  # policies that take any of the pods of the last time

    def steer(
        self,
        pods: Sequence[Pod],
        policies: Mapping[str, EgressPolicy],
        here: Node,
        namespaces: Mapping[str, Namespace],
    ) -> tuple[dict[IPAddress, tuple[str, ...]], tuple[Refusal, ...]]:
        """Policies of each address; a pod whose policies cannot be told is left out, and so is undecided.

        A pod without an address has policies all the same: they are `selecting`.
        """
        if self._context != (here.labels, namespaces):
            self._context, self._taken = (here.labels, namespaces), {}
        relevant = [policy for _, policy in sorted(policies.items()) if policy.destinations]
        unsure = {
            id(pod): [p.key for p in relevant if _may_select(p, pod, here.labels)]
            for pod in pods
            if pod.namespace not in namespaces
        }
        decided = by_identity(pod for pod in pods if not unsure.get(id(pod)))
        self._taken = {id(policy): self._taken.get(id(policy), Taken(policy)) for policy in relevant}
        names: dict[int, list[str]] = {number: [] for number in decided}
        for policy in relevant:
            for pod in self._ask(self._taken[id(policy)], decided):
                names[id(pod)].append(policy.key)
        steered: dict[IPAddress, tuple[str, ...]] = {}
        for number, pod in decided.items():
            for address in pod.addresses:
                steered[address] = tuple(sorted({*steered.get(address, ()), *names[number]}))
        self.selecting = frozenset(name for found in names.values() for name in found)
        refused = (_unknown_namespace(pod, unsure[id(pod)]) for pod in pods if pod.addresses and unsure.get(id(pod)))
        return steered, tuple(refused)

    def _ask(self, taken: Taken, pods: Mapping[int, Pod]) -> Iterable[Pod]:
        """The pods that its policy takes."""
        put, gone = differing(taken.asked, pods)
        if gone:
            taken.pods = [pod for pod in taken.pods if id(pod) in pods]
        taken.pods += [pods[number] for number in put if self._takes(taken.policy, pods[number])]
        taken.asked = pods
        return taken.pods

    def _takes(self, policy: EgressPolicy, pod: Pod) -> bool:
        node_labels, namespaces = self._context
        namespace = namespaces.get(pod.namespace)
        labels = namespace.labels if namespace is not None else {NAMESPACE_NAME_LABEL: pod.namespace}
        return selects(policy, pod, labels, node_labels)


@dataclass(slots=True)
class Kept:
    """What the last state of one node rested on (see `routerd.memo`)."""

    known: Known = field(default_factory=Known)
    announced: announce.Kept = field(default_factory=announce.Kept)
    steering: Steering = field(default_factory=Steering)
    scheduled: tuple[str, Derived[Pod, str, Pod]] = field(
        default_factory=lambda: ("", Derived(lambda pod: None))
    )  # of which node
    overlay: Overlay = field(default_factory=Overlay)
    policy_groups: Last[tuple[dict[str, int], tuple[Refusal, ...]]] = field(default_factory=Last)
    groups: Last[tuple[dict[int, Group], tuple[Refusal, ...]]] = field(default_factory=Last)
    served: Last[dict[IPAddress, Served]] = field(default_factory=Last)
    tunnel_endpoints: Last[dict[int, IPAddress]] = field(default_factory=Last)
    neighbours: Last[dict[int, Neighbour]] = field(default_factory=Last)
    node_addresses: Last[frozenset[IPAddress]] = field(default_factory=Last)
    detours: Detours = field(default_factory=Detours)
    parts: Last[dict[IPNetwork, tuple[IPNetwork, ...]]] = field(default_factory=Last)  # of aggregates
    spared: Last[frozenset[IPNetwork]] = field(default_factory=Last)
    routes: Last[tuple[Routes, tuple[Refusal, ...]]] = field(default_factory=Last)
    learnt: Last[tuple[Mapping[IPNetwork, tuple[IPAddress, ...]], tuple[Refusal, ...]]] = field(default_factory=Last)

    def scheduled_on(self, node: str, pods: Mapping[str, Pod]) -> list[Pod]:
        """Pods of the node that may be steered, sorted by their names."""
        if self.scheduled[0] != node:
            self.scheduled = node, Derived(partial(_scheduled_on, node))
        found = self.scheduled[1](pods)
        return [found[key] for key in sorted(found)]


def compose(snapshot: Snapshot, settings: Settings, facts: LocalFacts, kept: Kept | None = None) -> NodeState:
    """The desired state of `settings.node`, with every refusal that concerns it, sorted by object.

    `kept`: of the last state of the same node and settings; it is renewed.
    """
    kept = kept or Kept()
    if kept.known.service_cidrs != snapshot.service_cidrs:
        kept.known = Known(snapshot.service_cidrs)
    inside = Inside(settings.cluster_cidrs, settings.external_cidrs, facts.addresses)
    kept.announced.take(snapshot)
    is_known = snapshot.endpoint_slices is not None
    of_api_server = kept.announced.endpoints.slices_of("/".join(API_SERVER)) if is_known else ()
    cluster = in_cluster(snapshot, inside, kept.known, Index(of_api_server, kept.announced.allocated))
    snapshot, conflicts = without_conflicts(
        snapshot, settings.node, facts.networks, kept.known.hosts, settings.cloud_networks
    )
    announced = announcements(
        snapshot, settings.node, settings.rules, facts.sessions, facts.drain, kept.announced, facts.passwords
    )
    egress, egress_refusals = egress_state(snapshot, settings, facts, cluster, kept)
    announced = _learning(announced, settings.learn)
    routes, route_refusals = _routes(snapshot, settings, facts, kept)
    if routes is not None and settings.announces:
        servers = frozenset(a for each in of_api_server for endpoint in each.endpoints for a in endpoint.addresses)
        routes = _with_aggregates(routes, announced, snapshot, facts, servers, kept)
    refusals = [*_unknown_node(snapshot, settings.node), *conflicts, *egress_refusals, *snapshot.refusals]
    refusals.extend(route_refusals)
    if announced is not None:
        refusals.extend(announced.refusals)
    return NodeState(
        announced,
        {
            EGRESS_ROOM: egress,
            BFD_ROOM: _watched(snapshot, settings.node, announced),
            PROBE_ROOM: probing(egress) if egress is not None else None,
            FIB_ROOM: routes,
            **_of_cloud(snapshot, settings),
        },
        tuple(sorted(set(refusals), key=lambda refusal: refusal.order)),
        selecting=kept.steering.selecting if egress is not None else None,
    )


def _learning(announced: Announcements | None, networks: tuple[IPNetwork, ...]) -> Announcements | None:
    """With sessions that take what peers announce of these networks."""
    if announced is None or not networks:
        return announced
    peers = {key: replace(peer, imports=networks) for key, peer in announced.desired.peers.items()}
    return replace(announced, desired=replace(announced.desired, peers=peers))


def _routes(
    snapshot: Snapshot, settings: Settings, facts: LocalFacts, kept: Kept
) -> tuple[Routes | None, tuple[Refusal, ...]]:
    """To other nodes' pods; None = not synced."""
    if not settings.direct_routes and not settings.learn:
        return Routes(), ()
    nodes, pools = snapshot.nodes, snapshot.pools
    here = (nodes or {}).get(settings.node)
    if nodes is None or pools is None or here is None:
        return None, ()
    direct, refused = kept.routes(direct_routes, nodes, here, pools) if settings.direct_routes else (Routes(), ())
    if not settings.learn:
        return direct, refused
    if facts.learnt is None:
        return replace(direct, learnt=None), refused
    peers = frozenset(way.address for way in facts.sessions)
    learnt, more = kept.learnt(learnt_routes, facts.learnt, settings.learn, here, nodes, pools, peers)
    return replace(direct, learnt=learnt), (*refused, *more)


def _with_aggregates(
    routes: Routes,
    announced: Announcements | None,
    snapshot: Snapshot,
    facts: LocalFacts,
    servers: frozenset[IPAddress],
    kept: Kept,
) -> Routes:
    """`servers`: the API servers."""
    if announced is None or snapshot.nodes is None or snapshot.pools is None:
        return replace(routes, aggregates=None)
    if not announced.aggregates:
        return routes
    nodes = kept.node_addresses(
        node_addresses, snapshot.nodes, snapshot.allocations.nodes if snapshot.allocations else ()
    )
    peers = {address for peer in (snapshot.bgp.peers if snapshot.bgp else ()) for address in peer.addresses}
    peers |= {way.address for way in facts.sessions}
    parts = kept.parts(parts_of, announced.aggregates, snapshot.pools)
    spared = kept.spared(spared_by, announced.aggregates, nodes | servers | peers, facts.networks)
    return replace(routes, aggregates=parts, spared=spared)


def _of_cloud(snapshot: Snapshot, settings: Settings) -> Mapping[str, Any]:
    if settings.pods_of_cloud is None:
        return {}
    here = (snapshot.nodes or {}).get(settings.node)
    if here is None or snapshot.allocations is None:
        return {ENI_ROOM: None}
    return {ENI_ROOM: wiring(here, settings.pods_of_cloud, settings.forward_mark, settings.cluster_cidrs)}


def _watched(snapshot: Snapshot, node: str, announced: Announcements | None) -> Orders | None:
    """By BFD; None = not synced."""
    if announced is None or snapshot.bgp is None or node not in (snapshot.nodes or {}):
        return None
    return orders(announced.entries)


def probing(egress: EgressDesired) -> Probing | None:
    """The gateways that pods here may leave by. None = this node has no tunnel."""
    if egress.node_address is None:
        return None
    groups = egress.groups.values() if egress.watch is not None else ()
    used = {gateway for group in groups if group.blocks for gateway in group.gateways if gateway.node != egress.node}
    interval = egress.watch.interval if egress.watch is not None else 1.0
    others = frozenset(gateway.number for gateway in used)
    tunnelled = others if egress.transport != "direct" else frozenset[int]()
    direct = others & egress.neighbours.keys() if egress.transport != "vxlan" else frozenset[int]()
    return Probing(TUNNEL_DEVICE, egress.node_address, round(interval * 1e6), tunnelled, direct)


def _unknown_node(snapshot: Snapshot, node: str) -> Iterator[Refusal]:
    if snapshot.nodes is not None and node not in snapshot.nodes:
        message = (
            "the store has no Node of this name: add its manifest, or set node-name; nothing is changed until then"
        )
        yield Refusal(Ref(NODE, name=node), "UnknownNode", message)


# --- egress --------------------------------------------------------------------------------------------------------


def egress_state(
    snapshot: Snapshot, settings: Settings, facts: LocalFacts, cluster: frozenset[IPNetwork], kept: Kept
) -> tuple[EgressDesired | None, tuple[Refusal, ...]]:
    """The egress state of this node. None = not synced. `cluster`: see `inside.in_cluster`.

    `kept`: has known the snapshot's networks; it is renewed.
    """
    nodes, namespaces, pods = snapshot.nodes, snapshot.namespaces, snapshot.pods
    services, policies, allocations = snapshot.services, snapshot.policies, snapshot.allocations
    if None in (nodes, namespaces, pods, services, snapshot.endpoint_slices, policies, allocations):
        return None, ()
    assert nodes is not None and namespaces is not None and pods is not None  # for the type checker
    assert services is not None and policies is not None and allocations is not None
    here = nodes.get(settings.node)
    if here is None:
        return None, ()
    scheduled = kept.overlay(kept.scheduled_on(here.name, pods), facts.attached)
    pods_here = [pod for pod in scheduled if is_steered(pod)]
    steered, pod_refusals = kept.steering.steer(scheduled, policies, here, namespaces)
    of_groups = Allocations(groups=allocations.groups, refusals=allocations.refusals)
    group_ids, policy_refusals = kept.policy_groups(policy_groups, policies, of_groups)
    with_ports = replace(of_groups, numbers=allocations.numbers, bindings=allocations.bindings)
    with_vips = replace(with_ports, services=allocations.services)
    groups, group_refusals = kept.groups(published_groups, with_ports, nodes, here.name, facts.gateways_down)
    endpoints = kept.tunnel_endpoints(tunnel_endpoints, nodes, allocations.numbers)
    neighbours = kept.neighbours(
        neighbours_of, allocations.nodes, allocations.numbers, endpoints, facts.networks, here.tunnel_endpoint
    )
    of_nodes = kept.node_addresses(node_addresses, nodes, allocations.nodes)
    detours = kept.detours.find(snapshot, kept.known, of_nodes)
    desired = EgressDesired(
        node=here.name,
        node_address=here.tunnel_endpoint,
        pods=steered,
        policies={key: _policy(policies[key], group_ids[key]) for key in sorted(group_ids)},
        groups=groups,
        served=kept.served(served, with_vips, here.name),
        nodes=endpoints,
        icmp_sources=_one_of_each_family(here.addresses),
        cluster=cluster,
        pod_cidrs=frozenset(here.pod_cidrs),
        pools=frozenset(block for pool in (snapshot.pools or {}).values() for block in pool.blocks),
        detours=detours,
        node_addresses=of_nodes,
        told_devices=told_devices(scheduled, facts.attached),
        uplinks=facts.uplinks,
        tunnel_port=settings.tunnel_port,
        transport=settings.transport,
        tunnel_packets=settings.tunnel_packets,
        neighbours=neighbours,
        network_policy=settings.network_policy,
        forward_mark=settings.forward_mark,
        flow_deadline=settings.flow_deadline,
        watch=settings.watch,
        out_of_service=facts.out_of_service,
    )
    told = (*_no_tunnel_endpoint(here), *not_on_link(desired), *policy_refusals, *group_refusals, *pod_refusals)
    return desired, (*told, *_stray_pods(kept.known.strays(pods_here), snapshot, here))


def _no_tunnel_endpoint(here: Node) -> Iterator[Refusal]:
    if here.tunnel_endpoint is None:
        message = "the node has no address to be its tunnel endpoint: what policies cover is dropped here"
        yield Refusal(here.ref, "NoTunnelEndpoint", message)


def _scheduled_on(node: str, pod: Pod) -> tuple[str, Pod] | None:
    return (pod.key, pod) if pod.node == node and may_be_steered(pod) else None


# --- pods and policies


def selects(policy: EgressPolicy, pod: Pod, namespace_labels: Labels, node_labels: Labels) -> bool:
    """Whether any selection of `policy` takes `pod`."""
    return any(selection_matches(s, pod, namespace_labels, node_labels) for s in policy.selections)


def may_select(policy: EgressPolicy, pod: Pod, namespaces: Mapping[str, Namespace], node_labels: Labels) -> bool:
    """Whether a policy that leads anywhere takes `pod`, or it cannot be told."""
    namespace = namespaces.get(pod.namespace)
    if not policy.destinations:
        return False
    if namespace is not None:
        return selects(policy, pod, namespace.labels, node_labels)
    named = {NAMESPACE_NAME_LABEL: pod.namespace}
    return selects(policy, pod, named, node_labels) or _may_select(policy, pod, node_labels)


def _may_select(policy: EgressPolicy, pod: Pod, node_labels: Labels) -> bool:
    """Whether it depends on labels of the pod's namespace, of which only the name is known."""
    unsure = (s for s in policy.selections if s.namespaces and s.namespaces.keys - {NAMESPACE_NAME_LABEL})
    named = {NAMESPACE_NAME_LABEL: pod.namespace}
    return any(selection_matches(_by_name(s), pod, named, node_labels) for s in unsure)


def _by_name(selection: PodSelection) -> PodSelection:
    """`selection` without what it says of the namespace's other labels."""
    namespaces = selection.namespaces.only(NAMESPACE_NAME_LABEL) if selection.namespaces else None
    return replace(selection, namespaces=namespaces)


def _unknown_namespace(pod: Pod, policies: list[str]) -> Refusal:
    message = (
        f"the store has no Namespace {pod.namespace}, by whose labels {', '.join(policies)} may select the pod: "
        "what it sends to where policies lead is dropped until it has"
    )
    return Refusal(Ref(POD, pod.namespace, pod.name), "UnknownNamespace", message)


def _policy(policy: EgressPolicy, group: int) -> Policy:
    return Policy(
        name=policy.key,
        group=group,
        destinations=policy.destinations,
        excluded=policy.excluded,
        ports=tuple(Ports(p.protocol, p.first, p.last) for p in policy.ports),
        priority=policy.priority,
        created=policy.created,
        exit_local=policy.exit_local,
    )


def _stray_pods(outside: Sequence[IPAddress], snapshot: Snapshot, here: Node) -> Iterator[Refusal]:
    """Other nodes may see no pods but their own: such a pod is outside the cluster for them."""
    if outside and any(policy.destinations for policy in (snapshot.policies or {}).values()):
        message = (
            f"{len(outside)} addresses of pods here, {outside[0]} among them, lie in no network of the cluster: "
            "selected pods of other nodes reach them by a gateway, if at all; add their network to cluster-cidrs"
        )
        yield Refusal(here.ref, "PodOutsideCluster", message)


def _one_of_each_family(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """The first of each."""
    first = {address.version: address for address in reversed(tuple(addresses))}
    return tuple(first[version] for version in sorted(first))
