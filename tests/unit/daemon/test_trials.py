"""When port sets are tried: at once, then ever later, until nothing is left; and at once again for new ones."""

from __future__ import annotations

import asyncio
from typing import Any

from routerd.daemon.processes import try_port_sets
from tests.models.virtual_time import elapse, in_virtual_time


class Egress:
    """Its gateways echo from 3 s on; there are new port sets at 10 s, which take 0.1 s."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.times: list[float] = []
        self.on_groups = lambda: None

    def try_port_sets(self) -> int:
        time = round(self._loop.time(), 2)
        self.times.append(time)
        if time == 0.06:
            raise OSError("no")
        return 0 if 3 < time < 10 or time > 10.1 else 2


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
