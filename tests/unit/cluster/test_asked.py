"""Egress IPs that pods ask for by annotation: nodes report them, pools say who may have which."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from routerd.cluster.conflicts import MOST_ASKED
from routerd.model import GATEWAY_LABEL, EgressAsk, Namespace, NodeReport, ServiceSelection
from routerd.selectors import LabelSelector
from tests.models.operator_world import World

TEAM = LabelSelector((("team", "a"),))


@pytest.fixture
def world() -> World:
    """A gateway, a worker whose pods of namespace shop ask for 172.10.0.1, and a pool that has it."""
    world = World()
    world.node("g")
    world.node("w", None)
    asks(world, "w", "shop/172.10.0.1")
    world.namespaces = {name: Namespace(name) for name in ("shop", "till")}
    world.pool("out", "172.10.0.0/29", uses="egress", egress_annotations=True)
    return world


def asks(world: World, node: str, *said: str) -> None:
    found = (each.split("/") for each in said)
    world.reports[node] = NodeReport(
        node, egress_asks=tuple(EgressAsk(namespace, ip_address(address)) for namespace, address in found)
    )


GROUP = "group 1 172.10.0.1 EgressAnnotation/shop/172.10.0.1 via g"


def test_what_pods_ask_for_is_a_group_while_a_node_says_so(world: World) -> None:
    assert world.decide() == GROUP
    asks(world, "w")
    assert world.decide() == "group 1 172.10.0.1  via g", "flows that are left go on"


def test_pods_of_several_namespaces_and_nodes_share_an_address(world: World) -> None:
    asks(world, "g", "shop/172.10.0.1", "till/172.10.0.1")
    assert world.decide() == (
        "group 1 172.10.0.1 EgressAnnotation/shop/172.10.0.1,EgressAnnotation/till/172.10.0.1 via g"
    )


def test_the_gateways_are_those_of_the_pool(world: World) -> None:
    world.node("edge", None, labels={"edge": ""})
    world.pools["out"] = replace(world.pools["out"], gateways=LabelSelector((("edge", ""),)))
    assert world.decide() == "group 1 172.10.0.1 EgressAnnotation/shop/172.10.0.1 via edge"
    assert GATEWAY_LABEL not in world.nodes["edge"].labels


def test_an_address_of_no_pool_that_is_open_to_annotations_is_refused(world: World) -> None:
    world.pool("out", "172.10.0.0/29", uses="egress")
    world.pool("other", "172.10.0.8/29", uses="egress", egress_annotations=True)
    assert world.decide() == (
        "! EgressAnnotation/shop/172.10.0.1 NoPoolForAnnotation: no AddressPool with egressAnnotations: true has "
        "172.10.0.1: ask for an address of one"
    )


def test_while_no_pool_is_open_what_nodes_report_counts_for_nothing(world: World) -> None:
    world.pool("out", "172.10.0.0/29", uses="egress")
    assert world.decide() == ""


@pytest.mark.parametrize(
    ("services", "is_given"),
    [
        (ServiceSelection(namespaces=TEAM), True),
        (ServiceSelection(namespaces=LabelSelector((("team", "b"),))), False),
        (ServiceSelection(services=LabelSelector()), False),
    ],
)
def test_a_pool_for_some_namespaces(world: World, services: ServiceSelection, is_given: bool) -> None:
    world.pools["out"] = replace(world.pools["out"], services=(services,))
    world.namespaces["shop"] = Namespace("shop", {"team": "a"})
    assert world.decide() == (
        GROUP
        if is_given
        else "! EgressAnnotation/shop/172.10.0.1 PoolNotForNamespace: pool out, which has 172.10.0.1, is not for pods "
        "of namespace shop: see its services"
    )


def test_nobody_takes_the_egress_ip_of_a_policy(world: World) -> None:
    world.policy("till", "172.10.0.1")
    assert world.decide().splitlines() == [
        "group 1 172.10.0.1 EgressPolicy/till via g",
        "! EgressAnnotation/shop/172.10.0.1 AddressTaken: 172.10.0.1 is the egress IP of EgressPolicy/till, which says "
        "who leaves with it: ask for another",
    ]


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_policy_that_names_the_address_of_an_ask_has_it_at_once(world: World, is_gone: bool) -> None:
    world.decide()
    if is_gone:
        asks(world, "w")
        world.decide(1)
    world.policy("till", "172.10.0.1")
    assert world.decide().splitlines()[0] == "group 1 172.10.0.1 EgressPolicy/till via g"
    assert [record.owner for record in world.ledger.addresses] == ["EgressPolicy/till"]


def test_an_address_that_nobody_asks_for_any_more_is_free_after_its_cooling(world: World) -> None:
    asks(world, "w", *(f"shop/172.10.0.{last}" for last in range(8)))
    world.decide()
    asks(world, "w")
    world.decide(1)
    assert {record.state for record in world.ledger.addresses} == {"cooling"}
    world.end_flows()
    world.decide(200)
    assert not world.ledger.addresses
    world.policy("till", pool="out")
    assert world.decide(1).startswith("group ")


def test_who_comes_back_within_the_cooling_has_the_address_again(world: World) -> None:
    world.decide()
    asks(world, "w")
    world.decide(1)
    asks(world, "w", "shop/172.10.0.1")
    assert world.decide(1) == GROUP


def test_a_pool_that_is_disabled_gives_nothing_new(world: World) -> None:
    world.decide()
    world.edit_pool("out", disabled=True)
    asks(world, "w", "shop/172.10.0.1", "shop/172.10.0.2")
    assert world.decide().splitlines() == [
        GROUP,
        "! EgressAnnotation/shop/172.10.0.2 PoolDisabled: pool out, which has 172.10.0.2, is disabled: it gives no new "
        "addresses",
    ]


def test_no_namespace_asks_for_so_many_addresses_that_another_has_none(world: World) -> None:
    world.pool("out", "172.10.0.0/16", uses="egress", egress_annotations=True)
    many = (f"shop/172.10.{number >> 8}.{number & 255}" for number in range(MOST_ASKED + 1))
    asks(world, "w", *many, "till/172.10.255.1")
    world.decide()
    assert world.allocations.groups[-1].policies == ("EgressAnnotation/till/172.10.255.1",)
    refused = [each for each in world.allocations.refusals if each.reason == "TooManyEgressIPs"]
    assert [each.object.namespace for each in refused] == ["shop", "shop"]
    assert len(world.allocations.groups) == MOST_ASKED


@pytest.mark.parametrize("part", ["nodes", "namespaces"])
def test_what_is_said_of_nobody_who_is_there_counts_for_nothing(world: World, part: str) -> None:
    getattr(world, part).pop("w" if part == "nodes" else "shop")
    assert world.decide() == ""


def test_nor_one_that_a_policy_has_of_the_pool(world: World) -> None:
    asks(world, "w")
    world.policy("till", pool="out")
    before = world.decide()
    given = world.allocations.groups[0].egress_ip
    asks(world, "w", f"shop/{given}")
    first, second = world.decide().splitlines()
    assert first == before and second.startswith(f"! EgressAnnotation/shop/{given} ")
