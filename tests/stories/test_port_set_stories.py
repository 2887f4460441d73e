"""Stories of port sets: which node may use which ports of an egress IP. Each step is an edit or a wait."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from routerd.cluster.adopt import adopt
from routerd.cluster.ledger import Ledger, rest_anew
from routerd.cluster.port_sets import holders
from routerd.model import AppliedTable, NodeReport, PortAsk, PortReport, Service, ServicePort, UnusedBlock
from tests.models.operator_world import World, ports_text, text

IP = ip_address("198.51.100.7")


def lines(block: str) -> str:
    return "\n".join(line.strip() for line in block.strip().splitlines())


def decide(world: World, seconds: float = 0) -> str:
    world.decide(seconds)
    return ports_text(world.allocations)


def shared() -> World:
    """Two gateways, a worker, a policy."""
    world = World()
    world.node("g1")
    world.node("g2")
    world.node("worker", None)
    world.policy("out", "198.51.100.7")
    return world


def test_every_node_has_ports_of_every_egress_ip_at_once() -> None:
    world = shared()
    assert decide(world) == "198.51.100.7 g1:1024+1024 g2:2048+1024 worker:3072+1024 told g1,g2"
    world.policy("other", "2001:db8::7")
    world.decide()
    assert [str(each.egress_ip) for each in world.allocations.bindings] == ["198.51.100.7"], (
        "nothing is translated to it"
    )
    world.policy("second", "198.51.100.8")
    assert decide(world) == lines("""
        198.51.100.7 g1:1024+1024 g2:2048+1024 worker:3072+1024 told g1,g2
        198.51.100.8 g1:1024+1024 g2:2048+1024 worker:3072+1024 told g1,g2
    """)


def test_nothing_moves_when_nodes_come_and_the_operator_starts_anew() -> None:
    world = shared()
    decide(world)
    world.node("a-new-one", None)
    expected = "198.51.100.7 g1:1024+1024 g2:2048+1024 worker:3072+1024 a-new-one:4096+1024 told g1,g2"
    assert decide(world) == expected
    generation = world.allocations.generation
    assert decide(world, 10**6) == expected
    assert world.allocations.generation == generation
    world.lose_file()
    assert decide(world, 60) == expected
    assert world.allocations.generation == generation, "what is published was taken over"
    world.node("another", None)
    assert decide(world).startswith(expected.partition(" told")[0] + " another:5120+1024")


def test_a_node_that_is_not_ready_keeps_its_ports_and_one_that_is_deleted_does_not() -> None:
    world = shared()
    decide(world)
    world.node("worker", None, ready=False)
    assert "worker:3072+1024" in decide(world, 10**6)
    del world.nodes["worker"]
    assert decide(world) == "198.51.100.7 g1:1024+1024 g2:2048+1024 x:3072+1024 told g1,g2"
    world.node("worker2", None)
    late = "198.51.100.7 g1:1024+1024 g2:2048+1024 worker2:4096+1024 x:3072+1024 told g1,g2"
    assert decide(world, 10**6) == late, "no gateway has said that it dropped the binding"
    world.node("worker", None)
    assert "worker:5120+1024" in decide(world), "back again it begins anew"


def test_out_of_service_is_gone() -> None:
    world = shared()
    decide(world)
    world.nodes["worker"] = replace(world.nodes["worker"], ready=False, fenced=True)
    assert "x:3072+1024" in decide(world)


def test_ports_are_given_again_when_the_gateways_that_had_them_are_fenced_and_ten_minutes_over() -> None:
    world = shared()
    decide(world)
    del world.nodes["worker"], world.nodes["g1"]
    assert decide(world) == "198.51.100.7 g2:2048+1024 x:1024+1024 x:3072+1024 told g2"
    del world.nodes["g2"]
    world.node("g3")
    assert decide(world, 599) == "198.51.100.7 g3:4096+1024 x:1024+1024 x:3072+1024 x:2048+1024 told g3"
    assert decide(world, 1) == "198.51.100.7 g3:4096+1024 x:2048+1024 told g3"
    world.node("g4", None)
    assert "g4:1024+1024" in decide(world)


def test_numbers_rest_before_another_node_has_them() -> None:
    world = shared()
    decide(world)
    assert [(each.node, each.number) for each in world.allocations.numbers] == [("g1", 1), ("g2", 2), ("worker", 3)]
    del world.nodes["worker"]
    decide(world)
    world.node("x", None)
    decide(world)
    assert {each.node: each.number for each in world.allocations.numbers}["x"] == 4
    world.node("worker", None)
    decide(world, 10**6)
    assert {each.node: each.number for each in world.allocations.numbers}["worker"] == 3, "its own, as long as it rests"


def test_a_policy_that_goes_and_comes_back_finds_its_ports() -> None:
    world = shared()
    given = decide(world)
    policy = world.policies.pop("EgressPolicy/out")
    asked = given.replace(" g1:", " ~g1:").replace(" g2:", " ~g2:").replace(" worker:", " ~worker:")
    assert decide(world) == asked, "flows may still run"
    world.policies[policy.key] = policy
    assert decide(world, 50) == given
    del world.policies[policy.key]
    decide(world)
    assert world.last is not None and world.last.next_due is not None
    assert decide(world, 3600) == "198.51.100.7 x:1024+3072 told g1,g2"
    world.nodes.clear()
    assert decide(world, 600) == ""
    assert world.ledger.port_tables == ()


def test_an_address_on_a_nodes_interface_gives_reserved_ports_alone() -> None:
    world = World()
    world.node("owner", None, reports="192.168.33.100")
    world.node("worker", None)
    world.policy("sample", "192.168.33.100")
    assert decide(world) == "192.168.33.100 owner:61440+1024 worker:62464+1024 told owner"
    for number in range(80):
        world.node(f"n{number:02}", None)
    world.decide()
    assert text(world.allocations).splitlines()[-1] == (
        "! EgressPolicy/sample PortsExhausted: no ports of 192.168.33.100 are left for n32, n33, n34 and 45 more: give "
        "the policy 1 more egress address"
    )


@pytest.mark.parametrize(
    ("asks", "given"), [(False, "owner:61440+1024 worker:62464+1024"), (True, "worker:61440+1024")]
)
def test_while_nobody_knows_whether_a_node_has_the_address_no_ports_are_given(asks: bool, given: str) -> None:
    """Its interface leaves others to give: what was given before would have to come back."""
    world = World()
    world.settings = replace(world.settings, port_rules=replace(world.settings.port_rules, on_ask=asks))
    world.node("owner", None, reports=None)
    world.node("worker", None)
    world.policy("sample", "192.168.33.100")
    says(world, "worker")
    assert decide(world) == "192.168.33.100  told "
    world.node("owner", None, reports="192.168.33.100")
    assert decide(world) == f"192.168.33.100 {given} told owner"


def test_a_group_that_has_no_gateway_any_more_leaves_nodes_what_they_have_and_gives_nobody_more() -> None:
    world = on_ask()
    says(world, "worker")
    given = decide(world)
    for name in ("g1", "g2"):
        world.node(name, None)
    says(world, "worker", 4096)
    says(world, "g1")
    assert decide(world) == given
    confirms(world, "g1", "g2")
    world.node("g1")
    says(world, "g1")
    assert decide(world) == "198.51.100.7 worker:1024+1024 g1:2048+1024 worker:4096+4096 told g1"


def test_ports_that_a_service_takes_on_the_address_are_left_out() -> None:
    world = shared()
    service = Service("d", "s", external_ips=(IP,), ports=(ServicePort("TCP", 1030), ServicePort("UDP", 80)))
    world.services[service.key] = service
    world.decide()
    assert ports_text(world.allocations) == "198.51.100.7 g1:2048+1024 g2:3072+1024 worker:4096+1024 told g1,g2"


def test_a_service_takes_few_ports_of_an_egress_ip_and_costs_no_other_its_own() -> None:
    """Any user may write a Service with somebody's egress IP, and with a port in each granule of it."""
    world = shared()
    for name, ports in {"a": range(1024, 65536, 64), "b": (1030,), "c": (2048, 2049)}.items():
        of = tuple(ServicePort("TCP", port) for port in ports)
        world.services[f"d/{name}"] = Service("d", name, external_ips=(IP,), ports=of)
    world.decide()
    table, refused = ports_text(world.allocations), text(world.allocations).splitlines()[-1]
    assert table == "198.51.100.7 g1:3072+1024 g2:4096+1024 worker:5120+1024 told g1,g2"
    assert refused.startswith("! svc/d/a PortsNotLeftOut: its ports on 198.51.100.7, which is an egress IP, are given ")


def test_ports_of_a_protocol_that_is_not_translated_are_nobodys_loss() -> None:
    world = shared()
    service = Service("d", "s", external_ips=(IP,), ports=(ServicePort("SCTP", 1030),))
    world.services[service.key] = service
    assert decide(world) == "198.51.100.7 g1:1024+1024 g2:2048+1024 worker:3072+1024 told g1,g2"


def test_who_had_a_port_can_be_told_later() -> None:
    world = shared()
    decide(world)
    started = world.now

    def who(at: float | None = None) -> list[str]:
        return [each.node for each in holders(world.ledger, IP, 3100, at)]

    assert who() == ["worker"]
    del world.nodes["worker"]
    decide(world, 100)
    assert (who(), who(started), who(started + 99), who(world.now)) == ([], ["worker"], ["worker"], [])
    for name in ("g1", "g2"):
        del world.nodes[name]
    decide(world)
    decide(world, 600)
    world.node("later", None)
    decide(world, 10**5)
    assert (who(), who(started + 99), who(started - 1)) == ([], ["worker"], [])
    world.settings = replace(world.settings, port_rules=replace(world.settings.port_rules, history=100.0))
    decide(world)
    assert who(started + 99) == []


def test_a_ledger_that_is_lost_or_old_gives_no_port_twice() -> None:
    world = shared()
    decide(world)
    old = world.ledger
    del world.nodes["worker"]
    decide(world)
    world.node("late", None)
    given = decide(world)
    for ledger in (old, Ledger()):
        world.ledger = ledger
        assert decide(world, 1) == given
        world.node("even-later", None)
        assert "even-later:3072" not in decide(world, 10**6), "it has not been confirmed"
        del world.nodes["even-later"]
        decide(world)
        given = ports_text(world.allocations)


def test_tables_of_the_ledger_alone_rest() -> None:
    """It was ahead of what is published: an operator recorded, and its document was replaced by a later one."""
    world = shared()
    decide(world)
    ledger = world.ledger
    published = replace(world.allocations, generation=world.allocations.generation + 9, bindings=())
    found = adopt(ledger, published, None, 5000.0).ledger.port_tables
    assert [each.state for table in found for each in table.sets] == ["cooling"] * 3
    assert all(each.since == 5000.0 for table in found for each in table.sets)


def test_what_rests_anew_is_published_so() -> None:
    """Whoever begins without the ledger goes by what is published."""
    world = shared()
    decide(world)
    del world.nodes["worker"]
    decide(world)
    world.ledger = rest_anew(world.ledger, world.now + 3600.0)
    decide(world, 3600.0)
    (table,) = world.ledger.port_tables
    (binding,) = world.allocations.bindings
    assert [each.since for each in table.sets if each.state == "cooling"] == [world.now]
    assert [each.since for each in binding.cooling] == [world.now]


# --- nodes that ask


def says(world: World, node: str, ports: int | None = 0, **more: Any) -> None:
    """The node's agent asks for so many ports of group 1, None = for none; `more` of its report."""
    asks = () if ports is None else (PortAsk(1, ports),)
    world.reports[node] = replace(world.reports[node], ports=PortReport(asks, **more))


def gives_back(world: World, node: str) -> None:
    """Its agent needs none, and has no flow left in what it was asked for."""
    (table,) = world.allocations.bindings
    number = {each.node: each.number for each in world.allocations.numbers}[node]
    blocks = (block for block in table.blocks(number) if block.returning)
    unused = tuple(UnusedBlock(table.egress_ip, block.first, block.size, table.version) for block in blocks)
    says(world, node, None, unused=unused)


def confirms(world: World, *gateways: str) -> None:
    for name in gateways:
        (table,) = world.allocations.bindings
        said = world.reports[name].ports or PortReport()
        applied = (AppliedTable(table.egress_ip, table.version),)
        world.reports[name] = replace(world.reports[name], ports=replace(said, applied=applied))


def on_ask() -> World:
    world = shared()
    world.settings = replace(world.settings, port_rules=replace(world.settings.port_rules, on_ask=True))
    return world


def test_behind_an_api_server_who_asks_is_given_ports_and_gives_them_back() -> None:
    world = on_ask()
    assert decide(world) == "198.51.100.7  told g1,g2"
    says(world, "worker")
    assert decide(world) == "198.51.100.7 worker:1024+1024 told g1,g2"
    says(world, "g1")
    given = "198.51.100.7 worker:1024+1024 g1:2048+1024 told g1,g2"
    assert decide(world) == given
    says(world, "worker", None)
    asked = given.replace("worker", "~worker")
    assert decide(world) == asked
    assert decide(world, 10**6) == asked, "a flow lives on"
    gives_back(world, "worker")
    word = world.reports["worker"].ports
    assert word is not None
    says(world, "worker")
    assert decide(world) == given, "a pod came meanwhile: it asks again"
    world.reports["worker"] = replace(world.reports["worker"], ports=word)
    assert decide(world) == asked, "what it said was of the time before"
    gives_back(world, "worker")
    assert decide(world) == "198.51.100.7 g1:2048+1024 x:1024+1024 told g1,g2"
    confirms(world, "g1")
    assert "x:1024" in decide(world, 10**6)
    confirms(world, "g2")
    assert decide(world) == "198.51.100.7 g1:2048+1024 told g1,g2"


def test_who_wants_more_gets_more_with_files_too() -> None:
    world = shared()
    decide(world)
    says(world, "worker", 4096)
    assert decide(world) == ("198.51.100.7 g1:1024+1024 g2:2048+1024 worker:3072+1024 worker:4096+4096 told g1,g2")
    says(world, "worker", 1 << 16)
    says(world, "g1", 1 << 16)
    world.decide()
    assert [each.reason for each in world.allocations.refusals] == ["PortsShort"]
    assert "would use" in world.allocations.refusals[0].message


def test_asks_of_groups_and_nodes_that_are_unknown_count_for_nothing() -> None:
    world = on_ask()
    world.reports["stranger"] = NodeReport("stranger", ports=PortReport((PortAsk(1),)))
    world.reports["worker"] = NodeReport("worker", ports=PortReport((PortAsk(77),)))
    assert decide(world) == "198.51.100.7  told g1,g2"


def test_a_gateway_that_left_the_group_is_waited_for() -> None:
    world = shared()
    decide(world)
    world.node("g2", "false")
    assert decide(world).endswith("told g1,g2")
    confirms(world, "g2")
    assert decide(world).endswith("told g1")
