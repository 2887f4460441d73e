"""Server-side apply: who manages which fields, conflicts, merging (structured merge, lists paired by keys). Pure.

A field is a path of steps: `f:name`, `k:{"type":"Ready"}` for an item of a list of maps, `v:…` for one of a set.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .call import Call
from .errors import ApiError, Invalid, Json

Path = tuple[str, ...]
_UNMANAGED = frozenset({"apiVersion", "kind"})
_UNMANAGED_META = "name namespace uid resourceVersion generation creationTimestamp deletionTimestamp managedFields"
# keys of the lists of built-in kinds; "" = a set. Custom kinds say it in their schema.
_LISTS: dict[str, tuple[str, ...]] = {
    "conditions": ("type",), "addresses": ("type",), "ownerReferences": ("uid",), "finalizers": ("",),
    "containers": ("name",), "initContainers": ("name",), "volumes": ("name",), "env": ("name",),
}  # fmt: skip


@dataclass(frozen=True)
class Manager:
    name: str
    operation: str  # Apply or Update
    subresource: str
    api_version: str
    fields: frozenset[Path] = field(default=frozenset())
    time: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.operation, self.subresource


def list_keys(schema: Json | None, name: str) -> tuple[str, ...]:
    """What pairs the items of a list; () = the list is one value."""
    if schema is None:
        return _LISTS.get(name, ())
    kind = schema.get("x-kubernetes-list-type")
    return tuple(schema["x-kubernetes-list-map-keys"]) if kind == "map" else ("",) if kind == "set" else ()


def fields_of(value: Any, schema: Json | None, prefix: Path = (), name: str = "") -> Iterator[Path]:
    """The managed fields of an object: its leaves, and the items of paired lists."""
    if isinstance(value, dict) and value and (schema or {}).get("x-kubernetes-map-type") != "atomic":
        for key, item in value.items():
            if not _is_unmanaged(prefix, key):
                yield from fields_of(item, _inner(schema, key), (*prefix, f"f:{key}"), key)
        return
    keys = list_keys(schema, name) if isinstance(value, list) else ()
    if not keys:
        if prefix:
            yield prefix
        return
    for item in value:
        step = (*prefix, _step(item, keys))
        yield step
        if isinstance(item, dict):
            yield from fields_of(item, (schema or {}).get("items"), step)


def _is_unmanaged(prefix: Path, key: str) -> bool:
    return (not prefix and key in _UNMANAGED) or (prefix == ("f:metadata",) and key in _UNMANAGED_META.split())


def _inner(schema: Json | None, key: str) -> Json | None:
    """Metadata is that of built-in kinds everywhere; of what a schema leaves open no list is paired."""
    if schema is None or key == "metadata":
        return None
    rest = schema.get("additionalProperties")
    known: Json | None = (schema.get("properties") or {}).get(key)
    return known or (rest if isinstance(rest, dict) else {})


def _step(item: Any, keys: tuple[str, ...]) -> str:
    if keys == ("",):
        return "v:" + json.dumps(item)
    return "k:" + json.dumps({key: item.get(key) for key in keys}, sort_keys=True, separators=(",", ":"))


# --- reading and removing by path


def value_at(value: Any, path: Path) -> Any:
    """None if nothing is there."""
    for step in path:
        found = _child(value, step)
        if found is None:
            return None
        value = found[1]
    return value


def _child(value: Any, step: str) -> tuple[Any, Any] | None:
    kind, text = step[:2], step[2:]
    if kind == "f:" and isinstance(value, dict) and text in value:
        return text, value[text]
    if kind == "k:" and isinstance(value, list):
        wanted = json.loads(text)
        for index, item in enumerate(value):
            if isinstance(item, dict) and all(item.get(key) == part for key, part in wanted.items()):
                return index, item
    if kind == "v:" and isinstance(value, list) and json.loads(text) in value:
        return value.index(json.loads(text)), json.loads(text)
    return None


def remove_at(value: Any, path: Path) -> None:
    """Also maps that become empty by it."""
    found = _child(value, path[0])
    if found is None:
        return
    if len(path) > 1:
        remove_at(found[1], path[1:])
        if found[1] or path[0][:2] == "k:":
            return
    del value[found[0]]


# --- apply


def applied(call: Call, old: Json | None, managers: list[Manager], schema: Json | None, now: str) -> Json:
    """The object after the patch, with managedFields. Raises ApiError 409 if fields of others would change."""
    wanted = {key: item for key, item in call.body.items() if key not in _UNMANAGED}
    fields = frozenset(fields_of(wanted, schema))
    others = [one for one in managers if one.key != (call.field_manager, "Apply", call.subresource)]
    live = old or {}
    taken = {path for path in fields if value_at(live, path) != value_at(wanted, path)}
    clashes = [(one, path) for one in others for path in sorted(one.fields & taken) if _is_value(wanted, path)]
    if clashes and not call.flag("force"):
        raise _conflict(clashes)
    mine = next((one for one in managers if one not in others), None)
    result = merged(copy.deepcopy(live), wanted, schema)
    if mine is not None:
        around = {path[:end] for path in fields for end in range(len(path))}  # maps that were empty before
        dropped = mine.fields - fields - around - {path for one in others for path in one.fields}
        for path in sorted(dropped, key=len, reverse=True):
            remove_at(result, path)
    lost = {path for _, path in clashes}
    kept = [_without(one, lost) for one in others]
    new = Manager(call.field_manager, "Apply", call.subresource, call.resource.api_version, fields, now)
    return with_managers({**result, **{key: call.body[key] for key in ("apiVersion", "kind")}}, [*kept, new])


def _is_value(wanted: Json, path: Path) -> bool:
    return path[-1][:2] == "f:"


def _without(manager: Manager, paths: Iterable[Path]) -> Manager:
    fields = manager.fields - frozenset(paths)
    return Manager(manager.name, manager.operation, manager.subresource, manager.api_version, fields, manager.time)


def merged(old: Any, new: Any, schema: Json | None, name: str = "") -> Any:
    if isinstance(new, dict) and isinstance(old, dict) and (schema or {}).get("x-kubernetes-map-type") != "atomic":
        return {**old, **{key: merged(old.get(key), item, _inner(schema, key), key) for key, item in new.items()}}
    keys = list_keys(schema, name) if isinstance(new, list) else ()
    if not keys or not isinstance(old, list):
        return new
    rows = list(old)
    for item in new:
        found = _child(rows, _step(item, keys))
        if found is None:
            rows.append(item)
        elif keys != ("",):
            rows[found[0]] = merged(rows[found[0]], item, (schema or {}).get("items"))
    return rows


def _conflict(clashes: list[tuple[Manager, Path]]) -> ApiError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{one.name}"{_using(one)}', "field": shown(path)}
        for one, path in clashes
    ]
    first = f"{causes[0]['message']}: {causes[0]['field']}"
    plural = f"conflict{'s' if len(causes) > 1 else ''}"
    return ApiError(409, "Conflict", f"Apply failed with {len(causes)} {plural}: {first}", {"causes": causes})


def _using(manager: Manager) -> str:
    sub = f" with subresource {json.dumps(manager.subresource)}" if manager.subresource else ""
    return f"{sub} using {manager.api_version}" + (f" at {manager.time}" if manager.operation == "Update" else "")


def shown(path: Path) -> str:
    """`.spec.ports[port=80]`: as messages name a field."""
    text = ""
    for step in path:
        if step[:2] == "f:":
            text += f".{step[2:]}"
        elif step[:2] == "k:":
            pairs = ",".join(f"{key}={json.dumps(item)}" for key, item in json.loads(step[2:]).items())
            text += f"[{pairs}]"
        else:
            text += f"[={step[2:]}]"
    return text


# --- writes of other kinds


def noted(call: Call, old: Json | None, new: Json, managers: list[Manager], schema: Json | None, now: str) -> Json:
    """After a create, update or patch: what it changed belongs to its manager, what it removed to nobody."""
    before, after = old or {}, new
    fields = frozenset(fields_of(after, schema))
    changed = frozenset(path for path in fields if old is None or value_at(before, path) != value_at(after, path))
    gone = {path for one in managers for path in one.fields if path not in fields and value_at(after, path) is None}
    key = (call.field_manager or "unknown", "Update", call.subresource)
    mine = next((one for one in managers if one.key == key), None)
    kept = [_without(one, gone | changed) for one in managers if one.key != key]
    own = ((mine.fields - gone) if mine else frozenset()) | changed
    new_one = Manager(
        key[0], "Update", key[2], call.resource.api_version, own, now if changed or not mine else mine.time
    )
    return with_managers(new, [*kept, *([new_one] if own else [])])


# --- managedFields


def managers_of(value: Json | None) -> list[Manager]:
    entries = ((value or {}).get("metadata") or {}).get("managedFields") or ()
    return [
        Manager(
            entry.get("manager", ""), entry.get("operation", ""), entry.get("subresource", ""),
            entry.get("apiVersion", ""), frozenset(_read(entry.get("fieldsV1") or {})), entry.get("time", ""),
        )
        for entry in entries
    ]  # fmt: skip


def _read(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[Path]:
    if (not tree or "." in tree) and prefix:
        yield prefix
    for step, inner in tree.items():
        if step != ".":
            yield from _read(inner, (*prefix, step))


def with_managers(value: Json, managers: Iterable[Manager]) -> Json:
    entries = [_entry(one) for one in managers if one.fields]
    meta = {key: item for key, item in (value.get("metadata") or {}).items() if key != "managedFields"}
    return {**value, "metadata": {**meta, **({"managedFields": entries} if entries else {})}}


def _entry(manager: Manager) -> Json:
    tree: Json = {}
    for path in sorted(manager.fields):
        here = tree
        for step in path:
            here = here.setdefault(step, {})
        if path[-1][:2] == "k:":
            here["."] = {}
    entry: Json = {"manager": manager.name, "operation": manager.operation, "apiVersion": manager.api_version}
    entry |= {"time": manager.time, "fieldsType": "FieldsV1", "fieldsV1": tree}
    return entry | ({"subresource": manager.subresource} if manager.subresource else {})


def require_manager(call: Call) -> None:
    if not call.field_manager:
        fault = ("fieldManager", "FieldValueRequired", "Required value: is required for apply patch")
        raise Invalid("meta.k8s.io", "PatchOptions", "", [fault])
