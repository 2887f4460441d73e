"""One pod does not take the room of the others, nor does who sends to it: shares, refusals, and what gives way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf import layout
from egress.policy import NO_LIMITS, IPAddress, Limits, Policy, Quotas, Version, limits
from tests.bpf import oracle
from tests.bpf.draws import bodies, packets, policies_of, seeds
from tests.bpf.packets import build
from tests.bpf.wishes import HERE, WORLD, WORLD6, desired
from tests.bpf.world import EGRESS_IP, EGRESS_IP6, POD, POD2, POD6, POD26, REMOTE, REMOTE6, TIGHT, World
from tests.models.tables import TCP, UDP, Flow, FlowKey, Packet, Port, PortKey, State, Use

EXAMPLES = 40
PODS: dict[Version, tuple[IPAddress, IPAddress]] = {4: (POD, POD2), 6: (POD6, POD26)}
REMOTES: dict[Version, IPAddress] = {4: REMOTE, 6: REMOTE6}
EGRESS_IPS: dict[Version, IPAddress] = {4: EGRESS_IP, 6: EGRESS_IP6}
PACKET, AGAIN = layout.SEEN_PACKET, layout.SEEN_PACKET | layout.SEEN_AGAIN
both_families = pytest.mark.parametrize("version", [4, 6])

policies = st.lists(bodies, min_size=1, max_size=2).map(policies_of)
BOTH_PODS = desired(Policy("world", HERE, (WORLD, WORLD6)), both=True)


@pytest.fixture
def tight(world: World) -> Iterator[World]:
    world.limits = TIGHT
    yield world
    world.limits = NO_LIMITS


@settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(policies, seeds)
def test_the_programs_do_what_the_model_says(tight: World, wished: list[Policy], seed: int) -> None:
    oracle.check(tight, desired(*wished, both=True), packets(seed))


def _out(world: World, version: Version, number: int, pod: int = 0) -> str:
    """What becomes of the `number`-th connection of a pod."""
    packet = Packet(PODS[version][pod], REMOTES[version], UDP, 40000 + number, 53, length=80)
    return world.run("from_pod", f"pod{pod}", build(packet))[0]


def _in(world: World, version: Version, number: int, pod: int = 0, flags: str = "S") -> str:
    packet = Packet(REMOTES[version], PODS[version][pod], TCP, 20000 + number, 8080, flags=flags, length=80)
    return world.run("to_pod", f"pod{pod}", build(packet))[0]


def _answer(world: World, version: Version, number: int) -> str:
    packet = Packet(PODS[version][0], REMOTES[version], TCP, 8080, 20000 + number, flags="SA", length=80)
    return world.run("from_pod", "pod0", build(packet))[0]


@both_families
def test_a_pod_at_its_quota_keeps_what_it_has_and_takes_nothing_from_another(tight: World, version: Version) -> None:
    tight.fill(BOTH_PODS)
    assert [_out(tight, version, n) for n in range(6)] == ["redirect"] * 4 + ["drop"] * 2
    assert tight.counted()["flow_quota"] == 2
    assert _out(tight, version, 0) == "redirect"
    assert [_out(tight, version, n, pod=1) for n in range(4)] == ["redirect"] * 4


def test_families_of_a_pod_share_its_quota(tight: World) -> None:
    tight.fill(BOTH_PODS)
    assert [_out(tight, 4, n) for n in range(3)] + [_out(tight, 6, n) for n in range(2)] == ["redirect"] * 4 + ["drop"]


@both_families
def test_however_many_want_all_the_next_one_finds_room(world: World, version: Version) -> None:
    """Quotas that add up to more than the table: each has no more than is still free."""
    world.limits = Limits(flow_room=12, port_room=100, flows_per_pod=12, ports_per_pod=100, outside_flows=6)
    world.fill(BOTH_PODS)
    first = [_out(world, version, n) for n in range(12)].count("redirect")
    second = [_out(world, version, n, pod=1) for n in range(12)].count("redirect")
    world.limits = NO_LIMITS
    assert (first, second) == (6, 3)


@both_families
def test_ports_at_rest_count(tight: World, version: Version) -> None:
    tight.fill(BOTH_PODS, State({}, _resting(tight, version, 6)), age=1)
    assert _out(tight, version, 100) == "drop"
    assert tight.counted() == {"port_quota": 1}
    assert _out(tight, version, 100, pod=1) == "redirect"


@both_families
def test_a_port_that_passes_to_another_pod_is_that_ones(tight: World, version: Version) -> None:
    ((key, port),) = _resting(tight, version, 1).items()
    others = replace(port, rests=-1.0, pod=PODS[version][1], ifindex=tight.ifindex["pod1"])
    tight.fill(BOTH_PODS, State({}, {key: others}))
    assert _out(tight, version, 960) == "redirect"  # which folds into that very port
    assert tight.uses() == {0: Use(1, 0, 1), tight.ifindex["pod0"]: Use(1, 0, 1)}


def _resting(world: World, version: Version, count: int) -> dict[PortKey, Port]:
    pod, device = PODS[version][0], world.ifindex["pod0"]
    return {
        PortKey(EGRESS_IPS[version], REMOTES[version], 40960 + n, 53, UDP): Port(
            pod, device, 9000 + n, HERE, 77 + n, "resting", rests=30.0
        )
        for n in range(count)
    }


@both_families
def test_forged_syns_to_a_pod_take_a_bounded_share(tight: World, version: Version) -> None:
    """And no part of what the pod itself may begin, nor of what begins outside towards another one."""
    tight.fill(BOTH_PODS)
    assert [_in(tight, version, n) for n in range(5)] == ["next"] * 3 + ["drop"] * 2
    assert tight.counted() == {"outside_quota": 2}
    assert [_in(tight, version, n, pod=1) for n in range(2)] == ["next", "next"]
    assert [_out(tight, version, n) for n in range(4)] == ["redirect"] * 4


# --- what gives way


def _half(world: World, version: Version, answered: bool, port: int, protocol: int = UDP) -> State:
    pod, remote, egress_ip = PODS[version][0], REMOTES[version], EGRESS_IPS[version]
    key = FlowKey(pod, remote, world.ifindex["pod0"], port, 53, protocol)
    flow = Flow(HERE, PACKET, 0, egress_ip, port, gateway=1, id=port)
    mapped = Port(pod, key.ifindex, port, HERE, port, seen_in=PACKET if answered else 0)
    return State({key: flow}, {PortKey(egress_ip, remote, port, 53, protocol): mapped})


def _together(*states: State) -> State:
    return State({k: f for s in states for k, f in s.flows.items()}, {k: p for s in states for k, p in s.ports.items()})


@both_families
@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_what_nobody_answered_gives_way_near_the_quota(tight: World, version: Version, protocol: int) -> None:
    known = _together(*(_half(tight, version, n == 0, 41000 + n, protocol) for n in range(4)))
    tight.fill(BOTH_PODS, known, age=6)
    assert tight.collect().flows == 0  # nobody wanted more
    assert _out(tight, version, 0) == "drop"
    assert tight.collect().flows == 3
    (left,) = tight.state().flows
    assert left.pod_port == 41000  # the one that was answered
    assert _out(tight, version, 0) == "redirect"


@both_families
def test_a_question_is_given_time_for_its_answer(tight: World, version: Version) -> None:
    tight.fill(BOTH_PODS, _together(*(_half(tight, version, False, 41000 + n) for n in range(4))), age=3)
    assert _out(tight, version, 0) == "drop"
    assert tight.collect().flows == 0


@both_families
def test_what_began_outside_and_went_no_further_gives_way_first(tight: World, version: Version) -> None:
    """A pod answers a forged source, too: that the one who began speaks again is what counts."""
    remote, pod, device = REMOTES[version], PODS[version][0], tight.ifindex["pod0"]
    forged, honest = (FlowKey(pod, remote, device, 8080, port, TCP) for port in (20000, 20001))
    begun = {forged: Flow(seen_out=PACKET, seen_in=PACKET), honest: Flow(seen_out=PACKET, seen_in=AGAIN)}
    own = _together(*(_half(tight, version, False, 41000 + n) for n in range(4)))
    tight.fill(BOTH_PODS, _together(State(begun, {}), own), age=3)
    assert _out(tight, version, 0) == "drop"
    tight.collect()
    assert {key for key, flow in tight.state().flows.items() if not flow.group} == {honest}
    assert len(tight.state().flows) == 5


@both_families
def test_a_handshake_that_is_not_finished_has_the_time_of_one_that_opens(tight: World, version: Version) -> None:
    tight.fill(BOTH_PODS)
    for number, last in ((0, ""), (1, "A")):
        _in(tight, version, number)
        _answer(tight, version, number)
        if last:
            _in(tight, version, number, flags=last)
    state = tight.state()
    assert [flow.seen_in for _, flow in sorted(state.flows.items())] == [PACKET, AGAIN]
    tight.fill(BOTH_PODS, state, age=300)
    assert (tight.collect().flows, [key.remote_port for key in tight.state().flows]) == (1, [20001])


def test_collection_counts_anew_what_user_space_took_away(tight: World) -> None:
    tight.fill(BOTH_PODS)
    for number in range(4):
        _out(tight, 4, number)
    for key in list(tight.maps["flows"].items())[:3]:
        tight.maps["flows"].delete(key)
    assert _out(tight, 4, 9) == "drop"
    tight.collect()
    assert tight.uses()[tight.ifindex["pod0"]] == Use(1, 0, 4)
    assert _out(tight, 4, 9) == "redirect"
    tight.fill(BOTH_PODS)
    tight.collect()
    assert tight.maps["uses"].items().keys() == {layout.u32(0)}


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [(Quotas(), Limits(1000, 2000, 250, 500, 500)), (Quotas(10, 20), Limits(1000, 2000, 10, 20, 500))],
)
def test_quotas_are_a_quarter_of_the_table_unless_said_otherwise(quotas: Quotas, expected: Limits) -> None:
    assert limits(1000, 2000, quotas) == expected
