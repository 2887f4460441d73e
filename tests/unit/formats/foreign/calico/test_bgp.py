"""Calico's BGP kinds: a peer is as its configuration and its filters say, or it is told why not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routerd.cli.check import check_texts
from routerd.errors import InputError
from routerd.formats.convert.whole import convert
from routerd.formats.kinds import BY_NAME
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.objects import read_file
from routerd.model import Bfd, ExportRule, Origin, Peer, Snapshot
from routerd.selectors import LabelSelector, Requirement
from routerd.store.merge import merge
from tests.models.manifests import read_text

HEAD = "apiVersion: projectcalico.org/v3\nkind: {}\nmetadata: {{name: {}}}\nspec:\n"
PEER = HEAD.format("BGPPeer", "tor") + "  peerIP: 10.0.0.1\n  asNumber: 64512\n"
CONFIGURATION = HEAD.format("BGPConfiguration", "default") + "  asNumber: 64513\n"
FILTER = HEAD.format("BGPFilter", "out")
USUAL = Peer(
    ip_address("10.0.0.1"), 64512, 64512, families=("IPv4",), gets=("pod-cidrs", "egress"), name="tor"
)  # fmt: skip


def merged(*texts: str) -> Snapshot:
    return merge([read_text(text, f"{number}.yaml") for number, text in enumerate(texts)], allocations=None)


def told(*texts: str) -> list[str]:
    return [f"{each.object} {each.reason}: {each.message}" for each in merged(*texts).refusals]


def peer_of(*texts: str) -> Peer:
    found = merged(*texts).bgp
    assert found is not None
    (peer,) = found.peers
    return replace(peer, origin=Origin())


def rules_of(rule: str, peer: str = PEER) -> tuple[ExportRule, ...]:
    return peer_of(peer + "  filters: [out]\n", FILTER + f"  exportV4:\n  - {rule}\n").export


def test_a_peer_that_says_little_has_calico_s_defaults() -> None:
    assert peer_of(PEER) == USUAL
    assert told(PEER) == []


def test_all_that_a_session_has() -> None:
    text = HEAD.format("BGPPeer", "tor") + (
        '  peerIP: "[2001:db8::1]:1179"\n  asNumber: "1.10"\n  localASNumber: 64999\n  maxRestartTime: 1m0s\n'
        "  keepaliveTime: 20s\n  ttlSecurity: 3\n  password: {secretKeyRef: {name: routerd-passwords, key: tor}}\n"
        "  keepOriginalNextHop: false\n  sourceAddress: None\n  node: gw1\n"
    )
    assert told(text, CONFIGURATION) == []
    assert peer_of(text, CONFIGURATION) == Peer(
        ip_address("2001:db8::1"), 65546, 64999, port=1179, keepalive_time=20, password_file="tor",
        ebgp_multihop=True, graceful_restart_time=60, ttl_security=3, families=("IPv6",), gets=("pod-cidrs", "egress"),
        node_selectors=(LabelSelector((), (Requirement("kubernetes.io/hostname", "In", ("gw1",)),)),), name="tor",
    )  # fmt: skip


def test_an_ibgp_peer_some_hops_away_is_no_multihop_one() -> None:
    assert peer_of(PEER + "  ttlSecurity: 2\n").ebgp_multihop is False


def test_bfd_where_the_peer_is_directly_connected() -> None:
    text = PEER + "  failureDetection: BFDIfDirectlyConnected\n"
    assert peer_of(text).bfd == Bfd()
    (line,) = told(text + "  ttlSecurity: 2\n")
    assert line.startswith("peer/tor BFDNotSupported: 0.yaml:7:")


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("all()", ()),
        ("has(x) || all()", ()),
        ("rack in { 'a','b' }", (LabelSelector((), (Requirement("rack", "In", ("a", "b")),)),)),
        ("rack not in {'a'}", (LabelSelector((), (Requirement("rack", "NotIn", ("a",)),)),)),
        (
            "rack == 'a' || has(spare) && !has(old)",
            (
                LabelSelector((), (Requirement("rack", "In", ("a",)),)),
                LabelSelector((), (Requirement("spare", "Exists"), Requirement("old", "DoesNotExist"))),
            ),
        ),
    ],
)
def test_which_nodes_have_the_session(selector: str, expected: tuple[LabelSelector, ...]) -> None:
    assert peer_of(PEER + f'  nodeSelector: "{selector}"\n').node_selectors == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("peerSelector: has(rr)", "nodes open no sessions with each other"),
        ("localWorkloadSelector: app == 'x'", "there are no sessions with pods"),
        ("externalNetwork: red", "sessions in a network of their own"),
        ("password: {secretKeyRef: {name: bgp, key: tor}}", "put its key into the Secret routerd-passwords"),
    ],
)
def test_a_peer_that_we_cannot_have_is_refused_by_name(line: str, why: str) -> None:
    found = merged(PEER + f"  {line}\n")
    (refusal,) = found.refusals
    assert (str(refusal.object), refusal.reason, found.bgp and found.bgp.peers) == (
        "BGPPeer/tor",
        "PeerNotSupported",
        (),
    )
    assert refusal.message.startswith("0.yaml:7:") and why in refusal.message


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("numAllowedLocalASNumbers: 1", "are not learnt"),
        ("reachableBy: 10.0.0.254", "no route by 10.0.0.254 is made"),
        ("restartMode: LongLivedGracefulRestart", "RFC 9494"),
    ],
)
def test_what_a_session_goes_without_is_told(line: str, why: str) -> None:
    (text,) = told(PEER + f"  {line}\n")
    assert text.startswith("peer/tor PeeringNotSupported: 0.yaml:7:") and why in text
    assert peer_of(PEER + f"  {line}\n") == USUAL


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("peerIP: 10.0.0.1", "peerIP: fe80::1", "says nothing without an interface"),
        ("peerIP: 10.0.0.1", "peerIP: 10.0.0.1:0", 'found "0", expected an integer from 1 to 65535'),
        ("peerIP: 10.0.0.1", "peerIP: tor", "expected an IP address"),
        ("asNumber: 64512", "asNumber: 0", "expected an AS number"),
        ("asNumber: 64512", "asNumber: 1\n  nodeSelector: (a)", '"(a)" of the selector is not read'),
        *(
            ("asNumber: 64512", f'asNumber: 1\n  nodeSelector: "rack in {words}"', f'rack in {words}" of the selector')
            for words in ("{}", "{a, 'b'}", "{'a', b}", "{'a' 'b'}", "{'a',}", "{'a', 'b' x}")
        ),
        ("asNumber: 64512", "asNumber: 1\n  nodeSelector: has(a)\n  node: b", "found both"),
        ("asNumber: 64512", "asNumber: 1\n  filterz: [out]", 'unknown key "filterz"; did you mean "filters"?'),
        ("asNumber: 64512", "asNumber: 1\n  passwords: {}", 'unknown key "passwords"; did you mean "password"?'),
        ("asNumber: 64512", "asNumber: 1\n  password: {secretRef: {}}", 'did you mean "secretKeyRef"?'),
        (
            "asNumber: 64512",
            "asNumber: 1\n  password: {secretKeyRef: {name: routerd-passwords, keys: a}}",
            'did you mean "key"?',
        ),
        ("asNumber: 64512", "asNumber: 1\n  maxRestartTime: 2h", "expected at most 4095 s"),
        ("asNumber: 64512", "asNumber: 1\n  maxRestartTime: soon", "invalid duration"),
        (
            "asNumber: 64512",
            "asNumber: 1\n  password: {secretKeyRef: {name: routerd-passwords, key: ../x}}",
            "expected a key of the Secret",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^f\.yaml:\d+:\d+: ") as error:
        read_text(PEER.replace(old, new), "f.yaml")
    assert message in str(error.value)


def test_vips_are_those_in_the_networks_of_the_configuration() -> None:
    text = CONFIGURATION + "  serviceLoadBalancerIPs: [{cidr: 192.0.2.0/24}, {cidr: 198.51.100.0/24}]\n"
    peer = peer_of(PEER, text)
    networks = (ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24"))
    assert peer.gets == ("services", "pod-cidrs", "egress")
    assert peer.export == (
        ExportRule("reject", networks, "not-in", of=("services",)),
        ExportRule("reject", (ip_network("::/0"),), of=("services",)),
    )


def test_communities_go_by_prefix_and_name() -> None:
    text = CONFIGURATION + (
        '  communities: [{name: rack, value: "64513:7"}]\n'
        '  prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [rack, "64513:1:2"]}]\n'
    )
    rule = ExportRule(prefixes=(ip_network("10.0.0.0/8"),), communities=("64513:7", "64513:1:2"))
    assert peer_of(PEER, text) == replace(USUAL, local_as=64513, export=(rule,))
    with pytest.raises(InputError, match=r'found .*"rock", expected a community'):
        read_text(text.replace("[rack,", "[rock,"))


@pytest.mark.parametrize(
    ("line", "reason", "why"),
    [
        ("serviceExternalIPs: [{cidr: 192.0.2.0/24}]", "AdvertisementNotSupported", "bgp.announce.external-ips"),
        ("serviceClusterIPs: [{cidr: 10.96.0.0/12}]", "AdvertisementNotSupported", "bgp.announce.cluster-ips"),
        ("nodeToNodeMeshEnabled: true", "PeeringNotSupported", "nodes open no sessions with each other"),
        ("listenPort: 178", "PeeringNotSupported", "listen for none of them"),
    ],
)
def test_what_of_the_configuration_is_not_done_is_told(line: str, reason: str, why: str) -> None:
    (text,) = told(PEER, CONFIGURATION + f"  {line}\n")
    assert text.startswith(f"BGPConfiguration/default {reason}: 1.yaml:6:") and why in text
    assert peer_of(PEER, CONFIGURATION + f"  {line}\n") == replace(USUAL, local_as=64513)


def test_a_configuration_of_one_node_is_told_and_changes_nothing() -> None:
    text = CONFIGURATION.replace("name: default", "name: node.gw1")
    (line,) = told(PEER, text)
    assert line.startswith("BGPConfiguration/node.gw1 PeeringNotSupported: 1.yaml:1:")
    assert peer_of(PEER, text).local_as == 64512


NET = ip_network("192.0.2.0/24")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{action: Reject}", [ExportRule("reject", (ip_network("0.0.0.0/0"),))]),
        ("{action: Accept, matchOperator: In, cidr: 192.0.2.0/24}", [ExportRule("accept", (NET,))]),
        ("{action: Reject, matchOperator: NotEqual, cidr: 192.0.2.0/24}", [ExportRule("reject", (NET,), "not-equal")]),
        (
            "{action: Reject, matchOperator: NotIn, cidr: 192.0.2.0/24, prefixLength: {min: 25, max: 30}}",
            [ExportRule("reject", (NET,), "not-in", 25, 30)],
        ),
        (
            '{action: Accept, operations: [{addCommunity: {value: "64513:8"}}]}',
            [ExportRule("accept", (ip_network("0.0.0.0/0"),), communities=("64513:8",))],
        ),
        ("{action: Reject, source: RemotePeers}", []),
        ('{action: Reject, interface: "*.calico"}', []),
        ("{action: Reject, asPathPrefix: [64999]}", []),
        ("{action: Reject, peerType: eBGP}", []),  # the session is within an AS
        ("{action: Reject, peerType: iBGP}", [ExportRule("reject", (ip_network("0.0.0.0/0"),))]),
    ],
)
def test_rules_of_a_filter(rule: str, expected: list[ExportRule]) -> None:
    assert list(rules_of(rule)) == expected


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ('{action: Accept, communities: {values: ["64513:8"]}}', "paths are not told apart by communities"),
        ("{action: Accept, priority: 5}", "paths are not told apart by priority"),
        ("{action: Accept, operations: [{prependASPath: {prefix: [64513]}}]}", "prependASPath is not done"),
    ],
)
def test_a_filter_that_cannot_be_carried_closes_the_sessions_that_name_it(rule: str, why: str) -> None:
    found = merged(PEER + "  filters: [out]\n", FILTER + f"  exportV4:\n  - {rule}\n")
    reasons = {each.reason: each.message for each in found.refusals}
    assert reasons.keys() == {"AdvertisementNotSupported", "PeerConfigMissing"}
    assert why in reasons["AdvertisementNotSupported"] and "'out'" in reasons["PeerConfigMissing"]
    assert found.bgp is not None and found.bgp.peers == ()


@pytest.mark.parametrize(
    "configuration",
    [
        CONFIGURATION + '  communities: [{name: big, value: "64513:x"}]\n',
        CONFIGURATION.replace("asNumber", "asNumbr"),
        CONFIGURATION + "  prefixAdvertisments: []\n",
        CONFIGURATION + "  communities: [{name: a, values: 1:2}]\n",
        CONFIGURATION + "  serviceLoadBalancerIPs: [{cidrs: 192.0.2.0/24}]\n",
        CONFIGURATION + "  prefixAdvertisements: [{cidr: 10.0.0.0/8, community: [a]}]\n",
        CONFIGURATION.replace("spec:", "specs:"),
        CONFIGURATION + "  communities: [\n",
    ],
)
def test_no_session_is_opened_while_the_configuration_cannot_be_read(configuration: str) -> None:
    """It might be of another AS, or announce more than was meant. `convert` says the same."""
    broken = configuration + "---\n" + PEER.replace("tor", "beside")
    files = [read_file(text, f"{number}.yaml") for number, text in enumerate((broken, PEER))]
    found = merge(files, allocations=None)
    assert found.bgp is not None and found.bgp.peers == ()
    assert [f"{each.object} {each.reason}" for each in found.refusals] == [
        "peer/beside PeerConfigMissing",
        "peer/tor PeerConfigMissing",
    ]
    assert found.refusals[1].message == (
        "1.yaml:1: BGPConfiguration default cannot be read: there is no session, as it might be of another AS"
    )
    assert convert({"a.yaml": configuration, "b.yaml": PEER}).text == ""
    converted = convert({"a.yaml": broken, "b.yaml": PEER})
    assert converted.text == ""
    assert converted.errors[-1] == found.refusals[1].message.replace("1.yaml", "b.yaml")


def test_a_configuration_of_one_node_that_cannot_be_read_closes_nothing() -> None:
    text = CONFIGURATION.replace("name: default", "name: node.gw1") + "  communities: x\n"
    assert peer_of(PEER, text) == USUAL


@pytest.mark.parametrize("order", [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")])
def test_of_two_objects_of_a_name_the_first_counts_for_convert_as_for_daemons(order: tuple[str, str]) -> None:
    """As projectcalico.org/v3 and as crd.projectcalico.org/v1: whichever file was given first."""
    rejects = FILTER + "  exportV4: [{action: Reject}]\n---\n" + CONFIGURATION
    accepts = rejects.replace("Reject", "Accept").replace("64513", "64514")
    texts = {"a.yaml": rejects, "b.yaml": accepts.replace("projectcalico.org/v3", "crd.projectcalico.org/v1")}
    texts = {name: texts[name] for name in order} | {"c.yaml": PEER + "  filters: [out]\n---\n" + PEER}
    snapshot = merge([read_text(text, name) for name, text in sorted(texts.items())], allocations=None)
    converted = convert(texts)
    assert snapshot.bgp is not None
    (peer,), (entry,) = snapshot.bgp.peers, read_text(converted.text).entries
    assert isinstance(entry.object, LegacyConfig)
    assert [replace(each, origin=Origin()) for each in entry.object.peers] == [replace(peer, origin=Origin())]
    assert (peer.local_as, peer.export) == (64513, (ExportRule("reject", (ip_network("0.0.0.0/0"),)),))
    assert list(converted.errors) == sorted(each.message for each in snapshot.refusals)
    assert converted.errors == (
        "b.yaml:1: BGPFilter/out is already defined at a.yaml:1; this one is not used",
        "b.yaml:7: BGPConfiguration/default is already defined at a.yaml:7; this one is not used",
        "c.yaml:9: BGPPeer/tor is already defined at c.yaml:1; this one is not used",
    )


def test_rules_of_imports_are_told() -> None:
    (line,) = told(FILTER + "  importV6: [{action: Reject}]\n  exportV6: []\n")
    assert line.startswith("BGPFilter/out AdvertisementNotSupported: 0.yaml:5:") and "native-routing.learn" in line


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{action: Maybe}", "expected Accept or Reject"),
        ("{action: Accept, cidr: 192.0.2.0/24}", 'the key "matchOperator" is missing'),
        ("{action: Accept, cidr: 2001:db8::/32, matchOperator: In}", "expected an IPv4 CIDR"),
        ("{action: Accept, prefixLength: {min: 8}}", "prefixLength goes with a cidr, and the rule has none"),
        ("{action: Accept, matchOperator: In}", "matchOperator goes with a cidr, and the rule has none"),
        ("{action: Accept, cidr: , matchOperator: In}", "matchOperator goes with a cidr, and the rule has none"),
        (
            "{action: Accept, matchOperator: In, cidrs: 10.244.0.0/16}",
            'exportV4[0].cidrs: unknown key "cidrs"; did you mean "cidr"?',
        ),
        (
            "{action: Accept, matchOperator: In, cidr: 192.0.2.0/24, prefixLength: {mn: 25}}",
            'unknown key "mn"; did you mean "min"?',
        ),
        (
            "{action: Reject, matchOperator: In, cidr: 192.0.2.0/24, prefixLength: {max: 8}}",
            "exportV4[0].prefixLength.max: found 8, expected at least 24: nothing in 192.0.2.0/24 is shorter",
        ),
        ("{action: Reject, sources: RemotePeers}", 'unknown key "sources"; did you mean "source"?'),
        ("{action: Reject, source: RemotePeer}", "expected RemotePeers"),
        ("{acton: Reject, source: RemotePeers}", 'unknown key "acton"; did you mean "action"?'),
        ("{action: Allow, source: RemotePeers}", "expected Accept or Reject"),
        (
            '{action: Accept, operations: [{addCommunity: {value: "1:2"}}, {addCommunities: {value: "1:2"}}]}',
            'exportV4[0].operations[1].addCommunities: unknown key "addCommunities"; did you mean "addCommunity"?',
        ),
        (
            '{action: Accept, operations: [{removeCommunity: {value: "1:2"}}]}',
            'exportV4[0].operations[0].removeCommunity: unknown key "removeCommunity"',
        ),
        ("{action: Accept, operations: [{}]}", 'the key "addCommunity" is missing'),
        ('{action: Accept, operations: [{addCommunity: {val: "1:2"}}]}', 'unknown key "val"; did you mean "value"?'),
        (
            "{action: Accept, cidr: 192.0.2.0/24, matchOperator: In, prefixLength: {min: 31, max: 30}}",
            "is more than max",
        ),
    ],
)
def test_a_mistake_in_a_rule_is_named(rule: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(FILTER + f"  exportV4:\n  - {rule}\n", "f.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "  exportV4:\n  - {action: Accept, matchOperator: In, cidrs: 10.244.0.0/16}\n  - {action: Reject}\n",
        "  exportV4: [{action: Reject, operation: []}]\n",
        "  exportv6: [{action: Reject}]\n",
        "speck: {}\n",
    ],
)
def test_a_misspelt_filter_closes_the_sessions_that_name_it(spec: str) -> None:
    """What would be left of it lets out more than was meant."""
    files = [read_file(text) for text in (PEER + "  filters: [out]\n", FILTER + spec)]
    assert [str(each.ref) for file in files for each in file.mistakes] == ["BGPFilter/out"]
    found = merge(files, allocations=None)
    assert found.bgp is not None and found.bgp.peers == ()
    (refusal,) = found.refusals
    assert (str(refusal.object), refusal.reason) == ("peer/tor", "PeerConfigMissing")


def test_both_ways_to_write_them_are_read_alike() -> None:
    """As people write them, and as Calico keeps them in an API server."""
    texts = (PEER + "  filters: [out]\n", CONFIGURATION, FILTER + "  exportV4: [{action: Reject}]\n")
    kept = [text.replace("projectcalico.org/v3", "crd.projectcalico.org/v1") for text in texts]
    assert peer_of(*kept) == peer_of(*texts)


@pytest.mark.parametrize("name", ["BGPConfiguration", "BGPFilter"])
@pytest.mark.parametrize("group", ["projectcalico.org", "crd.projectcalico.org"])
def test_what_all_sessions_rest_on_is_waited_for(group: str, name: str) -> None:
    assert BY_NAME[group, name].rests_on_each == {"bgp"}


def test_keys_without_a_meaning_here_are_told_by_convert_and_check() -> None:
    keys = "  serviceLoadBalancerAggregation: Enabled\n  nodeMeshPassword: {secretKeyRef: {name: a, key: b}}\n"
    keys += "  ignoredInterfaces: [eth5]\n  bindMode: NodeIP\n  nodeToNodeMeshEnabled: true\n"
    texts = {"a.yaml": CONFIGURATION + keys, "b.yaml": PEER + "  nextHopMode: Self\n"}
    why = "has no meaning here and is left out"
    names = {6: "serviceLoadBalancerAggregation", 7: "nodeMeshPassword", 8: "ignoredInterfaces", 9: "bindMode"}
    told = [f"a.yaml:{line}:{len(name) + 5}: spec.{name}: {why}" for line, name in names.items()]
    told.append(f"b.yaml:7:16: spec.nextHopMode: {why}")
    mesh = "a.yaml:10:26: spec.nodeToNodeMeshEnabled: "
    notes = convert(texts).notes
    assert [each for each in notes if not each.startswith(mesh)] == told and len(notes) == len(told) + 1
    assert sorted(map(str, check_texts(texts))) == sorted(f"warning: {line}" for line in notes)


def test_as_ours_they_say_the_same() -> None:
    network = "  serviceLoadBalancerIPs: [{cidr: 192.0.2.0/24}]\n"
    rules = '  exportV4: [{action: Accept, operations: [{addCommunity: {value: "1:2"}}]}]\n'
    texts = (PEER + "  filters: [out]\n  nodeSelector: has(a)\n", CONFIGURATION + network, FILTER + rules)
    converted = convert({f"{number}.yaml": text for number, text in enumerate(texts)})
    assert converted.errors == () and converted.notes == ()
    (entry,) = read_text(converted.text).entries
    assert isinstance(entry.object, LegacyConfig)
    assert replace(entry.object.peers[0], origin=Origin()) == peer_of(*texts)
