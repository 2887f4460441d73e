"""A plan after a plan: owners that have what they want are not served anew. Nothing is decided here.

In a fixpoint every such owner is left alone by `ipam.plan`, and requests that are only added free nothing. So those
alone are served, and those that were denied something, in the state that the last plan ended with. Whatever else
changed (pools, records, the time of something that is due, a request that is another or gone) is planned from the
beginning. The result is that of `plan`, and a property holds one against the other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace

from ipam.adopt import outvoted, overtaken, stranded
from ipam.plan import Grant, Plan, begin, finish, grant_of, next_due, record_order, serve, sorted_by
from ipam.pool import PoolSpec
from ipam.round import Record, Request, Round, Timers
from ipam.taken import NOTHING, Taken

Rules = tuple[tuple[PoolSpec, ...], Timers, Taken]  # what must be equal


@dataclass(frozen=True, slots=True)
class _Made:
    rules: Rules
    requests: Mapping[str, Request]
    work: Round
    plan: Plan
    now: float


class Planner:
    """Plans of one ledger. Not to be asked by two at a time."""

    def __init__(self) -> None:
        self._last: _Made | None = None
        self.whole = 0  # plans from the beginning, for tests and benchmarks

    def plan(
        self,
        pools: Iterable[PoolSpec],
        records: tuple[Record, ...],
        wanted: Mapping[str, Request],
        now: float,
        timers: Timers | None = None,
        taken: Taken = NOTHING,
        touched: Collection[str] | None = None,
    ) -> Plan:
        """As `ipam.plan.plan`. `wanted`: requests by owner, which nobody changes afterwards.

        `touched`: all owners whose request may be another than in the last plan, or is gone; None = it is not known.
        """
        rules = tuple(pools), timers or Timers(), taken
        last, self._last = self._last, None
        todo = _todo(last, rules, records, wanted, now, touched) if last is not None else None
        if last is None or todo is None:
            self.whole += 1
            work, conflicts = begin(rules[0], records, wanted.values(), now, rules[1], taken)
            serve(work, work.requests.values())
            made = finish(work, conflicts)
        else:
            work, made = last.work, _again(last, wanted, todo, now)
        if _is_rebuilt_from_records(work):
            self._last = _Made(rules, wanted, work, made, now)
        return made


def _todo(
    last: _Made,
    rules: Rules,
    records: tuple[Record, ...],
    wanted: Mapping[str, Request],
    now: float,
    touched: Collection[str] | None,
) -> set[str] | None:
    """The owners to be served; None = all."""
    due = last.plan.next_due
    if rules != last.rules or records is not last.plan.records or now < last.now or (due is not None and now >= due):
        return None
    if touched is None:
        touched = wanted.keys() | last.requests.keys()
    others = [owner for owner in touched if last.requests.get(owner) is not wanted.get(owner)]
    added = {owner for owner in others if owner not in last.requests}
    if not all(
        owner in added or (owner in wanted and _is_as_good(last, last.requests[owner], wanted[owner]))
        for owner in others
    ):
        return None
    denied = {denial.owner for denial in last.plan.denials}
    return added | denied if denied <= wanted.keys() else None


def _is_as_good(last: _Made, before: Request, now: Request) -> bool:
    """What an owner says that it has matters only while it has nothing."""
    return before == now or (bool(last.work.held.get(now.owner)) and replace(now, known=before.known) == before)


def _again(last: _Made, wanted: Mapping[str, Request], todo: Collection[str], now: float) -> Plan:
    work = last.work
    work.now, work.requests = now, wanted
    if not todo:
        return last.plan
    work.moved = False
    before = _records_of(work, todo)
    moved = serve(work, sorted((wanted[owner] for owner in todo), key=sorted_by))
    some = copy(work)
    some.held = {owner: work.held[owner] for owner in todo if owner in work.held}
    denials = (*work.denials, *stranded(some), *overtaken(some), *outvoted(some))
    if not moved:
        return replace(last.plan, denials=denials)
    grants: dict[str, Grant] = dict(last.plan.grants)
    records = list(last.plan.records)
    for record in before:
        del records[bisect_left(records, record_order(record), key=record_order)]
    for owner in todo:
        grants.pop(owner, None)
        if mine := work.held.get(owner):
            grants[owner] = grant_of(wanted[owner], mine)
    for record in _records_of(work, todo):
        insort(records, record, key=record_order)
    counts = {pool.name: pool.counts() for pool in work.pools}
    return Plan(tuple(records), grants, denials, counts, next_due(work))


def _records_of(work: Round, owners: Collection[str]) -> list[Record]:
    held = [record for owner in owners for record in work.held.get(owner, {}).values()]
    return held + [record for (_, owner), record in work.idle.items() if owner in owners]


def _is_rebuilt_from_records(work: Round) -> bool:
    """Whether a round that begins with the records would know the same of what owners left."""
    left = {(key, owner) for owner, keys in work.returning.items() for key in keys}
    return left == work.idle.keys()
