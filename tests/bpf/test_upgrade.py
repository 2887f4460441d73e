"""What a release with other maps has pinned is known for that, and is not read as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpf import layout, loader
from egress.netdev import Datapath
from egress.status import EgressStatus
from tests.bpf.wishes import HERE, to_world
from tests.bpf.world import EGRESS_IP, NUMBERS, World


@contextmanager
def pinned_by(world: World, version: int) -> Iterator[None]:
    """The maps say that a release with this layout made them. Its port sets are not tried."""
    world.fill(to_world(HERE), untried=[(EGRESS_IP, number) for number in NUMBERS])
    settings = world.maps["settings"]
    raw = settings.get(layout.u32(0))
    assert raw is not None
    value = layout.decode(layout.Settings, raw)
    value.layout_version = version
    settings.put(layout.u32(0), bytes(value))
    try:
        yield
    finally:
        settings.put(layout.u32(0), raw)


@pytest.mark.parametrize(("version", "other"), [(layout.LAYOUT_VERSION, False), (layout.LAYOUT_VERSION - 1, True)])
def test_pins_of_another_layout_are_told(world: World, version: int, other: bool) -> None:
    with pinned_by(world, version):
        assert loader.has_other_layout(world.pins) == other


def test_what_is_pinned_of_another_layout_is_not_read_as_ours(world: World) -> None:
    """Neither before the first round, which takes it away, nor by what runs beside the rounds."""
    with pinned_by(world, layout.LAYOUT_VERSION - 1):
        datapath = Datapath(world.pins)
        assert (datapath.try_port_sets(), datapath.is_pressed(), datapath.collect()) == (0, False, None)
        assert (datapath.status(), datapath.port_use(), datapath.nat()) == (EgressStatus(), None, ())
        datapath.close()


def test_nothing_pinned_is_no_other_layout(world: World) -> None:
    assert not loader.has_other_layout(world.pins / "nowhere")
