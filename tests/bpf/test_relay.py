"""An answer that comes to a gateway whose table is late: handed once to another gateway of the egress IP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from struct import pack
from time import monotonic_ns

import pytest

from bpf import layout
from egress.policy import Desired, Gateway, IPAddress, Served
from tests.bpf.gateway import Gateway as Node
from tests.bpf.gateway import in_family
from tests.bpf.packets import Shape, build, parse
from tests.bpf.wishes import (
    BOTH,
    SERVED,
    SERVED_BY_ALL,
    THROUGH_SELF,
    THROUGH_WORKERS,
    WORKER2_NUMBER,
    WORKER_NUMBER,
    to_world,
)
from tests.bpf.world import (
    EGRESS_IP,
    EGRESS_IP6,
    MACS,
    NODE_EGRESS_IP,
    NUMBERS,
    POD,
    REMOTE,
    STRANGER,
    TUNNEL_MTU,
    WORKER,
    WORKER2,
)
from tests.models import datapath
from tests.models.liveness import Rank
from tests.models.tables import ICMP, TCP, UDP, Packet, State, granules

BACK, RELAYED = layout.VNI_BACK, layout.VNI_RELAYED
THEIRS, LATE, OURS = 33000, 20000, 41000  # ports of the worker; of whoever this table does not know; of this node
ANSWER = Packet(REMOTE, EGRESS_IP, UDP, 53, LATE)
QUOTED = Packet(EGRESS_IP, REMOTE, UDP, LATE, 53)
EGRESS_IPS: tuple[IPAddress, ...] = (EGRESS_IP, EGRESS_IP6)


def wish(*gateways: Gateway, served: Served = SERVED[EGRESS_IP]) -> Desired:
    """The egress IPs have these gateways, and this node knows so much of their ports."""
    base = to_world(SERVED_BY_ALL)
    group = replace(base.groups[SERVED_BY_ALL], gateways=gateways)
    return replace(base, groups={**base.groups, SERVED_BY_ALL: group}, served={**SERVED, **dict.fromkeys(BOTH, served)})


ALL = wish(*THROUGH_SELF, *THROUGH_WORKERS)
RELAYED_KINDS = {
    "udp": ANSWER,
    "tcp": replace(ANSWER, protocol=TCP, flags="SA", mss=1460),
    "echo": replace(ANSWER, protocol=ICMP, source_port=0, echo="reply"),
    "options": replace(ANSWER, options=True),
    "an error": Packet(IPv4Address("192.0.2.254"), EGRESS_IP, ICMP, kind="icmp-error", quoted=QUOTED, length=0),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", RELAYED_KINDS)
def test_an_answer_to_a_port_that_nobody_has_here_goes_to_another_gateway(
    gateway: Node, kind: str, version: int
) -> None:
    """As it is: the other gateway is the hop that counts."""
    answer = in_family(RELAYED_KINDS[kind], version)
    tables = gateway.world.fill(ALL)
    node, vni, seen = gateway.reply(answer)
    assert seen == replace(answer, length=seen.length, quoted=seen.quoted)
    assert (seen.quoted and seen.quoted.bears) == (answer.quoted and answer.quoted.bears)
    assert datapath.from_uplink(tables, State(), answer).to == f"{node} vni {vni}"
    assert (node in (WORKER, WORKER2), vni) == (True, RELAYED)
    assert gateway.world.counted() == {"relayed": 1}


def test_a_node_that_is_not_known_here_may_be_known_there(gateway: Node) -> None:
    """The table is new, the list of nodes is old."""
    unknown = granules({9: [(LATE // 64 * 64, 64)]})
    gateway.world.fill(wish(*THROUGH_SELF, *THROUGH_WORKERS, served=Served(unknown, group=SERVED_BY_ALL)))
    assert gateway.reply(ANSWER)[1] == RELAYED


@pytest.mark.parametrize("version", [4, 6])
def test_what_one_gateway_relays_the_other_hands_to_the_ports_node(gateway: Node, version: int) -> None:
    late = wish(*THROUGH_SELF, THROUGH_WORKERS[1], served=Served(granules({}), group=SERVED_BY_ALL))
    gateway.world.fill(late)
    answer = in_family(replace(ANSWER, destination_port=THEIRS), version)
    node, vni, relayed = gateway.reply(answer)
    assert (node, relayed) == (WORKER2, answer)
    gateway.world.fill(ALL)  # from here on this node is the second gateway, and WORKER2 the first
    gateway.tunnelled(relayed, node=WORKER2, vni=vni)
    assert gateway.answered() == (WORKER, BACK, replace(answer, ttl=63))
    assert gateway.world.counted() == {"reversed": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_relayed_answer_reaches_a_pod_of_the_gateway_itself(gateway: Node, version: int) -> None:
    gateway.world.fill(ALL, ranks=dict.fromkeys((WORKER_NUMBER, WORKER2_NUMBER), Rank.SILENT))
    asked = in_family(Packet(POD, REMOTE, UDP, OURS, 53), version)
    gateway.pod.put(build(asked, Shape(destination_mac=MACS["pod0"])))
    sent = parse(gateway.uplink.get())
    answer = replace(ANSWER, destination=sent.source, destination_port=sent.source_port, source=sent.destination)
    gateway.tunnelled(answer, node=WORKER, vni=RELAYED)
    assert parse(gateway.pod.get()).destination == asked.source
    assert gateway.world.counted() == {"translated": 1, "delivered": 1}


REFUSED = {  # what a gateway does not take from another: (packet, node, reason)
    "a port that nobody has here either": (ANSWER, WORKER, "no_mapping"),
    "from a node that is no gateway of it": (ANSWER, STRANGER, "foreign_relay"),
    "to an egress IP that is not served here": (
        replace(ANSWER, destination=IPv4Address("192.0.2.55")), WORKER, "unknown_egress_ip"),
    "to an address of the node's own": (
        replace(ANSWER, destination=NODE_EGRESS_IP, destination_port=61500), WORKER, "foreign_relay"),
    "without a hop left": (replace(ANSWER, destination_port=THEIRS, ttl=1), WORKER, "ttl_expired"),
    "too big for the tunnel": (
        replace(ANSWER, destination_port=THEIRS, length=TUNNEL_MTU + 1, dont_fragment=True), WORKER, "too_big"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_relayed_is_never_relayed_again_nor_answered_nor_left_to_the_host(gateway: Node, case: str) -> None:
    packet, node, reason = REFUSED[case]
    tables = gateway.world.fill(replace(ALL, nodes={**NUMBERS, 9: STRANGER}))
    with gateway.world.jumbo(tunnel=TUNNEL_MTU):  # the other gateway's tunnel carries more than this one's
        gateway.tunnelled(packet, node=node, vni=RELAYED)
    assert gateway.world.counted() == {reason: 1}
    expected = datapath.from_tunnel(tables, State(), node, RELAYED, packet)
    assert (expected.verdict, expected.reason) == ("drop", reason)


NOT_RELAYED = {
    "what opens a connection": (replace(ANSWER, protocol=TCP, flags="S"), ALL),
    "an echo request": (replace(ANSWER, protocol=ICMP, source_port=7, destination_port=0, echo="request"), ALL),
    "a port that is never given": (replace(ANSWER, destination_port=1023), ALL),
    "no other gateway": (ANSWER, wish(*THROUGH_SELF)),
    "the others are down": (ANSWER, wish(*THROUGH_SELF, replace(THROUGH_WORKERS[0], up=False))),
    "an address that no group has any more": (ANSWER, wish(*THROUGH_WORKERS, served=Served(granules({})))),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", NOT_RELAYED)
def test_what_cannot_be_an_answer_or_has_nowhere_to_go_is_dropped_here(gateway: Node, case: str, version: int) -> None:
    packet, wished = NOT_RELAYED[case]
    packet = in_family(packet, version)
    tables = gateway.world.fill(wished)
    assert gateway.world.run("from_uplink", "uplink", build(packet))[0] == "drop"
    assert gateway.world.counted() == {"no_mapping": 1}
    assert datapath.from_uplink(tables, State(), packet).reason == "no_mapping"


def test_flows_spread_over_the_other_gateways_and_those_of_one_that_goes_alone_move(gateway: Node) -> None:
    answers = [replace(ANSWER, source_port=port) for port in range(2000, 2032)]
    tables = gateway.world.fill(ALL)
    before = [gateway.reply(answer)[0] for answer in answers]
    assert [f"{node} vni {RELAYED}" for node in before] == [
        datapath.from_uplink(tables, State(), answer).to for answer in answers
    ]
    assert {*before} == {WORKER, WORKER2}
    gateway.world.fill(wish(*THROUGH_SELF, THROUGH_WORKERS[0], replace(THROUGH_WORKERS[1], up=False)))
    assert {gateway.reply(answer)[0] for answer in answers} == {WORKER}
    third = Gateway("w3", 4)
    gateway.world.fill(replace(wish(*THROUGH_SELF, *THROUGH_WORKERS, third), nodes={**NUMBERS, 4: STRANGER}))
    for answer, node in zip(answers, before, strict=True):
        sent = datapath.from_uplink(tables, State(), answer).to
        assert sent == f"{node} vni {RELAYED}"


@pytest.mark.parametrize("rank", [Rank.LEAVES, Rank.SILENT])
def test_nothing_is_relayed_to_a_gateway_that_is_silent_or_leaves_while_there_is_a_better_one(
    gateway: Node, rank: Rank
) -> None:
    answers = [replace(ANSWER, source_port=port) for port in range(2000, 2016)]
    tables = gateway.world.fill(ALL, ranks={WORKER_NUMBER: rank})
    assert {gateway.reply(answer)[0] for answer in answers} == {WORKER2}
    assert {datapath.from_uplink(tables, State(), answer).to for answer in answers} == {f"{WORKER2} vni {RELAYED}"}
    gateway.world.fill(ALL, ranks={WORKER_NUMBER: rank, WORKER2_NUMBER: rank})
    assert {gateway.reply(answer)[0] for answer in answers} == {WORKER, WORKER2}


def test_so_many_are_relayed_in_a_moment_and_no_more(gateway: Node) -> None:
    """A scan of an egress IP's ports does not double itself between the gateways."""
    gateway.world.fill(ALL)
    bpf_map = gateway.world.maps["relays"]
    per_cpu = bpf_map.value_size // 16
    full = pack("=QQ", monotonic_ns() + 60 * 10**9, 2000) * per_cpu  # a window that has not ended
    bpf_map.put(layout.u32(0), full)
    assert gateway.world.run("from_uplink", "uplink", build(ANSWER))[0] == "drop"
    bpf_map.put(layout.u32(0), pack("=QQ", monotonic_ns() - 10**9, 2000) * per_cpu)
    assert gateway.world.run("from_uplink", "uplink", build(ANSWER))[0] == "redirect"
    assert gateway.world.counted() == {"relay_limit": 1, "relayed": 1}


# --- fragments --------------------------------------------------------------------------------------------------------

FIRST = Packet(REMOTE, EGRESS_IP, UDP, 53, THEIRS, first=True, id=7, length=1000)
LATER = Packet(REMOTE, EGRESS_IP, UDP, kind="fragment", position=984, id=7, length=1000)
W_DOWN = wish(*THROUGH_SELF, replace(THROUGH_WORKERS[0], up=False), THROUGH_WORKERS[1])
TWO = wish(THROUGH_WORKERS[0], *THROUGH_SELF)
ROUND = {  # gateways, by how many a fragment has been seen -> who sees it next
    "from the world": (ALL, 0, WORKER, RELAYED | 1),
    "from the last of the ring": (ALL, 1, WORKER, RELAYED | 2),
    "a gateway that is down is left out": (W_DOWN, 0, WORKER2, RELAYED | 1),
    "the last is followed by the first": (TWO, 0, WORKER, RELAYED | 1),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", ROUND)
def test_a_fragment_whose_first_came_by_another_gateway_goes_round(gateway: Node, case: str, version: int) -> None:
    wished, seen, node, vni = ROUND[case]
    later = in_family(LATER, version)
    tables = gateway.world.fill(wished)
    if seen:
        gateway.tunnelled(later, node=WORKER2, vni=RELAYED | seen)
        expected = datapath.from_tunnel(tables, State(), WORKER2, RELAYED | seen, later)
    else:
        gateway.uplink.put(build(later, Shape(destination_mac=MACS["uplink"])))
        expected = datapath.from_uplink(tables, State(), later)
    assert gateway.answered() == (node, vni, later)
    assert expected.to == f"{node} vni {vni}"
    assert gateway.world.counted() == {"relayed": 1}


NOBODY = {
    "all have seen it": (ALL, 2, WORKER2, "fragment"),
    "all of more than there are have seen it": (ALL, layout.VNI_SEEN, WORKER2, "fragment"),
    "no other gateway": (wish(*THROUGH_SELF), 0, WORKER2, "fragment"),
    "it is from no gateway": (ALL, 1, STRANGER, "foreign_relay"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", NOBODY)
def test_a_fragment_whose_first_nobody_knows_is_dropped(gateway: Node, case: str, version: int) -> None:
    wished, seen, node, reason = NOBODY[case]
    later = in_family(LATER, version)
    tables = gateway.world.fill(replace(wished, nodes={**NUMBERS, 9: STRANGER}))
    if seen:
        gateway.tunnelled(later, node=node, vni=RELAYED | seen)
        expected = datapath.from_tunnel(tables, State(), node, RELAYED | seen, later)
    else:
        assert gateway.world.run("from_uplink", "uplink", build(later))[0] == "drop"
        expected = datapath.from_uplink(tables, State(), later)
    assert gateway.world.counted() == {reason: 1}
    assert expected.reason == reason


@pytest.mark.parametrize("version", [4, 6])
def test_a_fragment_that_comes_round_follows_its_first(gateway: Node, version: int) -> None:
    """The first came by this gateway, the other by one that knows nothing of it."""
    gateway.world.fill(ALL)
    first, later = in_family(FIRST, version), in_family(LATER, version)
    assert gateway.reply(first) == (WORKER, BACK, replace(first, ttl=63))
    gateway.tunnelled(later, node=WORKER2, vni=RELAYED | 1)
    assert gateway.answered() == (WORKER, BACK, replace(later, ttl=63))
    assert gateway.world.counted() == {"reversed": 2}


def test_a_fragment_can_be_seen_by_all_gateways_that_a_group_may_have() -> None:
    assert layout.MAX_GATEWAYS <= layout.VNI_SEEN
