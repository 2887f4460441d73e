"""Watermarks: how many addresses are fetched, and how many are too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.need import Watermarks, excess, needed

NUMBERS = st.integers(0, 200)
MARKS = st.builds(Watermarks, NUMBERS, NUMBERS, st.just(0), NUMBERS)


@pytest.mark.parametrize(
    ("marks", "available", "used", "pending", "fetched", "too_many"),
    [
        (Watermarks(), 0, 0, 0, 8, 0),
        (Watermarks(), 8, 0, 0, 0, 0),
        (Watermarks(), 8, 1, 0, 1, 0),
        (Watermarks(), 8, 8, 50, 58, 0),
        (Watermarks(), 60, 2, 0, 0, 50),
        (Watermarks(minimum=20), 0, 0, 0, 20, 0),
        (Watermarks(minimum=20), 30, 0, 0, 0, 10),
        (Watermarks(above=5), 8, 1, 0, 6, 0),
        (Watermarks(above=5), 14, 1, 0, 0, 0),
        (Watermarks(maximum=10), 8, 8, 50, 2, 0),
        (Watermarks(maximum=10), 12, 12, 50, 0, 0),
    ],
)
def test_examples(
    marks: Watermarks, available: int, used: int, pending: int, fetched: int, too_many: int
) -> None:  # fmt: skip
    assert needed(marks, available, used, pending) == fetched
    assert excess(marks, available, used, pending) == too_many


@given(MARKS, NUMBERS, NUMBERS, NUMBERS)
def test_what_is_fetched_is_never_too_much_and_then_enough(
    marks: Watermarks, available: int, used: int, pending: int
) -> None:  # fmt: skip
    after = available + needed(marks, available, used, pending)
    assert needed(marks, after, used, pending) == 0
    if after > available:
        assert excess(marks, after, used, pending) == 0


@given(MARKS, NUMBERS, NUMBERS, NUMBERS)
def test_what_is_released_is_not_fetched_again(marks: Watermarks, available: int, used: int, pending: int) -> None:
    after = available - excess(marks, available, used, pending)
    assert after == available or needed(marks, after, used, pending) == 0
