"""Which nodes have an agent that serves, by their heartbeats. Pure.

A reader looks at the reports again and again, and remembers by its own clock when each beat came: no two machines'
clocks are compared, and no clock that is set is asked. A node whose beat stays the same for the patience is absent.

unheard     The reader has not heard it yet, and not waited for the patience: it has just begun, or the report is new.
            Such a node keeps the groups that it has, and gets none while others are heard.
serving     It is heard.
absent      Nothing was heard of it for the patience, or no agent of it ever reported.
returning   It was absent and is heard again, for less than the patience: an agent that crashes over and over must not
            take the groups back each time.

Time in which nobody is heard does not count, but for a beat and a half: the reader is deaf then (the API server is
away, reports are not brought, this process was stopped), and who is deaf calls nobody absent. Where beats come in long
intervals, as reports are brought by something slower, the patience is three of the shortest of the last ones.

Who is *silent* is another question, for people alone: of whom nothing was heard for the patience, deaf or not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from routerd.model import GATEWAY_HEARTBEAT, NODE_HEARTBEAT, NodeReport

State = Literal["unheard", "serving", "absent", "returning"]
INTERVALS = 3  # that are remembered; the shortest counts, so that one beat that came late changes nothing
MISSED = 3  # beats in a row


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without a beat after which an agent is absent."""

    gateway: float = 4.0 * GATEWAY_HEARTBEAT
    node: float = 4.0 * NODE_HEARTBEAT


@dataclass(frozen=True, slots=True)
class Ear:
    """A clock that stands still while nobody is heard for longer than `longest` seconds."""

    longest: float
    clock: float = 0.0
    quiet: float = 0.0

    def after(self, passed: float, *, is_heard: bool) -> Ear:
        counted = min(passed, max(self.longest - self.quiet, 0.0))
        return replace(self, clock=self.clock + counted, quiet=0.0 if is_heard else self.quiet + passed)


@dataclass(frozen=True, slots=True)
class Pulse:
    """One node. `at` and `back` are of the ear's clock."""

    beat: str
    seconds: int  # between beats, as the agent says
    at: float  # when the beat was seen first
    seen: float  # the same, of the reader's clock
    since: float  # the same, in seconds of the Unix epoch
    state: State = "unheard"
    back: float = 0.0  # since when it is returning
    is_silent: bool = False
    intervals: tuple[tuple[float, float], ...] = ()  # between its last beats, of both clocks; the newest first

    @property
    def may_be_gateway(self) -> bool:
        return self.seconds <= GATEWAY_HEARTBEAT

    def after(self, other: Pulse, patience: float) -> Pulse:
        """`other` is what is seen now."""
        intervals = ((other.at - self.at, other.seen - self.seen), *self.intervals)
        if other.beat != self.beat:
            return self._heard(replace(other, intervals=intervals[:INTERVALS]), patience)
        limits = [
            max(patience, MISSED * min((each[clock] for each in self.intervals), default=0.0)) for clock in (0, 1)
        ]
        is_gone, is_silent = (age > limit for age, limit in zip(intervals[0], limits, strict=True))
        return replace(self, state="absent" if is_gone else self.state, is_silent=is_gone or is_silent)

    def _heard(self, other: Pulse, patience: float) -> Pulse:
        is_back = self.state == "absent"
        back = other.at if is_back else self.back
        is_on_trial = is_back or (self.state == "returning" and other.at - back < patience)
        return replace(other, state="returning" if is_on_trial else "serving", back=back)


@dataclass(frozen=True, slots=True)
class Agents:
    """What a reader has heard so far. The first one, which has heard nothing, finds every agent where it was."""

    pulses: Mapping[str, Pulse] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()  # nodes with a report
    assumed: bool = True
    """Whether a node without a report has an agent: so where not every node's report is read."""
    missing: Mapping[str, float] = field(default_factory=dict)  # nodes without a report, and since when
    looked: float | None = None  # when; None = never
    gateways: Ear = Ear(1.5 * GATEWAY_HEARTBEAT)
    others: Ear = Ear(1.5 * NODE_HEARTBEAT)
    patience: Patience = Patience()

    def state(self, node: str) -> State:
        """A report of a release without heartbeats is believed, as nothing tells how old it is."""
        pulse = self.pulses.get(node)
        if pulse is not None:
            return pulse.state
        return "serving" if self.assumed or node in self.reported else "absent"

    def is_silent(self, node: str) -> bool:
        pulse = self.pulses.get(node)
        return pulse.is_silent if pulse is not None else self.state(node) == "absent"

    def is_lacking(self, node: str) -> bool:
        """Whether it is silent, and not because its agent has yet to start: so it is to be told."""
        if node in self.missing and self.looked is not None:
            return not self.assumed and self.looked - self.missing[node] >= self.patience.gateway
        return self.is_silent(node)

    def may_serve(self, node: str) -> bool:
        """Whether its agent beats as a gateway's does; one that does not has not seen yet that it may be one."""
        pulse = self.pulses.get(node)
        return pulse is None or pulse.may_be_gateway

    def why_not(self, node: str) -> str:
        """Why it is no gateway, in words that stay the same while that does; "" = it serves."""
        pulse = self.pulses.get(node)
        if self.is_silent(node):
            return f"no word of its agent since {rfc3339(pulse.since)}" if pulse else "no agent of it has reported"
        if self.state(node) == "returning":
            return "its agent is back, and not for long enough"
        return "" if self.may_serve(node) else "its agent does not say that it can be a gateway"

    def silent(self) -> dict[str, str]:
        """Since when, in RFC 3339, by node: also of nodes that are gone, whose reports stay."""
        return {name: rfc3339(pulse.since) for name, pulse in self.pulses.items() if pulse.is_silent}

    def heard(self) -> tuple[object, ...]:
        """What groups rest on: while it is the same, so are `state`, `is_silent`, `may_serve` and `why_not` of all."""
        known, _ = self.verdict()
        return known, self.silent(), self.reported, self.assumed

    def verdict(self) -> tuple[Mapping[str, tuple[State, int, bool]], frozenset[str]]:
        """What decisions rest on."""
        lacking = frozenset(name for name in self.missing if self.is_lacking(name))
        return {name: (pulse.state, pulse.seconds, pulse.is_silent) for name, pulse in self.pulses.items()}, lacking


def hear(
    before: Agents, reports: Mapping[str, NodeReport], now: float, wall: float, nodes: Collection[str] = ()
) -> Agents:
    """What is known after a look at the `reports` of `nodes`.

    `now` is in seconds of a clock that nobody sets, `wall` in seconds of the Unix epoch.
    """
    patience = before.patience
    beats = {name: report.heartbeat for name, report in reports.items() if report.heartbeat is not None}
    heard = {
        beat.seconds <= GATEWAY_HEARTBEAT
        for name, beat in beats.items()
        if name in before.pulses and before.pulses[name].beat != beat.beat
    }
    passed = 0.0 if before.looked is None else max(now - before.looked, 0.0)
    gateways = before.gateways.after(passed, is_heard=True in heard)
    others = before.others.after(passed, is_heard=bool(heard))
    pulses = {}
    for name, beat in beats.items():
        old = before.pulses.get(name)
        is_gateway = beat.seconds <= GATEWAY_HEARTBEAT
        clock = gateways.clock if is_gateway else others.clock
        seen = Pulse(beat.beat, beat.seconds, clock, now, wall)
        if old is not None and old.seconds == beat.seconds:
            seen = old.after(seen, patience.gateway if is_gateway else patience.node)
        pulses[name] = seen
    missing = {name: before.missing.get(name, now) for name in nodes if name not in reports}
    return replace(
        before,
        pulses=pulses,
        reported=frozenset(reports),
        missing=missing,
        looked=now,
        gateways=gateways,
        others=others,
    )


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
