"""Random lives of instances with faults at any step: no address with two owners, and nothing left behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.cloud.faulty import FRONTS, Life, seeded


@pytest.mark.parametrize("provider", FRONTS)
@pytest.mark.parametrize("prefixes", [False, True])
def test_a_long_life(prefixes: bool, provider: str) -> None:
    life = seeded(2, 250, prefixes=prefixes, provider=provider)
    assert min(life.steps[name] for name in Life.STEPS) > 0


@settings(max_examples=10, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from(sorted(FRONTS)))
def test_short_lives(data: st.DataObject, prefixes: bool, provider: str) -> None:
    life = Life(lambda options: data.draw(st.sampled_from(options)), prefixes, FRONTS[provider])
    try:
        for _ in range(12):
            life.step()
        life.calm()
    finally:
        life.close()
