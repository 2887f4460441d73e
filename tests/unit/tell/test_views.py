"""Rows of `routerd show`: the same columns in every row, and what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest

from bfd.control import View as Watched
from bgp.session import PeerStatus as Session
from bgp.session import State
from egress.status import Probed
from fib.plan import Hop, Observed
from fib.plan import Status as RouteStatus
from ipam.pod_addresses import Attachment, Hold, Owner, PodAddresses
from routerd.model import Allocations, Bfd, NodeAddresses, Peer, Peering, PeerOverride
from routerd.node.desired import LocalFacts, Settings, compose
from routerd.tell.columns import COLUMNS
from routerd.tell.views import PeerView, Row, View, pool_size, rows
from tests.models import cluster
from tests.models.cluster import LOCAL, SESSION, TOR

FAR = ip_address("172.31.0.1")
HOLD = Hold(ip_address("10.1.0.2"), Attachment("pods", "c1", "eth0"), Owner("default/web-0", "u1"), since=90.0)


UP = Session("up", flaps=1, families=("ipv4 unicast",), announced=2)


def view(session: Session = UP, **fields: object) -> View:
    watched = tuple(replace(peer, bfd=Bfd()) for peer in cluster.snapshot().bgp.peers)  # type: ignore[union-attr]
    snapshot = cluster.snapshot(**{"allocations": cluster.allocations(), "bgp": Peering(watched), **fields})
    state = compose(snapshot, Settings("a", direct_routes=True), LocalFacts(sessions={**LOCAL, FAR: None}))
    return View(
        snapshot,
        state,
        {SESSION: PeerView(SESSION, session, since=12.34)},
        ({"protocol": "TCP", **dict.fromkeys(COLUMNS["nat"][1:])},),
        probed=(Probed(2, "leaves", ("draining", "no-session"), 100, 97, 0.00123, 0.04, "b"),),
        pod_addresses=PodAddresses((ip_network("10.1.0.0/24"),), {HOLD.address: HOLD}),
    )


def one(kind: str, **fields: object) -> Row:
    (row,) = rows(kind, view(**fields))
    return row


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_row_has_every_column_in_order(kind: str) -> None:
    found = rows(kind, view())
    assert found
    assert all(tuple(row) == COLUMNS[kind] for row in found)


def test_routes_are_shown_with_what_the_kernel_has_of_them() -> None:
    block, b = ip_network("10.1.12.0/24"), ip_address("10.0.0.12")
    assert list(one("routes").values()) == [str(block), "b", "link", str(b), "", "wanted"], "no kernel was asked"
    main = {ip_network("10.0.0.0/24"): 2}
    there = Observed({block: frozenset({Hop(b, 2)})}, main=main, links={2: "eth0"})
    shown = {
        "installed": there,
        "pending": replace(there, routes={}),
        "taken": replace(there, main={**main, block: 0}),
        "not-on-link": replace(there, main={}),
    }
    for state, observed in shown.items():
        (row,) = rows("routes", replace(view(), routes=RouteStatus(observed)))
        assert (row["state"], row["next_hops"]) == (state, "10.0.0.12")
    (row,) = rows("routes", replace(view(), routes=RouteStatus(there)))
    assert row["devices"] == "eth0"
    settings = Settings("a", learn=(ip_network("10.0.0.0/8"),))
    state = compose(cluster.snapshot(), settings, LocalFacts(learnt={block: (b, TOR), ip_network("11.0.0.0/8"): (b,)}))
    (row,) = rows("routes", replace(view(), state=state))
    assert (row["prefix"], row["by"], row["next_hops"]) == (str(block), "bgp", "10.0.0.12,10.0.0.1")


def test_a_blackhole_is_shown_with_what_the_kernel_has_of_it() -> None:
    whole = ip_network("192.0.2.0/24")
    pool = cluster.pool(advertisements=(cluster.advertisement(aggregation_length=24),))
    state = compose(cluster.snapshot(pools={"default": pool}), Settings("a"), LocalFacts(sessions=LOCAL))
    shown = {
        "wanted": None,
        "pending": Observed(),
        "installed": Observed(verdicts={whole: "blackhole"}),
        "taken": Observed(verdicts={whole: "throw"}),
    }
    for word, observed in shown.items():
        (row,) = rows("routes", replace(view(), state=state, routes=RouteStatus(observed)))
        assert list(row.values()) == [str(whole), "", "aggregate", "blackhole", "", word]


def test_whose_an_address_of_the_node_is() -> None:
    (row,) = rows("pod-addresses", replace(view(), now=100.0))
    assert list(row.values()) == ["10.1.0.2", "10.1.0.0/24", "used", "default/web-0", "pods", "eth0", "c1", 10]


def test_a_peer_that_is_watched_is_shown_with_what_bfd_says() -> None:
    assert (one("peers")["bfd"], one("bfd")["state"], one("bfd")["interval_ms"]) == ("unknown", "unknown", 50.0)
    said = Watched(TOR, SESSION.local, "down", 90.0, 2, True, "init", 60_000, 180_000, "it was silent")
    shown = replace(view(), peers={SESSION: PeerView(SESSION, UP, bfd=said)}, now=1.8e9, ticks=100.0)
    (row,) = rows("bfd", shown)
    assert row == {
        "peer": str(TOR), "local_address": str(SESSION.local), "state": "down", "peer_state": "init",
        "since_seconds": 10.0, "interval_ms": 60.0, "detection_ms": 180.0, "flaps": 2, "reason": "it was silent",
    }  # fmt: skip
    assert rows("peers", shown)[0]["bfd"] == "down"
    bare = Peering((Peer(TOR, 64512, 64512),))
    assert (one("peers", bgp=bare)["bfd"], rows("bfd", view(bgp=bare))) == ("", [])


def test_a_flow_names_the_node_by_which_it_leaves() -> None:
    flows = tuple({"protocol": "TCP", "gateway": number} for number in (1, 2, 9))
    shown = rows("nat", replace(view(), nat=flows))
    assert [row["gateway"] for row in shown] == ["a", "b", 9]


def test_a_gateway_is_shown_with_what_its_probes_say() -> None:
    assert one("gateways") == {
        "gateway": "b", "by": "tunnel", "state": "leaves", "round_trip_ms": 1.23, "probes": 100, "unanswered": 3,
        "idle_seconds": 0.0, "reason": "draining,no-session",
    }  # fmt: skip


def test_peers_that_are_refused_are_shown_with_the_reason() -> None:
    peers = (Peer(TOR, 64512, 64512, name="tor"), Peer(FAR, 64512, 64512))
    up, refused = rows("peers", view(bgp=Peering(peers)))
    assert (up["peer"], up["state"], up["since_seconds"], up["paths"], up["flaps"]) == ("tor", "up", 12.3, 2, 1)
    assert (refused["peer"], refused["state"]) == ("172.31.0.1", "refused")
    assert str(refused["reason"]).startswith("NoRoute: ")


def test_a_peer_is_shown_with_the_override_of_this_node() -> None:
    peer = Peer(TOR, 64512, 64512, overrides=(PeerOverride("of a", ("a",), local_as=64513),))
    shown = one("peers", bgp=Peering((peer,)))
    assert (shown["override"], shown["local_as"]) == ("of a", 64513)
    elsewhere = replace(peer, overrides=(PeerOverride("of b", ("b",), local_as=64513),))
    assert one("peers", bgp=Peering((elsewhere,)))["override"] == ""


@pytest.mark.parametrize("state", ["down", "connecting", "unknown"])
def test_while_a_session_is_not_up_nothing_is_counted(state: State) -> None:
    session = Session(state, families=UP.families, last_reason="hold timer expired")
    (peer,) = rows("peers", view(session))
    assert (peer["state"], peer["paths"], peer["reason"]) == (state, 0, "hold timer expired")
    assert {row["session"] for row in rows("paths", view(session))} == {state}


def test_what_files_would_announce_is_counted_although_nobody_asks_a_speaker() -> None:
    offline = replace(view(), peers={})
    assert [row["paths"] for row in rows("peers", offline)] == [2]
    assert {row["session"] for row in rows("paths", offline)} == {""}


def test_paths_of_a_family_that_is_not_negotiated_are_not_shown_as_announced() -> None:
    both = cluster.endpoints("web", "a"), cluster.endpoints("web", "a", version=6)
    allocations = Allocations(1, (cluster.allocation("web", "192.0.2.1", "2001:db8::1"),))
    shown = rows("paths", view(endpoint_slices=both, allocations=allocations))
    assert {row["prefix"]: row["session"] for row in shown} == {
        "192.0.2.1/32": "up",
        "2001:db8::1/128": "not negotiated",
    }


def test_a_policy_shows_its_way_out() -> None:
    row = one("policies")
    assert (row["egress_ip"], row["group"], row["gateways"], row["pods_here"]) == ("198.51.100.7", 7, "b,a", 1)


def test_a_node_shows_whether_it_announces() -> None:
    first, second = rows("nodes", view(nodes={"a": cluster.node("a", 11), "b": cluster.node("b", 12, ready=False)}))
    assert (first["announces_services"], first["groups"], second["ready"]) == (True, "7", False)


def test_a_node_shows_for_how_long_nothing_was_heard_of_its_agent() -> None:
    told = (NodeAddresses("a", silent_since="2026-01-01T00:00:00Z"),)
    shown = view(allocations=Allocations(1, nodes=told))
    new_year = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    first, second = rows("nodes", replace(shown, now=new_year + 75))
    assert (first["agent_silent_seconds"], second["agent_silent_seconds"]) == (75, None)
    assert (first["state"], second["state"]) == ("silent", "serving")
    assert rows("nodes", replace(shown, now=new_year - 10))[0]["agent_silent_seconds"] == 0, "its clock is behind"
    assert rows("nodes", shown)[0]["agent_silent_seconds"] is None, "files are of no moment"


@pytest.mark.parametrize(
    ("block", "avoid", "size"),
    [
        ("192.0.2.0/24", False, 256),
        ("192.0.2.0/24", True, 254),
        ("192.0.2.0/23", True, 508),
        ("192.0.2.0/25", True, 127),
        ("192.0.2.64/26", True, 64),
        ("192.0.2.255/32", True, 0),
        ("192.0.2.1/32", True, 1),
        ("2001:db8::/120", True, 256),
    ],
)
def test_the_size_of_a_pool(block: str, avoid: bool, size: int) -> None:
    assert pool_size(cluster.pool(block=block, avoid_buggy_ips=avoid)) == size


def test_pools_count_what_has_an_owner() -> None:
    row = one("pools")
    assert (row["addresses"], row["used"], row["free"]) == (256, 1, 255)


def test_a_pool_counts_what_lies_in_it_under_whatever_name_it_was_given() -> None:
    row = one("pools", pools={"new": cluster.pool("new")})
    assert (row["pool"], row["used"]) == ("new", 1)


def test_port_sets_say_whose_they_are_and_in_which_state() -> None:
    found = rows("port-sets", view())
    assert [(row["ports"], row["size"], row["node"], row["state"]) for row in found] == [
        ("1024-2047", 1024, "a", "granted"),
        ("2048-2111", 64, "a", "returning"),
        ("4096-4223", 128, "b", "granted"),
        ("8192-8319", 128, "", "cooling"),
    ]
    assert {row["group"] for row in found} == {7}
    assert rows("port-sets", view(allocations=None)) == []


def test_every_address_of_a_group_has_its_row() -> None:
    allocations = cluster.allocations()
    (group,) = allocations.groups
    further = (ip_address("2001:db8::7"), ip_address("192.0.2.200"))
    several = replace(allocations, groups=(replace(group, further_ips=further),))
    found = rows("egress-ips", view(allocations=several))
    assert {row["egress_ip"] for row in found} == {"192.0.2.200", str(group.egress_ip), "2001:db8::7"}
    assert {row["group"] for row in found} == {group.id}
    (policy,) = rows("policies", view(allocations=several))
    assert policy["egress_ip"] == f"{group.egress_ip},2001:db8::7,192.0.2.200"
