"""A short run of `make chaos`: five kills each. The seed is in the message of a failure and in the captured output."""

from __future__ import annotations

import os
import random
import sys

from tests.netns.lab.transcript import Transcript
from tests.netns.stories.chaos import chaos, complaints

KILLS, LIMIT = 4, 45.0  # seconds


def test_kills_at_random_moments_lose_nothing(clean_labs: list[str]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    told = Transcript(sys.stdout)
    told.say(f"seed {seed}")
    outcome = chaos(f"k{os.getpid()}", KILLS, seed, told, LIMIT)
    told.table(outcome.rows())
    assert complaints(outcome) == [], f"seed {seed}"
    assert sum(outcome.kills.values()) >= 3
    assert outcome.new_connections > 20
    assert outcome.echoes > 60
