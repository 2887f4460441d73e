"""One round: read back, plan, apply, across the rooms, in the safe order. It decides only the order.

    1. the speaker gets what does not lead to this node's NAT state; egress addresses stay as they were
    2. egress actions of phase "prepare"    NAT state, routes and maps, before anybody is led to them
    3. the speaker gets everything, and has a bounded time to tell its peers
    4. egress actions of phase "retire"     only after what led to it has been withdrawn

A round that is cut anywhere is followed by one that reads back again. After an action that fails the rest of the plan
goes on, save what relies on it (the egress room decides: `Undone`); the failure is shown with its action, and the round
is tried again. What leads to this node's NAT state is announced only while none of that is lacking.

The datapath blocks for up to seconds, so it is read, planned for and changed in a thread; a round that is cancelled
ends after the action that is being done. Remembered are only what the speaker was last
told, so that it is not told again, and since when something waits to be taken away.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from bgp.path import AdjRibOut, IPAddress, Path
from bgp.path import Desired as BgpDesired
from bgp.rib import normal
from bgp.speaker import SpeakerUnavailable
from egress.policy import Desired as EgressDesired
from routerd.blocking import in_thread, in_thread_until_cut
from routerd.errors import EnvironmentFault
from routerd.model import IPNetwork, Refusal
from routerd.node.announce import Announcements
from routerd.node.desired import NodeState
from routerd.refs import EGRESS, Ref
from routerd.tell.render import changes, path_lines

SETTLE_TIMEOUT = 0.5  # seconds that a round waits for the speaker before it takes something away; then it is held
EARLY_TIMEOUT = 0.05  # seconds that the datapath's turn waits for the speaker; ExaBGP acknowledges in a few ms
RETIRE_AFTER = 30.0  # seconds: a speaker that is gone for longer cannot hold up what policies took back
Result = TypeVar("Result")
PASSES = 4  # an action that makes a device is followed by a look at what it made


class Action(Protocol):
    """One step of the egress plan; `str()` is one readable line."""

    @property
    def phase(self) -> Literal["prepare", "retire"]: ...


class Datapath(Protocol):
    """`egress.netdev.Datapath`, and the model of it in tests."""

    def observe(self, desired: EgressDesired) -> Any: ...

    def apply(self, action: Any) -> None: ...


class Undone(Protocol):
    """`egress.undone.Undone`: what of a plan may follow what failed or was left out."""

    @property
    def nat_whole(self) -> bool:
        """Whether all that leads to and from this node's NAT is in place."""

    def add(self, action: Any) -> None: ...

    def after(self, action: Any) -> Any | None: ...


class NothingAfter:
    """Nothing follows the first action that failed."""

    nat_whole = True

    def __init__(self, _desired: EgressDesired, _observed: Any) -> None:
        pass

    def add(self, _action: Any) -> None:
        self.nat_whole = False

    def after(self, action: Any) -> Any | None:
        return action if self.nat_whole else None


class Speaker(Protocol):
    """`bgp.speaker.Speaker`, and the model of it in tests."""

    def set(self, desired: BgpDesired | None, *, complete: bool = True) -> None: ...

    async def settled(self, timeout: float) -> bool: ...

    async def sent(self, timeout: float) -> bool: ...

    async def observe(self) -> Mapping[IPAddress, AdjRibOut]: ...


class Problem(Protocol):
    """What the egress room cannot do on this machine as it is."""

    @property
    def object(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def message(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Egress:
    """The egress room: what it is, how it plans, what it finds lacking, which actions make what it must see, and what
    may follow what failed.
    """

    datapath: Datapath
    plan: Callable[[EgressDesired, Any], Sequence[Action]]
    problems: Callable[[EgressDesired, Any], Sequence[Problem]]
    makes_devices: Callable[[Any], bool]
    undone: Callable[[EgressDesired, Any], Undone] = NothingAfter


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did. `held` says what it left undone on purpose; `error` why it must be tried again."""

    actions: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    held: str = ""
    error: str = ""


@dataclass(slots=True)
class _Pass:
    """What the egress room did and still has to do in a round."""

    done: list[str]
    retiring: Sequence[Action] = ()
    problems: tuple[Refusal, ...] = ()
    undone: Undone | None = None  # of the last plan
    failures: list[str] = field(default_factory=list)
    left_out: int = 0
    unread: bool = False

    @property
    def error(self) -> str:
        """The first failure, and how much else there is; "" = none."""
        if not self.failures:
            return ""
        more = [f"{len(self.failures) - 1} more failed"] if len(self.failures) > 1 else []
        more += [f"{self.left_out} that rely on it wait"] if self.left_out else []
        return f"egress: {self.failures[0]}" + (f" ({', '.join(more)})" if more else "")

    @property
    def nat_whole(self) -> bool:
        return not self.unread and (self.undone is None or self.undone.nat_whole)


class Reconciler:
    """Brings this node to a `NodeState`. A room that is None is not there (switched off)."""

    def __init__(
        self,
        speaker: Speaker | None,
        egress: Egress | None,
        clock: Callable[[], float] = time.monotonic,
        settle_timeout: float = SETTLE_TIMEOUT,
    ) -> None:
        self._speaker = speaker
        self._egress = egress
        self._clock = clock
        self._settle_timeout = settle_timeout
        self._unsettled_since: float | None = None
        self._told: BgpDesired | None = None
        self._told_all = False
        self._cut = threading.Event()  # the round was cancelled: the datapath's turn ends
        self._converged: tuple[EgressDesired, tuple[Refusal, ...]] | None = None

    async def round(self, state: NodeState, *, full: bool = True) -> Round:
        """One round. A fault of one room does not keep the other from its work; it comes back in `error`.

        Without `full`, a datapath that was found as it should be is not read again before its desired state changes.
        """
        announced = state.announcements
        if (
            announced is not None
            and self._speaker is not None
            and self._egress is not None
            and state.egress is not None
        ):
            await self._announce_early(announced, self._speaker)
        egress = await self._in_thread(self._egress_pass, state.egress, full)
        if announced is not None and egress.nat_whole:
            self._tell(announced.desired)
        held = ""
        if egress.retiring and not state.may_retire:
            held = "withdrawals are held: what the held paths lead to stays"
        elif egress.retiring:
            held = await self._hold(announced)
        elif not egress.error:
            self._unsettled_since = None  # nobody waits: the next wait begins anew
        if egress.retiring and not held:
            await self._in_thread(self._apply, egress.retiring, egress)
        return Round(tuple(egress.done), egress.problems, held, egress.error)

    def takes(self, state: NodeState) -> bool:
        """Whether `state` says what every room that is there should have."""
        has_announcements = self._speaker is None or state.announcements is not None
        return has_announcements and (self._egress is None or state.egress is not None)

    async def preview(self, state: NodeState) -> list[str]:
        """What a round would do now, one line each; changes nothing. EnvironmentFault if it cannot be read."""
        return [*await in_thread(self._preview_egress, state.egress), *await self._preview_bgp(state.announcements)]

    def _preview_egress(self, desired: EgressDesired | None) -> list[str]:
        if self._egress is None or desired is None:
            return []
        try:
            return [str(action) for action in self._egress.plan(desired, self._egress.datapath.observe(desired))]
        except OSError as error:
            raise EnvironmentFault(f"egress: cannot read the datapath: {error}") from error

    async def _preview_bgp(self, announced: Announcements | None) -> list[str]:
        if self._speaker is None or announced is None:
            return []
        try:
            held = await self._speaker.observe()
        except SpeakerUnavailable as error:
            raise EnvironmentFault(str(error)) from error
        return changes(path_lines(held), path_lines(_tables(announced.desired)))

    # --- egress, in a thread

    async def _in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        self._cut.clear()
        return await in_thread_until_cut(self._cut, function, *args)

    def _egress_pass(self, desired: EgressDesired | None, full: bool) -> _Pass:
        found = _Pass([])
        if self._egress is None or desired is None:
            return found
        if not full and self._converged is not None and self._converged[0] == desired:
            found.problems = self._converged[1]
            return found
        self._converged = None
        for _ in range(PASSES):
            if not self._prepare(self._egress, desired, found):
                break
        if not (found.retiring or found.error or self._cut.is_set()):
            self._converged = (desired, found.problems)
        return found

    def _prepare(self, egress: Egress, desired: EgressDesired, found: _Pass) -> bool:
        """Whether the plan must be made again: it made what it could not know."""
        found.retiring, found.failures, found.left_out = (), [], 0
        try:
            observed = egress.datapath.observe(desired)
        except (OSError, EnvironmentFault) as error:
            found.failures, found.unread = [f"cannot read the datapath: {error}"], True
            return False
        actions = egress.plan(desired, observed)
        found.problems = tuple(
            Refusal(Ref.parse(p.object), p.reason, p.message) for p in egress.problems(desired, observed)
        )
        found.undone = egress.undone(desired, observed)
        found.retiring = [action for action in actions if action.phase == "retire"]
        performed = self._apply([action for action in actions if action.phase == "prepare"], found)
        return any(map(egress.makes_devices, performed))

    def _apply(self, actions: Iterable[Action], found: _Pass) -> list[Action]:
        """Applies what may follow what failed before it; returns what was applied."""
        assert self._egress is not None and found.undone is not None
        performed = []
        for action in actions:
            if self._cut.is_set():
                break
            now = found.undone.after(action)
            if now is None:
                found.left_out += 1
                found.undone.add(action)
                continue
            try:
                self._egress.datapath.apply(now)
            except (OSError, EnvironmentFault) as error:
                found.failures.append(f"{action}: {error}")
                found.undone.add(action)
                continue
            found.done.append(str(now))
            performed.append(action)
        return performed

    # --- announcements

    def _tell(self, desired: BgpDesired, *, complete: bool = True) -> None:
        """Without `complete`, more follows: a peer that restarted with us keeps what it had until then (RFC 4724)."""
        if self._speaker is not None and (desired != self._told or (complete and not self._told_all)):
            self._speaker.set(desired, complete=complete)
            self._told, self._told_all = desired, complete

    async def _announce_early(self, announced: Announcements, speaker: Speaker) -> None:
        """Tells what does not wait for the datapath, and lets it go out before the datapath takes the loop's time."""
        before = self._told.ribs if self._told is not None else None
        if before is None:
            with contextlib.suppress(SpeakerUnavailable):  # nobody to tell yet, and nobody to ask
                before = await speaker.observe()  # what the agent before us announced
        if before is None:
            return
        desired = with_old_egress(announced, before)
        if desired != self._told:
            self._tell(desired, complete=desired is announced.desired)
            await speaker.settled(EARLY_TIMEOUT)

    async def _hold(self, announced: Announcements | None) -> str:
        """Why what withdrawn paths led to must stay for now, "" = it may go."""
        if self._speaker is None:
            return ""
        if announced is None:
            return "announcements wait for the store: nothing is taken away"
        if await self._speaker.sent(self._settle_timeout):
            self._unsettled_since = None
            return ""
        now = self._clock()
        self._unsettled_since = now if self._unsettled_since is None else self._unsettled_since
        if now - self._unsettled_since >= RETIRE_AFTER:
            return ""
        return "the withdrawals are not confirmed to have left for the peers yet: what they lead to stays"


def _tables(desired: BgpDesired) -> dict[IPAddress, AdjRibOut]:
    """What each session carries of `desired`, in the form in which it is read back."""
    tables: dict[IPAddress, AdjRibOut] = {}
    for address, peer in desired.peers.items():
        carried = (normal(path, peer) for path in desired.ribs[address].values())
        tables[address] = {path.prefix: path for path in carried if isinstance(path, Path)}
    return tables


def with_old_egress(announced: Announcements, before: Mapping[IPAddress, AdjRibOut]) -> BgpDesired:
    """`announced` with egress addresses as they were `before`: the NAT state of what is new is not in place.

    Returns `announced.desired` itself where nothing differs.
    """

    def is_egress(prefix: IPNetwork) -> bool:
        return all(owner.kind == EGRESS for owner in announced.owners.get(prefix, ()))

    egress = [prefix for prefix in announced.owners if is_egress(prefix)]

    def safe(rib: AdjRibOut, old: AdjRibOut) -> AdjRibOut:
        changed = [prefix for prefix in egress if prefix in rib and old.get(prefix) != rib[prefix]]
        if not changed:
            return rib
        kept = {prefix: old[prefix] for prefix in changed if prefix in old}
        return {prefix: path for prefix, path in rib.items() if prefix not in changed} | kept

    ribs = {peer: safe(rib, before.get(peer, {})) for peer, rib in announced.desired.ribs.items()}
    unchanged = all(ribs[peer] is rib for peer, rib in announced.desired.ribs.items())
    return announced.desired if unchanged else replace(announced.desired, ribs=ribs)
