"""The table of kinds: its rows fit together, and what follows from it is what routerd does."""

from __future__ import annotations

import pytest

from routerd.formats.kinds import BY_NAME, KINDS, OURS, Kind, read_by
from routerd.model import PARTS, Refusal
from routerd.refs import Ref
from routerd.store.kubernetes.events import about
from routerd.store.kubernetes.objects import slim
from routerd.store.kubernetes.resources import collection_path, for_agent, for_operator
from tests.models.manifests import read_text

READ = [each for each in KINDS if each.read_by]
REFUSED = [each for each in KINDS if each.instead]


def named(kind: Kind) -> str:
    return kind.name


def test_a_kind_has_one_row() -> None:
    assert len(BY_NAME) == len(KINDS)


def test_what_is_read_is_told_apart_by_name() -> None:
    """Refusals and the stores' keys bear the name alone. Pools of pods have names of their own, whatever their make."""
    others = [each.name for each in READ if each.name != "IPPool"]
    assert len(set(others)) == len(others)
    assert all(each.parts == ("pools",) for each in READ if each.name == "IPPool")


@pytest.mark.parametrize("kind", READ, ids=named)
def test_what_is_read_can_be_asked_for_and_has_its_place_in_the_snapshot(kind: Kind) -> None:
    assert kind.plural and not kind.instead
    assert kind.parts and set(kind.parts) <= {*PARTS, "node_reports"}


def test_every_part_of_the_snapshot_rests_on_a_kind_that_the_agent_reads() -> None:
    assert {part for each in read_by("agent") for part in each.parts} == set(PARTS)


@pytest.mark.parametrize("kind", REFUSED, ids=named)
def test_what_is_named_and_not_taken_is_refused_with_what_to_do(kind: Kind) -> None:
    loaded = read_text(f"apiVersion: {kind.api_version}\nkind: {kind.name}\nmetadata: {{name: x}}\n", "f.yaml")
    message = f"f.yaml:1: {kind.name} ({kind.group}) is not supported: {kind.instead}"
    assert loaded.refusals == (Refusal(Ref(kind.name, name="x"), "KindNotSupported", message),)
    assert kind.reader is None and not kind.read_by


def test_what_the_roles_watch() -> None:
    common = ["configmaps in kube-system", "configmaps in metallb-system", "configmaps in routerd"]
    written = [
        "addresspools.routerd.io", "egresspolicies.routerd.io", "ciliumegressgatewaypolicies.cilium.io",
        "ciliumegressnatpolicies.cilium.io", "ipaddresspools.metallb.io", "bgppeers.metallb.io",
        "ciliumbgpclusterconfigs.cilium.io", "ciliumbgpnodeconfigoverrides.cilium.io",
        "ciliumbgppeeringpolicies.cilium.io",
        "ciliumbgppeerconfigs.cilium.io", "ciliumbgpadvertisements.cilium.io",
        "bfdprofiles.metallb.io", "bgpadvertisements.metallb.io", "communities.metallb.io",
        "ciliumloadbalancerippools.cilium.io", "egresses.crd.antrea.io", "externalippools.crd.antrea.io",
        "egressips.k8s.ovn.org", "egressservices.k8s.ovn.org",
        "ippools.crd.projectcalico.org", "ciliumpodippools.cilium.io", "ippools.crd.antrea.io", "ippools.kubeovn.io",
        "iptables-eips.kubeovn.io", "iptables-snat-rules.kubeovn.io", "ovn-eips.kubeovn.io",
        "ovn-snat-rules.kubeovn.io", "subnets.kubeovn.io", "vpc-egress-gateways.kubeovn.io",
        "vpc-nat-gateways.kubeovn.io",
    ]  # fmt: skip
    agent = [
        "configmaps in routerd (its share)",
        "nodes",
        "namespaces",
        "pods",
        "services",
        "endpointslices.discovery.k8s.io",
    ]
    assert sorted(each.label for each in for_agent("n", "routerd")) == sorted([*agent, *common, *written])
    operator = ["nodes", "namespaces", "services", "routerdnodes.routerd.io", "leases.coordination.k8s.io in routerd"]
    assert sorted(each.label for each in for_operator("routerd")) == sorted([*operator, *common, *written])


def test_selectors_narrow_pods_and_config_maps_alone() -> None:
    selectors = {each.label: each.field_selector for each in for_agent("n1", "kube-system") if each.field_selector}
    assert selectors == {
        "pods": "spec.nodeName=n1",
        "configmaps in kube-system": "metadata.name!=routerd-ledger",
        "configmaps in metallb-system": "metadata.name=config",
    }


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (("", "Node"), "/api/v1/nodes"),
        (("", "Service"), "/api/v1/namespaces/a/services"),
        ((OURS, "AddressPool"), "/apis/routerd.io/v1alpha1/addresspools"),
        (("discovery.k8s.io", "EndpointSlice"), "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices"),
    ],
)
def test_paths(key: tuple[str, str], path: str) -> None:
    kind = BY_NAME[key]
    assert collection_path(kind, "a" if kind.namespaced else "") == path


@pytest.mark.parametrize("kind", [each for each in READ if each.placed], ids=named)
def test_what_people_write_has_a_place_for_messages_and_is_no_kind_of_the_cluster(kind: Kind) -> None:
    assert kind.name == "ConfigMap" or kind.custom


def test_of_an_object_its_kept_fields_stay() -> None:
    raw = {
        "metadata": {"name": "p", "managedFields": [1]}, "spec": {"nodeName": "n", "containers": [1]},
        "status": {"phase": "Running", "conditions": [1]}, "other": 1,
    }  # fmt: skip
    assert slim(BY_NAME["", "Pod"], raw) == {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"},
        "status": {"phase": "Running"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("object", "found"),
    [
        ("svc/default/web", ("Service", "default", "web")),
        ("node/n1", ("Node", "", "n1")),
        ("EgressPolicy/web", ("EgressPolicy", "", "web")),
        ("ConfigMap/kube-system/bgp-config", ("ConfigMap", "kube-system", "bgp-config")),
        ("ConfigMap/bgp-config", None),
        ("Pod/default/a", ("Pod", "default", "a")),
        ("peer/10.0.0.1", None),
    ],
)
def test_the_object_of_an_event(object: str, found: tuple[str, str, str] | None) -> None:
    to = about(Refusal(Ref.parse(object), "", ""))
    assert (to and (to.kind.name, to.namespace, to.name)) == found
