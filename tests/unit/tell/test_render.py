"""Desired state as text: whatever changes in a value changes its text, field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bgp.path import Desired as BgpDesired
from bgp.path import Path, SpeakerPeer
from egress.policy import Block, Detour, Gateway, Group, Neighbour, Policy, Ports, Served, Watch
from egress.policy import Desired as EgressDesired
from routerd.model import Refusal
from routerd.node.announce import Announcements
from routerd.node.desired import EGRESS_ROOM, NodeState
from routerd.refs import Ref
from routerd.tell.render import Part, Sentence, changes, refusal_lines, session_changes, session_text, state_lines
from tests.models.tables import granules

TOR, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2")
VIP, POD, SIX = ip_network("192.0.2.1/32"), ip_address("10.1.0.5"), ip_address("fd00::5")
KEY = b"of this call"
PATH = Path(VIP)
PEER = SpeakerPeer(TOR, ip_address("10.0.0.11"), 64512, 64513, ip_address("10.0.0.11"))  # type: ignore[arg-type]
SESSION_KEY = PEER.key
PORTS = Ports("TCP", 80, 80)
GATEWAY = Gateway("gw", 1)
POLICY = Policy("EgressPolicy/web", 1, (ip_network("0.0.0.0/0"),))  # type: ignore[arg-type]
BLOCK = Block(ip_address("192.0.2.9"), 1024, 64)
GROUP = Group(1, (BLOCK.egress_ip,), (GATEWAY,))
SERVED = Served(granules({1: [(1024, 64)]}))
BGP = BgpDesired({SESSION_KEY: PEER}, {SESSION_KEY: {VIP: PATH}})
EGRESS = EgressDesired("a", OTHER, policies={POLICY.name: POLICY}, groups={1: GROUP})  # type: ignore[arg-type]
STATE = NodeState(Announcements(BGP), {EGRESS_ROOM: EGRESS})


def of_bgp(desired: BgpDesired) -> NodeState:
    return replace(STATE, announcements=Announcements(desired))


def of_egress(desired: EgressDesired) -> NodeState:
    return replace(STATE, rooms={EGRESS_ROOM: desired})


@dataclass(frozen=True)
class Kind:
    """A value, how a state holds it, and for each field another content."""

    value: Any
    state: Callable[[Any], NodeState]
    other: Mapping[str, Any]


KINDS = {
    "path": Kind(
        PATH,
        lambda path: of_bgp(replace(BGP, ribs={SESSION_KEY: {VIP: path}})),
        {
            "prefix": ip_network("192.0.2.2/32"), "next_hop": OTHER, "local_pref": 0, "med": 0, "prepend": 1,
            "communities": ("64512:1",), "origin": "egp",
        },
    ),
    "session": Kind(
        PEER,
        lambda peer: of_bgp(replace(BGP, peers={SESSION_KEY: peer})),
        {
            "address": OTHER, "local_address": OTHER, "local_as": 1, "remote_as": 1, "router_id": OTHER, "port": 1790,
            "passive": True, "listen_port": 179, "connect_retry": 9, "hold_time": 0, "password": "x",
            "graceful_restart_time": 0, "min_ttl": 255,
            "imports": (ip_network("10.244.0.0/16"),),
            "extended_next_hop": True, "interface": "eth1", "keepalive_time": 3, "max_prefixes": 1000,
            "families": ("ipv6 unicast",), "description": "tor", "override": "an override",
        },
    ),
    "announced": Kind(BGP, of_bgp, {"peers": {}, "ribs": {}}),
    "ports": Kind(
        PORTS,
        lambda ports: of_egress(replace(EGRESS, policies={POLICY.name: replace(POLICY, ports=(ports,))})),
        {"protocol": "UDP", "first": 79, "last": 81},
    ),
    "gateway": Kind(
        GATEWAY,
        lambda gateway: of_egress(replace(EGRESS, groups={1: replace(GROUP, gateways=(gateway,))})),
        {"node": "x", "number": 2, "up": False},
    ),
    "policy": Kind(
        POLICY,
        lambda policy: of_egress(replace(EGRESS, policies={POLICY.name: policy})),
        {
            "name": "EgressPolicy/x", "group": 0, "destinations": (), "excluded": (ip_network("10.0.0.0/8"),),
            "ports": (PORTS,), "priority": 1, "created": "2026-01-01T00:00:00Z", "exit_local": True,
        },
    ),
    "group": Kind(
        GROUP,
        lambda group: of_egress(replace(EGRESS, groups={1: group})),
        {"id": 2, "egress_ips": (BLOCK.egress_ip, SIX), "gateways": (), "blocks": (BLOCK,), "node_address": True,
         "in_order": True},
    ),
    "block": Kind(
        BLOCK,
        lambda block: of_egress(replace(EGRESS, groups={1: replace(GROUP, blocks=(block,))})),
        {"egress_ip": SIX, "first": 1088, "size": 128, "closed": True},
    ),
    "served": Kind(
        SERVED,
        lambda served: of_egress(replace(EGRESS, served={BLOCK.egress_ip: served})),
        {"granules": granules({2: [(1024, 64)]}), "node_address": True, "group": 3, "vip": True},
    ),
    "egress": Kind(
        replace(EGRESS, network_policy="forward"),
        of_egress,
        {
            "network_policy": "direct", "forward_mark": 2, "flow_deadline": 7, "transport": "auto",
            "tunnel_packets": "device",
            "neighbours": {2: Neighbour(b"\x02\0\0\0\0\2")},
            "node": "b", "node_address": TOR, "tunnel_port": 1, "pods": {POD: (), SIX: ()}, "policies": {},
            "groups": {}, "served": {SIX: SERVED}, "nodes": {1: TOR}, "icmp_sources": (TOR, SIX),
            "cluster": {ip_network("fd00::/8"), ip_network("10.0.0.0/8")},
            "pod_cidrs": {ip_network("10.1.0.0/24")}, "pools": {ip_network("192.0.2.0/24")},
            "detours": {Detour("TCP", 30443, frozenset({(POD, 443)}))}, "node_addresses": {TOR},
            "told_devices": {POD: frozenset({"cni0", "veth9"})},
            "uplinks": ("eth0",), "watch": Watch(0.05, 3), "out_of_service": frozenset({"draining"}),
        },
    ),
    "node": Kind(
        STATE, lambda state: state, {"announcements": None, "rooms": {EGRESS_ROOM: None}, "may_retire": False}
    ),
}  # fmt: skip
SAID_ELSEWHERE = {"node": {"refusals", "selecting"}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_tried(kind: str) -> None:
    names = {field.name for field in fields(KINDS[kind].value)} - SAID_ELSEWHERE.get(kind, set())
    assert set(KINDS[kind].other) == names


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind].other])
def test_another_content_of_a_field_is_another_text(kind: str, name: str) -> None:
    it = KINDS[kind]
    before = state_lines(it.state(it.value), KEY)
    after = state_lines(it.state(replace(it.value, **{name: it.other[name]})), KEY)
    assert changes(before, after)
    assert changes(before, state_lines(it.state(replace(it.value)), KEY)) == []


def test_a_field_without_words_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Ports: \['last'\] must be said once"):
        Sentence(Ports, (Part("protocol first", lambda it: ()),))
    with pytest.raises(TypeError, match="must be said once"):
        Sentence(Ports, (Part("protocol first last", lambda it: ()), Part("first", lambda it: ())))


def test_a_password_shows_as_a_mark_that_only_the_key_makes() -> None:
    one, other = replace(PEER, password="secret"), replace(PEER, password="secreT")
    assert session_text(one, KEY) != session_text(other, KEY) != session_text(other, b"of another call")
    assert session_text(one) == session_text(other)
    assert "secre" not in session_text(one, KEY) + session_text(one)
    assert session_text(one).endswith(" md5")


def test_sessions_that_are_loaded_anew() -> None:
    assert session_changes({SESSION_KEY: PEER}, {SESSION_KEY: "changed", SESSION_KEY._replace(peer=OTHER): "gone"}) == [
        f"~ peer 10.0.0.1: its session is reset: {session_text(PEER)}",
        "- peer 10.0.0.2: its session ends",
    ]
    assert session_changes({SESSION_KEY: PEER}, {SESSION_KEY: "changed"}, {SESSION_KEY: ("hold-time", "password")}) == [
        f"~ peer 10.0.0.1: its session is reset by hold-time, password: {session_text(PEER)}"
    ]
    assert session_changes({SESSION_KEY: PEER}, {SESSION_KEY: "new"}) == [f"+ peer 10.0.0.1 {session_text(PEER)}"]


def test_refusals() -> None:
    assert refusal_lines([Refusal(Ref("bgp"), "Held", "why")]) == ["no bgp Held: why"]
