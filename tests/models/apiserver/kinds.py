"""What the server does to the objects of its own kinds: defaults, what may change where, how they go away."""

from __future__ import annotations

import base64
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from . import definitions, schema, validation
from .call import Call
from .errors import Invalid, Json, bad_request

if TYPE_CHECKING:
    from .api import Api

SERVICE_NETWORK = IPv4Network("10.96.0.0/16")
NODE_PORTS = range(30000, 32768)


class Addresses:
    """ClusterIPs and node ports, given in order and never twice."""

    def __init__(self) -> None:
        self._address = 0
        self._port = 0

    def cluster_ip(self) -> str:
        self._address += 1
        return str(SERVICE_NETWORK[self._address])

    def node_port(self) -> int:
        self._port += 1
        return NODE_PORTS[self._port % len(NODE_PORTS)]


def admitted(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    """The object with its defaults. Raises ApiError if it cannot be."""
    if old is None and call.resource.has_status and call.resource.plural != "nodes":
        value.pop("status", None)  # at birth only a node may bring one (the kubelet registers itself so)
    if call.resource.schema is not None:
        return _custom(call, call.resource.schema, value)
    change = _DEFAULTS.get(call.resource.plural)
    value = change(api, call, value, old) if change else value
    validation.check(call.resource, value)
    return value


def _custom(call: Call, rules: Json, value: Json) -> Json:
    """Pruned, defaulted, validated: in this order."""
    validation.check(call.resource, value)
    value, lost = schema.prune(value, rules, root=True)
    if lost and call.query.get("fieldValidation") == "Strict":
        unknown = ", ".join(f'unknown field "{path}"' for path in lost)
        raise bad_request(f"strict decoding error: {unknown}")
    value = schema.with_defaults(value, rules)
    faults = schema.validate(value, rules)
    if faults:
        raise Invalid(call.resource.group, call.resource.kind, value["metadata"].get("name", ""), faults)
    return value


def merged(call: Call, value: Json, old: Json) -> Json:
    """An update through the main endpoint leaves status alone; one through /status leaves the rest alone."""
    if call.subresource == "status":
        if call.resource.custom:
            kept = {name: item for name, item in old.items() if name != "status"}
            return {**kept, **({"status": value["status"]} if "status" in value else {})}
        return _with(value, old, "spec")
    return _with(value, old, "status") if call.resource.has_status else value


def _with(value: Json, old: Json, name: str) -> Json:
    value = {key: item for key, item in value.items() if key != name}
    return {**value, name: old[name]} if name in old else value


def grace_period(call: Call, old: Json, options: Json) -> int:
    """Seconds that a deleted object stays: only for a pod on a node that has not finished."""
    if call.resource.plural != "pods" or call.resource.group:
        return 0
    spec, phase = old.get("spec") or {}, (old.get("status") or {}).get("phase")
    if not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    wanted = options.get("gracePeriodSeconds")
    return int(spec.get("terminationGracePeriodSeconds", 30) if wanted is None else wanted)


def holds(call: Call, old: Json) -> bool:
    return call.resource.store_key == "/namespaces" and bool((old.get("spec") or {}).get("finalizers"))


def terminating(call: Call, value: Json) -> Json:
    if call.resource.store_key != "/namespaces":
        return value
    return {**value, "status": {**(value.get("status") or {}), "phase": "Terminating"}}


# --- defaults by kind

Default = Callable[["Api", Call, Json, "Json | None"], Json]


def _namespace(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    meta = value["metadata"]
    meta["labels"] = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": meta["name"]}
    if old is None:
        value["spec"] = {"finalizers": ["kubernetes"]}
        value["status"] = {"phase": "Active"}
    elif call.subresource != "finalize":
        value["spec"] = old.get("spec", {})
    return value


def _pod(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    if old is None:
        spec = {
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "securityContext": {}, "schedulerName": "default-scheduler",
            "enableServiceLinks": True, **(value.get("spec") or {}),
        }  # fmt: skip
        value["spec"], value["status"] = spec, {"phase": "Pending", "qosClass": "BestEffort"}
    return value


def _service(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    spec = value["spec"] = {"type": "ClusterIP", "sessionAffinity": "None", **(value.get("spec") or {})}
    before = (old or {}).get("spec") or {}
    value.setdefault("status", {"loadBalancer": {}})
    if spec["type"] == "ExternalName":
        return value
    _cluster_ip(api, call, value, spec, before)
    spec.setdefault("ipFamilies", before.get("ipFamilies", ["IPv4"]))
    spec.setdefault("ipFamilyPolicy", before.get("ipFamilyPolicy", "SingleStack"))
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
        balancer = value["status"].get("loadBalancer") or {}
        if ingress := balancer.get("ingress"):
            ingress = [{**one, **({"ipMode": one.get("ipMode", "VIP")} if one.get("ip") else {})} for one in ingress]
            value["status"] = {**value["status"], "loadBalancer": {**balancer, "ingress": ingress}}
    _service_ports(api, spec, before)
    return value


def _cluster_ip(api: Api, call: Call, value: Json, spec: Json, before: Json) -> None:
    taken = before.get("clusterIP")
    if taken and spec.get("clusterIP") not in (None, "", taken):
        texts = ["may not change once set"]
        field = "spec.clusterIPs[0]"
        faults = [(field, "FieldValueInvalid", f'Invalid value: ["{spec["clusterIP"]}"]: {text}') for text in texts]
        raise Invalid("", "Service", value["metadata"]["name"], faults)
    spec["clusterIP"] = spec.get("clusterIP") or taken or api.addresses.cluster_ip()
    spec.setdefault("clusterIPs", before.get("clusterIPs") or [spec["clusterIP"]])


def _service_ports(api: Api, spec: Json, before: Json) -> None:
    known = {(port.get("protocol"), port.get("port")): port.get("nodePort") for port in before.get("ports") or ()}
    needs = spec["type"] == "NodePort" or (spec["type"] == "LoadBalancer" and spec["allocateLoadBalancerNodePorts"])
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
        if needs and not port.get("nodePort"):
            port["nodePort"] = known.get((port["protocol"], port.get("port"))) or api.addresses.node_port()


def _node(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    """Times of its conditions are no pointers in Go, so one that is not set is null; empty texts are left out."""
    status = value.get("status") or {}
    if status.get("conditions"):
        times = {"lastHeartbeatTime": None, "lastTransitionTime": None}
        rows = [{**times, **each} for each in status["conditions"]]
        kept = [{key: item for key, item in each.items() if item != ""} for each in rows]
        value["status"] = {**status, "conditions": kept}
    return value


def _definition(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    value = definitions.with_defaults(value)
    if old is None:
        value["metadata"]["finalizers"] = [*value["metadata"].get("finalizers", []), definitions.CLEANUP]
    return value


def _secret(api: Api, call: Call, value: Json, old: Json | None) -> Json:
    plain = value.pop("stringData", None) or {}
    coded = {key: base64.b64encode(str(item).encode()).decode() for key, item in plain.items()}
    if coded:
        value["data"] = {**(value.get("data") or {}), **coded}
    value.setdefault("type", "Opaque")
    return value


_DEFAULTS: dict[str, Default] = {
    "namespaces": _namespace, "pods": _pod, "services": _service, "secrets": _secret,
    "nodes": _node, "customresourcedefinitions": _definition,
}  # fmt: skip
