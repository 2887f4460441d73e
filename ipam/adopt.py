"""The first steps of a plan: records are taken as used, then what requests say they have. Pure.

Nothing here gives out an address that nobody has yet: that is `ipam.serve`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ipam.pool import Denial, IPAddress, Pool, Use, address_of, clash, key_of
from ipam.round import Record, Request, Round


def take_records(work: Round, records: Iterable[Record]) -> None:
    """Live records before idle ones: an address that one of two holders left is still held."""
    idle = []
    for record in sorted(records, key=lambda each: (each.since, each.owner, key_of(each.address))):
        request = work.requests.get(record.owner)
        key = key_of(record.address)
        pool = work.home(key, record.pool)
        if request is None or record.state != "used" or (pool is None and _moves_off(work, record, request)):
            idle.append(record)
            continue
        work.hold(pool or work.outside, key, request, record.since, record, record.use)
    for record in idle:
        _take_idle(work, record)
    take_edits(work)


def take_edits(work: Round) -> None:
    """Of owners that share an address, one that was edited is denied what the others do not agree with, and they keep
    it as it was. A clash of ports or backends would take their traffic, so who makes it leaves the address.
    """
    edited: dict[tuple[str, int], dict[str, Use]] = {}
    for owner in [owner for owner in work.held if owner in work.sharing] if work.sharing else ():
        for key, record in work.held[owner].items():
            if record.use is not None and record.use != (wanted := work.wanted(work.requests[owner], key)):
                edited.setdefault(((work.home(key, record.pool) or work.outside).name, key), {})[owner] = wanted
    for (name, key), uses in edited.items():
        pool = work.by_name.get(name, work.outside)
        together = {**pool.holders[key], **uses}
        if all(clash(together, owner, use, key) is None for owner, use in together.items()):
            pool.change(key, uses)
        while left := [owner for owner, use in uses.items() if _leaves(work, pool, key, owner, use)]:
            uses = {owner: use for owner, use in uses.items() if owner not in left}


def _leaves(work: Round, pool: Pool, key: int, owner: str, wanted: Use) -> bool:
    """Takes an edit as far as it can be taken. Whether the owner has to leave the address for it."""
    request, record = work.requests[owner], work.held[owner][key]
    others = [use for name, use in pool.holders[key].items() if name != owner]
    if record.use is None or clash(pool.holders[key], owner, wanted, key) is None:
        work.hold(pool, key, request, record.since, record)
    elif any(wanted.backend != use.backend or wanted.ports & use.ports for use in others):
        work.drop(owner, key)
        return True
    elif record.use.ports != wanted.ports:
        work.hold(pool, key, request, record.since, record, replace(record.use, ports=wanted.ports))
    return False


def outvoted(work: Round) -> list[Denial]:
    """One denial for each owner that shares an address otherwise than it wants now. Asked after serving."""
    found = []
    for owner, mine in work.held.items():
        request = work.requests[owner]
        for key, record in mine.items():
            if record.use is None or work.is_kept(request, key) or record.use == request.use:
                continue
            pool = work.home(key, record.pool) or work.outside
            denied = clash(pool.holders[key], owner, request.use, key)
            if denied is not None:
                found.append(replace(denied, message=f"{denied.message}; it is kept as it was"))
    return found


def _moves_off(work: Round, record: Record, request: Request) -> bool:
    """Whether an address that lies in no pool is given up: its pool is drained, or its owner no longer gives it."""
    if request.given:
        return False
    pool = work.by_name.get(record.pool)
    return not record.pool or (pool is not None and pool.spec.disabled)


def _take_idle(work: Round, record: Record) -> None:
    """An address whose owner is gone or has left it: reserved if it is bound, else cooling, in the end free."""
    key, now = key_of(record.address), work.now
    pool = work.home(key, record.pool) or work.outside
    since = now if record.state == "used" else min(record.since, now)  # a clock set back must not lengthen the wait
    retention = work.timers.retention
    if record.state != "cooling" and record.bound:
        if retention is None or since + retention > now:
            pool.reserve(key, record.owner)
            _keep_idle(work, replace(record, state="reserved", since=since, pool=pool.name, use=None), record)
            return
        since = now
    free = key not in pool.holders and key not in pool.reserved
    if not free or since + work.timers.cooldown <= now or not pool.contains(key):
        return
    if key in pool.cooling:  # of two owners that left a shared address, the later one is remembered
        work.idle.pop((key, pool.cooling[key].owner), None)
    pool.cool(key, record.owner, since)
    _keep_idle(work, replace(record, state="cooling", since=since, pool=pool.name, use=None), record)


def _keep_idle(work: Round, kept: Record, before: Record) -> None:
    key = key_of(kept.address)
    work.idle[key, kept.owner] = before if kept == before else kept
    work.returning.setdefault(kept.owner, []).append(key)


def stranded(work: Round) -> list[Denial]:
    """One denial for each pool that no longer has addresses in use; the owners keep them. Asked after serving."""
    by_pool: dict[str, list[Record]] = {}
    for mine in work.held.values():
        for key, record in mine.items():
            if key in work.outside.holders and not work.requests[record.owner].given:
                by_pool.setdefault(record.pool, []).append(record)
    return [
        Denial(
            f"AddressPool/{pool}",
            "AddressesStranded",
            "new config not compatible with assigned IPs: "
            + ", ".join(sorted(f'{each.owner} cannot own ["{each.address}"] under new config' for each in group))
            + "; they keep them: restore the blocks, release the owners, or mark the pool disabled to move them",
        )
        for pool, group in sorted(by_pool.items())
    ]


def overtaken(work: Round) -> list[Denial]:
    """One denial for each owner with an address of a pool that has become somebody's; it keeps it."""
    return [
        Denial(owner, "AddressTaken", f'"{address_of(key)}" is {work.taken.whose(key)}: give one of the two another')
        for owner, mine in work.held.items()
        for key in mine
        if work.taken.is_firm(key) and not work.requests[owner].given
    ]


def adopt_known(work: Round, requests: Iterable[Request]) -> None:
    for request in requests:
        if work.held.get(request.owner):
            continue
        for address in (*request.known, *map(address_of, work.returning.get(request.owner, ()))):
            key = key_of(address)
            pool = work.home(key)
            if pool is not None and _adoptable(work, request, pool, key):
                work.hold(pool, key, request, work.now)


def _has_enough(request: Request, mine: Iterable[Record], address: IPAddress) -> bool:
    """Whether one more address, which was not requested as such, would be too much."""
    versions = {record.address.version for record in mine}
    return address.version in versions or (bool(versions) and request.families == "one")


def _adoptable(work: Round, request: Request, pool: Pool, key: int) -> bool:
    mine = work.held.get(request.owner, {})
    address = address_of(key)
    return (
        (not request.addresses or address in request.addresses)
        and request.pool in ("", pool.name)
        and (address in request.known or pool.name not in request.barred)
        and request.purpose in pool.spec.uses
        and address.version in request.versions
        and (address in request.addresses or not _has_enough(request, mine.values(), address))
        and not pool.avoids(key)
        and not work.taken.is_firm(key)
        and not (pool.spec.disabled and key in pool.cooling)  # released: a drained pool does not give it again
    )
