"""Merge patch (RFC 7386), JSON patch (RFC 6902), strategic merge patch for what built-in kinds need. Pure."""

from __future__ import annotations

import copy
from typing import Any, cast

from . import errors
from .call import Call
from .errors import ApiError, Json, bad_request
from .storage import Stored

JSON, MERGE = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
# lists that strategic merge pairs by a key; every other list is replaced
_KEYS = {
    "conditions": "type", "addresses": "type", "ownerReferences": "uid", "containers": "name", "initContainers": "name",
    "volumes": "name", "env": "name", "volumeMounts": "mountPath", "imagePullSecrets": "name", "taints": "key",
}  # fmt: skip


def patched(call: Call, old: Stored | None) -> Json:
    """The object after the patch. Raises ApiError 400, 404, 415, 422."""
    if old is None:
        raise errors.not_found(call.resource.group, call.resource.plural, call.name)
    value = copy.deepcopy(old.object)
    if call.content_type == JSON:
        value = cast(Json, json_patch(call, value))
    elif call.content_type == MERGE:
        value = cast(Json, merge(value, _mapping(call.body)))
    elif call.content_type == STRATEGIC and not call.resource.custom:
        value = cast(Json, strategic(value, _mapping(call.body)))
    else:
        raise errors.unsupported_media_type([JSON, MERGE] if call.resource.custom else [JSON, MERGE, STRATEGIC])
    return value


def _mapping(body: Any) -> Json:
    if not isinstance(body, dict):
        raise bad_request("json: cannot unmarshal array into Go value of type map[string]interface {}")
    return body


def merge(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), item)
    return result


def strategic(old: Any, patch: Any, name: str = "") -> Any:
    if isinstance(patch, list):
        return _strategic_list(old, patch, name)
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {key: item for key, item in patch.items() if key != "$patch"}
    result = dict(old) if isinstance(old, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        elif key == "$deleteFromPrimitiveList/finalizers":
            result["finalizers"] = [entry for entry in result.get("finalizers", []) if entry not in item]
        elif not key.startswith("$"):
            result[key] = strategic(result.get(key), item, key)
    return result


def _strategic_list(old: Any, patch: list[Any], name: str) -> list[Any]:
    key = _KEYS.get(name)
    rows = list(old or [])
    if name == "finalizers":
        return rows + [item for item in patch if item not in rows]
    if key is None:
        return patch
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((index for index, row in enumerate(rows) if row.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            rows = [row for row in rows if row.get(key) != item[key]]
        elif at is None:
            rows.append(strategic({}, item))
        else:
            rows[at] = strategic(rows[at], item)
    return rows


# --- RFC 6902


def json_patch(call: Call, value: Any) -> Any:
    if not isinstance(call.body, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    for step in call.body:
        try:
            value = _step(value, step)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            text = f"the server rejected our request due to an error in our request: {step}: {error}"
            raise ApiError(422, "Invalid", text) from None
    return value


def _step(value: Any, step: Json) -> Any:
    kind, path = step["op"], _pointer(step["path"])
    if kind == "test":
        if _at(value, path) != step.get("value"):
            raise ValueError("testing value failed")
        return value
    if kind in ("move", "copy"):
        source = _pointer(step["from"])
        item = copy.deepcopy(_at(value, source))
        value = _removed(value, source) if kind == "move" else value
        return _added(value, path, item)
    if kind == "remove":
        return _removed(value, path)
    if kind == "replace":
        _at(value, path)
        return _set(value, path, step["value"])
    if kind == "add":
        return _added(value, path, step["value"])
    raise ValueError(f"unknown operation {kind}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _at(value: Any, path: list[str]) -> Any:
    for part in path:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _set(value: Any, path: list[str], item: Any) -> Any:
    if not path:
        return item
    parent = _at(value, path[:-1])
    parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = item
    return value


def _added(value: Any, path: list[str], item: Any) -> Any:
    if not path:
        return item
    parent = _at(value, path[:-1])
    if isinstance(parent, list):
        index = len(parent) if path[-1] == "-" else int(path[-1])
        if not 0 <= index <= len(parent):
            raise IndexError(f"index {index} is outside the list")
        parent.insert(index, item)
    else:
        parent[path[-1]] = item
    return value


def _removed(value: Any, path: list[str]) -> Any:
    parent = _at(value, path[:-1])
    del parent[int(path[-1]) if isinstance(parent, list) else path[-1]]
    return value
