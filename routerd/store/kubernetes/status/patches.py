"""A write to a status, and the conditions in it. Pure.

Every patch bears the resourceVersion and the uid of the object that it was decided for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from routerd.formats.kinds import OURS, Kind
from routerd.model import Allocations, Refusal, Snapshot
from routerd.refs import Ref
from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.resources import MERGE_PATCH, NODES, STRATEGIC_MERGE_PATCH, object_path

CONFLICTS = frozenset({"Conflicting", "PoolConflicting", "Duplicate", "AddressInUse", "PortInUse", "GatewaysDiffer"})


@dataclass(frozen=True, slots=True)
class StatusPatch:
    """A write to the status subresource, or with `part` spec one to the object: `status` is that part of it."""

    kind: Kind
    name: str
    namespace: str
    version: str
    status: Mapping[str, Any]
    uid: str = ""
    part: Literal["status", "spec"] = "status"

    @property
    def path(self) -> str:
        return object_path(self.kind, self.name, self.namespace, "status" if self.part == "status" else "")

    @property
    def media(self) -> str:
        """The conditions of a Node are of many: of a strategic merge patch each counts by its type."""
        return STRATEGIC_MERGE_PATCH if self.kind is NODES and self.part == "status" else MERGE_PATCH

    @property
    def body(self) -> dict[str, Any]:
        meta = {"name": self.name, "resourceVersion": self.version, "uid": self.uid}
        shown = {"apiVersion": self.kind.api_version, "kind": self.kind.name}
        return {**shown, "metadata": meta, self.part: dict(self.status)}


def patch_of(kind: Kind, stored: StoredObject, status: Mapping[str, Any]) -> StatusPatch:
    return StatusPatch(kind, stored.name, stored.namespace, stored.version, status, stored.uid)


def is_said(patch: StatusPatch, version: str, before: StatusPatch) -> bool:
    """Whether what was written `before`, of which `version` came, need not be written again.

    Of another maker's kind nothing is written twice: where its own controller runs, it has the last word.
    """
    if patch.kind.custom and patch.kind.group != OURS:
        return patch.uid == before.uid and _undated(patch.status) == _undated(before.status)
    return (patch.version, patch.status) == (version, before.status)


def _undated(status: Mapping[str, Any]) -> dict[str, Any]:
    conditions = [{**each, "lastTransitionTime": ""} for each in status.get("conditions") or ()]
    return {**status, "conditions": conditions}


def condition(kind: str, holds: bool, reason: str, message: str, generation: int) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message[:32768],
        "observedGeneration": generation,
    }


def dated(conditions: list[dict[str, Any]], before: Iterable[Mapping[str, Any]], now: str) -> list[dict[str, Any]]:
    """With the time of the last transition: it stays while the condition's status does."""
    old = {str(each.get("type")): each for each in before}
    with_times = []
    for each in conditions:
        last = old.get(each["type"], {})
        since = last.get("lastTransitionTime") if last.get("status") == each["status"] else None
        with_times.append({**each, "lastTransitionTime": since or now})
    return with_times


def with_conditions(
    stored: StoredObject, status: dict[str, Any], conditions: list[dict[str, Any]], now: str
) -> dict[str, Any] | None:
    """The whole status, or None if it is there already. What we do not set any more is removed."""
    whole = {**status, "observedGeneration": stored.generation}
    whole["conditions"] = dated(conditions, stored.status.get("conditions") or (), now)
    if whole == dict(stored.status):
        return None
    return {**dict.fromkeys(stored.status), **whole}


def refusals_by_object(snapshot: Snapshot, allocations: Allocations) -> dict[Ref, list[Refusal]]:
    by_object: dict[Ref, list[Refusal]] = {}
    for refusal in (*snapshot.refusals, *allocations.refusals):
        by_object.setdefault(refusal.object, []).append(refusal)
    return by_object


def conflicting(refusals: list[Refusal], generation: int) -> dict[str, Any]:
    conflict = next((each for each in refusals if each.reason in CONFLICTS), None)
    if conflict is None:
        return condition("Conflicting", False, "NoConflict", "", generation)
    return condition("Conflicting", True, conflict.reason, conflict.message, generation)
