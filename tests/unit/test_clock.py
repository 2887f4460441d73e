"""The time by which records rest, when somebody sets the wall clock."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from routerd.clock import CATCH_UP, MOST_OFF, Clock, jumps

HOUR = 3600.0


@dataclass
class Host:
    wall: float = 1_000_000.0
    ticks: float = 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.ticks)


def test_it_is_the_wall_clock_while_nobody_sets_that() -> None:
    host = Host()
    clock = host.clock()
    for seconds in (0.0, 0.2, 600.0, 86400.0 * 30):
        host.pass_by(seconds)
        assert clock() == host.wall


@pytest.mark.parametrize("step", [-300.0, 300.0])
def test_a_step_is_made_good_slowly(step: float) -> None:
    host = Host()
    clock = host.clock()
    before = host.wall
    host.wall += step
    assert clock() == before, "no time has passed"
    host.pass_by(600.0)
    told = clock() - before
    assert told == pytest.approx(600.0 * (1 + CATCH_UP * step / 300.0))
    host.pass_by(2 * HOUR)
    assert clock() == host.wall


def test_it_never_goes_back() -> None:
    host = Host()
    clock, told = host.clock(), []
    for step in (300.0, -300.0, -300.0, 40.0, -30.0):
        host.wall += step
        host.pass_by(7.0)
        told.append(clock())
    assert told == sorted(told)


@pytest.mark.parametrize("step", [-1.8e9, -8 * HOUR, -MOST_OFF - 1, MOST_OFF + 1, 8 * HOUR, 1.8e9])
def test_a_clock_that_was_not_right_is_followed_at_once(step: float) -> None:
    """A host without a battery begins in 1970, one with local time in it hours away."""
    host = Host(wall=1.9e9)
    clock = host.clock()
    host.wall += step
    assert (clock(), clock(), jumps(clock)) == (host.wall, host.wall, 1)
