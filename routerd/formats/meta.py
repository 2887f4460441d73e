"""What every object has: apiVersion, kind, metadata; and label selectors. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from routerd.formats.document import Section, Value
from routerd.formats.legacy_bgp.labels import key_faults, value_faults
from routerd.model import Origin
from routerd.selectors import LabelSelector, Operator, Requirement

ROUTERD = "routerd.io/v1alpha1"
ENVELOPE = ("apiVersion", "kind", "metadata", "spec", "status")  # all that an object may have
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Meta:
    api_version: str
    kind: str
    namespace: str  # "" where the kind has none or none is given
    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    created: str
    uid: str
    origin: Origin

    @property
    def namespace_or_default(self) -> str:
        return self.namespace or "default"


def read_meta(value: Value) -> Meta:
    """Raises InputError if kind or name are missing."""
    section = value.section
    metadata = section.require("metadata").section
    return Meta(
        api_version=section.string("apiVersion"),
        kind=section.require("kind").name(),
        namespace=metadata.string("namespace"),
        name=metadata.require("name").name(),
        labels=metadata.texts("labels"),
        annotations=metadata.texts("annotations"),
        created=metadata.string("creationTimestamp"),
        uid=metadata.string("uid"),
        origin=value.origin,
    )


def check_name(value: Value) -> None:
    """The rule of Kubernetes for names of custom resources (RFC 1123 subdomain)."""
    name = value.section.require("metadata").section.require("name")
    if not _NAME.fullmatch(name.text):
        name.expected("a name of lower case letters, digits, '-' and '.', at most 253 of them")


def label_selector(value: Value, *, strict: bool, rename: Callable[[str], str] = str) -> LabelSelector:
    """`matchLabels` and `matchExpressions`. `rename` maps label keys; `strict` refuses any other key."""
    section = value.section
    if strict:
        section.only("matchLabels", "matchExpressions")
    labels = section.get("matchLabels")
    pairs = labels.section.entries.items() if labels else ()
    return LabelSelector(
        tuple((_label_key(value, key, rename), _label_value(item)) for key, item in pairs),
        tuple(_requirement(item, strict, rename) for item in section.items("matchExpressions")),
    )


def _label_key(place: Value, key: str, rename: Callable[[str], str]) -> str:
    renamed = rename(key)
    faults = key_faults(renamed)
    if faults:
        raise place.error(f'found the label key "{key}": {"; ".join(faults)}')
    return renamed


def _label_value(value: Value) -> str:
    text = "" if value.is_null else value.string("a label's value")
    faults = value_faults(text)
    if faults:
        raise value.error(f"found {value.found()}: {'; '.join(faults)}")
    return text


def _requirement(value: Value, strict: bool, rename: Callable[[str], str]) -> Requirement:
    section = value.section
    if strict:
        section.only("key", "operator", "values")
    operator = section.require("operator").choice("In", "NotIn", "Exists", "DoesNotExist")
    values = tuple(_label_value(item) for item in section.items("values"))
    if operator in ("In", "NotIn") and not values:
        raise value.error(f'operator {operator} needs "values"')
    if operator in ("Exists", "DoesNotExist") and values:
        raise value.error(f'operator {operator} takes no "values"')
    key = section.require("key")
    return Requirement(_label_key(key, key.name(), rename), cast(Operator, operator), values)


def selector_at(section: Section, key: str, *, strict: bool) -> LabelSelector | None:
    """The selector at `key`; None if it is not given (an empty one selects everything)."""
    value = section.get(key)
    if value is None and key in section.entries and strict:
        section.entries[key].expected("a selector; {} selects everything")
    return None if value is None else label_selector(value, strict=strict)


__all__ = ["ENVELOPE", "ROUTERD", "Meta", "check_name", "label_selector", "read_meta", "selector_at"]
