"""Ranges of addresses as networks, by netaddr. `ipaddress` objects go in and come out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import netaddr


def networks_between(
    first: IPv4Address | IPv6Address, last: IPv4Address | IPv6Address
) -> tuple[IPv4Network | IPv6Network, ...]:
    """The fewest networks that are just the addresses from `first` to `last`, both included, in their order.

    Both are of one family. Raises ValueError if `last` comes before `first`.
    """
    if int(first) > int(last):
        raise ValueError(f"{last} comes before {first}")
    network = IPv4Network if first.version == 4 else IPv6Network
    ends = (netaddr.IPAddress(int(each), first.version) for each in (first, last))
    return tuple(network((cidr.first, cidr.prefixlen)) for cidr in netaddr.iprange_to_cidrs(*ends))


def networks_without(
    networks: Iterable[IPv4Network | IPv6Network], left_out: Iterable[IPv4Network | IPv6Network]
) -> tuple[IPv4Network | IPv6Network, ...]:
    """The fewest networks that are just the addresses of `networks` less those of `left_out`, in their order."""
    all_of, none_of = (netaddr.IPSet(map(str, each)) for each in (networks, left_out))
    found = (all_of - none_of).iter_cidrs()
    return tuple((IPv4Network if each.version == 4 else IPv6Network)((each.first, each.prefixlen)) for each in found)
