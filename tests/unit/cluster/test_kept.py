"""A decision from what was kept of the last one is the decision that is made from nothing, whatever changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routerd.cluster import assign as deciding
from routerd.cluster.agents import Agents, Pulse
from routerd.cluster.assign import Decision, Kept, assign
from routerd.cluster.ledger import difference
from routerd.memo import Renewed, differing
from routerd.model import AppliedTable, Origin, PortAsk, PortReport, Service, UnusedBlock
from tests.models.operator_world import World

NAMES = st.sampled_from(["a", "b", "c"])
IPS = st.sampled_from(["", "192.0.2.1", "192.0.2.5", "198.51.100.1"])
CHANGES = st.one_of(
    st.tuples(st.just("service"), NAMES, IPS, IPS, st.sampled_from(["LoadBalancer", "ClusterIP"]),
              st.sampled_from(["", "192.0.2.2", "10.96.0.1"]), st.sampled_from(["", "key"]),
              st.sampled_from([[], ["192.0.2.1"], ["198.51.100.1"]])),
    st.tuples(st.just("no service"), NAMES),
    st.tuples(st.just("policy"), NAMES, st.sampled_from(["", "198.51.100.1", "10.0.0.11", "192.0.2.2"])),
    st.tuples(st.just("no policy"), NAMES),
    st.tuples(st.just("node"), NAMES, st.booleans(), st.sampled_from(["", "192.0.2.3", "198.51.100.1"])),
    st.tuples(st.just("no node"), NAMES),
    st.tuples(st.just("asks"), NAMES, st.integers(1, 3), st.sampled_from([0, 64, 4096, 40000])),
    st.tuples(st.just("returns"), NAMES),
    st.tuples(st.just("silent"), NAMES, st.booleans()),
    st.tuples(st.just("pool"), st.sampled_from(["192.0.2.0/29", "192.0.2.0/30", "198.51.100.0/29"])),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 31.0, 120.0, 4000.0, -5.0])),
    st.tuples(st.just("told"), NAMES),
    st.tuples(st.just("lost"), st.just("")),
)  # fmt: skip


def change(world: World, what: str, name: Any, *rest: Any) -> None:
    if what == "service":
        ips, status, kind, own, key, external = rest
        cluster_ips = (ip_address(own),) if own else ()
        fields = {
            "type": kind,
            "cluster_ips": cluster_ips,
            "sharing_key": key,
            "external_ips": tuple(map(ip_address, external)),
            "origin": Origin("x", is_api=True),
        }
        world.service(name, ips=ips, status=status, **fields)
    elif what == "policy":
        world.policy(name, rest[0], pool="" if rest[0] else "p")
    elif what == "node":
        world.node(name, reports=rest[1], ready=rest[0])
    elif what == "pool":
        world.pool("p", name)
    elif what == "wait":
        world.now += name
    elif what == "told" and f"d/{name}" in world.services:
        given = {each.service: each.addresses for each in world.allocations.services}
        before = world.services[f"d/{name}"]
        world.services = {**world.services, before.key: replace(before, status_ips=given.get(before.key, ()))}
    elif what == "lost":
        world.lose_file()
    elif what.startswith("no "):
        kinds: dict[str, dict[str, Any]] = {"service": world.services, "policy": world.policies, "node": world.nodes}
        kinds[what.removeprefix("no ")].pop(name if what == "no node" else next_key(what, name), None)
    else:
        say(world, what, name, *rest)


def next_key(what: str, name: str) -> str:
    return f"d/{name}" if what == "no service" else f"EgressPolicy/{name}"


def say(world: World, what: str, name: str, *rest: Any) -> None:
    """What is heard of nodes and their agents."""
    if what == "asks" and name in world.reports:
        world.reports[name] = replace(world.reports[name], ports=PortReport((PortAsk(rest[0], rest[1]),)))
    elif what == "returns" and name in world.reports:
        number = next((each.number for each in world.ledger.node_numbers if each.node == name), 0)
        sets = [each for table in world.ledger.port_tables for each in table.sets if each.node == number]
        unused = tuple(UnusedBlock(each.egress_ip, each.first, each.size, each.version) for each in sets)
        applied = tuple(AppliedTable(each.egress_ip, each.version) for each in world.ledger.port_tables)
        world.reports[name] = replace(world.reports[name], ports=PortReport((), unused, applied))
    elif what == "silent":
        pulses = {name: Pulse("", 10, 0.0, 1.0, 1.0, state="serving", is_silent=world.now > 1100)} if rest[0] else {}
        world.agents = Agents(pulses=pulses, assumed=not rest[0])


def decided(world: World, kept: Kept | None, services: Mapping[str, Service] | None = None) -> Decision:
    snapshot = replace(world.snapshot(), service_cidrs=(ip_network("10.96.0.0/16"),))
    if services is not None:
        snapshot = replace(snapshot, services=services)
    return assign(snapshot, world.ledger, world.reports, world.now, world.settings, world.agents, kept)


def renewed(before: Renewed[str, Service], now: Mapping[str, Service]) -> Renewed[str, Service]:
    """As a store gives them out."""
    put, gone = differing(dict(before), now)
    return Renewed(now, before, (*put, *gone)) if put or gone else before


@settings(max_examples=200)
@given(st.lists(CHANGES, max_size=10))
def test_decisions(changes: list[tuple[Any, ...]]) -> None:
    world = World()
    world.pool("p", "192.0.2.0/29")
    world.agents = Agents()
    kept, services = Kept((ip_network("10.96.0.0/16"),)), Renewed[str, Service]()
    for each in (("wait", 0.0), *changes):
        change(world, *each)
        services = renewed(services, world.services)
        found = decided(world, kept, services)
        assert found == decided(world, None)
        again = decided(world, kept, services)
        assert again == found
        changes_made = difference(world.ledger, found.ledger, world.now)
        assert changes_made.tables == difference(world.ledger, decided(world, None).ledger, world.now).tables
        world.ledger, world.allocations = found.ledger, found.allocations


def test_a_beat_forms_no_groups_and_a_silence_does(monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[float] = []
    form_groups = deciding.form_groups  # type: ignore[attr-defined]
    monkeypatch.setattr(deciding, "form_groups", lambda *args: formed.append(1.0) or form_groups(*args))
    world, kept = World(), Kept()
    world.node("g1")
    world.node("g2")
    world.agent("g1", "g2")
    world.policy("out", "198.51.100.7")

    def gateways(seconds: int) -> list[str]:
        world.live(seconds)
        found = assign(world.snapshot(), world.ledger, world.reports, world.now, world.settings, world.agents, kept)
        world.ledger, world.allocations = found.ledger, found.allocations
        return [*found.allocations.groups[0].gateways]

    for _ in range(3):
        assert gateways(20) == ["g1", "g2"]
    formed.clear()
    for _ in range(10):
        gateways(20)
    assert not formed, "nothing but beats came"
    world.silence("g1")
    assert gateways(100) == ["g2"]
    assert formed
