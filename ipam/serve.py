"""The last step of a plan: requests that still lack addresses are served, or denied with a reason. Pure.

The wording of denials is MetalLB's where it has one. An owner that is denied a change keeps what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ipam.pool import Denial, Pool, Version, address_of, key_of
from ipam.round import Record, Request, Round


def serve_requested(work: Round, request: Request) -> None:
    """All of the requested addresses or none."""
    keys = [key_of(address) for address in request.addresses]
    mine = work.held.get(request.owner, {})
    if set(keys) == set(mine):
        return
    denied = _malformed(request) or _not_allowed(work, request, keys)
    homes = [work.home(key) or work.outside for key in keys]
    if denied is None:
        found = (pool.denial(key, request.owner, request.use) for pool, key in zip(homes, keys, strict=True))
        denied = next((denial for denial in found if denial), None)
    if denied is not None:
        work.denials.append(denied)
        return
    for key in set(mine) - set(keys):
        work.drop(request.owner, key)
    for pool, key in zip(homes, keys, strict=True):
        if key not in mine:
            work.hold(pool, key, request, work.now)


def serve_any(work: Round, request: Request) -> None:
    """Whatever the request lacks, from the pool it is in, else from the first pool that can serve it."""
    _drop_unwanted_families(work, request)
    mine = work.held.get(request.owner, {})
    if mine:
        current = next(iter(mine.values())).pool
        missing = _missing_families(request, [record.address.version for record in mine.values()])
        if request.pool in ("", current):
            _say_where(work, request, mine)
            if not missing:
                return
            if request.families != "one":
                _add_families(work, request, current, missing)
                _drop_unwanted_families(work, request)  # one that was left alone, as nothing else was there
                return
    chosen = _choose(work, request)
    if chosen is None:
        return
    for key in list(mine):
        work.drop(request.owner, key)
    pool, keys = chosen
    for key in keys:
        work.hold(pool, key, request, work.now)


# --- requested addresses -------------------------------------------------------------------------------------------


def _malformed(request: Request) -> Denial | None:
    """Several addresses of one family are as good as one; which families there must be is the request's."""
    versions = {address.version for address in request.addresses}
    is_wrong = {"one": len(versions) > 1, "prefer-all": False, "all": len(versions) < len(request.versions)}
    if is_wrong[request.families] or not versions <= set(request.versions):
        families = (" and " if request.families == "all" else " or ").join(f"IPv{each}" for each in request.versions)
        message = f"{_quoted(request)} does not match the IP families of the service: request addresses of {families}"
        return Denial(request.owner, "FamilyMismatch", message)
    return None


def _not_allowed(work: Round, request: Request, keys: list[int]) -> Denial | None:
    """Why the pools do not let the request have these addresses, whoever holds them; None if they do."""
    pools = {pool.name if pool else None: pool for pool in map(work.home, keys)}
    if request.pool and request.pool not in work.by_name:
        return _unknown(request)
    if request.pool and set(pools) != {request.pool}:
        message = f'requested {_quoted(request)} is not compatible with requested address pool "{request.pool}"'
        return Denial(request.owner, "NotInPool", message)
    if request.given and not request.pool:
        return None  # the address is the owner's own word
    taken = next((key for key in keys if work.is_taken(work.home(key) or work.outside, key)), None)
    if taken is not None and not request.given:
        message = f'"{address_of(taken)}" is {work.taken.whose(taken)}: request another address'
        return Denial(request.owner, "AddressTaken", message)
    if len(pools) > 1 and None not in pools:
        names = " and ".join(f'"{name}"' for name in sorted(filter(None, pools)))
        message = f"{_quoted(request)} lies in pools {names}: request addresses of one pool"
        return Denial(request.owner, "NotInPool", message)
    pool = next(iter(pools.values()))
    if len(pools) != 1 or pool is None:
        return _outside(request, "it lies in no pool" if len(keys) == 1 else "they do not all lie in a pool")
    if request.purpose not in pool.spec.uses:
        return _outside(request, f'pool "{pool.name}" does not serve {request.purpose}')
    if any(map(pool.avoids, keys)):
        return _outside(request, f'pool "{pool.name}" leaves out addresses that end with .0 and .255')
    return _closed(work, request, pool)


def _outside(request: Request, why: str) -> Denial:
    return Denial(request.owner, "NotInPool", f"{_quoted(request)} is not allowed in config: {why}")


def _quoted(request: Request) -> str:
    return "[" + " ".join(f'"{address}"' for address in request.addresses) + "]"


# --- any address -----------------------------------------------------------------------------------------------------


def _drop_unwanted_families(work: Round, request: Request) -> None:
    """After an edit: a family that is no longer wanted goes, unless nothing would be left, and all but one address of
    each, which only requests by address have.
    """
    mine = work.held.get(request.owner, {})
    present = {record.address.version for record in mine.values()}
    wanted = [version for version in request.versions if version in present]
    if request.families == "one":
        wanted = wanted[:1]
    kept = {version: min(key for key in mine if address_of(key).version == version) for version in wanted}
    for key in [key for key in mine if wanted and key not in kept.values()]:
        work.drop(request.owner, key)


def _say_where(work: Round, request: Request, mine: Mapping[int, Record]) -> None:
    """An owner that asks for a pool, and whose address is no longer there, keeps it and is told."""
    if request.pool and request.pool not in work.by_name:
        work.denials.append(_unknown(request))
        return
    for key in mine if request.pool else ():
        home = work.home(key)
        if home is not None and home.name != request.pool:
            message = (
                f'"{address_of(key)}" lies in pool "{home.name}" now, not in "{request.pool}" as requested: '
                f'it is kept; request pool "{home.name}"'
            )
            work.denials.append(Denial(request.owner, "NotInPool", message))


def _missing_families(request: Request, present: list[int]) -> list[Version]:
    missing = [version for version in request.versions if version not in present]
    return [] if request.families == "one" and len(missing) < len(request.versions) else missing


def _add_families(work: Round, request: Request, pool_name: str, missing: list[Version]) -> None:
    """A service that became dual-stack gets the second family from the pool of the first."""
    pool = work.by_name.get(pool_name)
    for version in missing:
        key = None
        if pool is not None and _closed(work, request, pool) is None:
            key = _find(work, request, pool, version)
        if pool is not None and key is not None:
            work.hold(pool, key, request, work.now)
        elif request.families == "all":
            work.denials.append(_no_second(request, pool_name, pool, version))


def _choose(work: Round, request: Request) -> tuple[Pool, list[int]] | None:
    """The first pool, by priority, that can serve the request; None after a denial."""
    candidates = _candidates(work, request)
    if not candidates:
        return None
    attempts = _attempts(request, candidates)
    for versions in attempts:
        for pool in candidates:
            keys = [key for version in versions if (key := _find(work, request, pool, version)) is not None]
            if len(keys) == len(versions):
                return pool, keys
    lacking = [
        version
        for version in attempts[0]
        if all(_find(work, request, pool, version) is None for pool in candidates)
    ]  # fmt: skip
    if not lacking and request.families == "all":
        work.denials.append(_apart(request, candidates))
        return None
    work.denials.append(_exhausted(request, request.pool, (lacking or attempts[0])[0], candidates))
    return None


def _attempts(request: Request, candidates: list[Pool]) -> list[list[Version]]:
    """Which families to look for together, best first."""
    versions = list(request.versions)
    if request.families == "all":
        return [versions]
    if request.families == "prefer-all":
        return [versions, *([version] for version in versions)]
    # One family, by what the pools offer: an exhausted first family is not replaced by the second.
    offered = [version for version in versions if any(pool.has_version(version) for pool in candidates)]
    return [(offered or versions)[:1]]


def _find(work: Round, request: Request, pool: Pool, version: Version) -> int | None:
    """An address that the owner had before and nobody else has, else what the pool finds."""
    for key in work.returning.get(request.owner, ()):
        usable = address_of(key).version == version and work.home(key) is pool
        if usable and not work.taken.is_firm(key) and pool.denial(key, request.owner, request.use) is None:
            return key
    return pool.find(request.owner, version, request.use)


def _candidates(work: Round, request: Request) -> list[Pool]:
    if request.pool:
        pool = work.by_name.get(request.pool)
        denied = _unknown(request) if pool is None else _closed(work, request, pool)
        if denied is not None:
            work.denials.append(denied)
        return [pool] if pool is not None and denied is None else []
    usable = [pool for pool in work.pools if pool.spec.auto_assign and _closed(work, request, pool) is None]
    if not usable:
        message = f"no available IPs: no enabled pool for {request.purpose} assigns addresses by itself; add one"
        others = [pool.name for pool in work.pools if pool.name in request.barred]
        if others:
            message += f"; {', '.join(others)}: for other services"
        work.denials.append(Denial(request.owner, "NoPool", message))
    return usable


def _closed(work: Round, request: Request, pool: Pool) -> Denial | None:
    """Why a pool gives the request nothing new at all."""
    if request.purpose not in pool.spec.uses:
        message = f'pool "{pool.name}" does not serve {request.purpose}: add the use to the pool'
        return Denial(request.owner, "PoolNotForUse", message)
    if pool.name in request.barred:
        message = f'pool "{pool.name}" is for other services: see its selectors'
        return Denial(request.owner, "PoolNotForService", message)
    if pool.spec.disabled:
        return Denial(request.owner, "PoolDisabled", f'pool "{pool.name}" is disabled: it gives no new addresses')
    if pool.name in work.conflicting:
        return Denial(request.owner, "PoolConflicting", f'pool "{pool.name}" overlaps with another: correct its blocks')
    return None


def _unknown(request: Request) -> Denial:
    return Denial(request.owner, "UnknownPool", f'unknown pool "{request.pool}"')


def _apart(request: Request, candidates: list[Pool]) -> Denial:
    """Each family could be had, but from no pool both."""
    families = {
        pool.name: [version for version in request.versions if pool.has_version(version)] for pool in candidates
    }
    shown = ", ".join(f'"{name}" has {_families(versions)}' for name, versions in families.items() if versions)
    message = (
        f"no pool has free addresses of both families, and both must come from one pool: {shown}; "
        "put a block of each family into one pool"
    )
    return Denial(request.owner, "FamiliesApart", message)


def _no_second(request: Request, name: str, pool: Pool | None, version: Version) -> Denial:
    if pool is None or pool.has_version(version):
        return _exhausted(request, name, version, [pool] if pool else [])
    message = (
        f'pool "{name}", of which the service has an address, has no IPv{version}, and both families must come from '
        "one pool: add a block to it"
    )
    return Denial(request.owner, "FamiliesApart", message)


def _families(versions: list[Version]) -> str:
    return " and ".join(f"IPv{version}" for version in sorted(versions))


def _exhausted(request: Request, pool: str, version: Version, among: Iterable[Pool] = ()) -> Denial:
    where = f' in pool "{pool}"' if pool else ""
    message = f"no available IPs{where} for IPv{version} IPFamily: add a block, or release addresses"
    less = [found for each in among if (found := each.why_less(version))[0]]
    if less:
        message += f"; {sum(count for count, _ in less)} of its addresses are not given, as {less[0][1]}"
    return Denial(request.owner, "PoolExhausted", message)
