"""The room of routes to other nodes' pods in its seat (`room.py`). It decides nothing: see `fib.plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fib import kernel, plan
from fib.plan import Action, Desired, Observed, Problem, Put, Remove, Status
from routerd.agent.room import NothingUndone
from routerd.node.desired import FIB_ROOM
from routerd.refs import Ref


class RouteRoom:
    """A route relies on no other, and a rule without routes leads nowhere."""

    name = FIB_ROOM

    def __init__(self) -> None:
        self.status = Status()

    def observe(self, desired: Desired) -> Observed:
        return kernel.observe(desired)

    def plan(self, desired: Desired, observed: Observed) -> Sequence[Action]:
        self.status = replace(self.status, observed=observed)
        return plan.plan(desired, observed)

    def apply(self, action: Action) -> None:
        kernel.apply(action)
        written = action.routes if isinstance(action, Put) else action.prefixes if isinstance(action, Remove) else ()
        self.status = replace(self.status, writes=self.status.writes + len(written))

    def problems(self, desired: Desired, observed: Observed) -> Sequence[Problem]:
        return plan.problems(desired, observed)

    def undone(self, desired: Desired, observed: Observed) -> NothingUndone:
        return NothingUndone()

    def carries(self, owner: Ref, undone: Any | None) -> bool:
        """No path that this node announces leads into its routes to others."""
        return True

    def makes_new(self, action: Action) -> bool:
        """What is there is told after a look at it."""
        return True
