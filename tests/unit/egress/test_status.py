"""What the datapath tells: packets that went on apart from those that did not, and the pods that are wanted."""

from __future__ import annotations

from pathlib import Path

from egress.netdev import Datapath
from egress.status import EgressStatus, told_apart
from tests.models.egress_wishes import on_gateway, on_worker


def test_counters_are_told_apart_by_whether_the_packet_went_on() -> None:
    counted = {"translated": 5, "no_gateway": 2, "guard_selected": 1}
    assert told_apart(counted, {"no_gateway"}) == ({"translated": 5}, {"no_gateway": 2, "guard_selected": 1})


def test_what_is_not_loaded_is_not_attached(tmp_path: Path) -> None:
    assert Datapath(tmp_path).status() == EgressStatus()


def test_pods_are_those_that_a_policy_selects() -> None:
    assert EgressStatus(True, 9).beside(on_worker()) == EgressStatus(True, 1)
    assert EgressStatus(True, 9).beside(on_gateway()).pods == 0
    assert EgressStatus(True, 9).beside(None).pods == 0
