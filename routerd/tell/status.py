"""What an agent tells about itself: one frozen value that the status API, metrics and health checks all read.

Pure. It bears no password, key or other secret; what is not known yet is None or empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from bgp.path import SessionKey, session_names
from egress.status import EgressStatus
from fib.plan import Status as RouteStatus
from routerd.model import Refusal
from routerd.node.desired import NodeState
from routerd.store.interface import StoreStatus
from routerd.tell.drain import Departure
from routerd.tell.views import UNTOLD, PeerView, Row
from upstream.targets import Upstream

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds, upper bounds


@dataclass(frozen=True, slots=True)
class Durations:
    """How long something took each time; `seconds` is the sum."""

    done: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * len(BUCKETS)  # that took at most BUCKETS[i]

    def after(self, seconds: float) -> Durations:
        return Durations(self.done + 1, self.seconds + seconds, _counted(self.buckets, seconds))


def _counted(buckets: tuple[int, ...], seconds: float) -> tuple[int, ...]:
    return tuple(n + (seconds <= bound) for n, bound in zip(buckets, BUCKETS, strict=True))


@dataclass(frozen=True, slots=True)
class Rounds:
    """Counts of an agent's or operator's rounds since its start; times in seconds."""

    done: int = 0
    errors: int = 0
    whole: int = 0  # that had everything they needed, and went well
    seconds: float = 0.0  # sum of all rounds
    last_seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * len(BUCKETS)  # rounds that took at most BUCKETS[i]
    last_error: str = ""  # of the last round, "" = it went well
    held: str = ""  # why the last round left something undone on purpose, "" = nothing

    def after(self, seconds: float, error: str = "", held: str = "", *, whole: bool = True) -> Rounds:
        """`whole`: everything was read that the round needed."""
        return Rounds(
            done=self.done + 1,
            errors=self.errors + bool(error),
            whole=self.whole + (whole and not error),
            seconds=self.seconds + seconds,
            last_seconds=seconds,
            buckets=_counted(self.buckets, seconds),
            last_error=error,
            held=held,
        )


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One session: what the speaker says of it and how many paths it should carry."""

    label: str  # as in metrics: the peer's name, else its address, with where it is from if another has that
    view: PeerView
    desired: int = 0  # paths
    name: str = ""  # as configured, even if another peer bears it too
    override: str = ""  # by which the node's session is other than those of other nodes


def peer_statuses(state: NodeState, views: Mapping[SessionKey, PeerView]) -> tuple[PeerStatus, ...]:
    """Sessions with the labels that metrics use: a name that two peers bear is not one."""
    if state.announcements is None:
        return ()
    desired = state.announcements.desired
    count = Counter(session.description for session in desired.peers.values())
    name_of = session_names(desired.peers)
    return tuple(
        PeerStatus(
            session.description if count[session.description] == 1 and session.description else name_of[key],
            views.get(key, PeerView(key)),
            len(desired.ribs.get(key, {})),
            session.description,
            session.override,
        )
        for key, session in desired.peers.items()
    )


def are_lost(views: Iterable[PeerView]) -> bool:
    """There are BGP sessions, and none is up. Of which the speaker says nothing may be."""
    states = {view.session.state for view in views}
    return bool(states) and not {"up", "unknown"} & states


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """How the configuration stands: a refused new one leaves the old one working (`stale`)."""

    loaded: bool = True
    stale: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Parts are the values of those who know them; a part that is switched off is as it is when nothing was read."""

    node: str
    version: str
    started: float = 0.0  # seconds since the epoch
    config: ConfigStatus = field(default_factory=ConfigStatus)
    missing: tuple[str, ...] = ()  # parts of the store that have not been read
    rounds: Rounds = field(default_factory=Rounds)
    peers: tuple[PeerStatus, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    pools: tuple[Row, ...] = ()
    store: StoreStatus | None = None  # None: not one that an API server is behind
    generation: int | None = None  # of the allocations that this node has applied
    braked: int = 0  # paths whose withdrawal the brake holds
    drain: Departure = field(default_factory=Departure)
    bfd_refused: Mapping[str, int] = field(default_factory=dict)  # packets that BFD did not take, by reason
    egress: EgressStatus = field(default_factory=EgressStatus)
    upstream: Upstream = field(default_factory=Upstream)
    routes: RouteStatus = field(default_factory=RouteStatus)
    updates: Durations = field(default_factory=Durations)  # from changes to the speaker's acknowledgment of their paths

    @property
    def ready(self) -> bool:
        """Everything was read and the last round was done: traffic goes where it should, as far as we can do it.

        What is missing may be known before a round has been made from it, so one must have been.
        """
        return self.config.loaded and not self.missing and self.rounds.whole > 0 and not self.rounds.last_error

    def not_ready_because(self) -> str:
        """One line for /readyz; "" when ready."""
        if not self.config.loaded:
            return f"configuration is not loaded: {self.config.error}"
        if self.missing:
            return f"not read from the store yet: {', '.join(self.missing)}"
        if self.rounds.last_error:
            return self.rounds.last_error
        return "" if self.rounds.whole else "the first round with everything read is not done"

    def refusals_by_reason(self) -> dict[str, int]:
        return dict(sorted(Counter(refusal.reason for refusal in self.refusals).items()))

    def with_rounds(self, rounds: Rounds) -> AgentStatus:
        return replace(self, rounds=rounds)


def as_json(status: AgentStatus) -> dict[str, object]:
    """The answer to `status` of the API."""
    return {
        "node": status.node,
        "version": status.version,
        "started": status.started,
        "ready": status.ready,
        "not_ready_because": status.not_ready_because(),
        "config": asdict(status.config),
        "rounds": {
            "done": status.rounds.done,
            "errors": status.rounds.errors,
            "last_seconds": round(status.rounds.last_seconds, 6),
            "last_error": status.rounds.last_error,
            "held": status.rounds.held,
        },
        "peers": [_peer(peer) for peer in status.peers],
        "refusals": [_refusal(each) for each in sorted(status.refusals, key=lambda each: each.gravity)],
        "egress": asdict(status.egress),
        "pools": list(status.pools),
        "store": asdict(status.store) if status.store else None,
        "braked": status.braked,
        "drain": asdict(status.drain),
        "bfd_refused": dict(status.bfd_refused),
        "upstream": _upstream(status.upstream),
        "routes": _routes(status.routes),
    }


def _upstream(upstream: Upstream) -> dict[str, object]:
    targets = [
        {"target": str(target), "answers": each.answers, "last_error": each.error}
        for target, each in upstream.targets.items()
    ]
    return {"lost": upstream.is_lost, "problem": upstream.problem, "targets": targets}


def _routes(routes: RouteStatus) -> dict[str, object]:
    return {"installed": len(routes.observed.routes) if routes.observed else 0, "writes": routes.writes}


def _refusal(refusal: Refusal) -> dict[str, object]:
    told = {"object": str(refusal.object), "reason": refusal.reason, "message": refusal.message}
    return {"severity": refusal.severity, **told}


def _peer(peer: PeerStatus) -> dict[str, object]:
    session = peer.view.session
    return {
        "peer": peer.label,
        "address": str(peer.view.key.peer),
        "local_address": str(peer.view.key.local),
        "up": peer.view.up,
        "state": "" if session is UNTOLD else session.state,
        "since_seconds": peer.view.since,
        "flaps": session.flaps,
        "announced": session.announced,
        "desired": peer.desired,
        "last_error": session.last_reason,
        "override": peer.override,
        "bfd": peer.view.bfd.state if peer.view.bfd is not None else "",
    }
