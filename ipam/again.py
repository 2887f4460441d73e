"""A plan after a plan: owners that have what they want are not served anew. Nothing is decided here.

In a fixpoint every such owner is left alone by `ipam.plan`, and requests that are added, go or are others free nothing
at once: what is left cools down. So those alone are served, and those that were denied something, in the state that the
last plan ended with. Whatever else changed (pools, records, the time of something that is due, whoever shares an
address or gives one) is planned from the beginning. The result is that of `plan`, and a property holds one against the
other.
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


@dataclass(frozen=True, slots=True)
class _Todo:
    """Owners: those that are served, those of them that want something else than before, and those that are gone."""

    served: frozenset[str]
    changed: frozenset[str]
    gone: frozenset[str]


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
        _note_left(work)
        self._last = _Made(rules, wanted, work, made, now)
        return made


def _todo(
    last: _Made,
    rules: Rules,
    records: tuple[Record, ...],
    wanted: Mapping[str, Request],
    now: float,
    touched: Collection[str] | None,
) -> _Todo | None:
    """None = everything."""
    due = last.plan.next_due
    if rules != last.rules or records is not last.plan.records or now < last.now or (due is not None and now >= due):
        return None
    if touched is None:
        touched = wanted.keys() | last.requests.keys()
    others = [owner for owner in touched if last.requests.get(owner) is not wanted.get(owner)]
    gone = {owner for owner in others if owner not in wanted}
    added = {owner for owner in others if owner not in last.requests}
    changed = {
        owner for owner in {*others} - gone - added if not _is_as_good(last, last.requests[owner], wanted[owner])
    }
    if not all(_is_alone(last, owner, wanted.get(owner)) for owner in gone | changed):
        return None
    denied = {denial.owner for denial in last.plan.denials} - gone
    return (
        _Todo(frozenset(added | denied | changed), frozenset(changed), frozenset(gone))
        if denied <= wanted.keys()
        else None
    )


def _is_alone(last: _Made, owner: str, now: Request | None) -> bool:
    """Whether what the owner has, and what it wanted and wants, is nobody's but its own, and lies in a pool: then what
    it leaves cools down, or stays bound to it, and nobody else can have anything for that.
    """
    work, timers = last.work, last.rules[1]
    requests = [each for each in (last.requests[owner], now) if each is not None]
    if timers.cooldown <= 0 or timers.retention == 0 or any(each.given or each.use.sharing_key for each in requests):
        return False
    for key, record in work.held.get(owner, {}).items():
        pool = work.home(key, record.pool)
        if record.use is not None or pool is None or len(pool.holders[key]) > 1 or key in pool.reserved:
            return False
    return True


def _is_as_good(last: _Made, before: Request, now: Request) -> bool:
    """What an owner says that it has matters only while it has nothing."""
    return before == now or (bool(last.work.held.get(now.owner)) and replace(now, known=before.known) == before)


def _again(last: _Made, wanted: Mapping[str, Request], todo: _Todo, now: float) -> Plan:
    work = last.work
    work.now, work.requests = now, wanted
    if not todo.served and not todo.gone:
        return last.plan
    owners = todo.served | todo.gone
    before = _records_of(work, owners)
    for owner in todo.gone:
        for key in tuple(work.held.get(owner, ())):
            work.drop(owner, key)
        work.held.pop(owner, None)
    for owner in todo.changed:
        for key, record in tuple(work.held.get(owner, {}).items()):
            work.hold(work.home(key, record.pool) or work.outside, key, wanted[owner], record.since, record)
    work.moved = False
    moved = serve(work, sorted((wanted[owner] for owner in todo.served), key=sorted_by))
    some = copy(work)
    some.held = {owner: work.held[owner] for owner in todo.served if owner in work.held}
    denials = (*work.denials, *stranded(some), *overtaken(some), *outvoted(some))
    if not moved and not todo.gone and not todo.changed:
        return replace(last.plan, denials=denials)
    grants: dict[str, Grant] = dict(last.plan.grants)
    records = list(last.plan.records)
    for record in before:
        del records[bisect_left(records, record_order(record), key=record_order)]
    for owner in owners:
        grants.pop(owner, None)
        if mine := work.held.get(owner):
            grants[owner] = grant_of(wanted[owner], mine)
    for record in _records_of(work, owners):
        insort(records, record, key=record_order)
    counts = {pool.name: pool.counts() for pool in work.pools}
    return Plan(tuple(records), grants, denials, counts, next_due(work))


def _records_of(work: Round, owners: Collection[str]) -> list[Record]:
    held = [record for owner in owners for record in work.held.get(owner, {}).values()]
    return held + [record for (_, owner), record in work.idle.items() if owner in owners]


def _note_left(work: Round) -> None:
    """What owners left, as a round that begins with the records would know it."""
    if {(key, owner) for owner, keys in work.returning.items() for key in keys} != work.idle.keys():
        work.returning = {}
        for key, owner in sorted(work.idle, key=lambda each: (work.idle[each].since, each[1], each[0])):
            work.returning.setdefault(owner, []).append(key)
