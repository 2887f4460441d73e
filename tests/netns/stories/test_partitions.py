"""A few faults of `make partitions`, drawn anew each time. The seed is in the message of a failure."""

from __future__ import annotations

import os
import random
import sys

from tests.netns.lab.transcript import Transcript
from tests.netns.stories.partitions import Outcome, beside, failures, partitions, play, running

FAILURES, PARTITIONS = 2, 2
HOLD = (1.5, 2.5)  # seconds


def test_gateways_processes_and_links_fail_and_nothing_is_lost(clean_labs: list[str]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng, outcome, told = random.Random(seed), Outcome(seed), Transcript(sys.stdout)
    with running(f"p{os.getpid()}") as site:
        short = [each for each in failures(site, rng) if not each.by_store]  # the others are in `make partitions`
        drawn = [*rng.sample(short, FAILURES), *rng.sample(partitions(site, rng), PARTITIONS)]
        play(site, told, outcome, [beside(each, rng) for each in drawn], HOLD)
    assert outcome.faults == [], f"seed {seed}"
    assert outcome.played == FAILURES + PARTITIONS
    assert outcome.new > 10
    assert outcome.echoes > 30
