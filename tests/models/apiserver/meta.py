"""`metadata` of every object at create, update and delete. Pure but for uids and the clock that is handed in."""

from __future__ import annotations

import copy
import random
import uuid
from datetime import UTC, datetime

from . import errors
from .call import Call
from .errors import Invalid, Json
from .resources import Resource
from .storage import Stored

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
# metadata.generation exists for these built-in kinds, and for every custom one
_GENERATION = (
    "daemonsets deployments replicasets statefulsets endpointslices networkpolicies poddisruptionbudgets pods "
    "customresourcedefinitions validatingadmissionpolicies validatingadmissionpolicybindings"
)
_SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
)


def now_text(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def has_generation(resource: Resource) -> bool:
    return resource.custom or resource.plural in _GENERATION.split()


def for_create(call: Call, value: Json, now: datetime) -> Json:
    """The object with metadata as the server makes it. Raises ApiError."""
    meta = dict(value.get("metadata") or {})
    if call.resource.namespaced:
        check_namespace(call, meta)
        meta["namespace"] = call.namespace
    else:
        meta.pop("namespace", None)
    if meta.get("resourceVersion"):
        raise errors.ApiError(500, "", "resourceVersion should not be set on objects to be created")
    if not meta.get("name"):
        meta["name"] = _generated(call, meta)
    for name in _SERVER_OWNED:
        meta.pop(name, None)
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = now_text(now)
    if has_generation(call.resource):
        meta["generation"] = 1
    return {**value, "metadata": meta}


def _generated(call: Call, meta: Json) -> str:
    if not meta.get("generateName"):
        fault = ("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")
        raise Invalid(call.resource.group, call.resource.kind, "", [fault])
    return str(meta["generateName"]) + "".join(random.choices(_SUFFIX, k=5))


def check_namespace(call: Call, meta: Json) -> None:
    if meta.get("namespace") not in (None, "", call.namespace):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def check_name(call: Call, value: Json) -> None:
    name = (value.get("metadata") or {}).get("name")
    if not name:
        raise errors.bad_request("name must be provided")
    if name != call.name:
        raise errors.bad_request(f"the name of the object ({name}) does not match the name on the URL ({call.name})")


def check_preconditions(call: Call, meta: Json, old: Stored, *, may_omit: bool) -> None:
    """resourceVersion and uid that the writer expects. Raises ApiError 409, 422."""
    resource, old_meta = call.resource, old.object["metadata"]
    if (uid := meta.get("uid")) and uid != old_meta["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old_meta['uid']}"
        raise errors.conflict(resource.group, resource.plural, call.name, why)
    version = meta.get("resourceVersion")
    if not version:
        if may_omit:
            return
        fault = ("metadata.resourceVersion", "FieldValueInvalid", "Invalid value: 0x0: must be specified for an update")
        raise Invalid(resource.group, resource.kind, call.name, [fault])
    if version != str(old.version):
        raise errors.conflict(resource.group, resource.plural, call.name)


def for_update(call: Call, value: Json, old: Json) -> Json:
    """The new object with what the server owns taken from the old one."""
    meta = {**(value.get("metadata") or {})}
    for name in _SERVER_OWNED:
        meta.pop(name, None)
        if name in old["metadata"]:
            meta[name] = old["metadata"][name]
    meta["name"] = old["metadata"]["name"]
    meta.pop("namespace", None)
    if "namespace" in old["metadata"]:
        meta["namespace"] = old["metadata"]["namespace"]
    return {**value, "metadata": meta}


def bumped(resource: Resource, new: Json, old: Json) -> Json:
    """`generation` grows with a change of anything but metadata (and status, where that is a subresource)."""
    if not has_generation(resource):
        return new
    ignored = {"metadata", "kind", "apiVersion"} | ({"status"} if resource.has_status else set())
    if _without(new, ignored) == _without(old, ignored):
        return new
    return {**new, "metadata": {**new["metadata"], "generation": old["metadata"].get("generation", 0) + 1}}


def _without(value: Json, names: set[str]) -> Json:
    return {key: item for key, item in value.items() if key not in names}


def unchanged(new: Json, old: Json) -> bool:
    """Whether a write changes nothing: it then takes no resourceVersion and nobody hears of it."""
    return _comparable(new) == _comparable(old)


def _comparable(value: Json) -> Json:
    meta = _without(value["metadata"], {"resourceVersion", "managedFields"})
    return {**_without(value, {"metadata"}), "metadata": meta}


def deleted(value: Json, now: datetime, grace: int) -> Json:
    """The object marked as going away."""
    value = copy.copy(value)
    meta = {**value["metadata"], "deletionTimestamp": now_text(now), "deletionGracePeriodSeconds": grace}
    if "generation" in meta:
        meta["generation"] += 1
    return {**value, "metadata": meta}
