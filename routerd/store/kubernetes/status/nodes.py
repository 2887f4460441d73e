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


BY_US = "routerd: "  # how messages of the condition SufficientIP begin: Alibaba's plugin has one of the same type


def address_patches(nodes: Iterable[StoredObject], lacking: Mapping[str, str] | None, now: str) -> list[StatusPatch]:
    """The condition SufficientIP of nodes whose pods have addresses of a cloud; that of others goes, if it is ours.

    `lacking`: why some wait; "" = none does; None = it is not known yet.
    """
    return [
        patch_of(NODES, node, {"conditions": conditions})
        for node in nodes
        if lacking is not None and (conditions := _condition(node, lacking.get(node.name), now))
    ]


def _condition(node: StoredObject, why: str | None, now: str) -> list[dict[str, Any]]:
    """What is said of it now; [] = nothing else than before."""
    before: list[Mapping[str, Any]] = node.status.get("conditions") or []
    if why is None:
        is_ours = any(str(each.get("message", "")).startswith(BY_US) for each in before)
        return [{"type": SUFFICIENT_IP, "$patch": "delete"}] if is_ours else []
    said = {
        "status": str(not why),
        "reason": "InsufficientIP" if why else SUFFICIENT_IP,
        "message": (BY_US + (why or "pods get addresses"))[:LONGEST],
    }
    conditions = dated([{"type": SUFFICIENT_IP, **said}], before, now)
    is_said = any(conditions[0].items() <= each.items() for each in before)  # an API server adds what it has not got
    return [] if is_said else conditions
