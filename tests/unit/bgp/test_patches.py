"""What is mended in the installed ExaBGP: that it is the code the changes were written for, and what they change."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.bgp import timer
from exabgp.bgp.message import Notification, Notify
from exabgp.bgp.message.open.holdtime import HoldTime
from exabgp.reactor import delay, loop
from exabgp.reactor.api import processes
from exabgp.reactor.api.response import json as events
from exabgp.reactor.delay import Delay
from exabgp.reactor.keepalive import KA
from exabgp.reactor.network.error import NetworkError

from bgp import conf
from bgp.inside import patches
from bgp.path import SpeakerPeer
from tests.models.real_exabgp import loaded

PEER = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 65000, IPv4Address("10.9.0.1"))


@pytest.fixture
def restored() -> Iterator[None]:
    table = patches.patches(Path("/nowhere"))
    stock = [getattr(patch.owner, patch.name) for patch in table]
    yield
    for patch, function in zip(table, stock, strict=True):
        setattr(patch.owner, patch.name, function)


@pytest.mark.usefixtures("restored")
def test_the_installed_release_is_the_one_that_is_mended() -> None:
    table = patches.patches(Path("/nowhere"))
    assert patches.apply(table) == []
    assert all(getattr(patch.owner, patch.name) is patch.replacement for patch in table)
    assert len(patches.apply(table)) == len(table)  # what is not stock is left alone, and named


def test_a_function_that_differs_is_left_alone() -> None:
    class Other:
        def method(self) -> int:
            return 1

    left = patches.apply([patches.Patch(Other, "method", "0" * 16, lambda self: 2)])
    assert left == ["Other.method"]
    assert Other().method() == 1


def pauses(*ends: tuple[float | None, Any]) -> list[float]:
    """Seconds until the next attempt after each end of a session: how long it was up, None = not, and why it ended."""
    peer, found = SimpleNamespace(_delay=Delay()), []
    reset = patches.back_off(lambda peer, message, error: patches._wait_longer(peer._delay))
    for seconds, error in ends:
        peer.routerd_up = None if seconds is None else time.monotonic() - seconds
        reset(peer, "", error)
        found.append(peer._delay._time - time.monotonic())
        peer._delay.reset()
    return found


@pytest.mark.parametrize(
    ("description", "hold", "seconds"),
    [("keepalive 3", 90, 3), ("keepalive 40", 90, 30), ("", 90, 30), ("keepalive 3", 0, 0), ("keepalive 3", 6, 2)],
)
def test_keepalives_are_sent_as_often_as_asked_and_never_less_often(description: str, hold: int, seconds: int) -> None:
    keepalives, negotiated = KA.__new__(KA), SimpleNamespace(holdtime=HoldTime(hold))
    proto = SimpleNamespace(negotiated=negotiated, neighbor={"description": description})
    patches.asked_keepalives(KA.__init__)(keepalives, lambda: "", proto)
    assert keepalives.send_timer.keepalive == seconds


@pytest.mark.parametrize(("description", "longest"), [("", 5), ("connect-retry 7", 7), ("connect-retry 2", 2)])
def test_pauses_between_attempts_grow_to_what_is_asked_for(description: str, longest: int) -> None:
    peer = SimpleNamespace(neighbor={"description": description}, _delay=Delay())
    assert list(patches.try_for_so_long(lambda peer: iter(()))(peer)) == []
    found = []
    for _ in range(9):
        patches._wait_longer(peer._delay)
        found.append(round(peer._delay._time - time.monotonic()))
    assert found == [min(each, longest) for each in range(9)]


@pytest.mark.parametrize(("description", "ends"), [("connect-retry 1", True), ("", False)])
def test_an_attempt_without_an_answer_ends_where_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, description: str, ends: bool
) -> None:
    now, ended = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def waiting(peer: Any) -> Iterator[int]:
        try:
            while True:
                yield 2
        finally:
            ended.append(now[0])

    peer = SimpleNamespace(neighbor={"description": description}, _delay=SimpleNamespace())
    attempt = patches.try_for_so_long(waiting)(peer)
    assert next(attempt) == 2
    now[0] = 1.0
    if ends:
        with pytest.raises(NetworkError, match="no answer within 1 s"):
            next(attempt)
    else:
        assert next(attempt) == 2
    assert ended == [1.0] * ends


REFUSED, TEARDOWN, BROKEN = Notification(6, 4), Notify(6, 3), NetworkError("reset by peer")


@pytest.mark.parametrize("end", [(None, REFUSED), (None, Notify(2, 2)), (0.1, REFUSED), (0.1, BROKEN), (29.0, REFUSED)])
def test_a_peer_that_ends_every_session_is_asked_less_and_less(end: tuple[float | None, Any]) -> None:
    most = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    found = pauses(*[end] * len(most))
    assert all(longest / 2 - 0.1 <= each <= longest for each, longest in zip(found, most, strict=True))


def test_a_session_that_was_up_for_long_ends_the_row() -> None:
    found = pauses(*[(None, REFUSED)] * 6, (31.0, REFUSED), (None, REFUSED))
    assert found[5] > 14 and found[6] <= 0 and found[7] <= 1.0


def test_a_peer_that_announced_too_much_is_left_alone_for_long() -> None:
    found = pauses((0.1, Notify(6, 1)), (0.1, TEARDOWN))
    assert 590 < found[0] <= patches.HOLD_OFF and found[1] <= 0


def test_neither_our_own_end_nor_an_attempt_to_connect_counts() -> None:
    found = pauses((0.1, TEARDOWN), (None, BROKEN), (None, ""), (0.1, REFUSED), (None, BROKEN), (None, REFUSED))
    assert [each <= 0 for each in found] == [True, True, True, False, True, False]
    assert found[3] <= 1.0 < 2.0 >= found[5]


@pytest.mark.parametrize("step", [-300, 300])
def test_a_wall_clock_that_is_set_ends_no_session_and_delays_none(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for module in (timer, delay, loop, processes, events):  # as they were, after this test
        monkeypatch.setattr(module, "time", time)
    patches.keep_steady_time()
    heard, sent, pause = timer.ReceiveTimer(str, 90, 4, 0), timer.SendTimer(str, HoldTime(90)), Delay()
    sent.last_sent -= 30
    pause.increase()
    monkeypatch.setattr(time, "time", lambda: now + step)
    heard.check_ka_timer()  # raises Notify once the hold time is over
    assert sent.need_ka() and not sent.need_ka(), "one keepalive is due"
    assert not pause.backoff(), "the next attempt to connect need not wait"
    assert loaded_event_time() == pytest.approx(time.monotonic(), abs=5)


def loaded_event_time() -> float:
    """Of an event that ExaBGP would write now."""
    (neighbor,) = loaded(conf.peers_text([PEER])).neighbors.values()
    return float(json.loads(events.JSON("5.0.15").up(neighbor))["time"])


@pytest.mark.parametrize(
    ("established", "generator", "passive", "resets"),
    [
        (False, "an attempt", False, 1),
        (False, None, False, 0),
        (False, None, True, 1),  # it would wait for its router
        (True, "a session", False, 0),  # ends itself, and is told so
    ],
)
def test_a_peer_that_is_configured_anew_does_not_wait_for_an_attempt(
    established: bool, generator: str | None, passive: bool, resets: int
) -> None:
    ended: list[str] = []
    peer = SimpleNamespace(
        established=lambda: established, generator=generator, _reset=ended.append, _delay=Delay(), routerd_refused=5,
        neighbor={"passive": passive}, routerd_left_alone=7.0,
    )  # fmt: skip
    patches._wait_longer(peer._delay)
    patches.begin_anew(lambda peer, neighbor: None)(peer, object())
    assert (len(ended), peer.routerd_refused, peer.routerd_left_alone) == (resets, 0, 0.0)


def test_an_end_of_rib_of_a_session_that_ended_is_not_sent_in_the_next() -> None:
    """The queue belongs to ExaBGP's neighbor, which outlives its sessions."""
    (neighbor,) = loaded(conf.peers_text([PEER])).neighbors.values()
    neighbor.eor.append("ipv4 unicast")
    neighbor.reset_rib()  # what stock ExaBGP does at a session's end
    assert neighbor.eor

    class Session:
        def __init__(self) -> None:
            self.neighbor, self.proto = neighbor, SimpleNamespace(connection=None)

    def main(peer: Any) -> Iterator[list[str]]:
        yield list(peer.neighbor.eor)

    assert list(patches.end_of_rib_of_this_session(main)(Session())) == [[]]


def waits(*peers: Any, scheduled: bool = False, milliseconds: int = 10) -> list[int]:
    """How long the loop waits for input with these peers."""
    reactor = SimpleNamespace(_peers=dict(enumerate(peers)), asynchronous=SimpleNamespace(ready=lambda: not scheduled))
    return list(patches.long_wait(lambda _, given: iter([given]))(reactor, milliseconds))


class Configured(dict[str, Any]):
    """A neighbor of ExaBGP's, which is a dict with attributes."""


def session(
    *, up: bool = True, queued: bool = False, stopping: bool = False, eor: str = "", awaited: bool = False
) -> Any:
    neighbor = Configured(passive=awaited)
    neighbor.rib = SimpleNamespace(outgoing=SimpleNamespace(pending=lambda: queued))  # type: ignore[attr-defined]
    neighbor.eor = [eor] if eor else []  # type: ignore[attr-defined]
    return SimpleNamespace(
        neighbor=neighbor, established=lambda: up, stopping=lambda: stopping, proto=None if awaited else object()
    )


def test_a_loop_with_nothing_to_do_waits_for_input() -> None:
    assert waits(session(), session()) == waits() == [patches.IDLE]
    assert waits(session(), session(up=False, awaited=True)) == [patches.IDLE]


def test_a_loop_with_something_to_do_looks_as_often_as_stock() -> None:
    busy = [session(up=False), session(queued=True), session(stopping=True), session(awaited=True, stopping=True)]
    busy += [session(eor="ipv4 unicast")]
    assert [waits(session(), peer) for peer in busy] == [[10]] * len(busy)
    assert waits(session(), scheduled=True) == [10]
    assert waits(session(), milliseconds=0) == [0]
