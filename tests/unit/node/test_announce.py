"""What a node announces, and every reason for not announcing."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.path import Path
from routerd.model import (
    EXCLUDE_LABEL,
    Advertisement,
    Allocations,
    EndpointSlice,
    Peer,
    Peering,
    PeerOverride,
    PodPool,
    Refusal,
    Snapshot,
)
from routerd.node.announce import Announcements, announcements
from routerd.node.checks import SERVICE_CHECKS, Rules
from routerd.node.sessions import Way, way_to
from routerd.refs import Ref
from routerd.selectors import LabelSelector
from tests.models import cluster
from tests.models.cluster import LOCAL, NOES, SESSION, TOR, local_service, node_a

VIPS_ONLY = Rules(egress_ips=False)


def announced(snapshot: Snapshot, node: str = "a", rules: Rules = VIPS_ONLY) -> Announcements:
    result = announcements(snapshot, node, rules, LOCAL)
    assert result is not None
    return result


def prefixes(result: Announcements) -> list[str]:
    return [str(prefix) for prefix in result.desired.ribs[SESSION]]


def reasons(result: Announcements) -> dict[str, str]:
    return {str(refusal.object): refusal.reason for refusal in result.refusals}


def test_a_service_with_address_and_endpoint_is_announced() -> None:
    result = announced(cluster.snapshot())
    assert result.desired.ribs[SESSION] == {
        ip_network("192.0.2.1/32"): Path(ip_network("192.0.2.1/32"), local_pref=0),
    }
    assert result.owners == {ip_network("192.0.2.1/32"): (Ref.parse("svc/default/web"),)}
    assert result.refusals == ()


@pytest.mark.parametrize("field", ["nodes", "services", "endpoint_slices", "bgp", "pools", "allocations"])
def test_nothing_is_decided_before_all_of_it_is_synced(field: str) -> None:
    assert announcements(cluster.snapshot(**{field: None}), "a", VIPS_ONLY, LOCAL) is None


@pytest.mark.parametrize("field", ["pods", "namespaces", "policies"])
def test_what_announcements_do_not_need_may_be_missing(field: str) -> None:
    assert prefixes(announced(cluster.snapshot(**{field: None}))) == ["192.0.2.1/32"]


def test_an_unknown_node_touches_nothing() -> None:
    assert announcements(cluster.snapshot(), "elsewhere", VIPS_ONLY, LOCAL) is None


@pytest.mark.parametrize("reason", NOES)
def test_every_no_has_its_reason(reason: str) -> None:
    result = announced(cluster.snapshot(**NOES[reason]))
    assert prefixes(result) == []
    assert reasons(result) == {"svc/default/web": reason}
    assert all(refusal.message for refusal in result.refusals)


def test_every_check_is_tested_above() -> None:
    assert {check.reason for check in SERVICE_CHECKS} == {*NOES, "NotLoadBalancer", "NotConfigured", "NodeDrained"}


def test_services_are_left_alone_when_the_configuration_says_so() -> None:
    result = announced(cluster.snapshot(), rules=Rules(services=False, egress_ips=False))
    assert (prefixes(result), result.refusals) == ([], ())


def test_the_configured_router_id_wins() -> None:
    peers = (Peer(TOR, 1, 2, router_id=ip_address("1.1.1.1")),)  # type: ignore[arg-type]
    snapshot = cluster.snapshot(bgp=Peering(peers))
    assert str(announced(snapshot).desired.peers[SESSION].router_id) == "1.1.1.1"
    rules = Rules(router_id=ip_address("2.2.2.2"))  # type: ignore[arg-type]
    assert str(announced(snapshot, rules=rules).desired.peers[SESSION].router_id) == "2.2.2.2"


def test_a_service_that_wants_no_vip_is_not_a_refusal() -> None:
    web = cluster.service("web", type="ClusterIP")
    result = announced(cluster.snapshot(services={web.key: web}))
    assert (prefixes(result), result.refusals) == ([], ())


def test_local_policy_announces_from_the_node_with_the_endpoint_only() -> None:
    snapshot = cluster.snapshot(**local_service(), endpoint_slices=(cluster.endpoints("web", "b"),))
    assert prefixes(announced(snapshot, "a")) == []
    assert prefixes(announced(snapshot, "b")) == ["192.0.2.1/32"]


def test_cluster_policy_announces_from_a_node_without_endpoints() -> None:
    snapshot = cluster.snapshot(endpoint_slices=(cluster.endpoints("web", "b"),))
    assert prefixes(announced(snapshot, "a")) == ["192.0.2.1/32"]


def test_the_operators_reason_is_told() -> None:
    refused = Refusal(Ref.parse("svc/default/web"), "PoolExhausted", "pool default has no free address")
    result = announced(cluster.snapshot(allocations=Allocations(1, refusals=(refused,))))
    assert result.refusals[0].reason == "NoAddress"
    assert "PoolExhausted: pool default has no free address" in result.refusals[0].message


def shared_address() -> dict[str, object]:
    web, api = cluster.service("web"), cluster.service("api")
    return {
        "services": {web.key: web, api.key: api},
        "endpoint_slices": (cluster.endpoints("web", "a"), cluster.endpoints("api", "a")),
        "allocations": Allocations(1, (cluster.allocation("api", "192.0.2.1"), cluster.allocation("web", "192.0.2.1"))),
    }


def test_two_services_on_one_address_are_one_path_with_two_owners() -> None:
    result = announced(cluster.snapshot(**shared_address()))
    assert result.owners == {ip_network("192.0.2.1/32"): (Ref.parse("svc/default/api"), Ref.parse("svc/default/web"))}


def test_a_shared_path_stays_until_the_last_owner_lets_go() -> None:
    fields = {**shared_address(), "endpoint_slices": (cluster.endpoints("api", "a"),)}
    result = announced(cluster.snapshot(**fields))
    assert result.owners == {ip_network("192.0.2.1/32"): (Ref.parse("svc/default/api"),)}
    assert reasons(result) == {"svc/default/web": "NoEndpoints"}


def test_an_advertisement_sets_length_preference_and_communities() -> None:
    wide = cluster.advertisement(aggregation_length=26, local_pref=100, communities=("64512:10", "64512:9"))
    host = cluster.advertisement(local_pref=200)
    snapshot = cluster.snapshot(pools={"default": cluster.pool(advertisements=(wide, host))})
    assert announced(snapshot).desired.ribs[SESSION] == {
        ip_network("192.0.2.0/26"): Path(
            ip_network("192.0.2.0/26"), local_pref=100, communities=("64512:9", "64512:10")
        ),
        ip_network("192.0.2.1/32"): Path(ip_network("192.0.2.1/32"), local_pref=200),
    }


def test_two_advertisements_of_one_prefix_merge() -> None:
    one = cluster.advertisement(local_pref=100, communities=("64512:1",))
    two = cluster.advertisement(local_pref=200, communities=("64512:2",))
    for pair in ((one, two), (two, one)):
        rib = announced(cluster.snapshot(pools={"default": cluster.pool(advertisements=pair)})).desired.ribs[SESSION]
        assert list(rib.values()) == [
            Path(ip_network("192.0.2.1/32"), local_pref=200, communities=("64512:1", "64512:2"))
        ]


def dual_stack(*slices: EndpointSlice, **fields: object) -> Snapshot:
    """The service has an address of each family, and an endpoint of each on node a if nothing else is said."""
    both = cluster.endpoints("web", "a"), cluster.endpoints("web", "a", version=6)
    allocations = Allocations(1, (cluster.allocation("web", "192.0.2.1", "2001:db8::1"),))
    return cluster.snapshot(endpoint_slices=slices or both, allocations=allocations, **fields)


def test_ipv6_in_an_ipv4_session_gets_the_nodes_ipv6_next_hop() -> None:
    snapshot = dual_stack()
    paths = announced(snapshot).desired.ribs[SESSION]
    assert {str(prefix): str(path.next_hop) for prefix, path in paths.items()} == {
        "192.0.2.1/32": "None",
        "2001:db8::1/128": "fd00::11",
    }


def test_ipv6_without_a_next_hop_is_refused() -> None:
    fields = node_a(addresses=(ip_address("10.0.0.11"),))
    result = announced(dual_stack(**fields))
    assert prefixes(result) == ["192.0.2.1/32"]
    assert reasons(result) == {"path/2001:db8::1/128": "NoNextHop"}


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.parametrize(("version", "prefix"), [(4, "192.0.2.1/32"), (6, "2001:db8::1/128")])
def test_each_family_is_announced_while_it_has_endpoints_of_its_own(policy: str, version: int, prefix: str) -> None:
    web = cluster.service("web", external_traffic_policy=policy)
    snapshot = dual_stack(cluster.endpoints("web", "a", version=version), services={web.key: web})
    result = announced(snapshot)
    other = 10 - version
    assert prefixes(result) == [prefix]
    assert [(str(refusal.object), refusal.reason, refusal.message) for refusal in result.refusals] == [
        (
            "svc/default/web",
            "NoEndpoints",
            f"no ready IPv{other} endpoint is on any node: its IPv{other} addresses are not announced",
        )
    ]


def test_with_local_policy_each_family_asks_for_endpoints_on_the_node() -> None:
    slices = cluster.endpoints("web", "a"), cluster.endpoints("web", "b", version=6)
    result = announced(dual_stack(*slices, **local_service()))
    assert (prefixes(result), reasons(result)) == (["192.0.2.1/32"], {"svc/default/web": "NoLocalEndpoints"})


def test_a_service_with_no_endpoint_of_either_family_has_one_refusal() -> None:
    result = announced(dual_stack(cluster.endpoints("web", "a", ready=False)))
    assert [refusal.message for refusal in result.refusals] == ["the service has no ready endpoint on any node"]


DRAINING = cluster.endpoints("web", "a", ready=False, draining=True)
NOWHERE_READY = cluster.endpoints("web", "b", ready=False)


@pytest.mark.parametrize("node", ["a", "b"])
def test_endpoints_that_serve_and_terminate_hold_the_path(node: str) -> None:
    result = announced(cluster.snapshot(endpoint_slices=(DRAINING, NOWHERE_READY)), node)
    assert (prefixes(result), result.refusals) == (["192.0.2.1/32"], ())


@pytest.mark.parametrize("elsewhere", [NOWHERE_READY, cluster.endpoints("web", "b")])
def test_with_local_policy_they_hold_it_on_their_node(elsewhere: EndpointSlice) -> None:
    snapshot = cluster.snapshot(**local_service(), endpoint_slices=(DRAINING, elsewhere))
    assert prefixes(announced(snapshot, "a")) == ["192.0.2.1/32"]
    assert bool(prefixes(announced(snapshot, "b"))) == elsewhere.endpoints[0].ready


def test_pod_cidrs_are_announced_when_asked_even_from_an_excluded_node() -> None:
    snapshot = cluster.snapshot(**node_a(labels={EXCLUDE_LABEL: ""}, network_unavailable=True))
    assert prefixes(announced(snapshot, rules=Rules(pod_cidrs=True))) == ["10.1.11.0/24", "198.51.100.7/32"]
    assert "10.1.11.0/24" not in prefixes(announced(snapshot))


def test_pod_cidrs_of_a_pool_that_is_told_to_nobody_are_not_announced() -> None:
    pool = PodPool("p", (ip_network("10.1.0.0/16"),), announced=False)
    snapshot = replace(cluster.snapshot(**node_a()), pod_pools={"p": pool})
    left_out = announced(snapshot, rules=Rules(pod_cidrs=True, pod_pools=True))
    assert "10.1.11.0/24" not in prefixes(left_out)
    assert [str(each.message) for each in left_out.refusals if each.reason == "NotExported"] == [
        "pod CIDR 10.1.11.0/24 is not announced: pool p has disableBGPExport"
    ]
    of_another = announced(snapshot, rules=Rules(pod_cidrs=True))
    assert "10.1.11.0/24" in prefixes(of_another), "the pool is another CNI's, and the node has its CIDR from elsewhere"
    assert not of_another.refusals


# --- egress addresses


EGRESS_PREFIX = ip_network("198.51.100.7/32")
SECOND_TOR = ip_address("10.0.0.2")


def test_all_gateways_announce_the_egress_ip_alike() -> None:
    one, other = (announced(cluster.snapshot(), name, Rules()).desired.ribs[SESSION][EGRESS_PREFIX] for name in "ba")
    assert one == other
    assert (one.local_pref, one.med) == (1000, 0)


def test_a_standby_announces_the_egress_ip_worse() -> None:
    snapshot = cluster.snapshot(allocations=Allocations(1, groups=(cluster.group(gateway_mode="active-standby"),)))
    active, standby = (announced(snapshot, name, Rules()).desired.ribs[SESSION][EGRESS_PREFIX] for name in "ba")
    assert (active.local_pref, active.med) == (1000, 0)
    assert (standby.local_pref, standby.med) == (999, 1)


def of_a_pool(*ways: Advertisement) -> dict[str, object]:
    """An egress IP of a pool that is announced in these ways, by gateways that take turns."""
    group = cluster.group(pool="out", gateway_mode="active-standby")
    pools = {"out": cluster.pool("out", "198.51.100.0/24", advertisements=ways)}
    return {"allocations": Allocations(1, groups=(group,)), "pools": pools}


def test_a_pool_says_how_its_egress_ips_are_announced_and_the_gateways_order_goes_on_top() -> None:
    ways = cluster.advertisement(med=10, prepend=2, communities=("64512:1",), aggregation_length=24)
    last = cluster.advertisement(med=2**32 - 1)
    for way, med in ((ways, 11), (last, 2**32 - 1)):
        path = announced(cluster.snapshot(**of_a_pool(way)), "a", Rules()).desired.ribs[SESSION][EGRESS_PREFIX]
        expected = Path(EGRESS_PREFIX, None, 999, med, way.prepend, way.communities)
        assert path == expected


def test_an_egress_ip_is_announced_to_the_peers_and_by_the_nodes_of_its_pools_advertisements() -> None:
    elsewhere = announced(cluster.snapshot(**of_a_pool(cluster.advertisement(peers=("tor-b",)))), "a", Rules())
    assert EGRESS_PREFIX not in elsewhere.desired.ribs[SESSION]
    only_b = of_a_pool(cluster.advertisement(node_selectors=(cluster.ONLY_B,)))
    result = announced(cluster.snapshot(**only_b), "a", Rules())
    assert (EGRESS_PREFIX in result.desired.ribs[SESSION], reasons(result)["egress/198.51.100.7"]) == (
        False, "NotAdvertisedHere",
    )  # fmt: skip


def test_an_advertisement_for_some_services_is_for_these_alone_and_for_no_egress_ip() -> None:
    web = cluster.advertisement(services=(LabelSelector((("tier", "web"),)),), communities=("64512:1",))
    vip = ip_network("192.0.2.1/32")
    for labels, expected in (({"tier": "web"}, ("64512:1",)), ({}, None), ({"tier": "db"}, None)):
        services = {"default/web": cluster.service("web", labels=labels)}
        result = announced(
            cluster.snapshot(services=services, pools={"default": cluster.pool(advertisements=(web,))}), "a", Rules()
        )
        path = result.desired.ribs[SESSION].get(vip)
        assert (path.communities if path is not None else None) == expected
        assert reasons(result).get("svc/default/web") == (None if expected else "NotAdvertisedHere")
    result = announced(cluster.snapshot(**of_a_pool(web)), "a", Rules())
    assert reasons(result)["egress/198.51.100.7"] == "NotAdvertisedHere"


def test_a_peer_says_what_it_gets_beside_that_for_which_it_is_named() -> None:
    vip, cidr = ip_network("192.0.2.1/32"), ip_network("10.1.11.0/24")
    for gets, named, expected in (
        (("services", "pod-cidrs", "egress"), False, {vip, cidr, EGRESS_PREFIX}),
        (("egress",), False, {EGRESS_PREFIX}),
        (("pod-cidrs",), False, {cidr}),
        ((), False, set()),
        ((), True, {vip}),
        (("egress",), True, {vip, EGRESS_PREFIX}),
    ):
        way = cluster.advertisement(peers=("tor",)) if named else cluster.advertisement()
        peers = (Peer(TOR, 64512, 64512, name="tor", gets=gets), Peer(SECOND_TOR, 64512, 64512))
        snapshot = cluster.snapshot(bgp=Peering(peers), pools={"default": cluster.pool(advertisements=(way,))})
        local = {Way(each): SESSION.local for each in (TOR, SECOND_TOR)}
        found = announcements(snapshot, "a", Rules(pod_cidrs=True), local)
        assert found is not None
        ribs = found.desired.ribs
        assert (ribs[SESSION].keys(), vip in ribs[SESSION._replace(peer=SECOND_TOR)]) == (expected, not named)


def test_what_a_peer_gets_is_said_by_the_entry_of_this_node() -> None:
    """Nodes may have entries of their own for a router, under the same name; of several for a node the first counts."""
    vip, on_a = ip_network("192.0.2.1/32"), LabelSelector((("rack", "a"),))
    mine = Peer(TOR, 64512, 64512, name="tor", gets=("services",), node_selectors=(on_a,))
    for other in (replace(mine, gets=()), replace(mine, gets=(), name="")):
        not_here = replace(other, node_selectors=(cluster.ONLY_B,))
        for peers in ((not_here, mine), (mine, not_here), (mine, other)):
            snapshot = cluster.snapshot(bgp=Peering(peers), **node_a(labels={"rack": "a"}))
            assert vip in announced(snapshot).desired.ribs[SESSION]


def test_a_node_that_is_no_gateway_does_not_announce_the_egress_ip() -> None:
    snapshot = cluster.snapshot()
    assert snapshot.nodes is not None
    more = replace(snapshot, nodes={**snapshot.nodes, "c": cluster.node("c", 13)})
    assert "198.51.100.7/32" not in prefixes(announced(more, "c", Rules()))


def test_a_gateway_without_a_tunnel_endpoint_does_not_announce_the_egress_ip() -> None:
    """It has no NAT: what is sent to the address would find neither that nor a blackhole."""
    snapshot = cluster.snapshot(**node_a(addresses=()))
    result = announced(snapshot, "a", Rules())
    assert (prefixes(result), reasons(result)["egress/198.51.100.7"]) == (["192.0.2.1/32"], "NoTunnelEndpoint")


def test_a_nodes_own_address_is_not_announced() -> None:
    allocations = Allocations(1, groups=(cluster.group(node_address=True),))
    result = announced(cluster.snapshot(allocations=allocations), "a", Rules(services=False))
    assert (prefixes(result), result.refusals) == ([], ())


def test_an_egress_ip_of_a_layer2_pool_is_not_announced() -> None:
    pools = {"out": cluster.pool("out", "198.51.100.0/24", protocol="layer2")}
    allocations = Allocations(1, groups=(cluster.group(pool="out"),))
    result = announced(cluster.snapshot(pools=pools, allocations=allocations), "a", Rules(services=False))
    assert (prefixes(result), reasons(result)) == ([], {"egress/198.51.100.7": "PoolNotBgp"})


def test_an_egress_ip_bears_the_communities_of_its_pool() -> None:
    pools = {
        "out": cluster.pool("out", "198.51.100.0/24", advertisements=(cluster.advertisement(communities=("1:2",)),))
    }
    allocations = Allocations(1, groups=(cluster.group(pool="out"),))
    result = announced(cluster.snapshot(pools=pools, allocations=allocations), "a", Rules())
    assert result.desired.ribs[SESSION][ip_network("198.51.100.7/32")].communities == ("1:2",)


# --- sessions


def sessions(*peers: Peer, **fields: object) -> Announcements:
    return announced(cluster.snapshot(bgp=Peering(peers), **fields))


def test_a_session_takes_the_kernels_source_and_the_nodes_router_id() -> None:
    session = announced(cluster.snapshot()).desired.peers[SESSION]
    assert (str(session.local_address), str(session.router_id)) == ("10.0.0.11", "10.0.0.11")


@pytest.mark.parametrize(("hold", "asked", "sent"), [(90, 3, 3), (90, None, 0), (90, 30, 0), (9, 0, 1), (0, 0, 0)])
def test_keepalives_are_asked_for_where_they_do_not_follow(hold: int, asked: int | None, sent: int) -> None:
    peer = Peer(TOR, 65000, 64512, hold_time=hold, keepalive_time=asked)
    assert sessions(peer).desired.peers[SESSION].keepalive_time == sent


def test_ebgp_multihop_is_no_other_session() -> None:
    """We always send with a TTL that reaches the peer: the key may come and go without a reset."""
    found = [sessions(Peer(TOR, 65000, 64512, ebgp_multihop=each)).desired.peers for each in (True, False)]
    assert found[0] == found[1]


def test_a_peer_for_other_nodes_has_no_session_and_no_refusal() -> None:
    selector = LabelSelector((("kubernetes.io/hostname", "b"),))
    result = sessions(Peer(TOR, 64512, 64512, node_selectors=(selector,)))
    assert (result.desired.peers, result.desired.ribs, result.refusals) == ({}, {}, ())


def test_a_peer_without_a_route_is_refused_and_the_rest_goes_on() -> None:
    far = ip_address("172.31.0.1")
    result = sessions(Peer(TOR, 64512, 64512), Peer(far, 64512, 64512, name="far"))
    assert list(result.desired.peers) == [SESSION]
    assert reasons(result) == {"peer/far": "NoRoute"}


def test_a_source_address_that_is_not_here_is_refused() -> None:
    peer = Peer(ip_address("172.31.0.1"), 64512, 64512, source_address=ip_address("10.9.9.9"))
    assert reasons(sessions(peer)) == {"peer/172.31.0.1": "NoLocalAddress"}


def test_the_second_peer_of_one_address_is_refused() -> None:
    for passive in (False, True):  # a router that connects itself says only whose address it has
        first, second = (
            Peer(TOR, asn, 64512, name=name, passive=passive) for asn, name in ((64512, "one"), (1, "two"))
        )
        result = sessions(first, second)
        assert result.desired.peers[SESSION].remote_as == 64512
        assert reasons(result) == {"peer/two": "DuplicatePeer"}


def test_an_override_that_takes_the_node_counts_and_is_named() -> None:
    elsewhere, other = ip_address("10.0.0.2"), ip_address("10.0.0.9")
    overrides = (
        PeerOverride("of b", ("b",), local_as=1),
        PeerOverride("of racks", (), (LabelSelector((("rack", "none"),)),), local_as=2),
        PeerOverride("of a", ("a",), (), elsewhere, 65001, IPv4Address("192.0.2.9"), other, 1790, "secret"),
        PeerOverride("of all", local_as=4),
    )
    peer = Peer(TOR, 64512, 64512, source_interface="lo", password_file="x", overrides=overrides)
    snapshot, sources = cluster.snapshot(bgp=Peering((peer,))), {Way(elsewhere, other): other}
    result = announcements(snapshot, "a", VIPS_ONLY, sources, passwords={})
    assert result is not None
    (session,) = result.desired.peers.values()
    assert (session.address, session.local_address, session.local_as) == (elsewhere, other, 65001)
    assert (str(session.router_id), session.listen_port, session.password) == ("192.0.2.9", 1790, "secret")
    assert session.override == "of a"


def test_advertisements_name_a_peer_as_it_is_written_whatever_address_it_has_on_a_node() -> None:
    elsewhere = ip_address("10.0.0.2")
    peer = Peer(TOR, 64512, 64512, overrides=(PeerOverride("of a", ("a",), address=elsewhere, password=""),))
    ways = (cluster.advertisement(peers=(str(TOR),)), cluster.advertisement(peers=(str(elsewhere),)))
    pools = {"default": cluster.pool(advertisements=ways[:1])}
    pools["b"] = cluster.pool("b", "203.0.113.0/24", advertisements=ways[1:])
    snapshot = cluster.snapshot(bgp=Peering((peer,)), pools=pools)
    found = announcements(snapshot, "a", VIPS_ONLY, {Way(elsewhere): SESSION.local})
    assert found is not None
    assert [(str(key.peer), len(rib)) for key, rib in found.desired.ribs.items()] == [("10.0.0.2", 1)]
    assert [f"{each.object}: {each.message}" for each in found.refusals if each.reason == "UnknownPeer"] == [
        "AddressPool/b: <store>: an advertisement is for peer '10.0.0.2', which is an address of some nodes for peer "
        "'10.0.0.1': name it so"
    ]


def test_a_peer_that_is_refused_names_the_override_that_says_so() -> None:
    away = ip_address("10.9.9.9")
    peer = Peer(TOR, 64512, 64512, overrides=(PeerOverride("of a", ("a",), source_address=away),))
    (refusal,) = sessions(peer).refusals
    assert (refusal.reason, refusal.message) == (
        "NoLocalAddress",
        "by of a: source address 10.9.9.9 is not on any interface of a",
    )


def test_one_peer_has_a_session_from_each_of_two_addresses_and_advertisements_tell_them_apart() -> None:
    source = ip_address("10.0.0.12")
    peers = (Peer(TOR, 1, 2, name="one"), Peer(TOR, 1, 2, name="two", source_address=source))
    pool = cluster.pool(advertisements=(cluster.advertisement(peers=("two",)),))
    snapshot = cluster.snapshot(bgp=Peering(peers), pools={"default": pool})
    found = announcements(snapshot, "a", VIPS_ONLY, {**LOCAL, Way(TOR, source): source})
    assert found is not None
    assert {str(key): len(rib) for key, rib in found.desired.ribs.items()} == {
        "10.0.0.1 from 10.0.0.11": 0, "10.0.0.1 from 10.0.0.12": 1
    }  # fmt: skip
    assert [each.name for each in found.entries.values()] == ["one", "two"]
    same = announcements(snapshot, "a", VIPS_ONLY, {**LOCAL, Way(TOR, source): SESSION.local})
    assert same is not None and list(same.desired.peers) == [SESSION]
    assert reasons(same) == {"peer/two": "DuplicatePeer"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"address": "fe80::1"}, "LinkLocalPeer"),
        ({"address": "fd00::1", "source_address": "fe80::11"}, "LinkLocalPeer"),
        ({"address": "10.0.0.11"}, "PeerIsNode"),
        ({"address": "224.0.0.5"}, "InvalidPeerAddress"),
        ({"address": "::"}, "InvalidPeerAddress"),
        ({"address": "169.254.169.254"}, "NoRoute"),  # clouds do peer with such addresses
    ],
)
def test_an_address_that_can_have_no_session_is_refused_for_what_it_is(fields: dict[str, str], reason: str) -> None:
    addresses = {name: ip_address(text) for name, text in fields.items()}
    peer = Peer(remote_as=64512, local_as=64512, name="odd", **addresses)  # type: ignore[arg-type]
    assert reasons(sessions(Peer(TOR, 64512, 64512), peer)) == {"peer/odd": reason}


def test_one_link_local_address_on_two_links_needs_two_of_the_nodes_own() -> None:
    links = [Peer(ip_address(f"fe80::1%{name}"), 1, 2, interface=name, name=name) for name in ("eth1", "eth2")]
    snapshot = cluster.snapshot(bgp=Peering(tuple(links)))
    own = [ip_address("fe80::a1"), ip_address("fe80::a2")]
    both = announcements(snapshot, "a", VIPS_ONLY, {way_to(p): each for p, each in zip(links, own, strict=True)})
    one = announcements(snapshot, "a", VIPS_ONLY, {way_to(p): own[0] for p in links})
    assert both is not None and one is not None
    assert [(str(each.address), each.interface) for each in both.desired.peers.values()] == [
        ("fe80::1%eth1", "eth1"), ("fe80::1%eth2", "eth2")
    ]  # fmt: skip
    assert [str(key.peer) for key in one.desired.peers] == ["fe80::1%eth1"]
    assert reasons(one) == {"peer/eth2": "EqualLinkLocal"}


def test_an_ipv6_only_node_needs_a_router_id() -> None:
    far = ip_address("fd00::1")
    only = node_a(addresses=(ip_address("fd00::11"),))
    snapshot = cluster.snapshot(bgp=Peering((Peer(far, 64512, 64512),)), **only)
    result = announcements(snapshot, "a", VIPS_ONLY, {Way(far): ip_address("fd00::11")})
    assert result is not None
    assert reasons(result) == {"peer/fd00::1": "NoRouterId"}


def test_the_password_never_shows() -> None:
    result = sessions(Peer(TOR, 64512, 64512, password="hunter2"))
    assert result.desired.peers[SESSION].password == "hunter2"
    assert "hunter2" not in repr(result)


def test_a_password_of_a_file_is_read_on_the_node_and_without_it_there_is_no_session() -> None:
    snapshot = cluster.snapshot(bgp=Peering((Peer(TOR, 1, 2, password_file="tor"),)))
    found = announcements(snapshot, "a", VIPS_ONLY, LOCAL, passwords={"tor": "s3cret"})
    assert found is not None
    assert found.desired.peers[SESSION].password == "s3cret"
    found = announcements(snapshot, "a", VIPS_ONLY, LOCAL, passwords={})
    assert found is not None
    assert (dict(found.desired.peers), reasons(found)) == ({}, {str(Peer(TOR, 1, 2).ref): "PasswordFile"})


# --- VIPs with which pods leave

OF_VIP = cluster.group(egress_ip=ip_address("192.0.2.1"), gateways=("a",), service="default/web")
LEAVES: dict[str, object] = {"allocations": cluster.allocations(OF_VIP)}
NONE_READY: dict[str, object] = {"endpoint_slices": (cluster.endpoints("web", "a", ready=False),)}


def test_gateways_announce_a_vip_also_while_no_endpoint_is_ready() -> None:
    """Pods that are not ready leave with it. Others, who only bring clients there, do not."""
    snapshot = cluster.snapshot(**LEAVES, **NONE_READY)
    result = announced(snapshot, rules=Rules())
    assert (prefixes(result), reasons(result)) == (["192.0.2.1/32"], {"svc/default/web": "NoEndpoints"})
    assert result.owners == {ip_network("192.0.2.1/32"): (Ref.parse("svc/default/web"),)}
    elsewhere = cluster.allocations(replace(OF_VIP, gateways=("b",)))
    assert prefixes(announced(replace(snapshot, allocations=elsewhere), rules=Rules())) == []


@pytest.mark.parametrize("reason", ["NodeExcluded", "NetworkUnavailable", "NotAdvertisedHere", "NoLocalEndpoints"])
def test_a_gateway_that_may_not_announce_the_service_does_not_so_either(reason: str) -> None:
    snapshot = cluster.snapshot(**{**LEAVES, **NONE_READY, **NOES[reason]})
    assert prefixes(announced(snapshot, rules=Rules())) == []


def test_each_family_of_it_for_itself() -> None:
    both = ("192.0.2.1", "2001:db8:2::1")
    group = replace(OF_VIP, further_ips=(ip_address(both[1]),))
    given = cluster.allocations(group, services=(cluster.allocation("web", *both),))
    pool = replace(cluster.pool(), blocks=(ip_network("192.0.2.0/24"), ip_network("2001:db8:2::/64")))
    snapshot = cluster.snapshot(allocations=given, pools={"default": pool})
    result = announced(snapshot, rules=Rules())
    assert {str(prefix) for prefix in result.owners} == {"192.0.2.1/32", "2001:db8:2::1/128"}


def test_a_gateway_whose_configuration_announces_no_vips_says_so() -> None:
    result = announced(cluster.snapshot(**LEAVES), rules=Rules(services=False))
    assert prefixes(result) == []
    (message,) = (each.message for each in result.refusals if each.reason == "NotConfigured")
    assert message.endswith("is off in this node's configuration: no answer to what leaves with the VIP comes here")
