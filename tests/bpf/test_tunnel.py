"""`from_tunnel`, with real VXLAN packets: a test run cannot carry a tunnel key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.bpf.packets import Shape, build, inside_vxlan, parse, vxlan
from tests.bpf.wishes import HERE, THERE, to_world
from tests.bpf.world import (
    EGRESS_IP,
    MACS,
    POD,
    POD2,
    REMOTE,
    REMOTE_POD,
    SELF,
    STRANGER,
    TUNNEL_MTU,
    TUNNEL_PORT,
    WORKER,
    WORKER2,
    Wire,
    World,
)
from tests.models import datapath
from tests.models.tables import ICMP, TCP, UDP, Flow, FlowKey, Packet, State
from tests.waiting import wait

OUT = Packet(REMOTE_POD, REMOTE, UDP, 40000, 53)
MOVED = IPv4Address("192.0.2.101")
INNER = Shape(destination_mac=MACS["tunnel"])


class Gateway:
    """The node as a gateway, with the programs attached: packets come from other nodes, and leave by the uplink."""

    def __init__(self, world: World, underlay: Wire, uplink: Wire, pod: Wire) -> None:
        self.world = world
        self.underlay, self.uplink, self.pod = underlay, uplink, pod

    def tunnelled(self, packet: Packet, node: IPv4Address = WORKER, vni: int = HERE, shape: Shape = INNER) -> None:
        """A packet comes through the tunnel; returns when it has been judged."""
        before = sum(self.world.counted().values())
        outer = vxlan(build(packet, shape), vni, TUNNEL_PORT, Packet(node, SELF))
        self.underlay.put(MACS["underlay"] + outer[6:])
        wait(lambda: sum(self.world.counted().values()) > before, "the packet is counted", interval=0.001)

    def out(self, packet: Packet, **how: object) -> Packet:
        """What left by the uplink for a packet that came through the tunnel."""
        self.tunnelled(packet, **how)  # type: ignore[arg-type]
        return parse(self.uplink.get())

    def reply(self, packet: Packet) -> tuple[IPv4Address, int, Packet]:
        """(node, VNI, packet) that leaves by the underlay for a packet that came by the uplink."""
        self.uplink.put(build(packet, Shape(destination_mac=MACS["uplink"])))
        node, vni, inner = inside_vxlan(self.underlay.get())
        return node, vni, parse(inner)

    def dropped(self) -> dict[str, int]:
        return {name: n for name, n in self.world.counted().items() if name not in ("translated", "reversed")}


@pytest.fixture(scope="module")
def attached(world: World) -> Iterator[Gateway]:
    world.attach()
    with world.wire("underlay") as underlay, world.wire("uplink") as uplink, world.wire("pod0") as pod:
        yield Gateway(world, underlay, uplink, pod)


@pytest.fixture
def gateway(attached: Gateway) -> Gateway:
    attached.world.fill(to_world(HERE))
    return attached


@pytest.mark.parametrize(
    "packet",
    [
        OUT,
        replace(OUT, options=True),
        replace(OUT, protocol=TCP, flags="S", mss=1400),
        Packet(REMOTE_POD, REMOTE, ICMP, 4000, 0, echo="request"),
    ],
    ids=["udp", "options", "tcp", "echo"],
)
def test_a_packet_leaves_with_the_egress_ip_and_its_reply_returns(gateway: Gateway, packet: Packet) -> None:
    out = gateway.out(packet)
    assert out == replace(packet, source=EGRESS_IP, ttl=63)
    answer = replace(
        out, source=REMOTE, destination=EGRESS_IP, source_port=out.destination_port, destination_port=out.source_port,
        echo="reply" if out.echo else "", flags="SA" if out.flags else "", ttl=64,
    )  # fmt: skip
    restored = replace(answer, destination=REMOTE_POD, ttl=63)
    assert gateway.reply(answer) == (WORKER, HERE, restored)
    assert gateway.world.counted() == {"translated": 1, "reversed": 1}


DROPPED = {
    "unknown_node": (OUT, STRANGER, HERE),
    "unknown_group": (OUT, WORKER, 4242),
    "ttl_expired": (replace(OUT, ttl=1), WORKER, HERE),
    "fragment": (replace(OUT, kind="fragment"), WORKER, HERE),
    "malformed": (replace(OUT, kind="malformed"), WORKER, HERE),
    "unsupported_protocol": (replace(OUT, kind="unsupported", protocol=132), WORKER, HERE),
    "unknown_pod": (replace(OUT, source=REMOTE, destination=IPv4Address("10.244.1.77")), WORKER, HERE),
    "no_route": (replace(OUT, destination=IPv4Address("198.51.100.200")), WORKER, HERE),
    "not_uplink": (replace(OUT, destination=IPv4Address("203.0.113.9")), WORKER, HERE),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_what_is_dropped_is_counted_with_its_reason(gateway: Gateway, reason: str) -> None:
    packet, node, vni = DROPPED[reason]
    tables = gateway.world.fill(to_world(HERE))
    gateway.tunnelled(packet, node=node, vni=vni)
    expected = datapath.from_tunnel(tables, State(), node, vni, packet)
    assert gateway.dropped() == {reason: 1}
    assert (expected.verdict, expected.reason) == ("drop", reason)


def test_an_echo_reply_from_the_tunnel_begins_nothing(gateway: Gateway) -> None:
    gateway.tunnelled(Packet(REMOTE_POD, REMOTE, ICMP, 0, 9, echo="reply"))
    assert gateway.dropped() == {"unsupported_protocol": 1}


def test_an_icmp_error_about_a_translated_packet_reaches_the_pods_node(gateway: Gateway) -> None:
    out = gateway.out(OUT)
    router = IPv4Address("192.0.2.254")
    error = Packet(router, EGRESS_IP, ICMP, kind="icmp-error", quoted=out)
    node, vni, seen = gateway.reply(error)
    assert (node, vni) == (WORKER, HERE)
    assert (seen.source, seen.destination, seen.ttl) == (router, REMOTE_POD, 63)
    assert seen.quoted == replace(out, source=REMOTE_POD, length=out.length)


def test_the_states_halves_are_the_models(gateway: Gateway) -> None:
    tables, state = gateway.world.fill(to_world(HERE)), State()
    for port, node in ((40000, WORKER), (40001, WORKER2), (40000, WORKER)):
        packet = replace(OUT, source_port=port)
        gateway.out(packet, node=node)
        state.apply(datapath.from_tunnel(tables, state, node, HERE, packet).changes)
    assert gateway.world.state() == state
    assert len(state.nat) == len(state.reverse) == 2


def test_a_taken_port_is_changed(gateway: Gateway) -> None:
    other = replace(OUT, source=IPv4Address("10.244.2.21"))
    assert gateway.out(OUT).source_port == 40000
    changed = gateway.out(other).source_port
    assert changed != 40000
    assert gateway.out(other).source_port == changed


def test_a_pod_that_moved_takes_its_mapping_along(gateway: Gateway) -> None:
    first = gateway.out(OUT)
    second = gateway.out(OUT, node=WORKER2)
    assert second == first
    node, _, _ = gateway.reply(Packet(REMOTE, EGRESS_IP, UDP, 53, 40000))
    assert node == WORKER2
    assert len(gateway.world.state().nat) == 1


def test_a_group_that_changed_its_address_translates_anew(gateway: Gateway) -> None:
    gateway.out(OUT)
    wish = to_world(HERE)
    groups = {**wish.groups, HERE: replace(wish.groups[HERE], egress_ip=MOVED)}
    gateway.world.fill(replace(wish, groups=groups), gateway.world.state())
    assert gateway.out(OUT).source == MOVED


def test_the_mss_of_an_answer_is_clamped_on_its_way_into_the_tunnel(gateway: Gateway) -> None:
    gateway.out(replace(OUT, protocol=TCP, flags="S", mss=1400))
    answer = Packet(REMOTE, EGRESS_IP, TCP, 53, 40000, flags="SA", mss=1460)
    assert gateway.reply(answer)[2].mss == TUNNEL_MTU - 40


ANSWER = Packet(REMOTE, POD, UDP, 53, 40000)
ASKED = Packet(POD, REMOTE, UDP, 40000, 53)
ERROR = Packet(IPv4Address("192.0.2.254"), POD, ICMP, kind="icmp-error", quoted=ASKED)
PING = Packet(POD, REMOTE, ICMP, 4000, 0, echo="request")


@pytest.mark.parametrize("node", [WORKER, WORKER2])
@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (ASKED, ANSWER),
        (PING, Packet(REMOTE, POD, ICMP, 0, 4000, echo="reply")),
        (ASKED, ERROR),
        (PING, replace(ERROR, quoted=PING)),
    ],
    ids=["udp", "echo", "error", "error about an echo"],
)
def test_an_answer_from_a_gateway_is_handed_to_its_pod(
    gateway: Gateway, asked: Packet, answer: Packet, node: IPv4Address
) -> None:
    state = State({asked.key_outbound: Flow(THERE, 0, 1, 0)})
    tables = gateway.world.fill(to_world(THERE), state)
    gateway.tunnelled(answer, node=node, vni=THERE)
    frame = gateway.pod.get()
    seen = parse(frame)
    assert replace(seen, length=0, quoted=None) == replace(answer, length=0, quoted=None)
    assert (frame[:6], frame[6:12]) == (b"\x02\0\0\0\x10\0", b"\x02\0\0\0\x20\0")
    assert gateway.world.counted() == {"delivered": 1}
    assert datapath.from_tunnel(tables, state, node, THERE, answer).reason == "delivered"


OTHERS = replace(ASKED, source=POD2)
FORGED = {  # what a pod with one flow through the group THERE must not get: (packet, node, VNI)
    "of no flow": (replace(ANSWER, destination_port=40001), WORKER, THERE),
    "to a pod without any": (replace(ANSWER, destination=POD2), WORKER, THERE),
    "another protocol": (replace(ANSWER, protocol=TCP, flags="SA"), WORKER, THERE),
    "a new connection": (replace(ANSWER, protocol=TCP, destination_port=80, flags="S", mss=1400), WORKER, THERE),
    "another group": (ANSWER, WORKER, HERE),
    "a group that does not exist": (ANSWER, WORKER, 77777),
    "a node that is no gateway": (ANSWER, STRANGER, THERE),
    "an error of no flow": (replace(ERROR, quoted=replace(ASKED, source_port=40001)), WORKER, THERE),
    "an error of another pod's flow": (replace(ERROR, quoted=OTHERS), WORKER, THERE),
    "an error that quotes too little": (replace(ERROR, quoted=None), WORKER, THERE),
    "an error of another group": (ERROR, WORKER, HERE),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_pod_gets_nothing_from_the_tunnel_but_answers(gateway: Gateway, forged: str) -> None:
    packet, node, vni = FORGED[forged]
    wish = to_world(THERE)
    wish = replace(wish, nodes=wish.nodes | {STRANGER})
    flows = {ASKED.key_outbound: Flow(THERE, 0, 1, 0), OTHERS.key_outbound: Flow(0, 0, 1, 0)}
    tables, state = gateway.world.fill(wish, State(dict(flows))), State(dict(flows))
    gateway.tunnelled(packet, node=node, vni=vni)
    assert gateway.world.counted() == {"unknown_flow": 1}
    assert gateway.world.state().flows == flows
    assert datapath.from_tunnel(tables, state, node, vni, packet).reason == "unknown_flow"


def test_a_flow_begun_from_outside_has_no_answers_from_the_tunnel(gateway: Gateway) -> None:
    gateway.world.fill(to_world(THERE), State({ASKED.key_outbound: Flow(0, 0, 1, 1)}))
    gateway.tunnelled(ANSWER, vni=0)
    assert gateway.world.counted() == {"unknown_flow": 1}


def test_a_pods_packet_leaves_by_the_tunnel_to_the_first_gateway(gateway: Gateway) -> None:
    gateway.world.fill(to_world(8))
    gateway.pod.put(build(replace(OUT, source=POD), Shape(destination_mac=MACS["pod0"])))
    node, vni, inner = inside_vxlan(gateway.underlay.get())
    assert (node, vni, parse(inner)) == (WORKER, 8, replace(OUT, source=POD))


@pytest.mark.parametrize(("up", "expected", "slot"), [(True, WORKER2, 1), (False, WORKER, 0)])
def test_a_flow_stays_with_its_gateway_while_that_is_up(
    gateway: Gateway, up: bool, expected: IPv4Address, slot: int
) -> None:
    wish = to_world(8)
    first, second = wish.groups[8].gateways
    groups = {8: replace(wish.groups[8], gateways=(first, replace(second, up=up)))}
    flow = FlowKey(POD, REMOTE, 40000, 53, UDP)
    gateway.world.fill(replace(wish, groups=groups), State({flow: Flow(8, 1, 1, 0)}))
    gateway.pod.put(build(replace(OUT, source=POD), Shape(destination_mac=MACS["pod0"])))
    node, vni, _ = inside_vxlan(gateway.underlay.get())
    assert (node, vni) == (expected, 8)
    assert gateway.world.state().flows == {flow: Flow(8, slot, 1, 0)}
