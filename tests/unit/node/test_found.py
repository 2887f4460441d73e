"""Peers whose address is found on the node."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from routerd.model import Node, Peer, Peering, Snapshot
from routerd.node.sessions import gateways, sought, with_found
from routerd.selectors import LabelSelector

LINK = Peer(ip_address("::%eth1"), 1, 2, found="router", interface="eth1", name="tor")
GATEWAY = Peer(ip_address("0.0.0.0"), 1, 2, found="default-gateway", name="gateway")
HERE = Node("a", labels={"rack": "a"})


def test_the_best_default_routes_of_each_family() -> None:
    routes = [
        (ip_address("10.0.0.1"), "eth0", 100),
        (ip_address("10.0.1.1"), "eth1", 100),
        (ip_address("10.0.9.1"), "wlan0", 600),
        (ip_address("fe80::1"), "eth0", 1024),
    ]
    four, six = ip_address("0.0.0.0"), ip_address("::")
    assert gateways(routes) == {
        (four, ""): (ip_address("10.0.0.1"), ip_address("10.0.1.1")),
        (four, "eth0"): (ip_address("10.0.0.1"),),
        (four, "eth1"): (ip_address("10.0.1.1"),),
        (four, "wlan0"): (ip_address("10.0.9.1"),),
        (six, ""): (ip_address("fe80::1%eth0"),),
        (six, "eth0"): (ip_address("fe80::1%eth0"),),
    }
    assert gateways([]) == {}


def test_peers_of_this_node_get_their_addresses_and_others_stay() -> None:
    away = Peer(
        ip_address("::%eth1"), 1, 2, found="router", interface="eth1", name="away",
        node_selectors=(LabelSelector((("rack", "b"),)),),
    )  # fmt: skip
    plain = Peer(ip_address("10.0.0.9"), 1, 2)
    snapshot = Snapshot(bgp=Peering((LINK, GATEWAY, away, plain)))
    hops = ip_address("10.0.0.1"), ip_address("10.0.1.1")
    by = {(LINK.address, "eth1"): (ip_address("fe80::1%eth1"),), (GATEWAY.address, ""): hops}
    found = with_found(snapshot, HERE, by).bgp
    assert found is not None
    assert [(peer.label, str(peer.address), peer.interface, peer.found) for peer in found.peers] == [
        ("tor", "fe80::1%eth1", "eth1", ""),
        ("gateway", "10.0.0.1", "", ""),
        ("gateway", "10.0.1.1", "", ""),
        ("away", "::%eth1", "eth1", "router"),
        ("10.0.0.9", "10.0.0.9", "", ""),
    ]
    assert sought(snapshot.bgp.peers if snapshot.bgp else (), HERE) == (LINK, GATEWAY)


@pytest.mark.parametrize(
    ("address", "interface", "expected"),
    [
        ("::", "eth1", ["fe80::2%eth1"]),
        ("0.0.0.0", "eth1", ["10.0.1.1"]),  # although the route by eth0 is better
        ("0.0.0.0", "eth0", ["10.0.0.1"]),
        ("0.0.0.0", "", ["10.0.0.1"]),
        ("0.0.0.0", "eth2", ["0.0.0.0"]),  # not found
        ("::", "eth2", ["::"]),
    ],
)
def test_a_default_gateway_of_one_interface(address: str, interface: str, expected: list[str]) -> None:
    peer = Peer(ip_address(address), 1, 2, found="default-gateway", interface=interface, name="gateway")
    routes = [
        (ip_address("10.0.0.1"), "eth0", 100),
        (ip_address("10.0.1.1"), "eth1", 200),
        (ip_address("fe80::1"), "eth0", 100),
        (ip_address("fe80::2"), "eth1", 200),
    ]
    found = with_found(Snapshot(bgp=Peering((peer,))), HERE, gateways(routes)).bgp
    assert found is not None and [str(each.address) for each in found.peers] == expected


def test_nothing_to_be_found_is_the_same_snapshot() -> None:
    snapshot = Snapshot(bgp=Peering((Peer(ip_address("10.0.0.9"), 1, 2),)))
    assert with_found(snapshot, HERE, {}) is snapshot
