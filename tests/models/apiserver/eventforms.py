"""Events have two forms, core/v1 and events.k8s.io/v1; they are kept as core/v1. Pure."""

from __future__ import annotations

from .errors import Json
from .resources import Resource
from .storage import Stored, encode

_NEWER = {"involvedObject": "regarding", "message": "note", "reportingComponent": "reportingController",
          "source": "deprecatedSource", "firstTimestamp": "deprecatedFirstTimestamp",
          "lastTimestamp": "deprecatedLastTimestamp", "count": "deprecatedCount"}  # fmt: skip
_OLDER = {newer: older for older, newer in _NEWER.items()}


def is_newer(resource: Resource) -> bool:
    return resource.group == "events.k8s.io"


def body_of(resource: Resource, row: Stored) -> bytes:
    """The body of an object in the form of `resource`."""
    if not is_newer(resource):
        return row.body
    return encode({key: item for key, item in to_newer(row.object).items() if key not in ("kind", "apiVersion")})[1:]


def to_core(value: Json) -> Json:
    return {**{_OLDER.get(key, key): item for key, item in value.items()}, "apiVersion": "v1"}


def to_newer(value: Json) -> Json:
    return {**{_NEWER.get(key, key): item for key, item in value.items()}, "apiVersion": "events.k8s.io/v1"}
