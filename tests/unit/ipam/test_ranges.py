"""A range of addresses as networks: all of it, nothing else, and no fewer would do."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, summarize_address_range

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.ranges import networks_between


@given(st.lists(st.ip_addresses(v=4), min_size=2, max_size=2) | st.lists(st.ip_addresses(v=6), min_size=2, max_size=2))
def test_it_is_what_the_standard_library_makes_of_it(ends: list[IPv4Address] | list[IPv6Address]) -> None:
    first, last = sorted(ends)
    assert networks_between(first, last) == tuple(summarize_address_range(first, last))  # type: ignore[call-overload]


@pytest.mark.parametrize("text", ["0.0.0.0", "255.255.255.255", "::", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"])
def test_one_address_is_a_range(text: str) -> None:
    (network,) = networks_between(ip_address(text), ip_address(text))
    assert str(network.network_address) == text and network.num_addresses == 1


def test_a_range_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="comes before"):
        networks_between(ip_address("192.0.2.2"), ip_address("192.0.2.1"))
