"""Between nodes on one link without a tunnel, with real frames: what leaves by the link and to whom, who is believed,
and when the tunnel is used after all.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import permutations

import pytest

from bpf import layout, syscall
from egress.entries import map_entries
from egress.plan import WRITE_ORDER
from egress.policy import Desired, IPAddress, Neighbour, Transport
from egress.trials import Trial, frame
from tests.bpf.gateway import Gateway, in_family
from tests.bpf.packets import Shape, build, parse
from tests.bpf.wishes import HERE, SELF_NUMBER, THERE, WORKER2_NUMBER, WORKER_NUMBER, to_world
from tests.bpf.world import (
    EGRESS_IP,
    EGRESS_IP6,
    MACS,
    NODE_MACS,
    POD,
    REMOTE,
    SELF,
    TUNNEL_MTU,
    UNDERLAY_MTU,
    WORKER,
    World,
    put_all,
)
from tests.models import datapath
from tests.models.liveness import Rank
from tests.models.tables import ICMP, TCP, UDP, Carried, Flow, Packet, Port, PortKey, State
from tests.waiting import wait

WORKERS_MAC, STRANGERS_MAC = NODE_MACS[WORKER_NUMBER], b"\x02\0\0\0\0\x99"
THEIRS, OURS = 33000, 41000  # ports of the worker's set, and of this node's
TOKEN = 0x1122334455667788
EGRESS_IPS: dict[int, IPAddress] = {4: EGRESS_IP, 6: EGRESS_IP6}
ASKED = Packet(POD, REMOTE, UDP, 40000, 53)
OUT = Packet(EGRESS_IP, REMOTE, UDP, THEIRS, 53)
ANSWER = Packet(REMOTE, EGRESS_IP, UDP, 53, OURS)
BARE = {number: Neighbour(mac) for number, mac in NODE_MACS.items()}  # without an address of its link
LINK = {number: number | layout.WAY_DIRECT for number in (WORKER_NUMBER, WORKER2_NUMBER)}


class Link:
    """The network between nodes, as this one's neighbours see it."""

    def __init__(self, gateway: Gateway) -> None:
        self.world, self.gateway = gateway.world, gateway

    def get(self) -> tuple[bytes, Packet]:
        """(destination's MAC, packet) of the next frame that leaves."""
        got = self.gateway.underlay.get()
        return got[:6], parse(got)

    def takes(self, packet: Packet | bytes, mac: bytes = WORKERS_MAC, **shape: object) -> None:
        """A packet comes by the link from `mac`; returns when it has been judged."""
        before = sum(self.world.counted().values())
        inner = packet if isinstance(packet, bytes) else build(packet, replace(Shape(), **shape))  # type: ignore[arg-type]
        self.gateway.underlay.put(MACS["underlay"] + mac + inner[12:])
        wait(lambda: sum(self.world.counted().values()) > before, "the packet is counted", interval=0.001)

    def pod_sends(self, packet: Packet) -> None:
        self.gateway.pod.put(build(packet, Shape(destination_mac=MACS["pod0"])))


@pytest.fixture
def link(gateway: Gateway) -> Iterator[Link]:
    yield Link(gateway)


def source_alone(transport: Transport = "direct") -> Desired:
    """This node is no gateway."""
    return replace(to_world(THERE, transport=transport), served={})


def flow_of(world: World, asked: Packet = ASKED, direct: bool = True) -> State:
    """A flow of POD through the worker, with the port OURS."""
    key = asked.sent_by(world.ifindex["pod0"])
    address = EGRESS_IPS[asked.version]
    flow = Flow(THERE, 1, 0, address, OURS, gateway=WORKER_NUMBER, id=5, direct=direct)
    port = Port(asked.source, key.ifindex, asked.source_port, THERE, 5, gateway=WORKER_NUMBER)
    return State({key: flow}, {PortKey(address, key.remote, OURS, key.remote_port, key.protocol): port})


# --- from the pod's node to the gateway, and out ----------------------------------------------------------------------

SENT = {
    "udp": ASKED,
    "tcp": replace(ASKED, protocol=TCP, flags="S", mss=1460),
    "echo": replace(ASKED, protocol=ICMP, destination_port=0, echo="request"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", SENT)
def test_a_pods_packet_goes_to_its_gateway_as_it_leaves_the_cluster(link: Link, kind: str, version: int) -> None:
    """In IPv6 the next hop is the gateway's link-local address. The MSS is what the link carries, not the tunnel."""
    link.world.fill(to_world(THERE, transport="direct"))
    asked = in_family(SENT[kind], version)
    link.pod_sends(asked)
    mac, seen = link.get()
    assert mac in NODE_MACS.values()
    overhead = 40 if version == 4 else 60
    wanted = replace(asked, source=EGRESS_IPS[version], source_port=40960 + 40000 % 4096, ttl=63)
    assert seen == replace(wanted, mss=min(wanted.mss, UNDERLAY_MTU - overhead), length=seen.length)
    assert link.world.counted() == {"sent_direct": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_the_packet_may_be_as_large_as_the_link_carries(link: Link, version: int) -> None:
    link.world.fill(to_world(THERE, transport="direct"))
    asked = in_family(replace(ASKED, length=UNDERLAY_MTU, dont_fragment=version == 4), version)
    link.pod_sends(asked)
    assert link.get()[1].length == UNDERLAY_MTU
    assert UNDERLAY_MTU > TUNNEL_MTU


def test_ipv6_needs_the_tunnel_where_the_gateway_has_no_link_local_address(link: Link) -> None:
    wish = to_world(THERE, transport="auto")
    link.world.fill(replace(wish, neighbours=BARE))
    link.pod_sends(in_family(ASKED, 6))
    assert link.gateway.answered()[1] == THERE
    link.pod_sends(ASKED)
    assert link.get()[1].source == EGRESS_IP
    assert link.world.counted() == {"encapsulated": 1, "sent_direct": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_gateway_sends_out_what_bears_a_port_of_the_sender(link: Link, version: int) -> None:
    tables = link.world.fill(to_world(HERE, transport="direct"))
    sent = in_family(OUT, version)
    link.takes(sent)
    assert parse(link.gateway.uplink.get()) == replace(sent, ttl=63)
    model = datapath.from_uplink(tables, State(), sent, link.world.ifindex["underlay"], WORKERS_MAC)
    assert (model.reason, link.world.counted()) == ("translated", {"translated": 1})


GROUPS = {"broadcast": b"\xff" * 6, "multicast": b"\x01\0\x5e\0\0\x01"}


@pytest.mark.parametrize("mac", GROUPS)
@pytest.mark.parametrize("version", [4, 6])
def test_what_a_pod_sends_in_a_frame_to_a_group_goes_the_same_way(link: Link, version: int, mac: str) -> None:
    """To its gateway by the link and by the tunnel, out by its own node, and out by its gateway."""
    asked, sent = in_family(ASKED, version), in_family(OUT, version)
    to_group = build(asked, Shape(destination_mac=GROUPS[mac]))
    link.world.fill(to_world(THERE, transport="direct"))
    link.gateway.pod.put(to_group)
    assert link.get()[1].source == EGRESS_IPS[version]
    link.world.fill(to_world(THERE, exit_local=True))
    link.gateway.pod.put(to_group)
    assert parse(link.gateway.uplink.get()).source == EGRESS_IPS[version]
    link.world.fill(to_world(HERE))
    link.gateway.tunnelled(sent, shape=Shape(destination_mac=GROUPS[mac]))
    assert parse(link.gateway.uplink.get()) == replace(sent, ttl=63)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("about", ["ttl", "too-big"])
def test_a_gateway_answers_what_cannot_go_on_by_the_link(link: Link, about: str, version: int) -> None:
    sent = replace(OUT, ttl=1) if about == "ttl" else replace(OUT, length=UNDERLAY_MTU + 1, dont_fragment=True)
    sent = in_family(sent, version)
    link.world.fill(to_world(HERE, transport="direct"))
    with link.world.jumbo(tunnel=TUNNEL_MTU):
        link.takes(sent)
    mac, answer = link.get()
    assert (mac, answer.about, answer.destination) == (WORKERS_MAC, about, sent.source)
    assert answer.quoted and answer.quoted.bears == sent.bears


# --- the way back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_goes_to_the_node_of_its_port_as_it_is(link: Link, version: int) -> None:
    link.world.fill(to_world(HERE, transport="direct"))
    answer = in_family(replace(ANSWER, destination_port=THEIRS), version)
    link.gateway.uplink.put(build(answer, Shape(destination_mac=MACS["uplink"])))
    assert link.get() == (WORKERS_MAC, replace(answer, ttl=63))
    assert link.world.counted() == {"reversed_direct": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_from_a_gateway_on_the_link_is_handed_to_its_pod(link: Link, version: int) -> None:
    asked, answer = in_family(ASKED, version), in_family(ANSWER, version)
    link.world.fill(source_alone(), flow_of(link.world, asked))
    link.takes(answer)
    assert parse(link.gateway.pod.get()) == replace(answer, destination=asked.source, destination_port=40000, ttl=63)
    assert link.world.counted() == {"delivered": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_in_fragments_is_handed_to_its_pod(link: Link, version: int) -> None:
    first = in_family(replace(ANSWER, first=True, id=7, length=1000), version)
    later = replace(first, kind="fragment", source_port=0, destination_port=0, first=False, position=984)
    asked = in_family(ASKED, version)
    link.world.fill(source_alone(), flow_of(link.world, asked))
    for packet in (first, later):
        link.takes(packet)
        assert parse(link.gateway.pod.get()).destination == asked.source


@pytest.mark.parametrize(("asked", "reason"), [((), "reversed"), ((WORKER_NUMBER,), "reversed_direct")])
def test_where_there_is_a_tunnel_answers_need_none_once_the_node_says_that_it_gets_them(
    link: Link, asked: tuple[int, ...], reason: str
) -> None:
    link.world.fill(to_world(HERE, transport="auto"), asked=asked)
    answer = replace(ANSWER, destination_port=THEIRS)
    assert link.world.run("from_uplink", "uplink", build(answer))[0] == "redirect"
    assert link.world.counted() == {reason: 1}


# --- who is believed --------------------------------------------------------------------------------------------------

FORGED: dict[str, tuple[Packet, bytes, str]] = {
    "out, from a neighbour that is no node": (OUT, STRANGERS_MAC, "unknown_neighbour"),
    "out, from the port set of another node": (OUT, NODE_MACS[WORKER2_NUMBER], "foreign_port"),
    "out, from a port of this node": (replace(OUT, source_port=OURS), WORKERS_MAC, "foreign_port"),
    "out, from nobody's port": (replace(OUT, source_port=20000), WORKERS_MAC, "foreign_port"),
    "into the cluster": (replace(OUT, destination=IPv4Address("10.244.1.77")), WORKERS_MAC, "bogus_destination"),
    "a fragment of another node's id": (
        replace(OUT, kind="fragment", position=984, id=OURS, length=1000), WORKERS_MAC, "foreign_port"),
    "unparsed": (replace(OUT, kind="unsupported", protocol=47), WORKERS_MAC, "unsupported_protocol"),
}  # fmt: skip
FORGED_ANSWERS: dict[str, tuple[Packet, bytes, str]] = {
    "an answer from a neighbour that is no node": (ANSWER, STRANGERS_MAC, "unknown_neighbour"),
    "an answer to no flow": (replace(ANSWER, destination_port=OURS + 1), WORKERS_MAC, "unknown_flow"),
    "an answer from another remote": (replace(ANSWER, source_port=54), WORKERS_MAC, "unknown_flow"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", [*FORGED, *FORGED_ANSWERS])
def test_what_is_forged_on_the_link_is_dropped_and_counted(link: Link, case: str, version: int) -> None:
    packet, mac, reason = {**FORGED, **FORGED_ANSWERS}[case]
    packet = in_family(packet, version)
    if packet.kind == "fragment" and version == 6:
        packet = replace(packet, id=packet.id << 16)
    wish = source_alone() if case in FORGED_ANSWERS else to_world(HERE, transport="direct")
    state = flow_of(link.world, in_family(ASKED, version))
    tables = link.world.fill(wish, state)
    link.takes(packet, mac)
    assert link.world.counted() == {reason: 1}
    model = datapath.from_uplink(tables, state, packet, link.world.ifindex["underlay"], mac)
    assert (model.verdict, model.reason) == ("drop", reason)


def test_what_has_nothing_to_do_with_egress_ips_is_left_alone(link: Link) -> None:
    """Whoever sends it: hosts and routers on the link speak with the node."""
    link.world.fill(to_world(HERE, transport="direct"))
    usual = Packet(IPv4Address("10.200.0.7"), SELF, TCP, 40000, 22, flags="S")
    echo = Packet(IPv4Address("10.200.0.7"), IPv4Address("10.200.0.7"), UDP, 3785, 3785, ttl=255)  # RFC 9747
    for packet in (usual, echo):
        for mac in (STRANGERS_MAC, WORKERS_MAC):
            if packet is echo and mac == WORKERS_MAC:
                continue
            shape = Shape(destination_mac=MACS["underlay"], source_mac=mac)
            assert link.world.run("from_uplink", "underlay", build(packet, shape))[0] == "next"
    assert link.world.counted() == {}


def test_where_no_node_sends_by_the_link_everybody_on_it_is_as_before(link: Link) -> None:
    link.world.fill(replace(to_world(HERE), neighbours={}))
    for packet in (OUT, replace(ANSWER, source=EGRESS_IP)):
        shape = Shape(destination_mac=MACS["underlay"], source_mac=WORKERS_MAC)
        link.world.run("from_uplink", "underlay", build(packet, shape))
    assert "translated" not in link.world.counted()


# --- which way --------------------------------------------------------------------------------------------------------


def outcomes(link: Link, count: int = 20) -> dict[str, int]:
    for port in range(40000, 40000 + count):
        link.world.run("from_pod", "pod0", build(replace(ASKED, source_port=port)))
    return link.world.counted()


UNTRIED = [(EGRESS_IP, way) for way in LINK.values()]


@pytest.mark.parametrize(
    ("transport", "untried", "ranks", "expected"),
    [
        ("auto", [], {}, {"sent_direct": 20}),
        ("auto", UNTRIED, {}, {"encapsulated": 20}),
        ("auto", [(EGRESS_IP, number) for number in LINK], {}, {"sent_direct": 20}),
        ("auto", [], dict.fromkeys(LINK.values(), Rank.SILENT), {"encapsulated": 20}),
        ("auto", [], dict.fromkeys([*LINK, *LINK.values()], Rank.SILENT), {"sent_unheard": 20}),
        ("vxlan", [], {}, {"encapsulated": 20}),
        ("direct", UNTRIED, {}, {"untried_port_set": 20}),
        ("direct", [], dict.fromkeys(LINK.values(), Rank.SILENT), {"sent_unheard": 20}),
    ],
)
def test_the_tunnel_is_used_where_the_link_has_not_proved_itself(
    link: Link,
    transport: Transport,
    untried: list[tuple[IPAddress, int]],
    ranks: dict[int, int],
    expected: dict[str, int],
) -> None:
    link.world.fill(to_world(THERE, transport=transport), untried=untried, ranks=ranks)
    assert outcomes(link) == expected


def test_flows_go_to_the_tunnel_when_the_link_is_lost_and_back_with_it(link: Link) -> None:
    """Their gateway is not lost with it."""
    wish = to_world(THERE, transport="auto")
    link.world.fill(wish)
    outcomes(link)
    begun = {key: flow.gateway for key, flow in link.world.state().flows.items()}
    lost = dict.fromkeys(LINK.values(), Rank.SILENT)
    for ranks, reason in ((lost, "encapsulated"), ({}, "sent_direct")):
        link.world.fill(wish, link.world.state(), ranks=ranks)
        assert outcomes(link) == {reason: 20}
        assert {key: flow.gateway for key, flow in link.world.state().flows.items()} == begun


AUTO, VXLAN, DIRECT = (to_world(THERE, transport=transport) for transport in ("auto", "vxlan", "direct"))


@pytest.mark.parametrize(
    ("version", "before", "after", "reason"),
    [
        (4, AUTO, VXLAN, "encapsulated"),
        (4, VXLAN, DIRECT, "sent_direct"),
        (4, AUTO, replace(AUTO, neighbours={}), "encapsulated"),
        (6, AUTO, replace(AUTO, neighbours=BARE), "encapsulated"),
        (4, DIRECT, replace(DIRECT, neighbours={}), "no_gateway"),
    ],
    ids=[
        "the tunnel is asked for",
        "the link is",
        "gateways leave the link",
        "have no IPv6 next hop",
        "leave for good",
    ],
)
def test_running_flows_take_no_way_that_is_none_any_more(
    link: Link, version: int, before: Desired, after: Desired, reason: str
) -> None:
    """Nothing is probed there, so that nothing is missed."""
    asked = build(in_family(ASKED, version))
    link.world.fill(before)
    assert link.world.run("from_pod", "pod0", asked)[0] == "redirect"
    begun = {name: link.world.maps[name].items() for name in ("flows", "reverse")}
    link.world.fill(after)
    for name, entries in begun.items():
        put_all(link.world.maps[name], entries)
    link.world.run("from_pod", "pod0", asked)
    assert link.world.counted() == {reason: 1}
    assert link.world.maps["flows"].items().keys() == begun["flows"].keys()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("change", [*permutations(["auto", "vxlan", "direct"], 2)], ids=" to ".join)
def test_a_running_flow_loses_no_packet_to_a_change_of_transport(
    link: Link, version: int, change: tuple[Transport, Transport]
) -> None:
    """Looked at after each write of it: settings, nodes and the epoch come one after the other."""
    world, asked = link.world, in_family(ASKED, version)
    before, after = (to_world(THERE, transport=each) for each in change)
    wanted = {**map_entries(after, world.facts(), {}), "groups": {}}  # which it leaves as they are
    world.fill(before)
    link.pod_sends(asked)
    assert link.gateway.underlay.get()
    for name in WRITE_ORDER:
        for key, value in wanted[name].items():
            world.maps[name].put(key, value)
            link.pod_sends(asked)
            assert link.gateway.underlay.get(), f"after {name} was written"
    assert world.counted().keys() <= {"encapsulated", "sent_direct"}
    world.fill(after)  # it knows what it has written itself


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("change", [*permutations(["auto", "vxlan", "direct"], 2)], ids=" to ".join)
@pytest.mark.parametrize("way", ["out", "back"])
def test_what_others_still_send_by_the_link_is_taken_at_each_step_of_a_change(
    link: Link, version: int, change: tuple[Transport, Transport], way: str
) -> None:
    """They learn of it later, by the document and by probes that have no answer any more."""
    world, asked = link.world, in_family(ASKED, version)
    sent = in_family(OUT if way == "out" else ANSWER, version)
    before, after = (to_world(HERE, transport=each) if way == "out" else source_alone(each) for each in change)
    wanted = {**map_entries(after, world.facts(), {}), "groups": {}}
    world.fill(before, flow_of(world, asked, direct=change[0] != "vxlan"))
    arrives = link.gateway.uplink if way == "out" else link.gateway.pod
    for name in WRITE_ORDER:
        for key, value in wanted[name].items():
            world.maps[name].put(key, value)
            link.takes(sent)
            assert parse(arrives.get()).ttl == 63, f"after {name} was written"
    assert world.counted().keys() == {"translated" if way == "out" else "delivered"}
    link.takes(probe(WORKER, REQUEST))
    if change[1] == "vxlan":
        assert world.counted()["bad_probe"] == 1
    else:
        assert link.get()[0] == WORKERS_MAC
    world.fill(after)  # it knows what it has written itself


def test_nobody_beyond_a_router_is_sent_to_without_the_tunnel(link: Link) -> None:
    """A node that has told its MAC and is in no network of the link."""
    wish = to_world(THERE, transport="auto")
    link.world.fill(replace(wish, nodes={**wish.nodes, WORKER_NUMBER: IPv4Address("10.201.0.2")}))
    outcomes(link, 40)
    assert {flow.gateway: flow.direct for flow in link.world.state().flows.values()} == {
        WORKER_NUMBER: False, WORKER2_NUMBER: True,
    }  # fmt: skip


# --- trials -----------------------------------------------------------------------------------------------------------


def put_token(world: World, token: int = TOKEN) -> None:
    world.maps["trial_token"].put(layout.u32(0), struct.pack("=Q", token))


def trial(version: int, port: int, gateway: int, kind: int = layout.TRIAL_REQUEST, *, direct: bool = True) -> bytes:
    made = frame(Trial(THERE, EGRESS_IPS[version], port, gateway, direct), TOKEN)
    return made[:-16] + bytes([kind]) + made[-15:]


@pytest.mark.parametrize("version", [4, 6])
def test_a_trial_leaves_by_the_link_as_a_packet_of_the_set(link: Link, version: int) -> None:
    link.world.fill(to_world(THERE, transport="auto"))
    sent = trial(version, 40960, WORKER2_NUMBER)
    syscall.run_program(link.world.program("send_trial"), sent)
    got = link.gateway.underlay.get()
    assert (got[:6], got[12:]) == (NODE_MACS[WORKER2_NUMBER], sent[12:])
    assert link.world.counted() == {"trial_sent": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_gateway_sends_a_trial_back_by_the_link(link: Link, version: int) -> None:
    link.world.fill(to_world(HERE, transport="auto"))
    link.takes(trial(version, 32768, SELF_NUMBER))
    got = link.gateway.underlay.get()
    assert (got[:6], got[12:]) == (WORKERS_MAC, trial(version, 32768, SELF_NUMBER, layout.TRIAL_REPLY)[12:])
    link.takes(trial(version, 32768, SELF_NUMBER), NODE_MACS[WORKER2_NUMBER])
    link.takes(trial(version, 32768, SELF_NUMBER), STRANGERS_MAC)
    assert link.world.counted() == {"trial_echoed": 1, "foreign_port": 1, "unknown_neighbour": 1}


@pytest.mark.parametrize("serves", [True, False])
@pytest.mark.parametrize("version", [4, 6])
def test_an_echo_by_the_link_makes_a_set_good_by_the_link(link: Link, version: int, serves: bool) -> None:
    """Also at a node that is a gateway of the egress IP itself."""
    wish = to_world(THERE, transport="direct") if serves else source_alone()
    link.world.fill(wish, untried=[(address, way) for address in EGRESS_IPS.values() for way in LINK.values()])
    put_token(link.world)
    asked = build(in_family(ASKED, version))
    assert link.world.run("from_pod", "pod0", asked)[0] == "drop"
    link.takes(trial(version, 40960, WORKER_NUMBER, layout.TRIAL_REPLY))
    assert link.world.run("from_pod", "pod0", asked)[0] == "redirect"
    assert {flow.gateway for flow in link.world.state().flows.values()} == {WORKER_NUMBER}
    assert link.world.counted() == {"untried_port_set": 1, "trial_heard": 1, "sent_direct": 1}


def test_an_echo_says_nothing_of_another_way_than_it_took(link: Link) -> None:
    link.world.fill(to_world(THERE, transport="auto"), untried=UNTRIED)
    put_token(link.world)
    link.takes(trial(4, 40960, WORKER_NUMBER, layout.TRIAL_REPLY, direct=False))
    link.gateway.take(trial(4, 40960, WORKER_NUMBER, layout.TRIAL_REPLY), WORKER, layout.VNI_BACK)
    assert link.world.counted() == {"bad_trial": 2}


# --- probes -----------------------------------------------------------------------------------------------------------

REQUEST, REPLY, BOTH_WAYS = layout.PROBE_REQUEST, layout.PROBE_REPLY, layout.BOTH_WAYS


def probe(address: IPAddress, kind: int, token: int = TOKEN, service: int = 0) -> bytes:
    port, length = layout.PROBE_PORT, (28 if address.version == 4 else 48) + 16
    packet = Packet(address, address, UDP, port, port, ttl=255, length=length, carries=Carried(kind, token, service))
    payload = bytes(layout.Probe(kind, service, token=token))
    return build(packet, Shape(payload=payload, summed=False))


def liveness(world: World, number: int = WORKER_NUMBER) -> layout.Liveness:
    value = world.maps["liveness"].get(layout.u32(number | layout.WAY_DIRECT))
    assert value is not None
    return layout.decode(layout.Liveness, value)


def send_probe(number: int = WORKER_NUMBER, token: int = TOKEN) -> None:
    """As the node's own process puts it on the tunnel device."""
    mark = struct.pack("!IH", layout.DIRECT_PROBE_MAC, number)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as own, suppress(OSError):
        own.bind(("tunnel", 0))
        own.send(mark + probe(SELF, REQUEST, token)[6:])


def forget(world: World) -> None:
    for number in LINK.values():
        world.maps["liveness"].put(layout.u32(number), bytes(layout.Liveness()))


def test_a_probe_goes_by_the_link_and_tells_when_answers_come(link: Link) -> None:
    link.world.fill(to_world(THERE, transport="auto"))
    forget(link.world)
    for service in (0, BOTH_WAYS):
        send_probe()
        got = link.gateway.underlay.get()
        assert (got[:6], got[12:]) == (WORKERS_MAC, probe(SELF, REQUEST, service=service)[12:])
        link.takes(probe(SELF, REPLY))
    for _ in range(3):
        send_probe()
        assert link.gateway.underlay.get()[-15] == BOTH_WAYS
    send_probe()  # the last three have not been answered
    assert link.gateway.underlay.get()[-15] == 0
    assert (liveness(link.world).sent, liveness(link.world).heard) == (6, 2)


def test_a_probe_to_a_node_that_is_not_on_the_link_goes_nowhere(link: Link) -> None:
    link.world.fill(to_world(THERE))
    send_probe()
    assert link.world.counted() == {"bad_probe": 1}


@pytest.mark.parametrize("service", [0, BOTH_WAYS])
def test_a_gateway_answers_by_the_link_and_believes_what_it_is_told(link: Link, service: int) -> None:
    link.world.fill(to_world(HERE, transport="auto"))
    forget(link.world)
    link.takes(probe(WORKER, REQUEST, service=service))
    got = link.gateway.underlay.get()
    assert (got[:6], got[12:]) == (WORKERS_MAC, probe(WORKER, REPLY)[12:])
    assert bool(liveness(link.world).asked) == bool(service)
    link.gateway.uplink.put(build(replace(ANSWER, destination_port=THEIRS), Shape(destination_mac=MACS["uplink"])))
    link.gateway.underlay.get()
    assert link.world.counted() == {"probe_reflected": 1, "reversed_direct" if service else "reversed": 1}


BAD_PROBES = {
    "of another node": (probe(WORKER, REQUEST), NODE_MACS[WORKER2_NUMBER]),
    "an answer to nobody's question": (probe(SELF, REPLY), WORKERS_MAC),
    "of no kind": (probe(WORKER, 3), WORKERS_MAC),
    "without a token": (probe(WORKER, REQUEST, 0), WORKERS_MAC),
    "with more behind it": (probe(WORKER, REQUEST) + b"\0", WORKERS_MAC),
}


@pytest.mark.parametrize("case", BAD_PROBES)
def test_a_bad_probe_is_dropped_and_counted(link: Link, case: str) -> None:
    sent, mac = BAD_PROBES[case]
    link.world.fill(to_world(HERE, transport="auto"))
    link.takes(sent, mac)
    assert link.world.counted() == {"bad_probe": 1}
