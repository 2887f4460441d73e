"""Peers whose address is found on the node."""

from __future__ import annotations

from ipaddress import ip_address

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
    assert gateways(routes) == {
        ip_address("0.0.0.0"): (ip_address("10.0.0.1"), ip_address("10.0.1.1")),
        ip_address("::"): (ip_address("fe80::1%eth0"),),
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
    found = with_found(snapshot, HERE, {LINK.address: (ip_address("fe80::1%eth1"),), GATEWAY.address: hops}).bgp
    assert found is not None
    assert [(peer.label, str(peer.address), peer.interface, peer.found) for peer in found.peers] == [
        ("tor", "fe80::1%eth1", "eth1", ""),
        ("gateway", "10.0.0.1", "", ""),
        ("gateway", "10.0.1.1", "", ""),
        ("away", "::%eth1", "eth1", "router"),
        ("10.0.0.9", "10.0.0.9", "", ""),
    ]
    assert sought(snapshot.bgp.peers if snapshot.bgp else (), HERE) == (LINK, GATEWAY)


def test_a_default_gateway_of_one_interface() -> None:
    six = Peer(ip_address("::"), 1, 2, found="default-gateway", interface="eth1", name="gateway")
    hops = {six.address: (ip_address("fe80::1%eth0"), ip_address("fe80::2%eth1"))}
    found = with_found(Snapshot(bgp=Peering((six,))), HERE, hops).bgp
    assert found is not None and [str(peer.address) for peer in found.peers] == ["fe80::2%eth1"]


def test_nothing_to_be_found_is_the_same_snapshot() -> None:
    snapshot = Snapshot(bgp=Peering((Peer(ip_address("10.0.0.9"), 1, 2),)))
    assert with_found(snapshot, HERE, {}) is snapshot
