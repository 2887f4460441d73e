"""What a VM of Azure gets, where that differs from EC2: interfaces that it has, one write a change, tokens as names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloud.need import Watermarks
from cloud.providers import arm, nics
from tests.models.cloud.azure import looks, names
from tests.models.cloud.azure.changes import MOST
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.state import Eni
from tests.models.cloud.world import World

PUT, VM_PUT = "NetworkInterfaces_CreateOrUpdate", "VirtualMachineScaleSetVMs_Update"


def world_of(**rules: Any) -> World:
    return World.of(front=AZURE_FRONT, **rules)


def reasons(world: World) -> list[str]:
    return [each.reason for each in world.reasons]


def with_others(world: World, eni: Eni, count: int) -> None:
    """Configurations of somebody else."""
    first, addresses = looks.first(world.cloud, eni), world.cloud.take(eni.subnet, count)
    like = {**first["properties"], "primary": False}
    theirs = [{"name": f"theirs-{each}", "properties": {**like, "privateIPAddress": str(each)}} for each in addresses]
    world.cloud.put(replace(eni, addresses=addresses, configurations=(first, *theirs)))


def test_pods_get_further_addresses_of_an_interface_by_one_write_each_time() -> None:
    world = world_of()
    world.want(20)
    world.run(60)
    assert len(world.nodes["i-1"].pods) == 20
    assert world.cloud.mutations() == {PUT: 1}
    primary, secondary = world.cloud.of("i-1")
    assert (len(primary.addresses), len(secondary.addresses)) == (0, 28)
    world.run(300)
    assert world.cloud.mutations() == {PUT: 1}, "what is as it should be costs no call"
    world.want(0)
    world.run(300, step=10)
    assert world.holdings["i-1"].available() == len(world.cloud.of("i-1")[1].addresses) == 8


def test_the_only_interface_of_a_vm_serves_its_pods_too() -> None:
    world = world_of(first_index=0)
    world.cloud.remove(world.cloud.of("i-1")[1])
    world.want(5)
    world.run(60)
    assert len(world.cloud.of("i-1")[0].addresses) == 13
    assert [one.index for one in world.holdings["i-1"].held] == [0]


IN_SET = names.IN_SET + "1"


def of_set(**rules: Any) -> World:
    """An instance of a scale set alone."""
    world = world_of(**rules)
    world.cloud.terminate("i-1")
    del world.nodes["i-1"]
    world.add(IN_SET)
    return world


def test_an_instance_of_a_scale_set_is_written_as_a_whole() -> None:
    world = of_set(prefixes=True, ipv6=True, cidr="10.0.0.0/20")
    world.want(40, IN_SET)
    world.run(60)
    assert [block.network.prefixlen for _, block in world.holdings[IN_SET].blocks()] == [28, 28, 28, 80]
    assert world.cloud.mutations().keys() == {VM_PUT}
    world.want(0, IN_SET)
    world.run(300, step=10)
    assert [block.network.prefixlen for _, block in world.holdings[IN_SET].blocks()] == [28, 80]
    assert {code for _, _, _, code in world.cloud.log} == {""}


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
@pytest.mark.parametrize("action", [VM_PUT, "NetworkInterfaces_GetVirtualMachineScaleSetNetworkInterface"])
def test_of_a_scale_set_nothing_is_given_twice_either(action: str, when: str) -> None:
    world = of_set(marks=Watermarks(pre_allocate=14))
    world.cloud.lag = lambda: 50.0
    world.cloud.faults = [Fault(action, when, 3)]  # type: ignore[arg-type]
    world.run(300)
    assert world.holdings[IN_SET].available() == len(world.cloud.of(IN_SET)[1].addresses) == 14


def test_a_scale_set_that_is_gone_or_empty_is_no_error() -> None:
    world = of_set()
    world.run(60)
    world.cloud.terminate(IN_SET)
    world.run(300)
    assert reasons(world) == ["InstanceUnknown"]


def test_blocks_of_both_families() -> None:
    world = world_of(prefixes=True, ipv6=True, cidr="10.0.0.0/20")
    world.want(40)
    world.run(60)
    lengths = [block.network.prefixlen for _, block in world.holdings["i-1"].blocks()]
    assert lengths == [28, 28, 28, 80]


def test_where_no_block_is_left_single_addresses_come() -> None:
    world = world_of(prefixes=True, cidr="10.0.0.0/28", marks=Watermarks(pre_allocate=4))
    world.run(60)
    assert {block.network.prefixlen for _, block in world.holdings["i-1"].blocks()} == {32}
    refused = [code for _, _, _, code in world.cloud.log if code]
    assert refused == ["SubnetIsFull"]


def test_what_others_have_on_the_vm_takes_of_its_room() -> None:
    """256 addresses are a VM's, whoever has them."""
    world = world_of(cidr="10.0.0.0/21")
    primary, secondary = world.cloud.of("i-1")
    with_others(world, primary, 100)
    with_others(world, secondary, 50)
    world.want(300)
    world.run(60)
    assert world.holdings["i-1"].available() == MOST - 2 - 150
    assert {code for _, _, _, code in world.cloud.log} == {""}, "it asks for no more than it gets"
    assert reasons(world) == ["InstanceFull"]
    assert "its interfaces for pods hold no more than their 104 addresses" in world.reasons[0].message


def test_an_interface_that_is_excluded_is_left_alone() -> None:
    world = world_of(excluded={"pods": "no"})
    (_, secondary) = world.cloud.of("i-1")
    world.cloud.put(replace(secondary, tags={"pods": "no"}))
    world.run(60)
    assert (world.cloud.mutations(), reasons(world)) == ({}, ["InstanceFull"])


def test_a_subnet_gives_what_it_has_left_and_is_told_to_be_full() -> None:
    world = world_of(cidr="10.0.0.0/28")
    world.want(12)
    world.run(60)
    assert world.holdings["i-1"].available() == 16 - nics.RESERVED - 2
    assert {code for _, _, _, code in world.cloud.log} == {""}
    assert reasons(world) == ["SubnetFull"]


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
def test_what_nobody_answered_is_asked_again_and_gives_once(when: str) -> None:
    world = world_of(marks=Watermarks(pre_allocate=14))
    world.cloud.lag = lambda: 50.0
    world.cloud.faults = [Fault(PUT, when, 2)]  # type: ignore[arg-type]
    world.run(300)
    assert world.holdings["i-1"].available() == 14
    assert len(world.cloud.of("i-1")[1].addresses) == 14


def test_an_operator_that_is_killed_after_each_call_goes_on_with_the_same_names() -> None:
    world = world_of(marks=Watermarks(pre_allocate=14))
    for _ in range(30):
        turn = world.decided()
        for order in turn.orders if turn is not None else ():
            world.backend.send(order.call)
        world.restart()
        world.cloud.advance(1)
    world.run(60)
    assert world.cloud.mutations() == {PUT: 1}
    assert world.holdings["i-1"].available() == len(world.cloud.of("i-1")[1].addresses) == 14


def test_whoever_throttles_is_left_alone_as_long_as_he_says() -> None:
    world = world_of()
    world.cloud.faults = [Fault(PUT, "throttled")]
    world.cloud.retry_after = 40.0
    world.run(80, step=1)
    times = [when for when, action, _, _ in world.cloud.log if action == PUT]
    assert len(times) == 2 and 40 <= times[1] - times[0] < 45


def test_two_operators_at_once_take_nothing_from_each_other() -> None:
    """One was paused between its read and its write: what the other one gave meanwhile stays."""
    world = world_of()
    (_, eni) = world.cloud.of("i-1")
    late = looks.nic_data(world.cloud, eni)
    world.run(30)
    before = world.cloud.of("i-1")[1].addresses
    parameters = {"id": late["id"], "etag": late["etag"], "body": late}
    with pytest.raises(arm.Changed):
        world.backend.backend.call(PUT, parameters)  # type: ignore[attr-defined]
    assert world.cloud.of("i-1")[1].addresses == before and len(before) == 8


def test_our_own_rate_is_below_what_a_subscription_may_do_in_five_minutes() -> None:
    rate = arm.RATES[PUT]
    assert rate.burst + 300 * rate.per_second < 1000
