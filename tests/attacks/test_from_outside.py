"""What comes from outside, or from the nodes' own link: forged packets of nodes that need no tunnel, what nobody asked
for, and the ends and errors that anybody may forge for a connection that goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, ip_address

import pytest

from bpf import layout
from egress.policy import IPAddress, Policy
from tests.bpf.packets import Shape, build
from tests.models.tables import ICMP, ICMP6, SCTP, TCP, UDP, Packet
from tests.netns.lab.datapath import EGRESS_IP, EGRESS_IP6, WORLD, WORLD6, Cluster
from tests.netns.lab.frames import Arrivals, inject, mac_of
from tests.netns.lab.lab import CLIENT_ADDRESS, FW_ADDRESS, POD_NETWORK, Lab
from tests.netns.lab.wiring import six

SERVER = {4: FW_ADDRESS, 6: six(FW_ADDRESS)}
EGRESS: Mapping[int, IPAddress] = {4: EGRESS_IP, 6: EGRESS_IP6}
FW, ROUTER, CLIENT = (IPv4Address(each) for each in (FW_ADDRESS, "203.0.113.1", CLIENT_ADDRESS))
STRANGER = b"\x02\xde\xad\xbe\xef\x01"
NOBODYS, LOW = 20000, 100  # ports that no node has


def in_six(packet: Packet) -> Packet:
    """The same of IPv6, by the addresses that hosts of the lab have."""
    return replace(
        packet, source=ip_address(six(str(packet.source))), destination=ip_address(six(str(packet.destination))),
        protocol=ICMP6 if packet.protocol == ICMP else packet.protocol, length=packet.length and packet.length + 40,
        quoted=in_six(packet.quoted) if packet.quoted else None,
    )  # fmt: skip


@dataclass
class Scene:
    cluster: Cluster
    macs: Mapping[str, bytes] = field(default_factory=dict)

    def comes(self, node: str, packet: Packet, mac: bytes, version: int, shape: Shape | None = None) -> None:
        """By the node's link, in a frame from `mac`."""
        packet = packet if version == 4 else in_six(packet)
        inject(self.cluster.lab.tor, node, self.macs[node] + mac + build(packet, shape)[12:])

    def dropped(self) -> Counter[str]:
        """By all nodes."""
        return sum((Counter(self.cluster.dropped(name)) for name in self.cluster.lab.nodes), Counter())

    def more(self, before: Counter[str]) -> set[str]:
        return set(self.dropped() - before)


@pytest.fixture(scope="module")
def scene(clean_labs: list[str]) -> Iterator[Scene]:
    with Lab(f"o{os.getpid()}", ipv6=True, rp_filter=0) as lab:
        for name, node in (("sel", "worker"), ("evil", "gw2")):
            lab.add_pod(name, node)
        gateway = lab.node("gw1").address
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {gateway}", f"route add {EGRESS_IP6}/128 via {six(gateway)}")
        lab.fw.allow(str(EGRESS_IP))
        lab.fw.start_server(udp=53, tcp=7, address=SERVER[6])
        cluster = Cluster(
            lab, policies={"world": Policy("world", 7, (WORLD, WORLD6))}, selected={"sel": ("world",)}, transport="auto"
        )
        cluster.apply()
        yield Scene(cluster, {name: mac_of(node, "eth0") for name, node in lab.nodes.items()})
        cluster.close()


def ports(name: str) -> int:
    """The first port of a node: as `Cluster` gives them."""
    return 32768 + (1 + ["gw1", "gw2", "worker"].index(name)) * 1024


OUT = Packet(EGRESS_IP, FW, UDP, ports("worker"), 53)
ANSWER = Packet(FW, EGRESS_IP, UDP, 54, ports("worker"))  # the pod asks 53, by whichever port: that would be its own
TRIAL = Packet(EGRESS_IP, EGRESS_IP, UDP, ports("worker"), layout.TRIAL_PORT, ttl=255)
INTO = IPv4Address(POD_NETWORK.partition("/")[0]) + 0x302
ON_THE_LINK = {  # what comes, to which node, from whose MAC (None = a stranger's) -> its reason
    "out, of a stranger": (OUT, "gw1", None, "unknown_neighbour"),
    "out, of a node with another one's port": (OUT, "gw1", "gw2", "foreign_port"),
    "out, of a node with nobody's port": (replace(OUT, source_port=NOBODYS), "gw1", "gw2", "foreign_port"),
    "out, of a node with the gateway's own port": (
        replace(OUT, source_port=ports("gw1")), "gw1", "gw2", "foreign_port"),
    "a SYN of a stranger": (
        replace(OUT, protocol=TCP, destination_port=80, flags="S"), "gw1", None, "unknown_neighbour"),
    "into the cluster": (replace(OUT, destination=INTO), "gw1", "worker", "bogus_destination"),
    "a fragment with another one's id": (
        replace(OUT, kind="fragment", position=1480, id=ports("worker")), "gw1", "gw2", "foreign_port"),
    "an answer of a stranger": (ANSWER, "worker", None, "unknown_neighbour"),
    "an answer of a gateway to no flow": (ANSWER, "worker", "gw1", "unknown_flow"),
    "a trial of a stranger": (TRIAL, "gw1", None, "unknown_neighbour"),
    "a trial of a node with another one's port": (TRIAL, "gw1", "gw2", "bad_trial"),
    "an echo of a trial that nobody sent": (TRIAL, "worker", "gw1", "bad_trial"),
}  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", ON_THE_LINK)
def test_what_is_forged_on_the_link_gets_nowhere(scene: Scene, case: str, version: int) -> None:
    """By a neighbour, or a node that is in others' hands."""
    packet, node, sender, reason = ON_THE_LINK[case]
    lab, before = scene.cluster.lab, scene.dropped()
    with Arrivals(lab.fw, "eth0") as arrivals:
        scene.comes(node, packet, scene.macs[sender] if sender else STRANGER, version)
        assert lab.wait(lambda: scene.more(before), "it is dropped") == {reason}
        assert not any(EGRESS[version].packed in frame[14:54] for frame in arrivals.read(0))
    assert lab.pod("sel").ask(SERVER[version]).source == str(EGRESS[version])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("node", ["worker", "gw2"])
def test_no_pod_sends_as_a_node_does_without_a_tunnel(scene: Scene, node: str, version: int) -> None:
    """Whose node's frames a gateway takes by their MAC, also for ports that the node has."""
    lab = scene.cluster.lab
    pod = lab.pod("sel" if node == "worker" else "evil")
    packet = replace(OUT, source_port=ports(node))
    packet = packet if version == 4 else in_six(packet)
    before = scene.dropped()
    with Arrivals(lab.fw, "eth0") as arrivals:
        inject(pod, "eth0", mac_of(lab.node(node), pod.device) + build(packet)[6:])
        assert lab.wait(lambda: scene.more(before), "it is dropped") == {
            "spoofed_source" if node == "worker" else "guard_spoofed"
        }
        assert not any(EGRESS[version].packed in frame[14:54] for frame in arrivals.read(0))


TO = Packet(CLIENT, EGRESS_IP, UDP, 4000, ports("worker"))
UNASKED = {
    "a datagram to a node's port": (TO, {"unknown_flow"}),
    "a datagram to nobody's port": (replace(TO, destination_port=NOBODYS), {"no_mapping"}),
    "a datagram to a low port": (replace(TO, destination_port=LOW), {"no_mapping"}),
    "a SYN to a node's port": (replace(TO, protocol=TCP, flags="S"), {"unknown_flow"}),
    "a SYN to nobody's": (replace(TO, protocol=TCP, flags="S", destination_port=NOBODYS), {"no_mapping"}),
    "a RST": (replace(TO, protocol=TCP, flags="R"), {"unknown_flow"}),
    "an echo request": (replace(TO, protocol=ICMP, destination_port=0, echo="request"), {"no_mapping"}),
    "an echo reply": (replace(TO, protocol=ICMP, source_port=0, echo="reply"), {"unknown_flow"}),
    "SCTP": (replace(TO, protocol=SCTP), {"unknown_flow"}),
    **{name: (replace(TO, kind="unsupported", protocol=number), {"unsupported_protocol"})
       for name, number in {"IP in IP": 4, "6in4": 41, "GRE": 47, "ESP": 50, "OSPF": 89}.items()},
    "a first fragment": (replace(TO, first=True, id=9), {"unknown_flow"}),
    "a fragment alone": (replace(TO, kind="fragment", position=1480, id=10), {"fragment"}),
    "a fragment over its first's ports": (replace(TO, kind="fragment", position=8, id=11), {"fragment"}),
    "an error about nothing": (
        replace(TO, protocol=ICMP, kind="icmp-error", quoted=replace(ANSWER, source=EGRESS_IP, destination=CLIENT)),
        {"unknown_flow", "no_mapping"}),
}  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", UNASKED)
def test_what_nobody_asked_for_reaches_nobody_and_is_not_answered(scene: Scene, case: str, version: int) -> None:
    packet, reasons = UNASKED[case]
    lab, before = scene.cluster.lab, scene.dropped()
    with Arrivals(lab.pod("sel"), "eth0") as at_pod, Arrivals(lab.client, "eth0") as at_client:
        scene.comes("gw1", packet, STRANGER, version)
        assert lab.wait(lambda: scene.more(before), "it is dropped") <= reasons
        assert lab.pod("sel").ask(SERVER[version]).source == str(EGRESS[version])
        seen = [*at_pod.read(), *at_client.read()]
    address = EGRESS[version].packed
    assert not any(address in frame[14:54] or CLIENT.packed in frame[14:34] for frame in seen)


def errors(there: Packet) -> dict[str, tuple[Packet, Shape]]:
    """About a packet that has gone to fw, by a router that may be anybody."""
    told = Packet(ROUTER, EGRESS_IP, ICMP, kind="icmp-error", quoted=there, length=0)
    return {
        "unreachable": (told, Shape()),
        "a hop count that ran out": (replace(told, about="ttl"), Shape()),
        "a tiny MTU": (replace(told, about="too-big"), Shape(mtu=68)),
        "no MTU": (replace(told, about="too-big"), Shape(mtu=0)),
    }


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_outlives_ends_and_errors_that_anybody_may_forge(scene: Scene, version: int) -> None:
    """Who forges them knows its addresses and ports; the pod's stack asks for sequence numbers as well."""
    lab, pod, frm = scene.cluster.lab, scene.cluster.lab.pod("sel"), scene.macs["gw2"]
    with pod.connect(SERVER[version], 7) as connection:
        connection.settimeout(5)

        def goes_on(text: bytes) -> None:
            connection.sendall(text)
            got = b""
            while not got.endswith(text):
                got += connection.recv(4096)

        goes_on(b"one")
        (line,) = [each for each in lab.fw.log_lines() if each.startswith(f"tcp {EGRESS[version]}:")]
        port = int(line.split()[1].rpartition(":")[2])
        there = Packet(EGRESS_IP, FW, TCP, port, 7, flags="A")
        back = replace(there, source=FW, destination=EGRESS_IP, source_port=7, destination_port=port)
        before, delivered = scene.dropped(), scene.cluster.counters("worker")["delivered"]
        comes = partial(scene.comes, "gw1", mac=frm, version=version)
        for flags in ("R", "AR", "AF", "S", "SA", "SF"):
            comes(replace(back, flags=flags))
        for packet, shape in errors(there).values():
            comes(packet, shape=shape)
        for packet, _ in errors(replace(there, source_port=port ^ 1)).values():
            comes(packet)
        is_told = lambda: scene.cluster.counters("worker")["delivered"] >= delivered + 10  # noqa: E731 - by the pod's node
        lab.wait(is_told, "what bears the connection's ports is the pod's to judge")
        lab.wait(lambda: (scene.dropped() - before).total() >= 4, "what bears others is dropped")
        assert scene.more(before) == {"unknown_flow"}
        goes_on(b"two" * 5000)
    said = pod.run(["ip", f"-{version}", "route", "show", "cache"])
    assert "mtu 68" not in said and "mtu 0 " not in said
