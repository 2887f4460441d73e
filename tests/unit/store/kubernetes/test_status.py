"""What the operator writes into the status of policies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.formats.kinds import BY_NAME
from routerd.model import Allocations, Refusal, ServiceAllocation, Snapshot
from routerd.refs import service_ref
from routerd.store.kubernetes.objects import Collection, StoredObject
from routerd.store.kubernetes.resources import Resource
from routerd.store.kubernetes.status.nodes import node_patches
from routerd.store.kubernetes.status.policies import policy_patches
from routerd.store.kubernetes.status.services import ServicePatches
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


OURS = ("192.0.2.1", "192.0.2.2")
STRANGE = "203.0.113.9"
HOSTED = {"hostname": "a.example"}
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("service"), st.sampled_from("abc"), st.sampled_from(["LoadBalancer", "ClusterIP", "nonsense"]),
            st.sampled_from([[], [{"ip": OURS[0]}], [{"ip": OURS[1]}], [{"ip": STRANGE}], [HOSTED]]),
        ),
        st.tuples(st.just("gone"), st.sampled_from("abc")),
        st.tuples(st.just("granted"), st.sampled_from("abc"), st.sampled_from([None, *OURS])),
        st.tuples(st.just("denied"), st.sampled_from("abc")),
    ),
    max_size=8,
)  # fmt: skip


@given(EVENTS)
def test_patches_of_services_from_what_was_kept_are_those_that_are_made_anew(events: list[tuple[Any, ...]]) -> None:
    collection, kept = Collection(Resource(BY_NAME["", "Service"]), keep_status=True), ServicePatches()
    granted: dict[str, ServiceAllocation] = {}
    denied: set[str] = set()
    for version, (what, name, *rest) in enumerate(events):
        if what == "service":
            meta = {"namespace": "d", "name": name, "uid": name, "resourceVersion": str(version)}
            status = {"loadBalancer": {"ingress": rest[1]}}
            collection.put({"metadata": meta, "spec": {"type": rest[0]}, "status": status})
        elif what == "gone":
            collection.remove({"metadata": {"namespace": "d", "name": name}})
        elif what == "denied":
            denied ^= {name}
        elif rest[0] is None:
            granted.pop(name, None)
        else:
            granted[name] = ServiceAllocation(f"d/{name}", "p", (ip_address(rest[0]),))
        refusals = tuple(Refusal(service_ref(f"d/{each}"), "PoolExhausted", "none") for each in sorted(denied))
        allocations = Allocations(1, tuple(granted[each] for each in sorted(granted)), refusals=refusals)
        snapshot = Snapshot(pools={}, allocations=allocations)
        recorded = frozenset(map(ip_address, OURS)).__contains__
        patches, refused = kept.of(collection.view(), snapshot, recorded)
        assert (patches, refused) == ServicePatches().of(dict(collection.view()), snapshot, recorded)
        told = {each.name: each.status["loadBalancer"]["ingress"] for each in patches}
        for each, ingress in told.items():
            assert ingress == ([{"ip": str(granted[each].addresses[0])}] if each in granted else [])
        assert not {each.object.name for each in refused} & told.keys()
