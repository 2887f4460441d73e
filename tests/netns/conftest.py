"""A lab for each module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.lab.lab import Lab


@pytest.fixture(scope="module")
def lab(clean_labs: list[str]) -> Iterator[Lab]:
    """A lab without pods and without routerd."""
    with Lab(f"t{os.getpid()}") as built:
        yield built
