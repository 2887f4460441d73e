"""What an agent's log says of sessions."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from bgp.path import SessionKey
from bgp.session import PeerStatus as Session
from routerd.agent.changes import PATIENCE, SessionLog
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
