"""Whose an address is: everything that a cluster knows has a claim, and says so in words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routerd import claims as module
from routerd.claims import claims
from tests.models import cluster

NETWORKS = {"a": (ip_network("10.0.0.0/24"), ip_network("fd00::/64"), ip_network("172.16.0.1/32"))}


def whose(address: str, held: tuple[str, ...] = (), of_cloud: str = "192.0.2.0/24") -> str:
    web = cluster.service("web", status_ips=(ip_address("203.0.113.80"),), external_ips=(ip_address("203.0.113.81"),))
    strange = cluster.pod("strange", "192.168.7.7")
    host = replace(cluster.pod("host", "192.168.7.8"), host_network=True)
    done = replace(cluster.pod("done", "192.168.7.9"), finished=True)
    snapshot = cluster.snapshot(services={web.key: web}, pods={each.key: each for each in (strange, host, done)})
    wanted = ip_address(address)
    mine = {ip_address(each) for each in held}
    return claims([wanted], snapshot, NETWORKS, mine, of_cloud=[ip_network(of_cloud)]).get(wanted, "")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.0.0.1", "the address of peer/10.0.0.1"),
        ("10.0.0.12", "an address of node/b"),
        ("fd00::12", "an address of node/b"),
        ("10.0.0.50", "in the network 10.0.0.0/24 of node/a"),
        ("10.0.0.255", "in the network 10.0.0.0/24 of node/a"),
        ("fd00::50", "in the network fd00::/64 of node/a"),
        ("172.16.0.1", "a next hop of node/a"),
        ("10.1.12.7", "in the pod CIDR 10.1.12.0/24 of node/b"),
        ("192.168.7.7", "the address of pod/default/strange"),
        ("10.96.0.10", "the ClusterIP of svc/default/web"),
        ("10.96.0.99", "in the service CIDR 10.96.0.0/12"),
        ("203.0.113.80", "the load balancer's address of svc/default/web"),
        ("0.0.0.1", "an address of no network (0.0.0.0/8)"),
        ("127.0.0.1", "a loopback address (127.0.0.0/8)"),
        ("169.254.20.10", "a link-local address (169.254.0.0/16)"),
        ("224.0.0.5", "a multicast address (224.0.0.0/4)"),
        ("240.0.0.1", "in a reserved range (240.0.0.0/4)"),
        ("255.255.255.255", "the broadcast address (255.255.255.255/32)"),
        ("::1", "a loopback address (::1/128)"),
        ("fe80::1", "a link-local address (fe80::/10)"),
        ("ff02::1", "a multicast address (ff00::/8)"),
    ],
)
def test_an_address_that_is_somebodys(address: str, words: str) -> None:
    assert whose(address) == words


def test_a_clouds_address_is_in_a_nodes_network_by_nature_and_may_be_a_hosts_all_the_same() -> None:
    assert whose("10.0.0.50", of_cloud="10.0.0.0/25") == ""
    assert whose("10.0.0.150", of_cloud="10.0.0.0/25") == "in the network 10.0.0.0/24 of node/a"
    assert whose("10.0.0.12", of_cloud="10.0.0.0/25") == "an address of node/b"
    assert whose("172.16.0.1", of_cloud="172.16.0.0/24") == "a next hop of node/a"


@pytest.mark.parametrize("address", ["198.51.100.7", "2001:db8::7", "192.168.7.8", "192.168.7.9"])
def test_an_address_that_is_nobodys(address: str) -> None:
    assert whose(address) == ""


def test_the_external_ips_of_a_service_are_a_users_word() -> None:
    assert whose("203.0.113.81") == ""


def test_an_address_on_a_gateways_interface_is_its_own_unless_it_is_more_than_a_nodes() -> None:
    assert whose("10.0.0.12", held=("10.0.0.12",)) == ""
    assert whose("10.0.0.50", held=("10.0.0.50",)) == ""
    assert whose("10.0.0.1", held=("10.0.0.1",)) == "the address of peer/10.0.0.1"
    assert whose("10.96.0.10", held=("10.96.0.10",)) == "the ClusterIP of svc/default/web"  # kube-proxy's IPVS mode
    assert whose("10.1.11.1", held=("10.1.11.1",)) == "in the pod CIDR 10.1.11.0/24 of node/a"  # a CNI's bridge


def test_networks_of_nodes_are_indexed_once_while_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    own_networks = module._own_networks
    monkeypatch.setattr(module, "_own_networks", lambda networks: read.append(networks) or own_networks(networks))
    snapshot, wanted = cluster.snapshot(), [ip_address("10.0.0.50"), ip_address("10.9.0.50")]
    known = module.Hosts(snapshot.service_cidrs)
    known.take(snapshot)
    for networks in (NETWORKS, dict(NETWORKS), {"a": (ip_network("10.9.0.0/24"),)}, NETWORKS):
        assert claims(wanted, snapshot, networks, known=known) == claims(wanted, snapshot, networks)
    assert len(read) == 4 + 3
