"""An aggregate is announced by who has a blackhole for it, at every moment; against a model of the kernel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import pytest

from bgp.path import Desired as BgpDesired
from fib.blackholes import PutVerdicts, RemoveVerdicts, Verdict
from fib.plan import Action, AddRule, DeleteRule, Desired, IPNetwork, Observed, Rule
from routerd.agent.reconcile import Reconciler
from routerd.agent.seats.routes import RouteRoom
from routerd.node.desired import FIB_ROOM, NodeState
from tests.models import cluster
from tests.models.rooms import FakeSpeaker, World, state

WIDE, HOST = ip_network("192.0.2.0/26"), ip_network("192.0.2.1/32")
POOL = cluster.pool(advertisements=(cluster.advertisement(aggregation_length=26), cluster.advertisement()))
ANNOUNCED, IDLE = (state(pools={"default": POOL}, **more) for more in ({}, {"endpoint_slices": ()}))


@dataclass
class Kernel(RouteRoom):
    """The room on a kernel in memory; `broken`: the kind of action that fails."""

    world: World
    broken: type | None = None
    verdicts: dict[IPNetwork, Verdict] = field(default_factory=dict)
    rules: set[Rule] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def observe(self, desired: Desired) -> Observed:
        return Observed(rules=frozenset(self.rules), verdicts=dict(self.verdicts))

    def apply(self, action: Action) -> None:
        if type(action) is self.broken:
            raise OSError("refused")
        match action:
            case PutVerdicts():
                self.verdicts.update(action.verdicts)
            case RemoveVerdicts():
                self.verdicts = {p: v for p, v in self.verdicts.items() if p not in action.prefixes}
            case AddRule():
                self.rules.add(action.rule)
            case DeleteRule():
                self.rules.discard(action.rule)
        self.world.note(str(action))


class Sender(FakeSpeaker):
    """It notes whether the aggregate is among what it is told."""

    def set(self, desired: BgpDesired | None, *, complete: bool = True) -> None:
        super().set(desired, complete=complete)
        assert desired is not None
        paths = [str(prefix) for rib in desired.ribs.values() for prefix in rib if "192.0.2" in str(prefix)]
        self.world.journal[-1] = f"announce {' '.join(sorted(paths))}".strip()


def rounds(kernel: Kernel, *states: NodeState) -> list[Any]:
    async def run() -> list[Any]:
        here = Reconciler(Sender(kernel.world), [kernel], lambda: 0.0, settle_timeout=0.0)
        return [await here.round(wanted) for wanted in states]

    return asyncio.run(run())


def test_the_blackhole_comes_before_the_announcement_and_goes_after_the_withdrawal() -> None:
    kernel = Kernel(World())
    rounds(kernel, ANNOUNCED, IDLE)
    rule = "IPv4 rule 32765 to table 204 of what is received"
    assert kernel.world.journal == [
        "announce 192.0.2.1/32",
        f"put blackhole routes to {WIDE}",
        f"add {rule}",
        f"announce {WIDE} 192.0.2.1/32",
        "announce",
        f"remove blackhole and throw routes to {WIDE}",
        f"delete {rule}",
    ]
    assert (kernel.verdicts, kernel.rules) == ({}, set())


@pytest.mark.parametrize("broken", [PutVerdicts, AddRule])
def test_without_a_blackhole_the_address_alone_is_announced(broken: type) -> None:
    kernel = Kernel(World(), broken)
    (done,) = rounds(kernel, ANNOUNCED)
    assert "refused" in done.error
    assert done.unannounced == {WIDE: done.error}
    assert kernel.world.ribs["10.0.0.1"] >= {str(HOST)}
    assert str(WIDE) not in kernel.world.ribs["10.0.0.1"]
    kernel.broken = None
    (done,) = rounds(kernel, ANNOUNCED)
    assert done.unannounced == {}
    assert str(WIDE) in kernel.world.ribs["10.0.0.1"]


def test_an_aggregate_that_was_announced_stays_so_when_its_blackhole_is_refused_later() -> None:
    kernel = Kernel(World())

    async def run() -> None:
        here = Reconciler(Sender(kernel.world), [kernel], lambda: 0.0, settle_timeout=0.0)
        await here.round(ANNOUNCED)
        kernel.verdicts, kernel.broken = {}, PutVerdicts
        done = await here.round(ANNOUNCED)
        assert "refused" in done.error
        assert done.unannounced == {}
        assert str(WIDE) in kernel.world.ribs["10.0.0.1"]

    asyncio.run(run())


def test_of_a_range_the_parts_that_are_a_pools_are_blackholed_first() -> None:
    parts = tuple(map(ip_network, ("192.0.2.1/32", "192.0.2.2/31")))
    of_a_range = state(pools={"default": replace(POOL, blocks=(*parts, ip_network("192.0.2.64/26")))})
    kernel = Kernel(World(), PutVerdicts)
    rounds(kernel, of_a_range)
    assert str(WIDE) not in kernel.world.ribs["10.0.0.1"]
    kernel.broken = None
    rounds(kernel, of_a_range)
    assert kernel.verdicts == dict.fromkeys(parts, "blackhole")
    assert str(WIDE) in kernel.world.ribs["10.0.0.1"]


def test_what_is_not_known_to_be_withdrawn_keeps_its_blackhole() -> None:
    kernel = Kernel(World())
    rounds(kernel, ANNOUNCED)
    kernel.world.settles = False
    (done,) = rounds(kernel, IDLE)
    assert "not confirmed" in done.held
    unsynced = replace(IDLE, announcements=None, rooms={FIB_ROOM: Desired(aggregates=None)})
    rounds(kernel, unsynced)
    assert kernel.verdicts == {WIDE: "blackhole"}
