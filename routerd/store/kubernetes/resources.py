"""Which resources of the API server routerd reads, and their paths. Pure: no request is made here."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

ALLOCATIONS = "routerd-allocations"  # ConfigMap: what the operator published, read by every agent
LEDGER = "routerd-ledger"  # ConfigMap: what the operator must remember, read by operators only
LEASE = "routerd-operator"  # Lease: which operator is active


@dataclass(frozen=True, slots=True)
class Resource:
    """One list and watch. `field_selector` narrows it on the server's side."""

    group: str  # "" = core
    version: str
    plural: str
    kind: str
    namespace: str = ""  # "" = cluster-scoped, or all namespaces
    field_selector: str = ""
    custom: bool = False  # defined by a CRD, which may be absent

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Of the collection."""
        return collection_path(self.group, self.version, self.plural, self.namespace)

    @property
    def label(self) -> str:
        """How messages name it: "pods", "configmaps in kube-system", "egresspolicies.routerd.io"."""
        name = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{name} in {self.namespace}" if self.namespace else name

    def object_path(self, name: str, namespace: str = "", subresource: str = "") -> str:
        path = f"{collection_path(self.group, self.version, self.plural, namespace)}/{quote(name, safe='')}"
        return f"{path}/{subresource}" if subresource else path


def collection_path(group: str, version: str, plural: str, namespace: str = "") -> str:
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    return f"{root}/namespaces/{quote(namespace, safe='')}/{plural}" if namespace else f"{root}/{plural}"


NODES = Resource("", "v1", "nodes", "Node")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
POOLS = Resource("routerd.io", "v1alpha1", "addresspools", "AddressPool", custom=True)
POLICIES = Resource("routerd.io", "v1alpha1", "egresspolicies", "EgressPolicy", custom=True)
REPORTS = Resource("routerd.io", "v1alpha1", "routerdnodes", "RouterdNode", custom=True)
CILIUM_GATEWAY = Resource("cilium.io", "v2", "ciliumegressgatewaypolicies", "CiliumEgressGatewayPolicy", custom=True)
CILIUM_NAT = Resource("cilium.io", "v2alpha1", "ciliumegressnatpolicies", "CiliumEgressNATPolicy", custom=True)


def _config_maps(namespace: str) -> tuple[Resource, ...]:
    """The legacy BGP ConfigMaps by name, and those of our namespace; agents never get the ledger."""
    legacy = [("kube-system", "bgp-config"), ("metallb-system", "config")]
    ours = Resource("", "v1", "configmaps", "ConfigMap", namespace, f"metadata.name!={LEDGER}")
    named = [
        Resource("", "v1", "configmaps", "ConfigMap", place, f"metadata.name={name}")
        for place, name in legacy
        if place != namespace
    ]
    return (*named, ours)


def for_agent(node: str, namespace: str) -> tuple[Resource, ...]:
    """An agent sees the pods of its own node only."""
    pods = Resource("", "v1", "pods", "Pod", field_selector=f"spec.nodeName={node}")
    policies = (POOLS, POLICIES, CILIUM_GATEWAY, CILIUM_NAT)
    return (NODES, NAMESPACES, pods, SERVICES, ENDPOINT_SLICES, *_config_maps(namespace), *policies)


def for_operator(namespace: str) -> tuple[Resource, ...]:
    """An operator needs no pods, endpoints and namespaces."""
    return (NODES, SERVICES, *_config_maps(namespace), POOLS, POLICIES, CILIUM_GATEWAY, CILIUM_NAT, REPORTS)
