"""Why a service is (not) announced from a node, and how a pod leaves it: steps that end at the first "no".

Pure, and the same conditions as `node/announce.py` and `node/desired.py` use: an explanation of its own would drift
apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bgp.path import Path, SessionKey, SpeakerPeer, session_names
from bgp.rib import family_of
from egress.entries import NOBODYS, OF_THE_LINK
from egress.host.enforcement import BYPASSED, MARK_TAKEN
from egress.plan import UNHOOKED
from egress.policy import UNSUPPORTED_FAMILY, egress_versions, unsupported
from egress.status import EgressStatus, Probed
from fib.plan import Desired as Routes
from fib.plan import State as RouteState
from fib.plan import Status as RouteStatus
from fib.plan import states
from routerd.errors import RouterdError
from routerd.model import (
    NAMESPACE_NAME_LABEL,
    OF_PORTS,
    Allocations,
    EgressGroup,
    EgressPolicy,
    IPAddress,
    IPNetwork,
    Pod,
    Refusal,
    Service,
    Snapshot,
    is_gateway,
)
from routerd.node.announce import Announcements, beside, scene_of, service_paths
from routerd.node.checks import SERVICE_CHECKS, Scene, family_refusals
from routerd.node.desired import FIB_ROOM, NodeState, Settings, selects
from routerd.node.groups import group_of, leaves_as
from routerd.node.inside import endpoints, external_ips, is_steered, outside
from routerd.node.port_sets import own_blocks
from routerd.node.sessions import peers_here
from routerd.refs import EGRESS, NODE, PEER, POD, POD_ADDRESS, SERVICE, Ref, service_ref
from routerd.tell.hints import to_look_at, untold
from routerd.tell.limits import REDIRECTED, passed_by
from routerd.tell.networks import further_networks
from routerd.tell.render import path_text
from routerd.tell.views import PeerView

Views = Mapping[SessionKey, PeerView]
NOBODY_ASKED: Views = {}
Unannounced = Mapping[IPNetwork, str]
NONE_LACKS: Unannounced = {}
SERVICE_WORDS = (SERVICE, "service")  # as people write them
SERVICE_NEEDS = ("nodes", "services", "endpoint_slices", "bgp", "pools", "allocations")
POD_NEEDS = ("nodes", "namespaces", "pods", "services", "endpoint_slices", "policies", "allocations")
BLOCK_NEEDS = ("nodes", "pools", "allocations")
EGRESS_NEEDS = ("nodes", "policies", "allocations")
OF_DEVICES = (UNHOOKED, "PodDeviceMissing")
OF_AGENTS = ("NoGateway", "AgentAbsent")  # reasons
SHOWN = 3  # addresses in one line
FEW_PORTS = 256  # below, the ports of a node's questions to one resolver are soon guessed (RFC 6056, section 2.1)
EXTERNAL = "do its policies take it to externalIPs of services?"
IN_CLUSTER = "any user may write them, so they are not in the cluster unless egress.in-cluster holds their network"
BEHIND = "do its policies take it to endpoints of services outside the cluster?"
WINNER = "of one destination the higher priority wins, then the older policy, then the name"
CAPPED = "is what it sends limited?"
FURTHER = "does it have other networks?"
OTHER_WAYS = (
    "what leaves by one is translated if it is a veth or netkit of the node; else the pod is told of when it runs"
)
ADD = "by the Service, on whatever node, that is dropped; cluster-cidrs says which networks are in the cluster"

LEFT_ALONE = (
    "no gateway sends these: they are the node's and its links', and pass as the CNI and NetworkPolicies let them"
)
DROPPED = "no host has such an address: dropped, unless cluster-cidrs says that it is in the cluster"
NO_ROUTE: Mapping[RouteState, tuple[str, str]] = {
    "installed": ("", ""),
    "pending": ("RoutePending", "the next round puts it there"),
    "not-on-link": ("NotOnLink", "none of its addresses is on an Ethernet link of this node: packets go as they did"),
    "taken": ("RouteTaken", "the main table has a route of another's to it, or to a part of it, which stays in force"),
}


class NoSuchObject(RouterdError):
    """The object that `why` was asked for is not in the store; the message names it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One condition and its outcome. `reason` is "" for yes, else the same reason as in status and metrics.

    A `note` is a no beside which what was asked for is in effect.
    """

    question: str
    yes: bool
    reason: str = ""
    detail: str = ""
    note: bool = False


def explain(
    snapshot: Snapshot,
    state: NodeState,
    settings: Settings,
    name: str,
    views: Views = NOBODY_ASKED,
    unannounced: Unannounced = NONE_LACKS,
) -> tuple[Step, ...]:
    """Steps for `svc/NAMESPACE/NAME`, `pod/NAMESPACE/NAME`, `egress/ADDRESS` or `node/NAME`, seen from `settings.node`.

    `views`: what the speaker says of sessions. `unannounced`: aggregates that are not announced for want of a
    blackhole, and what failed. Only a running agent can tell either.
    """
    ref = Ref.parse(name)
    explainers: dict[str, Callable[[Snapshot, NodeState, Settings, str], Iterator[Step]]] = {
        **dict.fromkeys(SERVICE_WORDS, partial(_service, views, unannounced)),
        POD: _pod,
    }
    if ref.kind == EGRESS and ref.name:
        return tuple(_egress(snapshot, ref.name))
    if ref.kind == NODE and ref.name:
        return tuple(_blocks(snapshot, ref.name))
    if ref.kind not in explainers or ref.key.count("/") != 1:
        raise NoSuchObject(f"{name!r} is none of svc/NAMESPACE/NAME, pod/NAMESPACE/NAME, egress/ADDRESS and node/NAME")
    return tuple(explainers[ref.kind](snapshot, state, settings, ref.key))


def is_service(name: str) -> bool:
    return Ref.parse(name).kind in SERVICE_WORDS


def _sync_step(snapshot: Snapshot, needs: tuple[str, ...]) -> Step:
    missing = snapshot.missing(needs)
    question = "is everything it needs read from the store?"
    if missing:
        return Step(question, False, "NotSynced", f"not yet read: {', '.join(missing)}; nothing is changed until then")
    return Step(question, True)


def _node_step(snapshot: Snapshot, settings: Settings) -> Step:
    question = f"does the store know node {settings.node}?"
    if settings.node in (snapshot.nodes or {}):
        return Step(question, True)
    return Step(question, False, "UnknownNode", "add the Node's manifest, or set node-name")


def _common(snapshot: Snapshot, settings: Settings, needs: tuple[str, ...]) -> list[Step]:
    first = _sync_step(snapshot, needs)
    return [first, _node_step(snapshot, settings)] if first.yes else [first]


# --- nodes


def _blocks(snapshot: Snapshot, name: str) -> Iterator[Step]:
    """What its pods have their addresses from, and what the operator says of the node."""
    first = _sync_step(snapshot, BLOCK_NEEDS)
    yield first
    if not first.yes:
        return
    node, allocations = (snapshot.nodes or {}).get(name), snapshot.allocations
    if node is None:
        raise NoSuchObject(f"the store has no Node {name}")
    assert allocations is not None
    given = {block for each in allocations.pod_cidrs if each.node == name for block in each.blocks}
    words = ", ".join(_block_words(block, given, snapshot) for block in node.pod_cidrs)
    question = "has it blocks for its pods?"
    if words or node.interfaces:
        yield Step(question, True, detail=words or "addresses of a cloud's interfaces")
    else:
        yield Step(question, False, "NoPodCIDRs", "let its controller manager or the operator give it some: pod-cidrs")
    for refusal in allocations.refusals:
        if refusal.object == node.ref:
            yield Step("does the operator say nothing against it?", False, refusal.reason, refusal.message, note=True)


def route_steps(state: NodeState, status: RouteStatus, snapshot: Snapshot, name: str) -> tuple[Step, ...]:
    """Whether packets go to the pods of another node without a tunnel; () where nobody asked for that."""
    desired: Routes = state.rooms.get(FIB_ROOM) or Routes()
    node = (snapshot.nodes or {}).get(name)
    if node is None or status.observed is None:
        return ()
    found = states(desired, status.observed)
    return tuple(_route_step(block, found[block]) for block in node.pod_cidrs if block in found)


def _route_step(block: IPNetwork, state: RouteState) -> Step:
    reason, detail = NO_ROUTE[state]
    return Step(f"has this node a route of ours to {block}?", not reason, reason, detail, note=bool(reason))


def _block_words(block: IPNetwork, given: Collection[IPNetwork], snapshot: Snapshot) -> str:
    pools = (
        each.name
        for each in snapshot.pod_pools.values()
        if any(cidr.network.version == block.version and block.overlaps(cidr.network) for cidr in each.cidrs)
    )
    pool = next(pools, "")
    return f"{block} ({'the operator' if block in given else 'spec.podCIDRs'}{f', pool {pool}' if pool else ''})"


# --- services


def _service(
    views: Views, unannounced: Unannounced, snapshot: Snapshot, state: NodeState, settings: Settings, key: str
) -> Iterator[Step]:
    steps = _common(snapshot, settings, SERVICE_NEEDS)
    yield from steps
    drain = state.announcements.drain if state.announcements is not None else None
    scene = scene_of(snapshot, settings.node, settings.rules, drain)
    if scene is None or not steps[-1].yes:
        return
    if key not in scene.services:
        yield _unread(snapshot, key)
        return
    service = scene.services[key]
    others = [*_beside_vips(scene, service, state.announcements, views)]
    is_only = not any(step.yes for step in others)
    yield from _vip_steps(scene, service, state.announcements, views, unannounced, is_only=is_only)
    yield from others
    yield from _backends_steps(snapshot, key)


def _backends_steps(snapshot: Snapshot, key: str) -> Iterator[Step]:
    """Where policies have its pods leave with its VIPs."""
    question, allocations = "do the pods behind it leave with its VIPs?", snapshot.allocations or Allocations()
    for policy in (each for each in (snapshot.policies or {}).values() if each.service == key):
        group = group_of(policy, allocations)
        if group is not None and group.gateways:
            by = ", ".join(group.gateways)
            yield Step(question, True, detail=f"{policy.key}: as {', '.join(map(str, group.egress_ips))} by {by}")
            continue
        told = next((each for each in allocations.refusals if each.object == policy.ref), None)
        lacks = ("NoGateway", "no node is its gateway") if group else ("NoGroup", "the operator has published no group")
        reason, message = (told.reason, told.message) if told else lacks
        yield Step(question, False, reason, f"{policy.key}: {message}; what it covers is dropped", note=True)


def _vip_steps(
    scene: Scene,
    service: Service,
    announced: Announcements | None,
    views: Views,
    unannounced: Unannounced,
    *,
    is_only: bool,
) -> Iterator[Step]:
    """`is_only`: nothing but a VIP is announced of the service."""
    for check in SERVICE_CHECKS:
        message = check.failure(scene, service)
        note = bool(message) and not is_only
        yield Step(check.question, not message, check.reason if message else "", message, note)
        if message:
            return
    yield from _half_served(scene, service)
    yield _peers_step(scene, announced)
    for refusal in family_refusals(scene, service):
        yield Step("has every family of its addresses an endpoint?", False, refusal.reason, refusal.message, note=True)
    prefixes = [*dict.fromkeys(wanted.path.prefix for wanted in service_paths(scene, service))]
    told = [prefix for prefix in prefixes if prefix not in unannounced]
    for prefix in prefixes:
        if prefix in unannounced:
            yield _blackhole_step(prefix, unannounced[prefix], note=any(_overlap(prefix, each) for each in told))
    for prefix in told:
        yield from _prefix_steps(prefix, announced, views)


def _blackhole_step(aggregate: IPNetwork, failure: str, *, note: bool) -> Step:
    """`note`: addresses of it are announced by themselves."""
    detail = f"it has no blackhole route on this node yet: {failure or 'the next round puts it there'}"
    return Step(f"is {aggregate} announced?", False, "NoBlackhole", detail, note)


def _beside_vips(scene: Scene, service: Service, announced: Announcements | None, views: Views) -> Iterator[Step]:
    for said in beside(scene, service):
        if isinstance(said, Refusal):
            yield Step("is it announced?", False, said.reason, said.message)
        else:
            yield from _prefix_steps(said.path.prefix, announced, views)


def _half_served(scene: Scene, service: Service) -> Iterator[Step]:
    """What is announced although something of it is refused, or its pool is gone."""
    refusal = scene.refused.get(service.ref)
    if refusal is not None:
        yield Step("has it all that it asks for?", False, refusal.reason, refusal.message, note=True)
    for address in scene.allocated[service.key].addresses:
        if scene.pools.holding(address) is None:
            message = (
                "no: its pool was renamed, narrowed or deleted; it stays announced as the pool said last, until "
                "the service is deleted or asks for another address"
            )
            yield Step(f"does {address} lie in a pool?", False, "AddressStranded", message, note=True)


def _unread(snapshot: Snapshot, key: str) -> Step:
    """A service that is not in the store: what is wrong with its document. Raises NoSuchObject if there is none."""
    refusal = next((each for each in snapshot.refusals if each.object == service_ref(key)), None)
    if refusal is None:
        raise NoSuchObject(f"service {key} is not in the store")
    return Step("could the service be read?", False, refusal.reason, refusal.message)


def _peers_step(scene: Scene, announced: Announcements | None) -> Step:
    question = f"has node {scene.node.name} a session to announce to?"
    if announced and announced.desired.peers:
        return Step(question, True, detail=", ".join(_with_overrides(announced.desired.peers)))
    if not scene.peers:
        return Step(question, False, "NoPeers", "no BGP peer is configured")
    here = peers_here(scene.peers, scene.node)
    if not here:
        return Step(question, False, "NoPeers", "the node selectors of every peer leave this node out")
    refused = [r for r in (announced.refusals if announced else ()) if r.object.kind == PEER]
    detail = "; ".join(f"{r.object}: {r.reason}: {r.message}" for r in refused)
    return Step(question, False, "NoPeers", detail or "no session can be opened")


def _with_overrides(sessions: Mapping[SessionKey, SpeakerPeer]) -> Iterator[str]:
    for key, name in session_names(sessions).items():
        override = sessions[key].override
        yield f"{name} (by {override})" if override else name


def _prefix_steps(prefix: IPNetwork, announced: Announcements | None, views: Views) -> Iterator[Step]:
    """To whom it is announced; a no for routers that have not negotiated its family, a note where others take it."""
    question = f"is {prefix} announced?"
    ribs = announced.desired.ribs if announced else {}
    name_of = session_names(ribs)
    peers = [key for key, rib in ribs.items() if prefix in rib]
    lacking = [key for key in peers if (view := views.get(key)) and view.up and not view.takes(prefix)]
    taking: dict[Path, list[str]] = {}
    for key in peers:
        if key not in lacking:
            taking.setdefault(ribs[key][prefix], []).append(name_of[key])
    for path, takers in taking.items():
        yield Step(question, True, detail=f"{path_text(path)} to {', '.join(takers)}")
    if not peers:
        yield Step(question, False, "NoNextHop" if ribs else "NoPeers", "no session carries this prefix")
    for key in ribs.keys() - peers if peers else ():
        detail = (
            "advertisements are for others, its export rules reject it, or the session lacks its family or next hop"
        )
        yield Step(f"is {prefix} announced to {name_of[key]}?", False, "NotForPeer", detail, note=True)
    for key in lacking:
        detail = f"the router has not negotiated {family_of(prefix)}: activate that family for the session there"
        yield Step(f"is {prefix} announced to {name_of[key]}?", False, "FamilyNotNegotiated", detail, note=bool(taking))


def session_steps(announced: Announcements | None, views: Views) -> tuple[Step, ...]:
    """Whether each session is up: what the speaker says, so only a running agent can tell."""
    sessions = announced.desired.peers if announced else {}
    names = session_names(sessions).items()
    return tuple(_session_step(name, sessions[key], views.get(key) or PeerView(key)) for key, name in names)


def _session_step(name: str, configured: SpeakerPeer, peer: PeerView) -> Step:
    question = f"is the session with {name} up?"
    session = peer.session
    if peer.up:
        return Step(question, True, detail=untold(configured) if session.announced else "")
    reason = session.last_reason or "no answer from the peer"
    return Step(question, False, "SessionDown", f"{session.state}: {reason}: {to_look_at(reason)}")


# --- pods


def gateway_steps(probed: Sequence[Probed]) -> tuple[Step, ...]:
    """Gateways of groups that this node has ports of, and that it leaves: what probes say, so only a running agent can
    tell.
    """
    return tuple(_gateway_step(each) for each in probed if each.filtered or each.state != "serves")


def first_packet_steps(status: EgressStatus, refusals: Iterable[Refusal]) -> tuple[Step, ...]:
    """How its flows begin on this node: what only a running agent can tell. `refusals`: of the node."""
    match status.first_packets:
        case "refused":
            found = (each for each in refusals if each.reason in (BYPASSED, MARK_TAKEN))
            return tuple(Step("may flows begin here?", False, each.reason, each.message) for each in found)
        case "forward":
            handed, question = status.passed.get("handed_in", 0), "does the host's forward hook let first packets pass?"
            if not status.held_back:
                return (Step(question, True, detail=f"all {handed}, of all pods here"),)
            detail = (
                f"{status.held_back} of {handed}, of all pods here, did not come out: a NetworkPolicy refuses them, "
            )
            detail += "a firewall, or the node's routes"
            return (Step(question, False, "HeldBack", detail, note=True),)
    return ()


def device_steps(pod: Pod, refusals: Iterable[Refusal]) -> tuple[Step, ...]:
    """Whether its packets come by the programs: what only a running agent can tell. `refusals`: of pods' addresses."""
    own = {Ref(POD_ADDRESS, name=str(address)) for address in pod.addresses}
    found = [each for each in refusals if each.object in own and each.reason in OF_DEVICES]
    question = "do its packets pass the programs?"
    return tuple(Step(question, False, each.reason, each.message) for each in found) or (Step(question, True),)


def _gateway_step(probed: Probed) -> Step:
    if probed.state == "silent" and probed.by == "link":
        detail = "flows go through the tunnel to it, where egress.transport allows that"
        question = f"does gateway {probed.node} answer probes without the tunnel?"
        return Step(question, False, "LinkSilent", detail, note=True)
    if probed.filtered:
        detail = "the network filters sources: flows go through the tunnel to it"
        question = f"does the link to gateway {probed.node} carry egress IPs?"
        return Step(question, False, "LinkFilters", detail, note=True)
    if probed.state == "silent":
        detail = "flows go by the others of its groups; where all are silent, they stay with theirs"
        return Step(f"does gateway {probed.node} answer probes?", False, "GatewaySilent", detail, note=True)
    detail = f"{', '.join(probed.reasons)}: flows go by others of its groups that serve"
    return Step(f"does gateway {probed.node} serve?", False, "GatewayLeaves", detail, note=True)


def _pod(snapshot: Snapshot, state: NodeState, settings: Settings, key: str) -> Iterator[Step]:
    steps = _common(snapshot, settings, POD_NEEDS)
    yield from steps
    if not steps[-1].yes:
        return
    pod = (snapshot.pods or {}).get(key)
    if pod is None:
        raise NoSuchObject(f"pod {key} is not in the store")
    for step in _placed(pod, settings.node):
        yield step
        if not step.yes:
            return
    yield from _leaving(snapshot, state, pod)


def _placed(pod: Pod, node: str) -> Iterator[Step]:
    on_node = pod.node == node
    where = f"it is on node {pod.node}: ask there" if pod.node else "it is not scheduled"
    yield Step(f"is it on node {node}?", on_node, "" if on_node else "OtherNode", "" if on_node else where)
    steered = is_steered(pod)
    question = "has it an address of its own?"
    if steered:
        yield Step(question, True, detail=", ".join(map(str, pod.addresses)))
    elif pod.host_network:
        yield Step(question, False, "HostNetwork", "it uses the node's network: egress policies do not take it")
    elif pod.finished:
        yield Step(question, False, "Finished", "it has ended: its address may already be another pod's")
    else:
        yield Step(question, False, "NoPodAddress", "its CNI has not given it an address yet")


def selecting(snapshot: Snapshot, pod: Pod) -> list[EgressPolicy]:
    """The policies that take `pod`, by key."""
    namespace = (snapshot.namespaces or {}).get(pod.namespace)
    labels = namespace.labels if namespace else {NAMESPACE_NAME_LABEL: pod.namespace}
    node = (snapshot.nodes or {}).get(pod.node)
    policies = sorted((snapshot.policies or {}).items())
    return [policy for _, policy in policies if selects(policy, pod, labels, node.labels if node else {})]


def _leaving(snapshot: Snapshot, state: NodeState, pod: Pod) -> Iterator[Step]:
    policies = selecting(snapshot, pod)
    question = "does an egress policy select it?"
    unsure = next((r for r in state.refusals if r.object == Ref(POD, pod.namespace, pod.name)), None)
    if unsure is not None and unsure.reason == "UnknownNamespace":
        yield Step(question, False, unsure.reason, unsure.message)
        return
    if not policies:
        yield Step(question, False, "NotSelected", "it leaves as its CNI does, with no egress IP")
        return
    yield Step(question, True, detail=", ".join(policy.key for policy in policies))
    if further := further_networks(pod.annotations):
        yield Step(FURTHER, True, "FurtherNetworks", f"{', '.join(further)}: {OTHER_WAYS}", note=True)
    if caps := passed_by(pod.annotations):
        yield Step(CAPPED, False, "BandwidthNotLimited", f"{' and '.join(caps)} {REDIRECTED}", note=True)
    allocations = snapshot.allocations or Allocations()
    for policy in policies:
        beaten = _beaten(policy, policies)
        for winner in sorted(set(beaten.values())):
            lost = [each for each, by in beaten.items() if by == winner]
            yield Step(_question(policy, lost), False, "OtherPolicyWins", f"{winner} does: {WINNER}", note=True)
        destinations = [each for each in policy.destinations if each not in beaten]
        if beaten and not destinations:
            continue
        group = group_of(policy, allocations)
        given = leaves_as(policy, group)
        translated = [each for each in destinations if egress_versions((each,), given)]
        lacking = unsupported(destinations, given)
        if translated or not lacking:
            step = _policy_step(policy, translated, state, allocations, group)
            yield step
            yield from _ports_step(policy, pod.node, allocations, group) if step.yes and group else ()
        if lacking:
            rest = [each for each in destinations if each not in translated]
            yield Step(_question(policy, rest), False, UNSUPPORTED_FAMILY, lacking, note=bool(translated))
    inside = state.egress.cluster if state.egress else frozenset()
    yield from _never_leaving(policies, inside)
    for names, question, advice in ((external_ips(snapshot), EXTERNAL, IN_CLUSTER), (endpoints(snapshot), BEHIND, ADD)):
        covered = [address for address in outside(names, inside) if any(_covers(each, address) for each in policies)]
        if covered:
            shown = ", ".join(f"{address} ({names[address]})" for address in sorted(covered, key=str)[:SHOWN])
            yield Step(question, True, detail=f"{shown}{', …' if covered[SHOWN:] else ''}: {advice}")


def _beaten(policy: EgressPolicy, policies: Sequence[EgressPolicy]) -> dict[IPNetwork, str]:
    """Destinations of a policy that another one which takes the pod has as a whole, and wins; by that one's key."""
    whole = (each for each in policies if not each.ports and not each.excluded)
    before = (each for each in whole if _precedence(each) < _precedence(policy))
    last = sorted(before, key=_precedence, reverse=True)
    winners = {network: each.key for each in last for network in each.destinations}
    return {network: winners[network] for network in policy.destinations if network in winners}


def _precedence(policy: EgressPolicy) -> tuple[int, str, str]:
    """As the datapath's: see `egress.entries`."""
    return -policy.priority, policy.created or "~", policy.key


def _never_leaving(policies: Sequence[EgressPolicy], inside: frozenset[IPNetwork]) -> Iterator[Step]:
    """What policies cover and no gateway sends, whatever they say."""
    covered = [network for policy in policies for network in policy.destinations]
    for networks, what in ((OF_THE_LINK, LEFT_ALONE), (NOBODYS, DROPPED)):
        named = [each for each in networks - inside if any(_overlap(each, other) for other in covered)]
        if named:
            shown = ", ".join(str(each) for each in sorted(named, key=lambda each: (each.version, each)))
            yield Step(f"do its policies take it to {shown}?", False, "NeverLeaves", what, note=True)


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _covers(policy: EgressPolicy, address: IPAddress) -> bool:
    def holds(networks: Sequence[IPNetwork]) -> bool:
        return any(network.version == address.version and address in network for network in networks)

    return holds(policy.destinations) and not holds(policy.excluded)


def _question(policy: EgressPolicy, destinations: Sequence[IPNetwork]) -> str:
    return f"does {policy.key} take it to {', '.join(map(str, destinations)) or 'nowhere'}?"


def _policy_step(
    policy: EgressPolicy,
    destinations: Sequence[IPNetwork],
    state: NodeState,
    allocations: Allocations,
    group: EgressGroup | None,
) -> Step:
    question = _question(policy, destinations)
    if group is None:
        reasons = [r for r in state.refusals if r.object == policy.ref and r.reason != UNSUPPORTED_FAMILY]
        reason = reasons[0].reason if reasons else "NoGroup"
        return Step(question, False, reason, reasons[0].message if reasons else "the operator has published no group")
    if state.egress and state.egress.node_address is None:
        message = "the node has no address to be its tunnel endpoint: the traffic is dropped"
        return Step(question, False, "NoTunnelEndpoint", message)
    desired_group = state.egress.groups.get(group.id) if state.egress else None
    gateways = desired_group.used_gateways if desired_group else ()
    if not gateways:
        messages = [r.message for r in state.refusals if r.object == group.address_ref]
        detail = messages[0] if messages else f"group {group.id} has no gateway that is up: the traffic is dropped"
        return Step(question, False, "NoGateway", detail)
    refusal = gateways_refused(group.policies, allocations)
    doubt = f"; {refusal.message}" if refusal is not None else ""
    addresses = " or ".join(map(str, group.egress_ips))
    by = " or ".join(gateway.node for gateway in gateways)
    way = f"{'out by its own node, answers ' if policy.exit_local else ''}by gateway {by}"
    return Step(question, True, detail=f"as {addresses} {way} (group {group.id}){doubt}")


def _ports_step(policy: EgressPolicy, node: str, allocations: Allocations, group: EgressGroup) -> Iterator[Step]:
    """Which ports the node has: without any, nothing leaves."""
    blocks = own_blocks(allocations, node, {group.id}).get(group.id, ())
    usable = [(address, block) for address, block in blocks if not block.returning]
    question = f"has node {node} ports to leave with?"
    if not usable:
        told = (r.message for r in allocations.refusals if r.object == policy.ref and r.reason in OF_PORTS)
        detail = next(told, "the operator gives it some when its agent asks")
        yield Step(question, False, "NoPorts", detail)
        return
    shown = ", ".join(f"{address}:{block.first}-{block.last}" for address, block in usable[:SHOWN])
    ports = sum(block.size for _, block in usable)
    few = f"; {ports.bit_length() - 1} bits of chance towards a resolver (RFC 6056)" if ports < FEW_PORTS else ""
    yield Step(question, True, detail=f"{ports}: {shown}{', …' if usable[SHOWN:] else ''}{few}")


# --- egress IPs


def _egress(snapshot: Snapshot, name: str) -> Iterator[Step]:
    """`name` is the address of a group, or its number."""
    first = _sync_step(snapshot, EGRESS_NEEDS)
    yield first
    allocations = snapshot.allocations
    if not first.yes or allocations is None:
        return
    groups = allocations.groups
    group = next((each for each in groups if name in (*map(str, each.egress_ips), str(each.id))), None)
    if group is None:
        told = _refusal_of(name, allocations.refusals)
        detail = f"{told.object}: {told.message}" if told else "the operator has published no egress group for it"
        yield Step(f"has {name} an egress group?", False, told.reason if told else "NoGroup", detail)
        return
    policies = ", ".join(group.policies) or "no policy has it any more; what runs goes on, nothing begins"
    addresses = ", ".join(map(str, group.egress_ips))
    yield Step(f"has {name} an egress group?", True, detail=f"{addresses}, group {group.id}: {policies}")
    refusal = gateways_refused(group.policies, allocations)
    if refusal is None:
        how = "in this order" if group.gateway_mode == "active-standby" else "all alike"
        shown = f"{', '.join(group.gateways)} ({how})" if group.gateways[1:] else ", ".join(group.gateways)
        yield Step("has it a gateway whose agent serves?", True, detail=shown)
    else:
        yield Step("has it a gateway whose agent serves?", False, refusal.reason, refusal.message)
    yield from _silent_agents(snapshot, group.policies, group.gateways)


def _refusal_of(address: str, refusals: Iterable[Refusal]) -> Refusal | None:
    """The first that speaks of the address: not of one that begins or ends with it, and of no number of a group."""
    if address.isdecimal():
        return None
    word = re.compile(rf"(?<![\w.:]){re.escape(address)}(?![\w:]|\.\w)")
    return next((each for each in refusals if word.search(each.message)), None)


def gateways_refused(policies: Sequence[str], allocations: Allocations) -> Refusal | None:
    """What the operator says of the gateways of a group with these policies."""
    told = (each for each in allocations.refusals if each.reason in OF_AGENTS and str(each.object) in policies)
    return next(told, None)


def _silent_agents(snapshot: Snapshot, policies: Sequence[str], gateways: Sequence[str]) -> Iterator[Step]:
    """Of nodes that would be gateways: one that is silent is none, or is one for want of another."""
    known, nodes = snapshot.policies or {}, snapshot.nodes or {}
    selectors = {known[key].gateways for key in policies if key in known}
    for refusal in snapshot.allocations.refusals if snapshot.allocations else ():
        node = nodes.get(refusal.object.name) if refusal.object.kind == NODE else None
        if refusal.reason == "AgentAbsent" and node and any(is_gateway(each, node) for each in selectors):
            yield Step(f"is the agent of {node.name} heard?", False, refusal.reason, refusal.message, note=True)
    silent = {each.node for each in (snapshot.allocations or Allocations()).nodes if each.silent_since}
    for name in gateways:
        if name not in silent:
            yield Step(f"is the agent of {name} heard?", True)
