"""What a release with other maps has pinned is known for that, and is not read as ours."""

from __future__ import annotations

import pytest

from bpf import layout, loader
from tests.bpf.wishes import HERE, to_world
from tests.bpf.world import World


@pytest.mark.parametrize(("version", "other"), [(layout.LAYOUT_VERSION, False), (layout.LAYOUT_VERSION - 1, True)])
def test_pins_of_another_layout_are_told(world: World, version: int, other: bool) -> None:
    world.fill(to_world(HERE))
    settings = world.maps["settings"]
    raw = settings.get(layout.u32(0))
    assert raw is not None
    value = layout.decode(layout.Settings, raw)
    value.layout_version = version
    settings.put(layout.u32(0), bytes(value))
    try:
        assert loader.has_other_layout(world.pins) == other
    finally:
        settings.put(layout.u32(0), raw)


def test_nothing_pinned_is_no_other_layout(world: World) -> None:
    assert not loader.has_other_layout(world.pins / "nowhere")
