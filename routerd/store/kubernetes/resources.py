"""Which resources of the API server routerd reads, and their paths. Pure: no request is made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from routerd.formats.kinds import BY_NAME, OURS, Kind, Role, read_by
from routerd.formats.published.shares import GATEWAYS, share_of

ALLOCATIONS = "routerd-allocations"  # ConfigMap: what the operator published, read by every agent
LEDGER = "routerd-ledger"  # ConfigMap: what the operator must remember, read by operators only
PART_LABEL = "routerd.io/part-of"  # on ConfigMaps with parts of one of these two documents: its name
READERS_LABEL = "routerd.io/readers"  # on parts that not everybody needs: who does (`published.shares`)
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
    part: str = ""  # in words, where it is not all that there is in the namespace

    @property
    def path(self) -> str:
        """Of the collection."""
        return collection_path(self.kind, self.namespace)

    @property
    def label(self) -> str:
        """How messages name it: "pods", "configmaps in kube-system", "egresspolicies.routerd.io"."""
        name = f"{self.kind.plural}.{self.kind.group}" if self.kind.group else self.kind.plural
        place = f"{name} in {self.namespace}" if self.namespace else name
        return f"{place} ({self.part})" if self.part else place


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
NODES = BY_NAME["", "Node"]
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396; with metadata.resourceVersion it is refused on a conflict
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"  # of kinds of Kubernetes alone
NODE_UID = "nodeUID"  # in the status of a RouterdNode: of which Node that name it speaks


def _config_maps(namespace: str, labels: str) -> tuple[Resource, ...]:
    """The legacy BGP ConfigMaps by name, and those of our namespace; nobody gets the ledger here."""
    legacy = [("kube-system", "bgp-config"), ("metallb-system", "config")]
    named = [Resource(CONFIG_MAPS, place, f"metadata.name={name}") for place, name in legacy if place != namespace]
    return (*named, Resource(CONFIG_MAPS, namespace, f"metadata.name!={LEDGER}", f"{PART_LABEL}!={LEDGER}{labels}"))


def for_agent(node: str, namespace: str) -> tuple[Resource, ...]:
    """An agent sees the pods of its own node only, and of parts of allocations those that its node needs."""
    watched = _watched("agent", namespace, {"Pod": f"spec.nodeName={node}"}, f",!{READERS_LABEL}")
    return (*watched, _parts_for(share_of(node), namespace, "its share"))


def for_gateway(namespace: str) -> Resource:
    """What an agent sees besides whose node is a gateway."""
    return _parts_for(GATEWAYS, namespace, "for gateways")


def _parts_for(readers: str, namespace: str, part: str) -> Resource:
    return Resource(CONFIG_MAPS, namespace, label_selector=f"{READERS_LABEL}={readers}", part=part)


def for_operator(namespace: str) -> tuple[Resource, ...]:
    """An operator needs no pods and endpoints."""
    return _watched("operator", namespace, {})


def _watched(role: Role, namespace: str, selectors: Mapping[str, str], labels: str = "") -> tuple[Resource, ...]:
    """`labels`: of ConfigMaps."""
    resources: list[Resource] = []
    for kind in read_by(role):
        if kind is CONFIG_MAPS:
            resources += _config_maps(namespace, labels)
        elif kind is LEASES:
            resources.append(Resource(kind, namespace, label_selector=HEARTBEAT_LABEL))
        else:
            resources.append(Resource(kind, field_selector=selectors.get(kind.name, "")))
    return tuple(resources)
