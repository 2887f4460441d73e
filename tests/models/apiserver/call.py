"""A request to the API, taken apart: verb, resource, name, options. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import errors
from .resources import Catalogue, Resource


@dataclass(frozen=True, slots=True)
class User:
    name: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """`namespace` and `name` are "" where the path has none; `verb` is the one that RBAC knows."""

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = ""
    user: User = User("")

    @property
    def key(self) -> str:
        return self.key_of(self.namespace, self.name)

    def key_of(self, namespace: str, name: str) -> str:
        return f"{namespace}/{name}" if self.resource.namespaced else name

    @property
    def dry_run(self) -> bool:
        value = self.query.get("dryRun", "")
        if value not in ("", "All"):
            fault = ("dryRun", "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: "All"')
            raise errors.Invalid("meta.k8s.io", "CreateOptions", "", [fault])
        return value == "All"

    @property
    def field_manager(self) -> str:
        return self.query.get("fieldManager", "")

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("true", "1", "t")


def _below_api(path: str) -> tuple[str, str, list[str]]:
    """Group and version of a path, and what comes after them: nothing of a path that is not of the API."""
    parts = [part for part in path.split("/") if part]
    if parts[:2] == ["api", "v1"]:
        return "", "v1", parts[2:]
    if parts[:1] == ["apis"] and len(parts) > 3:
        return parts[1], parts[2], parts[3:]
    return "", "", []


def parse_path(catalogue: Catalogue, path: str) -> tuple[Resource, str, str, str] | None:
    """Resource, namespace, name and subresource of a path; None if nothing is served there."""
    group, version, rest = _below_api(path)
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and not (not group and rest[2] in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    if not rest or len(rest) > 3:
        return None
    resource = catalogue.find(group, version, rest[0])
    name, subresource = [*rest[1:], "", ""][:2]
    if resource is None or (namespace and not resource.namespaced) or (name and resource.namespaced and not namespace):
        return None
    if subresource and subresource not in resource.subresources:
        return None
    return resource, namespace, name, subresource


def guess_path(path: str) -> tuple[Resource, str, str, str] | None:
    """What a path would mean if its resource were served: access is checked before that is looked at."""
    group, version, rest = _below_api(path)
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return None
    name, subresource = [*rest[1:], "", ""][:2]
    return Resource(group, version, rest[0], "", namespaced=bool(namespace)), namespace, name, subresource


_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def verb_of(method: str, name: str, query: Mapping[str, str]) -> str:
    """The verb of RBAC; "" if the method means nothing here."""
    verb = _VERBS.get(method, "")
    if verb == "get" and not name:
        return "watch" if query.get("watch", "").lower() in ("true", "1", "t") else "list"
    if verb == "get" and query.get("watch", "").lower() in ("true", "1", "t"):
        return "watch"
    return "deletecollection" if verb == "delete" and not name else verb
