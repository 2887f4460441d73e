"""CustomResourceDefinitions: checked, defaulted, and made into resources that are served."""

from __future__ import annotations

from collections.abc import Iterator

from . import schema
from .errors import Invalid, Json
from .resources import Resource
from .schema import Fault

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def with_defaults(value: Json) -> Json:
    """Names that follow from others. Raises Invalid."""
    spec = value.get("spec") or {}
    names = spec.get("names") or {}
    names.setdefault("singular", str(names.get("kind", "")).lower())
    names.setdefault("listKind", f"{names.get('kind', '')}List")
    spec["names"] = names
    spec.setdefault("conversion", {"strategy": "None"})
    value["spec"] = spec
    faults = list(_faults(value))
    if faults:
        group, kind = "apiextensions.k8s.io", "CustomResourceDefinition"
        raise Invalid(group, kind, value["metadata"].get("name", ""), faults)
    return value


def _faults(value: Json) -> Iterator[Fault]:
    spec, names = value["spec"], value["spec"]["names"]
    for path, item in (("spec.group", spec.get("group")), ("spec.names.plural", names.get("plural")),
                       ("spec.names.kind", names.get("kind")), ("spec.versions", spec.get("versions"))):  # fmt: skip
        if not item:
            yield path, "FieldValueRequired", "Required value"
    if value["metadata"].get("name") != f"{names.get('plural')}.{spec.get('group')}":
        message = f'Invalid value: "{value["metadata"].get("name")}": must be spec.names.plural+"."+spec.group'
        yield "metadata.name", "FieldValueInvalid", message
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        message = f'Unsupported value: "{spec.get("scope")}": supported values: "Cluster", "Namespaced"'
        yield "spec.scope", "FieldValueNotSupported", message
    if str(spec.get("group", "")).endswith((".k8s.io", ".kubernetes.io")):
        message = "Required value: protected groups must have approval annotation"
        yield "metadata.annotations[api-approved.kubernetes.io]", "FieldValueRequired", message
    if [version.get("storage") for version in spec.get("versions") or ()].count(True) != 1:
        yield (
            "spec.versions",
            "FieldValueInvalid",
            "Invalid value: must have exactly one version marked as storage version",
        )
    for index, version in enumerate(spec.get("versions") or ()):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        found = (version.get("schema") or {}).get("openAPIV3Schema")
        if found is None:
            yield path, "FieldValueRequired", "Required value: schemas are required"
        else:
            yield from schema.structural_faults(found, path)


def resources_of(value: Json) -> list[Resource]:
    """What an established definition serves."""
    spec, names = value["spec"], value["spec"]["names"]
    return [
        Resource(
            group=spec["group"], version=version["name"], plural=names["plural"], kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced", short_names=tuple(names.get("shortNames") or ()),
            subresources=frozenset(version.get("subresources") or {}), singular=names["singular"],
            categories=tuple(names.get("categories") or ()), unconditional_update=False,
            schema=version["schema"]["openAPIV3Schema"], fields=_fields(version),
        )
        for version in spec["versions"] if version.get("served")
    ]  # fmt: skip


def _fields(version: Json) -> frozenset[str]:
    more = {item["jsonPath"].removeprefix(".") for item in version.get("selectableFields") or ()}
    return frozenset({"metadata.name", "metadata.namespace"} | more)


def established(value: Json, now: str) -> Json:
    """The status of a definition that is served."""
    spec = value["spec"]
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}
        for kind, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    stored = [version["name"] for version in spec["versions"] if version.get("storage")]
    return {"conditions": conditions, "acceptedNames": spec["names"], "storedVersions": stored}
