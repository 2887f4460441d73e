"""Fixtures: a packet in, the verdict, the packet out. What random packets (test_oracle.py) meet too rarely or say too
little about stands here; each holds for both families unless it says otherwise.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf import layout
from egress.policy import Block, Desired, Gateway, Policy, Ports
from tests.bpf.families import six
from tests.bpf.oracle import is_paired
from tests.bpf.packets import BadPacket, Shape, build, checksum, crc32c, parse, told_mtu
from tests.bpf.wishes import (
    GROUPS,
    HERE,
    NO_GATEWAY,
    NO_PORTS,
    OWN,
    THERE,
    UNPUBLISHED,
    WORKER2_NUMBER,
    desired,
    to_world,
)
from tests.bpf.world import (
    EGRESS_IP,
    EGRESS_IP6,
    MACS,
    POD,
    POD2,
    POD2_MTU,
    REMOTE,
    SELF,
    SELF6,
    TUNNEL_MTU,
    TUNNEL_PORT,
    UNDERLAY_MTU,
    WORKER,
    WORLD,
    WORLD6,
    World,
)
from tests.models.tables import ICMP, ICMP6, SCTP, TCP, UDP, Echo, Flow, FlowKey, Packet, Port, PortKey, State

GRE = 47
UDP_OUT = Packet(POD, REMOTE, UDP, 40000, 53)
SYN = Packet(POD, REMOTE, TCP, 40000, 443, flags="S", mss=1460)
SCTP_OUT = Packet(POD, REMOTE, SCTP, 40000, 3868, length=1001)
PING = Packet(POD, REMOTE, ICMP, 4000, 0, echo="request")
TO_SELECTED = Packet(REMOTE, POD, UDP, 53, 40000)
LATER = replace(UDP_OUT, kind="fragment", source_port=0, destination_port=0, position=1376, id=7)
FOLDED = 40960 + 40000 % 4096  # the pod's port within the node's block
FOLDED_ID = 40960 + 4000 % 4096
ENDED, RUNNING, BEFORE = Flow(0, 3, 3), Flow(0, 1, 1), Flow(0, 1 | layout.SEEN_BEFORE, 1)
THROUGH_GATEWAY = to_world(THERE)
ONLY_HTTPS = desired(Policy("https", THERE, (WORLD, WORLD6), ports=(Ports("TCP", 443, 443),)))
ONLY_DIAMETER = desired(Policy("diameter", THERE, (WORLD, WORLD6), ports=(Ports("SCTP", 3868, 3868),)))
ONLY_V6 = desired(Policy("six", THERE, (WORLD6,)))
CLASS_E = replace(THROUGH_GATEWAY, cluster=THROUGH_GATEWAY.cluster | {ip_network("240.0.0.0/4")})
V4 = "IPv4 alone"


@dataclass(frozen=True)
class Fixture:
    """`out`: the packet afterwards; None where it is as it came in. `counted`: the reason, "" for none."""

    title: str
    packet: Packet
    verdict: str
    counted: str = ""
    out: Packet | None = None
    wish: Desired = THROUGH_GATEWAY
    flow: Flow | None = None  # one that is there already, of the packet's key
    shape: Shape = field(default_factory=Shape)
    device: str = "pod0"
    family: str = ""


def _out(packet: Packet, port: int = FOLDED) -> Packet:
    """Translated: one hop, and the node's own port."""
    return replace(packet, source=EGRESS_IP, source_port=port, ttl=packet.ttl - 1)


CLAMPED = replace(_out(SYN), mss=TUNNEL_MTU - 40)
FROM_POD = [
    Fixture("a selected pod's packet goes to the gateway", UDP_OUT, "redirect", "encapsulated", _out(UDP_OUT)),
    Fixture("a SYN's MSS is made to fit", SYN, "redirect", "encapsulated", CLAMPED),
    Fixture("an MSS that fits is left", replace(SYN, mss=900), "redirect", "encapsulated", _out(replace(SYN, mss=900))),
    Fixture("an unselected pod's packet is left alone", replace(UDP_OUT, source=POD2), "next", device="pod1"),
    Fixture("the address of another device's pod", replace(UDP_OUT, source=POD2), "drop", "spoofed_source"),
    Fixture("an unknown address on a device without a selected pod", UDP_OUT, "next", device="pod1"),
    Fixture("a node is in the cluster", replace(UDP_OUT, destination=WORKER), "next", family=V4),
    *(Fixture(f"{address} is of the link", replace(UDP_OUT, destination=IPv4Address(address)), "next", family=V4)
      for address in ("169.254.20.10", "169.254.169.254", "224.0.0.251", "239.1.1.1", "255.255.255.255")),
    *(Fixture(f"{address} is nobody's", replace(UDP_OUT, destination=IPv4Address(address)), "drop",
              "bogus_destination", family=V4)
      for address in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "240.0.0.1", "255.255.255.254")),
    Fixture("nobody's, and no policy covers it", replace(UDP_OUT, destination=IPv4Address("240.0.0.1")), "next",
            wish=desired(Policy("other", THERE, (ip_network("198.51.100.0/24"),))), family=V4),
    Fixture("nobody's, but the operator says that it is in the cluster",
            replace(UDP_OUT, destination=IPv4Address("240.0.0.1")), "next", wish=CLASS_E, family=V4),
    Fixture("a forged tunnel packet", replace(UDP_OUT, destination=WORKER, destination_port=TUNNEL_PORT),
            "drop", "tunnel_port", family=V4),
    Fixture("a policy without a group", UDP_OUT, "drop", "no_group", wish=to_world(UNPUBLISHED)),
    Fixture("a group without a gateway that is up", UDP_OUT, "drop", "no_gateway", wish=to_world(NO_GATEWAY)),
    Fixture("a group without a port set for this node", UDP_OUT, "drop", "no_port_set", wish=to_world(NO_PORTS)),
    Fixture("a protocol that is not translated", replace(UDP_OUT, kind="unsupported", protocol=GRE), "drop",
            "unsupported_protocol"),
    Fixture("SCTP", SCTP_OUT, "redirect", "encapsulated", _out(SCTP_OUT)),
    Fixture("SCTP whose checksum a device computes", SCTP_OUT, "redirect", "encapsulated", _out(SCTP_OUT),
            shape=Shape(summed=False)),
    Fixture("SCTP in fragments", replace(SCTP_OUT, kind="unsupported", first=True, id=7), "drop",
            "unsupported_protocol"),
    Fixture("an echo reply nobody asked for", replace(PING, source_port=0, destination_port=9, echo="reply"), "drop",
            "unsupported_protocol"),
    Fixture("SCTP in fragments, to a covered port", replace(SCTP_OUT, kind="unsupported", first=True, id=7), "drop",
            "unsupported_protocol", wish=ONLY_DIAMETER),
    Fixture("SCTP to a port that is not covered", replace(SCTP_OUT, destination_port=3869), "next", wish=ONLY_DIAMETER),
    Fixture("a later fragment alone", LATER, "drop", "fragment"),
    Fixture("a fragment may be of the covered port", replace(LATER, protocol=TCP), "drop", "fragment", wish=ONLY_HTTPS),
    Fixture("a fragment of a protocol that is not covered", LATER, "next", wish=ONLY_HTTPS, family=V4),
    *(Fixture(f"a first fragment with {n} bytes of its TCP header",
              replace(SYN, kind="bad-fragment", first=True, id=7), "drop", "bad_fragment", shape=Shape(cut=n))
      for n in (0, 4, 8, 16)),
    Fixture("a port that is not covered", replace(SYN, destination_port=80), "next", wish=ONLY_HTTPS),
    Fixture("a policy of the other family alone", SYN, "next", wish=ONLY_V6, family=V4),
    Fixture("a header cut short", replace(UDP_OUT, kind="malformed"), "drop", "malformed", shape=Shape(cut=5)),
    Fixture("neither IPv4 nor IPv6", replace(UDP_OUT, kind="not-ip"), "next"),
    Fixture("a flow begun from outside is left alone", replace(SYN, flags="SA"), "next", flow=RUNNING),
    Fixture("a SYN is no answer to whom a flow was begun by", SYN, "redirect", "encapsulated", CLAMPED, flow=RUNNING),
    Fixture("an address of nobody's, to another pod, as the remote of a flow",
            replace(TO_SELECTED, protocol=TCP, flags="S"), "drop", "foreign_source", device="pod1"),
    Fixture("the same in UDP", TO_SELECTED, "drop", "foreign_source", device="pod1"),
    Fixture("a later fragment of it",
            replace(LATER, source=REMOTE, destination=POD), "drop", "foreign_source", device="pod1"),
    Fixture("from the cluster it would begin nothing", replace(TO_SELECTED, source=IPv4Address("10.244.2.20")), "next",
            device="pod1"),
    Fixture("an unselected pod may be asked so", replace(TO_SELECTED, destination=IPv4Address("10.244.2.20")), "next",
            device="pod1"),
    Fixture("a conversation that ran when its pod was selected begins anew", UDP_OUT, "redirect", "encapsulated",
            _out(UDP_OUT), flow=BEFORE),
    Fixture("a new connection on ports of one that has ended", SYN, "redirect", "encapsulated", CLAMPED, flow=ENDED),
    Fixture("an answer on the ports of one that has ended", replace(SYN, flags="A", mss=0), "next", flow=ENDED),
    Fixture("a gateway that is here sends at once", UDP_OUT, "redirect", "translated", _out(UDP_OUT),
            wish=to_world(HERE)),
    Fixture("a policy that lets packets out here", UDP_OUT, "redirect", "translated", _out(UDP_OUT),
            wish=to_world(THERE, exit_local=True)),
    Fixture("a connection that leaves here, whose answers come through the tunnel", SYN, "redirect", "translated",
            CLAMPED, wish=to_world(THERE, exit_local=True)),
    Fixture("out here, but nobody would bring the answers", UDP_OUT, "drop", "no_gateway",
            wish=to_world(NO_GATEWAY, exit_local=True)),
    Fixture("an echo's identifier is a port", PING, "redirect", "translated", _out(PING, FOLDED_ID),
            wish=to_world(HERE)),
    Fixture("IP options stay", replace(UDP_OUT, options=True), "redirect", "translated",
            _out(replace(UDP_OUT, options=True)), wish=to_world(HERE)),
    Fixture("a spent TTL that cannot be quoted", replace(UDP_OUT, ttl=1, options=True), "drop", "ttl_expired"),
    Fixture("too large with options is not answerable",
            replace(UDP_OUT, length=1500, dont_fragment=True, options=True), "drop", "too_big"),
    Fixture("too large and free to be cut", replace(UDP_OUT, length=1500), "redirect", "encapsulated",
            _out(replace(UDP_OUT, length=1500)), family=V4),
]  # fmt: skip
BOTH = [(version, row) for row in FROM_POD for version in (4, 6) if version == 4 or not row.family]


@pytest.mark.parametrize(("version", "given"), BOTH, ids=[f"{row.title}, IPv{version}" for version, row in BOTH])
def test_from_pod(world: World, version: int, given: Fixture) -> None:
    packet, expected = given.packet, given.out
    if version == 6:
        packet, expected = six(packet), expected and six(expected)
    flows = {packet.sent_by(world.ifindex["pod0"]): given.flow} if given.flow else {}
    world.fill(given.wish, State(flows))
    frame = build(packet, given.shape)
    verdict, out = world.run("from_pod", given.device, frame)
    assert verdict == given.verdict
    assert world.counted() == ({given.counted: 1} if given.counted else {})
    assert (parse(out) == expected) if expected else (out == frame)


@pytest.mark.parametrize("destination", ["fe80::1", "ff02::1:ff00:1", "ff12::5"])
@pytest.mark.parametrize("source", ["fe80::2", "::", "2001:db8:244:1::10"])
def test_what_stays_on_the_link_is_the_hosts(world: World, source: str, destination: str) -> None:
    """Neighbour discovery and router solicitations, from addresses that no pod is known by."""
    world.fill(THROUGH_GATEWAY)
    packet = Packet(IPv6Address(source), IPv6Address(destination), ICMP6, kind="unsupported", length=80)
    assert world.run("from_pod", "pod0", build(packet))[0] == "next"
    assert world.counted() == {}


def _set(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


def _summed(frame: bytes) -> bytes:
    """The frame, with the checksum of its IPv4 header made right again."""
    header = frame[14 : 14 + (frame[14] & 15) * 4]
    return _set(frame, 24, checksum(_set(header, 10, b"\0\0")).to_bytes(2))


OPTIONS = replace(UDP_OUT, options=True)
UDP6, SYN6 = build(six(UDP_OUT)), build(six(SYN))
MAPPED = IPv6Address("::ffff:198.51.100.7")
WRONG = {
    **{f"IPv4 length {n}": _summed(_set(build(UDP_OUT), 16, n.to_bytes(2))) for n in (0, 1, 19, 20, 27, 61, 65535)},
    "IPv4 checksum": _set(build(UDP_OUT), 24, b"\x12\x34"),
    "IPv4 checksum, in the options": _set(build(OPTIONS), 35, b"\x02"),
    **{f"IPv4 header of {n} words": _summed(_set(build(UDP_OUT), 14, bytes([0x40 + n]))) for n in (0, 4)},
    "IPv4 header of 15 words, longer than the packet": _summed(_set(build(UDP_OUT)[:70], 14, b"\x4f\0\0\x38")),
    **{f"IP version {n}": _summed(_set(build(UDP_OUT), 14, bytes([n * 16 + 5]))) for n in (0, 5, 6)},
    **{f"UDP length {n}": _set(build(UDP_OUT), 38, n.to_bytes(2)) for n in (0, 7, 41, 65535)},
    **{f"TCP header of {n} words": _set(build(SYN), 46, bytes([n << 4])) for n in (0, 4, 11, 15)},
    **{
        f"SCTP header of {n} bytes": build(replace(UDP_OUT, protocol=SCTP, kind="malformed"), Shape(cut=n))
        for n in (0, 11)
    },
    **{f"cut at {n}": build(UDP_OUT)[:n] for n in (34, 41, 60)},
    **{f"IPv6 length {n}": _set(UDP6, 18, n.to_bytes(2)) for n in (0, 7, 41, 65535)},
    **{f"IPv6, version {n}": _set(UDP6, 14, bytes([n * 16])) for n in (0, 4, 5)},
    **{f"IPv6, UDP length {n}": _set(UDP6, 58, n.to_bytes(2)) for n in (0, 7, 41, 65535)},
    **{f"IPv6, TCP header of {n} words": _set(SYN6, 66, bytes([n << 4])) for n in (0, 4, 11, 15)},
    **{f"IPv6, cut at {n}": UDP6[:n] for n in (54, 61, 90)},
    "IPv6, to a mapped IPv4 address": build(replace(six(UDP_OUT), destination=MAPPED)),
    "IPv6, from a mapped IPv4 address": build(replace(six(UDP_OUT), source=MAPPED)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("group", [HERE, THERE])
def test_a_wrong_length_or_header_checksum_is_not_sent_on(world: World, wrong: str, group: int) -> None:
    world.fill(to_world(group))
    assert world.run("from_pod", "pod0", WRONG[wrong])[0] == "drop"
    assert world.counted() == {"malformed": 1}
    assert world.run("from_pod", "pod1", WRONG[wrong])[0] == "next"  # no selected pod's: the host's stack judges
    assert world.state() == State()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("sent", [UDP_OUT, SYN, PING, OPTIONS], ids=["UDP", "TCP", "ICMP", "IP options"])
@pytest.mark.parametrize("group", [HERE, THERE])
def test_padding_is_not_sent_on(world: World, sent: Packet, group: int, version: int) -> None:
    frame = build(sent if version == 4 else six(sent))
    world.fill(to_world(group))
    _, wanted = world.run("from_pod", "pod0", frame)
    world.fill(to_world(group))
    assert world.run("from_pod", "pod0", frame + b"secret") == ("redirect", wanted)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("sent", [UDP_OUT, SYN, PING], ids=["UDP", "TCP", "ICMP"])
@pytest.mark.parametrize("off", [1, 0x80FF])
def test_a_wrong_transport_checksum_stays_wrong(world: World, sent: Packet, off: int, version: int) -> None:
    """What its receiver drops, it drops also behind a gateway: no rewrite makes a right one of it."""
    at = {4: 34, 6: 54}[version] + {UDP: 6, TCP: 16, ICMP: 2}[sent.protocol]
    frame = build(sent if version == 4 else six(sent))
    wrong = (int.from_bytes(frame[at : at + 2]) ^ off).to_bytes(2)
    world.fill(to_world(HERE))
    verdict, out = world.run("from_pod", "pod0", _set(frame, at, wrong))
    assert verdict == "redirect"
    with pytest.raises(BadPacket, match="checksum"):
        parse(out)


TO_POD = [
    ("a connection from outside is recorded", replace(SYN, source=REMOTE, destination=POD), 1),
    ("a datagram from outside is recorded", Packet(REMOTE, POD, UDP, 53, 5353), 1),
    ("a ping from outside is recorded", Packet(REMOTE, POD, ICMP, 7, 0, echo="request"), 1),
    ("an answer is not", replace(SYN, source=REMOTE, destination=POD, flags="SA"), 0),
    ("an echo reply is not", Packet(REMOTE, POD, ICMP, 0, 7, echo="reply"), 0),
    ("what comes from the cluster is not", Packet(IPv4Address("10.244.2.20"), POD, UDP, 53, 5353), 0),
    ("what goes to an unselected pod is not", Packet(REMOTE, POD2, UDP, 53, 5353), 0),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("packet", "recorded"), [row[1:] for row in TO_POD], ids=[row[0] for row in TO_POD])
def test_to_pod(world: World, version: int, packet: Packet, recorded: int) -> None:
    world.fill(THROUGH_GATEWAY)
    device = "pod1" if packet.destination == POD2 else "pod0"
    frame = build(packet if version == 4 else six(packet))
    assert world.run("to_pod", device, frame) == ("next", frame)
    assert list(world.state().flows.values()) == [Flow(0, 0, 1)] * recorded


@pytest.mark.parametrize("version", [4, 6])
def test_what_comes_in_a_conversation_that_its_pod_began_makes_it_no_others(world: World, version: int) -> None:
    packet = Packet(REMOTE, POD, UDP, 53, 40000)
    packet = packet if version == 4 else six(packet)
    key = packet.sent_to(world.ifindex["pod0"])
    world.fill(THROUGH_GATEWAY, State({key: BEFORE}))
    assert world.run("to_pod", "pod0", build(packet))[0] == "next"
    assert world.state().flows[key].seen_out == BEFORE.seen_out


@pytest.mark.parametrize(("device", "verdict"), [("pod0", "drop"), ("pod1", "next")])
@pytest.mark.parametrize("tag", [b"\x81\x00\x00\x64", b"\x88\xa8\x00\x00\x81\x00\x00\x00"], ids=["8021Q", "8021AD"])
def test_a_tagged_frame_is_never_redirected(world: World, tag: bytes, device: str, verdict: str) -> None:
    """A tag would be carried along by a redirect; behind a second one nothing is seen of the packet."""
    world.fill(THROUGH_GATEWAY)
    frame = build(UDP_OUT)
    assert world.run("from_pod", device, frame[:12] + tag + frame[12:])[0] == verdict
    assert world.counted() == ({"vlan_tagged": 1} if verdict == "drop" else {})


def _key(world: World, packet: Packet) -> FlowKey:
    return packet.sent_by(world.ifindex["pod0"])


def _running(world: World, packet: Packet, **more: object) -> State:
    """A flow of POD through the worker, with the port that it would get."""
    key = _key(world, packet)
    flow = Flow(THERE, 1, 0, EGRESS_IP, FOLDED, gateway=2, id=77)
    port = Port(POD, key.ifindex, packet.source_port, THERE, 77, gateway=2)
    port_key = PortKey(EGRESS_IP, key.remote, FOLDED, key.remote_port, key.protocol)
    return State({key: replace(flow, **more)}, {port_key: port})  # type: ignore[arg-type]


def test_a_flow_whose_group_has_gone_is_decided_anew(world: World) -> None:
    world.fill(THROUGH_GATEWAY, _running(world, SYN, group=99, settled=False))
    assert world.run("from_pod", "pod0", build(replace(SYN, flags="A", mss=0)))[0] == "redirect"
    assert [flow.group for flow in world.state().flows.values()] == [THERE]


def test_a_policy_that_goes_does_not_cut_what_runs(world: World) -> None:
    world.fill(desired(), _running(world, SYN))
    verdict, out = world.run("from_pod", "pod0", build(replace(SYN, flags="A", mss=0)))
    assert (verdict, parse(out).source) == ("redirect", EGRESS_IP)


def test_a_flow_leaves_a_gateway_that_is_down_and_no_other_flow_moves(world: World) -> None:
    """The one that was chosen stays, also where it is not the first of the group."""
    wish = to_world(THERE)
    for up, expected in ((True, WORKER2_NUMBER), (False, 2)):
        gateways = (Gateway("w", 2), Gateway("w2", WORKER2_NUMBER, up=up))
        groups = {**GROUPS, THERE: replace(GROUPS[THERE], gateways=gateways)}
        world.fill(replace(wish, groups=groups), _running(world, SYN, gateway=WORKER2_NUMBER, settled=False))
        world.run("from_pod", "pod0", build(replace(SYN, flags="A", mss=0)))
        assert [(flow.gateway, flow.settled) for flow in world.state().flows.values()] == [(expected, True)]


def test_an_answer_to_an_outside_ping_goes_back_directly(world: World) -> None:
    world.fill(THROUGH_GATEWAY)
    world.run("to_pod", "pod0", build(Packet(REMOTE, POD, ICMP, 7, 0, echo="request")))
    verdict, _ = world.run("from_pod", "pod0", build(Packet(POD, REMOTE, ICMP, 0, 7, echo="reply")))
    assert verdict == "next"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_the_mss_is_clamped_wherever_it_stands(world: World, before: int, version: int) -> None:
    """An odd number of NOPs puts it astride two words of the checksum."""
    world.fill(THROUGH_GATEWAY)
    _, out = world.run("from_pod", "pod0", build(SYN if version == 4 else six(SYN), Shape(mss_at=before)))
    assert parse(out).mss == TUNNEL_MTU - (40 if version == 4 else 60)


# --- ICMP errors ------------------------------------------------------------------------------------------------------

BIG = replace(UDP_OUT, length=1500, dont_fragment=True)
ANSWER = Packet(REMOTE, EGRESS_IP, UDP, 53, FOLDED)
TO_WORKER = replace(ANSWER, destination_port=33000)
FROM_ME, SPENT = replace(BIG, length=UNDERLAY_MTU + 1), replace(UDP_OUT, ttl=1)
CUT, FOR_POD2 = replace(FROM_ME, dont_fragment=False), replace(ANSWER, length=POD2_MTU + 1, dont_fragment=True)
ERRORS = {
    "too big for the tunnel": ("from_pod", "pod0", BIG, THERE, "too-big", TUNNEL_MTU),
    "an answer too big for the tunnel": (
        "from_uplink", "uplink", replace(TO_WORKER, length=1500, dont_fragment=True), HERE, "too-big", TUNNEL_MTU),
    "too big for the uplink of a gateway that is here": ("from_pod", "pod0", FROM_ME, HERE, "too-big", UNDERLAY_MTU),
    "too big for that uplink, and free to be cut": ("from_pod", "pod0", CUT, HERE, "too-big", UNDERLAY_MTU),
    "an answer too big for the pod's device": ("from_uplink", "uplink", FOR_POD2, HERE, "too-big", POD2_MTU),
    "the same, free to be cut": (
        "from_uplink", "uplink", replace(FOR_POD2, dont_fragment=False), HERE, "too-big", POD2_MTU),
    "TTL spent on the way to the pod": (
        "from_uplink", "uplink", replace(FOR_POD2, length=60, ttl=1), HERE, "ttl", 0),
    "TTL spent at the pod's node": ("from_pod", "pod0", SPENT, THERE, "ttl", 0),
    "TTL spent at a gateway, on the way in": ("from_uplink", "uplink", replace(TO_WORKER, ttl=1), HERE, "ttl", 0),
}  # fmt: skip


BY_ROUTE = [case for case, row in ERRORS.items() if row[2].destination_port == FOLDED]  # its node looks for a way


def _of_pod2(world: World, version: int) -> State:
    """Its flow, to which ANSWER is an answer."""
    asked = replace(UDP_OUT, source=POD2)
    key = (asked if version == 4 else six(asked)).sent_by(world.ifindex["pod1"])
    egress_ip = EGRESS_IP if version == 4 else EGRESS_IP6
    port = Port(key.pod, key.ifindex, key.pod_port, HERE, 5, gateway=1)
    bears = PortKey(egress_ip, key.remote, FOLDED, key.remote_port, key.protocol)
    return State({key: Flow(HERE, 1, 0, egress_ip, FOLDED, gateway=1, id=5)}, {bears: port})


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", ERRORS)
def test_a_packet_that_cannot_go_on_is_answered_to_who_sent_it(world: World, case: str, version: int) -> None:
    """The quote is what the sender sent, before anything in it is rewritten."""
    program, device, sent, group, about, mtu = ERRORS[case]
    source = SELF if version == 4 else SELF6
    world.fill(to_world(group), _of_pod2(world, version))
    sent = sent if version == 4 else six(sent)
    shape = Shape()
    verdict, out = world.run(program, device, build(sent, shape))
    answer = parse(out)
    counted = {"too-big": "too_big_answered", "ttl": "ttl_answered"}[about]
    assert (verdict, world.counted()) == ("redirect", {counted: 1})
    assert (answer.source, answer.destination, answer.about) == (source, sent.source, about)
    assert answer.quoted == replace(sent)
    if case not in BY_ROUTE:
        hop = MACS[device] if program == "from_uplink" else shape.destination_mac
        assert (out[:6], out[6:12]) == (shape.source_mac, hop)
    if mtu:
        assert told_mtu(out) == mtu


@pytest.mark.parametrize("version", [4, 6])
def test_a_gateway_leaves_alone_what_is_for_another_host(world: World, version: int) -> None:
    """A switch that does not know where a MAC is brings its frames to all: each gateway would send a copy."""
    world.fill(to_world(THERE))
    back = Packet(REMOTE, EGRESS_IP, TCP, 443, 33000, flags="A")
    frame = build(back if version == 4 else six(back), Shape(destination_mac=MACS["other"]))
    assert world.run("from_uplink", "uplink", frame) == ("next", frame)
    assert world.run("from_uplink", "uplink", MACS["uplink"] + frame[6:])[0] == "redirect"


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_is_too_big_for_a_tunnel_device_that_has_gone(world: World, version: int) -> None:
    """Neither the pod nor the world is told of an MTU that is none; what is sent to that device is lost."""
    out = replace(SYN, dont_fragment=True)
    back = Packet(REMOTE, EGRESS_IP, TCP, 443, 33000, flags="A", dont_fragment=True)
    for program, device, packet in (("from_pod", "pod0", out), ("from_uplink", "uplink", back)):
        world.fill(to_world(THERE))
        with world.without_tunnel():
            verdict, _ = world.run(program, device, build(packet if version == 4 else six(packet)))
        assert verdict == "redirect", program
        assert "too_big_answered" not in world.counted()


@pytest.mark.parametrize("version", [4, 6])
def test_no_error_is_sent_about_an_error(world: World, version: int) -> None:
    error = Packet(REMOTE, EGRESS_IP, ICMP, kind="icmp-error", quoted=_out(UDP_OUT), ttl=1)
    error = replace(error, quoted=replace(_out(UDP_OUT), source_port=33000))
    world.fill(to_world(HERE))
    assert world.run("from_uplink", "uplink", build(error if version == 4 else six(error)))[0] == "drop"
    assert world.counted() == {"ttl_expired": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("about", ["unreachable", "too-big", "ttl"])
def test_an_error_about_a_translated_packet_reaches_the_pod(world: World, about: str, version: int) -> None:
    world.fill(to_world(HERE))
    sent = UDP_OUT if version == 4 else six(UDP_OUT)
    _, out = world.run("from_pod", "pod0", build(sent))
    router = IPv4Address("192.0.2.254")
    told = parse(out)
    error = Packet(router, EGRESS_IP, ICMP, kind="icmp-error", about=about)  # type: ignore[arg-type]
    error = replace(error if version == 4 else six(error), quoted=told)
    _, back = world.run("from_uplink", "uplink", build(error, Shape(mtu=1300 if about == "too-big" else 0)))
    seen = parse(back)
    assert (seen.destination, seen.about, seen.ttl) == (sent.source, about, 63)
    assert seen.quoted == replace(told, source=sent.source, source_port=sent.source_port)
    assert world.counted() == {"translated": 1, "delivered": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_pods_own_error_about_an_answer_goes_out_translated(world: World, version: int) -> None:
    """Its "port unreachable": the quoted answer gets the egress IP back, as the remote sent it."""
    world.fill(to_world(HERE))
    sent = UDP_OUT if version == 4 else six(UDP_OUT)
    _, out = world.run("from_pod", "pod0", build(sent))
    translated = parse(out)
    answered = Packet(sent.destination, sent.source, UDP, 53, 40000)
    error = Packet(sent.source, sent.destination, ICMP if version == 4 else ICMP6, kind="icmp-error", quoted=answered)
    verdict, out = world.run("from_pod", "pod0", build(error))
    seen = parse(out)
    assert (verdict, seen.source, seen.destination) == ("redirect", translated.source, sent.destination)
    assert seen.quoted and seen.quoted.answers == translated.bears


SOME = desired(Policy("some", HERE, (ip_network("198.51.100.0/24"), ip_network("2001:db8:51::/64"))))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("other", "verdict"), [("198.51.100.8", "drop"), ("203.0.113.9", "next")])
def test_a_pods_error_about_an_answer_goes_to_nobody_else(world: World, other: str, verdict: str, version: int) -> None:
    """One flow lends the egress IP to no packet to others, whether policies cover these or not."""
    world.fill(SOME)
    world.run("from_pod", "pod0", build(UDP_OUT if version == 4 else six(UDP_OUT)))
    quoted = Packet(REMOTE, POD, UDP, 53, 40000)
    error = Packet(POD, IPv4Address(other), ICMP, kind="icmp-error", quoted=quoted)
    assert world.run("from_pod", "pod0", build(error if version == 4 else six(error)))[0] == verdict


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_that_is_taken_is_changed_and_one_that_is_free_kept(world: World, version: int) -> None:
    first, second = UDP_OUT, replace(UDP_OUT, source=POD2)
    if version == 6:
        first, second = six(first), six(second)
    world.fill(desired(Policy("world", HERE, (WORLD, WORLD6)), both=True))
    _, one = world.run("from_pod", "pod0", build(first))
    _, other = world.run("from_pod", "pod1", build(second))
    assert parse(one).source_port == FOLDED
    assert parse(other).source_port in set(range(40960, 45056)) - {FOLDED}
    _, again = world.run("from_pod", "pod1", build(second))
    assert again == other


def test_every_block_is_used_to_the_last_port(world: World) -> None:
    """A full cycle in each, wherever it begins; then no port is free, and other remotes are still reached."""
    blocks = (Block(EGRESS_IP, 40960, 64), Block(EGRESS_IP, 41984, 128))
    wish = to_world(HERE)
    world.fill(replace(wish, groups={**GROUPS, HERE: replace(GROUPS[HERE], blocks=blocks)}))
    frames = [build(replace(UDP_OUT, source_port=20000 + n)) for n in range(193)]
    sent = [world.run("from_pod", "pod0", frame) for frame in frames]
    ports = {parse(out).source_port for verdict, out in sent if verdict == "redirect"}
    assert ports == {*range(40960, 41024), *range(41984, 42112)}
    assert world.counted() == {"translated": 192, "no_free_port": 1}
    assert (
        world.run("from_pod", "pod0", build(replace(UDP_OUT, destination=IPv4Address("198.51.100.9"))))[0] == "redirect"
    )


def test_a_run_of_ports_that_is_taken_does_not_hide_the_free_ones(world: World) -> None:
    """Ephemeral ports of a busy pod lie side by side."""
    world.fill(to_world(HERE))
    taken = {PortKey(EGRESS_IP, REMOTE, 40960 + n, 443, TCP): Port(POD2, 99, n, HERE, n + 1) for n in range(3000)}
    for n in range(400):
        world.fill(to_world(HERE), State({}, taken)) if n % 100 == 0 else None
        verdict, _ = world.run("from_pod", "pod0", build(replace(SYN, source_port=20480 + n)))
        assert verdict == "redirect", (n, world.counted())


def test_a_closed_block_begins_nothing_and_ends_nothing(world: World) -> None:
    world.fill(to_world(HERE))
    world.run("from_pod", "pod0", build(UDP_OUT))
    blocks = (replace(OWN, closed=True), Block(EGRESS_IP, 16384, 64))
    wish = to_world(HERE)
    world.fill(replace(wish, groups={**GROUPS, HERE: replace(GROUPS[HERE], blocks=blocks)}), world.state())
    _, running = world.run("from_pod", "pod0", build(UDP_OUT))
    _, new = world.run("from_pod", "pod0", build(replace(UDP_OUT, source_port=5)))
    assert (parse(running).source_port, parse(new).source_port) == (FOLDED, 16384 + 5)


def test_rivals_leave_no_half_behind(world: World) -> None:
    """Several CPUs begin the same flows at once, and flows that want the same port."""
    world.fill(desired(Policy("world", HERE, (WORLD, WORLD6)), both=True))
    frames = [
        (device, build(replace(UDP_OUT, source=pod, source_port=port)))
        for port in range(30000, 30400)
        for pod, device in ((POD, "pod0"), (POD2, "pod1"))
    ]

    def send_all(_: int) -> None:
        for device, frame in frames:
            assert world.run("from_pod", device, frame)[0] == "redirect", world.counted()

    with ThreadPoolExecutor(4) as threads:  # they are in this thread's namespace
        list(threads.map(send_all, range(4)))
    state = world.state()
    assert len(state.flows) == len(frames)
    assert is_paired(state)


# --- the end of a connection ------------------------------------------------------------------------------------------

PACKET, FIN, RST = layout.SEEN_PACKET, layout.SEEN_FIN, layout.SEEN_RST
FIRST, END = layout.SEEN_FIN_FIRST, layout.SEEN_END
ENDS = {  # who sends what, in order -> for how many seconds its port rests
    "pod first": (["pod F", "remote F"], 10),
    "remote first": (["remote F", "pod F"], 60),
    "reset by the pod": (["pod R"], 4),
    "reset by the remote": (["remote R"], None),  # it may be anybody's: the time-out decides
    "half closed": (["pod F"], None),
    "half closed by the remote": (["remote F"], None),
}


def _connection(world: World, version: int, packets: list[str]) -> None:
    syn = SYN if version == 4 else six(SYN)
    _, out = world.run("from_pod", "pod0", build(syn))
    there = parse(out)
    back = replace(there, source=there.destination, destination=there.source, source_port=443, mss=0)
    back = replace(back, destination_port=there.source_port, flags="SA", ttl=64)
    world.run("from_uplink", "uplink", build(back))
    for who, flag in (packet.split() for packet in packets):
        program, device, packet = ("from_pod", "pod0", syn) if who == "pod" else ("from_uplink", "uplink", back)
        assert world.run(program, device, build(replace(packet, flags=f"A{flag}", mss=0)))[0] == "redirect"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", ENDS)
def test_a_port_rests_by_how_its_connection_ended(world: World, case: str, version: int) -> None:
    packets, seconds = ENDS[case]
    world.fill(to_world(HERE))
    _connection(world, version, packets)
    (port,) = world.state().ports.values()
    assert port.state == ("live" if seconds is None else "resting")
    if seconds is not None:
        assert seconds - 2 <= port.rests <= seconds


def test_what_comes_after_the_end_still_passes(world: World) -> None:
    """The last ACKs, and a FIN that was lost and comes again."""
    world.fill(to_world(HERE))
    _connection(world, 4, ["pod F", "remote F", "pod A", "remote F", "pod A"])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("end", "rests"), [("remote F", 10), ("pod R", 4)])
def test_a_port_is_nobody_elses_while_something_comes_after_the_end(
    world: World, end: str, rests: int, version: int
) -> None:
    """Whoever forges a FIN, or makes the pod send a RST, does not get the port of a connection that goes on freed."""
    world.fill(to_world(HERE))
    _connection(world, version, ["pod F", end])
    state = world.state()
    ((key, port),) = state.ports.items()
    world.fill(to_world(HERE), State(state.flows, {key: replace(port, rests=1)}))
    data = Packet(key.remote, key.egress_ip, TCP, key.remote_port, key.egress_port)
    for flags, least, most in (("AR", 0, 1), ("AF", 0, 1), ("A", rests - 2, rests)):
        assert world.run("from_uplink", "uplink", build(replace(data, flags=flags)))[0] == "redirect"
        assert least <= world.state().ports[key].rests <= most


def test_a_port_at_rest_is_its_own_pods_at_once(world: World) -> None:
    world.fill(to_world(HERE))
    _connection(world, 4, ["remote F", "pod F"])
    _, out = world.run("from_pod", "pod0", build(SYN))
    assert parse(out).source_port == FOLDED
    state = world.state()
    assert [port.state for port in state.ports.values()] == ["live"]
    assert [(flow.seen_out, flow.seen_in) for flow in state.flows.values()] == [(PACKET, 0)]
    assert is_paired(state)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("packets", [["remote F", "pod F"], ["pod F", "remote F"], ["pod R"]])
def test_a_port_is_no_other_pods_towards_its_remote_until_it_has_rested(
    world: World, packets: list[str], version: int
) -> None:
    """The remote may be in TIME_WAIT; another one knows nothing of it."""
    wish = desired(Policy("world", HERE, (WORLD, WORLD6)), both=True)
    world.fill(wish)
    _connection(world, version, packets)
    state = world.state()
    others = replace(SYN, source=POD2)

    def port_of(packet: Packet) -> int:
        _, out = world.run("from_pod", "pod1", build(packet if version == 4 else six(packet)))
        return parse(out).source_port

    assert port_of(others) != FOLDED
    assert port_of(replace(others, destination=IPv4Address("198.51.100.8"))) == FOLDED
    rested = {key: replace(port, rests=-1) for key, port in state.ports.items()}
    world.fill(wish, State(state.flows, rested))
    assert port_of(others) == FOLDED


def test_the_port_that_has_rested_longest_is_taken_before_anything_is_refused(world: World) -> None:
    wish = to_world(HERE)
    world.fill(replace(wish, groups={**GROUPS, HERE: replace(GROUPS[HERE], blocks=(Block(EGRESS_IP, 40960, 64),))}))
    resting = {
        PortKey(EGRESS_IP, REMOTE, 40960 + n, 443, TCP): Port(POD2, 99, n, HERE, n + 1, "resting", rests=10 + n)
        for n in range(64)
    }
    world.fill(replace(wish, groups={**GROUPS, HERE: replace(GROUPS[HERE], blocks=(Block(EGRESS_IP, 40960, 64),))}),
               State({}, resting))  # fmt: skip
    _, out = world.run("from_pod", "pod0", build(SYN))
    assert parse(out).source_port == 40960
    assert world.state().ports[PortKey(EGRESS_IP, REMOTE, 40960, 443, TCP)].pod == POD


def test_a_late_packet_of_a_connection_whose_port_is_anothers_gets_a_port_of_its_own(world: World) -> None:
    world.fill(to_world(HERE))
    _connection(world, 4, ["pod F", "remote F"])
    state = world.state()
    ((key, port),) = state.ports.items()
    state.ports[key] = replace(port, state="live", id=port.id ^ 1, pod=POD2, pod_port=9)
    world.fill(to_world(HERE), state)
    _, out = world.run("from_pod", "pod0", build(replace(SYN, flags="A", mss=0)))
    assert parse(out).source_port != FOLDED
    assert world.state().ports[key].pod == POD2


def test_an_answer_to_a_port_that_has_changed_hands_reaches_its_new_owner_alone(world: World) -> None:
    world.fill(to_world(HERE))
    _connection(world, 4, ["pod R"])
    state = world.state()
    ((key, port),) = state.ports.items()
    world.fill(to_world(HERE), replace(state, ports={key: replace(port, state="dying")}))
    answer = Packet(REMOTE, EGRESS_IP, TCP, 443, FOLDED, flags="A")
    assert world.run("from_uplink", "uplink", build(answer))[0] == "drop"


# --- properties -------------------------------------------------------------------------------------------------------

ports = st.integers(1024, 65535)
packets_out = st.builds(
    Packet, st.just(POD), st.just(REMOTE), st.sampled_from([TCP, UDP, SCTP]), st.integers(1, 65535), ports,
    ttl=st.integers(2, 255), length=st.integers(80, 1400), options=st.booleans(),
)  # fmt: skip
pings_out = st.builds(lambda n: Packet(POD, REMOTE, ICMP, n, 0, echo="request"), st.integers(0, 65535))


@settings(max_examples=300, derandomize=True, database=None)
@given(
    st.sampled_from([4, 6]), st.one_of(packets_out, pings_out), st.binary(min_size=1, max_size=40), st.booleans(),
    st.integers(2, 255),
)  # fmt: skip
def test_a_reply_gets_the_pods_address_back(
    world: World, version: int, sent: Packet, payload: bytes, summed: bool, ttl: int
) -> None:
    """NAT round trip, bytes and checksums included: only the TTL differs, by one each way."""
    if version == 6:
        sent = six(sent)
    shape = Shape(payload=payload, summed=summed or version == 6)
    world.fill(to_world(HERE))
    verdict, out = world.run("from_pod", "pod0", build(sent, shape))
    there = parse(out)
    assert verdict == "redirect"
    egress_ip = there.source
    assert out == build(replace(sent, source=egress_ip, source_port=there.source_port, ttl=sent.ttl - 1), shape)
    echo: Echo = "reply" if sent.echo else ""
    answer = replace(
        there, source=sent.destination, destination=egress_ip, source_port=there.destination_port,
        destination_port=there.source_port, ttl=ttl, echo=echo,
    )  # fmt: skip
    _, back = world.run("from_uplink", "uplink", build(answer, shape))
    restored = replace(answer, destination=sent.source, destination_port=sent.source_port, ttl=ttl - 1)
    assert back[14:] == build(restored, shape)[14:]


def _udp_that_sums_to_zero() -> Packet:
    """Translated, its checksum is computed as 0, which goes on the wire as 0xffff (RFC 768)."""
    for port in range(1024, 65536):
        packet = replace(_out(UDP_OUT), destination_port=port)
        if build(packet)[40:42] == b"\xff\xff":
            return replace(UDP_OUT, destination_port=port)
    raise AssertionError("no port does")


def test_a_checksum_of_zero_is_sent_as_all_ones(world: World) -> None:
    world.fill(to_world(HERE))
    _, out = world.run("from_pod", "pod0", build(_udp_that_sums_to_zero()))
    assert out[40:42] == b"\xff\xff"


COVERED = (ip_network("198.51.100.0/24"), ip_network("2001:db8:51::/48"))
wild = st.builds(
    Packet, st.just(POD), st.just(REMOTE), st.sampled_from([TCP, UDP, ICMP, SCTP, GRE]), ports, ports,
    kind=st.sampled_from(["flow", "fragment", "unsupported"]), ttl=st.integers(1, 255), id=st.just(7),
    length=st.integers(80, 1500), options=st.booleans(), dont_fragment=st.booleans(), echo=st.just("request"),
)  # fmt: skip


@settings(max_examples=300, derandomize=True, database=None)
@given(
    st.sampled_from([4, 6]), st.one_of(wild, packets_out),
    st.sampled_from([HERE, THERE, NO_GATEWAY, NO_PORTS, UNPUBLISHED]), st.booleans(),
)  # fmt: skip
def test_a_selected_pods_packet_to_a_covered_destination_never_goes_on(
    world: World, version: int, sent: Packet, group: int, later: bool
) -> None:
    world.fill(desired(Policy("covered", group, COVERED)))
    if sent.kind == "fragment":
        sent = replace(sent, position=8) if later else replace(sent, kind="flow", first=True)
    frame = build(sent if version == 4 else six(sent))
    assert world.run("from_pod", "pod0", frame)[0] != "next"


def test_the_parser_refuses_what_a_host_would() -> None:
    """The tests above would pass anything if their own parser did."""
    for packet in (UDP_OUT, SYN, PING):
        frame, frame6 = bytearray(build(packet)), bytearray(build(six(packet)))
        for broken, position in ((frame, 22), (frame, 24), (frame, len(frame) - 1), (frame6, 30), (frame6, 77)):
            broken[position] ^= 1  # TTL, checksum, payload; a source address, payload
            with pytest.raises(BadPacket, match="checksum"):
                parse(bytes(broken))
            broken[position] ^= 1


def test_the_parser_knows_sctps_checksum() -> None:
    assert crc32c(b"123456789") == bytes.fromhex("839206e3")  # the check value of CRC-32C
    frame = bytearray(build(SCTP_OUT))
    frame[-1] ^= 1
    with pytest.raises(BadPacket, match="checksum"):
        parse(bytes(frame))
