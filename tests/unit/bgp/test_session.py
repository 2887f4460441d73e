"""Session states from events."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

from bgp.path import SpeakerPeer
from bgp.session import PeerStatus, Sessions
from bgp.text import SessionEvent

SESSION = SpeakerPeer(ip_address("10.0.0.2"), ip_address("10.0.0.1"), 1, 2, IPv4Address("10.0.0.1"))
PEER = SESSION.key
BOTH = ("ipv4 unicast", "ipv6 unicast")


def status(sessions: Sessions) -> PeerStatus:
    return sessions.status(SESSION, True, announced=3, pending=1)


def told(*events: SessionEvent) -> Sessions:
    sessions = Sessions()
    sessions.restart((7, 1.0))
    for event in events:
        sessions.take(event)
    return sessions


NEGOTIATED = SessionEvent(PEER, "negotiated", 10.0, families=BOTH, hold_time=9)
UP = SessionEvent(PEER, "up", 11.0)


def test_a_life() -> None:
    sessions = told()
    assert status(sessions) == PeerStatus("connecting", pending=1)  # nothing is announced while it is not up
    sessions.take(SessionEvent(PEER, "connected", 9.0))
    sessions.take(SessionEvent(PEER, "down", 9.5, reason="closing connection"))
    assert (status(sessions).state, status(sessions).flaps) == ("connecting", 0)  # it was never up
    sessions.take(NEGOTIATED)
    sessions.take(UP)
    assert status(sessions) == PeerStatus("up", 11.0, "closing connection", 0, BOTH, 9, 3, 1)
    sessions.take(SessionEvent(PEER, "down", 20.0, reason="lost"))
    assert status(sessions) == PeerStatus("down", 20.0, "lost", 1, (), 0, 0, 1)
    assert sessions.status(SESSION, False, announced=0, pending=0).state == "unknown"


def test_end_of_rib_is_owed_once_per_session() -> None:
    sessions = told(NEGOTIATED, UP)
    assert list(sessions.take_due({ip_address("10.0.0.9")})) == []
    assert list(sessions.take_due({PEER})) == [(PEER, BOTH)]
    assert list(sessions.take_due({PEER})) == []
    sessions.take(SessionEvent(PEER, "down", 20.0))
    sessions.take(NEGOTIATED)
    sessions.take(UP)
    sessions.take(SessionEvent(PEER, "down", 21.0))
    assert list(sessions.take_due({PEER})) == []


def test_an_event_told_again_is_no_flap() -> None:
    sessions = told(NEGOTIATED, UP)
    sessions.restart((7, 1.0))
    sessions.take(SessionEvent(PEER, "up", 99.0))
    assert (status(sessions).since, status(sessions).flaps) == (11.0, 0)


def test_another_exabgp_is_a_flap() -> None:
    sessions = told(NEGOTIATED, UP)
    sessions.restart((8, 30.0))
    assert (status(sessions).state, status(sessions).since, status(sessions).flaps) == ("down", 30.0, 1)


def test_a_removed_peer_is_forgotten() -> None:
    sessions = told(NEGOTIATED, UP)
    sessions.forget([PEER])
    assert status(sessions) == PeerStatus(pending=1)
    assert list(sessions.take_due({PEER})) == []


def test_the_reason_of_a_notification_stays_while_the_session_retries() -> None:
    refused, lost = "notification received (6,2)", "closing connection"
    sessions = told(NEGOTIATED, UP, SessionEvent(PEER, "down", 20.0, reason=refused))
    sessions.take(SessionEvent(PEER, "down", 21.0, reason=lost))
    assert status(sessions).last_reason == refused
    sessions.take(SessionEvent(PEER, "down", 22.0, reason="notification received (2,2)"))
    assert status(sessions).last_reason == "notification received (2,2)"
    sessions.take(UP)
    sessions.take(SessionEvent(PEER, "down", 30.0, reason=lost))
    assert status(sessions).last_reason == lost
