"""Stories of gateways whose agent is gone, crashes over and over, or is not heard for another reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.operator_world import LOOK, World

G1 = "group 1 198.51.100.7 EgressPolicy/out via g1 g2"
WITHOUT_G1 = """group 1 198.51.100.7 EgressPolicy/out via g2
! node/g1 AgentAbsent: no word of its agent since 1970-01-01T00:16:{}Z: start it; others take its groups, if any can"""


@pytest.fixture
def world() -> World:
    """Two gateways and a worker, all heard."""
    world = World()
    for name in ("g1", "g2"):
        world.node(name)
    world.node("worker", None)
    world.agent("g1", "g2")
    world.agent("worker", gateway=False)
    world.policy("out", "198.51.100.7")
    world.live(10)
    assert world.decide() == G1
    return world


def test_a_gateway_whose_agent_is_gone_is_replaced(world: World) -> None:
    """Its Node may be Ready for ever, and a plain host has nobody who says so."""
    world.silence("g1")
    world.live(40)
    assert world.decide() == G1, "within the patience"
    world.live(4)
    assert world.decide() == WITHOUT_G1.format(50)
    assert [(each.node, each.silent_since) for each in world.allocations.nodes] == [("g1", "1970-01-01T00:16:50Z")]
    world.live(3600)
    assert world.decide() == WITHOUT_G1.format(50)


def test_an_agent_that_is_back_is_on_trial_first(world: World) -> None:
    world.silence("g1")
    world.live(50)
    assert world.decide() == WITHOUT_G1.format(50)
    world.agent("g1")
    world.live(10)
    assert world.decide() == G1.replace("g1 g2", "g2"), "heard, and not for long"
    world.live(50)
    assert world.decide() == G1


def test_an_agent_that_crashes_over_and_over_does_not_take_the_groups_back(world: World) -> None:
    world.silence("g1")
    world.live(50)
    before = world.decide().splitlines()[0]
    for _ in range(5):
        world.agent("g1")
        world.live(10)
        assert world.decide().splitlines()[0] == before
        world.silence("g1")
        world.live(60)
        assert world.decide().splitlines()[0] == before


def test_a_node_whose_agent_never_served_becomes_no_gateway(world: World) -> None:
    """No agent at all; one that runs and does not serve; one that does not know yet that it may be a gateway."""
    world.node("g0", reports=None)
    world.node("g3")
    world.agent("g3")
    world.silence("g3")
    world.node("g4")
    world.agent("g4", gateway=False)
    world.live(10)
    assert world.decide() == G1, "it may yet start"
    world.live(32)
    absent = "no agent of it has reported: start it; others take its groups, if any can"
    assert world.decide().splitlines()[:2] == [G1, f"! node/g0 AgentAbsent: {absent}"]
    world.agent("g4")
    world.live(20)
    assert " g4" in world.decide().splitlines()[0]


def test_the_last_gateway_stays_though_its_agent_is_gone(world: World) -> None:
    """Its datapath may be whole, and nobody can take over. The policy says so."""
    world.silence("g1")
    world.live(50)
    world.decide()
    world.node("g2", "false")
    world.agent("g2", gateway=False)
    assert world.decide() == (
        "group 1 198.51.100.7 EgressPolicy/out via none\n"
        "! EgressPolicy/out NoGateway: no node with label routerd.io/egress-gateway has an agent that serves "
        "(g1: no word of its agent since 1970-01-01T00:16:50Z): traffic of the policy is dropped until one has\n"
        "! node/g1 AgentAbsent: no word of its agent since 1970-01-01T00:16:50Z: start it; others take its groups, if "
        "any can"
    )
    world.agent("g1")
    world.live(10)
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1", "better than none"


def test_a_gateway_of_one_policy_is_told_while_those_of_another_are_heard(world: World) -> None:
    world.node("g2", None)
    world.agent("g2")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1"
    world.silence("g1")
    world.live(50)
    group, refusal, _ = world.decide().splitlines()
    assert group == "group 1 198.51.100.7 EgressPolicy/out via g1"
    assert refusal == (
        "! EgressPolicy/out NoGateway: no node with label routerd.io/egress-gateway has an agent that serves "
        "(g1: no word of its agent since 1970-01-01T00:16:50Z): until one has, g1 stays"
    )


def test_the_holder_of_an_address_stays_and_is_told() -> None:
    world = World()
    world.node("g1")
    world.node("owner", None, reports="192.168.33.100")
    world.agent("g1", "owner")
    world.policy("sample", "192.168.33.100")
    world.live(10)
    alone = "group 1 192.168.33.100 EgressPolicy/sample via owner node-address"
    assert world.decide() == alone
    world.silence("owner")
    world.live(50)
    assert world.decide() == (
        f"{alone}\n! EgressPolicy/sample AgentAbsent: owner: no word of its agent since 1970-01-01T00:16:50Z; "
        "it has the address and stays the gateway: start its agent"
    )
    world.node("second", None, reports="192.168.33.100")
    world.agent("second")
    world.live(10)
    assert world.decide() == alone.replace("owner", "second"), "it has the address, too"


def test_a_restart_of_the_operator_moves_nothing(world: World) -> None:
    """Neither to an agent that was gone before, which it has not heard either, nor from those that it will hear."""
    world.silence("g1")
    world.live(50)
    before = world.decide().splitlines()[0]
    assert "via g2" in before
    world.restart_operator()
    for _ in range(30):
        assert world.decide().splitlines()[0] == before
        world.live(2)
    assert "! node/g1 AgentAbsent" in world.decide()


def test_while_nobody_is_heard_nothing_moves(world: World) -> None:
    """The API server is away for an hour, or what brings the reports; then some are heard before others."""
    world.silence("g1", "g2", "worker")
    world.live(3600)
    group, refusal, *nodes = world.decide().splitlines()
    assert (group, len(nodes)) == (G1, 2)
    assert refusal.startswith("! EgressPolicy/out NoGateway: ") and refusal.endswith(": until one has, g1, g2 stay")
    world.agent("g2")
    world.live(16)
    assert world.decide().splitlines()[0] == G1
    world.agent("g1")
    world.live(300)
    assert world.decide() == G1


def test_who_was_gone_before_an_outage_is_gone_after_it(world: World) -> None:
    world.silence("g1")
    world.live(50)
    before = world.decide()
    world.silence("g2")
    world.live(600)
    assert world.decide().splitlines()[0] == before.splitlines()[0]
    world.agent("g2")
    world.live(20)
    assert world.decide() == before


def test_reports_of_an_older_release_are_believed() -> None:
    """They have no heartbeat. Beside them those that have one are gateways, and are replaced, as ever."""
    world = World()
    world.node("g1")
    world.node("g2")
    world.agent("g2")
    world.policy("out", "198.51.100.7")
    world.live(10)
    assert world.decide() == G1
    world.live(10**4)
    assert world.decide() == G1


def test_a_drained_gateway_that_is_switched_off_is_no_event(world: World) -> None:
    world.node("g1", draining=True)
    world.agent("g1")
    world.live(10)
    assert world.decide() == G1.replace("g1 g2", "g2")
    world.silence("g1")
    world.live(100)
    assert world.decide() == G1.replace("g1 g2", "g2")


def test_nobody_becomes_a_gateway_while_nobody_is_heard(world: World) -> None:
    world.silence("g1", "g2", "worker")
    world.live(100)
    world.policy("more", "198.51.100.8")
    assert "group 2 198.51.100.8 EgressPolicy/more via none" in world.decide()
    world.agent("g1", "g2")
    world.live(20)
    assert world.decide() == f"{G1}\ngroup 2 198.51.100.8 EgressPolicy/more via g1 g2"


NAMES = ("g1", "g2", "g3", "g4", "g5")


@given(st.lists(st.tuples(st.sets(st.sampled_from(NAMES[1:])), st.integers(1, 60), st.booleans()), max_size=12))
@settings(max_examples=20, deadline=None)
def test_whatever_falls_silent_the_gateways_are_nodes_that_were_heard(
    steps: list[tuple[set[str], int, bool]],
) -> None:
    """g1 is heard all the time, and stays. `steps`: who is heard for how long, and if the operator starts anew then."""
    world = World()
    for name in NAMES:
        world.node(name)
    world.agent(*NAMES)
    world.policy("out", "198.51.100.7")
    world.live(10)
    world.decide()
    for living, seconds, restarts in steps:
        world.silence(*NAMES)
        world.agent("g1", *living)
        for _ in range(0, seconds, LOOK):
            world.live(LOOK)
            before = {*world.allocations.groups[0].gateways}
            world.decide()
            gateways = {*world.allocations.groups[0].gateways}
            assert "g1" in gateways
            assert {world.agents.state(name) for name in gateways - before} <= {"serving"}
        if restarts:
            world.restart_operator()
    world.silence(*NAMES[1:])
    world.live(600)  # however late their last beats came
    world.decide()
    assert [*world.allocations.groups[0].gateways] == ["g1"]
