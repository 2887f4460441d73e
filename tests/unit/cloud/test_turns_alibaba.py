"""What an instance of Alibaba Cloud gets, where that differs from EC2: tens, tokens, other kinds of interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloud.buckets import Buckets
from cloud.calls import Assign
from cloud.demand import Choice
from cloud.need import Watermarks
from cloud.providers import ecs
from cloud.turn import Memory
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.state import Attachment, Eni, TypeOfInstance
from tests.models.cloud.world import World

BIG = TypeOfInstance(4, 30)


def world_of(type_: TypeOfInstance = BIG, **rules: Any) -> World:
    world = World.of(front=ALIBABA_FRONT, **rules)
    world.cloud.types["m5.large"] = type_
    return world


def reasons(world: World) -> list[str]:
    return [each.reason for each in world.reasons]


def given(world: World, action: str, key: str) -> list[Any]:
    return [given.get(key) for _, name, given, code in world.cloud.log if name == action and not code]


def other(world: World, **fields: Any) -> Eni:
    """An interface of the instance that was there before."""
    eni = world.cloud.new("subnet-1", ("sg-1",), fields.pop("tags", {}), "")
    index = len(world.cloud.of("i-1"))
    eni = replace(eni, attachment=Attachment(eni.id, "i-1", index, "attached"), **fields)
    world.cloud.put(eni)
    return eni


def test_an_interface_is_made_and_filled_by_tens_and_attached_once_it_is_there() -> None:
    world = world_of()
    world.want(20)
    world.run(60)
    assert len(world.nodes["i-1"].pods) == 20
    assert given(world, "CreateNetworkInterface", "SecondaryPrivateIpAddressCount") == [10]
    assert given(world, "AssignPrivateIpAddresses", "SecondaryPrivateIpAddressCount") == [10, 8]
    (_, eni) = world.cloud.of("i-1")
    assert eni.attachment is not None and eni.attachment.delete_on_termination
    assert {"routerd.io/cluster": "test", "routerd.io/instance": "i-1"}.items() <= eni.tags.items()
    calls = world.cloud.mutations()
    world.run(300)
    assert world.cloud.mutations() == calls, "what is as it should be costs no call"


def test_each_interface_holds_its_prefixes_and_one_of_ipv6() -> None:
    world = world_of(TypeOfInstance(3, 15), prefixes=True, ipv6=True, cidr="10.0.0.0/20")
    world.want(16 * 14 + 1)
    world.run(120)
    held = world.holdings["i-1"].held
    assert [[block.network.prefixlen for block in one.blocks] for one in held] == [[28] * 14 + [80], [28, 80]]
    assert given(world, "CreateNetworkInterface", "Ipv4PrefixCount") == [10, 1]
    assert given(world, "CreateNetworkInterface", "Ipv6PrefixCount") == [1, 1]


def test_ipv6_comes_to_each_interface_that_was_there_before() -> None:
    world = world_of(TypeOfInstance(4, 6))
    world.run(60)
    world.replaced(ipv6=True)
    world.backend.rules = world.rules  # type: ignore[attr-defined]
    world.run(60)
    assert [str(one.blocks[-1].network) for one in world.holdings["i-1"].held] == [
        "2001:db8::/80",
        "2001:db8:0:0:1::/80",
    ]


def test_a_type_without_ipv6_says_so() -> None:
    world = world_of(TypeOfInstance(4, 30, ipv6=0), ipv6=True)
    world.run(60)
    assert reasons(world) == ["NoIPv6"]
    assert world.holdings["i-1"].available() == 8


OURS = {"routerd.io/cluster": "test", "routerd.io/instance": "i-1", "routerd.io/created": "1"}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Trunk"},
        {"traffic": "HighPerformance"},
        {"tags": OURS | {"creator": "alibabacloud-erdma-controller"}},
        {"kind": "Trunk", "tags": OURS},
        {"traffic": "HighPerformance", "tags": OURS},
    ],
    ids=["trunk", "rdma", "excluded", "trunk-with-our-tags", "rdma-with-our-tags"],
)
def test_trunks_interfaces_for_rdma_and_excluded_ones_are_left_alone(fields: dict[str, Any]) -> None:
    """Attached and loose ones; one that is attached takes room."""
    excluded = {"creator": "alibabacloud-erdma-controller"}
    world = world_of(TypeOfInstance(3, 6), excluded=excluded)
    attached = other(world, **fields)
    loose = replace(world.cloud.new("subnet-1", ("sg-1",), fields.get("tags", {}), ""), **fields)
    world.cloud.put(loose)
    world.want(20)
    world.run(1500, step=15)
    assert (world.cloud.enis[attached.id], world.cloud.enis[loose.id]) == (attached, loose)
    assert (world.holdings["i-1"].available(), reasons(world)) == (5, ["InstanceFull"])


def test_members_of_a_trunk_take_no_room() -> None:
    world = world_of(TypeOfInstance(2, 6))
    for _ in range(5):
        other(world, kind="Member")
    world.run(60)
    assert world.holdings["i-1"].available() == 5


def test_a_full_vswitch_is_left_for_a_sibling_and_tried_again() -> None:
    """The count of free addresses lags, so it is the refusal that tells."""
    world = world_of(cidr="10.0.0.0/28", subnets=Choice(tags={"pods": "yes"}))
    cloud = world.cloud
    cloud.subnets["subnet-1"] = replace(cloud.subnets["subnet-1"], tags={"pods": "yes"})
    cloud.add_subnet("subnet-2", "10.0.1.0/28", pods="yes")
    taken = cloud.take("subnet-2", 12)
    world.want(6)
    world.run(60)
    refused = [
        (name, given["VSwitchId"]) for _, name, given, code in cloud.log if code == "InvalidVSwitchId.IpNotEnough"
    ]
    assert refused == [("CreateNetworkInterface", "subnet-2")]
    assert [eni.subnet for eni in cloud.of("i-1")] == ["subnet-1", "subnet-1"]
    assert reasons(world) == ["SubnetFull"]
    cloud.taken["subnet-2"] -= set(map(int, taken))
    world.run(120)
    assert [eni.subnet for eni in cloud.of("i-1")] == ["subnet-1", "subnet-1", "subnet-2"]


def test_where_no_prefix_is_left_single_addresses_come_on_another_interface() -> None:
    world = world_of(prefixes=True, cidr="10.0.0.0/27")
    world.run(60)
    assert world.cloud.mutations()["CreateNetworkInterface"] == 1
    assert {block.network.prefixlen for _, block in world.holdings["i-1"].blocks()} == {32}


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
@pytest.mark.parametrize("action", ["CreateNetworkInterface", "AssignPrivateIpAddresses"])
def test_what_has_a_token_is_sent_again_at_once_and_gives_once(action: str, when: str) -> None:
    world = world_of(marks=Watermarks(pre_allocate=14))
    world.cloud.lag = lambda: 50.0
    world.cloud.faults = [Fault(action, when, 2)]  # type: ignore[arg-type]
    world.run(200)
    assert len({given["ClientToken"] for _, name, given, _ in world.cloud.log if name == action}) == 1
    assert world.holdings["i-1"].available() == 14
    assert sum(len(eni.addresses) for eni in world.cloud.enis.values()) == 14
    assert len(world.cloud.enis) == 2


def test_an_operator_that_is_killed_after_each_call_goes_on_with_the_same_tokens() -> None:
    world = world_of(marks=Watermarks(pre_allocate=14))
    for _ in range(30):
        turn = world.decided()
        for order in turn.orders if turn is not None else ():
            world.backend.send(order.call)
        world.restart()
        world.cloud.advance(1)
    assert world.cloud.mutations().keys() == {
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "AssignPrivateIpAddresses",
    }
    world.run(60)
    assert world.holdings["i-1"].available() == 14
    assert sum(len(eni.addresses) for eni in world.cloud.enis.values()) == 14


def test_a_token_that_the_cloud_does_not_take_is_dropped() -> None:
    world = world_of(marks=Watermarks(pre_allocate=14))
    world.cloud.faults = [Fault("AssignPrivateIpAddresses", "before", 100)]
    world.run(8, step=1)
    intent = world.holdings["i-1"].intent
    assert intent is not None and isinstance(intent.call, Assign)
    world.cloud.faults = []
    world.cloud.tokens[intent.call.token] = "another question", "{}"
    world.run(120)
    assert world.holdings["i-1"].available() == 14
    assert [code for *_, code in world.cloud.log if code == "IdempotentFailed"] == ["IdempotentFailed"]


def test_addresses_are_given_back_by_tens() -> None:
    world = world_of(marks=Watermarks(pre_allocate=2))
    world.want(24)
    world.run(60)
    world.want(0)
    world.run(600)
    assert sum(len(eni.addresses) for eni in world.cloud.enis.values()) == 2
    counts = [len(each) for each in given(world, "UnassignPrivateIpAddresses", "PrivateIpAddress")]
    assert (sum(counts), max(counts)) == (24, 10)


def test_throttling_by_the_minute_is_waited_out_and_each_is_served() -> None:
    world = world_of(cidr="10.0.0.0/20")
    for number in range(2, 13):
        world.add(f"i-{number}")
    world.cloud.per_minute = {"CreateNetworkInterface": 4, "AttachNetworkInterface": 4}
    world.memory = Memory(Buckets(ecs.RATES))
    world.run(360)
    assert {each.available() for each in world.holdings.values()} == {8}
    throttled = [each for each in world.cloud.log if each[3] == "Throttling"]
    assert 0 < len(throttled) < 60


def test_a_leak_is_deleted_once_and_waited_for() -> None:
    world = world_of()
    world.turn()
    world.cloud.terminate("i-1")
    del world.nodes["i-1"]
    world.run(800, step=1)
    assert world.cloud.enis == {}
    assert world.cloud.mutations()["DeleteNetworkInterface"] == 1


def test_our_own_rates_are_below_what_the_cloud_allows_in_each_minute() -> None:
    for action, rate in ecs.RATES.items():
        assert rate.burst + 60 * rate.per_second < ecs.PER_MINUTE[action]


def test_an_interface_that_waits_for_its_attachment_is_no_full_subnet() -> None:
    world = World.of(front=ALIBABA_FRONT)
    world.cloud.lag = lambda: 10.0
    said = set()
    for _ in range(60):
        world.turn()
        said |= {each.reason for each in world.reasons}
        world.cloud.advance(1)
    assert (len(world.cloud.of("i-1")), said) == (2, set())
