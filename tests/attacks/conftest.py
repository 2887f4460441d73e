"""The whole product in a lab, which each file of attacks has to itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import Lab, remove_orphans
from tests.netns.lab.stores import Files
from tests.netns.stories.story import Story, build, fetch_vip, sessions_up, tor_table, write_manifests


@pytest.fixture(scope="session")
def clean_labs() -> list[str]:
    """Names of the labs that killed runs had left."""
    return remove_orphans()


@pytest.fixture(scope="module")
def story(clean_labs: list[str]) -> Iterator[Story]:
    """Operator, speakers and agents, the ToR's sessions up, VIP and egress IPs announced."""
    with Lab(f"a{os.getpid()}") as lab:
        running = Story(lab, Daemons(lab), time.monotonic(), Files(lab))
        for scene in (build, write_manifests, sessions_up, tor_table, fetch_vip):
            scene(running)
        yield running
