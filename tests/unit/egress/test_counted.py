"""What the maps of the programs say, as values."""

from __future__ import annotations

import pytest

from bpf import layout
from egress import status
from egress.status import Probed

SECOND = 10**9
MULTIPLIER = 3


def probed(sent: int, heard: int, service: int = 0, multiplier: int = MULTIPLIER) -> Probed:
    """Of node 7, whose last probe was sent a second before second 5."""
    past = layout.Probes(answered=heard, round_trip=SECOND // 4)
    past.kept[sent % layout.PROBES_KEPT].at = 4 * SECOND
    key = layout.u32(7)
    (found,) = status.probed(
        {key: bytes(past)}, {key: bytes(layout.Liveness(sent, heard, service))}, multiplier, 5 * SECOND
    )
    return found


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (probed(9, 9), "serves"),
        (probed(9, 6), "serves"),
        (probed(9, 5), "silent"),
        (probed(9, 5, multiplier=0), "serves"),
        (probed(1, (1 << 32) - 1), "serves"),
        (probed(9, 9, layout.SERVICE_DRAINING), "leaves"),
        (probed(9, 5, layout.SERVICE_DRAINING), "silent"),
    ],
    ids=[
        "answers",
        "the last may come",
        "none came",
        "nobody is watched",
        "numbers go round",
        "asks",
        "asked and died",
    ],
)
def test_a_gateway_is_what_its_probes_say(found: Probed, state: str) -> None:
    assert found.state == state


def test_times_of_probes_are_seconds() -> None:
    found = probed(9, 8, layout.SERVICE_NO_ROUTE)
    assert (found.number, found.reasons, found.sent, found.answered) == (7, ("no-route",), 9, 8)
    assert (found.round_trip, found.idle) == (0.25, 1.0)


def test_flows_that_began_outside_are_no_nat_entries() -> None:
    key = bytes(layout.FlowKey(pod_port=1000))
    began_here = layout.FlowValue(SECOND, group=4, egress_port=2000, gateway=2)
    (entry,) = status.nat_entries({key: bytes(began_here)}, 3 * SECOND)
    assert (entry.group, entry.pod_port, entry.egress_port, entry.gateway, entry.idle) == (4, 1000, 2000, 2, 2.0)
    assert status.nat_entries({key: bytes(layout.FlowValue(SECOND))}, 3 * SECOND) == []


def test_the_sum_of_all_pods_is_no_pods_share() -> None:
    pressed, calm = bytes(layout.Use(pressed=1)), bytes(layout.Use())
    uses = {layout.u32(layout.ALL_PODS): pressed, layout.u32(5): pressed, layout.u32(6): calm}
    assert status.near_share(uses) == {5}
