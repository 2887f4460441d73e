"""A plan after a plan is the plan from the beginning, whatever is asked, and whatever time passes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.again import Planner
from ipam.plan import Plan, plan
from ipam.pool import PoolSpec, Use
from ipam.round import Record, Request, Timers

TIMERS = Timers(cooldown=10.0, retention=50.0)
ADDRESSES = st.sampled_from(
    [ip_address(text) for text in ("192.0.2.0", "192.0.2.1", "192.0.2.2", "198.51.100.9", "2001:db8::1")]
)
USES = st.builds(Use, st.sampled_from(["", "shared"]), st.sampled_from([frozenset({"tcp/80"}), frozenset({"tcp/443"})]))
OWNERS = st.sampled_from("abcdef")
REQUESTS = st.builds(
    Request,
    OWNERS,
    st.sampled_from(["loadbalancer", "loadbalancer", "egress"]),
    st.sampled_from([(4,), (4, 6), (6, 4)]),
    st.sampled_from(["one", "prefer-all", "all"]),
    st.one_of(st.just(()), st.tuples(ADDRESSES)),
    st.sampled_from(["", "", "p", "nowhere"]),
    st.one_of(st.just(()), st.tuples(ADDRESSES)),
    USES,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "2024", "2025"]),
)
PLAIN = st.builds(Request, OWNERS, st.just("loadbalancer"), created=st.sampled_from(["", "2024", "2025"]))
BOTH = frozenset({"loadbalancer", "egress"})
POOLS = st.sampled_from(
    [
        (
            PoolSpec(
                "p", (ip_network("192.0.2.0/30"), ip_network("2001:db8::/127")), frozenset({"loadbalancer", "egress"})
            ),
        ),
        (PoolSpec("p", (ip_network("192.0.2.0/29"),)), PoolSpec("q", (ip_network("198.51.100.0/30"),), priority=1)),
        (PoolSpec("p", (ip_network("192.0.2.0/30"),), disabled=True),),
    ]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), PLAIN), st.tuples(st.just("ask"), REQUESTS), st.tuples(st.just("go"), OWNERS),
        st.tuples(st.just("status"), OWNERS), st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 11.0, 60.0, -5.0])),
        st.tuples(st.just("pools"), POOLS), st.tuples(st.just("reread"), st.none()),
    ),
    max_size=12,
)  # fmt: skip


def comparable(found: Plan) -> tuple[Any, ...]:
    return found.records, found.grants, sorted(map(str, found.denials)), found.counts, found.next_due


@settings(max_examples=400)
@given(POOLS, STEPS)
def test_a_plan_after_a_plan(pools: tuple[PoolSpec, ...], steps: list[tuple[str, Any]]) -> None:
    planner, requests, now = Planner(), dict[str, Request](), 1000.0
    records: tuple[Record, ...] = ()
    grants: dict[str, Any] = {}
    asked: dict[str, Request] = {}
    for what, value in steps:
        if what == "ask":
            requests[value.owner] = value
        elif what == "go":
            requests.pop(value, None)
        elif what == "status" and value in grants and value in requests:
            requests[value] = replace(requests[value], known=grants[value].addresses)
        elif what == "wait":
            now += value
        elif what == "pools":
            pools = value
        elif what == "reread":
            records = tuple(replace(each) for each in records)
        touched = {owner for owner in asked.keys() | requests.keys() if asked.get(owner) is not requests.get(owner)}
        known = None if what == "wait" else touched
        found = planner.plan(pools, records, asked := dict(requests), now, TIMERS, touched=known)
        assert comparable(found) == comparable(plan(pools, records, requests.values(), now, TIMERS))
        records, grants = found.records, dict(found.grants)


def test_what_is_settled_is_not_planned_again() -> None:
    planner, pools = Planner(), (PoolSpec("p", (ip_network("192.0.2.0/24"),)),)
    requests = {f"o{number}": Request(f"o{number}", "loadbalancer") for number in range(3)}
    records: tuple[Record, ...] = ()
    for count in (1, 1, 2, 3, 3):
        records = planner.plan(pools, records, dict(list(requests.items())[:count]), 1000.0, TIMERS).records
    assert planner.whole == 1 and len(records) == 3


def test_one_that_is_denied_makes_nobody_else_be_served_again() -> None:
    planner, pools = Planner(), (PoolSpec("p", (ip_network("192.0.2.0/24"),)),)
    wrong = Request("wrong", "loadbalancer", pool="nowhere")
    first = planner.plan(pools, (), {"wrong": wrong}, 1000.0, TIMERS)
    asked = {"wrong": wrong, "o": Request("o", "loadbalancer")}
    second = planner.plan(pools, first.records, asked, 1000.0, TIMERS)
    assert planner.whole == 1 and [each.owner for each in second.denials] == ["wrong"] and second.grants.keys() == {"o"}


def test_who_goes_and_who_wants_another_address_moves_nobody_else() -> None:
    planner, pools = Planner(), (PoolSpec("p", (ip_network("192.0.2.0/24"),)),)
    asked = {f"o{number}": Request(f"o{number}", "loadbalancer") for number in range(4)}
    records = planner.plan(pools, (), asked, 1000.0, TIMERS).records
    moved = replace(asked["o1"], addresses=(ip_address("192.0.2.77"),))
    for wanted in ({**asked, "o1": moved}, {"o0": asked["o0"], "o1": moved}):
        found = planner.plan(pools, records, wanted, 1000.0, TIMERS)
        assert comparable(found) == comparable(plan(pools, records, wanted.values(), 1000.0, TIMERS))
        records = found.records
    assert planner.whole == 1
