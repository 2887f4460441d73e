"""Selectors as apimachinery v0.20 takes them: keys, values, operators, and the wording of its errors. Pure."""

from __future__ import annotations

import re
from typing import cast

from routerd.errors import InputError
from routerd.formats.document import Value
from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.golang import prefixed, quote
from routerd.selectors import EVERYTHING, LabelSelector, Operator, Requirement

_NAME = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_SUBDOMAIN = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME_RULE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
)
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character"
)


def node_selectors(struct: Struct) -> tuple[LabelSelector, ...]:
    """Of a peer, or of an advertisement of ours. Raises InputError."""
    return selectors(struct, "node")


def selectors(struct: Struct, what: str) -> tuple[LabelSelector, ...]:
    """Of nodes or of services. Raises InputError."""
    try:
        return tuple(_selector(entry) for entry in struct.structs(f"{what}-selectors"))
    except InputError as error:
        raise prefixed(f"parsing {what} selector: ", error) from error


def _selector(struct: Struct) -> LabelSelector:
    """One entry, with the original's message for what is wrong."""
    labels = struct.maps.get("match-labels", {})
    expressions = struct.structs("match-expressions")
    if not labels and not expressions:
        return EVERYTHING
    for key, (value, place) in labels.items():
        _check_key(key, place)
        _check_value(key, value, place)
    return LabelSelector(
        tuple((key, value) for key, (value, _) in labels.items()),
        tuple(_requirement(expression) for expression in expressions),
    )


def _requirement(struct: Struct) -> Requirement:
    key, operator = struct.text("key"), struct.text("operator")
    values = struct.texts("values")
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        raise struct.at("operator").error(f"{quote(operator)} is not a valid pod selector operator")
    _check_key(key, struct.at("key"))
    if operator in ("In", "NotIn") and not values:
        raise struct.at("values").error("for 'in', 'notin' operators, values set can't be empty")
    if operator in ("Exists", "DoesNotExist") and values:
        raise struct.at("values").error("values set must be empty for exists and does not exist")
    for value, place in values:
        _check_value(key, value, place)
    return Requirement(key, cast(Operator, operator), tuple(value for value, _ in values))


def _check_key(key: str, place: Value) -> None:
    faults = key_faults(key)
    if faults:
        raise place.error(f"invalid label key {quote(key)}: {'; '.join(faults)}")


def _check_value(key: str, value: str, place: Value) -> None:
    faults = value_faults(value)
    if faults:
        raise place.error(f"invalid label value: {quote(value)}: at key: {quote(key)}: {'; '.join(faults)}")


def key_faults(key: str) -> list[str]:
    """What is wrong with a label's key."""
    parts = key.split("/")
    if len(parts) > 2:
        rule = _rule(f"a qualified name {_NAME_RULE}", _NAME, "MyName", "my.name", "123-abc")
        return [f"{rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    faults = [f"prefix part {fault}" for fault in _prefix_faults(parts[0])] if len(parts) == 2 else []
    name = parts[-1]
    if not name:
        faults.append("name part must be non-empty")
    elif len(name) > 63:
        faults.append("name part must be no more than 63 characters")
    if not re.fullmatch(_NAME, name):
        faults.append("name part " + _rule(_NAME_RULE, _NAME, "MyName", "my.name", "123-abc"))
    return faults


def _prefix_faults(prefix: str) -> list[str]:
    if not prefix:
        return ["must be non-empty"]
    faults = ["must be no more than 253 characters"] if len(prefix) > 253 else []
    if not re.fullmatch(_SUBDOMAIN, prefix):
        faults.append(_rule(_SUBDOMAIN_RULE, _SUBDOMAIN, "example.com"))
    return faults


def value_faults(value: str) -> list[str]:
    """What is wrong with a label's value."""
    faults = ["must be no more than 63 characters"] if len(value) > 63 else []
    if not re.fullmatch(f"({_NAME})?", value):
        rule = (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
            "and must start and end with an alphanumeric character"
        )
        faults.append(_rule(rule, f"({_NAME})?", "MyValue", "my_value", "12345"))
    return faults


def _rule(message: str, pattern: str, *examples: str) -> str:
    shown = " or ".join(f"'{example}', " for example in examples)
    return f"{message} (e.g. {shown}regex used for validation is '{pattern}')"
