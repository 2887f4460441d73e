"""What the datapath says of its tables: how full they are, who searches long for a port, who is near its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bpf import layout
from egress.netdev import Datapath
from egress.policy import MOST_SERVED, NO_LIMITS, IPAddress, Limits
from routerd.node.fill import fill_refusals
from tests.bpf.packets import build
from tests.bpf.wishes import HERE, OWN, THERE, to_world
from tests.bpf.world import EGRESS_IP, POD, POD6, REMOTE, REMOTE6, SMALL, World, put_all
from tests.models.tables import UDP, Packet, Port, PortKey, State


@pytest.fixture
def datapath() -> Iterator[Callable[[World], Datapath]]:
    opened: list[Datapath] = []

    def of(world: World) -> Datapath:
        opened.append(Datapath(world.pins))
        for key in world.maps["pressures"].items():  # of searches before
            world.maps["pressures"].delete(key)
        return opened[-1]

    yield of
    for each in opened:
        each.close()


def _send(world: World, count: int, pod: IPAddress = POD, remote: IPAddress = REMOTE) -> None:
    for number in range(count):
        world.run("from_pod", "pod0", build(Packet(pod, remote, UDP, 40000 + number, 53, length=80)))


def _reasons(datapath: Datapath) -> set[str]:
    return {f"{each.object} {each.reason}" for each in fill_refusals("a", datapath.status())}


def test_entries_are_counted_as_they_are_now(small_world: World, datapath: Callable[[World], Datapath]) -> None:
    small_world.fill(to_world(THERE))
    opened = datapath(small_world)
    opened.collect()
    _send(small_world, 3)
    _send(small_world, 2, POD6, REMOTE6)
    status = opened.status()
    assert (status.entries, status.room["flows"]) == ({"flows": 5, "ports": 5, "granules": 0}, SMALL["flows"])
    assert _reasons(opened) == set()
    _send(small_world, 6)
    assert _reasons(opened) == {"node/a TableNearlyFull"}
    opened.collect()
    assert opened.status().entries["granules"] == SMALL["granules"]


def test_a_group_that_searches_long_is_pressed(world: World, datapath: Callable[[World], Datapath]) -> None:
    taken = range(OWN.first, OWN.first + OWN.size)
    ports = {PortKey(EGRESS_IP, REMOTE, port, 53, UDP): Port(POD, 9, port, HERE, port) for port in taken}
    world.fill(to_world(HERE), State({}, ports))
    opened = datapath(world)
    assert _reasons(opened) == set()
    _send(world, 2)
    assert opened.status().long_searches == {str(HERE): 2}
    assert _reasons(opened) == {f"egress/{HERE} PortsScarce"}
    assert opened.is_pressed()
    opened.collect()
    assert not opened.is_pressed(), "until a search is long again"
    use = opened.port_use()
    assert use and [*use.pressed] == [HERE] and use.pressed[HERE] < use.counted


def test_a_pod_near_its_share_is_pressed_until_it_wants_no_more(
    world: World, datapath: Callable[[World], Datapath]
) -> None:
    world.limits = Limits(flow_room=100, port_room=100, flows_per_pod=8, ports_per_pod=50, outside_flows=50)
    world.fill(to_world(HERE))
    world.limits = NO_LIMITS
    opened = datapath(world)
    _send(world, 8)
    assert opened.is_pressed()
    opened.collect()
    assert _reasons(opened) == {f"pod-address/{POD} PodNearShare", f"pod-address/{POD6} PodNearShare"}
    assert not opened.is_pressed()
    opened.collect()
    assert _reasons(opened) == set()


def test_of_an_array_only_what_was_written_is_read(world: World) -> None:
    world.fill(to_world(HERE))
    numbers = world.maps["node_numbers"]
    before = numbers.items(zeros=False)
    written = {layout.u32(number): bytes(layout.NodeValue(local=number)) for number in (63, 64, 65535)}
    put_all(numbers, written)
    assert numbers.items(zeros=False) == {**before, **written}
    assert len(numbers.items()) == 65536
    put_all(numbers, dict.fromkeys(written, bytes(layout.NodeValue())))
    assert numbers.items(zeros=False) == before


def test_a_node_serves_no_more_egress_ips_than_its_map_takes(world: World) -> None:
    assert world.maps["egress_ips"].max_entries == MOST_SERVED
