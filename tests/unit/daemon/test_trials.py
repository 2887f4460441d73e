"""When port sets are tried: at once, then ever later, until nothing is left; and at once again for new ones."""

from __future__ import annotations

import asyncio
from typing import Any

from egress.trials import Lacking
from routerd.daemon.processes import try_port_sets
from tests.models.virtual_time import elapse, in_virtual_time


class Egress:
    """Its gateways echo from 3 s on; there are new port sets at 10 s, which take 0.1 s. `filtered`: what goes without
    the tunnel is lost.
    """

    def __init__(self, *, filtered: bool = False) -> None:
        self._filtered = filtered
        self._loop = asyncio.get_running_loop()
        self.times: list[float] = []
        self.on_groups = lambda: None

    def try_port_sets(self) -> Lacking:
        time = round(self._loop.time(), 2)
        self.times.append(time)
        if time == 0.06:
            raise OSError("no")
        needed = 0 if 3 < time < 10 or time > 10.1 else 2
        return Lacking(needed, needed + 2 * self._filtered)


def test_trials_end_when_all_is_echoed_and_begin_with_new_port_sets() -> None:
    async def times() -> list[float]:
        egress: Any = Egress()
        task = asyncio.create_task(try_port_sets(egress))
        await elapse(10)
        egress.on_groups()
        await elapse(10)
        task.cancel()
        return list(egress.times)

    assert in_virtual_time(times()) == [0.0, 0.02, 0.06, 1.06, 2.06, 3.06, 10.0, 10.02, 10.06, 10.14]


def test_a_way_that_is_not_needed_is_tried_again_each_minute() -> None:
    async def times() -> list[float]:
        egress: Any = Egress(filtered=True)
        task = asyncio.create_task(try_port_sets(egress))
        await elapse(300)
        task.cancel()
        return list(egress.times)

    found = in_virtual_time(times())
    assert found[:7] == [0.0, 0.02, 0.06, 1.06, 2.06, 3.06, 4.06]
    assert [round(after - before) for before, after in zip(found[-4:], found[-3:], strict=False)] == [60, 60, 60]
