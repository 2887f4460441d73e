"""The addresses of one node's pods: who has which, within the blocks that are the node's. Pure; the clock is passed in.

An address belongs to an attachment, one interface of one container (CNI specification, section 2). Of a container that
is gone it cools down; the next one goes to whoever comes, those that were freed last come last. What a pod keeps stays
reserved for the pod's name instead, until somebody lets it go.

The first address of a block is the host's own, which main plugins make the pods' gateway, unless another one of it is
said to be; of an IPv4 block the last one is left out, too. A block without room for these gives nothing. Blocks of a
cloud's interfaces are whole: the pods' gateway is the interface's own address, which is in none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface
from itertools import chain
from typing import Literal

from ipam.pool import COOLDOWN

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Blocks = tuple[IPNetwork, ...]
State = Literal["used", "cooling", "reserved"]
LINK_LOCAL = IPv6Address("fe80::1")  # a pod's gateway of IPv6 on a cloud's interface
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
    keeps: bool = False  # when the container is gone it is reserved for a pod of that name


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pod asks for. Of a family that neither names it gets what comes."""

    exact: tuple[IPAddress, ...] = ()  # it gets these, at most one of a family, or none at all
    among: tuple[IPNetwork, ...] = ()  # in order: it gets a free one
    keeps: bool = False


ANY = Wish()


@dataclass(frozen=True, slots=True)
class Interface:
    """A cloud's network interface of the node, of whose blocks pods have addresses."""

    mac: str
    own: IPv4Interface  # its primary address, with the subnet's mask
    blocks: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class PodAddresses:
    """What a node must remember. `last`: what was given last, of each family; the search goes on behind it."""

    blocks: tuple[IPNetwork, ...] = ()
    holds: Mapping[IPAddress, Hold] = field(default_factory=dict)
    last: tuple[IPAddress, ...] = ()
    gateways: tuple[IPAddress, ...] = ()  # the host's own in their blocks, in place of the first ones
    interfaces: tuple[Interface, ...] = ()  # that have these blocks; () = they are no cloud's
    leaving: tuple[IPNetwork, ...] = ()  # blocks that are the node's no more, of which somebody still has an address
    generation: int = 0  # of what was read of a cloud's interfaces last

    def of(self, attachment: Attachment) -> tuple[IPAddress, ...]:
        return tuple(
            each.address for each in self.holds.values() if each.attachment == attachment and each.state == "used"
        )

    def block_of(self, address: IPAddress) -> IPNetwork | None:
        return next((block for block in self.blocks if _is_in(address, block)), None)


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
    reserved: int  # left out, a pod's that got it elsewhere, or kept for one that will come


def with_blocks(held: PodAddresses, blocks: Blocks, interfaces: tuple[Interface, ...] = ()) -> PodAddresses:
    """These are the node's now. Another one gives nothing, and stays known while an address of it is not free."""
    now = set(blocks)
    gone = (block for block in dict.fromkeys((*held.blocks, *held.leaving)) if block not in now)
    leaving = tuple(block for block in gone if _is_busy(block, held.holds))
    return replace(held, blocks=blocks, interfaces=interfaces, leaving=leaving)


def busy(held: PodAddresses, others: Collection[IPAddress]) -> frozenset[IPNetwork]:
    """Blocks of which an address is not free; `others` are in use by somebody of whom nothing is noted here."""
    taken = held.holds.keys() | set(others)
    return frozenset(each for each in (*held.blocks, *held.leaving) if _is_busy(each, taken))


def _is_busy(block: IPNetwork, taken: Collection[IPAddress]) -> bool:
    """`taken` finds an address at once: a cloud's blocks are small, and as many as a node has pods."""
    if block.num_addresses <= len(taken):
        return any(address in taken for address in block)
    return any(_is_in(address, block) for address in taken)


def configured(held: PodAddresses, address: IPAddress) -> tuple[IPv4Interface | IPv6Interface, IPAddress] | None:
    """An address with its mask, and its gateway; None = it is in no block of the node.

    On a cloud's interface these are the subnet's mask and the interface's own address; of IPv6 /128 and LINK_LOCAL.
    """
    block = held.block_of(address)
    if block is None:
        return None
    own = next((each.own for each in held.interfaces if block in each.blocks), None)
    if own is None:
        return ip_interface((address, block.prefixlen)), gateway_of(held, block)
    is_v6 = address.version == 6
    return ip_interface((address, 128 if is_v6 else own.network.prefixlen)), LINK_LOCAL if is_v6 else own.ip


def block_order(block: IPNetwork) -> tuple[int, int, int]:
    return block.version, int(block.network_address), block.prefixlen


def _is_in(address: IPAddress, block: IPNetwork) -> bool:
    return address.version == block.version and address in block


def gateway_of(held: PodAddresses, block: IPNetwork) -> IPAddress:
    return next((each for each in held.gateways if each.version == block.version and each in block), block[1])


def has_room(held: PodAddresses, block: IPNetwork) -> bool:
    return bool(held.interfaces) or block.num_addresses > 3


def is_usable(held: PodAddresses, block: IPNetwork, address: IPAddress) -> bool:
    """Whether a pod may have an address of the block."""
    return has_room(held, block) and address not in _left_out(held, block)


def _left_out(held: PodAddresses, block: IPNetwork) -> set[IPAddress]:
    if held.interfaces:
        return {block[0]} if block.version == 6 else set()  # the anycast address of routers (RFC 4291, 2.6.1)
    return {block[0], gateway_of(held, block), *([block[-1]] if block.version == 4 else [])}


def give(
    before: PodAddresses,
    attachment: Attachment,
    owner: Owner,
    taken: Mapping[IPAddress, str],
    now: float,
    wish: Wish = ANY,
    asked: Collection[IPAddress] = (),
    closed: Collection[IPNetwork] = (),
) -> tuple[PodAddresses, tuple[IPAddress, ...] | Refused]:
    """One address of each family that the blocks have; those that the attachment has already, if it has them all.

    `taken`: addresses that somebody has of whom nothing is noted here, and who. `asked`: such as another pod asks for
    by name, which nobody gets by chance, nor any of the blocks that are `closed`. A pod whose sandbox is made anew
    keeps its addresses: the runtime has ended the former one by then.
    """
    rested = settled(before, now)
    held = _taken_over(rested, attachment, owner, now)
    mine: dict[IPAddress, Hold] = {}
    last: dict[int, IPAddress] = {each.version: each for each in held.last}
    for version in versions(held.blocks):
        known = next((each for each in held.of(attachment) if each.version == version and held.block_of(each)), None)
        found = known or _found(held, version, taken, owner, wish, asked, closed)
        if isinstance(found, Refused):
            return rested, found
        mine[found] = held.holds[found] if known else Hold(found, attachment, owner, since=now, keeps=wish.keeps)
        if known is None:
            last[version] = found
    if not mine:
        return rested, Refused("this node has no block of pods' addresses")
    given = replace(held, holds={**held.holds, **mine}, last=tuple(last[version] for version in sorted(last)))
    given = let_go(given, _left(given, attachment, owner), now)
    return (given if given != before else before), tuple(mine)


def free(held: PodAddresses, attachments: Iterable[Attachment], now: float) -> PodAddresses:
    """What these attachments have cools down or is kept; the same value if they have nothing."""
    gone = frozenset(attachments)
    left = [each for each in held.holds.values() if each.state == "used" and each.attachment in gone]
    if not left:
        return held
    freed = {each.address: replace(each, state="reserved" if each.keeps else "cooling", since=now) for each in left}
    return replace(held, holds={**held.holds, **freed})


def let_go(held: PodAddresses, addresses: Iterable[IPAddress], now: float) -> PodAddresses:
    """What is kept for nobody any more cools down."""
    kept = (each for address in addresses if (each := held.holds.get(address)) and each.state == "reserved")
    cooling = {each.address: replace(each, state="cooling", since=now) for each in kept}
    return replace(held, holds={**held.holds, **cooling}) if cooling else held


def settled(held: PodAddresses, now: float) -> PodAddresses:
    """Without what has cooled down. What began later than now began now: somebody has put the clock back."""
    holds = {
        address: replace(each, since=min(each.since, now)) if each.since > now else each
        for address, each in held.holds.items()
        if each.state != "cooling" or now - each.since < COOLDOWN
    }
    return replace(held, holds=holds) if holds != held.holds else held


def rest_anew(held: PodAddresses, now: float) -> PodAddresses:
    """What cools down, or is kept, begins to do so: the clock of before was wrong."""
    began = {each.address: replace(each, since=now) for each in held.holds.values() if each.state != "used"}
    return replace(held, holds={**held.holds, **began}) if began else held


def counts(held: PodAddresses, version: int, taken: Collection[IPAddress]) -> Counts:
    """Of all blocks of a family."""
    blocks = [block for block in held.blocks if block.version == version]
    block_of = _finder(blocks)
    states = Counter(each.state for each in held.holds.values() if block_of(each.address))
    strangers = {address: block for address in taken if address not in held.holds and (block := block_of(address))}
    others = sum(is_usable(held, block, address) for address, block in strangers.items())
    left_out = sum(each in block for block in blocks if has_room(held, block) for each in _left_out(held, block))
    left_out += sum(block.num_addresses for block in blocks if not has_room(held, block))
    total, reserved = sum(block.num_addresses for block in blocks), left_out + others + states["reserved"]
    free = total - reserved - states["used"] - states["cooling"]
    return Counts(total, free, states["used"], states["cooling"], reserved)


def _finder(blocks: Collection[IPNetwork]) -> Callable[[IPAddress], IPNetwork | None]:
    """Which of blocks of one family an address is in, without a look at each of them: a cloud's are some hundred."""
    by_start = {(int(block.network_address), block.prefixlen): block for block in blocks}
    sizes = sorted({(block.version, block.max_prefixlen - block.prefixlen, block.prefixlen) for block in blocks})

    def find(address: IPAddress) -> IPNetwork | None:
        starts = (
            (int(address) >> bits << bits, length) for version, bits, length in sizes if version == address.version
        )
        return next((by_start[start] for start in starts if start in by_start), None)

    return find


def versions(blocks: Iterable[IPNetwork]) -> list[int]:
    return sorted({block.version for block in blocks})


def exhausted(
    held: PodAddresses,
    taken: Mapping[IPAddress, str],
    now: float,
    asked: Collection[IPAddress] = (),
    closed: Collection[IPNetwork] = (),
) -> str:
    """Why no pod can get an address, one line; "" = the next one can."""
    if not held.blocks:
        return "this node has no block of pods' addresses"
    before = settled(held, now)
    found = (_next_free(before, version, taken, Owner(), asked, closed) for version in versions(held.blocks))
    return next((each.message for each in found if isinstance(each, Refused)), "")


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


def _left(held: PodAddresses, attachment: Attachment, owner: Owner) -> list[IPAddress]:
    """What is kept for a pod that asked for another address this time."""
    place = (attachment.network, attachment.interface)
    kept = (each for each in held.holds.values() if each.state == "reserved" and each.owner.pod == owner.pod != "")
    return [each.address for each in kept if (each.attachment.network, each.attachment.interface) == place]


def _is_wanted(held: PodAddresses, hold: Hold, attachment: Attachment) -> bool:
    """Not of a family that the new sandbox has already, nor of a block that the node has no more."""
    has = {address.version for address in held.of(attachment)}
    return hold.address.version not in has and held.block_of(hold.address) is not None


def _found(
    held: PodAddresses,
    version: int,
    taken: Mapping[IPAddress, str],
    owner: Owner,
    wish: Wish,
    asked: Collection[IPAddress],
    closed: Collection[IPNetwork],
) -> IPAddress | Refused:
    exact = next((each for each in wish.exact if each.version == version), None)
    if exact is not None:
        why_not = _why_not(held, exact, taken, owner)
        return Refused(why_not) if why_not else exact
    among = [block for block in wish.among if block.version == version]
    if among:
        return _one_among(held, among, taken, owner)
    return _next_free(held, version, taken, owner, asked, closed)


def _why_not(held: PodAddresses, address: IPAddress, taken: Mapping[IPAddress, str], owner: Owner) -> str:
    """Why a pod cannot have this very address, one line; "" = it can."""
    block, hold = held.block_of(address), held.holds.get(address)
    if block is None:
        blocks = ", ".join(str(each) for each in held.blocks if each.version == address.version)
        return f"{address} is in no block of this node ({blocks})"
    if not is_usable(held, block, address):
        return f"{address} is no pod's: of {block} the host's own is left out, and the first and last are"
    if address in taken:
        return f"{address} is Pod {taken[address]}'s"
    if hold is None or (owner.pod and hold.owner.pod == owner.pod and hold.state != "used"):
        return ""
    whose = f"Pod {hold.owner.pod}'s" if hold.owner.pod else f"container {hold.attachment.container}'s"
    return (
        f"{address} is {whose}"
        + {"used": "", "cooling": " until it has rested", "reserved": ", which keeps it"}[hold.state]
    )


def _one_among(
    held: PodAddresses, among: list[IPNetwork], taken: Mapping[IPAddress, str], owner: Owner
) -> IPAddress | Refused:
    """What a pod of that name had last, if it is one of them, or the first that is free here."""
    own = (address for address in _own(held, owner) if any(address in block for block in among))
    here = (_narrower(each, block) for each in among for block in held.blocks if _overlap(each, block))
    named = (part[key] for part in here for key in range(min(part.num_addresses, MOST_TRIED)))
    found = next((each for each in chain(own, named) if not _why_not(held, each, taken, owner)), None)
    return found or Refused(f"none of {', '.join(map(_plain, among))} is free on this node")


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _narrower(one: IPNetwork, other: IPNetwork) -> IPNetwork:
    """What both have: of two networks that overlap one is within the other."""
    return max(one, other, key=lambda each: each.prefixlen)


def _plain(block: IPNetwork) -> str:
    return str(block[0]) if block.num_addresses == 1 else str(block)


def _own(held: PodAddresses, owner: Owner) -> Iterator[IPAddress]:
    """What a pod of that name had last, and nobody has had since."""
    idle = (each for each in held.holds.values() if each.state != "used")
    return (each.address for each in idle if owner.pod and each.owner.pod == owner.pod)


def _next_free(
    held: PodAddresses,
    version: int,
    taken: Mapping[IPAddress, str],
    owner: Owner,
    asked: Collection[IPAddress],
    closed: Collection[IPNetwork],
) -> IPAddress | Refused:
    """What a pod of that name had last, or the next one behind what was given last, in the order of the blocks."""
    blocks = [block for block in held.blocks if block.version == version and has_room(held, block)]
    own = (address for address in _own(held, owner) if _is_given_by(held, blocks, address))
    last = next((each for each in held.last if each.version == version), None)
    here = [block for block in blocks if block not in closed]
    others = (address for address in _round(held, here, last) if address not in held.holds and address not in asked)
    found = next((address for address in chain(own, others) if address not in taken), None)
    return found or Refused(_exhausted(held, version))


def _is_given_by(held: PodAddresses, blocks: Iterable[IPNetwork], address: IPAddress) -> bool:
    return any(_is_in(address, block) and is_usable(held, block, address) for block in blocks)


def _round(held: PodAddresses, blocks: list[IPNetwork], last: IPAddress | None) -> Iterator[IPAddress]:
    """All that may be given, once each, beginning behind `last`."""
    at = next((number for number, block in enumerate(blocks) if last is not None and last in block), None)
    if at is None or last is None:
        yield from (address for block in blocks for address in _usable(held, block))
        return
    yield from _usable(held, blocks[at], int(last) + 1)
    yield from (address for block in (*blocks[at + 1 :], *blocks[:at]) for address in _usable(held, block))
    yield from (address for address in _usable(held, blocks[at]) if int(address) <= int(last))


def _usable(held: PodAddresses, block: IPNetwork, first: int = 0) -> Iterator[IPAddress]:
    start, left_out = int(block.network_address), _left_out(held, block)
    low, high = max(first, start), start + block.num_addresses
    found = (block[key - start] for key in range(low, min(high, low + MOST_TRIED)))
    return (address for address in found if address not in left_out)


def _exhausted(held: PodAddresses, version: int) -> str:
    if held.interfaces:
        return f"no IPv{version} address of this node's {len(held.interfaces)} network interfaces is free"
    blocks = [str(block) for block in held.blocks if block.version == version]
    small = [str(block) for block in held.blocks if block.version == version and not has_room(held, block)]
    if len(small) == len(blocks):
        return f"{', '.join(small)} has no room for a pod beside the host's own address"
    return f"no address of {', '.join(blocks)} is free"
