"""Tunnel packets that the programs make and take themselves: on the wire they are the tunnel device's own, and what is
not as nearly all are is left to that device.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from bpf import syscall
from egress.policy import Desired
from tests.bpf.families import six
from tests.bpf.gateway import Gateway, in_family
from tests.bpf.packets import ETHERNET, Shape, build, checksum, inside_vxlan, parse, vxlan
from tests.bpf.wishes import HERE, THERE, to_world
from tests.bpf.world import (
    EGRESS_IP,
    MACS,
    NODE_MACS,
    POD,
    REMOTE,
    SELF,
    STRANGER,
    TUNNEL_PORT,
    VERDICTS,
    WORKER,
    WORKER2,
    World,
)
from tests.models.tables import ICMP, TCP, UDP, Packet
from tests.netns.lab import netns
from tests.waiting import wait

ASKED = Packet(POD, REMOTE, UDP, 40000, 53, dont_fragment=True)
OUT = Packet(EGRESS_IP, REMOTE, UDP, 33000, 53)  # from the worker, by this node as its gateway
THROUGH_WORKER = frozenset({WORKER, WORKER2})
CE, ECT0 = 3, 2
GSO_SIZE = 176  # offset in struct __sk_buff


def by_device(desired: Desired) -> Desired:
    return replace(desired, tunnel_packets="device")


def marked(frame: bytes, ecn: int) -> bytes:
    """The frame with that mark of congestion in its IP header."""
    if frame[12:14] == b"\x86\xdd":
        return frame[: ETHERNET + 1] + bytes([ecn << 4]) + frame[ETHERNET + 2 :]
    header = bytearray(frame[ETHERNET : ETHERNET + 20])
    header[1], header[10:12] = ecn, b"\0\0"
    header[10:12] = struct.pack("!H", checksum(bytes(header)))
    return frame[:ETHERNET] + bytes(header) + frame[ETHERNET + 20 :]


def sent_by_device() -> int:
    """Packets that the tunnel device has sent."""
    shown = json.loads(netns.run(["ip", "-s", "-j", "link", "show", "dev", "tunnel"]))
    return int(shown[0]["stats64"]["tx"]["packets"])


# --- out --------------------------------------------------------------------------------------------------------------

SENT = {
    "UDP": ASKED,
    "a SYN": replace(ASKED, protocol=TCP, flags="S", mss=1460),
    "an echo": replace(ASKED, protocol=ICMP, destination_port=0, echo="request"),
    "as large as the tunnel carries": replace(ASKED, length=1450),
    "a fragment": replace(ASKED, first=True, id=9, length=1000, dont_fragment=False),
}


@pytest.mark.parametrize("ecn", [0, ECT0, CE])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", SENT)
def test_a_tunnel_packet_is_the_devices_own(gateway: Gateway, kind: str, version: int, ecn: int) -> None:
    """But for what it draws: its id, and the port by which paths and queues are chosen."""
    packet = in_family(SENT[kind], version)
    wish, frame = to_world(THERE), marked(build(packet, Shape(destination_mac=MACS["pod0"])), ecn)

    def sent(desired: Desired) -> bytes:
        gateway.world.fill(desired)
        gateway.pod.put(frame)
        return gateway.underlay.get()

    before = sent_by_device()
    ours = sent(wish)
    assert sent_by_device() == before
    theirs = sent(by_device(wish))
    assert sent_by_device() == before + 1
    assert parse(ours).source_port >= 49152
    assert undrawn(ours) == undrawn(theirs)


def undrawn(frame: bytes) -> bytes:
    """Without what is drawn: outer id and source port, and the id of an inner fragment; checksums were right."""
    parse(frame)
    parse(inside_vxlan(frame)[2])
    drawn = [(ETHERNET + 4, 2), (ETHERNET + 10, 2), (ETHERNET + 20, 2)]
    inner = len(frame) - len(inside_vxlan(frame)[2]) + ETHERNET
    drawn += [(inner + 4, 2), (inner + 10, 2)] if frame[inner - 2 : inner] == b"\x08\0" else [(inner + 44, 4)]
    found = bytearray(frame)
    for start, length in drawn:
        found[start : start + length] = bytes(length)
    return bytes(found)


@contextmanager
def route(*words: str) -> Iterator[None]:
    netns.run(["ip", "route", "add", *words])
    try:
        yield
    finally:
        netns.run(["ip", "route", "del", *words])


def flows_through(gateway: Gateway, packet: Packet) -> None:
    gateway.world.fill(to_world(THERE))
    gateway.pod.put(build(packet, Shape(destination_mac=MACS["pod0"])))


def test_the_next_hop_is_the_routes(gateway: Gateway) -> None:
    before = sent_by_device()
    with route(str(WORKER), "via", "10.200.0.3"), route(str(WORKER2), "via", "10.200.0.2"):
        flows_through(gateway, ASKED)
        frame = gateway.underlay.get()
    hops = {WORKER: NODE_MACS[3], WORKER2: NODE_MACS[2]}
    assert frame[:6] == hops[IPv4Address(frame[ETHERNET + 16 : ETHERNET + 20])]
    assert sent_by_device() == before


def test_what_is_routed_by_another_device_is_the_tunnel_devices(gateway: Gateway) -> None:
    """It may be a tunnel that encrypts."""
    for each in THROUGH_WORKER:
        netns.run(["ip", "neighbour", "add", str(each), "lladdr", "02:00:00:00:00:09", "dev", "other"])
    before = sent_by_device()
    with gateway.world.wire("other") as other, route(str(WORKER), "dev", "other"), route(str(WORKER2), "dev", "other"):
        flows_through(gateway, ASKED)
        assert inside_vxlan(other.get())[0] in THROUGH_WORKER
    assert sent_by_device() == before + 1
    for each in THROUGH_WORKER:
        netns.run(["ip", "neighbour", "del", str(each), "dev", "other"])


def test_what_is_larger_than_the_route_carries_is_the_tunnel_devices(gateway: Gateway) -> None:
    before = sent_by_device()
    narrow = ("dev", "underlay", "mtu", "lock", "1000")
    with route(str(WORKER), *narrow), route(str(WORKER2), *narrow):
        flows_through(gateway, replace(ASKED, length=1400))
        sizes = [len(gateway.underlay.get()) for _ in range(2)]
    assert max(sizes) <= 1000 + ETHERNET
    assert sent_by_device() == before + 1


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(world: World) -> World:
    """As a gateway of the worker's; no packet was left to the device lately."""
    world.fill(to_world(HERE))
    for key in world.maps["left_to_device"].items(zeros=False):
        world.maps["left_to_device"].put(key, bytes(8))
    return world


def outer_frame(inner: bytes | None = None, source: IPv4Address = WORKER, destination: IPv4Address = SELF) -> bytes:
    frame = vxlan(inner or build(OUT), HERE, TUNNEL_PORT, Packet(source, destination))
    return MACS["underlay"] + frame[6:]


def changed(at: int, value: bytes) -> Callable[[bytes], bytes]:
    """Behind the outer IP header."""
    start = ETHERNET + 20 + at
    return lambda frame: frame[:start] + value + frame[start + len(value) :]


def in_pieces(frame: bytes) -> bytes:
    header = bytearray(frame[ETHERNET : ETHERNET + 20])
    header[6:8], header[10:12] = b"\x20\0", b"\0\0"
    header[10:12] = struct.pack("!H", checksum(bytes(header)))
    return frame[:ETHERNET] + bytes(header) + frame[ETHERNET + 20 :]


UNUSUAL: dict[str, Callable[[bytes], bytes]] = {
    "a stranger": lambda _: outer_frame(source=STRANGER),
    "this node itself": lambda _: outer_frame(source=SELF),
    "another address of this node": lambda _: outer_frame(destination=IPv4Address("192.0.2.1")),
    "for another host": lambda frame: b"\x02\0\0\0\0\x55" + frame[6:],
    "another port": changed(2, struct.pack("!H", TUNNEL_PORT + 1)),
    "a checksum": changed(6, b"\x12\x34"),
    "a wrong length": changed(4, b"\x00\x20"),
    "no VNI": changed(8, b"\0"),
    "another flag": changed(8, b"\x0c"),
    "no IP in it": changed(16 + 12, b"\x08\x06"),
    "what expires": lambda _: outer_frame(build(replace(OUT, ttl=1))),
    "what expires, of IPv6": lambda _: outer_frame(build(replace(six(OUT), ttl=1))),
    "congestion": lambda frame: marked(frame, CE),
    "padding": lambda frame: frame + bytes(6),
    "in fragments": in_pieces,
}


def test_what_is_usual_is_taken(node: World) -> None:
    verdict, after = node.run("from_uplink", "underlay", outer_frame())
    assert (verdict, parse(after)) == ("redirect", replace(OUT, ttl=63))
    assert node.counted() == {"translated": 1}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_unusual_is_the_tunnel_devices(node: World, what: str) -> None:
    frame = UNUSUAL[what](outer_frame())
    assert node.run("from_uplink", "underlay", frame) == ("next", frame)
    assert node.counted() == {}


def test_segments_that_were_put_together_are_the_tunnel_devices(node: World) -> None:
    context = bytearray(node.context("underlay"))
    context[GSO_SIZE : GSO_SIZE + 4] = struct.pack("=I", 1000)
    verdict, _ = syscall.run_program(node.program("from_uplink"), outer_frame(), bytes(context))
    assert VERDICTS[verdict] == "next"


@pytest.mark.parametrize("where", ["another device", "tunnel packets of the device"])
def test_no_other_tunnel_packet_is_taken(node: World, where: str) -> None:
    if where != "another device":
        node.fill(by_device(to_world(HERE)))
    device = "uplink" if where == "another device" else "underlay"
    frame = MACS[device] + outer_frame()[6:]
    assert node.run("from_uplink", device, frame) == ("next", frame)


def test_nothing_overtakes_what_was_left_to_the_device(node: World) -> None:
    """Of the same flow; afterwards its packets are taken again."""
    others = vxlan(build(OUT), HERE, TUNNEL_PORT, Packet(WORKER2, SELF))
    frame = outer_frame()

    def verdict() -> str:
        return node.run("from_uplink", "underlay", frame)[0]

    node.run("from_uplink", "underlay", marked(frame, CE))
    assert verdict() == "next"
    assert node.run("from_uplink", "underlay", MACS["underlay"] + others[6:])[0] == "drop"  # not that node's port
    wait(lambda: verdict() == "redirect", "the device's queue is empty", interval=0.001)
