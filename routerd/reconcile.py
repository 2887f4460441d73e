"""One round: read back, plan, apply, across the rooms, in the safe order. It decides only the order.

    1. egress actions of phase "prepare"    NAT state and maps before anybody is led to them
    2. the speaker gets the whole Adj-RIB-Out, and has a bounded time to tell its peers
    3. egress actions of phase "retire"     only after what led to it has been withdrawn

A round that is cut anywhere is followed by one that reads back again: nothing is remembered, save since when the
speaker has not settled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from bgp.path import AdjRibOut
from bgp.path import Desired as BgpDesired
from egress.policy import Desired as EgressDesired
from routerd.announce import Announcements
from routerd.desired import NodeState
from routerd.errors import EnvironmentFault
from routerd.model import IPNetwork

SETTLE_TIMEOUT = 2.0  # seconds that a round waits for the speaker
RETIRE_AFTER = 30.0  # seconds: a speaker that is gone for longer cannot hold up what policies took back


class Action(Protocol):
    """One step of the egress plan; `str()` is one readable line."""

    @property
    def phase(self) -> Literal["prepare", "retire"]: ...


class Datapath(Protocol):
    """`egress.netdev.Datapath`, and the model of it in tests."""

    def observe(self, desired: EgressDesired) -> Any: ...

    def apply(self, action: Any) -> None: ...


class Speaker(Protocol):
    """`bgp.speaker.Speaker`, and the model of it in tests."""

    async def set(self, desired: BgpDesired) -> None: ...

    async def settled(self, timeout: float) -> bool: ...


Plan = Callable[[EgressDesired, Any], Sequence[Action]]


@dataclass(frozen=True, slots=True)
class Egress:
    """The egress room: what it is and how it plans."""

    datapath: Datapath
    plan: Plan


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did. `held` says what it left undone on purpose; `error` why it must be tried again."""

    actions: tuple[str, ...] = ()
    held: str = ""
    error: str = ""


class Reconciler:
    """Brings this node to a `NodeState`. A room that is None is not there (no privilege, or switched off)."""

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
        self._announced = BgpDesired({}, {})

    async def round(self, state: NodeState) -> Round:
        """One round. A fault of one room does not keep the other from its work; it comes back in `error`."""
        actions, error = self._planned(state.egress)
        done, failed = self._apply(action for action in actions if action.phase == "prepare")
        error = error or failed
        held = await self._announce(state.announcements, prepared=not error)
        retiring = [action for action in actions if action.phase == "retire"]
        if retiring and not error and not held:
            more, error = self._apply(retiring)
            done += more
        return Round(tuple(done), held if retiring else "", error)

    def _planned(self, desired: EgressDesired | None) -> tuple[Sequence[Action], str]:
        if self._egress is None or desired is None:
            return (), ""
        try:
            return self._egress.plan(desired, self._egress.datapath.observe(desired)), ""
        except (OSError, EnvironmentFault) as error:
            return (), f"egress: cannot read the datapath: {error}"

    def _apply(self, actions: Iterable[Action]) -> tuple[list[str], str]:
        """Applies up to the first failure: later actions may rely on earlier ones."""
        done: list[str] = []
        if self._egress is None:
            return done, ""
        for action in actions:
            try:
                self._egress.datapath.apply(action)
            except (OSError, EnvironmentFault) as error:
                return done, f"egress: {action}: {error}"
            done.append(str(action))
        return done, ""

    async def _announce(self, announced: Announcements | None, prepared: bool) -> str:
        """Returns why what the paths lead to must stay for now, "" = it may go."""
        if self._speaker is None:
            return ""
        if announced is None:
            return "announcements wait for the store: nothing is taken away"
        desired = announced.desired if prepared else with_old_egress(announced, self._announced)
        await self._speaker.set(desired)
        self._announced = desired
        return self._unsettled(await self._speaker.settled(self._settle_timeout))

    def _unsettled(self, settled: bool) -> str:
        if settled:
            self._unsettled_since = None
            return ""
        now = self._clock()
        self._unsettled_since = now if self._unsettled_since is None else self._unsettled_since
        if now - self._unsettled_since >= RETIRE_AFTER:
            return ""
        return "the speaker has not confirmed the withdrawals yet: what they lead to stays"


def with_old_egress(announced: Announcements, before: BgpDesired) -> BgpDesired:
    """`announced` with egress addresses as they were `before`: the NAT state of what is new is not in place."""

    def is_egress(prefix: IPNetwork) -> bool:
        return all(owner.startswith("egress/") for owner in announced.owners.get(prefix, ()))

    def safe(rib: AdjRibOut, old: AdjRibOut) -> AdjRibOut:
        kept = {prefix: old.get(prefix) if is_egress(prefix) else path for prefix, path in rib.items()}
        return {prefix: path for prefix, path in kept.items() if path is not None}

    ribs = {peer: safe(rib, before.ribs.get(peer, {})) for peer, rib in announced.desired.ribs.items()}
    return replace(announced.desired, ribs=ribs)
