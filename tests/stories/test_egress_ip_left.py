"""Stories of egress IPs that policies leave: what runs by them goes on, and nobody else has them before its end."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from routerd.cluster.assign import AssignSettings
from routerd.cluster.port_sets import PortRules
from routerd.model import AppliedTable, NodeReport, PortReport
from tests.models.operator_world import World, ports_text

A, B = ip_address("198.51.100.7"), ip_address("198.51.100.8")


def lines(block: str) -> str:
    return "\n".join(line.strip() for line in block.strip().splitlines())


def shared() -> World:
    """Two gateways, a worker, a policy."""
    world = World()
    world.node("g1")
    world.node("g2")
    world.node("worker", None)
    world.policy("out", "198.51.100.7")
    world.decide()
    return world


def confirm(world: World, gateway: str) -> None:
    """It has dropped what is in no table any more."""
    applied = tuple(AppliedTable(each.egress_ip, each.version) for each in world.allocations.bindings)
    world.reports[gateway] = NodeReport(gateway, ports=PortReport(applied=applied))


def test_a_changed_egress_ip_cuts_nothing() -> None:
    """The one that the policy leaves is announced by its gateways. Nothing begins in ports that are asked back."""
    world = shared()
    world.policy("out", "198.51.100.8")
    assert world.decide() == lines("""
        group 1 198.51.100.7  via g1 g2
        group 2 198.51.100.8 EgressPolicy/out via g1 g2
    """)
    assert ports_text(world.allocations) == lines("""
        198.51.100.7 ~g1:1024+1024 ~g2:2048+1024 ~worker:3072+1024 told g1,g2
        198.51.100.8 g1:1024+1024 g2:2048+1024 worker:3072+1024 told g1,g2
    """)
    world.end_flows()
    assert world.decide(1) == "group 2 198.51.100.8 EgressPolicy/out via g1 g2"


def test_its_gateways_change_by_what_happens_to_them_alone() -> None:
    world = shared()
    world.node("g3")
    world.policies.clear()
    assert world.decide() == "group 1 198.51.100.7  via g1 g2", "nobody is added"
    world.node("g1", ready=False)
    assert world.decide(60) == "group 1 198.51.100.7  via g2"
    world.node("g1")
    assert world.decide(60) == "group 1 198.51.100.7  via g1 g2"
    world.node("g2", draining=True)
    assert world.decide(60) == "group 1 198.51.100.7  via g1"


def test_its_ports_rest_until_each_gateway_has_dropped_them() -> None:
    world = shared()
    world.policies.clear()
    world.decide()
    world.end_flows()
    world.decide(1)
    assert ports_text(world.allocations) == "198.51.100.7 x:1024+3072 told g1,g2"
    world.decide(10**6)
    assert ports_text(world.allocations) == "198.51.100.7 x:1024+3072 told g1,g2"
    confirm(world, "g1")
    world.decide()
    assert ports_text(world.allocations) == "198.51.100.7 x:1024+3072 told g2"
    confirm(world, "g2")
    world.decide()
    world.decide()
    assert ports_text(world.allocations) == ""


def test_a_flow_that_never_pauses_ends_by_the_deadline() -> None:
    world = shared()
    world.policies.clear()
    assert world.decide() == "group 1 198.51.100.7  via g1 g2"
    assert world.decide(3599) == "group 1 198.51.100.7  via g1 g2"
    assert world.decide(1) == ""


def test_the_number_is_nobody_elses_however_long_flows_run() -> None:
    world = shared()
    world.settings = replace(world.settings, port_rules=PortRules(deadline=10**6))
    world.policies.clear()
    world.decide()
    world.ledger = replace(world.ledger, next_group=1)
    world.policy("late", "198.51.100.8")
    assert world.decide(10**5) == lines("""
        group 1 198.51.100.7  via g1 g2
        group 2 198.51.100.8 EgressPolicy/late via g1 g2
    """)


def test_another_policy_takes_over_what_runs_once_it_may_have_the_address() -> None:
    world = shared()
    ports = ports_text(world.allocations)
    world.policies.clear()
    world.policy("renamed", "198.51.100.7")
    assert world.decide() == lines("""
        group 1 198.51.100.7  via g1 g2
        ! EgressPolicy/renamed AddressReserved: "198.51.100.7" is reserved for EgressPolicy/out; \
"routerd release 198.51.100.7" frees it
    """)
    world.release("198.51.100.7")
    assert world.decide(60) == "group 1 198.51.100.7 EgressPolicy/renamed via g1 g2"
    assert ports_text(world.allocations) == ports


def test_a_renamed_policy_of_a_pool_gets_another_address() -> None:
    world = shared()
    world.policies.clear()
    world.pool("p", "192.0.2.0/29")
    world.policy("out", pool="p")
    world.decide()
    world.end_flows()
    world.decide(1)
    world.policies.clear()
    world.policy("renamed", pool="p")
    assert world.decide() == lines("""
        group 2 192.0.2.0  via g2 g1
        group 3 192.0.2.1 EgressPolicy/renamed via g1 g2
    """)


def test_a_policy_that_changes_its_pool() -> None:
    world = shared()
    world.pool("a", "192.0.2.0/29")
    world.pool("b", "203.0.113.0/29")
    world.policy("out", pool="a")
    world.decide()
    world.end_flows()
    world.decide(1)
    world.policy("out", pool="b")
    assert world.decide() == lines("""
        group 2 192.0.2.0  via g2 g1
        group 3 203.0.113.0 EgressPolicy/out via g1 g2
    """)


def test_a_pool_gives_it_to_nobody_before_its_last_flow_has_ended() -> None:
    """Neither by a release, nor after the time for which it is kept for its policy."""
    world = World(AssignSettings(port_rules=PortRules(deadline=10**6)))
    world.node("g1")
    world.pool("p", "192.0.2.0/32")
    world.policy("out", pool="p")
    world.decide()
    world.policies.clear()
    world.decide()
    assert world.release("192.0.2.0") == 1
    world.service("web")
    world.service("named", ips="192.0.2.0")
    why = "an egress IP that a policy has left, and flows may still have"
    group, of_named, of_web = world.decide(10**5).splitlines()
    assert group == "group 1 192.0.2.0  via g1"
    assert of_named == f'! svc/d/named AddressTaken: "192.0.2.0" is {why}: request another address'
    assert of_web.startswith("! svc/d/web PoolExhausted: ") and of_web.endswith(f"192.0.2.0 is {why}")
    world.end_flows()
    world.decide(1)
    assert world.decide().startswith("d/named p 192.0.2.0")


def test_what_is_somebody_elses_is_announced_no_more() -> None:
    world = shared()
    world.policies.clear()
    world.decide()
    world.node("router", None, reports="198.51.100.7")
    assert world.decide() == ""


def test_an_address_that_leaves_the_others_of_its_group() -> None:
    """The one by which the group is recorded, or another one."""
    for left, stays in ((A, B), (B, A)):
        world = World()
        for number in range(8):
            world.node(f"n{number}", None if number else "")
        world.policy("out", f"{A} {B}")
        world.decide()
        assert all(each.blocks() for each in world.allocations.bindings)
        world.policy("out", str(stays))
        decided = world.decide()
        of = {A: f"group 1 {A}", B: f"group 2 {B}"}
        assert sorted(decided.splitlines()) == sorted([f"{of[left]}  via n0", f"{of[stays]} EgressPolicy/out via n0"])
        assert world.decide(60) == decided
        world.policy("out", f"{A} {B}")
        assert world.decide().endswith(f"{A} {B} EgressPolicy/out via n0")
        assert len(world.allocations.groups) == 1
        world.policy("out", str(stays))
        world.decide()
        world.end_flows()
        assert world.decide(1).endswith(f"{stays} EgressPolicy/out via n0")
        assert len(world.allocations.groups) == 1


def test_it_stays_over_restarts_of_everybody() -> None:
    world = shared()
    world.agent("g1", "g2")
    world.live(60)
    world.policies.clear()
    left = "group 1 198.51.100.7  via g1 g2"
    assert world.decide() == left
    world.restart_operator()
    assert world.decide(5) == left
    world.lose_file()
    assert world.decide(5) == left, "what is published is in use"
    world.silence("g1")
    world.live(10)
    assert world.decide() == left, "an agent that restarts"
    world.live(600)
    assert world.decide() == "group 1 198.51.100.7  via g2", "one that does not"
    world.agent("g1")
    world.live(60)
    assert world.decide() == left
    world.silence("g1", "g2")
    world.end_flows()
    assert world.decide(1) == ""
