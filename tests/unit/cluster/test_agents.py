"""Who is heard, and who is absent: by the reader's clock, whatever becomes of the reader."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.cluster.agents import Agents, hear
from routerd.model import GATEWAY_HEARTBEAT, NODE_HEARTBEAT, Heartbeat, NodeReport

LOOK = 2


@dataclass
class Listener:
    """Looks every two seconds. `beats` are the texts that nodes show now; `seconds` how often they say they beat."""

    beats: dict[str, str]
    seconds: int = GATEWAY_HEARTBEAT
    now: float = 0.0
    wall: float = 10**9
    agents: Agents = field(default_factory=lambda: Agents(assumed=False))

    def look(self, passed: float = LOOK) -> None:
        self.now += passed
        self.wall += passed
        reports = {name: NodeReport(name, heartbeat=Heartbeat(self.seconds, beat)) for name, beat in self.beats.items()}
        self.agents = hear(self.agents, reports, self.now, self.wall)

    def run(self, seconds: int, *living: str, period: int = GATEWAY_HEARTBEAT) -> None:
        """`living` beat every `period` seconds, and the listener looks."""
        for _ in range(0, seconds, LOOK):
            self.now += LOOK
            self.wall += LOOK
            self.beats |= {name: str(self.now // period) for name in living}
            self.look(0)

    def states(self) -> str:
        return " ".join(f"{name}:{self.agents.state(name)}" for name in sorted(self.beats))


def test_a_beat_that_stays_the_same_for_the_patience_is_an_agent_that_is_absent() -> None:
    one = Listener({"a": "1", "b": "1"})
    one.look()
    assert one.states() == "a:unheard b:unheard"
    one.run(10, "a", "b")
    assert one.states() == "a:serving b:serving"
    one.run(38, "a")
    assert one.states() == "a:serving b:serving"
    one.run(6, "a")
    assert one.states() == "a:serving b:absent"
    one.run(10, "a", "b")
    assert one.states() == "a:serving b:returning"
    one.run(40, "a", "b")
    assert one.states() == "a:serving b:serving"


def test_a_reader_that_was_stopped_calls_nobody_absent() -> None:
    """SIGSTOP, a paused virtual machine: at the first look after it nobody has a new beat yet, or only some have."""
    one = Listener({"a": "1", "b": "1"})
    one.run(20, "a", "b")
    one.look(3600.0)
    assert one.states() == "a:serving b:serving"
    one.run(12, "a")
    one.run(12, "a", "b")
    assert one.states() == "a:serving b:serving"


def test_a_clock_that_is_set_changes_nothing_but_what_people_read() -> None:
    one = Listener({"a": "1", "b": "1"})
    one.run(20, "a", "b")
    one.wall = 10**8
    one.run(40, "a", "b")
    assert one.states() == "a:serving b:serving"
    one.wall = 10**9
    one.run(60, "a")
    assert one.agents.why_not("b") == "no word of its agent since 1973-03-03T09:47:20Z"


def test_whether_the_only_one_is_gone_or_the_reader_deaf_cannot_be_told_but_that_it_is_silent() -> None:
    one = Listener({"a": "1"})
    one.run(20, "a")
    one.run(42)
    assert (one.states(), one.agents.silent()) == ("a:serving", {"a": "2001-09-09T01:47:00Z"})
    one.run(2, "a")
    assert (one.states(), one.agents.silent()) == ("a:serving", {})


@pytest.mark.parametrize("brought", [60, 300])
def test_reports_that_are_brought_seldom_are_no_absence(brought: int) -> None:
    """By rsync or git: all come together, each beat is a minute or five after the one before."""
    one = Listener({"a": "1", "b": "1"})
    one.run(3600, "a", "b", period=brought)
    assert one.states() == "a:serving b:serving"
    one.run(10 * brought, "a", period=brought)
    assert one.states() == "a:serving b:absent"


def test_one_that_is_brought_seldom_beside_one_that_is_near_gets_its_time() -> None:
    one = Listener({"far": "1", "near": "1"})
    for second in range(0, 3600, LOOK):
        one.beats["far"] = str(second // 60)
        one.run(LOOK, "near")
        if second > 200:
            assert one.agents.state("far") in ("serving", "returning"), second
    assert one.states() == "far:serving near:serving"


def test_nodes_that_are_no_gateways_have_twenty_minutes() -> None:
    one = Listener({"a": "1", "b": "1"}, NODE_HEARTBEAT)
    one.run(600, "a", "b", period=NODE_HEARTBEAT)
    one.run(1190, "a", period=NODE_HEARTBEAT)
    assert one.states() == "a:serving b:serving"
    one.run(400, "a", period=NODE_HEARTBEAT)
    assert one.states() == "a:serving b:absent"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60))
def test_who_beats_within_the_patience_is_never_absent(gaps: list[tuple[int, int]]) -> None:
    """Whatever the other one does, and however late each look comes."""
    one = Listener({"a": "0", "b": "0"})
    one.look()
    for number, (gap, late) in enumerate(gaps, 1):
        one.look(gap / 2)
        one.beats["b"] = str(number if late % 2 else 0)
        one.look(gap / 2)
        one.beats["a"] = str(number)
        one.look(late / 30)
        assert one.agents.state("a") != "absent"


@given(st.lists(st.floats(0, 120), max_size=40))
def test_silence_of_all_is_nobodys(pauses: list[float]) -> None:
    one = Listener({"a": "1", "b": "1"})
    one.run(20, "a", "b")
    for pause in pauses:
        one.look(pause)
        assert one.states() == "a:serving b:serving"


def told(agents: Agents) -> list[tuple[object, ...]]:
    """All that groups are formed by."""
    return [
        (agents.state(name), agents.is_silent(name), agents.may_serve(name), agents.why_not(name)) for name in "abc"
    ]


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "ab"]), st.sampled_from([2, 20, 50, 120])), max_size=20))
def test_what_groups_rest_on_is_the_same_while_what_is_heard_is(steps: list[tuple[str, int]]) -> None:
    one, before = Listener({"a": "1", "b": "1"}), list[Agents]()
    for beating, seconds in steps:
        before.append(one.agents)
        one.run(seconds, *beating)
        assert all(each.heard() != one.agents.heard() or told(each) == told(one.agents) for each in before)


def test_a_beat_changes_nothing_of_what_groups_rest_on() -> None:
    one = Listener({"a": "1", "b": "1"})
    one.run(60, "a", "b")
    before = one.agents.heard()
    one.run(60, "a", "b")
    assert one.agents.heard() == before
    one.run(60, "a")
    silent = one.agents.heard()
    assert silent != before
    one.run(60, "a")
    assert one.agents.heard() == silent
    unread = Agents(assumed=False)
    assert unread.heard() != replace(unread, reported=frozenset({"c"})).heard(), "a release without heartbeats"
