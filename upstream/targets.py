"""Targets upstream of a gateway, and whether what is upstream counts as lost. Pure.

One answer more or less turns nothing: a target that answers must fail several times in a row to be believed, and one
that fails must answer several times (failureThreshold and successThreshold of Kubernetes' probes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """`port` of TCP and HTTP; `path` of HTTP, with its query. `tls`: HTTPS."""

    kind: Literal["icmp", "tcp", "http"]
    address: IPAddress
    port: int = 0
    path: str = ""
    tls: bool = False

    @property
    def host(self) -> str:
        """As URLs have it."""
        return f"[{self.address}]" if self.address.version == 6 else str(self.address)

    def __str__(self) -> str:
        if self.kind == "icmp":
            return f"icmp {self.address}"
        if self.kind == "tcp":
            return f"tcp {self.host}:{self.port}"
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds. `require`: whether one target that answers is enough, or all must."""

    targets: tuple[Target, ...]
    require: Literal["any", "all"] = "any"
    interval: float = 2.0  # from the beginning of a round of questions to the next
    timeout: float = 1.0  # at most the interval
    failure_threshold: int = 3  # questions in a row
    success_threshold: int = 2


@dataclass(frozen=True, slots=True)
class Judged:
    """One target. `error`: why the last question was not answered, "" = it was, or none was asked."""

    answers: bool = True
    against: int = 0  # questions in a row that say otherwise
    error: str = ""

    def after(self, error: str, rules: Rules) -> Judged:
        """One more question was answered, or not."""
        if self.answers != bool(error):
            return Judged(self.answers, 0, error)
        against = self.against + 1
        if against < (rules.failure_threshold if self.answers else rules.success_threshold):
            return Judged(self.answers, against, error)
        return Judged(not self.answers, 0, error)


@dataclass(frozen=True, slots=True)
class Upstream:
    """What is known of it. No targets: it is not asked, and never lost."""

    targets: Mapping[Target, Judged] = field(default_factory=dict)
    is_lost: bool = False
    problem: str = ""  # why it cannot be asked, which is no reason to believe it lost

    def after(self, errors: Mapping[Target, str], rules: Rules) -> Upstream:
        """All targets were asked once: why each did not answer, "" = it did."""
        judged = {target: self.targets.get(target, Judged(not self.is_lost)).after(errors[target], rules)
                  for target in rules.targets}  # fmt: skip
        answering = [each.answers for each in judged.values()]
        return Upstream(judged, not (any(answering) if rules.require == "any" else all(answering)))

    @property
    def failing(self) -> tuple[str, ...]:
        """Targets that count as lost, with the last error."""
        return tuple(f"{target} ({each.error})" for target, each in self.targets.items() if not each.answers)

    def unasked(self, problem: str) -> Upstream:
        """It could not be asked: what was found before stands."""
        return replace(self, problem=problem)
