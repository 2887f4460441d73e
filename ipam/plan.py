"""Who gets which address: a pure function of pools, records, requests and the time.

Every record is taken as used. Then, until nothing moves: adopt what requests say they have, and serve what is missing
(requested addresses before any address will do). So nothing moves that need not, and the same input gives the
same output. Whatever cannot be had is a `Denial`; an owner that is denied a change keeps what it has.

It must not know what the owners are (services, policies), nor where records are kept.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ipam.adopt import adopt_known, outvoted, overtaken, stranded, take_edits, take_records
from ipam.pool import Counts, Denial, IPAddress, Pool, PoolSpec, key_of
from ipam.round import Record, Request, Round, Timers
from ipam.serve import serve_any, serve_requested
from ipam.taken import NOTHING, Taken


@dataclass(frozen=True, slots=True)
class Grant:
    pool: str
    addresses: tuple[IPAddress, ...]  # in the order of the request's families, the lowest first


@dataclass(frozen=True, slots=True)
class Plan:
    """The records as they should be, and what came of each request. Unchanged records are the same objects."""

    records: tuple[Record, ...]  # sorted by address, then owner
    grants: Mapping[str, Grant]  # by owner
    denials: tuple[Denial, ...]
    counts: Mapping[str, Counts]  # by pool
    next_due: float | None  # when the plan changes with no other input, seconds of the Unix epoch


def plan(
    pools: Iterable[PoolSpec],
    records: Iterable[Record],
    requests: Iterable[Request],
    now: float,
    timers: Timers | None = None,
    taken: Taken = NOTHING,
) -> Plan:
    """Serves `requests` from `pools`, given what is recorded. `now` is in seconds of the Unix epoch.

    What is `taken` is not given from a pool; who has it keeps it.
    """
    work, conflicts = begin(pools, records, requests, now, timers or Timers(), taken)
    serve(work, work.requests.values())
    return finish(work, conflicts)


def sorted_by(request: Request) -> tuple[str, bool, str]:
    """Of the same age, who takes from the pools comes before who gives itself an address."""
    return request.created, request.given, request.owner


def begin(
    pools: Iterable[PoolSpec],
    records: Iterable[Record],
    requests: Iterable[Request],
    now: float,
    timers: Timers,
    taken: Taken,
) -> tuple[Round, list[Denial]]:
    """The round before anybody is served, and pools that overlap with others."""
    specs = sorted(pools, key=lambda spec: (-spec.priority, spec.name))
    conflicts = _conflicts(specs)
    work = Round(
        tuple(Pool(spec, timers.cooldown, taken) for spec in specs),
        frozenset(denial.owner for denial in conflicts),
        {request.owner: request for request in sorted(requests, key=sorted_by)},
        now,
        timers,
        taken,
    )
    take_records(work, records)
    return work, conflicts


def serve(work: Round, requests: Collection[Request]) -> bool:
    """Serves `requests` until nothing moves: what one owner takes or leaves changes what an owner served before it can
    have. Whether anything moved.

    It ends, as an owner that has what it wants does not move again.
    """
    moved, again = False, True
    while again:
        work.denials.clear()
        work.moved = False
        adopt_known(work, requests)
        for request in requests:
            if request.addresses:
                serve_requested(work, request)
        for request in requests:
            if not request.addresses:
                serve_any(work, request)
        if work.moved:
            take_edits(work)  # nobody may be left to object
        moved = moved or work.moved
        again = work.moved and bool(work.denials)
    return moved


def finish(work: Round, conflicts: Iterable[Denial]) -> Plan:
    """What came of a round in which all were served."""
    work.denials += [replace(denial, owner=f"AddressPool/{denial.owner}") for denial in conflicts]
    work.denials += [*stranded(work), *overtaken(work), *outvoted(work)]
    grants = {
        owner: grant_of(request, mine) for owner, request in work.requests.items() if (mine := work.held.get(owner))
    }
    records = [record for mine in work.held.values() for record in mine.values()] + list(work.idle.values())
    records.sort(key=record_order)
    counts = {pool.name: pool.counts() for pool in work.pools}
    return Plan(tuple(records), grants, tuple(work.denials), counts, next_due(work))


def grant_of(request: Request, mine: Mapping[int, Record]) -> Grant:
    """`mine`: what its owner holds, by key; there is some."""
    order: Mapping[int, int] = {version: index for index, version in enumerate(request.versions)}
    held = sorted(mine.items(), key=lambda item: (order.get(item[1].address.version, 9), item[0]))
    records = [record for _, record in held]
    return Grant(records[0].pool, tuple(record.address for record in records))


def record_order(record: Record) -> tuple[int, str]:
    return key_of(record.address), record.owner


def next_due(work: Round) -> float | None:
    """When something is due that no other input changes."""
    wait = {"cooling": work.timers.cooldown, "reserved": work.timers.retention, "used": None}
    waits = ((record.since, wait[record.state]) for record in work.idle.values())
    return min((since + seconds for since, seconds in waits if seconds is not None), default=None)


def _conflicts(specs: list[PoolSpec]) -> list[Denial]:
    """Pools that overlap with an earlier one (by priority, then name). `owner` is the bare name of the pool."""
    ranges: list[tuple[int, int, str]] = []  # first key, last key, pool: disjoint and sorted
    denials = []
    for spec in specs:
        blocks = [(key_of(net.network_address), key_of(net.broadcast_address), str(net)) for net in spec.blocks]
        hits = ((text, _overlapping(ranges, first, last)) for first, last, text in blocks)
        hit = next(((text, other) for text, other in hits if other), None)
        if hit:
            message = f'"{hit[0]}" in pool "{spec.name}" overlaps with pool "{hit[1]}": it gives no new addresses'
            denials.append(Denial(spec.name, "PoolConflicting", message))
            continue
        for first, last, _ in blocks:
            if not _overlapping(ranges, first, last):  # a pool may repeat a block of its own
                insort(ranges, (first, last, spec.name))
    return denials


def _overlapping(ranges: list[tuple[int, int, str]], first: int, last: int) -> str:
    """The pool of a range that has addresses in common with `first` … `last`; "" if there is none."""
    index = bisect_left(ranges, (last + 1,))
    return ranges[index - 1][2] if index and ranges[index - 1][1] >= first else ""
