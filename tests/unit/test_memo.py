"""What is kept between rounds says the same as what is computed anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from routerd.memo import STEPS, Derived, Last, PerObject, Renewed, Tally, UntilDue, by_identity, differing

OBJECTS = [tuple(range(first, last)) for first in range(4) for last in range(first, 5)]
MAPPINGS = st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(OBJECTS)), max_size=6)


@given(MAPPINGS)
def test_a_tally_says_what_came_and_what_went(mappings: list[dict[str, tuple[int, ...]]]) -> None:
    tally: Tally[tuple[int, ...], int] = Tally(lambda each: each)
    known: set[int] = set()
    for mapping in mappings:
        added, removed = tally.update(mapping)
        known = (known | added) - removed
        whole = Counter(number for each in mapping.values() for number in each)
        assert tally.values == whole and known == set(whole)
        assert not added & removed


@given(MAPPINGS)
def test_differing_objects(mappings: list[dict[str, tuple[int, ...]]]) -> None:
    before: dict[str, tuple[int, ...]] = {}
    for now in mappings:
        put, gone = differing(before, now)
        assert put == [key for key in now if before.get(key) is not now[key]]
        assert sorted(gone) == sorted(before.keys() - now.keys())
        before = now


@given(MAPPINGS, st.integers(1, STEPS + 2))
def test_a_mapping_knows_what_was_changed_in_it(mappings: list[dict[str, tuple[int, ...]]], back: int) -> None:
    made: list[Renewed[str, tuple[int, ...]]] = [Renewed()]
    for now in mappings * 3:
        put, gone = differing(dict(made[-1]), now)
        made.append(Renewed(now, made[-1], (*put, *gone, "a")))  # one that was touched need not be another
        assert made[-1] == now
        before = made[max(len(made) - 1 - back, 0)]
        known = made[-1].touched_since(before)
        assert (known is None) == (len(made) - 1 - made.index(before, max(len(made) - 1 - back, 0)) > STEPS)
        for found, expected in zip(differing(before, made[-1]), differing(dict(before), now), strict=True):
            assert sorted(found) == sorted(expected)


@given(MAPPINGS)
def test_what_is_derived(mappings: list[dict[str, tuple[int, ...]]]) -> None:
    def named(each: tuple[int, ...]) -> tuple[tuple[int, ...], int] | None:
        return (each, sum(each)) if each else None

    derived = Derived(named)
    before, copied = derived({}), dict[tuple[int, ...], int]()
    for mapping in mappings:
        unique = {
            key: each for key, each in mapping.items() if list(mapping.values()).index(each) == [*mapping].index(key)
        }
        now = derived(unique)
        assert now == {each: sum(each) for each in unique.values() if each}
        assert before == copied and (now is before) == (now == before)
        assert derived(unique) is now
        before, copied = now, dict(now)


def test_objects_without_a_key() -> None:
    assert list(by_identity([(1,), (2,)]).values()) == [(1,), (2,)]


@given(st.lists(st.lists(st.sampled_from(OBJECTS)), max_size=5))
def test_what_is_made_per_object(lists: list[list[tuple[int, ...]]]) -> None:
    made: list[tuple[int, ...]] = []
    total = PerObject[tuple[int, ...], int](lambda each: made.append(each) or sum(each))  # type: ignore[func-returns-value]
    before: list[tuple[int, ...]] = []
    for objects in lists:
        made.clear()
        assert list(total(objects)) == [sum(each) for each in objects]
        assert sorted(map(id, made)) == sorted(set(map(id, objects)) - set(map(id, before)))
        before = objects


def test_what_was_made_last() -> None:
    made: list[int] = []
    last: Last[int] = Last()
    for number in (1, 1, 2, 1):
        assert last(lambda one: made.append(one) or one, number) == number  # type: ignore[func-returns-value]
    assert made == [1, 2, 1]


@dataclass(frozen=True)
class Due:
    made: float
    next_due: float | None


def test_what_was_decided_is_decided_anew_when_it_is_due_and_when_the_clock_was_set_back() -> None:
    last: UntilDue[Due] = UntilDue()
    made = []
    for now, wish in ((1.0, "a"), (10.9, "a"), (11.0, "a"), (20.0, "b"), (19.0, "b"), (28.9, "b")):
        due = Due(now, now + 10)
        made.append(last(lambda due=due: due, now, wish).made)  # type: ignore[misc]
    assert made == [1.0, 1.0, 11.0, 20.0, 19.0, 19.0]
