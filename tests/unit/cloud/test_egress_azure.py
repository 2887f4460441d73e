"""Egress addresses on a fake Azure: written away from one gateway's interface, then to another's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from cloud.buckets import Buckets
from cloud.egress import Wanted, read_seat, seat_row
from cloud.need import Watermarks
from cloud.providers import arm
from cloud.turn import Memory
from tests.models.cloud.azure import looks, names
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.world import World

EGRESS = IPv4Address("10.0.0.200")
PUT = "NetworkInterfaces_CreateOrUpdate"


def gateways() -> World:
    """VMs g-1, which holds the address, and g-2 in one subnet; nobody's pods want anything."""
    world = World.of(front=AZURE_FRONT)
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


def configurations(world: World, name: str) -> list[str]:
    return [each["name"] for each in looks.configurations(world.cloud, world.cloud.of(name)[0])]


def test_it_moves_by_two_writes_and_nodes_hear_of_the_next_gateway_alone() -> None:
    world = gateways()
    assert configurations(world, "g-1") == ["ipconfig1", "routerd-egress-10-0-0-200"]
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    seen = []
    for _ in range(20):
        world.turn()
        world.seats = {name: read_seat(*seat_row(each)) for name, each in world.seats.items()}
        seen.append((holder(world), truth(world)))
        world.cloud.advance(1)
    assert list(dict.fromkeys((name, *there) for name, there in seen)) == [("g-1",), ("g-1", "g-2"), ("g-2", "g-2")]
    assert world.cloud.mutations() == {PUT: 3}
    assert (configurations(world, "g-1"), configurations(world, "g-2")[0]) == (["ipconfig1"], "ipconfig1")
    world.wanted = (Wanted((EGRESS,), ("g-1", "g-2")),)
    world.run(300)
    assert (holder(world), world.cloud.mutations()) == ("g-2", {PUT: 3}), "who holds it may keep it"


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
@pytest.mark.parametrize("passed", [0, 1])
def test_a_write_without_an_answer_is_made_again_until_a_look_shows_it(passed: int, when: str) -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    while world.cloud.mutations()[PUT] < 1 + passed:
        world.run(1, step=1)
    world.cloud.faults = [Fault(PUT, when, 2)]  # type: ignore[arg-type]
    for _ in range(24):
        world.run(5)
        assert len(truth(world)) <= 1
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_an_operator_that_is_killed_between_the_two_writes_gives_it_to_the_next_gateway() -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    turn = world.decided()
    assert turn is not None
    world.backend.send(turn.orders[0].call)
    assert truth(world) == []
    world.restart()
    world.run(90)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_what_somebody_took_in_between_is_told_and_left_to_him() -> None:
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    while truth(world):
        world.run(1, step=1)
    world.cloud.taken["subnet-1"].add(int(EGRESS))
    world.run(20)
    turn = world.decided()
    assert turn is not None
    assert [(each.address, each.reason) for each in turn.unseated] == [(EGRESS, "CloudRefused")]
    assert "PrivateIPAddressInUse" in turn.unseated[0].message
    world.cloud.taken["subnet-1"].discard(int(EGRESS))
    world.run(90)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


@pytest.mark.parametrize("is_primary", [True, False])
def test_an_address_that_is_somebodys_configuration_of_the_gateway_itself_is_told(is_primary: bool) -> None:
    """As Terraform would have made it: it stays so."""
    world = gateways()
    eni = world.cloud.of("g-1")[0]
    first = looks.first(world.cloud, eni)
    address = eni.primary
    if not is_primary:
        (address,) = world.cloud.take(eni.subnet, 1)
        like = {**first["properties"], "primary": False, "privateIPAddress": str(address)}
        theirs = {"name": "theirs", "properties": like}
        world.cloud.put(replace(eni, addresses=(address,), configurations=(first, theirs)))
    world.wanted = (Wanted((address,), ("g-1",)),)
    world.run(20)
    turn = world.decided()
    assert turn is not None and turn.unseated
    assert ("ipconfig1" if is_primary else "theirs") in turn.unseated[0].message
    assert configurations(world, "g-1") == ["ipconfig1"] + ["theirs"] * (not is_primary)


@pytest.mark.parametrize("groups", [1, 4])
def test_several_addresses_move_within_the_pause_of_one(groups: int) -> None:
    """Those of a group by one write each way: while one is under way Azure refuses the next. Groups one by one."""
    world = gateways()
    addresses = [IPv4Address(f"10.0.0.{number}") for number in range(200, 208)]
    parts = [tuple(addresses[start::groups]) for start in range(groups)]
    world.wanted = tuple(Wanted(part, ("g-1", "g-2")) for part in parts)
    world.run(60, step=2)
    before = world.cloud.mutations()[PUT]
    world.wanted = tuple(Wanted(part, ("g-2",)) for part in parts)
    world.run(14 * groups, step=2)
    assert {world.seats[address].instance for address in addresses} == {"g-2"}
    assert world.cloud.mutations()[PUT] == before + 2 * groups
    assert not [code for _, _, _, code in world.cloud.log if code == "AnotherOperationInProgress"]


def test_what_moves_waits_for_no_pods_and_they_come_after_it_in_waves() -> None:
    world = gateways()
    world.memory = Memory(Buckets(arm.RATES))
    world.replaced(marks=Watermarks(pre_allocate=1))
    pods = [world.add(f"i-{number}") for number in range(2, 32)]
    for node in pods:
        node.used = 1
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    sent = []
    while len(sent) < 12:
        sent.append([bool(order.addresses) for order in world.turn()])
        world.cloud.advance(5)
    assert [each for each in sent if any(each)] == [[True], [True]]
    assert (sent[0], max(map(len, sent))) == ([True], 16)
    assert holder(world) == "g-2" and all(node.pods for node in pods)


def test_a_gateway_that_is_deleted_without_its_interface_loses_the_address() -> None:
    """As `deleteOption` Detach, which is the default, leaves it: Azure gives nobody else what an interface has."""
    world = gateways()
    for eni in world.cloud.of("g-1"):
        assert eni.attachment is not None
        world.cloud.put(replace(eni, attachment=replace(eni.attachment, delete_on_termination=False)))
    world.cloud.terminate("g-1")
    world.run(120)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])
    assert world.cloud.mutations() == {PUT: 3}


def test_an_interface_whose_vm_is_deleted_is_looked_for_where_that_was() -> None:
    """No gateway is left in its resource group, of which only the VM that is on record tells."""
    world = gateways()
    world.wanted = (Wanted((EGRESS,), ("g-1",)),)
    for eni in world.cloud.of("g-1"):
        assert eni.attachment is not None
        world.cloud.put(replace(eni, attachment=replace(eni.attachment, delete_on_termination=False)))
    world.cloud.terminate("g-1")
    world.run(300)
    assert (holder(world), truth(world)) == ("g-1", [""])
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.run(60)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_a_configuration_of_somebody_else_is_never_taken_away() -> None:
    """Though it has the very address, on a gateway: it is not ours by its name."""
    world = gateways()
    eni = world.cloud.of("g-1")[0]
    ours, *_ = [each for each in eni.configurations if each["name"].startswith("routerd-")]
    theirs = {**ours, "name": "theirs"}
    world.cloud.put(replace(eni, configurations=(looks.first(world.cloud, eni), theirs)))
    world.wanted = (Wanted((EGRESS,), ("g-2",)),)
    world.run(300)
    assert (truth(world), configurations(world, "g-1")) == (["g-1"], ["ipconfig1", "theirs"])


def test_an_instance_of_a_scale_set_holds_none() -> None:
    """It takes no address that is named."""
    world = gateways()
    name = names.IN_SET + "1"
    world.cloud.add_instance(name, "subnet-1")
    world.wanted = (Wanted((EGRESS,), (name, "g-2")),)
    world.run(60)
    assert (holder(world), truth(world)) == ("g-2", ["g-2"])


def test_an_address_that_nobody_wants_is_given_back_and_forgotten() -> None:
    world = gateways()
    world.wanted = ()
    world.run(100)
    assert (world.seats, truth(world)) == ({}, [])
