"""What a soak says of memory."""

from __future__ import annotations

from tests.netns.stories.soak import Outcome, growth


def test_growth_is_from_the_first_quarter_of_the_run_to_its_end() -> None:
    sizes = [(0.0, {"agent": 10}), (20.0, {"agent": 40}), (50.0, {"agent": 44}), (80.0, {"agent": 48})]
    assert growth(sizes) == {"agent": (40, 48)}


def test_a_run_of_one_turn_tells_no_growth() -> None:
    outcome = Outcome(seed=1, growth=growth([(0.0, {"agent": 10}), (30.0, {"agent": 11})]))
    assert outcome.growth == {}
    assert [(row.measured, row.bar) for row in outcome.rows() if "growth" in row.what] == [("too short a run", "")]
