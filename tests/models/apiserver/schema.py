"""Structural schemas of CRDs (apiextensions v1): what may be in one, pruning, defaults, validation. Pure."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from typing import Any

from .cel import RULES
from .errors import Json

Fault = tuple[str, str, str]  # field, reason, message


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KEYWORDS = _words(
    "type description title format default nullable example externalDocs properties additionalProperties items "
    "required enum pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems "
    "maxItems minProperties maxProperties uniqueItems oneOf anyOf allOf not x-kubernetes-preserve-unknown-fields "
    "x-kubernetes-int-or-string x-kubernetes-embedded-resource x-kubernetes-list-type x-kubernetes-list-map-keys "
    "x-kubernetes-map-type x-kubernetes-validations"
)
_ONLY_OUTSIDE = _words("description type default additionalProperties nullable x-kubernetes-validations")
_JUNCTORS = ("allOf", "anyOf", "oneOf")
PRESERVE, INT_OR_STRING = "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"
_ROOT = frozenset({"apiVersion", "kind", "metadata"})
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_FORMATS: dict[str, Callable[[str], bool]] = {
    "cidr": lambda text: "/" in text and "." not in text.split("/")[1] and "%" not in text and bool(ip_interface(text)),
    "ipv4": lambda text: "." in text and bool(ip_address(text)),
    "ipv6": lambda text: ":" in text and "%" not in text and bool(ip_address(text)),
    "date-time": lambda text: _DATE_TIME.fullmatch(text) is not None,
    "int32": lambda text: True, "int64": lambda text: True,
}  # fmt: skip
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
}  # fmt: skip


# --- what a CRD may say


def structural_faults(schema: Json, path: str) -> Iterator[Fault]:
    """Why a schema is not structural, or has a rule that this double does not know."""
    if schema.get("type") != "object":
        yield f"{path}.type", "FieldValueInvalid", 'Invalid value: "": must be object at the root'
    yield from _node_faults(schema, path)


def _node_faults(schema: Json, path: str) -> Iterator[Fault]:
    yield from _keyword_faults(schema, path)
    yield from _rule_text_faults(schema, path)
    if schema.get("x-kubernetes-list-type") == "map":
        yield from _map_key_faults(schema, path)
    for name, item in (schema.get("properties") or {}).items():
        yield from _node_faults(item, f"{path}.properties[{name}]")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from _node_faults(schema[word], f"{path}.{word}")
    yield from _logic_faults(schema, path)
    if "default" in schema:
        yield from validate(schema["default"], schema, f"{path}.default")


def _keyword_faults(schema: Json, path: str) -> Iterator[Fault]:
    for word in schema:
        if word not in _KEYWORDS:
            yield f"{path}.{word}", "FieldValueForbidden", f'Forbidden: unknown keyword "{word}"'
    if not schema.get("type") and not schema.get(PRESERVE) and not schema.get(INT_OR_STRING):
        yield f"{path}.type", "FieldValueRequired", "Required value: must not be empty for specified object fields"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{path}.additionalProperties", "FieldValueForbidden", "Forbidden: must not be used with properties"
    if schema.get("type") == "array" and "items" not in schema:
        yield f"{path}.items", "FieldValueRequired", "Required value: must be specified"
    if schema.get("format") is not None and schema["format"] not in _FORMATS:
        yield f"{path}.format", "FieldValueNotSupported", f'Unsupported value: "{schema["format"]}" (not in the double)'


def _rule_text_faults(schema: Json, path: str) -> Iterator[Fault]:
    for index, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
        if rule.get("rule") not in RULES:
            message = f'Invalid value: "{rule.get("rule")}": the double has no equivalent of this rule (cel.py)'
            yield f"{path}.x-kubernetes-validations[{index}].rule", "FieldValueInvalid", message


def _map_key_faults(schema: Json, path: str) -> Iterator[Fault]:
    keys, items = schema.get("x-kubernetes-list-map-keys") or [], schema.get("items") or {}
    if not keys:
        yield (
            f"{path}.x-kubernetes-list-map-keys",
            "FieldValueRequired",
            "Required value: must not be empty if type is map",
        )
    for key in keys:
        if key not in (items.get("required") or ()) and "default" not in (items.get("properties") or {}).get(key, {}):
            where = f"{path}.items.properties[{key}].default"
            message = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            )
            yield where, "FieldValueRequired", f"Required value: {message}"


def _logic_faults(schema: Json, path: str) -> Iterator[Fault]:
    for word in _JUNCTORS:
        for index, item in enumerate(schema.get(word) or ()):
            yield from _value_faults(item, schema, f"{path}.{word}[{index}]")
    if "not" in schema:
        yield from _value_faults(schema["not"], schema, f"{path}.not")


def _value_faults(part: Json, whole: Json, path: str) -> Iterator[Fault]:
    """Inside a junctor only values are checked: every field must be declared outside too."""
    for word in part:
        if word in _ONLY_OUTSIDE and not (word == "type" and whole.get(INT_OR_STRING)):
            yield f"{path}.{word}", "FieldValueForbidden", "Forbidden: must be empty to be structural"
    for name, item in (part.get("properties") or {}).items():
        declared = (whole.get("properties") or {}).get(name)
        if declared is None:
            yield (
                f"{path}.properties[{name}]",
                "FieldValueRequired",
                "Required value: because it is defined in a junctor",
            )
        else:
            yield from _value_faults(item, declared, f"{path}.properties[{name}]")
    if isinstance(part.get("items"), dict):
        yield from _value_faults(part["items"], whole.get("items") or {}, f"{path}.items")
    yield from _logic_faults(part, path)


# --- pruning and defaults


def prune(value: Any, schema: Json, path: str = "", *, root: bool = False) -> tuple[Any, list[str]]:
    """The value without fields that the schema does not know, and their paths."""
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        pairs = [prune(item, schema["items"], f"{path}[{index}]") for index, item in enumerate(value)]
        return [item for item, _ in pairs], [name for _, names in pairs for name in names]
    if not isinstance(value, dict):
        return value, []
    known, rest, keep = schema.get("properties") or {}, schema.get("additionalProperties"), schema.get(PRESERVE)
    kept: Json = {}
    lost: list[str] = []
    for name, item in value.items():
        inner = known.get(name) or (rest if isinstance(rest, dict) else None)
        if root and name in _ROOT:
            kept[name] = item
        elif inner is not None:
            kept[name], names = prune(item, inner, _join(path, name))
            lost += names
        elif keep or rest is True:
            kept[name] = item
        else:
            lost.append(_join(path, name))
    return kept, lost


def with_defaults(value: Any, schema: Json) -> Any:
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [with_defaults(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    known, rest = schema.get("properties") or {}, schema.get("additionalProperties")
    for name, inner in known.items():
        missing = name not in value or (value[name] is None and not inner.get("nullable"))
        if missing and "default" in inner:
            value[name] = copy.deepcopy(inner["default"])
    for name in value:
        inner = known.get(name) or (rest if isinstance(rest, dict) else None)
        if inner is not None:
            value[name] = with_defaults(value[name], inner)
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- validation


def validate(value: Any, schema: Json, path: str = "") -> list[Fault]:
    """Faults of the schema; CEL rules are looked at only when there are none."""
    faults = list(_validate(value, schema, path))
    return faults or list(_rule_faults(value, schema, path))


def _validate(value: Any, schema: Json, path: str) -> Iterator[Fault]:
    if value is None and schema.get("nullable"):
        return
    if fault := _type_fault(value, schema, path):
        yield fault
        return
    yield from _value_checks(value, schema, path)
    if isinstance(value, dict):
        yield from _object_checks(value, schema, path)
    elif isinstance(value, list):
        yield from _list_checks(value, schema, path)
    elif isinstance(value, str):
        yield from _string_checks(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_checks(value, schema, path)


def _type_fault(value: Any, schema: Json, path: str) -> Fault | None:
    wanted = schema.get("type")
    if schema.get(INT_OR_STRING) and isinstance(value, int | str) and not isinstance(value, bool):
        return None
    if not wanted or (isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))):
        return None
    found = next((name for name, kind in _TYPES.items() if type(value) is kind), "null" if value is None else "number")
    message = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return path, "FieldValueTypeInvalid", message


def _value_checks(value: Any, schema: Json, path: str) -> Iterator[Fault]:
    if "enum" in schema and value not in schema["enum"]:
        options = ", ".join(json.dumps(item) for item in schema["enum"])
        yield path, "FieldValueNotSupported", f"Unsupported value: {json.dumps(value)}: supported values: {options}"
    inner = [not any(_validate(value, item, path)) for item in schema.get("oneOf") or ()]
    if inner and sum(inner) != 1:
        found = "none valid" if not any(inner) else f"{sum(inner)} valid alternatives"
        yield (
            path,
            "FieldValueInvalid",
            f'Invalid value: "": "{path}" must validate one and only one schema (oneOf). Found {found}',
        )
    inner = [not any(_validate(value, item, path)) for item in schema.get("anyOf") or ()]
    if inner and not any(inner):
        yield path, "FieldValueInvalid", f'Invalid value: "": "{path}" must validate at least one schema (anyOf)'
    for item in schema.get("allOf") or ():
        yield from _validate(value, item, path)
    if "not" in schema and not any(_validate(value, schema["not"], path)):
        yield path, "FieldValueInvalid", f'Invalid value: "": "{path}" must not validate the schema (not)'


def _object_checks(value: Json, schema: Json, path: str) -> Iterator[Fault]:
    for name in schema.get("required") or ():
        if name not in value:
            yield _join(path, name), "FieldValueRequired", "Required value"
    if "minProperties" in schema and len(value) < schema["minProperties"]:
        yield path, "FieldValueInvalid", _too(len(value), path, f"have at least {schema['minProperties']} properties")
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {schema['maxProperties']} items"
    known, rest = schema.get("properties") or {}, schema.get("additionalProperties")
    for name, item in value.items():
        inner = known.get(name) or (rest if isinstance(rest, dict) else None)
        if inner is not None:
            yield from _validate(item, inner, _join(path, name))


def _list_checks(value: list[Any], schema: Json, path: str) -> Iterator[Fault]:
    if "minItems" in schema and len(value) < schema["minItems"]:
        yield path, "FieldValueInvalid", _too(len(value), path, f"have at least {schema['minItems']} items")
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
    if isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from _validate(item, schema["items"], f"{path}[{index}]")
    seen: list[Any] = []
    for index, item in enumerate(value):
        key = _list_key(item, schema)
        if key is not None and key in seen:
            yield f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {json.dumps(key)}"
        seen.append(key)


def _list_key(item: Any, schema: Json) -> Any:
    kind = schema.get("x-kubernetes-list-type")
    if kind == "map" and isinstance(item, dict):
        return {name: item.get(name) for name in schema["x-kubernetes-list-map-keys"]}
    return item if kind == "set" else None


def _string_checks(value: str, schema: Json, path: str) -> Iterator[Fault]:
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield path, "FieldValueTooLong", f"Too long: may not be more than {schema['maxLength']} bytes"
    if "minLength" in schema and len(value) < schema["minLength"]:
        yield path, "FieldValueInvalid", _too(json.dumps(value), path, f"be at least {schema['minLength']} chars long")
    if "pattern" in schema and not re.search(_python(schema["pattern"]), value):
        yield path, "FieldValueInvalid", _too(json.dumps(value), path, f"match '{schema['pattern']}'")
    if schema.get("format") and not _has_format(value, schema["format"]):
        wanted = schema["format"]
        message = f"Invalid value: {json.dumps(value)}: {path} in body must be of type {wanted}: {json.dumps(value)}"
        yield path, "FieldValueTypeInvalid", message


def _python(pattern: str) -> str:
    """RE2's `$` is the end of the text; Python's also the place before a last line feed."""
    return re.sub(r"(?<!\\)\$", r"\\Z", pattern)


def _has_format(value: str, wanted: str) -> bool:
    try:
        return bool(_FORMATS[wanted](value))
    except ValueError:
        return False


def _number_checks(value: float, schema: Json, path: str) -> Iterator[Fault]:
    if "minimum" in schema and value < schema["minimum"]:
        yield path, "FieldValueInvalid", _too(value, path, f"be greater than or equal to {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        yield path, "FieldValueInvalid", _too(value, path, f"be less than or equal to {schema['maximum']}")
    if schema.get("format") == "int32" and not -(2**31) <= value < 2**31:
        yield path, "FieldValueInvalid", _too(value, path, "be of type int32")


def _too(value: object, path: str, what: str) -> str:
    return f"Invalid value: {value}: {path} in body should {what}"


def _rule_faults(value: Any, schema: Json, path: str) -> Iterator[Fault]:
    for rule in schema.get("x-kubernetes-validations") or ():
        if not RULES[rule["rule"]](value):
            text = rule.get("message") or f"failed rule: {rule['rule']}"
            yield path, "FieldValueInvalid", f"Invalid value: {text}"
    known, rest = schema.get("properties") or {}, schema.get("additionalProperties")
    if isinstance(value, dict):
        for name, item in value.items():
            inner = known.get(name) or (rest if isinstance(rest, dict) else None)
            if inner is not None:
                yield from _rule_faults(item, inner, _join(path, name))
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            yield from _rule_faults(item, schema["items"], f"{path}[{index}]")
