"""What the CNI told of a pod's network holds until the store has another word; and whether a pod may start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routerd.model import PARTS, IPAddress, Pod, PodSelection, Snapshot
from routerd.node.admission import Applicant, hindrance
from routerd.node.attached import MIRROR, Attached, Interface, Overlay
from routerd.node.desired import Kept, LocalFacts, NodeState, Settings, compose
from routerd.selectors import LabelSelector
from tests.models import cluster
from tests.models.cluster import LOCAL

OLD, NEW = ip_address("10.1.11.8"), ip_address("10.1.11.9")


def attached(*addresses: IPAddress, before: tuple[IPAddress, ...] = (), uid: str = "") -> Attached:
    return Attached("c1", uid, {"eth0": Interface("pods", addresses)}, before)


def pod(name: str = "web-2", *addresses: IPAddress, **fields: object) -> Pod:
    return replace(cluster.pod(name, str(NEW), **fields), addresses=addresses)


def laid_over(pods: list[Pod], told: Mapping[str, Attached]) -> dict[str, tuple[IPAddress, ...]]:
    return {each.name: each.addresses for each in Overlay()(pods, told)}


def test_a_pod_has_its_address_before_the_store_says_so() -> None:
    assert laid_over([pod()], {"default/web-2": attached(NEW)}) == {"web-2": (NEW,)}


def test_a_new_sandbox_has_its_address_while_the_store_still_says_the_old_one() -> None:
    assert laid_over([pod("web-2", OLD)], {"default/web-2": attached(NEW, before=(OLD,))}) == {"web-2": (NEW,)}


def test_the_stores_next_word_is_the_last() -> None:
    third = ip_address("10.1.11.10")
    assert laid_over([pod("web-2", third)], {"default/web-2": attached(NEW, before=(OLD,))}) == {"web-2": (third,)}


def test_an_address_that_went_to_another_pod_is_taken_from_the_one_that_had_it() -> None:
    pods = [pod("web-1", OLD, NEW), pod()]
    assert laid_over(pods, {"default/web-2": attached(NEW)}) == {"web-1": (OLD,), "web-2": (NEW,)}


def test_a_pod_whose_sandbox_is_gone_has_no_address_though_the_store_still_says_it() -> None:
    gone = Attached("c1", before=(OLD,))
    assert laid_over([pod("web-2", OLD)], {"default/web-2": gone}) == {"web-2": ()}


@pytest.mark.parametrize(
    ("uid", "fields", "is_meant"),
    [
        ("", {"uid": "a"}, True),
        ("a", {}, True),
        ("a", {"uid": "a"}, True),
        ("b", {"uid": "a"}, False),
        ("b", {"uid": "a", "annotations": {MIRROR: "b"}}, True),  # a static pod
    ],
)
def test_a_pod_of_the_same_name_is_another_one(uid: str, fields: dict[str, object], is_meant: bool) -> None:
    told = {"default/web-2": attached(NEW, uid=uid)}
    assert laid_over([pod(**fields)], told) == {"web-2": (NEW,) if is_meant else ()}


def test_what_does_not_change_stays_the_same_object() -> None:
    overlay, pods, told = Overlay(), [pod("web-1", OLD), pod()], {"default/web-2": attached(NEW)}
    first, second = overlay(pods, told), overlay(pods, dict(told))
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert first[0] is pods[0]
    assert overlay(pods, {}) is pods


def test_a_pod_is_steered_by_what_the_runtime_said() -> None:
    snapshot, kept = cluster.snapshot(pods={"default/web-2": pod(), "default/other": pod("other", labels={})}), Kept()
    facts = LocalFacts(LOCAL, attached={"default/web-2": attached(NEW), "default/other": attached(OLD)})
    first = compose(snapshot, Settings("a"), facts, kept)
    assert first.egress is not None
    assert first.egress.pods == {NEW: ("EgressPolicy/web",), OLD: ()}
    assert compose(snapshot, Settings("a"), facts, kept) == first == compose(snapshot, Settings("a"), facts)


def test_whose_an_address_is_is_known_by_the_devices_that_the_runtime_named() -> None:
    """Also when the store has caught up; not of a pod that has another address by now."""
    named = {"eth0": Interface("pods", (NEW,), ("cni0", "veth9"))}
    facts = LocalFacts(LOCAL, attached={"default/web-2": Attached("c1", "", named)})
    for addresses, told in (((), {NEW: {"cni0", "veth9"}}), ((NEW,), {NEW: {"cni0", "veth9"}}), ((OLD,), {})):
        snapshot = cluster.snapshot(pods={"default/web-2": pod("web-2", *addresses)})
        state = compose(snapshot, Settings("a"), facts)
        assert state.egress is not None
        assert state.egress.told_devices == told


# --- admission


def held(
    snapshot: Snapshot, *addresses: IPAddress, decided: frozenset[IPAddress] | None = frozenset(), uid: str = ""
) -> str:
    told = {"default/web-2": attached(*addresses)}
    state = compose(snapshot, Settings("a"), LocalFacts(LOCAL, attached=told))
    return asked(snapshot, state, *addresses, decided=decided, uid=uid)


def asked(
    snapshot: Snapshot, state: NodeState, *addresses: IPAddress, decided: frozenset[IPAddress] | None, uid: str = ""
) -> str:
    applicant = Applicant("default/web-2", uid, addresses)
    return hindrance(applicant, snapshot, state, "a", None if decided is None else decided.__contains__)


def with_pod(**fields: object) -> Snapshot:
    return cluster.snapshot(pods={"default/web-2": pod("web-2", **fields)})


def test_a_selected_pod_may_start_once_each_of_its_addresses_is_decided() -> None:
    assert held(with_pod(), OLD, NEW, decided=frozenset({OLD, NEW})) == ""
    reason = held(with_pod(), OLD, NEW, decided=frozenset({OLD}))
    assert reason == "what EgressPolicy/web say is not in place for 10.1.11.9 yet: see the agent's log"
    assert held(with_pod(), NEW, decided=None) == "the datapath was not looked at yet"


def test_a_pod_that_nothing_selects_is_held_up_by_no_failure() -> None:
    assert held(with_pod(labels={}), NEW) == ""


@pytest.mark.parametrize("fields", [{"uid": "b"}, {"name": "x"}])
def test_a_pod_that_the_store_does_not_have_must_wait(fields: dict[str, object]) -> None:
    snapshot = cluster.snapshot(pods={"default/web-2": pod(uid="b")}) if "uid" in fields else cluster.snapshot()
    assert held(snapshot, NEW, decided=frozenset({NEW}), uid="a") == "the store has no Pod default/web-2 with uid a yet"


BY_NAMESPACE = cluster.policy(selections=(PodSelection(namespaces=LabelSelector((("team", "a"),))),))


def test_a_pod_whose_policies_cannot_be_told_must_wait() -> None:
    snapshot = replace(with_pod(), namespaces={}, policies={BY_NAMESPACE.key: BY_NAMESPACE})
    assert held(snapshot, NEW, decided=frozenset({NEW})).startswith("it cannot be told yet which policies select")


ANYWHERE = cluster.policy(destinations=(ip_network("203.0.113.0/24"),))
NOWHERE = replace(ANYWHERE, destinations=())


@pytest.mark.parametrize(
    ("fields", "reason"),  # reason: the parts that it names
    [
        ({"policies": {}}, ""),
        ({"policies": {NOWHERE.key: NOWHERE}}, ""),
        ({"policies": {BY_NAMESPACE.key: BY_NAMESPACE}}, ""),
        ({"policies": {BY_NAMESPACE.key: BY_NAMESPACE}, "namespaces": {}}, "allocations"),
        ({"policies": {ANYWHERE.key: ANYWHERE}}, "allocations"),
        ({"policies": None}, "policies, allocations"),
        ({"policies": {}, "nodes": {}}, "allocations"),
    ],
)
def test_before_the_store_is_read_only_a_pod_that_surely_is_not_selected_may_start(
    fields: dict[str, object], reason: str
) -> None:
    """The operator's own pod, in a new cluster: without it there are no allocations."""
    snapshot = replace(with_pod(), allocations=None, **fields)  # type: ignore[arg-type]
    told = asked(snapshot, NodeState(None), NEW, decided=None)
    unread = ", ".join(PARTS[name] for name in reason.split(", ")) if reason else ""
    assert told == (f"the agent has not read {unread} yet" if reason else "")
