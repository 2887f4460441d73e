"""The snapshot: each part that may not have been read yet has words of its own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from routerd.model import HALFWAY, OF_PORTS, ORDINARY, PARTS, Allocations, Refusal, Snapshot
from routerd.refs import Ref
from tests.models import cluster

ROOT = Path(__file__).resolve().parents[2]


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


def test_reasons_that_are_less_than_errors_are_those_of_refusals() -> None:
    rooms = ("routerd", "bgp", "cloud", "egress", "eni", "fib", "ipam")
    sources = [each for room in rooms for each in (ROOT / room).rglob("*.py")]
    code = "".join(each.read_text() for each in sources if each.name != "model.py")
    assert {reason for reason in (ORDINARY | HALFWAY) - {*OF_PORTS} if f'"{reason}"' not in code} == set()
    assert not ORDINARY & HALFWAY


def test_refusals_of_the_same_object_are_told_the_gravest_first() -> None:
    refusals = [Refusal(Ref("node"), reason, "") for reason in ("NodeExcluded", "ForwardingOff", "UplinkMissing")]
    assert [each.severity for each in refusals] == ["info", "warning", "error"]
    assert sorted(refusals, key=lambda each: each.gravity) == refusals[::-1]
