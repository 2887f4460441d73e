"""The seat of a room: what a part of this node (egress, routes, sessions of its own) offers to a round.

A room brings the kernel to one desired value. It knows no other room and no BGP; the round knows nothing of what a room
does but this. Whoever writes a room promises:

    observe   reads the kernel, remembers nothing
    plan      pure; actions in an order of which every prefix is a safe state: "prepare" before this node announces what
              leads here, "retire" after what led here has been withdrawn
    apply     one action; what is there already is no error
    undone    what of the plan may follow what failed or was left out
    carries   which paths may be told, for that matter

Values and actions are the room's own, so they have no type here. OSError and EnvironmentFault are the faults that a
round lives with; anything else is a mistake of ours and ends the agent. All but the names may block: it is called in a
thread, by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from routerd.refs import Ref


class Action(Protocol):
    """One step of a plan; `str()` is one readable line."""

    @property
    def phase(self) -> Literal["prepare", "retire"]: ...


class Problem(Protocol):
    """Something wanted that a room cannot do on this machine as it is: a `Refusal`, its object as text."""

    @property
    def object(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def message(self) -> str: ...


class Undone(Protocol):
    """What of a plan was not done, and what may follow all the same."""

    def add(self, action: Any) -> None:
        """`action` failed or was left out."""

    def after(self, action: Any) -> Any | None:
        """What of `action` may be done; None = nothing."""


class NothingUndone:
    """Of a room whose actions rely on none of each other."""

    def add(self, action: Any) -> None:
        pass

    def after(self, action: Any) -> Any | None:
        return action


class Room(Protocol):
    @property
    def name(self) -> str:
        """The key of its desired value in `NodeState.rooms`, and the first word of what is told of it."""

    def observe(self, desired: Any) -> Any: ...

    def plan(self, desired: Any, observed: Any) -> Sequence[Action]: ...

    def apply(self, action: Any) -> None: ...

    def problems(self, desired: Any, observed: Any) -> Sequence[Problem]: ...

    def undone(self, desired: Any, observed: Any) -> Undone:
        """Nothing yet."""

    def carries(self, owner: Ref, undone: Any | None) -> bool:
        """Whether paths of `owner` lead to what is in place here, or do not lead here at all.

        `undone` None = nothing is known of the room: before it is read, when it cannot be, and while it is not synced.
        """

    def makes_new(self, action: Any) -> bool:
        """Whether `action` makes what only a look at it can tell, as a device's index: the plan is made again."""
