"""What the agent and the operator see of a store, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from routerd.model import Allocations, NodeReport, Refusal, Snapshot


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """How the reading of one resource of an API server goes. Counts are since the start."""

    resource: str  # "pods", "configmaps in kube-system", "egresspolicies.routerd.io"
    synced: bool  # was listed once, or is known to be absent
    stale: float = 0.0  # seconds since it could last be read; 0 = it can be
    lists: int = 0  # more than one: the history that a watch is resumed with was gone
    watches: int = 0  # that were opened


@dataclass(frozen=True, slots=True)
class Responses:
    """How many requests of a method got this answer."""

    method: str
    code: str  # HTTP status; "none" = no answer came
    count: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How the reading of a store goes that is an API server."""

    resources: tuple[ResourceStatus, ...] = ()
    requests: Mapping[str, int] = field(default_factory=dict)  # by HTTP method; a watch is one GET
    responses: tuple[Responses, ...] = ()  # sorted


class Store(Protocol):
    """A source of snapshots, and the place of what routerd itself publishes.

    A store takes a callback `on_change()` when it is made, and calls it in the event loop of `run` whenever
    `snapshot()` or `node_reports()` would give another value than before.
    """

    def snapshot(self) -> Snapshot:
        """The current view; never blocks. Before the first complete reading every field is None."""

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        """The last good report of each node, by name. None = not read yet, or not read by this role."""

    def write_allocations(self, allocations: Allocations) -> None:
        """Publishes, durably, if it differs from what is published. Raises StoreError."""

    def write_node_report(self, report: NodeReport) -> None:
        """Publishes this node's report if it differs. Raises StoreError.

        Of its heartbeat `seconds` counts; without one, what was said before stays.
        """

    def beat(self) -> None:
        """Publishes another beat: this node serves. Raises StoreError."""

    def report_health(self, health: Callable[[], Mapping[str, Any]]) -> None:
        """`health` gives what else a report tells people, where the store has a place for it."""

    def report_pods(self, told: Callable[[], Iterable[Refusal]]) -> None:
        """`told` gives what is wrong with pods of this node, where the store has a place for it."""

    def report_services(self, told: Callable[[], Mapping[str, Sequence[str]] | None]) -> None:
        """`told` gives the peers that this node announces each Service to, by its key, where the store has a place for
        it; None = it is not known.
        """

    def status(self) -> StoreStatus | None:
        """None where there is nothing between the store and what it reads."""

    async def run(self) -> None:
        """Watches until it is cancelled. Returning is a fault."""
