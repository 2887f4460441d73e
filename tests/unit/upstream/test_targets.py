"""When what is upstream of a gateway counts as lost, and when it is back."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstream.targets import Rules, Target, Upstream

ONE, TWO = Target("icmp", ip_address("203.0.113.1")), Target("tcp", ip_address("2001:db8::1"), 443)
RULES = Rules((ONE, TWO), failure_threshold=3, success_threshold=2)
NO = "no answer within 1 s"


def told(rules: Rules, rounds: str, start: Upstream | None = None) -> str:
    """Each round is a character: which targets answer. "L" where it counts as lost then, "." where not."""
    answering = {"b": (ONE, TWO), "1": (ONE,), "2": (TWO,), "-": ()}
    state, found = start or Upstream(), ""
    for each in rounds:
        state = state.after({target: "" if target in answering[each] else NO for target in rules.targets}, rules)
        found += "L" if state.is_lost else "."
    return found


@pytest.mark.parametrize(
    ("require", "rounds", "lost"),
    [
        ("any", "bb---------bb", "....LLLLLLLL."),
        ("any", "--b--b--b---b", "...........LL"),  # fails twice at most, again and again; then three times
        ("any", "1111112222111", "............."),
        ("any", "---b-b-b--bb", "..LLLLLLLLL."),  # one answer now and then brings nothing back
        ("all", "b111111bb", "...LLLLL."),
        ("all", "111---22", "..LLLLLL"),
    ],
)  # fmt: skip
def test_hysteresis(require: str, rounds: str, lost: str) -> None:
    assert told(replace(RULES, require=require), rounds) == lost[: len(rounds)]  # type: ignore[arg-type]


def test_what_was_lost_before_a_process_began_is_lost_until_it_answers() -> None:
    assert told(RULES, "-b-bb", Upstream(is_lost=True)) == "LLLL."


@given(st.lists(st.sampled_from("b12-"), max_size=40).map("".join), st.integers(1, 5), st.integers(1, 5))
def test_it_turns_only_after_as_many_in_a_row(rounds: str, failures: int, successes: int) -> None:
    rules = replace(RULES, targets=(ONE,), failure_threshold=failures, success_threshold=successes)
    lost = told(rules, rounds)
    for place, (before, now) in enumerate(zip("." + lost, lost, strict=False)):
        last = rounds[max(0, place + 1 - (failures if now == "L" else successes)) : place + 1]
        if before != now:
            assert len(last) == (failures if now == "L" else successes)
            assert all((each in "b1") == (now == ".") for each in last)


def test_what_cannot_be_asked_stands() -> None:
    lost = Upstream(is_lost=True)
    assert lost.unasked("it may not") == replace(lost, problem="it may not")
    assert lost.unasked("it may not").after({ONE: NO, TWO: NO}, RULES).problem == ""


def test_words() -> None:
    targets = [ONE, TWO, Target("http", TWO.address, 8080, "/x?y"), Target("http", ONE.address, 443, "/", tls=True)]
    texts = ["icmp 203.0.113.1", "tcp [2001:db8::1]:443", "http://[2001:db8::1]:8080/x?y", "https://203.0.113.1:443/"]
    assert [str(each) for each in targets] == texts
    failed = Upstream().after({ONE: NO, TWO: ""}, replace(RULES, failure_threshold=1))
    assert failed.failing == ("icmp 203.0.113.1 (no answer within 1 s)",)
