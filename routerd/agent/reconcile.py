"""One round: read back, plan, apply, across the rooms, in the safe order. It decides only the order.

    1. the speaker gets what leads into no room; the paths that do stay as they were
    2. actions of phase "prepare" of each room, in order   what paths lead to, before anybody is led to it
    3. the speaker gets everything that the rooms carry, and has a bounded time to tell its peers
    4. actions of phase "retire", rooms in reverse order   only after what led to it has been withdrawn

A round that is cut anywhere is followed by one that reads back again. After an action that fails the rest of the plan
goes on, save what relies on it, and so do the other rooms; the failure is shown with its action, and the round is tried
again. A path whose owners lead to something that a room lacks, or that nobody can look for because the room is not
synced, stays as it was, and waits for nothing else.

The kernel blocks for up to seconds, so rooms are read, planned for and changed in a thread, one after the other; a
round that is cancelled ends after the action that is being done. Remembered are only what the speaker was last told, so
that it is not told again, and since when something waits to be taken away.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from operator import not_
from typing import Any, Protocol, TypeVar

from bgp.path import AdjRibOut, IPAddress, IPNetwork, Path, SessionKey
from bgp.path import Desired as BgpDesired
from bgp.rib import normal
from bgp.speaker import Loading, SpeakerUnavailable
from routerd.agent.room import Room
from routerd.agent.turn import Seat, Turn
from routerd.blocking import in_thread, in_thread_until_cut
from routerd.errors import EnvironmentFault
from routerd.model import Refusal
from routerd.node.announce import Announcements
from routerd.node.desired import NodeState
from routerd.refs import AGGREGATE, Ref
from routerd.tell.render import changes, path_lines, session_changes

SETTLE_TIMEOUT = 0.5  # seconds that a round waits for the speaker before it takes something away; then it is held
EARLY_TIMEOUT = 0.05  # seconds that the rooms' turn waits for the speaker; ExaBGP acknowledges in a few ms
NO_PATHS: AdjRibOut = {}
RETIRE_AFTER = 30.0  # seconds: a speaker that is gone for longer cannot hold up what policies took back
Result = TypeVar("Result")


class Speaker(Protocol):
    """`bgp.speaker.Speaker`, and the model of it in tests."""

    def set(self, desired: BgpDesired | None, *, complete: bool = True) -> None: ...

    async def settled(self, timeout: float) -> bool: ...

    async def sent(self, timeout: float) -> bool: ...

    async def observe(self) -> Mapping[SessionKey, AdjRibOut]: ...

    def unloaded(self, desired: BgpDesired) -> Mapping[SessionKey, Loading]: ...

    def reset_by(self, desired: BgpDesired) -> Mapping[SessionKey, Sequence[str]]: ...


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did. `held` says what it left undone on purpose; `error` why it must be tried again."""

    actions: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    held: str = ""
    error: str = ""
    undone: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """By name of the rooms that were read: what of their plan was not done (`room.Undone`)."""
    unannounced: Mapping[IPNetwork, str] = field(default_factory=dict)
    """Aggregates that no peer was told of, as their blackhole is not in place: the failure of each, "" = none yet."""


class Reconciler:
    """Brings this node to a `NodeState`. Who is switched off is not there: no speaker (None), a room without a seat."""

    def __init__(
        self,
        speaker: Speaker | None,
        rooms: Sequence[Room] = (),
        clock: Callable[[], float] = time.monotonic,
        settle_timeout: float = SETTLE_TIMEOUT,
    ) -> None:
        """`rooms` in the order in which they are prepared."""
        self._speaker = speaker
        self._cut = threading.Event()  # the round was cancelled: the turn of the room that has it ends
        self._seats = [Seat(room, self._cut) for room in rooms]
        self._clock = clock
        self._settle_timeout = settle_timeout
        self._unsettled_since: float | None = None
        self._last_set: BgpDesired | None = None
        self._is_complete = False

    async def round(self, state: NodeState, *, full: bool = True) -> Round:
        """One round. A fault of one room does not keep the others from their work; it comes back in `error`.

        Without `full`, a room that was found as it should be is not read again before its desired state changes.
        """
        announced = state.announcements
        if announced is not None:
            await self._announce_early(announced)
        done: list[str] = []
        turns = await self._in_thread(self._prepare, state.rooms, full, done)
        if announced is not None:
            self._announce(announced, turns)
        reason = await self._hold_reason(state, turns)
        if not reason and any(turn.retiring for turn in turns):
            await self._in_thread(self._retire, turns)
        problems = tuple(refusal for turn in turns for refusal in turn.problems)
        undone = {turn.room.name: turn.undone for turn in turns if turn.undone is not None}
        error = "; ".join(turn.error for turn in turns if turn.error)
        return Round(tuple(done), problems, reason, error, undone, self._unannounced(announced, turns))

    @property
    def announces(self) -> bool:
        """Whether there is a speaker."""
        return self._speaker is not None

    def takes(self, state: NodeState) -> bool:
        """Whether `state` says what every room that is there should have."""
        has_announcements = self._speaker is None or state.announcements is not None
        return has_announcements and all(state.rooms.get(seat.room.name) is not None for seat in self._seats)

    async def preview(self, state: NodeState) -> list[str]:
        """What a round would do now, one line each; changes nothing. EnvironmentFault if it cannot be read."""
        return [*await in_thread(self._preview, state.rooms), *await self._preview_bgp(state.announcements)]

    async def _preview_bgp(self, announced: Announcements | None) -> list[str]:
        if self._speaker is None or announced is None:
            return []
        try:
            tables = await self._speaker.observe()
        except SpeakerUnavailable as error:
            raise EnvironmentFault(str(error)) from error
        desired, speaker = announced.desired, self._speaker
        sessions = session_changes(desired.peers, speaker.unloaded(desired), speaker.reset_by(desired))
        wanted = _tables(desired)
        return [*sessions, *changes(path_lines(tables, wanted), path_lines(wanted, tables))]

    # --- rooms, in a thread

    async def _in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        self._cut.clear()
        return await in_thread_until_cut(self._cut, function, *args)

    def _prepare(self, desired: Mapping[str, Any], full: bool, done: list[str]) -> list[Turn]:
        return [seat.prepare(desired.get(seat.room.name), full, done) for seat in self._seats]

    def _retire(self, turns: Sequence[Turn]) -> None:
        for seat, turn in reversed([*zip(self._seats, turns, strict=True)]):
            seat.retire(turn)

    def _preview(self, desired: Mapping[str, Any]) -> list[str]:
        return [line for seat in self._seats for line in seat.preview(desired.get(seat.room.name))]

    # --- announcements

    def _tell(self, desired: BgpDesired, *, complete: bool = True) -> None:
        """Without `complete`, more follows: a peer that restarted with us keeps what it had until then (RFC 4724)."""
        if self._speaker is not None and (desired != self._last_set or (complete and not self._is_complete)):
            self._speaker.set(desired, complete=complete)
            self._last_set, self._is_complete = desired, complete

    def has_told(self, desired: BgpDesired) -> bool:
        """Whether the speaker was told this, and nothing is to follow."""
        return self._is_complete and (desired is self._last_set or desired == self._last_set)

    async def _announce_early(self, announced: Announcements) -> None:
        """Tells what does not wait for the rooms, and lets it go out before they take the loop's time."""
        rooms = [seat.room for seat in self._seats]
        if self._speaker is None or not rooms or self.has_told(announced.desired):
            return
        before = self._last_set.ribs if self._last_set is not None else None
        if before is None:
            with contextlib.suppress(SpeakerUnavailable):  # nobody to tell yet, and nobody to ask
                before = await self._speaker.observe()  # what the agent before us announced
        if before is None:
            return
        early = partly(announced, before, lambda owner: all(room.carries(owner, None) for room in rooms))
        if early != self._last_set:
            self._tell(early, complete=early is announced.desired)
            await self._speaker.settled(EARLY_TIMEOUT)

    def _announce(self, announced: Announcements, turns: Sequence[Turn]) -> None:
        """Tells everything, or what the rooms carry: the rest stays as it is. Unless it is not known how it is."""
        before = self._last_set.ribs if self._last_set is not None else None
        desired = announced.desired
        if not all(turn.carries_all for turn in turns):
            desired = partly(announced, before or {}, lambda owner: all(turn.carries(owner) for turn in turns))
        if desired is announced.desired or before is not None:
            self._tell(desired, complete=desired is announced.desired)

    def _unannounced(self, announced: Announcements | None, turns: Sequence[Turn]) -> dict[IPNetwork, str]:
        if announced is None or self._speaker is None or all(turn.carries_all for turn in turns):
            return {}
        told = self._last_set.ribs.values() if self._last_set is not None else ()
        waiting = (prefix for prefix in announced.aggregates if not any(prefix in rib for rib in told))
        lacking = {prefix: [turn for turn in turns if not turn.carries(_whole(prefix))] for prefix in waiting}
        return {prefix: "; ".join(turn.error for turn in found) for prefix, found in lacking.items() if found}

    async def _hold_reason(self, state: NodeState, turns: Sequence[Turn]) -> str:
        """Why what withdrawn paths led to must stay for now, "" = it may go, or there is nothing of it."""
        if any(turn.retiring for turn in turns):
            return await self._unsettled(state)
        if not any(turn.failures for turn in turns):
            self._unsettled_since = None  # nobody waits: the next wait begins anew
        return ""

    async def _unsettled(self, state: NodeState) -> str:
        if not state.may_retire:
            return "withdrawals are held: what the held paths lead to stays"
        if self._speaker is None:
            return ""
        if state.announcements is None:
            return "announcements wait for the store: nothing is taken away"
        if await self._speaker.sent(self._settle_timeout):
            self._unsettled_since = None
            return ""
        now = self._clock()
        self._unsettled_since = now if self._unsettled_since is None else self._unsettled_since
        if now - self._unsettled_since >= RETIRE_AFTER:
            return ""
        return "the withdrawals are not confirmed to have left for the peers yet: what they lead to stays"


def _tables(desired: BgpDesired) -> dict[SessionKey, AdjRibOut]:
    """What each session carries of `desired`, in the form in which it is read back."""
    tables: dict[SessionKey, AdjRibOut] = {}
    for key, peer in desired.peers.items():
        carried = (normal(path, peer) for path in desired.ribs[key].values())
        tables[key] = {path.prefix: path for path in carried if isinstance(path, Path)}
    return tables


def partly(
    announced: Announcements, before: Mapping[SessionKey, AdjRibOut], carried: Callable[[Ref], bool]
) -> BgpDesired:
    """`announced`, with a path none of whose owners is `carried`, or that is an aggregate and not `carried` as such, as
    it was `before`: what it leads to is not in place.
    A session by another source goes on with what the router had by the one that it replaces.

    Returns `announced.desired` itself where nothing differs.
    """

    def waits(prefix: IPNetwork) -> bool:
        if prefix in announced.aggregates and not carried(_whole(prefix)):
            return True
        owners = announced.owners.get(prefix, ())
        return bool(owners) and not any(map(carried, owners))

    def safe(rib: AdjRibOut, old: AdjRibOut) -> AdjRibOut:
        same = set(map(id, old.values()))  # most paths are the same objects, and hashing a network is dear
        others = [*compress(rib, map(not_, map(same.__contains__, map(id, rib.values()))))]
        changed = {prefix for prefix in others if old.get(prefix) != rib[prefix] and waits(prefix)}
        if not changed:
            return rib
        old_paths = {prefix: old[prefix] for prefix in changed if prefix in old}
        return {prefix: path for prefix, path in rib.items() if prefix not in changed} | old_paths

    found: dict[tuple[int, int], AdjRibOut] = {}  # sessions of one family share a table
    ribs: dict[SessionKey, AdjRibOut] = {}
    replaced = {
        key.peer: _by_itself(rib, key.local) for key, rib in before.items() if key not in announced.desired.ribs
    }
    for peer, rib in announced.desired.ribs.items():
        old = before.get(peer) or replaced.get(peer.peer, NO_PATHS)
        if (id(rib), id(old)) not in found:
            found[id(rib), id(old)] = safe(rib, old)
        ribs[peer] = found[id(rib), id(old)]
    unchanged = all(ribs[peer] is rib for peer, rib in announced.desired.ribs.items())
    return announced.desired if unchanged else replace(announced.desired, ribs=ribs)


def _whole(aggregate: IPNetwork) -> Ref:
    return Ref(AGGREGATE, name=str(aggregate))


def _by_itself(rib: AdjRibOut, local: IPAddress) -> AdjRibOut:
    """With its own address as next hop for `local`, that of the session before: so it is read back where nobody knows
    that session.
    """
    return {prefix: replace(path, next_hop=None) if path.next_hop == local else path for prefix, path in rib.items()}
