"""Blocks of nodes: who has which, and that it stays so."""

from __future__ import annotations

import cProfile
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.cluster.adopt import adopt
from routerd.cluster.assign import AssignSettings, Kept, assign
from routerd.cluster.ledger import Ledger
from routerd.cluster.pod_cidrs import POOLS, REST, BlockRecord, Blocks, give_blocks
from routerd.config import parse_config
from routerd.errors import InputError
from routerd.formats.published.allocations import write_allocations
from routerd.formats.published.whole import AllocationsReader
from routerd.model import ClusterCIDR, Node, NodeReport, PodCount, PodPool, with_blocks
from routerd.operator.settings import assign_settings
from routerd.selectors import LabelSelector
from tests.models import cluster

V4, V6 = ClusterCIDR(ip_network("10.244.0.0/22"), 24), ClusterCIDR(ip_network("fd00:10::/62"), 64)


def cidr(text: str, prefix: int) -> ClusterCIDR:
    return ClusterCIDR(ip_network(text), prefix)


def nodes(*names: str, **cidrs: tuple[str, ...]) -> dict[str, Node]:
    found = {name: Node(name) for name in names}
    return found | {name: Node(name, pod_cidrs=tuple(map(ip_network, blocks))) for name, blocks in cidrs.items()}


def count(addresses: int, waiting: int = 0) -> NodeReport:
    return NodeReport("x", pods=PodCount(addresses, waiting))


def pool(name: str, *cidrs: ClusterCIDR, **fields: Any) -> PodPool:
    return PodPool(name, tuple(each.network for each in cidrs), cidrs, **fields)


def naming(*names: str, **nodes: str) -> dict[str, Node]:
    """Nodes that name pools, and `names` that do not."""
    found = {name: Node(name) for name in names}
    return found | {name: Node(name, annotations={POOLS: pools}) for name, pools in nodes.items()}


class Cluster:
    def __init__(
        self, *cidrs: ClusterCIDR, service_cidrs: tuple[str, ...] = (), pools: tuple[PodPool, ...] = (),
        vips: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.cidrs, self.services = cidrs, tuple(map(ip_network, service_cidrs))
        self.pools: tuple[PodPool, ...] | None = pools or None
        self.vips = tuple(map(ip_network, vips))
        self.blocks = Blocks()

    def give(self, found: Mapping[str, Node], now: float = 0.0, **reports: NodeReport) -> dict[str, str]:
        self.blocks = give_blocks(
            self.cidrs, self.blocks.records, found, reports, self.services, now, self.pools, self.vips
        )
        return {each.node: " ".join(map(str, each.blocks)) for each in self.blocks.published}

    def refused(self) -> list[str]:
        return [f"{each.object} {each.reason}: {each.message}" for each in self.blocks.refusals]


def test_each_node_has_a_block_of_each_family_behind_service_cidrs() -> None:
    both = Cluster(V4, V6, service_cidrs=("10.244.1.0/28", "fd00:10::/112"))
    assert both.give(nodes("b", "a")) == {
        "a": "10.244.0.0/24 fd00:10:0:1::/64",
        "b": "10.244.2.0/24 fd00:10:0:2::/64",
    }


def test_what_nodes_say_is_theirs_before_anything_is_given() -> None:
    found = nodes("a", b=("10.244.0.0/24", "192.0.2.0/24"), c=("10.244.0.128/25",))
    one = Cluster(V4)
    assert one.give(found) == {"a": "10.244.1.0/24", "b": "10.244.0.0/24", "c": "10.244.2.0/24"}
    assert one.refused() == [
        "node/c PodCIDRTaken: spec.podCIDRs has 10.244.0.128/25, and 10.244.0.0/24 is Node b's: remove one of the two"
    ]


def test_a_node_gets_more_as_its_pods_need_them() -> None:
    small = Cluster(cidr("10.244.0.0/24", 28))  # 13 addresses of a block are pods'
    assert small.give(nodes("a"), a=count(0)) == {"a": "10.244.0.0/28"}
    assert small.give(nodes("a"), a=count(0, 1)) == {"a": "10.244.0.0/28 10.244.0.16/28"}
    assert small.give(nodes("a"), a=count(0)) == {"a": "10.244.0.0/28 10.244.0.16/28"}  # nothing is taken away
    assert len(small.give(nodes("a"), a=count(100))["a"].split()) == 9
    assert len(Cluster(V6).give(nodes("a"), a=count(10_000))["a"].split()) == 1


def test_a_node_that_counts_pods_without_end_does_not_take_everybodys_blocks() -> None:
    one = Cluster(cidr("10.244.0.0/16", 24))
    found = one.give(nodes("a", "b"), a=count(100_000, 100_000))
    assert len(found["a"].split()) == 17
    assert found["b"]


def test_a_decision_does_not_grow_with_the_square_of_the_nodes() -> None:
    """Calls of Python functions are counted, which no busy machine changes."""

    def calls(size: int) -> int:
        names = [f"n{number:04}" for number in range(size)]
        one, reports = Cluster(cidr("10.0.0.0/8", 24)), dict.fromkeys(names, count(50))
        with cProfile.Profile() as profile:
            blocks = one.give(nodes(*names), **reports)
            one.give(nodes(**{name: (block,) for name, block in blocks.items()}), **reports)
        return sum(each.callcount for each in profile.getstats())

    assert calls(400) < 5 * calls(100)


def test_blocks_of_a_node_that_is_gone_rest_and_are_its_own_if_it_comes_back() -> None:
    one = Cluster(cidr("10.244.0.0/23", 24))
    one.give(nodes("a", "b"))
    assert one.give(nodes("b", "c"), 1.0) == {"b": "10.244.1.0/24"}
    assert one.blocks.next_due == 1.0 + REST
    assert one.refused() == [
        "node/c PodCIDRsExhausted: no block of 10.244.0.0/23 is free for it, its pods get no address: "
        "add a CIDR to pod-cidrs"
    ]
    again = Cluster(*one.cidrs)
    again.blocks = one.blocks
    assert again.give(nodes("a", "b", "c"), 2.0)["a"] == "10.244.0.0/24"
    assert one.give(nodes("b", "c"), 1.0 + REST) == {"b": "10.244.1.0/24", "c": "10.244.0.0/24"}


def test_what_was_freed_comes_last() -> None:
    one = Cluster(V4)
    one.give(nodes("a", "b"))
    one.give(nodes("b"), 1.0)
    assert one.give(nodes("b", "c"), 2.0 + REST)["c"] == "10.244.2.0/24"


def test_another_prefix_or_cidr_moves_nobody() -> None:
    one = Cluster(V4)
    before = one.give(nodes("a"))
    one.cidrs = (cidr("10.244.0.0/22", 25), V6)
    found = one.give(nodes("a", "b"))
    assert found == {"a": f"{before['a']} fd00:10::/64", "b": "10.244.1.0/25 fd00:10:0:1::/64"}
    one.cidrs = ()
    assert one.give(nodes("a")) == {}
    assert {each.node for each in one.blocks.records} == {"a", "b"}  # it is remembered


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from("abcdef")), st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 60)),
                  st.sampled_from([1.0, 100.0, REST])),
        max_size=12,
    )
)  # fmt: skip
def test_no_block_has_two_owners_and_none_moves(steps: list[tuple[set[str], dict[str, int], float]]) -> None:
    one, now = Cluster(cidr("10.244.0.0/24", 28), V6), 0.0
    before: dict[str, str] = {}
    for names, counts, pause in steps:
        now += pause
        found = one.give(nodes(*names), now, **{name: count(pods) for name, pods in counts.items()})
        assert all({*before[name].split()} <= {*found[name].split()} for name in names & before.keys())
        blocks = [each.block for each in one.blocks.records]
        assert not any(a.version == b.version and a.overlaps(b) for a in blocks for b in blocks if a != b)
        assert one.give(nodes(*names), now, **{name: count(pods) for name, pods in counts.items()}) == found
        before = found


def test_the_operator_records_and_publishes_them_and_takes_over_what_is_published() -> None:
    snapshot = cluster.snapshot(nodes={"a": Node("a"), "b": Node("b")})
    settings = AssignSettings(pod_cidrs=(V4, V6))
    first = assign(snapshot, Ledger(), {}, 1.0, settings)
    assert [each.node for each in first.ledger.pod_cidrs] == ["a", "b", "a", "b"]
    text = write_allocations(first.allocations)
    read = AllocationsReader().read(text, "allocations.yaml", lambda name: None)
    assert read.pod_cidrs == first.allocations.pod_cidrs
    lost = adopt(Ledger(), read, None, 5.0).ledger
    assert [(each.block, each.node) for each in lost.pod_cidrs] == [
        (each.block, each.node) for each in first.ledger.pod_cidrs
    ]
    again = assign(replace(snapshot, allocations=read), first.ledger, {}, 2.0, settings)
    assert (again.allocations, again.ledger) == (read, first.ledger)
    assert with_blocks(snapshot.nodes or {}, read.pod_cidrs)["a"].pod_cidrs == read.pod_cidrs[0].blocks


def test_who_is_published_to_have_a_block_has_it() -> None:
    published = replace(cluster.allocations(), generation=9)
    mine = BlockRecord(ip_network("10.244.0.0/24"), "a", "resting", 1.0)
    theirs = replace(published, pod_cidrs=assign(cluster.snapshot(nodes={"b": Node("b")}), Ledger(), {}, 1.0,
                                                AssignSettings(pod_cidrs=(V4,))).allocations.pod_cidrs)  # fmt: skip
    (record,) = adopt(Ledger(pod_cidrs=(mine,)), theirs, None, 5.0).ledger.pod_cidrs
    assert record == BlockRecord(mine.block, "b", "used", 5.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{cidr: 10.244.0.0/16}]", ""),
        ("[{cidr: 10.244.0.0/16, node-prefix: 15}]", "16 to 30"),
        ("[{cidr: 10.0.0.0/8, node-prefix: 25}]", "8 to 24"),
        ("[{cidr: 10.244.0.0/16}, {cidr: 10.244.3.0/24}]", "overlaps with 10.244.0.0/16"),
        ("[{cidr: 10.244.0.1/16}]", "10.244.0.1/16"),
        ('[{cidr: "fd00:10::/48", node-prefix: 65}]', "48 to 64"),
    ],
)
def test_the_configuration(text: str, message: str) -> None:
    written = f"apiVersion: routerd.io/v1alpha1\nkind: Config\npod-cidrs: {text}\n"
    if not message:
        config = parse_config(written)
        assert config.pod_cidrs == (cidr("10.244.0.0/16", 24),)
        assert config.cluster_cidrs == (ip_network("10.244.0.0/16"),)
        return
    with pytest.raises(InputError, match=message):
        parse_config(written)


# --- pools of other makers

GOLD = pool("gold", cidr("10.8.0.0/24", 26), cidr("fd00:8::/120", 122), asked_only=True)
PLAIN = pool("plain", cidr("10.9.0.0/24", 26))


def test_nodes_have_blocks_of_pools_that_need_no_asking_and_of_those_that_they_name() -> None:
    both = Cluster(pools=(GOLD, PLAIN))
    assert both.give(naming("a", b="gold", c="plain, gold")) == {
        "a": "10.9.0.0/26",
        "b": "10.8.0.0/26 fd00:8::/122",
        "c": "10.8.0.64/26 10.9.0.64/26 fd00:8::40/122",
    }
    assert both.give(naming("a", b="gold", c="gold"), b=count(70)) == {
        "a": "10.9.0.0/26",
        "b": "10.8.0.0/26 10.8.0.128/26 fd00:8::/122 fd00:8::80/122",
        "c": "10.8.0.64/26 10.9.0.64/26 fd00:8::40/122",
    }, "another one is of the pools that the node names, and nothing is taken away"


def test_a_pool_that_a_node_names_and_nobody_knows_is_told() -> None:
    one = Cluster(V4, pools=(GOLD,))
    assert one.give(naming("a", b="silver")) == {"a": "10.244.0.0/24"}
    assert one.refused() == [
        f"node/b UnknownPodPool: annotation {POOLS} names silver, and no pool of pods is called so",
    ]


def test_a_pool_of_some_nodes_is_theirs_and_a_disabled_one_gives_nothing_new() -> None:
    racks = {name: Node(name, labels={"rack": name[0]}) for name in ("a1", "b1")}
    some = Cluster(pools=(pool("racks", cidr("10.8.0.0/24", 26), nodes=LabelSelector((("rack", "a"),))),))
    assert some.give(racks) == {"a1": "10.8.0.0/26"}
    some.pools = tuple(replace(each, disabled=True) for each in some.pools or ())
    assert some.give(racks | {"a2": Node("a2", labels={"rack": "a"})}) == {"a1": "10.8.0.0/26"}


@pytest.mark.parametrize(
    ("before", "later", "further"),
    [
        (PLAIN, replace(PLAIN, disabled=True), "10.10.0.0/26"),
        (PLAIN, replace(PLAIN, reserved=(ip_network("10.9.0.0/30"),)), "10.9.0.64/26"),
        (replace(PLAIN, asked_only=True), replace(PLAIN, asked_only=True), "10.10.0.0/26"),
    ],
    ids=["drained", "reserved", "named no more"],
)
def test_a_node_whose_blocks_are_shut_gets_another(before: PodPool, later: PodPool, further: str) -> None:
    one = Cluster(pools=(before,))
    assert one.give(naming(a="plain")) == {"a": "10.9.0.0/26"}
    one.pools = (later, pool("spare", cidr("10.10.0.0/24", 26)))
    for _ in range(2):
        assert one.give(nodes("a"), a=count(5)) == {"a": f"10.9.0.0/26 {further}"}
        assert one.refused() == []


def test_a_node_whose_only_blocks_are_shut_is_told_where_no_other_is_free() -> None:
    one = Cluster(pools=(PLAIN,))
    one.give(nodes("a"))
    one.pools = (replace(PLAIN, disabled=True), pool("spare", cidr("10.10.0.0/26", 26)))
    assert one.give(nodes("a", b=("10.10.0.0/26",))) == {"a": "10.9.0.0/26", "b": "10.10.0.0/26"}
    (refusal,) = one.refused()
    assert refusal.startswith("node/a PodCIDRsExhausted: no block of 10.10.0.0/26 is free for it")


def test_what_is_reserved_or_services_is_in_no_block_of_a_pool_and_none_is_free_then() -> None:
    reserved = (ip_network("10.8.0.0/25"),)
    one = Cluster(pools=(pool("p", cidr("10.8.0.0/24", 26), reserved=reserved),), vips=("10.8.0.192/32",))
    assert one.give(nodes("a", "b")) == {"a": "10.8.0.128/26"}
    assert one.refused() == [
        "node/b PodCIDRsExhausted: no block of 10.8.0.0/24 is free for it, its pods get no address: "
        "add a CIDR to the pool"
    ]


def test_an_edit_that_leaves_blocks_outside_takes_none_away_and_is_told_with_the_list() -> None:
    one = Cluster(pools=(PLAIN,))
    given = one.give(nodes("a", "b"))
    one.pools = (pool("plain", cidr("10.9.0.64/26", 26)),)
    assert one.give(nodes("a", "b")) == given
    stranded = "lies in no CIDR any more: it keeps them; restore the CIDR, or replace the node"
    assert one.refused() == [f"node/a PodCIDRsStranded: 10.9.0.0/26 of it {stranded}"]
    one.pools = ()
    assert one.give(nodes("a", "b")) == given, "the last pool is deleted"
    assert len(one.refused()) == 2
    configured = Cluster(cidr("10.9.0.0/25", 26))
    configured.blocks = one.blocks
    assert configured.give(nodes("a", "b")) == given and configured.refused() == []


def test_what_is_decided_follows_pools_where_they_are_asked_for() -> None:
    kept, found = Kept(), {"a": Node("a"), "b": Node("b", annotations={POOLS: "gold"})}
    snapshot = replace(cluster.snapshot(nodes=found), pod_pools={"plain": PLAIN})
    asked, not_asked = AssignSettings(pod_pools=True), AssignSettings()

    def blocks(now: float, settings: AssignSettings = asked) -> dict[str, str]:
        nonlocal ledger
        decision = assign(snapshot, ledger, {}, now, settings, kept=kept)
        ledger = decision.ledger
        return {each.node: " ".join(map(str, each.blocks)) for each in decision.allocations.pod_cidrs}

    ledger = Ledger()
    assert blocks(1.0, not_asked) == {}
    assert blocks(2.0) == {"a": "10.9.0.0/26"}
    snapshot = replace(snapshot, pod_pools={"plain": PLAIN, "gold": GOLD})
    assert blocks(3.0) == {"a": "10.9.0.0/26", "b": "10.8.0.0/26 fd00:8::/122"}
    snapshot = replace(snapshot, nodes={**found, "b": Node("b", annotations={POOLS: "gold,plain"})})
    assert blocks(4.0)["b"] == "10.8.0.0/26 10.9.0.64/26 fd00:8::/122"
    snapshot = replace(snapshot, pod_pools={})
    assert blocks(5.0)["b"] == "10.8.0.0/26 10.9.0.64/26 fd00:8::/122"


def test_a_range_of_any_size_is_passed_over_at_once() -> None:
    six = cidr("fd00::/48", 64)
    huge = Cluster(pools=(pool("p", six, reserved=(ip_network("fd00::/49"),)),))
    assert huge.give(nodes("a")) == {"a": "fd00:0:0:8000::/64"}


@pytest.mark.parametrize(
    ("text", "blocks", "of_pools"),
    [
        ("", 0, False),
        ("pod-cidrs: [{cidr: 10.244.0.0/16}]", 1, False),
        ("pod-cidrs: [{cidr: 10.244.0.0/16}]\npod-cidr-source: node", 0, False),
        ("pod-cidr-source: routerd", 0, True),
        ("pod-cidrs: [{cidr: 10.244.0.0/16}]\npod-cidr-source: routerd", 1, True),
    ],
)
def test_where_pod_cidrs_come_from(text: str, blocks: int, of_pools: bool) -> None:
    config = parse_config(f"apiVersion: routerd.io/v1alpha1\nkind: Config\n{text}")
    found = assign_settings(config)
    assert (len(found.pod_cidrs), found.pod_pools) == (blocks, of_pools)
    assert config.gives_blocks == bool(blocks or of_pools)
    assert len(config.cluster_cidrs) == len(config.pod_cidrs)
