"""Ranges of addresses as networks, by netaddr. `ipaddress` objects go in and come out. Pure."""

from __future__ import annotations

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
