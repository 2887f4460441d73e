"""The agent's loop against models of store, node and rooms: reacts at once, retries, tells, never ends by itself."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bgp.path import SessionKey
from bgp.session import PeerStatus as Session
from egress.status import EgressStatus
from fib.plan import Status as RouteStatus
from routerd.agent.arrivals import Expected
from routerd.agent.drain import Drains
from routerd.agent.loop import RECHECK_REST, Agent, Parts, TaskReturned
from routerd.agent.reconcile import Reconciler, Round
from routerd.model import Allocations, IPAddress, Origin, Peer, Peering, Refusal, Snapshot
from routerd.node.brake import Brake, Limits
from routerd.node.desired import Kept, LocalFacts, NodeState, Settings, compose
from routerd.node.sessions import Way, way_to
from routerd.selectors import LabelSelector
from routerd.serve.api import RequestRefused
from routerd.tell.drain import NODE_UNKNOWN
from routerd.tell.status import ConfigStatus, are_lost, peer_statuses
from routerd.tell.views import PeerView, Row
from tests.models import cluster
from tests.models.cluster import LOCAL, SESSION, TOR
from tests.models.rooms import EgressModel, FakeSpeaker, World
from tests.models.virtual_time import elapse, in_virtual_time, now
from tests.waiting import PATIENCE, eventually
from upstream.targets import Upstream


class Here:
    """A node whose store the test puts snapshots into, and whose other facts never change."""

    def __init__(self) -> None:
        self.store = Snapshot()
        self.settled = True
        self.sent = True
        self.coming: frozenset[IPAddress] = frozenset()  # VIPs that new connections come to
        self.session = Session("up", families=("ipv4 unicast",), announced=2)
        self.looked = 0  # how often somebody read what is around the node

    def snapshot(self) -> Snapshot:
        return self.store

    def store_status(self) -> None:
        return None

    def surroundings(self, before: LocalFacts) -> LocalFacts:
        assert threading.current_thread() is not threading.main_thread()
        self.looked += 1
        return before

    def facts(self, peers: tuple[Peer, ...], before: LocalFacts) -> LocalFacts:
        sessions = {way_to(peer): peer.source_address or LOCAL.get(way_to(peer)) for peer in peers}
        return replace(before, sessions=sessions, uplinks=("eth0",))

    def peers(self) -> Mapping[SessionKey, PeerView]:
        return {SESSION: PeerView(SESSION, self.session)}

    def is_settled(self) -> bool:
        return self.settled

    async def is_sent(self) -> bool:
        return self.sent

    def arrivals(self, expected: Expected | None) -> frozenset[IPAddress]:
        return self.coming & expected.addresses if expected is not None else frozenset()

    def refusals(self) -> tuple[Refusal, ...]:
        return ()

    def upstream(self) -> Upstream:
        return Upstream()

    def bfd_refused(self) -> Mapping[str, int]:
        return {"ttl": 3}

    def egress(self) -> EgressStatus:
        return EgressStatus(True, 0, {"flows": 1}, {"flows": 100}, passed={"translated": 9}, drops={"no gateway": 3})

    def nat(self) -> tuple[Row, ...]:
        return ()

    def routes(self) -> RouteStatus:
        return RouteStatus()


@dataclass
class Running:
    agent: Agent
    here: Here
    world: World
    egress: EgressModel

    def feed(self, snapshot: Snapshot) -> None:
        self.here.store = snapshot
        self.agent.wake()


def with_agent(
    test: Callable[[Running], Awaitable[None]],
    world: World | None = None,
    *,
    makes_devices: bool = True,
    makes: type[Reconciler] = Reconciler,
    run: Callable[[Coroutine[Any, Any, None]], None] = in_virtual_time,
    **options: Any,
) -> None:
    async def story() -> None:
        here, there = Here(), world or World()
        egress = EgressModel(there, makes_devices)
        reconciler = makes(FakeSpeaker(there), [egress], settle_timeout=0.0)
        agent = Agent(Parts(Settings("a"), here, reconciler, **{"period": 60.0, **options}))
        task = asyncio.create_task(agent.run())
        try:
            await test(Running(agent, here, there, egress))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(story())


def prefixes(world: World) -> set[str]:
    return world.ribs.get(str(TOR), set())


def test_a_change_of_the_store_reaches_the_speaker_at_once() -> None:
    async def test(running: Running) -> None:
        await eventually(lambda: running.agent.status.rounds.done == 1)
        started = now()
        running.feed(cluster.snapshot())
        await eventually(lambda: "192.0.2.1/32" in prefixes(running.world))
        assert now() - started < 0.05  # and not when the period of 60 s is over

    with_agent(test)


def test_a_burst_of_changes_is_few_rounds() -> None:
    async def test(running: Running) -> None:
        for last in range(1, 100):
            allocations = Allocations(last, (cluster.allocation("web", f"192.0.2.{last}"),))
            running.feed(cluster.snapshot(allocations=allocations))
        await eventually(lambda: prefixes(running.world) == {"192.0.2.99/32"})
        assert running.agent.status.rounds.done <= 3

    with_agent(test)


def test_nothing_is_decided_again_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[Snapshot] = []

    def counting(snapshot: Snapshot, settings: Settings, facts: LocalFacts, kept: Kept) -> NodeState:
        composed.append(snapshot)
        return compose(snapshot, settings, facts, kept)

    monkeypatch.setattr("routerd.agent.loop.compose", counting)

    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.ready and running.agent.status.rounds.done > 5)
        assert len(composed) <= 2  # before and after the first snapshot

    with_agent(test, period=0.001)


def test_a_pod_that_waits_is_not_kept_waiting_by_the_rest_after_others() -> None:
    async def test(running: Running) -> None:
        await eventually(lambda: running.agent.status.rounds.done == 1)
        for done in range(2, 6):
            began = now()
            running.agent.hurry()
            await eventually(lambda done=done: running.agent.status.rounds.done == done)  # type: ignore[misc]
            assert running.here.looked == done
            assert now() - began < RECHECK_REST / 2

    with_agent(test)


def test_a_pod_that_comes_during_a_round_does_not_wait_for_the_rest_after_it() -> None:
    """As most do when many start at once: the round is one that their devices asked for."""

    async def test(running: Running) -> None:
        await eventually(lambda: running.agent.status.rounds.done == 1)
        loop, look = asyncio.get_running_loop(), running.here.surroundings

        def pod_comes(before: LocalFacts) -> LocalFacts:
            running.here.surroundings = look  # type: ignore[method-assign]
            loop.call_soon_threadsafe(running.agent.hurry)
            return look(before)

        running.here.surroundings, began = pod_comes, now()  # type: ignore[method-assign]
        running.agent.recheck()
        await eventually(lambda: running.here.looked == 3)
        assert now() - began < RECHECK_REST / 2

    with_agent(test)


def test_what_is_around_the_node_is_read_in_full_rounds_alone() -> None:
    async def test(running: Running) -> None:
        await eventually(lambda: running.agent.status.rounds.done == 1)
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.rounds.done == 2)
        assert running.here.looked == 1  # by the first
        running.agent.recheck()
        await eventually(lambda: running.agent.status.rounds.done == 3)
        assert running.here.looked == 2

    with_agent(test)


def test_an_unsynced_store_touches_nothing_and_is_not_ready() -> None:
    async def test(running: Running) -> None:
        await eventually(lambda: running.agent.status.rounds.done == 1)
        assert running.world.journal == []
        assert running.agent.status.not_ready_because().startswith("not read from the store yet: nodes, namespaces")

    with_agent(test)


def test_readiness_is_told_once_and_after_the_work_is_done() -> None:
    told: list[set[str]] = []
    world = World()

    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.rounds.done > 5)
        assert told == [{"192.0.2.1/32", "198.51.100.7/32"}]

    with_agent(test, world, period=0.001, on_ready=lambda: told.append(prefixes(world)))


def test_a_failed_round_is_tried_again_and_shown() -> None:
    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.rounds.errors > 0)
        assert running.agent.status.not_ready_because() == "egress: prepare group 7: map is full"
        running.world.broken = ""
        await eventually(lambda: running.agent.status.ready)
        assert running.world.groups == {7}

    with_agent(test, World(broken="prepare group 7"))


def test_a_round_without_the_store_makes_nothing_ready() -> None:
    """There may be a probe, or a session that comes up, while the first round with everything read is being made."""
    began, go_on = threading.Event(), threading.Event()

    async def test(running: Running) -> None:
        observe = running.egress.observe

        def held_up(desired: Any) -> set[int]:
            began.set()
            assert go_on.wait(PATIENCE)
            return observe(desired)

        running.egress.observe = held_up  # type: ignore[method-assign]
        await eventually(lambda: running.agent.status.rounds.done > 0)
        running.feed(cluster.snapshot())
        await eventually(began.is_set)
        running.agent.refresh()
        said = running.agent.status.not_ready_because()
        go_on.set()
        assert (said, running.agent.status.ready) == ("the first round with everything read is not done", False)
        await eventually(lambda: running.agent.status.rounds.errors > 0)
        assert running.agent.status.not_ready_because() == "egress: prepare group 7: map is full"
        running.world.broken = ""
        await eventually(lambda: running.agent.status.ready)

    with_agent(test, World(broken="prepare group 7"), run=asyncio.run)


def test_a_task_that_returns_is_a_fault() -> None:
    async def ends() -> None:
        """A watch that stops watching."""

    async def run() -> None:
        await Agent(Parts(Settings("a"), Here(), Reconciler(None), tasks={"store": ends})).run()

    with pytest.raises(ExceptionGroup) as fault:
        asyncio.run(run())
    assert fault.group_contains(TaskReturned, match="task store returned")


def test_a_fault_of_a_further_task_ends_the_agent() -> None:
    async def broken() -> None:
        raise OSError("relay: no such file")

    async def run() -> None:
        await Agent(Parts(Settings("a"), Here(), Reconciler(None), tasks={"speaker": broken})).run()

    with pytest.raises(ExceptionGroup) as fault:
        asyncio.run(run())
    assert fault.group_contains(OSError, match="no such file")


def test_stopping_leaves_everything_in_place() -> None:
    world = World()

    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.ready)

    with_agent(test, world)
    assert (world.groups, prefixes(world)) == ({7}, {"192.0.2.1/32", "198.51.100.7/32"})


# --- what it answers


def answers(*requests: dict[str, Any], **fields: object) -> list[Any]:
    found: list[Any] = []

    async def test(running: Running) -> None:
        running.feed(cluster.snapshot(**fields))
        await eventually(lambda: running.agent.status.ready)
        for request in requests:
            answer = running.agent.answer(request)
            found.append(await answer if inspect.isawaitable(answer) else answer)

    with_agent(test)
    return found


def test_it_answers_status_show_why_and_desired() -> None:
    status, peers, why, desired = answers(
        {"get": "status"},
        {"get": "show", "kind": "peers"},
        {"get": "why", "object": "svc/default/web"},
        {"get": "desired"},
    )
    assert (status["ready"], status["egress"]["drops"], status["peers"][0]["desired"]) == (True, {"no gateway": 3}, 2)
    assert (peers[0]["state"], peers[0]["paths"]) == ("up", 2)
    assert (why[-1]["question"], why[-1]["yes"]) == ("is the session with 10.0.0.1 up?", True)
    assert "path 10.0.0.1 192.0.2.1/32 next-hop self local-pref 0" in desired


def test_why_says_which_aggregate_the_last_round_could_not_announce() -> None:
    wide = ip_network("192.0.2.0/26")

    class Refused(Reconciler):
        async def round(self, state: NodeState, *, full: bool = True) -> Round:
            return replace(await super().round(state, full=full), unannounced={wide: "not supported"})

    async def test(running: Running) -> None:
        pool = cluster.pool(advertisements=(cluster.advertisement(aggregation_length=26),))
        running.feed(cluster.snapshot(pools={"default": pool}))
        await eventually(lambda: running.agent.status.ready)
        steps = running.agent.answer({"get": "why", "object": "svc/default/web"})
        assert (steps[-1]["question"], steps[-1]["reason"]) == (f"is {wide} announced?", "NoBlackhole")
        assert steps[-1]["detail"].endswith("not supported")

    with_agent(test, makes=Refused)


@pytest.mark.parametrize("request_", [{"get": "moon"}, {}, {"get": "show", "kind": "moon"}])
def test_what_it_does_not_know_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        answers(request_)
    assert refused.value.code == 2


def test_two_peers_of_one_name_are_told_apart_by_address() -> None:
    other = ip_address("10.0.0.2")
    local = {**LOCAL, Way(other): SESSION.local}
    peers = (Peer(TOR, 1, 2, name="tor"), Peer(other, 1, 2, name="tor"))
    state = compose(cluster.snapshot(bgp=Peering(peers)), Settings("a"), LocalFacts(sessions=local))
    assert [peer.label for peer in peer_statuses(state, {})] == ["10.0.0.1", "10.0.0.2"]


def test_two_sessions_with_one_peer_are_told_apart_by_where_they_are_from() -> None:
    source = ip_address("10.0.0.12")
    peers = (Peer(TOR, 1, 2), Peer(TOR, 1, 2, source_address=source))
    local = {**LOCAL, Way(TOR, source): source}
    state = compose(cluster.snapshot(bgp=Peering(peers)), Settings("a"), LocalFacts(sessions=local))
    assert [peer.label for peer in peer_statuses(state, {})] == ["10.0.0.1 from 10.0.0.11", "10.0.0.1 from 10.0.0.12"]


def test_of_two_entries_of_one_peer_the_node_asks_for_its_own() -> None:
    def entry(node: str, source: str) -> Peer:
        selector = LabelSelector((("kubernetes.io/hostname", node),))
        return Peer(TOR, 1, 2, source_address=ip_address(source), node_selectors=(selector,))

    async def test(running: Running) -> None:
        running.feed(cluster.snapshot(bgp=Peering((entry("a", "10.0.0.11"), entry("b", "10.0.0.12")))))
        await eventually(lambda: running.agent.status.rounds.whole == 1)
        desired = running.agent.answer({"get": "desired"})
        assert [line for line in desired if line.startswith("peer ")] == [
            "peer 10.0.0.1 AS2 10.0.0.11 -> AS1 10.0.0.1 router-id 10.0.0.11 hold 90 graceful-restart 120"
        ]

    with_agent(test)


def test_sessions_that_go_up_and_down_are_logged_with_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    up, lost = Session("up", 5.0, families=("ipv4 unicast",), hold_time=90), "hold timer expired"
    refused = "notification received (2,2): OPEN: bad peer AS"
    lives = [
        up,
        Session("unknown", 5.0),  # the speaker is away: nothing is known to have happened
        up,
        Session("down", 7.0, lost, flaps=1),
        Session("down", 7.0, refused, flaps=1),
        Session("down", 7.0, refused, flaps=1),
        replace(up, since=9.0, last_reason=refused, flaps=1),
        replace(up, since=12.0, last_reason=lost, flaps=2),  # down and up between two looks
    ]

    async def test(running: Running) -> None:
        running.here.session = lives[0]
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.rounds.whole == 1)
        for running.here.session in lives[1:]:
            running.agent.refresh()

    caplog.set_level(logging.INFO, "routerd.agent")
    with_agent(test)
    lines = [record.getMessage() for record in caplog.records if "event=session-" in record.getMessage()]
    raised = 'event=session-up peer=10.0.0.1 address=10.0.0.1 local=10.0.0.11 families="ipv4 unicast" hold=90'
    fell = f'event=session-down peer=10.0.0.1 address=10.0.0.1 local=10.0.0.11 reason="{lost}"'
    failed = f'event=session-failed peer=10.0.0.1 address=10.0.0.1 local=10.0.0.11 reason="{refused}"'
    assert lines == [raised, fell, failed, raised, fell, raised]


def test_a_refused_configuration_shows_as_stale() -> None:
    async def test(running: Running) -> None:
        await eventually(lambda: running.agent.status.rounds.done == 1)
        running.agent.config_is(ConfigStatus(stale=True, error="routerd.yaml:3: unknown key"))
        running.agent.wake()
        await eventually(lambda: running.agent.status.rounds.done > 1)
        assert (running.agent.status.config.stale, running.agent.status.config.error) == (
            True,
            "routerd.yaml:3: unknown key",
        )

    with_agent(test)


def test_what_a_changed_device_took_away_is_mended_at_once() -> None:
    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: bool(running.world.groups))
        before = set(running.world.groups)
        running.world.groups.clear()
        running.agent.recheck()
        await eventually(lambda: running.world.groups == before)

    with_agent(test)


class Busy(Here):
    """A node whose datapath does not let itself be read until the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.asked = threading.Event(), threading.Event()

    def egress(self) -> EgressStatus:
        self.asked.set()
        assert self.free.wait(PATIENCE)
        return super().egress()


def test_reading_the_datapath_does_not_stop_the_loop() -> None:
    async def run() -> None:
        here = Busy()
        agent = Agent(Parts(Settings("a"), here, Reconciler(None), period=60.0))
        task = asyncio.create_task(agent.run())
        await eventually(here.asked.is_set)
        assert agent.status.rounds.done == 0
        here.free.set()
        await eventually(lambda: agent.status.rounds.done)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_storm_of_changed_devices_is_few_rounds_and_none_is_missed() -> None:
    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.ready)
        egress = running.egress
        before, started = egress.reads, now()
        running.agent.recheck()
        await eventually(lambda: egress.reads > before)
        first = now() - started
        while now() - started < 0.5:
            running.agent.recheck()
            await elapse(0.001)
        assert egress.reads - before <= 1 + (now() - started) / RECHECK_REST
        assert first < RECHECK_REST / 2
        running.world.groups.clear()
        running.agent.recheck()
        await eventually(lambda: running.world.groups == {7})

    with_agent(test, makes_devices=False)


def test_the_brake_holds_is_shown_and_is_released() -> None:
    async def test(running: Running) -> None:
        service = replace(cluster.service("web"), origin=Origin("/m/gone.yaml", 1))
        running.feed(replace(cluster.snapshot(), services={"default/web": service}))
        await eventually(lambda: "192.0.2.1/32" in prefixes(running.world))
        running.feed(replace(cluster.snapshot(), services={}))
        await eventually(lambda: running.agent.status.braked > 0)
        assert "192.0.2.1/32" in prefixes(running.world)
        assert "WithdrawalHeld" in running.agent.status.refusals_by_reason()
        assert any("WithdrawalHeld" in line for line in (await running.agent.answer({"get": "plan"}))["refusals"])
        assert running.agent.answer({"do": "release-brake"}) == 1
        await eventually(lambda: "192.0.2.1/32" not in prefixes(running.world))
        await eventually(lambda: running.agent.status.braked == 0)  # status follows at the end of the round

    with_agent(test, brake=Brake(Limits(percent=10, paths=1), now))


def of_generation(number: int, **fields: Any) -> Snapshot:
    found = cluster.snapshot(**fields)
    assert found.allocations is not None
    return replace(found, allocations=replace(found.allocations, generation=number))


def test_the_generation_is_that_of_allocations_that_are_applied_not_read() -> None:
    async def test(running: Running) -> None:
        agent = running.agent
        running.feed(of_generation(1))
        await eventually(lambda: agent.status.rounds.errors > 0)
        assert agent.status.generation is None
        running.world.broken = ""
        await eventually(lambda: agent.status.generation == 1)
        running.here.settled = False  # ExaBGP has not acknowledged the next one
        running.feed(of_generation(2))
        await eventually(lambda: agent.snapshot.allocations == of_generation(2).allocations)
        done = agent.status.rounds.done
        await eventually(lambda: agent.status.rounds.done > done + 1)
        assert agent.status.generation == 1
        running.here.settled = True
        agent.refresh()
        assert agent.status.generation == 2

    with_agent(test, World(broken="prepare group 7"), period=0.01)


def test_a_change_is_measured_until_the_speaker_has_its_paths() -> None:
    async def test(running: Running) -> None:
        agent = running.agent
        running.feed(cluster.snapshot())
        await eventually(lambda: "192.0.2.1/32" in prefixes(running.world))
        await eventually(lambda: agent.status.rounds.whole > 0)
        running.here.settled = False  # ExaBGP has not acknowledged what follows
        running.feed(cluster.snapshot(allocations=Allocations(2, (cluster.allocation("web", "192.0.2.9"),))))
        await eventually(lambda: "192.0.2.9/32" in prefixes(running.world))
        done = agent.status.rounds.done
        await eventually(lambda: agent.status.rounds.done > done)
        assert agent.status.updates.done == 0
        running.here.settled = True
        agent.refresh()
        agent.refresh()
        assert agent.status.updates.done == 1

    with_agent(test, period=0.01)


def test_allocations_that_a_round_holds_back_or_cannot_place_are_not_applied() -> None:
    async def test(running: Running) -> None:
        agent = running.agent
        running.feed(of_generation(1))
        await eventually(lambda: agent.status.generation == 1)
        running.world.settles = False  # what is withdrawn may not go yet
        without = Allocations(2, (cluster.allocation("web", "192.0.2.1"),))
        running.feed(cluster.snapshot(allocations=without))
        await eventually(lambda: bool(agent.status.rounds.held))
        running.feed(of_generation(3, nodes={}))  # this node is in the store no more
        await eventually(lambda: any(each.reason == "UnknownNode" for each in agent.status.refusals))
        assert agent.status.generation == 1

    with_agent(test, period=0.01)


def test_a_datapath_that_a_round_attached_shows_at_once() -> None:
    class Fresh(Here):
        def egress(self) -> EgressStatus:
            return EgressStatus(datapath=bool(world.groups))

    async def run() -> None:
        here = Fresh()
        reconciler = Reconciler(FakeSpeaker(world), [EgressModel(world)], settle_timeout=0.0)
        agent = Agent(Parts(Settings("a"), here, reconciler, period=60.0))
        task = asyncio.create_task(agent.run())
        try:
            await eventually(lambda: agent.status.rounds.done)
            here.store = cluster.snapshot()
            agent.wake()
            await eventually(lambda: agent.status.egress.datapath)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    world = World()
    in_virtual_time(run())


def test_a_node_that_is_drained_says_when_it_may_be_stopped() -> None:
    """The VIP first for others, then for nobody here; the egress IP as soon as the operator has moved it."""
    moved = Allocations(2, cluster.snapshot().allocations.services, (cluster.group(gateways=("b",)),))  # type: ignore[union-attr]

    async def test(running: Running) -> None:
        def waits() -> str:
            return "; ".join(running.agent.status.drain.waits)

        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.ready)
        assert (await running.agent.answer({"do": "drain"}))["state"] == "draining"
        await elapse(1)
        assert "withdrawn in 4 s" in waits()
        assert prefixes(running.world) == {"192.0.2.1/32", "198.51.100.7/32"}
        await elapse(5)
        assert prefixes(running.world) == {"198.51.100.7/32"}
        assert "egress IP 198.51.100.7 has no other gateway" in waits()
        running.here.sent = False
        running.feed(cluster.snapshot(allocations=moved))
        await elapse(10)
        assert (prefixes(running.world), waits()) == (set(), "the peers have not taken all withdrawals yet")
        running.here.sent, running.here.coming = True, frozenset({ip_address("192.0.2.1")})
        await elapse(10)
        assert waits().startswith("new connections to 192.0.2.1 still come here")
        running.here.coming = frozenset()
        await elapse(1)
        assert waits() == "the routers, for 2 s"
        await elapse(3)
        assert running.agent.answer({"get": "drain"}) == {
            "state": "drained", "reason": "Drained", "waits": (), "notes": (),
            "message": "node a is drained: run `routerd undrain` there to put it back",
        }  # fmt: skip
        rows = await running.agent.answer({"get": "show", "kind": "nodes"})
        assert [(row["name"], row["state"]) for row in rows] == [("a", "drained"), ("b", "serving")]
        assert [step["reason"] for step in running.agent.answer({"get": "why", "object": "svc/default/web"})][-1] == (
            "NodeDrained"
        )
        assert (await running.agent.answer({"do": "undrain"}))["state"] == "serving"
        await eventually(lambda: prefixes(running.world) == {"192.0.2.1/32"})

    with_agent(test, drains=Drains(notice=5.0, clock=now, ticks=now))


def test_a_node_that_shuts_down_withdraws_at_once_and_comes_back_when_that_is_called_off() -> None:
    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: len(prefixes(running.world)) == 2)
        began = now()
        running.feed(cluster.snapshot(nodes={"a": cluster.node("a", 11, leaving="down", ready=False)}))
        await eventually(lambda: prefixes(running.world) == set())
        assert now() - began < 0.1
        await eventually(lambda: running.agent.status.drain.state == "drained")
        running.feed(cluster.snapshot())
        await eventually(lambda: len(prefixes(running.world)) == 2)
        await eventually(lambda: running.agent.status.drain.state == "serving")

    with_agent(test, drains=Drains(notice=60.0, clock=now, ticks=now))


def test_a_node_that_the_store_does_not_know_is_not_safe_to_stop() -> None:
    """What the speaker carries from before stays."""

    async def test(running: Running) -> None:
        await running.agent.answer({"do": "drain"})
        await elapse(60)
        drain = running.agent.status.drain
        assert (drain.state, drain.waits) == ("draining", ("the store, which has not told of this node yet",))
        running.feed(cluster.snapshot(allocations=Allocations(2)))
        await elapse(60)
        assert running.agent.status.drain.state == "drained"

    with_agent(test, drains=Drains(notice=5.0, clock=now, ticks=now))


def test_a_node_that_goes_from_the_store_while_it_leaves_ends_nothing() -> None:
    """It is deleted while the peers are asked whether they have taken its withdrawals: a round comes in between."""

    async def test(running: Running) -> None:
        async def is_sent() -> bool:
            running.feed(cluster.snapshot(nodes={}))
            await eventually(lambda: running.agent.snapshot.nodes == {})
            return True

        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.ready)
        running.here.is_sent = is_sent  # type: ignore[method-assign]
        await running.agent.answer({"do": "drain"})
        await eventually(lambda: running.agent.status.drain.waits == NODE_UNKNOWN.waits)
        done = running.agent.status.rounds.done
        running.agent.wake()
        await eventually(lambda: running.agent.status.rounds.done > done)

    with_agent(test, drains=Drains(notice=0.0, clock=now, ticks=now))


def test_a_node_that_leaves_is_safe_to_stop_although_something_changes_all_the_time() -> None:
    """A round takes a second, and the next one has work before it ends: what was told last withdraws, too."""

    class Slow(Reconciler):
        async def round(self, state: NodeState, *, full: bool = True) -> Round:
            await elapse(1)
            return await super().round(state, full=full)

    async def test(running: Running) -> None:
        running.feed(cluster.snapshot())
        await eventually(lambda: running.agent.status.ready)
        await running.agent.answer({"do": "drain"})
        safe = []
        for number in range(100):
            running.feed(cluster.snapshot(allocations=Allocations(number)))
            await elapse(0.3)
            safe.append(running.agent.status.drain.state == "drained")
        assert all(safe[-50:])

    with_agent(test, drains=Drains(notice=1.0, clock=now, ticks=now), makes=Slow)


@pytest.mark.parametrize(
    ("states", "lost"),
    [
        ([], False), (["up"], False), (["down"], True), (["connecting"], True), (["unknown"], False),
        (["down", "up"], False), (["down", "connecting"], True), (["down", "unknown"], False),
    ],
)  # fmt: skip
def test_a_node_has_lost_its_sessions_when_none_of_them_is_up(states: list[Any], lost: bool) -> None:
    """One without peers has none to lose; and of which nobody tells may be up."""
    assert are_lost(PeerView(SESSION, Session(state)) for state in states) == lost
