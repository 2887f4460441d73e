"""An egress IP that is a Service's VIP: a gateway leaves the Service's ports to the host, and has the upper half."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from bpf import layout
from egress.policy import Served
from tests.bpf.gateway import Gateway, in_family
from tests.bpf.packets import Shape, build, parse
from tests.bpf.wishes import OF_VIP, SERVED, THROUGH_WORKERS, VIPS, WORKER_NUMBER, to_world
from tests.bpf.world import MACS, NODE_MACS, NUMBERS, POD, REMOTE, STRANGER, VIP, VIP6, WORKER, WORKER2
from tests.models import datapath
from tests.models.tables import ICMP, TCP, UDP, Flow, Packet, Port, PortKey, State, granules
from tests.waiting import wait

WISH = to_world(OF_VIP)
THEIRS, MINE, NOBODYS = 33000, 41000, 60000
CLIENT = Packet(REMOTE, VIP, TCP, 50000, 443, flags="S", mss=1460)
OF_SERVICE = Packet(VIP, REMOTE, UDP, 53, 50000)  # what a client's router may quote
THE_HOSTS = {
    "a client's SYN": CLIENT,
    "its further packets": replace(CLIENT, flags="A", mss=0),
    "a datagram to a high port of the lower half": Packet(REMOTE, VIP, UDP, 50000, 32767),
    "an echo request": Packet(REMOTE, VIP, ICMP, 7, 0, echo="request"),
    "an error about the Service's answer": Packet(
        IPv4Address("192.0.2.254"), VIP, ICMP, kind="icmp-error", quoted=OF_SERVICE, length=0
    ),
}
OURS = {
    "an answer to a port of the worker's": (Packet(REMOTE, VIP, UDP, 53, THEIRS), "reversed"),
    "an answer to a port that nobody has here": (Packet(REMOTE, VIP, UDP, 53, NOBODYS), "relayed"),
    "a SYN to a port that nobody has": (replace(CLIENT, destination_port=NOBODYS), "no_mapping"),
}


def in_its_family(packet: Packet, version: int) -> Packet:
    found = in_family(packet, version)
    return replace(found, destination=VIP6 if version == 6 else VIP)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", THE_HOSTS)
def test_what_is_to_the_service_goes_on_to_the_host(gateway: Gateway, case: str, version: int) -> None:
    packet = in_its_family(THE_HOSTS[case], version)
    if packet.quoted is not None:
        packet = replace(packet, quoted=replace(packet.quoted, source=packet.destination))
    tables = gateway.world.fill(WISH)
    assert gateway.world.run("from_uplink", "uplink", build(packet))[0] == "next"
    assert gateway.world.counted() == {}
    assert datapath.from_uplink(tables, State(), packet).verdict == "next"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", OURS)
def test_what_is_to_the_upper_half_is_egress(gateway: Gateway, case: str, version: int) -> None:
    packet, reason = OURS[case]
    packet = in_its_family(packet, version)
    tables = gateway.world.fill(WISH)
    gateway.world.run("from_uplink", "uplink", build(packet))
    assert gateway.world.counted() == {reason: 1}
    assert datapath.from_uplink(tables, State(), packet).reason == reason


@pytest.mark.parametrize("version", [4, 6])
def test_later_fragments_follow_a_first_one_to_the_host(gateway: Gateway, version: int) -> None:
    first = in_its_family(Packet(REMOTE, VIP, UDP, 50000, 53, first=True, id=7, length=800), version)
    later = replace(first, kind="fragment", first=False, position=800, source_port=0, destination_port=0)
    gateway.world.fill(WISH)
    for packet in (first, later):
        assert gateway.world.run("from_uplink", "uplink", build(packet))[0] == "next"
    assert gateway.world.counted() == {}


def test_a_node_that_announces_it_and_is_no_gateway_hands_answers_to_one(gateway: Gateway) -> None:
    """As a gateway whose table is late does, and the gateway takes them from any node."""
    known = replace(WISH.groups[OF_VIP], gateways=WISH.groups[OF_VIP].gateways[1:])
    nobodys = dict.fromkeys(VIPS, Served(granules({}), group=OF_VIP, vip=True))
    gateway.world.fill(replace(WISH, groups={**WISH.groups, OF_VIP: known}, served={**SERVED, **nobodys}))
    answer = Packet(REMOTE, VIP, UDP, 53, THEIRS)
    node, vni, relayed = gateway.reply(answer)
    assert node in (WORKER, WORKER2)
    assert (vni, relayed) == (layout.VNI_RELAYED, replace(answer, length=relayed.length))
    gateway.world.fill(replace(WISH, nodes={**NUMBERS, 9: STRANGER}))
    gateway.tunnelled(relayed, node=STRANGER, vni=vni)
    assert gateway.answered() == (WORKER, layout.VNI_BACK, replace(relayed, ttl=relayed.ttl - 1))
    gateway.tunnelled(replace(relayed, destination_port=443), node=STRANGER, vni=vni)
    assert gateway.world.counted()["no_mapping"] == 1, "what is the host's comes from the world alone"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", ["uplink", "link", "tunnel"])
def test_answers_come_by_any_node_that_announces_it(gateway: Gateway, way: str, version: int) -> None:
    """The pod's own node by the ToR, a gateway on the link, a node that is no gateway: this node is none either."""
    asked, answer = in_family(Packet(POD, REMOTE, UDP, 40000, 53), version), Packet(REMOTE, VIP, UDP, 53, MINE)
    answer, key = in_its_family(answer, version), asked.sent_by(gateway.world.ifindex["pod0"])
    flow = Flow(OF_VIP, 1, 0, answer.destination, MINE, gateway=WORKER_NUMBER, id=5)
    port = Port(asked.source, key.ifindex, asked.source_port, OF_VIP, 5, gateway=WORKER_NUMBER)
    state = State({key: flow}, {PortKey(answer.destination, key.remote, MINE, key.remote_port, key.protocol): port})
    wish = to_world(OF_VIP, transport="direct" if way == "link" else "vxlan")
    groups = {**wish.groups, OF_VIP: replace(wish.groups[OF_VIP], gateways=THROUGH_WORKERS)}
    tables = gateway.world.fill(replace(wish, groups=groups, nodes={**NUMBERS, 9: STRANGER}), state)
    if way == "tunnel":
        gateway.tunnelled(answer, node=STRANGER, vni=layout.VNI_BACK)
        expected = datapath.from_tunnel(tables, state, STRANGER, layout.VNI_BACK, answer)
    elif way == "uplink":
        gateway.uplink.put(build(answer, Shape(destination_mac=MACS["uplink"])))
        expected = datapath.from_uplink(tables, state, answer)
    else:
        mac = NODE_MACS[WORKER_NUMBER]
        gateway.underlay.put(MACS["underlay"] + mac + build(answer)[12:])
        expected = datapath.from_uplink(tables, state, answer, gateway.world.ifindex["underlay"], mac)
    wait(gateway.world.counted, "the packet is counted", interval=0.001)
    assert (gateway.world.counted(), expected.reason) == ({"delivered": 1}, "delivered")
    assert parse(gateway.pod.get()) == replace(answer, destination=asked.source, destination_port=40000, ttl=63)


def test_what_leaves_with_it_is_sent_as_with_any(gateway: Gateway) -> None:
    gateway.world.fill(WISH)
    gateway.tunnelled(Packet(VIP, REMOTE, UDP, THEIRS, 53), node=WORKER, vni=OF_VIP)
    assert parse(gateway.uplink.get()).source == VIP
    gateway.tunnelled(Packet(VIP, REMOTE, UDP, 443, 53), node=WORKER, vni=OF_VIP)
    assert gateway.world.counted() == {"translated": 1, "foreign_port": 1}
