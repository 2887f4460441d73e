"""A gateway asks while it is one, believes after some failures, and tells once. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from tests.models.virtual_time import elapse, in_virtual_time
from upstream.ask import CannotAsk
from upstream.targets import Rules, Target, Upstream
from upstream.watch import Watcher

TARGET = Target("icmp", ip_address("203.0.113.1"))
RULES = Rules((TARGET,))


@dataclass
class World:
    marker: Path
    answer: str = ""
    may_ask: bool = True
    is_gateway: bool | None = True
    asked: int = 0
    told: list[str] = field(default_factory=list)

    def watcher(self) -> Watcher:
        made = Watcher(RULES, self.marker, lambda level, name, **fields: self.told.append(name), self.ask)
        made.serves = lambda: self.is_gateway
        made.on_change = lambda: self.told.append("change")
        return made

    async def ask(self, target: Target, timeout: float) -> str:
        if not self.may_ask:
            raise CannotAsk("it may not")
        self.asked += 1
        return self.answer

    @asynccontextmanager
    async def asks(self) -> AsyncIterator[Watcher]:
        watcher = self.watcher()
        running = asyncio.create_task(watcher.run())
        try:
            yield watcher
        finally:
            running.cancel()


def test_lost_and_back(tmp_path: Path) -> None:
    """The third failure is at 4 s, and the second answer 2 s after the first one."""
    world = World(tmp_path / "lost", answer="silence")

    async def story() -> None:
        async with world.asks() as watcher:
            await elapse(3.9)
            assert (watcher.state.is_lost, world.marker.exists()) == (False, False)
            await elapse(0.2)
            assert (watcher.state.is_lost, world.marker.exists()) == (True, True)
        async with world.asks() as watcher:  # the agent is started anew meanwhile
            assert watcher.state.is_lost, "it begins with what was found"
            await elapse(9)
            world.answer = ""
            await elapse(2)
            assert watcher.state.is_lost
            await elapse(2)
            assert (watcher.state.is_lost, world.marker.exists()) == (False, False)
        assert [each for each in world.told if each != "change"] == ["upstream-lost", "upstream-back"]

    in_virtual_time(story())


def test_who_is_no_gateway_asks_nobody_and_forgets(tmp_path: Path) -> None:
    world = World(tmp_path / "lost", answer="silence")

    async def story() -> None:
        async with world.asks() as watcher:
            await elapse(5)
            asked, world.is_gateway = world.asked, None
            await elapse(20)
            assert watcher.state.is_lost, "not known yet whether it is a gateway"
            world.is_gateway = False
            await elapse(1)
            assert (watcher.state, world.asked, world.marker.exists()) == (Upstream(), asked, False)

    in_virtual_time(story())


def test_who_may_not_ask_says_so_once_and_finds_nothing_lost(tmp_path: Path) -> None:
    world = World(tmp_path / "lost", may_ask=False)

    async def story() -> None:
        async with world.asks() as watcher:
            await elapse(20)
            assert (watcher.state.is_lost, watcher.state.problem) == (False, "it may not")
            assert world.told == ["upstream-not-asked", "change"]

    in_virtual_time(story())
