"""Facts of an API server on lists, watches and resource versions: they hold for a real one and for the double."""

from __future__ import annotations

import pytest

from tests.k8s.client import Client, config_map, good
from tests.k8s.deployment import defined


@pytest.fixture
def maps(place: str) -> str:
    return f"/api/v1/namespaces/{place}/configmaps"


@pytest.fixture
def ours(api: Client, maps: str) -> list[str]:
    """Ten ConfigMaps with labels."""
    names = [f"m{index}" for index in range(10)]
    for index, name in enumerate(names):
        labels = {"kind": "even" if index % 2 == 0 else "odd", "ours": "yes"}
        good(api.create(maps, {**config_map(name), "metadata": {"name": name, "labels": labels}}))
    return names


def names_of(items: list[dict[str, dict[str, str]]]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


# --- lists


def test_items_of_built_in_kinds_name_no_kind(api: Client, maps: str, ours: list[str]) -> None:
    body = good(api.get(maps, labelSelector="ours")).body
    assert (body["kind"], body["apiVersion"]) == ("ConfigMapList", "v1")
    assert names_of(body["items"]) == ours  # sorted
    assert "kind" not in body["items"][0]


@pytest.mark.parametrize(
    "selector, count",
    [
        ("kind=even", 5), ("kind==even", 5), ("kind!=even,ours", 5), ("kind in (even, odd),ours=yes", 10),
        ("kind notin (even),ours", 5), ("kind,!other", 10), ("other", 0), ("ours,other!=x", 10),
    ],
)  # fmt: skip
def test_label_selectors(api: Client, maps: str, ours: list[str], selector: str, count: int) -> None:
    assert len(good(api.get(maps, labelSelector=selector)).body["items"]) == count


@pytest.mark.parametrize("selector", ["a in b", "=a", "a b"])
def test_wrong_label_selectors(api: Client, maps: str, selector: str) -> None:
    assert api.get(maps, labelSelector=selector).code == 400


def test_field_selectors(api: Client, maps: str, ours: list[str]) -> None:
    assert names_of(good(api.get(maps, fieldSelector="metadata.name=m3")).body["items"]) == ["m3"]
    assert "m3" not in names_of(good(api.get(maps, fieldSelector="metadata.name!=m3")).body["items"])
    answer = api.get(maps, fieldSelector="data.x=1")
    assert (answer.code, answer.reason) == (400, "BadRequest")
    assert answer.message.startswith('"data.x" is not a known field selector')


def test_pods_are_selected_by_node_and_phase(api: Client, place: str) -> None:
    pods = f"/api/v1/namespaces/{place}/pods"
    spec = {"nodeName": "routerd-no-such-node", "containers": [{"name": "a", "image": "example.com/a"}],
            "automountServiceAccountToken": False}  # fmt: skip
    good(api.create(pods, {"metadata": {"name": "a"}, "spec": spec}))
    found = good(api.get("/api/v1/pods", fieldSelector="spec.nodeName=routerd-no-such-node,status.phase=Pending"))
    assert names_of(found.body["items"]) == ["a"]
    assert good(api.get(pods, fieldSelector="spec.nodeName=other")).body["items"] == []
    good(api.delete(f"{pods}/a", gracePeriodSeconds=0))


def test_pages_show_one_moment(api: Client, maps: str, ours: list[str]) -> None:
    first = good(api.get(maps, limit=4, fieldSelector="metadata.name!=kube-root-ca.crt")).body
    good(api.delete(f"{maps}/m9"))
    token = first["metadata"]["continue"]
    query = {"limit": 20, "fieldSelector": "metadata.name!=kube-root-ca.crt"}
    second = good(api.get(maps, **{"continue": token}, **query)).body
    assert names_of(first["items"]) + names_of(second["items"]) == ours
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]


def test_remaining_items_are_counted_without_selectors(api: Client, maps: str, ours: list[str]) -> None:
    meta = good(api.get(maps, limit=4)).body["metadata"]
    assert meta["remainingItemCount"] >= 6
    assert "remainingItemCount" not in good(api.get(maps, limit=2, labelSelector="ours")).body["metadata"]


def test_version_zero_knows_no_pages(api: Client, maps: str, ours: list[str]) -> None:
    body = good(api.get(maps, limit=4, resourceVersion=0)).body
    assert len(body["items"]) >= 10 and "continue" not in body["metadata"]


def test_exact_versions(api: Client, maps: str, ours: list[str]) -> None:
    version = good(api.get(maps)).version
    good(api.delete(f"{maps}/m0"))
    exact = {"resourceVersion": version, "resourceVersionMatch": "Exact", "labelSelector": "ours"}
    assert len(good(api.get(maps, **exact)).body["items"]) == 10
    fresh = {**exact, "resourceVersionMatch": "NotOlderThan"}
    assert len(good(api.get(maps, **fresh)).body["items"]) == 9
    assert api.get(maps, resourceVersionMatch="Exact").code == 422
    assert api.get(maps, resourceVersion="x").code == 400


# --- watches


def test_a_watch_goes_on_from_a_version(api: Client, maps: str, ours: list[str]) -> None:
    version = good(api.get(maps)).version
    good(api.patch(f"{maps}/m1", {"data": {"x": "1"}}))
    good(api.delete(f"{maps}/m2"))
    with api.watch(maps, resourceVersion=version) as events:
        one, two = next(events), next(events)
        good(api.create(maps, config_map("n")))
        three = next(events)
    assert [event["type"] for event in (one, two, three)] == ["MODIFIED", "DELETED", "ADDED"]
    assert names_of([one["object"], two["object"], three["object"]]) == ["m1", "m2", "n"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in (one, two, three)]
    assert versions == sorted(versions) and versions[0] > int(version)
    assert one["object"]["kind"] == "ConfigMap"  # unlike the items of a list


def test_a_watch_without_version_begins_with_what_is_there(api: Client, maps: str, ours: list[str]) -> None:
    for query in ({}, {"resourceVersion": 0}):
        with api.watch(maps, labelSelector="ours", **query) as events:
            found = [next(events) for _ in ours]
        assert {event["type"] for event in found} == {"ADDED"}
        assert sorted(names_of([event["object"] for event in found])) == ours


def test_what_leaves_a_selection_is_deleted_for_its_watch(api: Client, maps: str, ours: list[str]) -> None:
    version = good(api.get(maps)).version
    with api.watch(maps, resourceVersion=version, labelSelector="kind=even") as events:
        good(api.patch(f"{maps}/m0", {"metadata": {"labels": {"kind": "odd"}}}))
        last = good(api.patch(f"{maps}/m1", {"metadata": {"labels": {"kind": "even"}}}))
        gone, come = next(events), next(events)
    assert (gone["type"], come["type"]) == ("DELETED", "ADDED")
    assert gone["object"]["metadata"]["labels"]["kind"] == "even"  # as it was
    assert come["object"]["metadata"]["resourceVersion"] == last.version


def test_a_watch_of_one_object(api: Client, maps: str, ours: list[str]) -> None:
    version = good(api.get(maps)).version
    with api.watch(maps, resourceVersion=version, fieldSelector="metadata.name=m3") as events:
        good(api.patch(f"{maps}/m2", {"data": {"x": "1"}}))
        good(api.patch(f"{maps}/m3", {"data": {"x": "1"}}))
        assert next(events)["object"]["metadata"]["name"] == "m3"


def test_a_version_that_was_forgotten_is_an_error_event(api: Client) -> None:
    """Of what was before its definition no server knows anything about a kind, however young the server is."""
    with defined(api, "EgressPolicy") as policies, api.watch(policies, resourceVersion=1) as events:
        event = next(events)
        assert list(events) == []  # the server ends the watch
    assert event["type"] == "ERROR"
    assert (event["object"]["kind"], event["object"]["code"]) == ("Status", 410)
    assert event["object"]["reason"] in ("Expired", "Gone")


def test_an_old_version_is_known_whole_or_forgotten(api: Client, maps: str) -> None:
    """A server that has just started may still know all that has ever been."""
    good(api.create(maps, config_map("a")))
    good(api.patch(f"{maps}/a", {"data": {"x": "1"}}))
    with api.watch(maps, resourceVersion=1) as events:
        first = next(events)
        found = [first["type"]] if first["type"] == "ERROR" else [first["type"], next(events)["type"]]
    assert found in (["ERROR"], ["ADDED", "MODIFIED"])


def test_bookmarks_say_how_far_a_watch_is(api: Client, maps: str) -> None:
    """Two seconds before its end, if other objects have changed meanwhile."""
    query = {"fieldSelector": "metadata.name=a", "allowWatchBookmarks": "true", "timeoutSeconds": 4}
    with api.watch(maps, resourceVersion=good(api.get(maps)).version, **query) as events:
        other = good(api.create(maps, config_map("b")))
        event = next(events)
        assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", "ConfigMap")
        assert int(event["object"]["metadata"]["resourceVersion"]) >= int(other.version)
        assert "name" not in event["object"]["metadata"]
    with api.watch(maps, resourceVersion=good(api.get(maps)).version, **query) as events:
        assert list(events) == []  # nothing has changed: there is nothing to say


def test_a_watch_ends_at_its_timeout(api: Client, maps: str) -> None:
    with api.watch(maps, resourceVersion=good(api.get(maps)).version, timeoutSeconds=1) as events:
        assert list(events) == []


# --- discovery


def test_discovery(api: Client) -> None:
    assert "v1" in good(api.get("/api")).body["versions"]
    groups = {group["name"] for group in good(api.get("/apis")).body["groups"]}
    assert {"apps", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io"} <= groups
    found = {item["name"]: item for item in good(api.get("/api/v1")).body["resources"]}
    assert found["services/status"]["verbs"] == ["get", "patch", "update"]
    assert (found["pods"]["namespaced"], found["nodes"]["namespaced"]) == (True, False)
    assert int(good(api.get("/version")).body["minor"].rstrip("+")) >= 27
