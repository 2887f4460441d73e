"""The ports of an egress IP, given to nodes in aligned blocks: values, sizes, and the search for room. Pure.

An address plus a range of ports is given as an address is (RFC 6346; the binding table of lightweight 4over6, RFC
7596). The grain is a *granule*, the 64 ports that have `port >> 6` in common; a block is a power of two of ports and
begins at a multiple of its size. Ports are those of TCP and UDP, identifiers of ICMP echo, and the upper bits of
fragments' identifications alike, of both families.

It must not know what nodes are called, nor who asks: nodes are numbers, and `ipam.port_plan` weighs their wishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ipam.pool import IPAddress, key_of

GRANULE = 64  # ports
GRANULES = 1024  # of all 65,536 ports; the first 16 hold the ports below 1024 and are never given
MIN_SIZE = GRANULE
FIRST_SIZE = 1024  # ports that a node's first set has at most
MAX_SIZE = 16384  # ports of a block: the largest that the range has more than one of
MAX_BLOCKS = 8  # of one address for one node
FAIR_SIZE = 256  # ports: while a node has less, no other one gets more than a quarter of the address
LAST_NUMBER = 65535  # of nodes, from 1; 0 is nobody
COOLDOWN = 600.0  # seconds; the world's TIME_WAIT ends after 240 at most (RFC 9293, section 3.4.2: 2 MSL)

State = Literal["granted", "returning", "cooling"]
Mask = int  # a bit for each granule, bit 0 is port 0


def granule_mask(first: int, last: int) -> Mask:
    """The granules that hold ports `first` … `last`."""
    return (1 << (last >> 6) + 1) - (1 << (first >> 6))


RANGE = granule_mask(1024, 65535)  # of an address that is only an egress IP: 1,008 granules
VIP_PORTS = 32768  # first port of a Service's address that nodes may have: those below are the Service's
OF_VIP = granule_mask(VIP_PORTS, 65535)
RESERVED = granule_mask(61440, 65535)  # of one that a node has on an interface: 64, out of its ephemeral ports


def without_ports(room: Mask, ports: Iterable[int]) -> Mask:
    """`room` less the granules that hold these ports, which somebody else uses on the address."""
    for port in ports:
        room &= ~granule_mask(port, port)
    return room


def ports_in(mask: Mask) -> int:
    return mask.bit_count() * GRANULE


@dataclass(frozen=True, slots=True)
class PortSet:
    """A block of ports of an egress IP, and the node that makes mappings in it.

    granted: the node may use it. returning: it was asked back; the node makes no new mapping and gives it back when
    the last flow has ended. cooling: it is nobody's, and given again after `COOLDOWN` and once no gateway has it.
    """

    egress_ip: IPAddress
    first: int  # port
    size: int  # ports
    node: int  # its number, 1 … 65535
    state: State = "granted"
    since: float = 0.0  # when the state began, seconds of the Unix epoch
    version: int = 0  # of the address's table, in which the state began
    granted: float = 0.0  # when the node got it; the same as `since` at first

    @property
    def last(self) -> int:
        return self.first + self.size - 1

    @property
    def mask(self) -> Mask:
        return granule_mask(self.first, self.last)

    @property
    def is_bound(self) -> bool:
        """Whether gateways carry packets of it."""
        return self.state != "cooling"

    def __str__(self) -> str:
        return f"{self.egress_ip}:{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Told:
    """A gateway that has been told the sets of an address. It stays among them until it has confirmed that it left."""

    gateway: int  # the node's number
    joined: int  # version of the table, in which it became one
    left: int = 0  # likewise in which it was none any more; 0 = it is one


@dataclass(frozen=True, slots=True)
class PortTable:
    """All sets of an egress IP. `version` grows with every change: whoever confirms one has seen all before it."""

    egress_ip: IPAddress
    version: int = 0
    sets: tuple[PortSet, ...] = ()  # sorted by port
    told: tuple[Told, ...] = ()  # sorted by gateway

    @property
    def awaited(self) -> int:
        """The version in which a binding was lost last; gateways confirm that they have it, or a later one. 0 = none"""
        lost = (each.version for each in self.sets if not each.is_bound)
        return max((*lost, *(each.left for each in self.told)), default=0)


@dataclass(frozen=True, slots=True)
class PortCounts:
    """Granules of an address by state; the four add up to those that can be given."""

    total: int
    free: int
    granted: int
    returning: int
    cooling: int


def counts(room: Mask, table: PortTable) -> PortCounts:
    """`room` is what can be given now: a set that lies outside counts as well, in `total` too."""
    masks = {"granted": 0, "returning": 0, "cooling": 0}
    for each in table.sets:
        masks[each.state] |= each.mask
    taken = masks["granted"] | masks["returning"] | masks["cooling"]
    numbers = {state: mask.bit_count() for state, mask in masks.items()}
    return PortCounts((room | taken).bit_count(), (room & ~taken).bit_count(), **numbers)


def first_size(ports: int, nodes: int) -> int:
    """Ports of a node's first set: a power of two, at most `FIRST_SIZE` and half of what each could have."""
    share = min(FIRST_SIZE, ports // (2 * max(nodes, 1)))
    return max(MIN_SIZE, 1 << share.bit_length() - 1) if share else MIN_SIZE


def power_at_least(ports: int) -> int:
    """The smallest size of a block that holds so many ports, or the largest there is."""
    return min(MAX_SIZE, max(MIN_SIZE, 1 << max(ports - 1, 0).bit_length()))


def find(free: Mask, size: int) -> int | None:
    """The first port of a free block of this size; None if there is none.

    It is cut from the smallest free block that holds it, the lowest one of those: large ones stay whole.
    """
    starts = _starts(free)
    for order in range((size // GRANULE).bit_length() - 1, len(starts)):
        above = starts[order + 1] if order + 1 < len(starts) else 0
        smallest = starts[order] & ~(above | above << (1 << order))
        if smallest:
            return ((smallest & -smallest).bit_length() - 1) * GRANULE
    return None


def _starts(free: Mask) -> list[Mask]:
    """For each size, from one granule on: where aligned free blocks of it begin."""
    starts = [free]
    for order, aligned in enumerate(_ALIGNED):
        blocks = starts[-1] & starts[-1] >> (1 << order) & aligned
        if not blocks:
            break
        starts.append(blocks)
    return starts


# Granules at which a block of 2, 4, … granules may begin.
_ALIGNED = tuple(sum(1 << start for start in range(0, GRANULES, 2 << order)) for order in range(10))


def in_order(sets: Iterable[PortSet]) -> tuple[PortSet, ...]:
    return tuple(sorted(sets, key=lambda each: (key_of(each.egress_ip), each.first)))


def blocks_of(first: int, ports: int) -> Iterator[tuple[int, int]]:
    """A range of whole granules as the fewest blocks: their first ports and sizes."""
    while ports:
        size = min(first & -first or MAX_SIZE, 1 << ports.bit_length() - 1, MAX_SIZE)
        yield first, size
        first, ports = first + size, ports - size
