"""Egress addresses on a fake Alibaba Cloud, which reassigns none: taken away first, given when a look shows it free."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from cloud.egress import Wanted, read_seat, seat_row
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.world import World

MOVES = ("AssignPrivateIpAddresses", "UnassignPrivateIpAddresses")
EGRESS = IPv4Address("10.0.0.200")


def gateways() -> World:
    """Instances g-1, which holds the address, and g-2 in one vSwitch; nobody's pods want anything."""
    world = World.of(front=ALIBABA_FRONT)
    del world.nodes["i-1"]
    for name in ("g-1", "g-2"):
        world.cloud.add_instance(name, "subnet-1")
    world.wanted = (Wanted((EGRESS,), ("g-1", "g-2")),)
    world.run(10)
    assert (holder(world), truth(world)) == ("g-1", ["g-1"])
    return world


def holder(world: World) -> str:
    """As it is on record, and published."""
    return world.seats[EGRESS].instance if EGRESS in world.seats else ""


def truth(world: World) -> list[str]:
    found = [eni for eni in world.cloud.enis.values() if EGRESS in eni.addresses]
    return [eni.attachment.instance if eni.attachment else "" for eni in found]


def moved(world: World) -> list[str]:
    return [action for _, action, _, code in world.cloud.log if action in MOVES and not code]


def test_it_moves_by_two_calls_and_nodes_hear_of_the_next_gateway_alone() -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    seen = []
    for _ in range(8):
        world.turn()
        world.seats = {name: read_seat(*seat_row(each)) for name, each in world.seats.items()}
        seen.append((holder(world), truth(world)))
        world.cloud.advance(1)
    assert seen[:2] == [("g-1", []), ("g-1", ["g-2"])], "a turn each"
    assert seen[2:] == [("g-2", ["g-2"])] * 6
    world.wanted = (Wanted((EGRESS,), ("g-1", "g-2")),)
    calls = world.cloud.mutations()
    world.run(300)
    assert (holder(world), world.cloud.mutations()) == ("g-2", calls), "who holds it may keep it"


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
@pytest.mark.parametrize("action", ["UnassignPrivateIpAddresses", "AssignPrivateIpAddresses"])
def test_a_call_without_an_answer_is_made_again_until_a_look_shows_it(action: str, when: str) -> None:
    world = gateways()
    world.cloud.faults = [Fault(action, when, 2)]  # type: ignore[arg-type]
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    for _ in range(24):
        world.run(5)
        assert len(truth(world)) <= 1
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_an_operator_that_is_killed_between_the_two_calls_gives_it_to_the_next_gateway() -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    turn = world.decided()
    assert turn is not None
    world.backend.send(turn.orders[0].call)
    assert truth(world) == []
    world.restart()
    world.run(90)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_a_gateway_that_comes_back_between_the_two_calls_gets_it_again() -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.turn()
    world.cloud.advance(1)
    world.wanted = (Wanted((EGRESS,), ("g-1", "g-2")),)
    world.run(30)
    assert (holder(world), truth(world)) == ("g-1", ["g-1"])


def test_what_somebody_took_in_between_is_told_and_left_to_him() -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.turn()
    world.cloud.taken["subnet-1"].add(int(EGRESS))
    world.cloud.advance(1)
    world.run(20)
    assert truth(world) == []
    assert world.seats[EGRESS].instance == "g-1"
    world.cloud.taken["subnet-1"].discard(int(EGRESS))
    world.run(90)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_what_was_given_to_a_gateway_that_is_none_any_more_is_taken_away_from_it() -> None:
    """Also where its operator died before a look showed it there."""
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.turn()
    world.turn()
    assert (world.seats[EGRESS].intent is not None, truth(world)) == (True, ["g-2"])
    world.restart()
    world.wanted = (Wanted((EGRESS,), ("g-1",)),)
    world.run(200)
    assert (holder(world), truth(world)) == ("g-1", ["g-1"])


def with_a_stranger(world: World) -> None:
    """An instance that is no node's has the address on its primary interface, and looks show that."""
    world.cloud.add_instance("x-1", "subnet-1")
    (eni,) = world.cloud.of("x-1")
    world.cloud.taken["subnet-1"].add(int(EGRESS))
    world.cloud.put(replace(eni, addresses=(EGRESS,)))


def told(world: World) -> list[tuple[IPv4Address, str]]:
    turn = world.decided()
    assert turn is not None
    return [(each.address, each.reason) for each in turn.unseated]


@pytest.mark.parametrize("is_known", [False, True])
def test_what_a_stranger_has_is_told_and_left_to_him(is_known: bool) -> None:
    world = gateways()
    (before,) = world.cloud.of("g-1")
    if is_known:
        world.wanted = (Wanted((EGRESS,), ("g-2",)),)
        world.turn()  # taken away from g-1, and not given yet
    else:
        world.seats = {}
        world.cloud.unassign(before, [EGRESS])
    calls = moved(world)
    with_a_stranger(world)
    world.run(300)
    assert (truth(world), moved(world)) == (["x-1"], calls)
    assert told(world) == [(EGRESS, "CloudAddressInUse")]
    assert holder(world) == ("g-1" if is_known else "")
    kept, world.wanted = world.wanted, ()
    world.run(300)
    assert truth(world) == ["x-1"], "nobody gives back what is not his"
    world.wanted = kept
    (eni,) = world.cloud.of("x-1")
    world.cloud.unassign(eni, [EGRESS])
    world.run(120)
    assert (holder(world), truth(world), told(world)) == ("g-2" if is_known else "g-1", [holder(world)], [])


def test_late_looks_move_nothing_back() -> None:
    world = gateways()
    world.cloud.lag = lambda: 30.0
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.run(200)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])
    assert moved(world) == ["AssignPrivateIpAddresses", "UnassignPrivateIpAddresses", "AssignPrivateIpAddresses"]


def test_an_address_that_nobody_wants_is_unassigned_and_forgotten() -> None:
    world = gateways()
    world.wanted = ()
    world.run(90)
    assert (world.seats, truth(world)) == ({}, [])
