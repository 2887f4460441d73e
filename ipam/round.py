"""What goes into a plan (records, requests) and its working state while it is made. Pure.

A `Round` is one plan's: only `ipam.again` keeps it, and the next plan may take it up. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ipam.pool import COOLDOWN, Denial, IPAddress, Pool, PoolSpec, Use, Version, address_of
from ipam.taken import NOTHING, Taken

State = Literal["used", "reserved", "cooling"]


@dataclass(frozen=True, slots=True)
class Record:
    """One owner's hold on one address, as the ledger keeps it. `since` is in seconds of the Unix epoch."""

    address: IPAddress
    owner: str
    pool: str  # "" = given by the owner, outside every pool
    state: State
    since: float  # when the state began
    bound: bool = False  # stays reserved for the owner's name when the owner goes
    use: Use | None = None  # as it was granted to an owner that may share; None = it may not, or was never said


@dataclass(frozen=True, slots=True)
class Request:
    """What one owner wants."""

    owner: str
    purpose: Literal["loadbalancer", "egress"]
    versions: tuple[Version, ...] = (4, 6)  # in order of preference
    families: Literal["one", "prefer-all", "all"] = "one"  # SingleStack, PreferDualStack, RequireDualStack
    addresses: tuple[IPAddress, ...] = ()  # requested; () = any
    pool: str = ""  # requested; "" = any
    known: tuple[IPAddress, ...] = ()  # what the owner says it has, where no record says otherwise
    use: Use = field(default_factory=Use)
    bound: bool = False  # see `Record.bound`
    given: bool = False  # the requested addresses may lie outside every pool
    created: str = ""  # RFC 3339; older requests are served first, then those that give nothing, then by owner
    barred: frozenset[str] = frozenset()  # pools that are not for the owner: it keeps what it has, and gets nothing new


@dataclass(frozen=True, slots=True)
class Timers:
    cooldown: float = COOLDOWN  # seconds
    retention: float | None = None  # seconds that an address stays bound to a name without owner; None = for ever


@dataclass(slots=True)
class Round:
    """The state of one plan while it is made."""

    pools: tuple[Pool, ...]  # by priority, then name
    conflicting: frozenset[str]
    requests: Mapping[str, Request]  # in the order of service, or only some are served
    now: float
    timers: Timers
    taken: Taken = NOTHING
    by_name: dict[str, Pool] = field(init=False)
    outside: Pool = field(init=False)  # addresses that lie in no pool
    held: dict[str, dict[int, Record]] = field(default_factory=dict)  # owner -> key -> record
    idle: dict[tuple[int, str], Record] = field(default_factory=dict)  # reserved and cooling
    returning: dict[str, list[int]] = field(default_factory=dict)  # owner -> what it left: reserved or cooling
    sharing: set[str] = field(default_factory=set)  # owners of which a record has a use, now or earlier
    denials: list[Denial] = field(default_factory=list)
    moved: bool = False  # whether an owner took or left an address since this was cleared

    def __post_init__(self) -> None:
        self.by_name = {pool.name: pool for pool in self.pools}
        self.outside = Pool(PoolSpec(""), self.timers.cooldown)

    def home(self, key: int, name: str = "") -> Pool | None:
        """The pool that the address belongs to: with overlapping pools the first one, else `name` if it can be."""
        pool = self.by_name.get(name)
        if pool is not None and not self.conflicting and pool.contains(key):
            return pool
        return next((pool for pool in self.pools if pool.contains(key)), None)

    def is_taken(self, pool: Pool, key: int) -> bool:
        """Whether the address is somebody's for another reason than that a pool gave it."""
        return key in self.taken and (self.taken.is_firm(key) or not pool.is_given(key))

    def wanted(self, request: Request, key: int) -> Use:
        """What an owner gave by name it may share; what it kept from before the edit it may not."""
        return Use() if self.is_kept(request, key) else request.use

    def is_kept(self, request: Request, key: int) -> bool:
        return request.given and address_of(key) not in request.addresses

    def hold(
        self, pool: Pool, key: int, request: Request, since: float, before: Record | None = None, use: Use | None = None
    ) -> Denial | None:
        """`before`: the record of it, if there is one. `use`: how, if not as it is wanted now."""
        use = use or self.wanted(request, key)
        denied = pool.hold(key, request.owner, use)
        if denied is None:
            self.moved = True
            name = before.pool if before is not None and self._keeps_name(pool, request, before) else pool.name
            bound = before.bound if before is not None and self.is_kept(request, key) else request.bound
            shared = use if use.sharing_key else None
            record = Record(address_of(key), request.owner, name, "used", since, bound, shared)
            self.held.setdefault(request.owner, {})[key] = before if before == record else record
            if shared is not None:
                self.sharing.add(request.owner)
            self.idle.pop((key, request.owner), None)
        return denied

    def _keeps_name(self, pool: Pool, request: Request, before: Record) -> bool:
        """A stranded address keeps the name of its pool: it comes back when the blocks do. One that was asked from a
        pool keeps that name too: that it lies in another pool now is an edit of pools, which moves nobody.
        """
        return request.pool == before.pool != "" or (pool is self.outside and not request.given)

    def drop(self, owner: str, key: int) -> None:
        """The owner moves off the address. A bound one stays reserved for its name."""
        self.moved = True
        record = self.held[owner].pop(key)
        pool = self.home(key, record.pool) or self.outside
        if record.bound:
            pool.reserve(key, owner)
        pool.release(key, owner, self.now)
        if record.bound or key in pool.cooling:
            state: State = "reserved" if record.bound else "cooling"
            self.idle[key, owner] = replace(record, state=state, since=self.now, pool=pool.name, use=None)
