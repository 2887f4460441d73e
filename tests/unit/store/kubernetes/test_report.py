"""What of a node's report is news, what of the news cannot wait, and how often it is written."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import pytest

from routerd.model import NodeReport, PortAsk, PortReport
from routerd.store.kubernetes.client import Client
from routerd.store.kubernetes.contact import Contact
from routerd.store.kubernetes.documents import is_said, is_urgent, seconds_since
from routerd.store.kubernetes.report import Reporter
from routerd.store.kubernetes.watch import Timings
from tests.models.virtual_time import elapse, in_virtual_time, now

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


@dataclass
class Api:
    """It keeps when a status was written, and which."""

    contact: Contact = field(default_factory=Contact)
    written: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    async def get(self, path: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "status": {}}

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.written.append((now(), body["status"]))
        return {"metadata": {"resourceVersion": "1"}}


def test_where_nothing_but_the_use_of_ports_changes_it_is_written_once_in_five_minutes() -> None:
    async def story() -> None:
        api = Api()
        reporter = Reporter(cast(Client, api), "node1", str, Timings(), lambda: None)
        reporter.health = lambda: {"generation": 1}
        task = asyncio.create_task(reporter.run())
        for second in range(7200):
            reporter.want(NodeReport("node1", ports=PortReport((PortAsk(5, 0, used=second),))))
            await elapse(1)
        task.cancel()
        times = [when for when, _ in api.written]
        assert len(times) > 15
        assert min(later - earlier for earlier, later in pairwise(times[1:])) >= 300
        assert all(status["portAsks"][0]["used"] == pytest.approx(when, abs=3) for when, status in api.written)

    in_virtual_time(story())
