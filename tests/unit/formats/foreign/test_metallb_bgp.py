"""MetalLB's BGPPeer: what is meant is taken, what we cannot do is refused by name."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from routerd.errors import InputError
from routerd.formats.convert.whole import convert
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.model import Bfd, Origin, Peer
from routerd.selectors import LabelSelector, Requirement
from routerd.store.merge import merge
from tests.models.manifests import read_text

HEAD = "apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: tor, namespace: metallb-system}\nspec:\n"
SPEC = "  peerAddress: 10.0.0.1\n  peerASN: 4200000000\n  myASN: 64513\n"


def read(text: str) -> tuple[Peer | None, list[str]]:
    loaded = read_text(HEAD + text, "f.yaml")
    told = [f"{each.object} {each.reason}: {each.message}" for each in loaded.refusals]
    configs = [entry.object for entry in loaded.entries if isinstance(entry.object, LegacyConfig)]
    return (replace(configs[0].peers[0], origin=Origin()) if configs else None), told


def test_a_peer_that_says_little_has_metallb_s_defaults() -> None:
    expected = Peer(ip_address("10.0.0.1"), 4200000000, 64513, families=("IPv4",), name="tor")
    assert read(SPEC) == (expected, [])


def test_all_that_a_session_has() -> None:
    peer, told = read(
        SPEC
        + "  peerPort: 1179\n  sourceAddress: 10.0.0.9\n  routerID: 192.0.2.1\n  holdTime: 1m0.9s\n  connectTime: 10s\n"
        '  keepaliveTime: 20s\n  password: "0123"\n  ebgpMultiHop: true\n  dualStackAddressFamily: true\n'
        "  nodeSelectors: [{matchLabels: {rack: a}}, {matchExpressions: [{key: rack, operator: Exists}]}]\n"
    )
    assert told == []
    assert peer == Peer(
        ip_address("10.0.0.1"), 4200000000, 64513, port=1179, source_address=ip_address("10.0.0.9"),
        router_id=IPv4Address("192.0.2.1"), hold_time=60, keepalive_time=20, connect_retry=10, password="0123",
        ebgp_multihop=True,
        node_selectors=(LabelSelector((("rack", "a"),)), LabelSelector((), (Requirement("rack", "Exists"),))),
        name="tor",
    )  # fmt: skip


def test_hops_of_a_peer_of_the_same_as_are_ignored() -> None:
    own = SPEC.replace("64513", "4200000000") + "  ebgpMultiHop: true\n"
    peer, told = read(own)
    assert peer is not None and (peer.local_as, peer.ebgp_multihop, told) == (4200000000, False, [])
    assert convert({"a.yaml": HEAD + own}).errors == ()


def test_a_passive_peer_opens_the_session_itself() -> None:
    passive = Peer(ip_address("10.0.0.1"), 4200000000, 64513, passive=True, families=("IPv4",), name="tor")
    assert read(SPEC + "  passiveMode: true\n") == (passive, [])
    assert read(SPEC + "  passiveMode: false\n") == (replace(passive, passive=False), [])
    unnumbered = SPEC.replace("peerAddress: 10.0.0.1", "interface: eth1") + "  passiveMode: true\n"
    assert read(unnumbered) == (
        None, ["BGPPeer/metallb-system/tor PeerNotSupported: f.yaml:8:16: spec.passiveMode: a router that is found on "
               "a link knows no address of the node; the peer is not used"],
    )  # fmt: skip


def test_what_a_passive_peer_does_not_need_is_told() -> None:
    passive = Peer(ip_address("10.0.0.1"), 4200000000, 64513, passive=True, families=("IPv4",), name="tor")
    peer, told = read(SPEC + "  passiveMode: true\n  connectTime: 10s\n  peerPort: 1179\n")
    assert peer == passive
    assert told == [
        "BGPPeer/metallb-system/tor PeeringNotSupported: f.yaml:9:16: spec.connectTime: a passive peer connects "
        "itself: this is not used",
        "BGPPeer/metallb-system/tor PeeringNotSupported: f.yaml:10:13: spec.peerPort: a passive peer connects itself, "
        "to our port 179: this is not used",
    ]
    assert read(SPEC + "  passiveMode: true\n  peerPort: 179\n") == (passive, [])


def test_what_an_api_server_fills_in_is_nothing() -> None:
    peer, told = read(SPEC + '  passwordSecret: {}\n  vrf: ""\n  bfdProfile: ""\n  peerPort: 0\n  routerID: ""\n')
    assert peer is not None and peer.port == 179 and told == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "passwordSecret: {name: s}",
            "this Secret is not read: write the peer in the BGP ConfigMap, with a password-file",
        ),
        ("dynamicASN: external", "the AS number is not learnt from the router: give peerASN"),
        ("vrf: red", "sessions in a VRF are not supported"),
    ],
)
def test_a_session_that_could_not_come_up_is_not_tried(line: str, why: str) -> None:
    key = line.partition(": ")[0]
    peer, (told,) = read(SPEC + f"  {line}\n")
    place = f"f.yaml:8:{len(key) + 5}: spec.{key}"
    assert peer is None
    assert told == f"BGPPeer/metallb-system/tor PeerNotSupported: {place}: {why}; the peer is not used"


def test_a_peer_with_an_interface_is_found_there() -> None:
    peer, told = read("  interface: eth1\n  peerASN: 1\n  myASN: 2\n")
    assert told == []
    assert peer == Peer(
        ip_address("::%eth1"), 1, 2, found="router", interface="eth1", extended_next_hop=True, name="tor"
    )
    with pytest.raises(InputError, match="expected either peerAddress or interface, found both"):
        read(SPEC + "  interface: eth1\n")


PROFILE = "apiVersion: metallb.io/v1beta1\nkind: BFDProfile\nmetadata: {name: fast, namespace: metallb-system}\n"
QUICK = PROFILE + "spec: {transmitInterval: 50, receiveInterval: 60, detectMultiplier: 4, passiveMode: true}\n"


def watched(*texts: str) -> tuple[Bfd | None, list[str]]:
    """How the peer of these files is watched, and what is told."""
    found = merge([read_text(text, "f.yaml") for text in texts], allocations=None)
    assert found.bgp is not None
    (peer,) = found.bgp.peers
    assert not peer.bfd_profile
    return peer.bfd, [f"{each.object} {each.reason}: {each.message}" for each in found.refusals]


def test_a_peer_is_watched_as_its_profile_says() -> None:
    peer = HEAD + SPEC + "  bfdProfile: fast\n"
    assert watched(peer, QUICK) == (Bfd(50_000, 60_000, 4, True), [])
    assert watched(PROFILE, peer) == (Bfd(300_000, 300_000, 3), [])
    assert watched(HEAD + SPEC, QUICK) == (None, [])


def test_a_peer_whose_profile_is_not_there_runs_without_bfd() -> None:
    assert watched(HEAD + SPEC + "  bfdProfile: slow\n", QUICK) == (
        None, ["peer/tor BFDNotSupported: f.yaml:1: there is no BFDProfile slow: the session runs without BFD"],
    )  # fmt: skip


def test_over_several_hops_there_is_no_bfd() -> None:
    assert watched(HEAD + SPEC + "  bfdProfile: fast\n  ebgpMultiHop: true\n", QUICK) == (
        None, ["peer/tor BFDNotSupported: f.yaml:8:15: spec.bfdProfile: BFD over several hops is not done: the session "
               "runs without BFD"],
    )  # fmt: skip


def test_echo_of_a_profile_is_told() -> None:
    echo = PROFILE + "spec: {echoMode: true}\n"
    assert watched(HEAD + SPEC + "  bfdProfile: fast\n", echo) == (
        Bfd(300_000, 300_000, 3),
        ["BFDProfile/metallb-system/fast BFDNotSupported: f.yaml:4:18: spec.echoMode: it is not done, asynchronous "
         "mode alone sees the peer"],
    )  # fmt: skip


@pytest.mark.parametrize("key", ["transmitInterval", "receiveInterval", "detectMultiplier"])
def test_a_profile_has_metallb_s_bounds(key: str) -> None:
    with pytest.raises(InputError, match=key):
        read_text(PROFILE + f"spec: {{{key}: 1}}\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10.0.0.1", "tor", "spec.peerAddress"),
        ("4200000000", "4294967296", "spec.peerASN"),
        ("  myASN: 64513\n", "", 'the key "myASN" is missing'),
        ("64513\n", "64513\n  holdTime: 2s\n", "found 2 s, expected 0 or 3 to 65535 s"),
        ("64513\n", "64513\n  holdTime: 20\n", "missing unit in duration"),
        ("64513\n", "64513\n  connectTime: 0s\n", "found 0 s, expected 1 to 65535 s"),
        ("64513\n", "64513\n  keepaliveTime: 91s\n", "found 91 s, expected at most the hold time, 90 s"),
        ("64513\n", "64513\n  routerID: '::1'\n", "expected an IPv4 address"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(HEAD + SPEC.replace(old, new), "f.yaml")
    assert message in str(error.value)


def test_peers_of_all_sources_stand_together() -> None:
    files = [read_text(HEAD + SPEC), read_text(HEAD.replace("tor", "other") + SPEC.replace("10.0.0.1", "10.0.0.2"))]
    found = merge(files, allocations=None).bgp
    assert found is not None and [peer.name for peer in found.peers] == ["tor", "other"]
