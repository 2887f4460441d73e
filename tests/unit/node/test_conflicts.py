"""The last defence: whatever the operator published, a gateway takes nobody's address away."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from tests.models import cluster

NETWORKS = (ip_network("10.0.0.0/24"), ip_network("172.16.0.1/32"))


def state(address: str, **fields: object) -> NodeState:
    group = cluster.group(egress_ip=ip_address(address), **fields)
    snapshot = cluster.snapshot(allocations=cluster.allocations(group, services=()))
    return compose(snapshot, Settings("a"), LocalFacts(cluster.LOCAL, networks=NETWORKS))


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.12", "10.0.0.50", "172.16.0.1", "10.1.12.3", "10.96.0.10"])
def test_what_is_somebodys_is_neither_announced_nor_blackholed(address: str) -> None:
    found = state(address)
    assert found.announcements is not None and found.egress is not None
    assert found.announcements.owners == {}
    assert [gateway.node for gateway in found.egress.groups[7].gateways] == ["b"]
    assert found.egress.served == {}
    assert [(str(each.object), each.reason) for each in found.refusals if each.reason == "AddressTaken"] == [
        (f"egress/{address}", "AddressTaken")
    ]


def test_what_is_nobodys_is_both() -> None:
    found = state("198.51.100.7")
    assert found.announcements is not None and found.egress is not None
    assert list(map(str, found.announcements.owners)) == ["198.51.100.7/32"]
    assert list(map(str, found.egress.served)) == ["198.51.100.7"]
    assert [gateway.node for gateway in found.egress.groups[7].gateways] == ["b", "a"]


def test_an_address_on_the_nodes_own_interface_stays_its_egress_ip() -> None:
    found = state("10.0.0.11", node_address=True)
    assert found.egress is not None
    assert [gateway.node for gateway in found.egress.groups[7].gateways] == ["b", "a"]
