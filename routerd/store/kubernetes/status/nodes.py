"""Of nodes whose agent is silent, of those that wait for their agent, and whether they have addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from routerd.store.kubernetes.objects import NOT_READY_TAINT, SUFFICIENT_IP, Raw, StoredObject
from routerd.store.kubernetes.resources import NODE_UID, NODES, REPORTS
from routerd.store.kubernetes.status.patches import StatusPatch, dated, patch_of


def node_patches(reports: Iterable[StoredObject], silent: Mapping[str, str], now: str) -> list[StatusPatch]:
    """Nobody else says that what an agent said of its node is old. `silent`: since when, by node, in RFC 3339.

    An agent that is back says everything anew.
    """
    patches = []
    for stored in reports:
        before = [each for each in stored.status.get("conditions") or () if isinstance(each, Mapping)]
        if stored.name in silent and any(each.get("status") != "Unknown" for each in before):
            message = (
                f"no word of the agent since {silent[stored.name]}: it does not run, or cannot reach the API server"
            )
            said = {"status": "Unknown", "reason": "AgentAbsent", "message": message}
            patches.append(
                patch_of(REPORTS, stored, {"conditions": dated([{**each, **said} for each in before], before, now)})
            )
    return patches


LONGEST = 1024  # characters of a message
NEEDED = ("StoreSynced", "DatapathAttached")  # of a node that pods may come to; without egress it has no datapath


def welcome_patches(
    nodes: Iterable[StoredObject], reports: Iterable[StoredObject], silent: Mapping[str, str]
) -> list[StatusPatch]:
    """Takes away the taint with which nodes begin until their agent is ready. What an agent said of a Node that had the
    name before says nothing of this one.
    """
    said = {each.name: each.status for each in reports if each.name not in silent}
    return [
        StatusPatch(NODES, node.name, "", node.version, {"taints": _others(node) or None}, node.uid, part="spec")
        for node in nodes
        if node.taints and _is_ready(said.get(node.name, {}), node.uid)
    ]


def _is_ready(status: Mapping[str, Any], uid: str) -> bool:
    found = (each for each in status.get("conditions") or () if isinstance(each, Mapping))
    conditions = {each.get("type"): each.get("status") for each in found}
    is_ready = all(conditions.get(kind, "True") == "True" for kind in NEEDED) and "StoreSynced" in conditions
    return is_ready and status.get(NODE_UID) == uid


def _others(node: StoredObject) -> list[Raw]:
    return [each for each in node.taints if each.get("key") != NOT_READY_TAINT]


def address_patches(nodes: Iterable[StoredObject], lacking: Mapping[str, str], now: str) -> list[StatusPatch]:
    """The condition SufficientIP of nodes whose pods have addresses of a cloud. `lacking`: why some wait; "" = none."""
    patches = []
    for node in nodes:
        before = node.status.get("conditions") or ()
        if (why := lacking.get(node.name)) is not None:
            said = {"reason": "InsufficientIP" if why else SUFFICIENT_IP, "message": why[:LONGEST]}
            conditions = dated([{"type": SUFFICIENT_IP, "status": str(not why), **said}], before, now)
            patches += [] if conditions == before else [patch_of(NODES, node, {"conditions": conditions})]
    return patches
