"""The wiring of a cloud's interfaces: from any state to the desired one, and no step leads where nothing is yet."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eni.kernel import within
from eni.plan import (
    FROM_POD,
    MAIN,
    TABLES,
    Action,
    Add,
    Delete,
    Desired,
    Interface,
    IPAddress,
    IPNetwork,
    Link,
    Load,
    Observed,
    Route,
    Rule,
    Set,
    SetLink,
    digests,
    nft_chains,
    plan,
    problems,
    wirable,
    wired,
)

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
LINKS = {mac: Link(number, f"eth{number}", 1500, up=False) for number, mac in enumerate(MACS, 5)}
PRIMARY = Link(2, "eth0", 9001, up=True)
ROUTERS = (IPv4Address("10.0.0.1"), IPv6Address("fe80:ec2::1"))
METADATA = (IPv4Address("169.254.169.254"), IPv6Address("fd00:ec2::254"))
PRIMARY_MARK = 0x1000
PREFIX6 = IPv6Network("2001:db8::/80")
blocks = st.sampled_from(
    [*(IPv4Network(f"10.0.0.{last}/32") for last in range(8, 12)), IPv4Network("10.0.0.32/28"), PREFIX6]
)


def wish(
    owners: dict[IPNetwork, str], macs: set[str], metadata: tuple[IPAddress, ...], inside: tuple[IPNetwork, ...]
) -> Desired:
    """An address is on one interface."""
    of = {mac: tuple(block for block, owner in owners.items() if owner == mac) for mac in MACS}
    there = (mac for mac in MACS if of[mac] or mac in macs)
    return Desired(tuple(Interface(mac, ROUTERS, of[mac]) for mac in there), metadata, PRIMARY_MARK, inside)


VPC = (IPv4Network("10.0.0.0/16"),)
macs = st.sampled_from(MACS)
wishes = st.builds(
    wish, st.dictionaries(blocks, macs), st.sets(macs), st.sampled_from([(), METADATA]), st.sampled_from([(), VPC])
)
links = st.sampled_from([{}, LINKS, {MACS[1]: LINKS[MACS[1]]}])


def after(observed: Observed, action: Action, desired: Desired) -> Observed:
    """The kernel as a model."""
    match action:
        case SetLink():
            found = {mac: replace(each, up=True, mtu=action.mtu) if each.ifindex == action.ifindex else each
                     for mac, each in observed.links.items()}  # fmt: skip
            return replace(observed, links=found)
        case Set():
            return replace(observed, settings={**observed.settings, action.setting: action.value})
        case Add(Rule() as rule):
            return replace(observed, rules=observed.rules | {rule})
        case Add(Route() as route):
            return replace(observed, routes=observed.routes | {route})
        case Load():
            return replace(observed, table=digests(nft_chains(desired, wirable(desired, observed), observed)))
        case Delete(None):
            return replace(observed, table=None)
        case Delete(what):
            return replace(observed, rules=observed.rules - {what}, routes=observed.routes - {what})
    raise AssertionError(action)


def is_safe(observed: Observed) -> bool:
    """What a rule leads into a table of ours finds a way out there."""
    ways = {(route.table, route.gateway.version) for route in observed.routes if route.gateway is not None}
    return all((rule.table, rule.source.version) in ways for rule in observed.rules if rule.priority == FROM_POD)


@given(st.lists(wishes, min_size=1, max_size=4), links)
def test_every_change_ends_as_desired_and_each_step_is_safe(changes: list[Desired], there: dict[str, Link]) -> None:
    observed = Observed(there, PRIMARY)
    for desired in changes:
        for action in plan(desired, observed):
            observed = after(observed, action, desired)
            assert is_safe(observed), action
        assert plan(desired, observed) == ()
        assert wired(desired, observed) == {each.mac for each in desired.interfaces} & there.keys()
        mine = [(each.mac, block) for each in desired.interfaces if each.mac in there for block in each.blocks]
        tables = {rule.source: rule.table for rule in observed.rules if rule.priority == FROM_POD}
        assert tables == {block: TABLES + there[mac].ifindex for mac, block in mine}
        assert all(each.up and each.mtu == PRIMARY.mtu for mac, each in observed.links.items() if mac in dict(mine))
    for action in plan(Desired(), observed):
        observed = after(observed, action, Desired())
    assert (observed.rules, observed.routes, observed.table) == (frozenset(), frozenset(), None)


ONE = Desired((Interface(MACS[0], ROUTERS, (IPv4Network("10.0.0.8"),)),), METADATA)


def whole() -> Observed:
    observed = Observed(LINKS, PRIMARY)
    for action in plan(ONE, observed):
        observed = after(observed, action, ONE)
    return observed


def test_whatever_is_taken_away_is_put_back_and_nothing_is_given_until_then() -> None:
    there = whole()
    assert wired(ONE, there) == {MACS[0]}
    damaged = [replace(there, rules=there.rules - {each}) for each in there.rules]
    damaged += [replace(there, routes=there.routes - {each}) for each in there.routes]
    damaged += [replace(there, settings={**there.settings, each: "0"}) for each in there.settings]
    damaged += [replace(there, table=table) for table in (None, (), there.table and there.table[1:])]
    damaged += [replace(there, links={**LINKS, MACS[0]: replace(there.links[MACS[0]], mtu=1500)})]
    for each in damaged:
        assert wired(ONE, each) == frozenset()
        observed = each
        for action in plan(ONE, each):
            observed = after(observed, action, ONE)
        assert observed == there


def test_an_interface_without_a_device_is_told_and_a_node_without_a_way_out_wires_nothing() -> None:
    assert [each.reason for each in problems(ONE, Observed({}, PRIMARY))] == ["NoDevice"]
    assert [each.reason for each in problems(ONE, Observed(LINKS, None))] == ["NoPrimaryInterface"]
    assert plan(ONE, Observed(LINKS, None)) == ()
    assert problems(ONE, whole()) == []


def test_an_address_that_the_host_has_itself_is_told_and_its_interface_serves_no_new_pods() -> None:
    """As cloud-init of Azure gives it at each boot: the local table is asked before ours."""
    two = Interface(MACS[1], ROUTERS, (IPv4Network("10.0.0.9"),))
    both = replace(ONE, interfaces=(*ONE.interfaces, two))
    observed = Observed(LINKS, PRIMARY)
    for action in plan(both, observed):
        observed = after(observed, action, both)
    there = replace(observed, own=frozenset({IPv4Address("10.0.0.9")}))
    assert (wired(both, observed), wired(both, there)) == ({*MACS}, {MACS[0]})
    assert plan(both, there) == ()
    (problem,) = problems(both, there)
    assert problem.reason == "PodAddressOnHost" and "10.0.0.9" in problem.message


def test_beside_another_of_the_cloud_nothing_is_wired() -> None:
    beside = Observed(LINKS, PRIMARY, others=("Terway",))
    assert (wired(ONE, beside), plan(ONE, beside)) == (frozenset(), ())
    assert [each.reason for each in problems(ONE, beside)] == ["CloudOtherCni"]


BOTH = Desired((*ONE.interfaces, Interface(MACS[1], ROUTERS, (IPv4Network("10.0.0.9"),))), METADATA, PRIMARY_MARK)


@pytest.mark.parametrize("hindered", [{"others": ("Terway",)}, {"primary": None}], ids=["another", "no primary"])
def test_pods_that_run_keep_what_they_have_when_another_comes_until_their_blocks_are_gone(
    hindered: dict[str, Any],
) -> None:
    there = Observed(LINKS, PRIMARY)
    for action in plan(BOTH, there):
        there = after(there, action, BOTH)
    beside = replace(there, **hindered)
    assert (wired(BOTH, beside), plan(BOTH, beside)) == (frozenset(), ())
    for action in plan(ONE, beside):
        beside = after(beside, action, ONE)
    (block,) = ONE.interfaces[0].blocks
    of_one = TABLES + LINKS[MACS[0]].ifindex
    assert {rule for rule in there.rules if block in (rule.source, rule.destination) or rule.mark} == beside.rules
    assert {route for route in there.routes if route.table == of_one} == beside.routes
    assert beside.table == there.table, "metadata stays closed to them"
    for action in plan(Desired(), beside):
        beside = after(beside, action, Desired())
    assert (beside.rules, beside.routes, beside.table) == (frozenset(), frozenset(), None)


def test_metadata_is_closed_to_pods_unless_they_may_read_it() -> None:
    closed = nft_chains(ONE, ONE.interfaces, whole())
    assert closed["forward"].rules == ("ip saddr { 10.0.0.8/32 } ip daddr 169.254.169.254 counter drop",)
    both = replace(ONE.interfaces[0], blocks=(*ONE.interfaces[0].blocks, PREFIX6))
    assert "ip6 daddr fd00:ec2::254 counter drop" in nft_chains(ONE, (both,), whole())["forward"].rules[1]
    assert "forward" not in nft_chains(replace(ONE, metadata=()), ONE.interfaces, whole())


def test_pods_are_translated_outside_of_the_vpc_alone_and_where_no_gateway_does_it() -> None:
    chains = nft_chains(replace(ONE, untranslated=VPC, primary_mark=PRIMARY_MARK), ONE.interfaces, whole())
    (translated,) = chains["postrouting"].rules
    for outside in chains["outside"].rules:
        assert "ip daddr != { 10.0.0.0/16, 224.0.0.0/4 }" in outside
        assert f"meta mark and {PRIMARY_MARK:#x} == 0" in outside
    assert 'oifname "eth0"' in translated
    assert nft_chains(ONE, ONE.interfaces, whole()).keys() == {"prerouting", "forward"}


def test_what_bears_the_primary_interfaces_mark_leaves_by_no_interface_of_pods() -> None:
    marked = replace(ONE, primary_mark=PRIMARY_MARK)
    (rule,) = (each.what for each in plan(marked, whole()) if isinstance(each, Add))
    assert isinstance(rule, Rule)
    assert (rule.mark, rule.table) == (PRIMARY_MARK, MAIN)
    assert rule.priority < FROM_POD


def test_to_pods_the_main_table_is_asked_first() -> None:
    first = min(whole().rules, key=lambda each: each.priority)
    assert (first.destination, first.table) == (IPv4Network("10.0.0.8"), MAIN)


@pytest.mark.parametrize(("before", "after_"), [("1", "2"), ("0", "0"), ("2", "2")])
def test_a_default_route_that_is_advertised_outlives_forwarding_of_ipv6(before: str, after_: str) -> None:
    """Where the kernel takes advertisements, and not somebody beside it."""
    accepts = "ipv6/conf/eth0/accept_ra"
    dual = replace(ONE, interfaces=(replace(ONE.interfaces[0], blocks=(PREFIX6,)),))
    observed, steps = replace(whole(), settings={accepts: before}), []
    for action in plan(dual, observed):
        observed = after(observed, action, dual)
        steps += [action.setting] if isinstance(action, Set) else []
    assert observed.settings[accepts] == after_
    assert observed.settings["ipv6/conf/eth5/accept_ra"] == "0", "it would be another default route"
    assert steps[-1] == "ipv6/conf/all/forwarding"
    assert plan(dual, observed) == ()


def test_addresses_of_a_host_that_blocks_of_pods_have_are_found() -> None:
    blocks = [IPv4Network("10.0.0.8/32"), IPv4Network("10.0.1.0/28"), IPv6Network("fd00:0:0:0:1::/80")]
    mine = {IPv4Address("10.0.0.8"), IPv4Address("10.0.1.15"), IPv6Address("fd00::1:0:0:9")}
    others = {IPv4Address("10.0.0.9"), IPv4Address("10.0.1.16"), IPv6Address("::a00:8"), IPv6Address("fd00::2:0:0:9")}
    assert within(mine | others, blocks) == mine
    assert within(others, ()) == frozenset()
