"""A ledger older than the published document moves nothing: what is published is taken over first."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.round import Record
from routerd.cluster.adopt import adopt, digest_of, is_foreign
from routerd.cluster.assign import AssignSettings
from routerd.cluster.ledger import GroupRecord, Ledger, difference
from routerd.model import Allocations, EgressGroup, Refusal, ServiceAllocation, Writer
from routerd.refs import Ref
from routerd.store.embedded.ledger import SqliteLedger
from tests.models.many import allocations_of
from tests.models.operator_world import World

A, B, C = map(ip_address, ("192.0.2.0", "192.0.2.1", "192.0.2.2"))


def published(generation: int, *services: tuple[str, str], groups: tuple[EgressGroup, ...] = ()) -> Allocations:
    given = tuple(ServiceAllocation(f"d/{name}", "p", (ip_address(text),)) for name, text in services)
    return Allocations(generation, given, groups)


def used(text: str, owner: str, **fields: object) -> Record:
    values: dict[str, object] = {"state": "used", "since": 1.0}
    return Record(ip_address(text), owner, "p", **{**values, **fields})  # type: ignore[arg-type]


def test_an_operator_with_an_older_ledger_moves_no_live_address() -> None:
    world = World()
    world.pool("p", "192.0.2.0/29")
    world.service("a")
    world.decide()
    old = world.ledger
    del world.services["d/a"]
    world.service("b")
    world.decide(1000)
    world.service("c")
    world.decide(7000)
    world.service("a")
    live = world.decide(100)
    generation = world.allocations.generation
    world.ledger = old
    assert world.decide(100) == live
    assert world.allocations.generation == generation  # and so nothing is written
    assert world.last is not None and world.last.adopted
    assert world.last.conflicts == ("192.0.2.0 was used for svc/d/a: published for another",)
    world.decide()
    assert not world.last.adopted


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.integers(0, 60)), min_size=2), st.data())
def test_whatever_the_ledger_was_adopting_changes_nothing(
    edits: list[tuple[str, bool, int]], data: st.DataObject
) -> None:
    world, ledgers = World(), []
    world.pool("p", "192.0.2.0/29")
    for name, is_there, seconds in edits:
        world.service(name) if is_there else world.services.pop(f"d/{name}", None)
        world.policy(name) if is_there and name < "c" else world.policies.pop(f"EgressPolicy/{name}", None)
        live = world.decide(seconds)
        ledgers.append(world.ledger)
    world.ledger = data.draw(st.sampled_from(ledgers))
    # What had cooled down or was bound is not published: a refusal may go, an address may not move.
    assert {line for line in live.splitlines() if line[0] != "!"} <= set(world.decide().splitlines())


def test_what_an_owner_left_cools_down_or_stays_bound_to_it() -> None:
    ledger = Ledger(1, "x", 1, (used(str(A), "svc/d/a"), used(str(C), "svc/d/gone", state="reserved", bound=True)))
    found = adopt(ledger, published(5, ("a", str(B))), None, 9.0)
    assert [(str(r.address), r.owner, r.state, r.since) for r in found.ledger.addresses] == [
        ("192.0.2.0", "svc/d/a", "cooling", 9.0),
        ("192.0.2.1", "svc/d/a", "used", 9.0),
        ("192.0.2.2", "svc/d/gone", "reserved", 1.0),
    ]
    assert found.conflicts == ("192.0.2.0 was used by svc/d/a: published with another address",)


def test_a_reservation_gives_way_to_what_is_published() -> None:
    ledger = Ledger(1, "x", 1, (used(str(A), "EgressPolicy/old", state="reserved", bound=True),))
    found = adopt(ledger, published(5, ("a", str(A))), None, 9.0)
    assert [record.owner for record in found.ledger.addresses] == ["svc/d/a"]
    assert found.conflicts == ("192.0.2.0 was reserved for EgressPolicy/old: published for another",)


def test_group_numbers_and_gateways_are_the_published_ones(tmp_path: Path) -> None:
    both = ("g1", "g2")
    ours = (
        GroupRecord(1, A, "active", 1.0, ("g9",)),
        GroupRecord(2, B, "active", 1.0, both),
        GroupRecord(3, C, "active", 1.0, ("g1",)),
        GroupRecord(9, ip_address("192.0.2.9"), "retired", 1.0),
    )
    theirs = (EgressGroup(1, B, ("EgressPolicy/b",), both), EgressGroup(2, A, ("EgressPolicy/a",), both),
              EgressGroup(3, C, ("EgressPolicy/c",), ("g2",)))  # fmt: skip
    before = Ledger(1, "x", 4, (), ours)
    found = adopt(before, published(8, groups=theirs), None, 9.0)
    assert [(g.id, str(g.egress_ip), g.gateways) for g in found.ledger.groups] == [
        (1, "192.0.2.1", both), (2, "192.0.2.0", both), (3, "192.0.2.2", ("g2",)), (9, "192.0.2.9", ()),
    ]  # fmt: skip
    assert found.conflicts == (
        "group 1 was 192.0.2.0: published as group 2, 192.0.2.0",
        "group 2 was 192.0.2.1: published as group 1, 192.0.2.1",
    )
    file = SqliteLedger(tmp_path / "ledger")  # two groups that exchange their addresses can be recorded
    try:
        file.record(difference(Ledger(), before, 1.0))
        file.record(difference(before, found.ledger, 2.0))
        assert file.read() == found.ledger
    finally:
        file.close()


def test_our_own_newest_document_is_not_taken_for_anothers() -> None:
    world = World(AssignSettings(writer=Writer("n", "ours", 1)))
    world.pool("p", "192.0.2.0/29")
    world.service("a")
    world.decide()
    assert adopt(world.ledger, world.allocations, Writer("n", "ours", 2), 1.0).ledger is world.ledger


def test_the_same_generation_of_another_operator_is_taken_over_if_it_says_otherwise() -> None:
    own, other = Writer("n", "ours", 1), Writer("m", "theirs", 1)
    ledger = Ledger(5, "x", 1, (used(str(A), "svc/d/a"),))
    document = replace(published(5, ("a", str(B))), writer=other)
    assert adopt(ledger, document, own, 9.0).is_taken
    assert not adopt(ledger, replace(document, writer=own), own, 9.0).is_taken


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Writer("n", "l", 3), False),
        (Writer("n", "l", 2), False),
        (Writer("m", "l", 2), False),  # a former leader
        (Writer("n", "l", 4), True),
        (Writer("m", "l", 3), True),  # a copied ledger
        (Writer("n", "k", 1), True),
        (None, False),
    ],
)
def test_who_is_foreign(other: Writer | None, expected: bool) -> None:
    assert is_foreign(other, Writer("n", "l", 3)) is expected


def test_a_digest_is_of_what_is_written_and_not_of_how_python_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = Refusal(Ref.parse("svc/d/a"), "PoolExhausted", "no address is left")
    allocations = replace(allocations_of(3, 2), refusals=(refusal,))
    before = digest_of(allocations)
    for shown in (Ref, Refusal, EgressGroup):
        monkeypatch.setattr(shown, "__repr__", lambda each: "another release")
    assert digest_of(allocations) == before
    assert digest_of(replace(allocations, generation=9, writer=Writer("n", "l", 1))) == before
    for changed in (
        replace(allocations, refusals=(replace(refusal, message="é"),)),
        replace(allocations, groups=allocations.groups[1:]),
        replace(allocations, groups=(replace(allocations.groups[0], gateways=("n",)), allocations.groups[1])),
        replace(allocations, services=allocations.services[1:]),
    ):
        assert digest_of(changed) != before
