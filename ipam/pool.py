"""One pool: its blocks, who holds which address, what cools down, what is reserved. Pure; the clock is passed in.

Addresses are `ipaddress` objects at the edge and integers inside (`key_of`). A pool knows owners only by name. It must
not choose between pools or weigh requests: that is `ipam.plan`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from ipam.bitmap import Bitmap
from ipam.taken import NOTHING, Taken

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Version = Literal[4, 6]

COOLDOWN = 30.0  # seconds; as AWS VPC CNI's IP_COOLDOWN_PERIOD
_V6 = 1 << 128  # set in the key of an IPv6 address, so that both families live in one dict and IPv4 sorts first


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool as configured. `blocks` are in the order of the file, which is the order of allocation."""

    name: str
    blocks: tuple[IPNetwork, ...] = ()
    uses: frozenset[str] = frozenset({"loadbalancer"})
    auto_assign: bool = True  # False: only for requests that name the pool or one of its addresses
    avoid_buggy_ips: bool = False  # leave out x.x.x.0 and x.x.x.255 (IPv4)
    priority: int = 0  # higher first, then name
    disabled: bool = False  # drain: keeps what it has, gives nothing new


@dataclass(frozen=True, slots=True)
class Use:
    """How an owner uses an address. Two may share it: same key, not empty; disjoint ports; same backend key; and if
    their scopes differ, each is among the partners of the other.
    """

    sharing_key: str = ""
    ports: frozenset[str] = frozenset()  # "tcp/80"
    backend: str = ""
    scope: str = ""
    partners: frozenset[str] = frozenset()  # "*" = all

    def agrees(self, other: Use) -> bool:
        """Whether both may share an address, whatever their ports."""
        both = self.scope == other.scope or (self._names(other.scope) and other._names(self.scope))
        return bool(self.sharing_key) and both and self.sharing_key == other.sharing_key

    def _names(self, scope: str) -> bool:
        return not self.partners.isdisjoint((scope, "*"))


@dataclass(frozen=True, slots=True)
class Denial:
    """Why an owner does not get what it wants. `message` is a sentence that says who must act."""

    owner: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many addresses of a pool are in which state; the four states add up to `total`."""

    total: int
    free: int
    used: int
    cooling: int
    reserved: int  # bound to the name of an owner that is gone, or left out: buggy, or somebody's already
    free_v6: int = 0  # of `free`
    used_v6: int = 0  # of `used`


@dataclass(frozen=True, slots=True)
class Cooling:
    owner: str  # the last one; it may have its address back at once
    ready: float  # seconds, on the caller's clock


@dataclass(slots=True)
class _Block:
    start: int  # key of the first address
    size: int
    version: Version
    bitmap: Bitmap
    left_out_taken: int = 0  # marked as taken although nobody has them


def key_of(address: IPAddress) -> int:
    return int(address) if address.version == 4 else int(address) | _V6


def address_of(key: int) -> IPAddress:
    return IPv6Address(key ^ _V6) if key & _V6 else IPv4Address(key)


def is_buggy(key: int) -> bool:
    """Whether old clients and switches take the address for a network or broadcast address (x.x.x.0, x.x.x.255)."""
    return not key & _V6 and key & 255 in (0, 255)


def clash(holders: Mapping[str, Use], owner: str, use: Use, key: int) -> Denial | None:
    """Why `owner` cannot share the address with `holders`; None if it can. The messages are MetalLB's."""
    others = {name: held for name, held in holders.items() if name != owner}
    if not others:
        return None
    if not all(use.agrees(held) and use.backend == held.backend for held in others.values()):
        names = ",".join(sorted(others))
        message = f'can\'t change sharing key for "{address_of(key)}", address also in use by {names}'
        return Denial(owner, "AddressInUse", message)
    taken = sorted(use.ports.intersection(*[frozenset().union(*(held.ports for held in others.values()))]))
    if taken:
        return Denial(owner, "PortInUse", f'port {taken[0]} is already in use on "{address_of(key)}"')
    return None


@dataclass(slots=True)
class Pool:
    """The live state of one pool. Addresses outside its blocks can be held too (stranded by an edit, or given)."""

    spec: PoolSpec
    cooldown: float = COOLDOWN
    taken: Taken = NOTHING
    holders: dict[int, dict[str, Use]] = field(default_factory=dict)
    reserved: dict[int, set[str]] = field(default_factory=dict)
    cooling: dict[int, Cooling] = field(default_factory=dict)
    _blocks: list[_Block] = field(init=False)
    _sorted: list[_Block] = field(init=False)
    _starts: list[int] = field(init=False)
    _shared: dict[str, set[int]] = field(default_factory=dict)
    _less: dict[Version, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._blocks = [_block(network) for network in _outermost(self.spec.blocks)]
        self._sorted = sorted(self._blocks, key=lambda block: block.start)
        self._starts = [block.start for block in self._sorted]

    @property
    def name(self) -> str:
        return self.spec.name

    def contains(self, key: int) -> bool:
        """Whether the address lies in a block."""
        return self._locate(key) is not None

    def leaves_out(self, key: int) -> bool:
        """Whether the pool never gives out the address although it lies in a block."""
        return key in self.taken or self.avoids(key)

    def avoids(self, key: int) -> bool:
        """Whether clients may take the address for one that is no host's, and the pool is told to leave those out."""
        return self.spec.avoid_buggy_ips and is_buggy(key)

    def is_given(self, key: int) -> bool:
        """Whether the address is somebody's by this pool: held, bound to a name, or cooling down."""
        return key in self.holders or key in self.reserved or key in self.cooling

    def has_version(self, version: Version) -> bool:
        return any(block.version == version for block in self._blocks)

    def why_less(self, version: Version) -> tuple[int, str]:
        """How many addresses of its blocks are somebody's already, and the first with words for whose; (0, "")."""
        if version not in self._less:
            blocks = [(each.start, each.start + each.size - 1) for each in self._blocks if each.version == version]
            ranges = [found for first, last in blocks for found in self.taken.within(first, last)]
            key = ranges[0][0] if ranges else 0
            words = f"{address_of(key)} is {self.taken.whose(key)}" if ranges else ""
            self._less[version] = sum(last - first + 1 for first, last in ranges), words
        return self._less[version]

    def denial(self, key: int, owner: str, use: Use) -> Denial | None:
        """Why `owner` cannot hold the address now; None if it can."""
        if key in self.holders:
            return clash(self.holders[key], owner, use, key)
        bound = self.reserved.get(key)
        if bound and owner not in bound:
            address = address_of(key)
            message = f'"{address}" is reserved for {",".join(sorted(bound))}; "routerd release {address}" frees it'
            return Denial(owner, "AddressReserved", message)
        cooling = self.cooling.get(key)
        if cooling and cooling.owner != owner:
            message = f'"{address_of(key)}" was released by {cooling.owner} and is served after {self.cooldown:g} s'
            return Denial(owner, "AddressCooling", message)
        return None

    def hold(self, key: int, owner: str, use: Use) -> Denial | None:
        """Makes `owner` a holder of the address, or says why not. Holding again changes how it is used."""
        denied = self.denial(key, owner, use)
        if denied is None:
            self._hold(key, owner, use)
        return denied

    def change(self, key: int, uses: Mapping[str, Use]) -> None:
        """How holders use the address from now on; whether they may together is the caller's question."""
        for owner, use in uses.items():
            self._hold(key, owner, use)

    def find(self, owner: str, version: Version, use: Use) -> int | None:
        """The lowest address that `owner` can share, else the lowest free one of the first block that has one."""
        key = self._shareable(owner, version, use) if use.sharing_key else None
        return self._lowest_free(version) if key is None else key

    def release(self, key: int, owner: str, now: float) -> None:
        """Takes the address from `owner`; after the last holder it cools down. No holder is no error."""
        holders = self.holders.get(key, {})
        use = holders.pop(owner, None)
        if use is None:
            return
        self._unshare(key, use)
        if holders:
            return
        del self.holders[key]
        if key in self.reserved:
            return
        self.cool(key, owner, now)

    def reserve(self, key: int, owner: str) -> None:
        """Binds the address to the name of an owner that is gone."""
        self.reserved.setdefault(key, set()).add(owner)
        self.cooling.pop(key, None)
        self._take(key)

    def cool(self, key: int, owner: str, since: float) -> None:
        """Keeps a freed address back for `cooldown` seconds. An address outside the blocks is forgotten instead."""
        if not self.contains(key):
            return
        self._take(key)
        self.cooling[key] = Cooling(owner, since + self.cooldown)

    def counts(self) -> Counts:
        held = [key for key in self.holders if self.contains(key)]
        bound = [key for key in self.reserved if key not in self.holders and self.contains(key)]
        left_out = {block.start: self._left_out(block) for block in self._blocks}
        idle = sum(left_out.values())
        idle -= sum(map(self.leaves_out, (*held, *bound, *self.cooling))) if idle else 0
        free: dict[Version, int] = {4: 0, 6: 0}
        for each in self._blocks:
            free[each.version] += each.size - each.bitmap.taken - (left_out[each.start] - each.left_out_taken)
        return Counts(
            total=sum(block.size for block in self._blocks),
            free=free[4] + free[6],
            used=len(held),
            cooling=len(self.cooling),
            reserved=len(bound) + idle,
            free_v6=free[6],
            used_v6=sum(key >= _V6 for key in held),
        )

    def _left_out(self, block: _Block) -> int:
        """How many addresses of the block it never gives out."""
        count = count_buggy(block.start, block.size) if self.spec.avoid_buggy_ips else 0
        for first, last in self.taken.within(block.start, block.start + block.size - 1):
            size = last - first + 1
            count += size - (count_buggy(first, size) if self.spec.avoid_buggy_ips else 0)
        return count

    def _hold(self, key: int, owner: str, use: Use) -> None:
        holders = self.holders.setdefault(key, {})
        before = holders.get(owner)
        if before is not None:
            self._unshare(key, before)
        holders[owner] = use
        if use.sharing_key:
            self._shared.setdefault(use.sharing_key, set()).add(key)
        if self.reserved:
            self.reserved.get(key, set()).discard(owner)
            if not self.reserved.get(key, True):
                del self.reserved[key]
        self.cooling.pop(key, None)
        self._take(key)

    def _unshare(self, key: int, use: Use) -> None:
        keys = self._shared.get(use.sharing_key)
        if keys is not None and all(held.sharing_key != use.sharing_key for held in self.holders[key].values()):
            keys.discard(key)

    def _shareable(self, owner: str, version: Version, use: Use) -> int | None:
        for key in sorted(self._shared.get(use.sharing_key, ())):
            if (6 if key & _V6 else 4) == version and self.contains(key) and self.denial(key, owner, use) is None:
                return key
        return None

    def _lowest_free(self, version: Version) -> int | None:
        for block in self._blocks:
            if block.version != version:
                continue
            offset = block.bitmap.lowest_free()
            while offset is not None and self.leaves_out(block.start + offset):
                offset = block.bitmap.lowest_free(self._past(block.start + offset) - block.start)
            if offset is not None:
                return block.start + offset
        return None

    def _past(self, key: int) -> int:
        """Where a search goes on behind an address that is left out. A single one is marked when a search first meets
        it: a /8 has 131,072 that are buggy. A row of them is passed over as a whole.
        """
        end = self.taken.end(key)
        if end is not None and end > key:
            return end + 1
        self._take(key)
        return key

    def _locate(self, key: int) -> _Block | None:
        index = bisect_right(self._starts, key) - 1
        if index < 0:
            return None
        block = self._sorted[index]
        return block if key < block.start + block.size else None

    def _take(self, key: int) -> None:
        block = self._locate(key)
        if block and block.bitmap.occupy(key - block.start) and self.leaves_out(key):
            block.left_out_taken += 1


def _block(network: IPNetwork) -> _Block:
    version: Version = 4 if network.version == 4 else 6
    size = network.num_addresses
    return _Block(key_of(network.network_address), size, version, Bitmap(size))


def _outermost(networks: tuple[IPNetwork, ...]) -> list[IPNetwork]:
    """`networks` in their order, less those that lie in another one: no address is counted twice."""
    kept: list[IPNetwork] = []
    for network in sorted(set(networks), key=lambda each: (each.version, int(each.network_address), each.prefixlen)):
        last = kept[-1] if kept else None
        if last is None or last.version != network.version or network.network_address not in last:
            kept.append(network)
    chosen = set(kept)
    return [network for network in dict.fromkeys(networks) if network in chosen]


def count_buggy(start: int, size: int) -> int:
    """How many of the `size` addresses from key `start` on `is_buggy`."""
    if start & _V6:
        return 0
    return sum((start + size - 1 - low) // 256 - (start - 1 - low) // 256 for low in (0, 255))
