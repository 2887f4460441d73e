"""Which nodes may be reached without a tunnel: what agents report, the operator publishes and a node makes of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network

import pytest

from egress.policy import Block, Desired, Gateway, Group, IPAddress, Neighbour, Transport, Watch
from egress.status import Probed
from routerd.formats.published.links import made_link, told_link
from routerd.model import Allocations, NodeAddresses, NodeLink, NodeNumber
from routerd.node.desired import probing
from routerd.node.groups import neighbours_of, not_on_link
from routerd.tell.transport import transport_to

HERE, GATEWAY, FAR, SIX = (ip_address(each) for each in ("10.0.0.21", "10.0.0.11", "10.9.0.12", "fd00::13"))
LINK_LOCAL = IPv6Address("fe80::11")
SECOND_NIC = ip_address("10.8.0.14")
NETWORKS = (ip_network("10.0.0.0/24"), ip_network("10.8.0.0/24"), ip_network("fd00::/64"))
NUMBERS = (NodeNumber("gw", 2), NodeNumber("far", 3), NodeNumber("six", 4), NodeNumber("nic", 5))
ENDPOINTS: dict[int, IPAddress] = {1: HERE, 2: GATEWAY, 3: FAR, 4: SIX, 5: SECOND_NIC}
MAC = "02:00:00:00:00:11"


def found(*told: NodeAddresses) -> dict[int, Neighbour]:
    return neighbours_of(told, NUMBERS, ENDPOINTS, NETWORKS, HERE)


def said(node: str, address: IPAddress, link_local: IPv6Address | None = LINK_LOCAL) -> NodeAddresses:
    return NodeAddresses(node, link=NodeLink(address, MAC, link_local))


def test_a_node_that_says_by_which_device_and_is_in_a_network_of_ours_is_a_neighbour() -> None:
    assert found(said("gw", GATEWAY)) == {2: Neighbour(b"\x02\0\0\0\0\x11", LINK_LOCAL)}
    assert found(said("gw", GATEWAY, None)) == {2: Neighbour(b"\x02\0\0\0\0\x11")}


@pytest.mark.parametrize(
    "told",
    [
        NodeAddresses("gw"),  # it says nothing
        said("far", FAR),  # behind a router
        said("nic", SECOND_NIC),  # on another NIC than this node's tunnel endpoint
        said("gw", FAR),  # its tunnel endpoint is another one by now
        said("other", GATEWAY),  # it has no number
        said("six", SIX, None),  # an IPv6 next hop is a link-local address
    ],
)
def test_others_are_not(told: NodeAddresses) -> None:
    assert found(told) == {}


def desired(transport: Transport) -> Desired:
    gateways = (Gateway("gw", 2), Gateway("far", 3), Gateway("here", 1))
    group = Group(7, (ip_address("192.0.2.1"),), gateways)
    return Desired(
        "here", HERE, groups={7: group}, nodes=ENDPOINTS, transport=transport, neighbours={2: Neighbour(bytes(6))},
        watch=Watch(0.05, 3),
    )  # fmt: skip


def test_who_is_not_reached_without_the_tunnel_is_told_where_nothing_else_is_wanted() -> None:
    assert [(str(each.object), each.reason) for each in not_on_link(desired("direct"))] == [("node/far", "NotOnLink")]
    assert not list(not_on_link(desired("auto")))


@pytest.mark.parametrize(
    ("transport", "ways"), [("direct", (set(), {2})), ("auto", ({2, 3}, {2})), ("vxlan", ({2, 3}, set()))]
)
def test_each_way_to_a_gateway_is_probed(transport: Transport, ways: tuple[set[int], set[int]]) -> None:
    wish = desired(transport)
    group = replace(wish.groups[7], blocks=(Block(ip_address("192.0.2.1"), 1024, 64),))
    told = probing(replace(wish, groups={7: group}))
    assert told is not None
    assert (told.gateways, told.direct) == ways


def silent(way: int) -> Probed:
    return Probed(way, "silent", (), 9, 1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("transport", "probed", "shown"),
    [
        ("auto", (), ["direct", "vxlan", ""]),
        ("auto", (silent(2 | 1 << 16),), ["vxlan", "vxlan", ""]),
        ("auto", (silent(2),), ["direct", "vxlan", ""]),
        ("auto", (replace(silent(2 | 1 << 16), state="serves", filtered=True),), ["vxlan", "vxlan", ""]),
        ("direct", (silent(2 | 1 << 16),), ["direct", "", ""]),
        ("vxlan", (), ["vxlan", "vxlan", ""]),
    ],
)
def test_how_a_node_is_reached_is_shown(transport: Transport, probed: tuple[Probed, ...], shown: list[str]) -> None:
    allocations = Allocations(numbers=(*NUMBERS, NodeNumber("here", 1)))
    assert [transport_to(name, desired(transport), allocations, probed) for name in ("gw", "far", "here")] == shown


def test_it_is_shown_whose_the_tunnel_packets_are() -> None:
    allocations = Allocations(numbers=NUMBERS)
    shown = [transport_to("far", desired("auto"), allocations, (), each) for each in (None, "programs", "device")]
    assert shown == ["vxlan", "vxlan", "vxlan-device"]


def test_a_link_that_is_none_is_left_out() -> None:
    assert told_link({"address": "10.0.0.11", "mac": MAC}) == NodeLink(GATEWAY, MAC)
    for spoiled in ({"mac": MAC}, {"address": "10.0.0.11", "mac": "x"}, {"address": "x", "mac": MAC}):
        assert told_link(spoiled) is None
    with pytest.raises(ValueError, match="MAC"):
        made_link("10.0.0.11", "02:00")
