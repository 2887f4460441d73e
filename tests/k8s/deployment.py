"""What `kubectl apply -k configs/deploy` sends, minimal CRDs of others, and tokens of our service accounts."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from routerd.formats.kinds import KINDS, OURS, Kind
from tests.k8s.client import Client, Json
from tests.k8s.target import DEFINITIONS, remove_definitions, until

DEPLOY = Path(__file__).parents[2] / "configs" / "deploy"
NAMESPACED = {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "DaemonSet", "Deployment"}
NAMESPACED |= {"NetworkPolicy", "PodDisruptionBudget"}


def install(*names: str) -> list[Json]:
    """The objects of these files of configs/deploy, of all of them without a name, in the order of the install."""
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    found = []
    for name in names or kustomization["resources"]:
        for each in yaml.safe_load_all((DEPLOY / name).read_text()):
            place = {"namespace": kustomization["namespace"]} if each["kind"] in NAMESPACED else {}
            found.append({**each, "metadata": {**each["metadata"], **place}})
    return found


def foreign() -> list[Json]:
    """Definitions of the kinds that are read or written and not ours."""
    return [definition(each) for each in KINDS if each.custom and each.read_by | each.status_by and each.group != OURS]


def definition(kind: Kind) -> Json:
    """As loose as a schema can be: only that it is served matters here."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    status: Json = {"subresources": {"status": {}}} if kind.status_by else {}
    versions = [{"name": kind.version, "served": True, "storage": True, "schema": schema, **status}]
    names, scope = {"kind": kind.name, "plural": kind.plural}, "Namespaced" if kind.namespaced else "Cluster"
    spec = {"group": kind.group, "scope": scope, "names": names, "versions": versions}
    head = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    return {**head, "metadata": {"name": f"{kind.plural}.{kind.group}"}, "spec": spec}


@contextmanager
def defined(api: Client, kind: str) -> Iterator[str]:
    """The collection of a copy of one of our kinds in a group of its own, served until the block ends."""
    with established(api, kind) as path:
        until(lambda: api.get(path).code == 200)
        yield path


@contextmanager
def established(api: Client, kind: str) -> Iterator[str]:
    """As `defined`, but nobody has asked for the collection yet: for a moment it may be absent, or refused with 429."""
    found = next(each for each in install("crds.yaml") if each["spec"]["names"]["kind"] == kind)
    group, plural = f"t{uuid.uuid4().hex[:8]}.routerd.example.com", found["spec"]["names"]["plural"]
    spec = {**copy.deepcopy(found["spec"]), "group": group}
    spec["names"]["categories"] = []
    name, path = f"{plural}.{group}", f"/apis/{group}/v1alpha1/{plural}"
    assert api.get(path).code == 404
    answer = api.create(DEFINITIONS, {**found, "metadata": {"name": name}, "spec": spec})
    assert answer.code == 201, answer
    try:
        until(lambda: _is_established(api.get(f"{DEFINITIONS}/{name}").body))
        yield path
    finally:
        remove_definitions(api, name)


def _is_established(each: Json) -> bool:
    conditions = (each.get("status") or {}).get("conditions") or ()
    return any((one["type"], one["status"]) == ("Established", "True") for one in conditions)


def token(api: Client, account: str) -> str:
    """A token of one hour for a service account of namespace routerd. `api` is an administrator's."""
    path = f"/api/v1/namespaces/routerd/serviceaccounts/{account}/token"
    answer = api.create(path, {"spec": {"expirationSeconds": 3600}})
    assert answer.code == 201, answer
    return str(answer.body["status"]["token"])


def kubeconfig_of(administrator: Path, bearer: str, place: Path) -> Path:
    """Writes the administrator's kubeconfig with another token to `place`, readable by root alone."""
    value = yaml.safe_load(administrator.read_text())
    value["users"] = [{**user, "user": {"token": bearer}} for user in value["users"]]
    place.touch(mode=0o600)
    place.write_text(yaml.safe_dump(value, sort_keys=False))
    return place


def kinds(objects: Sequence[Json]) -> set[tuple[str, str]]:
    """(apiVersion, kind) of what the CRDs among `objects` define."""
    specs = [each["spec"] for each in objects if each["kind"] == "CustomResourceDefinition"]
    return {(f"{s['group']}/{version['name']}", s["names"]["kind"]) for s in specs for version in s["versions"]}
