"""Blackhole routes for the aggregates that a node announces. Pure.

A ToR sends what is for an unused address of an aggregate here; without a route of its own it would follow the default
route back to the ToR, and go to and fro until its TTL is used up. So what is *received* for an aggregate meets a table
of ours before `main`: a blackhole, or `throw`, on to `main`. No route of `main` but the default is shadowed: neither
one to a part of the aggregate (pods of this node, VIPs that somebody led to a device, another owner's routes), nor one
to more than it (the network of a link, of which a pool is a part). Nodes and peers are passed on wherever they are. So
is what is no pool's: the aggregate of a range may be more than the range.

What the host has itself (`local`) goes before both. So does what kube-proxy, or a load balancer in eBPF, makes of a
VIP: that is another address by then. What the host sends itself is translated after its route was looked up, and so
does not meet the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import chain, islice
from typing import Literal

from fib.spans import Spans, around

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


def wanted(
    parts: Collection[IPNetwork], spared: Iterable[IPNetwork], main: Collection[IPNetwork]
) -> dict[IPNetwork, Verdict]:
    """What the table should have for `parts` of aggregates; `main` has routes to these prefixes, of whomever."""
    if not parts:
        return {}
    ways, spans = [prefix for prefix in main if prefix.prefixlen], Spans(parts)
    lengths: dict[int, set[int]] = {4: set(), 6: set()}
    for prefix in ways:
        lengths[prefix.version].add(prefix.prefixlen)
    has_way = {part: any(each in main for each in around(part, lengths[part.version])) for part in parts}
    passed = (prefix for prefix in chain(ways, spared) if spans.holding(prefix) is not None)
    found: dict[IPNetwork, Verdict] = {part: "throw" if has_way[part] else "blackhole" for part in parts}
    return found | dict.fromkeys(passed, "throw")


def state(
    parts: Iterable[IPNetwork], verdicts: Mapping[IPNetwork, Verdict]
) -> Literal["installed", "pending", "taken"]:
    """How far an aggregate of these parts has come; `taken`: all of it is passed on."""
    found = {verdicts.get(part) for part in parts}
    return "pending" if None in found else "installed" if "blackhole" in found else "taken"
