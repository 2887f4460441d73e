"""What `routerd show` prints: rows of plain values, one function per thing to show.

Pure. Rows are dictionaries of JSON values with the same columns in every row, so that a table, JSON and CSV agree. The
agent serves them, and `--manifests` computes the same ones from files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bfd.control import View as Watched
from bfd.table import Order
from bgp.path import Path, SessionKey, session_names
from bgp.rib import family_of
from bgp.session import PeerStatus as Session
from egress.policy import selected_pods
from egress.status import Probed, TunnelWay
from fib import blackholes
from fib.plan import Desired as Routes
from fib.plan import Observed as RoutesObserved
from fib.plan import Status as RouteStatus
from fib.plan import states
from ipam.pod_addresses import PodAddresses
from ipam.pool import count_buggy, key_of
from routerd.memo import Tally, by_identity
from routerd.model import (
    EXCLUDE_LABEL,
    GATEWAY_LABEL,
    AddressPool,
    Allocations,
    EgressGroup,
    IPAddress,
    IPNetwork,
    Node,
    Refusal,
    ServiceAllocation,
    Snapshot,
)
from routerd.node.desired import FIB_ROOM, NodeState
from routerd.node.groups import group_of
from routerd.node.pools import PoolIndex
from routerd.refs import PEER
from routerd.tell.columns import COLUMNS
from routerd.tell.transport import transport_to

Value = str | int | float | bool | None
Row = dict[str, Value]
UNTOLD = Session("unknown")  # the speaker says nothing


@dataclass(frozen=True, slots=True)
class PeerView:
    """What the speaker says of one session. `since` is seconds in the present state."""

    key: SessionKey
    session: Session = UNTOLD
    since: float | None = None
    bfd: Watched | None = None  # None = not watched, or nobody says

    @property
    def up(self) -> bool:
        return self.session.state == "up"

    def takes(self, prefix: IPNetwork) -> bool | None:
        """Whether the session carries paths of that family now; None = nobody asked the speaker."""
        if self.session is UNTOLD:
            return None
        return self.up and family_of(prefix) in self.session.families


@dataclass(frozen=True, slots=True)
class View:
    """Everything that rows are made of."""

    snapshot: Snapshot
    state: NodeState
    peers: Mapping[SessionKey, PeerView]
    nat: tuple[Row, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)  # of nodes that say more of it than their Node
    now: float | None = None  # seconds of the Unix epoch; None = what is shown is not of now
    probed: tuple[Probed, ...] = ()
    tunnel_packets: TunnelWay | None = None
    pod_addresses: PodAddresses = field(default_factory=PodAddresses)
    routes: RouteStatus = field(default_factory=RouteStatus)
    ticks: float | None = None  # seconds of the monotonic clock, likewise


def rows(kind: str, view: View) -> list[Row]:
    """Rows of `kind`, sorted. KeyError for a kind that is not in `COLUMNS`: whoever asks has looked."""
    makers: dict[str, Callable[[View], list[Row]]] = {
        "nodes": _nodes,
        "peers": _peers,
        "bfd": _bfd,
        "paths": _paths,
        "policies": _policies,
        "pools": lambda view: pool_rows(view.snapshot),
        "egress-ips": lambda view: egress_ip_rows(view.snapshot.allocations),
        "port-sets": lambda view: port_set_rows(view.snapshot.allocations),
        "nat": _nat,
        "pod-addresses": _pod_addresses,
        "pod-cidrs": _pod_cidrs,
        "routes": _routes,
        "gateways": lambda view: [_gateway_row(each) for each in sorted(view.probed, key=_by_way)],
    }
    return makers[kind](view)


def _pod_cidrs(view: View) -> list[Row]:
    """Whoever gave them."""
    found = [(block, node.name) for node in (view.snapshot.nodes or {}).values() for block in node.pod_cidrs]
    found.sort(key=lambda each: (key_of(each[0].network_address), each))
    return [{"block": str(block), "node": node, "addresses": block.num_addresses} for block, node in found]


def _routes(view: View) -> list[Row]:
    """To pods of other nodes, and blackholes: in our tables, or why not; without a kernel that was read, what is
    wanted.
    """
    desired: Routes = view.state.rooms.get(FIB_ROOM) or Routes()
    observed, learnt = view.routes.observed, desired.learnt or {}
    state_of = states(desired, observed) if observed is not None else {}
    there, links = (observed.routes, observed.links) if observed is not None else ({}, {})
    owners = {block: name for name, node in (view.snapshot.nodes or {}).items() for block in node.pod_cidrs}
    rows: list[Row] = [
        {
            "prefix": str(prefix),
            "node": owners.get(prefix, ""),
            "by": _joined(word for word, told in (("link", desired.routes), ("bgp", learnt)) if prefix in told),
            "next_hops": _joined(hop.address for hop in hops) or _joined(_next_hops(desired, prefix)),
            "devices": _joined(links.get(hop.ifindex, "") for hop in hops),
            "state": state_of.get(prefix, "wanted"),
        }
        for prefix in sorted(desired.prefixes, key=_prefix_order)
        for hops in (sorted(there.get(prefix, ())),)
    ]
    return [*rows, *_blackhole_rows(desired.aggregates or {}, observed)]


def _blackhole_rows(
    aggregates: Mapping[IPNetwork, Sequence[IPNetwork]], observed: RoutesObserved | None
) -> Iterator[Row]:
    """Of what this node announces as a whole; `taken`: `main` has a route of its own, which counts, to all of it."""
    for prefix in sorted(aggregates, key=_prefix_order):
        found = blackholes.state(aggregates[prefix], observed.verdicts) if observed is not None else "wanted"
        yield {
            "prefix": str(prefix),
            "node": "",
            "by": "aggregate",
            "next_hops": "blackhole",
            "devices": "",
            "state": found,
        }


def _next_hops(desired: Routes, prefix: IPNetwork) -> tuple[IPAddress, ...]:
    return desired.routes.get(prefix) or (desired.learnt or {}).get(prefix, ())


def _pod_addresses(view: View) -> list[Row]:
    held = view.pod_addresses
    found = sorted(held.holds.values(), key=lambda each: key_of(each.address))
    return [
        {
            "address": str(each.address),
            "block": str(held.block_of(each.address) or ""),
            "state": each.state,
            "pod": each.owner.pod,
            "network": each.attachment.network,
            "interface": each.attachment.interface,
            "container": each.attachment.container,
            "since_seconds": None if view.now is None else max(round(view.now - each.since), 0),
        }
        for each in found
    ]


def _joined(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


def _nodes(view: View) -> list[Row]:
    groups = view.snapshot.allocations.groups if view.snapshot.allocations else ()
    told = view.snapshot.allocations.nodes if view.snapshot.allocations else ()
    silent = {each.node: each.silent_since for each in told if each.silent_since}
    way_of = view.state.egress, view.snapshot.allocations, view.probed, view.tunnel_packets
    return [
        _node(node, view.states.get(name) or _node_state(node, silent), groups, _age(silent.get(name, ""), view.now))
        | {"transport": transport_to(name, *way_of)}
        for name, node in sorted((view.snapshot.nodes or {}).items())
    ]


def _age(since: str, now: float | None) -> int | None:
    """Seconds; None of nothing, and where it is not of now."""
    if not since or now is None:
        return None
    return max(round(now - datetime.fromisoformat(since).timestamp()), 0)


def _node_state(node: Node, silent: Container[str]) -> str:
    """In the words of the operator; a node that is silent says nothing of itself."""
    if node.leaving:
        return "leaving"
    return "silent" if node.name in silent else "cordoned" if node.unschedulable else "serving"


def _node(node: Node, state: str, groups: Iterable[EgressGroup], silent_seconds: int | None) -> Row:
    is_out = state in ("leaving", "draining", "drained")
    return {
        "name": node.name,
        "ready": node.ready,
        "state": state,
        "agent_silent_seconds": silent_seconds,
        "addresses": _joined(node.addresses),
        "pod_cidrs": _joined(node.pod_cidrs),
        "gateway": GATEWAY_LABEL in node.labels,
        "announces_services": not (is_out or EXCLUDE_LABEL in node.labels or node.network_unavailable),
        "groups": _joined(group.id for group in groups if node.name in group.gateways),
    }


def _peers(view: View) -> list[Row]:
    desired = view.state.announcements.desired if view.state.announcements else None
    peer_rows: list[Row] = []
    for key, session in sorted(desired.peers.items() if desired else (), key=lambda item: item[0].order):
        peer_view = view.peers.get(key) or PeerView(key)
        peer_rows.append(
            {
                "peer": session.description or str(key.peer),
                "address": str(key.peer),
                "remote_as": session.remote_as,
                "local_as": session.local_as,
                "local_address": str(key.local),
                "state": peer_view.session.state,
                "bfd": _bfd_word(view, key),
                "since_seconds": None if peer_view.since is None else round(peer_view.since, 1),
                "paths": _count(peer_view, desired.ribs.get(key, {}) if desired else {}),
                "flaps": peer_view.session.flaps,
                "override": session.override,
                "reason": peer_view.session.last_reason,
            }
        )
    return peer_rows + [_refused_peer(refusal) for refusal in view.state.refusals if refusal.object.kind == PEER]


def _bfd_word(view: View, key: SessionKey) -> str:
    """State of the BFD session; "" of a peer that is not watched, "unknown" where nobody says."""
    found = view.peers.get(key)
    if found is not None and found.bfd is not None:
        return found.bfd.state
    return "unknown" if key in view.state.watched else ""


def _bfd(view: View) -> list[Row]:
    table: list[Row] = []
    for key, order in sorted(view.state.watched.items(), key=lambda item: item[0].order):
        found = view.peers.get(key) or PeerView(key)
        table.append(_bfd_row(order, found.bfd, view.ticks))
    return table


def _bfd_row(order: Order, found: Watched | None, ticks: float | None) -> Row:
    """Intervals as agreed; where nobody says, as wanted."""
    row: Row = {**dict.fromkeys(COLUMNS["bfd"]), "peer": str(order.peer), "local_address": str(order.local)}
    if found is None:
        return {**row, "state": "unknown", "interval_ms": order.timers.min_tx / 1000}
    return {
        **row,
        "state": found.state,
        "peer_state": found.peer_state,
        "since_seconds": None if ticks is None else round(max(ticks - found.since, 0.0), 1),
        "interval_ms": found.interval / 1000,
        "detection_ms": found.detection / 1000,
        "flaps": found.falls,
        "reason": found.reason,
    }


def _count(view: PeerView, rib: Mapping[IPNetwork, Path]) -> int:
    """Paths that the peer has; where nobody asked the speaker, those that it should have."""
    return len(rib) if view.session is UNTOLD else view.session.announced


def _refused_peer(refusal: Refusal) -> Row:
    row: Row = dict.fromkeys(COLUMNS["peers"])
    cells = {"peer": refusal.object.name, "reason": f"{refusal.reason}: {refusal.message}"}
    return {**row, "state": "refused", "paths": 0, "flaps": 0, **cells}


def _order(address: IPAddress) -> tuple[int, int]:
    return (address.version, int(address))


def _prefix_order(prefix: IPNetwork) -> tuple[int, int, int]:
    return (prefix.version, int(prefix.network_address), prefix.prefixlen)


def _paths(view: View) -> list[Row]:
    announced = view.state.announcements
    if announced is None:
        return []
    path_rows: list[Row] = []
    name_of = session_names(announced.desired.ribs)
    for key in sorted(announced.desired.ribs, key=lambda key: key.order):
        rib = announced.desired.ribs[key]
        for prefix in sorted(rib, key=_prefix_order):
            path = rib[prefix]
            path_rows.append(
                {
                    "peer": name_of[key],
                    "prefix": str(prefix),
                    "next_hop": str(path.next_hop or "self"),
                    "local_pref": path.local_pref,
                    "med": path.med,
                    "prepend": path.prepend,
                    "origin": path.origin,
                    "communities": _joined(path.communities),
                    "session": _session_word(view.peers.get(key) or PeerView(key), prefix),
                    "owners": _joined(announced.owners_in(key, prefix)),
                }
            )
    return path_rows


def _session_word(peer: PeerView, prefix: IPNetwork) -> str:
    """What becomes of a path in its session; "" where nobody asked the speaker."""
    if peer.session is UNTOLD:
        return ""
    return peer.session.state if peer.takes(prefix) or not peer.up else "not negotiated"


def _policies(view: View) -> list[Row]:
    return [_policy(key, view) for key in sorted(view.snapshot.policies or {})]


def _policy(key: str, view: View) -> Row:
    policy = (view.snapshot.policies or {})[key]
    group = group_of(policy, view.snapshot.allocations or Allocations())
    desired_group = view.state.egress.groups.get(group.id) if group and view.state.egress else None
    gateways = desired_group.used_gateways if desired_group else ()
    pods = selected_pods(view.state.egress) if view.state.egress else ()
    return {
        "policy": key,
        "destinations": _joined(policy.destinations),
        "egress_ip": _joined(group.egress_ips) if group else "",
        "group": group.id if group else None,
        "gateways": _joined(gateway.node for gateway in gateways),
        "pods_here": sum(key in names for names in pods),
        "reason": _joined(refusal.reason for refusal in view.state.refusals if refusal.object == policy.ref),
    }


def _nat(view: View) -> list[Row]:
    """What the datapath knows by number has its node's name; the number stays where nobody has it any more."""
    numbers = view.snapshot.allocations.numbers if view.snapshot.allocations else ()
    names = {each.number: each.node for each in numbers}
    return [{**row, "gateway": _name(row["gateway"], names)} for row in view.nat]


def _by_way(probed: Probed) -> tuple[str, int]:
    return probed.node, probed.way


def _gateway_row(probed: Probed) -> Row:
    """A gateway by which pods of this node may leave, as its probes say."""
    return {
        "gateway": probed.node,
        "by": probed.by,
        "state": probed.state,
        "round_trip_ms": round(probed.round_trip * 1e3, 3),
        "probes": probed.sent,
        "unanswered": probed.sent - probed.answered,
        "idle_seconds": round(probed.idle, 1),
        "reason": _joined((*probed.reasons, *(["filtered"] if probed.filtered else []))),
    }


def _name(number: Value, names: Mapping[int, str]) -> Value:
    return names.get(number, number) if isinstance(number, int) else number


# --- rows that the operator's document and the pools tell alone


class UsedAddresses:
    """By pool, how many of its addresses services or egress groups hold, whichever pool they were given from.

    Kept from time to time (`routerd.memo`).
    """

    def __init__(self) -> None:
        self._pools: Mapping[str, AddressPool] = {}
        self._services: Tally[ServiceAllocation, IPAddress] = Tally(lambda each: each.addresses)
        self._groups: Tally[EgressGroup, IPAddress] = Tally(lambda each: each.egress_ips)
        self._held: set[IPAddress] = set()
        self._counts: Counter[str] = Counter()

    def of(
        self,
        pools: Mapping[str, AddressPool],
        allocations: Allocations,
        allocated: Mapping[str, ServiceAllocation] | None = None,
    ) -> Counter[str]:
        """`allocated`: those of services by their names, None = not known."""
        services = {each.service: each for each in allocations.services} if allocated is None else allocated
        came = (*self._services.update(services), *self._groups.update(by_identity(allocations.groups)))
        touched = set[IPAddress]().union(*came)
        if pools != self._pools:
            self._pools, self._counts, touched = pools, Counter(), touched | self._held
            self._held = set()
        index = PoolIndex(pools)
        for address in touched:
            is_held = address in self._services.values or address in self._groups.values
            if is_held != (address in self._held):
                self._held ^= {address}
                if (pool := index.holding(address)) is not None:
                    self._counts[pool.name] += 1 if is_held else -1
        return self._counts


def pool_size(pool: AddressPool) -> int:
    """How many addresses the pool can give."""
    total = sum(block.num_addresses for block in pool.blocks)
    if not pool.avoid_buggy_ips:
        return total
    return total - sum(count_buggy(key_of(block.network_address), block.num_addresses) for block in pool.blocks)


def pool_rows(
    snapshot: Snapshot,
    kept: UsedAddresses | None = None,
    allocated: Mapping[str, ServiceAllocation] | None = None,
) -> list[Row]:
    """`kept`: of the last rows; it is renewed. `allocated`: see `UsedAddresses.of`."""
    table: list[Row] = []
    counts = (kept or UsedAddresses()).of(snapshot.pools or {}, snapshot.allocations or Allocations(), allocated)
    for name, pool in sorted((snapshot.pools or {}).items()):
        total, used = pool_size(pool), counts[name]
        table.append(
            {
                "pool": name,
                "protocol": pool.protocol,
                "uses": _joined(sorted(pool.uses)),
                "addresses": total,
                "used": used,
                "free": max(total - used, 0),
                "disabled": pool.disabled,
            }
        )
    return table


def egress_ip_rows(allocations: Allocations | None) -> list[Row]:
    """The firewall administrator's list: which source address is which policy's, and where it may come from."""
    groups = allocations.groups if allocations else ()
    found = ((address, group) for group in groups for address in group.egress_ips)
    return [
        {
            "egress_ip": str(address),
            "policies": _joined(group.policies),
            "pool": group.pool,
            "group": group.id,
            "active_gateways": _joined(group.active_gateways),
            "gateways": _joined(group.gateways),
            "node_address": group.node_address,
        }
        for address, group in sorted(found, key=lambda each: (_order(each[0]), each[1].id))
    ]


def port_set_rows(allocations: Allocations | None) -> list[Row]:
    """Which node may use which ports of an egress IP; those that rest are nobody's."""
    if allocations is None:
        return []
    names = {each.number: each.node for each in allocations.numbers}
    groups = {address: group.id for group in allocations.groups for address in group.egress_ips}
    table: list[Row] = []
    for each in allocations.bindings:
        states = {False: "granted", True: "returning"}
        found = [(one.first, one.size, names.get(one.node, ""), states[one.returning]) for one in each.blocks()]
        found += [(first, size, "", "cooling") for one in each.cooling for first, size in one.ranges]
        for first, size, node, state in sorted(found):
            ports = f"{first}-{first + size - 1}"
            row: Row = {"egress_ip": str(each.egress_ip), "ports": ports, "size": size, "node": node, "state": state}
            table.append({**row, "group": groups.get(each.egress_ip)})
    return table
