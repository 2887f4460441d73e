"""The operator's wall clock is set while records rest: nothing is given early, nothing waits for long."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from routerd.clock import CATCH_UP, Clock
from routerd.model import AppliedTable, NodeReport, PortReport
from routerd.operator.loop import Operator
from tests.models.operator_world import FakeLedger, FakeStore, World, ports_text, text

STEPS = pytest.mark.parametrize("step", [-300.0, 300.0])
REST = 600.0  # seconds, of ports
TIME_WAIT = 240.0  # seconds: the least that they may rest (RFC 9293, section 3.4.2)
IP = ip_address("198.51.100.7")


@dataclass
class Clocked:
    """An operator on a host whose wall clock somebody sets."""

    world: World = field(default_factory=World)
    wall: float = 1_800_000_000.0
    ticks: float = 10.0
    ledger: FakeLedger = field(default_factory=FakeLedger)
    operator: Operator = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The next operator, by the clock as it is now."""
        clock = Clock(lambda: self.wall, lambda: self.ticks)
        self.operator = Operator(FakeStore(self.world), self.ledger, self.world.settings, clock=clock)

    def after(self, seconds: float, step: float = 0.0) -> World:
        """What is decided `seconds` later, by a clock that is set by `step` at first."""
        self.wall += step + seconds
        self.ticks += seconds
        self.operator.round()
        return self.world


def nearly(seconds: float) -> float:
    """Before `seconds` are over, for a clock that is ahead and catches up."""
    return seconds / (1 + CATCH_UP) - 1


def surely(seconds: float) -> float:
    """After `seconds`, for one that is behind."""
    return seconds / (1 - CATCH_UP) + 1


@STEPS
def test_ports_that_were_given_back_rest_as_long_as_ever(step: float) -> None:
    here = Clocked()
    for name, label in (("g1", ""), ("worker", None)):
        here.world.node(name, label)
    here.world.policy("out", str(IP))
    here.after(0)
    del here.world.nodes["worker"]
    here.after(0)
    (table,) = here.world.allocations.bindings
    said = PortReport(applied=(AppliedTable(IP, table.version),))
    here.world.reports["g1"] = NodeReport("g1", ports=said)
    assert "x:2048+1024" in ports_text(here.after(nearly(REST), step).allocations)
    assert "x:" not in ports_text(here.after(surely(REST) - nearly(REST)).allocations)


@STEPS
def test_the_address_of_a_service_that_is_gone_rests_as_long_as_ever(step: float) -> None:
    here, cooldown = Clocked(), World().settings.timers.cooldown
    here.world.pool("p", "192.0.2.9/32")
    here.world.service("old")
    here.after(0)
    del here.world.services["d/old"]
    here.world.service("new")
    here.after(0)
    assert "! svc/d/new PoolExhausted" in text(here.after(nearly(cooldown), step).allocations)
    assert "d/new p 192.0.2.9" in text(here.after(surely(cooldown) - nearly(cooldown)).allocations)


@STEPS
def test_nodes_have_as_long_as_ever_to_say_which_addresses_they_have(step: float) -> None:
    """Else the address would be announced from elsewhere for a moment, or from nowhere for minutes."""
    here = Clocked()
    here.world.node("g1")
    here.world.node("owner", None, reports=None)
    here.world.policy("sample", str(IP))
    here.after(0)
    assert "via none" in text(here.after(nearly(15), step).allocations)
    assert "via g1" in text(here.after(surely(15) - nearly(15)).allocations)


@STEPS
def test_what_runs_by_an_egress_ip_that_no_policy_has_any_more_may_go_on_as_long_as_ever(step: float) -> None:
    here = Clocked()
    here.world.node("g1")
    here.world.policy("out", str(IP))
    here.after(0)
    here.world.policies.clear()
    here.after(0)
    deadline = here.world.settings.port_rules.deadline
    assert "~g1" in ports_text(here.after(nearly(deadline), step).allocations)
    assert "g1" not in ports_text(here.after(surely(deadline) - nearly(deadline)).allocations).partition(" told")[0]


@pytest.mark.parametrize("behind", [300.0, 3600.0, 8 * 3600.0])
def test_ports_rest_although_the_operator_began_before_the_clock_was_right(behind: float) -> None:
    """They were given back by a clock that is behind, and by that of the next operator, which is right, long ago."""
    here = Clocked()
    here.wall -= behind
    here.restart()
    for name, label in (("g1", ""), ("worker", None)):
        here.world.node(name, label)
    here.world.policy("out", str(IP))
    here.after(0)
    del here.world.nodes["worker"]
    here.after(0)
    (table,) = here.world.allocations.bindings
    here.world.reports["g1"] = NodeReport("g1", ports=PortReport(applied=(AppliedTable(IP, table.version),)))
    here.after(1, behind)
    here.restart()
    assert "x:2048+1024" in ports_text(here.after(TIME_WAIT).allocations)
    assert "x:" not in ports_text(here.after(surely(REST)).allocations)
