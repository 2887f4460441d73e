"""CiliumBGPPeeringPolicy: peers and what they get in one object, or it is told why not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from routerd.errors import InputError
from routerd.formats.convert.whole import convert
from routerd.model import Advertisement, Origin, Peer, Snapshot
from routerd.selectors import LabelSelector
from routerd.store.merge import merge
from tests.models.manifests import read_text

POLICY = """\
apiVersion: cilium.io/v2alpha1
kind: CiliumBGPPeeringPolicy
metadata: {name: racks}
spec:
  nodeSelector: {matchLabels: {rack: a}}
  virtualRouters:
  - localASN: 64512
    exportPodCIDR: true
    serviceSelector: {matchLabels: {tier: web}}
    neighbors:
    - peerAddress: 10.0.0.1/32
      peerPort: 1179
      peerASN: 64513
      eBGPMultihopTTL: 4
      connectRetryTimeSeconds: 12
      holdTimeSeconds: 9
      keepAliveTimeSeconds: 3
      gracefulRestart: {enabled: true, restartTimeSeconds: 15}
      families: [{afi: ipv4, safi: unicast}]
      advertisedPathAttributes:
      - selectorType: CiliumLoadBalancerIPPool
        communities: {standard: ["64512:7"], wellKnown: [no-export], large: ["64512:1:2"]}
        localPreference: 150
      - {selectorType: CiliumLoadBalancerIPPool, selector: {}, communities: {standard: ["64512:9"]}}
"""
PEER = Peer(
    ip_address("10.0.0.1"), 64513, 64512, port=1179, hold_time=9, keepalive_time=3, connect_retry=12,
    ebgp_multihop=True, graceful_restart_time=15, families=("IPv4",), gets=("pod-cidrs", "egress"),
    node_selectors=(LabelSelector((("rack", "a"),)),), name="racks/64512/10.0.0.1",
)  # fmt: skip
WAY = Advertisement(
    local_pref=150, communities=("64512:7", "64512:9", "65535:65281", "64512:1:2"), peers=("racks/64512/10.0.0.1",),
    services=(LabelSelector((("tier", "web"),)),),
)  # fmt: skip
POOL = "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: default}\nspec: {blocks: [192.0.2.0/24]}\n"


def merged(*texts: str) -> Snapshot:
    return merge([read_text(text, f"{number}.yaml") for number, text in enumerate(texts)], allocations=None)


def peers_of(snapshot: Snapshot) -> list[Peer]:
    assert snapshot.bgp is not None
    return [replace(peer, origin=Origin()) for peer in snapshot.bgp.peers]


def test_its_peers_and_what_they_get() -> None:
    found = merged(POLICY, POOL)
    assert (peers_of(found), found.refusals) == ([PEER], ())
    assert found.pools is not None and found.pools["default"].advertisements == (Advertisement(), WAY)


def test_a_policy_that_says_little_has_cilium_s_defaults() -> None:
    little = POLICY[: POLICY.index("    exportPodCIDR")] + "    neighbors: [{peerAddress: 'fd00::1', peerASN: 64513}]\n"
    found = merged(little.replace("  nodeSelector: {matchLabels: {rack: a}}\n", ""), POOL)
    assert peers_of(found) == [Peer(ip_address("fd00::1"), 64513, 64512, gets=("egress",), name="racks/64512/fd00::1")]
    assert found.pools is not None and found.pools["default"].advertisements == (Advertisement(),)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("peerPort: 1179", "authSecretRef: s", "PeerNotSupported: 0.yaml:12:22"),
        ("peerASN: 64513", "peerASN: 0", "PeerNotSupported: 0.yaml:13:16"),
        ("exportPodCIDR: true", "podIPPoolSelector: {}", "AdvertisementNotSupported: 0.yaml:8:24"),
        ("exportPodCIDR: true", "serviceAdvertisements: [LoadBalancerIP, ClusterIP]",
         "AdvertisementNotSupported: 0.yaml:8:45"),
        ("selector: {}", "selector: {matchLabels: {a: b}}", "AdvertisementNotSupported: 0.yaml:24:60"),
        ("{selectorType: CiliumLoadBalancerIPPool,", "{selectorType: PodCIDR,",
         "AdvertisementNotSupported: 0.yaml:24:24"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_told_with_its_place(old: str, new: str, told: str) -> None:
    found = merged(POLICY.replace(old, new))
    (refusal,) = found.refusals
    assert f"{refusal.object} {refusal.reason}: {refusal.message}".startswith(f"CiliumBGPPeeringPolicy/racks {told}")
    assert len(peers_of(found)) == (refusal.reason != "PeerNotSupported")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10.0.0.1/32", "10.0.0.0/24", "expected one address, 10.0.0.0/32"),
        ("64512\n", "4294967296\n", "localASN"),
        ("holdTimeSeconds: 9", "holdTimeSeconds: 2", "holdTimeSeconds"),
        ("keepAliveTimeSeconds: 3", "keepAliveTimeSeconds: 10", "found 10 s, expected at most the hold time, 9 s"),
        ("afi: ipv4", "afi: l2vpn", "expected ipv4/unicast or ipv6/unicast"),
        ("[no-export]", "[nowhere]", "wellKnown"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_text(POLICY.replace(old, new))


def test_hops_of_a_neighbor_of_the_same_as_are_ignored() -> None:
    own = POLICY.replace("peerASN: 64513", "peerASN: 64512")
    assert peers_of(merged(own)) == [replace(PEER, remote_as=64512, ebgp_multihop=False)]
    assert convert({"a.yaml": own, "b.yaml": POOL}).errors == ()


def test_a_neighbor_that_is_not_used_is_told_once_and_without_another_nothing_is_printed() -> None:
    second = POLICY + "    - {peerAddress: 10.0.0.2, peerASN: 1, authSecretRef: s}\n"
    printed = convert({"a.yaml": second})
    (note,) = (note for note in printed.notes if "authSecretRef" in note)
    assert note.startswith("a.yaml:25:58: ") and note.endswith("; the neighbor is not used")
    alone = convert({"a.yaml": POLICY.replace("peerPort: 1179", "authSecretRef: s")})
    assert alone.text == "" and [error.partition(": this")[0] for error in alone.errors] == [
        "a.yaml:12:22: spec.virtualRouters[0].neighbors[0].authSecretRef"
    ]


@pytest.mark.parametrize(("said", "used", "told"), [("120", 0, []), ("70000", 65535, ["PeeringNotSupported"])])
def test_what_the_api_server_fills_in_asks_for_no_slow_retry(said: str, used: int, told: list[str]) -> None:
    found = merged(POLICY.replace("connectRetryTimeSeconds: 12", f"connectRetryTimeSeconds: {said}"))
    assert [peer.connect_retry for peer in peers_of(found)] == [used]
    assert [refusal.reason for refusal in found.refusals] == told


def test_it_is_printed_as_ours() -> None:
    printed = convert({"a.yaml": POLICY, "b.yaml": POOL})
    found = merge([read_text(printed.text)], allocations=None)
    assert printed.errors == () and peers_of(found) == [PEER]
    assert found.pools is not None and WAY in found.pools["default"].advertisements
