"""Stories of policies by reference to a Service: the pods behind it leave with its VIP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routerd.cluster import vips
from routerd.cluster.ledger import Ledger
from routerd.model import (
    EXCLUDE_LABEL,
    LOWEST,
    Advertisement,
    EgressPolicy,
    NodeReport,
    PortAsk,
    PortReport,
    Service,
    ServicePort,
)
from routerd.refs import SERVICE
from routerd.selectors import LabelSelector
from tests.models.operator_world import World, ports_text


def behind(**service: object) -> World:
    """Three nodes without the gateway label, a pool of VIPs, a Service, and the policy that names it."""
    world = World()
    for name in ("a", "b", "c"):
        world.node(name, None)
    world.pool("vips", "192.0.2.0/28", uses="loadbalancer")
    world.service("web", **{"port": 443, "selector": {"app": "web"}, **service})
    world.policy("out", service="d/web")
    return world


GIVEN, CART = "d/web vips 192.0.2.0", "svc/shop/cart"


def test_every_node_that_announces_the_vip_is_its_gateway() -> None:
    world = behind()
    assert world.decide() == f"{GIVEN}\ngroup 1 192.0.2.0 EgressPolicy/out via b c a"
    assert [each.service for each in world.allocations.groups] == ["d/web"]
    world.node("b", None, labels={EXCLUDE_LABEL: ""})
    assert world.decide(60) == f"{GIVEN}\ngroup 1 192.0.2.0 EgressPolicy/out via c a"
    ways = (Advertisement(node_selectors=(LabelSelector((("rack", "1"),)),)),)
    world.pool("vips", "192.0.2.0/28", uses="loadbalancer", advertisements=ways)
    world.node("c", None, labels={"rack": "1"})
    assert world.decide(60) == f"{GIVEN}\ngroup 1 192.0.2.0 EgressPolicy/out via c"


def test_of_those_only_the_ones_that_the_policy_selects() -> None:
    world = behind()
    world.node("a", None, labels={"edge": ""})
    world.policy("out", service="d/web", gateways=LabelSelector((("edge", ""),)))
    assert world.decide() == f"{GIVEN}\ngroup 1 192.0.2.0 EgressPolicy/out via a"


def test_at_most_sixteen_of_them() -> None:
    world = behind()
    for number in range(20):
        world.node(f"n{number}", None)
    world.decide()
    assert len(world.allocations.groups[0].gateways) == 16


def test_nodes_have_ports_of_the_upper_half() -> None:
    world = behind()
    world.decide()
    assert ports_text(world.allocations) == "192.0.2.0 a:32768+1024 b:33792+1024 c:34816+1024 told a,b,c"


def test_with_a_local_traffic_policy_the_nodes_that_have_its_pods() -> None:
    """They say so, as they ask for ports; before anybody has, every node may be one."""
    world = behind(external_traffic_policy="Local")
    assert world.decide() == f"{GIVEN}\ngroup 1 192.0.2.0 EgressPolicy/out via b c a"
    for name, asks in (("a", (PortAsk(1),)), ("b", ()), ("c", (PortAsk(1),))):
        world.reports[name] = NodeReport(name, ports=PortReport(asks=asks))
    assert world.decide(60) == f"{GIVEN}\ngroup 1 192.0.2.0 EgressPolicy/out via c a"


def test_both_families() -> None:
    world = behind(ip_family_policy="RequireDualStack")
    world.pool("vips", "192.0.2.0/28", "2001:db8:2::/124", uses="loadbalancer")
    both = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    world.policy("out", service="d/web", destinations=both)
    assert world.decide() == "d/web vips 192.0.2.0 2001:db8:2::\n" + (
        "group 1 192.0.2.0 2001:db8:2:: EgressPolicy/out via b c a"
    )


REFUSED = {
    "it is not there": ({"name": "other"}, "NoService: svc/d/web: there is no such Service"),
    "its type has none": ({"type": "ClusterIP"}, "NotLoadBalancer: svc/d/web: its type is ClusterIP"),
    "another load balancer's": ({"load_balancer_class": "example.com/lb"}, "OtherClass: svc/d/web: its class leaves"),
    "it tells no pods": ({"selector": {}}, "NoSelector: svc/d/web: it has no selector"),
    "no address is left": ({"ips": "198.51.100.99"}, "NoAddress: svc/d/web: it has no VIP yet"),
    "a port of the upper half": ({"port": 32768}, "ServicePortInUpperHalf: svc/d/web: port 32768 of svc/d/web lies in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name(case: str) -> None:
    change, refusal = REFUSED[case]
    world = behind()
    world.services.clear()
    world.service(**{"name": "web", "selector": {"app": "web"}, **change})
    told = world.decide()
    assert f"! EgressPolicy/out {refusal}" in told
    assert "group" not in told


def test_a_port_of_whoever_shares_the_address_counts() -> None:
    world = behind(sharing_key="one")
    world.service("other", port=40000, sharing_key="one")
    assert "ServicePortInUpperHalf: svc/d/web: port 40000 of svc/d/other lies in 32768-65535" in world.decide()


def test_a_port_of_whoever_has_the_key_and_another_address_does_not() -> None:
    """Anybody may write a key: of another type, of another class, of a namespace in which it means another address."""
    world = behind(sharing_key="one", sharing_namespaces=frozenset())
    ours = world.decide()
    world.service("a", port=40000, sharing_key="one", type="ClusterIP")
    world.service("b", port=40000, sharing_key="one", load_balancer_class="example.com/lb")
    assert world.decide() == ours
    world.service("c", port=40000, sharing_key="one")
    assert world.decide().splitlines()[-1] == ours.splitlines()[-1]


def own_word(world: World, namespace: str, name: str, created: str = "") -> None:
    """A Service that says of itself that its pods leave with its VIP."""
    key = f"{namespace}/{name}"
    policy = EgressPolicy(
        key, SERVICE, destinations=(ip_network("0.0.0.0/0"),), priority=LOWEST, service=key, created=created
    )
    ports = (ServicePort("TCP", 443),)
    world.services[key] = Service(namespace, name, "LoadBalancer", ports=ports, selector={"app": name}, egress=policy)
    world.policies[policy.key] = policy


def test_of_too_many_those_of_the_cluster_come_first_and_no_namespace_takes_the_room_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every node has a table for each VIP, in a map that holds 4,096."""
    monkeypatch.setattr(vips, "MOST_VIPS", 4)
    world = behind()
    for number in range(6):
        own_word(world, "many", f"s{number}", f"2026-01-0{number + 1}T00:00:00Z")
    own_word(world, "few", "one", "2026-02-01T00:00:00Z")
    told = world.decide().splitlines()
    assert {line.split(":")[0] for line in told if line.startswith("!")} == {
        f"! svc/many/s{number} TooManyVIPs" for number in (2, 3, 4, 5)
    }
    assert {key for group in world.allocations.groups for key in group.policies} == {
        "EgressPolicy/out", "svc/few/one", "svc/many/s0", "svc/many/s1",
    }  # fmt: skip


def test_a_service_without_an_address_says_why_itself() -> None:
    """Its word about its pods has its own name: "see what its own status says" would hide what that is."""
    world = behind()
    own_word(world, "shop", "cart")
    world.services["shop/cart"] = replace(world.services["shop/cart"], requested_pool="nope")
    world.decide()
    reasons = [each.reason for each in world.allocations.refusals if str(each.object) == CART]
    assert reasons == ["UnknownPool"]


def test_gateways_stay_while_no_other_node_can_be_one() -> None:
    """All nodes may have lost the API server and nothing else."""
    world = behind()
    before = world.decide()
    for name in ("a", "b", "c"):
        world.nodes[name] = replace(world.nodes[name], ready=False)
    group, refusal = world.decide(600).splitlines()[1:]
    assert group in before
    assert refusal.startswith("! EgressPolicy/out NoGateway: ") and refusal.endswith(" until one is, b, c, a stay")
    world.node("b", None, labels={EXCLUDE_LABEL: ""}, ready=False)
    assert world.decide(60).splitlines()[1] == "group 1 192.0.2.0 EgressPolicy/out via c a"


def test_a_pool_that_nobody_announces_by_bgp() -> None:
    world = behind()
    world.pool("vips", "192.0.2.0/28", uses="loadbalancer", protocol="layer2", advertisements=())
    assert "! EgressPolicy/out PoolNotBgp: " in world.decide()


def test_by_no_other_way_is_a_vip_an_egress_ip() -> None:
    """And who tries takes nothing from the Service's policy."""
    world = behind()
    world.decide()
    world.services["d/web"] = replace(world.services["d/web"], status_ips=(ip_address("192.0.2.0"),))
    world.policy("thief", "192.0.2.0")
    told = world.decide().splitlines()
    assert told[1] == "group 1 192.0.2.0 EgressPolicy/out via b c a"
    assert told[2].startswith(
        "! EgressPolicy/thief AddressTaken: 192.0.2.0 is the load balancer's address of svc/d/web"
    )


def test_what_may_be_no_egress_ip_is_none_as_a_vip_either() -> None:
    world = behind()
    world.settings = replace(world.settings, allowed_egress_ips=(ip_network("198.51.100.0/24"),))
    assert "! EgressPolicy/out AddressNotAllowed: 192.0.2.0 lies outside" in world.decide()


def test_what_runs_goes_on_when_the_policy_goes_and_the_service_stays() -> None:
    world = behind()
    world.decide()
    world.policies.clear()
    assert world.decide() == f"{GIVEN}\ngroup 1 192.0.2.0  via b c a"
    world.end_flows()
    assert world.decide(1) == GIVEN
    assert world.decide(10**6) == GIVEN, "it stays the Service's"


def test_it_ends_with_the_service() -> None:
    """Nobody announces its address any more."""
    world = behind()
    world.decide()
    world.services.clear()
    assert [line.split(":")[0] for line in world.decide().splitlines()] == ["! EgressPolicy/out NoService"]


def test_an_operator_that_lost_its_ledger_decides_the_same() -> None:
    world = behind()
    before = world.decide()
    world.ledger = Ledger()
    assert world.decide() == before
    assert world.last is not None and world.last.adopted
