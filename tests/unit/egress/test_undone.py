"""After a failure the rest of a plan goes on: what is safe of it, and what waits."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.layout import ip16, u32
from egress.host.links import Unhooked
from egress.plan import Action, DropBefore, PutEntry, plan
from egress.policy import Desired, Group
from egress.undone import Undone
from tests.models.egress_wishes import (
    DEVICES,
    GROUP,
    OTHER_IP,
    PLAIN,
    POD,
    POLICY,
    SERVED,
    TABLE,
    WISHES,
    check_safe,
    contents_of,
    is_at_rest,
    on_gateway,
    on_worker,
    settle,
    settled,
)
from tests.models.node import FakeNode


def carry_out(node: FakeNode, desired: Desired, *failing: str) -> tuple[list[str], Undone]:
    """One round in which every action whose line has one of `failing` in it fails; what was done."""
    observed = node.observe()
    undone, done = Undone(desired, observed), []
    for action in plan(desired, observed):
        now = undone.after(action)
        if now is None or any(part in str(action) for part in failing):
            undone.add(action)
        else:
            node.apply(now)
            done.append(str(now))
    return done, undone


def rounds(node: FakeNode, desired: Desired, *failing: str) -> tuple[list[str], Undone]:
    done: list[str] = []
    for _ in range(3):
        more, undone = carry_out(node, desired, *failing)
        done += more
    return done, undone


def decided(node: FakeNode) -> set[str]:
    assert node.guard
    return {element.rpartition(" ")[2] for element in node.guard.sets["decided"]}


def test_a_node_without_a_tunnel_endpoint_carries_no_group() -> None:
    node = settled(on_gateway())
    for desired, carries in ((on_gateway(), True), (replace(on_gateway(), node_address=None), False)):
        done, undone = carry_out(node, desired)
        assert (done, undone.carries(7)) == ([], carries)


@pytest.mark.parametrize(("uplinks", "carries"), [({"eth0": 2}, True), ({}, False)])
def test_a_node_whose_uplinks_have_no_ethernet_header_carries_no_group(uplinks: dict[str, int], carries: bool) -> None:
    observed = settled(on_gateway()).observe()
    facts = replace(observed.facts, uplinks=uplinks, headerless=frozenset({"wg0"}))
    assert Undone(on_gateway(), replace(observed, facts=facts)).carries(7) == carries


def test_a_pod_that_cannot_be_moved_holds_up_nobody_else() -> None:
    node = FakeNode(DEVICES)
    done, undone = rounds(node, on_worker(), "map pods: put device 5")
    assert "map pods: put device 6 10.1.0.6: no policy" in done
    assert decided(node) == {str(PLAIN)}
    assert node.guard and not node.guard.sets["selected"]
    assert undone.carries(7)
    settle(node, on_worker())
    assert is_at_rest(node, on_worker())


def test_an_incomplete_set_holds_up_the_pods_that_move_to_it() -> None:
    policies = {
        "world": POLICY,
        "office": replace(POLICY, name="office", destinations=(IPv4Network("198.51.100.0/24"),)),
    }
    both = on_worker(pods={POD: ("world",), PLAIN: ("office",)}, policies=policies)
    node = FakeNode(DEVICES)
    done, _ = rounds(node, both, "198.51.100.0/24: any")
    assert any("map pods: put device 5" in line for line in done)
    assert decided(node) == {str(POD)}


def test_a_device_without_its_program_is_not_decided() -> None:
    node = FakeNode(DEVICES)
    rounds(node, on_worker(), "attach to_pod to veth6")
    assert decided(node) == {str(POD)}
    assert not any(a.ifindex == 6 for a in node.attachments)


def test_a_pod_is_decided_when_nothing_that_it_needs_was_left_undone() -> None:
    failures = {
        (): {POD, PLAIN},
        ("attach from_pod to veth6",): {POD},
        ("map pods: put device 5",): {PLAIN},
        ("map policies",): {PLAIN},
        ("map cluster",): set(),
        ("load eBPF",): set(),
        ("load guard",): set(),
        ("blackhole",): {POD, PLAIN},
    }
    for failing, wanted in failures.items():
        _, undone = rounds(FakeNode(DEVICES), on_worker(), *failing)
        assert {address for address in (POD, PLAIN) if undone.decides(address)} == wanted, failing
    _, undone = rounds(FakeNode({POD: DEVICES[POD]}), on_worker())
    assert not undone.decides(PLAIN)  # no veth leads to it
    for failing, is_decided in (((), True), (("load guard",), False)):
        _, undone = rounds(FakeNode(DEVICES), replace(on_worker(), node_address=None), *failing)
        assert undone.decides(POD) == is_decided


def test_a_pod_past_the_programs_is_decided_when_it_is_kept_back_beneath() -> None:
    device = Unhooked("eth0", "macvlan", (PLAIN,), 9, "eth1", b"\x02\0\0\0\0\x09")
    desired = on_worker(pods={POD: ("world",), PLAIN: ("world",)})
    failures = {
        (): {POD, PLAIN},
        ("attach to_beneath to eth1",): {POD},
        ("map pods: put device 9",): {POD},
        ("map pod_macs",): {POD},
        ("map policies",): set(),
    }
    for failing, wanted in failures.items():
        node = FakeNode({POD: DEVICES[POD]}, unhooked={PLAIN: (device,)})
        _, undone = rounds(node, desired, *failing)
        assert {address for address in (POD, PLAIN) if undone.decides(address)} == wanted, failing
    elsewhere = {"a NIC": replace(device, beneath=0), "with another address": replace(device, addresses=(POD,))}
    for what, other in elsewhere.items():
        _, undone = rounds(FakeNode({POD: DEVICES[POD]}, unhooked={PLAIN: (other,)}), desired)
        assert not undone.decides(PLAIN), what
    node = FakeNode(DEVICES, unhooked={POD: (device,)})
    _, undone = rounds(node, desired, "attach to_beneath")
    assert not undone.decides(POD), "its second device is not kept back"
    _, undone = rounds(FakeNode(unhooked={PLAIN: (device,)}), replace(desired, node_address=None))
    assert not undone.decides(PLAIN), "the guard does not see it"


def test_without_the_first_guard_or_the_programs_nothing_follows() -> None:
    for failing in ("load guard", "load eBPF", "map cluster", "attach from_uplink"):
        node = FakeNode(DEVICES)
        rounds(node, on_worker(), failing)
        assert not node.guard or not decided(node)


def test_a_tunnel_that_cannot_be_made_holds_up_nothing() -> None:
    node = FakeNode(DEVICES)
    _, undone = rounds(node, on_worker(), "tunnel device, UDP")
    assert decided(node) == {str(POD), str(PLAIN)}
    assert not undone.carries(7)  # what is led to this node through it would be lost


def test_one_blackhole_that_fails_holds_up_its_own_nat_state_only() -> None:
    other = Group(8, (OTHER_IP,), GROUP.gateways)
    node = FakeNode()
    done, undone = rounds(node, on_gateway(groups={7: GROUP, 8: other}, served={**SERVED, OTHER_IP: TABLE}),
                          "blackhole 192.0.2.100")  # fmt: skip
    assert [line.partition(" of ")[0] for line in done if "egress_ips" in line] == ["map egress_ips: put 192.0.2.101"]
    assert (undone.carries(7), undone.carries(8)) == (False, True)


def test_each_group_is_carried_once_its_own_nat_state_is_in_place() -> None:
    """What all groups need is lacking to all of them; what a pod of this node lacks is nothing to what comes in."""
    other = Group(8, (OTHER_IP,), GROUP.gateways, node_address=True)
    carried = {
        "map egress_ips: put 192.0.2.100": (False, True),
        "map egress_ips: put 192.0.2.101": (True, False),
        "reserve local ports": (True, False),
        "map nodes: put 10.0.0.1": (False, False),
        "attach from_tunnel": (False, False),
        "attach from_pod": (True, True),
        "map groups": (True, True),
    }
    served = {**SERVED, OTHER_IP: replace(TABLE, node_address=True)}
    desired = replace(on_gateway(groups={7: GROUP, 8: other}, served=served), pods={POD: ("world",)})
    for failing, expected in carried.items():
        done, undone = rounds(FakeNode(DEVICES), desired, failing)
        assert not any(failing in line for line in done)
        assert (undone.carries(7), undone.carries(8)) == expected, failing


@pytest.mark.parametrize("action", [PutEntry("own_egress_ips", ip16(OTHER_IP), u32(1)), DropBefore()], ids=str)
def test_what_only_pods_here_or_nobody_misses_takes_no_group_away(action: Action) -> None:
    node = settled(on_gateway())
    undone = Undone(on_gateway(), node.observe())
    undone.add(action)
    assert undone.carries(7)


def test_pods_that_go_are_forgotten_though_another_one_cannot_be_moved() -> None:
    """A map that is full gets room this way."""
    node = settled(on_worker())
    narrower = {"world": replace(POLICY, excluded=(IPv4Network("198.51.100.0/24"),))}
    done, _ = carry_out(node, on_worker(pods={POD: ("world",)}, policies=narrower), "map pods: put")
    assert "map pods: delete device 6 10.1.0.6: no policy" in done
    assert not any("map policies: delete" in line for line in done)  # the pod still uses it


def test_nat_state_that_stays_keeps_its_blackhole() -> None:
    node = settled(on_gateway())
    done, _ = carry_out(node, on_gateway(served={}), "map egress_ips: delete")
    assert not any("blackhole" in line for line in done)
    assert carry_out(node, on_gateway(served={}))[0][-1] == "delete route blackhole 192.0.2.100/32"


def fails(action: Action, odds: int, seed: int) -> bool:
    return crc32(f"{seed} {action}".encode()) % 10 < odds


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(WISHES), st.integers(0, 6), st.integers(0, 99)), min_size=1, max_size=5))
def test_whatever_fails_it_is_safe_and_converges(story: list[tuple[Desired, int, int]]) -> None:
    node, before = FakeNode(DEVICES), story[0][0]
    complete = contents_of([wish for wish, _, _ in story])
    for wish, odds, seed in story:
        observed = node.observe()
        undone = Undone(wish, observed)
        for action in plan(wish, observed):
            now = undone.after(action)
            if now is None or fails(action, odds, seed):
                undone.add(action)
                continue
            node.apply(now)
            check_safe(node, (before, wish), complete)
        before = wish
    settle(node, before)
    assert is_at_rest(node, before)


def test_a_selected_pod_whose_new_policies_failed_keeps_its_old_ones_in_the_guard() -> None:
    before = on_worker()
    node = settled(before)
    assert node.guard
    held = node.guard.sets["selected"]
    more = replace(POLICY, name="more", destinations=(IPv4Network("198.51.100.0/24"),))
    after = replace(
        before, policies={**before.policies, "more": more}, pods={**before.pods, POD: (POLICY.name, "more")}
    )
    rounds(node, after, "map policies: put")
    assert node.guard.sets["selected"] == held
    [chain] = {element.rpartition(" : jump ")[2] for element in held}
    assert node.guard.chains[chain]
    settle(node, after)
