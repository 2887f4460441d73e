"""One room's turn in a round: look, plan, prepare, later retire. It blocks, so it runs in a thread.

After an action that fails the rest of the plan goes on, save what relies on it (the room decides: `undone`); the
failure is told with its action. Remembered is only for which desired value the room was found as it should be.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from routerd.agent.room import Action, Problem, Room, Undone
from routerd.errors import EnvironmentFault
from routerd.model import Refusal
from routerd.refs import Ref

PASSES = 4  # an action that makes a device is followed by a look at what it made


@dataclass(slots=True)
class Turn:
    """What a room did and still has to do in a round."""

    room: Room
    done: list[str]  # of all rooms in this round, in the order in which it was done
    is_synced: bool = True  # whether it is known what the room should have
    retiring: Sequence[Action] = ()
    problems: tuple[Refusal, ...] = ()
    undone: Undone | None = None  # of the last plan; None = it could not be read, or there was nothing to look for
    failures: list[str] = field(default_factory=list)
    left_out: int = 0

    @property
    def error(self) -> str:
        """The first failure, and how much else there is; "" = none."""
        if not self.failures:
            return ""
        more = [f"{len(self.failures) - 1} more failed"] if len(self.failures) > 1 else []
        more += [f"{self.left_out} that rely on it wait"] if self.left_out else []
        return f"{self.room.name}: {self.failures[0]}" + (f" ({', '.join(more)})" if more else "")

    @property
    def carries_all(self) -> bool:
        return self.is_synced and not self.failures

    def carries(self, owner: Ref) -> bool:
        """Whether paths of `owner` may be told as they shall be. What leads to a room that is not synced waits for it:
        nobody has looked whether it is in place.
        """
        return self.carries_all or self.room.carries(owner, self.undone)


class Seat:
    """A room at its place in every round. `cut` is set when the round was cancelled: the turn ends."""

    def __init__(self, room: Room, cut: threading.Event) -> None:
        self.room = room
        self._cut = cut
        self._converged: tuple[Any, tuple[Refusal, ...]] | None = None  # desired value and problems

    def prepare(self, desired: Any | None, full: bool, done: list[str]) -> Turn:
        """Everything of phase "prepare"; `done` gets a line for each action. None is not synced: nothing is touched.

        Without `full`, a room that was found as it should be is not read again before its desired value changes.
        """
        turn = Turn(self.room, done, is_synced=desired is not None)
        if desired is None:
            return turn
        if not full and self._converged is not None and self._converged[0] == desired:
            turn.problems = self._converged[1]
            return turn
        self._converged = None
        for _ in range(PASSES):
            if self._cut.is_set() or not self._pass(desired, turn):
                break
        if not (turn.retiring or turn.failures or self._cut.is_set()):
            self._converged = (desired, turn.problems)
        return turn

    def retire(self, turn: Turn) -> None:
        """Everything of phase "retire"."""
        self._apply(turn.retiring, turn)

    def preview(self, desired: Any | None) -> list[str]:
        """What `prepare` and `retire` would do now. EnvironmentFault if the room cannot be read."""
        if desired is None:
            return []
        try:
            return [str(action) for action in self.room.plan(desired, self.room.observe(desired))]
        except OSError as error:
            raise EnvironmentFault(f"{self.room.name}: {_unread(error)}") from error

    def _pass(self, desired: Any, turn: Turn) -> bool:
        """Whether the plan must be made again: it made what it could not know."""
        turn.retiring, turn.undone, turn.failures, turn.left_out = (), None, [], 0
        try:
            observed = self.room.observe(desired)
        except (OSError, EnvironmentFault) as error:
            turn.failures = [_unread(error)]
            return False
        actions = self.room.plan(desired, observed)
        turn.problems = tuple(map(_refusal, self.room.problems(desired, observed)))
        turn.undone = self.room.undone(desired, observed)
        turn.retiring = [action for action in actions if action.phase == "retire"]
        performed = self._apply([action for action in actions if action.phase == "prepare"], turn)
        return any(map(self.room.makes_new, performed))

    def _apply(self, actions: Iterable[Action], turn: Turn) -> list[Action]:
        """Applies what may follow what failed before it; returns what was applied."""
        performed: list[Action] = []
        if turn.undone is None:
            return performed
        for action in actions:
            if self._cut.is_set():
                break
            now = turn.undone.after(action)
            if now is None:
                turn.left_out += 1
                turn.undone.add(action)
                continue
            try:
                self.room.apply(now)
            except (OSError, EnvironmentFault) as error:
                turn.failures.append(f"{action}: {error}")
                turn.undone.add(action)
                continue
            turn.done.append(str(now))
            performed.append(action)
        return performed


def _refusal(problem: Problem) -> Refusal:
    return Refusal(Ref.parse(problem.object), problem.reason, problem.message)


def _unread(error: Exception) -> str:
    return f"cannot read the datapath: {error}"
