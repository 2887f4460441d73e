"""Which resources there are: the built-in table, and room for those that CRDs add. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
METADATA = frozenset({"metadata.name", "metadata.namespace"})


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource in one version. `storage` names what it shares with its other versions."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    fields: frozenset[str] = METADATA  # field selectors that are supported
    verbs: tuple[str, ...] = ALL_VERBS
    singular: str = ""
    categories: tuple[str, ...] = ()
    storage: str = ""
    create_on_update: bool = False  # PUT of what is not there creates it
    unconditional_update: bool = True  # PUT without resourceVersion is taken
    returns_deleted: bool = False  # DELETE answers with the object
    schema: dict[str, Any] | None = field(default=None, compare=False)  # of a custom resource
    columns: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    @property
    def custom(self) -> bool:
        return self.schema is not None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources

    @property
    def store_key(self) -> str:
        return self.storage or f"{self.group}/{self.plural}"


def _r(group: str, version: str, plural: str, kind: str, **more: Any) -> Resource:
    more["subresources"] = frozenset(more.get("subresources", "").split())
    more["short_names"] = tuple(more.get("short_names", "").split())
    more["fields"] = METADATA | frozenset(more.get("fields", "").split())
    return Resource(group, version, plural, kind, singular=kind.lower(), **more)


_EVENT_FIELDS = (
    "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid involvedObject.apiVersion "
    "involvedObject.resourceVersion involvedObject.fieldPath reason reportingComponent source type"
)
_ADMISSION = "admissionregistration.k8s.io"
_RBAC = "rbac.authorization.k8s.io"
BUILT_IN = (
    _r("", "v1", "namespaces", "Namespace", namespaced=False, short_names="ns", subresources="status finalize",
       fields="status.phase", verbs=tuple(verb for verb in ALL_VERBS if verb != "deletecollection")),
    _r("", "v1", "nodes", "Node", namespaced=False, short_names="no", subresources="status",
       fields="spec.unschedulable"),
    _r("", "v1", "pods", "Pod", short_names="po", subresources="status binding eviction", returns_deleted=True,
       fields="spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork "
              "status.phase status.podIP status.nominatedNodeName"),
    _r("", "v1", "services", "Service", short_names="svc", subresources="status", fields="spec.clusterIP spec.type",
       create_on_update=True, returns_deleted=True),
    _r("", "v1", "endpoints", "Endpoints", short_names="ep", create_on_update=True),
    _r("", "v1", "configmaps", "ConfigMap", short_names="cm"),
    _r("", "v1", "secrets", "Secret", fields="type"),
    _r("", "v1", "serviceaccounts", "ServiceAccount", short_names="sa", subresources="token", returns_deleted=True),
    _r("", "v1", "events", "Event", short_names="ev", fields=_EVENT_FIELDS, storage="/events", create_on_update=True),
    _r("events.k8s.io", "v1", "events", "Event", short_names="ev", storage="/events", create_on_update=True,
       fields="regarding.kind regarding.namespace regarding.name regarding.uid reason reportingController type"),
    _r("apps", "v1", "daemonsets", "DaemonSet", short_names="ds", subresources="status"),
    _r("apps", "v1", "deployments", "Deployment", short_names="deploy", subresources="status"),
    _r("apps", "v1", "replicasets", "ReplicaSet", short_names="rs", subresources="status", fields="status.replicas"),
    _r("apps", "v1", "statefulsets", "StatefulSet", short_names="sts", subresources="status"),
    _r("coordination.k8s.io", "v1", "leases", "Lease", create_on_update=True, unconditional_update=False),
    _r("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    _r("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short_names="netpol"),
    _r("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short_names="pdb", subresources="status"),
    _r("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False, short_names="pc"),
    _r(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False, create_on_update=True),
    _r(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False, create_on_update=True),
    _r(_RBAC, "v1", "roles", "Role", create_on_update=True),
    _r(_RBAC, "v1", "rolebindings", "RoleBinding", create_on_update=True),
    _r(_ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", namespaced=False,
       subresources="status"),
    _r(_ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", namespaced=False),
    _r("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False,
       short_names="crd crds", subresources="status", unconditional_update=False),
    _r("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False,
       verbs=("create",)),
)  # fmt: skip


class Catalogue:
    """Every resource served now, by group, version and plural."""

    def __init__(self, resources: Iterable[Resource] = BUILT_IN) -> None:
        self._by_path = {(item.group, item.version, item.plural): item for item in resources}
        self.undiscovered: set[tuple[str, str]] = set()  # group and plural of what is served but not shown yet

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_path.values())

    def discovered(self) -> Iterator[Resource]:
        return (item for item in self if (item.group, item.plural) not in self.undiscovered)

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        return next((item for item in self if item.api_version == api_version and item.kind == kind), None)

    def replace_custom(self, group: str, plural: str, resources: Iterable[Resource]) -> None:
        """Serve `resources` in place of what `plural`.`group` served before."""
        for key in [key for key in self._by_path if key[0] == group and key[2] == plural]:
            del self._by_path[key]
        for item in resources:
            self._by_path[(item.group, item.version, item.plural)] = item

    def groups(self) -> dict[str, list[str]]:
        """The versions of each named group that discovery shows, in the order they were added."""
        found: dict[str, list[str]] = {}
        for item in self.discovered():
            versions = found.setdefault(item.group, []) if item.group else []
            if item.version not in versions:
                versions.append(item.version)
        return found
