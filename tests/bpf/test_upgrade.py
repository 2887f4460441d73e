"""What a release with other maps has pinned is known for that, and is not read as ours; and how it hands over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from bpf import handover, layout, loader
from egress.netdev import Datapath
from egress.plan import ForgetPrograms, plan
from egress.policy import Policy
from egress.status import EgressStatus
from tests.bpf import oracle
from tests.bpf.families import six
from tests.bpf.packets import build
from tests.bpf.wishes import HERE, desired, to_world
from tests.bpf.world import EGRESS_IP, NUMBERS, POD, REMOTE, WORLD, WORLD6, World
from tests.models.tables import TCP, Packet, State

PACKETS, OURS = 600, layout.LAYOUT_VERSION


@contextmanager
def with_settings(world: World, **changed: Any) -> Iterator[None]:
    settings = world.maps["settings"]
    raw = settings.get(layout.u32(0))
    assert raw is not None
    value = layout.decode(layout.Settings, raw)
    for name, wanted in changed.items():
        setattr(value, name, wanted)
    settings.put(layout.u32(0), bytes(value))
    try:
        yield
    finally:
        settings.put(layout.u32(0), raw)


@contextmanager
def pinned_by(world: World, version: int) -> Iterator[None]:
    """The maps say that a release with this layout made them. Its port sets are not tried."""
    world.fill(to_world(HERE), untried=[(EGRESS_IP, number) for number in NUMBERS])
    with with_settings(world, layout_version=version):
        yield


@pytest.mark.parametrize(("version", "other"), [(layout.LAYOUT_VERSION, False), (layout.LAYOUT_VERSION - 1, True)])
def test_pins_of_another_layout_are_told(world: World, version: int, other: bool) -> None:
    with pinned_by(world, version):
        assert loader.has_other_layout(world.pins) == other


def test_what_is_pinned_of_another_layout_is_not_read_as_ours(world: World) -> None:
    """Neither before the first round, which takes it away, nor by what runs beside the rounds."""
    with pinned_by(world, layout.LAYOUT_VERSION - 1):
        datapath = Datapath(world.pins)
        assert (datapath.try_port_sets(), datapath.is_pressed(), datapath.collect()) == ((0, 0), False, None)
        assert (datapath.status(), datapath.port_use(), datapath.nat()) == (EgressStatus(), None, ())
        datapath.close()


def test_nothing_pinned_is_no_other_layout(world: World) -> None:
    assert not loader.has_other_layout(world.pins / "nowhere")


@pytest.mark.parametrize(
    ("version", "aside", "takes_over"),
    [
        (OURS, False, False),
        (OURS - 1, False, True),
        (OURS - 2, False, False),
        (OURS, True, True),
        (OURS - 1, True, False),
    ],
    ids=["ours", "one before", "too old", "one before, set aside", "a release that went back in the midst"],
)
def test_flows_are_taken_over_from_who_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch, version: int, aside: bool, takes_over: bool
) -> None:
    """Where it cannot be, what is pinned makes room for new maps: there is nobody to wait for."""
    monkeypatch.setattr(handover, "EARLIER", {OURS - 1: {}})
    wish, before = to_world(HERE), world.pins / handover.BEFORE
    with pinned_by(world, version):
        if aside:
            before.mkdir()
        datapath = Datapath(world.pins)
        try:
            observed = datapath.observe(wish)
        finally:
            datapath.close()
            if aside:
                before.rmdir()
    assert observed.hands_over == takes_over
    begins_anew = any(isinstance(action, ForgetPrograms) for action in plan(wish, observed))
    assert begins_anew == (version != OURS and not takes_over)


@pytest.mark.parametrize("version", [4, 6])
def test_while_it_hands_over_what_runs_goes_on_and_nothing_begins(world: World, version: int) -> None:
    def connection(port: int, flags: str = "S", *, inwards: bool = False) -> bytes:
        ends = (REMOTE, POD) if inwards else (POD, REMOTE)
        packet = Packet(*ends, TCP, port, 80, flags=flags, length=100)
        return build(six(packet) if version == 6 else packet)

    world.fill(to_world(HERE))
    assert world.run("from_pod", "pod0", connection(40000))[0] == "redirect"
    with with_settings(world, hands_over=1):
        assert world.run("from_pod", "pod0", connection(40000, "A"))[0] == "redirect"
        assert world.run("from_pod", "pod0", connection(40001))[0] == "drop"
        assert world.run("to_pod", "pod0", connection(40002, inwards=True))[0] == "drop"
        assert world.counted()["handing_over"] == 2
    assert world.run("from_pod", "pod0", connection(40001))[0] == "redirect"
    assert world.run("to_pod", "pod0", connection(40002, inwards=True))[0] == "next"


def test_while_it_hands_over_the_programs_do_what_the_model_says(world: World) -> None:
    tables, state = world.fill(desired(Policy("world", HERE, (WORLD, WORLD6)), both=True)), State()
    for number in range(PACKETS // 2):
        oracle.step(world, tables, state, number)
    with with_settings(world, hands_over=1):
        for number in range(PACKETS // 2, PACKETS):
            oracle.step(world, replace(tables, hands_over=True), state, number)
        assert world.counted()["handing_over"] > 10
    oracle.assert_same(world.state(), state)
