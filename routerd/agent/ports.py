"""An agent's word about ports: renewed after each round, and handed to whoever writes this node's report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from egress.status import PortUse
from routerd.model import Allocations, PortReport
from routerd.node.desired import NodeState
from routerd.node.port_sets import PortMemory, report_ports


@dataclass(slots=True)
class PortDesk:
    """`use` reads what the datapath counts, None while it counts nothing."""

    node: str
    on_change: Callable[[], None] = lambda: None
    use: Callable[[], PortUse | None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _memory: PortMemory = field(init=False, default_factory=PortMemory)
    _applied: Allocations | None = field(init=False, default=None)
    _since: float = field(init=False, default=float("-inf"))  # when it was first in force
    _considered: tuple[Allocations, NodeState] | None = field(init=False, default=None)

    @property
    def report(self) -> PortReport | None:
        """None until all that it rests on has been read."""
        if self.clock() >= self._memory.next_turn:
            self.reconsider()
        return self._memory.report

    def consider(self, allocations: Allocations | None, state: NodeState) -> None:
        """A state was composed from these allocations."""
        if allocations is None or state.selecting is None:
            return
        self._considered = allocations, state
        before = self._memory.report
        self._memory = report_ports(
            self.node, allocations, state.selecting, self._applied, self.use(), self._memory, self.clock(), self._since
        )
        if self._memory.report != before:
            self.on_change()

    def reconsider(self) -> None:
        """The datapath has counted anew."""
        if self._considered is not None:
            self.consider(*self._considered)

    def is_applied(self, allocations: Allocations, state: NodeState) -> None:
        """A round left nothing of it undone."""
        if allocations is not self._applied:
            self._applied, self._since = allocations, self.clock()
            self.consider(allocations, state)
