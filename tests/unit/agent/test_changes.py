"""What an agent's log says of sessions."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from bgp.path import Desired, Path, SessionKey
from bgp.session import PeerStatus as Session
from routerd.agent.changes import PATIENCE, SessionLog, UpdateDelay
from routerd.tell.status import PeerStatus
from routerd.tell.views import PeerView

TOR = SessionKey(ip_address("10.0.0.1"), ip_address("10.0.0.11"))


def test_a_session_that_does_not_come_up_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password makes no event: the router drops what comes, and the node waits."""
    now = 0.0
    sessions = SessionLog(lambda: now)

    def after(seconds: float, state: str) -> int:
        """How often it was told so far."""
        nonlocal now
        now += seconds
        sessions.note([PeerStatus("tor", PeerView(TOR, Session(state)))])  # type: ignore[arg-type]
        return sum("session-not-up" in record.getMessage() for record in caplog.records)

    assert after(0, "connecting") == after(PATIENCE - 1, "connecting") == 0
    assert after(1, "connecting") == after(PATIENCE, "connecting") == 1
    assert after(0, "up") == after(PATIENCE, "up") == 1
    assert after(0, "down") == after(PATIENCE - 1, "down") == 1
    assert after(0, "up") == after(1, "down") == after(PATIENCE - 1, "unknown") == 1  # a flap begins anew
    assert after(1, "down") == 2
    sessions.note([])
    assert after(0, "connecting") == after(PATIENCE - 1, "connecting") == 2


def desired(*prefixes: str) -> Desired:
    return Desired({}, {TOR: {ip_network(each): Path(ip_network(each)) for each in prefixes}})


def test_how_long_paths_take_from_the_change_that_they_come_of() -> None:
    now = 0.0
    delay = UpdateDelay(lambda: now)

    def a_round(*prefixes: str, ends: bool = True) -> int:
        delay.round_begins()
        if ends:
            delay.told(desired(*prefixes))
        return delay.seen.done

    delay.changed()
    a_round("192.0.2.1/32")
    delay.acknowledged()
    assert delay.seen.done == 0  # a start is no change
    delay.changed()
    now = 1.0
    a_round("192.0.2.1/32")
    delay.acknowledged()
    assert delay.seen.done == 0  # no path came of it
    delay.changed()
    now = 1.5
    delay.changed()  # one with it
    a_round("192.0.2.2/32", ends=False)
    delay.acknowledged()  # of what the speaker was told before
    assert delay.seen.done == 0
    now = 2.0
    delay.changed()
    a_round("192.0.2.2/32")
    now = 4.0
    delay.acknowledged()
    delay.acknowledged()
    assert (delay.seen.done, delay.seen.seconds) == (1, 3.0)
    now = 5.0
    a_round("192.0.2.3/32")  # the host had a change
    now = 5.25
    delay.acknowledged()
    assert (delay.seen.done, delay.seen.seconds) == (2, 3.25)
    a_round("192.0.2.3/32", ends=False)  # of no change
    now = 3600.0
    delay.changed()
    a_round("192.0.2.4/32")
    now = 3600.25
    delay.acknowledged()
    assert (delay.seen.done, delay.seen.seconds) == (3, 3.5)


def test_changes_while_the_speaker_is_away_are_measured_from_the_first_one() -> None:
    now = 0.0
    delay = UpdateDelay(lambda: now)
    delay.round_begins()
    delay.told(desired())
    delay.acknowledged()
    for number in range(3):
        delay.changed()
        delay.round_begins()
        delay.told(desired(f"192.0.2.{number}/32"))
        now += 10.0
    delay.acknowledged()
    assert (delay.seen.done, delay.seen.seconds, delay.seen.buckets[-1]) == (1, 30.0, 0)
