"""The operator's loop: wait for a change, decide, record, publish.

The decision is `routerd.assign`'s. It is recorded in the ledger before it is published in the store; when either
fails, what was published last stays in force and the whole round is made again after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ipam.round import Record
from routerd.assign import Decision, Settings, assign, release
from routerd.errors import EnvironmentFault, StoreError
from routerd.ledger import Changes, Ledger, difference
from routerd.log import event
from routerd.model import Allocations, NodeReport, Refusal, Snapshot

logger = logging.getLogger("routerd.operator")

FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0  # seconds between rounds that fail, doubled each time
LONGEST_WAIT = 3600.0  # seconds; a clock that jumped cannot put a timer off for longer


class Store(Protocol):
    """What the operator needs of a store; see `routerd.store.interface`."""

    def snapshot(self) -> Snapshot: ...

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        """By node; None = not read yet."""

    def write_allocations(self, allocations: Allocations) -> None: ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called in the event loop when the snapshot or a report has changed."""


class LedgerFile(Protocol):
    """What the operator needs of the ledger; `routerd.store.sqlite.SqliteLedger` is one."""

    def read(self) -> Ledger: ...

    def record(self, changes: Changes) -> None: ...


@dataclass(slots=True)
class Operator:
    """One operator. `clock` gives seconds of the Unix epoch: records outlive the process."""

    store: Store
    ledger: LedgerFile
    settings: Settings = field(default_factory=Settings)
    clock: Callable[[], float] = time.time
    in_thread: bool = False  # the store's writes wait for a network: rounds are made in a worker thread
    on_decision: Callable[[], None] = lambda: None  # called in the event loop after each round
    last: Decision | None = None  # for status and metrics
    _state: Ledger | None = None  # the ledger's content; None = must be read
    _written: tuple[Allocations, Allocations | None] | None = None  # what was published, over what
    _refusals: tuple[Refusal, ...] = ()
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Something changed. Called in the event loop."""
        self._wake.set()

    async def run(self) -> None:
        """Runs until it is cancelled. The store runs beside it."""
        self.store.on_change(self.wake)
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()
            try:
                wait = await asyncio.to_thread(self.round) if self.in_thread else self.round()
                pause = FIRST_PAUSE
                self.on_decision()
            except (StoreError, EnvironmentFault) as error:
                reason = type(error).__name__
                event(logger, logging.ERROR, "round-failed", reason=reason, message=str(error), retry=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue  # a timer is due

    def round(self) -> float:
        """Decides, records, publishes. Returns for how many seconds nothing is to do unless something changes.

        Errors: `StoreError`, `EnvironmentFault`. Made again after one, it comes to the same result.
        """
        began, now = time.perf_counter(), self.clock()
        state = self._read()
        snapshot = self.store.snapshot()
        decision = assign(snapshot, state, self.store.node_reports(), now, self.settings)
        if not decision.synced:
            return LONGEST_WAIT
        changes = difference(state, decision.ledger, now)
        self._record(changes)
        self._publish(decision.allocations, snapshot.allocations)
        self._log(decision, changes, time.perf_counter() - began)
        self.last = decision
        due = LONGEST_WAIT if decision.next_due is None else decision.next_due - now
        return min(max(due, 0.05), LONGEST_WAIT)

    def release(self, name: str) -> tuple[Record, ...]:
        """Ends the reservations of an address or owner and says which; the next round follows at once."""
        now, state = self.clock(), self._read()
        after, released = release(state, name, now)
        self._record(difference(state, after, now))
        for record in released:
            event(logger, logging.INFO, "released", owner=record.owner, address=str(record.address))
        self.wake()
        return released

    def _read(self) -> Ledger:
        if self._state is None:
            self._state = self.ledger.read()
        return self._state

    def _record(self, changes: Changes) -> None:
        self._state = None  # after a fault, what the file says counts
        self.ledger.record(changes)
        self._state = changes.after

    def _publish(self, wanted: Allocations, seen: Allocations | None) -> None:
        """Writes unless the store has it, or has not caught up with what was written a moment ago."""
        if wanted == seen or self._written == (wanted, seen):
            return
        self.store.write_allocations(wanted)
        self._written = (wanted, seen)

    def _log(self, decision: Decision, changes: Changes, seconds: float) -> None:
        """One line for a decision that changed something, and one for each refusal that is new."""
        allocations = decision.allocations
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
        for refusal in sorted(set(allocations.refusals) - set(self._refusals), key=lambda each: each.object):
            about = {"object": refusal.object, "reason": refusal.reason, "message": refusal.message}
            event(logger, logging.WARNING, "refused", **about)
        self._refusals = allocations.refusals
