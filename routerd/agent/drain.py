"""Whether this node leaves, and since when: the order of `routerd drain` on disk, and the file that says the host goes
down. What follows from it is decided in `node/drain.py`, and how far it is in `tell/drain.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from routerd.clock import Clock, boot_time
from routerd.errors import EnvironmentFault, StoreError
from routerd.formats.jsontext import parse_json
from routerd.log import event
from routerd.model import Node
from routerd.node.drain import Drain, Orders, drain_of
from routerd.store.embedded.disk import write_atomically
from routerd.tell.drain import Departure

LOGGER = logging.getLogger("routerd.drain")
QUIET = (
    2.0  # seconds in which nothing is left to wait for, before the node is called drained: routers converge meanwhile
)


@dataclass(frozen=True, slots=True)
class Places:
    """Files; None = there is none. `order` survives a reboot, the others lie in the run directory and do not."""

    order: Path | None = None  # `routerd drain`
    marker: Path | None = None  # the host goes down: others make it
    done: Path | None = None  # made while the node is drained: others wait for it


class Drains:
    """`look` often, `judge` while the node leaves. Not thread-safe: one event loop."""

    def __init__(
        self,
        places: Places | None = None,
        *,
        notice: float = 0.0,
        cordoned: bool = False,
        taints: Collection[str] = (),
        clock: Callable[[], float] | None = None,
        ticks: Callable[[], float] = boot_time,
    ) -> None:
        """`notice`: seconds in which peers are asked to prefer other nodes. `clock`: seconds of the Unix epoch;
        `ticks`: of a clock that nobody sets, by which the notice is measured.
        """
        self._places, self._ticks = places or Places(), ticks
        self._notice, self._cordoned, self._taints, self._clock = notice, cordoned, taints, clock or Clock()
        self._ordered = _ordered(self._places.order)
        self._since: float | None = None  # when the node began to leave, by `ticks`; None = it stays
        self._has_looked = False
        self._quiet_since: float | None = None
        self.departure = Departure()
        if self._places.done is not None:
            with suppress(OSError):
                self._places.done.unlink(missing_ok=True)  # of an agent that was killed: it says nothing of now
        self.changed = asyncio.Event()  # whether the node leaves is another; whoever waits clears it

    @property
    def is_leaving(self) -> bool:
        return self._since is not None

    @property
    def left(self) -> float:
        """Seconds until the paths of a node that leaves are withdrawn."""
        passed = self._ticks() - self._since if self._since is not None else self._notice
        return max(self._notice - passed, 0.0)

    @property
    def is_ordered(self) -> bool:
        return self._ordered is not None

    # --- orders

    def order(self) -> None:
        """Drains the node, durably. A second order changes nothing. Raises EnvironmentFault."""
        if self._ordered is not None:
            return
        now = self._clock()
        if self._places.order is not None:
            try:
                write_atomically(self._places.order, json.dumps({"since": now}) + "\n")
            except (OSError, StoreError) as error:
                raise EnvironmentFault(f"the order to drain cannot be kept, so it is not followed: {error}") from error
        self._ordered = now

    def cancel(self) -> None:
        """Takes the order back. Raises EnvironmentFault."""
        if self._places.order is not None:
            try:
                self._places.order.unlink(missing_ok=True)
            except OSError as error:
                raise EnvironmentFault(f"{self._places.order} cannot be removed: {error.strerror}") from error
        self._ordered = None

    # --- what is so now

    def look(self, node: Node | None) -> Drain | None:
        """Why the node leaves now, None = it stays. None of `node`: the store has not told of it."""
        marker = self._places.marker
        orders = Orders(self._ordered is not None, str(marker) if marker is not None and marker.exists() else "")
        if node is None:
            return None
        drain = drain_of(node, orders, cordoned=self._cordoned, taints=self._taints)
        self._begin_or_end(drain)
        self._has_looked = True
        if drain is None or drain.withdraws:
            return drain
        return replace(drain, withdraws=self.left <= 0)

    def _begin_or_end(self, drain: Drain | None) -> None:
        """Who leaves at the first look has most likely left already: nothing comes back for another notice."""
        was_leaving = self.is_leaving
        if drain is None:
            self._since = None
        elif self._since is None:
            now = self._clock()
            begun = self._ordered if drain.reason == "Drained" else None
            if begun is None or begun > now:  # of the time to come: the clock was set back, or is not right yet
                begun = now if self._has_looked else -math.inf
            self._since = self._ticks() - (now - begun)
        if self.is_leaving != was_leaving:
            self.changed.set()

    def judge(self, found: Departure) -> Departure:
        """`found` is what `tell.drain` sees now; it must see nothing to wait for during QUIET seconds."""
        now = self._ticks()
        if found.state != "drained":
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        is_quiet = self._quiet_since is not None and now - self._quiet_since >= QUIET
        if found.state == "drained" and not is_quiet:
            found = replace(found, state="draining", waits=(f"the routers, for {QUIET:g} s",))
        self._tell(found)
        self.departure = found
        return found

    def _tell(self, found: Departure) -> None:
        if found.state == self.departure.state:
            return
        name = {"serving": "undrained", "draining": "draining", "drained": "drained"}[found.state]
        event(LOGGER, logging.INFO, name, reason=found.message or None)
        if (done := self._places.done) is not None:
            with suppress(OSError):  # the status tells, too
                done.touch() if found.state == "drained" else done.unlink(missing_ok=True)


def _ordered(file: Path | None) -> float | None:
    """Since when the node is drained by order. A file that says nothing of it was an order all the same."""
    if file is None or not file.exists():
        return None
    try:
        since = parse_json(file.read_text(encoding="utf-8"))["since"]
        return float(since)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0.0
