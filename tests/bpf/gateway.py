"""The node of the packet tests with its programs attached: real packets, as a test run cannot carry a tunnel key."""

from __future__ import annotations

from ipaddress import IPv4Address

from egress.policy import IPAddress
from tests.bpf.families import six
from tests.bpf.packets import Shape, build, inside_vxlan, parse, vxlan
from tests.bpf.wishes import HERE
from tests.bpf.world import MACS, SELF, TUNNEL_PORT, WORKER, Wire, World
from tests.models.tables import Packet
from tests.waiting import wait

INNER = Shape(destination_mac=MACS["tunnel"])


class Gateway:
    """The node with the programs attached: packets come from other nodes, from the world and from its pod."""

    def __init__(self, world: World, underlay: Wire, uplink: Wire, pod: Wire) -> None:
        self.world = world
        self.underlay, self.uplink, self.pod = underlay, uplink, pod

    def tunnelled(self, packet: Packet, node: IPv4Address = WORKER, vni: int = HERE, shape: Shape = INNER) -> None:
        """A packet comes through the tunnel; returns when it has been judged."""
        self.take(build(packet, shape), node, vni)

    def take(self, inner: bytes, node: IPv4Address, vni: int) -> None:
        """A frame comes through the tunnel; returns when it has been judged."""
        before = sum(self.world.counted().values())
        outer = vxlan(inner, vni, TUNNEL_PORT, Packet(node, SELF))
        self.underlay.put(MACS["underlay"] + outer[6:])
        wait(lambda: sum(self.world.counted().values()) > before, "the packet is counted", interval=0.001)

    def out(self, packet: Packet, node: IPv4Address = WORKER) -> Packet:
        """What left by the uplink for a packet that came through the tunnel."""
        self.tunnelled(packet, node)
        return parse(self.uplink.get())

    def answered(self) -> tuple[IPAddress, int, Packet]:
        """(node, VNI, packet) that left by the underlay."""
        node, vni, inner = self.answered_frame()
        return node, vni, parse(inner)

    def answered_frame(self) -> tuple[IPAddress, int, bytes]:
        """(node, VNI, frame) that left by the underlay."""
        return inside_vxlan(self.underlay.get())

    def reply(self, packet: Packet) -> tuple[IPAddress, int, Packet]:
        """(node, VNI, packet) that leaves by the underlay for a packet that came by the uplink."""
        self.uplink.put(build(packet, Shape(destination_mac=MACS["uplink"])))
        return self.answered()


def in_family(packet: Packet, version: int) -> Packet:
    return packet if version == 4 else six(packet)
