"""The operator gives no egress IP that is somebody's or not allowed; the policy stays one, without a group."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routerd.cluster.assign import AssignSettings, assign
from routerd.cluster.conflicts import Limits
from routerd.cluster.ledger import Ledger
from routerd.model import LabelSelector, Node, NodeReport, Peer, Peering
from tests.models.operator_world import World, text

PEER = Peer(ip_address("10.0.0.1"), 64512, 64513, name="tor")


@pytest.fixture
def world() -> World:
    """Gateway g on 10.0.0.0/24, which holds 10.0.0.11 and 10.0.0.100; worker w."""
    world = World()
    for name, last, gateway in (("g", 11, ""), ("w", 21, None)):
        addresses = (ip_address(f"10.0.0.{last}"),)
        world.node(name, gateway, addresses=addresses, pod_cidrs=(ip_network(f"10.244.{last}.0/24"),))
        held = (*addresses, ip_address("10.0.0.100")) if name == "g" else addresses
        world.reports[name] = NodeReport(name, held, (ip_network("10.0.0.0/24"),))
    return world


def decided(world: World) -> str:
    snapshot = replace(world.snapshot(), bgp=Peering((PEER,)), service_cidrs=(ip_network("10.96.0.0/16"),))
    return text(assign(snapshot, Ledger(), world.reports, world.now, world.settings).allocations)


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("10.0.0.1", "the address of peer/tor"),
        ("10.0.0.50", "in the network 10.0.0.0/24 of node/g"),
        ("10.244.21.5", "in the pod CIDR 10.244.21.0/24 of node/w"),
        ("10.96.7.7", "in the service CIDR 10.96.0.0/16"),
        ("127.0.0.1", "a loopback address (127.0.0.0/8)"),
    ],
)
def test_an_egress_ip_that_is_somebodys_is_refused_by_name(world: World, address: str, whose: str) -> None:
    world.policy("take", address)
    remedy = "give the policy another egress IP"
    assert decided(world) == f"! EgressPolicy/take AddressTaken: {address} is {whose}: {remedy}"


def test_one_that_is_refused_takes_nothing_from_the_others(world: World) -> None:
    world.policy("good", "198.51.100.7")
    before = decided(world)
    world.policy("take", "10.0.0.1")
    assert decided(world).startswith(f"{before}\n! EgressPolicy/take AddressTaken")


def test_a_policy_that_is_edited_to_such_an_address_loses_its_group_and_a_later_one_gets_its_address(
    world: World,
) -> None:
    world.policy("web", "198.51.100.7")
    world.decide()
    world.policy("web", "127.0.0.1")
    assert world.decide() == (
        "group 1 198.51.100.7  via g\n"
        "! EgressPolicy/web AddressTaken: 127.0.0.1 is a loopback address (127.0.0.0/8): "
        "give the policy another egress IP"
    ), "what runs goes on, and nothing begins"
    world.policy("web", "198.51.100.7")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/web via g"


def test_a_pool_that_holds_such_addresses_gives_none_of_them_for_egress(world: World) -> None:
    world.pool("bad", "10.0.0.50/32", uses="egress")
    world.policy("take", pool="bad")
    assert decided(world) == (
        "! EgressPolicy/take AddressTaken: 10.0.0.50 is in the network 10.0.0.0/24 of node/g: take it out of the pool"
    )


def test_an_address_on_the_interface_of_a_node_is_that_nodes_to_leave_with(world: World) -> None:
    world.policy("legacy", "10.0.0.100")
    assert decided(world) == "group 1 10.0.0.100 EgressPolicy/legacy via g node-address"


def test_but_not_another_nodes(world: World) -> None:
    world.policy("take", "10.0.0.21")
    assert decided(world).startswith("! EgressPolicy/take AddressTaken: 10.0.0.21 is an address of node/w")
    world.policy("take", "10.0.0.11")
    assert decided(world) == "group 1 10.0.0.11 EgressPolicy/take via g node-address"
    world.nodes["g"] = replace(world.nodes["g"], labels={"role": "gateway"})
    world.policy("take", "10.0.0.21", gateways=LabelSelector((("role", "gateway"),)))
    assert decided(world).startswith("! EgressPolicy/take AddressTaken: 10.0.0.21 is an address of node/w")
    world.policy("take", "10.0.0.100", gateways=LabelSelector((("role", "gateway"),)))
    assert decided(world) == "group 1 10.0.0.100 EgressPolicy/take via g node-address"


def test_an_address_of_a_node_that_is_on_none_of_its_interfaces_is_no_egress_ip(world: World) -> None:
    world.nodes["w"] = Node("w", addresses=(ip_address("10.0.0.21"), ip_address("203.0.113.21")))
    world.policy("take", "203.0.113.21")
    assert decided(world).startswith("! EgressPolicy/take AddressTaken: 203.0.113.21 is an address of node/w")


def test_outside_of_what_the_configuration_allows_an_egress_ip_is_refused(world: World) -> None:
    world.settings = AssignSettings(allowed_egress_ips=(ip_network("198.51.100.0/24"),))
    world.pool("other", "192.0.2.0/29", uses="egress")
    world.policy("good", "198.51.100.7")
    world.policy("named", "203.0.113.10")
    world.policy("pooled", pool="other")
    rule = "lies outside egress.allowed-addresses (198.51.100.0/24)"
    assert decided(world).splitlines() == [
        "group 1 198.51.100.7 EgressPolicy/good via g",
        f"! EgressPolicy/named AddressNotAllowed: 203.0.113.10 {rule}: give the policy another egress IP",
        f"! EgressPolicy/pooled AddressNotAllowed: 192.0.2.0 {rule}: take it out of the pool",
    ]


def test_what_nodes_have_beside_their_node_objects_addresses_is_published() -> None:
    world = World()
    for name, last in (("b", 12), ("a", 11)):
        held = tuple(map(ip_address, (f"10.0.0.{last}", f"10.50.0.{last}", "172.17.0.1", f"fd05::{last}")))
        world.node(name, addresses=held[:1])
        world.reports[name] = NodeReport(name, held)
    world.node("c", reports=None, addresses=(ip_address("10.0.0.13"),))
    world.reports["gone"] = NodeReport("gone", (ip_address("10.50.0.99"),))
    world.decide()
    assert [(each.node, list(map(str, each.addresses))) for each in world.allocations.nodes] == [
        ("a", ["10.50.0.11", "fd05::11"]),
        ("b", ["10.50.0.12", "fd05::12"]),
    ]
    generation = world.allocations.generation
    world.decide()
    assert world.allocations.generation == generation
    world.reports["a"] = NodeReport("a", (ip_address("10.0.0.11"),))
    world.decide()
    assert [each.node for each in world.allocations.nodes] == ["b"]
    assert world.allocations.generation == generation + 1


def test_a_policy_is_refused_for_the_first_of_its_addresses_that_is_somebodys(world: World) -> None:
    world.policy("p", "198.51.100.7 10.0.0.50 10.0.0.1")
    assert "! EgressPolicy/p AddressTaken: 10.0.0.50 is in the network 10.0.0.0/24 of node/g: " in decided(world)


def test_a_refusal_is_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    refusal = Limits._refusal
    monkeypatch.setattr(Limits, "_refusal", lambda *args: made.append(str(args[2])) or refusal(*args))
    for name, last in (("a", 50), ("b", 51)):
        world.policy(name, f"10.0.0.{last} 10.0.0.1")
    decided(world)
    assert made == ["10.0.0.50", "10.0.0.51"]
