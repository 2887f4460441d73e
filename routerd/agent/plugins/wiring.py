"""The room of a cloud's interfaces in its seat (`agent/room.py`). It decides nothing: see `eni.plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cni.install import CONF_DIR, main_plugins
from eni import kernel, plan
from eni.plan import Action, Desired, Observed, Problem
from routerd.node.desired import ENI_ROOM
from routerd.refs import Ref

# By the plugin that comes first in their chains. Cilium's chained behind another one wires nothing.
OTHERS = {"aws-cni": "Amazon's VPC CNI", "terway": "Terway", "azure-vnet": "Azure CNI", "cilium-cni": "Cilium"}


@dataclass(slots=True)
class Undone:
    """What leads pods' packets into an interface waits for what it leads to."""

    failed: bool = field(default=False, init=False)

    def add(self, action: Action) -> None:
        self.failed = True

    def after(self, action: Action) -> Action | None:
        return None if self.failed else action


class WiringRoom:
    name = ENI_ROOM

    def __init__(self, takes_part: Callable[[], bool] = lambda: True, cni_config: Path = CONF_DIR) -> None:
        """`takes_part`: whether pods of this node shall have addresses of the cloud."""
        self._takes_part, self._cni_config = takes_part, cni_config
        self.wired: frozenset[str] = frozenset()  # MACs of the interfaces whose addresses pods may use
        self.on_wired: Callable[[], None] = lambda: None  # called in any thread

    def observe(self, desired: Desired) -> Observed:
        return replace(kernel.observe(desired), others=self.others() if self._takes_part() else ())

    def hindrance(self) -> str:
        """Why no interface is wired here; "" = it can be."""
        others = self.others() if self._takes_part() else ()
        return plan.beside(others) if others else ""

    def others(self) -> tuple[str, ...]:
        """Who else makes interfaces for pods, by the network configurations of this node."""
        return tuple(dict.fromkeys(OTHERS[kind] for kind in main_plugins(self._cni_config) if kind in OTHERS))

    def plan(self, desired: Desired, observed: Observed) -> Sequence[Action]:
        wired = plan.wired(desired, observed)
        if wired != self.wired:
            self.wired = wired
            self.on_wired()
        return plan.plan(desired, observed)

    def apply(self, action: Action) -> None:
        kernel.apply(action)

    def problems(self, desired: Desired, observed: Observed) -> Sequence[Problem]:
        return plan.problems(desired, observed)

    def undone(self, desired: Desired, observed: Observed) -> Undone:
        return Undone()

    def carries(self, owner: Ref, undone: Any | None) -> bool:
        """A VPC leads to an interface by itself: no path does."""
        return True

    def makes_new(self, action: Action) -> bool:
        """That an interface is wired is told after a look at it."""
        return action.phase == "prepare"
