"""What of a node's report is news, and what of the news cannot wait. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from routerd.store.kubernetes.documents import is_said, is_urgent, seconds_since

WAS = "2026-01-01T00:00:00Z"
READY = {"type": "Ready", "status": "True", "reason": "Ready", "message": ""}
PEER = {"address": "10.0.0.1", "state": "up", "paths": 2}
SAID: dict[str, Any] = {
    "addresses": ["10.0.0.11"], "draining": False, "generation": 3, "peers": [PEER], "lastSeen": WAS,
    "conditions": [{**READY, "lastTransitionTime": WAS}],
}  # fmt: skip
SAME: dict[str, Any] = {"addresses": ["10.0.0.11"], "generation": 3, "peers": [PEER], "conditions": [READY]}


def test_what_is_there_is_said_whenever_it_began() -> None:
    assert is_said(SAME, SAID)
    assert is_said({"addresses": ["10.0.0.11"]}, SAID)  # the rest is not known yet: it stays
    assert not is_urgent(SAME, SAID)


@pytest.mark.parametrize(
    ("change", "urgent"),
    [
        ({"generation": 4}, False),
        ({"peers": [{**PEER, "paths": 9}]}, False),
        ({"conditions": [{**READY, "message": "more"}]}, False),
        ({"addresses": []}, True),
        ({"draining": True}, True),
        ({"peers": []}, True),
        ({"peers": [{**PEER, "state": "down"}]}, True),
        ({"conditions": [{**READY, "status": "False"}]}, True),
        ({"conditions": [{**READY, "reason": "Other"}]}, True),
    ],
)
def test_states_cannot_wait_and_numbers_can(change: dict[str, Any], urgent: bool) -> None:
    assert not is_said({**SAME, **change}, SAID)
    assert is_urgent({**SAME, **change}, SAID) == urgent


def test_what_was_never_said_is_news() -> None:
    assert not is_said(SAME, {})
    assert is_urgent(SAME, {})
    assert not is_said(SAME, {**SAID, "peers": None, "conditions": ["?"]})


def test_the_age_of_a_report() -> None:
    now = datetime(2026, 1, 1, 0, 5, tzinfo=UTC)
    assert seconds_since(WAS, now) == 300
    assert [seconds_since(text, now) for text in (None, "yesterday", "2026-01-01T00:00:00")] == [math.inf] * 3
    assert seconds_since(WAS, now - timedelta(hours=1)) == math.inf  # the clock was set back: it is written anew
