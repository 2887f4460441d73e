"""What an instance gets, step by step, on a fake EC2: growth, limits, prefixes, release, leaks, refusals."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest

from cloud.calls import (
    KINDS,
    Assign,
    AssignPrefix6,
    Attach,
    Bind,
    Create,
    Delete,
    Detach,
    Take,
    Unassign,
    Unknown,
    call_row,
    read_call,
)
from cloud.demand import Choice
from cloud.model import Api
from cloud.need import Watermarks
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front
from tests.models.cloud.world import NodeModel, World


def free(world: World, name: str = "i-1") -> int:
    return world.holdings[name].available() - len(world.nodes[name].pods)


def reasons(world: World) -> list[str]:
    return [each.reason for each in world.reasons]


def test_an_instance_gets_an_interface_with_as_many_free_addresses_as_the_watermark_says() -> None:
    world = World.of()
    world.run(30)
    assert world.text() == "i-1:1 10.0.0.0/24 " + " ".join(f"10.0.0.{each}/32" for each in range(6, 14))
    (_, eni) = world.cloud.of("i-1")
    assert eni.attachment is not None and eni.attachment.delete_on_termination
    assert eni.groups == ("sg-1",)
    assert {"routerd.io/cluster": "test", "routerd.io/instance": "i-1"}.items() <= eni.tags.items()
    calls = world.cloud.mutations()
    world.run(300)
    assert world.cloud.mutations() == calls, "what is as it should be costs no call"


@pytest.mark.parametrize(
    ("chosen", "groups"),
    [
        (Choice(), ("sg-1",)),
        (Choice(tags={"pods": "yes"}), ("sg-2", "sg-3")),
        (Choice(ids=frozenset({"sg-3", "sg-1"})), ("sg-1", "sg-3")),
    ],
)
def test_an_interface_has_the_security_groups_that_are_chosen(chosen: Choice, groups: tuple[str, ...]) -> None:
    world = World.of(groups=chosen)
    for name in ("sg-2", "sg-3"):
        world.cloud.add_group(name, pods="yes")
    world.run(30)
    assert [each.groups for each in world.cloud.of("i-1")][1:] == [groups], reasons(world)


def test_pods_that_wait_are_served_by_one_call_for_each_interface() -> None:
    world = World.of()
    world.want(15)
    world.run(60)
    assert len(world.nodes["i-1"].pods) == 15
    calls = world.cloud.mutations()
    assert calls["CreateNetworkInterface"] == 2
    assert calls["AssignPrivateIpAddresses"] == 0


def test_no_address_is_used_before_a_look_has_confirmed_it() -> None:
    world = World.of()
    world.cloud.lag = lambda: 30.0
    world.want(1)
    world.run(30)
    assert world.cloud.mutations()["CreateNetworkInterface"] == 1
    assert world.nodes["i-1"].pods == []
    world.run(120)
    assert len(world.nodes["i-1"].pods) == 1
    assert world.cloud.mutations()["CreateNetworkInterface"] == 1, "a late look makes no second interface"


def test_what_the_instance_type_holds_is_the_end_and_is_told() -> None:
    world = World.of("t3.small")
    world.want(20)
    world.run(120)
    assert world.holdings["i-1"].available() == 2 * 3
    assert reasons(world) == ["InstanceFull"]


@pytest.mark.parametrize(
    ("type_", "rules", "capacity"),
    [
        ("t3.small", {}, 6),
        ("t3.small", {"first_index": 0}, 9),
        ("m5.large", {}, 18),
        ("m5.large", {"prefixes": True}, 288),
        ("m5.large", {"prefixes": True, "marks": Watermarks(maximum=50)}, 50),
        ("m5.large", {"ipv6": True}, 18),
        ("t2.small", {"ipv6": True}, 0),
    ],
)
def test_a_kubelet_that_takes_more_pods_than_its_instance_has_addresses_is_told(
    type_: str, rules: dict[str, Any], capacity: int
) -> None:
    world = World.of(type_, **rules)

    def reasons_with(most_pods: int) -> str:
        world.nodes["i-1"].most_pods = most_pods
        world.turn()
        return " ".join(each.message for each in world.reasons if each.reason == "MaxPodsTooHigh")

    assert reasons_with(capacity + 2) == ""
    told = f"its kubelet takes {capacity + 3} pods, and there are {capacity} addresses for them: set maxPods to"
    assert f"{told} {capacity + 2} at most" in reasons_with(capacity + 3)


def test_the_primary_interface_is_for_pods_only_where_that_is_said() -> None:
    world = World.of("t3.small", first_index=0)
    world.want(20)
    world.run(120)
    assert world.holdings["i-1"].available() == 3 * 3


def test_watermarks() -> None:
    world = World.of(marks=Watermarks(pre_allocate=2, minimum=5, maximum=7, above=1))
    world.run(60)
    assert world.holdings["i-1"].available() == 6
    world.want(6)
    world.run(60)
    assert world.holdings["i-1"].available() == 7
    assert world.cloud.mutations()["AssignPrivateIpAddresses"] == 1


def test_prefixes() -> None:
    world = World.of(prefixes=True)
    world.want(20)
    world.run(60)
    assert world.text() == "i-1:1 10.0.0.0/24 10.0.0.16/28 10.0.0.32/28"
    assert world.cloud.mutations()["CreateNetworkInterface"] == 1


def test_a_type_without_prefixes_gets_addresses() -> None:
    world = World.of("t2.small", prefixes=True)
    world.run(60)
    assert world.holdings["i-1"].available() == 6


def test_without_a_whole_prefix_a_sibling_subnet_is_asked_then_single_addresses() -> None:
    world = World.of(cidr="10.0.0.0/28", prefixes=True, subnets=Choice(tags={"pods": "yes"}))
    world.cloud.subnets["subnet-1"] = replace(world.cloud.subnets["subnet-1"], tags={"pods": "yes"})
    world.cloud.add_subnet("subnet-2", "10.0.1.0/26", pods="yes")
    world.cloud.add_subnet("subnet-3", "10.0.2.0/24", zone="b", pods="yes")
    world.want(8)
    world.run(60)
    assert world.text() == "i-1:1 10.0.1.0/26 10.0.1.16/28", "the subnet with the most free addresses comes first"
    world.want(30)
    world.run(60)
    lengths = [block.network.prefixlen for _, block in world.holdings["i-1"].blocks()]
    assert (lengths.count(28), lengths.count(32)) == (1, 8 + 9), "two more prefixes are not there"


def test_a_call_gives_no_more_than_the_cloud_says() -> None:
    world = World.of(api=Api(at_once=4))
    world.want(10)
    world.run(120)
    assert len(world.nodes["i-1"].pods) == 10
    calls = world.cloud.mutations()
    assert (calls["CreateNetworkInterface"], calls["AssignPrivateIpAddresses"]) == (2, 4)  # twice 4 + 4 + 1


def test_where_prefixes_go_beside_no_addresses_single_ones_come_on_another_interface() -> None:
    world = World.of(cidr="10.0.0.0/26", prefixes=True, api=Api(mixes=False))
    world.want(20)
    world.run(120)
    world.want(30)
    world.run(120)
    lengths = [{block.network.prefixlen for block in one.blocks} for one in world.holdings["i-1"].held]
    assert lengths == [{28}, {32}]
    assert len(world.nodes["i-1"].pods) == 30


def test_a_full_subnet_is_told_and_tried_again_when_it_has_room() -> None:
    world = World.of(cidr="10.0.0.0/28")
    world.want(30)
    world.run(120)
    assert world.holdings["i-1"].available() == 9  # 16 - 5 reserved - 2 primary ones
    assert reasons(world) == ["SubnetFull"]


def test_one_prefix_of_ipv6_for_an_instance() -> None:
    world = World.of(ipv6=True)
    world.run(120)
    assert [str(block.network) for _, block in world.holdings["i-1"].blocks() if block.network.version == 6] == [
        "2001:db8::/80"
    ]


def test_ipv6_comes_to_an_interface_that_was_there_before() -> None:
    world = World.of()
    world.run(60)
    world.replaced(ipv6=True)
    world.run(60)
    assert world.holdings["i-1"].available(6)
    assert world.cloud.mutations()["AssignIpv6Addresses"] == 1


def test_a_subnet_without_ipv6_holds_no_release_up() -> None:
    world = World.of(ipv6=True, marks=Watermarks(pre_allocate=2))
    world.cloud.subnets["subnet-1"] = replace(world.cloud.subnets["subnet-1"], cidr6=None)
    world.want(12)
    world.run(120)
    world.want(3)
    world.run(400)
    assert sum(len(each.addresses) for each in world.cloud.of("i-1")) == 5
    assert reasons(world) == ["NoIPv6"]


@pytest.mark.parametrize("front", [EC2_FRONT, ALIBABA_FRONT], ids=["aws", "alibaba"])
def test_a_node_is_told_the_networks_of_its_vpc_where_it_must_know_them(front: Front) -> None:
    world = World.of(front=front)
    world.cloud.add_subnet("subnet-2", "10.0.1.0/24", zone="b")
    world.cloud.add_subnet("subnet-3", "10.0.4.0/24")
    world.run(60)
    assert [each.vpc for each in world.holdings["i-1"].held] == [()]
    world.replaced(tells_vpc=True)
    world.run(10)
    assert [list(map(str, each.vpc)) for each in world.holdings["i-1"].held] == [["10.0.0.0/23", "10.0.4.0/24"]]


@pytest.mark.parametrize("front", [EC2_FRONT, ALIBABA_FRONT], ids=["aws", "alibaba"])
def test_an_interface_that_has_given_all_back_goes_and_comes_again_when_pods_do(front: Front) -> None:
    world = World.of(front=front, marks=Watermarks(pre_allocate=2))
    world.want(12)
    world.run(120)
    assert len(world.cloud.of("i-1")) == 3
    world.want(1)
    world.run(600)
    assert len(world.cloud.of("i-1")) == 2
    assert len(world.cloud.enis) == 2, "it is deleted"
    assert world.holdings["i-1"].available() == 3
    world.want(12)
    world.run(120)
    assert len(world.nodes["i-1"].pods) == 12


@pytest.mark.parametrize("front", [EC2_FRONT, ALIBABA_FRONT], ids=["aws", "alibaba"])
def test_an_empty_interface_stays_where_releases_are_off(front: Front) -> None:
    world = World.of(front=front, marks=Watermarks(pre_allocate=2))
    world.want(12)
    world.run(120)
    for eni in world.cloud.of("i-1")[2:]:
        for address in eni.addresses:
            world.cloud.unassign(world.cloud.enis[eni.id], {address}, set())
    world.replaced(releases=False)
    world.want(0)
    world.run(300)
    assert len(world.cloud.of("i-1")) == 3


def test_an_excluded_interface_is_neither_attached_nor_deleted() -> None:
    world = World.of(excluded={"keep": "yes"})
    ours = {"routerd.io/cluster": "test", "routerd.io/instance": "i-1", "routerd.io/created": "1", "keep": "yes"}
    eni = world.cloud.new("subnet-1", ("sg-1",), ours, "")
    world.cloud.put(eni)
    world.run(1000)
    assert world.cloud.enis[eni.id] == eni
    assert world.holdings["i-1"].available() == 8


def test_what_others_attached_is_left_alone() -> None:
    world = World.of("t3.small")
    eni = world.cloud.new("subnet-1", ("sg-1",), {}, "")
    world.cloud.put(eni)
    world.cloud.call("AttachNetworkInterface", {"NetworkInterfaceId": eni.id, "InstanceId": "i-1", "DeviceIndex": 1})
    world.want(20)
    world.run(120)
    assert [one.index for one in world.holdings["i-1"].held] == [2]
    assert reasons(world) == ["InstanceFull"]


# --- release


def shrunk() -> World:
    world = World.of(marks=Watermarks(pre_allocate=2))
    world.want(12)
    world.run(120)
    world.want(3)
    return world


def test_what_is_too_much_is_marked_let_go_and_unassigned() -> None:
    world = shrunk()
    world.run(10)
    assert world.text().count("-10.0.0.") > 0
    before = world.cloud.mutations()["UnassignPrivateIpAddresses"]
    world.run(100)
    assert world.cloud.mutations()["UnassignPrivateIpAddresses"] == before == 0, "packets to it may be on their way"
    world.run(300)
    assert world.holdings["i-1"].available() == 5
    assert sum(len(each.addresses) for each in world.cloud.of("i-1")) == 5


def test_an_address_in_use_is_not_released() -> None:
    world = shrunk()
    node = world.nodes["i-1"]
    node.pods = node.pods[-3:]
    world.run(600)
    assert len(node.pods) == 3
    there = {str(address) for eni in world.cloud.of("i-1") for address in eni.addresses}
    assert {str(network.network_address) for network, _ in node.pods} <= there


def test_what_is_needed_again_is_kept_without_a_call() -> None:
    world = shrunk()
    world.run(20)
    calls = world.cloud.mutations()
    world.want(12)
    world.run(300)
    assert len(world.nodes["i-1"].pods) == 12
    assert world.cloud.mutations() == calls


def test_releases_can_be_stopped() -> None:
    world = shrunk()
    world.replaced(releases=False)
    calls = world.cloud.mutations()
    world.run(600)
    assert world.cloud.mutations() == calls


def test_a_node_that_does_not_say_what_it_keeps_loses_nothing() -> None:
    world = shrunk()
    node = world.nodes["i-1"]
    node.demand = lambda name: replace(type(node).demand(node, name), kept=None)  # type: ignore[method-assign]
    world.run(600)
    assert world.cloud.mutations()["UnassignPrivateIpAddresses"] == 0


def test_a_late_word_takes_no_block_that_its_node_dropped_and_took_again() -> None:
    world = shrunk()
    node = world.nodes["i-1"]
    world.run(20)
    dropped = node.demand("node-i-1")
    world.want(12)
    world.run(20)
    world.want(1)
    world.run(20)
    world.want(12)
    pods = node.addresses()
    node.demand = lambda name: dropped  # type: ignore[method-assign]
    node.read = lambda holdings, name: None  # type: ignore[method-assign]
    world.run(600)
    assert set(map(str, pods)) <= {str(address) for eni in world.cloud.of("i-1") for address in eni.addresses}
    assert world.cloud.mutations()["UnassignPrivateIpAddresses"] == 0


def test_an_address_that_comes_back_at_once_is_one_call() -> None:
    """The fake gives the lowest address that is free, so what was given back just now."""
    world = shrunk()
    while {block.state for _, block in world.holdings["i-1"].blocks()} != {"used", "going"}:
        world.run(5)
    before = world.cloud.mutations()["AssignPrivateIpAddresses"]
    world.want(6)
    world.run(30)
    assert len(world.nodes["i-1"].pods) == 6
    assert world.cloud.mutations()["AssignPrivateIpAddresses"] - before == 1
    assert world.holdings["i-1"].available() == 8


# --- faults


@pytest.mark.parametrize("when", ["before", "after", "internal", "internal-done"])
@pytest.mark.parametrize(
    "action", ["CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"]
)
def test_a_call_without_an_answer_makes_no_second_interface(action: str, when: str) -> None:
    world = World.of()
    world.cloud.faults = [Fault(action, when, 2)]  # type: ignore[arg-type]
    world.run(300)
    assert len(world.cloud.enis) == 2
    assert world.holdings["i-1"].available() == 8


@pytest.mark.parametrize("when", ["before", "after", "internal-done"])
def test_an_assignment_without_an_answer_is_not_sent_again_before_looks_must_show_it(when: str) -> None:
    world = World.of(marks=Watermarks(pre_allocate=2))
    world.run(30)
    world.want(2)
    world.cloud.faults = [Fault("AssignPrivateIpAddresses", when)]  # type: ignore[arg-type]
    world.nodes["i-1"].read(world.holdings, "i-1")
    assert [type(each) for each in world.turn().values()] == [Unknown]
    world.cloud.lag = lambda: 50.0
    world.run(300)
    assert world.holdings["i-1"].available() == 4
    assert sum(len(each.addresses) for each in world.cloud.of("i-1")) == 4


def test_while_looks_fail_nothing_is_changed() -> None:
    world = World.of()
    world.run(60)
    before, calls = world.holdings, world.cloud.mutations()
    world.cloud.faults = [Fault("DescribeNetworkInterfaces", "internal", 1000)]
    world.want(9)
    world.run(300)
    assert (world.holdings, world.cloud.mutations()) == (before, calls)


def test_a_crash_between_record_and_call_leaves_one_interface() -> None:
    world = World.of()
    turn = world.decided()
    assert turn is not None and [type(order.call) for order in turn.orders] == [Create]
    world.restart()
    world.run(60)
    assert world.cloud.mutations()["CreateNetworkInterface"] == 1


def test_a_crash_after_the_call_leaves_one_interface() -> None:
    world = World.of()
    turn = world.decided()
    assert turn is not None
    world.backend.send(turn.orders[0].call)
    world.restart()
    world.run(60)
    assert len(world.cloud.enis) == 2


def test_a_crash_after_an_assignment_gives_no_more_than_is_needed() -> None:
    world = World.of(marks=Watermarks(pre_allocate=2))
    world.run(30)
    world.want(2)
    world.nodes["i-1"].read(world.holdings, "i-1")
    turn = world.decided()
    assert turn is not None and [type(order.call) for order in turn.orders] == [Assign]
    world.backend.send(turn.orders[0].call)
    world.restart()
    world.cloud.lag = lambda: 50.0
    world.run(300)
    assert world.holdings["i-1"].available() == 4


def test_throttling_is_waited_out_and_each_is_served() -> None:
    world = World.of()
    for number in range(2, 12):
        world.add(f"i-{number}")
    world.cloud.buckets = {"CreateNetworkInterface": (2, 0.5), "AttachNetworkInterface": (2, 0.5)}
    world.run(200, step=1)
    assert {each.available() for each in world.holdings.values()} == {8}
    throttled = [each for each in world.cloud.log if each[3] == "RequestLimitExceeded"]
    assert len(throttled) < 40


def test_a_missing_permission_is_told_and_nothing_else_is_tried() -> None:
    world = World.of()
    world.cloud.permissions = {"ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeSubnets",
                               "ec2:DescribeSecurityGroups", "ec2:DescribeNetworkInterfaces"}  # fmt: skip
    world.run(50)
    assert reasons(world) == ["CloudDenied"]
    assert len([each for each in world.cloud.log if each[3] == "UnauthorizedOperation"]) == 1


def test_instances_of_which_too_little_is_known_are_left_alone() -> None:
    world = World.of()
    world.add("i-stopped")
    world.cloud.set_state("i-stopped", "stopped")
    world.cloud.types["x9.new"] = world.cloud.types["m5.large"]
    world.add("i-new", type_="x9.new")
    del world.cloud.types["x9.new"]
    world.nodes["i-nobody"] = NodeModel()
    world.run(60)
    assert sorted((each.instance, each.reason) for each in world.reasons) == [
        ("i-new", "InstanceTypeUnknown"),
        ("i-nobody", "InstanceUnknown"),
        ("i-stopped", "InstanceNotRunning"),
    ]
    assert world.holdings["i-1"].available() == 8


# --- instances come and go


def test_a_stopped_instance_keeps_what_is_its_own() -> None:
    world = World.of()
    world.run(60)
    before = world.text()
    world.cloud.set_state("i-1", "stopped")
    world.run(600)
    world.cloud.set_state("i-1", "running")
    world.run(60)
    assert world.text() == before


def test_the_records_of_an_instance_end_with_it_and_a_new_one_of_its_name_has_its_own() -> None:
    world = World.of()
    world.run(60)
    world.cloud.terminate("i-1")
    del world.nodes["i-1"]
    world.add("i-2")
    world.run(150)
    assert list(world.holdings) == ["i-2"]
    assert world.holdings["i-2"].available() == 8
    assert len(world.cloud.enis) == 2


def test_an_interface_for_an_instance_that_is_gone_is_deleted_when_two_looks_agree_and_it_is_old() -> None:
    world = World.of()
    world.turn()
    world.cloud.terminate("i-1")
    del world.nodes["i-1"]
    world.run(590)
    assert len(world.cloud.enis) == 1
    world.run(200)
    assert world.cloud.enis == {}


def test_interfaces_of_another_cluster_are_never_deleted() -> None:
    world = World.of()
    world.cloud.put(
        world.cloud.new("subnet-1", ("sg-1",), {"routerd.io/cluster": "other", "routerd.io/created": "1"}, "")
    )
    world.run(1000)
    assert world.cloud.mutations()["DeleteNetworkInterface"] == 0


def test_nothing_is_deleted_where_releases_are_stopped() -> None:
    world = World.of(releases=False)
    world.turn()
    world.cloud.terminate("i-1")
    del world.nodes["i-1"]
    world.run(1000)
    assert len(world.cloud.enis) == 1


def test_an_address_that_two_claim_stays_with_who_has_it_on_record() -> None:
    """A look that is late for one interface, and not for the other."""
    world = World.of()
    world.run(60)
    world.add("i-2")
    eni = world.cloud.of("i-1")[1]
    moved = eni.addresses[1]
    world.cloud.put(replace(eni, addresses=eni.addresses[2:]))
    world.cloud.taken["subnet-1"] -= set(map(int, eni.addresses[:2]))
    world.run(30)
    assert moved in {address for each in world.cloud.of("i-2") for address in each.addresses}
    owners = [name for name, each in world.holdings.items() for _, block in each.blocks() if block.network[0] == moved]
    assert owners == ["i-1"]
    world.run(120)
    owners = [name for name, each in world.holdings.items() for _, block in each.blocks() if block.network[0] == moved]
    assert owners == ["i-2"]


def test_calls_are_rows_and_rows_are_calls() -> None:
    calls = [
        Create("t", "s", ("g",), 3, True, False, (("a", "b"),)),
        Attach("e", "i", 2),
        Bind("e", "a"),
        Assign("e", 3, True),
        Assign("e", 3, token="t"),
        AssignPrefix6("e"),
        Unassign("e", (ip_network("10.0.0.1/32"),)),
        Detach("e", "a", "i"),
        Delete("e"),
        Take("e", (IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"))),
    ]
    assert [read_call(*call_row(each)) for each in calls] == calls
    assert {type(each) for each in calls} == set(KINDS.values())
    with pytest.raises(ValueError):
        read_call("explode", "e")


def test_a_call_is_sent_again_for_an_interface_that_is_gone() -> None:
    """Its token says that it is the same one."""
    world = World.of(front=ALIBABA_FRONT, marks=Watermarks(pre_allocate=2))
    world.run(60)
    world.want(2)
    world.cloud.faults = [Fault("AssignPrivateIpAddresses", "before", 9)]
    world.run(10)
    assert [each.again for each in world.turn() if isinstance(each.call, Assign)] == [True]
    world.cloud.remove(world.cloud.of("i-1")[1])
    assert [each.again for each in world.turn() if isinstance(each.call, Assign)] == [True]
    world.cloud.faults = []
    world.run(300)
    assert world.holdings["i-1"].available() == 4
