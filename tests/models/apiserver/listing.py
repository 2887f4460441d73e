"""Lists: resourceVersion semantics, pages with continue tokens, the body. Reads the storage only."""

from __future__ import annotations

import base64
import binascii
import json

from . import errors
from .call import Call
from .errors import ApiError, Invalid, Json, bad_request
from .eventforms import body_of
from .resources import Resource
from .selecting import Match, select
from .storage import Storage, Stored, encode

TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


def version_of(text: str) -> int | None:
    """A resourceVersion of a query; None = not given. Raises ApiError 400."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        why = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise bad_request(f'invalid resource version: resourceVersion: Invalid value: "{text}": {why}')
    return int(text)


def match_of(call: Call) -> Match | None:
    """The selectors of a request. Raises ApiError 400, as the server words it."""
    labels, fields = call.query.get("labelSelector", ""), call.query.get("fieldSelector", "")
    return select(call.resource, labels, fields)


def in_namespace(rows: list[Stored], namespace: str) -> list[Stored]:
    prefix = f"{namespace}/"
    return [row for row in rows if row.key.startswith(prefix)] if namespace else rows


def list_objects(storage: Storage, call: Call) -> bytes:
    """The whole body of a list. Raises ApiError."""
    match, limit, token = match_of(call), _limit(call), call.query.get("continue", "")
    after = ""
    if token:
        version, after = _open(token, call)
    else:
        version = _wanted(storage, call)
        if call.query.get("resourceVersion") == "0":
            limit = 0  # answered by the watch cache, which has no pages
    try:
        rows = storage.at(call.resource.store_key, version) if version else storage.all(call.resource.store_key)
    except ApiError:
        if not token:
            raise
        error = errors.expired(TOO_OLD)
        error.continue_token = _seal(0, after)
        raise error from None
    version = version or storage.version
    rows = [
        row for row in in_namespace(rows, call.namespace) if row.key > after and (match is None or match(row.object))
    ]
    page, left = (rows[:limit], len(rows) - limit) if limit else (rows, 0)
    meta: Json = {"resourceVersion": str(version), **({"continue": ""} if call.resource.custom else {})}
    if left > 0:
        meta["continue"] = _seal(version, page[-1].key)
        if match is None:
            meta["remainingItemCount"] = left
    return list_body(call.resource, meta, page)


def list_body(resource: Resource, meta: Json, rows: list[Stored]) -> bytes:
    """Items of built-in kinds come without kind and apiVersion, custom ones with them: as the server does it."""
    start = b"{" + (envelope(resource)[1:] if resource.custom else b"")
    head = f'{{"kind":"{resource.kind}List","apiVersion":"{resource.api_version}","metadata":'.encode()
    return b"".join(
        (head, encode(meta), b',"items":[', b",".join([start + body_of(resource, row) for row in rows]), b"]}\n")
    )


def envelope(resource: Resource) -> bytes:
    return f'{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'.encode()


def _limit(call: Call) -> int:
    text = call.query.get("limit", "0")
    if not text.lstrip("-").isdigit():
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return max(int(text), 0)


def _wanted(storage: Storage, call: Call) -> int:
    """The exact version to show; 0 = the present. Raises ApiError 400, 410, 422, 504."""
    version, match = version_of(call.query.get("resourceVersion", "")), call.query.get("resourceVersionMatch", "")
    if match and version is None:
        message = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
        raise _invalid("resourceVersionMatch", "FieldValueForbidden", message)
    if match not in ("", "Exact", "NotOlderThan"):
        message = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
        raise _invalid("resourceVersionMatch", "FieldValueNotSupported", message)
    if match == "Exact" and version == 0:
        message = 'Forbidden: resourceVersionMatch "Exact" is forbidden for resourceVersion "0"'
        raise _invalid("resourceVersionMatch", "FieldValueForbidden", message)
    if version is not None and version > storage.version:
        raise errors.too_large(version, storage.version)
    exact = match == "Exact" or (not match and _limit(call) > 0)
    return version or 0 if exact else 0


def _invalid(field: str, reason: str, message: str) -> ApiError:
    return Invalid("meta.k8s.io", "ListOptions", "", [(field, reason, message)])


def _seal(version: int, after: str) -> str:
    """A continue token: the version of the first page and the last key that was sent."""
    return base64.urlsafe_b64encode(
        json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": after}).encode()
    ).decode()


def _open(token: str, call: Call) -> tuple[int, str]:
    if call.query.get("resourceVersion", "") not in ("", "0"):
        raise bad_request("specifying resource version is not allowed when using continue")
    try:
        value = json.loads(base64.urlsafe_b64decode(token))
        return int(value["rv"]), str(value["start"])
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise bad_request(f"continue key is not valid: {error}") from None
