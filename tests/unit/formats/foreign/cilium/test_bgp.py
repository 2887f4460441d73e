"""Cilium's BGP kinds: peers get what the advertisements say that their configuration selects, or it is told why not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from routerd.errors import InputError
from routerd.formats.convert.whole import convert
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.objects import read_file
from routerd.model import AddressPool, Advertisement, Origin, Peer, Peering, PeerOverride, Snapshot
from routerd.node.announce import announcements
from routerd.node.checks import Rules
from routerd.node.sessions import sessions_of, way_to
from routerd.selectors import LabelSelector
from routerd.store.merge import merge
from routerd.store.mistakes import unknown_parts
from tests.models import cluster
from tests.models.manifests import read_text

HEAD = "apiVersion: cilium.io/v2\nkind: {}\nmetadata: {{name: {}, labels: {{{}}}}}\nspec:\n"
CLUSTER = (
    HEAD.format("CiliumBGPClusterConfig", "racks", "")
    + """\
  nodeSelector: {matchLabels: {rack: a}}
  bgpInstances:
  - name: main
    localASN: 64512
    peers:
    - {name: tor, peerASN: 64513, peerAddress: 10.0.0.1, peerConfigRef: {name: usual}}
"""
)
CONFIG = (
    HEAD.format("CiliumBGPPeerConfig", "usual", "")
    + """\
  transport: {peerPort: 1179, sourceInterface: lo}
  timers: {connectRetryTimeSeconds: 12, holdTimeSeconds: 9, keepAliveTimeSeconds: 3}
  gracefulRestart: {enabled: true, restartTimeSeconds: 15}
  ebgpMultihop: 4
  families:
  - {afi: ipv4, safi: unicast, advertisements: {matchLabels: {advertise: bgp}}}
"""
)
ADVERTISEMENT = (
    HEAD.format("CiliumBGPAdvertisement", "vips", "advertise: bgp")
    + """\
  advertisements:
  - advertisementType: Service
    service: {addresses: [LoadBalancerIP], aggregationLengthIPv4: 30}
    selector: {matchLabels: {tier: web}}
    attributes:
      communities: {standard: ["64512:7", "4226809864"], wellKnown: [no-export], large: ["64512:1:2"]}
      localPreference: 150
"""
)
POOL = "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: default}\nspec: {blocks: [192.0.2.0/24]}\n"


def merged(*texts: str) -> Snapshot:
    return merge([read_text(text, f"{number}.yaml") for number, text in enumerate(texts)], allocations=None)


def told(*texts: str) -> list[str]:
    return [f"{each.object} {each.reason}: {each.message}" for each in merged(*texts).refusals]


def peer_of(*texts: str) -> Peer:
    found = merged(*texts)
    assert found.refusals == () and found.bgp is not None
    (peer,) = found.bgp.peers
    return replace(peer, origin=Origin())


def test_a_peer_is_as_all_three_say() -> None:
    assert peer_of(CLUSTER, CONFIG, ADVERTISEMENT) == Peer(
        ip_address("10.0.0.1"), 64513, 64512, port=1179, source_interface="lo", hold_time=9, keepalive_time=3,
        connect_retry=12, ebgp_multihop=True, graceful_restart_time=15, families=("IPv4",), gets=("egress",),
        node_selectors=(LabelSelector((("rack", "a"),)),), name="racks/main/tor",
    )  # fmt: skip


OVERRIDE = (
    HEAD.format("CiliumBGPNodeConfigOverride", "gw1", "")
    + """\
  bgpInstances:
  - name: main
    routerID: 192.0.2.1
    localPort: 1790
    localASN: 65001
    peers: [{name: tor, localAddress: 10.0.0.11, localPort: 179}]
"""
)


def test_hops_of_a_peer_of_the_same_as_are_ignored() -> None:
    own = CLUSTER.replace("peerASN: 64513", "peerASN: 64512")
    assert not peer_of(own, CONFIG).ebgp_multihop
    assert convert({"a.yaml": f"{own}---\n{CONFIG}"}).errors == ()


def test_a_node_of_its_own_has_its_override() -> None:
    found = peer_of(CLUSTER, CONFIG, OVERRIDE)
    assert found.overrides == (
        PeerOverride(
            "CiliumBGPNodeConfigOverride/gw1", ("gw1",), local_as=65001, router_id=IPv4Address("192.0.2.1"),
            source_address=ip_address("10.0.0.11"), listen_port=1790,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: main", "name: none", "UnknownPeer: 2.yaml:1: no CiliumBGPClusterConfig has a peer in an instance "
         "'none': nothing of this is in force"),
        ("name: tor", "name: other", "UnknownPeer: 2.yaml:1: no CiliumBGPClusterConfig has a peer 'other' in instance "
         "'main': nothing of this is in force"),
        ("localASN", "localAsn", 'KeyNotUsed: 2.yaml:9:15: spec.bgpInstances[0].localAsn: unknown key "localAsn"; did '
         'you mean "localASN"?'),
        ("localAddress", "address", 'KeyNotUsed: 2.yaml:10:34: spec.bgpInstances[0].peers[0].address: unknown key '
         '"address"; did you mean "localAddress"?'),
    ],
)  # fmt: skip
def test_what_of_an_override_is_of_nothing_is_told(old: str, new: str, line: str) -> None:
    assert told(CLUSTER, CONFIG, OVERRIDE.replace(old, new)) == [f"CiliumBGPNodeConfigOverride/gw1 {line}"]


def test_an_override_that_cannot_be_read_closes_the_sessions_of_its_node_alone() -> None:
    wrong = read_file(OVERRIDE.replace("192.0.2.1", "x"), "o.yaml")
    found = merge([read_file(CLUSTER), read_file(CONFIG), wrong], allocations=None)
    assert found.bgp is not None
    (peer,) = (replace(each, node_selectors=()) for each in found.bgp.peers)
    snapshot = cluster.snapshot(bgp=Peering((peer,)))
    for name, expected in (("gw1", "PeerConfigMissing"), ("a", "")):
        node = replace((snapshot.nodes or {})["a"], name=name)
        opened = sessions_of([peer], node, {way_to(peer): ip_address("10.0.0.11")})
        assert [each.reason for each in opened.refusals] == [expected] * bool(expected)
        assert len(opened.sessions) == (not expected)
    assert not unknown_parts([wrong])
    printed = convert({"a.yaml": CLUSTER, "b.yaml": CONFIG, "c.yaml": OVERRIDE.replace("192.0.2.1", "x")})
    assert [error.partition(": ")[0] for error in printed.errors] == ["a.yaml:10", "c.yaml:7:15"] and not printed.text


def test_an_override_is_printed_as_ours() -> None:
    printed = convert({"a.yaml": CLUSTER, "b.yaml": CONFIG, "c.yaml": OVERRIDE})
    assert printed.errors == ()
    (override,) = replace(peer_of(printed.text), origin=Origin()).overrides
    expected = peer_of(CLUSTER, CONFIG, OVERRIDE).overrides[0]
    assert replace(override, name="") == replace(expected, name="")


def test_hops_are_ignored_where_an_override_makes_the_router_one_of_the_same_as() -> None:
    texts = {"a.yaml": CLUSTER, "b.yaml": CONFIG, "c.yaml": OVERRIDE.replace("65001", "64513")}
    assert not peer_of(*texts.values()).ebgp_multihop and convert(texts).errors == ()


def test_an_override_of_one_peer_alone_is_none_of_the_others() -> None:
    two = CLUSTER + "    - {name: second, peerASN: 64513, peerAddress: 10.0.0.2}\n"
    one = HEAD.format("CiliumBGPNodeConfigOverride", "gw1", "")
    one += "  bgpInstances: [{name: main, peers: [{name: tor, localAddress: 10.0.0.11}]}]\n"
    found = merged(two, CONFIG, one)
    assert found.bgp is not None and [len(peer.overrides) for peer in found.bgp.peers] == [1, 0]
    assert convert({"f.yaml": "---\n".join((two, CONFIG, one))}).errors == ()


@pytest.mark.parametrize(
    ("said", "used", "is_told"),
    [("120", 0, False), ("121", 121, False), ("65535", 65535, False), ("65536", 65535, True)],
)
def test_what_the_api_server_fills_in_asks_for_no_slow_retry(said: str, used: int, is_told: bool) -> None:
    """The CRD's default, which stands in every object, is the same as nothing."""
    found = merged(CLUSTER, CONFIG.replace("connectRetryTimeSeconds: 12", f"connectRetryTimeSeconds: {said}"))
    assert found.bgp is not None and found.bgp.peers[0].connect_retry == used
    assert [f"{each.object} {each.reason}: {each.message}" for each in found.refusals] == [
        "CiliumBGPPeerConfig/usual PeeringNotSupported: 1.yaml:6:37: spec.timers.connectRetryTimeSeconds: found 65536 "
        "s, expected at most 65535 s, which are used"
    ] * is_told


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("192.0.2.1", "'::1'", "routerID"), ("65001", "0", "localASN"), ("1790", "65536", "localPort")],
)
def test_a_mistake_of_an_override_is_named(old: str, new: str, key: str) -> None:
    with pytest.raises(InputError, match=key):
        read_text(OVERRIDE.replace(old, new))


def test_without_a_configuration_it_has_cilium_s_defaults_and_gets_egress_ips_alone() -> None:
    text = CLUSTER.replace(", peerConfigRef: {name: usual}", "").replace(
        "  nodeSelector: {matchLabels: {rack: a}}\n", ""
    )
    assert peer_of(text) == Peer(ip_address("10.0.0.1"), 64513, 64512, gets=("egress",), name="racks/main/tor")


def test_pools_are_announced_to_it_as_its_advertisements_say() -> None:
    pools = merged(CLUSTER, CONFIG, ADVERTISEMENT, POOL).pools
    assert pools is not None and pools["default"].advertisements == (
        Advertisement(),
        Advertisement(
            30, 128, 150, ("64496:8", "64512:7", "65535:65281", "64512:1:2"), peers=("racks/main/tor",),
            services=(LabelSelector((("tier", "web"),)),),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "selector", "prefixes"),
    [
        ({"tier": "web"}, "selector: {matchLabels: {tier: web}}", {"192.0.2.0/30", "198.51.100.7/32"}),
        ({"tier": "db"}, "selector: {matchLabels: {tier: web}}", {"198.51.100.7/32"}),
        ({}, "selector: {}", {"192.0.2.0/30", "198.51.100.7/32"}),
        ({}, "", {"198.51.100.7/32"}),
        (
            {},
            "selector: {matchLabels: {io.kubernetes.service.name: web}}",
            {"192.0.2.0/30", "198.51.100.7/32"},
        ),
    ],
)
def test_what_the_peer_gets(labels: dict[str, str], selector: str, prefixes: set[str]) -> None:
    said = ADVERTISEMENT.replace("selector: {matchLabels: {tier: web}}", selector)
    found = merged(CLUSTER.replace("rack: a", "kubernetes.io/os: linux"), CONFIG, said, POOL)
    assert found.bgp is not None
    peer = replace(found.bgp.peers[0], node_selectors=())
    view = cluster.snapshot(
        bgp=Peering((peer,)), pools=found.pools, services={"default/web": cluster.service("web", labels=labels)}
    )
    result = announcements(view, "a", Rules(pod_cidrs=True), {way_to(peer): ip_address("10.0.0.11")})
    assert result is not None
    (rib,) = result.desired.ribs.values()
    assert set(rib) == set(map(ip_network, prefixes))


def test_pod_cidrs_go_to_peers_that_ask_for_them() -> None:
    text = ADVERTISEMENT + "  - advertisementType: PodCIDR\n"
    assert peer_of(CLUSTER, CONFIG, text).gets == ("pod-cidrs", "egress")


def test_several_peers_of_one_advertisement_share_its_way() -> None:
    two = CLUSTER + "    - {name: second, peerASN: 64513, peerAddress: 10.0.0.2, peerConfigRef: {name: usual}}\n"
    pools = merged(two, CONFIG, ADVERTISEMENT, POOL).pools
    assert pools is not None
    assert [way.peers for way in pools["default"].advertisements] == [(), ("racks/main/tor", "racks/main/second")]


def test_a_peer_whose_configuration_is_missing_or_cannot_be_used_has_no_session() -> None:
    assert told(CLUSTER) == [
        "peer/racks/main/tor PeerConfigMissing: 0.yaml:10: no CiliumBGPPeerConfig 'usual' can be used: there is no "
        "session"
    ]
    secret = CONFIG + "  authSecretRef: md5\n"
    assert [each.reason for each in merged(CLUSTER, secret).refusals] == ["PeerNotSupported", "PeerConfigMissing"]
    assert peer_of(CLUSTER, CONFIG + '  authSecretRef: ""\n', ADVERTISEMENT).port == 1179


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("peerAddress: 10.0.0.1", "autoDiscovery: {mode: DefaultGateway}", "routers are not discovered"),
        ("peerASN: 64513, ", "", "the AS number is not learnt"),
        ("peerASN: 64513, ", "peerASN: 0, ", "the AS number is not learnt"),
    ],
)
def test_a_peer_that_we_cannot_find_costs_itself(old: str, new: str, why: str) -> None:
    text = CLUSTER.replace(old, new) + "    - {name: second, peerASN: 64513, peerAddress: 10.0.0.2}\n"
    found = merged(text, CONFIG, ADVERTISEMENT)
    (refusal,) = found.refusals
    assert (refusal.reason, why in refusal.message, "peer racks/main/tor is not used" in refusal.message) == (
        "PeerNotSupported", True, True,
    )  # fmt: skip
    assert found.bgp is not None and [peer.name for peer in found.bgp.peers] == ["racks/main/second"]


@pytest.mark.parametrize(
    ("added", "why"),
    [
        ("  - advertisementType: CiliumPodIPPool\n", "CiliumPodIPPool is not announced"),
        ("  - advertisementType: Interface\n", "Interface is not announced"),
        ("  - {advertisementType: PodCIDR, attributes: {localPreference: 1}}\n", "without attributes of their own"),
        (
            "  - {advertisementType: Service, service: {addresses: [ExternalIP]}, selector: {}}\n",
            "name their networks in bgp.announce.external-ips",
        ),
    ],
)
def test_what_is_not_announced_is_told(added: str, why: str) -> None:
    (line,) = told(CLUSTER, CONFIG, ADVERTISEMENT + added)
    assert line.startswith("CiliumBGPAdvertisement/vips AdvertisementNotSupported: 2.yaml:12:") and why in line


def test_an_advertisement_for_one_family_of_two_is_left_out() -> None:
    both = CONFIG + "  - {afi: ipv6, safi: unicast}\n"
    found = merged(CLUSTER, both, ADVERTISEMENT, POOL)
    assert [each.reason for each in found.refusals] == ["AdvertisementNotSupported"]
    assert (found.pools or {})["default"].advertisements == (Advertisement(),)
    assert (
        merged(
            CLUSTER, CONFIG + "  - {afi: ipv6, advertisements: {matchLabels: {advertise: bgp}}}\n", ADVERTISEMENT
        ).refusals
        == ()
    )


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (CLUSTER, "10.0.0.1", "tor", "spec.bgpInstances[0].peers[0].peerAddress"),
        (CLUSTER, "localASN: 64512", "localASN: 0", "spec.bgpInstances[0].localASN"),
        (CONFIG, "holdTimeSeconds: 9", "holdTimeSeconds: 2", "spec.timers.holdTimeSeconds"),
        (
            CONFIG,
            "keepAliveTimeSeconds: 3",
            "keepAliveTimeSeconds: 10",
            "found 10 s, expected at most the hold time, 9 s",
        ),
        (CONFIG, "safi: unicast", "safi: mpls_vpn", "found ipv4/mpls_vpn, expected ipv4/unicast or ipv6/unicast"),
        (ADVERTISEMENT, "64512:7", "64512:70000", "spec.advertisements[0].attributes.communities.standard[0]"),
        (ADVERTISEMENT, "64512:1:2", "64512:1", "expected a large community"),
        (ADVERTISEMENT, "[no-export]", "[no-exports]", "wellKnown[0]"),
    ],
)
def test_a_mistake_is_named(text: str, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(text.replace(old, new), "f.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (24, ""),
        (30, ""),
        (23, "an aggregate /23 of a CiliumBGPAdvertisement would be more than the block 192.0.2.0/24"),
    ],
)
def test_no_aggregate_is_more_than_a_block_of_the_pool(length: int, fault: str) -> None:
    said = ADVERTISEMENT.replace("aggregationLengthIPv4: 30", f"aggregationLengthIPv4: {length}")
    found = merged(CLUSTER, CONFIG, said, POOL)
    assert len((found.pools or {})["default"].advertisements) == (1 if fault else 2)
    assert [f"{each.object} {each.reason}: {each.message}" for each in found.refusals] == (
        [f"AddressPool/default InvalidAggregation: 3.yaml:1: {fault}: it is not announced to racks/main/tor"]
        if fault
        else []
    )


def test_pools_of_ours_are_printed_with_what_the_advertisements_add() -> None:
    found = convert({"f.yaml": "---\n".join((CLUSTER, CONFIG, ADVERTISEMENT, POOL))})
    expected = merged(CLUSTER, CONFIG, ADVERTISEMENT, POOL).pools
    pools = [entry.object for entry in read_text(found.text).entries if isinstance(entry.object, AddressPool)]
    assert expected is not None and [each.advertisements for each in pools] == [expected["default"].advertisements]
    document = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: routerd}\ndata:\n  config: |\n"
    document += "    apiVersion: routerd.io/v1alpha1\n    address-pools:\n"
    document += "    - {name: x, protocol: bgp, addresses: [192.0.2.0/24]}\n"
    notes = convert({"f.yaml": "---\n".join((CLUSTER, CONFIG, ADVERTISEMENT, document))}).notes
    assert any("its pools are announced to racks/main/tor by CiliumBGPAdvertisements" in note for note in notes)


def test_they_are_converted_together() -> None:
    pool = HEAD.format("CiliumLoadBalancerIPPool", "blue", "") + "  blocks: [{cidr: 192.0.2.0/24}]\n"
    found = convert({"f.yaml": "---\n".join((CLUSTER, CONFIG, ADVERTISEMENT, pool))})
    assert found.errors == ()
    again = read_text(found.text)
    configs = [entry.object for entry in again.entries if isinstance(entry.object, LegacyConfig)]
    pools = [entry.object for entry in again.entries if isinstance(entry.object, AddressPool)]
    assert [replace(peer, origin=Origin()) for peer in configs[0].peers] == [peer_of(CLUSTER, CONFIG, ADVERTISEMENT)]
    expected = merged(CLUSTER, CONFIG, ADVERTISEMENT, pool).pools
    assert expected is not None and pools[0].advertisements == expected["blue"].advertisements
