"""What is known of the kernel's large tables without reading them is what reading them would tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.host.recent import KEPT_FOR, RecentEntries, RecentTable

KEYS, VALUES = st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2", None])
STEPS = st.lists(st.one_of(st.dictionaries(KEYS, VALUES), st.sampled_from(["read", "forget", "wait"])), max_size=12)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.dictionaries(KEYS, st.just(b"0")), STEPS)
def test_entries_that_were_written_are_known(
    there: dict[bytes, bytes], steps: list[dict[bytes, bytes | None] | str]
) -> None:
    clock = Clock()
    recent = RecentEntries(clock)
    for step in steps:
        if isinstance(step, dict):
            for key, value in step.items():
                there.pop(key, None)
                there |= {key: value} if value is not None else {}
            recent.note(step)
        elif step == "forget":
            recent.forget()
        else:
            clock.now += KEPT_FOR * (step == "wait")
        assert recent.get(there.copy) == there


def test_entries_are_read_anew_after_some_seconds_and_stay_the_same_object() -> None:
    clock, there = Clock(), {b"a": b"1"}
    recent = RecentEntries(clock)
    first = recent.get(there.copy)
    clock.now = KEPT_FOR - 1
    assert recent.get(dict) is first
    clock.now = KEPT_FOR
    assert recent.get(there.copy) is first
    clock.now = 2 * KEPT_FOR
    assert recent.get(lambda: {b"a": b"2"}) == {b"a": b"2"}


@dataclass
class Ruleset:
    """Of a kernel: a table of ours, and transactions of everybody."""

    table: str = "old"
    generation: int | None = 7
    reads: list[str] = field(default_factory=list)

    def read(self) -> str:
        self.reads.append(self.table)
        return self.table

    def commit(self, table: str, transactions: int = 1) -> None:
        self.table = table
        if self.generation is not None:
            self.generation += transactions

    def recent(self, clock: Clock | None = None) -> RecentTable[str]:
        return RecentTable(clock or Clock(), lambda: self.generation)


def test_a_table_is_read_once_until_anybody_commits() -> None:
    rules = Ruleset()
    recent = rules.recent()
    assert [recent.get(rules.read) for _ in range(3)] == ["old"] * 3
    assert rules.reads == ["old"]
    rules.commit("theirs")
    assert (recent.get(rules.read), rules.reads) == ("theirs", ["old", "theirs"])


def test_a_table_that_was_written_is_known_and_read_after_some_seconds() -> None:
    rules, clock = Ruleset(), Clock()
    recent = rules.recent(clock)
    recent.get(rules.read)
    recent.write("old", "new", lambda: rules.commit("new"))
    assert (recent.get(rules.read), rules.reads) == ("new", ["old"])
    clock.now = KEPT_FOR
    assert (recent.get(rules.read), rules.reads) == ("new", ["old", "new"])
    clock.now = 3 * KEPT_FOR
    assert (recent.get(rules.read), rules.reads) == ("new", ["old", "new"]), "the kernel says that it is the same"


@pytest.mark.parametrize(("present", "transactions"), [("old", 2), ("other", 1)])
def test_a_table_into_which_another_may_have_written_is_read(present: str, transactions: int) -> None:
    rules = Ruleset()
    recent = rules.recent()
    recent.get(rules.read)
    recent.write(present, "new", lambda: rules.commit("mixed", transactions))
    assert (recent.get(rules.read), rules.reads) == ("mixed", ["old", "mixed"])


def test_what_changed_while_it_was_read_is_read_again() -> None:
    rules = Ruleset()
    recent = rules.recent()

    def disturbed() -> str:
        rules.commit("whole")
        return "half"

    assert [recent.get(disturbed), recent.get(rules.read)] == ["half", "whole"]


def test_a_table_is_read_anew_when_a_device_that_it_holds_has_gone() -> None:
    rules = Ruleset()
    recent = rules.recent()
    assert [recent.get(rules.read, index) for index in (2, 2, 3)] == ["old"] * 3
    assert len(rules.reads) == 2


def test_without_a_generation_every_look_reads() -> None:
    rules = Ruleset(generation=None)
    recent = rules.recent()
    recent.get(rules.read)
    recent.write("old", "new", lambda: rules.commit("new"))
    assert (recent.get(rules.read), recent.get(rules.read), rules.reads) == ("new", "new", ["old", "new", "new"])


def test_what_was_refused_is_read() -> None:
    rules = Ruleset()
    recent = rules.recent()
    recent.get(rules.read)

    def refused() -> None:
        raise OSError("nft: no")

    with pytest.raises(OSError, match="nft"):
        recent.write("old", "new", refused)
    assert (recent.get(rules.read), rules.reads) == ("old", ["old", "old"])
