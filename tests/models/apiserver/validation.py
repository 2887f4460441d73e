"""What the server refuses in objects of its own kinds, as far as routerd writes or reads them. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

from .errors import Invalid, Json, bad_request
from .resources import Resource

Fault = tuple[str, str, str]  # field, reason, message
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DNS_LABEL, _SERVICE_NAME = re.compile(_LABEL), re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
MEBIBYTE = 2**20  # all values of a ConfigMap or Secret together
_EVENT_LONGEST = 1024  # bytes of a message in events.k8s.io


def check(resource: Resource, value: Json) -> None:
    """Raises ApiError 400 for what is no such object, 422 for what is a wrong one."""
    types = _TYPES.get(resource.plural)
    if types is not None and not resource.custom:
        types(value)
    faults = list(_metadata(resource, value["metadata"]))
    rules = _RULES.get(resource.plural) if not resource.custom else None
    if rules is not None:
        faults += rules(value)
    if faults:
        raise Invalid(resource.group, resource.kind, value["metadata"].get("name", ""), faults)


def _invalid(field: str, value: object, why: str) -> Fault:
    return field, "FieldValueInvalid", f'Invalid value: "{value}": {why}'


def _required(field: str, why: str = "") -> Fault:
    return field, "FieldValueRequired", f"Required value{': ' if why else ''}{why}"


def _metadata(resource: Resource, meta: Json) -> Iterator[Fault]:
    name = str(meta.get("name", ""))
    pattern, longest = _SUBDOMAIN, 253
    if resource.plural in ("namespaces", "services"):
        pattern, longest = (_DNS_LABEL, 63) if resource.plural == "namespaces" else (_SERVICE_NAME, 63)
    is_path = resource.group == "rbac.authorization.k8s.io"  # names of roles may hold nearly anything
    if not is_path and (not pattern.fullmatch(name) or len(name) > longest):
        yield _invalid("metadata.name", name, "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric "
                       "characters, '-' or '.', and must start and end with an alphanumeric character")  # fmt: skip
    for key, value in (meta.get("labels") or {}).items():
        if not _QUALIFIED.fullmatch(key) or len(key.rpartition("/")[2]) > 63:
            yield _invalid("metadata.labels", key, "name part must consist of alphanumeric characters, '-', '_' or '.'")
        if not isinstance(value, str):
            raise bad_request(f"metadata.labels: cannot unmarshal {type(value).__name__} into a string")
        if not _VALUE.fullmatch(value) or len(value) > 63:
            yield _invalid("metadata.labels", value, "a valid label must be an empty string or consist of alphanumeric "
                           "characters, '-', '_' or '.'")  # fmt: skip
    for key, value in (meta.get("annotations") or {}).items():
        if not isinstance(value, str):
            raise bad_request(f"metadata.annotations: cannot unmarshal {type(value).__name__} into a string")
        if not _QUALIFIED.fullmatch(key.lower()):
            yield _invalid("metadata.annotations", key, "name part must consist of alphanumeric characters")
    for item in meta.get("finalizers") or ():
        if not _QUALIFIED.fullmatch(item):
            yield _invalid("metadata.finalizers", item, "name part must consist of alphanumeric characters")


# --- types, as the decoder sees them


def _texts(value: Json, *fields: str) -> None:
    for field in fields:
        for key, item in (value.get(field) or {}).items():
            if not isinstance(item, str):
                raise bad_request(f"{value.get('kind')}.{field}.{key}: cannot unmarshal into Go value of type string")


def _secret_types(value: Json) -> None:
    _texts(value, "data", "stringData")
    for key, item in (value.get("data") or {}).items():
        try:
            base64.b64decode(item, validate=True)
        except binascii.Error:
            raise bad_request(f"Secret.data.{key}: illegal base64 data at input byte 0") from None


def _lease_types(value: Json) -> None:
    spec = value.get("spec") or {}
    for field in ("acquireTime", "renewTime"):
        text = spec.get(field)
        if text is not None and not _MICRO.fullmatch(str(text)):
            raise bad_request(
                f'Lease in version "v1" cannot be handled as a Lease: parsing time "{text}" as '
                '"2006-01-02T15:04:05.000000Z07:00": cannot parse it'
            )
    for field in ("leaseDurationSeconds", "leaseTransitions"):
        _integer("Lease.spec", field, spec.get(field))


def _service_types(value: Json) -> None:
    for port in (value.get("spec") or {}).get("ports") or ():
        _integer("Service.spec.ports", "port", port.get("port"))


def _integer(path: str, field: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise bad_request(f"{path}.{field}: cannot unmarshal {type(value).__name__} into Go value of type int32")


_TYPES: dict[str, Callable[[Json], None]] = {
    "configmaps": lambda value: _texts(value, "data", "binaryData"),
    "secrets": _secret_types, "leases": _lease_types, "services": _service_types,
}  # fmt: skip


# --- rules


def _data(value: Json) -> Iterator[Fault]:
    for key in value.get("data") or {}:
        if not _DATA_KEY.fullmatch(key) or key == "." or key.startswith(".."):
            yield _invalid(f"data[{key}]", key, "a valid config key must consist of alphanumeric characters, '-', '_' "
                           "or '.'")  # fmt: skip
    size = sum(len(item.encode()) for item in (value.get("data") or {}).values())
    if size > MEBIBYTE:
        yield "data", "FieldValueTooLong", f"Too long: may not be more than {MEBIBYTE} bytes"


def _lease(value: Json) -> Iterator[Fault]:
    spec = value.get("spec") or {}
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        yield _invalid("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0")
    if (spec.get("leaseTransitions") or 0) < 0:
        yield _invalid("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")


def _event(value: Json) -> Iterator[Fault]:
    """In the form of core/v1."""
    involved, namespace = value.get("involvedObject") or {}, value["metadata"].get("namespace", "")
    theirs = involved.get("namespace", "")
    if theirs != namespace and (theirs or namespace != "default"):
        yield _invalid("involvedObject.namespace", theirs, "does not match event.namespace")
    if not value.get("eventTime"):
        return
    for field in ("reportingComponent", "reportingInstance", "action", "reason"):
        if not value.get(field):
            yield _required(field)
    if value.get("type") not in ("Normal", "Warning"):
        yield _invalid("type", value.get("type"), "has invalid value")
    if len((value.get("message") or "").encode()) > _EVENT_LONGEST:
        yield "message", "FieldValueInvalid", f"Invalid value: can have at most {_EVENT_LONGEST} characters"


_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")


def _service(value: Json) -> Iterator[Fault]:
    spec = value.get("spec") or {}
    if spec.get("type") not in _SERVICE_TYPES:
        options = ", ".join(f'"{name}"' for name in _SERVICE_TYPES)
        message = f'Unsupported value: "{spec.get("type")}": supported values: {options}'
        yield "spec.type", "FieldValueNotSupported", message
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        yield _required("spec.ports")
    yield from _ports(ports)
    policy = spec.get("externalTrafficPolicy")
    if policy not in (None, "Cluster", "Local"):
        message = f'Unsupported value: "{policy}": supported values: "Cluster", "Local"'
        yield "spec.externalTrafficPolicy", "FieldValueNotSupported", message
    if spec.get("loadBalancerClass") and spec.get("type") != "LoadBalancer":
        message = 'Forbidden: may only be used when `type` is "LoadBalancer"'
        yield "spec.loadBalancerClass", "FieldValueForbidden", message
    yield from _ingress(value, spec)


def _ports(ports: list[Json]) -> Iterator[Fault]:
    seen: set[object] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        if not 1 <= (port.get("port") or 0) <= 65535:
            yield _invalid(f"{path}.port", port.get("port"), "must be between 1 and 65535, inclusive")
        if port.get("protocol", "TCP") not in ("TCP", "UDP", "SCTP"):
            message = f'Unsupported value: "{port["protocol"]}": supported values: "SCTP", "TCP", "UDP"'
            yield f"{path}.protocol", "FieldValueNotSupported", message
        if len(ports) > 1 and not port.get("name"):
            yield _required(f"{path}.name")
        key = (port.get("protocol", "TCP"), port.get("port"))
        if key in seen:
            yield path, "FieldValueDuplicate", f'Duplicate value: {{"port":{key[1]},"protocol":"{key[0]}"}}'
        seen.add(key)


def _ingress(value: Json, spec: Json) -> Iterator[Fault]:
    found = ((value.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    if found and spec.get("type") != "LoadBalancer":
        message = 'Forbidden: may only be used when `spec.type` is "LoadBalancer"'
        yield "status.loadBalancer.ingress", "FieldValueForbidden", message
    for index, entry in enumerate(found):
        path = f"status.loadBalancer.ingress[{index}]"
        address, name, mode = entry.get("ip"), entry.get("hostname"), entry.get("ipMode")
        if address and not _is_address(address):
            yield _invalid(f"{path}.ip", address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
        if mode not in (None, "VIP", "Proxy"):
            yield (
                f"{path}.ipMode",
                "FieldValueNotSupported",
                f'Unsupported value: "{mode}": supported values: "Proxy", "VIP"',
            )
        if name and _is_address(name):
            yield _invalid(f"{path}.hostname", name, "must be a DNS name, not an IP address")


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ip_address(text))
    except ValueError:
        return False


def _endpoint_slice(value: Json) -> Iterator[Fault]:
    kind = value.get("addressType")
    if kind not in ("IPv4", "IPv6", "FQDN"):
        yield _required("addressType") if not kind else _invalid("addressType", kind, "is unknown")
    for index, endpoint in enumerate(value.get("endpoints") or ()):
        path = f"endpoints[{index}].addresses"
        if not endpoint.get("addresses"):
            yield _required(path, "must contain at least 1 address")
        for place, text in enumerate(endpoint.get("addresses") or ()):
            if kind in ("IPv4", "IPv6") and (not _is_address(text) or (kind == "IPv6") != (":" in text)):
                yield _invalid(f"{path}[{place}]", text, f"must be a valid {kind} address")


def _pod(value: Json) -> Iterator[Fault]:
    containers = (value.get("spec") or {}).get("containers") or []
    if not containers:
        yield _required("spec.containers")
    for index, container in enumerate(containers):
        for field in ("name", "image"):
            if not container.get(field):
                yield _required(f"spec.containers[{index}].{field}")


def _policy_rules(value: Json) -> Iterator[Fault]:
    for index, rule in enumerate(value.get("rules") or ()):
        for field, what in (("verbs", "verbs"), ("apiGroups", "api groups"), ("resources", "resources")):
            if not rule.get(field) and not (field != "verbs" and rule.get("nonResourceURLs")):
                message = f"{what} must contain at least one value"
                yield _required(f"rules[{index}].{field}", message)


_RULES: dict[str, Callable[[Json], Iterator[Fault]]] = {
    "configmaps": _data, "secrets": _data, "leases": _lease, "events": _event, "services": _service,
    "endpointslices": _endpoint_slice, "pods": _pod, "clusterroles": _policy_rules, "roles": _policy_rules,
}  # fmt: skip
