"""What other makers' objects are as ours: whoever decides from the one or the other decides the same."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from routerd.cli.decided import as_decided
from routerd.cli.main import main
from routerd.config import DEFAULT
from routerd.formats.convert import convert
from routerd.formats.convert.manifests import config_map as config_map_of
from routerd.formats.convert.manifests import manifest, text_of
from routerd.formats.kinds import BY_NAME, OURS
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.objects import read_file
from routerd.model import (
    AddressPool,
    Advertisement,
    Bfd,
    EgressPolicy,
    ExportRule,
    LabelSelector,
    Origin,
    Peer,
    PeerOverride,
    PodSelection,
    PortRange,
    ServiceSelection,
)
from routerd.selectors import Requirement
from routerd.store.merge import merge

DATA = Path(__file__).parents[2] / "data"
EXAMPLES = {path.name: path.read_text() for path in sorted((DATA / "examples").glob("*.yaml"))}
VECTORS = json.loads((DATA / "legacy-bgp-config.json").read_text())
CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {routerd.io/egress-gateway: "", node.kubernetes.io/name: node1, rack: a}}
status: {addresses: [{type: InternalIP, address: 10.0.0.11}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, ports: [{port: 80}]}
"""
METALLB = """\
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: sooner, namespace: metallb-system}
spec:
  addresses: [192.0.2.10-192.0.2.17, "2001:db8::/120"]
  avoidBuggyIPs: true
  serviceAllocation: {priority: 10, namespaces: [shop], serviceSelectors: [{matchLabels: {app: web}}]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: asked, namespace: metallb-system}
spec: {addresses: [198.51.100.7/24], autoAssign: false}
"""
CILIUM = """\
apiVersion: cilium.io/v2
kind: CiliumLoadBalancerIPPool
metadata: {name: blue}
spec:
  allowFirstLastIPs: "No"
  blocks: [{cidr: 192.0.2.0/24}, {start: 198.51.100.9, stop: 198.51.100.12}, {start: 203.0.113.9}]
  serviceSelector: {matchExpressions: [{key: io.kubernetes.service.name, operator: NotIn, values: [other]}]}
---
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: two, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  selectors:
  - podSelector: {matchLabels: {k8s:app: a, io.cilium.k8s.namespace.labels.team: x}}
    namespaceSelector: {matchLabels: {team: y}}
  - namespaceSelector: {}
    nodeSelector: {matchExpressions: [{key: rack, operator: Exists}]}
  destinationCIDRs: [198.18.0.0/15, "2001:db8::/32"]
  excludedCIDRs: [198.18.0.1/32]
  egressGateways:
  - {nodeSelector: {matchLabels: {rack: a}}, egressIP: 203.0.113.1}
  - {nodeSelector: {matchLabels: {rack: b}}, egressIP: 203.0.113.1}
"""
PEERS = """\
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor-a, namespace: metallb-system}
spec:
  peerAddress: 10.0.0.1
  peerASN: 64512
  myASN: 64513
  holdTime: 1m30s
  password: "0123"
  nodeSelectors: [{matchLabels: {rack: a}}]
  bfdProfile: fast
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
spec: {passiveMode: true, detectMultiplier: 5}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor-b, namespace: metallb-system}
spec: {peerAddress: "2001:db8::1", peerASN: 64512, myASN: 64513, dualStackAddressFamily: true}
"""
FOREIGN = {**EXAMPLES, "peers.yaml": PEERS, "metallb.yaml": METALLB, "cilium.yaml": CILIUM}


def is_left(document: str) -> bool:
    """Whether it is no object that is converted: it stands beside what is printed."""
    (version,) = re.findall(r"^apiVersion: (.*)$", document, re.MULTILINE)
    (kind,) = re.findall(r"^kind: (.*)$", document, re.MULTILINE)
    row = BY_NAME.get((version.rpartition("/")[0], kind))
    return row is None or row.group == OURS or (not row.custom and kind != "ConfigMap")


def decided(text: str) -> str:
    """What operator and agents decide, without where each object is written and as which kind."""
    loaded = read_file(f"{CLUSTER}---\n{text}")
    assert not loaded.mistakes
    found = as_decided(merge([loaded], allocations=None), DEFAULT, {}, 0.0)
    assert found is not None and found.allocations is not None
    policies = [manifest(policy) for policy in (found.policies or {}).values()]
    parts = (
        sorted(found.bgp.peers if found.bgp else (), key=repr),
        sorted((found.pools or {}).items()),
        policies,
        found.allocations,
    )
    shown = re.sub(r"Cilium\w+Policy|EgressPolicy|Egress(?=[/'])|EgressIP(?=[/'])", "policy", repr(parts))
    once = re.sub(r"(Advertisement\((?:[^()]|\(\))*\)), \1", r"\1,", shown)  # two that are equal are one
    return re.sub(r"Origin\([^)]*\)", "", once)


@pytest.mark.parametrize("name", FOREIGN)
def test_converted_decides_the_same(name: str) -> None:
    converted = convert({name: FOREIGN[name]})
    assert not converted.errors
    beside = [document for document in FOREIGN[name].split("\n---\n") if is_left(document)]
    assert decided("\n---\n".join([converted.text, *beside])) == decided(FOREIGN[name])


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_ours_already_is_not_repeated(name: str) -> None:
    assert convert({name: convert({name: FOREIGN[name]}).text}).text == ""


# --- BGP ConfigMaps


def config_map(text: str, dialect: str) -> str:
    namespace, name, key = {
        "cilium": ("kube-system", "bgp-config", "config.yaml"), "metallb": ("metallb-system", "config", "config"),
    }[dialect]  # fmt: skip
    inner = textwrap.indent(text, "    ")
    return (
        f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        f"data:\n  {key}: |\n{inner}\n"
    )


@pytest.mark.parametrize("dialect", ["cilium", "metallb"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_bgp_configmap_that_is_read_says_the_same_in_our_dialect(vector: dict[str, Any], dialect: str) -> None:
    text = config_map(vector["yaml"], dialect)
    (converted, loaded) = convert({"x": text}), read_file(text)
    if not loaded.entries:
        assert converted.errors and not converted.text
        return
    assert not converted.errors and not convert({"x": converted.text}).text
    assert decided(converted.text) == decided(text)


BFD = """\
bfd-profiles:
- {name: p, transmit-interval: 50, receive-interval: 60, passive-mode: true, echo-mode: true}
peers:
- {peer-address: 10.0.0.1, peer-asn: 64512, my-asn: 64513, bfd-profile: p, password: "0123"}
- {peer-address: 10.0.0.2, peer-asn: 64512, my-asn: 64513, hold-time: 9s, keepalive-time: 3s}
"""


def test_bfd_is_kept_and_what_is_not_done_is_told() -> None:
    text = config_map(BFD, "metallb")
    converted = convert({"x": text})
    assert decided(converted.text) == decided(text)
    (note,) = converted.notes
    assert "echo-mode is not done" in note and f"# {note}" in converted.text


# --- whatever a reader may make of an object

label = st.sampled_from(["app", "k8s.io/app", "x", "y", "true", "0123", "no"])
text = st.sampled_from(["", "1", "yes", "web", "0123", "1e3"])
requirement = st.one_of(
    st.builds(Requirement, label, st.sampled_from(["In", "NotIn"]), st.lists(text, min_size=1).map(tuple)),
    st.builds(Requirement, label, st.sampled_from(["Exists", "DoesNotExist"])),
)
selector = st.builds(
    LabelSelector,
    st.dictionaries(label, text).map(lambda found: tuple(found.items())),
    st.lists(requirement, max_size=2).map(tuple),
)
blocks = st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=30, unique=True).map(
    lambda numbers: tuple(IPv4Network((0xC6120000 + 16 * number, 28 + number % 2)) for number in numbers)
)
services = st.one_of(
    st.none(),
    st.lists(
        st.builds(ServiceSelection, selector, st.none() | selector) | st.builds(ServiceSelection, namespaces=selector),
        min_size=1, max_size=2,
    ).map(tuple),
)  # fmt: skip
pools = st.builds(
    AddressPool,
    st.sampled_from(["a", "no", "1.2"]),
    blocks,
    uses=st.sampled_from([frozenset({"loadbalancer"}), frozenset({"egress"}), frozenset({"egress", "loadbalancer"})]),
    auto_assign=st.booleans(),
    avoid_buggy_ips=st.booleans(),
    priority=st.integers(-10, 1_000_000),
    disabled=st.booleans(),
    services=services,
    gateways=st.none() | selector,
).flatmap(lambda pool: st.sampled_from([pool, replace(pool, egress_annotations="egress" in pool.uses)]))
pods = st.builds(PodSelection, selector, st.none() | selector, st.none() | selector) | st.builds(
    PodSelection, namespaces=selector
)
ports = st.sampled_from(
    [PortRange("ICMP"), PortRange("TCP"), PortRange("UDP", 53, 53), PortRange("SCTP", 1, 65535)]
)  # fmt: skip
addresses = st.lists(
    st.sampled_from([ip_address(f"203.0.113.{number}") for number in range(9)]), max_size=3, unique=True
)


@st.composite
def policies(draw: st.DrawFn) -> EgressPolicy:
    given_ = draw(addresses)
    return EgressPolicy(
        draw(st.sampled_from(["a", "yes"])),
        selections=draw(st.lists(pods, min_size=1, max_size=3).map(tuple)),
        destinations=draw(blocks),
        excluded=draw(st.just(()) | blocks),
        ports=draw(st.lists(ports, max_size=2).map(tuple)),
        egress_ip=given_[0] if given_ else None,
        further_ips=tuple(given_[1:]),
        pool="" if given_ else "p",
        count=1 if given_ else draw(st.integers(1, 16)),
        gateways=draw(st.none() | selector),
        gateway_mode=draw(st.sampled_from([None, "ecmp", "active-standby"])),
        priority=draw(st.integers(-9, 9)),
        created=draw(st.sampled_from(["", "2026-01-01T00:00:00Z"])),
        exit_local=draw(st.booleans()),
    )


WHOLE_PEER = Peer(
    ip_address("10.0.0.1"), 64512, 64513, port=1179, listen_port=1790, connect_retry=9,
    source_address=ip_address("10.0.0.9"),
    router_id=IPv4Address("192.0.2.1"), hold_time=9, keepalive_time=3, password="0123\\\"'#\t", ebgp_multihop=True,
    graceful_restart_time=0, families=("IPv6",), ttl_security=3, max_prefixes=1000, gets=("egress",),
    node_selectors=(LabelSelector((("rack", "a"),), (Requirement("x", "Exists"),)), LabelSelector()), name="tor",
    export=(
        ExportRule("reject", (ip_network("192.0.2.0/24"),), "not-in", 25, 30, ("services",)),
        ExportRule(communities=("64512:1",)),
        ExportRule("accept"),
    ),
)  # fmt: skip
BFD_PEERS = tuple(
    Peer(ip_address(f"10.0.1.{number}"), 1, 2, bfd=bfd)
    for number, bfd in enumerate((Bfd(10_500, 20_000, 5), Bfd(50_000, 60_000, 4, True), Bfd()), 1)
)
OVER_IPV6 = Peer(ip_address("fe80::1%eth1"), 1, 2, extended_next_hop=True, interface="eth1", source_interface="lo")
FOUND = (
    Peer(ip_address("::%eth1"), 1, 2, found="router", interface="eth1", name="a", extended_next_hop=True),
    Peer(ip_address("::%eth2"), 1, 2, found="router", interface="eth2", name="b"),
    Peer(ip_address("0.0.0.0"), 1, 2, found="default-gateway", name="c"),
    Peer(ip_address("::"), 1, 2, found="default-gateway", interface="eth1", name="d", extended_next_hop=True),
)
PASSIVE = (
    Peer(ip_address("10.0.3.1"), 1, 2, passive=True),
    Peer(ip_address("10.0.3.2"), 1, 2, passive=True, listen_port=1790, name="e"),
    Peer(ip_address("10.0.3.3"), 1, 2, listen_port=179),
)
OVERRIDDEN = Peer(
    ip_address("10.0.4.1"), 1, 2, overrides=(
        PeerOverride(
            "node-overrides of 10.0.4.1 at <store>", ("gw1", "gw2"), (LabelSelector((("rack", "b"),)),),
            ip_address("10.1.0.1"), 3, IPv4Address("192.0.2.1"), ip_address("10.0.0.9"), 1790, "x",
        ),
        PeerOverride("node-overrides of 10.0.4.1 at <store>", ("gw3",), password_file="gw3"),
        PeerOverride("node-overrides of 10.0.4.1 at <store>", ("gw4",), listen_port=0, password=""),
        PeerOverride("node-overrides of 10.0.4.1 at <store>", ("gw5",), password_file=""),
    ),
)  # fmt: skip
BY_FILE = Peer(ip_address("10.0.2.1"), 1, 2, password_file="tor", gets=())  # which has no password beside it
WHOLE_WAY = Advertisement(
    30, 120, 7, ("64512:1", "64512:1:2", "rt:1:2"), 0, 2, ("tor",), (LabelSelector((("rack", "a"),)),),
    (LabelSelector((("tier", "web"),)), LabelSelector()), "egp",
)  # fmt: skip
WHOLE_POOL = AddressPool(
    "Any name", (IPv4Network("192.0.2.0/28"),), uses=frozenset({"egress"}), auto_assign=False, avoid_buggy_ips=True,
    priority=-3, disabled=True, advertisements=(WHOLE_WAY, Advertisement()), egress_annotations=True,
)  # fmt: skip


WHOLE_POLICY = EgressPolicy(
    "x", selections=(PodSelection(LabelSelector()),), destinations=(IPv4Network("198.18.0.0/15"),),
    excluded=(IPv4Network("198.18.0.0/24"),), ports=(PortRange("TCP", 1, 2),), egress_ip=ip_address("203.0.113.1"),
    further_ips=(ip_address("203.0.113.2"),), gateways=LabelSelector(), gateway_mode="ecmp", priority=1,
    created="2026-01-01T00:00:00Z", exit_local=True,
)  # fmt: skip


BY_SERVICE = replace(WHOLE_POLICY, selections=(), egress_ip=None, further_ips=(), service="shop/web")


@given(st.one_of(pools, policies(), st.just(WHOLE_POLICY), st.just(BY_SERVICE)))
def test_a_reader_makes_the_same_of_a_manifest_again(found: AddressPool | EgressPolicy) -> None:
    loaded = read_file(text_of(manifest(found)))
    assert not loaded.mistakes and not loaded.refusals
    (entry,) = loaded.entries
    assert isinstance(entry.object, AddressPool | EgressPolicy)
    assert replace(entry.object, origin=found.origin) == found


def test_a_bgp_configuration_that_says_all_is_read_the_same_again() -> None:
    said = LegacyConfig(
        (WHOLE_PEER, *BFD_PEERS, BY_FILE, OVER_IPV6, *FOUND, *PASSIVE, OVERRIDDEN),
        (WHOLE_POOL, AddressPool("l2", (IPv4Network("198.51.100.0/24"),), "layer2", advertisements=())),
    )
    loaded = read_file(text_of(config_map_of("routerd", "x", "config", said)))
    assert not loaded.mistakes and not loaded.refusals
    (entry,) = loaded.entries
    assert isinstance(entry.object, LegacyConfig)
    assert tuple(placeless(each) for each in entry.object.peers) == said.peers
    assert tuple(replace(each, origin=Origin()) for each in entry.object.pools) == said.pools


def placeless(peer: Peer) -> Peer:
    unnamed = tuple(replace(each, name="node-overrides of 10.0.4.1 at <store>") for each in peer.overrides)
    return replace(peer, overrides=unnamed, origin=Origin())


ELSEWHERE = {
    Peer: {
        "origin", "bfd", "bfd_profile", "password_file", "extended_next_hop", "interface", "source_interface", "found",
        "passive", "overridden", "overrides", "closed",
    },
    Advertisement: set(),
    AddressPool: {"origin", "protocol", "services", "gateways", "labels", "ranges"},
    EgressPolicy: {"awaits", "origin", "kind", "refused", "pool", "count", "service"},
}  # fmt: skip


@pytest.mark.parametrize(
    "whole", [WHOLE_PEER, WHOLE_WAY, WHOLE_POOL, WHOLE_POLICY], ids=lambda whole: type(whole).__name__
)
def test_it_says_all_that_there_is(whole: Peer | Advertisement | AddressPool | EgressPolicy) -> None:
    """A new field of the model is tried here, or it would be lost without a word."""
    usual = {each.name for each in fields(whole) if getattr(whole, each.name) == each.default}
    assert usual == ELSEWHERE[type(whole)]


# --- Kube-OVN

WORKLOAD = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}, annotations: {ovn.kubernetes.io/snat: 203.0.113.1}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, labels: {app: db}, annotations: {ovn.kubernetes.io/eip: "2001:db8::1"}}
"""


def test_pods_with_an_egress_ip_by_annotation_are_selected_by_a_policy() -> None:
    converted = convert({"f.yaml": WORKLOAD})
    assert not converted.errors
    first, second = (entry.object for entry in read_file(converted.text).entries)
    assert isinstance(first, EgressPolicy) and isinstance(second, EgressPolicy)
    where = LabelSelector((("kubernetes.io/metadata.name", "shop"),))
    assert first.selections == (PodSelection(LabelSelector((("app", "web"),)), where),)
    assert [(each.name, str(each.egress_ip), str(*each.destinations)) for each in (first, second)] == [
        ("shop-web", "203.0.113.1", "0.0.0.0/0"), ("default-db", "2001:db8::1", "::/0"),
    ]  # fmt: skip
    assert converted.notes == (
        'f.yaml:10:78: metadata.annotations."ovn.kubernetes.io/eip": no connection from outside is brought to the pod: '
        "give it a Service",
        "f.yaml:10:30: metadata.labels: every pod of these labels in the namespace leaves with it",
    )


def test_pools_of_pods_are_told_as_configuration_and_those_of_services_printed() -> None:
    head = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: %s}\nspec: {cidr: %s%s}\n---\n"
    found = convert(
        {
            "a.yaml": head % ("pods", "10.244.0.0/16", ", natOutgoing: true")
            + head % ("vips", "192.0.2.0/24", ", allowedUses: [LoadBalancer], disableBGPExport: true"),
            "b.yaml": "apiVersion: crd.antrea.io/v1beta1\nkind: IPPool\nmetadata: {name: some}\n"
            "spec: {ipRanges: [{cidr: 10.0.0.0/24}]}\n",
            "c.yaml": "apiVersion: cilium.io/v2\nkind: CiliumPodIPPool\nmetadata: {name: db}\n"
            "spec: {podSelector: {}, ipv4: {maskSize: 26, cidrs: [{cidr: 10.9.0.0/16}]}}\n",
        }
    )
    assert found.errors == ()
    assert found.notes == (
        "a.yaml:1: pool pods is for pods, and read as it is; as configuration it is "
        "pod-cidrs: [{cidr: 10.244.0.0/16, node-prefix: 26}]",
        "b.yaml:1: pool some is for pods, and read as it is; nodes have no blocks of it",
        "c.yaml:1: pool db is for pods, and read as it is; as configuration it is "
        "pod-cidrs: [{cidr: 10.9.0.0/16, node-prefix: 26}], which selects no pods",
    )
    assert [(each["kind"], each["spec"]) for each in yaml.safe_load_all(found.text)] == [
        ("AddressPool", {"blocks": ["192.0.2.0/24"], "protocol": "layer2"})
    ]


def test_what_kube_ovn_does_with_a_pods_traffic_is_told() -> None:
    qos = 'ingress_rate: "3"; egress_rate: "1"; latency: "3"; loss: "20"'
    lines = "".join(f"    ovn.kubernetes.io/{each}\n" for each in qos.split("; "))
    head = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: q\n  annotations:\n    kubernetes.io/egress-bandwidth: 1M\n"
    assert convert({"f.yaml": head + lines}).notes == (
        'f.yaml:7:37: metadata.annotations."ovn.kubernetes.io/ingress_rate": traffic is not limited: the CNI plugin '
        "bandwidth does it, by kubernetes.io/ingress-bandwidth: 3M",
        'f.yaml:8:36: metadata.annotations."ovn.kubernetes.io/egress_rate": traffic is not limited: the CNI plugin '
        "bandwidth does it, by kubernetes.io/egress-bandwidth: 1M",
        'f.yaml:9:32: metadata.annotations."ovn.kubernetes.io/latency": packets are not delayed',
        'f.yaml:10:29: metadata.annotations."ovn.kubernetes.io/loss": packets are not lost',
    )
    pod = "kind: Pod\napiVersion: v1\nmetadata: {name: a, annotations: {ovn.kubernetes.io/bgp: '%s'}}\n"
    assert [note.rpartition(": ")[2] for note in convert({"f.yaml": pod % "local"}).notes] == [
        "bgp.announce.pod-cidrs announces the blocks of nodes"
    ]
    assert convert({"f.yaml": pod % "false"}).notes == ()


def test_of_an_eip_and_a_snat_the_pod_leaves_with_its_eip() -> None:
    head = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels: {app: web}\n  annotations:\n"
    both = head + "    ovn.kubernetes.io/snat: %s\n    ovn.kubernetes.io/eip: 203.0.113.1\n"
    for snat, is_told in (("203.0.113.2", True), ("203.0.113.1", False)):
        converted = convert({"f.yaml": both % snat})
        (policy,) = (entry.object for entry in read_file(converted.text).entries)
        assert isinstance(policy, EgressPolicy) and policy.egress_ips == (IPv4Address("203.0.113.1"),)
        told = [note for note in converted.notes if "leaves with its eip" in note]
        assert [note.split(": ")[0] for note in told] == ["f.yaml:7:29"] * is_told


def test_pods_that_no_label_tells_apart_are_told_and_no_error() -> None:
    converted = convert({"f.yaml": (DATA / "convert" / "egress-kube-ovn-pod.yaml").read_text()})
    assert not converted.text and not converted.errors
    place = 'f.yaml:6:28: metadata.annotations."ovn.kubernetes.io/eip"'
    assert converted.notes == (
        f"{place}: no connection from outside is brought to the pod: give it a Service",
        f"{place}: it is read as it is; an EgressPolicy selects pods by labels, and these have none",
    )


# --- what has no meaning


def test_keys_that_nobody_reads_are_told_with_their_place() -> None:
    text = CILIUM.replace("  allowFirstLastIPs", "  color: {red: 1}\n  allowFirstLastIPs").replace(
        "  egressGateways:", "  egressGateway: {nodeSelector: {}}\n  egressGateways:"
    )
    converted = convert({"f.yaml": text})
    assert converted.notes == (
        "f.yaml:5:10: spec.color: has no meaning here and is left out",
        "f.yaml:21:18: spec.egressGateway: has no meaning here and is left out",
    )
    for note in converted.notes:
        assert f"# {note}\n" in converted.text


def test_what_cannot_be_done_is_an_error_and_the_rest_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(CILIUM.replace("spec:\n  selectors:", "spec:\n  selectors: []\n  x:"))
    (tmp_path / "b.yaml").write_text(METALLB.replace("priority: 10", "priority: -1"))
    (tmp_path / "c.yaml").write_text("a: [")
    (tmp_path / "d.yaml").write_text("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: x}\n")
    assert main(["convert", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert re.findall(r"^  name: (.*)$", out, re.MULTILINE) == ["blue", "asked"]
    shown = err.replace(f"{tmp_path}/", "")
    assert [line.split(": ")[:2] for line in shown.splitlines()] == [
        ["error", "a.yaml:13:14"], ["error", "b.yaml:7:33"], ["error", "c.yaml:2:1"], ["error", "d.yaml:1"],
    ]  # fmt: skip


def test_two_objects_of_one_name_are_one_too_many() -> None:
    policy = EXAMPLES["egress-nat-policy-cilium-1.10.yaml"]
    other = EXAMPLES["egress-gateway-policy-cilium-v2.yaml"]
    converted = convert({"a.yaml": policy, "b.yaml": other})
    assert converted.text.count("kind: EgressPolicy") == 1
    assert converted.errors == (
        "b.yaml:1: CiliumEgressGatewayPolicy/egress-sample: it would be EgressPolicy/egress-sample, as is that of "
        "a.yaml:3: CiliumEgressNATPolicy/egress-sample: rename one",
    )


def test_an_aggregate_that_a_pool_of_ours_cannot_have_is_told_where_it_was_written() -> None:
    texts = {
        "a.yaml": "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\n"
        "metadata: {name: lan, namespace: metallb-system}\nspec: {addresses: [192.0.2.10-192.0.2.200]}\n",
        "b.yaml": "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\n"
        "metadata: {name: lan, namespace: metallb-system}\nspec:\n  ipAddressPools: [lan]\n  aggregationLength: 26\n",
    }
    found = convert(texts)
    assert (found.text, found.errors) == (
        "",
        (
            "b.yaml:6:22: spec.aggregationLength: /26 would announce more than 192.0.2.10/31 of pool lan (a.yaml:1), "
            "whose ranges are single blocks as ours: write 32, or the pool's spec.addresses as networks of /26",
        ),
    )
    for old, new in (("26", "32"), ("192.0.2.10-192.0.2.200", "192.0.2.64/26")):
        mended = convert({file: text.replace(old, new) for file, text in texts.items()})
        assert mended.errors == () and "kind: AddressPool" in mended.text


def test_what_cannot_be_written_as_ours_is_told_by_the_user_s_own_place() -> None:
    text = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\n"
    text += "metadata: {name: My_Pool, namespace: metallb-system}\n"
    (error,) = convert({"a.yaml": text + "spec: {addresses: [192.0.2.0/24]}\n"}).errors
    assert error == (
        "a.yaml:1: IPAddressPool/metallb-system/My_Pool: it cannot be written as ours: metadata.name of what "
        "would be printed: "
        "found \"My_Pool\", expected a name of lower case letters, digits, '-' and '.', at most 253 of them"
    )
