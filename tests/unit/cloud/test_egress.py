"""Egress addresses on a fake EC2: one holder, moved by one call, and what looks that are late do to it: nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from cloud.confirm import LAG
from cloud.egress import Seat, Wanted, seen
from cloud.model import Inventory
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front
from tests.models.cloud.world import NodeModel, World

EGRESS = IPv4Address("10.0.0.200")
OTHER = IPv4Address("10.0.0.201")


def gateways(*names: str, addresses: tuple[IPv4Address, ...] = (EGRESS,)) -> World:
    """Instances g-1 and g-2 in one subnet; nobody's pods want anything."""
    world = World.of()
    del world.nodes["i-1"]
    for name in ("g-1", "g-2"):
        world.cloud.add_instance(name, "subnet-1")
    world.wanted = (Wanted(addresses, names or ("g-1", "g-2")),)
    return world


def holder(world: World, address: IPv4Address = EGRESS) -> str:
    """As it is on record."""
    return world.seats[address].instance if address in world.seats else ""


def truth(world: World, address: IPv4Address = EGRESS) -> list[str]:
    found = [eni for eni in world.cloud.enis.values() if address in eni.addresses]
    return [eni.attachment.instance if eni.attachment else "" for eni in found]


def test_the_first_gateway_holds_the_address_once_a_look_has_shown_it() -> None:
    world = gateways()
    world.turn()
    assert (holder(world), truth(world)) == ("", ["g-1"])
    world.run(10)
    assert holder(world) == "g-1"
    calls = world.cloud.mutations()
    world.run(300)
    assert world.cloud.mutations() == calls


def test_it_moves_by_one_call_to_the_next_gateway_and_not_back() -> None:
    world = gateways()
    world.run(10)
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.run(10)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])
    world.wanted = (Wanted((EGRESS,), ("g-1", "g-2")),)
    world.run(300)
    assert holder(world) == "g-2", "a move is a pause: who holds it may keep it"
    assert world.cloud.mutations()["AssignPrivateIpAddresses"] == 2


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
def test_a_move_without_an_answer_is_made_again_until_a_look_shows_it(when: str) -> None:
    world = gateways()
    world.run(10)
    world.cloud.faults = [Fault("AssignPrivateIpAddresses", when, 2)]  # type: ignore[arg-type]
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.turn()
    assert holder(world) == "g-1", "until a look has confirmed it nobody is told"
    world.run(60)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_a_late_look_does_not_move_it_back() -> None:
    world = gateways()
    world.run(60)
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.run(10)
    assert holder(world) == "g-2"
    calls = world.cloud.mutations()
    world.cloud.lag = lambda: 50.0
    world.run(30)
    assert (holder(world), world.cloud.mutations()) == ("g-2", calls)


def test_what_somebody_else_moved_is_brought_back_when_looks_agree() -> None:
    world = gateways("g-1")
    world.run(10)
    other = world.cloud.of("g-2")[0]
    given = {"NetworkInterfaceId": other.id, "PrivateIpAddresses": [str(EGRESS)], "AllowReassignment": True}
    world.cloud.call("AssignPrivateIpAddresses", given)
    world.run(40)
    assert (holder(world), truth(world)) == ("g-1", ["g-2"])
    world.run(60)
    assert (holder(world), truth(world)) == ("g-1", ["g-1"])


def test_a_crash_after_the_call_ends_well() -> None:
    world = gateways()
    turn = world.decided()
    assert turn is not None
    world.backend.send(turn.orders[0].call)
    world.restart()
    world.run(60)
    assert (holder(world), truth(world)) == ("g-1", ["g-1"])


def test_addresses_of_a_group_go_together() -> None:
    world = gateways("g-2", addresses=(EGRESS, OTHER))
    world.run(10)
    assert (truth(world), truth(world, OTHER)) == (["g-2"], ["g-2"])


def test_an_address_of_no_gateways_subnet_is_told() -> None:
    world = gateways(addresses=(IPv4Address("10.9.9.9"),))
    world.run(30)
    turn = world.decided()
    assert turn is not None
    assert [(str(each.address), each.reason) for each in turn.unseated] == [("10.9.9.9", "NoCloudGateway")]
    assert world.cloud.mutations() == {}


def test_a_gateway_that_is_full_or_stopped_is_passed_over() -> None:
    world = gateways()
    eni = world.cloud.of("g-1")[0]
    world.cloud.put(replace(eni, addresses=world.cloud.take("subnet-1", 9)))
    world.run(20)
    assert holder(world) == "g-2"
    other = gateways()
    other.cloud.set_state("g-1", "stopped")
    other.run(20)
    assert holder(other) == "g-2"


def test_an_address_that_is_somebodys_own_is_refused_and_tried_again_later() -> None:
    taken = gateways()
    primary = taken.cloud.of("g-2")[0].primary
    taken.wanted = (Wanted((primary,), ("g-1",)),)
    taken.run(100)
    assert holder(taken, primary) == ""
    tries = [each for each in taken.cloud.log if each[1] == "AssignPrivateIpAddresses"]
    assert 2 <= len(tries) <= 4


def test_an_address_of_a_pods_interface_is_neither_taken_nor_given_back() -> None:
    world = gateways()
    world.nodes["i-1"] = NodeModel()
    world.run(60)
    address = world.cloud.of("i-1")[1].addresses[0]
    world.wanted = (Wanted((address,), ("g-1",)),)
    world.run(200)
    turn = world.decided()
    assert turn is not None
    assert [(each.address, each.reason) for each in turn.unseated] == [(address, "CloudAddressInUse")]
    assert (holder(world, address), truth(world, address)) == ("", ["i-1"])
    world.wanted = ()
    world.run(200)
    assert truth(world, address) == ["i-1"]


@pytest.mark.parametrize("releases", [True, False])
def test_what_nobody_wants_any_more_is_given_back(releases: bool) -> None:
    world = gateways()
    world.run(10)
    world.add("i-9")  # somebody is left to look at
    world.replaced(releases=releases)
    world.wanted = ()
    world.run(200)
    assert truth(world) == ([] if releases else ["g-1"])
    assert (EGRESS in world.seats) is not releases


def test_what_nobody_wants_once_it_is_taken_away_is_remembered_for_as_long_as_looks_lag() -> None:
    """Its policy went between the two calls of a move."""
    seats = seen({EGRESS: Seat(EGRESS, "g-1")}, Inventory(), (), 1000.0)
    assert (seats[EGRESS].instance, seats[EGRESS].interface) == ("", "")
    assert seen(seats, Inventory(), (), 1000.0 + LAG - 1) == seats
    assert seen(seats, Inventory(), (), 1000.0 + LAG) == {}


def test_an_egress_address_is_no_pods() -> None:
    world = gateways()
    world.nodes["g-1"] = NodeModel()
    world.run(60)
    blocks = {str(block.network) for _, block in world.holdings["g-1"].blocks()}
    assert blocks and f"{EGRESS}/32" not in blocks


@pytest.mark.parametrize("releases", [True, False])
@pytest.mark.parametrize("front", [EC2_FRONT, AZURE_FRONT])
def test_an_address_on_record_becomes_no_pods_when_pods_get_the_primary_interface(front: Front, releases: bool) -> None:
    """Egress has left the cloud, and the address is on the interface until it is taken away."""
    world = World.of(front=front)
    world.wanted = (Wanted((EGRESS,), ("i-1",)),)
    world.run(60)
    assert truth(world) == ["i-1"]
    world.wanted = ()
    world.replaced(first_index=0, releases=releases)
    lags = itertools.cycle((0.0, 20.0))
    world.cloud.lag = lambda: next(lags)
    world.want(100)
    for _ in range(20):
        world.run(10)
        assert EGRESS not in world.nodes["i-1"].addresses()
    assert 0 in [one.index for one in world.holdings["i-1"].held if one.blocks]
    assert truth(world) == ([] if releases else ["i-1"])


def test_without_a_record_it_stays_where_it_is() -> None:
    """The ledger was lost."""
    world = gateways("g-2")
    world.run(10)
    world.seats = {}
    world.wanted = (Wanted((EGRESS,), ("g-1", "g-2")),)
    world.turn()
    assert holder(world) == "g-2"
    world.run(120)
    assert (holder(world), world.cloud.mutations()["AssignPrivateIpAddresses"]) == ("g-2", 1)
