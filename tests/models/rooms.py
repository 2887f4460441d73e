"""A node's rooms and its speaker as small models that share one journal: what a round did, in order.

The rooms hold numbers: the egress room groups, another one routes. A path belongs to the number that its address ends
with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any, Literal

from bgp.path import AdjRibOut, IPNetwork, Path, SessionKey
from bgp.path import Desired as BgpDesired
from bgp.speaker import Loading, SpeakerUnavailable
from egress.plan import Problem
from routerd.agent.reconcile import Reconciler
from routerd.node.announce import Announcements
from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from routerd.refs import Ref
from tests.models import cluster
from tests.models.cluster import LOCAL

EGRESS_IPS, ROUTES = ip_network("198.51.100.0/24"), ip_network("203.0.113.0/24")


@dataclass(frozen=True)
class Step:
    phase: Literal["prepare", "retire"]
    word: str
    number: int

    def __str__(self) -> str:
        return f"{self.phase} {self.word} {self.number}"


@dataclass
class World:
    """What the rooms hold and what each peer has; rooms and speaker write the journal."""

    groups: set[int] = field(default_factory=set)
    routes: set[int] = field(default_factory=set)
    ribs: dict[str, set[str]] = field(default_factory=dict)
    journal: list[str] = field(default_factory=list)
    complete: list[bool] = field(default_factory=list)  # of each time that the speaker was told
    broken: str = ""  # the action that fails; "observe" = reading does, "observe egress" = that of one room
    settles: bool = True
    adopted: Mapping[SessionKey, AdjRibOut] | None = field(default_factory=dict)  # what peers have; None = no speaker
    lacking: tuple[Problem, ...] = ()
    on_step: Callable[[], None] = lambda: None  # after each line of the journal

    def note(self, line: str) -> None:
        self.journal.append(line)
        self.on_step()


class NothingAfter:
    """Nothing follows the first action that failed."""

    def __init__(self) -> None:
        self.failed: set[int] = set()

    def add(self, action: Step) -> None:
        self.failed.add(action.number)

    def after(self, action: Step) -> Step | None:
        return None if self.failed else action

    def carries(self, _number: int) -> bool:
        return not self.failed


class Apart(NothingAfter):
    """The numbers have nothing to do with each other."""

    def after(self, action: Step) -> Step | None:
        return None if action.number in self.failed else action

    def carries(self, number: int) -> bool:
        return number not in self.failed


@dataclass
class EgressModel:
    """The egress room of a world: it holds the groups that it shall have."""

    world: World
    makes_devices: bool = True
    undone_of: Callable[[], NothingAfter] = NothingAfter
    reads: int = 0
    name: str = "egress"
    word: str = "group"

    @property
    def held(self) -> set[int]:
        return self.world.groups

    def wanted(self, desired: Any) -> set[int]:
        return set(desired.groups)

    def observe(self, desired: Any) -> set[int]:
        self.reads += 1
        if self.world.broken in ("observe", f"observe {self.name}"):
            raise OSError("no map")
        return set(self.held)

    def plan(self, desired: Any, observed: set[int]) -> tuple[Step, ...]:
        wanted = self.wanted(desired)
        retire = [Step("retire", self.word, number) for number in sorted(observed - wanted)]
        return (*retire, *(Step("prepare", self.word, number) for number in sorted(wanted - observed)))

    def apply(self, action: Step) -> None:
        if str(action) == self.world.broken:
            raise OSError("map is full")
        (self.held.add if action.phase == "prepare" else self.held.discard)(action.number)
        self.world.note(str(action))

    def problems(self, desired: Any, observed: set[int]) -> tuple[Problem, ...]:
        return self.world.lacking

    def undone(self, desired: Any, observed: set[int]) -> NothingAfter:
        return self.undone_of()

    def carries(self, owner: Ref, undone: NothingAfter | None) -> bool:
        return owner.kind != self.name or (undone is not None and undone.carries(int(owner.name)))

    def makes_new(self, action: Step) -> bool:
        return self.makes_devices


@dataclass
class RoutesModel(EgressModel):
    """Another room: its desired value is a set of numbers, and paths of `routes/NUMBER` lead to it."""

    name: str = "routes"
    word: str = "route"

    @property
    def held(self) -> set[int]:
        return self.world.routes

    def wanted(self, desired: Any) -> set[int]:
        return set(desired)


@dataclass
class FakeSpeaker:
    """The speaker's side of a world."""

    world: World

    def set(self, desired: BgpDesired | None, *, complete: bool = True) -> None:
        assert desired is not None
        self.world.complete.append(complete)
        self.world.ribs = {str(key.peer): {str(prefix) for prefix in rib} for key, rib in desired.ribs.items()}
        if self.world.adopted is not None:
            self.world.adopted = desired.ribs
        egress = [path for rib in desired.ribs.values() for path in rib.values() if path.med is not None]
        self.world.note(" ".join(["announce", *(str(path.local_pref) for path in egress)]))

    async def settled(self, timeout: float) -> bool:
        return True  # acknowledged is not sent

    async def sent(self, timeout: float) -> bool:
        return self.world.settles

    def unloaded(self, desired: BgpDesired) -> dict[SessionKey, Loading]:
        return {key: "new" for key in desired.peers if str(key.peer) not in self.world.ribs}

    def reset_by(self, desired: BgpDesired) -> Mapping[SessionKey, tuple[str, ...]]:
        return {}

    async def observe(self) -> Mapping[SessionKey, AdjRibOut]:
        if self.world.adopted is None:
            raise SpeakerUnavailable("no speaker is connected")
        return self.world.adopted


def state(**fields: object) -> NodeState:
    return compose(cluster.snapshot(**fields), Settings("a"), LocalFacts(sessions=LOCAL))


def with_routes(before: NodeState, *numbers: int) -> NodeState:
    """The same with these routes, each with a path that leads to it."""
    announced = before.announcements
    assert announced is not None
    paths: dict[IPNetwork, Path] = {prefix: Path(prefix) for prefix in (_network(number) for number in numbers)}
    ribs = {peer: {**rib, **paths} for peer, rib in announced.desired.ribs.items()}
    owners = {**announced.owners, **{_network(number): (Ref("routes", name=str(number)),) for number in numbers}}
    told = Announcements(replace(announced.desired, ribs=ribs), owners, announced.refusals)
    return replace(before, announcements=told, rooms={**before.rooms, "routes": frozenset(numbers)})


def _network(number: int) -> IPNetwork:
    return ip_network((int(ROUTES.network_address) + number, 32))


def numbers_told(world: World, inside: IPNetwork) -> set[int]:
    """Of the paths in this network that any peer has."""
    told = {ip_network(prefix) for rib in world.ribs.values() for prefix in rib}
    return {int(prefix.network_address) & 0xFF for prefix in told if prefix.network_address in inside}


def reconciler(world: World, clock: Callable[[], float] = lambda: 0.0) -> Reconciler:
    return Reconciler(FakeSpeaker(world), [EgressModel(world)], clock, settle_timeout=0.0)
