"""Stories of policies that leave with several egress IPs: given by the policy, or so many of a pool."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipam.port_sets import granule_mask
from routerd.cluster import port_rooms, port_sets
from routerd.model import ServicePort
from tests.models.operator_world import World, ports_text


def lines(block: str) -> str:
    return "\n".join(line.strip() for line in block.strip().splitlines())


def with_gateways() -> World:
    world = World()
    for name in ("g1", "g2"):
        world.node(name)
    return world


def test_a_policy_with_several_addresses_is_one_group() -> None:
    world = with_gateways()
    world.policy("out", "198.51.100.7 198.51.100.8")
    one = "group 1 198.51.100.7 198.51.100.8 EgressPolicy/out via g1 g2"
    assert world.decide() == one
    assert [str(each.egress_ip) for each in world.allocations.bindings] == ["198.51.100.7", "198.51.100.8"]
    world.policy("other", "198.51.100.8 198.51.100.7")
    assert world.decide() == one.replace("out", "other,EgressPolicy/out"), "the order makes no difference"
    world.policy("third", "198.51.100.8")
    assert world.decide().splitlines()[-1] == (
        "! EgressPolicy/third AddressesDiffer: EgressPolicy/other shares some of its egress IPs (198.51.100.8, "
        "198.51.100.7), and not all: give both the same"
    )


def test_a_further_address_changes_neither_number_nor_ports() -> None:
    world = with_gateways()
    world.policy("out", "198.51.100.7")
    world.decide()
    before = ports_text(world.allocations)
    world.policy("out", "198.51.100.8 198.51.100.7")
    assert world.decide().startswith("group 1 198.51.100.7 198.51.100.8 EgressPolicy/out")
    assert ports_text(world.allocations) == f"{before}\n198.51.100.8  told g1,g2", "nodes have ports already"
    world.policy("out", "198.51.100.7")
    world.decide()
    assert ports_text(world.allocations).startswith(before)


def test_nodes_take_the_next_address_where_one_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (port_rooms, port_sets):
        monkeypatch.setattr(module, "RANGE", granule_mask(1024, 1151))
    world = with_gateways()
    world.policy("out", "198.51.100.7 198.51.100.8")
    for number in range(3):
        world.node(f"n{number}", None)
    told = world.decide().splitlines()[-1]
    assert [len(each.blocks()) for each in world.allocations.bindings] == [2, 2]
    assert told.startswith(
        "! EgressPolicy/out PortsExhausted: no ports of 198.51.100.7, 198.51.100.8 are left for n2: "
    )
    assert told.endswith("give the policy 1 more egress address")


def test_so_many_of_a_pool() -> None:
    world = with_gateways()
    world.pool("p", "192.0.2.0/29")
    world.policy("out", pool="p", count=3)
    world.policy("late", pool="p")
    before = world.decide()
    assert before == lines("""
        group 1 192.0.2.0 EgressPolicy/late via g2 g1
        group 2 192.0.2.1 192.0.2.2 192.0.2.3 EgressPolicy/out via g1 g2
    """)
    generation = world.allocations.generation
    world.lose_file()
    assert world.decide() == before, "each keeps its own"
    assert world.allocations.generation == generation
    world.policy("out", pool="p", count=2)
    assert world.decide().endswith("group 2 192.0.2.1 192.0.2.2 EgressPolicy/out via g1 g2")
    world.policy("third", pool="p")
    assert "192.0.2.3" not in world.decide(10**6), "it is bound to its policy"
    world.policy("out", pool="p", count=3)
    assert "group 2 192.0.2.1 192.0.2.2 192.0.2.3 EgressPolicy/out" in world.decide()
    world.policies.clear()
    world.decide()
    assert world.release("EgressPolicy/out") == 3


def test_a_pool_that_has_too_few_gives_what_it_has() -> None:
    world = with_gateways()
    world.pool("p", "192.0.2.0/31")
    world.policy("out", pool="p", count=3)
    group, refusal = world.decide().splitlines()
    assert group.startswith("group 1 192.0.2.0 192.0.2.1 EgressPolicy/out")
    assert refusal.startswith('! EgressPolicy/out PoolExhausted: no available IPs in pool "p"')


def test_an_address_that_is_somebodys_refuses_the_policy() -> None:
    world = with_gateways()
    world.policy("out", "198.51.100.7 10.0.0.11")
    assert world.decide().startswith("! EgressPolicy/out AddressTaken: 10.0.0.11 is ")


def test_addresses_of_nodes_and_others_are_no_one_group() -> None:
    world = World()
    world.node("g1")
    world.node("owner", None, reports="192.168.33.100 192.168.33.101")
    world.policy("out", "192.168.33.100 192.168.33.101")
    assert world.decide() == ("group 1 192.168.33.100 192.168.33.101 EgressPolicy/out via owner node-address")
    world.policy("out", "192.168.33.100 198.51.100.7")
    assert (
        world.decide()
        .splitlines()[1]
        .startswith(
            "! EgressPolicy/out AddressesApart: addresses on interfaces of nodes (192.168.33.100 of owner) and others "
        )
    )


def test_a_policy_of_both_families_has_ports_of_both() -> None:
    """A pod's packets leave in their own family."""
    world = with_gateways()
    both = (ip_network("203.0.113.0/24"), ip_network("2001:db8:1::/48"))
    world.policy("given", "198.51.100.7 2001:db8::7", destinations=both)
    world.pool("p", "192.0.2.0/29", "2001:db8:2::/125")
    world.policy("pooled", pool="p", count=2, destinations=both)
    decided = world.decide()
    assert "198.51.100.7 2001:db8::7 EgressPolicy/given" in decided
    assert "192.0.2.0 2001:db8:2:: 192.0.2.1 2001:db8:2::1 EgressPolicy/pooled" in decided
    tables = {str(each.egress_ip): each for each in world.allocations.bindings}
    for address in ("198.51.100.7", "2001:db8::7"):
        assert len(tables[address].blocks()) == 2, "each node has ports of each family"
    world.lose_file()
    generation = world.allocations.generation
    assert world.decide() == decided
    assert world.allocations.generation == generation


def test_an_external_ip_on_a_further_address_leaves_its_ports_out() -> None:
    world = with_gateways()
    world.policy("out", "198.51.100.7 198.51.100.8")
    world.service("web", type="ClusterIP", external_ips=(ip_address("198.51.100.8"),))
    world.services["d/web"] = replace(world.services["d/web"], ports=(ServicePort("TCP", 1030),))
    world.decide()
    second = world.allocations.bindings[1]
    assert all(block.first >= 2048 for block in second.blocks())
