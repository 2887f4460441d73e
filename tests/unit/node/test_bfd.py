"""Which peers are watched, whose BGP session must end, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from bfd.control import Probes, Report, View
from bfd.probes import Probing
from bfd.session import Timers
from bfd.table import Order
from bgp.path import SessionKey
from bgp.session import PeerStatus
from egress.status import Probed
from routerd.model import Bfd, Peer
from routerd.node.rooms.bfd import Judged, judge, orders, refusals, standing_still, unjudged, unwatched

TOR, OTHER, HERE = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.9")
AT_TOR, AT_OTHER = SessionKey(TOR, HERE), SessionKey(OTHER, HERE)
UP = View(TOR, HERE, "up", 100.0, 0, False, "up", 50_000, 150_000, "")
GONE = replace(UP, state="down", since=200.0, falls=1, failed=True, reason="nothing was heard")
SESSIONS: dict[Any, PeerStatus] = {AT_TOR: PeerStatus("up", since=50.0)}


def report(view: View, process: str = "a", problem: str = "") -> Report:
    return Report(process, True, problem, {}, {AT_TOR: view})


def test_peers_with_bfd_and_a_session_are_watched_from_the_address_of_the_session() -> None:
    entries = {AT_TOR: Peer(TOR, 1, 2, bfd=Bfd(20_000, 30_000, 5, passive=True)), AT_OTHER: Peer(OTHER, 1, 2)}
    assert orders(entries) == {AT_TOR: Order(TOR, HERE, Timers(20_000, 30_000, 5, passive=True))}


def gone(before: Report | None, now: Report, sessions: dict[Any, PeerStatus] = SESSIONS) -> tuple[object, ...]:
    """Who is gone, for whom judged `before` with the sessions as they were, None = nobody yet."""
    judged = judge(Judged(), before, sessions)[0] if before is not None else Judged()
    return judge(judged, now, sessions)[1]


def test_a_peer_that_fell_ends_its_session_once() -> None:
    assert gone(report(UP), report(GONE)) == (AT_TOR,)
    assert gone(report(GONE), report(replace(GONE, state="init"))) == ()
    assert gone(report(GONE), report(replace(GONE, falls=2))) == (AT_TOR,)
    late = {AT_TOR: PeerStatus("up", since=250.0)}
    assert gone(report(UP), report(GONE), late) == (AT_TOR,), "seen by ourselves: no clock is asked"


def test_what_is_no_failure_ends_nothing_and_neither_does_a_session_that_is_down() -> None:
    for view in (replace(GONE, failed=False), UP, replace(UP, state="down", reason="nothing was heard yet")):
        assert gone(report(UP), report(view)) == ()
    assert gone(report(UP), report(GONE), {AT_TOR: PeerStatus("down")}) == ()


def test_an_agent_that_comes_later_ends_what_was_up_before_the_fall_and_nothing_newer() -> None:
    for before in (None, report(UP, process="another"), Report("a")):
        assert gone(before, report(GONE)) == (AT_TOR,)
        assert gone(before, report(GONE), {AT_TOR: PeerStatus("up", since=250.0)}) == ()
        assert gone(before, report(GONE), {AT_TOR: PeerStatus("down", since=50.0)}) == ()


def test_a_fall_waits_for_the_speaker_to_say_how_the_session_is() -> None:
    for silent in ({}, {AT_TOR: PeerStatus("unknown", since=50.0)}):
        for first in (Judged(), judge(Judged(), report(UP), SESSIONS)[0]):
            judged, nobody = judge(first, report(GONE), silent)
            assert nobody == ()
            judged, found = judge(judged, report(GONE), SESSIONS)
            assert found == (AT_TOR,)
            assert judge(judged, report(GONE), SESSIONS)[1] == ()


def test_a_fall_that_is_unjudged_ends_what_is_still_up_and_nothing_newer() -> None:
    seen = judge(judge(Judged(), report(UP), SESSIONS)[0], report(GONE), SESSIONS)[0]
    assert judge(unjudged(seen, AT_OTHER), report(GONE), SESSIONS)[1] == ()
    assert judge(unjudged(seen, AT_TOR), report(GONE), SESSIONS)[1] == (AT_TOR,)
    assert judge(unjudged(seen, AT_TOR), report(GONE), {AT_TOR: PeerStatus("up", since=250.0)})[1] == ()


def told(found: Report | None, trouble: str = "") -> list[str]:
    return [
        f"{each.object} {each.reason}: {each.message}" for each in refusals({AT_TOR: Order(TOR, HERE)}, found, trouble)
    ]


def test_what_is_not_watched_is_told_with_what_to_do() -> None:
    assert told(report(UP)) == []
    assert told(None) == [
        "peer/10.0.0.1 NoBFD: no bfd process is connected: start `routerd bfd`; the session runs without BFD"
    ]
    assert told(None, "restart it") == ["peer/10.0.0.1 NoBFD: restart it; the session runs without BFD"]
    assert "another BFD" in told(report(UP, problem="does another BFD run here?"))[0]
    assert told(report(GONE)) == [
        "peer/10.0.0.1 BFDDown: BFD is down: nothing was heard: the BGP session was ended, and comes back as soon as "
        "BGP reaches the peer"
    ]
    assert "switch BFD on" in told(report(replace(GONE, failed=False)))[0]
    assert list(refusals({}, None, "")) == []


PROBING = Probing("routerd.vxlan", ip_address("10.0.0.11"), 50_000, frozenset({2}))


@pytest.mark.parametrize(
    ("report", "trouble", "why"),
    [
        (None, "", "no bfd process is connected: start `routerd bfd`"),
        (None, "restart it", "restart it"),
        (Report("ab"), "", "the bfd process is of a release that sends no probes: restart it"),
        (Report("ab", probes=Probes(PROBING, "no device")), "", "no device"),
    ],
)
def test_that_gateways_are_not_watched_is_told_with_its_cause(report: Report | None, trouble: str, why: str) -> None:
    (found,) = unwatched(PROBING, report, trouble)
    assert str(found.object) == "bfd"
    assert (found.reason, found.message) == ("GatewaysUnwatched", f"{why}; a gateway that dies is not noticed here")


@pytest.mark.parametrize("probing", [None, replace(PROBING, gateways=frozenset())])
def test_where_there_is_nobody_to_watch_nothing_is_told(probing: Probing | None) -> None:
    assert list(unwatched(probing, None, "")) == []
    assert list(unwatched(PROBING, Report("ab", probes=Probes(PROBING)), "")) == []


@pytest.mark.parametrize(
    ("interval", "idle", "told"),
    [
        (50_000, 0.04, False),
        (50_000, 1.9, False),
        (50_000, 2.1, True),
        (10_000_000, 20.0, False),
        (10_000_000, 31.0, True),
    ],
)
def test_a_process_that_stands_still_is_told(interval: int, idle: float, told: bool) -> None:
    probing = replace(PROBING, interval=interval)
    probed = (Probed(2, "serves", (), 9, 9, 0.001, idle), Probed(5, "silent", (), 9, 9, 0.001, 1e6))
    assert [each.reason for each in standing_still(probing, probed)] == ["GatewaysUnwatched"] * told
    assert list(standing_still(replace(probing, gateways=frozenset()), probed)) == [], "5 is nobody's gateway any more"
    assert list(standing_still(None, probed)) == []
