"""Two rooms in one round, in either order: no path leads to what is not in place, whatever fails or is cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import permutations

import pytest

from egress.plan import Problem
from routerd.agent.reconcile import Reconciler, Round
from routerd.agent.room import Room
from routerd.model import Allocations
from routerd.node.desired import NodeState
from tests.models import cluster
from tests.models.cluster import TOR
from tests.models.rooms import (
    EGRESS_IPS,
    ROUTES,
    Apart,
    EgressModel,
    FakeSpeaker,
    NothingAfter,
    RoutesModel,
    World,
    numbers_told,
    state,
    with_routes,
)
from tests.waiting import PATIENCE, turns

Orders = tuple[type[EgressModel], type[EgressModel]]
ORDERS: list[Orders] = [(EgressModel, RoutesModel), (RoutesModel, EgressModel)]


def wish(groups: tuple[int, ...], routes: tuple[int, ...]) -> NodeState:
    found = tuple(cluster.group(id=n, egress_ip=ip_address(f"198.51.100.{n}")) for n in groups)
    return with_routes(state(allocations=Allocations(1, (cluster.allocation("web", "192.0.2.1"),), found)), *routes)


NONE, SOME, OTHER, BOTH = wish((), ()), wish((7,), (3,)), wish((8,), (4,)), wish((7, 8), (3, 4))
CHANGES = list(permutations((NONE, SOME, OTHER, BOTH), 2))
STEPS = [f"{phase} {what}" for phase in ("prepare", "retire") for what in ("group 7", "group 8", "route 3", "route 4")]
FAILURES = ["observe egress", "observe routes", *STEPS]


def is_safe(world: World) -> bool:
    return numbers_told(world, EGRESS_IPS) <= world.groups and numbers_told(world, ROUTES) <= world.routes


def is_there(world: World, wanted: NodeState) -> bool:
    assert wanted.egress is not None
    groups, routes = set(wanted.egress.groups), set(wanted.rooms["routes"])
    told = (numbers_told(world, EGRESS_IPS), numbers_told(world, ROUTES))
    return (world.groups, world.routes, *told) == (groups, routes, groups, routes)


def seated(world: World, order: Orders, undone: type[NothingAfter] = NothingAfter) -> Reconciler:
    rooms: list[Room] = [kind(world, undone_of=undone) for kind in order]
    return Reconciler(FakeSpeaker(world), rooms, lambda: 0.0, settle_timeout=0.0)


def settled(order: Orders, wanted: NodeState) -> tuple[World, Reconciler]:
    world = World()

    def check() -> None:
        assert is_safe(world), world.journal

    world.on_step = check
    here = seated(world, order, Apart)
    asyncio.run(here.round(wanted))
    assert is_there(world, wanted)
    world.journal.clear()
    return world, here


@pytest.mark.parametrize("order", ORDERS)
def test_rooms_prepare_in_order_and_retire_in_reverse(order: Orders) -> None:
    world, here = settled(order, SOME)
    done = asyncio.run(here.round(OTHER))
    first, second = (("group 8", "group 7"), ("route 4", "route 3"))[:: 1 if order[0] is EgressModel else -1]
    actions = (f"prepare {first[0]}", f"prepare {second[0]}", f"retire {second[1]}", f"retire {first[1]}")
    assert done == Round(actions)
    assert [line for line in world.journal if not line.startswith("announce")] == list(actions)
    assert is_there(world, OTHER)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("broken", FAILURES)
def test_what_fails_in_one_room_keeps_the_other_from_nothing(order: Orders, broken: str) -> None:
    for before, after in CHANGES:
        world, here = settled(order, before)
        world.broken = broken
        done = asyncio.run(here.round(after))
        assert after.egress is not None
        groups, routes = set(after.egress.groups), set(after.rooms["routes"])
        is_of_egress = "egress" in broken or "group" in broken
        if is_of_egress:
            assert (world.routes, numbers_told(world, ROUTES)) == (routes, routes)
        else:
            assert (world.groups, numbers_told(world, EGRESS_IPS)) == (groups, groups)
        assert done.error.startswith(("egress: " if is_of_egress else "routes: ") if done.error else "")
        world.broken = ""
        assert asyncio.run(here.round(after)).error == ""
        assert is_there(world, after)


def test_every_failure_above_does_happen() -> None:
    def errors(broken: str) -> Iterator[str]:
        for before, after in CHANGES:
            world, here = settled(ORDERS[0], before)
            world.broken = broken
            yield asyncio.run(here.round(after)).error

    assert all(any(errors(broken)) for broken in FAILURES)


def test_two_rooms_that_fail_are_both_told() -> None:
    world, here = settled(ORDERS[0], NONE)
    world.broken = "observe"
    done = asyncio.run(here.round(BOTH))
    unread = "cannot read the datapath: no map"
    assert (done.error, done.actions) == (f"egress: {unread}; routes: {unread}", ())


class Dead(Exception):
    """The agent was killed."""


@pytest.mark.parametrize("order", ORDERS)
def test_an_agent_killed_after_any_step_is_followed_by_one_that_mends_it(order: Orders) -> None:
    for before, after in CHANGES:
        steps = 0
        while True:
            world, here = settled(order, before)
            left, check = iter(range(steps)), world.on_step

            def step(left: Iterator[int] = left, check: object = check) -> None:
                assert callable(check)
                check()
                if next(left, None) is None:
                    raise Dead

            world.on_step = step
            try:
                asyncio.run(here.round(after))
            except Dead:
                world.on_step = check
                asyncio.run(seated(world, order).round(after))
                assert is_there(world, after), world.journal
                steps += 1
                continue
            break
        assert steps >= 2


@dataclass
class Cut:
    """Cancels a round after so many steps of its rooms, and waits until that is known."""

    world: World
    after: int
    rooms: list[EgressModel]
    reads: list[int] = field(default_factory=list)  # of each room when it was cut
    task: asyncio.Task[Round] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def step(self) -> None:
        assert is_safe(self.world)
        if self.world.journal[-1].startswith("announce"):
            return  # in the loop's thread
        self.after -= 1
        if self.after == 0:
            assert self.loop is not None
            asyncio.run_coroutine_threadsafe(self._cancel(), self.loop).result(PATIENCE)

    async def _cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()
        self.reads = [room.reads for room in self.rooms]
        await turns()


@pytest.mark.parametrize("order", ORDERS)
def test_a_round_cut_after_any_action_does_no_more_and_the_next_one_converges(order: Orders) -> None:
    async def run(before: NodeState, after: NodeState, count: int) -> bool:
        """Whether it was cut; False = there are no more actions."""
        world = World()
        rooms = [kind(world) for kind in order]
        here = Reconciler(FakeSpeaker(world), rooms, lambda: 0.0, settle_timeout=0.0)
        await here.round(before)
        world.journal.clear()
        cut = Cut(world, count, rooms, loop=asyncio.get_running_loop())
        world.on_step = cut.step
        cut.task = asyncio.create_task(here.round(after))
        done = (await asyncio.gather(cut.task, return_exceptions=True))[0]
        actions = [line for line in world.journal if not line.startswith("announce")]
        if isinstance(done, asyncio.CancelledError):
            assert (len(actions), [room.reads for room in rooms]) == (count, cut.reads)
            await here.round(after, full=False)
        assert is_there(world, after), world.journal
        return isinstance(done, asyncio.CancelledError)

    for before, after in CHANGES:
        counts = [count for count in range(1, 6) if asyncio.run(run(before, after, count))]
        assert counts == list(range(1, len(counts) + 1)) and len(counts) >= 2


@pytest.mark.parametrize("order", ORDERS)
def test_a_room_that_is_not_synced_is_left_alone_and_holds_up_nobody(order: Orders) -> None:
    world, here = settled(order, SOME)
    synced = wish((8,), (3,))
    unsynced = replace(synced, rooms={**synced.rooms, "routes": None})
    world.broken = "observe routes"
    assert asyncio.run(here.round(unsynced)) == Round(("prepare group 8", "retire group 7"))
    assert world.routes == numbers_told(world, ROUTES) == {3}
    assert (here.takes(synced), here.takes(unsynced)) == (True, False)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("unread", [("egress",), ("routes",), ("egress", "routes")])
@pytest.mark.parametrize("is_new_agent", [False, True])
def test_no_path_leads_to_what_a_room_that_is_not_synced_may_lack(
    order: Orders, unread: tuple[str, ...], is_new_agent: bool
) -> None:
    """Paths that are there stay, as they were: what they lead to is not touched either."""

    def kept(room: str, before: NodeState, after: NodeState) -> set[int]:
        old, new = (set(s.egress.groups if s.egress and room == "egress" else s.rooms[room]) for s in (before, after))
        return old & new if room in unread else new

    for before, after in CHANGES:
        world, here = settled(order, before)
        here = seated(world, order) if is_new_agent else here
        assert asyncio.run(here.round(replace(after, rooms={**after.rooms, **dict.fromkeys(unread)}))).error == ""
        assert numbers_told(world, EGRESS_IPS) == kept("egress", before, after)
        assert numbers_told(world, ROUTES) == kept("routes", before, after)
        assert asyncio.run(here.round(after)).error == ""
        assert is_there(world, after), world.journal


def test_each_room_is_read_again_only_when_its_own_desired_value_changes() -> None:
    world = World()
    egress, routes = EgressModel(world, makes_devices=False), RoutesModel(world, makes_devices=False)
    here = Reconciler(FakeSpeaker(world), [egress, routes], settle_timeout=0.0)
    reads = []
    for wanted, full in ((SOME, True), (SOME, False), (wish((7,), (4,)), False), (wish((7,), (4,)), True)):
        before = (egress.reads, routes.reads)
        asyncio.run(here.round(wanted, full=full))
        reads.append((egress.reads - before[0], routes.reads - before[1]))
    assert reads == [(1, 1), (0, 0), (0, 1), (1, 1)]


def test_a_preview_goes_over_all_rooms_and_changes_nothing() -> None:
    world, here = settled(ORDERS[0], SOME)
    lines = asyncio.run(here.preview(OTHER))
    assert lines[:4] == ["retire group 7", "prepare group 8", "retire route 3", "prepare route 4"]
    assert not any("peer" in line for line in lines)
    assert any(line.startswith("+ path 10.0.0.1 198.51.100.8/32") for line in lines)
    assert any(line.startswith("- path 10.0.0.1 203.0.113.3/32") for line in lines)
    assert is_there(world, SOME)


def test_a_preview_tells_which_sessions_are_reset() -> None:
    world, here = settled(ORDERS[0], SOME)
    del world.ribs[str(TOR)]
    (line,) = [line for line in asyncio.run(here.preview(SOME)) if "peer" in line]
    assert line.startswith("+ peer 10.0.0.1 AS")


def test_what_each_room_lacks_is_told() -> None:
    world = World(lacking=(Problem("node/a", "ForwardingOff", "sysctl"),))
    assert len(asyncio.run(seated(world, ORDERS[0]).round(SOME)).refusals) == 2
