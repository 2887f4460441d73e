"""The order of a round, against models of the speaker and the datapath that share one journal."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bgp.path import Desired as BgpDesired
from bgp.path import Path
from egress.plan import Problem
from routerd.agent.reconcile import RETIRE_AFTER, Reconciler, Round, partly
from routerd.model import Allocations, Refusal
from routerd.node.announce import Announcements
from routerd.node.desired import NodeState
from routerd.refs import Ref
from tests.models import cluster
from tests.models.cluster import SESSION, TOR
from tests.models.rooms import Apart, EgressModel, FakeSpeaker, World, reconciler, state
from tests.waiting import PATIENCE, eventually, turns


def rounds(world: World, *states: NodeState, clock: Any = lambda: 0.0) -> list[Round]:
    async def run() -> list[Round]:
        here = reconciler(world, clock)
        return [await here.round(wanted) for wanted in states]

    return asyncio.run(run())


NO_GROUPS = {"allocations": Allocations(2, (cluster.allocation("web", "192.0.2.1"),))}
EGRESS_IP = ip_network("198.51.100.7/32")
BOTH = {"192.0.2.1/32", "198.51.100.7/32"}


def test_nat_state_comes_before_the_announcement() -> None:
    world = World()
    assert rounds(world, state()) == [Round(("prepare group 7",))]
    assert world.journal == ["announce", "prepare group 7", "announce 1000"]
    assert world.ribs == {str(TOR): BOTH}


def test_a_peer_hears_that_it_has_all_only_when_it_has() -> None:
    """What is announced early is not all: with End-of-RIB after it, a restarted peer would drop the egress paths."""
    world = World()
    rounds(world, state())
    assert world.complete == [False, True]
    broken = World(broken="prepare group 7")
    rounds(broken, state(), state())
    assert set(broken.complete) == {False}


def test_a_new_agent_withdraws_nothing_that_the_one_before_announced() -> None:
    carried = {EGRESS_IP: Path(EGRESS_IP, local_pref=1000, med=0)}
    for session in (SESSION, SESSION._replace(local=ip_address("10.0.9.9"))):  # another source has taken its place
        world = World(adopted={session: carried})
        rounds(world, state())
        assert world.journal == ["announce 1000", "prepare group 7"]


def test_a_session_by_another_source_leads_to_itself() -> None:
    """A new agent knows no session by the old source: its own address is read back as any other next hop."""
    old, other = SESSION._replace(local=ip_address("10.0.9.9")), ip_address("10.0.9.8")
    desired = BgpDesired({SESSION: None}, {SESSION: {EGRESS_IP: Path(EGRESS_IP)}})  # type: ignore[dict-item]
    owners = {EGRESS_IP: (Ref("EgressPolicy", name="x"),)}
    for read, told in ((old.local, None), (None, None), (other, other)):
        before = {old: {EGRESS_IP: Path(EGRESS_IP, read, med=0)}}
        found = partly(Announcements(desired, owners), before, lambda owner: False)
        assert found.ribs == {SESSION: {EGRESS_IP: Path(EGRESS_IP, told, med=0)}}


def test_withdrawal_comes_before_what_it_leads_to_is_removed() -> None:
    world = World(groups={7})
    assert rounds(world, state(**NO_GROUPS)) == [Round(("retire group 7",))]
    assert world.journal == ["announce", "retire group 7"]


def test_what_an_unconfirmed_withdrawal_leads_to_stays() -> None:
    world = World(groups={7}, settles=False)
    (done,) = rounds(world, state(**NO_GROUPS))
    assert (done.actions, done.error) == ((), "")
    assert "not confirmed" in done.held
    assert world.groups == {7}


def test_a_speaker_that_is_gone_cannot_hold_it_for_ever() -> None:
    world = World(groups={7}, settles=False)
    times = iter([0.0, RETIRE_AFTER - 1, RETIRE_AFTER])
    *held, last = rounds(world, *[state(**NO_GROUPS)] * 3, clock=lambda: next(times))
    assert all(done.held for done in held)
    assert (last.actions, last.held) == (("retire group 7",), "")


def test_each_wait_for_the_speaker_has_its_full_time() -> None:
    """What was held came back; much later something else goes, and its withdrawal is not confirmed yet."""
    world = World(groups={7}, settles=False)
    times = iter([0.0, 10 * RETIRE_AFTER])
    gone = state(**NO_GROUPS)
    done = rounds(world, gone, state(), gone, clock=lambda: next(times))
    assert [bool(each.held) for each in done] == [True, False, True]
    assert world.groups == {7}


def test_nothing_is_held_when_there_is_nothing_to_retire() -> None:
    assert rounds(World(settles=False), state())[0].held == ""


def test_an_unsynced_store_takes_nothing_away() -> None:
    world = World(groups={7})
    (done,) = rounds(world, state(**NO_GROUPS, bgp=None))
    assert world.journal == []
    assert "wait for the store" in done.held


def test_a_datapath_that_is_not_synced_leaves_bgp_working() -> None:
    world = World(groups={7})
    assert rounds(world, state(pods=None)) == [Round()]
    assert (world.journal, world.groups, world.ribs) == (["announce"], {7}, {str(TOR): {"192.0.2.1/32"}})


@pytest.mark.parametrize("part", ["pods", "namespaces", "policies"])
def test_a_gateway_that_started_anew_announces_no_egress_address_before_egress_is_synced(part: str) -> None:
    """Announcements need less of the store than egress: the address would lead to a node without NAT or blackhole."""
    world = World()
    rounds(world, state(**{part: None}))
    assert (world.ribs, world.groups, world.complete) == ({str(TOR): {"192.0.2.1/32"}}, set(), [False])
    adopted = World(adopted={SESSION: {EGRESS_IP: Path(EGRESS_IP, local_pref=1000)}})
    rounds(adopted, state(**{part: None}))
    assert adopted.ribs == {str(TOR): BOTH}


@pytest.mark.parametrize("broken", ["observe", "prepare group 7"])
def test_a_broken_datapath_holds_back_the_new_egress_address_only(broken: str) -> None:
    world = World(broken=broken)
    (done,) = rounds(world, state())
    assert world.ribs == {str(TOR): {"192.0.2.1/32"}}
    assert done.error.startswith("egress: ")


def test_an_egress_address_that_was_announced_stays_as_it_was_when_the_datapath_breaks() -> None:
    world = World()

    async def run() -> Round:
        here = reconciler(world)
        await here.round(state())
        world.broken = "observe"
        newer = (cluster.group(gateway_mode="active-standby"),)
        return await here.round(state(allocations=Allocations(2, (cluster.allocation("web", "192.0.2.1"),), newer)))

    assert "no map" in asyncio.run(run()).error
    assert world.ribs == {str(TOR): BOTH}
    assert world.journal[-1] == "announce 1000"  # not the preference of a standby


def test_a_new_agent_over_a_broken_datapath_keeps_what_the_one_before_announced() -> None:
    world = World(broken="observe", adopted={SESSION: {EGRESS_IP: Path(EGRESS_IP, local_pref=1000)}})
    rounds(world, state())
    assert world.ribs == {str(TOR): BOTH}


def test_without_a_speaker_nobody_is_told() -> None:
    world = World(broken="observe", adopted=None)
    assert "no map" in rounds(world, state())[0].error
    assert world.journal == []


def test_a_vip_does_not_wait_for_the_datapath() -> None:
    world = World()

    async def run() -> None:
        here = reconciler(world)
        await here.round(state(**NO_GROUPS))
        world.journal.clear()
        await here.round(state())

    asyncio.run(run())
    assert world.journal == ["prepare group 7", "announce 1000"]
    more = (cluster.allocation("web", "192.0.2.1", "192.0.2.9"),)
    journal = after_first(state(**NO_GROUPS), state(allocations=Allocations(3, more, (cluster.group(),))))
    assert journal == ["announce", "prepare group 7", "announce 1000"]


def after_first(first: NodeState, second: NodeState) -> list[str]:
    """The journal of the second round."""
    world = World()

    async def run() -> None:
        here = reconciler(world)
        await here.round(first)
        world.journal.clear()
        await here.round(second)

    asyncio.run(run())
    return world.journal


def test_the_speaker_is_not_told_twice() -> None:
    assert after_first(state(), state()) == []


@pytest.mark.parametrize(("makes_devices", "first"), [(True, 2), (False, 1)])
def test_a_datapath_that_is_as_it_should_be_is_read_in_full_rounds_only(makes_devices: bool, first: int) -> None:
    world = World()
    egress = EgressModel(world, makes_devices)

    async def run() -> list[int]:
        here = Reconciler(FakeSpeaker(world), [egress], settle_timeout=0.0)
        reads = []
        for wanted, full in ((state(), True), (state(), False), (state(**NO_GROUPS), False), (state(), True)):
            before = egress.reads
            await here.round(wanted, full=full)
            reads.append(egress.reads - before)
        return reads

    assert asyncio.run(run()) == [first, 0, 1, first]


def test_what_the_machine_lacks_is_told_in_every_round() -> None:
    lacking = (Problem("node/a", "ForwardingOff", "sysctl net.ipv4.ip_forward=1"),)
    told = (Refusal(Ref.parse("node/a"), "ForwardingOff", "sysctl net.ipv4.ip_forward=1"),)
    done = rounds(World(lacking=lacking), state(), state())
    assert [each.refusals for each in done] == [told, told]


def test_retiring_waits_while_preparing_fails() -> None:
    world = World(groups={3}, broken="prepare group 7")
    (done,) = rounds(world, state())
    waiting = "egress: prepare group 7: map is full (1 that rely on it wait)"
    assert (done.error, world.groups) == (waiting, {3})


def test_what_fails_for_ever_holds_up_only_what_relies_on_it() -> None:
    world = World(groups={3, 4}, broken="retire group 3")
    here = Reconciler(FakeSpeaker(world), [EgressModel(world, undone_of=Apart)], settle_timeout=0.0)
    (done,) = asyncio.run(_rounds(here, state()))
    assert (done.error, done.actions) == ("egress: retire group 3: map is full", ("prepare group 7", "retire group 4"))
    world = World(groups={3}, broken="prepare group 7")
    here = Reconciler(FakeSpeaker(world), [EgressModel(world, undone_of=Apart)], settle_timeout=0.0)
    first, second = asyncio.run(_rounds(here, state(), state()))
    assert first.actions == ("retire group 3",)
    assert world.ribs == {str(TOR): {"192.0.2.1/32"}}
    assert second.error == first.error == "egress: prepare group 7: map is full"


def test_an_egress_address_whose_state_is_in_place_does_not_wait_for_that_of_another() -> None:
    both = (cluster.group(), cluster.group(id=8, egress_ip=ip_address("198.51.100.8")))
    wanted = state(allocations=Allocations(2, (cluster.allocation("web", "192.0.2.1"),), both))
    world = World(broken="prepare group 7")
    here = Reconciler(FakeSpeaker(world), [EgressModel(world, undone_of=Apart)], settle_timeout=0.0)
    asyncio.run(_rounds(here, wanted))
    assert world.ribs == {str(TOR): {"192.0.2.1/32", "198.51.100.8/32"}}
    assert set(world.complete) == {False}
    world.broken = ""
    asyncio.run(_rounds(here, wanted))
    assert world.ribs == {str(TOR): {"192.0.2.1/32", "198.51.100.8/32", "198.51.100.7/32"}}
    assert world.complete[-1]


async def _rounds(here: Reconciler, *states: NodeState) -> list[Round]:
    return [await here.round(wanted) for wanted in states]


@dataclass
class Slow(EgressModel):
    """Each action takes until the test lets it go."""

    going: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def apply(self, action: Any) -> None:
        self.begun.set()
        assert self.going.wait(PATIENCE)
        super().apply(action)


def test_the_loop_goes_on_while_the_datapath_blocks_and_a_cancelled_round_ends_after_its_action() -> None:
    world = World(groups={3})
    datapath = Slow(world)
    here = Reconciler(None, [datapath])

    async def run() -> None:
        running = asyncio.create_task(here.round(state()))
        await eventually(datapath.begun.is_set)
        running.cancel()
        await turns()
        assert not running.done()  # nothing runs on unseen
        datapath.going.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert world.groups == {3, 7}
        assert (await here.round(state())).actions == ("retire group 3",)

    asyncio.run(run())


def test_a_round_cut_after_any_action_converges() -> None:
    for broken in ("prepare group 7", "retire group 3"):
        world = World(groups={3}, broken=broken)

        async def run(world: World = world) -> Round:
            here = reconciler(world)
            await here.round(state())
            world.broken = ""
            return await here.round(state())

        assert asyncio.run(run()).error == ""
        assert (world.groups, world.ribs) == ({7}, {str(TOR): BOTH})


def test_one_room_alone() -> None:
    async def run() -> tuple[Round, Round]:
        quiet = World()
        return (
            await Reconciler(FakeSpeaker(quiet)).round(state()),
            await Reconciler(None, [EgressModel(quiet)]).round(state()),
        )

    assert asyncio.run(run()) == (Round(), Round(("prepare group 7",)))


def test_while_gateway_state_may_not_go_what_is_new_is_programmed() -> None:
    world = World(groups={3})
    (found,) = rounds(world, replace(state(), may_retire=False))
    assert found.actions == ("prepare group 7",)
    assert "held" in found.held
    assert world.groups == {3, 7}
