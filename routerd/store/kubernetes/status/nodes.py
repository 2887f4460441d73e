"""Of nodes whose agent is silent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.resources import REPORTS
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
