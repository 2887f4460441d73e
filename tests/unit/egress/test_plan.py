"""Plans as stories; every prefix of every plan is safe and converges."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf import layout
from egress.entries import Facts, Link, describe, underlay_link
from egress.host.links import PodDevice, Unhooked
from egress.nftables.guard import render
from egress.plan import (
    Attachment,
    LoadGuard,
    Observed,
    Tunnel,
    choose_devices,
    plan,
    problems,
)
from egress.policy import Desired, Gateway, IPAddress, IPNetwork, Ports
from tests.models.datapath import deciding_policy
from tests.models.egress_wishes import (
    DEVICES,
    EGRESS_IP,
    GROUP,
    PLAIN,
    POD,
    POLICY,
    TABLE,
    WISHES,
    WORLD,
    carry_out,
    check_safe,
    contents_of,
    is_at_rest,
    on_gateway,
    on_worker,
    settle,
    settled,
)
from tests.models.node import FakeNode
from tests.models.tables import tables

MAC = b"\x02\0\0\0\0\x09"
EPOCH, GATEWAYS_EPOCH = "map epoch: put groups d9a72c8c", "map epoch: put groups fce23529"
TABLE_TEXT = "192.0.2.100 of group 7: 1024-2047 node 1, 2048-3071 node 2"


def test_unknown_is_nothing_to_do() -> None:
    assert plan(None, Observed()) == ()


def test_the_first_plan_of_a_worker() -> None:
    node = FakeNode(DEVICES)
    assert carry_out(node, plan(on_worker(), node.observe())) == [
        "load guard (nft table routerd): 0 pods decided, 0 selected",
        "load eBPF programs and maps",
        "create tunnel device, UDP port 8473, MTU 1450",
        "map settings: put node 10.0.0.1, tunnel device 0 port 8473 mtu 1450, object 000000000000abcd",
        "map nodes: put 10.0.0.1: node 1",
        "map nodes: put 10.0.0.2: node 2",
        "map node_numbers: put node 1: 10.0.0.1 here",
        "map node_numbers: put node 2: 10.0.0.2",
        "map uplinks: put device 2",
        "map groups: put group 7: 192.0.2.100 ports 1024-2047 by node 2",
        EPOCH,
        "map policies: put set 1 0.0.0.0/0: any -> group 7",
        "map pod_devices: put 10.1.0.5: device 5",
        "look at connections that run: 10.1.0.5",
        "map pods: put device 5 10.1.0.5: set 1",
        "map pods: put device 6 10.1.0.6: no policy",
        "map strict_devices: put device 5",
        "attach from_uplink to eth0",
        "attach to_pod to veth5",
        "attach to_pod to veth6",
        "attach from_pod to veth5",
        "attach from_pod to veth6",
        "load guard (nft table routerd): 2 pods decided, 1 selected",
    ]
    assert carry_out(node, plan(on_worker(), node.observe())) == [
        "map settings: put node 10.0.0.1, tunnel device 101 port 8473 mtu 1450, object 000000000000abcd",
        "attach from_tunnel to the tunnel",
        "attach to_tunnel to the tunnel",
    ]
    assert plan(on_worker(), node.observe()) == ()


def test_the_programs_make_and_take_tunnel_packets_on_the_nodes_link() -> None:
    """Until the host's stack may do more to them, or somebody wants the device to do it."""
    node, settings = (
        FakeNode(link=Link(3, "eth1", 1500)),
        "map settings: put node 10.0.0.1, tunnel device 101 port 8473",
    )
    settle(node, on_worker())
    assert Attachment("from_uplink", 3) in node.attachments
    assert "tunnel packets by device 3" in describe("settings", *next(iter(node.maps["settings"].items())))
    node.by_stack = True
    left = carry_out(node, plan(on_worker(), node.observe()))
    assert left == [f"{settings} mtu 1450, object 000000000000abcd", "detach from_uplink from device 3"]
    node.by_stack = False
    assert carry_out(node, plan(on_worker(tunnel_packets="device"), node.observe())) == []
    six = on_worker(node_address=IPv6Address("fd00::1"))
    assert underlay_link(six, node.observe().facts) is None, "a receiver may want a checksum there"


def test_the_first_plan_of_a_gateway() -> None:
    node = FakeNode()
    assert carry_out(node, plan(on_gateway(), node.observe())) == [
        "load guard (nft table routerd): 0 pods decided, 0 selected",
        "load eBPF programs and maps",
        "create tunnel device, UDP port 8473, MTU 1450",
        "add route blackhole 192.0.2.100/32",
        "map settings: put node 10.0.0.2, tunnel device 0 port 8473 mtu 1450, object 000000000000abcd, way out 0.0.0.0",
        "map nodes: put 10.0.0.1: node 1",
        "map nodes: put 10.0.0.2: node 2",
        "map node_numbers: put node 1: 10.0.0.1",
        "map node_numbers: put node 2: 10.0.0.2 here",
        "map uplinks: put device 2",
        f"map egress_ips: put {TABLE_TEXT}",
        "map groups: put group 7: 192.0.2.100 ports 1024-2047 by node 2",
        GATEWAYS_EPOCH,
        "attach from_uplink to eth0",
    ]
    assert [str(action) for action in plan(on_gateway(), node.observe())][1:] == [
        "attach from_tunnel to the tunnel",
        "attach to_tunnel to the tunnel",
    ]


def test_where_the_forward_hook_sees_first_packets_they_are_taken_up_before_any_is_handed_there() -> None:
    """And the way back: none is handed there any more, before the programs go."""
    forward = on_worker(network_policy="forward")
    begin, end = changes(on_worker(), forward), changes(forward, on_worker())
    assert [line for line in begin if "settings" not in line] == [
        "load guard (nft table routerd): 2 pods decided, 1 selected",
        "attach to_uplink to eth0",
        "load guard (nft table routerd): 2 pods decided, 1 selected",
    ]
    assert [line.partition(":")[0] for line in end] == [
        "load guard (nft table routerd)", "map settings", "detach to_uplink from device 2",
    ]  # fmt: skip


def test_a_node_without_a_tunnel_endpoint_gets_the_guard_and_keeps_the_rest_as_it_is() -> None:
    lost = on_worker(node_address=None, pods={POD: ("world",)})
    for node in (FakeNode(DEVICES, underlay_mtu=0), settled(on_worker()), settled(WISHES[4])):
        before = node.copy()
        assert carry_out(node, plan(lost, node.observe())) == [
            "load guard (nft table routerd): 1 pods decided, 1 selected"
        ]
        assert plan(lost, node.observe()) == ()
        before.guard = node.guard
        assert before == node
        assert "TunnelAddressMissing" not in [problem.reason for problem in problems(lost, node.observe())]


def changes(before: Desired, after: Desired) -> list[str]:
    """What a node that was at rest does about a new desired state."""
    node = settled(before)
    return carry_out(node, plan(after, node.observe()))


def test_failover_is_one_write_and_the_word_that_it_happened() -> None:
    """The flows of that gateway look for another one when the word has changed."""
    first, second = Gateway("gw", 2), Gateway("g2", 3)
    both = replace(GROUP, gateways=(first, second))
    failed = replace(both, gateways=(replace(first, up=False), second))
    write, word = changes(on_worker(groups={7: both}), on_worker(groups={7: failed}))
    assert write == "map groups: put group 7: 192.0.2.100 ports 1024-2047 by node 2 down, node 3"
    assert word.startswith("map epoch: put groups ")


def test_a_pod_moves_to_a_set_that_is_complete_and_the_old_one_goes_last() -> None:
    narrower = {"world": replace(POLICY, excluded=(IPv4Network("198.51.100.0/24"),))}
    done = changes(on_worker(), on_worker(policies=narrower))
    assert done == [
        "load guard (nft table routerd): 2 pods decided, 1 selected",
        "map policies: put set 2 0.0.0.0/0: any -> group 7",
        "map policies: put set 2 198.51.100.0/24: leave alone",
        "map pods: put device 5 10.1.0.5: set 2",
        "map policies: delete set 1 0.0.0.0/0: any -> group 7",
    ]


def test_a_pod_that_goes_is_forgotten_with_its_flows() -> None:
    done = changes(on_worker(), on_worker(pods={PLAIN: ()}))
    assert done == [
        "load guard (nft table routerd): 1 pods decided, 0 selected",
        "detach from_pod from device 5",
        "detach to_pod from device 5",
        "map strict_devices: delete device 5",
        "purge flows of 10.1.0.5",
        "map pods: delete device 5 10.1.0.5: set 1",
        "map pod_devices: delete 10.1.0.5: device 5",
        "map policies: delete set 1 0.0.0.0/0: any -> group 7",
    ]


def test_a_gateway_that_steps_down_keeps_the_blackhole_until_last() -> None:
    done = changes(on_gateway(), on_gateway(served={}))
    assert done == [
        "map settings: put node 10.0.0.2, tunnel device 101 port 8473 mtu 1450, object 000000000000abcd",
        f"map egress_ips: delete {TABLE_TEXT}",
        "delete route blackhole 192.0.2.100/32",
    ]


def test_a_node_address_reserves_its_ports_and_has_no_blackhole() -> None:
    done = changes(on_gateway(served={}), on_gateway(served={EGRESS_IP: replace(TABLE, node_address=True)}))
    assert "reserve local ports 61440-65535" in done
    assert not [line for line in done if "blackhole" in line]
    assert f"map egress_ips: put {TABLE_TEXT} (node address)" in done


def test_a_vip_has_no_blackhole_and_reserves_nothing() -> None:
    done = changes(on_gateway(served={}), on_gateway(served={EGRESS_IP: replace(TABLE, vip=True)}))
    assert f"map egress_ips: put {TABLE_TEXT} (VIP)" in done
    assert not [line for line in done if "blackhole" in line or "reserve" in line]


def test_a_new_release_swaps_the_programs_under_the_live_maps() -> None:
    node = settled(on_worker())
    node.digest = 0xBEEF
    done = carry_out(node, plan(on_worker(), node.observe()))
    assert done[:2] == [
        "load eBPF programs and maps",
        "map settings: put node 10.0.0.1, tunnel device 101 port 8473 mtu 1450, object 000000000000beef",
    ]
    assert len(done) == 2
    swapped = carry_out(node, plan(on_worker(), node.observe()))
    assert [line.split()[0] for line in swapped] == ["attach"] * 7
    assert plan(on_worker(), node.observe()) == ()


def test_what_a_release_with_other_maps_left_goes_before_anything_is_loaded() -> None:
    """The guard is there all the time; nothing of the old maps is read or written."""
    node = settled(on_worker())
    node.other_layout, node.maps = True, {name: {} for name in node.maps}
    done = carry_out(node, plan(on_worker(), node.observe()))
    forgotten = "remove eBPF programs and maps of another layout: connections through them end"
    assert done.index(forgotten) + 1 == done.index("load eBPF programs and maps")
    settle(node, on_worker())
    assert is_at_rest(node, on_worker())


def on_another_layout() -> FakeNode:
    """What is there came from a release with other maps, whose flows this one can take over."""
    node = settled(on_worker())
    node.other_layout = node.can_hand_over = True
    return node


def test_flows_of_a_release_with_other_maps_are_taken_over_before_its_programs_are_replaced() -> None:
    node = on_another_layout()
    done = carry_out(node, plan(on_worker(), node.observe()))
    kinds = [line.split()[0] for line in done if not line.startswith("map")]
    assert kinds == ["load", "look", "take", *["attach"] * 7]
    assert done[0] == "load eBPF programs and maps beside those of another layout"
    assert carry_out(node, plan(on_worker(), node.observe())) == [
        "remove eBPF maps of another layout, whose flows were taken over"
    ]
    assert plan(on_worker(), node.observe()) == ()


def test_a_take_over_that_is_cut_anywhere_converges_and_loses_no_flow() -> None:
    actions = plan(on_worker(), on_another_layout().observe())
    for cut in range(len(actions) + 1):
        node = on_another_layout()
        carry_out(node, actions[:cut])
        settle(node, on_worker())
        assert node.flows_taken_over
        assert is_at_rest(node, on_worker())


def test_a_tunnel_on_another_port_is_replaced() -> None:
    node = settled(on_worker())
    assert node.tunnel
    node.tunnel = replace(node.tunnel, port=4789)
    assert carry_out(node, plan(on_worker(), node.observe())) == ["replace tunnel device, UDP port 8473, MTU 1450"]
    settle(node, on_worker())
    node.tunnel = Tunnel(node.tunnel.ifindex, 1450, 8473, up=False, forwarding=True)
    assert carry_out(node, plan(on_worker(), node.observe())) == ["set tunnel device up, forwarding, MTU 1450"]


def test_problems_say_who_must_do_what() -> None:
    nothing = Observed()
    found = {(problem.object, problem.reason) for problem in problems(on_gateway(uplinks=("bond0",)), nothing)}
    assert found == {("node/gw", "TunnelAddressMissing"), ("uplink/bond0", "UplinkMissing")}
    off = replace(settled(on_gateway()).observe(), ip_forward=False)
    assert [problem.reason for problem in problems(on_gateway(), off)] == ["ForwardingOff"]
    lost = problems(on_worker(), FakeNode({PLAIN: DEVICES[PLAIN]}).observe())
    assert [problem.object for problem in lost] == ["pod-address/10.1.0.5"]
    out_here = on_worker(policies={"world": replace(POLICY, exit_local=True)})
    no_uplink = replace(settled(out_here).observe(), facts=replace(settled(out_here).observe().facts, uplinks={}))
    assert [problem.reason for problem in problems(out_here, no_uplink)] == ["UplinkMissing"]
    wireguard = replace(no_uplink.facts, headerless=frozenset({"wg0"}))
    found = {(problem.object, problem.reason) for problem in problems(out_here, replace(no_uplink, facts=wireguard))}
    assert found == {("uplink/wg0", "UplinkWithoutEthernet")}
    many = replace(POLICY, ports=tuple(Ports("TCP", n, n) for n in range(1, 12)))
    said = problems(on_worker(policies={"world": many}), settled(on_worker()).observe())
    assert [(problem.object, problem.reason) for problem in said] == [("world", "TooManyRules")]


FOUR, SIX = IPv4Network("203.0.113.0/24"), IPv6Network("2001:db8::/32")
POD_SIX = IPv6Address("fd01::5")
PODS = {POD: ("world",), POD_SIX: ("world",)}
BESIDE = IPv4Address("10.9.0.5")


@pytest.mark.parametrize(
    ("destinations", "told"), [((), set()), ((FOUR,), {POD}), ((SIX,), {POD_SIX}), ((FOUR, SIX), set(PODS))]
)
def test_what_pods_lack_is_told_in_families_that_a_policy_covers(
    destinations: tuple[IPNetwork, ...], told: set[IPAddress]
) -> None:
    """In others it makes no difference: a node would not be ready for nothing."""
    policies = {"world": replace(POLICY, destinations=destinations)} if destinations else {}
    desired = on_worker(pods=PODS, policies=policies, pod_cidrs=frozenset())
    nowhere = replace(settled(on_worker()).observe(), facts=Facts(uplinks={"eth0": 2}), ambiguous=frozenset(PODS))
    found = problems(desired, nowhere)
    for reason in ("PodDeviceMissing", "PodAddressTwice"):
        assert {each.object for each in found if each.reason == reason} == {f"pod-address/{pod}" for pod in told}
    bridged = {pod: PodDevice(7, "veth7", "cni0", bytes(6), bytes(6)) for pod in PODS}
    found = problems(desired, replace(nowhere, facts=Facts(bridged, {"eth0": 2})))
    outside = [each.message.partition(",")[0] for each in found if each.reason == "PodOutsidePodCidrs"]
    assert outside == ([f"{len(told)} pods"] if told else [])


def test_what_leads_past_the_hooks_is_told_instead_of_a_missing_device() -> None:
    own = {POD: (Unhooked("eth0", "ipvlan", (POD,)),)}
    desired, there = on_worker(pods={POD: ("world",)}), settled(on_worker()).observe()
    [problem] = problems(desired, replace(there, facts=Facts(uplinks={"eth0": 2}, unhooked=own)))
    assert (problem.object, problem.reason) == (f"pod-address/{POD}", "DeviceUnhooked")
    assert problem.message.startswith(f"{POD} is on ipvlan device eth0, which leads past the translation")
    assert "nothing here keeps back what leaves by eth0" in problem.message
    besides = {POD: (Unhooked("net1", "macvlan", (BESIDE,), 2, "eth0"), Unhooked("ens1f0v0", "SR-IOV VF"))}
    [problem] = problems(desired, replace(there, facts=Facts(DEVICES, {"eth0": 2}, unhooked=besides)))
    assert problem.message.startswith(f"the pod of {POD} has macvlan device net1, SR-IOV VF device ens1f0v0 besides:")
    assert (
        "what policies cover is dropped at eth0, answers among it, and nothing here keeps back what leaves by ens1f0v0"
        in problem.message
    )
    empty = {POD: (Unhooked("net1", "ipvlan", (), 2, "eth0"),)}
    [problem] = problems(desired, replace(there, facts=Facts(DEVICES, {"eth0": 2}, unhooked=empty)))
    assert "nothing here keeps back what leaves by net1" in problem.message
    assert "eth0" not in problem.message, "what comes from no known address is dropped nowhere"


def test_what_leaves_by_a_device_past_the_hooks_is_kept_back_at_the_device_beneath() -> None:
    past = {POD: (Unhooked("net1", "macvlan", (BESIDE,), 9, "eth1", MAC),)}
    desired = on_worker(pods={POD: ("world",)})
    kernel = settled(desired)
    observed = kernel.observe()
    actions = plan(desired, replace(observed, facts=replace(observed.facts, unhooked=past)))
    assert [str(action) for action in actions if not isinstance(action, LoadGuard)] == [
        f"look at connections that run: {BESIDE}",
        f"map pods: put device 9 {BESIDE}: set 1",
        "map pod_macs: put device 9 02:00:00:00:00:09: set 1",
        "attach to_beneath to eth1",
    ]


@pytest.mark.parametrize("name", ['a"b', "*", "br*", "\\", "\x1b[2J", "veth-é"])
def test_a_device_that_nft_cannot_name_is_told_and_left_out_of_the_guard(name: str) -> None:
    devices = {POD: PodDevice(7, "veth7", name, bytes(6), bytes(6)), PLAIN: DEVICES[PLAIN]}
    facts = Facts(devices, {"eth0": 2, name: 3}, host_devices=frozenset({"eth0", name}))
    desired = on_worker()
    found = problems(desired, replace(settled(desired).observe(), facts=facts))
    assert [(each.object, each.reason) for each in found if each.reason == "DeviceName"] == [
        (f"pod-address/{POD}", "DeviceName"), (f"node/{desired.node}", "DeviceName"),
    ]  # fmt: skip
    assert all(each.message.isascii() and each.message.isprintable() for each in found)
    sets = render(desired, facts).sets
    assert sets["host_devices"] == {"eth0"}
    assert sets["pod_devices"] == {DEVICES[PLAIN].forward_name}
    assert sets["selected"] == frozenset()
    assert sets["decided"] == {f"{DEVICES[PLAIN].forward_name} . {PLAIN}"}


# --- every prefix of a plan


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(WISHES), st.integers(0, 40)), min_size=1, max_size=5))
def test_plans_cut_anywhere_are_safe_and_converge(story: list[tuple[Desired, int]]) -> None:
    """Each wish is followed for some actions only, then the next one comes; the last is brought to its end."""
    node, before = FakeNode(DEVICES), story[0][0]
    complete = contents_of([wish for wish, _ in story])
    for wish, cut in story:
        actions = plan(wish, node.observe())
        phases = [action.phase for action in actions]
        assert phases == sorted(phases)  # "prepare" before "retire"
        for action in actions[:cut]:
            node.apply(action)
            check_safe(node, (before, wish), complete)
        before = wish
    settle(node, before)
    assert is_at_rest(node, before)


def test_every_cut_of_every_change_converges() -> None:
    for before in WISHES:
        start = settled(before)
        start.flows_of = {POD, PLAIN}
        for after in WISHES:
            actions = plan(after, start.observe())
            for cut in range(len(actions) + 1):
                node = start.copy()
                carry_out(node, actions[:cut])
                settle(node, after)
                assert is_at_rest(node, after)
                assert not node.flows_of & (set(before.pods) - set(after.pods)), "flows of a pod that has gone"


def test_the_model_and_the_plan_speak_of_the_same_policies() -> None:
    """`deciding_policy` reads no map; what the worker's maps say is the same."""
    node = settled(on_worker())
    decoded = tables(node.maps, {}, {})
    policy = deciding_policy([POLICY], IPv4Address("198.51.100.7"), "TCP", 443)
    assert policy is POLICY
    assert decoded.policies[decoded.pods[5, POD]][WORLD][0].group == POLICY.group
    assert Attachment("from_pod", 5) in node.attachments
    assert layout.u32(7) in node.maps["groups"]


def test_an_address_on_a_new_device_loses_the_flows_of_the_old_one_first() -> None:
    before = on_worker()
    node = settled(before)
    address = next(iter(before.pods))
    old = node.devices[address]
    node.devices = {**node.devices, address: replace(old, ifindex=77, name="veth77")}
    done = carry_out(node, plan(before, node.observe()))
    purge, delete = (
        done.index(f"purge flows of {address}"),
        done.index(f"map pods: delete device {old.ifindex} {address}: set 1"),
    )
    put = done.index(f"map pods: put device 77 {address}: set 1")
    assert purge < delete < put


def device(number: int) -> PodDevice:
    return PodDevice(number, f"veth{number}", f"veth{number}", bytes(6), bytes(6))


def test_a_pod_cannot_take_an_address_by_having_it() -> None:
    """A host route decides; else who was there first; else nobody."""
    address, other = IPv4Address("10.1.0.5"), IPv4Address("10.1.0.6")
    both = {address: [device(5), device(6)], other: [device(6)]}
    entry = {bytes(layout.PodKey(5, layout.ip_field(address))): layout.u32(1)}
    assert choose_devices(both, {address: 6}, entry, {address: frozenset({"veth5"})})[address] == device(6)
    assert choose_devices(both, {}, entry, {})[address] == device(5)
    assert choose_devices(both, {}, entry, {address: frozenset({"cni0", "veth6"})})[address] == device(6)
    assert choose_devices(both, {}, entry, {address: frozenset({"cni0"})})[address] == device(5)
    assert address not in choose_devices(both, {}, {}, {})
    assert address not in choose_devices({address: [device(5)], other: [device(6)]}, {address: 6}, {}, {})
    assert choose_devices({address: [device(5)]}, {}, {}, {})[address] == device(5)
