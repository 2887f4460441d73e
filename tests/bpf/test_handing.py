"""First packets of flows that take the host's forward hook, and `to_uplink`, which takes up what comes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from bpf import layout
from egress.policy import FORWARD_MARK
from tests.bpf.families import six
from tests.bpf.gateway import Gateway, in_family
from tests.bpf.packets import Shape, build, parse
from tests.bpf.wishes import HERE, THERE, by_forward_hook, to_world
from tests.bpf.world import EGRESS_IP, EGRESS_IP6, MACS, POD, REMOTE, TUNNEL_MTU
from tests.models.tables import ICMP, TCP, UDP, Packet
from tests.netns.lab import netns
from tests.waiting import wait

BY_POD = Shape(destination_mac=MACS["pod0"])
ASKED = Packet(POD, REMOTE, UDP, 40000, 53)
ASKED_ALL = {
    "udp": ASKED,
    "tcp": Packet(POD, REMOTE, TCP, 40000, 443, flags="S", mss=1460),
    "echo": Packet(POD, REMOTE, ICMP, 40000, 0, echo="request"),
}
RULES = """\
table inet host {{
    chain before {{ type filter hook prerouting priority -100; ct state new accept; }}
    chain forward {{ type filter hook forward priority 0; {rule}; }}
}}
"""


@contextmanager
def host_rules(rule: str) -> Iterator[None]:
    """A firewall of the host's; connection tracking puts fragments together."""
    netns.run(["nft", "-f", "-"], stdin=RULES.format(rule=rule))
    try:
        yield
    finally:
        netns.run(["nft", "delete", "table", "inet", "host"])


@pytest.fixture
def handing(attached: Gateway) -> Gateway:
    attached.world.fill(by_forward_hook(to_world(THERE)))
    return attached


def sent(gateway: Gateway, packet: Packet) -> Packet:
    """What the pod's packet is in the tunnel."""
    gateway.pod.put(build(packet, BY_POD))
    return gateway.answered()[2]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ASKED_ALL)
def test_the_first_packet_goes_by_the_host_and_the_others_do_not(handing: Gateway, name: str, version: int) -> None:
    """And all of them have made one hop."""
    packet = in_family(ASKED_ALL[name], version)
    first, second = (sent(handing, packet) for _ in range(2))
    assert first == second
    assert (first.source, first.ttl) == (EGRESS_IP if version == 4 else EGRESS_IP6, packet.ttl - 1)
    assert first.mss in (0, TUNNEL_MTU - (40 if version == 4 else 60))
    assert handing.world.counted() == {"handed_in": 1, "came_out": 1, "encapsulated": 2}


@pytest.mark.parametrize("group", [THERE, HERE])
def test_it_leaves_by_this_node_where_that_is_the_gateway_or_the_policy_says_so(handing: Gateway, group: int) -> None:
    handing.world.fill(by_forward_hook(to_world(group, exit_local=group == THERE)))
    handing.pod.put(build(ASKED, BY_POD))
    assert parse(handing.uplink.get()).source == EGRESS_IP
    assert handing.world.counted() == {"handed_in": 1, "came_out": 1, "translated": 1}


def test_what_the_forward_hook_refuses_is_seen_in_the_difference(handing: Gateway) -> None:
    """No flow is kept of it: what is allowed later begins then."""
    with host_rules("udp dport 53 drop"):
        handing.pod.put(build(ASKED, BY_POD))
        allowed = sent(handing, replace(ASKED, destination_port=54))
    assert allowed.destination_port == 54
    assert handing.world.counted() == {"handed_in": 2, "came_out": 1, "encapsulated": 1}
    assert [key.remote_port for key in handing.world.state().flows] == [54]
    assert sent(handing, ASKED).destination_port == 53


@pytest.mark.parametrize("version", [4, 6])
def test_the_pod_is_told_what_is_too_big_for_the_tunnel(handing: Gateway, version: int) -> None:
    packet = replace(in_family(ASKED, version), length=TUNNEL_MTU + 1, dont_fragment=version == 4)
    handing.pod.put(build(packet, BY_POD))
    told = parse(handing.pod.get())
    assert (told.about, told.destination) == ("too-big", packet.source)
    assert told.quoted is not None
    assert (told.quoted.source, told.quoted.destination_port) == (packet.source, packet.destination_port)
    assert handing.world.counted() == {"handed_in": 1, "came_out": 1, "too_big_answered": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tracking", [False, True], ids=["one by one", "put together by the host"])
def test_all_fragments_of_a_first_datagram_take_the_hosts_way(handing: Gateway, version: int, tracking: bool) -> None:
    first = replace(in_family(replace(ASKED, first=True, id=7), version), length=1396 if version == 4 else 1400)
    later = replace(first, kind="fragment", source_port=0, destination_port=0, first=False, position=first.in_datagram)
    last = Shape(destination_mac=MACS["pod0"], last=True)

    def through() -> list[Packet]:
        handing.pod.put(build(first, BY_POD))
        handing.pod.put(build(later, last))
        return [handing.answered()[2] for _ in range(2)]

    if tracking:
        with host_rules("accept"):
            pieces = through()
    else:
        pieces = through()
    assert [(each.source, each.ttl) for each in pieces] == [(EGRESS_IP if version == 4 else EGRESS_IP6, 63)] * 2
    assert (pieces[0].source_port, pieces[0].id) == (40000 % 4096 + 40960, pieces[1].id)
    assert handing.world.counted() == {"handed_in": 2, "came_out": 2, "encapsulated": 2}


def test_a_socket_of_the_host_may_bear_the_mark(handing: Gateway) -> None:
    netns.run(["ping", "-c1", "-W1", "-m", str(FORWARD_MARK), str(REMOTE)], check=False)
    assert parse(handing.uplink.get()).destination == REMOTE
    assert handing.world.counted() == {}


STRAYS = {
    "of no pod": (Packet(REMOTE, REMOTE, UDP, 1, 53), "stray_mark"),
    "to the cluster": (replace(ASKED, destination=POD), "stray_mark"),
    "no flow": (replace(ASKED, kind="unsupported", protocol=47), "stray_mark"),
    "cut": (replace(ASKED, kind="malformed"), "stray_mark"),
    "later": (replace(ASKED, kind="fragment", position=1376), "fragment"),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", STRAYS)
def test_what_else_bears_the_mark_is_dropped(handing: Gateway, name: str, version: int) -> None:
    packet, reason = STRAYS[name]
    frame = build(packet if version == 4 else six(packet))
    assert handing.world.run("to_uplink", "uplink", frame, FORWARD_MARK)[0] == "drop"
    assert handing.world.counted() == {"came_out": 1, reason: 1}


def test_where_policies_would_be_bypassed_no_flow_begins(handing: Gateway) -> None:
    key = layout.u32(0)
    settings = layout.decode(layout.Settings, handing.world.maps["settings"].get(key) or b"")
    running = sent(handing, ASKED)
    settings.network_policy, settings.forward_mark = layout.POLICY_REFUSED, 0
    handing.world.maps["settings"].put(key, bytes(settings))
    assert sent(handing, ASKED) == running
    other = replace(ASKED, destination_port=54)
    assert handing.world.run("from_pod", "pod0", build(other))[0] == "drop"
    wait(lambda: handing.world.counted().get("unenforced") == 1, "it is counted")
