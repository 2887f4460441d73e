"""A decision from what was kept of the last one is the decision that is made from nothing, whatever changes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from routerd.cluster.assign import Decision, Kept, assign
from routerd.cluster.ledger import difference
from routerd.model import Origin
from tests.models.operator_world import World

NAMES = st.sampled_from(["a", "b", "c"])
IPS = st.sampled_from(["", "192.0.2.1", "192.0.2.5", "198.51.100.1"])
CHANGES = st.one_of(
    st.tuples(st.just("service"), NAMES, IPS, IPS, st.sampled_from(["LoadBalancer", "ClusterIP"]),
              st.sampled_from(["", "192.0.2.2", "10.96.0.1"]), st.sampled_from(["", "key"])),
    st.tuples(st.just("no service"), NAMES),
    st.tuples(st.just("policy"), NAMES, st.sampled_from(["", "198.51.100.1", "10.0.0.11", "192.0.2.2"])),
    st.tuples(st.just("no policy"), NAMES),
    st.tuples(st.just("node"), NAMES, st.booleans(), st.sampled_from(["", "192.0.2.3", "198.51.100.1"])),
    st.tuples(st.just("pool"), st.sampled_from(["192.0.2.0/29", "192.0.2.0/30", "198.51.100.0/29"])),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 31.0, 120.0])),
    st.tuples(st.just("told"), NAMES),
    st.tuples(st.just("lost"), st.just("")),
)  # fmt: skip


def change(world: World, what: str, name: Any, *rest: Any) -> None:
    if what == "service":
        ips, status, kind, own, key = rest
        cluster_ips = (ip_address(own),) if own else ()
        fields = {"type": kind, "cluster_ips": cluster_ips, "sharing_key": key, "origin": Origin("x", is_api=True)}
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
    elif what == "no service":
        world.services = {key: each for key, each in world.services.items() if each.name != name}
    elif what == "no policy":
        world.policies = {key: each for key, each in world.policies.items() if each.name != name}


def decided(world: World, kept: Kept | None) -> Decision:
    snapshot = replace(world.snapshot(), service_cidrs=(ip_network("10.96.0.0/16"),))
    return assign(snapshot, world.ledger, world.reports, world.now, world.settings, kept=kept)


@settings(max_examples=200)
@given(st.lists(CHANGES, max_size=10))
def test_decisions(changes: list[tuple[Any, ...]]) -> None:
    world = World()
    world.pool("p", "192.0.2.0/29")
    kept = Kept((ip_network("10.96.0.0/16"),))
    for each in (("wait", 0.0), *changes):
        change(world, *each)
        found = decided(world, kept)
        assert found == decided(world, None)
        again = decided(world, kept)
        assert again == found
        changes_made = difference(world.ledger, found.ledger, world.now)
        assert changes_made.tables == difference(world.ledger, decided(world, None).ledger, world.now).tables
        world.ledger, world.allocations = found.ledger, found.allocations
