"""Collection: a flow goes by the time-out of its state, its port rests and goes a round after, live ones stay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bpf import layout
from egress.policy import FLOW_DEADLINE, Desired, Policy, Ports
from tests.bpf.oracle import assert_same
from tests.bpf.wishes import HERE, THERE, WORLD, WORLD6, desired, to_world
from tests.bpf.world import EGRESS_IP, EGRESS_IP6, POD, POD6, REMOTE, REMOTE6, SMALL, World
from tests.models.tables import ICMP, ICMP6, TCP, UDP, Flow, FlowKey, Port, PortKey, State

# Short ones: a machine may not have been up for as long as an established connection may idle.
LIMITS = {"tcp_established": 40, "tcp_opening": 30, "tcp_closing": 5, "udp": 20, "icmp": 10}
PACKET, FIN, RST = layout.SEEN_PACKET, layout.SEEN_PACKET | layout.SEEN_FIN, layout.SEEN_PACKET | layout.SEEN_RST
FIRST = layout.SEEN_FIN_FIRST

# protocol, seen from the pod, seen from the remote -> whose time-out it has, and how long its port rests then
STATES = [
    (TCP, PACKET, PACKET, "tcp_established", 60),
    (TCP, PACKET, 0, "tcp_opening", 60),
    (TCP, 0, PACKET, "tcp_opening", 60),
    (TCP, FIN, PACKET, "tcp_established", 60),  # half closed: the other side may go on
    (TCP, FIN, FIN, "tcp_closing", 60),
    (TCP, FIN | FIRST, FIN, "tcp_closing", 10),
    (TCP, RST, PACKET, "tcp_opening", 4),
    (TCP, PACKET, RST, "tcp_opening", 60),
    (UDP, PACKET, PACKET, "udp", 0),
    (UDP, PACKET, 0, "udp", 0),
    (ICMP, PACKET, PACKET, "icmp", 0),
    (ICMP6, PACKET, PACKET, "icmp", 0),
]


def _fill(world: World, state: State, age: float, wish: Desired | None = None) -> None:
    world.fill(wish or to_world(HERE), state, age)
    raw = world.maps["settings"].get(layout.u32(0))
    assert raw is not None
    settings = layout.decode(layout.Settings, raw)
    for name, seconds in LIMITS.items():
        setattr(settings, f"{name}_seconds", seconds)
    world.maps["settings"].put(layout.u32(0), bytes(settings))


def _pair(protocol: int, seen_out: int = PACKET, seen_in: int = PACKET, port: int = 40000, device: int = 3) -> State:
    pod, remote, egress_ip = (POD6, REMOTE6, EGRESS_IP6) if protocol == ICMP6 else (POD, REMOTE, EGRESS_IP)
    flow = Flow(HERE, seen_out, 0, egress_ip, port, gateway=1, id=port)
    state = Port(pod, device, port, HERE, port, seen_in=seen_in)
    key = FlowKey(pod, remote, device, port, 53, protocol)
    return State({key: flow}, {PortKey(egress_ip, remote, port, 53, protocol): state})


@pytest.mark.parametrize(("protocol", "seen_out", "seen_in", "limit", "rests"), STATES)
def test_time_outs_go_by_state(
    world: World, protocol: int, seen_out: int, seen_in: int, limit: str, rests: int
) -> None:
    state = _pair(protocol, seen_out, seen_in)
    _fill(world, state, LIMITS[limit] - 2)
    result = world.collect()
    assert (result.flows, result.flows_live, result.ports_live) == (0, 1, 1)
    assert_same(world.state(), state)
    _fill(world, state, LIMITS[limit] + 1)
    result = world.collect()
    assert (result.flows, result.flows_live) == (1, 0)
    after = world.state()
    assert after.flows == {}
    (port,) = after.ports.values()
    if rests:
        assert port.state == "resting"
        assert rests - 3 <= port.rests <= rests
    else:  # nothing is left at the remote: it goes at once
        assert port.state == "dying"


def test_answers_alone_keep_a_flow(world: World) -> None:
    _fill(world, _pair(UDP), LIMITS["udp"] + 5)
    ((key, value),) = world.maps["reverse"].items().items()
    port = layout.decode(layout.ReverseValue, value)
    port.last_seen += int((LIMITS["udp"] + 4) * 1e9)
    world.maps["reverse"].put(key, bytes(port))
    assert world.collect().flows_live == 1


def test_a_flow_whose_port_is_anothers_goes_at_once(world: World) -> None:
    state = _pair(UDP)
    ((key, port),) = state.ports.items()
    _fill(world, replace(state, ports={key: replace(port, id=port.id + 1)}), 0)
    assert world.collect().flows == 1


def test_a_port_goes_a_round_after_it_has_rested(world: World) -> None:
    """Nobody that still holds a pointer to it writes into what has become another's."""
    ((key, port),) = _pair(TCP).ports.items()
    _fill(world, State({}, {key: replace(port, state="resting", rests=30)}), 0)
    assert world.collect().ports_resting == 1
    assert [p.state for p in world.state().ports.values()] == ["resting"]
    _fill(world, State({}, {key: replace(port, state="resting", rests=-1)}), 0)
    world.collect()
    assert [p.state for p in world.state().ports.values()] == ["dying"]
    assert world.collect().ports == 1
    assert world.state().ports == {}


def test_a_port_without_a_flow_is_given_the_time_that_recording_one_takes(world: World) -> None:
    ((key, port),) = _pair(TCP).ports.items()
    _fill(world, State({}, {key: port}), 0)
    world.collect()
    assert [p.state for p in world.state().ports.values()] == ["live"]
    _fill(world, State({}, {key: port}), 5)
    world.collect()
    assert [p.state for p in world.state().ports.values()] == ["resting"]


def test_many_are_collected_in_one_round(world: World) -> None:
    pairs = [_pair(UDP, port=port) for port in range(20000, 25000)]
    flows = {key: flow for pair in pairs for key, flow in pair.flows.items()}
    ports = {key: port for pair in pairs for key, port in pair.ports.items()}
    _fill(world, State(flows, ports), LIMITS["udp"] + 5)
    result = world.collect()
    assert (result.flows, result.flows_live) == (5000, 0)
    assert world.collect().ports == 5000
    assert world.state() == State()


def _used(world: World) -> dict[tuple[object, int], int]:
    """By egress IP and number of 64 ports."""
    decoded = (
        (layout.decode(layout.GranuleKey, key), layout.decode(layout.GranuleUse, value))
        for key, value in world.maps["granules"].items().items()
    )
    return {(layout.ip_of(key.egress_ip), key.granule): use.ports for key, use in decoded}


def _together(*pairs: State) -> State:
    return State(
        {key: flow for each in pairs for key, flow in each.flows.items()},
        {key: port for each in pairs for key, port in each.ports.items()},
    )


def test_ports_are_counted_by_granule_and_a_granule_without_any_makes_room(world: World) -> None:
    _fill(world, _together(*(_pair(UDP, port=port) for port in (41000, 41001, 42000)), _pair(ICMP6, port=41000)), 0)
    assert world.collect().ports_uncounted == 0
    assert _used(world) == {
        (EGRESS_IP, 41000 // 64): 2, (EGRESS_IP, 42000 // 64): 1, (EGRESS_IP6, 41000 // 64): 1,
    }  # fmt: skip
    _fill(world, _pair(UDP, port=42000), 0)
    world.collect()
    assert _used(world) == {(EGRESS_IP, 42000 // 64): 1}


def test_ports_for_which_there_was_no_room_are_told(small_world: World) -> None:
    """What is not counted would be taken for unused, and given to another node."""
    ports = (41000, 42000, 43000)
    _fill(small_world, _together(*(_pair(UDP, port=port) for port in ports)), 0)
    counted = small_world.collect()
    assert (counted.ports_live, counted.ports_uncounted, len(_used(small_world))) == (3, 1, SMALL["granules"])
    _fill(small_world, _pair(UDP, port=43000), 0)
    small_world.collect()
    assert small_world.collect().ports_uncounted == 0
    assert _used(small_world) == {(EGRESS_IP, 43000 // 64): 1}


# --- flows that outlive their policy

EVERYTHING = (WORLD, WORLD6)
WITHOUT = {
    "it is not selected any more": desired(Policy("world", HERE, EVERYTHING), of=()),
    "its policy leaves by another group": desired(Policy("world", THERE, EVERYTHING)),
    "its policy is refused": desired(Policy("world", 0, EVERYTHING)),
    "another policy comes first": desired(Policy("dns", THERE, EVERYTHING, ports=(Ports("UDP", 53, 53),)),
                                          Policy("world", HERE, EVERYTHING)),
    "the destination is excluded": desired(Policy("world", HERE, EVERYTHING, excluded=EVERYTHING)),
    "the destination is in the cluster": replace(to_world(HERE), cluster=frozenset(EVERYTHING)),
}  # fmt: skip


def _unwanted_since(world: World) -> int:
    ((_, value),) = world.maps["flows"].items().items()
    return int(layout.decode(layout.FlowValue, value).unwanted_since)


def _unwanted_for(world: World, seconds: float) -> None:
    ((key, value),) = world.maps["flows"].items().items()
    flow = layout.decode(layout.FlowValue, value)
    flow.unwanted_since -= int(seconds * 1e9)
    world.maps["flows"].put(key, bytes(flow))


@pytest.mark.parametrize("protocol", [UDP, ICMP6])
@pytest.mark.parametrize("why", WITHOUT)
def test_what_no_policy_sends_this_way_any_more_ends_by_a_deadline(world: World, why: str, protocol: int) -> None:
    if protocol == ICMP6 and why == "another policy comes first":
        protocol = UDP
    state = _pair(protocol, device=world.ifindex["pod0"])
    wish = replace(WITHOUT[why], flow_deadline=5)
    _fill(world, state, 0, wish)
    assert (world.collect().flows_live, _unwanted_since(world) > 0) == (1, True)
    _unwanted_for(world, 4)
    assert world.collect().flows_live == 1
    _unwanted_for(world, 2)
    assert world.collect().flows == 1
    assert [port.state for port in world.state().ports.values()] != ["live"]


def test_a_policy_that_comes_back_in_time_has_its_flows_as_before(world: World) -> None:
    state = _pair(UDP, device=world.ifindex["pod0"])
    _fill(world, state, 0, WITHOUT["it is not selected any more"])
    world.collect()
    ((key, value),) = world.maps["flows"].items().items()
    _fill(world, state, 0)
    world.maps["flows"].put(key, value)
    assert (world.collect().flows_live, _unwanted_since(world)) == (1, 0)


def test_the_deadline_is_an_hour_unless_it_is_set(world: World) -> None:
    _fill(world, State(), 0)
    raw = world.maps["settings"].get(layout.u32(0))
    assert raw is not None
    assert layout.decode(layout.Settings, raw).deadline_seconds == FLOW_DEADLINE == 3600
