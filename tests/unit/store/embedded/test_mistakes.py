"""What is wrong with one object of a file costs that object, whatever its kind, from the start on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.formats.objects import Loaded, read_file
from routerd.model import PARTS, Peer, Snapshot
from routerd.store.embedded.manifests import GRACE, Manifests
from routerd.store.mistakes import spared
from tests.models.manifests import NOTHING, pool, reasons, store_of

BGP = """\
apiVersion: v1
kind: ConfigMap
metadata: {{name: bgp-config, namespace: kube-system}}
data:
  config.yaml: |
    peers: [{{peer-address: 10.0.0.1, peer-asn: {asn}, my-asn: 64512}}]
"""
# kind -> a good document and what makes it wrong
DOCUMENTS = {
    "Node": ("metadata: {name: x}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.1}]}", "10.0.0.1", "here"),
    "Pod": ("metadata: {name: x}\nstatus: {podIP: 10.1.0.1}", "10.1.0.1", "there"),
    "Service": ("metadata: {name: x}\nspec: {type: LoadBalancer}", "LoadBalancer", "Balancer"),
    "Namespace": ("metadata: {name: x, labels: {a: b}}", "{a: b}", "[a]"),
    "EndpointSlice": ("metadata: {name: x}\nendpoints: [{addresses: [10.1.0.1]}]", "10.1.0.1", "x"),
    "AddressPool": ("metadata: {name: x}\nspec: {blocks: [192.0.2.0/24]}", "blocks", "bloks"),
    "CiliumLoadBalancerIPPool": ("metadata: {name: x}\nspec: {blocks: [{cidr: 192.0.2.0/24}]}", "/24", "/240"),
    "ExternalIPPool": (
        "metadata: {name: x}\nspec: {ipRanges: [{cidr: 192.0.2.0/24}], nodeSelector: {}}",
        "/24",
        "/240",
    ),
    "IPAddressPool": ("metadata: {name: x}\nspec: {addresses: [192.0.2.0/24]}", "/24", "/240"),
    "IPPool": ("metadata: {name: x}\nspec: {cidr: 192.0.2.0/24}", "/24", "/240"),
    "CiliumPodIPPool": (
        "metadata: {name: x}\nspec: {ipv4: {cidrs: [{cidr: 192.0.2.0/24}], maskSize: 26}}",
        "/24",
        "/240",
    ),
}
VERSIONS = {
    "EndpointSlice": "discovery.k8s.io/v1",
    "AddressPool": "routerd.io/v1alpha1",
    "CiliumLoadBalancerIPPool": "cilium.io/v2",
    "ExternalIPPool": "crd.antrea.io/v1beta1",
    "IPAddressPool": "metallb.io/v1beta1",
    "IPPool": "projectcalico.org/v3",
    "CiliumPodIPPool": "cilium.io/v2",
}
PART_OF = {
    "Node": "nodes", "Pod": "pods", "Service": "services", "Namespace": "namespaces",
    "EndpointSlice": "endpoint_slices", "AddressPool": "pools", "IPAddressPool": "pools",
    "CiliumLoadBalancerIPPool": "pools", "ExternalIPPool": "pools", "IPPool": "pod_pools",
    "CiliumPodIPPool": "pod_pools",
}  # fmt: skip


def document(kind: str, *, wrong: bool = False) -> str:
    body, good, bad = DOCUMENTS[kind]
    return f"apiVersion: {VERSIONS.get(kind, 'v1')}\nkind: {kind}\n{body.replace(good, bad) if wrong else body}\n"


def names(snapshot: Snapshot, kind: str) -> set[str]:
    part = getattr(snapshot, PART_OF[kind])
    return {each.name for each in (part if isinstance(part, tuple) else part.values())}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_at_a_start_the_rest_of_the_file_goes_on(tmp_path: Path, kind: str) -> None:
    neighbour = pool("neighbour", "198.51.100.0/24")
    (tmp_path / "a.yaml").write_text(f"{document(kind, wrong=True)}---\n{neighbour}")
    snapshot = store_of(tmp_path).load()
    assert snapshot.is_synced
    assert set(snapshot.pools or {}) == {"neighbour"}
    assert "x" not in names(snapshot, kind)
    (refusal,) = snapshot.refusals
    assert (refusal.object.name, refusal.reason) == ("x", "InvalidObject")
    assert refusal.message.startswith(f"{tmp_path}/a.yaml:")
    assert refusal.message.endswith(" (nothing of it is in force)")


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_later_it_keeps_what_it_last_said_and_goes_when_it_is_deleted(tmp_path: Path, kind: str) -> None:
    path, neighbour = tmp_path / "a.yaml", pool("neighbour", "198.51.100.0/24")
    path.write_text(f"{neighbour}---\n{document(kind)}")
    store = store_of(tmp_path)
    store.load()
    path.write_text(f"{neighbour.replace('198.51.100', '203.0.113')}---\n{document(kind, wrong=True)}")
    snapshot = store.load()
    assert "x" in names(snapshot, kind)
    assert str((snapshot.pools or {})["neighbour"].blocks[0]) == "203.0.113.0/24"
    assert [refusal.message.endswith(" (what it last said stays in force)") for refusal in snapshot.refusals] == [True]
    path.write_text(neighbour)
    looked = _twice(tmp_path, [f"{neighbour}---\n{document(kind)}", neighbour])
    assert [str(entry.ref) for entry in looked.entries] == ["AddressPool/neighbour"]


def _twice(directory: Path, texts: list[str]) -> Loaded:
    """What the file says after each of these, believed."""
    manifests, path = Manifests(directory), directory / "a.yaml"
    for number, text in enumerate(texts):
        path.write_text(text)
        for moment in (0.0, 2 * GRACE):
            manifests.look(10.0 * number + moment, without=NOTHING, touched=frozenset({path}))
    (loaded,) = manifests.loaded()
    return loaded


def test_an_object_that_is_deleted_is_gone_though_its_neighbour_is_wrong(tmp_path: Path) -> None:
    good, other = document("Service"), document("Service").replace("name: x", "name: other")
    wrong = document("Service", wrong=True)
    loaded = _twice(tmp_path, [f"{good}---\n{other}", wrong])
    assert [str(entry.ref) for entry in loaded.entries] == ["Service/default/x"]


@pytest.mark.parametrize(
    ("wrong", "kept"),
    [
        (
            "apiVersion: v1\nkind: Service\nspec: {type: LoadBalancer}\n",
            ["Service/default/x"],
        ),  # which, it does not say
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: []\n", ["Service/default/x"]),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: y}\nspec: []\n", []),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: []\n", []),
        ("apiVersion: v1\nmetadata: {name: x}\n", ["Service/default/x"]),  # nor here of which kind
        ("apiVersion: v1\nmetadata: {name: y}\n", []),
        ("- x\n", ["AddressPool/neighbour", "Service/default/x"]),
    ],
)
def test_what_a_wrong_document_may_be_is_kept(tmp_path: Path, wrong: str, kept: list[str]) -> None:
    before = f"{pool('neighbour')}---\n{document('Service')}"
    loaded = _twice(tmp_path, [before, wrong])
    assert sorted(str(entry.ref) for entry in loaded.entries) == kept


def test_a_bgp_configuration_that_is_wrong_at_a_start_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{BGP.format(asn='x')}---\n{document('Service')}")
    store = store_of(tmp_path)
    snapshot = store.load()
    assert set(snapshot.missing()) == {PARTS["bgp"], PARTS["pools"], PARTS["allocations"]}
    assert names(snapshot, "Service") == {"x"}
    (refusal,) = snapshot.refusals
    assert (str(refusal.object), refusal.reason) == ("ConfigMap/kube-system/bgp-config", "ConfigRefused")
    assert refusal.message.endswith(" (nothing that depends on its kind is done until it is mended)")
    path.write_text(f"{BGP.format(asn='64512')}---\n{document('Service')}")
    assert [peer.remote_as for peer in _peers(store.load())] == [64512]
    path.write_text(f"{BGP.format(asn='x')}---\n{document('Service')}")
    snapshot = store.load()
    assert [peer.remote_as for peer in _peers(snapshot)] == [64512]
    assert reasons(snapshot) == ["ConfigMap/kube-system/bgp-config ConfigRefused"]


@pytest.mark.parametrize("kind", ["CiliumBGPClusterConfig", "CiliumBGPPeerConfig"])
def test_a_configuration_of_ciliums_that_is_wrong_at_a_start_ends_no_session(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: x}}\nspec: 5\n")
    snapshot = store_of(tmp_path).load()
    assert snapshot.bgp is None
    assert reasons(snapshot) == [f"{kind}/x InvalidObject"]


def _peers(snapshot: Snapshot) -> tuple[Peer, ...]:
    assert snapshot.bgp is not None
    return snapshot.bgp.peers


def test_a_document_of_no_kind_keeps_everything_unsynced_at_a_start(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"data: {{}}\n---\n{pool('a')}")
    snapshot = store_of(tmp_path).load()
    assert (snapshot.pools, reasons(snapshot)) == (None, ["file/a.yaml InvalidFile"])


TAB = "\tstatus: {}\n"


def test_a_document_that_is_no_yaml_costs_itself(tmp_path: Path) -> None:
    path, neighbour = tmp_path / "a.yaml", pool("neighbour", "198.51.100.0/24")
    text = f"{document('Service')}{TAB}---\n{neighbour}---\n{BGP.format(asn='x')}"
    path.write_text(text)
    store = store_of(tmp_path)
    snapshot = store.load()
    assert (snapshot.services, reasons(snapshot)[1:]) == ({}, ["file/a.yaml InvalidFile"])
    (refusal,) = (each for each in snapshot.refusals if each.reason == "InvalidFile")
    assert refusal.message.startswith(f"{path}:5:1: not YAML: ")
    assert refusal.message.endswith(" (nothing of it is in force)")
    (bgp,) = (each for each in snapshot.refusals if each.reason == "ConfigRefused")
    assert bgp.message.startswith(f"{path}:{text[: text.index('peers:')].count(chr(10)) + 1}:")
    path.write_text(f"{document('Service')}---\n{neighbour}")
    assert set(store.load().pools or {}) == {"neighbour"}
    path.write_text(f"{document('Service')}{TAB}---\n{neighbour.replace('198.51.100', '203.0.113')}")
    snapshot = store.load()
    assert names(snapshot, "Service") == {"x"}
    assert str((snapshot.pools or {})["neighbour"].blocks[0]) == "203.0.113.0/24"


@pytest.mark.parametrize("wrong", [f"metadata: {{name: p}}\n{TAB}", "spec: {}\n"], ids=["no YAML", "no name"])
def test_a_policy_of_which_nothing_is_known_at_a_start_is_not_taken_for_none(tmp_path: Path, wrong: str) -> None:
    """Its pods must not leave with their own address: nothing of egress is done until it is mended."""
    policy = f"apiVersion: routerd.io/v1alpha1\nkind: EgressPolicy\n{wrong}"
    (tmp_path / "a.yaml").write_text(f"{policy}---\n{pool('p')}")
    snapshot = store_of(tmp_path).load()
    assert (snapshot.policies, set(snapshot.pools or {})) == (None, {"p"})
    (refusal,) = snapshot.refusals
    assert refusal.message.endswith(" (nothing that depends on its kind is done until it is mended)")


def test_of_a_document_that_is_no_yaml_the_kind_alone_is_believed(tmp_path: Path) -> None:
    before = f"{pool('p')}---\n{document('Service')}---\n{document('Pod')}"
    loaded = _twice(tmp_path, [before, f"{document('Service').replace('name: x', 'name: y')}{TAB}---\n{pool('q')}"])
    assert sorted(str(entry.ref) for entry in loaded.entries) == ["AddressPool/q", "Service/default/x"]
    loaded = _twice(tmp_path, [before, f"kind: [\n---\n{pool('q')}"])
    assert sorted(str(entry.ref) for entry in loaded.entries) == [
        "AddressPool/p", "AddressPool/q", "Pod/default/x", "Service/default/x",
    ]  # fmt: skip


def test_a_marker_inside_a_text_is_none() -> None:
    config = BGP.format(asn="64512").replace("    peers", "    # a\n    ---\n    peers")
    loaded = read_file(f"{config}---\n{document('Service')}{TAB}", "f")
    assert [str(entry.ref) for entry in loaded.entries] == ["ConfigMap/kube-system/bgp-config"]


kinds = st.sampled_from(sorted(DOCUMENTS))
files = st.lists(st.tuples(kinds, st.booleans()), unique_by=lambda each: PART_OF[each[0]])


@given(files, files)
def test_objects_are_as_if_each_had_a_file_of_its_own(
    first: list[tuple[str, bool]], second: list[tuple[str, bool]]
) -> None:
    def text(objects: list[tuple[str, bool]]) -> str:
        return "---\n".join(document(kind, wrong=wrong) for kind, wrong in objects)

    def alone(kind: str) -> Loaded:
        states = [read_file(text([each for each in file if each[0] == kind]), "f") for file in (first, second)]
        return spared(states[0], states[1])

    together = spared(read_file(text(first), "f"), read_file(text(second), "f"))
    apart = [alone(kind) for kind in DOCUMENTS]
    assert {entry.ref for entry in together.entries} == {entry.ref for each in apart for entry in each.entries}
    expected = {kind for kind, wrong in second if not wrong or (kind, False) in first}
    assert {entry.ref.kind for entry in together.entries} == expected
