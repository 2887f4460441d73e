"""The decision, case by case: requests, families, sharing, refusals, and that nothing is done on half a view."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest

from routerd.cluster.assign import assign
from routerd.cluster.ledger import ADDRESSES, Ledger
from routerd.model import LabelSelector, Namespace, ServiceSelection
from tests.models.operator_world import World


@pytest.fixture
def world() -> World:
    world = World()
    world.pool("default", "192.0.2.0/24")
    return world


def refusals(world: World) -> list[tuple[str, str]]:
    world.decide()
    return [(str(refusal.object), refusal.reason) for refusal in world.allocations.refusals]


def test_lowest_address_first_as_metallb(world: World) -> None:
    world.service("web")
    assert world.decide() == "d/web default 192.0.2.0"


def test_buggy_addresses_are_left_out(world: World) -> None:
    world.edit_pool("default", avoid_buggy_ips=True)
    world.service("web")
    assert world.decide() == "d/web default 192.0.2.1"
    world.service("asks", ips="192.0.2.255")
    assert world.decide().endswith(
        '! svc/d/asks NotInPool: ["192.0.2.255"] is not allowed in config: '
        'pool "default" leaves out addresses that end with .0 and .255'
    )


@pytest.mark.parametrize("part", ["services", "policies", "pools", "nodes"])
def test_half_a_view_changes_nothing(world: World, part: str) -> None:
    world.service("web")
    world.decide()
    world.services.clear()
    decision = assign(replace(world.snapshot(), **{part: None}), world.ledger, {}, world.now)
    assert not decision.synced
    assert decision.allocations is world.allocations
    assert decision.ledger is world.ledger
    assert not assign(world.snapshot(), world.ledger, None, world.now).synced


def test_a_pool_for_some_services_keeps_what_it_gave_when_its_selectors_change(world: World) -> None:
    red, blue = (ServiceSelection(LabelSelector((("color", color),))) for color in ("red", "blue"))
    world.pool("a", "198.51.100.0/24", services=(red,), priority=1)
    world.service("red", labels={"color": "red"})
    world.service("blue", labels={"color": "blue"})
    assert world.decide() == "d/blue default 192.0.2.0\nd/red a 198.51.100.0"
    world.edit_pool("a", services=(blue,))
    world.service("blue", labels={"color": "green"})
    world.service("late", labels={"color": "blue"})
    assert world.decide() == "d/blue default 192.0.2.0\nd/late a 198.51.100.1\nd/red a 198.51.100.0"
    del world.services["d/red"]
    world.decide()
    world.service("red", labels={"color": "red"})  # of the same name, and not selected any more
    assert "d/red default 192.0.2.1" in world.decide()


def test_a_pool_for_labels_of_namespaces_waits_for_the_namespaces(world: World) -> None:
    world.pool("a", "198.51.100.0/24", services=(ServiceSelection(namespaces=LabelSelector((("team", "a"),))),))
    world.service("web")
    unread = replace(world.snapshot(), namespaces=None)
    assert not assign(unread, world.ledger, {}, world.now).synced
    there = {"d": Namespace("d", {"team": "a"})}
    decision = assign(replace(unread, namespaces=there), world.ledger, {}, world.now)
    assert [each.pool for each in decision.allocations.services] == ["a"]


def test_only_our_class_is_served(world: World) -> None:
    world.service("own", load_balancer_class="routerd.io/bgp")
    world.service("other", load_balancer_class="example.com/lb")
    world.service("cluster", type="ClusterIP")
    assert world.decide() == "d/own default 192.0.2.0"


def test_requested_addresses_are_served_before_any(world: World) -> None:
    world.service("a")
    world.service("z", ips="192.0.2.0")
    assert world.decide() == "d/a default 192.0.2.1\nd/z default 192.0.2.0"


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"ips": "198.51.100.1"}, "NotInPool", '["198.51.100.1"] is not allowed in config'),
        ({"requested_pool": "nope"}, "UnknownPool", 'unknown pool "nope"'),
        ({"ips": "192.0.2.9", "requested_pool": "nope"}, "UnknownPool", 'unknown pool "nope"'),
        (
            {"ips": "192.0.2.9", "requested_pool": "small"},
            "NotInPool",
            'requested ["192.0.2.9"] is not compatible with requested address pool "small"',
        ),
        ({"requested_pool": "small", "ip_families": ("IPv6",)}, "PoolExhausted", 'no available IPs in pool "small"'),
        ({"requested_pool": "drained"}, "PoolDisabled", 'pool "drained" is disabled'),
        ({"requested_pool": "egress"}, "PoolNotForUse", 'pool "egress" does not serve loadbalancer'),
        ({"ips": "192.0.2.1 198.51.100.128"}, "NotInPool", 'lies in pools "default" and "small": request addresses of'),
        ({"ips": "192.0.2.1", "ip_families": ("IPv6",)}, "FamilyMismatch", "service: request addresses of IPv6"),
        ({"ips": "192.0.2.1", "ip_family_policy": "RequireDualStack"}, "FamilyMismatch", "does not match"),
        ({"ips": "192.0.2.77"}, "AddressInUse", 'sharing key for "192.0.2.77", address also in use by svc/d/a'),
        ({"ip_family_policy": "RequireDualStack"}, "PoolExhausted", "no available IPs for IPv6 IPFamily"),
    ],
)  # fmt: skip
def test_every_no_has_a_reason(world: World, fields: dict[str, object], reason: str, message: str) -> None:
    world.pool("small", "198.51.100.128/32", auto_assign=False)
    world.pool("drained", "203.0.113.0/24", disabled=True)
    world.pool("egress", "10.0.0.0/24", uses="egress")
    world.service("a", ips="192.0.2.77")
    world.service("web", **fields)
    world.decide()
    (refusal,) = world.allocations.refusals
    assert (str(refusal.object), refusal.reason) == ("svc/d/web", reason)
    assert message in refusal.message


def test_an_exhausted_pool(world: World) -> None:
    world.edit_pool("default", "192.0.2.0/31")
    for name in "abc":
        world.service(name, requested_pool="default")
    assert (
        world.decide()
        .splitlines()[-1]
        .startswith('! svc/d/c PoolExhausted: no available IPs in pool "default" for IPv4 IPFamily')
    )
    del world.services["d/a"]
    world.decide()
    assert "svc/d/c PoolExhausted" in world.decide(29), "the freed address cools down"
    assert world.last is not None and world.last.next_due == world.now + 1
    assert world.decide(1) == "d/b default 192.0.2.1\nd/c default 192.0.2.0"


def test_no_pool_at_all() -> None:
    world = World()
    world.service("web")
    assert refusals(world) == [("svc/d/web", "NoPool")]


def test_pools_by_priority_then_name() -> None:
    world = World()
    world.pool("b", "10.0.2.0/32")
    world.pool("a", "10.0.1.0/32")
    world.pool("urgent", "10.0.3.0/32", priority=5)
    for name in "xyz":
        world.service(name)
    assert world.decide() == "d/x urgent 10.0.3.0\nd/y a 10.0.1.0\nd/z b 10.0.2.0"


def test_older_services_are_served_first(world: World) -> None:
    world.service("a", created="2026-02-01T00:00:00Z")
    world.service("z", created="2026-01-01T00:00:00Z")
    assert world.decide() == "d/a default 192.0.2.1\nd/z default 192.0.2.0"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "192.0.2.0"),
        ({"ip_families": ("IPv6",)}, "2001:db8::"),
        ({"cluster_ips": (ip_address("fd00::1"),)}, "2001:db8::"),
        ({"ip_family_policy": "PreferDualStack"}, "192.0.2.0 2001:db8::"),
        ({"ip_family_policy": "PreferDualStack", "ip_families": ("IPv6",)}, "2001:db8:: 192.0.2.0"),
        ({"ip_family_policy": "PreferDualStack", "cluster_ips": (ip_address("10.0.0.1"),)}, "192.0.2.0"),
        ({"ip_family_policy": "RequireDualStack", "ip_families": ("IPv6", "IPv4")}, "2001:db8:: 192.0.2.0"),
        ({"ip_family_policy": "PreferDualStack", "ips": "2001:db8::5 192.0.2.5"}, "192.0.2.5 2001:db8::5"),
    ],
)
def test_families(world: World, fields: dict[str, object], expected: str) -> None:
    world.edit_pool("default", "192.0.2.0/24", "2001:db8::/64")
    world.service("web", **fields)
    assert world.decide() == f"d/web default {expected}"


def test_several_addresses_of_one_family(world: World) -> None:
    world.service("web", ips="192.0.2.200 192.0.2.100")
    assert world.decide() == "d/web default 192.0.2.100 192.0.2.200"
    assert world.decide() == "d/web default 192.0.2.100 192.0.2.200"
    world.service("other", ips="192.0.2.100 192.0.2.101")
    assert world.decide().endswith('! svc/d/other AddressInUse: can\'t change sharing key for "192.0.2.100", address '
                                   "also in use by svc/d/web")  # fmt: skip
    del world.services["d/other"]
    world.lose_file()
    world.allocations = replace(world.allocations, generation=0, services=())
    world.service("web", ips="192.0.2.100 192.0.2.200", status="192.0.2.100 192.0.2.200")
    world.service("a", ips="192.0.2.100")
    assert world.decide().startswith("d/web default 192.0.2.100 192.0.2.200")
    world.service("web")
    assert world.decide().startswith("d/web default 192.0.2.100\n")


def test_both_families_come_from_one_pool() -> None:
    world = World()
    world.pool("four", "192.0.2.0/28")
    world.pool("six", "2001:db8::/120")
    world.service("web", ip_family_policy="RequireDualStack")
    world.service("prefers", ip_family_policy="PreferDualStack")
    apart = (
        "! svc/d/web FamiliesApart: no pool has free addresses of both families, and both must come from one pool: "
        '"four" has IPv4, "six" has IPv6; put a block of each family into one pool'
    )
    assert world.decide() == f"d/prefers four 192.0.2.0\n{apart}"
    world.service("web")
    world.decide()
    world.service("web", ip_family_policy="RequireDualStack")
    assert world.decide().splitlines()[1:] == [
        "d/web four 192.0.2.1",
        '! svc/d/web FamiliesApart: pool "four", of which the service has an address, has no IPv6, and both families '
        "must come from one pool: add a block to it",
    ]


def test_prefer_dual_stack_takes_what_there_is_and_the_rest_later(world: World) -> None:
    world.service("web", ip_family_policy="PreferDualStack")
    assert world.decide() == "d/web default 192.0.2.0"
    world.edit_pool("default", "192.0.2.0/24", "2001:db8::/64")
    assert world.decide() == "d/web default 192.0.2.0 2001:db8::"
    world.service("web")
    assert world.decide() == "d/web default 192.0.2.0"


def test_sharing_by_key_and_disjoint_ports(world: World) -> None:
    world.service("a", 80, sharing_key="k")
    world.service("b", 443, sharing_key="k")
    world.service("c", 80, sharing_key="k")
    world.service("d", 443, sharing_key="k", external_traffic_policy="Local", selector={"app": "d"})
    assert [line.split()[2] for line in world.decide().splitlines()] == [
        "192.0.2.0", "192.0.2.0", "192.0.2.1", "192.0.2.2",
    ]  # fmt: skip


def test_a_port_that_begins_to_clash_moves_who_was_edited(world: World) -> None:
    world.service("a", 80, sharing_key="k")
    world.service("b", 443, sharing_key="k")
    world.decide()
    world.service("b", 80, sharing_key="k")
    assert world.decide() == "d/a default 192.0.2.0\nd/b default 192.0.2.1"


def test_a_ledgers_row_of_before_may_end_early() -> None:
    record = ADDRESSES.from_row("192.0.2.1", "svc/d/a", "p", "used", 1.5, 0)
    assert (record.use, ADDRESSES.from_row(*ADDRESSES.to_row(record))) == (None, record)


def test_a_sharing_key_of_namespaces_needs_the_consent_of_both(world: World) -> None:
    def share(namespace: str, port: int, consent: str, name: str = "x") -> None:
        world.service(name, port, sharing_key="k", sharing_namespaces=frozenset(consent.split()))
        world.services[f"{namespace}/{name}"] = replace(world.services.pop(f"d/{name}"), namespace=namespace)

    share("a", 1, "b")
    share("b", 2, "")
    assert world.decide() == "a/x default 192.0.2.0\nb/x default 192.0.2.1"
    for consent, other in (("a", "b"), ("a c", "b"), ("*", "b"), ("a", "*"), ("*", "*")):
        world.services.clear()
        world.decide()
        world.decide(31)
        share("a", 1, other)
        share("b", 2, consent)
        share("b", 3, "", name="y")  # of its own namespace alone
        assert world.decide() == "a/x default 192.0.2.0\nb/x default 192.0.2.0\nb/y default 192.0.2.1", consent


def test_overlapping_pools(world: World) -> None:
    world.pool("other", "192.0.2.128/25", "198.51.100.0/24")
    world.service("a", requested_pool="other")
    assert refusals(world) == [("AddressPool/other", "PoolConflicting"), ("svc/d/a", "PoolConflicting")]


def test_a_refused_request_keeps_the_last_good_address(world: World) -> None:
    world.service("web")
    world.decide()
    world.service("web", ips="198.51.100.1")
    assert world.decide().splitlines()[0] == "d/web default 192.0.2.0"
    world.service("web", ips="192.0.2.8")
    assert world.decide() == "d/web default 192.0.2.8"


def test_egress_ip_of_a_service_is_refused(world: World) -> None:
    world.node("g")
    world.service("web")
    world.decide()
    world.policy("thief", "192.0.2.0")
    assert refusals(world) == [("EgressPolicy/thief", "AddressInUse")]


def test_policies_share_a_given_egress_ip(world: World) -> None:
    world.node("g")
    world.policy("a", "198.51.100.7")
    world.policy("b", "198.51.100.7")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/a,EgressPolicy/b via g"


def test_same_egress_ip_with_other_gateways(world: World) -> None:
    world.node("g", labels={"routerd.io/egress-gateway": "", "zone": "a"})
    world.policy("a", "198.51.100.7", created="2026-02-01T00:00:00Z", gateways=LabelSelector((("zone", "a"),)))
    world.policy("b", "198.51.100.7", created="2026-01-01T00:00:00Z")
    first, second = world.decide().splitlines()
    assert first == "group 1 198.51.100.7 EgressPolicy/b via g"
    assert second.startswith(
        "! EgressPolicy/a GatewaysDiffer: EgressPolicy/b has the same egress IP and other gateways"
    )


def test_gateways_take_turns_where_the_policy_or_the_operator_says_so(world: World) -> None:
    world.node("g")
    world.node("owner", None, reports="198.51.100.9")
    world.policy("a", "198.51.100.7")
    world.policy("b", "198.51.100.8", gateway_mode="active-standby")
    world.policy("c", "198.51.100.9")
    alike = [
        "group 1 198.51.100.7 EgressPolicy/a via g",
        "group 2 198.51.100.8 EgressPolicy/b via g in this order",
        "group 3 198.51.100.9 EgressPolicy/c via owner node-address",
    ]
    assert world.decide().splitlines() == alike
    world.settings = replace(world.settings, gateway_mode="active-standby")
    assert world.decide().splitlines() == [f"{alike[0]} in this order", *alike[1:]]


def test_same_egress_ip_in_another_gateway_mode(world: World) -> None:
    world.node("g")
    world.policy("a", "198.51.100.7", created="2026-02-01T00:00:00Z", gateway_mode="active-standby")
    world.policy("b", "198.51.100.7", created="2026-01-01T00:00:00Z")
    world.policy("c", "198.51.100.7", created="2026-03-01T00:00:00Z", gateway_mode="ecmp")
    group, refusal = world.decide().splitlines()
    assert group == "group 1 198.51.100.7 EgressPolicy/b,EgressPolicy/c via g"
    assert refusal.startswith(
        "! EgressPolicy/a GatewaysDiffer: EgressPolicy/b has the same egress IP and another gateway mode"
    )


def test_an_address_from_a_pool_is_not_shared(world: World) -> None:
    world.node("g")
    world.policy("a", pool="default")
    world.decide()
    world.policy("b", "192.0.2.0")
    assert refusals(world) == [("EgressPolicy/b", "AddressInUse")]
    assert world.allocations.groups[0].pool == "default"


def test_egress_ip_and_pool_must_agree(world: World) -> None:
    world.node("g")
    world.policy("a", "198.51.100.7", pool="default")
    assert refusals(world) == [("EgressPolicy/a", "NotInPool")]
    world.policy("a", "192.0.2.9", pool="default")
    assert refusals(world) == []


@pytest.mark.parametrize(
    ("label", "gateways", "message"),
    [
        (None, None, "no node matches label routerd.io/egress-gateway, and no node reports 198.51.100.7"),
        ("false", None, "no node matches label routerd.io/egress-gateway, and no node reports 198.51.100.7"),
        ("", LabelSelector((("zone", "b"),)), "no node matches node selector (zone=b)"),
    ],
)
def test_no_gateway(world: World, label: str | None, gateways: LabelSelector | None, message: str) -> None:
    world.node("g", label)
    world.policy("a", "198.51.100.7", gateways=gateways)
    group, refusal = world.decide().splitlines()
    assert group == "group 1 198.51.100.7 EgressPolicy/a via none"
    assert refusal.startswith(f"! EgressPolicy/a NoGateway: {message}")


def test_a_node_without_a_tunnel_endpoint_is_no_gateway(world: World) -> None:
    world.node("g1", addresses=())
    world.node("g2", ready=False)
    world.policy("a", "198.51.100.7")
    group, refusal = world.decide().splitlines()
    assert group == "group 1 198.51.100.7 EgressPolicy/a via none"
    assert "is ready (g1 has no address, g2): traffic" in refusal
    world.node("g2")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/a via g2"


SIX, FOUR = ip_network("2001:db8::/32"), ip_network("203.0.113.0/24")


def test_a_policy_of_both_families_has_its_group_and_says_what_is_not_translated(world: World) -> None:
    world.node("g")
    world.policy("web", "198.51.100.7", destinations=(FOUR, SIX))
    group, refused = world.decide().splitlines()
    assert group == "group 1 198.51.100.7 EgressPolicy/web via g"
    told = "no egress IP of its family, but 198.51.100.7: what the selected pods send to 2001:db8::/32 is dropped"
    assert refused == f"! EgressPolicy/web UnsupportedFamily: {told}"


@pytest.mark.parametrize(
    ("ip", "fields"),
    [("198.51.100.7", {"destinations": (SIX,)}), ("2001:db8::7", {"destinations": (FOUR,)})],
)
def test_a_policy_of_which_nothing_is_translated_gets_no_egress_ip(world: World, ip: str, fields: Any) -> None:
    world.node("g")
    world.policy("web", ip, **fields)
    assert refusals(world) == [("EgressPolicy/web", "UnsupportedFamily")]
    assert world.allocations.groups == ()
    assert world.ledger.addresses == ()


def test_a_policy_whose_pool_has_one_family_only_says_what_is_not_translated(world: World) -> None:
    world.node("g")
    world.policy("web", pool="default", destinations=(FOUR, SIX))
    group, refused = world.decide().splitlines()
    assert group.startswith("group 1 192.0.2.")
    assert refused.startswith("! EgressPolicy/web UnsupportedFamily: no egress IP of its family, but 192.0.2.")


@pytest.mark.parametrize("destination", [FOUR, SIX])
def test_a_node_with_ipv6_addresses_only_is_a_gateway_of_both_families(
    world: World, destination: IPv4Network | IPv6Network
) -> None:
    world.node("g", addresses=(ip_address("fd00::1"),))
    world.policy("a", "198.51.100.7" if destination.version == 4 else "2001:db8:1::7", destinations=(destination,))
    assert "via g" in world.decide()


def test_a_pool_gives_an_egress_ip_that_something_is_translated_to(world: World) -> None:
    world.node("g")
    world.pool("six", "2001:db8:1::/64")
    world.policy("web", pool="six")
    assert refusals(world) == [("EgressPolicy/web", "PoolExhausted")]
    assert world.allocations.groups == ()


def test_group_numbers_rotate_and_wrap(world: World) -> None:
    world.node("g")
    world.ledger = Ledger(next_group=(1 << 24) - 1, digest="x")
    world.policy("a", "198.51.100.1")
    world.policy("b", "198.51.100.2")
    world.decide()
    assert [group.id for group in world.allocations.groups] == [1, (1 << 24) - 1]
    del world.policies["EgressPolicy/a"]
    world.decide()
    world.decide(3600)
    world.policy("c", "198.51.100.3")
    world.decide(200)
    assert sorted(group.id for group in world.allocations.groups) == [1, 2]


def test_the_generation_grows_iff_the_content_changes(world: World) -> None:
    world.service("web")
    world.decide()
    assert world.allocations.generation == 1
    before = world.allocations
    world.decide(500)
    assert world.allocations is before
    world.service("web", 8080)
    world.decide()
    assert world.allocations is before
    world.service("db")
    world.decide()
    assert world.allocations.generation == 2


def test_recorded_but_not_published_comes_to_the_same_document(world: World) -> None:
    world.service("web")
    published = world.allocations
    world.decide()
    decided = world.allocations
    world.allocations = published
    world.decide(5)
    assert world.allocations == decided


def test_an_address_kept_from_a_pool_is_not_shared_with_who_gives_it(world: World) -> None:
    """The policy now gives another address, which it cannot have; what it keeps meanwhile stays its own."""
    world.node("g")
    world.service("web", ips="192.0.2.50")
    world.policy("a", pool="default")
    world.decide()
    world.policy("a", "192.0.2.50")
    world.policy("b", "192.0.2.0")
    assert refusals(world) == [("EgressPolicy/a", "AddressInUse"), ("EgressPolicy/b", "AddressInUse")]
    assert [group.policies for group in world.allocations.groups] == [("EgressPolicy/a",)]


def test_what_a_later_request_leaves_is_seen_by_an_earlier_one(world: World) -> None:
    world.service("z", ips="192.0.2.7")
    world.decide()
    world.service("a", ips="192.0.2.7")
    world.service("z", ips="192.0.2.8")
    first = world.decide()
    assert '! svc/d/a AddressCooling: "192.0.2.7" was released by svc/d/z' in first
    assert world.decide() == first


def test_a_policy_that_moves_to_a_nodes_own_address_keeps_the_one_from_a_pool_reserved(world: World) -> None:
    world.node("g", reports="198.51.100.3")
    world.policy("a")
    world.decide()
    world.policy("a", "198.51.100.3")
    world.decide()
    world.policy("b")
    assert "EgressPolicy/b" in world.decide(3600)
    (group,) = [group for group in world.allocations.groups if group.policies == ("EgressPolicy/b",)]
    assert group.egress_ip == ip_address("192.0.2.1")
    assert world.release("192.0.2.0") == 1
