"""Tables that are full: new flows are refused and counted, old ones live, halves stay paired."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress.policy import Policy
from tests.bpf import oracle
from tests.bpf.draws import bodies, packets, policies_of, seeds
from tests.bpf.packets import build, parse
from tests.bpf.wishes import HERE, THERE, desired, to_world
from tests.bpf.world import POD, REMOTE, SMALL, World
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


def test_a_full_flow_table_refuses_new_flows_and_keeps_the_old(small_world: World) -> None:
    small_world.fill(to_world(THERE))
    sent = [_send(small_world, 40000 + n) for n in range(SMALL["flows"] + 1)]
    assert [verdict for verdict, _ in sent] == ["redirect"] * SMALL["flows"] + ["drop"]
    assert small_world.counted()["flow_table_full"] == 1
    assert oracle.is_paired(small_world.state())
    assert _send(small_world, 40000) == sent[0]


def test_a_full_table_of_ports_refuses_new_flows_and_keeps_the_old(small_world: World) -> None:
    small_world.fill(to_world(THERE))
    first = _send(small_world, 40000)
    for n in range(1, SMALL["reverse"] + 4):  # flows that find no room leave their port to rest
        _send(small_world, 40000 + n)
    assert small_world.counted()["reverse_table_full"] > 0
    assert oracle.is_paired(small_world.state())
    assert _send(small_world, 40000) == first


def test_a_flow_from_outside_that_cannot_be_recorded_is_refused(small_world: World) -> None:
    """Its answer would leave with the egress IP."""
    small_world.fill(to_world(HERE))
    for n in range(SMALL["flows"]):
        _send(small_world, 40000 + n)
    verdict, _ = small_world.run("to_pod", "pod0", build(Packet(REMOTE, POD, UDP, 53, 5353)))
    assert verdict == "drop"
