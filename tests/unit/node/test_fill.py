"""Tables that fill, ports that grow scarce and pods near their share are problems, and no more than warnings."""

from __future__ import annotations

import pytest

from egress.status import EgressStatus
from routerd.node.fill import TABLES, fill_refusals

ROOM = dict.fromkeys(TABLES, 1000)


def told(egress: EgressStatus) -> list[str]:
    return [f"{each.object} {each.reason} {each.severity}" for each in fill_refusals("a", egress)]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_told_of_from_three_quarters_on(table: str) -> None:
    entries = dict.fromkeys(TABLES, 749)
    assert told(EgressStatus(True, entries=entries, room=ROOM)) == []
    full = EgressStatus(True, entries={**entries, table: 750}, room=ROOM)
    assert told(full) == ["node/a TableNearlyFull warning"]
    (refusal,) = fill_refusals("a", full)
    assert TABLES[table] in refusal.message


def test_who_is_pressed_is_named() -> None:
    egress = EgressStatus(True, pressed={"pod-address/fd00::5": 1, "egress/7": 1})
    assert told(egress) == ["egress/7 PortsScarce warning", "pod-address/fd00::5 PodNearShare warning"]


def test_nothing_is_told_of_a_datapath_that_is_not_there() -> None:
    assert told(EgressStatus()) == []
