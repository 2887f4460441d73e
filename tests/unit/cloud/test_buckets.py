"""Token buckets: never more calls than the rate allows, and a rest after the cloud itself has throttled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud.buckets import LAST_REST, Buckets, Rate

RATES = {"A": Rate(2.0, 3)}


def taken(buckets: Buckets, now: float) -> tuple[Buckets, int]:
    count = 0
    while (left := buckets.take("A", now)) is not None:
        buckets, count = left, count + 1
    return buckets, count


def test_a_burst_then_the_rate() -> None:
    buckets, count = taken(Buckets(RATES), 100.0)
    assert count == 3
    assert buckets.wait("A", 100.0) == 0.5
    assert taken(buckets, 101.0)[1] == 2
    assert taken(buckets, 1000.0)[1] == 3


def test_one_action_costs_another_nothing() -> None:
    buckets, _ = taken(Buckets(RATES), 100.0)
    assert buckets.take("B", 100.0) is not None


def test_each_further_throttling_rests_longer_until_a_call_is_answered() -> None:
    buckets, now, rests = Buckets(RATES), 100.0, []
    for _ in range(8):
        buckets = buckets.throttled("A", now)
        rests.append(buckets.wait("A", now) - 0.5)
        assert buckets.take("A", now) is None
        now += buckets.wait("A", now)
        assert buckets.take("A", now) is not None
    assert rests[:4] == [1.0, 2.0, 4.0, 8.0]
    assert rests[-1] == LAST_REST
    buckets = buckets.answered("A", now).throttled("A", now)
    assert round(buckets.wait("A", now), 6) == 1.5


def test_calls_of_one_moment_that_are_all_throttled_rest_once() -> None:
    buckets = Buckets(RATES)
    for _ in range(5):
        buckets = buckets.throttled("A", 100.0)
    assert buckets.wait("A", 100.0) == 1.5


@given(st.lists(st.floats(0, 5), max_size=50))
def test_never_more_than_the_rate_allows(pauses: list[float]) -> None:
    buckets, now, total = Buckets(RATES), 0.0, 0
    for pause in pauses:
        now += pause
        buckets, count = taken(buckets, now)
        total += count
        assert total <= 3 + 2.0 * now + 1e-6
