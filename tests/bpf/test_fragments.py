"""Fragments of both families, out and back: later ones follow their first, whose checksum stays the datagram's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from egress.policy import Block, Policy, Ports
from tests.bpf.families import six
from tests.bpf.packets import build, parse
from tests.bpf.pieces import cut, join
from tests.bpf.wishes import GROUPS, HERE, THERE, desired, to_world
from tests.bpf.world import EGRESS_IP, EGRESS_IP6, POD, POD2, REMOTE, SELF, SELF6, TUNNEL_MTU, WORLD, WORLD6, World
from tests.models.tables import ICMP, TCP, UDP, Packet

BIG = 4028
DATAGRAM = Packet(POD, REMOTE, UDP, 40000, 53, length=BIG)
SENT = {
    "UDP": DATAGRAM,
    "TCP": replace(DATAGRAM, protocol=TCP, flags="A"),
    "echo": Packet(POD, REMOTE, ICMP, 40000, 0, echo="request", length=BIG),
}
BLOCK = range(40960, 45056)  # of this node
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def in_family(packet: Packet, version: int) -> Packet:
    return packet if version == 4 else six(packet)


def run(world: World, program: str, device: str, frames: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [world.run(program, device, frame) for frame in frames]


def passed(world: World, program: str, device: str, frames: Sequence[bytes]) -> list[bytes]:
    """What all of them have become."""
    results = run(world, program, device, frames)
    assert [verdict for verdict, _ in results] == ["redirect"] * len(frames), world.counted()
    return [out for _, out in results]


def number_of(packet: Packet) -> int:
    """What of a fragment's id is a number of a port set."""
    return packet.id if packet.version == 4 else packet.id >> 16


@VERSIONS
@pytest.mark.parametrize("name", SENT)
def test_a_datagram_in_fragments_goes_out_and_its_answer_back(world: World, name: str, version: int) -> None:
    """All bytes and checksums of both are as if they had been sent whole."""
    sent = in_family(SENT[name], version)
    world.fill(to_world(HERE))
    out = passed(world, "from_pod", "pod0", cut(build(sent), 7))
    told = parse(join(out))
    assert told == replace(sent, source=told.source, source_port=told.source_port, ttl=63)
    assert told.source == (EGRESS_IP if version == 4 else EGRESS_IP6)
    assert told.source_port in BLOCK
    assert number_of(parse(out[0])) in BLOCK
    answer = replace(
        told, source=told.destination, destination=told.source, source_port=told.destination_port,
        destination_port=told.source_port, echo="reply" if told.echo else "", ttl=64,
    )  # fmt: skip
    back = passed(world, "from_uplink", "uplink", cut(build(answer), 9))
    restored = replace(answer, destination=sent.source, destination_port=sent.source_port, ttl=63)
    assert join(back)[14:] == build(restored)[14:]
    assert {parse(frame).id for frame in back} == {9}  # the remote's own
    assert world.counted() == {"translated": len(out), "delivered": len(back)}


@VERSIONS
def test_two_pods_that_use_one_id_are_told_apart_outside(world: World, version: int) -> None:
    """Ids of a node take turns through a block before one comes again."""
    world.fill(desired(Policy("world", HERE, (WORLD, WORLD6)), both=True))
    sent = in_family(DATAGRAM, version)
    pods = [(sent, "pod0"), (in_family(replace(DATAGRAM, source=POD2), version), "pod1")]
    ids = [
        parse(join_id).id
        for _ in range(40)
        for packet, device in pods
        for join_id in passed(world, "from_pod", device, cut(build(packet), 7))[:1]
    ]
    assert len(set(ids)) == 80
    assert {number in BLOCK for number in (i if version == 4 else i >> 16 for i in ids)} == {True}


@VERSIONS
def test_ids_are_of_the_block_that_the_flows_port_is_in(world: World, version: int) -> None:
    """Others may be given back while the flow lives."""
    wish, address = to_world(HERE), EGRESS_IP if version == 4 else EGRESS_IP6
    blocks = (Block(address, 1024, 64, closed=True), Block(address, 16384, 128), Block(address, 2048, 64, closed=True))
    world.fill(replace(wish, groups={**GROUPS, HERE: replace(GROUPS[HERE], blocks=blocks)}))
    frames = cut(build(in_family(DATAGRAM, version)), 7)
    numbers = [number_of(parse(passed(world, "from_pod", "pod0", frames)[1])) for _ in range(130)]
    assert set(numbers) == set(range(16384, 16512))


@VERSIONS
def test_a_later_fragment_before_its_first_is_dropped(world: World, version: int) -> None:
    world.fill(to_world(HERE))
    _, *others = cut(build(in_family(DATAGRAM, version)), 7)
    assert [verdict for verdict, _ in run(world, "from_pod", "pod0", others)] == ["drop", "drop"]
    assert world.counted() == {"fragment": 2}


@VERSIONS
@pytest.mark.parametrize(("age", "verdict"), [(25, "redirect"), (31, "drop")])
def test_a_first_fragment_is_forgotten_after_half_a_minute(
    world: World, age: float, verdict: str, version: int
) -> None:
    world.fill(to_world(HERE))
    first, second, _ = cut(build(in_family(DATAGRAM, version)), 7)
    world.run("from_pod", "pod0", first)
    world.fill(to_world(HERE), world.state(), age)
    assert world.run("from_pod", "pod0", second)[0] == verdict


@VERSIONS
def test_what_overlaps_the_first_fragment_is_dropped(world: World, version: int) -> None:
    """It could bear other ports or flags than were decided about."""
    world.fill(to_world(HERE))
    sent = in_family(SENT["TCP"], version)
    passed(world, "from_pod", "pod0", cut(build(sent), 7)[:1])
    late = Packet(sent.source, sent.destination, TCP, kind="fragment", id=7, length=80)
    overlapping = [build(replace(late, position=position)) for position in (8, 16, 1368)]
    assert [verdict for verdict, _ in run(world, "from_pod", "pod0", overlapping)] == ["drop"] * 3
    assert world.counted() == {"translated": 1, "bad_fragment": 3}


@VERSIONS
def test_a_second_first_fragment_begins_a_datagram_of_its_own(world: World, version: int) -> None:
    """Other ports under one id do not meet at the remote."""
    world.fill(to_world(HERE))
    one, other = in_family(DATAGRAM, version), in_family(replace(DATAGRAM, destination_port=443), version)
    ids = [
        parse(out).id for packet in (one, other) for out in passed(world, "from_pod", "pod0", cut(build(packet), 7)[:1])
    ]
    later = parse(passed(world, "from_pod", "pod0", cut(build(other), 7)[1:2])[0]).id
    assert ids[0] != ids[1] == later


def test_fragments_of_a_device_follow_no_other_devices(world: World) -> None:
    world.fill(desired(Policy("world", HERE, (WORLD, WORLD6)), both=True))
    first, second, _ = cut(build(DATAGRAM), 7)
    passed(world, "from_pod", "pod0", [first])
    assert world.run("from_pod", "pod1", second)[0] == "drop"
    assert world.counted() == {"translated": 1, "spoofed_source": 1}


HTTPS = desired(Policy("https", THERE, (WORLD, WORLD6), ports=(Ports("TCP", 443, 443),)))


@VERSIONS
def test_a_datagram_that_no_policy_covers_is_left_alone_whole(world: World, version: int) -> None:
    world.fill(HTTPS)
    frames = cut(build(in_family(DATAGRAM, version)), 7)
    assert run(world, "from_pod", "pod0", frames) == [("next", frame) for frame in frames]
    assert world.counted() == {}


@VERSIONS
def test_an_answer_in_fragments_to_what_began_outside_is_left_alone(world: World, version: int) -> None:
    """So is one to a question that came in fragments."""
    world.fill(to_world(THERE))
    asked = in_family(Packet(REMOTE, POD, UDP, 53, 40000, length=BIG), version)
    assert {verdict for verdict, _ in run(world, "to_pod", "pod0", cut(build(asked), 5))} == {"next"}
    frames = cut(build(in_family(DATAGRAM, version)), 7)
    assert run(world, "from_pod", "pod0", frames) == [("next", frame) for frame in frames]


def test_an_ipv6_fragment_that_lies_about_its_protocol_follows_its_first(world: World) -> None:
    """Receivers look at the first one's alone; so a rule about ports cannot be gone round."""
    world.fill(HTTPS)
    frames = cut(build(six(SENT["TCP"])), 7)
    lying = [frame if n == 0 else frame[:54] + b"\x84" + frame[55:] for n, frame in enumerate(frames)]
    https = [frame if n else frame[:64] + (443).to_bytes(2) + frame[66:] for n, frame in enumerate(lying)]
    assert world.run("from_pod", "pod0", https[1])[0] == "drop"
    passed(world, "from_pod", "pod0", https)
    assert world.counted() == {"fragment": 1, "encapsulated": 3}


def test_more_extension_headers_than_are_walked_do_not_go_round_a_rule(world: World) -> None:
    world.fill(HTTPS)
    frame = build(replace(six(SENT["TCP"]), destination_port=443, length=100))
    options = b"".join(bytes((60 if n < 6 else TCP, 0, 1, 4, 0, 0, 0, 0)) for n in range(7))
    length = int.from_bytes(frame[18:20]) + len(options)
    hidden = frame[:18] + length.to_bytes(2) + b"\x3c" + frame[21:54] + options + frame[54:]
    assert world.run("from_pod", "pod0", hidden)[0] == "drop"
    assert world.counted() == {"unsupported_protocol": 1}


def test_a_fragment_of_a_fragment_does_not_go_round_a_rule(world: World) -> None:
    world.fill(HTTPS)
    frame = build(six(SENT["TCP"]))
    extension = bytes((TCP, 0, 0, 0, 0, 0, 0, 5))  # made a later fragment below
    outer = bytes((44, 0, 0, 1, 0, 0, 0, 7))
    for inner in (extension[:3] + b"\x09" + extension[4:], extension[:3] + b"\x01" + extension[4:]):
        nested = frame[:18] + (16 + 1000).to_bytes(2) + b"\x2c" + frame[21:54] + outer + inner + frame[54:1054]
        assert world.run("from_pod", "pod0", nested)[0] == "drop"
    assert world.counted() == {"unsupported_protocol": 2}


@VERSIONS
def test_an_error_about_a_first_fragment_reaches_the_pod(world: World, version: int) -> None:
    """A router with a smaller MTU, or a remote that waited in vain for the others."""
    world.fill(to_world(HERE))
    sent = in_family(DATAGRAM, version)
    told = parse(passed(world, "from_pod", "pod0", cut(build(sent), 7))[0])
    error = in_family(Packet(IPv4Address("192.0.2.254"), EGRESS_IP, ICMP, kind="icmp-error", about="ttl"), version)
    seen = parse(passed(world, "from_uplink", "uplink", [build(replace(error, quoted=told))])[0])
    assert seen.quoted == replace(told, source=sent.source, source_port=sent.source_port)
    assert (seen.destination, seen.about) == (sent.source, "ttl")


@VERSIONS
@pytest.mark.parametrize("about", ["too-big", "ttl"])
def test_a_first_fragment_that_cannot_go_on_is_answered_and_a_later_one_is_not(
    world: World, about: str, version: int
) -> None:
    world.fill(to_world(THERE))
    sent = in_family(replace(DATAGRAM, dont_fragment=True, ttl=1 if about == "ttl" else 64), version)
    size = TUNNEL_MTU if about == "too-big" else 1000
    first, later = (parse(frame) for frame in cut(build(sent), 7, size // 8 * 8)[:2])
    first, later = (replace(each, dont_fragment=version == 4) for each in (first, later))
    verdict, out = world.run("from_pod", "pod0", build(first))
    answer = parse(out)
    assert (verdict, answer.about, answer.source) == ("redirect", about, SELF if version == 4 else SELF6)
    assert answer.quoted == first
    assert world.run("from_pod", "pod0", build(later))[0] == "drop"


def test_a_flood_of_first_fragments_hinders_no_other_pod(world: World) -> None:
    """Twice as many as are remembered."""
    world.fill(desired(Policy("world", HERE, (WORLD, WORLD6)), both=True))
    flood = replace(DATAGRAM, source=POD2, length=100, first=True)
    first, *others = cut(build(DATAGRAM), 7)
    for n in range(2 * world.maps["fragments"].max_entries):
        if n % 1000 == 0:
            passed(world, "from_pod", "pod0", [first])
        world.run("from_pod", "pod1", build(replace(flood, id=n & 0xFFFF)))
        if n % 1000 == 500:
            passed(world, "from_pod", "pod0", others)
    assert "fragment" not in world.counted()
