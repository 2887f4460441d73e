"""Blackhole routes for the aggregates that a node announces. Pure.

A ToR sends what is for an unused address of an aggregate here; without a route of its own it would follow the default
route back to the ToR, and go to and fro until its TTL is used up. So what is *received* for an aggregate meets a table
of ours before `main`: a blackhole, or `throw`, on to `main`, for what that has to the aggregate or to a part of it:
pods of this node, VIPs that somebody led to a device, another owner's routes. What the host has itself (`local`) goes
before both. So does what kube-proxy, or a load balancer in eBPF, makes of a VIP: that is another address by then. What
the host sends itself is translated after its route was looked up, and so does not meet the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import Literal

from fib.spans import Spans

IPNetwork = IPv4Network | IPv6Network
Verdict = Literal["blackhole", "throw"]

TABLE = 204  # rt_tables of iproute2 names none of this number
AHEAD = 3  # prefixes that a line names


@dataclass(frozen=True, slots=True)
class PutVerdicts:
    """In place of what the table has for these prefixes; those that pass are put first."""

    verdicts: Mapping[IPNetwork, Verdict]
    phase: Literal["prepare"] = "prepare"  # before an aggregate is announced

    def __str__(self) -> str:
        kinds: dict[Verdict, list[IPNetwork]] = {}
        for prefix, verdict in self.verdicts.items():
            kinds.setdefault(verdict, []).append(prefix)
        return "put " + ", ".join(f"{kind} routes to {named(some, len(some))}" for kind, some in sorted(kinds.items()))


@dataclass(frozen=True, slots=True)
class RemoveVerdicts:
    prefixes: tuple[IPNetwork, ...]
    phase: Literal["retire"] = "retire"  # after an aggregate was withdrawn

    def __str__(self) -> str:
        return f"remove blackhole and throw routes to {named(self.prefixes, len(self.prefixes))}"


def named(routes: Iterable[IPNetwork], count: int) -> str:
    """The first of these `count`, in words."""
    more = [f"{count - AHEAD} more"] if count > AHEAD else []
    return ", ".join([*map(str, islice(routes, AHEAD)), *more])


def wanted(aggregates: frozenset[IPNetwork], main: Iterable[IPNetwork]) -> dict[IPNetwork, Verdict]:
    """What the table should have; `main` has routes to these prefixes, of whomever."""
    spans = Spans(aggregates)
    passed = (prefix for prefix in main if spans.holding(prefix) is not None) if aggregates else ()
    return {**dict.fromkeys(aggregates, "blackhole"), **dict.fromkeys(passed, "throw")}
