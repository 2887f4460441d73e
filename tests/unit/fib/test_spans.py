"""Which networks a prefix overlaps with, against asking each of them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from fib.spans import IPNetwork, Spans

fours = st.builds(lambda n, size: IPv4Network((n << size, 32 - size)), st.integers(0, 7), st.integers(0, 5))
sixes = st.builds(lambda n, size: IPv6Network((n << size, 128 - size)), st.integers(0, 7), st.integers(0, 5))
networks = fours | sixes


def holds(outer: IPNetwork, inner: IPNetwork) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


@given(st.lists(networks), networks)
def test_it_finds_what_asking_each_finds(those: list[IPNetwork], prefix: IPNetwork) -> None:
    spans = Spans(those)
    near = [each for each in those if holds(each, prefix) or holds(prefix, each)]
    found = spans.overlap(prefix)
    assert found in near if near else found is None
    around = [each for each in those if holds(each, prefix)]
    assert spans.holding(prefix) == min(around, key=lambda each: each.prefixlen, default=None)
