"""What the server says it serves: /version, /api, /apis and the resource lists. Pure."""

from __future__ import annotations

from typing import Any

from .resources import Catalogue, Resource

Json = dict[str, Any]
VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.0-double", "platform": "linux/amd64"}


def document(catalogue: Catalogue, path: str) -> Json | None:
    """The document at `path`; None if there is none."""
    if path == "/version":
        return dict(VERSION)
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    groups = catalogue.groups()
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*item) for item in groups.items()]}
    parts = path.strip("/").split("/")
    if path == "/api/v1":
        return _resources(catalogue, "", "v1")
    if parts[0] != "apis" or len(parts) > 3 or parts[1:2] == [] or parts[1] not in groups:
        return None
    if len(parts) == 2:
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1], groups[parts[1]])}
    return _resources(catalogue, parts[1], parts[2]) if parts[2] in groups[parts[1]] else None


def _group(name: str, versions: list[str]) -> Json:
    items = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": items, "preferredVersion": items[0]}


def _resources(catalogue: Catalogue, group: str, version: str) -> Json:
    found: list[Json] = []
    for item in catalogue.discovered():
        if (item.group, item.version) == (group, version):
            found += [_entry(item), *(_sub_entry(item, name) for name in sorted(item.subresources))]
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found}


def _entry(item: Resource) -> Json:
    entry: Json = {
        "name": item.plural, "singularName": item.singular, "namespaced": item.namespaced, "kind": item.kind,
        "verbs": list(item.verbs),
    }  # fmt: skip
    if item.short_names:
        entry["shortNames"] = list(item.short_names)
    if item.categories:
        entry["categories"] = list(item.categories)
    return entry


_CREATED = {"token": "TokenRequest", "binding": "Binding", "eviction": "Eviction"}


def _sub_entry(item: Resource, name: str) -> Json:
    verbs = ["create"] if name in _CREATED else ["update"] if name == "finalize" else ["get", "patch", "update"]
    return {
        "name": f"{item.plural}/{name}", "singularName": "", "namespaced": item.namespaced,
        "kind": _CREATED.get(name, item.kind), "verbs": verbs,
    }  # fmt: skip
