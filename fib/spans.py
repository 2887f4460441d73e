"""Networks, and which of them a prefix overlaps with: fast with a hundred thousand prefixes. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network

IPNetwork = IPv4Network | IPv6Network
Point = tuple[int, int]  # version, address


class Spans:
    """Of networks that lie in others, the others alone count."""

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        self._networks: list[IPNetwork] = []
        self._lasts: list[Point] = []
        for network in sorted(networks, key=lambda each: (_ends(each)[0], each.prefixlen)):
            _, last = _ends(network)
            if not self._lasts or self._lasts[-1] < last:
                self._networks.append(network)
                self._lasts.append(last)
        self._firsts = [_ends(network)[0] for network in self._networks]

    def overlap(self, prefix: IPNetwork) -> IPNetwork | None:
        """The network that holds it, or else the last of those that lie in it."""
        first, last = _ends(prefix)
        place = bisect_right(self._firsts, last) - 1
        return self._networks[place] if place >= 0 and self._lasts[place] >= first else None

    def holding(self, prefix: IPNetwork) -> IPNetwork | None:
        """The network that holds it."""
        found = self.overlap(prefix)
        return found if found is not None and found.prefixlen <= prefix.prefixlen else None


def around(network: IPNetwork, lengths: Iterable[int]) -> Iterator[IPNetwork]:
    """The networks of these lengths in which it is."""
    for length in lengths:
        if length <= network.prefixlen:
            yield network if length == network.prefixlen else network.supernet(new_prefix=length)


def _ends(network: IPNetwork) -> tuple[Point, Point]:
    first, free = int(network.network_address), network.max_prefixlen - network.prefixlen
    return (network.version, first), (network.version, first + (1 << free) - 1)
