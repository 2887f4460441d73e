"""The whole product in a lab, which each file of attacks has to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.lab.lab import Lab
from tests.netns.stories.story import Story, started


@pytest.fixture(scope="module")
def story(clean_labs: list[str]) -> Iterator[Story]:
    """Operator, speakers and agents, the ToR's sessions up, VIP and egress IPs announced."""
    with Lab(f"a{os.getpid()}") as lab:
        yield started(lab)
