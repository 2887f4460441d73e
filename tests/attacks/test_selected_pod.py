"""Whatever a pod makes of its frames, nothing of it leaves the node but what its policy sends through a gateway.

The node is as lax as can be: no filter of sources, source routes taken, the loopback network routed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from egress.policy import Detour, Policy
from tests.bpf.packets import BadPacket, Shape, build, checksum, inside_vxlan, parse
from tests.models.crafted6 import DESTINATION, PADDING, PROVIDER, VLAN, Crafted, put, tagged, with_headers
from tests.models.tables import ICMP, ICMP6, SCTP, TCP, UDP, Packet
from tests.netns.lab.datapath import EGRESS_IP, EGRESS_IP6, PORTS, WORLD, Cluster
from tests.netns.lab.frames import Arrivals, inject, mac_of
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.wiring import six

NODE, GATEWAY, OTHER_GATEWAY = "10.0.0.21", "10.0.0.11", "10.0.0.12"
SELECTED, PLAIN = IPv4Address("10.244.3.2"), IPv4Address("10.244.3.3")
FW = IPv4Address(FW_ADDRESS)
OUT = Packet(SELECTED, FW, UDP, 4000, 53)
SYN = Packet(SELECTED, FW, TCP, 4001, 80, flags="S")
PING = Packet(SELECTED, FW, ICMP, 4002, 0, echo="request")
ARP, MPLS, PPPOE = b"\x08\x06", b"\x88\x47", b"\x88\x64"


def to(destination: str, packet: Packet = OUT) -> bytes:
    return build(replace(packet, destination=IPv4Address(destination)))


def by(source: str, packet: Packet = OUT) -> bytes:
    return build(replace(packet, source=IPv4Address(source)))


def summed(frame: bytes) -> bytes:
    """The frame, with the checksum of its IPv4 header made right again."""
    header = frame[14 : 14 + (frame[14] & 15) * 4]
    return put(frame, 24, checksum(put(header, 10, b"\0\0")).to_bytes(2))


def with_options(frame: bytes, options: bytes) -> bytes:
    """Options of whole words are put into the header."""
    size = int.from_bytes(frame[16:18]) + len(options)
    longer = frame[:14] + bytes([0x45 + len(options) // 4]) + frame[15:34] + options + frame[34:]
    return summed(put(longer, 16, size.to_bytes(2)))


def routed_by(via: str, kind: int) -> bytes:
    """To `via`, with a source route to fw (RFC 791: 131 loose, 137 strict)."""
    return with_options(to(via), bytes([kind, 7, 4]) + FW.packed + b"\0")


def of_protocol(number: int) -> bytes:
    return build(replace(OUT, kind="unsupported", protocol=number))


def icmp(kind: int) -> bytes:
    frame = build(PING)
    body = put(put(frame[34:], 0, bytes([kind])), 2, b"\0\0")
    return frame[:34] + put(body, 2, checksum(body).to_bytes(2))


def ipv6(source: str, destination: str, port: int = 4000, to: int = 53) -> bytes:
    return build(Packet(IPv6Address(source), IPv6Address(destination), UDP, port, to, length=80))


def encapsulated(number: int, inner: bytes) -> bytes:
    """Another IP packet inside IP."""
    frame = build(replace(OUT, kind="unsupported", protocol=number, length=20 + len(inner)))
    return frame[:34] + inner


MARKER_PORT = 65000
NOTHING = {
    **{f"source {a}": by(a) for a in (str(PLAIN), NODE, GATEWAY, str(EGRESS_IP), "0.0.0.0", "224.0.0.1",
                                      "255.255.255.255", "127.0.0.1", FW_ADDRESS, "198.51.100.77")},
    **{f"SYN by {a}": by(a, SYN) for a in (str(PLAIN), NODE, str(EGRESS_IP), "0.0.0.0")},
    **{f"VLAN {n}": tagged(VLAN + n.to_bytes(2), build(OUT)) for n in (0, 1, 100, 4095)},
    **{f"VLAN {n}, source {PLAIN}": tagged(VLAN + n.to_bytes(2), by(str(PLAIN))) for n in (0, 100)},
    "two tags": tagged(PROVIDER + b"\0\0" + VLAN + b"\0\0", build(OUT)),
    "two priority tags": tagged(VLAN + b"\0\0" + VLAN + b"\0\0", build(OUT)),
    "a provider's tag": tagged(PROVIDER + b"\0\0", build(OUT)),
    "MPLS": build(OUT)[:12] + MPLS + b"\0\0\x01\x40" + build(OUT)[14:],
    "PPPoE": build(OUT)[:12] + PPPOE + b"\x11\0\0\x01\0\x3e\0\x21" + build(OUT)[14:],
    "SNAP": build(OUT)[:12] + b"\0\x44\xaa\xaa\x03\0\0\0\x08\0" + build(OUT)[14:],
    **{f"{name} source route by {via}": routed_by(via, kind)
       for via in (NODE, GATEWAY) for name, kind in (("loose", 131), ("strict", 137))},
    **{f"header of {n} words": summed(put(build(OUT), 14, bytes([0x40 + n]))) for n in (0, 1, 4, 15)},
    **{f"IP version {n}": summed(put(build(OUT), 14, bytes([n * 16 + 5]))) for n in (0, 5, 6)},
    **{f"IPv4 length {n}": summed(put(build(OUT), 16, n.to_bytes(2))) for n in (0, 1, 19, 20, 27, 28, 1000, 65535)},
    **{f"cut at {n}": build(OUT)[:n] for n in (14, 15, 20, 24, 33, 34, 35, 41)},
    **{f"TCP cut at {n}": build(SYN)[:n] for n in (35, 40, 47, 48, 53)},
    "IPv4 checksum": put(build(OUT), 24, b"\x12\x34"),
    **{f"UDP length {n}": put(build(OUT), 38, n.to_bytes(2)) for n in (0, 7, 1000)},
    **{f"TCP header of {n} words": put(build(SYN), 46, bytes([n << 4])) for n in (0, 15)},
    "later fragment": build(replace(OUT, kind="fragment", position=1480, id=7)),
    "fragment that overlaps the ports": build(replace(SYN, kind="fragment", position=8, id=7)),
    "fragment without its transport header": build(replace(SYN, kind="bad-fragment", first=True), Shape(cut=8)),
    **{f"protocol {n}": of_protocol(n) for n in (0, 2, 4, 33, 41, 47, 50, 51, 89, 103, 136, 255)},
    "SCTP in fragments": build(replace(OUT, kind="unsupported", protocol=SCTP, first=True, id=9)),
    "SCTP cut short": build(replace(OUT, kind="malformed", protocol=SCTP), Shape(cut=11)),
    f"IP in IP, source {PLAIN}": encapsulated(4, by(str(PLAIN))[14:]),
    "6in4": encapsulated(41, ipv6("fd00::1", six(FW_ADDRESS))[14:]),
    **{f"ICMP type {n}": icmp(n) for n in (0, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 17, 30, 42)},
    **{f"to {a}": to(a) for a in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.0.0.53", "240.0.0.1", "255.255.255.254",
                                  "255.255.255.255", "224.0.0.5", "239.1.1.1", "10.244.3.255")},
    **{f"ping {a}": to(a, PING) for a in ("127.0.0.1", "240.0.0.1", "255.255.255.255", "224.0.0.1")},
    **{f"tunnel port of {a}": to(a, replace(OUT, destination_port=8473)) for a in (NODE, GATEWAY)},
    "IPv6 to a mapped address": ipv6(six(str(SELECTED)), "::ffff:203.0.113.10"),
}  # fmt: skip
THROUGH_A_GATEWAY = {
    "UDP": build(OUT),
    "TCP": build(SYN),
    "echo": build(PING),
    "SCTP": build(replace(OUT, protocol=SCTP)),
    "SCTP without its checksum": build(replace(OUT, protocol=SCTP), Shape(summed=False)),
    "to all on the link": b"\xff" * 6 + build(OUT)[6:],
    "to a group on the link": b"\x01\0\x5e\0\0\x01" + build(OUT)[6:],
    "to a foreign device": b"\x02\xde\xad\xbe\xef\0" + build(OUT)[6:],
    "options": with_options(build(OUT), b"\x01\x01\x01\0"),
    "40 bytes of options": with_options(build(OUT), b"\x01" * 39 + b"\0"),
    "first fragment": build(replace(OUT, first=True, id=9)),
    "a record of the route": with_options(build(OUT), b"\x07\x0b\x04" + bytes(9)),
    "padding": build(OUT) + b"secret",
    "no UDP checksum": build(OUT, Shape(summed=False)),
    "port 0": build(replace(OUT, destination_port=0)),
    **{f"TCP flags {flags or 'none'}": build(replace(SYN, flags=flags)) for flags in ("", "F", "R", "SF", "SAFR")},
    "a broadcast of fw's network": to("203.0.113.255"),
    "the egress IP": to(str(EGRESS_IP)),
}
CRAFTED6 = Crafted(six(str(SELECTED)), six(FW_ADDRESS))
FOREIGN6 = (six(NODE), six(GATEWAY), six(str(EGRESS_IP)), six(FW_ADDRESS), "2001:db8:5::5", "::", "::1", "fe80::1234",
            "ff02::1", "::ffff:10.244.3.2")  # fmt: skip
NOTHING6 = CRAFTED6.nothing(FOREIGN6, (six(NODE), six(GATEWAY)), by(str(PLAIN))[14:])
THROUGH_A_GATEWAY6 = CRAFTED6.through_a_gateway(str(EGRESS_IP6))
BY_THE_NODE = {f"to {address}": to(address) for address in ("169.254.169.254", "169.254.1.2")}
OF_AN_UNSELECTED_POD = {
    **{f"source {a}": by(a) for a in (str(EGRESS_IP), str(SELECTED), NODE, OTHER_GATEWAY, "198.51.100.77", "0.0.0.0")},
    **{f"SYN by {a}": by(a, SYN) for a in (str(EGRESS_IP), str(SELECTED), OTHER_GATEWAY)},
    "tunnel port": to(GATEWAY, replace(OUT, source=PLAIN, destination_port=8473)),
    "tunnel port, VLAN 0": tagged(VLAN + b"\0\0", to(GATEWAY, replace(OUT, source=PLAIN, destination_port=8473))),
    "tunnel port, by a node": to(GATEWAY, replace(OUT, source=IPv4Address(OTHER_GATEWAY), destination_port=8473)),
    **{f"IPv6 source {a}": CRAFTED6.by(a) for a in (six(str(EGRESS_IP)), six(str(SELECTED)), six(NODE),
                                                    six(OTHER_GATEWAY), "2001:db8:5::5", "::")},
    **{f"SYN by {a}": CRAFTED6.by(a, CRAFTED6.syn)
       for a in (six(str(EGRESS_IP)), six(str(SELECTED)), six(OTHER_GATEWAY))},
    "IPv6 tunnel port": ipv6(six(str(PLAIN)), six(GATEWAY), to=8473),
    "IPv6 tunnel port, VLAN 0": tagged(VLAN + b"\0\0", ipv6(six(str(PLAIN)), six(GATEWAY), to=8473)),
}  # fmt: skip


@dataclass
class Scene:
    cluster: Cluster
    arrivals: Arrivals  # at the ToR, from the worker
    hop: bytes  # the MAC address that pods send to
    far_hop: bytes  # the same for the pod of gw2
    bridged: bytes  # the selected pod's own, where pods of a node are on one bridge
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def leaves(self, pod: str, *frames: bytes) -> set[str]:
        """How anything of the frames left the node: "through a gateway", "by the node", or not at all."""
        for frame in frames:
            to_node = frame[:6] == Shape().destination_mac
            inject(self.cluster.lab.pod(pod), "eth0", self.hop + frame[6:] if to_node else frame)
        return self.seen()

    def seen(self) -> set[str]:
        """What has left the node until a packet that may leave has done so."""
        marker = f"marker {next(self.numbers)} of {os.getpid()}".encode()
        found: set[str] = set()
        question = build(replace(OUT, source_port=MARKER_PORT, length=28 + len(marker)), Shape(payload=marker))
        inject(self.cluster.lab.pod("sel"), "eth0", self.hop + question[6:])

        def is_through() -> bool:
            for frame in self.arrivals.read():
                if marker in frame:
                    return True
                found.add(how(frame))
            return False

        self.cluster.lab.wait(is_through, "a packet leaves through the gateway")
        return found - {""}


def how(frame: bytes) -> str:
    """ "" = the node's own business."""
    kind, source6 = frame[12:14], frame[22:38]
    if kind == ARP or (kind == b"\x86\xdd" and (source6[:2] == b"\xfe\x80" or not any(source6))):
        return ""
    if kind == b"\x08\0" and IPv4Address(frame[26:30]) == IPv4Address(NODE):
        try:
            _, _, inner = inside_vxlan(frame)
            packet = parse(inner)  # no wrong length, no wrong checksum
        except BadPacket as bad:
            return f"broken: {bad}"
        if packet.quoted and packet.quoted.destination_port % PORTS == MARKER_PORT % PORTS:
            return ""  # sel's kernel, which knows of no marker, answers its answer
        return "through a gateway" if packet.source in (EGRESS_IP, EGRESS_IP6) else f"as {packet.source}"
    return "by the node"


@pytest.fixture(scope="module", params=["routed", "bridge"])
def scene(request: pytest.FixtureRequest, clean_labs: list[str]) -> Iterator[Scene]:
    with Lab(f"s{os.getpid()}{request.param[0]}", cni=request.param, ipv6=True, rp_filter=0) as lab:
        pods = {name: lab.add_pod(name, "worker") for name in ("sel", "plain")}
        assert [IPv4Address(pod.address) for pod in pods.values()] == [SELECTED, PLAIN]
        far = lab.add_pod("far", "gw2")
        worker = lab.node("worker")
        for node in (worker, lab.node("gw1")):
            node.sysctl({f"net.ipv6.conf.{device}.seg6_enabled": 1 for device in ("all", "eth0")})
        lax = {"rp_filter": 0, "accept_source_route": 1, "route_localnet": 1, "log_martians": 0}
        hop = "cni0" if lab.cni == "bridge" else pods["sel"].device
        devices = {"all", "eth0", hop, *(pod.device for pod in pods.values())}
        worker.sysctl({f"net.ipv4.conf.{device}.{name}": value for device in devices for name, value in lax.items()})
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {GATEWAY}")
        lab.fw.allow(str(EGRESS_IP))
        policy = Policy("world", 7, (WORLD, IPv6Network("::/0")))
        cluster = Cluster(lab, policies={"world": policy}, selected={"sel": ("world",)}, pools=(VIPS,))
        cluster.apply()
        assert pods["sel"].ask(FW_ADDRESS).source == str(EGRESS_IP)
        with Arrivals(lab.tor, "worker") as arrivals:
            far_hop = mac_of(lab.node("gw2"), "cni0" if lab.cni == "bridge" else far.device)
            bridged = mac_of(pods["sel"], "eth0") if lab.cni == "bridge" else b""
            yield Scene(cluster, arrivals, mac_of(worker, hop), far_hop, bridged)
        cluster.close()


@pytest.mark.parametrize("attack", NOTHING)
def test_it_does_not_leave(scene: Scene, attack: str) -> None:
    assert scene.leaves("sel", NOTHING[attack]) == set()


@pytest.mark.parametrize("scene", ["routed"], indirect=True)  # on a bridge it is taken for the other pod's
def test_ipv6_with_another_pods_address_does_not_leave(scene: Scene) -> None:
    assert scene.leaves("sel", ipv6(six(str(PLAIN)), six(FW_ADDRESS))) == set()


@pytest.mark.parametrize("way", THROUGH_A_GATEWAY)
def test_it_leaves_through_a_gateway_and_whole(scene: Scene, way: str) -> None:
    assert scene.leaves("sel", THROUGH_A_GATEWAY[way]) == {"through a gateway"}


@pytest.mark.parametrize("attack", NOTHING6)
def test_nothing_of_ipv6_leaves(scene: Scene, attack: str) -> None:
    assert scene.leaves("sel", *NOTHING6[attack]) == set()


@pytest.mark.parametrize("way", THROUGH_A_GATEWAY6)
def test_ipv6_leaves_through_a_gateway_and_whole(scene: Scene, way: str) -> None:
    assert scene.leaves("sel", THROUGH_A_GATEWAY6[way]) == {"through a gateway"}


@pytest.mark.parametrize("way", BY_THE_NODE)
def test_what_is_of_the_link_is_left_to_the_node(scene: Scene, way: str) -> None:
    assert scene.leaves("sel", BY_THE_NODE[way]) == {"by the node"}


@pytest.mark.parametrize("attack", OF_AN_UNSELECTED_POD)
def test_an_unselected_pod_sends_with_no_source_but_its_own(scene: Scene, attack: str) -> None:
    assert scene.leaves("plain", OF_AN_UNSELECTED_POD[attack]) == set()


@pytest.fixture
def narrow(scene: Scene) -> Iterator[Scene]:
    """The policy covers fw alone: what others send elsewhere is nobody's business."""
    before = dict(scene.cluster.policies)
    scene.cluster.policies["world"] = Policy(
        "world", 7, (IPv4Network(f"{FW}/32"), IPv6Network(f"{six(FW_ADDRESS)}/128"))
    )
    scene.cluster.apply()
    yield scene
    scene.cluster.policies = before
    scene.cluster.apply()


UNCOVERED, VIPS, VIP = "203.0.113.77", "192.0.2.64/27", "192.0.2.70"
OF_NO_POD = {
    **{f"source {a}": by(a, replace(OUT, destination=IPv4Address(UNCOVERED)))
       for a in (str(EGRESS_IP), NODE, GATEWAY, OTHER_GATEWAY, VIP)},
    **{f"IPv6 source {a}": ipv6(six(a), six(UNCOVERED))
       for a in (str(EGRESS_IP), NODE, GATEWAY, OTHER_GATEWAY, VIP)},
}  # fmt: skip


@pytest.mark.parametrize("attack", OF_NO_POD)
@pytest.mark.parametrize("pod", ["plain", "sel"])
def test_no_pod_is_a_node_a_vip_or_an_egress_ip_for_anybody(narrow: Scene, attack: str, pod: str) -> None:
    before = narrow.cluster.dropped("worker")
    assert narrow.leaves(pod, OF_NO_POD[attack]) == set()
    after = narrow.cluster.dropped("worker")
    reason = "guard_spoofed" if pod == "plain" else "spoofed_source"
    assert {name for name in after if after[name] != before.get(name)} == {reason}


ACCOMPLICE_PORT = 6000
FROM_FW = Packet(FW, SELECTED, UDP, 53, ACCOMPLICE_PORT)
FROM_FW6 = Packet(IPv6Address(six(FW_ADDRESS)), IPv6Address(six(str(SELECTED))), UDP, 53, ACCOMPLICE_PORT, length=80)
PLAYED = {  # whom a pod plays to another one, so that its answers would go back as they are
    "UDP": build(FROM_FW),
    "TCP": build(replace(FROM_FW, protocol=TCP, flags="S")),
    "a ping": build(replace(FROM_FW, protocol=ICMP, source_port=ACCOMPLICE_PORT, destination_port=0, echo="request")),
    "VLAN 0": tagged(VLAN + b"\0\0", build(FROM_FW)),
    "options": with_options(build(FROM_FW), b"\x01\x01\x01\0"),
    "IPv6": build(FROM_FW6),
    "IPv6, TCP": build(replace(FROM_FW6, protocol=TCP, flags="S")),
    "IPv6, a ping": build(replace(FROM_FW6, protocol=ICMP6, source_port=ACCOMPLICE_PORT, destination_port=0,
                                  echo="request")),
    "IPv6, with options": with_headers(build(FROM_FW6), (DESTINATION, b"\0" + PADDING)),
}  # fmt: skip
ANSWERS = {
    "TCP": replace(SYN, source_port=ACCOMPLICE_PORT, destination_port=53, flags="SA"),
    "a ping": replace(PING, source_port=0, destination_port=ACCOMPLICE_PORT, echo="reply"),
    "IPv6": replace(CRAFTED6.out, source_port=ACCOMPLICE_PORT),
    "IPv6, TCP": replace(CRAFTED6.syn, source_port=ACCOMPLICE_PORT, destination_port=53, flags="SA"),
    "IPv6, a ping": replace(CRAFTED6.ping, source_port=0, destination_port=ACCOMPLICE_PORT, echo="reply"),
    "IPv6, with options": replace(CRAFTED6.out, source_port=ACCOMPLICE_PORT),
}


@pytest.mark.parametrize("packet", PLAYED)
@pytest.mark.parametrize("of", ["the same node", "another node"])
def test_no_pod_plays_a_remote_to_a_selected_one(scene: Scene, packet: str, of: str) -> None:
    cluster, frame = scene.cluster, PLAYED[packet]
    name, node, hop = ("plain", "worker", scene.hop) if of == "the same node" else ("far", "gw2", scene.far_hop)
    bridged = scene.bridged if of == "the same node" else b""
    for mac in filter(None, (hop, bridged)):
        before = cluster.dropped(node)
        inject(cluster.lab.pod(name), "eth0", mac + frame[6:])
        answer = ANSWERS.get(packet, replace(OUT, source_port=ACCOMPLICE_PORT))
        assert scene.leaves("sel", build(answer)) <= {"through a gateway"}
        told = {each for each, n in cluster.dropped(node).items() if n != before.get(each)}
        assert told & {"foreign_source", "guard_foreign_source"} or (packet == "VLAN 0" and mac == bridged)


EXTERNAL_IP = "198.51.100.99"  # of a service, as its user wrote it: it is not in the cluster
TRANSLATED = f"""
table ip services {{
    chain come {{ type nat hook prerouting priority dstnat; ip daddr {EXTERNAL_IP} dnat to {SELECTED}; }}
}}
"""


@pytest.mark.parametrize(("name", "node"), [("plain", "worker"), ("far", "gw2")])
def test_no_pod_plays_a_remote_to_a_service_of_a_selected_one(scene: Scene, name: str, node: str) -> None:
    cluster, hop = scene.cluster, scene.hop if node == "worker" else scene.far_hop
    host, before = cluster.lab.node(node), cluster.dropped(node)
    question = build(replace(FROM_FW, destination=IPv4Address(EXTERNAL_IP), destination_port=ACCOMPLICE_PORT + 1))
    host.nft(TRANSLATED)
    try:
        inject(cluster.lab.pod(name), "eth0", hop + question[6:])
        assert scene.leaves("sel", build(replace(OUT, source_port=ACCOMPLICE_PORT + 1))) == {"through a gateway"}
    finally:
        host.run(["nft", "delete", "table", "ip", "services"])
    after = cluster.dropped(node)
    assert after["guard_foreign_source"] == before.get("guard_foreign_source", 0) + 1


@pytest.mark.parametrize("pod", ["sel", "plain"])
def test_no_pod_plays_a_remote_by_a_second_device(scene: Scene, pod: str) -> None:
    """As Multus gives it one, whose address no Pod tells."""
    cluster, worker, own = scene.cluster, scene.cluster.lab.node("worker"), scene.cluster.lab.pod(pod)
    port = ACCOMPLICE_PORT + 2
    worker.ip(f"link add side0 type veth peer name net1 netns {own.name}", "link set side0 up")
    own.ip("link set net1 up")
    try:
        worker.sysctl({"net.ipv4.conf.side0.rp_filter": 0})
        cluster.apply()
        before = cluster.dropped("worker")
        inject(own, "net1", mac_of(worker, "side0") + build(replace(FROM_FW, destination_port=port))[6:])
        assert scene.leaves("sel", build(replace(OUT, source_port=port))) == {"through a gateway"}
        after = cluster.dropped("worker")
        assert after["guard_foreign_source"] == before.get("guard_foreign_source", 0) + 1
    finally:
        worker.ip("link delete side0")
        cluster.apply()


def test_a_pod_that_looks_for_its_own_address_plays_nobody(scene: Scene) -> None:
    """It asks for it without one (RFC 4862, section 5.4; RFC 2131, section 4.1), and reaches the link alone."""
    before = scene.cluster.dropped("worker")
    for frame in (ipv6("::", "ff02::1:ff00:9"), to("255.255.255.255", replace(OUT, source=IPv4Address("0.0.0.0")))):
        assert scene.leaves("plain", frame) == set()
    assert scene.cluster.dropped("worker") == before


NODE_PORT, CLUSTER_IP = 30053, "10.96.0.53"
LEADING_OUT = f"""
table inet services {{
    chain come {{
        type nat hook prerouting priority dstnat
        ip daddr {OTHER_GATEWAY} udp dport {NODE_PORT} dnat ip to {FW}:53
        ip6 daddr {six(OTHER_GATEWAY)} udp dport {NODE_PORT} dnat ip6 to [{six(FW_ADDRESS)}]:53
    }}
    chain go {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}
}}
"""


@pytest.fixture(scope="module")
def led_out(scene: Scene) -> Iterator[Scene]:
    """A Service whose only endpoint is fw; gw2 translates it as kube-proxy does, the worker does not."""
    cluster, gateway = scene.cluster, scene.cluster.lab.node("gw2")
    six_of_it = frozenset({IPv6Address(six(CLUSTER_IP))})
    cluster.detours = frozenset(
        {
            Detour("UDP", NODE_PORT, frozenset({(FW, 53)})),
            Detour("UDP", 53, frozenset({(FW, 53)}), frozenset({IPv4Address(CLUSTER_IP)})),
            Detour("UDP", NODE_PORT, frozenset({(IPv6Address(six(FW_ADDRESS)), 53)})),
            Detour("UDP", 53, frozenset({(IPv6Address(six(FW_ADDRESS)), 53)}), six_of_it),
        }
    )
    cluster.apply()
    gateway.nft(LEADING_OUT)
    yield scene
    gateway.run(["nft", "delete", "table", "inet", "services"])
    cluster.detours = frozenset()
    cluster.apply()


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_no_node_port_of_another_node_leads_a_selected_pod_out(led_out: Scene, family: str) -> None:
    cluster, lab = led_out.cluster, led_out.cluster.lab
    node, fw = (OTHER_GATEWAY, FW_ADDRESS) if family == "IPv4" else (six(OTHER_GATEWAY), six(FW_ADDRESS))
    for name, does_leave in (("plain", True), ("sel", False)):  # else it would prove nothing
        before = cluster.dropped("worker").get("guard_detour", 0)
        with lab.watch() as watch:
            assert lab.pod(name).ask(node, NODE_PORT, timeout=0.3).refusal
            assert ((node, fw) in watch.settle().outside) is does_leave
        led_out.seen()
        assert (cluster.dropped("worker").get("guard_detour", 0) == before) is does_leave


TO_A_NODE_PORT = replace(OUT, destination=IPv4Address(OTHER_GATEWAY), destination_port=NODE_PORT)
TO_A_NODE_PORT6 = replace(TO_A_NODE_PORT, source=IPv6Address(six(str(SELECTED))),
                          destination=IPv6Address(six(OTHER_GATEWAY)), length=80)  # fmt: skip
BY_A_SERVICE = {
    "a NodePort": [build(TO_A_NODE_PORT)],
    "with options": [with_options(build(TO_A_NODE_PORT), b"\x01\x01\x01\0")],
    "in fragments": [
        build(replace(TO_A_NODE_PORT, first=True, id=11, length=60)),
        build(replace(TO_A_NODE_PORT, kind="fragment", position=40, id=11), Shape(last=True)),
    ],
    "a ClusterIP that the node does not translate": [to(CLUSTER_IP)],
    "IPv6": [build(TO_A_NODE_PORT6)],
    "IPv6, with options": [build(replace(TO_A_NODE_PORT6, options=True, length=88))],
    "IPv6, in fragments": [
        build(replace(TO_A_NODE_PORT6, first=True, id=12, length=88)),
        build(replace(TO_A_NODE_PORT6, kind="fragment", position=40, id=12), Shape(last=True)),
    ],
    "IPv6, a ClusterIP": [ipv6(six(str(SELECTED)), six(CLUSTER_IP))],
}


@pytest.mark.parametrize("way", BY_A_SERVICE)
def test_nothing_leaves_by_a_service_that_leads_out(led_out: Scene, way: str) -> None:
    before = led_out.cluster.dropped("worker")
    for frame in BY_A_SERVICE[way]:
        assert led_out.leaves("sel", frame) == set()
    after = led_out.cluster.dropped("worker")
    assert {name for name in after if after[name] != before.get(name)} == {"guard_detour"}


def test_what_a_service_does_not_lead_out_goes_as_it_is(led_out: Scene) -> None:
    assert led_out.leaves("sel", build(replace(TO_A_NODE_PORT, destination_port=NODE_PORT + 1))) == {"by the node"}
    assert led_out.leaves("plain", build(replace(TO_A_NODE_PORT, source=PLAIN))) == {"by the node"}


def test_what_no_policy_covers_leaves_as_it_is(narrow: Scene) -> None:
    packet = replace(OUT, destination=IPv4Address(UNCOVERED))
    assert narrow.leaves("plain", by(str(PLAIN), packet)) == {"by the node"}
    assert narrow.leaves("sel", build(packet)) == {"by the node"}


def test_an_unselected_pod_leaves_as_it_is(scene: Scene) -> None:
    """Else none of the others would prove anything."""
    assert scene.leaves("plain", by(str(PLAIN))) == {"by the node"}


def test_a_pod_that_claims_an_address_takes_nothing(scene: Scene) -> None:
    lab = scene.cluster.lab
    for address in (str(EGRESS_IP), GATEWAY, NODE):
        claim = b"\0\x01\x08\0\x06\x04\0\x02" + b"\x02\0\0\0\0\xaa" + IPv4Address(address).packed
        frame = b"\xff" * 6 + b"\x02\0\0\0\0\xaa" + ARP + claim + b"\xff" * 6 + IPv4Address(NODE).packed + bytes(18)
        inject(lab.pod("plain"), "eth0", frame)
    assert lab.pod("sel").ask(FW_ADDRESS).source == str(EGRESS_IP)
    assert lab.pod("plain").get(FW_ADDRESS).refusal == "refused"


def test_the_loopback_of_the_node_is_not_reached(scene: Scene) -> None:
    """Though the node routes it, as kube-proxy asks it to."""
    worker = scene.cluster.lab.node("worker")
    worker.ip("link set lo up")
    worker.start_server(udp=5353, address="127.0.0.1")
    scene.leaves("sel", to("127.0.0.1", replace(OUT, destination_port=5353)))
    assert worker.log_lines() == ["ready"]


def test_at_the_end_nothing_is_left_over(scene: Scene) -> None:
    """What left late, behind the packet that each test waits for, is seen by the next one, or here."""
    assert scene.seen() == set()
