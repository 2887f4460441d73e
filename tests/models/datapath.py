"""A model of the datapath: what each program does with one packet, and which policy decides. Pure; it forwards nothing
and reads no clock.

Each program is a function of `Tables`, `State` and a packet that returns an `Outcome`; `State.apply` makes its changes.
The packet tests hold the compiled programs against this model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Literal

from bpf import layout
from egress.entries import RuleSpec
from egress.policy import IPAddress, Policy, Protocol
from tests.models.tables import (
    ICMP,
    TCP,
    UDP,
    Back,
    Change,
    Flow,
    FlowKey,
    GroupHere,
    Hop,
    Mapped,
    NatKey,
    Packet,
    ReverseKey,
    State,
    Tables,
    longest,
)

IP_TCP_OVERHEAD = 40
Verdict = Literal["next", "drop", "redirect"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` is the counter that went up, "" for none; `packet` is what leaves by a redirect to `to`."""

    verdict: Verdict
    reason: str = ""
    packet: Packet | None = None
    to: str = ""
    changes: tuple[Change, ...] = ()

    def after(self, *changes: Change) -> Outcome:
        return replace(self, changes=(*changes, *self.changes))


NEXT = Outcome("next")


def _drop(reason: str) -> Outcome:
    return Outcome("drop", reason)


# --- what a packet says


def _translatable(packet: Packet) -> bool:
    """An echo reply answers a question: it begins nothing."""
    return packet.kind == "flow" and packet.echo != "reply"


def _ended(flow: Flow, packet: Packet) -> bool:
    """Whether `packet` opens a connection on the ports of one that has ended."""
    both, either = flow.seen_out & flow.seen_in, flow.seen_out | flow.seen_in
    return packet.opens and bool(either & layout.SEEN_RST or both & layout.SEEN_FIN)


def _matches(rule: RuleSpec, packet: Packet) -> bool:
    """Ports of a fragment are not known: it may belong to any of its protocol."""
    if rule.protocol not in (0, packet.protocol):
        return False
    return not rule.first or packet.kind == "fragment" or rule.first <= packet.destination_port <= rule.last


def _seen(before: int, packet: Packet) -> int:
    """A RST counts until something else passes: anyone may send one (RFC 7857, section 2.2)."""
    return before & ~layout.SEEN_RST | packet.seen


# --- source node


def _is_inside(tables: Tables, address: IPv4Address) -> bool:
    return longest(tables.cluster, address) == layout.PLACE_INSIDE


def _is_nowhere(tables: Tables, address: IPv4Address) -> bool:
    return longest(tables.cluster, address) == layout.PLACE_NOWHERE


def _drop_if_strict(tables: Tables, device: int, reason: str) -> Outcome:
    return _drop(reason) if device in tables.strict_devices else NEXT


def _forges_tunnel(tables: Tables, packet: Packet) -> bool:
    to_port = packet.kind == "flow" and packet.protocol == UDP and packet.destination_port == tables.tunnel_port
    return to_port and packet.destination in tables.nodes


def _pick(tables: Tables, group: int, slot: int | None) -> Hop | None:
    """The gateway in `slot` while it is up, else the first that is."""
    up = [hop for hop in tables.paths.get(group, ()) if hop.up]
    return next((hop for hop in up if hop.slot == slot), up[0] if up else None)


def from_pod(tables: Tables, state: State, device: int, packet: Packet, drawn: int = 0) -> Outcome:
    """Ingress of a pod's host-side device. `drawn`: the port that chance gives if the pod's own is not free."""
    if packet.kind == "not-ipv4":
        return NEXT
    if packet.kind == "malformed":
        return _drop_if_strict(tables, device, "malformed")
    if _forges_tunnel(tables, packet):
        return _drop("tunnel_port")
    policy_set = tables.pods.get((device, packet.source))
    if policy_set is None:
        return _drop_if_strict(tables, device, "spoofed_source")
    if _is_inside(tables, packet.destination):
        return NEXT
    flow = state.flows.get(packet.key_outbound) if packet.kind == "flow" else None
    if flow is None:
        return _begin_flow(tables, state, packet, policy_set, drawn)
    if _ended(flow, packet) or (flow.group and flow.group not in tables.paths):
        return _begin_flow(tables, state, packet, policy_set, drawn).after(Change("flows", packet.key_outbound, None))
    return _continue_flow(tables, state, packet, flow, drawn)


def _begin_flow(tables: Tables, state: State, packet: Packet, policy_set: int, drawn: int) -> Outcome:
    rules = longest(tables.policies.get(policy_set, {}), packet.destination) or ()
    rule = next((rule for rule in rules if _matches(rule, packet)), None)
    if rule is None:
        return NEXT
    if _is_nowhere(tables, packet.destination):
        return _drop("bogus_destination")
    if not _translatable(packet):
        return _drop("fragment" if packet.kind == "fragment" else "unsupported_protocol")
    if not rule.group:
        return _drop("no_group")
    hop = _pick(tables, rule.group, None)
    if hop is None:
        return _drop("no_gateway")
    key = packet.key_outbound
    if key not in state.flows and len(state.flows) >= tables.flow_room:
        return _drop("flow_table_full")
    flow = Flow(rule.group, hop.slot, packet.seen, 0)
    return _leave(tables, state, packet, rule.group, hop, drawn).after(Change("flows", key, flow))


def _continue_flow(tables: Tables, state: State, packet: Packet, flow: Flow, drawn: int) -> Outcome:
    flow = replace(flow, seen_out=_seen(flow.seen_out, packet))
    key = packet.key_outbound
    if not flow.group:
        return NEXT.after(Change("flows", key, flow))
    hop = _pick(tables, flow.group, flow.slot)
    if hop is None:
        return _drop("no_gateway")
    change = Change("flows", key, replace(flow, slot=hop.slot))
    return _leave(tables, state, packet, flow.group, hop, drawn).after(change)


def _leave(tables: Tables, state: State, packet: Packet, group: int, hop: Hop, drawn: int) -> Outcome:
    if hop.local:
        return _translate(tables, state, packet, group, None, drawn)
    return _too_big(tables, packet) or _encapsulate(tables, packet, hop.address, group, "encapsulated")


def _too_big(tables: Tables, packet: Packet) -> Outcome | None:
    """What becomes of a packet that the tunnel does not carry; None if it fits, or may be cut."""
    if packet.length <= tables.tunnel_mtu or not packet.dont_fragment:
        return None
    if packet.options:
        return _drop("too_big")
    return Outcome("redirect", "too_big_answered", None, "back")


def _encapsulate(tables: Tables, packet: Packet, endpoint: IPv4Address, group: int, reason: str) -> Outcome:
    if "S" in packet.flags:
        packet = replace(packet, mss=min(packet.mss, tables.tunnel_mtu - IP_TCP_OVERHEAD))
    return Outcome("redirect", reason, packet, f"{endpoint} vni {group}")


def to_pod(tables: Tables, state: State, device: int, packet: Packet) -> Outcome:
    """Egress of a pod's host-side device: what begins outside is remembered, so that its answers are left alone."""
    policy_set = tables.pods.get((device, packet.destination))
    if packet.kind != "flow" or policy_set is None or _is_inside(tables, packet.source):
        return NEXT
    key = packet.key_inbound
    flow = state.flows.get(key)
    if flow and not _ended(flow, packet):
        return NEXT.after(Change("flows", key, replace(flow, seen_in=_seen(flow.seen_in, packet))))
    gone = [Change("flows", key, None)] if flow else []
    begins = {TCP: packet.opens, ICMP: packet.echo == "request"}.get(packet.protocol, True)
    if not policy_set or not begins:
        return NEXT.after(*gone)
    if not flow and len(state.flows) >= tables.flow_room:
        return _drop("flow_table_full")
    return NEXT.after(*gone, Change("flows", key, Flow(0, 0, 0, packet.seen)))


# --- gateway


def from_tunnel(tables: Tables, state: State, node: IPv4Address, vni: int, packet: Packet, drawn: int = 0) -> Outcome:
    """Ingress of the tunnel device, from the tunnel endpoint `node`."""
    if node not in tables.nodes:
        return _drop("unknown_node")
    if packet.destination in tables.local_pods and packet.kind in ("flow", "icmp-error"):
        return _deliver(tables, state, packet, vni, node, "delivered")
    if packet.kind in ("malformed", "fragment"):
        return _drop(packet.kind)
    if not _translatable(packet):
        return _drop("unsupported_protocol")
    if _is_inside(tables, packet.destination):
        return _drop("unknown_pod")
    if _is_nowhere(tables, packet.destination):
        return _drop("bogus_destination")
    return _translate(tables, state, packet, vni, node, drawn)


def _deliver(
    tables: Tables, state: State, packet: Packet, group: int, gateway: IPv4Address | None, reason: str
) -> Outcome:
    """To a pod here that waits for it. `gateway`: whom it comes from; None = this node."""
    if not _is_answer(tables, state, packet, group, gateway):
        return _drop("unknown_flow")
    return Outcome("redirect", reason, packet, f"device {tables.local_pods[packet.destination]}")


def _is_answer(tables: Tables, state: State, packet: Packet, group: int, gateway: IPv4Address | None) -> bool:
    """Whether it answers a flow through `group`, or tells of an error of one, and comes by a gateway of the group."""
    key = _answered(packet)
    flow = state.flows.get(key) if key else None
    by_gateway = any(hop.local if gateway is None else hop.address == gateway for hop in tables.paths.get(group, ()))
    return flow is not None and flow.group == group and by_gateway


def _answered(packet: Packet) -> FlowKey | None:
    if packet.kind == "flow":
        return packet.key_inbound
    quoted = packet.quoted
    return quoted.key_outbound if quoted and quoted.source == packet.destination else None


def _translate(tables: Tables, state: State, packet: Packet, vni: int, node: IPv4Address | None, drawn: int) -> Outcome:
    group = tables.groups.get(vni)
    if group is None:
        return _drop("unknown_group")
    if packet.ttl <= 1:
        return _drop("ttl_expired")
    mapped, changes = _use_mapping(state, packet, vni, group, node)
    if mapped is None:
        made = _make_mapping(tables, state, NatKey(packet.key_outbound, vni), group, node, packet.seen, drawn)
        if isinstance(made, str):
            return _drop(made).after(*changes)
        mapped, changes = made[0], (*changes, *made[1])
    packet = replace(packet, source=mapped.egress_ip, source_port=mapped.egress_port, ttl=packet.ttl - 1)
    return _route(tables, packet).after(*changes)


def _route(tables: Tables, packet: Packet) -> Outcome:
    device = longest(tables.routes, packet.destination)
    if not device:
        return _drop("no_route")
    return Outcome("redirect", "translated", packet, "uplink") if device in tables.uplinks else _drop("not_uplink")


def _reverse_key(key: FlowKey, egress_ip: IPv4Address, port: int) -> ReverseKey:
    return ReverseKey(egress_ip, key.remote, port, key.remote_port, key.protocol)


def _use_mapping(
    state: State, packet: Packet, vni: int, group: GroupHere, node: IPv4Address | None
) -> tuple[Mapped | None, tuple[Change, ...]]:
    """The flow's mapping if it is of use: its address is still the group's, its reverse half is there."""
    key = NatKey(packet.key_outbound, vni)
    mapped = state.nat.get(key)
    if mapped is None:
        return None, ()
    back_key = _reverse_key(key.flow, mapped.egress_ip, mapped.egress_port)
    back = state.reverse.get(back_key)
    settled = not packet.opens and mapped.node == node
    if mapped.egress_ip != group.egress_ip or (back is None and not settled):
        return None, (Change("nat", key, None),)
    seen = 0 if packet.opens else mapped.seen_out  # a port that is used again forgets the old connection's end
    mapped = replace(mapped, node=node, seen_out=_seen(seen, packet))
    if back is None:
        return mapped, (Change("nat", key, mapped),)
    back = replace(back, node=node, seen_in=0 if packet.opens else back.seen_in)
    return mapped, (Change("nat", key, mapped), Change("reverse", back_key, back))


def _make_mapping(
    tables: Tables, state: State, key: NatKey, group: GroupHere, node: IPv4Address | None, seen: int, drawn: int
) -> tuple[Mapped, tuple[Change, ...]] | str:
    """A new mapping, both halves or none; or the reason why not."""
    port = _free_port(state, key.flow, group, drawn)
    if port is None:
        return "no_free_port"
    stale = key in state.nat  # deleted in the same step
    if len(state.reverse) >= tables.reverse_room or len(state.nat) - stale >= tables.nat_room:
        return "nat_table_full"
    mapped = Mapped(group.egress_ip, node, port, seen)
    back = Back(key.flow.pod, node, key.group, key.flow.pod_port, 0)
    back_key = _reverse_key(key.flow, group.egress_ip, port)
    return mapped, (Change("reverse", back_key, back), Change("nat", key, mapped))


def _free_port(state: State, flow: FlowKey, group: GroupHere, drawn: int) -> int | None:
    """The pod's own port if the range holds it and it is free, else the one that was drawn, else any that is free."""
    wanted = (flow.pod_port, *((drawn,) if not _is_free(state, flow, group, flow.pod_port) else ()))
    ports = (*wanted, *range(group.first, group.last + 1))
    return next((port for port in ports if _is_free(state, flow, group, port)), None)


def _is_free(state: State, flow: FlowKey, group: GroupHere, port: int) -> bool:
    return group.first <= port <= group.last and _reverse_key(flow, group.egress_ip, port) not in state.reverse


def from_uplink(tables: Tables, state: State, packet: Packet) -> Outcome:
    """Ingress of a gateway's uplink: what belongs to a mapping goes back to its pod."""
    if packet.kind in ("not-ipv4", "malformed") or packet.destination not in tables.egress_ips:
        return NEXT
    key, reason = _reverse_lookup(packet)
    back = state.reverse.get(key) if key else None
    if key is None or back is None:
        return NEXT if tables.egress_ips[packet.destination] else _drop(reason)
    if packet.ttl <= 1:
        return _drop("ttl_expired")
    restored = replace(packet, destination=back.pod, ttl=packet.ttl - 1)
    if packet.quoted:
        restored = replace(restored, quoted=replace(packet.quoted, source=back.pod, source_port=back.pod_port))
        return _return_to_pod(tables, state, restored, back)
    restored = replace(restored, destination_port=back.pod_port)
    change = Change("reverse", key, replace(back, seen_in=_seen(back.seen_in, packet)))
    too_big = _too_big(tables, packet) if back.node else None
    return (too_big or _return_to_pod(tables, state, restored, back)).after(change)


def _reverse_lookup(packet: Packet) -> tuple[ReverseKey | None, str]:
    """Under which key the mapping is, and why the packet is dropped if there is none."""
    if packet.kind == "flow":
        ports = packet.destination_port, packet.source_port
        return ReverseKey(packet.destination, packet.source, *ports, packet.protocol), "no_mapping"
    if packet.kind != "icmp-error":
        return None, "fragment" if packet.kind == "fragment" else "unsupported_protocol"
    quoted = packet.quoted
    if quoted is None:
        return None, "malformed"
    ports = quoted.source_port, quoted.destination_port
    return ReverseKey(quoted.source, quoted.destination, *ports, quoted.protocol), "no_mapping"


def _return_to_pod(tables: Tables, state: State, packet: Packet, back: Back) -> Outcome:
    if back.node:
        return _encapsulate(tables, packet, back.node, back.group, "reversed")
    if back.pod not in tables.local_pods:
        return _drop("unknown_pod")
    return _deliver(tables, state, packet, back.group, None, "reversed")


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
