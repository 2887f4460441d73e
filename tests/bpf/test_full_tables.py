"""Tables and port ranges that are full: new flows are refused and counted, old ones live, halves stay paired."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf import layout
from egress.policy import Policy
from tests.bpf import oracle
from tests.bpf.draws import bodies, packets, policies_of, seeds
from tests.bpf.packets import build, parse
from tests.bpf.wishes import HERE, desired, to_world
from tests.bpf.world import EGRESS_IP, POD, REMOTE, SMALL, World
from tests.models.tables import UDP, Packet

EXAMPLES = 40

policies = st.lists(bodies, min_size=1, max_size=2).map(policies_of)


@settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(policies, seeds)
def test_the_programs_do_what_the_model_says(small_world: World, wished: list[Policy], seed: int) -> None:
    oracle.check(small_world, desired(*wished, both=True), packets(seed))


def _send(world: World, port: int, remote: IPv4Address = REMOTE) -> tuple[str, int]:
    """(verdict, source port afterwards) of a UDP packet of POD."""
    packet = Packet(POD, remote, UDP, port, 53)
    verdict, out = world.run("from_pod", "pod0", build(packet))
    return verdict, parse(out).source_port


def test_a_full_nat_table_refuses_new_flows_and_keeps_the_old(small_world: World) -> None:
    small_world.fill(to_world(HERE))
    verdicts = [_send(small_world, 40000 + n)[0] for n in range(SMALL["nat"] + 2)]
    assert verdicts == ["redirect"] * SMALL["nat"] + ["drop"] * 2
    assert small_world.counted() == {"translated": SMALL["nat"], "nat_table_full": 2}
    assert oracle.is_paired(small_world.state())
    assert _send(small_world, 40000) == ("redirect", 40000)


def test_a_full_flow_table_refuses_new_flows_and_keeps_the_old(small_world: World) -> None:
    small_world.fill(to_world(8))
    verdicts = [_send(small_world, 40000 + n)[0] for n in range(SMALL["flows"] + 1)]
    assert verdicts == ["redirect"] * SMALL["flows"] + ["drop"]
    assert small_world.counted()["flow_table_full"] == 1
    assert _send(small_world, 40000)[0] == "redirect"


def test_a_flow_from_outside_that_cannot_be_recorded_is_refused(small_world: World) -> None:
    """Its answer would leave with the egress IP."""
    small_world.fill(to_world(8))
    for n in range(SMALL["flows"]):
        _send(small_world, 40000 + n)
    verdict, _ = small_world.run("to_pod", "pod0", build(Packet(REMOTE, POD, UDP, 53, 5353)))
    assert verdict == "drop"


def _narrow(world: World, first: int, last: int) -> None:
    """The group has only these ports."""
    value = layout.GroupValue(layout.ip_field(EGRESS_IP), first, last)
    world.maps["groups"].put(layout.u32(HERE), bytes(value))


def test_a_range_without_a_free_port_refuses_and_says_so(small_world: World) -> None:
    small_world.fill(to_world(HERE))
    _narrow(small_world, 50000, 50001)
    try:
        outcomes = [_send(small_world, 40000 + n) for n in range(3)]
        elsewhere = _send(small_world, 40003, IPv4Address("198.51.100.9"))
    finally:
        _narrow(small_world, 1024, 65535)
    assert {port for _, port in outcomes[:2]} == {50000, 50001}
    assert outcomes[2][0] == "drop"
    assert elsewhere[0] == "redirect"  # the same port serves another destination
    assert small_world.counted() == {"translated": 3, "no_free_port": 1}
    assert oracle.is_paired(small_world.state())
