"""Properties of the choice of gateways."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routerd.cluster.gateways import MAX_GATEWAYS, choose

NODES = [f"node-{n}" for n in range(8)]
node_sets = st.sets(st.sampled_from(NODES))
crowds = st.integers(0, MAX_GATEWAYS + 4).map(lambda number: {f"node-{n}" for n in range(number)})
addresses = st.ip_addresses().map(str)


@given(addresses, st.permutations(NODES))
def test_the_order_of_candidates_does_not_matter(address: str, candidates: list[str]) -> None:
    assert choose(address, candidates) == choose(address, NODES)


@given(addresses, crowds)
def test_as_many_candidates_as_there_may_be_are_gateways(address: str, candidates: set[str]) -> None:
    chosen = choose(address, candidates)
    assert set(chosen) <= candidates
    assert len(chosen) == len(set(chosen)) == min(len(candidates), MAX_GATEWAYS)


@given(addresses, node_sets, st.sampled_from(NODES))
def test_a_node_that_goes_moves_nothing_between_the_others(address: str, candidates: set[str], gone: str) -> None:
    whole = choose(address, candidates | {gone}, limit=99)
    rest = choose(address, candidates - {gone}, limit=99)
    assert list(rest) == [node for node in whole if node != gone]


def test_egress_ips_spread_evenly() -> None:
    first = Counter(choose(f"10.0.{n >> 8}.{n & 255}", NODES)[0] for n in range(4000))
    second = Counter(choose(f"10.0.{n >> 8}.{n & 255}", NODES)[1] for n in range(4000))
    for counter in (first, second):
        assert set(counter) == set(NODES)
        assert all(400 < count < 600 for count in counter.values()), counter
