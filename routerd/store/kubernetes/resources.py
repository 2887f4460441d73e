"""Which resources of the API server routerd reads, and their paths. Pure: no request is made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from routerd.formats.kinds import BY_NAME, OURS, Kind, Role, read_by

ALLOCATIONS = "routerd-allocations"  # ConfigMap: what the operator published, read by every agent
LEDGER = "routerd-ledger"  # ConfigMap: what the operator must remember, read by operators only
PART_LABEL = "routerd.io/part-of"  # on ConfigMaps with parts of one of these two documents: its name
PART_KEY = "part"  # of their data
LEASE = "routerd-operator"  # Lease: which operator is active
HEARTBEAT_LABEL = "routerd.io/heartbeat"  # on Leases by which nodes say that they serve


@dataclass(frozen=True, slots=True)
class Resource:
    """One list and watch. Selectors narrow it on the server's side."""

    kind: Kind
    namespace: str = ""  # "" = cluster-scoped, or all namespaces
    field_selector: str = ""
    label_selector: str = ""

    @property
    def path(self) -> str:
        """Of the collection."""
        return collection_path(self.kind, self.namespace)

    @property
    def label(self) -> str:
        """How messages name it: "pods", "configmaps in kube-system", "egresspolicies.routerd.io"."""
        name = f"{self.kind.plural}.{self.kind.group}" if self.kind.group else self.kind.plural
        return f"{name} in {self.namespace}" if self.namespace else name


def object_path(kind: Kind, name: str, namespace: str = "", subresource: str = "") -> str:
    path = f"{collection_path(kind, namespace)}/{quote(name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


def collection_path(kind: Kind, namespace: str = "") -> str:
    """Of all namespaces without one."""
    root = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"
    place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{place}/{kind.plural}"


def heartbeat_lease(node: str) -> str:
    """The name of a node's Lease."""
    return f"node-{node}"


SERVICES = BY_NAME["", "Service"]
EVENTS = BY_NAME["", "Event"]
CONFIG_MAPS = BY_NAME["", "ConfigMap"]
LEASES = BY_NAME["coordination.k8s.io", "Lease"]
POOLS = BY_NAME[OURS, "AddressPool"]
POLICIES = BY_NAME[OURS, "EgressPolicy"]
REPORTS = BY_NAME[OURS, "RouterdNode"]


def _config_maps(namespace: str) -> tuple[Resource, ...]:
    """The legacy BGP ConfigMaps by name, and those of our namespace; agents never get the ledger."""
    legacy = [("kube-system", "bgp-config"), ("metallb-system", "config")]
    named = [Resource(CONFIG_MAPS, place, f"metadata.name={name}") for place, name in legacy if place != namespace]
    return (*named, Resource(CONFIG_MAPS, namespace, f"metadata.name!={LEDGER}", f"{PART_LABEL}!={LEDGER}"))


def for_agent(node: str, namespace: str) -> tuple[Resource, ...]:
    """An agent sees the pods of its own node only."""
    return _watched("agent", namespace, {"Pod": f"spec.nodeName={node}"})


def for_operator(namespace: str) -> tuple[Resource, ...]:
    """An operator needs no pods and endpoints."""
    return _watched("operator", namespace, {})


def _watched(role: Role, namespace: str, selectors: Mapping[str, str]) -> tuple[Resource, ...]:
    resources: list[Resource] = []
    for kind in read_by(role):
        if kind is CONFIG_MAPS:
            resources += _config_maps(namespace)
        elif kind is LEASES:
            resources.append(Resource(kind, namespace, label_selector=HEARTBEAT_LABEL))
        else:
            resources.append(Resource(kind, field_selector=selectors.get(kind.name, "")))
    return tuple(resources)
