"""The agent: keeps one node as the store wants it. One TaskGroup, named tasks; a task that returns is a fault.

    rounds    decide, read back, plan, apply; at once after a change, else every few seconds; retries back off
    store     watches the store and wakes `rounds`
    speaker   the connection to the speaker's process, which the agent does not own
    report    what only this node knows, and that it serves, for the operator (`presence.py`)
    collect   idle flows out of the datapath
    trials    tries port sets through gateways before they are used
    links     devices that come, go or change: they wake `rounds`, too
    drain     looks whether the node is to leave, and how far it is
    heart     beats, so that a probe sees the loop alive

It decides nothing itself (`node/desired.py` does) and writes nothing itself (`reconcile.py` and the rooms do). Stopping
leaves announcements and datapath in place.

When a round is made, and how much it reads (`Agent._rounds`)
-------------------------------------------------------------
Between two rounds the agent waits for a change of the store, for a change of the node's devices, or for a pause to run
out. What it remembers between rounds is this, and no more:

full      The next round reads every room back from the kernel, and the node's own addresses and networks, which takes
          the longer the more pods there are. So a round for a change of the store trusts a room that was found as it
          should be, unless the desired value of that room changed: a new endpoint is a new path at once. All others
          are full: the first, those that a device asked for, and those after a pause, because anybody with root may
          have changed the kernel meanwhile, and nothing tells. Two large tables are read less often: the guard when
          nftables says that somebody committed, policy sets after ten seconds; both after anything failed.

recheck   A device came, went or changed, so what was read is no longer true, whatever the store says. Only a full round
          answers that: it takes the mark when it begins, as what comes during the round may have come after the look.
          A round for the store leaves the mark where it is.

rest      Devices change in storms (a pod's comes with several messages, a node is filled with many pods at once), and
          a full round for each would leave no time for anything else. So after one that a device asked for, the next
          such round begins 0.2 s later at the earliest. The first of a storm is made at once, and the last is never
          lost: a mark that is set during the rest wakes the loop at its end. The store does not wait for the rest; its
          rounds come in between and are not full. Nor does a pod that the CNI plugin holds back until it is decided.

retry     A round is unfinished if something failed (`error`), waits on purpose (`held`: a withdrawal that has not left
          yet), or cannot be done on this machine as it is (`refusals`: a sysctl is off, a device is missing). Most
          often nothing wakes the loop when it is mended, so the next round comes after 0.2 s, then twice as late each
          time, and never later than the ordinary period. Those rounds are full: after a failure only the kernel knows
          what was done. A change of the store begins the pauses anew, as it may be what mends the fault.

ready     Told to the service manager once, after the first round that had everything it needs and did not fail. It is
          not taken back: `status.ready`, which is what `/readyz` says, comes and goes with the last round. What is held
          or refused makes no node unready; traffic goes as far as it can.

The mark of a change is cleared before a round looks at the store. So a change during a round is at most one round more,
a hundred changes are one, and none is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import routerd
from bgp.path import AdjRibOut, SessionKey
from egress.status import EgressStatus
from fib.plan import Status as RouteStatus
from ipam.pod_addresses import PodAddresses
from routerd.agent.arrivals import Expected
from routerd.agent.changes import SessionLog, UpdateDelay, log_refusals
from routerd.agent.drain import Drains
from routerd.agent.plugins.attachments import Attachments
from routerd.agent.ports import PortDesk
from routerd.agent.reconcile import Reconciler, Round
from routerd.blocking import in_thread
from routerd.log import event
from routerd.model import IPAddress, IPNetwork, Peer, Refusal, Snapshot
from routerd.node.announce import Announcements
from routerd.node.brake import Brake
from routerd.node.desired import PROBE_ROOM, Kept, LocalFacts, NodeState, Settings, compose
from routerd.node.drain import Drain, upstream_refusals
from routerd.node.fill import fill_refusals
from routerd.node.rooms.bfd import standing_still
from routerd.node.sessions import entries_here
from routerd.refs import NODE, POD, Ref
from routerd.serve.api import RequestRefused
from routerd.store.interface import StoreStatus
from routerd.tell.columns import COLUMNS
from routerd.tell.drain import NODE_UNKNOWN, Departure, Progress, departure
from routerd.tell.render import refusal_lines, state_lines
from routerd.tell.status import AgentStatus, ConfigStatus, are_lost, as_json, peer_statuses
from routerd.tell.views import PeerView, Row, UsedAddresses, View, pool_rows, rows
from routerd.tell.why import (
    device_steps,
    explain,
    first_packet_steps,
    gateway_steps,
    is_service,
    route_steps,
    session_steps,
)
from upstream.targets import Upstream

LOGGER = logging.getLogger("routerd.agent")
RECHECK_REST = 0.2  # seconds between rounds that read everything back because devices changed, which come in storms
COUNT_REST = 1.0  # seconds between two looks at the counters, for rounds that follow each other
DRAIN_LOOK = 0.5  # seconds
FIRST_RETRY, LAST_RETRY = 0.2, 30.0  # seconds; doubles while rounds leave something undone


class TaskReturned(Exception):
    """A task that must live as long as the agent has returned: a fault of ours."""


class Host(Protocol):
    """What an agent asks its node: `routerd.agent.rooms.Rooms` on a real one, a model in tests."""

    def snapshot(self) -> Snapshot:
        """The store's present view."""

    def store_status(self) -> StoreStatus | None:
        """How the store's reading goes; None where there is nothing to say."""

    def surroundings(self, before: LocalFacts) -> LocalFacts:
        """`before` with the node's addresses and networks, read from the kernel, which blocks: asked in a thread."""

    def facts(self, peers: tuple[Peer, ...], before: LocalFacts) -> LocalFacts:
        """`before` with what the look-up of the way to each of this node's peers says now."""

    def peers(self) -> Mapping[SessionKey, PeerView]: ...

    def is_settled(self) -> bool:
        """Whether the speaker has acknowledged all that it was told."""

    async def is_sent(self) -> bool:
        """Whether the peers have all that the speaker was told; False at once while it has not acknowledged it."""

    def arrivals(self, expected: Expected | None) -> frozenset[IPAddress]:
        """Addresses that new connections have come to since the last call; None = nobody looks any more."""

    def refusals(self) -> tuple[Refusal, ...]:
        """The speaker's, and those of BFD."""

    def upstream(self) -> Upstream:
        """What targets upstream of this gateway answer."""

    def bfd_refused(self) -> Mapping[str, int]:
        """Packets that BFD did not take, by reason."""

    def egress(self) -> EgressStatus:
        """Reads the datapath, which blocks: asked in a thread, as is `nat`."""

    def nat(self) -> tuple[Row, ...]: ...

    def routes(self) -> RouteStatus:
        """To other nodes' pods, as they were at the last look."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is made of."""

    settings: Settings
    host: Host
    reconciler: Reconciler
    brake: Brake = field(default_factory=Brake)  # off
    carried: Callable[[], Awaitable[Mapping[SessionKey, AdjRibOut]]] | None = None
    """Reads what the speaker has from an agent before this one; None = not asked."""
    tasks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """Further long-lived tasks by name, such as the speaker's connection."""
    on_ready: Callable[[], None] = lambda: None
    """Called once, after the first round with everything read that went well."""
    attachments: Attachments | None = None
    """Told of each round; None = nobody speaks for the CNI."""
    pod_addresses: Callable[[], PodAddresses] = PodAddresses
    """What this node's pods have of its blocks."""
    ports: PortDesk | None = None
    """Told of each round; None = nobody reads what it says."""
    period: float = 5.0  # seconds
    drains: Drains = field(default_factory=Drains)


class Agent:
    """`run` until cancelled."""

    def __init__(self, parts: Parts) -> None:
        self._settings = parts.settings
        self._host = parts.host
        self._reconciler = parts.reconciler
        self._brake = parts.brake
        self._carried = parts.carried
        self._tasks = parts.tasks
        self._on_ready = parts.on_ready
        self._period = parts.period
        self._drains = parts.drains
        self._attachments = parts.attachments or Attachments(parts.settings.node)
        self._pod_addresses = parts.pod_addresses
        self._ports = parts.ports or PortDesk(parts.settings.node)
        self._told = NodeState(None)  # the state of the last round that went to its end
        self._told_in: Drain | None = None  # how far the node had left then
        self._changed = asyncio.Event()
        self._recheck = False
        self._hurries = False  # whether that is for a pod that waits
        self._rest_until = 0.0  # of the loop's clock
        self._snapshot = self._status_snapshot = Snapshot()
        self._egress = EgressStatus()  # as read last
        self._count_at = 0.0  # of the loop's clock: earlier the rounds do not read it again
        self._facts = LocalFacts()
        self._state = NodeState(None)
        self._kept = Kept()
        self._pools: tuple[tuple[object, ...], tuple[Row, ...]] | None = None  # what was told, of what
        self._used = UsedAddresses()
        self._composed: tuple[Snapshot, LocalFacts] | None = None
        self._last_round = Round()
        self._sessions = SessionLog()
        self._delay = UpdateDelay()
        self._applied: int | None = None  # generation of the allocations of which a round left nothing undone
        self._began = time.monotonic()
        self._status = AgentStatus(
            parts.settings.node,
            routerd.__version__,
            started=time.time(),
            missing=Snapshot().missing(),
        )

    # --- what others read

    @property
    def status(self) -> AgentStatus:
        """The status after the last round; a frozen value, so any thread may read it."""
        return self._status

    @property
    def is_gateway(self) -> bool | None:
        """Of any egress IP; None = not known yet."""
        egress = self._state.egress
        return None if egress is None else bool(egress.served)

    @property
    def snapshot(self) -> Snapshot:
        """What `status` was made from; a round that has begun may know more."""
        return self._status_snapshot

    @property
    def announcements(self) -> Announcements | None:
        """Of the last round that went to its end."""
        return self._told.announcements

    @property
    def unannounced(self) -> Mapping[IPNetwork, str]:
        """Aggregates that it left out of them (`Round.unannounced`)."""
        return self._last_round.unannounced

    def wake(self) -> None:
        """Asks for a round now: the store has changed."""
        self._delay.changed()
        self._changed.set()

    def recheck(self) -> None:
        """Asks for a round that reads everything back: the node's devices have changed. Storms of them are slowed."""
        if not self._recheck:
            self._recheck = True
            asyncio.get_running_loop().call_at(self._rest_until, self._changed.set)

    def hurry(self) -> None:
        """As `recheck`, and at once: a pod waits for it."""
        self._recheck = self._hurries = True
        self._changed.set()

    def refresh(self) -> None:
        """Tells the status anew: a session has changed, the speaker has acknowledged, or what is upstream."""
        self._look_at_delay()
        self._status, self._status_snapshot = self._refreshed(), self._snapshot
        self._sessions.note(self._status.peers)
        lost = are_lost(self._host.peers().values()), self._host.upstream().is_lost
        if lost != (self._facts.sessions_lost, self._facts.upstream_lost):
            self.wake()  # sources are to know

    def config_is(self, config: ConfigStatus) -> None:
        """Tells how the configuration on disk stands."""
        self._status = replace(self._status, config=config)
        if not config.stale:
            self._release_brake()  # a person had it read again: what the store says is meant

    def answer(self, request: dict[str, Any]) -> Any:
        """The API: one request, one answer (or an awaitable of it). RequestRefused for what it does not know.

        What changes something is a "do", what only tells a "get".
        """
        gets: dict[str, Callable[[dict[str, Any]], Any]] = {
            "status": lambda _: self._status_json(),
            "show": self._show,
            "why": self._why,
            "desired": lambda request: state_lines(self._state, str(request.get("key") or "").encode()),
            "plan": lambda _: self._plan(),
            "drain": lambda _: asdict(self._status.drain),
        }
        does: dict[str, Callable[[dict[str, Any]], Any]] = {
            "release-brake": lambda _: self._release_brake(),
            "drain": lambda _: self._order(self._drains.order),
            "undrain": lambda _: self._order(self._drains.cancel),
        }
        answer = does.get(str(request["do"])) if "do" in request else gets.get(str(request.get("get")))
        if answer is None:
            raise RequestRefused(
                f"unknown request {json.dumps(request)}: the agent is routerd {routerd.__version__}", 2
            )
        return answer(request)

    async def _status_json(self) -> dict[str, object]:
        return as_json(await self._counted())

    async def _show(self, request: dict[str, Any]) -> list[Row]:
        kind = str(request.get("kind"))
        if kind not in COLUMNS:
            raise RequestRefused(f"unknown kind {kind!r}: one of {', '.join(COLUMNS)}", 2)
        nat = await in_thread(self._host.nat) if kind == "nat" else ()
        egress = (await self._counted()).egress if kind in ("gateways", "nodes") else EgressStatus()
        view = View(
            self._snapshot, self._state, self._host.peers(), nat, self._states(), time.time(), egress.probed,
            egress.tunnel_packets, self._pod_addresses(), self._host.routes(), time.monotonic(),
        )  # fmt: skip
        return rows(kind, view)

    def _states(self) -> dict[str, str]:
        state = self._drains.departure.state
        return {} if state == "serving" else {self._settings.node: state}

    def _why(self, request: dict[str, Any]) -> list[dict[str, object]]:
        name = str(request.get("object"))
        views = self._host.peers()
        steps = explain(self._snapshot, self._state, self._settings, name, views, self.unannounced)
        in_effect = steps[-1].yes or steps[-1].note
        if is_service(name) and in_effect:
            steps += session_steps(self._state.announcements, views)
        if Ref.parse(name).kind == POD and in_effect:
            pod = (self._snapshot.pods or {})[Ref.parse(name).key]
            steps += device_steps(pod, self._status.refusals)
            steps += first_packet_steps(self._status.egress, self._status.refusals)
            steps += gateway_steps(self._status.egress.probed)
        if Ref.parse(name).kind == NODE:
            steps += route_steps(self._state, self._host.routes(), self._snapshot, Ref.parse(name).name)
        return [asdict(step) for step in steps]

    def _release_brake(self) -> int:
        """Lets go what the brake holds; the next round does it, at once. How many paths that is."""
        paths = self._brake.release()
        if paths:
            event(LOGGER, logging.WARNING, "brake-released", paths=paths)
        self.wake()
        return paths

    async def _order(self, order: Callable[[], None]) -> dict[str, Any]:
        """Has the node leave or come back; the next round does it, at once."""
        order()
        await self._look_at_drain()
        return asdict(self._status.drain)

    async def _plan(self) -> dict[str, list[str]]:
        lines = await self._reconciler.preview(self._state)
        return {"changes": lines, "refusals": refusal_lines(self._refreshed().refusals)}

    # --- tasks

    async def run(self) -> None:
        """Runs until cancelled; the first fault ends it, and leaves the node as it is."""
        async with asyncio.TaskGroup() as group:
            for name, task in {"rounds": self._rounds, "drain": self._follow_drain, **self._tasks}.items():
                group.create_task(_guarded(name, task()), name=name)

    async def _rounds(self) -> None:
        ready, full, retry = False, True, FIRST_RETRY
        while True:
            self._changed.clear()  # changes while a round runs are one round
            rechecks = full and self._recheck
            if full:
                self._recheck = self._hurries = False
            done = await self._round(full)
            if rechecks:
                self._rest_until = asyncio.get_running_loop().time() + RECHECK_REST
            unfinished = bool(done.error or done.held or done.refusals)
            if not ready and self._status.rounds.whole:
                ready = True
                self._on_ready()
            woken = await self._is_woken(min(retry, self._period) if unfinished else self._period)
            full = not woken or self._is_recheck_due()
            retry = min(retry * 2, LAST_RETRY) if unfinished and full else FIRST_RETRY

    async def _follow_drain(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_LOOK)
            await self._look_at_drain()

    async def _look_at_drain(self) -> None:
        """Wakes the rounds when the node is to leave, to withdraw or to come back; then says how far that is."""
        snapshot = self._snapshot  # one for all: a round may come in between
        drain = self._drains.look((snapshot.nodes or {}).get(self._settings.node))
        if drain != self._facts.drain:
            self.wake()
        if drain is not None:
            found = departure(await self._progress(drain, snapshot))
        elif self._drains.is_ordered:
            found = NODE_UNKNOWN
        elif self._drains.departure.state == "serving":
            return
        else:
            self._host.arrivals(None)
            found = Departure()
        self._status = replace(self._status, drain=self._drains.judge(found))

    async def _progress(self, drain: Drain, snapshot: Snapshot) -> Progress:
        told = self._told if self._told_in == drain else NodeState(None)  # what changes meanwhile withdraws as well
        return Progress(
            self._settings.node,
            drain,
            self._drains.left,
            told.announcements,
            snapshot.allocations,
            self._host.peers() if self._reconciler.announces else None,
            drain.withdraws and await self._host.is_sent(),
            time.monotonic() - self._began,
            self._host.arrivals(self._expected(snapshot) if drain.withdraws else None),
        )

    def _expected(self, snapshot: Snapshot) -> Expected:
        """Connections to VIPs that do not begin on this node."""
        allocated = snapshot.allocations.services if snapshot.allocations else ()
        here = (snapshot.nodes or {})[self._settings.node]
        pods = [pod for pod in (snapshot.pods or {}).values() if pod.node == here.name]
        own = {*here.addresses, *self._facts.addresses, *(address for pod in pods for address in pod.addresses)}
        vips = frozenset(address for each in allocated for address in each.addresses)
        return Expected(vips, frozenset(own), here.pod_cidrs)

    def _is_recheck_due(self) -> bool:
        """If it is too early for one that is asked for, it wakes the rounds when it is not."""
        loop = asyncio.get_running_loop()
        if not self._recheck or self._hurries or loop.time() >= self._rest_until:
            return self._recheck
        loop.call_at(self._rest_until, self._changed.set)
        return False

    async def _is_woken(self, delay: float) -> bool:
        """Whether a change came within `delay` seconds."""
        try:
            async with asyncio.timeout(delay):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _round(self, full: bool) -> Round:
        started = time.monotonic()
        self._delay.round_begins()
        if full:
            self._facts = await in_thread(self._host.surroundings, self._facts)
        await self._compose()
        self._ports.consider(self._snapshot.allocations, self._state)  # who asks need not wait for the datapath
        done = await self._reconciler.round(self._state, full=full)
        seconds = time.monotonic() - started
        self._log(done, seconds)
        self._attachments.consider(self._snapshot, self._state, done.undone)
        self._last_round, self._told, self._told_in = done, self._state, self._facts.drain
        if self._is_finished(done) and self._snapshot.allocations is not None:
            self._applied = self._snapshot.allocations.generation
            self._ports.is_applied(self._snapshot.allocations, self._state)
        if (announced := self._state.announcements) is not None and self._reconciler.has_told(announced.desired):
            self._delay.told(announced.desired)
        self._look_at_delay()
        rounds = self._status.rounds.after(seconds, done.error, done.held, whole=not self._snapshot.missing())
        is_new = bool(done.actions) and not self._egress.datapath  # it may have been attached just now
        is_due = full and asyncio.get_running_loop().time() >= self._count_at  # a pod may wait for the next round
        self._status = (await self._counted() if is_due or is_new else self._refreshed()).with_rounds(rounds)
        self._status_snapshot = self._snapshot
        self._sessions.note(self._status.peers)
        return done

    def _look_at_delay(self) -> None:
        if self._host.is_settled():
            self._delay.acknowledged()

    def _is_finished(self, done: Round) -> bool:
        is_undone = done.error or done.held or self._brake.paths
        return not is_undone and self._reconciler.takes(self._state)

    async def _compose(self) -> None:
        """Decides anew, unless nothing that a decision rests on has changed."""
        self._snapshot = self._host.snapshot()
        drain = self._drains.look((self._snapshot.nodes or {}).get(self._settings.node))
        facts = self._host.facts(self._peers(), self._facts)
        lost = are_lost(self._host.peers().values())
        self._facts = replace(facts, drain=drain, attached=self._attachments.take(), sessions_lost=lost)
        is_same = self._composed is not None and self._composed[0] is self._snapshot
        if is_same and self._composed is not None and self._composed[1] == self._facts and not self._brake.is_due:
            return
        before = self._state.refusals
        state = compose(self._snapshot, self._settings, self._facts, self._kept)
        if state.announcements is not None and self._carried is not None:
            carried, self._carried = self._carried, None
            self._brake.begin(await carried())
        self._state = self._brake.apply(state, self._snapshot)
        self._composed = (self._snapshot, self._facts)
        log_refusals(before, self._state.refusals)

    def _peers(self) -> tuple[Peer, ...]:
        """The entries of peers that this node uses."""
        snapshot = self._snapshot
        here = (snapshot.nodes or {}).get(self._settings.node)
        return tuple(entries_here(snapshot.bgp.peers, here).values()) if snapshot.bgp and here else ()

    async def _counted(self) -> AgentStatus:
        """The status with counters as they are now: reads the datapath."""
        self._count_at = asyncio.get_running_loop().time() + COUNT_REST
        self._egress = await in_thread(self._host.egress)
        return self._refreshed()

    def _pool_rows(self) -> tuple[Row, ...]:
        """As told last while they are the same: it asks every allocation."""
        of = (self._snapshot.pools, self._snapshot.allocations)
        if self._pools is None or any(one is not other for one, other in zip(self._pools[0], of, strict=True)):
            is_composed = self._composed is not None and self._composed[0] is self._snapshot
            allocated = self._kept.announced.allocated if is_composed else None
            self._pools = of, tuple(pool_rows(self._snapshot, self._used, allocated))
        return self._pools[1]

    def _refusals(self) -> Iterator[Refusal]:
        yield from (*self._state.refusals, *self._last_round.refusals, *self._host.refusals())
        yield from fill_refusals(self._settings.node, self._egress)
        yield from upstream_refusals(self._settings.node, self._host.upstream())
        yield from standing_still(self._state.rooms.get(PROBE_ROOM), self._egress.probed)

    def _refreshed(self) -> AgentStatus:
        return replace(
            self._status,
            missing=self._snapshot.missing(),
            peers=peer_statuses(self._state, self._host.peers()),
            refusals=tuple(dict.fromkeys(self._refusals())),
            pools=self._pool_rows(),
            generation=self._applied if self._host.is_settled() else self._status.generation,
            store=self._host.store_status(),
            braked=self._brake.paths,
            drain=self._drains.departure,
            bfd_refused=self._host.bfd_refused(),
            upstream=self._host.upstream(),
            egress=self._egress.beside(self._state.egress),
            routes=self._host.routes(),
            updates=self._delay.seen,
        )

    def _log(self, done: Round, seconds: float) -> None:
        """One line for each round that did something, and one when trouble comes, changes or goes."""
        if done.error:
            event(LOGGER, logging.ERROR, "round-failed", reason=done.error, actions=len(done.actions))
        elif done.actions:
            event(LOGGER, logging.INFO, "round", actions=len(done.actions), seconds=round(seconds, 4))
            for action in done.actions:
                event(LOGGER, logging.DEBUG, "action", action=action)
        if done.held and done.held != self._last_round.held:
            event(LOGGER, logging.WARNING, "round-held", reason=done.held)
        if self._last_round.error and not done.error:
            event(LOGGER, logging.INFO, "round-recovered")
        log_refusals(self._last_round.refusals, done.refusals)


async def _guarded(name: str, task: Awaitable[None]) -> None:
    await task
    raise TaskReturned(f"task {name} returned: it must run as long as the agent")
