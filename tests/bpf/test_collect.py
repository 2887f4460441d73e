"""Collection: what is idle goes by the time-out of its state, halves go together, live ones stay."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from bpf import layout
from tests.bpf.wishes import HERE, to_world
from tests.bpf.world import EGRESS_IP, POD, REMOTE, World, encode, nat_key_bytes, put_all, reverse_key_bytes
from tests.models.tables import ICMP, TCP, UDP, Back, Flow, FlowKey, Mapped, NatKey, ReverseKey, State

# Short ones: a machine may not have been up for as long as an established connection may idle.
LIMITS = {"tcp_established": 40, "tcp_opening": 30, "tcp_closing": 5, "udp": 20, "icmp": 10}
ORPHAN = 6
PACKET, FIN, RST = layout.SEEN_PACKET, layout.SEEN_PACKET | layout.SEEN_FIN, layout.SEEN_PACKET | layout.SEEN_RST

# protocol, seen from the pod, seen from the remote -> whose time-out it has
STATES = [
    (TCP, PACKET, PACKET, "tcp_established"),
    (TCP, PACKET, 0, "tcp_opening"),
    (TCP, 0, PACKET, "tcp_opening"),
    (TCP, FIN, PACKET, "tcp_established"),  # half closed: the other side may go on
    (TCP, FIN, FIN, "tcp_closing"),
    (TCP, RST, PACKET, "tcp_opening"),
    (TCP, PACKET, RST, "tcp_opening"),
    (UDP, PACKET, PACKET, "udp"),
    (UDP, PACKET, 0, "udp"),
    (ICMP, PACKET, PACKET, "icmp"),
]


def _fill(world: World, state: State, age: float) -> None:
    world.fill(to_world(HERE), state, age)
    raw = world.maps["settings"].get(layout.u32(0))
    assert raw is not None
    settings = layout.decode(layout.Settings, raw)
    for name, seconds in LIMITS.items():
        setattr(settings, f"{name}_seconds", seconds)
    settings.orphan_seconds = ORPHAN
    world.maps["settings"].put(layout.u32(0), bytes(settings))


def _flow(protocol: int = UDP) -> FlowKey:
    return FlowKey(POD, REMOTE, 40000, 53, protocol)


def _pair(protocol: int, seen_out: int, seen_in: int) -> State:
    forward = {NatKey(_flow(protocol), HERE): Mapped(EGRESS_IP, None, 40000, seen_out)}
    reverse = {ReverseKey(EGRESS_IP, REMOTE, 40000, 53, protocol): Back(POD, None, HERE, 40000, seen_in)}
    return State({_flow(protocol): Flow(HERE, 0, seen_out, seen_in)}, forward, reverse)


@pytest.mark.parametrize(("protocol", "seen_out", "seen_in", "limit"), STATES)
def test_time_outs_go_by_state(world: World, protocol: int, seen_out: int, seen_in: int, limit: str) -> None:
    state = _pair(protocol, seen_out, seen_in)
    _fill(world, state, LIMITS[limit] - 2)
    result = world.collect()
    assert (result.flows_live, result.mappings_live, result.reverses_live) == (1, 1, 1)
    assert world.state() == state
    _fill(world, state, LIMITS[limit] + 1)
    result = world.collect()
    assert (result.flows, result.mappings, result.reverses, result.reverses_live) == (1, 1, 0, 1)
    assert world.state() == State(reverse=state.reverse)


def _age_of_reverse(world: World, seconds: float, orphaned: float = 0) -> None:
    """When the reverse half was last used, and found without its forward half, in seconds ago."""
    (key,) = world.state().reverse
    raw = world.maps["reverse"].get(reverse_key_bytes(key))
    assert raw is not None
    value = layout.decode(layout.ReverseValue, raw)
    value.last_seen = time.monotonic_ns() - int(seconds * 1e9)
    value.orphaned = time.monotonic_ns() - int(orphaned * 1e9) if orphaned else 0
    world.maps["reverse"].put(reverse_key_bytes(key), bytes(value))


def test_replies_alone_keep_a_mapping(world: World) -> None:
    _fill(world, _pair(UDP, PACKET, PACKET), LIMITS["udp"] + 5)
    _age_of_reverse(world, 1)
    result = world.collect()
    assert (result.mappings_live, result.reverses_live) == (1, 1)


def test_a_forward_half_alone_goes_at_once(world: World) -> None:
    _fill(world, replace(_pair(UDP, PACKET, PACKET), reverse={}), 1)
    assert world.collect().mappings == 1


def test_an_orphan_goes_after_its_grace(world: World) -> None:
    orphan = replace(_pair(UDP, PACKET, PACKET), nat={})
    _fill(world, orphan, 1)
    for _ in range(2):  # the first round notes it, the second finds it within its grace
        assert world.collect().reverses_live == 1
    _age_of_reverse(world, 60, orphaned=ORPHAN - 2)
    assert world.collect().reverses_live == 1
    _age_of_reverse(world, 60, orphaned=ORPHAN + 1)
    assert world.collect().reverses == 1
    assert world.state().reverse == {}


def test_an_orphan_whose_forward_half_came_back_stays(world: World) -> None:
    _fill(world, _pair(UDP, PACKET, PACKET), 1)
    _age_of_reverse(world, 60, orphaned=ORPHAN + 1)
    assert world.collect().reverses_live == 1
    (key,) = world.state().nat
    world.maps["nat"].delete(nat_key_bytes(key))
    assert world.collect().reverses_live == 1  # its grace begins anew


def test_a_forward_half_with_another_port_is_not_its_own(world: World) -> None:
    """The flow has another mapping by now; what is left of the old one goes."""
    state = _pair(UDP, PACKET, PACKET)
    ((key, mapped),) = state.nat.items()
    _fill(world, state, 1)
    _age_of_reverse(world, 1, orphaned=ORPHAN + 1)
    new = State(nat={key: replace(mapped, egress_port=50000)})
    ((old_key, back),) = state.reverse.items()
    new.reverse[old_key._replace(egress_port=50000)] = back
    for name, entries in encode(new, 1).items():
        put_all(world.maps[name], entries)
    result = world.collect()
    assert (result.mappings_live, result.reverses, result.reverses_live) == (1, 1, 1)
    assert world.state().reverse == new.reverse


def test_many_are_collected_in_one_round(world: World) -> None:
    flows = {_flow()._replace(pod_port=port): Flow(HERE, 0, PACKET, PACKET) for port in range(20000, 25000)}
    _fill(world, State(flows), LIMITS["udp"] + 5)
    result = world.collect()
    assert (result.flows, result.flows_live) == (5000, 0)
