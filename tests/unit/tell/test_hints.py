"""What to look at where a router takes no session, or nothing by it."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest

from bgp.path import SpeakerPeer
from bgp.session import PeerStatus as Session
from bgp.text import readable_reason
from routerd.tell.hints import FRESH, NOT_UP, session_refusal, to_look_at, untold

LIMIT = readable_reason("notification received (6,1)")


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("notification received (6,1)", "it takes no more prefixes than a limit of this session"),
        ("notification sent (6,1)", "it announces more than max-prefixes of the peer"),
        ("notification received (2,2)", "compare the AS numbers"),
        ("notification received (3,5)", "the router refuses an UPDATE of this node"),
        ("notification received (6,5)", "the router takes no connection from this address"),
        ("notification sent (4,0)", "nothing came from it for the hold time"),
        ("notification received (6,99)", NOT_UP),
        ("closing connection", NOT_UP),
        ("", NOT_UP),
    ],
)
def test_each_end_has_its_own_advice(reason: str, hint: str) -> None:
    assert to_look_at(readable_reason(reason)).startswith(hint)


def test_a_session_that_is_not_up_says_why_and_what_to_do() -> None:
    refusal = session_refusal("tor", Session("down", last_reason=LIMIT), None)
    assert refusal is not None and refusal.reason == "SessionDown" and refusal.severity == "error"
    assert refusal.message == (
        "the session is down: notification received (6,1): cease: maximum number of prefixes reached: it takes no more "
        "prefixes than a limit of this session: raise that there, or announce fewer"
    )
    unheard = session_refusal("tor", Session(), None)
    assert unheard is not None and unheard.message == f"the session is connecting: no answer from the peer: {NOT_UP}"


def test_a_router_that_had_enough_is_told_while_it_may_have_enough_again() -> None:
    session = Session("up", last_reason=LIMIT, announced=1200)
    refusal = session_refusal("tor", session, FRESH - 1)
    assert refusal is not None and (refusal.reason, refusal.severity) == ("PrefixLimit", "warning")
    assert refusal.message.endswith("; 1200 are announced") and "and may again" in refusal.message
    assert session_refusal("tor", session, FRESH) is None
    assert session_refusal("tor", Session("up", last_reason=readable_reason("notification sent (6,1)")), 1.0) is None
    assert session_refusal("tor", Session("up"), 1.0) is None


def test_what_nobody_tells_is_said_with_where_to_look() -> None:
    outside = SpeakerPeer(ip_address("10.0.0.1"), ip_address("10.0.0.11"), 64513, 64512, IPv4Address("10.0.0.11"))
    within = SpeakerPeer(ip_address("10.0.0.1"), ip_address("10.0.0.11"), 64512, 64512, IPv4Address("10.0.0.11"))
    assert "RFC 8212" in untold(outside) and "RFC 8212" not in untold(within)
