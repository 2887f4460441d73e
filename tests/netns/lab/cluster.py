"""The lab's cluster as the API server would show it: nodes, namespaces, pods and endpoints, as manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from tests.netns.lab.hosts import NodeSpec, PodHost
from tests.netns.lab.lab import Lab
from tests.netns.lab.wiring import six

MANIFESTS = Path(__file__).parents[1] / "manifests"
Document = dict[str, object]


def node(spec: NodeSpec, *, ipv6: bool = False) -> Document:
    """A ready Node."""
    cidrs = [spec.pod_cidr, *([six(spec.pod_cidr)] if ipv6 else [])]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": spec.name, "labels": {"kubernetes.io/hostname": spec.name, **spec.labels}},
        "spec": {"podCIDR": spec.pod_cidr, "podCIDRs": cidrs},
        "status": {
            "addresses": [{"type": "InternalIP", "address": a} for a in _addresses(spec.address, ipv6)],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _addresses(address: str, ipv6: bool) -> list[str]:
    return [address, six(address)] if ipv6 else [address]


def namespace(name: str) -> Document:
    """A Namespace with the label that Kubernetes gives it."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    }


def pod(host: PodHost, *, ipv6: bool = False) -> Document:
    """A running Pod."""
    containers = [{"name": host.label, "image": host.label}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": host.label, "namespace": host.namespace, "labels": dict(host.labels)},
        "spec": {"nodeName": host.node.label, "containers": containers, "automountServiceAccountToken": False},
        "status": {
            "phase": "Running",
            "podIP": host.address,
            "podIPs": [{"ip": address} for address in _addresses(host.address, ipv6)],
        },
    }


def endpoint_slice(service: str, of: str, port: int, backends: Iterable[PodHost], protocol: str = "TCP") -> Document:
    """The EndpointSlice of a service in namespace `of`."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-1", "namespace": of, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": protocol}],
        "endpoints": [
            {"addresses": [host.address], "nodeName": host.node.label, "conditions": {"ready": True}}
            for host in backends
        ],
    }


def write(path: Path, documents: Sequence[Document]) -> None:
    """Writes manifests whole or not at all (rename), as an editor or a replicator does."""
    put(path, text(documents))


def text(documents: Sequence[Document]) -> str:
    """YAML without anchors."""
    return yaml.safe_dump_all(json.loads(json.dumps(documents)), sort_keys=False)


def put(path: Path, text: str) -> None:
    """Replaces a file at once."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


def documents(lab: Lab, services: Sequence[Document] = ()) -> list[Document]:
    """Nodes, namespaces and pods of the lab, and `services` (EndpointSlices)."""
    namespaces = sorted({"default", "kube-system", *(host.namespace for host in lab.pods.values())})
    return [
        *(node(host.spec, ipv6=lab.ipv6) for host in lab.nodes.values()),
        *(namespace(name) for name in namespaces),
        *(pod(host, ipv6=lab.ipv6) for host in lab.pods.values()),
        *services,
    ]


def write_cluster(lab: Lab, services: Sequence[Document] = ()) -> None:
    """The same, into the lab's manifests."""
    write(lab.manifests / "cluster.yaml", documents(lab, services))


def copy(lab: Lab, *names: str) -> None:
    """Copies files from `tests/netns/manifests` as they are."""
    for name in names:
        put(lab.manifests / name, (MANIFESTS / name).read_text())
