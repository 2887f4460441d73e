"""Probes of gateways: how they go out, who answers them, who is heard, and which gateway a flow has for it.

Real VXLAN packets, as a test run carries no tunnel key; and real time for the answer that may still come.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from bpf import layout
from egress.entries import ANYWHERE
from egress.policy import Desired, IPAddress, Watch
from tests.bpf.packets import Shape, build, vxlan
from tests.bpf.wishes import HERE, IN_ORDER, THERE, WORKER2_NUMBER, WORKER_NUMBER, to_world
from tests.bpf.world import (
    MACS,
    NUMBERS,
    POD,
    REMOTE,
    SELF,
    SELF6,
    STRANGER,
    TUNNEL_PORT,
    WORKER,
    WORKER2,
    Wire,
    World,
)
from tests.models import datapath, liveness
from tests.models.liveness import Rank
from tests.models.tables import TCP, UDP, Carried, FlowKey, GroupHere, Hop, Packet, State
from tests.netns.lab import netns
from tests.waiting import wait

REQUEST, REPLY = layout.PROBE_REQUEST, layout.PROBE_REPLY
TOKEN = 0x1122334455667788
MULTIPLIER, INTERVAL = 3, 0.05
WORKER6 = IPv6Address("2001:db8:200::2")


def probe(
    address: IPAddress = WORKER, kind: int = REQUEST, token: int = TOKEN, service: int = 0, **more: object
) -> Packet:
    """As a node with the tunnel endpoint `address` sends it."""
    port, length = layout.PROBE_PORT, (28 if address.version == 4 else 48) + 16
    packet = Packet(address, address, UDP, port, port, ttl=255, length=length, carries=Carried(kind, token, service))
    return replace(packet, **more)  # type: ignore[arg-type]


def frame(packet: Packet, mac: bytes = MACS["tunnel"]) -> bytes:
    carried = packet.carries or Carried(0, 0)
    payload = bytes(layout.Probe(carried.kind, carried.service, token=carried.token))
    return build(packet, Shape(destination_mac=mac, payload=payload, summed=False))


def carried(inner: bytes) -> layout.Probe:
    return layout.decode(layout.Probe, inner[-16:])


def inside_vxlan(outer: bytes) -> tuple[IPAddress, int, bytes]:
    """(outer destination, VNI, inner frame). What is inside bears no checksum, which hosts would refuse over IPv6."""
    version = outer[14] >> 4
    start, to = (42, outer[30:34]) if version == 4 else (62, outer[38:54])
    (word,) = struct.unpack_from("!I", outer, start + 4)
    return ip_address(to), word >> 8, outer[start + 8 :]


class Node:
    """This node with its programs attached, and the network between nodes."""

    def __init__(self, world: World, underlay: Wire) -> None:
        self.world, self.underlay = world, underlay

    def takes(self, packet: Packet, endpoint: IPAddress = WORKER, own: IPAddress = SELF, cut: int = 0) -> None:
        """A packet comes out of the tunnel as a probe, from `endpoint`; returns when it has been judged."""
        before = sum(self.world.counted().values())
        inner = frame(packet)
        outer = vxlan(inner[: len(inner) - cut], layout.VNI_PROBE, TUNNEL_PORT, Packet(endpoint, own))
        self.underlay.put(MACS["underlay"] + outer[6:])
        wait(lambda: sum(self.world.counted().values()) > before, "the probe is counted", interval=0.001)

    def sends(self, number: int = WORKER_NUMBER, token: int = TOKEN) -> None:
        """Its own process puts a probe on the tunnel device."""
        mac = struct.pack("!IH", layout.PROBE_MAC, number)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as own:
            own.bind(("tunnel", 0))
            with suppress(OSError):  # ENOBUFS: it was dropped
                own.send(frame(probe(SELF, token=token), mac))

    def seen(self, number: int = WORKER_NUMBER) -> tuple[int, int, int]:
        """(sent, heard, service) of a gateway."""
        value = self.world.maps["liveness"].get(layout.u32(number))
        assert value is not None
        known = layout.decode(layout.Liveness, value)
        return known.sent, known.heard, known.service


@pytest.fixture(scope="module")
def attached(world: World) -> Iterator[Node]:
    world.attach()
    netns.run(["ip", "neighbour", "replace", str(WORKER6), "lladdr", "02:00:00:00:00:02", "dev", "underlay"])
    with world.wire("underlay") as underlay:
        yield Node(world, underlay)


def wished(group: int = HERE, **more: object) -> Desired:
    return replace(to_world(group), **more)  # type: ignore[arg-type]


@pytest.fixture
def node(attached: Node) -> Node:
    attached.world.fill(wished())
    for number in NUMBERS:
        attached.world.maps["liveness"].put(layout.u32(number), bytes(layout.Liveness()))
    return attached


# --- as a gateway -----------------------------------------------------------------------------------------------------

NODES: dict[int, tuple[IPAddress, IPAddress]] = {4: (SELF, WORKER), 6: (SELF6, WORKER6)}  # by family of the tunnel


def underlay(version: int, **more: object) -> Desired:
    """This node and a worker, with tunnels of one family."""
    own, worker = NODES[version]
    return wished(node_address=own, nodes={**NUMBERS, 1: own, WORKER_NUMBER: worker}, **more)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("out", "service"), [((), 0), (("draining",), 1), (("no-session", "no-uplink"), 6)])
def test_a_gateway_answers_a_probe_with_what_it_says_of_itself(
    node: Node, out: tuple[str, ...], service: int, version: int
) -> None:
    own, worker = NODES[version]
    tables = node.world.fill(underlay(version, out_of_service=frozenset(out)))
    sent = probe(worker)
    node.takes(sent, worker, own)
    to, vni, answer = inside_vxlan(node.underlay.get())
    assert (to, vni) == (worker, layout.VNI_PROBE)
    assert answer[12:-16] == frame(sent)[12:-16]
    told = carried(answer)
    assert (told.kind, told.service, told.token) == (REPLY, service, TOKEN)
    assert node.world.counted() == {"probe_reflected": 1}
    model = datapath.from_tunnel(tables, State(), worker, layout.VNI_PROBE, sent)
    assert model.packet is not None and model.packet.carries == Carried(REPLY, TOKEN, service)


@contextmanager
def asked_for(world: World, *ways: IPAddress) -> Iterator[None]:
    """Gateways are asked for a route to these addresses, one a family."""
    before = world.maps["settings"].get(layout.u32(0))
    assert before is not None
    settings = layout.decode(layout.Settings, before)
    settings.way_out4 = settings.way_out6 = layout.Bytes16()
    for way in ways:
        setattr(settings, f"way_out{way.version}", layout.ip_field(way))
    world.maps["settings"].put(layout.u32(0), bytes(settings))
    try:
        yield
    finally:
        world.maps["settings"].put(layout.u32(0), before)


WAYS: dict[str, tuple[IPAddress, ...]] = {
    "none is asked for": (),
    "both families": (ANYWHERE[4], ANYWHERE[6]),
    "no route": (IPv4Address("198.51.100.200"),),
    "no route in IPv6": (ANYWHERE[4], IPv6Address("2001:db8:51:ff::1")),
    "a route by a device that is no uplink": (IPv4Address("203.0.113.5"),),
    "in IPv6": (IPv6Address("2001:db8:113::5"),),
}


@pytest.mark.parametrize("case", WAYS)
def test_a_gateway_says_that_it_has_no_way_out(node: Node, case: str) -> None:
    tables = replace(node.world.fill(wished()), ways_out=WAYS[case])
    with asked_for(node.world, *WAYS[case]):
        node.takes(probe())
    told = carried(inside_vxlan(node.underlay.get())[2])
    model = liveness.judge(tables, {}, WORKER, probe())
    assert model.reply is not None and model.reply.carries is not None
    assert told.service == model.reply.carries.service
    assert (told.service == layout.SERVICE_NO_ROUTE) == ("no " in case or "is no" in case or case == "in IPv6")


BAD = {
    "for another node": (probe(WORKER2), 0),
    "to another address": (probe(destination=WORKER2), 0),
    "from another address": (probe(source=WORKER2), 0),
    "without a token": (probe(token=0), 0),
    "an answer to nobody's question": (probe(kind=REPLY), 0),
    "of no kind": (probe(kind=3), 0),
    "from beyond a router": (probe(ttl=254), 0),
    "to another port": (probe(destination_port=3784), 0),
    "no UDP": (probe(protocol=TCP, flags="S", length=60), 0),
    "with options": (probe(options=True, length=48), 0),
    "a byte short": (probe(), 1),
    "without its end": (probe(), 8),
    "without its token": (probe(), 16),
    "too long": (probe(length=45), 0),
    "a first fragment": (probe(first=True, id=7), 0),
    "a later fragment": (replace(probe(position=64, id=7), kind="fragment"), 0),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_probe_is_dropped_and_counted(node: Node, case: str) -> None:
    packet, cut = BAD[case]
    node.takes(packet, cut=cut)
    assert node.world.counted() == {"bad_probe": 1}
    if not cut:
        assert liveness.judge(node.world.fill(wished()), {}, WORKER, packet).reason == "bad_probe"


def test_a_probe_of_a_stranger_is_dropped(node: Node) -> None:
    node.takes(probe(STRANGER), STRANGER)
    assert node.world.counted() == {"unknown_node": 1}


# --- as the pod's node ------------------------------------------------------------------------------------------------


def test_a_probe_of_this_node_leaves_by_the_tunnel_to_its_gateway(node: Node) -> None:
    node.sends()
    to, vni, inner = inside_vxlan(node.underlay.get())
    assert (to, vni) == (WORKER, layout.VNI_PROBE)
    assert inner[12:] == frame(probe(SELF))[12:]
    assert node.seen() == (1, 0, 0)
    assert node.world.counted() == {"probe_sent": 1}


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_a_probe_to_nobody_goes_nowhere(node: Node, number: int) -> None:
    node.sends(number)
    assert node.world.counted() == {"bad_probe": 1}


def test_what_the_kernel_itself_sends_by_the_tunnel_device_is_left_alone(node: Node) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as own:
        own.bind(("tunnel", 0))
        own.send(frame(probe(SELF), b"\x33\x33\0\0\0\1"))
    assert node.world.counted() == {}


def test_an_answer_is_heard_once_and_from_its_gateway_alone(node: Node) -> None:
    for token in (1, 2, 3):
        node.sends(token=token)
    node.takes(probe(SELF, REPLY, 2), WORKER2)
    assert node.seen() == (3, 0, 0)
    node.takes(probe(SELF, REPLY, 2, service=0))
    assert node.seen() == (3, 2, 0)
    node.takes(probe(SELF, REPLY, 2))
    node.takes(probe(SELF, REPLY, 99))
    assert node.seen() == (3, 2, 0)
    assert node.world.counted() == {"probe_sent": 3, "probe_heard": 1, "bad_probe": 3}


def test_an_answer_that_was_overtaken_takes_nothing_back(node: Node) -> None:
    for token in (1, 2):
        node.sends(token=token)
    node.takes(probe(SELF, REPLY, 2))
    node.takes(probe(SELF, REPLY, 1, service=layout.SERVICE_DRAINING))
    assert node.seen() == (2, 2, 0)
    assert node.world.counted() == {"probe_sent": 2, "probe_heard": 2}


def test_what_a_gateway_says_of_itself_is_kept_until_it_says_otherwise(node: Node) -> None:
    for token, service in ((1, layout.SERVICE_DRAINING), (2, 0)):
        node.sends(token=token)
        node.takes(probe(SELF, REPLY, token, service=service))
        assert node.seen()[2] == service


def test_an_old_token_is_no_answer(node: Node) -> None:
    for token in range(1, layout.PROBES_KEPT + 2):
        node.sends(token=token)
    node.takes(probe(SELF, REPLY, 1))
    assert node.world.counted() == {"probe_sent": layout.PROBES_KEPT + 1, "bad_probe": 1}


def test_a_round_trip_is_measured(node: Node) -> None:
    node.sends()
    before = time.monotonic()
    node.takes(probe(SELF, REPLY))
    value = node.world.maps["probes"].get(layout.u32(WORKER_NUMBER))
    assert value is not None
    past = layout.decode(layout.Probes, value)
    assert past.answered == 1
    assert 0 < past.round_trip < (time.monotonic() - before + 1) * 1e9


# --- which gateway ----------------------------------------------------------------------------------------------------


def sent_by_pod(port: int) -> Packet:
    return Packet(POD, REMOTE, UDP, port, 53)


def gateways_of(world: World, ports: Sequence[int]) -> dict[int, int]:
    """Source port -> gateway of its flow, after a packet of each."""
    for port in ports:
        world.run("from_pod", "pod0", build(sent_by_pod(port)))
    return {key.pod_port: flow.gateway for key, flow in world.state().flows.items()}


PORTS = range(40000, 40200)


def test_flows_spread_over_gateways_and_only_those_of_one_that_dies_move(world: World) -> None:
    world.fill(wished(THERE))
    first = gateways_of(world, PORTS)
    counts = Counter(first.values())
    assert set(counts) == {WORKER_NUMBER, WORKER2_NUMBER} and min(counts.values()) > len(PORTS) // 3
    state = world.state()
    world.fill(wished(THERE), state, ranks={WORKER_NUMBER: Rank.SILENT})
    assert set(gateways_of(world, PORTS).values()) == {WORKER2_NUMBER}
    moved = world.state()
    world.fill(wished(THERE), moved)
    assert set(gateways_of(world, PORTS).values()) == {WORKER2_NUMBER}, "a gateway that comes back takes no flow back"
    assert world.counted() == {"encapsulated": len(PORTS)}


@pytest.mark.parametrize(
    ("ranks", "kept", "reason"),
    [
        ({2: Rank.LEAVES, 3: Rank.SERVES}, {3}, "encapsulated"),
        ({2: Rank.LEAVES, 3: Rank.SILENT}, {2}, "encapsulated"),
        ({2: Rank.LEAVES, 3: Rank.LEAVES}, {2, 3}, "encapsulated"),
        ({2: Rank.SILENT, 3: Rank.SILENT}, {2, 3}, "sent_unheard"),
    ],
)
def test_the_best_gateway_is_taken_and_never_none(
    world: World, ranks: dict[int, Rank], kept: set[int], reason: str
) -> None:
    """Who asks to be left alone is better than who says nothing; and where all are silent, all are tried."""
    world.fill(wished(THERE), ranks=ranks)
    first = gateways_of(world, PORTS)
    assert set(first.values()) == kept
    assert gateways_of(world, PORTS) == first, "no flow wanders among those that are as bad"
    assert world.counted() == {reason: 2 * len(PORTS)}


@pytest.mark.parametrize("rank", [Rank.LEAVES, Rank.SILENT])
def test_who_watches_nobody_finds_nobody_dead(world: World, rank: Rank) -> None:
    world.fill(wished(THERE, watch=None), ranks={WORKER_NUMBER: rank})
    assert WORKER_NUMBER in set(gateways_of(world, PORTS).values())


def test_where_gateways_take_turns_all_flows_are_with_the_first_that_is_good(world: World) -> None:
    world.fill(wished(IN_ORDER))
    assert set(gateways_of(world, PORTS).values()) == {WORKER_NUMBER}
    for rank, expected in (
        (Rank.SILENT, WORKER2_NUMBER),
        (Rank.SERVES, WORKER_NUMBER),
        (Rank.LEAVES, WORKER2_NUMBER),
        (Rank.SERVES, WORKER_NUMBER),
    ):
        world.fill(wished(IN_ORDER), world.state(), ranks={WORKER_NUMBER: rank})
        assert set(gateways_of(world, PORTS).values()) == {expected}, "the first takes its flows back"
        assert set(gateways_of(world, PORTS).values()) == {expected}
    assert set(world.counted()) == {"encapsulated"}


def test_this_node_is_alive_for_its_own_pods(world: World) -> None:
    world.fill(wished(HERE, out_of_service=frozenset({"draining"})), ranks={1: Rank.SILENT})
    gateways_of(world, PORTS[:1])
    assert world.counted() == {"translated": 1}


def test_the_model_and_the_programs_prefer_the_same_gateways() -> None:
    """By hand once, so that both are not wrong alike: a preference hangs on the flow and on the gateway alone."""
    key = FlowKey(POD, REMOTE, 5, 40000, 53, UDP)
    group = GroupHere((Hop(2, True, 0), Hop(3, True, 0)), ())
    backwards = GroupHere(tuple(reversed(group.gateways)), ())
    tables = datapath.Tables()
    assert liveness.pick(tables, group, key, {2, 3}) == liveness.pick(tables, backwards, key, {2, 3})


def missed(world: World, count: int, age: float, round_trip: float = 0.0) -> None:
    """The worker has not answered its last `count` probes, the last of which was sent `age` seconds ago."""
    sent = 20
    past = layout.Probes(answered=1, round_trip=int(round_trip * 1e9))
    for back in range(layout.PROBES_KEPT):
        at = time.monotonic_ns() - int((age + back * INTERVAL) * 1e9)
        past.kept[(sent - back) % layout.PROBES_KEPT] = layout.SentProbe(1, at)
    world.maps["probes"].put(layout.u32(WORKER_NUMBER), bytes(past))
    world.maps["liveness"].put(layout.u32(WORKER_NUMBER), bytes(layout.Liveness(sent, sent - count)))


LONG = 60.0  # seconds: no test takes so long


@pytest.mark.parametrize(
    ("count", "age", "round_trip", "dead"),
    [
        (2, LONG, 0.0, False),  # the sender stands still: who was not asked is not dead
        (3, -LONG, 0.0, False),  # the answer to the last one may still come
        (3, LONG, 0.0, True),
        (3, LONG, 2 * LONG, False),  # where answers take longer, they are waited for
        (4, 0.0, 0.0, True),  # of the third one the time is up
        (7, 0.0, 0.0, True),
        (19, 0.0, 0.0, True),
    ],
)
def test_a_gateway_is_dead_when_enough_answers_are_overdue(
    world: World, count: int, age: float, round_trip: float, dead: bool
) -> None:
    world.fill(wished(THERE))
    missed(world, count, age, round_trip)
    assert (WORKER_NUMBER not in set(gateways_of(world, PORTS[:40]).values())) == dead


def test_the_last_probe_has_half_an_interval_for_its_answer(world: World) -> None:
    world.fill(wished(THERE, watch=Watch(2 * LONG, MULTIPLIER)))
    missed(world, MULTIPLIER, LONG / 2)
    assert WORKER_NUMBER in set(gateways_of(world, PORTS[:40]).values())
    missed(world, MULTIPLIER, LONG + 1)
    assert set(gateways_of(world, PORTS[:40]).values()) == {WORKER2_NUMBER}
