"""What the operator writes into the status of policies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from routerd.store.kubernetes.objects import StoredObject
from routerd.store.kubernetes.status import node_patches, policy_patches
from tests.models.operator_world import World

KNOWN = StoredObject("web", "", "1", "9", "2026-01-01T00:00:00Z", generation=3)
SIX, FOUR = ip_network("2001:db8::/32"), ip_network("203.0.113.0/24")


@pytest.mark.parametrize(
    ("destinations", "ip", "ready", "allocated"),
    [
        ((FOUR,), "198.51.100.7", ("True", "Ready"), ("True", "Allocated")),
        ((FOUR, SIX), "198.51.100.7", ("False", "UnsupportedFamily"), ("True", "Allocated")),
        ((SIX,), "198.51.100.7", ("False", "UnsupportedFamily"), ("False", "UnsupportedFamily")),
        ((FOUR,), "2001:db8::7", ("False", "UnsupportedFamily"), ("False", "UnsupportedFamily")),
    ],
)
def test_a_policy_that_is_half_in_effect_is_not_ready(
    destinations: object, ip: str, ready: tuple[str, str], allocated: tuple[str, str]
) -> None:
    world = World()
    world.node("g")
    world.policy("web", ip, destinations=destinations)
    world.decide()
    (patch,) = policy_patches([KNOWN], world.snapshot(), "2026-01-02T00:00:00Z")
    said = {each["type"]: (each["status"], each["reason"]) for each in patch.status["conditions"]}
    assert (said["Ready"], said["Allocated"]) == (ready, allocated)


def test_conditions_of_a_silent_agent_are_unknown_once_and_bear_their_time() -> None:
    then, now, since = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T23:59:00Z"
    said = [{"type": each, "status": "True", "reason": each, "message": "", "lastTransitionTime": then}
            for each in ("Ready", "StoreSynced")]  # fmt: skip
    silent, heard, mute = (
        replace(KNOWN, name=name, status={"lastSeen": then, **({"conditions": said} if name != "mute" else {})})
        for name in ("silent", "heard", "mute")
    )
    (patch,) = node_patches([silent, heard, mute], {"silent": since, "mute": since}, now)
    assert (patch.name, list(patch.status)) == ("silent", ["conditions"])
    assert [(each["type"], each["status"], each["reason"], each["lastTransitionTime"])
            for each in patch.status["conditions"]] == [
        ("Ready", "Unknown", "AgentAbsent", now), ("StoreSynced", "Unknown", "AgentAbsent", now),
    ]  # fmt: skip
    written = replace(silent, status={**silent.status, **patch.status})
    assert node_patches([written], {"silent": since}, "2026-01-03T00:00:00Z") == []
