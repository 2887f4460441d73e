"""Routes to pods of other nodes: what is this node's own, a pool's or two nodes' gets none, and says so."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from fib.plan import Desired
from routerd.model import Snapshot
from routerd.node.desired import FIB_ROOM, LocalFacts, NodeState, Settings, compose
from routerd.tell.render import state_lines
from tests.models import cluster

BLOCK, SIX = ip_network("10.1.12.0/24"), ip_network("fd01:12::/64")


def composed(snapshot: Snapshot, **settings: bool) -> NodeState:
    return compose(snapshot, Settings("a", **{"direct_routes": True, **settings}), LocalFacts())


def with_blocks(*blocks: str, own: str = "10.1.11.0/24", third: tuple[str, ...] = ()) -> Snapshot:
    nodes = {
        "a": cluster.node("a", 11, pod_cidrs=(ip_network(own),)),
        "b": cluster.node("b", 12, pod_cidrs=tuple(map(ip_network, blocks))),
        "c": cluster.node("c", 13, pod_cidrs=tuple(map(ip_network, third))),
    }
    return cluster.snapshot(nodes=nodes)


def test_each_block_of_another_node_leads_to_its_addresses_of_that_family() -> None:
    state = composed(with_blocks(str(BLOCK), str(SIX), third=("10.1.13.0/24",)))
    assert state.rooms[FIB_ROOM].routes == {
        BLOCK: (ip_address("10.0.0.12"),),
        SIX: (ip_address("fd00::12"),),
        ip_network("10.1.13.0/24"): (ip_address("10.0.0.13"),),
    }
    assert [line for line in state_lines(state) if line.startswith("route ")] == [
        "route 10.1.12.0/24 via 10.0.0.12",
        "route 10.1.13.0/24 via 10.0.0.13",
        "route fd01:12::/64 via fd00::12",
    ]
    assert not [each for each in state.refusals if each.reason == "RouteTaken"]


@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        (with_blocks("10.1.0.0/16"), "it overlaps with 10.1.11.0/24, this node's own"),
        (with_blocks("10.1.11.128/25"), "it overlaps with 10.1.11.0/24, this node's own"),
        (with_blocks("192.0.2.0/26"), "it overlaps with 192.0.2.0/24, of pool default"),
        (with_blocks(str(BLOCK), third=(str(BLOCK),)), "node c has it, too: give one of them another"),
    ],
)
def test_what_is_somebodys_gets_no_route_and_says_so(snapshot: Snapshot, why: str) -> None:
    state = composed(snapshot)
    assert state.rooms[FIB_ROOM] == Desired()
    (told,) = (each for each in state.refusals if each.reason == "RouteTaken")
    (block,) = snapshot.nodes["b"].pod_cidrs  # type: ignore[index]
    assert (str(told.object), told.severity) == ("node/a", "warning")
    assert told.message == f"no route to {block} of node b: {why}"


def test_a_node_without_an_address_of_the_family_has_no_way() -> None:
    nodes = {"a": cluster.node("a", 11), "b": cluster.node("b", 12, addresses=(ip_address("fd00::12"),))}
    assert composed(cluster.snapshot(nodes=nodes)).rooms[FIB_ROOM] == Desired()


@pytest.mark.parametrize("lacking", ["nodes", "pools"])
def test_nothing_is_touched_before_the_store_is_read(lacking: str) -> None:
    assert composed(cluster.snapshot(**{lacking: None})).rooms[FIB_ROOM] is None


def test_without_the_wish_what_is_ours_goes() -> None:
    assert composed(cluster.snapshot(), direct_routes=False).rooms[FIB_ROOM] == Desired()


# --- learnt by BGP

HOP, FAR = ip_address("10.0.0.1"), ip_network("10.9.0.0/24")
LEARN = (ip_network("10.0.0.0/8"), ip_network("fd00::/16"))


def learning(told: dict[object, tuple[object, ...]] | None, **settings: object) -> NodeState:
    wish = Settings("a", **{"learn": LEARN, **settings})  # type: ignore[arg-type]
    return compose(cluster.snapshot(), wish, LocalFacts(sessions=cluster.LOCAL, learnt=told))  # type: ignore[arg-type]


def test_what_peers_announce_of_the_networks_is_learnt() -> None:
    six, default = ip_network("fd00:244::/64"), ip_network("0.0.0.0/0")
    told = {FAR: (HOP,), six: (ip_address("fd00::1"),), ip_network("11.0.0.0/24"): (HOP,), default: (HOP,)}
    state = learning(told)
    assert state.rooms[FIB_ROOM].learnt == {FAR: (HOP,), six: (ip_address("fd00::1"),)}
    assert "learnt route 10.9.0.0/24 via 10.0.0.1" in state_lines(state)
    assert not [each for each in state.refusals if each.reason == "RouteTaken"]
    assert state.announcements is not None
    assert [peer.imports for peer in state.announcements.desired.peers.values()] == [LEARN]


def test_what_leads_nowhere_or_back_is_not_learnt() -> None:
    own, six, local = ip_address("10.0.0.11"), ip_address("fd00::1"), ip_address("fe80::1")
    told = {FAR: (own,), ip_network("10.8.0.0/24"): (six,), ip_network("fd00:1::/64"): (local,)}
    assert learning(told).rooms[FIB_ROOM].learnt == {}


def test_our_own_is_never_learnt_and_what_is_a_pools_is_told() -> None:
    told = {ip_network("10.1.11.0/24"): (HOP,), ip_network("10.1.11.64/26"): (HOP,), ip_network("192.0.2.0/28"): (HOP,)}
    state = learning(told, learn=(ip_network("0.0.0.0/0"),))
    assert state.rooms[FIB_ROOM].learnt == {}
    (line,) = (each.message for each in state.refusals if each.reason == "RouteTaken")
    assert line == (
        "no route to 2 prefixes that BGP peers announce: 10.1.11.64/26 overlaps with 10.1.11.0/24, this node's own; "
        "192.0.2.0/28 overlaps with 192.0.2.0/24, of pool default"
    )


@pytest.mark.parametrize(
    "prefix", ["10.0.0.12/32", "10.0.0.8/29", "10.0.0.0/24", "10.0.0.0/8", "10.0.0.1/32", "fd00::12/128", "fd00::/16"]
)
def test_what_holds_a_node_or_a_peer_is_never_learnt(prefix: str) -> None:
    """Packets of tunnels, sessions and kubelets would go to whoever announces it."""
    network = ip_network(prefix)
    state = learning({network: (ip_address("fd00::99") if network.version == 6 else ip_address("10.0.0.99"),)})
    assert state.rooms[FIB_ROOM].learnt == {}
    (line,) = (each.message for each in state.refusals if each.reason == "RouteTaken")
    assert line.startswith(f"no route to 1 prefixes that BGP peers announce: {prefix} overlaps with ")


def test_a_pod_here_is_no_next_hop() -> None:
    assert learning({FAR: (ip_address("10.1.11.9"), HOP)}).rooms[FIB_ROOM].learnt == {FAR: (HOP,)}


def test_much_that_is_left_out_is_one_line_of_few_words() -> None:
    told = {ip_network(f"192.0.2.{n}/32"): (HOP,) for n in range(256)}
    state = learning(told, learn=(ip_network("0.0.0.0/0"),))
    (line,) = (each.message for each in state.refusals if each.reason == "RouteTaken")
    assert line.startswith("no route to 256 prefixes") and line.endswith("; 253 more")


def test_before_the_peers_have_told_the_room_has_what_is_known() -> None:
    assert learning(None).rooms[FIB_ROOM] == Desired(learnt=None)
    direct = learning(None, direct_routes=True)
    assert direct.rooms[FIB_ROOM] == Desired({ip_network("10.1.12.0/24"): (ip_address("10.0.0.12"),)}, None)
    assert state_lines(direct).count("learnt routes as they are") == 1
    assert learning({}, direct_routes=True).rooms[FIB_ROOM].routes.keys() == {ip_network("10.1.12.0/24")}
