"""Which aggregates of a node have a blackhole: those that it announces to somebody, and of them what is a pool's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from fib.plan import Desired
from routerd.agent.settings import settings_of
from routerd.config import DEFAULT
from routerd.model import AddressPool, ExportRule, Peering
from routerd.node.desired import FIB_ROOM, LocalFacts, NodeState, Settings, compose
from routerd.node.sessions import Way
from tests.models import cluster

WIDE = ip_network("192.0.2.0/26")
ADVERTISED = (cluster.advertisement(aggregation_length=26), cluster.advertisement())
POOL = cluster.pool(advertisements=ADVERTISED)
(PEER,) = cluster.snapshot().bgp.peers  # type: ignore[union-attr]


def composed(pool: AddressPool = POOL, facts: LocalFacts | None = None, **fields: Any) -> NodeState:
    snapshot = cluster.snapshot(pools={pool.name: pool}, **fields)
    return compose(snapshot, Settings("a"), facts or LocalFacts(sessions=cluster.LOCAL))


def routes(state: NodeState) -> Desired:
    found = state.rooms[FIB_ROOM]
    assert isinstance(found, Desired)
    return found


def rejecting(**of: Any) -> Peering:
    return Peering((replace(PEER, export=(ExportRule("reject", **of),)),))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {WIDE: (WIDE,)}),
        ({"bgp": Peering(())}, {}),
        ({"bgp": rejecting(prefixes=(ip_network("192.0.0.0/16"),), max_length=31)}, {}),
        ({"bgp": rejecting(prefixes=(ip_network("192.0.0.0/16"),), min_length=32)}, {WIDE: (WIDE,)}),
        ({"bgp": Peering((replace(PEER, gets=("egress",)),))}, {}),
        ({"facts": LocalFacts()}, {}),
    ],
    ids=["", "no peer", "rejected", "address rejected", "not for the peer", "no session"],
)
def test_what_nobody_is_told_of_has_none(fields: dict[str, Any], expected: object) -> None:
    assert routes(composed(**fields)).aggregates == expected


def test_what_one_of_several_peers_gets_has_one() -> None:
    first, second = replace(PEER, name="a"), replace(PEER, name="b", address=ip_address("10.0.0.2"))
    pool = cluster.pool(advertisements=(replace(ADVERTISED[0], peers=("b",)), ADVERTISED[1]))
    (local,) = cluster.LOCAL.values()
    ways = {**cluster.LOCAL, Way(ip_address("10.0.0.2")): local}
    assert routes(composed(pool, LocalFacts(sessions=ways), bgp=Peering((first, second)))).aggregates == {WIDE: (WIDE,)}
    assert routes(composed(pool, bgp=Peering((first,)))).aggregates == {}


@pytest.mark.parametrize("lacking", [{}, {"nodes": None}])
def test_without_a_speaker_there_is_none(lacking: dict[str, None]) -> None:
    config = replace(DEFAULT, node_name="a", bgp=replace(DEFAULT.bgp, enabled=False))
    snapshot = cluster.snapshot(pools={"default": POOL}, **lacking)
    state = compose(snapshot, settings_of(config), LocalFacts(sessions=cluster.LOCAL))
    assert routes(state) == Desired()


@pytest.mark.parametrize(
    ("blocks", "parts"),
    [
        (("192.0.2.0/24",), (str(WIDE),)),
        (("192.0.2.1/32", "192.0.2.2/31", "192.0.2.64/26"), ("192.0.2.1/32", "192.0.2.2/31")),
    ],
    ids=["", "a range"],
)
def test_only_addresses_of_a_pool_are_taken(blocks: tuple[str, ...], parts: tuple[str, ...]) -> None:
    pool = replace(POOL, blocks=tuple(map(ip_network, blocks)))
    assert routes(composed(pool)).aggregates == {WIDE: tuple(map(ip_network, parts))}


def test_addresses_of_another_protocol_are_not_taken() -> None:
    other = cluster.pool("lan", "192.0.2.32/28", protocol="layer2")
    mine = replace(POOL, blocks=(ip_network("192.0.2.0/27"),))
    state = compose(cluster.snapshot(pools={"default": mine, "lan": other}), Settings("a"), LocalFacts(cluster.LOCAL))
    assert routes(state).aggregates == {WIDE: mine.blocks}


def test_nodes_peers_and_next_hops_are_spared() -> None:
    """Of both families, wherever they are; what is in no aggregate needs no word."""
    six = cluster.pool("six", "2001:db8::/64", advertisements=(cluster.advertisement(aggregation_length_v6=64),))
    told = replace(cluster.allocations(), services=(cluster.allocation("web", "192.0.2.1", "2001:db8::1"),))
    away = cluster.node("b", 12, addresses=(ip_address("192.0.2.9"), ip_address("2001:db8::9")))
    peers = Peering((PEER, replace(PEER, address=ip_address("192.0.2.10"), name="far")))
    gateway = (ip_network("192.0.2.11/32"), ip_network("10.0.0.1/32"))
    state = compose(
        cluster.snapshot(
            pools={"default": POOL, "six": six},
            nodes={"a": cluster.node("a", 11), "b": away},
            allocations=told,
            endpoint_slices=(cluster.endpoints("web", "a"), cluster.endpoints("web", "a", version=6)),
            bgp=peers,
        ),
        Settings("a"),
        LocalFacts(sessions=cluster.LOCAL, networks=gateway),
    )
    assert routes(state).aggregates == {WIDE: (WIDE,), six.blocks[0]: six.blocks}
    assert {str(each.network_address) for each in routes(state).spared} == {
        "192.0.2.9",
        "192.0.2.10",
        "192.0.2.11",
        "2001:db8::9",
    }
