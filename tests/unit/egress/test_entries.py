"""Policy sets: flattened, interned, numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf import layout
from egress.entries import (
    DROP_ALL,
    Facts,
    RuleSpec,
    describe,
    map_entries,
    number_sets,
    overloaded,
)
from egress.entries import policy_set as flatten
from egress.host.links import PodDevice
from egress.nftables.guard import render
from egress.policy import Block, Desired, Gateway, Group, IPNetwork, Policy, Ports, Served
from tests.models.datapath import deciding_policy
from tests.models.tables import granules, longest

NET = IPv4Network
WORLD = NET("0.0.0.0/0")
NODE, OTHER = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")


def lines(*policies: Policy) -> list[str]:
    """The set's prefixes and rules, as text."""
    found = []
    for prefix, rules in sorted(flatten(policies).items()):
        texts = [f"{r.protocol or 'any'}:{r.first}-{r.last}>{r.group}" for r in rules]
        found.append(f"{prefix} {' '.join(texts) or 'alone'}")
    return found


def test_a_longer_prefix_carries_the_rules_of_the_shorter_ones() -> None:
    wide = Policy("wide", 1, (WORLD,))
    https = Policy("https", 2, (NET("198.51.100.0/24"),), ports=(Ports("TCP", 443, 443),))
    assert lines(wide, https) == ["0.0.0.0/0 any:0-0>1", "198.51.100.0/24 6:443-443>2 any:0-0>1"]


def test_an_exclusion_speaks_for_its_own_policy_only() -> None:
    inner = NET("198.51.100.0/24")
    one, two = Policy("one", 1, (WORLD,), excluded=(inner,)), Policy("two", 2, (WORLD,), priority=-1)
    assert lines(one) == ["0.0.0.0/0 any:0-0>1", "198.51.100.0/24 alone"]
    assert lines(one, two) == ["0.0.0.0/0 any:0-0>1", "198.51.100.0/24 any:0-0>2"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Policy("b", 1, (NET("198.51.100.0/24"),)), Policy("a", 2, (WORLD,), priority=9)),
        (Policy("b", 1, (WORLD,), priority=2), Policy("a", 2, (WORLD,), priority=1)),
        (Policy("b", 1, (WORLD,), created="2026-01-01"), Policy("a", 2, (WORLD,), created="2026-01-02")),
        (Policy("b", 1, (WORLD,), created="2026-01-01"), Policy("a", 2, (WORLD,))),
        (Policy("a", 1, (WORLD,)), Policy("b", 2, (WORLD,))),
    ],
    ids=["longer prefix", "priority", "older", "an age", "name"],
)
def test_the_order_of_policies(first: Policy, second: Policy) -> None:
    """The same prefix is decided by the first, in whatever order they come."""
    for policies in ((first, second), (second, first)):
        assert flatten(policies)[first.destinations[0]][0] == RuleSpec(1)


def many_ports(count: int, group: int = 1) -> Policy:
    return Policy("many", group, (WORLD,), ports=tuple(Ports("TCP", 100 + n, 100 + n) for n in range(count)))


def test_more_rules_than_the_datapath_holds_are_dropped_and_told() -> None:
    fits, over = many_ports(layout.MAX_RULES), many_ports(layout.MAX_RULES + 1)
    assert overloaded(fits) == []
    assert overloaded(over) == [WORLD]
    rules = flatten([over])[WORLD]
    assert (len(rules), rules[-1]) == (layout.MAX_RULES, DROP_ALL)


def test_a_policy_without_a_group_is_not_an_overload() -> None:
    """Its rule drops everything too."""
    assert overloaded(many_ports(1), Policy("unpublished", 0, (WORLD,), priority=-1)) == []


def test_rules_behind_one_that_takes_everything_do_not_count() -> None:
    everything = Policy("all", 2, (WORLD,), priority=1)
    assert flatten([everything, many_ports(20)])[WORLD] == (RuleSpec(2),)


# --- numbers ----------------------------------------------------------------------------------------------------------

A, B = Policy("a", 1, (WORLD,)), Policy("b", 2, (NET("198.51.100.0/24"),))
POLICIES = {"a": A, "b": B, "a2": replace(A, name="a2")}


def numbers(*combinations: tuple[str, ...], observed: dict[bytes, bytes] | None = None) -> dict[tuple[str, ...], int]:
    return dict(number_sets(combinations, POLICIES, observed or {})[0])


def entries_of(*combinations: tuple[str, ...], observed: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    """The `policies` map that these combinations make."""
    pods = {IPv4Address(f"10.1.0.{n}"): names for n, names in enumerate(combinations)}
    devices = {pod: PodDevice(n + 1, f"veth{n}", f"veth{n}", bytes(6), bytes(6)) for n, pod in enumerate(pods)}
    desired = Desired("n", NODE, pods=pods, policies=POLICIES)
    return map_entries(desired, Facts(devices), observed or {})["policies"]


def test_equal_sets_are_one() -> None:
    found = numbers(("a",), ("a2",), ("b",), ("a", "b"))
    assert found["a",] == found["a2",]
    assert len(set(found.values())) == 3


def test_a_set_that_is_there_keeps_its_number() -> None:
    first = entries_of(("b",))
    for others in ((("a",),), (("a",), ("a", "b"))):
        found = numbers(("b",), *others, observed=first)
        assert found["b",] == 1
        assert 1 not in [n for names, n in found.items() if names != ("b",)]


def test_an_incomplete_set_is_not_taken_for_the_complete_one() -> None:
    whole = entries_of(("a", "b"))
    part = dict(list(whole.items())[:1])
    assert numbers(("a", "b"), observed=part)["a", "b"] == 2


def test_policies_that_cover_nothing_are_no_set() -> None:
    """Its number would not be in the map, and so be given away again while pods point to it."""
    found = numbers(("gone",), ("a",))
    assert found == {("gone",): 0, ("a",): 1}


combinations = st.lists(
    st.sets(st.sampled_from(["a", "b", "a2"]), min_size=1).map(lambda s: tuple(sorted(s))), max_size=4
)


@settings(max_examples=60)
@given(st.lists(combinations, min_size=1, max_size=5))
def test_a_number_never_changes_its_content(rounds: list[list[tuple[str, ...]]]) -> None:
    observed: dict[bytes, bytes] = {}
    for wanted in rounds:
        after = entries_of(*wanted, observed=observed)
        assert all(observed.get(key, value) == value for key, value in after.items())
        observed = after


# --- other maps -------------------------------------------------------------------------------------------------------


def test_the_maps_of_a_node_as_text() -> None:
    pod = IPv4Address("10.1.0.5")
    egress_ip = IPv4Address("192.0.2.9")
    blocks = (Block(egress_ip, 1024, 1024), Block(egress_ip, 4096, 64, closed=True))
    group = Group(7, (egress_ip,), (Gateway("n", 1), Gateway("o", 2, up=False)), blocks)
    desired = Desired(
        "n", NODE, pods={pod: ("a",), IPv4Address("10.1.0.6"): ()}, policies={"a": replace(A, group=7)},
        groups={7: group}, served={
            egress_ip: Served(granules({1: [(1024, 1024), (4096, 64)], 2: [(2048, 1024)]}), group=7),
        },
        nodes={1: NODE, 2: OTHER}, cluster=frozenset({NET("10.1.0.0/16")}),
    )  # fmt: skip
    device = PodDevice(4, "veth4", "veth4", bytes.fromhex("020000000001"), bytes(6))
    maps = map_entries(desired, Facts({pod: device}, {"eth0": 2}, 9, 1450), {})
    text = [describe(name, k, v) for name in maps for k, v in sorted(maps[name].items()) if name != "cluster"]
    assert text == [
        "node 10.0.0.1, tunnel device 9 port 8473 mtu 1450, object 0000000000000000, way out 0.0.0.0",
        "10.0.0.1: node 1",
        "10.0.0.2: node 2",
        "node 1: 10.0.0.1 here",
        "node 2: 10.0.0.2",
        "device 2",
        "group 7: 192.0.2.9 ports 1024-2047, 192.0.2.9 ports 4096-4159 closed by node 1, node 2 down",
        "groups d50fcf9c",
        "192.0.2.9 of group 7: 1024-2047 node 1, 2048-3071 node 2, 4096-4159 node 1",
        "set 1 0.0.0.0/0: any -> group 7",
        "device 4 10.1.0.5: set 1",
        "10.1.0.5: device 4",
        "device 4",
    ]


# --- the property -----------------------------------------------------------------------------------------------------

SPACE = [NET(t) for t in ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.128.0.0/9")]
ADDRESSES = [IPv4Address(t) for t in ("10.1.1.1", "10.1.1.2", "10.1.2.1", "10.200.0.1", "10.2.0.1", "192.0.2.1")]
some_ports = st.sampled_from(
    [Ports("TCP", 80, 90), Ports("TCP", 85, 443), Ports("TCP"), Ports("UDP", 53, 53), Ports("ICMP")]
)
some_policies = st.lists(
    st.builds(
        Policy, st.sampled_from("abcdef"), st.integers(1, 6),
        st.lists(st.sampled_from(SPACE), min_size=1, max_size=3).map(tuple),
        st.lists(st.sampled_from(SPACE), max_size=2).map(tuple), st.lists(some_ports, max_size=2).map(tuple),
        st.integers(0, 2), st.sampled_from(["", "2026-01-01", "2026-01-02"]),
    ),
    max_size=4, unique_by=lambda policy: policy.name,
)  # fmt: skip


@settings(max_examples=400)
@given(
    some_policies, st.sampled_from(ADDRESSES), st.sampled_from([("TCP", 80), ("TCP", 443), ("UDP", 53), ("ICMP", 0)])
)
def test_one_longest_prefix_lookup_decides_as_all_policies_do(
    policies: list[Policy], destination: IPv4Address, what: tuple[str, int]
) -> None:
    protocol, port = what
    number = {"TCP": 6, "UDP": 17, "ICMP": 1}[protocol]
    rules = longest(flatten(policies), destination) or ()
    fitting = (r for r in rules if r.protocol in (0, number) and (not r.first or r.first <= port <= r.last))
    rule = next(fitting, None)
    policy = deciding_policy(policies, destination, protocol, port)  # type: ignore[arg-type]
    assert (rule.group if rule else None) == (policy.group if policy else None)


SIX = [ip_network(t) for t in ("::/0", "2001:db8::/32", "2001:db8:9::/48", "::ffff:0:0/96")]
PODS = (IPv4Address("10.1.0.5"), IPv6Address("fd01::5"))
DEVICE = PodDevice(5, "veth5", "veth5", bytes(6), bytes(6))
of_both = st.builds(
    lambda policy, destinations, excluded: replace(
        policy, destinations=policy.destinations + destinations, excluded=policy.excluded + excluded
    ),
    some_policies.filter(len).map(lambda policies: policies[0]),
    st.lists(st.sampled_from(SIX), max_size=3, unique=True).map(tuple),
    st.lists(st.sampled_from(SIX), max_size=2, unique=True).map(tuple),
)  # fmt: skip


def only(version: int, networks: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(network for network in networks if network.version == version)


@settings(max_examples=100, deadline=None)
@given(of_both)
def test_each_family_of_a_policy_is_what_it_would_be_alone(policy: Policy) -> None:
    whole = flatten([policy])
    for version in (4, 6):
        part = replace(policy, destinations=only(version, policy.destinations), excluded=only(version, policy.excluded))
        assert {prefix: rules for prefix, rules in whole.items() if prefix.version == version} == flatten([part])
    desired = Desired("n", NODE, dict.fromkeys(PODS, (policy.name,)), {policy.name: policy})
    guard = render(desired, Facts(dict.fromkeys(PODS, DEVICE)))
    for pod, suffix in zip(PODS, ("", "6"), strict=True):
        chains = [element.partition(" : jump ")[2] for element in guard.sets[f"selected{suffix}"]]
        rules = [rule for chain in chains for rule in guard.chains[chain]]
        covered = only(pod.version, policy.destinations)
        assert len(rules) == (len(policy.ports) or 1) * bool(covered)


EGRESS_IP, EGRESS_IP6 = IPv4Address("192.0.2.9"), IPv6Address("fd02::9")
NOBODYS_PORTS = Served(granules({}))
GATEWAY = Desired("n", IPv4Address("10.0.0.1"), served={EGRESS_IP: NOBODYS_PORTS})


def told_of_itself(desired: Desired, facts: Facts) -> tuple[list[str], int]:
    """Where a gateway that answers probes must have a route to, and why it asks to be left alone."""
    (raw,) = map_entries(desired, facts, {})["settings"].values()
    settings = layout.decode(layout.Settings, raw)
    return [
        str(layout.ip_of(way)) for way in (settings.way_out4, settings.way_out6) if any(way)
    ], settings.out_of_service


def test_a_gateway_is_asked_for_a_route_of_the_families_that_it_serves() -> None:
    both = replace(GATEWAY, served={EGRESS_IP: NOBODYS_PORTS, EGRESS_IP6: NOBODYS_PORTS})
    assert told_of_itself(replace(GATEWAY, served={}), Facts()) == ([], 0)
    assert told_of_itself(GATEWAY, Facts()) == (["0.0.0.0"], 0)
    assert told_of_itself(both, Facts()) == (["0.0.0.0", "2000::"], 0)
    narrow = Facts(ways_out={4: IPv4Address("203.0.113.0")})
    assert told_of_itself(both, narrow) == (["203.0.113.0", "2000::"], 0)


def test_what_speaks_against_a_gateway_is_said_and_flows_ask_anew() -> None:
    nowhere = replace(GATEWAY, out_of_service=frozenset({"no-upstream"}))
    assert told_of_itself(nowhere, Facts())[1] == layout.SERVICE_NO_UPSTREAM
    leaves = replace(GATEWAY, out_of_service=frozenset({"draining", "no-session"}))
    assert told_of_itself(leaves, Facts())[1] == layout.SERVICE_DRAINING | layout.SERVICE_NO_SESSION
    assert told_of_itself(GATEWAY, Facts(cut_off=True))[1] == layout.SERVICE_NO_UPLINK
    epochs = [map_entries(*case, {})["epoch"] for case in ((GATEWAY, Facts()), (leaves, Facts()))]
    assert epochs[0] != epochs[1]
