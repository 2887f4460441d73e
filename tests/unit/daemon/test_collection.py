"""When the datapath is collected: every ten seconds, and each second while a pod comes near its share."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from routerd.daemon.processes import PRESSED_LOOK, collect_idle
from tests.models.virtual_time import elapse, in_virtual_time


class Egress:
    """Pressed from 21 to 24 s on; refuses the first round."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.rounds: list[int] = []

    def is_pressed(self) -> bool:
        return 21 <= round(self._loop.time()) <= 24

    def collect(self) -> None:
        self.rounds.append(round(self._loop.time()))
        if len(self.rounds) == 1:
            raise OSError("no")


def test_rounds_come_sooner_under_pressure() -> None:
    async def rounds() -> list[int]:
        egress: Any = Egress()
        counted: list[int] = []
        task = asyncio.create_task(collect_idle(egress, lambda: counted.append(egress.rounds[-1])))
        await elapse(40.5)
        task.cancel()
        assert list(dict.fromkeys(counted)) == egress.rounds[1:], "who asks for ports reads what was counted at once"
        return list(egress.rounds)

    assert in_virtual_time(rounds()) == [10, 20, 21, 22, 23, 24, 34]


def test_who_asks_for_ports_hears_of_pressure_before_the_next_collection() -> None:
    async def heard() -> float:
        egress: Any = Egress()
        times: list[float] = []
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(collect_idle(egress, lambda: times.append(loop.time())))
        await elapse(23.0)
        task.cancel()
        after = [later - earlier for earlier, later in pairwise(time for time in times if time >= 21)]
        return max(after)

    assert in_virtual_time(heard()) <= 2 * PRESSED_LOOK
