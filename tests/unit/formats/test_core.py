"""Kubernetes' own kinds as the API server gives them."""

from ipaddress import ip_address, ip_network

import pytest

from routerd.errors import InputError
from routerd.model import Endpoint, EndpointSlice, Namespace, Node, Origin, Pod, Service, ServicePort
from tests.models.manifests import read_text

ORIGIN = Origin("f.yaml", 1)


def one(text: str) -> object:
    (entry,) = read_text(text, "f.yaml").entries
    return entry.object


def test_node() -> None:
    text = """\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {rack: a, node-role.kubernetes.io/control-plane: }, annotations: {x: "1"}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, "fd00:1::/64"], unschedulable: true}
status:
  addresses:
  - {type: ExternalIP, address: 192.0.2.1}
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: 10.0.0.1}
  - {type: InternalIP, address: "fd00::1"}
  conditions: [{type: Ready, status: Unknown}, {type: NetworkUnavailable, status: "True"}]
  nodeInfo: {anything: else}
  allocatable: {cpu: 3920m, pods: "58"}
"""
    assert one(text) == Node(
        "n1",
        {"rack": "a", "node-role.kubernetes.io/control-plane": ""},
        {"x": "1"},
        tuple(map(ip_address, ("10.0.0.1", "fd00::1", "192.0.2.1"))),
        (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")),
        ready=False,
        network_unavailable=True,
        unschedulable=True,
        most_pods=58,
        origin=ORIGIN,
    )


SHUTTING_DOWN = "{type: Ready, status: 'False', reason: KubeletNotReady, message: '[x, node is shutting down]'}"


@pytest.mark.parametrize(
    ("taint", "condition", "leaving"),
    [
        ("node-role.kubernetes.io/control-plane", "{type: Ready, status: 'True'}", ""),
        ("node.kubernetes.io/unreachable", "{type: Ready, status: Unknown, message: Kubelet stopped}", ""),
        ("node.kubernetes.io/not-ready", SHUTTING_DOWN, "down"),
        ("node.kubernetes.io/out-of-service", "{type: Ready, status: Unknown}", "down"),
        ("node.cloudprovider.kubernetes.io/shutdown", "{type: Ready, status: Unknown}", "down"),
        ("ToBeDeletedByClusterAutoscaler", "{type: Ready, status: 'True'}", "to-be-deleted"),
    ],
)
def test_a_node_that_leaves(taint: str, condition: str, leaving: str) -> None:
    text = f"""\
apiVersion: v1
kind: Node
metadata: {{name: n}}
spec: {{taints: [{{key: {taint}, effect: NoExecute}}]}}
status: {{conditions: [{condition}]}}
"""
    found = one(text)
    assert isinstance(found, Node)
    assert (found.leaving, found.taints) == (leaving, (f"{taint}=:NoExecute",))


def test_bare_node_and_namespace() -> None:
    assert one("apiVersion: v1\nkind: Node\nmetadata: {name: n}\n") == Node("n", origin=ORIGIN)
    expected = Namespace("n", {"a": "b", "kubernetes.io/metadata.name": "n"}, origin=ORIGIN)
    assert one("apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {a: b}}\n") == expected


def test_pod() -> None:
    text = """\
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {app: web}, uid: 1-2}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, image: i}]}
status: {phase: Succeeded, podIP: 10.1.0.5, podIPs: [{ip: 10.1.0.5}, {ip: "fd00::5"}]}
"""
    addresses = (ip_address("10.1.0.5"), ip_address("fd00::5"))
    expected = Pod("shop", "p", "n1", addresses, {"app": "web"}, {}, True, True, "1-2", ORIGIN)
    assert one(text) == expected
    assert one("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: 10.1.0.5}\n") == Pod(
        "default", "p", "", (ip_address("10.1.0.5"),), origin=ORIGIN
    )


def test_service() -> None:
    text = """\
apiVersion: v1
kind: Service
metadata:
  name: web
  creationTimestamp: "2024-01-01T00:00:00Z"
  annotations: {metallb.universe.tf/address-pool: public, metallb.universe.tf/allow-shared-ip: key}
spec:
  type: LoadBalancer
  clusterIP: 10.2.0.1
  clusterIPs: [10.2.0.1, None]
  externalIPs: [192.0.2.50]
  loadBalancerIP: 192.0.2.9
  ports: [{port: 80, name: http, nodePort: 30080}, {port: 53, protocol: UDP}]
  selector: {app: web}
  externalTrafficPolicy: Local
  loadBalancerClass: routerd.io/bgp
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
status: {loadBalancer: {ingress: [{ip: 192.0.2.9}, {hostname: x}]}}
"""
    service = one(text)
    assert isinstance(service, Service)
    assert service == Service(
        "default", "web", "LoadBalancer",
        cluster_ips=(ip_address("10.2.0.1"),),
        external_ips=(ip_address("192.0.2.50"),),
        requested_ips=(ip_address("192.0.2.9"),),
        requested_pool="public",
        status_ips=(ip_address("192.0.2.9"),),
        ports=(ServicePort("TCP", 80, "http", 30080), ServicePort("UDP", 53)),
        selector={"app": "web"},
        external_traffic_policy="Local",
        load_balancer_class="routerd.io/bgp",
        ip_families=("IPv4", "IPv6"),
        ip_family_policy="PreferDualStack",
        sharing_key="key",
        annotations=service.annotations,
        created="2024-01-01T00:00:00Z",
        origin=ORIGIN,
    )  # fmt: skip


@pytest.mark.parametrize(
    "annotation",
    ["metallb.universe.tf/loadBalancerIPs", "metallb.io/loadBalancerIPs", "lbipam.cilium.io/ips"],
)
def test_annotations_ask_for_addresses_before_the_old_field(annotation: str) -> None:
    head = "apiVersion: v1\nkind: Service\nmetadata: "
    text = head + "{name: s, annotations: {%s: '%s'}}\nspec: {loadBalancerIP: 192.0.2.9}\n"
    service = one(text % (annotation, "192.0.2.1, 2001:db8::1"))
    assert isinstance(service, Service)
    assert service.requested_ips == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    (told,) = read_text(text % (annotation, "192.0.2.1,x"), "f.yaml").refusals
    assert told.message.startswith(
        f'f.yaml:3:{37 + len(annotation)}: metadata.annotations."{annotation}": '
        'found "x", expected IP addresses with commas between them'
    )


def test_endpoint_slice() -> None:
    text = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.5], nodeName: n1, conditions: {ready: false}}
- {addresses: [10.1.0.6], conditions: {ready: }}
- {addresses: [10.1.0.7]}
ports: [{name: http, port: 8080}, {port: , protocol: UDP}]
"""
    ready = [Endpoint((ip_address(f"10.1.0.{n}"),)) for n in (6, 7)]
    down = Endpoint((ip_address("10.1.0.5"),), "n1", ready=False)
    ports = (ServicePort("TCP", 8080, "http"), ServicePort("UDP", 0))
    assert one(text) == EndpointSlice("shop", "web-1", "web", (down, *ready), ORIGIN, ports)


@pytest.mark.parametrize(
    ("conditions", "ready", "draining"),
    [
        ("", True, False),
        ("ready: true, serving: true, terminating: false", True, False),
        ("ready: false, serving: true, terminating: true", False, True),
        ("ready: false, serving: true, terminating: false", False, False),
        ("ready: false, serving: false, terminating: true", False, False),
        ("ready: false, terminating: true", False, False),  # serving is what ready is, where it is not given
        ("ready: true, serving: false, terminating: true", True, False),  # publishNotReadyAddresses
    ],
)
def test_an_endpoint_that_serves_and_terminates_is_draining(conditions: str, ready: bool, draining: bool) -> None:
    text = (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: w}\naddressType: IPv4\n"
        f"endpoints: [{{addresses: [10.1.0.5], conditions: {{{conditions}}}}}]\n"
    )
    found = one(text)
    assert isinstance(found, EndpointSlice)
    assert (found.endpoints[0].ready, found.endpoints[0].draining) == (ready, draining)


@pytest.mark.parametrize(("kind", "inner"), [("List", "apiVersion: v1, kind: Pod, "), ("PodList", "")])
def test_lists(kind: str, inner: str) -> None:
    items = "".join(f"- {{{inner}metadata: {{name: {name}}}}}\n" for name in "ab")
    loaded = read_text(f"apiVersion: v1\nkind: {kind}\nitems:\n{items}", "f.yaml")
    assert [str(entry.ref) for entry in loaded.entries] == ["Pod/default/a", "Pod/default/b"]


def test_kinds_of_others_are_no_business_of_ours() -> None:
    text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: s}\nspec: {type: 7}\n"
    loaded = read_text(text, "f.yaml")
    assert (loaded.entries, loaded.refusals, loaded.ignored) == ((), (), ("f.yaml:1: Service/s",))


def test_the_configuration_file_beside_manifests_is_passed_over() -> None:
    loaded = read_text("apiVersion: routerd.io/v1alpha1\nkind: Config\n", "f.yaml")
    assert (loaded.entries, loaded.ignored) == ((), ("f.yaml:1: Config",))


def test_kinds_that_mean_something_are_refused_by_name() -> None:
    (refusal,) = read_text(
        "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: c}\n", "f.yaml"
    ).refusals
    assert (str(refusal.object), refusal.reason) == ("L2Advertisement/c", "KindNotSupported")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", 'f.yaml:1:1: the key "kind" is missing: not an object of Kubernetes or routerd'),
        ("- 1\n", "f.yaml:1:1: found a list, expected a mapping"),
        ("apiVersion: v1\nkind: Pod\n", 'f.yaml:1:1: the key "metadata" is missing'),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: x}\n",
         'f.yaml:4:17: status.podIP: found "x", expected an IP address'),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: []\n",
         "f.yaml:4:7: spec: found a list, expected a mapping"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: p}\nspec: {type: Load}\n",
         'f.yaml:4:14: spec.type: found "Load", expected ClusterIP, NodePort, LoadBalancer or ExternalName'),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_text(text, "f.yaml")
    assert str(caught.value) == message
