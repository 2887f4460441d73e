"""Fixtures: a packet in, the verdict, the packet out. What random packets (test_oracle.py) meet too rarely or say too
little about stands here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress.policy import Desired, Policy, Ports
from tests.bpf.oracle import is_paired
from tests.bpf.packets import BadPacket, Shape, build, checksum, parse, told_mtu
from tests.bpf.wishes import HERE, NO_GATEWAY, THERE, UNPUBLISHED, desired, to_world
from tests.bpf.world import EGRESS_IP, POD, POD2, REMOTE, SELF, TUNNEL_MTU, TUNNEL_PORT, WORKER, WORLD, World
from tests.models.tables import ICMP, TCP, UDP, Echo, Flow, FlowKey, Packet, State

SCTP = 132
UDP_OUT = Packet(POD, REMOTE, UDP, 40000, 53)
SYN = Packet(POD, REMOTE, TCP, 40000, 443, flags="S", mss=1460)
PING = Packet(POD, REMOTE, ICMP, 4000, 0, echo="request")
FLOW = FlowKey(POD, REMOTE, 40000, 443, TCP)
ENDED = State({FLOW: Flow(0, 0, 3, 3)})
THROUGH_GATEWAY, ONLY_HTTPS = (
    to_world(THERE),
    desired(Policy("https", THERE, (WORLD,), ports=(Ports("TCP", 443, 443),))),
)
CLASS_E = replace(THROUGH_GATEWAY, cluster=THROUGH_GATEWAY.cluster | {IPv4Network("240.0.0.0/4")})


@dataclass(frozen=True)
class Fixture:
    """`out`: the packet afterwards; None where it is as it came in. `counted`: the reason, "" for none."""

    title: str
    packet: Packet
    verdict: str
    counted: str = ""
    out: Packet | None = None
    wish: Desired = THROUGH_GATEWAY
    state: State = field(default_factory=State)
    shape: Shape = field(default_factory=Shape)
    device: str = "pod0"


FROM_POD = [
    Fixture("a selected pod's packet goes to the gateway", UDP_OUT, "redirect", "encapsulated"),
    Fixture("a SYN's MSS is made to fit", SYN, "redirect", "encapsulated", replace(SYN, mss=TUNNEL_MTU - 40)),
    Fixture("an MSS that fits is left", replace(SYN, mss=900), "redirect", "encapsulated"),
    Fixture("an unselected pod's packet is left alone", replace(UDP_OUT, source=POD2), "next", device="pod1"),
    Fixture("the address of another device's pod", replace(UDP_OUT, source=POD2), "drop", "spoofed_source"),
    Fixture("an unknown address on a device without a selected pod", UDP_OUT, "next", device="pod1"),
    Fixture("a node is in the cluster", replace(UDP_OUT, destination=WORKER), "next"),
    *(Fixture(f"{address} is of the link", replace(UDP_OUT, destination=IPv4Address(address)), "next")
      for address in ("169.254.20.10", "169.254.169.254", "224.0.0.251", "239.1.1.1", "255.255.255.255")),
    *(Fixture(f"{address} is nobody's", replace(UDP_OUT, destination=IPv4Address(address)), "drop", "bogus_destination")
      for address in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "240.0.0.1", "255.255.255.254")),
    Fixture("nobody's, and no policy covers it", replace(UDP_OUT, destination=IPv4Address("240.0.0.1")), "next",
            wish=desired(Policy("other", THERE, (IPv4Network("198.51.100.0/24"),)))),
    Fixture("nobody's, but the operator says that it is in the cluster",
            replace(UDP_OUT, destination=IPv4Address("240.0.0.1")), "next", wish=CLASS_E),
    Fixture("a forged tunnel packet", replace(UDP_OUT, destination=WORKER, destination_port=TUNNEL_PORT),
            "drop", "tunnel_port"),
    Fixture("a policy without a group", UDP_OUT, "drop", "no_group", wish=to_world(UNPUBLISHED)),
    Fixture("a group without a gateway that is up", UDP_OUT, "drop", "no_gateway", wish=to_world(NO_GATEWAY)),
    Fixture("a protocol that is not translated", replace(UDP_OUT, kind="unsupported", protocol=SCTP), "drop",
            "unsupported_protocol"),
    Fixture("an echo reply nobody asked for", replace(PING, source_port=0, destination_port=9, echo="reply"), "drop",
            "unsupported_protocol"),
    Fixture("a first fragment", replace(UDP_OUT, kind="fragment"), "drop", "fragment"),
    Fixture("a later fragment", replace(UDP_OUT, kind="fragment"), "drop", "fragment",
            shape=Shape(later_fragment=True)),
    Fixture("a fragment may be of the covered port", replace(SYN, kind="fragment"), "drop", "fragment",
            wish=ONLY_HTTPS, shape=Shape(later_fragment=True)),
    Fixture("a fragment of a protocol that is not covered", replace(UDP_OUT, kind="fragment"), "next", wish=ONLY_HTTPS),
    Fixture("a port that is not covered", replace(SYN, destination_port=80), "next", wish=ONLY_HTTPS),
    Fixture("a header cut short", replace(UDP_OUT, kind="malformed"), "drop", "malformed", shape=Shape(cut=5)),
    Fixture("IPv6", replace(UDP_OUT, kind="not-ipv4"), "next"),
    Fixture("a flow begun from outside is left alone", SYN, "next", state=State({FLOW: Flow(0, 0, 1, 1)})),
    Fixture("a new connection on the ports of one that has ended", SYN, "redirect", "encapsulated",
            replace(SYN, mss=TUNNEL_MTU - 40), state=ENDED),
    Fixture("an answer on the ports of one that has ended", replace(SYN, flags="A", mss=0), "next", state=ENDED),
    Fixture("a gateway that is here translates at once", UDP_OUT, "redirect", "translated",
            replace(UDP_OUT, source=EGRESS_IP, ttl=63), wish=to_world(HERE)),
    Fixture("an echo keeps its identifier", PING, "redirect", "translated", replace(PING, source=EGRESS_IP, ttl=63),
            wish=to_world(HERE)),
    Fixture("IP options stay", replace(UDP_OUT, options=True), "redirect", "translated",
            replace(UDP_OUT, source=EGRESS_IP, ttl=63, options=True), wish=to_world(HERE)),
    Fixture("a spent TTL", replace(UDP_OUT, ttl=1), "drop", "ttl_expired", wish=to_world(HERE)),
    Fixture("too large with options is not answerable",
            replace(UDP_OUT, length=1500, dont_fragment=True, options=True), "drop", "too_big"),
    Fixture("too large and free to be cut", replace(UDP_OUT, length=1500), "redirect", "encapsulated"),
]  # fmt: skip


@pytest.mark.parametrize("given", FROM_POD, ids=lambda fixture: fixture.title)
def test_from_pod(world: World, given: Fixture) -> None:
    world.fill(given.wish, given.state)
    frame = build(given.packet, given.shape)
    verdict, out = world.run("from_pod", given.device, frame)
    assert verdict == given.verdict
    assert world.counted() == ({given.counted: 1} if given.counted else {})
    assert (parse(out) == given.out) if given.out else (out == frame)


def _set(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


def _summed(frame: bytes) -> bytes:
    """The frame, with the checksum of its IPv4 header made right again."""
    header = frame[14 : 14 + (frame[14] & 15) * 4]
    return _set(frame, 24, checksum(_set(header, 10, b"\0\0")).to_bytes(2))


OPTIONS = replace(UDP_OUT, options=True)
WRONG = {
    **{f"IPv4 length {n}": _summed(_set(build(UDP_OUT), 16, n.to_bytes(2))) for n in (0, 1, 19, 20, 27, 61, 65535)},
    "IPv4 checksum": _set(build(UDP_OUT), 24, b"\x12\x34"),
    "IPv4 checksum, in the options": _set(build(OPTIONS), 35, b"\x02"),
    **{f"IPv4 header of {n} words": _summed(_set(build(UDP_OUT), 14, bytes([0x40 + n]))) for n in (0, 4)},
    "IPv4 header of 15 words, longer than the packet": _summed(_set(build(UDP_OUT)[:70], 14, b"\x4f\0\0\x38")),
    **{f"IP version {n}": _summed(_set(build(UDP_OUT), 14, bytes([n * 16 + 5]))) for n in (0, 5, 6)},
    **{f"UDP length {n}": _set(build(UDP_OUT), 38, n.to_bytes(2)) for n in (0, 7, 41, 65535)},
    **{f"TCP header of {n} words": _set(build(SYN), 46, bytes([n << 4])) for n in (0, 4, 11, 15)},
    **{f"cut at {n}": build(UDP_OUT)[:n] for n in (34, 41, 60)},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("group", [HERE, THERE])
def test_a_wrong_length_or_header_checksum_is_not_sent_on(world: World, wrong: str, group: int) -> None:
    world.fill(to_world(group))
    assert world.run("from_pod", "pod0", WRONG[wrong])[0] == "drop"
    assert world.counted() == {"malformed": 1}
    assert world.run("from_pod", "pod1", WRONG[wrong])[0] == "next"  # no selected pod's: the host's stack judges
    assert world.state() == State()


@pytest.mark.parametrize("sent", [UDP_OUT, SYN, PING, OPTIONS], ids=["UDP", "TCP", "ICMP", "IP options"])
@pytest.mark.parametrize("group", [HERE, THERE])
def test_padding_is_not_sent_on(world: World, sent: Packet, group: int) -> None:
    world.fill(to_world(group))
    _, wanted = world.run("from_pod", "pod0", build(sent))
    world.fill(to_world(group))
    assert world.run("from_pod", "pod0", build(sent) + b"secret") == ("redirect", wanted)


@pytest.mark.parametrize("sent", [UDP_OUT, SYN, PING], ids=["UDP", "TCP", "ICMP"])
@pytest.mark.parametrize("off", [1, 0x80FF])
def test_a_wrong_transport_checksum_stays_wrong(world: World, sent: Packet, off: int) -> None:
    """What its receiver drops, it drops also behind a gateway: no rewrite makes a right one of it."""
    at = 34 + {UDP: 6, TCP: 16, ICMP: 2}[sent.protocol]
    frame = build(sent)
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
    ("what comes from the cluster is not", Packet(WORKER, POD, UDP, 53, 5353), 0),
    ("what goes to an unselected pod is not", Packet(REMOTE, POD2, UDP, 53, 5353), 0),
]


@pytest.mark.parametrize(("packet", "recorded"), [row[1:] for row in TO_POD], ids=[row[0] for row in TO_POD])
def test_to_pod(world: World, packet: Packet, recorded: int) -> None:
    world.fill(THROUGH_GATEWAY)
    assert world.run("to_pod", "pod1" if packet.destination == POD2 else "pod0", build(packet)) == (
        "next",
        build(packet),
    )
    assert list(world.state().flows.values()) == [Flow(0, 0, 0, 1)] * recorded


@pytest.mark.parametrize(("device", "verdict"), [("pod0", "drop"), ("pod1", "next")])
@pytest.mark.parametrize("tag", [b"\x81\x00\x00\x64", b"\x88\xa8\x00\x00\x81\x00\x00\x00"], ids=["8021Q", "8021AD"])
def test_a_tagged_frame_is_never_redirected(world: World, tag: bytes, device: str, verdict: str) -> None:
    """A tag would be carried along by a redirect; behind a second one nothing is seen of the packet."""
    world.fill(THROUGH_GATEWAY)
    frame = build(UDP_OUT)
    assert world.run("from_pod", device, frame[:12] + tag + frame[12:])[0] == verdict
    assert world.counted() == ({"vlan_tagged": 1} if verdict == "drop" else {})


def test_a_flow_whose_group_has_gone_is_decided_anew(world: World) -> None:
    gone = State({FLOW: Flow(99, 0, 1, 1)})
    world.fill(THROUGH_GATEWAY, gone)
    assert world.run("from_pod", "pod0", build(SYN))[0] == "redirect"
    assert 99 not in [flow.group for flow in world.state().flows.values()]


def test_a_rst_is_forgotten_when_the_connection_goes_on(world: World) -> None:
    world.fill(THROUGH_GATEWAY, State({FLOW: Flow(7, 0, 1, 1)}))
    world.run("from_pod", "pod0", build(replace(SYN, flags="R", mss=0)))
    assert [flow.seen_out for flow in world.state().flows.values()] == [5]
    world.run("from_pod", "pod0", build(replace(SYN, flags="A", mss=0)))
    assert [flow.seen_out for flow in world.state().flows.values()] == [1]


def test_an_answer_to_an_outside_ping_goes_back_directly(world: World) -> None:
    world.fill(THROUGH_GATEWAY)
    world.run("to_pod", "pod0", build(Packet(REMOTE, POD, ICMP, 7, 0, echo="request")))
    verdict, _ = world.run("from_pod", "pod0", build(Packet(POD, REMOTE, ICMP, 0, 7, echo="reply")))
    assert verdict == "next"


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_the_mss_is_clamped_wherever_it_stands(world: World, before: int) -> None:
    """An odd number of NOPs puts it astride two words of the checksum."""
    world.fill(THROUGH_GATEWAY)
    _, out = world.run("from_pod", "pod0", build(SYN, Shape(mss_at=before)))
    assert parse(out).mss == TUNNEL_MTU - 40


@pytest.mark.parametrize("device", ["pod0", "uplink"])
def test_a_packet_too_big_is_answered_to_who_sent_it(world: World, device: str) -> None:
    """The quote is what the sender sent, also where the gateway would have translated it."""
    if device == "pod0":
        world.fill(THROUGH_GATEWAY)
        sent = replace(UDP_OUT, length=1500, dont_fragment=True)
    else:
        sent = replace(_to_egress_ip(world, WORKER), length=1500, dont_fragment=True)
    shape = Shape()
    verdict, out = world.run("from_pod" if device == "pod0" else "from_uplink", device, build(sent, shape))
    answer = parse(out)
    assert (verdict, world.counted().get("too_big_answered")) == ("redirect", 1)
    assert (answer.source, answer.destination) == (SELF, sent.source)
    assert told_mtu(out) == TUNNEL_MTU
    assert answer.quoted == replace(sent, length=1500)
    assert (out[:6], out[6:12]) == (shape.source_mac, shape.destination_mac)


def _to_egress_ip(world: World, node: IPv4Address | None) -> Packet:
    """A reply to a mapping of POD, whose packets come from `node`."""
    world.fill(to_world(HERE))
    world.run("from_pod", "pod0", build(UDP_OUT))
    state = world.state()
    ((key, back),) = state.reverse.items()
    state.reverse[key] = replace(back, node=node)
    world.fill(to_world(HERE), state)
    return Packet(REMOTE, EGRESS_IP, UDP, 53, 40000)


def test_a_reply_to_a_pod_on_another_node_goes_into_the_tunnel(world: World) -> None:
    reply = _to_egress_ip(world, WORKER)
    verdict, out = world.run("from_uplink", "uplink", build(reply))
    assert (verdict, world.counted()) == ("redirect", {"reversed": 1})
    assert parse(out) == replace(reply, destination=POD, ttl=63)


def test_a_syn_from_outside_to_a_mapping_has_its_mss_clamped(world: World) -> None:
    world.fill(to_world(HERE))
    world.run("from_pod", "pod0", build(SYN))
    state = world.state()
    ((key, back),) = state.reverse.items()
    world.fill(to_world(HERE), replace(state, reverse={key: replace(back, node=WORKER)}))
    answer = Packet(REMOTE, EGRESS_IP, TCP, 443, 40000, flags="SA", mss=1460)
    _, out = world.run("from_uplink", "uplink", build(answer))
    assert parse(out).mss == TUNNEL_MTU - 40


def test_a_late_reply_does_not_turn_the_flow_into_one_from_outside(world: World) -> None:
    """The gateway still knows the flow, the source node has collected it: the pod's next packet must not leave bare."""
    reply = _to_egress_ip(world, None)
    world.fill(to_world(HERE), replace(world.state(), flows={}))
    assert world.run("from_uplink", "uplink", build(reply))[0] == "drop"
    assert world.counted() == {"unknown_flow": 1}
    verdict, out = world.run("from_pod", "pod0", build(UDP_OUT))
    assert (verdict, parse(out).source) == ("redirect", EGRESS_IP)
    assert world.run("from_uplink", "uplink", build(reply))[0] == "redirect"


def test_a_port_that_is_taken_is_changed_and_one_that_is_free_kept(world: World) -> None:
    world.fill(desired(Policy("world", HERE, (WORLD,)), both=True))
    _, first = world.run("from_pod", "pod0", build(UDP_OUT))
    _, second = world.run("from_pod", "pod1", build(replace(UDP_OUT, source=POD2)))
    assert parse(first).source_port == 40000
    assert parse(second).source_port not in (40000, *range(1024))
    _, again = world.run("from_pod", "pod1", build(replace(UDP_OUT, source=POD2)))
    assert again == second
    _, low = world.run("from_pod", "pod0", build(replace(UDP_OUT, source_port=99)))
    assert parse(low).source_port >= 1024


def test_rivals_leave_no_half_behind(world: World) -> None:
    """Two CPUs make the same mappings at once, and mappings that want the same port."""
    world.fill(desired(Policy("world", HERE, (WORLD,)), both=True))
    frames = [
        (device, build(replace(UDP_OUT, source=pod, source_port=port)))
        for port in range(30000, 30400)
        for pod, device in ((POD, "pod0"), (POD2, "pod1"))
    ]

    def send_all(_: int) -> None:
        for device, frame in frames:
            assert world.run("from_pod", device, frame)[0] == "redirect"

    with ThreadPoolExecutor(4) as threads:  # they are in this thread's namespace
        list(threads.map(send_all, range(4)))
    state = world.state()
    assert len(state.nat) == len(frames)
    assert is_paired(state)


def test_a_mapping_of_an_address_that_the_group_gave_up_is_made_anew(world: World) -> None:
    wish, moved = to_world(HERE), IPv4Address("192.0.2.101")
    world.fill(wish)
    world.run("from_pod", "pod0", build(UDP_OUT))
    groups = {**wish.groups, HERE: replace(wish.groups[HERE], egress_ip=moved)}
    world.fill(replace(wish, groups=groups), world.state())
    _, out = world.run("from_pod", "pod0", build(UDP_OUT))
    assert parse(out).source == moved
    assert [mapped.egress_ip for mapped in world.state().nat.values()] == [moved]
    assert {key.egress_ip for key in world.state().reverse} == {EGRESS_IP, moved}  # the old one until it is collected


def test_a_forward_half_without_its_reverse_is_made_anew_at_the_next_connection(world: World) -> None:
    world.fill(to_world(HERE))
    world.run("from_pod", "pod0", build(SYN))
    world.fill(to_world(HERE), replace(world.state(), reverse={}))
    world.run("from_pod", "pod0", build(SYN))
    state = world.state()
    assert len(state.nat) == len(state.reverse) == 1


def test_a_port_that_is_used_again_forgets_the_old_connections_end(world: World) -> None:
    world.fill(to_world(HERE))
    for flags in ("S", "AF", "R"):
        world.run("from_pod", "pod0", build(replace(SYN, flags=flags, mss=0)))
    assert [mapped.seen_out for mapped in world.state().nat.values()] == [7]
    world.run("from_pod", "pod0", build(replace(SYN, mss=0)))
    assert [mapped.seen_out for mapped in world.state().nat.values()] == [1]
    assert [(flow.seen_out, flow.seen_in) for flow in world.state().flows.values()] == [(1, 0)]


# --- properties -------------------------------------------------------------------------------------------------------

ports = st.integers(1024, 65535)
packets_out = st.builds(
    Packet, st.just(POD), st.just(REMOTE), st.sampled_from([TCP, UDP]), st.integers(1, 65535), ports,
    ttl=st.integers(2, 255), length=st.integers(60, 1400), options=st.booleans(),
)  # fmt: skip
pings_out = st.builds(lambda n: Packet(POD, REMOTE, ICMP, n, 0, echo="request"), st.integers(0, 65535))


@settings(max_examples=300, derandomize=True, database=None)
@given(st.one_of(packets_out, pings_out), st.binary(min_size=1, max_size=40), st.booleans(), st.integers(2, 255))
def test_a_reply_gets_the_pods_address_back(world: World, sent: Packet, payload: bytes, summed: bool, ttl: int) -> None:
    """NAT round trip, bytes and checksums included: only the TTL differs, by one each way."""
    shape = Shape(payload=payload, udp_checksum=summed)
    world.fill(to_world(HERE))
    verdict, out = world.run("from_pod", "pod0", build(sent, shape))
    there = parse(out)
    assert verdict == "redirect"
    assert out == build(replace(sent, source=EGRESS_IP, source_port=there.source_port, ttl=sent.ttl - 1), shape)
    echo: Echo = "reply" if sent.echo else ""
    answer = replace(
        there, source=REMOTE, destination=EGRESS_IP, source_port=there.destination_port,
        destination_port=there.source_port, ttl=ttl, echo=echo,
    )  # fmt: skip
    _, back = world.run("from_uplink", "uplink", build(answer, shape))
    restored = replace(answer, destination=POD, destination_port=sent.source_port, ttl=ttl - 1)
    assert back[14:] == build(restored, shape)[14:]


def _udp_that_sums_to_zero() -> Packet:
    """Translated, its checksum is computed as 0, which goes on the wire as 0xffff (RFC 768)."""
    for port in range(1024, 65536):
        packet = replace(UDP_OUT, source=EGRESS_IP, destination_port=port, ttl=63)
        if build(packet)[40:42] == b"\xff\xff":
            return replace(packet, source=POD, ttl=64)
    raise AssertionError("no port does")


def test_a_checksum_of_zero_is_sent_as_all_ones(world: World) -> None:
    world.fill(to_world(HERE))
    _, out = world.run("from_pod", "pod0", build(_udp_that_sums_to_zero()))
    assert out[40:42] == b"\xff\xff"


COVERED = IPv4Network("198.51.100.0/24")
wild = st.builds(
    Packet, st.just(POD), st.just(REMOTE), st.sampled_from([TCP, UDP, ICMP, SCTP, 47]), ports, ports,
    kind=st.sampled_from(["flow", "fragment", "unsupported"]), ttl=st.integers(1, 255),
    length=st.integers(60, 1500), options=st.booleans(), dont_fragment=st.booleans(), echo=st.just("request"),
)  # fmt: skip


@settings(max_examples=300, derandomize=True, database=None)
@given(st.one_of(wild, packets_out), st.sampled_from([HERE, THERE, NO_GATEWAY, UNPUBLISHED]), st.booleans())
def test_a_selected_pods_packet_to_a_covered_destination_never_goes_on(
    world: World, sent: Packet, group: int, later: bool
) -> None:
    world.fill(desired(Policy("covered", group, (COVERED,))))
    verdict, _ = world.run("from_pod", "pod0", build(sent, Shape(later_fragment=later)))
    assert verdict != "next"


def test_the_parser_refuses_what_a_host_would() -> None:
    """The tests above would pass anything if their own parser did."""
    for packet in (UDP_OUT, SYN, PING):
        frame = build(packet)
        for position in (22, 24, len(frame) - 1):  # TTL, IPv4 checksum, payload
            broken = bytearray(frame)
            broken[position] ^= 1
            with pytest.raises(BadPacket, match="checksum"):
                parse(bytes(broken))
