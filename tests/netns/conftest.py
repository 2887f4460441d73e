"""Labs for tests: one per module; leftovers of a run that was killed are removed before the first."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.lab.lab import Lab, remove_orphans


@pytest.fixture(scope="session")
def clean_labs() -> list[str]:
    """Names of the labs that killed runs had left."""
    return remove_orphans()


@pytest.fixture(scope="module")
def lab(clean_labs: list[str]) -> Iterator[Lab]:
    """A lab without pods and without routerd."""
    with Lab(f"t{os.getpid()}") as built:
        yield built
