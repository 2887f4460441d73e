"""What looks like ours and is not read is told, with the name that would be read; what is others' is left alone."""

from __future__ import annotations

import pytest

from routerd.formats.compose import value_of
from routerd.formats.objects import read_object
from tests.models.manifests import read_text

BGP = "peers:\n- {peer-address: 10.0.0.1, peer-asn: 64512, my-asn: 64512}\n"
POOLS = "address-pools:\n- {name: p, protocol: bgp, addresses: [192.0.2.0/24]}\n"
OURS = "apiVersion: routerd.io/v1alpha1\n"


def told(kind: str, version: str = "v1", namespace: str = "", **fields: object) -> list[str]:
    metadata = {"name": "x", **({"namespace": namespace} if namespace else {}), **fields.pop("metadata", {})}  # type: ignore[dict-item]
    value = value_of({"apiVersion": version, "kind": kind, "metadata": metadata, **fields})
    return [f"{one.object} {one.reason}: {one.message}" for one in read_object(value).refusals]


def config_map(namespace: str, name: str, key: str, text: str) -> list[str]:
    return told("ConfigMap", metadata={"namespace": namespace, "name": name}, data={key: text})


@pytest.mark.parametrize(
    ("namespace", "name", "key", "text", "meant"),
    [
        ("kube-system", "bgp-config", "config", BGP, 'did you mean "config.yaml"?'),
        ("kube-system", "bgp-config", "config.yml", POOLS, 'did you mean "config.yaml"?'),
        ("metallb-system", "config", "config.yaml", BGP, 'did you mean "config"?'),
        ("routerd", "anything", "bgp.yaml", OURS + BGP, 'did you mean "config.yaml"?'),
        ("metallb", "config", "config", BGP, 'the key "config" of metallb-system/config'),
        ("kube-system", "bgp_config", "config.yaml", BGP, 'the key "config.yaml" of a ConfigMap bgp-config'),
    ],
)
def test_a_bgp_configuration_that_is_not_read(namespace: str, name: str, key: str, text: str, meant: str) -> None:
    (line,) = config_map(namespace, name, key, text)
    assert line.startswith("bgp UnreadConfiguration: ")
    assert f'the key "{key}" of ConfigMap {namespace}/{name} looks like BGP configuration and is not read' in line
    assert meant in line


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [
        ("bgp-config", "config.yaml", BGP),
        ("own", "config", OURS + POOLS),
        ("settings", "routerd.yaml", OURS + "kind: Config\negress: {allowed-addresses: [192.0.2.0/24]}\n"),
        ("coredns", "Corefile", ".:53 { forward . /etc/resolv.conf }"),
        ("wireguard", "config", "peers:\n- {key: abc}\n"),
        ("empty", "config", ""),
    ],
)
def test_a_config_map_that_is_read_or_is_another_ones_is_not_told(name: str, key: str, text: str) -> None:
    assert config_map("default", name, key, text) == []


@pytest.mark.parametrize(
    ("version", "kind", "meant"),
    [
        ("v1", "service", '"v1", "Service"'),
        ("v1", "Pods", '"v1", "Pod"'),
        ("v1", "Configmap", '"v1", "ConfigMap"'),
        ("v1", "EndpointSlice", '"discovery.k8s.io/v1", "EndpointSlice"'),
        ("discovery.k8s.io/v1", "EndpointSlices", '"discovery.k8s.io/v1", "EndpointSlice"'),
        ("routerd/v1alpha1", "AddressPool", '"routerd.io/v1alpha1", "AddressPool"'),
        ("metallb.io/v1beta1", "IPAddresPool", '"metallb.io/v1beta1", "IPAddressPool"'),
    ],
)
def test_a_kind_that_is_nearly_one_that_is_read(version: str, kind: str, meant: str) -> None:
    (line,) = told(kind, version)
    assert line.startswith(f"{kind}/x UnknownKind: ")
    assert line.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("v1", "ServiceAccount"), ("v1", "Secret"), ("v1", "Endpoints"), ("v1", "PodTemplate"),
        ("v1", "ReplicationController"),        ("v1", "PersistentVolume"), ("apps/v1", "Deployment"),
        ("serving.knative.dev/v1", "Service"), ("x.io/v1", "Node"),
        ("cilium.io/v2", "CiliumNode"), ("cilium.io/v2", "CiliumNetworkPolicy"), ("cilium.io/v2", "CiliumEndpoint"),
        ("metallb.io/v1beta1", "ServiceL2Status"), ("x.io/v1", "Namespace"), ("networking.k8s.io/v1", "NetworkPolicy"),
    ],
)  # fmt: skip
def test_kinds_of_others_are_not_told(version: str, kind: str) -> None:
    assert told(kind, version) == []


GATEWAY, EXCLUDE = "routerd.io/egress-gateway", "node.kubernetes.io/exclude-from-external-load-balancers"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("routerd.io/egress-gatway", GATEWAY),
        ("routerd.io/gateway", GATEWAY),
        ("egress-gateway", GATEWAY),
        ("kubernetes.io/exclude-from-external-load-balancers", EXCLUDE),
        ("node.kubernetes.io/exclude-from-external-loadbalancers", EXCLUDE),
        ("node.kubernetes.io/exclude-from-external-load-balancer", EXCLUDE),
    ],
)
def test_a_label_of_a_node_that_is_nearly_one_that_counts(key: str, meant: str) -> None:
    (line,) = told("Node", metadata={"labels": {key: ""}})
    assert line.startswith("node/x UnknownLabel: ")
    assert line.endswith(f'labels: "{key}" is not read; did you mean "{meant}"?')


@pytest.mark.parametrize("key", [GATEWAY, EXCLUDE])
def test_a_label_that_was_made_an_annotation(key: str) -> None:
    assert told("Node", metadata={"labels": {key: ""}}) == []
    (line,) = told("Node", metadata={"annotations": {key: ""}})
    assert line.endswith(f'annotations: "{key}" is not read; did you mean the label "{key}"?')


def test_a_bare_label_with_a_value_is_a_user_s_own() -> None:
    assert told("Node", metadata={"labels": {"egress-gateway": "true"}}) == []
    assert len(told("Node", metadata={"labels": {"routerd.io/gateway": "true"}})) == 1


def test_ordinary_labels_of_a_node_are_not_told() -> None:
    labels = [
        "kubernetes.io/hostname", "kubernetes.io/os", "beta.kubernetes.io/arch",
        "node-role.kubernetes.io/control-plane",
        "topology.kubernetes.io/zone", "node.kubernetes.io/instance-type", "egress", "gateway", "rack",
    ]  # fmt: skip
    annotations = ["node.alpha.kubernetes.io/ttl", "volumes.kubernetes.io/controller-managed-attach-detach"]
    assert (
        told("Node", metadata={"labels": dict.fromkeys(labels, ""), "annotations": dict.fromkeys(annotations, "")})
        == []
    )


@pytest.mark.parametrize(
    "key", ["k8s.io/service-name", "service-name", "kubernetes.io/servicename", "kubernetes.io/service_name"]
)
def test_the_service_of_an_endpoint_slice_under_another_name(key: str) -> None:
    (line,) = told("EndpointSlice", "discovery.k8s.io/v1", metadata={"labels": {key: "web"}})
    assert line.startswith("EndpointSlice/default/x UnknownLabel: ")
    assert line.endswith(f'labels: "{key}" is not read; did you mean "kubernetes.io/service-name"?')


def test_an_endpoint_slice_that_names_its_service_or_none_is_not_told() -> None:
    for labels in ({"kubernetes.io/service-name": "web", "service-name": "web"}, {"app": "web"}):
        assert told("EndpointSlice", "discovery.k8s.io/v1", metadata={"labels": labels}) == []


def test_a_place_in_the_file_is_named() -> None:
    (refusal,) = read_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bgp-config}\ndata:\n  config: |\n"
        "    peers: [{peer-address: x}]\n",
        "f.yaml",
    ).refusals
    assert refusal.message.startswith("f.yaml:5: ")
