"""EC2's query protocol between forms, XML and mappings, by botocore's own model of the service.

What is no parameter of the model, and an answer that the model does not have, is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from botocore.loaders import Loader
from botocore.model import ListShape, ServiceModel, Shape, StructureShape
from botocore.validate import ParamValidator

from tests.models.cloud.state import Refusal

VERSION = "2016-11-15"
NAMESPACE = f"http://ec2.amazonaws.com/doc/{VERSION}/"


@cache
def model() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("ec2", "service-2", VERSION), "ec2")


def request(body: str) -> tuple[str, Mapping[str, Any]]:
    """The action and its parameters. Raises Refusal."""
    form = dict(parse_qsl(body, keep_blank_values=True))
    action, version = form.pop("Action", ""), form.pop("Version", "")
    if version != VERSION or action not in model().operation_names:
        raise Refusal("InvalidAction", f"{action} of {version}")
    tree: dict[str, Any] = {}
    for key, value in form.items():
        place = tree
        *path, last = key.split(".")
        for each in path:
            place = place.setdefault(each, {})
        place[last] = value
    return action, _structure(model().operation_model(action).input_shape, tree, action)


def _key(name: str, shape: Shape) -> str:
    said = shape.serialization
    if "queryName" in said:
        return str(said["queryName"])
    location = str(said.get("name", name))
    return location[0].upper() + location[1:]


def _structure(shape: StructureShape, tree: Any, where: str) -> Mapping[str, Any]:
    members = {_key(name, inner): (name, inner) for name, inner in shape.members.items()}
    if unknown := set(tree) - set(members):
        raise Refusal("UnknownParameter", f"{where}: {', '.join(sorted(unknown))}")
    return {members[key][0]: _value(members[key][1], value, f"{where}.{key}") for key, value in tree.items()}


def _value(shape: Shape, value: Any, where: str) -> Any:
    if isinstance(shape, StructureShape):
        return _structure(shape, value, where)
    if isinstance(shape, ListShape):
        numbers = sorted(value, key=int)
        if [int(each) for each in numbers] != list(range(1, len(numbers) + 1)):
            raise Refusal("MalformedQueryString", where)
        return [_value(shape.member, value[each], where) for each in numbers]
    if shape.type_name == "integer":
        return int(value)
    return value.lower() == "true" if shape.type_name == "boolean" else value


def answer(action: str, data: Mapping[str, Any], number: str) -> str:
    """The XML of an answer. AssertionError if the service's model does not have it so."""
    shape = model().operation_model(action).output_shape
    inner = ""
    if shape is not None:
        report = ParamValidator().validate(data, shape)
        assert not report.has_errors(), f"{action}: {report.generate_report()}"
        inner = "".join(_members(shape, data))
    return f'<{action}Response xmlns="{NAMESPACE}"><requestId>{number}</requestId>{inner}</{action}Response>'


def _members(shape: StructureShape, data: Mapping[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        inner = shape.members[name]
        tag = str(inner.serialization.get("name", name))
        yield f"<{tag}>{_text(inner, value)}</{tag}>"


def _text(shape: Shape, value: Any) -> str:
    if isinstance(shape, StructureShape):
        return "".join(_members(shape, value))
    if isinstance(shape, ListShape):
        return "".join(f"<item>{_text(shape.member, each)}</item>" for each in value)
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else escape(str(value))


def error(refusal: Refusal, number: str) -> str:
    inner = f"<Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>"
    return f"<Response><Errors><Error>{inner}</Error></Errors><RequestID>{number}</RequestID></Response>"
