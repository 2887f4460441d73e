"""What operator and agents would refuse of files: their own decisions, with nothing given out yet. Pure.

Left out is what is a state and no mistake (a node that is drained, no endpoint on it), and what only a running cluster
knows (reports, agents that are not heard).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Literal

from egress.policy import UNSUPPORTED_FAMILY
from routerd.agent.plugins.fixed import SHARED, Pools, wish_of
from routerd.agent.settings import settings_of
from routerd.cluster.assign import assign
from routerd.cluster.conflicts import NO_POOL
from routerd.cluster.ledger import Ledger
from routerd.config import Config
from routerd.formats.foreign.policies import askers
from routerd.model import Allocations, IPAddress, Node, NodeReport, Origin, Peer, Refusal, Snapshot, with_blocks
from routerd.node.announce import announcements
from routerd.node.rooms.routes import direct_routes
from routerd.node.sessions import Way, entries_here, idle_overrides
from routerd.operator.settings import assign_settings
from routerd.refs import POD, Ref, service_ref

Severity = Literal["error", "warning"]
BETTER = frozenset({"NoGateway", "AwaitingNodeReports", "PolicyRefused", UNSUPPORTED_FAMILY})  # told by `check`
# no mistake of a file, the operator's word, or known to the node alone
STATES = frozenset({"NoAddress", "NodeDrained", "NetworkUnavailable", "RouterNotFound"})
OF_POOLS = frozenset({"NoPool", NO_POOL})
GUESSED = frozenset({"NoRoute", "NoNextHop"})  # the node's interfaces may have what its Node object lacks


@dataclass(frozen=True, slots=True)
class Decided:
    """A refusal and where its object is written."""

    severity: Severity
    refusal: Refusal
    origin: Origin


def as_decided(snapshot: Snapshot, config: Config, reports: Mapping[str, NodeReport], now: float) -> Snapshot | None:
    """With what an operator that remembers nothing would publish for it; None while a part is unknown.

    Which gateway holds an address of a cloud only the cloud tells: gateways are as everywhere else. Interfaces that it
    gave stay.
    """
    settings = replace(assign_settings(config), cloud_networks=())
    decision = assign(snapshot, Ledger(), reports, now, settings)
    if not decision.synced:
        return None
    published = snapshot.allocations.interfaces if snapshot.allocations is not None else ()
    allocations = replace(decision.allocations, interfaces=published)
    nodes = with_blocks(snapshot.nodes or {}, allocations.pod_cidrs, allocations.interfaces)
    return replace(snapshot, nodes=nodes, allocations=allocations)


def decided(snapshot: Snapshot, config: Config) -> list[Decided]:
    """In the order of the decisions. Nothing while a part is unknown."""
    whole = as_decided(snapshot, config, {}, 0.0)
    if whole is None or whole.allocations is None:
        return []
    found = [*_of_operator(whole, whole.allocations), *_of_agents(whole, config), *_of_routes(whole, config)]
    found += [*_of_overrides(whole), *_of_pods(whole)]
    places = _places(snapshot)
    asking = askers((snapshot.pods or {}).values(), (snapshot.namespaces or {}).values())
    told = ((severity, refusal, asking.get(refusal.object)) for severity, refusal in found)
    return [
        Decided(severity, refusal, places.get(refusal.object, Origin()))
        if by is None
        else Decided(
            severity, replace(refusal, object=by.ref, message=f"{by.annotation}: {refusal.message}"), by.origin
        )
        for severity, refusal, by in told
    ]


def _of_operator(snapshot: Snapshot, allocations: Allocations) -> Iterator[tuple[Severity, Refusal]]:
    """An error is what leaves its object without what it asks for."""
    served = {str(service_ref(each.service)) for each in allocations.services}
    served |= {policy for group in allocations.groups for policy in group.policies}
    for refusal in allocations.refusals:
        is_elsewhere = refusal.reason in OF_POOLS and not snapshot.pools  # pools are other files' matter
        if refusal.reason not in BETTER and not is_elsewhere:
            is_served = str(refusal.object) in served or refusal.severity == "warning"
            yield "warning" if is_served else "error", refusal


def _of_agents(snapshot: Snapshot, config: Config) -> Iterator[tuple[Severity, Refusal]]:
    """What is refused on several nodes is told of the first."""
    rules = settings_of(config).rules
    sliced = {each.service_key for each in snapshot.endpoint_slices or ()}
    told: set[tuple[Ref, str]] = set()
    for name, node in sorted((snapshot.nodes or {}).items()):
        announced = announcements(snapshot, name, rules, likely_sources(snapshot, node))
        for refusal in announced.refusals if announced else ():
            if refusal.severity == "info" or refusal.reason in STATES or (refusal.object, refusal.reason) in told:
                continue
            if refusal.reason == "NoEndpoints" and refusal.object.key not in sliced:
                continue  # nobody writes slices beside the manifests of a cluster
            if refusal.reason in GUESSED and not node.addresses:
                continue
            told.add((refusal.object, refusal.reason))
            is_sure = refusal.severity == "error" and refusal.reason not in GUESSED
            yield "error" if is_sure else "warning", refusal


def _of_routes(snapshot: Snapshot, config: Config) -> Iterator[tuple[Severity, Refusal]]:
    """Told of the first node that refuses any: the others say the same."""
    nodes, pools = snapshot.nodes or {}, snapshot.pools or {}
    each = (direct_routes(nodes, node, pools)[1] for _, node in sorted(nodes.items()))
    refused = next(filter(None, each), ()) if config.native_routing.auto_direct_node_routes else ()
    return (("warning", refusal) for refusal in refused)


def _of_pods(snapshot: Snapshot) -> Iterator[tuple[Severity, Refusal]]:
    """Fixed addresses that `routerd-ipam` would not give; a warning, as another plugin may give addresses."""
    first: dict[IPAddress, str] = {}
    pools: Pools = {**(snapshot.pools or {}), **snapshot.pod_pools}
    for pod in (snapshot.pods or {}).values():
        namespace = (snapshot.namespaces or {}).get(pod.namespace)
        keys = {*pod.annotations, *(namespace.annotations if namespace is not None else ())}
        if pod.host_network or pod.finished or (not snapshot.pod_pools and not keys.isdisjoint(SHARED)):
            continue  # pools are other files' matter
        wish, about = wish_of(pod, pools, namespace), Ref(POD, pod.namespace, pod.name)
        if isinstance(wish, str):
            yield "warning", Refusal(about, "AddressNotGiven", wish)
            continue
        for address in wish.exact:
            if (owner := first.setdefault(address, pod.key)) != pod.key:
                message = f"{address} is asked for by Pod {owner}, too: whichever starts first has it"
                yield "warning", Refusal(about, "AddressNotGiven", message)


def _of_overrides(snapshot: Snapshot) -> Iterator[tuple[Severity, Refusal]]:
    """Files without nodes say nothing of them."""
    nodes, peers = (snapshot.nodes or {}).values(), snapshot.bgp.peers if snapshot.bgp else ()
    return (("warning", refusal) for peer in peers if nodes for refusal in idle_overrides(peer, nodes))


def likely_sources(snapshot: Snapshot, node: Node) -> dict[Way, IPAddress | None]:
    """The local address of each session of a node that is not this machine, from its Node object."""
    peers = entries_here(snapshot.bgp.peers, node) if snapshot.bgp else {}
    return {way: _likely_source(peer, node) for way, peer in peers.items()}


def _likely_source(peer: Peer, node: Node) -> IPAddress | None:
    if peer.interface and peer.address.is_link_local:
        return IPv6Address("fe80::")  # which one is the interface's
    same_family = (address for address in node.addresses if address.version == peer.address.version)
    return peer.source_address or next(same_family, None)


def _places(snapshot: Snapshot) -> Mapping[Ref, Origin]:
    """Of two entries of one peer the later one, which is refused."""
    pools: Iterable[tuple[Ref, Origin]] = (
        (Ref("AddressPool", name=name), pool.origin) for name, pool in (snapshot.pools or {}).items()
    )
    things = (snapshot.policies or {}, snapshot.services or {}, snapshot.nodes or {})
    named = ((each.ref, each.origin) for mapping in things for each in mapping.values())
    peers = ((peer.ref, peer.origin) for peer in (snapshot.bgp.peers if snapshot.bgp else ()))
    pods = {Ref(POD, each.namespace, each.name): each.origin for each in (snapshot.pods or {}).values()}
    return {**dict(pools), **dict(named), **dict(peers), **pods}
