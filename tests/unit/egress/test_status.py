"""What the datapath tells: packets that went on apart from those that did not, and the pods that are wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bpf import layout
from egress.netdev import Datapath
from egress.policy import Neighbour, Transport
from egress.status import EgressStatus, Probed, told_apart
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


@pytest.mark.parametrize(
    ("transport", "on_link", "told"),
    [("vxlan", False, ["tunnel"]), ("auto", True, ["tunnel", "link"]), ("auto", False, ["tunnel"]),
     ("direct", True, ["link"])],
)  # fmt: skip
def test_a_way_that_is_none_any_more_is_not_told(transport: Transport, on_link: bool, told: list[str]) -> None:
    """What was known of it last would stand for ever."""
    (gateway,) = next(iter(on_worker().groups.values())).gateways
    ways = (gateway.number, gateway.number | layout.WAY_DIRECT, gateway.number + 1)
    known = EgressStatus(True, probed=tuple(Probed(way, "serves", (), 1, 1, 0.0, 0.0) for way in ways))
    neighbours = {gateway.number: Neighbour(bytes(6))} if on_link else {}
    found = known.beside(replace(on_worker(), transport=transport, neighbours=neighbours)).probed
    assert [(each.node, each.by) for each in found] == [(gateway.node, by) for by in told]
