"""The verifier has about as much to do as what is recorded; tests/package/test_kernel_floor.py asks Linux 6.1, too."""

from __future__ import annotations

import os

import pytest

from tests.bpf.verified import MOST, Counts, complaints, place, recorded
from tests.bpf.world import World
from tests.package.packet_check import all_verified


def test_the_verifier_has_no_more_to_do_than_before(world: World) -> None:
    assert complaints(all_verified(world.pins), recorded().get(place(os.uname().release))) == []


@pytest.mark.parametrize(
    ("known", "found", "told"),
    [
        ({"a": 1000, "b": 10}, {"a": 1100, "b": 10}, 0),
        ({"a": 1000, "b": 10}, {"a": 1101, "b": 10}, 1),
        ({"a": 1000}, {"a": 1000, "new": MOST}, 0),
        ({"a": 1000}, {"a": 1000, "new": MOST + 1}, 1),
        (None, {"a": MOST}, 0),
        (None, {"a": MOST + 1, "b": MOST + 1}, 2),
    ],
    ids=["a little", "growth", "a new program", "a large one", "a kernel without counts", "too many there"],
)
def test_growth_is_told(known: Counts | None, found: Counts, told: int) -> None:
    said = complaints(found, known)
    assert len(said) == told
    assert all("make verified" in each for each in said)
