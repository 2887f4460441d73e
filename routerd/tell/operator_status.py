"""What an operator tells about itself: one frozen value that its metrics and health checks read. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from routerd.model import IPAddress, NodeReport, Refusal, Snapshot
from routerd.store.interface import StoreStatus
from routerd.tell.status import Rounds

if TYPE_CHECKING:  # metrics of an agent need no part of the operator
    from ipam.pool import Counts
    from ipam.port_sets import PortCounts
    from routerd.cluster.assign import Decision

NEEDS = {
    "nodes": "nodes",
    "services": "services",
    "pools": "address pools",
    "policies": "egress policies",
    "bgp": "BGP peers",
}


@dataclass(frozen=True, slots=True)
class Tenure:
    """What only an operator on Kubernetes has. Counts are since its start."""

    acquired: int = 0  # how often it got the lease
    lost: int = 0  # how often the lease ran out
    writes: int = 0  # to the status of objects
    conflicts: int = 0  # of these writes, with what others wrote


@dataclass(frozen=True, slots=True)
class OperatorStatus:
    version: str
    missing: tuple[str, ...] = ()  # what a decision needs and has not been read
    active: bool = False  # it decides: always with files, while it has the lease on Kubernetes
    rounds: Rounds = field(default_factory=Rounds)  # that decided, or failed
    silent: Mapping[str, str] = field(default_factory=dict)  # by node: since when nothing was heard of its agent
    generation: int | None = None  # of the last decision; None = there was none, or another operator is active
    counts: Mapping[str, Counts] = field(default_factory=dict)  # addresses by pool, likewise
    ports: Mapping[IPAddress, PortCounts] = field(default_factory=dict)  # granules by egress IP, likewise
    asks_pending: Mapping[int, int] = field(default_factory=dict)  # nodes by group, likewise
    cloud_calls: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by action and result; of this operator
    refusals: tuple[Refusal, ...] = ()
    store: StoreStatus | None = None  # None: not one that an API server is behind
    tenure: Tenure | None = None

    @property
    def ready(self) -> bool:
        """It could decide at once: one that waits for the lease is ready, too."""
        return not self.missing

    def not_ready_because(self) -> str:
        """One line for /readyz; "" when ready."""
        return f"not read from the store yet: {', '.join(self.missing)}" if self.missing else ""

    def refusals_by_reason(self) -> dict[str, int]:
        return dict(sorted(Counter(refusal.reason for refusal in self.refusals).items()))


def unread(snapshot: Snapshot, reports: Mapping[str, NodeReport] | None) -> tuple[str, ...]:
    """What `assign` waits for."""
    missing = [text for name, text in NEEDS.items() if getattr(snapshot, name) is None]
    return (*missing, *(["node reports"] if reports is None else []))


def operator_status(
    version: str,
    snapshot: Snapshot,
    reports: Mapping[str, NodeReport] | None,
    rounds: Rounds,
    decision: Decision | None,
    *,
    active: bool,
    refusals: tuple[Refusal, ...] = (),
    store: StoreStatus | None = None,
    tenure: Tenure | None = None,
    cloud_calls: Mapping[tuple[str, str], int] | None = None,
) -> OperatorStatus:
    """`decision` is the last one of an active operator; `refusals` are those that neither it nor the store has."""
    decided = decision.allocations.refusals if decision else ()
    return OperatorStatus(
        version,
        missing=unread(snapshot, reports),
        active=active,
        rounds=rounds,
        generation=decision.allocations.generation if decision else None,
        counts=decision.counts if decision else {},
        ports=decision.ports if decision else {},
        asks_pending=decision.asks_pending if decision else {},
        silent=decision.silent if decision else {},
        refusals=(*snapshot.refusals, *decided, *refusals),
        store=store,
        tenure=tenure,
        cloud_calls=dict(cloud_calls or {}),
    )
