"""The snapshot: each part that may not have been read yet has words of its own."""

from __future__ import annotations

from dataclasses import fields

from routerd.model import PARTS, Allocations, Snapshot
from tests.models import cluster


def test_every_part_that_can_be_unread_has_words_of_its_own() -> None:
    unreadable = {"unread"}  # says why there are no allocations
    assert set(PARTS) == {each.name for each in fields(Snapshot) if each.default is None} - unreadable
    assert len(set(PARTS.values())) == len(PARTS)


def test_what_is_missing_is_said_in_words() -> None:
    snapshot = Snapshot(nodes={}, pods={})
    assert snapshot.missing(("nodes", "bgp", "endpoint_slices")) == ("BGP peers", "endpoint slices")
    assert Snapshot().missing() == tuple(PARTS.values())


def test_all_can_be_read_before_the_operator_has_published() -> None:
    assert cluster.snapshot(allocations=None).is_synced
    assert not cluster.snapshot(allocations=Allocations(), policies=None).is_synced
