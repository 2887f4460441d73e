"""The time by which records rest: seconds of the Unix epoch that go on evenly, whatever is done to the wall clock.

Records outlive processes and boots, so they bear wall time. But who waits for ten minutes by a clock that is set ahead
by five waits for five, and what was to rest is given again too early; by one that is set back he waits too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

CATCH_UP = 0.05  # of the time that passes: a step of five minutes is made good in 100
MOST_OFF = 360.0  # seconds; of ten minutes that ports rest the next process, whose clock is right, leaves 240 (2 MSL)


def boot_time() -> float:
    """Seconds since the boot, also those in which the host was suspended (Linux, CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Follows the wall clock, slowly where that was set. One that is further away than `MOST_OFF` is followed at once:
    it was not right before, and whoever has the right one by now would take what rests for rested. That is a jump, and
    what rests is to begin anew (`jumps`).
    """

    def __init__(self, wall: Callable[[], float] = time.time, ticks: Callable[[], float] = boot_time) -> None:
        """`ticks`: seconds of a clock that nobody sets."""
        self._wall, self._ticks = wall, ticks
        self._last = ticks(), wall()  # one value, as threads may ask
        self.jumps = 0

    def __call__(self) -> float:
        """Seconds of the Unix epoch."""
        ticks, wall = self._ticks(), self._wall()
        before, told = self._last
        passed = max(ticks - before, 0.0)
        ahead, most = wall - (told + passed), CATCH_UP * passed
        if abs(ahead) <= MOST_OFF:
            ahead = min(max(ahead, -most), most)
        else:
            self.jumps += 1
        self._last = ticks, told + passed + ahead
        return self._last[1]


def jumps(clock: Callable[[], float]) -> int:
    """How often it has jumped so far; none but `Clock` does."""
    return clock.jumps if isinstance(clock, Clock) else 0
