"""What the verbs do to the storage. One event loop; no network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import cast

from . import applying, errors, kinds, meta
from .call import Call
from .errors import Json, bad_request
from .eventforms import body_of, is_newer, to_core
from .listing import envelope, in_namespace, list_body, list_objects, match_of
from .patching import APPLY, patched
from .resources import Catalogue, Resource
from .storage import Storage, Stored, encode

Answer = tuple[int, bytes]


class Api:
    """`now` is the clock; `hooks` hear (resource, old, new) after every write that is kept."""

    def __init__(
        self,
        storage: Storage,
        catalogue: Catalogue,
        now: Callable[[], datetime] | None = None,
        *,
        managed_fields: bool = True,
    ) -> None:
        self.storage, self.catalogue, self.managed_fields = storage, catalogue, managed_fields
        self.now = now or (lambda: datetime.now(UTC))
        self.addresses = kinds.Addresses()
        self.hooks: list[Callable[[Resource, Json | None, Json | None], None]] = []

    # --- reading

    def get(self, call: Call) -> Answer:
        return 200, whole(call.resource, self.have(call))

    def list(self, call: Call) -> Answer:
        return 200, list_objects(self.storage, call)

    # --- writing

    def create(self, call: Call) -> Answer:
        _ = call.dry_run  # raises for what it cannot be
        value = _decoded(call, call.body)
        self._require_namespace(call, creating=True)
        value = meta.for_create(call, value, self.now())
        name = value["metadata"]["name"]
        value = kinds.admitted(self, call, value, None)
        if self.storage.get(call.resource.store_key, call.key_of(call.namespace, name)):
            raise errors.already_exists(call.resource.group, call.resource.plural, name)
        return 201, whole(call.resource, self._write(call, name, self._noted(call, value, None), None))

    def update(self, call: Call) -> Answer:
        value = _decoded(call, call.body)
        meta.check_name(call, value)
        meta.check_namespace(call, value["metadata"]) if call.resource.namespaced else None
        old = self.storage.get(call.resource.store_key, call.key)
        if old is None and call.resource.create_on_update and not call.subresource:
            value["metadata"].pop("resourceVersion", None)
            return self.create(call_with(call, value))
        return 200, whole(call.resource, self._replace(call, value, self.have(call)))

    def patch(self, call: Call) -> Answer:
        old = self.storage.get(call.resource.store_key, call.key)
        if call.content_type == APPLY:
            applying.require_manager(call)
            before = old.object if old else None
            managers, now = applying.managers_of(before), meta.now_text(self.now())
            value = applying.applied(call, before, managers, call.resource.schema, now)
        else:
            value = patched(call, old)
        if old is None:
            return self.create(call_with(call, value))
        value = _decoded(call, value)
        return 200, whole(call.resource, self._replace(call, value, old))

    def _replace(self, call: Call, value: Json, old: Stored) -> Stored:
        free = call.resource.unconditional_update or call.verb == "patch"
        meta.check_preconditions(call, value["metadata"], old, may_omit=free)
        value = meta.for_update(call, value, old.object)
        value = kinds.merged(call, value, old.object)
        value = kinds.admitted(self, call, value, old.object)
        value = meta.bumped(call.resource, value, old.object)
        if not meta.unchanged(value, old.object):
            value = self._noted(call, value, old.object)
        return self._write(call, call.name, value, old)

    def _noted(self, call: Call, value: Json, old: Json | None) -> Json:
        """With managedFields. An apply has said itself who manages what."""
        if not self.managed_fields:
            return applying.with_managers(value, [])
        if call.content_type == APPLY:
            return value
        now = meta.now_text(self.now())
        return applying.noted(call, old, value, applying.managers_of(old), call.resource.schema, now)

    def _write(self, call: Call, name: str, value: Json, old: Stored | None) -> Stored:
        """Keep `value`, unless nothing changed or this is a dry run."""
        key, table = call.key_of(call.namespace, name), call.resource.store_key
        if old is not None and meta.unchanged(value, old.object):
            return old
        value["metadata"].pop("resourceVersion", None)
        if call.dry_run:
            version = {"resourceVersion": str(old.version)} if old else {}
            shown = {**value, "metadata": {**value["metadata"], **version}}
            return Stored(key, 0, shown, encode(_rest(shown))[1:])
        if old is not None and _is_gone(value):
            row = self.storage.remove(table, key, value)
            self._told(call.resource, old.object, None)
            return row
        row = self.storage.put(table, key, value)
        self._told(call.resource, old.object if old else None, row.object)
        return row

    def _told(self, resource: Resource, old: Json | None, new: Json | None) -> None:
        for hook in self.hooks:
            hook(resource, old, new)

    # --- deleting

    def delete(self, call: Call) -> Answer:
        options = _options(call)
        old = self.have(call)
        expected = options.get("preconditions") or {}
        meta.check_preconditions(call, expected, old, may_omit=True)
        row, gone = self._delete(call, old, options)
        if gone and not call.resource.returns_deleted:
            return 200, encode(_success(call.resource, old.object))
        return 200, whole(call.resource, row)

    def deletecollection(self, call: Call) -> Answer:
        match = match_of(call)
        rows = in_namespace(self.storage.all(call.resource.store_key), call.namespace)
        chosen = [row for row in rows if match is None or match(row.object)]
        for row in chosen:
            one = call_with(
                call, call.body, row.object["metadata"]["name"], row.object["metadata"].get("namespace", "")
            )
            self._delete(one, row, _options(call))
        return 200, list_body(call.resource, {"resourceVersion": str(self.storage.version)}, chosen)

    def _delete(self, call: Call, old: Stored, options: Json) -> tuple[Stored, bool]:
        """The object's last state, and whether it is gone."""
        grace = kinds.grace_period(call, old.object, options)
        waits = bool(old.object["metadata"].get("finalizers")) or kinds.holds(call, old.object)
        if not waits and grace == 0:
            if call.dry_run:
                return old, True
            row = self.storage.remove(call.resource.store_key, call.key)
            self._told(call.resource, old.object, None)
            return row, True
        if "deletionTimestamp" in old.object["metadata"]:
            return old, False
        value = meta.deleted(old.object, self.now() + timedelta(seconds=grace), grace)
        return self._write(call, call.name, kinds.terminating(call, value), old), False

    # --- subresources of pods

    def bind(self, call: Call) -> Answer:
        old = self.have(call)
        if (old.object.get("spec") or {}).get("nodeName"):
            raise errors.conflict("", "pods/binding", call.name, f"pod {call.name} is already assigned to a node")
        target = ((call.body or {}).get("target") or {}).get("name", "")
        value = {**old.object, "spec": {**old.object["spec"], "nodeName": target}}
        self._write(call, call.name, {**value, "metadata": {**value["metadata"]}}, old)
        return 201, encode(_ok())

    def evict(self, call: Call) -> Answer:
        self._delete(call, self.have(call), ((call.body or {}).get("deleteOptions")) or {})
        return 201, encode(_ok())

    # --- for controllers

    def make(self, api_version: str, kind: str, namespace: str, value: Json) -> None:
        resource = self.catalogue.of_kind(api_version, kind)
        assert resource is not None
        self.create(Call("create", resource, namespace, body=value))

    def clear(self, resource: Resource, namespace: str) -> bool:
        """Delete all of a resource in a namespace, without grace; True if something stays."""
        held = False
        for row in in_namespace(self.storage.all(resource.store_key), namespace):
            call = Call("delete", resource, namespace, row.object["metadata"]["name"])
            held |= not self._delete(call, row, {"gracePeriodSeconds": 0})[1]
        return held

    # --- parts

    def have(self, call: Call) -> Stored:
        row = self.storage.get(call.resource.store_key, call.key)
        if row is None:
            raise errors.not_found(call.resource.group, call.resource.plural, call.name)
        return row

    def _require_namespace(self, call: Call, *, creating: bool) -> None:
        if not call.resource.namespaced:
            return
        row = self.storage.get("/namespaces", call.namespace)
        if row is None:
            raise errors.not_found("", "namespaces", call.namespace)
        if creating and (row.object.get("status") or {}).get("phase") == "Terminating":
            why = f"unable to create new content in namespace {call.namespace} because it is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {call.namespace} is being terminated",
                     "field": "metadata.namespace"}  # fmt: skip
            name = ((call.body or {}).get("metadata") or {}).get("name", "")
            raise errors.forbidden(call.resource.group, call.resource.plural, name, why, [cause])


def call_with(call: Call, body: object, name: str = "", namespace: str = "") -> Call:
    return Call(
        call.verb, call.resource, namespace or call.namespace, name or call.name, call.subresource, call.query,
        body, call.content_type, call.user,
    )  # fmt: skip


def whole(resource: Resource, row: Stored) -> bytes:
    return envelope(resource) + body_of(resource, row) + b"\n"


def _rest(value: Json) -> Json:
    return {name: item for name, item in value.items() if name not in ("kind", "apiVersion")}


def _is_gone(value: Json) -> bool:
    """Whether an update took the last thing that held a deleted object."""
    found = value["metadata"]
    if "deletionTimestamp" not in found or found.get("finalizers") or found.get("deletionGracePeriodSeconds"):
        return False
    return not (value.get("spec") or {}).get("finalizers") if value.get("kind") == "Namespace" else True


def _decoded(call: Call, body: object) -> Json:
    """A copy of the body, its kind and apiVersion those of the path. Raises ApiError 400."""
    if not isinstance(body, dict):
        raise bad_request("the body of the request is not an object")
    value = cast(Json, copy.deepcopy(body))
    if is_newer(call.resource) and value.get("apiVersion") in (None, "", call.resource.api_version):
        value = {**to_core(value), "apiVersion": call.resource.api_version}
    expected = {"apiVersion": call.resource.api_version, "kind": call.resource.kind}
    for name, wanted in expected.items():
        if value.get(name) in (None, "") and call.resource.custom:
            raise bad_request(f"Object '{name[0].upper() + name[1:]}' is missing in the body")
        if value.get(name) not in (None, "", wanted):
            what = "API version" if name == "apiVersion" else "kind"
            raise bad_request(
                f"the {what} in the data ({value[name]}) does not match the expected {what} ({wanted})"
            )  # fmt: skip
    if not isinstance(value.get("metadata", {}), dict):
        raise bad_request("metadata must be an object")
    return {
        **expected,
        **{k: v for k, v in value.items() if k not in expected},
        "metadata": value.get("metadata") or {},
    }


def _options(call: Call) -> Json:
    body = call.body if isinstance(call.body, dict) else {}
    grace = call.query.get("gracePeriodSeconds")
    return {**body, **({"gracePeriodSeconds": int(grace)} if grace else {})}


def _ok() -> Json:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _success(resource: Resource, value: Json) -> Json:
    details: Json = {"name": value["metadata"]["name"]}
    if resource.group:
        details["group"] = resource.group
    details |= {"kind": resource.plural, "uid": value["metadata"]["uid"]}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
