"""Properties of the choice of gateways."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from egress.gateways import MAX_GATEWAYS, Choice, choose

NODES = [f"node-{n}" for n in range(8)]
node_sets = st.sets(st.sampled_from(NODES))
addresses = st.ip_addresses().map(str)


def names(choice: Choice) -> list[str]:
    return [node for node, _ in choice.gateways]


@given(addresses, st.permutations(NODES))
def test_the_order_of_candidates_does_not_matter(address: str, candidates: list[str]) -> None:
    assert choose(address, candidates, Choice()) == choose(address, NODES, Choice())


@given(addresses, st.lists(node_sets, min_size=1, max_size=8))
def test_slots_stay_with_their_nodes_and_the_epoch_grows_with_every_change(address: str, steps: list[set[str]]) -> None:
    before = Choice()
    for candidates in steps:
        after = choose(address, candidates, before)
        slots = [slot for _, slot in after.gateways]
        assert set(names(after)) <= candidates
        assert len(after.gateways) == min(len(candidates), MAX_GATEWAYS)
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < after.slots for slot in slots)
        assert after.slots & (after.slots - 1) == 0
        assert after.slots >= before.slots
        kept = dict(before.gateways)
        assert all(kept.get(node, slot) == slot for node, slot in after.gateways)
        changed = (after.gateways, after.slots) != (before.gateways, before.slots) or before.epoch == 0
        assert after.epoch == before.epoch + changed
        assert choose(address, candidates, after) is after
        before = after


@given(addresses, node_sets, st.sampled_from(NODES))
def test_a_node_that_goes_moves_nothing_between_the_others(address: str, candidates: set[str], gone: str) -> None:
    whole = names(choose(address, candidates | {gone}, Choice(), limit=99))
    rest = names(choose(address, candidates - {gone}, Choice(), limit=99))
    assert rest == [node for node in whole if node != gone]


def test_a_newcomer_leaves_the_ports_of_the_lost_node_alone_while_it_can() -> None:
    three = choose("192.0.2.1", NODES[:3], Choice())
    assert three.slots == 4
    lost, lost_slot = three.gateways[0]
    replaced = choose("192.0.2.1", [*(node for node in NODES[:3] if node != lost), "other"], three)
    assert dict(replaced.gateways)["other"] not in {slot for _, slot in three.gateways}
    assert lost_slot not in {slot for _, slot in replaced.gateways}


def test_egress_ips_spread_evenly() -> None:
    active = Counter(names(choose(f"10.0.{n >> 8}.{n & 255}", NODES, Choice()))[0] for n in range(4000))
    standby = Counter(names(choose(f"10.0.{n >> 8}.{n & 255}", NODES, Choice()))[1] for n in range(4000))
    for counter in (active, standby):
        assert set(counter) == set(NODES)
        assert all(400 < count < 600 for count in counter.values()), counter


def test_no_candidate_means_no_gateway_and_keeps_the_slots() -> None:
    two = choose("192.0.2.1", NODES[:2], Choice())
    none = choose("192.0.2.1", [], two)
    assert none == Choice((), 2, 2)
    assert choose("192.0.2.1", [], Choice()) == Choice((), 1, 1)
