"""The operator's loop: wait for a change, decide, record, publish.

The decision is `routerd.cluster.assign`'s. It is recorded in the ledger before it is published in the store; when
either fails, what was published last stays in force and the whole round is made again after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar

from ipam.round import Record
from routerd.clock import Clock, jumps
from routerd.cluster.adopt import is_foreign, may_know_more
from routerd.cluster.agents import Agents, hear, rfc3339
from routerd.cluster.assign import AssignSettings, Decision, Kept, assign, release
from routerd.cluster.ledger import Changes, Ledger, difference, rest_anew
from routerd.cluster.port_sets import Holder, holders
from routerd.errors import EnvironmentFault, StoreError
from routerd.log import LEVELS, event
from routerd.model import Allocations, NodeReport, Refusal, Snapshot
from routerd.serve.api import Noted, RequestRefused
from routerd.tell.status import Rounds

logger = logging.getLogger("routerd.operator")
T = TypeVar("T")
BUSY = "the operator is busy: it waits for its store (the API server, or a disk); nothing was done, try again"
OLD = "the last change of the ledger is not known to be stored yet: this is what it said before"

JOIN, LONGEST_JOIN = 0.1, 1.0  # seconds in which changes are joined to one round, where a write is a request
WRITES, LONGEST_REST = 20.0, 5.0  # requests a second that write; seconds after a round that made many
FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0  # seconds between rounds that fail, doubled each time
PATIENCE = 2.0  # seconds that a question waits for a round to end
LOOK = 2.0  # seconds between looks at who is heard
LONGEST_WAIT = 3600.0  # seconds; a clock that jumped cannot put a timer off for longer


class OperatorView(Protocol):
    """A store as an operator sees it: a `Store` (`routerd.store.interface`) to which one listens after it was made."""

    def snapshot(self) -> Snapshot: ...

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        """By node; None = not read yet."""

    def write_allocations(self, allocations: Allocations) -> None: ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called in the event loop when the snapshot or a report has changed."""


class LedgerFile(Protocol):
    """What the operator needs of the ledger; `SqliteLedger` and `KubernetesLedger` are two."""

    def read(self) -> Ledger: ...

    def record(self, changes: Changes) -> None: ...

    @property
    def writes(self) -> int:
        """Requests so far that wrote for it, or for what is published; 0 where a write is none."""


def holder_row(holder: Holder) -> dict[str, str]:
    """A row of `routerd who`; times in RFC 3339, `until` "" = it still is."""
    ports = f"{holder.first}-{holder.first + holder.size - 1}"
    row = {"egress_ip": str(holder.egress_ip), "ports": ports, "node": holder.node}
    until = "" if holder.until is None else rfc3339(holder.until)
    return {**row, "since": rfc3339(holder.since), "until": until}


def ledger_row(record: Record) -> dict[str, str]:
    """A row of `routerd ledger`; `since` in RFC 3339."""
    since = rfc3339(record.since)
    row = {"address": str(record.address), "owner": record.owner, "pool": record.pool}
    return {**row, "state": record.state, "since": since}


async def rest(error: Exception, seconds: float) -> None:
    """The pause after a round that failed."""
    await asyncio.sleep(seconds)


@dataclass(slots=True)
class Operator:
    """One operator. `clock` gives seconds of the Unix epoch: records outlive the process."""

    store: OperatorView
    ledger: LedgerFile
    settings: AssignSettings = field(default_factory=AssignSettings)
    clock: Callable[[], float] = field(default_factory=Clock)
    in_thread: bool = False  # the store's writes wait for a network: rounds are made in a worker thread
    on_decision: Callable[[], None] = lambda: None  # called in the event loop after each round
    rounds: Rounds = field(default_factory=Rounds)  # those that decided, or failed
    rest: Callable[[Exception, float], Awaitable[None]] = rest  # a store may know of a better moment
    agents: Agents = field(default_factory=Agents)  # what was heard of them
    ticks: Callable[[], float] = time.monotonic  # seconds of a clock that nobody sets
    cloud: Callable[[], Noted] | None = None  # what `routerd show cloud` is told; None = there is no cloud
    last: Decision | None = field(init=False, default=None)  # for status and metrics
    _state: Ledger | None = field(init=False, default=None)  # the ledger's content; None = must be read
    _last_ledger: Ledger | None = field(init=False, default=None)  # as read or recorded last, whatever became of it
    # What was published, over what.
    _last_write: tuple[Allocations, Allocations | None] | None = field(init=False, default=None)
    _refusals: tuple[Refusal, ...] = field(init=False, default=())
    _kept: Kept | None = field(init=False, default=None)
    _jumps: int = field(init=False, default=0)  # of the clock, for which what rests has begun anew
    _began: bool = field(init=False, default=False)
    _lasted: float = field(init=False, default=0.0)  # seconds of the last round
    _rests_until: float = field(init=False, default=0.0)  # of `ticks`
    _initial: Allocations | None = field(init=False, default=None)  # what was published when it began
    _wake: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _turn: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)  # one at a time reads and writes the ledger

    def wake(self) -> None:
        """Something changed. Called in the event loop."""
        self._wake.set()

    async def run(self) -> None:
        """Runs until it is cancelled. The store runs beside it."""
        self.store.on_change(self.wake)
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()
            self.hear()
            try:
                wait = await self._alone(self._timed)
                pause = FIRST_PAUSE
                self.on_decision()
            except (StoreError, EnvironmentFault) as error:
                reason = type(error).__name__
                event(logger, logging.ERROR, "round-failed", reason=reason, message=str(error), retry=pause)
                await self.rest(error, pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue  # a timer is due
            await self._join()

    async def _join(self) -> None:
        """Waits for what comes with the change; longer in a storm, when rounds are long, or write much."""
        if self.in_thread:
            join = min(max(JOIN, 2 * self._lasted), LONGEST_JOIN)
            await asyncio.sleep(max(join, self._rests_until - self.ticks()))

    async def listen(self) -> None:
        """Until it is cancelled, beside `run`. A beat that changes no decision costs no round."""
        while True:
            if self.hear():
                self.wake()
            await asyncio.sleep(LOOK)

    def hear(self) -> bool:
        """Looks at the reports; whether a decision may now be another. Called in the event loop."""
        nodes, reports = self.store.snapshot().nodes, self.store.node_reports()
        if nodes is None or reports is None:
            return False
        before, self.agents = self.agents, hear(self.agents, reports, self.ticks(), self.clock(), nodes)
        return before.verdict() != self.agents.verdict()

    async def _alone(self, work: Callable[[], T], patience: float | None = None) -> T:
        """Nobody else reads or writes the ledger meanwhile.

        RequestRefused if somebody does for `patience` seconds; `work` that has begun is not interrupted.
        """
        try:
            async with asyncio.timeout(patience):
                await self._turn.acquire()
        except TimeoutError:
            raise RequestRefused(BUSY) from None
        try:
            return await asyncio.to_thread(work) if self.in_thread else work()
        finally:
            self._turn.release()

    def _timed(self) -> float:
        """A round, which `rounds` counts if there was anything to decide on."""
        began, before, written = time.perf_counter(), self.last, self.ledger.writes
        try:
            wait = self.round()
        except (StoreError, EnvironmentFault) as error:
            self.rounds = self.rounds.after(time.perf_counter() - began, str(error))
            raise
        self._lasted = time.perf_counter() - began
        self._rests_until = self.ticks() + min((self.ledger.writes - written) / WRITES, LONGEST_REST)
        if self.last is not before:
            self.rounds = self.rounds.after(self._lasted)
        return wait

    def round(self) -> float:
        """Decides, records, publishes. Returns for how many seconds nothing is to do unless something changes.

        Errors: `StoreError`, `EnvironmentFault`. Made again after one, it comes to the same result.
        """
        began, now = time.perf_counter(), self.clock()
        state = self._read()
        snapshot = self.store.snapshot()
        self._check_read(snapshot, state)
        if self._kept is None or self._kept.service_cidrs != snapshot.service_cidrs:
            self._kept = Kept(snapshot.service_cidrs)
        jumped = jumps(self.clock)
        rested = state if jumped == self._jumps else rest_anew(state, now)
        decision = assign(snapshot, rested, self.store.node_reports(), now, self.settings, self.agents, self._kept)
        if not decision.synced:
            return LONGEST_WAIT
        self._check_rival(snapshot.allocations, decision, state.generation)
        changes = difference(state, decision.ledger, now)
        self._record(changes)
        self._jumps = jumped
        self._publish(decision.allocations, snapshot)
        self._log(decision, changes, time.perf_counter() - began)
        self.last = decision
        due = LONGEST_WAIT if decision.next_due is None else decision.next_due - now
        return min(max(due, 0.05), LONGEST_WAIT)

    async def answer(self, request: dict[str, Any]) -> Noted:
        """The operator's socket: {"get": "ledger"}, {"get": "cloud"}, {"do": "release", "name": …}, or {"get": "who",
        "address": …, "port": …, "at": seconds or null}; answers with the records.

        A release that cannot begin at once is refused and not made later. Errors: `RequestRefused`, `StoreError`.
        """
        name = request.get("name")
        if request == {"get": "cloud"}:
            if self.cloud is None:
                raise RequestRefused("no cloud is configured: cloud.provider of routerd.yaml names one")
            return self.cloud()
        if request == {"get": "ledger"}:
            state, note = await self._look()
            return Noted([ledger_row(each) for each in state.addresses], note)
        if request.get("get") == "who":
            return await self._who(request)
        if request.get("do") != "release" or not isinstance(name, str):
            raise RequestRefused(f"unknown request {request!r}", 2)
        try:
            released = await self._alone(lambda: self.release(name), PATIENCE)
        except StoreError as error:
            raise StoreError(f"{error}: `routerd ledger` shows whether it was released all the same") from error
        if not released:
            raise RequestRefused(f"nothing is reserved as {name!r}; addresses in use stay with their owners")
        self.wake()
        return Noted([ledger_row(each) for each in released])

    async def _who(self, request: Mapping[str, Any]) -> Noted:
        try:
            address, port, at = ip_address(request["address"]), int(request["port"]), request.get("at")
            moment = None if at is None else float(at)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise RequestRefused(f"unknown request {request!r}", 2) from error
        state, note = await self._look()
        return Noted([holder_row(each) for each in holders(state, address, port, moment)], note)

    async def _look(self) -> tuple[Ledger, str]:
        """What the ledger says, without waiting for a store that does not answer."""
        if self._state is None:  # it is being written, or that failed, or it was never read
            with suppress(RequestRefused):
                await self._alone(lambda: None, PATIENCE)
        state, note = self._state, ""
        if state is None and (self._last_ledger is None or not self.in_thread):
            state = await self._alone(self._read, PATIENCE)
        elif state is None:
            state, note = self._last_ledger, OLD
        assert state is not None
        return state, note

    async def change(self, edit: Callable[[Ledger], Ledger]) -> Ledger:
        """Records what `edit` makes of the ledger, between rounds. Errors: `StoreError`, `EnvironmentFault`."""
        return await self._alone(lambda: self._change(edit))

    def _change(self, edit: Callable[[Ledger], Ledger]) -> Ledger:
        state = self._read()
        after = edit(state)
        if after is not state:
            self._record(difference(state, after, self.clock()))
        return after

    def release(self, name: str) -> tuple[Record, ...]:
        """Ends the reservations of an address or owner and says which."""
        now, state = self.clock(), self._read()
        after, released = release(state, name, now)
        self._record(difference(state, after, now))
        for record in released:
            event(logger, logging.INFO, "released", owner=record.owner, address=str(record.address))
        return released

    def _check_read(self, snapshot: Snapshot, state: Ledger) -> None:
        """Raises StoreError while something is published that may be in use, and neither it nor the ledger tells what.

        Whoever decided all the same would give every address anew.
        """
        unread = snapshot.unread
        if unread and may_know_more(unread, snapshot.allocations is None, state, self.settings.writer):
            raise StoreError(
                f"what is published cannot be read, and may be newer than the ledger: {unread.message}: bring it "
                "whole, with its parts, or delete it to begin anew from the ledger alone; nothing is given meanwhile"
            )

    def _check_rival(self, published: Allocations | None, decision: Decision, generation: int) -> None:
        """Raises StoreError if another operator publishes what this one would not. `generation` is our ledger's.

        What was there when this one began is taken over. Two that go on writing would take addresses from each other,
        so the one that finds the other's document does not write; where both say the same it has nothing to write.
        """
        if not self._began:
            self._began, self._initial = True, published
        own, initial = self.settings.writer, self._initial
        if published is None or not is_foreign(published.writer, own) or published.generation < generation:
            return
        if published == decision.allocations or (published == initial and published.writer == initial.writer):
            return
        writer = published.writer
        assert writer is not None
        raise StoreError(
            f"another operator, on {writer.node or 'an unknown node'} (ledger {writer.ledger}, lease {writer.lease}), "
            f"published generation {published.generation}: stop one of the two and start the other again, which takes "
            "over what is published; this one writes nothing"
        )

    def _read(self) -> Ledger:
        if self._state is None:
            self._state = self._last_ledger = self.ledger.read()
        return self._state

    def _record(self, changes: Changes) -> None:
        self._state = None  # after a fault, what the file says counts
        self.ledger.record(changes)
        self._state = self._last_ledger = changes.after

    def _publish(self, allocations: Allocations, snapshot: Snapshot) -> None:
        """Writes unless the store has it whole, or has not caught up with what was written a moment ago."""
        published, is_whole = snapshot.allocations, snapshot.unread is None
        if is_whole and allocations == published:
            self._last_write = None  # caught up: the same change by somebody else is another one
            return
        if is_whole and self._last_write == (allocations, published):
            return
        self.store.write_allocations(allocations)
        self._last_write = (allocations, published)

    def _log(self, decision: Decision, changes: Changes, seconds: float) -> None:
        """One line for a decision that changed something, and one for each refusal that is new."""
        allocations = decision.allocations
        if decision.adopted:
            event(logger, logging.WARNING, "adopted", generation=changes.after.generation, why="newer than the ledger")
        for conflict in decision.conflicts:
            event(logger, logging.WARNING, "adopted-conflict", message=conflict)
        if changes.before != changes.after:
            event(
                logger,
                logging.INFO,
                "decided",
                generation=allocations.generation,
                services=len(allocations.services),
                groups=len(allocations.groups),
                refusals=len(allocations.refusals),
                changes=len(changes.audit),
                ms=round(seconds * 1000, 1),
            )
        for refusal in sorted(set(allocations.refusals) - set(self._refusals), key=lambda each: each.order):
            about = {"object": str(refusal.object), "reason": refusal.reason, "message": refusal.message}
            event(logger, LEVELS[refusal.severity], "refused", **about)
        self._refusals = allocations.refusals
