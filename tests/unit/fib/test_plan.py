"""Routes to other nodes' pods: from any state to the desired one, and nothing of others is ever shadowed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from fib.blackholes import PutVerdicts, RemoveVerdicts
from fib.plan import (
    PRIORITY,
    Action,
    AddRule,
    DeleteRule,
    Desired,
    Hop,
    IPNetwork,
    Observed,
    Put,
    Remove,
    Rule,
    blackhole_rule,
    plan,
    problems,
    states,
    wanted,
    wanted_verdicts,
)

NEAR, ALSO_NEAR, FAR, SIX = map(ip_address, ("10.0.0.12", "10.9.0.12", "192.0.2.1", "fd00::12"))
BLOCK, BLOCK6 = ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64")
LINKS = {2: "eth0", 3: "eth1"}
MAIN = {ip_network("0.0.0.0/0"): 0, ip_network("10.0.0.0/24"): 2, ip_network("10.9.0.0/24"): 3}
MAIN |= {ip_network("fd00::/64"): 2, ip_network("172.17.0.0/16"): 9}  # a device that is no Ethernet link
HERE = Observed(main=MAIN, links=LINKS)

blocks = st.sampled_from([ip_network(f"10.244.{n}.0/{length}") for n in range(4) for length in (24, 26)] + [BLOCK6])
addresses = st.sampled_from([(NEAR,), (NEAR, ALSO_NEAR), (FAR,), (ip_address("172.17.0.3"),), (SIX,), ()])
announced = blocks | st.sampled_from([*map(ip_network, ("10.0.0.12/32", "10.0.0.128/25", "10.9.0.0/24", "10.0.0.0/8"))])
wholes = st.sampled_from([*map(ip_network, ("192.0.2.0/24", "192.0.2.64/26", "198.51.100.0/24", "2001:db8::/64"))])
parts = st.sampled_from([*map(ip_network, ("192.0.2.80/28", "192.0.2.128/25", "10.0.0.0/25", "2001:db8::/120"))])
aggregates = st.dictionaries(wholes, st.none() | st.lists(parts, max_size=2), max_size=3).map(
    lambda found: {whole: (whole,) if of is None else tuple(of) for whole, of in found.items()}
)
hosts = st.sampled_from([*map(ip_network, ("192.0.2.81/32", "192.0.2.200/32", "203.0.113.1/32", "2001:db8::7/128"))])
wishes = st.builds(
    Desired,
    st.dictionaries(blocks, addresses),
    st.none() | st.dictionaries(announced, addresses),
    aggregates,
    st.frozensets(hosts),
)
inside = st.sampled_from(
    [
        *map(ip_network, ("192.0.2.0/24", "192.0.2.9/32", "192.0.0.0/16", "192.0.2.64/27", "2001:db8::9/128")),
        *map(ip_network, ("2001:db8::/32", "::/0")),
    ]
)
others = st.dictionaries(st.one_of(blocks, inside, st.just(ip_network("10.244.0.0/16"))), st.sampled_from([0, 2]))
machines = others.map(lambda found: replace(HERE, main={**MAIN, **found}))


def after(observed: Observed, action: Action) -> Observed:
    """The kernel as a model."""
    match action:
        case Put(routes=routes):
            return replace(observed, routes={**observed.routes, **routes})
        case Remove(prefixes=gone):
            return replace(observed, routes={p: hops for p, hops in observed.routes.items() if p not in gone})
        case AddRule(rule=rule):
            return replace(observed, rules=observed.rules | {rule})
        case DeleteRule(rule=rule):
            return replace(observed, rules=observed.rules - {rule})
        case PutVerdicts(verdicts=verdicts):
            return replace(observed, verdicts={**observed.verdicts, **verdicts})
        case RemoveVerdicts(prefixes=gone):
            return replace(observed, verdicts={p: v for p, v in observed.verdicts.items() if p not in gone})


def brought(desired: Desired, observed: Observed) -> Observed:
    for action in plan(desired, observed):
        observed = after(observed, action)
    return observed


def is_within(other: IPNetwork, prefix: IPNetwork) -> bool:
    return other.version == prefix.version and other.subnet_of(prefix)  # type: ignore[arg-type]


@given(wishes, wishes, machines)
def test_any_state_comes_to_the_desired_one_and_stays(before: Desired, desired: Desired, machine: Observed) -> None:
    there = brought(desired, brought(before, machine))
    assert plan(desired, there) == ()
    assert there.routes == wanted(desired, brought(before, machine))
    passed = {rule for rule in there.rules if rule.received}
    assert there.rules - passed == {Rule(prefix.version) for prefix in there.routes}
    assert passed == {blackhole_rule(prefix.version) for prefix in there.verdicts}
    empty = brought(Desired(), there)
    assert (empty.routes, empty.rules, empty.verdicts) == ({}, frozenset(), {})


@given(wishes, wishes, machines)
def test_no_blackhole_goes_before_the_withdrawal_of_its_aggregate(
    before: Desired, desired: Desired, machine: Observed
) -> None:
    observed = brought(before, machine)
    for action in plan(desired, observed):
        verdicts = observed.verdicts
        observed = after(observed, action)
        if action.phase == "retire":
            assert wanted_verdicts(desired, machine).items() <= observed.verdicts.items()
        else:
            assert verdicts.keys() <= observed.verdicts.keys()


probes = st.sampled_from(
    [
        *map(ip_network, ("192.0.2.0/32", "192.0.2.9/32", "192.0.2.70/32", "192.0.2.81/32", "192.0.2.85/32")),
        *map(ip_network, ("192.0.2.200/32", "192.0.2.201/32", "198.51.100.3/32", "10.0.0.12/32", "203.0.113.1/32")),
        *map(ip_network, ("2001:db8::7/128", "2001:db8::8/128", "2001:db8::9/128", "2001:db8::1:0/128")),
    ]
)


@given(wishes, machines, probes)
def test_a_blackhole_takes_what_is_a_pools_and_has_no_way_but_the_default_one(
    desired: Desired, machine: Observed, probe: IPNetwork
) -> None:
    """As the kernel decides, by the longest prefix. What a link's network, another's route or a node has goes on."""
    verdicts = brought(desired, machine).verdicts
    holding = [prefix for prefix in verdicts if is_within(probe, prefix)]
    is_dropped = bool(holding) and verdicts[max(holding, key=lambda each: each.prefixlen)] == "blackhole"
    assert desired.aggregates is not None
    of_a_pool = any(is_within(probe, part) for parts in desired.aggregates.values() for part in parts)
    has_a_way = any(prefix.prefixlen and is_within(probe, prefix) for prefix in machine.main)
    assert is_dropped == (of_a_pool and not has_a_way and probe not in desired.spared)


@given(wishes, machines)
def test_nothing_of_others_is_shadowed_and_every_next_hop_is_on_a_link(desired: Desired, machine: Observed) -> None:
    found = wanted(desired, machine)
    assert not [(prefix, other) for prefix in found for other in machine.main if is_within(other, prefix)]
    assert all(hops and {hop.ifindex for hop in hops} <= LINKS.keys() for hops in found.values())
    assert set(states(desired, brought(desired, machine)).values()) <= {"installed", "taken", "not-on-link"}


@given(wishes, wishes, machines)
def test_what_is_learnt_takes_nothing_out_of_a_link_or_a_block(
    before: Desired, desired: Desired, machine: Observed
) -> None:
    """Whatever was there before: packets to neighbours are not the announcer's."""
    there = brought(desired, brought(before, machine))
    learnt = there.routes.keys() - desired.routes.keys()
    held = [*desired.routes, *(network for network, device in MAIN.items() if device)]
    assert not [(prefix, other) for prefix in learnt for other in held if is_within(prefix, other)]


@given(wishes, machines)
def test_a_prefix_that_has_a_way_is_never_left_out(desired: Desired, machine: Observed) -> None:
    told = [*desired.routes.items(), *(desired.learnt or {}).items()]
    near = {prefix for prefix, found in told if set(found) & {NEAR, SIX}}
    held = [*desired.routes, *(other for other, device in machine.main.items() if device)]
    learnt = {prefix for prefix in near - desired.routes.keys() if any(is_within(prefix, other) for other in held)}
    free = {prefix for prefix in near if not any(is_within(other, prefix) for other in machine.main)} - learnt
    assert free <= wanted(desired, machine).keys()


def test_several_links_share_and_one_link_has_one_next_hop() -> None:
    found = wanted(Desired({BLOCK: (NEAR, ip_address("10.0.0.13"), ALSO_NEAR, FAR)}), HERE)
    assert found == {BLOCK: {Hop(NEAR, 2), Hop(ALSO_NEAR, 3)}}


def test_a_learnt_prefix_has_all_its_next_hops_and_gives_way_to_a_link() -> None:
    also = ip_address("10.0.0.13")
    learnt = Desired(learnt={BLOCK: (NEAR, also, FAR)})
    assert wanted(learnt, HERE) == {BLOCK: {Hop(NEAR, 2), Hop(also, 2)}}
    assert wanted(replace(learnt, routes={BLOCK: (ALSO_NEAR,)}), HERE) == {BLOCK: {Hop(ALSO_NEAR, 3)}}
    assert wanted(replace(learnt, routes={BLOCK: (FAR,)}), HERE) == wanted(learnt, HERE), "on no link"
    assert states(learnt, replace(HERE, main={**MAIN, BLOCK: 2})) == {BLOCK: "taken"}


def test_a_living_way_is_better_than_one_without_a_carrier() -> None:
    """Also a learnt one than a link to the node itself."""
    dark = replace(HERE, dark=frozenset({2}))
    both = Desired({BLOCK: (NEAR,)}, {BLOCK: (NEAR, ALSO_NEAR)})
    assert wanted(both, HERE) == wanted(Desired({BLOCK: (NEAR,)}), dark) == {BLOCK: {Hop(NEAR, 2)}}
    assert wanted(both, dark) == {BLOCK: {Hop(ALSO_NEAR, 3)}}


def test_before_peers_have_told_what_is_learnt_stays_and_direct_routes_go_on() -> None:
    """Else a node whose peers tell nothing for long has no way to a node that comes."""
    far, gone = ip_network("10.250.0.0/16"), ip_network("10.251.0.0/16")
    there = {far: frozenset({Hop(NEAR, 2)}), gone: frozenset({Hop(NEAR, 2)}), BLOCK: frozenset({Hop(NEAR, 2)})}
    machine = replace(HERE, main={**MAIN, gone: 0}, routes=there, rules=frozenset({Rule(4)}))
    desired = Desired({BLOCK: (ALSO_NEAR,), BLOCK6: (SIX,)}, None)
    direct = {BLOCK: frozenset({Hop(ALSO_NEAR, 3)}), BLOCK6: frozenset({Hop(SIX, 2)})}
    assert plan(desired, machine) == (Put(direct), AddRule(Rule(6)), Remove((gone,)))


def test_a_route_to_the_neighbour_itself_says_where_it_is() -> None:
    """As `main` would: a host route by a router is more than the network on the link."""
    machine = replace(HERE, main={**MAIN, ip_network("10.0.0.12/32"): 0})
    assert states(Desired({BLOCK: (NEAR,)}), machine) == {BLOCK: "not-on-link"}


def test_what_another_has_in_main_is_told_once_and_stays() -> None:
    desired = Desired({ip_network(f"10.244.{n}.0/24"): (NEAR,) for n in range(6)})
    assert problems(desired, HERE) == []
    machine = replace(
        HERE, main={**MAIN, **dict.fromkeys(desired.routes, 0)}, routes={BLOCK: frozenset({Hop(NEAR, 2)})}
    )
    (told,) = problems(desired, machine)
    assert (told.object, told.reason) == ("NativeRouting", "RouteTaken")
    assert "6 of 6 prefixes of pods (10.244.0.0/24, 10.244.1.0/24, 10.244.2.0/24, 3 more)" in told.message
    assert plan(desired, machine) == (Remove((BLOCK,)),)


def test_what_is_learnt_of_a_link_is_told_apart() -> None:
    hosts = {ip_network(f"10.0.0.{n}/32"): (ip_address("10.0.0.1"),) for n in range(4)}
    (told,) = problems(Desired({BLOCK: (NEAR,)}, hosts), HERE)
    assert told.message.startswith("BGP peers announce 4 prefixes (10.0.0.0/32, 10.0.0.1/32, 10.0.0.2/32, 1 more)")


def test_a_rule_of_an_earlier_kind_gives_way() -> None:
    old = Rule(4, PRIORITY - 1)
    machine = replace(HERE, rules=frozenset({old}))
    assert [*map(str, plan(Desired({BLOCK: (NEAR,)}), machine))] == [
        "put routes to 10.244.2.0/24",
        "add IPv4 rule 32765 to table 203",
        "delete IPv4 rule 32764 to table 203",
    ]
