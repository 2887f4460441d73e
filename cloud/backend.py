"""What the rest knows of a cloud: look at everything, send one call once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from cloud.calls import Call, Outcome, Problem
from cloud.model import Inventory

Data = Mapping[str, Any]
Request = tuple[str, Data]  # action, parameters
Send = Callable[[str, Data], Data]  # raises CloudFault


class CloudFault(Exception):
    """A look failed, so nothing is known and nothing is changed. `code` is the cloud's own, "" = no answer.

    `after`: so many seconds it wants not to be asked again; 0 = it does not say.
    """

    def __init__(self, problem: Problem, code: str, message: str, after: float = 0.0) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.problem = problem
        self.code = code
        self.after = after


class Unanswered(CloudFault):
    """It was sent, and nobody knows what became of it."""


class Backend(Protocol):
    """Called in worker threads, several at once."""

    def describe(self, instances: Collection[str]) -> Inventory:
        """These instances as far as they are there, all interfaces, subnets and groups. Raises CloudFault."""

    def send(self, call: Call) -> Outcome:
        """Once: what has no token is not repeated below us either."""

    def action(self, call: Call) -> str:
        """The cloud's name of the call: each has a rate limit of its own."""
