"""The order to drain on disk, the file that says that the host goes down, and when paths are withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from routerd.agent.drain import Drains, Places
from routerd.clock import Clock
from routerd.errors import EnvironmentFault
from routerd.tell.drain import Departure
from tests.models import cluster

NODE = cluster.node("a", 11)
CORDONED = cluster.node("a", 11, unschedulable=True)
READY_TO_STOP = Departure("drained", "Drained", "node a is drained")


@dataclass
class Host:
    """A node's files and its clock."""

    directory: Path
    time: float = 1000.0
    drains: Drains = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Another agent."""
        self.drains = self.started(lambda: self.time)

    def started(self, clock: Callable[[], float]) -> Drains:
        places = Places(self.directory / "drain.json", self.directory / "shutdown", self.directory / "drained")
        return Drains(places, notice=5.0, cordoned=True, clock=clock, ticks=lambda: self.time)

    def look(self, *, cordoned: bool = False) -> str:
        """What the node announces."""
        drain = self.drains.look(CORDONED if cordoned else NODE)
        return "all" if drain is None else "nothing" if drain.withdraws else "last resort"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_an_order_has_a_notice_and_lasts_until_it_is_taken_back(host: Host) -> None:
    assert host.look() == "all"
    host.drains.order()
    assert host.look() == "last resort"
    host.time += 3
    host.drains.order()  # once more: nothing begins anew
    host.start()
    assert host.look() == "last resort"
    assert host.drains.left == 2
    host.time += 2
    assert host.look() == "nothing"
    host.time += 1e6
    host.start()
    assert host.look() == "nothing"
    host.drains.cancel()
    assert host.look() == "all"
    host.start()
    assert host.look() == "all"


@pytest.mark.parametrize("step", [-3600.0, -300.0, 300.0, 3600.0])
def test_a_wall_clock_that_is_set_leaves_the_notice_as_long_as_it_is(host: Host, step: float) -> None:
    wall = 1000.0
    host.drains = host.started(Clock(lambda: wall, lambda: host.time))
    assert host.look() == "all"
    host.drains.order()
    assert host.look() == "last resort"
    wall += step
    host.time, wall = host.time + 4.0, wall + 4.0
    assert host.look() == "last resort"
    host.time, wall = host.time + 1.5, wall + 1.5
    assert host.look() == "nothing"


def test_what_was_drained_before_the_clock_is_right_stays_so(host: Host) -> None:
    """A host that begins hours behind, until it is told the time; or whose clock was set back while no agent ran."""
    host.drains.order()
    host.time -= 8 * 3600
    host.start()
    assert host.look() == "nothing"
    host.time += 10
    assert host.look() == "nothing"


@pytest.mark.parametrize("text", ["{", "7", '{"since": "x"}', '{"since": 1' + "0" * 400 + "}", "[" * 100_000])
def test_a_damaged_order_is_an_order(host: Host, tmp_path: Path, text: str) -> None:
    (tmp_path / "drain.json").write_text(text)
    host.start()
    assert host.look() == "nothing"


def test_an_order_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    host = Host(tmp_path / "gone")
    with pytest.raises(EnvironmentFault, match="cannot be kept"):
        host.drains.order()
    assert host.look() == "all"


def test_a_host_that_goes_down_gives_no_notice(host: Host, tmp_path: Path) -> None:
    assert host.look() == "all"
    (tmp_path / "shutdown").touch()
    assert host.look() == "nothing"
    (tmp_path / "shutdown").unlink()
    assert host.look() == "all"


def test_a_cordon_has_a_notice_unless_the_node_has_left_already(host: Host) -> None:
    assert host.look(cordoned=False) == "all"
    assert host.look(cordoned=True) == "last resort"
    host.time += 5
    assert host.look(cordoned=True) == "nothing"
    host.start()
    assert host.look(cordoned=True) == "nothing"


def test_one_reason_after_the_other_brings_no_path_back(host: Host) -> None:
    host.drains.order()
    host.look()
    host.time += 5
    assert host.look(cordoned=True) == "nothing"
    host.drains.cancel()
    assert host.look(cordoned=True) == "nothing"


def test_it_is_safe_when_nothing_was_to_wait_for_during_a_moment(host: Host, tmp_path: Path) -> None:
    done = tmp_path / "drained"
    waiting = Departure("draining", "Drained", "node a is drained", ("something",))
    assert host.drains.judge(waiting) == waiting
    assert host.drains.judge(READY_TO_STOP).waits == ("the routers, for 2 s",)
    host.time += 1
    host.drains.judge(waiting)
    host.time += 1
    assert host.drains.judge(READY_TO_STOP).state == "draining"
    host.time += 2
    assert not done.exists()
    assert host.drains.judge(READY_TO_STOP) == READY_TO_STOP
    assert done.exists()
    assert host.drains.judge(Departure()).state == "serving"
    assert not done.exists()


def test_what_a_killed_agent_said_is_not_believed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "drained").touch()
    host.start()
    assert not (tmp_path / "drained").exists()


def test_whoever_reports_is_told_when_the_node_leaves_and_comes_back(host: Host) -> None:
    host.look()
    assert not host.drains.changed.is_set()
    for step, leaves in ((host.drains.order, True), (host.drains.cancel, False)):
        step()
        host.look()
        assert (host.drains.changed.is_set(), host.drains.is_leaving) == (True, leaves)
        host.drains.changed.clear()
        host.look()
        assert not host.drains.changed.is_set()
