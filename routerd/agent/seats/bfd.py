"""The seats of BFD: tell the bfd process which peers to watch and which gateways to probe. The BGP session of a peer
that is gone is ended here; a gateway that is gone is left by the datapath itself.

The process is not ours: it lives on when the agent ends, and does the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bfd.client import Client
from bfd.control import SOCKET, Report, View
from bfd.probes import Probing
from bgp.path import SessionKey
from bgp.session import PeerStatus
from routerd.agent.room import NothingUndone, Problem
from routerd.log import event
from routerd.model import Refusal
from routerd.node.desired import BFD_ROOM, PROBE_ROOM
from routerd.node.rooms.bfd import Judged, Orders, judge, refusals, unjudged, unwatched
from routerd.refs import Ref

LOGGER = logging.getLogger("routerd.bfd")
AGAIN = 0.5  # seconds until a session that could not be ended is looked at again


@dataclass(frozen=True, slots=True)
class Watch:
    """The whole of what is to be watched."""

    orders: Orders = field(repr=False)
    phase: Literal["prepare"] = "prepare"

    def __str__(self) -> str:
        return f"bfd: watch {', '.join(map(str, self.orders)) or 'nobody'}"


@dataclass(frozen=True, slots=True)
class Observed:
    """What the process was told by us, None = nothing yet, and whom it watches."""

    told: Orders | None
    watched: frozenset[SessionKey]


class BfdRoom:
    """`run` in a task. What the round calls comes from a thread."""

    name = BFD_ROOM

    def __init__(self, run_dir: Path, sessions: Callable[[], Mapping[SessionKey, PeerStatus]]) -> None:
        """`sessions`: the BGP sessions as the speaker has them now."""
        self._client = Client(run_dir / SOCKET, on_report=self._take)
        self._sessions = sessions
        self._told: Orders | None = None
        self._probing: Probing | None = None
        self._judged = Judged()
        self._said: dict[SessionKey, tuple[int | None, bool]] = {}  # falls, and whether the session was ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone: asyncio.Queue[SessionKey] = asyncio.Queue()
        self.on_change: Callable[[], None] = lambda: None
        self.on_connect: Callable[[], None] = lambda: None

    async def run(self, end_session: Callable[[SessionKey], Awaitable[bool]]) -> None:
        """Until cancelled. `end_session` ends the BGP session of a peer that is gone; whether it could."""
        self._loop = asyncio.get_running_loop()
        if self._told is not None:
            self._client.set(self._told.values())
        if self._probing is not None:
            self._client.probe(self._probing)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._client.run())
            group.create_task(self._end_sessions(end_session))

    async def _end_sessions(self, end_session: Callable[[SessionKey], Awaitable[bool]]) -> None:
        """Each in a task of its own, so that none waits for another."""
        ends: dict[SessionKey, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                peer = await self._gone.get()
                if peer in ends:
                    ends[peer].cancel()  # of an earlier fall
                ends[peer] = group.create_task(self._end_session(peer, end_session))

    async def _end_session(self, peer: SessionKey, end_session: Callable[[SessionKey], Awaitable[bool]]) -> None:
        """What could not be ended is judged again in a while, by what is so then."""
        ended = await end_session(peer)
        self._tell_end(peer, ended)
        if not ended:
            await asyncio.sleep(AGAIN)
            self._judged = unjudged(self._judged, peer)
            self.look()

    def _tell_end(self, peer: SessionKey, ended: bool) -> None:
        """Once for all vain tries of one fall."""
        view = self.views().get(peer)
        said = (view.falls if view is not None else None, ended)
        if self._said.get(peer) != said:
            event(LOGGER, logging.WARNING, "bfd-session-ended", peer=str(peer.peer), local=str(peer.local), ended=ended,
                  reason=view.reason if view is not None else None)  # fmt: skip
        self._said[peer] = said

    def _take(self, before: Report | None, now: Report | None) -> None:
        if now is None:
            event(LOGGER, logging.WARNING, "bfd-lost", reason=self._client.refused or "the bfd process is gone")
        self.look()
        if before is None and now is not None:
            self.on_connect()
        self.on_change()

    def look(self) -> None:
        """To be called when a BGP session has changed, too: whoever is gone and still has one loses it."""
        report = self._client.report
        if report is None:
            return
        self._judged, gone = judge(self._judged, report, self._sessions())
        for peer in gone:
            self._gone.put_nowait(peer)

    # --- what is told

    @property
    def report(self) -> Report | None:
        """What the process said last; None while none is connected."""
        return self._client.report

    def views(self) -> Mapping[SessionKey, View]:
        report = self._client.report
        return {SessionKey(*ends): view for ends, view in report.sessions.items()} if report is not None else {}

    def refusals(self) -> tuple[Refusal, ...]:
        report, trouble = self._client.report, self._client.refused
        return (*refusals(self._told or {}, report, trouble), *unwatched(self.probing, report, trouble))

    # --- what is probed

    @property
    def probing(self) -> Probing | None:
        """What the process says that it does; while none is connected, what it will be told by us. None = nothing."""
        report = self._client.report
        return self._probing if report is None or report.probes is None else report.probes.probing

    def probe(self, probing: Probing) -> None:
        self._probing = probing
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._client.probe, probing)

    # --- the seat

    def observe(self, desired: Orders) -> Observed:
        return Observed(self._told, frozenset(self.views()))

    def plan(self, desired: Orders, observed: Observed) -> Sequence[Watch]:
        is_known = desired == (observed.told or {})
        if is_known and (observed.told is not None or not observed.watched):
            return ()
        return (Watch(desired),)

    def apply(self, action: Watch) -> None:
        self._told = action.orders
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._client.set, [*action.orders.values()])

    def problems(self, desired: Orders, observed: Observed) -> Sequence[Problem]:
        """None of a round's: they come and go between rounds, see `refusals`."""
        return ()

    def undone(self, desired: Orders, observed: Observed) -> NothingUndone:
        return NothingUndone()

    def carries(self, owner: Ref, undone: Any | None) -> bool:
        """No path leads into BFD."""
        return True

    def makes_new(self, action: Watch) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Probe:
    """The whole of what is to be probed."""

    probing: Probing = field(repr=False)
    phase: Literal["prepare"] = "prepare"

    def __str__(self) -> str:
        tunnelled = [f"node {number}" for number in sorted(self.probing.gateways)]
        direct = [f"node {number} by the link" for number in sorted(self.probing.direct)]
        return f"probe gateways: {', '.join((*tunnelled, *direct)) or 'none'}"


class ProbeRoom:
    """The seat of probes, beside that of sessions: either may not be synced while the other is."""

    name = PROBE_ROOM

    def __init__(self, bfd: BfdRoom) -> None:
        self._bfd = bfd

    def observe(self, desired: Probing) -> Probing | None:
        return self._bfd.probing

    def plan(self, desired: Probing, observed: Probing | None) -> Sequence[Probe]:
        return () if desired == observed else (Probe(desired),)

    def apply(self, action: Probe) -> None:
        self._bfd.probe(action.probing)

    def problems(self, desired: Probing, observed: Probing | None) -> Sequence[Problem]:
        """See `BfdRoom.refusals`."""
        return ()

    def undone(self, desired: Probing, observed: Probing | None) -> NothingUndone:
        return NothingUndone()

    def carries(self, owner: Ref, undone: Any | None) -> bool:
        """No path leads into probes."""
        return True

    def makes_new(self, action: Probe) -> bool:
        return False
