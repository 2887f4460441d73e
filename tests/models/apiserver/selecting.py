"""Label and field selectors of list, watch and deletecollection. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .errors import bad_request
from .resources import METADATA, Resource

Json = dict[str, Any]
Match = Callable[[Json], bool]
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"({_NAME}/)?{_NAME}")
_SET = re.compile(r"(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL = re.compile(r"(?P<key>[^=!\s]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^=!\s]*)")


def select(resource: Resource, labels: str, fields: str) -> Match | None:
    """One predicate for both selectors; None = everything. Raises ApiError 400."""
    tests = [*_labels(labels), *_fields(resource, fields)]
    return (lambda item: all(test(item) for test in tests)) if tests else None


def _labels(text: str) -> list[Match]:
    return [_label(term.strip(), text) for term in re.split(r",(?![^()]*\))", text)] if text.strip() else []


def _label(term: str, whole: str) -> Match:
    if found := _SET.fullmatch(term):
        values = {value.strip() for value in found["values"].split(",")}
        return _member(_key(found["key"], whole), values, found["op"] == "in")
    if found := _EQUAL.fullmatch(term):
        return _member(_key(found["key"], whole), {found["value"]}, found["op"] != "!=")
    if term.startswith("!"):
        key = _key(term[1:].strip(), whole)
        return lambda item: key not in _of(item)
    key = _key(term, whole)
    return lambda item: key in _of(item)


def _member(key: str, values: set[str], wanted: bool) -> Match:
    if wanted:
        return lambda item: _of(item).get(key) in values
    return lambda item: _of(item).get(key) not in values


def _of(item: Json) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def _key(key: str, whole: str) -> str:
    if not _KEY.fullmatch(key):
        raise bad_request(f'unable to parse requirement: found {key!r} in label selector "{whole}"')
    return key


def _fields(resource: Resource, text: str) -> list[Match]:
    return [_field(resource, term, text) for term in text.split(",") if term]


def _field(resource: Resource, term: str, whole: str) -> Match:
    found = re.fullmatch(r"(?P<path>[^=!]+)(?P<op>==|=|!=)(?P<value>.*)", term)
    if found is None:
        raise bad_request(f"invalid field selector: {whole}; can't understand '{term}'")
    path = found["path"]
    if path not in resource.fields:
        if resource.custom or resource.fields != METADATA:
            raise bad_request(f"field label not supported: {path}")
        raise bad_request(f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"')
    wanted, value = found["op"] != "!=", found["value"]
    return lambda item: (_value(item, path) == value) is wanted


def _value(item: Any, path: str) -> str:
    for part in path.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    if item is None:
        return "false" if path in ("spec.unschedulable", "spec.hostNetwork") else ""
    return str(item).lower() if isinstance(item, bool) else str(item)
