"""Desired state as sorted lines of text, one fact per line, for stories, `routerd plan` and `routerd show`.

Pure. Two equal states give equal text, and a changed state changes at least one line: what is said of a value names
the fields that it speaks of, and a field of which nothing speaks is an error when this module is imported. Passwords
never show; with a key, a mark stands for each, that another password changes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from bfd.probes import Probing
from bfd.table import Order
from bgp.path import AdjRibOut, Path, SessionKey, SpeakerPeer, session_names
from bgp.path import Desired as BgpDesired
from egress.entries import port_ranges
from egress.policy import FLOW_DEADLINE, Block, Gateway, Group, Policy, Ports, Served, Watch
from egress.policy import Desired as EgressDesired
from eni.plan import Desired as Wiring
from fib.plan import Desired as Routes
from routerd.model import IPAddress, IPNetwork, Refusal
from routerd.node.announce import Announcements
from routerd.node.desired import BFD_ROOM, EGRESS_ROOM, ENI_ROOM, FIB_ROOM, PROBE_ROOM, NodeState

T = TypeVar("T")
DEFAULT_FAMILIES = ("ipv4 unicast", "ipv6 unicast")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """What is said of some fields of a value: nothing, words of its line, or lines."""

    fields: str  # names, separated by blanks
    say: Callable[[T], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Sentence(Generic[T]):
    """What is said of a value, in order; every field is spoken of. TypeError otherwise."""

    kind: type[T]
    parts: tuple[Part[T], ...]

    def __post_init__(self) -> None:
        named = [name for part in self.parts for name in part.fields.split()]
        existing = [field.name for field in fields(self.kind)]  # type: ignore[arg-type]
        if sorted(named) != sorted(existing):
            raise TypeError(f"{self.kind.__name__}: {sorted(set(named) ^ set(existing))} must be said once")

    def of(self, value: T) -> list[str]:
        return [words for part in self.parts for words in part.say(value)]

    def line(self, value: T) -> str:
        return " ".join(self.of(value))


def _if(words: str, *there: object) -> tuple[str, ...]:
    """`words`, if any of the values is not empty."""
    return (words,) if any(there) else ()


def _joined(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


# --- announcements


PATH: Sentence[Path] = Sentence(
    Path,
    (
        Part("prefix", lambda path: (str(path.prefix),)),
        Part("next_hop", lambda path: (f"next-hop {path.next_hop or 'self'}",)),
        Part("local_pref", lambda path: () if path.local_pref is None else (f"local-pref {path.local_pref}",)),
        Part("med", lambda path: () if path.med is None else (f"med {path.med}",)),
        Part("prepend", lambda path: _if(f"prepend {path.prepend}", path.prepend)),
        Part("origin", lambda path: _if(f"origin {path.origin}", path.origin != "igp")),
        Part("communities", lambda path: _if(f"community {_joined(path.communities)}", path.communities)),
    ),
)


def path_text(path: Path) -> str:
    """`192.0.2.1/32 next-hop self local-pref 100 community 64512:1`: only what is set."""
    return PATH.line(path)


def _families(peer: SpeakerPeer) -> tuple[str, ...]:
    return _if(f"families {_joined(peer.families) or 'none'}", peer.families != DEFAULT_FAMILIES)


SESSION: Sentence[SpeakerPeer] = Sentence(
    SpeakerPeer,
    (
        Part("local_as local_address", lambda peer: (f"AS{peer.local_as} {peer.local_address} ->",)),
        Part("interface", lambda peer: _if(f"by {peer.interface}", peer.interface)),
        Part("remote_as address", lambda peer: (f"AS{peer.remote_as} {peer.address}",)),
        Part("port", lambda peer: _if(f"port {peer.port}", peer.port != 179)),
        Part("passive", lambda peer: _if("passive", peer.passive)),
        Part("listen_port", lambda peer: _if(f"listens on {peer.listen_port}", peer.listen_port)),
        Part("connect_retry", lambda peer: _if(f"connect-retry {peer.connect_retry}", peer.connect_retry)),
        Part("router_id hold_time", lambda peer: (f"router-id {peer.router_id} hold {peer.hold_time}",)),
        Part("keepalive_time", lambda peer: _if(f"keepalive {peer.keepalive_time}", peer.keepalive_time)),
        Part(
            "graceful_restart_time",
            lambda peer: _if(f"graceful-restart {peer.graceful_restart_time}", peer.graceful_restart_time),
        ),
        Part("families", _families),
        Part("imports", lambda peer: _if(f"takes {_joined(peer.imports)}", peer.imports)),
        Part("min_ttl", lambda peer: _if(f"min-ttl {peer.min_ttl}", peer.min_ttl)),
        Part("max_prefixes", lambda peer: _if(f"max-prefixes {peer.max_prefixes}", peer.max_prefixes)),
        Part("extended_next_hop", lambda peer: _if("extended-next-hop", peer.extended_next_hop)),
        Part("description", lambda peer: _if(f"name {peer.description!r}", peer.description)),
        Part("override", lambda peer: _if(f"by {peer.override}", peer.override)),
        Part("password", lambda peer: _if("md5", peer.password)),
    ),
)


def session_text(peer: SpeakerPeer, key: bytes = b"") -> str:
    """One session. With a `key`, a mark of the password: of no use to whoever does not have the key."""
    mark = hmac.new(key, peer.password.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:8]
    return SESSION.line(peer) + (f" {mark}" if key and peer.password else "")


def _in_order(mapping: Mapping[SessionKey, T]) -> list[tuple[SessionKey, T]]:
    return sorted(mapping.items(), key=lambda item: item[0].order)


def _bgp(key: bytes) -> Sentence[BgpDesired]:
    """`peer ADDRESS SESSION`, sorted by address, then paths."""

    def peers(desired: BgpDesired) -> Iterator[str]:
        return (f"peer {session.peer} {session_text(peer, key)}" for session, peer in _in_order(desired.peers))

    return Sentence(BgpDesired, (Part("peers", peers), Part("ribs", lambda it: path_lines(it.ribs))))


def session_changes(
    peers: Mapping[SessionKey, SpeakerPeer],
    unloaded: Mapping[SessionKey, str],
    reset_by: Mapping[SessionKey, Sequence[str]] = {},
) -> list[str]:
    """Sessions that are not loaded as they should be, "new", "changed" or "gone", one line each. `reset_by`: the keys
    for which those that changed begin anew.
    """
    sentences = {
        "gone": "- peer {0}: its session ends",
        "changed": "~ peer {0}: its session is reset{2}: {1}",
        "new": "+ peer {0} {1}",
    }
    name_of = session_names({*peers, *unloaded})
    by = {key: f" by {', '.join(keys)}" if keys else "" for key, keys in reset_by.items()}
    return [
        sentences[how].format(name_of[key], session_text(peers[key]) if key in peers else "", by.get(key, ""))
        for key, how in _in_order(unloaded)
    ]


def path_lines(ribs: Mapping[SessionKey, AdjRibOut], others: Iterable[SessionKey] = ()) -> list[str]:
    """`path ADDRESS PATH`, sorted by peer, then prefix; with where the session is from if that peer has several, as
    these or `others`.
    """
    lines: list[str] = []
    name_of = session_names({*ribs, *others})
    for key, rib in _in_order(ribs):
        paths = sorted(
            rib.values(), key=lambda p: (p.prefix.version, int(p.prefix.network_address), p.prefix.prefixlen)
        )
        lines.extend(f"path {name_of[key]} {path_text(path)}" for path in paths)
    return lines


# --- egress


PORTS: Sentence[Ports] = Sentence(
    Ports,
    (
        Part("protocol", lambda it: (it.protocol,)),
        Part(
            "first last",
            lambda it: _if(f"{it.first}" + (f"-{it.last}" if it.last != it.first else ""), it.first, it.last),
        ),
    ),
)
GATEWAY: Sentence[Gateway] = Sentence(
    Gateway,
    (
        Part("node number", lambda it: (f"{it.node}#{it.number}",)),
        Part("up", lambda it: _if("(down)", not it.up)),
    ),
)
POLICY: Sentence[Policy] = Sentence(
    Policy,
    (
        Part("name", lambda it: (f"policy {it.name} ->",)),
        Part("group", lambda it: (f"group {it.group}" if it.group else "dropped (no group)",)),
        Part("destinations", lambda it: (f"to {_joined(it.destinations)}",)),
        Part("excluded", lambda it: _if(f"except {_joined(it.excluded)}", it.excluded)),
        Part("ports", lambda it: _if(f"ports {_joined('/'.join(PORTS.of(ports)) for ports in it.ports)}", it.ports)),
        Part("priority", lambda it: _if(f"priority {it.priority}", it.priority)),
        Part("created", lambda it: _if(f"since {it.created}", it.created)),
        Part("exit_local", lambda it: _if("out here", it.exit_local)),
    ),
)
BLOCK: Sentence[Block] = Sentence(
    Block,
    (
        Part("egress_ip first size", lambda it: (f"{it.egress_ip}:{it.first}-{it.first + it.size - 1}",)),
        Part("closed", lambda it: _if("(closed)", it.closed)),
    ),
)
GROUP: Sentence[Group] = Sentence(
    Group,
    (
        Part("id egress_ips", lambda it: (f"group {it.id} {_joined(it.egress_ips)}",)),
        Part("node_address", lambda it: _if("node-address", it.node_address)),
        Part("gateways", lambda it: (f"via {' '.join(''.join(GATEWAY.of(g)) for g in it.gateways) or 'nothing'}",)),
        Part("in_order", lambda it: _if("in this order", it.in_order)),
        Part("blocks", lambda it: (f"ports {_joined(''.join(BLOCK.of(b)) for b in it.blocks) or 'none'}",)),
    ),
)


def _networks(word: str, networks: Iterable[Any]) -> Iterator[str]:
    return (f"{word} {network}" for network in _by_family(networks))


def _by_family(values: Iterable[Any]) -> list[Any]:
    """Addresses or networks, IPv4 first."""
    return sorted(values, key=lambda each: (each.version, each))


def _pods(pods: Mapping[IPAddress, tuple[str, ...]]) -> Iterator[str]:
    return (f"pod {address} {' '.join(pods[address]) or '-'}" for address in _by_family(pods))


def _told_devices(told: Mapping[IPAddress, frozenset[str]]) -> Iterator[str]:
    return (f"pod-device {address} {' '.join(sorted(told[address]))}" for address in _by_family(told))


def _served_line(address: IPAddress, served: Served) -> str:
    ranges = " ".join(f"{first}-{last}#{number}" for first, last, number in port_ranges(served.numbers))
    group = f" group {served.group}" if served.group else ""
    also = " node-address" if served.node_address else " vip" if served.vip else ""
    return f"serve {address}{group}{also} {ranges or 'nobody'}"


def _first_packets(it: EgressDesired) -> tuple[str, ...]:
    return _if(f"first-packets {it.network_policy} mark {it.forward_mark:#x}", it.network_policy != "direct")


def _transport(it: EgressDesired) -> Iterator[str]:
    if it.transport != "vxlan":
        yield f"transport {it.transport}"
    if it.tunnel_packets != "auto":
        yield f"tunnel-packets {it.tunnel_packets}"
    for number, each in sorted(it.neighbours.items()):
        yield f"neighbour {number} {each.mac.hex(':')}{f' {each.link_local}' if each.link_local else ''}"


def _detours(it: EgressDesired) -> Iterator[str]:
    for each in sorted(it.detours, key=lambda each: (each.protocol, each.port, each.version, sorted(each.addresses))):
        where = ", ".join(map(str, sorted(each.addresses))) or "every node"
        ends = ", ".join(f"{address} port {port or 'any'}" for address, port in sorted(each.ends))
        yield f"detour {each.protocol.lower()} {each.port} of {where} to {ends}"
    yield from _networks("node-address", it.node_addresses)


def _watch_line(watch: Watch | None) -> Iterator[str]:
    return (f"watch gateways each {each.interval * 1e3:g} ms times {each.multiplier}" for each in (watch,) if each)


EGRESS: Sentence[EgressDesired] = Sentence(
    EgressDesired,
    (
        Part(
            "node node_address tunnel_port",
            lambda it: (f"node {it.node} {it.node_address or '-'} udp {it.tunnel_port}",),
        ),
        Part("pods", lambda it: _pods(it.pods)),
        Part("told_devices", lambda it: _told_devices(it.told_devices)),
        Part("policies", lambda it: (POLICY.line(policy) for _, policy in sorted(it.policies.items()))),
        Part("groups", lambda it: (GROUP.line(group) for _, group in sorted(it.groups.items()))),
        Part("cluster", lambda it: _networks("cluster", it.cluster)),
        Part("pod_cidrs", lambda it: _networks("pod-cidr", it.pod_cidrs)),
        Part("pools", lambda it: _networks("pool", it.pools)),
        Part("detours node_addresses", _detours),
        Part("served", lambda it: (_served_line(address, it.served[address]) for address in _by_family(it.served))),
        Part("nodes", lambda it: (f"tunnel-node {number} {address}" for number, address in sorted(it.nodes.items()))),
        Part("transport tunnel_packets neighbours", _transport),
        Part("icmp_sources", lambda it: _networks("icmp-source", it.icmp_sources)),
        Part("uplinks", lambda it: (f"uplink {name}" for name in it.uplinks)),
        Part("network_policy forward_mark", _first_packets),
        Part(
            "flow_deadline",
            lambda it: _if(f"flow-deadline {it.flow_deadline} s", it.flow_deadline != FLOW_DEADLINE),
        ),
        Part("watch", lambda it: _watch_line(it.watch)),
        Part("out_of_service", lambda it: (f"out-of-service {each}" for each in sorted(it.out_of_service))),
    ),
)


def egress_lines(desired: EgressDesired) -> list[str]:
    """`node`, `pod`, `policy`, `group`, `cluster`, `pod-cidr`, `pool`, `detour`, `node-address`, `serve`,
    `tunnel-node`, `icmp-source`, `uplink`, `first-packets`, `watch` and `out-of-service` lines, sorted inside.
    """
    return EGRESS.of(desired)


# --- bfd


def bfd_lines(desired: Mapping[SessionKey, Order]) -> list[str]:
    """`bfd PEER from LOCAL send MS take MS times COUNT`, IPv4 first."""
    return [_bfd_line(order) for _, order in _in_order(desired)]


def _bfd_line(order: Order) -> str:
    timers = order.timers
    intervals = f"send {timers.min_tx / 1000:g}ms take {timers.min_rx / 1000:g}ms times {timers.multiplier}"
    return f"bfd {order.peer} from {order.local} {intervals}{' passive' if timers.passive else ''}"


def probe_lines(probing: Probing) -> list[str]:
    """`probe DEVICE from LOCAL each MS node NUMBER`, in the order of the numbers."""
    head = f"probe {probing.device} from {probing.local} each {probing.interval / 1000:g}ms"
    return [f"{head} node {number}" for number in sorted(probing.gateways)]


def wiring_lines(desired: Wiring) -> list[str]:
    """`interface MAC via GATEWAY for BLOCKS` in their order, and whether pods may ask the metadata service."""
    lines = [
        f"interface {each.mac} via {_joined(each.gateways)} for {_joined(each.blocks)}" for each in desired.interfaces
    ]
    return [*lines, *_if("no metadata for pods", desired.interfaces and desired.metadata)]


def route_lines(desired: Routes) -> list[str]:
    """`route PREFIX via ADDRESSES` and `learnt route PREFIX via ADDRESSES`, IPv4 first, then `blackhole PREFIX` and
    `no blackhole PREFIX`; `learnt routes as they are` while nobody knows what peers announce, and so `blackholes as
    they are`.
    """
    direct = [f"route {prefix} via {_joined(desired.routes[prefix])}" for prefix in _by_family(desired.routes)]
    told = desired.learnt
    learnt = ["learnt routes as they are"] if told is None else _learnt_lines(told)
    return [*direct, *learnt, *_blackhole_lines(desired)]


def _blackhole_lines(desired: Routes) -> Iterator[str]:
    if desired.aggregates is None:
        yield "blackholes as they are"
        return
    for part in _by_family({part for parts in desired.aggregates.values() for part in parts}):
        yield f"blackhole {part}"
    for prefix in _by_family(desired.spared):
        yield f"no blackhole {prefix}"


def _learnt_lines(told: Mapping[IPNetwork, Sequence[IPAddress]]) -> list[str]:
    return [f"learnt route {prefix} via {_joined(told[prefix])}" for prefix in _by_family(told)]


# --- all of it

ROOMS: Mapping[str, Callable[[Any], list[str]]] = {
    EGRESS_ROOM: egress_lines,
    BFD_ROOM: bfd_lines,
    PROBE_ROOM: probe_lines,
    ENI_ROOM: wiring_lines,
    FIB_ROOM: route_lines,
}  # KeyError for one without words


def _rooms(rooms: Mapping[str, Any]) -> Iterator[str]:
    return (line for name, desired in rooms.items() if desired is not None for line in ROOMS[name](desired))


def _state(key: bytes) -> Sentence[NodeState]:
    bgp = _bgp(key)
    announced: Sentence[Announcements] = Sentence(
        Announcements,
        (
            Part("desired", lambda it: bgp.of(it.desired)),
            Part("owners refusals drain entries aggregates shares", lambda it: ()),  # why, not what
        ),
    )
    return Sentence(
        NodeState,
        (
            Part("announcements", lambda it: announced.of(it.announcements) if it.announcements else ()),
            Part("rooms", lambda it: _rooms(it.rooms)),
            Part("refusals", lambda it: ()),  # `refusal_lines`
            Part("selecting", lambda it: ()),  # what pods here leave by stands in the room
            Part("may_retire", lambda it: _if("gateway state stays: withdrawals are held", not it.may_retire)),
        ),
    )


STATE = _state(b"")


def state_lines(state: NodeState, key: bytes = b"") -> list[str]:
    """Every part; one that is not synced has no line. `key`: see `session_text`."""
    return (_state(key) if key else STATE).of(state)


def refusal_lines(refusals: Iterable[Refusal]) -> list[str]:
    return [f"no {refusal.object} {refusal.reason}: {refusal.message}" for refusal in refusals]


def changes(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """`- line` for what goes and `+ line` for what comes; in the order of the inputs, all removals first."""
    old, new = list(before), list(after)
    removed, added = set(old) - set(new), set(new) - set(old)
    return [f"- {line}" for line in old if line in removed] + [f"+ {line}" for line in new if line in added]
