"""The room of routes to other nodes' pods, and of blackholes, in its seat (`room.py`). It decides nothing: see
`fib.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

from fib import kernel, plan
from fib.blackholes import PutVerdicts
from fib.plan import Action, AddRule, Desired, IPNetwork, Observed, Problem, Put, Remove, Status
from routerd.agent.room import NothingUndone
from routerd.node.desired import FIB_ROOM
from routerd.refs import AGGREGATE, Ref


class Undone(NothingUndone):
    """A route relies on no other, and a rule without routes leads nowhere."""

    def __init__(self, aggregates: Mapping[IPNetwork, tuple[IPNetwork, ...]]) -> None:
        """`aggregates`: with their parts, as desired."""
        self._aggregates = aggregates
        self._prefixes: set[IPNetwork] = set()
        self._versions: set[int] = set()  # whose table of blackholes is not looked up

    def add(self, action: Action) -> None:
        match action:
            case PutVerdicts():
                self._prefixes |= action.verdicts.keys()
            case AddRule() if action.rule.received:
                self._versions.add(action.rule.version)

    def lacks(self, aggregate: IPNetwork) -> bool:
        """Whether its blackhole is not in place."""
        parts = self._aggregates.get(aggregate, ())
        return any(part in self._prefixes or part.version in self._versions for part in parts)


class RouteRoom:
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

    def undone(self, desired: Desired, observed: Observed) -> Undone:
        return Undone(desired.aggregates or {})

    def carries(self, owner: Ref, undone: Undone | None) -> bool:
        """An aggregate has its blackhole before it is announced."""
        return owner.kind != AGGREGATE or (undone is not None and not undone.lacks(ip_network(owner.name)))

    def makes_new(self, action: Action) -> bool:
        """What is there is told after a look at it."""
        return True
