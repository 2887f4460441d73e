"""Records in parts: what is written reads back, one change makes one part anew, and nothing grows too large."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routerd.errors import InputError
from routerd.formats.published import parts
from routerd.formats.published.parts import PART_SIZE, Assembly, Incomplete, Part, spans
from routerd.formats.published.tables import TABLES
from routerd.formats.published.whole import AllocationsReader, AllocationsWriter, Published
from routerd.model import Allocations
from routerd.store.kubernetes.documents import LedgerText
from tests.models.many import DECISIONS, allocations_of, ledger_of, small_parts

KIB = 1 << 10


def texts(found: tuple[Part, ...]) -> dict[str, str]:
    return {part.name: part.text for part in found}


@given(st.lists(st.integers(0, 3 * PART_SIZE) | st.just(0), min_size=64, max_size=64))
def test_parts_hold_every_bucket_once_and_only_single_ones_are_large(sizes: list[int]) -> None:
    found = list(spans(sizes))
    held = [bucket for span in found for bucket in span]
    assert held == sorted(set(held))
    assert all(not sizes[bucket] for bucket in set(range(64)) - set(held))
    assert all(0 < sum(sizes[bucket] for bucket in span) <= PART_SIZE or len(span) == 1 for span in found)


@given(st.lists(DECISIONS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_decisions_read_back_whatever_was_written_before(decisions: list[Allocations]) -> None:
    with small_parts():
        writer, reader = AllocationsWriter(), AllocationsReader()
        for decision in decisions:
            published = writer.written(decision)
            assert published == AllocationsWriter().written(decision)
            fetch = texts(published.parts).get
            assert reader.read(published.text, "f", fetch) == decision
            assert AllocationsReader().read(published.text, "f", fetch) == decision


@pytest.mark.parametrize("count", [1, 500, 10_000])
def test_a_small_decision_is_one_document_and_a_large_one_an_index(count: int) -> None:
    published = AllocationsWriter().written(allocations_of(count, 3))
    assert (published.parts == ()) == (count < 1000) == ("services:" in published.text)


def test_one_change_makes_one_part_anew() -> None:
    writer, before = AllocationsWriter(), allocations_of(10_000, 100)
    first = texts(writer.written(before).parts)
    for number in (0, 5000, 9999):
        services = list(before.services)
        services[number] = replace(services[number], addresses=(ip_address("192.0.2.1"),))
        assert len(texts(writer.written(replace(before, services=tuple(services))).parts).keys() - first.keys()) == 1
    assert texts(writer.written(before).parts) == first


def test_a_part_that_was_read_is_not_asked_for_again() -> None:
    writer, reader, asked = AllocationsWriter(), AllocationsReader(), Counter[str]()
    before = allocations_of(5000, 0)
    after = replace(before, generation=2, services=before.services[1:])

    def read(published: Published) -> Allocations:
        def fetch(name: str) -> str | None:
            asked[name] += 1
            return texts(published.parts).get(name)

        return reader.read(published.text, "f", fetch)

    first, second = writer.written(before), writer.written(after)
    assert (read(first), read(second)) == (before, after)
    assert set(asked.values()) == {1}
    assert len(asked) == len(first.parts) + 1


def test_missing_cut_and_foreign_parts_are_named() -> None:
    with small_parts():
        published = AllocationsWriter().written(allocations_of(20, 2))
    whole = texts(published.parts)
    name, text = next(iter(whole.items()))
    for damaged in (None, text[:-1], "", "é"):
        with pytest.raises(Incomplete, match=f"f: part {name} is missing or cut$") as caught:
            AllocationsReader().read(published.text, "f", {**whole, name: damaged}.get)
        assert str(caught.value).startswith("f: part")
    with pytest.raises(Incomplete, match=f"missing or cut .and {len(whole) - 1} more of {len(whole)}.$"):
        AllocationsReader().read(published.text, "f", {}.get)


@pytest.mark.parametrize("line", ['["dreams","a"]', '["services"]', '["services","a","p",["x"]]', "[", "{}", "[]"])
def test_a_part_of_a_newer_routerd_is_refused(line: str) -> None:
    (part,) = (parts._part(f"{line}\n"),)
    with pytest.raises(InputError, match=f"part {part.name} is not understood: .*newer routerd") as caught:
        Assembly(TABLES).records([part.name], lambda name: part.text)
    assert not isinstance(caught.value, Incomplete)


def test_a_hundred_thousand_services_and_a_thousand_groups_fit() -> None:
    """Allocations and ledger, each object far below the megabyte of a ConfigMap."""
    decision, ledger = allocations_of(100_000, 1000), ledger_of(100_000, 1000)
    published = AllocationsWriter().written(decision)
    data, recorded = LedgerText().written(ledger, ())
    for index, found in ((published.text, published.parts), ("".join(data.values()), recorded)):
        assert max(len(part.text) for part in found) < 256 * KIB
        assert 50 < len(found) < 500
        assert len(index) < 64 * KIB
    assert AllocationsReader().read(published.text, "f", texts(published.parts).get) == decision
    assert LedgerText().read(data, texts(recorded).get) == (ledger, ())
