"""A node's rooms as small models that share one journal: what a round did, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bgp.path import AdjRibOut
from bgp.path import Desired as BgpDesired
from bgp.speaker import SpeakerUnavailable
from egress.plan import Problem
from egress.policy import Desired as EgressDesired
from routerd.agent.reconcile import Egress
from routerd.model import IPAddress
from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from tests.models import cluster
from tests.models.cluster import LOCAL


@dataclass(frozen=True)
class Step:
    phase: Literal["prepare", "retire"]
    group: int

    def __str__(self) -> str:
        return f"{self.phase} group {self.group}"


@dataclass
class World:
    """A datapath that holds groups, and a speaker that keeps what each peer has; both write the journal."""

    groups: set[int] = field(default_factory=set)
    ribs: dict[str, set[str]] = field(default_factory=dict)
    journal: list[str] = field(default_factory=list)
    complete: list[bool] = field(default_factory=list)  # of each time that the speaker was told
    broken: str = ""  # the action that fails; "observe" = reading does
    settles: bool = True
    adopted: Mapping[IPAddress, AdjRibOut] | None = field(default_factory=dict)  # what the agent before us announced
    lacking: tuple[Problem, ...] = ()


@dataclass
class Datapath:
    """The datapath's side of a world."""

    world: World
    reads: int = 0

    def observe(self, desired: EgressDesired) -> set[int]:
        self.reads += 1
        if self.world.broken == "observe":
            raise OSError("no map")
        return set(self.world.groups)

    def apply(self, action: Step) -> None:
        if str(action) == self.world.broken:
            raise OSError("map is full")
        (self.world.groups.add if action.phase == "prepare" else self.world.groups.discard)(action.group)
        self.world.journal.append(str(action))


@dataclass
class Speaker:
    """The speaker's side of a world."""

    world: World

    def set(self, desired: BgpDesired | None, *, complete: bool = True) -> None:
        assert desired is not None
        self.world.complete.append(complete)
        self.world.ribs = {str(peer): {str(prefix) for prefix in rib} for peer, rib in desired.ribs.items()}
        egress = [path for rib in desired.ribs.values() for path in rib.values() if path.med is not None]
        self.world.journal.append(" ".join(["announce", *(str(path.local_pref) for path in egress)]))

    async def settled(self, timeout: float) -> bool:
        return True  # acknowledged is not sent

    async def sent(self, timeout: float) -> bool:
        return self.world.settles

    async def observe(self) -> Mapping[IPAddress, AdjRibOut]:
        if self.world.adopted is None:
            raise SpeakerUnavailable("no speaker is connected")
        return self.world.adopted


def plan(desired: EgressDesired, observed: Any) -> tuple[Step, ...]:
    retire = [Step("retire", group) for group in sorted(observed - set(desired.groups))]
    return (*retire, *(Step("prepare", group) for group in sorted(set(desired.groups) - observed)))


def state(**fields: object) -> NodeState:
    return compose(cluster.snapshot(**fields), Settings("a"), LocalFacts(sessions=LOCAL))


def egress_of(world: World) -> Egress:
    return Egress(Datapath(world), plan, lambda desired, observed: world.lacking, bool)
