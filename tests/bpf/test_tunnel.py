"""`from_tunnel`, with real VXLAN packets: a test run cannot carry a tunnel key."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from bpf import layout
from tests.bpf.families import six
from tests.bpf.gateway import INNER, Gateway, in_family
from tests.bpf.packets import Shape, build, parse, told_mtu, vxlan
from tests.bpf.wishes import HERE, THERE, UNDERLAY, to_world
from tests.bpf.world import (
    DEVICE_MAC,
    EGRESS_IP,
    EGRESS_IP6,
    MACS,
    NUMBERS,
    POD,
    POD2,
    POD_CIDRS,
    POD_MAC,
    REMOTE,
    REMOTE6,
    SELF,
    SELF6,
    STRANGER,
    TUNNEL_MTU,
    TUNNEL_PORT,
    UNDERLAY_MTU,
    WORKER,
    WORKER2,
    World,
)
from tests.models import datapath
from tests.models.tables import ICMP, TCP, UDP, Flow, Packet, Port, PortKey, State

BACK = layout.VNI_BACK
THEIRS, OURS = 33000, 41000  # ports of the worker's block, and of this node's
OUT = Packet(EGRESS_IP, REMOTE, UDP, THEIRS, 53)
ANSWER = Packet(REMOTE, EGRESS_IP, UDP, 53, OURS)


# --- as a gateway -----------------------------------------------------------------------------------------------------

PASSING = {
    "udp": OUT,
    "options": replace(OUT, options=True),
    "tcp": replace(OUT, protocol=TCP, flags="S", mss=1300),
    "echo": replace(OUT, protocol=ICMP, destination_port=0, echo="request"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", PASSING)
def test_a_packet_of_a_nodes_ports_goes_out_and_its_answer_back_to_that_node(
    gateway: Gateway, name: str, version: int
) -> None:
    """Nothing of it is rewritten but the TTL, and nothing is kept."""
    packet = in_family(PASSING[name], version)
    out = gateway.out(packet)
    assert out == replace(packet, ttl=63)
    answer = replace(
        out, source=out.destination, destination=out.source, source_port=out.destination_port,
        destination_port=out.source_port, echo="reply" if out.echo else "", flags="SA" if out.flags else "", ttl=64,
    )  # fmt: skip
    assert gateway.reply(answer) == (WORKER, BACK, replace(answer, ttl=63))
    assert gateway.world.counted() == {"translated": 1, "reversed": 1}
    assert gateway.world.state() == State()


FIRST = replace(OUT, first=True, id=THEIRS + 5, length=1000)
LATER = Packet(EGRESS_IP, REMOTE, UDP, kind="fragment", position=984, id=THEIRS + 5, length=1000)


def fragment(packet: Packet, version: int) -> Packet:
    """In IPv6 the upper half of the id is a port's number."""
    return packet if version == 4 else replace(six(packet), id=packet.id << 16 | 0xABCD)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("packet", [FIRST, LATER, replace(LATER, options=True)], ids=["first", "later", "options"])
def test_a_fragment_goes_out_if_its_id_is_of_its_senders_ports(gateway: Gateway, packet: Packet, version: int) -> None:
    """Whether its first went by another gateway or by this one."""
    packet = fragment(packet, version)
    tables = gateway.world.fill(to_world(HERE))
    assert gateway.out(packet) == replace(packet, ttl=63)
    assert gateway.world.state() == State()
    assert datapath.from_tunnel(tables, State(), WORKER, HERE, packet).reason == "translated"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "packet", [FIRST, LATER, replace(FIRST, id=OURS), replace(LATER, id=OURS), replace(LATER, id=5)]
)
def test_a_node_sends_fragments_of_no_id_but_its_own(gateway: Gateway, packet: Packet, version: int) -> None:
    node = WORKER2 if packet.id == THEIRS + 5 else WORKER
    packet = fragment(packet, version)
    tables = gateway.world.fill(to_world(HERE))
    gateway.tunnelled(packet, node)
    assert gateway.world.counted() == {"foreign_port": 1}
    assert datapath.from_tunnel(tables, State(), node, HERE, packet).reason == "foreign_port"


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_in_fragments_goes_to_the_node_of_its_first_ones_port(gateway: Gateway, version: int) -> None:
    first = in_family(Packet(REMOTE, EGRESS_IP, UDP, 53, THEIRS, first=True, id=7, length=1000), version)
    later = replace(first, kind="fragment", source_port=0, destination_port=0, first=False, position=984)
    for packet in (first, later):
        assert gateway.reply(packet) == (WORKER, BACK, replace(packet, ttl=63))
    assert gateway.world.counted() == {"reversed": 2}


DROPPED = {
    "unknown_node": (OUT, STRANGER, HERE),
    "unknown_egress_ip": (replace(OUT, source=IPv4Address("192.0.2.55")), WORKER, HERE),
    "foreign_port": (OUT, WORKER2, HERE),
    "fragment": (replace(ANSWER, kind="fragment", position=1376), WORKER, BACK),
    "bad_fragment": (replace(OUT, kind="bad-fragment", first=True, id=THEIRS), WORKER, HERE),
    "malformed": (replace(OUT, kind="malformed"), WORKER, HERE),
    "unsupported_protocol": (replace(OUT, kind="unsupported", protocol=47), WORKER, HERE),
    "no_route": (replace(OUT, destination=IPv4Address("198.51.100.200")), WORKER, HERE),
    "not_uplink": (replace(OUT, destination=IPv4Address("203.0.113.9")), WORKER, HERE),
    "ttl_expired": (replace(OUT, ttl=1, options=True), WORKER, HERE),
    "unknown_flow": (Packet(REMOTE, EGRESS_IP, UDP, 53, OURS), WORKER, BACK),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("reason", DROPPED)
def test_what_is_dropped_is_counted_with_its_reason(gateway: Gateway, reason: str, version: int) -> None:
    packet, node, vni = DROPPED[reason]
    packet = in_family(packet, version)
    tables = gateway.world.fill(to_world(HERE))
    gateway.tunnelled(packet, node=node, vni=vni)
    expected = datapath.from_tunnel(tables, State(), node, vni, packet)
    assert gateway.world.counted() == {reason: 1}
    assert (expected.verdict, expected.reason) == ("drop", reason)


@pytest.mark.parametrize("reason", DROPPED)
def test_whatever_a_stranger_sends_is_counted_as_a_strangers(gateway: Gateway, reason: str) -> None:
    packet, _, vni = DROPPED[reason]
    tables = gateway.world.fill(to_world(HERE))
    gateway.tunnelled(packet, node=STRANGER, vni=vni)
    assert gateway.world.counted() == {"unknown_node": 1}
    assert datapath.from_tunnel(tables, State(), STRANGER, vni, packet).reason == "unknown_node"


@pytest.mark.parametrize("packet", [replace(OUT, source_port=port) for port in (OURS, 20000, 1, 65535)])
def test_a_node_sends_from_no_port_but_its_own(gateway: Gateway, packet: Packet) -> None:
    gateway.tunnelled(packet)
    assert gateway.world.counted() == {"foreign_port": 1}


@pytest.mark.parametrize("destination", ["10.244.1.77", "10.200.0.3"])
def test_nothing_in_the_cluster_is_reached_by_way_of_a_gateway(gateway: Gateway, destination: str) -> None:
    gateway.tunnelled(replace(OUT, destination=IPv4Address(destination)))
    assert gateway.world.counted() == {"bogus_destination": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_pods_error_goes_out_by_the_port_that_it_quotes(gateway: Gateway, version: int) -> None:
    answered = Packet(REMOTE, EGRESS_IP, UDP, 53, THEIRS)
    error = in_family(Packet(EGRESS_IP, REMOTE, ICMP, kind="icmp-error", quoted=answered), version)
    out = gateway.out(error)
    assert (out.source, out.destination, out.quoted) == (error.source, error.destination, error.quoted)
    gateway.tunnelled(error, node=WORKER2)
    assert gateway.world.counted() == {"translated": 1, "foreign_port": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("about, length", [("ttl", 100), ("too-big", UNDERLAY_MTU + 1), ("too-big", UNDERLAY_MTU + 99)])
def test_a_gateway_answers_what_cannot_go_on_through_the_tunnel(
    gateway: Gateway, about: str, length: int, version: int
) -> None:
    """The pod's own node hands it on: so a traceroute shows the gateway, and path MTU discovery works. The route's own
    look-up refuses what is longer than the device by more than a VLAN tag."""
    sent = in_family(replace(OUT, ttl=1 if about == "ttl" else 64, length=length, dont_fragment=True), version)
    outer = vxlan(build(sent, INNER), HERE, TUNNEL_PORT, Packet(WORKER, SELF))
    with gateway.world.jumbo():
        gateway.underlay.put(MACS["underlay"] + outer[6:])
        node, vni, answer = gateway.answered()
    assert (node, vni, answer.about) == (WORKER, BACK, about)
    assert (answer.source, answer.destination) == (SELF if version == 4 else SELF6, sent.source)
    assert answer.quoted and answer.quoted.bears == sent.bears


@pytest.mark.parametrize("version", [4, 6])
def test_an_icmp_error_about_a_translated_packet_reaches_the_node_of_the_port(gateway: Gateway, version: int) -> None:
    error = Packet(IPv4Address("192.0.2.254"), EGRESS_IP, ICMP, kind="icmp-error", quoted=OUT)
    error = in_family(error, version)
    node, vni, seen = gateway.reply(error)
    assert (node, vni, seen.quoted) == (WORKER, BACK, error.quoted)


def test_the_mss_of_an_answer_is_clamped_on_its_way_into_the_tunnel(gateway: Gateway) -> None:
    answer = Packet(REMOTE, EGRESS_IP, TCP, 53, THEIRS, flags="SA", mss=1460)
    assert gateway.reply(answer)[2].mss == TUNNEL_MTU - 40


# --- as the pod's node ------------------------------------------------------------------------------------------------

ASKED = Packet(POD, REMOTE, UDP, 40000, 53)
BORE = replace(ASKED, source=EGRESS_IP, source_port=OURS)
ERROR = Packet(IPv4Address("192.0.2.254"), EGRESS_IP, ICMP, kind="icmp-error", quoted=BORE)
PING = Packet(POD, REMOTE, ICMP, 40000, 0, echo="request")
PING_BORE = replace(PING, source=EGRESS_IP, source_port=OURS)


def flow_of(world: World, asked: Packet) -> State:
    """A flow of POD through the workers, with the port OURS."""
    key = asked.sent_by(world.ifindex["pod0"])
    egress_ip = EGRESS_IP if asked.version == 4 else EGRESS_IP6
    flow = Flow(THERE, 1, 0, egress_ip, OURS, gateway=2, id=5)
    port = Port(asked.source, key.ifindex, asked.source_port, THERE, 5)
    return State({key: flow}, {PortKey(egress_ip, key.remote, OURS, key.remote_port, key.protocol): port})


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("node", [WORKER, WORKER2])
@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (ASKED, ANSWER),
        (PING, Packet(REMOTE, EGRESS_IP, ICMP, 0, OURS, echo="reply")),
        (ASKED, ERROR),
        (PING, replace(ERROR, quoted=PING_BORE)),
    ],
    ids=["udp", "echo", "error", "error about an echo"],
)
def test_an_answer_from_any_gateway_of_the_group_is_handed_to_its_pod(
    gateway: Gateway, asked: Packet, answer: Packet, node: IPv4Address, version: int
) -> None:
    asked, answer = in_family(asked, version), in_family(answer, version)
    state = flow_of(gateway.world, asked)
    tables = gateway.world.fill(to_world(THERE), state)
    gateway.tunnelled(answer, node=node, vni=BACK)
    frame = gateway.pod.get()
    expected = datapath.from_tunnel(tables, state, node, BACK, answer)
    assert expected.packet is not None
    seen, wanted = parse(frame), expected.packet
    assert replace(seen, length=0, quoted=None) == replace(wanted, length=0, quoted=None)
    if wanted.quoted:
        assert seen.quoted and seen.quoted.bears == asked.bears
    assert (frame[:6], frame[6:12]) == (POD_MAC, DEVICE_MAC)
    assert gateway.world.counted() == {"delivered": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_late_answer_is_no_flow_that_began_outside(gateway: Gateway, version: int) -> None:
    """Its flow has been collected at the pod's node, its port not yet. What is handed to a pod here is not asked for a
    flow again; what the host hands to it is."""
    asked, answer = in_family(ASKED, version), in_family(ANSWER, version)
    gateway.world.fill(to_world(THERE), replace(flow_of(gateway.world, asked), flows={}))
    gateway.tunnelled(answer, vni=BACK)
    assert parse(gateway.pod.get()).destination == asked.source
    assert gateway.world.state().flows == {}
    gateway.world.run("to_pod", "pod0", build(replace(answer, destination=asked.source)))
    assert len(gateway.world.state().flows) == 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("about", ["ttl", "too-big", "free to be cut"])
def test_the_remote_is_told_by_the_pods_own_node_what_does_not_get_to_the_pod(
    gateway: Gateway, about: str, version: int
) -> None:
    """It came through the tunnel, by which a gateway takes nothing that bears a node's address."""
    size = 1290 if about == "ttl" else 1301
    answer = replace(ANSWER, length=size, dont_fragment=about == "too-big", ttl=1 if about == "ttl" else 64)
    answer, state = in_family(answer, version), flow_of(gateway.world, in_family(ASKED, version))
    tables = gateway.world.fill(to_world(THERE), state)
    tables = replace(tables, mtus={**tables.mtus, gateway.world.ifindex["pod0"]: 1300})
    with gateway.world.narrow_pod(1300):
        gateway.tunnelled(answer, node=WORKER, vni=BACK)
    frame = gateway.uplink.get()
    told, expected = parse(frame), datapath.from_tunnel(tables, state, WORKER, BACK, answer)
    assert (told.source, told.destination) == ((SELF, REMOTE) if version == 4 else (SELF6, REMOTE6))
    assert (told.quoted, told.about) == (answer, "ttl" if about == "ttl" else "too-big")
    assert about == "ttl" or told_mtu(frame) == 1300
    assert gateway.world.counted() == {expected.reason: 1}


FORGED = {  # what a pod with one flow through the group THERE must not get: (packet, node, VNI)
    "of no flow": (replace(ANSWER, destination_port=OURS + 1), WORKER, BACK),
    "from another remote": (replace(ANSWER, source=IPv4Address("198.51.100.8")), WORKER, BACK),
    "from another port of the remote": (replace(ANSWER, source_port=54), WORKER, BACK),
    "to the pod's own address": (replace(ANSWER, destination=POD, destination_port=40000), WORKER, BACK),
    "to a pod without any": (replace(ANSWER, destination=POD2), WORKER, BACK),
    "another protocol": (replace(ANSWER, protocol=TCP, flags="SA"), WORKER, BACK),
    "a node that is no gateway of the group": (ANSWER, STRANGER, BACK),
    "an error of no flow": (replace(ERROR, quoted=replace(BORE, source_port=OURS + 1)), WORKER, BACK),
    "an error that quotes another address": (replace(ERROR, quoted=ASKED), WORKER, BACK),
    "an error that quotes too little": (replace(ERROR, quoted=None), WORKER, BACK),
}


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_in_fragments_is_handed_to_its_pod(gateway: Gateway, version: int) -> None:
    first = in_family(replace(ANSWER, first=True, id=7, length=1000), version)
    later = replace(first, kind="fragment", source_port=0, destination_port=0, first=False, position=984)
    asked = in_family(ASKED, version)
    state = flow_of(gateway.world, asked)
    tables = gateway.world.fill(to_world(THERE), state)
    for packet, ports in ((first, (53, 40000)), (later, (0, 0))):
        gateway.tunnelled(packet, node=WORKER2, vni=BACK)
        expected = datapath.from_tunnel(tables, state, WORKER2, BACK, packet)
        state.apply(expected.changes)
        seen = parse(gateway.pod.get())
        assert (seen, (seen.source_port, seen.destination_port)) == (expected.packet, ports)
        assert (seen.destination, seen.id) == (asked.source, 7)
    gateway.tunnelled(later, node=STRANGER, vni=BACK)
    assert gateway.world.counted() == {"delivered": 2, "unknown_node": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("forged", FORGED)
def test_a_pod_gets_nothing_from_the_tunnel_but_answers(gateway: Gateway, forged: str, version: int) -> None:
    packet, node, vni = FORGED[forged]
    packet = in_family(packet, version)
    wish = replace(to_world(THERE), nodes={**NUMBERS, 9: STRANGER})
    state = flow_of(gateway.world, in_family(ASKED, version))
    tables = gateway.world.fill(wish, state)
    gateway.tunnelled(packet, node=node, vni=vni)
    assert gateway.world.counted() == {"unknown_flow": 1}
    assert gateway.world.state().flows == state.flows
    assert datapath.from_tunnel(tables, state, node, vni, packet).reason == "unknown_flow"


def test_an_answer_that_is_no_answer_does_not_go_out_instead(gateway: Gateway) -> None:
    """Without the mark of the way back it is a packet to the world from no egress IP of this gateway."""
    gateway.world.fill(to_world(THERE), flow_of(gateway.world, ASKED))
    gateway.tunnelled(ANSWER, vni=THERE)
    assert gateway.world.counted() == {"unknown_egress_ip": 1}


def test_a_late_answer_does_not_turn_the_flow_into_one_from_outside(gateway: Gateway) -> None:
    """The remote still knows the flow, this node has collected it: the pod's next packet must not leave bare."""
    gateway.world.fill(to_world(THERE))
    gateway.tunnelled(ANSWER, vni=BACK)
    assert gateway.world.state() == State()
    gateway.pod.put(build(ASKED, Shape(destination_mac=MACS["pod0"])))
    node, vni, seen = gateway.answered()
    assert (node, vni, seen.source) == (WORKER, THERE, EGRESS_IP)


@pytest.mark.parametrize("version", [4, 6])
def test_a_pods_packet_leaves_translated_by_the_tunnel(gateway: Gateway, version: int) -> None:
    gateway.world.fill(to_world(THERE))
    gateway.pod.put(build(in_family(ASKED, version), Shape(destination_mac=MACS["pod0"])))
    node, vni, seen = gateway.answered()
    wanted = in_family(replace(ASKED, source=EGRESS_IP, source_port=40960 + 40000 % 4096, ttl=63), version)
    assert (vni, seen) == (THERE, wanted)
    assert node in (WORKER, WORKER2)


def test_the_cluster_of_these_tests_holds_its_nodes_and_pods() -> None:
    assert WORKER in UNDERLAY
    assert any(POD in network for network in POD_CIDRS if network.version == 4)


UNSUMMED = {  # what a pod sends -> where its checksum is, in the transport header
    "udp": (Packet(POD, REMOTE, UDP, 40000, 53, dont_fragment=True), 6),
    "tcp": (Packet(POD, REMOTE, TCP, 40000, 443, flags="S", dont_fragment=True), 16),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("about", ["ttl", "too-big"])
@pytest.mark.parametrize("protocol", UNSUMMED)
def test_an_error_answers_a_packet_whose_checksum_the_nic_would_fill_in(
    gateway: Gateway, protocol: str, about: str, version: int
) -> None:
    """So are all that a pod sends by a veth; the kernel cuts none of them before the checksum. None is filled into the
    error, whose own it would spoil.
    """
    packet, offset = UNSUMMED[protocol]
    sent = in_family(replace(packet, ttl=1) if about == "ttl" else replace(packet, length=UNDERLAY_MTU), version)
    gateway.world.fill(to_world(THERE))
    frame = build(sent, Shape(destination_mac=MACS["pod0"]))
    with gateway.world.without_offload("pod0"):
        gateway.pod.put_unsummed(frame, 14 + (20 if version == 4 else 40), offset)
        told = parse(gateway.pod.get())
    assert (told.destination, told.about) == (sent.source, about)
    assert told.quoted and told.quoted.bears == sent.bears
    assert gateway.world.counted() == {"ttl_answered" if about == "ttl" else "too_big_answered": 1}
