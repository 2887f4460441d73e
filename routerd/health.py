"""How a node is, for its RouterdNode object: an agent's status in the words of the Kubernetes API. Pure."""

from __future__ import annotations

from typing import Any

from routerd.model import Allocations
from routerd.status import AgentStatus, PeerStatus


def node_health(status: AgentStatus, allocations: Allocations | None) -> dict[str, Any]:
    """Part of a status; conditions bear no times, which the writer adds."""
    found: dict[str, Any] = {"peers": [_peer(each) for each in status.peers], "conditions": [_ready(status)]}
    if allocations is not None:
        found["generation"] = allocations.generation
    return found


def _peer(each: PeerStatus) -> dict[str, Any]:
    view = each.view
    state = view.state or ("up" if view.up else "down")
    shown = {"address": str(view.address), "name": each.label, "state": state, "paths": view.announced or 0}
    return {**shown, "message": view.last_error} if view.last_error else shown


def _ready(status: AgentStatus) -> dict[str, str]:
    """What keeps the node from being ready, the gravest first."""
    down = [each.label for each in status.peers if not each.view.up]
    reasons = [
        ("NotSynced", f"not read yet: {', '.join(status.missing)}", bool(status.missing)),
        ("ConfigurationRefused", status.config_error, bool(status.config_error)),
        ("RoundFailed", status.rounds.last_error, bool(status.rounds.last_error)),
        ("SessionDown", f"down: {', '.join(down)}", bool(down)),
    ]
    reason, message = next(((name, text) for name, text, holds in reasons if holds), ("Ready", ""))
    return {"type": "Ready", "status": "True" if reason == "Ready" else "False", "reason": reason, "message": message}
