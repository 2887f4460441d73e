"""Kubernetes' own kinds, as the API server gives them: unknown fields are ignored. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from routerd.formats.document import MOST_ADDRESSES, UNLIMITED, Section, Value
from routerd.formats.meta import read_meta
from routerd.formats.wishes import read_egress, read_wishes
from routerd.model import (
    NAMESPACE_NAME_LABEL,
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointSlice,
    IPAddress,
    IPNetwork,
    Namespace,
    Node,
    Origin,
    Pod,
    Refusal,
    Service,
    ServicePort,
)

SHUTDOWN = "node is shutting down"  # kubelet, pkg/kubelet/nodeshutdown
DOWN_TAINTS = {"node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"}
DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"

ServiceType = Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]
Family = Literal["IPv4", "IPv6"]


def read_node(value: Value) -> Node:
    meta = read_meta(value)
    section = value.section
    spec, status = section.section("spec"), section.section("status")
    conditions = {kind: condition.string("status") for kind, condition in _conditions(status).items()}
    return Node(
        name=meta.name,
        labels=meta.labels,
        annotations=meta.annotations,
        addresses=_node_addresses(status),
        pod_cidrs=_pod_cidrs(spec),
        ready=conditions.get("Ready", "True") == "True",
        network_unavailable=conditions.get("NetworkUnavailable") == "True",
        unschedulable=spec.boolean("unschedulable", False) if spec else False,
        leaving=_leaving(spec, status),
        taints=tuple(sorted(f"{key}={value}:{effect}" for key, value, effect in _taints(spec))),
        fenced=bool(_taint_keys(spec) & DOWN_TAINTS),
        most_pods=_most_pods(status),
        provider_id=spec.string("providerID") if spec else "",
        origin=meta.origin,
    )


def _most_pods(status: Section | None) -> int:
    """A quantity, which of pods is a number."""
    allocatable = status.section("allocatable") if status else None
    pods = allocatable.get("pods") if allocatable else None
    return int(pods.text) if pods is not None and pods.text.isdecimal() and len(pods.text) < 7 else 0


def _conditions(status: Section | None) -> dict[str, Section]:
    """By type."""
    sections = [item.section for item in status.items("conditions")] if status else []
    return {section.string("type"): section for section in sections}


def _taints(spec: Section | None) -> set[tuple[str, str, str]]:
    """Key, value and effect."""
    found = [item.section for item in spec.items("taints")] if spec else []
    return {(each.string("key"), each.string("value"), each.string("effect")) for each in found}


def _taint_keys(spec: Section | None) -> set[str]:
    return {key for key, _, _ in _taints(spec)}


def _leaving(spec: Section | None, status: Section | None) -> Literal["", "down", "to-be-deleted"]:
    """A kubelet that sees systemd's shutdown has its node unready at once, and says why in words alone (1.36)."""
    taints = _taint_keys(spec)
    ready = _conditions(status).get("Ready")
    is_shutting_down = ready is not None and ready.string("status") != "True" and SHUTDOWN in ready.string("message")
    if is_shutting_down or taints & DOWN_TAINTS:
        return "down"
    return "to-be-deleted" if DELETION_TAINT in taints else ""


def _node_addresses(status: Section | None) -> tuple[IPAddress, ...]:
    """Internal addresses first, then external ones; host names are left out."""
    sections = [item.section for item in status.items("addresses", MOST_ADDRESSES)] if status else []
    found = [
        section.require("address").address()
        for kind in ("InternalIP", "ExternalIP")
        for section in sections
        if section.string("type") == kind
    ]
    return tuple(dict.fromkeys(found))


def _pod_cidrs(spec: Section | None) -> tuple[IPNetwork, ...]:
    if spec is None:
        return ()
    single = spec.get("podCIDR")
    values = spec.items("podCIDRs", MOST_ADDRESSES) or ([single] if single else [])
    return tuple(item.network(host_bits=True) for item in values)


def read_namespace(value: Value) -> Namespace:
    meta = read_meta(value)
    labels = {**meta.labels, NAMESPACE_NAME_LABEL: meta.name}
    return Namespace(meta.name, labels, meta.annotations, meta.origin)


def read_pod(value: Value) -> Pod:
    meta = read_meta(value)
    section = value.section
    spec, status = section.section("spec"), section.section("status")
    return Pod(
        namespace=meta.namespace_or_default,
        name=meta.name,
        node=spec.string("nodeName") if spec else "",
        addresses=_pod_addresses(status),
        labels=meta.labels,
        annotations=meta.annotations,
        host_network=spec.boolean("hostNetwork", False) if spec else False,
        finished=status.string("phase") in ("Succeeded", "Failed") if status else False,
        uid=meta.uid,
        origin=meta.origin,
    )


def _pod_addresses(status: Section | None) -> tuple[IPAddress, ...]:
    if status is None:
        return ()
    single = status.get("podIP")
    values = [item.section.require("ip") for item in status.items("podIPs", MOST_ADDRESSES)] or (
        [single] if single else []
    )
    return tuple(item.address() for item in values if item.text)


def read_service(value: Value) -> tuple[Service, tuple[Refusal, ...]]:
    """With what of its annotations is not done, or wrong."""
    meta = read_meta(value)
    section = value.section
    spec = section.section("spec") or Section(value)
    wishes = read_wishes(value, spec, meta)
    egress, refused = read_egress(value, meta)
    kind = spec.get("type")
    local = spec.string("externalTrafficPolicy") == "Local"
    policy = spec.get("ipFamilyPolicy")
    service = Service(
        namespace=meta.namespace_or_default,
        name=meta.name,
        type=cast(ServiceType, kind.choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
        if kind
        else "ClusterIP",
        cluster_ips=_cluster_ips(spec),
        external_ips=tuple(item.address() for item in spec.items("externalIPs", MOST_ADDRESSES)),
        requested_ips=wishes.addresses,
        requested_pool=wishes.pool,
        unread_wishes=wishes.unread,
        status_ips=_status_ips(section.section("status")),
        ports=tuple(_service_port(item) for item in spec.items("ports")),
        selector=spec.texts("selector"),
        external_traffic_policy="Local" if local else "Cluster",
        internal_traffic_policy="Local" if spec.string("internalTrafficPolicy") == "Local" else "Cluster",
        load_balancer_class=spec.string("loadBalancerClass"),
        ip_families=tuple(cast(Family, item.choice("IPv4", "IPv6")) for item in spec.items("ipFamilies")),
        ip_family_policy=cast(
            Literal["SingleStack", "PreferDualStack", "RequireDualStack"],
            policy.choice("SingleStack", "PreferDualStack", "RequireDualStack") if policy else "SingleStack",
        ),
        sharing_key=wishes.sharing_key,
        sharing_namespaces=wishes.sharing_namespaces,
        labels=meta.labels,
        annotations=meta.annotations,
        created=meta.created,
        origin=meta.origin,
        egress=egress,
    )
    if service.type != "LoadBalancer" or not service.is_left_to_us:  # what another load balancer does is its own
        return replace(service, egress=None), wishes.refusals
    return service, (*wishes.refusals, *refused)


def _cluster_ips(spec: Section) -> tuple[IPAddress, ...]:
    single = spec.get("clusterIP")
    values = spec.items("clusterIPs", MOST_ADDRESSES) or ([single] if single else [])
    return tuple(item.address() for item in values if item.text not in ("", "None"))


def _status_ips(status: Section | None) -> tuple[IPAddress, ...]:
    """Entries with a host name only are left out."""
    balancer = status.section("loadBalancer") if status else None
    entries = [item.section.get("ip") for item in balancer.items("ingress", MOST_ADDRESSES)] if balancer else []
    return tuple(entry.address() for entry in entries if entry is not None and entry.text)


def _service_port(item: Value) -> ServicePort:
    section = item.section
    node_port = section.get("nodePort")
    return ServicePort(
        _protocol(section),
        section.require("port").integer(1, 65535),
        section.string("name"),
        node_port.integer(0, 65535) if node_port else 0,
    )


def _endpoint_port(item: Value) -> ServicePort:
    section = item.section
    port = section.get("port")
    return ServicePort(_protocol(section), port.integer(0, 65535) if port else 0, section.string("name"))


def _protocol(section: Section) -> Literal["TCP", "UDP", "SCTP"]:
    protocol = section.get("protocol")
    return cast(Literal["TCP", "UDP", "SCTP"], protocol.choice("TCP", "UDP", "SCTP") if protocol else "TCP")


def read_endpoint_slice(value: Value) -> EndpointSlice:
    meta = read_meta(value)
    section = value.section
    has_names = section.string("addressType") == "FQDN"
    items = [] if has_names else section.items("endpoints")
    return EndpointSlice(
        namespace=meta.namespace_or_default,
        name=meta.name,
        service=meta.labels.get(SERVICE_NAME_LABEL, ""),
        endpoints=tuple(_endpoint(item.section) for item in items),
        origin=meta.origin,
        ports=tuple(map(_endpoint_port, section.items("ports"))),
    )


def _endpoint(section: Section) -> Endpoint:
    conditions = section.section("conditions") or Section.empty(section.value)
    ready = conditions.boolean("ready", True)
    serving = conditions.boolean("serving", ready)
    return Endpoint(
        addresses=tuple(item.address() for item in section.items("addresses", MOST_ADDRESSES)),
        node=section.string("nodeName"),
        ready=ready,
        draining=not ready and serving and conditions.boolean("terminating", False),
    )


def expand_lists(value: Value) -> list[Value]:
    """The objects of a document: those of a `List` (or PodList …), else the document itself."""
    section = value.section
    kind = section.get("kind")
    if kind is None:
        raise value.error('the key "kind" is missing: not an object of Kubernetes or routerd')
    is_list = kind.string() == "List" or (kind.text.endswith("List") and "items" in section.entries)
    if not is_list:
        return [value]
    return [_typed(item, kind.text.removesuffix("List"), section) for item in section.items("items", UNLIMITED)]


def _typed(item: Value, kind: str, around: Section) -> Value:
    """Items of a PodList need not repeat kind and apiVersion."""
    if "kind" in item.section.entries or not kind:
        return item
    item.section.entries["kind"] = around.entries["kind"].renamed(kind)
    if (version := around.get("apiVersion")) is not None:
        item.section.entries.setdefault("apiVersion", version)
    return item


# --- devices of ResourceClaims that are network interfaces: resource.k8s.io/v1, `status.devices[].networkData`
# (dynamic resource allocation, Kubernetes 1.33)


@dataclass(frozen=True, slots=True)
class ClaimedDevices:
    """Network interfaces that a ResourceClaim's devices are, and for which pods it is reserved."""

    namespace: str
    name: str
    pods: tuple[str, ...]  # names, in its namespace
    interfaces: tuple[str, ...]  # in the pods
    origin: Origin

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


def read_resource_claim(value: Value) -> ClaimedDevices:
    meta = read_meta(value)
    status = value.section.section("status")
    users = [item.section for item in status.items("reservedFor")] if status else []
    devices = [item.section.section("networkData") for item in status.items("devices")] if status else []
    return ClaimedDevices(
        meta.namespace_or_default,
        meta.name,
        tuple(user.string("name") for user in users if user.string("resource") == "pods"),
        tuple(device.string("interfaceName") for device in devices if device and device.string("interfaceName")),
        meta.origin,
    )
