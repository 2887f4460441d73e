"""The addresses of one node's pods: who has which, within the blocks that are the node's. Pure; the clock is passed in.

An address belongs to an attachment, one interface of one container (CNI specification, section 2). Of a container that
is gone it cools down; the next one goes to whoever comes, those that were freed last come last.

The first address of a block is the host's own, which main plugins make the pods' gateway; of an IPv4 block the last one
is left out, too. A block without room for these gives nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from typing import Literal

from ipam.pool import COOLDOWN

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
State = Literal["used", "cooling"]
MOST_TRIED = 1 << 17  # addresses of a block that are looked at for a free one; a node has fewer pods


@dataclass(frozen=True, slots=True, order=True)
class Attachment:
    """`network`: the name of the configuration that made it."""

    network: str
    container: str
    interface: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The pod of an attachment. `pod` "" = it is no pod's; `uid` "" = the runtime does not tell."""

    pod: str = ""  # namespace/name
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    address: IPAddress
    attachment: Attachment  # of one that cools down: the last one
    owner: Owner = Owner()
    state: State = "used"
    since: float = 0.0  # when the state began, seconds of the Unix epoch


@dataclass(frozen=True, slots=True)
class PodAddresses:
    """What a node must remember. `last`: what was given last, of each family; the search goes on behind it."""

    blocks: tuple[IPNetwork, ...] = ()
    holds: Mapping[IPAddress, Hold] = field(default_factory=dict)
    last: tuple[IPAddress, ...] = ()

    def of(self, attachment: Attachment) -> tuple[IPAddress, ...]:
        return tuple(
            each.address for each in self.holds.values() if each.attachment == attachment and each.state == "used"
        )

    def block_of(self, address: IPAddress) -> IPNetwork | None:
        return next((block for block in self.blocks if address.version == block.version and address in block), None)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why somebody gets no address, one line."""

    message: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Addresses of one family; the states add up to `total`."""

    total: int
    free: int
    used: int
    cooling: int
    reserved: int  # left out, or a pod's that got it elsewhere


def gateway_of(block: IPNetwork) -> IPAddress:
    return block[1]


def has_room(block: IPNetwork) -> bool:
    return block.num_addresses > 3


def is_usable(block: IPNetwork, address: IPAddress) -> bool:
    """Whether a pod may have it."""
    left_out = {block[0], block[1], *([block[-1]] if block.version == 4 else [])}
    return has_room(block) and address not in left_out


def give(
    before: PodAddresses, attachment: Attachment, owner: Owner, taken: Collection[IPAddress], now: float
) -> tuple[PodAddresses, tuple[IPAddress, ...] | Refused]:
    """One address of each family that the blocks have; those that the attachment has already, if it has them all.

    `taken`: addresses that somebody has of whom nothing is noted here. A pod whose sandbox is made anew keeps its
    addresses: the runtime has ended the former one by then.
    """
    rested = settled(before, now)
    held = _taken_over(rested, attachment, owner, now)
    mine: dict[IPAddress, Hold] = {}
    last: dict[int, IPAddress] = {each.version: each for each in held.last}
    for version in versions(held.blocks):
        known = next((each for each in held.of(attachment) if each.version == version and held.block_of(each)), None)
        address = known or _next_free(held, version, taken, owner)
        if address is None:
            return rested, Refused(_exhausted(held, version))
        mine[address] = Hold(address, attachment, owner, since=now) if known is None else held.holds[address]
        if known is None:
            last[version] = address
    if not mine:
        return rested, Refused("this node has no block of pods' addresses")
    given = replace(held, holds={**held.holds, **mine}, last=tuple(last[version] for version in sorted(last)))
    return (given if given != before else before), tuple(mine)


def free(held: PodAddresses, attachments: Iterable[Attachment], now: float) -> PodAddresses:
    """What these attachments have cools down; the same value if they have nothing."""
    gone = frozenset(attachments)
    left = [each for each in held.holds.values() if each.state == "used" and each.attachment in gone]
    if not left:
        return held
    cooling = {each.address: replace(each, state="cooling", since=now) for each in left}
    return replace(held, holds={**held.holds, **cooling})


def settled(held: PodAddresses, now: float) -> PodAddresses:
    """Without what has cooled down. What began later than now began now: somebody has put the clock back."""
    holds = {
        address: replace(each, since=min(each.since, now)) if each.since > now else each
        for address, each in held.holds.items()
        if each.state == "used" or now - each.since < COOLDOWN
    }
    return replace(held, holds=holds) if holds != held.holds else held


def counts(held: PodAddresses, version: int, taken: Collection[IPAddress]) -> Counts:
    """Of all blocks of a family."""
    blocks = [block for block in held.blocks if block.version == version]
    holds = [each for each in held.holds.values() if held.block_of(each.address) in blocks]
    used = sum(each.state == "used" for each in holds)
    others = {address for address in taken if address not in held.holds and _is_given_by(blocks, address)}
    left_out = sum(min(block.num_addresses, 3 if version == 4 else 2) for block in blocks if has_room(block))
    left_out += sum(block.num_addresses for block in blocks if not has_room(block))
    total, reserved = sum(block.num_addresses for block in blocks), left_out + len(others)
    return Counts(total, total - len(holds) - reserved, used, len(holds) - used, reserved)


def versions(blocks: Iterable[IPNetwork]) -> list[int]:
    return sorted({block.version for block in blocks})


def exhausted(held: PodAddresses, taken: Collection[IPAddress], now: float) -> str:
    """Why no pod can get an address, one line; "" = the next one can."""
    if not held.blocks:
        return "this node has no block of pods' addresses"
    before = settled(held, now)
    lacking = (version for version in versions(held.blocks) if _next_free(before, version, taken, Owner()) is None)
    return next((_exhausted(before, version) for version in lacking), "")


def _taken_over(held: PodAddresses, attachment: Attachment, owner: Owner, now: float) -> PodAddresses:
    """With what an earlier sandbox of the same pod has on the same network and interface."""
    if not (owner.pod and owner.uid):
        return held
    before = [
        each
        for each in held.holds.values()
        if each.owner == owner
        and each.attachment != attachment
        and (each.attachment.network, each.attachment.interface) == (attachment.network, attachment.interface)
        and _is_wanted(held, each, attachment)
    ]
    moved = {
        each.address: replace(each, attachment=attachment, state="used", since=now)
        for each in sorted(before, key=lambda each: (each.state != "used", each.since))
    }
    first = {address.version: address for address in reversed(moved)}
    return replace(held, holds={**held.holds, **{address: moved[address] for address in first.values()}})


def _is_wanted(held: PodAddresses, hold: Hold, attachment: Attachment) -> bool:
    """Not of a family that the new sandbox has already, nor of a block that the node has no more."""
    has = {address.version for address in held.of(attachment)}
    return hold.address.version not in has and held.block_of(hold.address) is not None


def _next_free(held: PodAddresses, version: int, taken: Collection[IPAddress], owner: Owner) -> IPAddress | None:
    """What a pod of that name had last, or the next one behind what was given last, in the order of the blocks."""
    blocks = [block for block in held.blocks if block.version == version and has_room(block)]
    own = (
        each.address
        for each in held.holds.values()
        if owner.pod and each.owner.pod == owner.pod and each.state == "cooling" and _is_given_by(blocks, each.address)
    )
    last = next((each for each in held.last if each.version == version), None)
    others = (address for address in _round(blocks, last) if address not in held.holds)
    return next((address for address in chain(own, others) if address not in taken), None)


def _is_given_by(blocks: Iterable[IPNetwork], address: IPAddress) -> bool:
    return any(block.version == address.version and address in block and is_usable(block, address) for block in blocks)


def _round(blocks: list[IPNetwork], last: IPAddress | None) -> Iterator[IPAddress]:
    """All that may be given, once each, beginning behind `last`."""
    at = next((number for number, block in enumerate(blocks) if last is not None and last in block), None)
    if at is None or last is None:
        yield from chain.from_iterable(map(_usable, blocks))
        return
    yield from _usable(blocks[at], int(last) + 1)
    yield from chain.from_iterable(map(_usable, (*blocks[at + 1 :], *blocks[:at])))
    yield from (address for address in _usable(blocks[at]) if int(address) <= int(last))


def _usable(block: IPNetwork, first: int = 0) -> Iterator[IPAddress]:
    start = int(block.network_address)
    low, high = max(first, start + 2), start + block.num_addresses - (1 if block.version == 4 else 0)
    return (block[key - start] for key in range(low, min(high, low + MOST_TRIED)))


def _exhausted(held: PodAddresses, version: int) -> str:
    blocks = [str(block) for block in held.blocks if block.version == version]
    small = [str(block) for block in held.blocks if block.version == version and not has_room(block)]
    if len(small) == len(blocks):
        return f"{', '.join(small)} has no room for a pod beside the host's own address"
    return f"no address of {', '.join(blocks)} is free"
