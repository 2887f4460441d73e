"""A model of the datapath: what each program does with one packet, and which policy decides. Pure; it forwards nothing
and reads no clock.

Each program is a function of `Tables`, `State` and a packet that returns an `Outcome`; `State.apply` makes its changes.
The packet tests hold the compiled programs against this model. What the programs draw at random (`Draw`: a port that is
free, an id) is read back from them, and the model says whether they were allowed to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bpf import layout
from egress.entries import RuleSpec
from egress.policy import IPAddress, Policy, Protocol
from tests.models import liveness
from tests.models.fragments import followed, fresh_id, on_wire, owner_of_id, remember
from tests.models.liveness import Rank, rank_of
from tests.models.tables import (
    ICMP,
    ICMP6,
    TCP,
    UDP,
    About,
    Change,
    EgressIp,
    Flow,
    FlowKey,
    GroupHere,
    Hop,
    Packet,
    Port,
    PortBlock,
    PortKey,
    State,
    Tables,
    icmp_of,
    longest,
)

OVERHEAD = {4: 40, 6: 60}  # of the IP and TCP headers
FIRST_PORT = 1024  # those below are given to no node
REST_REMOTE_FIRST, REST_POD_FIRST, REST_RESET = 60, 10, 4  # seconds
Verdict = Literal["next", "drop", "redirect"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` is the counter that went up, "" for none, and `before` one more; `packet` leaves for `to`."""

    verdict: Verdict
    reason: str = ""
    packet: Packet | None = None
    to: str = ""
    changes: tuple[Change, ...] = ()
    before: str = ""

    def after(self, *changes: Change) -> Outcome:
        return replace(self, changes=(*changes, *self.changes))


@dataclass(frozen=True, slots=True)
class Draw:
    """What the programs drew for a new flow: the address and the port that it bears."""

    egress_ip: IPAddress
    port: int
    id: int = 0


NEXT = Outcome("next")


def _drop(reason: str) -> Outcome:
    return Outcome("drop", reason)


# --- what a packet says


def _translatable(packet: Packet) -> bool:
    """An echo reply answers a question: it begins nothing."""
    return packet.kind == "flow" and packet.echo != "reply"


def _matches(rule: RuleSpec, packet: Packet) -> bool:
    """Ports of a later fragment are not known: it may belong to any of its protocol. In IPv6 the first alone says which
    that is.
    """
    if packet.kind == "fragment" and packet.version == 6:
        return True
    if rule.protocol not in (0, ICMP if packet.protocol == ICMP6 else packet.protocol):
        return False
    return not rule.first or packet.kind == "fragment" or rule.first <= packet.destination_port <= rule.last


def _seen(before: int, packet: Packet) -> int:
    """A RST counts until something else passes: anyone may send one (RFC 7857, section 2.2)."""
    return before & ~layout.SEEN_RST | packet.seen


def _over(seen_out: int, seen_in: int) -> bool:
    return bool((seen_out | seen_in) & layout.SEEN_RST or seen_out & seen_in & layout.SEEN_FIN)


def _left_alone(packet: Packet, device: int) -> Outcome:
    return NEXT.after(*remember(packet, device, packet.id))


def _stays_on_link(packet: Packet) -> bool:
    link_multicast = (
        packet.version == 6 and packet.destination.packed[0] == 0xFF and packet.destination.packed[1] & 15 == 2
    )
    return packet.version == 6 and (packet.destination.is_link_local or link_multicast)


def _error(tables: Tables, packet: Packet, about: About, to: str) -> Outcome:
    """The sender gets an ICMP error about its packet, where that can be quoted and this node has an address for it."""
    source = tables.icmp_sources.get(packet.version)
    if packet.options or packet.kind == "icmp-error" or packet.position or source is None:
        return _drop("too_big" if about == "too-big" else "ttl_expired")
    quoted = on_wire(packet)
    answer = Packet(
        source, packet.source, icmp_of(packet.version), kind="icmp-error", quoted=quoted, about=about, length=0
    )
    return Outcome("redirect", "too_big_answered" if about == "too-big" else "ttl_answered", answer, to)


# --- source node


@dataclass(frozen=True, slots=True)
class Home:
    """Where a pod's packet is from, and where the program sees it."""

    key: FlowKey
    uplink: int = 0  # at which the host, which has made the hop, sends it; 0 = it comes from the pod

    @property
    def by_host(self) -> bool:
        return self.uplink != 0

    @property
    def seen_at(self) -> int:
        return self.uplink or self.key.ifindex


def _is_inside(tables: Tables, address: IPAddress) -> bool:
    return longest(tables.cluster, address) == layout.PLACE_INSIDE


def _is_nowhere(tables: Tables, address: IPAddress) -> bool:
    return longest(tables.cluster, address) == layout.PLACE_NOWHERE


def _drop_if_strict(tables: Tables, device: int, reason: str) -> Outcome:
    return _drop(reason) if device in tables.strict_devices else NEXT


def _judge_stranger(tables: Tables, device: int, packet: Packet) -> Outcome:
    if device in tables.strict_devices:
        return _drop("spoofed_source")
    is_borrowed = packet.destination in tables.pod_devices and not _is_inside(tables, packet.source)
    return _drop("foreign_source") if is_borrowed else NEXT


def _forges_tunnel(tables: Tables, packet: Packet) -> bool:
    to_port = packet.kind == "flow" and packet.protocol == UDP and packet.destination_port == tables.tunnel_port
    return to_port and packet.destination in tables.nodes


def _own_port(state: State, key: FlowKey, flow: Flow) -> tuple[PortKey, Port] | None:
    if flow.egress_ip is None:
        return None
    port_key = PortKey(flow.egress_ip, key.remote, flow.egress_port, key.remote_port, key.protocol)
    port = state.ports.get(port_key)
    return (port_key, port) if port and port.id == flow.id else None


def from_pod(tables: Tables, state: State, device: int, packet: Packet, draw: Draw | None = None) -> Outcome:
    """Ingress of a pod's host-side device. `packet.sent_id`: the id that the programs drew for a first fragment."""
    packet = followed(state, packet, device)
    if packet.kind == "not-ip":
        return NEXT
    if packet.kind in ("malformed", "bad-fragment"):
        return _drop_if_strict(tables, device, packet.kind.replace("-", "_"))
    if _stays_on_link(packet):
        return NEXT
    if _forges_tunnel(tables, packet):
        return _drop("tunnel_port")
    if packet.handed_in and tables.network_policy:
        return _hand_in(tables, packet, device)
    key = packet.sent_by(device)
    outcome, ended = _resume(tables, state, packet, Home(key))
    if outcome is not None:
        return outcome
    state = _applied(state, ended)
    policy_set = tables.pods.get((device, packet.source))
    if policy_set is None:
        return _judge_stranger(tables, device, packet).after(*ended)
    if _is_inside(tables, packet.destination):
        return NEXT.after(*ended)
    if packet.kind == "icmp-error":
        return _report_error(tables, state, packet, device, policy_set).after(*ended)
    rule = _begins_by(tables, packet, device, policy_set)
    if isinstance(rule, Outcome):
        return rule.after(*ended)
    if tables.network_policy:
        return _hand_in(tables, packet, device).after(*ended)
    return _begin_flow(tables, state, packet, Home(key), rule, draw).after(*ended)


def _resume(tables: Tables, state: State, packet: Packet, home: Home) -> tuple[Outcome | None, tuple[Change, ...]]:
    """What becomes of the packet by the flow that is known; None = there is none, or it has ended."""
    flow = state.flows.get(home.key) if packet.kind == "flow" else None
    if flow is None:
        return None, ()
    if not _reopens(state, home.key, flow, packet):
        outcome = _continue_flow(tables, state, packet, home, flow)
        if outcome is not None:
            return outcome, ()
    return None, _end_flow(state, home.key, flow)


def _hand_in(tables: Tables, packet: Packet, device: int) -> Outcome:
    """The host has it, by its natural route."""
    if tables.network_policy != layout.POLICY_FORWARD:
        return _drop("unenforced")
    return Outcome("next", "handed_in").after(*remember(packet, device, packet.id, handed_in=True))


def to_uplink(tables: Tables, state: State, device: int, packet: Packet, draw: Draw | None = None) -> Outcome:
    """Egress of an uplink, of a packet that bears the mark and came from another device."""
    if tables.network_policy != layout.POLICY_FORWARD:
        return NEXT
    return replace(_take_up(tables, state, followed(state, packet, device), device, draw), before="came_out")


def _take_up(tables: Tables, state: State, packet: Packet, device: int, draw: Draw | None) -> Outcome:
    if packet.kind == "fragment":
        return _drop("fragment")
    pod_device = tables.pod_devices.get(packet.source)
    if packet.kind != "flow" or pod_device is None or _is_inside(tables, packet.destination):
        return _drop("stray_mark")
    home = Home(packet.sent_by(pod_device), device)
    outcome, ended = _resume(tables, state, packet, home)
    if outcome is not None:
        return outcome
    rule = _begins_by(tables, packet, device, tables.pods[pod_device, packet.source])
    if isinstance(rule, Outcome):
        return (_drop("stray_mark") if rule.verdict == "next" else rule).after(*rule.changes, *ended)
    return _begin_flow(tables, _applied(state, ended), packet, home, rule, draw).after(*ended)


def to_beneath(tables: Tables, device: int, packet: Packet, mac: bytes) -> Outcome:
    """Egress of a device that a pod's own lies upon."""
    if packet.kind == "not-ip" or _stays_on_link(packet) or _is_inside(tables, packet.destination):
        return NEXT
    policy_set = tables.pod_macs.get((device, mac), tables.pods.get((device, packet.source)))
    asked = packet if packet.kind == "flow" else replace(packet, kind="fragment")  # whatever its ports are
    return _drop("unhooked") if policy_set and _rule(tables, asked, policy_set) else NEXT


def _applied(state: State, changes: tuple[Change, ...]) -> State:
    after = State(dict(state.flows), dict(state.ports))
    after.apply(changes)
    return after


def _reopens(state: State, key: FlowKey, flow: Flow, packet: Packet) -> bool:
    """Whether `packet` opens a connection on the ports of one that has ended, or that was opened to the pod."""
    if not packet.opens:
        return False
    if not flow.group:
        return True
    own = _own_port(state, key, flow)
    return own is None or _over(flow.seen_out, own[1].seen_in)


def _end_flow(state: State, key: FlowKey, flow: Flow) -> tuple[Change, ...]:
    own = _own_port(state, key, flow) if flow.group else None
    changes = _rest(own, _rest_after(flow.seen_out)) if own else ()
    return (*changes, Change("flows", key, None))


def _rest(own: tuple[PortKey, Port], seconds: float) -> tuple[Change, ...]:
    key, port = own
    return (Change("ports", key, replace(port, state="resting", rests=seconds)),) if port.state == "live" else ()


def _rest_after(seen_out: int) -> int:
    if seen_out & layout.SEEN_RST:
        return REST_RESET
    return REST_POD_FIRST if seen_out & layout.SEEN_FIN_FIRST else REST_REMOTE_FIRST


def _rule(tables: Tables, packet: Packet, policy_set: int) -> RuleSpec | None:
    rules = longest(tables.policies.get(policy_set, {}), packet.destination) or ()
    return next((rule for rule in rules if _matches(rule, packet)), None)


def _begins_by(tables: Tables, packet: Packet, device: int, policy_set: int) -> RuleSpec | Outcome:
    """The rule by which the packet may begin a flow, or what becomes of it."""
    rule = _rule(tables, packet, policy_set)
    if rule is None:
        return _left_alone(packet, device) if policy_set else NEXT
    if _is_nowhere(tables, packet.destination):
        return _drop("bogus_destination")
    if packet.position:
        return _drop("fragment")
    if not _translatable(packet):
        return _drop("unsupported_protocol")
    return rule


def _begin_flow(tables: Tables, state: State, packet: Packet, home: Home, rule: RuleSpec, draw: Draw | None) -> Outcome:
    key = home.key
    if tables.hands_over:
        return _drop("handing_over")
    group = tables.groups.get(rule.group) if rule.group else None
    if group is None:
        return _drop("no_group")
    blocks = [block for block in group.blocks if _is_open(block, packet)]
    echoed = liveness.echoed_by(group, blocks)
    chosen = liveness.pick(tables, group, key, echoed)
    if chosen is None:
        return _drop("no_gateway")
    if chosen.way not in echoed:
        return _drop("untried_port_set" if blocks else "no_port_set")
    refusal = _refuse_flow(tables, state, key.ifindex)
    if refusal:
        return _drop(refusal)
    usable = replace(group, blocks=tuple(each for each in blocks if chosen.way in liveness.echoed_by(group, [each])))
    flow = Flow(
        rule.group, packet.seen, gateway=chosen.node, settled=chosen.settled, exit_local=rule.exit_local,
        direct=chosen.direct,
    )  # fmt: skip
    return _open_flow(tables, state, packet, home, flow, usable, draw)


def _refuse_flow(tables: Tables, state: State, device: int) -> str:
    """A pod has at most its quota, and at most as much as is still free."""
    most, own, every = tables.limits, state.use(device), state.use()
    if not most.flows_per_pod:
        return ""
    if own.flows >= min(most.flows_per_pod, most.flow_room - every.flows - every.outside):
        return "flow_quota"
    return "port_quota" if own.ports >= min(most.ports_per_pod, most.port_room - every.ports) else ""


def _is_open(block: PortBlock, packet: Packet) -> bool:
    return not block.closed and block.egress_ip.version == packet.version


def _open_flow(
    tables: Tables, state: State, packet: Packet, home: Home, flow: Flow, group: GroupHere, draw: Draw | None
) -> Outcome:
    key = home.key
    drawn = draw and PortKey(draw.egress_ip, key.remote, draw.port, key.remote_port, key.protocol)
    chosen = _choose(state, [block for block in group.blocks if _is_open(block, packet)], key, drawn)
    if chosen is None:
        return _drop("no_free_port")
    if chosen not in state.ports and len(state.ports) >= tables.port_room:
        return _drop("reverse_table_full")
    flow = replace(flow, egress_ip=chosen.egress_ip, egress_port=chosen.egress_port, id=draw.id if draw else 0)
    port = Port(key.pod, key.ifindex, key.pod_port, flow.group, flow.id, gateway=flow.gateway)
    if len(state.flows) >= tables.flow_room:
        rested = replace(port, state="resting", rests=0)
        return _drop("flow_table_full").after(Change("ports", chosen, rested))
    sent = _send_out(tables, packet, flow, home)
    return sent.after(Change("ports", chosen, port), Change("flows", key, flow))


def _choose(state: State, blocks: list[PortBlock], key: FlowKey, drawn: PortKey | None) -> PortKey | None:
    """The port that the programs drew, if it is free; else one that they should have: one that is free, or where there
    is none the one that has rested longest.
    """
    if drawn and any(block.has(drawn) for block in blocks) and _is_free(state.ports.get(drawn), key):
        return drawn
    keys = [
        PortKey(block.egress_ip, key.remote, port, key.remote_port, key.protocol)
        for block in blocks
        for port in range(block.first, block.first + block.size)
    ]
    resting = [(state.ports[k].rests, k) for k in keys if k in state.ports and state.ports[k].state == "resting"]
    free = (port_key for port_key in keys if _is_free(state.ports.get(port_key), key))
    return next(free, min(resting)[1] if resting else None)


def _is_free(port: Port | None, key: FlowKey) -> bool:
    """A port at rest is its own pod's at once."""
    if port is None:
        return True
    if port.state != "resting":
        return False
    return port.rests <= 0 or (port.pod, port.ifindex, port.pod_port) == (key.pod, key.ifindex, key.pod_port)


def _continue_flow(tables: Tables, state: State, packet: Packet, home: Home, flow: Flow) -> Outcome | None:
    """None = it is its own no more, and begins anew."""
    key = home.key
    if flow.seen_out & layout.SEEN_BEFORE:
        return None
    if not flow.group:
        seen = replace(flow, seen_out=_seen(flow.seen_out, packet))
        return _left_alone(packet, home.seen_at).after(Change("flows", key, seen))
    own = _own_port(state, key, flow)
    if flow.seen_out & layout.SEEN_END and own is None:
        return None
    kept = _keep_gateway(tables, key, flow)
    if isinstance(kept, str):
        return None if kept == "no_group" else _drop(kept)
    flow = replace(kept, seen_out=_seen(flow.seen_out, packet))
    flow, changes = _note_end_out(own, flow, packet)
    return _send_out(tables, packet, flow, home).after(Change("flows", key, flow), *changes)


def _keep_gateway(tables: Tables, key: FlowKey, flow: Flow) -> Flow | str:
    """The flow, with another gateway if its own is not good; or why there is none."""
    way = flow.gateway | (layout.WAY_DIRECT if flow.direct else 0)
    if flow.settled and not (tables.multiplier and tables.ranks.get(way)):
        return flow
    group = tables.groups.get(flow.group)
    if group is None:
        return "no_group"
    blocks = [block for block in group.blocks if block.holds(flow.egress_ip, flow.egress_port)]
    chosen = liveness.pick(tables, group, key, liveness.echoed_by(group, blocks), flow.gateway)
    if chosen is None:
        return "no_gateway"
    return replace(flow, gateway=chosen.node, direct=chosen.direct, settled=chosen.settled)


def _note_end_out(own: tuple[PortKey, Port] | None, flow: Flow, packet: Packet) -> tuple[Flow, tuple[Change, ...]]:
    if own is None or not packet.seen & (layout.SEEN_FIN | layout.SEEN_RST):
        return flow, ()
    seen_out, seen_in = flow.seen_out, own[1].seen_in
    if seen_out & layout.SEEN_FIN and not seen_in & layout.SEEN_FIN:
        seen_out |= layout.SEEN_FIN_FIRST
    if not (seen_out & layout.SEEN_RST or seen_out & seen_in & layout.SEEN_FIN):
        return replace(flow, seen_out=seen_out), ()
    return replace(flow, seen_out=seen_out | layout.SEEN_END), _rest(own, _rest_after(seen_out))


def _report_error(tables: Tables, state: State, packet: Packet, device: int, policy_set: int) -> Outcome:
    """A pod's own ICMP error about an answer that it got."""
    quoted = packet.quoted
    flow = None
    if quoted is not None and (quoted.source, quoted.destination) == (packet.destination, packet.source):
        flow = state.flows.get(quoted.sent_to(device))
    if flow is None:
        rule = _rule(tables, replace(packet, destination_port=0), policy_set)
        return _drop("unsupported_protocol") if rule else NEXT
    return _send_out(tables, packet, flow, Home(packet.sent_by(device))) if flow.group else NEXT


def _send_out(tables: Tables, packet: Packet, flow: Flow, home: Home) -> Outcome:
    endpoint, is_here = tables.node_numbers.get(flow.gateway, (None, False))
    local = is_here or flow.exit_local
    direct = flow.direct and (flow.gateway, packet.version) in tables.on_link
    if packet.ttl <= 1 and not home.by_host:
        return _error(tables, packet, "ttl", "back")
    mtu, by_tunnel = tables.tunnel_mtu, not (local or flow.direct)
    if local:
        routed = _route(tables, packet)
        if isinstance(routed, Outcome):
            return routed
        mtu = tables.mtus.get(routed, 1 << 16)
    elif direct:
        mtu = tables.mtus.get(tables.link, 1 << 16)
    if packet.length > mtu and not (packet.may_be_cut and by_tunnel):
        return _error(tables, packet, "too-big", "back")
    assert flow.egress_ip is not None
    sent_id = fresh_id(tables, packet, flow) if packet.first else packet.sent_id
    remembered = remember(packet, home.seen_at, sent_id)
    if packet.quoted:
        quoted = replace(packet.quoted, destination=flow.egress_ip, destination_port=flow.egress_port)
        packet = replace(packet, source=flow.egress_ip, quoted=quoted)
    else:
        packet = replace(packet, source=flow.egress_ip, source_port=flow.egress_port)
    packet = on_wire(_clamped(tables, replace(packet, ttl=packet.ttl - (not home.by_host), id=sent_id)))
    if local:
        return Outcome("redirect", "translated", packet, "uplink").after(*remembered)
    # Nobody asks for the sake of an error, or of a fragment that follows another.
    way = flow.gateway | (layout.WAY_DIRECT if flow.direct else 0)
    is_unheard = packet.kind == "flow" and rank_of(tables, way) is Rank.SILENT
    sent = "sent_unheard" if is_unheard else "sent_direct" if direct else "encapsulated"
    to = f"{endpoint} on the link" if direct else f"{endpoint} vni {flow.group}"
    return Outcome("redirect", sent, packet, to).after(*remembered)


def _clamped(tables: Tables, packet: Packet) -> Packet:
    if "S" not in packet.flags:
        return packet
    return replace(packet, mss=min(packet.mss, tables.flow_mtu - OVERHEAD[packet.version]))


def to_pod(tables: Tables, state: State, device: int, packet: Packet) -> Outcome:
    """Egress of a pod's host-side device: what begins outside is remembered, so that its answers are left alone."""
    if packet.kind != "flow":
        return NEXT
    key = packet.sent_to(device)
    flow = state.flows.get(key)
    if flow and flow.group:
        return NEXT
    if flow and not (packet.opens and _over(flow.seen_out, flow.seen_in)):
        again = layout.SEEN_AGAIN if flow.seen_out and not packet.opens else 0
        return NEXT.after(Change("flows", key, replace(flow, seen_in=_seen(flow.seen_in, packet) | again)))
    gone = [Change("flows", key, None)] if flow else []
    policy_set = tables.pods.get((device, packet.destination))
    begins = packet.opens if packet.protocol == TCP else not packet.is_icmp or packet.echo == "request"
    if not policy_set or _is_inside(tables, packet.source) or not begins:
        return NEXT.after(*gone)
    if tables.hands_over:
        return _drop("handing_over").after(*gone)
    state, most = _applied(state, tuple(gone)), tables.limits.outside_flows
    if most and state.use(device).outside >= most - state.use().outside:
        return _drop("outside_quota").after(*gone)
    if len(state.flows) >= tables.flow_room:
        return _drop("flow_table_full").after(*gone)
    return NEXT.after(*gone, Change("flows", key, Flow(seen_in=packet.seen)))


def _return_to_pod(tables: Tables, state: State, node: int, packet: Packet) -> Outcome:
    """To an egress IP, brought by `node`."""
    key = packet.answers if packet.kind == "flow" else packet.quoted and packet.quoted.bears
    port = state.ports.get(key) if key else None
    if key is None or port is None or key.egress_ip != packet.destination:
        return _drop("unknown_flow")
    known = port.gateway == node or node in _gateways(tables, port.group) or _is_vip(tables, key.egress_ip)
    if port.state not in ("live", "resting") or not known:
        return _drop("unknown_flow")
    port = replace(port, gateway=node)
    if packet.ttl <= 1 or packet.length > tables.mtus.get(port.ifindex, 1 << 16):
        about: About = "ttl" if packet.ttl <= 1 else "too-big"
        return _tell_remote(tables, packet, about).after(Change("ports", key, port))
    remembered = remember(packet, 0, packet.id)
    restored = replace(packet, destination=port.pod, ttl=packet.ttl - 1)
    to = f"device {port.ifindex}"
    if packet.quoted:
        restored = replace(restored, quoted=replace(packet.quoted, source=port.pod, source_port=port.pod_port))
        return Outcome("redirect", "delivered", restored, to).after(Change("ports", key, port))
    port = replace(port, seen_in=_seen(port.seen_in, packet))
    port = _rested_anew(state, key, port, packet)
    changes = _note_end_in(state, key, port, packet)
    restored = on_wire(replace(restored, destination_port=port.pod_port))
    return Outcome("redirect", "delivered", restored, to).after(*remembered, Change("ports", key, port), *changes)


def _tell_remote(tables: Tables, packet: Packet, about: About) -> Outcome:
    """By this node's own route, if there is one."""
    if longest(tables.routes, packet.source) not in tables.uplinks:
        return _drop("too_big" if about == "too-big" else "ttl_expired")
    return _error(tables, packet, about, "uplink")


def _flow_of(state: State, key: PortKey, port: Port) -> tuple[FlowKey, Flow | None]:
    flow_key = FlowKey(port.pod, key.remote, port.ifindex, port.pod_port, key.remote_port, key.protocol)
    flow = state.flows.get(flow_key)
    return flow_key, flow if flow and flow.id == port.id else None


def _rested_anew(state: State, key: PortKey, port: Port, packet: Packet) -> Port:
    """A port does not go to another flow while something else than ends comes for its own."""
    _, flow = _flow_of(state, key, port)
    if port.state != "resting" or flow is None or packet.seen & (layout.SEEN_FIN | layout.SEEN_RST):
        return port
    return replace(port, rests=_rest_after(flow.seen_out))


def _note_end_in(state: State, key: PortKey, port: Port, packet: Packet) -> tuple[Change, ...]:
    flow_key, flow = _flow_of(state, key, port)
    if flow is None or not (packet.seen & layout.SEEN_FIN and flow.seen_out & layout.SEEN_FIN):
        return ()
    ended = replace(flow, seen_out=flow.seen_out | layout.SEEN_END)
    return (*_rest((key, port), _rest_after(flow.seen_out)), Change("flows", flow_key, ended))


# --- gateway


def from_tunnel(tables: Tables, state: State, endpoint: IPAddress, vni: int, packet: Packet) -> Outcome:
    """Ingress of the tunnel device, from the tunnel endpoint `endpoint`."""
    sender = tables.nodes.get(endpoint)
    if sender is None:
        return _drop("unknown_node")
    if vni == layout.VNI_PROBE:
        return _take_probe(tables, state, endpoint, packet)
    if vni & layout.VNI_BACK:
        packet = followed(state, packet, 0)
    if packet.kind in ("malformed", "bad-fragment"):
        return _drop(packet.kind.replace("-", "_"))
    if packet.kind in ("unsupported", "not-ip"):
        return _drop("unsupported_protocol")
    if vni & layout.VNI_RELAYED == layout.VNI_RELAYED:
        return _take_relayed(tables, state, packet, sender, vni & layout.VNI_SEEN)
    if vni & layout.VNI_BACK and packet.kind == "fragment":
        return _drop("fragment")
    if vni & layout.VNI_BACK:
        return _return_to_pod(tables, state, sender, packet)
    return _forward(tables, packet, sender, f"{endpoint} vni {layout.VNI_BACK}")


def _take_probe(tables: Tables, state: State, endpoint: IPAddress, packet: Packet) -> Outcome:
    answer = liveness.judge(tables, state.tokens, endpoint, packet)
    if answer.reply is None:
        return _drop(answer.reason)
    return Outcome("redirect", answer.reason, answer.reply, f"{endpoint} vni {layout.VNI_PROBE}")


def _forward(tables: Tables, packet: Packet, sender: int, back: str) -> Outcome:
    """`back`: the way to the sender."""
    address = tables.egress_ips.get(packet.source)
    if address is None:
        return _drop("unknown_egress_ip")
    is_fragment = packet.first or packet.position
    if is_fragment and address.node_of(owner_of_id(packet)) != sender:
        return _drop("foreign_port")
    port = owner_of_id(packet) if packet.position else packet.source_port
    if packet.kind == "icmp-error":
        if packet.quoted is None or packet.quoted.destination != packet.source:
            return _drop("unsupported_protocol")
        port = packet.quoted.destination_port
    if address.node_of(port) != sender:
        return _drop("foreign_port")
    if longest(tables.cluster, packet.destination):
        return _drop("bogus_destination")
    if packet.ttl <= 1:
        return _error(tables, packet, "ttl", back)
    routed = _route(tables, packet)
    if isinstance(routed, Outcome):
        return routed
    if packet.length > tables.mtus.get(routed, 1 << 16):
        return _error(tables, packet, "too-big", back)
    return Outcome("redirect", "translated", replace(packet, ttl=packet.ttl - 1), "uplink")


def _route(tables: Tables, packet: Packet) -> int | Outcome:
    device = longest(tables.routes, packet.destination)
    if not device:
        return _drop("no_route")
    return device if device in tables.uplinks else _drop("not_uplink")


def from_uplink(tables: Tables, state: State, packet: Packet, device: int = 0, mac: bytes = b"") -> Outcome:
    """Ingress of an uplink `device`, in a frame from `mac`: what is sent to a port of an egress IP goes to the node
    that has the port; to another gateway, if this one does not know the node. Nodes send here what needs no tunnel.
    """
    if packet.kind in ("not-ip", "malformed"):
        return NEXT
    if device and device == tables.link and packet.destination not in tables.egress_ips:
        return _take_direct(tables, state, packet, tables.neighbours.get(mac))
    if packet.destination not in tables.egress_ips:
        return NEXT
    return _hand_back(tables, state, followed(state, packet, 0), tables.egress_ips[packet.destination])


def _take_direct(tables: Tables, state: State, packet: Packet, sender: int | None) -> Outcome:
    goes_out = packet.source in tables.egress_ips
    if packet.source == packet.destination or not (goes_out or packet.destination in tables.own_egress_ips):
        return NEXT
    if sender is None:
        return _drop("unknown_neighbour")
    packet = packet if goes_out else followed(state, packet, 0)
    if packet.kind in ("bad-fragment", "unsupported"):
        return _drop("bad_fragment" if packet.kind == "bad-fragment" else "unsupported_protocol")
    if goes_out:
        return _forward(tables, packet, sender, f"{tables.node_numbers[sender][0]} on the link")
    return _drop("fragment") if packet.kind == "fragment" else _return_to_pod(tables, state, sender, packet)


def _take_relayed(tables: Tables, state: State, packet: Packet, sender: int, seen: int) -> Outcome:
    """From another gateway: as if it had come by this node's uplink, but never relayed again, answered or left to the
    host.
    """
    address = tables.egress_ips.get(packet.destination)
    if address is None:
        return _drop("unknown_egress_ip")
    if address.host_below != layout.VIP_PORTS and sender not in _gateways(tables, address.group):
        return _drop("foreign_relay")
    return _hand_back(tables, state, packet, address, relayed=True, seen=seen)


def _is_vip(tables: Tables, address: IPAddress) -> bool:
    """Any node may announce it."""
    return address in tables.egress_ips and tables.egress_ips[address].host_below == layout.VIP_PORTS


def _gateways(tables: Tables, group: int) -> list[int]:
    return [hop.node for hop in tables.groups[group].gateways] if group in tables.groups else []


def _hand_back(
    tables: Tables, state: State, packet: Packet, address: EgressIp, *, relayed: bool = False, seen: int = 0
) -> Outcome:
    """`seen`: how many gateways have looked for a fragment's first."""
    port = _port_here(packet)
    if port is None:
        found = _ask_next(tables, packet, address.group, seen + 1)
        is_over = found.verdict == "drop" and found.reason != "too_big"
        return NEXT if is_over and address.host_below and not relayed else found
    number = address.node_of(port)
    relays = number not in tables.node_numbers
    if relays:
        is_hosts = port < address.host_below
        may_be_answer = port >= FIRST_PORT and not packet.opens and not is_hosts
        number = _other_gateway(tables, address.group, packet) if may_be_answer and not relayed else 0
        if number not in tables.node_numbers:
            outcome = NEXT if is_hosts and not relayed else _drop("no_mapping")
            return outcome.after(*(remember(packet, 0, packet.id) if is_hosts else ()))
    if packet.ttl <= 1:
        return _drop("ttl_expired") if relayed else _error(tables, packet, "ttl", "back")
    endpoint, local = tables.node_numbers[number]
    if local:
        return _return_to_pod(tables, state, number, packet)
    remembered = remember(packet, 0, packet.id)
    direct = not relays and _is_reached_directly(tables, packet, number)
    mtu = tables.mtus.get(tables.link, 1 << 16) if direct else tables.tunnel_mtu
    if packet.length > mtu and (direct or not packet.may_be_cut):
        refused = _drop("too_big") if relayed else _error(tables, packet, "too-big", "back")
        return refused.after(*remembered)
    if relays:
        to = f"{endpoint} vni {layout.VNI_RELAYED}"
        return Outcome("redirect", "relayed", on_wire(packet), to).after(*remembered)
    packet = on_wire(_clamped(tables, replace(packet, ttl=packet.ttl - 1)))
    if direct:
        return Outcome("redirect", "reversed_direct", packet, f"{endpoint} on the link").after(*remembered)
    return Outcome("redirect", "reversed", packet, f"{endpoint} vni {layout.VNI_BACK}").after(*remembered)


def _is_reached_directly(tables: Tables, packet: Packet, number: int) -> bool:
    is_on_link = (number, packet.version) in tables.on_link
    return is_on_link and (not tables.tunnels or number in tables.asked)


def _port_here(packet: Packet) -> int | None:
    """The port of an egress IP that a packet to it bears, or quotes."""
    if packet.kind == "icmp-error" and packet.quoted and packet.quoted.source == packet.destination:
        return packet.quoted.source_port
    return packet.destination_port if packet.kind == "flow" else None


def _ask_next(tables: Tables, packet: Packet, group: int, seen: int) -> Outcome:
    """A later fragment goes round the group's gateways until all have seen it, or one knows its first."""
    if packet.kind != "fragment":
        return _drop("bad_fragment" if packet.kind == "bad-fragment" else "unsupported_protocol")
    hops = tables.groups[group].gateways if group in tables.groups else ()
    nodes = [hop.node for hop in hops]
    here = next((n for n in nodes if tables.node_numbers.get(n, (None, False))[1]), None)
    after = nodes.index(here) + 1 if here else 0
    others = [hop.node for hop in (*hops[after:], *hops[:after]) if hop.up and hop.node != here]
    if seen >= len(hops) or not others or others[0] not in tables.node_numbers:
        return _drop("fragment")
    if packet.length > tables.tunnel_mtu and not packet.may_be_cut:
        return _drop("too_big")
    endpoint, _ = tables.node_numbers[others[0]]
    return Outcome("redirect", "relayed", packet, f"{endpoint} vni {layout.VNI_RELAYED | seen}")


def _other_gateway(tables: Tables, group: int, packet: Packet) -> int:
    """Which of the group's gateways but this node the packet's flow prefers, of the best that are up; 0 = none."""
    here = {number for number, (_, local) in tables.node_numbers.items() if local}
    hops = tables.groups[group].gateways if group in tables.groups else ()
    found = liveness.flow_hash(packet.sent_to(0))

    def merit(hop: Hop) -> tuple[int, int, int]:
        return -rank_of(tables, hop.node), -hop.order, liveness.preference(found, hop.node)

    chosen = max((hop for hop in hops if hop.up and hop.node not in here), key=merit, default=None)
    return chosen.node if chosen is not None else 0


# --- "which egress IP would this pod use?"


def deciding_policy(policies: list[Policy], destination: IPAddress, protocol: Protocol, port: int) -> Policy | None:
    """The policy that decides, by the rules as the documentation states them and without any map."""
    covering = [policy for policy in policies if _covers(policy, destination)]
    matching = [policy for policy in covering if _speaks_of(policy, protocol, port)]
    return min(matching, key=lambda policy: _order(policy, destination), default=None)


def _covers(policy: Policy, destination: IPAddress) -> bool:
    within = any(destination in network for network in policy.destinations)
    return within and not any(destination in network for network in policy.excluded)


def _speaks_of(policy: Policy, protocol: Protocol, port: int) -> bool:
    named = [ports for ports in policy.ports if ports.protocol == protocol]
    return not policy.ports or any(not ports.first or ports.first <= port <= ports.last for ports in named)


def _order(policy: Policy, destination: IPAddress) -> tuple[int, int, bool, str, str]:
    """Longest destination first, then the higher priority, the older, the name; an unknown age counts as youngest."""
    length = max(network.prefixlen for network in policy.destinations if destination in network)
    return -length, -policy.priority, not policy.created, policy.created, policy.name
