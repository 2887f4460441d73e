"""The datapath, loaded once per module; a second one with tables so small that they fill."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.world import SMALL, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    built = World(f"rbpf{os.getpid()}")
    yield built
    built.close()


@pytest.fixture(scope="module")
def small_world() -> Iterator[World]:
    built = World(f"rbpfs{os.getpid()}", SMALL)
    yield built
    built.close()
