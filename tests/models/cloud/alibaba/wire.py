"""RPC style between queries and mappings, judged by Alibaba's generated models: what they do not have is an error."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tests.models.cloud.alibaba.calls import BY_NAME
from tests.models.cloud.state import Refusal

VERSIONS = {"ecs": "2014-05-26", "vpc": "2016-04-28"}
NUMBERS = ("Count", "MaxResults", "PageSize", "PageNumber")  # ends of names of parameters that are numbers
MODELS = {"ecs": "alibabacloud_ecs20140526.models", "vpc": "alibabacloud_vpc20160428.models"}


def product(action: str, version: str) -> str:
    """Raises Refusal."""
    name = next((each for each, its in VERSIONS.items() if its == version), "")
    if action not in BY_NAME or BY_NAME[action].permission.split(":")[0] != name:
        raise Refusal("InvalidAction.NotFound", f"{action} of {version}", 404)
    return name


def request(action: str, version: str, query: Mapping[str, str]) -> Mapping[str, Any]:
    """The parameters. Raises Refusal."""
    tree: dict[str, Any] = {}
    for key, value in query.items():
        place = tree
        *path, last = key.split(".")
        for each in path:
            place = place.setdefault(each, {})
        place[last] = value
    found = {key: _value(key, value) for key, value in tree.items()}
    _judged(product(action, version), f"{action}Request", found)
    return found


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(each.isdecimal() for each in value):
            return {key: _value(key, inner) for key, inner in value.items()}
        numbers = sorted(value, key=int)
        if [int(each) for each in numbers] != list(range(1, len(numbers) + 1)):
            raise Refusal("InvalidParameter", f"{name} is no list")
        return [_value(name, value[each]) for each in numbers]
    if name.endswith(NUMBERS):
        return int(value)
    return value.lower() == "true" if value.lower() in ("true", "false") else value


def _judged(product: str, name: str, data: Mapping[str, Any]) -> None:
    """The model drops what it does not have."""
    model = getattr(importlib.import_module(MODELS[product]), name)().from_map(data)
    model.validate()
    if (known := _full(model.to_map())) != _full(data):
        raise Refusal("UnknownParameter", f"{name} has {known}, not {data}")


def _full(data: Any) -> Any:
    """Without empty lists, which a model makes of what is not there."""
    if isinstance(data, Mapping):
        return {key: found for key, value in data.items() if (found := _full(value)) not in ({}, [])}
    return [_full(each) for each in data] if isinstance(data, list) else data


def answer(action: str, version: str, data: Mapping[str, Any], number: str) -> Mapping[str, Any]:
    """AssertionError if the model does not have it so."""
    whole = {**data, "RequestId": number}
    try:
        _judged(product(action, version), f"{action}ResponseBody", whole)
    except Refusal as refusal:
        raise AssertionError(refusal.message) from refusal
    return whole
