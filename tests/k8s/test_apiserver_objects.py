"""Facts of an API server on single objects: they hold for a real one and for the double."""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s.client import APPLY, JSON_PATCH, MERGE, STRATEGIC, Client, config_map, good

NOON = "2026-11-30T12:00:00Z"

SERVICE = {
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
    "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "web"}},
}  # fmt: skip


@pytest.fixture
def maps(place: str) -> str:
    return f"/api/v1/namespaces/{place}/configmaps"


@pytest.fixture
def services(place: str) -> str:
    return f"/api/v1/namespaces/{place}/services"


def test_a_created_object_has_metadata_of_the_server(api: Client, maps: str) -> None:
    meta = good(api.create(maps, config_map("a", x="1"))).body["metadata"]
    assert meta["uid"] and meta["creationTimestamp"].endswith("Z") and int(meta["resourceVersion"]) > 0
    assert "generation" not in meta  # a ConfigMap has none


def test_generated_names(api: Client, maps: str) -> None:
    body = {"metadata": {"generateName": "a-"}}
    assert good(api.create(maps, body)).body["metadata"]["name"].startswith("a-")
    answer = api.create(maps, {"metadata": {}})
    assert (answer.code, answer.reason) == (422, "Invalid")
    assert "name or generateName is required" in answer.message


@pytest.mark.parametrize("name", ["A", "a_b", "-a", "a" * 254])
def test_names_are_dns_subdomains(api: Client, maps: str, name: str) -> None:
    answer = api.create(maps, config_map(name))
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "metadata.name")


def test_label_values_are_checked(api: Client, maps: str) -> None:
    answer = api.create(maps, {"metadata": {"name": "a", "labels": {"x": "a b"}}})
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "metadata.labels")


def test_a_created_object_has_no_version_before(api: Client, maps: str) -> None:
    answer = api.create(maps, {"metadata": {"name": "a", "resourceVersion": "5"}})
    assert (answer.code, answer.reason) == (500, "")
    assert answer.message == "resourceVersion should not be set on objects to be created"


def test_an_object_is_created_once(api: Client, maps: str) -> None:
    good(api.create(maps, config_map("a")))
    answer = api.create(maps, config_map("a"))
    assert (answer.code, answer.reason) == (409, "AlreadyExists")
    assert answer.message == 'configmaps "a" already exists'
    assert answer.body["details"] == {"name": "a", "kind": "configmaps"}


def test_what_is_not_there(api: Client, maps: str, services: str) -> None:
    answer = api.get(f"{maps}/a")
    assert (answer.code, answer.reason, answer.message) == (404, "NotFound", 'configmaps "a" not found')
    assert api.delete(f"{maps}/a").code == 404
    assert api.patch(f"{maps}/a", {}).code == 404
    assert api.get("/apis/nothing.example.com/v1/things").code == 404


def test_a_namespace_must_exist(api: Client) -> None:
    answer = api.create("/api/v1/namespaces/routerd-no-such/configmaps", config_map("a"))
    assert (answer.code, answer.message) == (404, 'namespaces "routerd-no-such" not found')
    assert good(api.get("/api/v1/namespaces/routerd-no-such/configmaps")).body["items"] == []


def test_body_and_path_must_agree(api: Client, maps: str) -> None:
    good(api.create(maps, config_map("a")))
    assert api.update(f"{maps}/a", config_map("b")).code == 400
    assert api.create(maps, {**config_map("c"), "kind": "Secret"}).code == 400
    assert api.create(maps, {"metadata": {"name": "c", "namespace": "default"}}).code == 400


def test_an_update_from_an_old_version_is_a_conflict(api: Client, maps: str) -> None:
    first = good(api.create(maps, config_map("a", x="1"))).body
    good(api.update(f"{maps}/a", {**first, "data": {"x": "2"}}))
    answer = api.update(f"{maps}/a", {**first, "data": {"x": "3"}})
    assert (answer.code, answer.reason) == (409, "Conflict")
    assert answer.message.startswith('Operation cannot be fulfilled on configmaps "a": the object has been modified')


def test_an_update_without_version_is_taken_where_the_kind_allows_it(api: Client, maps: str, place: str) -> None:
    good(api.create(maps, config_map("a", x="1")))
    good(api.update(f"{maps}/a", config_map("a", x="2")))
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{place}/leases"
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {}}
    good(api.create(leases, lease))
    answer = api.update(f"{leases}/a", lease)
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "metadata.resourceVersion")


def test_an_update_of_another_uid_is_a_conflict(api: Client, maps: str) -> None:
    good(api.create(maps, config_map("a")))
    body = config_map("a")
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    assert api.update(f"{maps}/a", body).code == 409


def test_a_write_that_changes_nothing_makes_no_version(api: Client, maps: str) -> None:
    before = good(api.create(maps, config_map("a", x="1")))
    assert good(api.update(f"{maps}/a", before.body)).version == before.version
    assert good(api.patch(f"{maps}/a", {"data": {"x": "1"}})).version == before.version


def test_put_creates_only_where_the_kind_allows_it(api: Client, maps: str, place: str) -> None:
    assert api.update(f"{maps}/a", config_map("a")).code == 404
    path = f"/apis/coordination.k8s.io/v1/namespaces/{place}/leases/a"
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {}}
    assert api.update(path, lease).code == 201


def test_dry_run_changes_nothing(api: Client, maps: str) -> None:
    assert api.create(maps, config_map("a"), dryRun="Some").code == 422
    assert api.create(maps, config_map("a"), dryRun="All").code == 201
    assert api.get(f"{maps}/a").code == 404
    good(api.create(maps, config_map("a", x="1")))
    assert good(api.patch(f"{maps}/a", {"data": {"x": "2"}}, dryRun="All")).body["data"] == {"x": "2"}
    good(api.delete(f"{maps}/a", dryRun="All"))
    assert good(api.get(f"{maps}/a")).body["data"] == {"x": "1"}


# --- patches


def test_patches(api: Client, maps: str) -> None:
    good(api.create(maps, config_map("a", x="1", y="1")))
    path = f"{maps}/a"
    assert good(api.patch(path, {"data": {"x": None, "z": "2"}}, MERGE)).body["data"] == {"y": "1", "z": "2"}
    steps = [{"op": "test", "path": "/data/y", "value": "1"}, {"op": "replace", "path": "/data/y", "value": "3"}]
    assert good(api.patch(path, steps, JSON_PATCH)).body["data"]["y"] == "3"
    assert api.patch(path, steps, JSON_PATCH).code == 422  # the test fails now
    assert good(api.patch(path, {"data": {"y": None}}, STRATEGIC)).body["data"] == {"z": "2"}
    assert api.patch(path, {}, "application/json").code == 415


def test_conditions_of_a_node_have_times_that_are_null_and_no_empty_texts(api: Client, place: str) -> None:
    """As Go writes them: metav1.Time is no pointer, and texts are `omitempty`."""
    name = f"{place}-node"
    good(api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
    told = {"type": "Told", "status": "True", "reason": "Told", "message": "", "lastTransitionTime": NOON}
    try:
        path = f"/api/v1/nodes/{name}/status"
        answer = good(api.patch(path, {"status": {"conditions": [told]}}, STRATEGIC)).body
        found = [each for each in answer["status"]["conditions"] if each["type"] == "Told"]
        assert found == [
            {"type": "Told", "status": "True", "reason": "Told", "lastHeartbeatTime": None, "lastTransitionTime": NOON}
        ]
        gone = {"status": {"conditions": [{"type": "Told", "$patch": "delete"}]}}
        answer = good(api.patch(path, gone, STRATEGIC)).body
        assert not [each for each in answer["status"].get("conditions") or () if each["type"] == "Told"]
    finally:
        good(api.delete(f"/api/v1/nodes/{name}"))


def test_a_patch_with_a_version_is_checked(api: Client, maps: str) -> None:
    before = good(api.create(maps, config_map("a", x="1")))
    good(api.patch(f"{maps}/a", {"data": {"x": "2"}}))
    stale = {"metadata": {"resourceVersion": before.version}, "data": {"x": "3"}}
    assert (api.patch(f"{maps}/a", stale).code, api.patch(f"{maps}/a", stale).reason) == (409, "Conflict")


def test_server_side_apply(api: Client, maps: str) -> None:
    path = f"{maps}/a"
    first = good(api.patch(path, config_map("a", x="1", y="1"), APPLY, fieldManager="one"))
    assert first.code == 201
    entry = first.body["metadata"]["managedFields"][0]
    assert (entry["manager"], entry["operation"]) == ("one", "Apply")
    answer = api.patch(path, config_map("a", x="2"), APPLY, fieldManager="two")
    assert (answer.code, answer.reason) == (409, "Conflict")
    assert answer.body["details"]["causes"][0]["field"] == ".data.x"
    good(api.patch(path, config_map("a", x="2"), APPLY, fieldManager="two", force="true"))
    last = good(api.patch(path, config_map("a"), APPLY, fieldManager="one"))
    assert last.body["data"] == {"x": "2"}  # y was one's alone; x is two's now
    assert api.patch(path, config_map("a"), APPLY).code == 422  # a field manager must be named


def test_apply_fills_a_map_that_it_made_empty(api: Client, maps: str) -> None:
    for labels in ({}, {"app": "out"}, {}):
        given = {**config_map("a"), "metadata": {"name": "a", "labels": labels}}
        last = good(api.patch(f"{maps}/a", given, APPLY, fieldManager="one"))
        assert (last.body["metadata"].get("labels") or {}) == labels


def test_apply_of_a_list_is_paired_by_its_key(api: Client, services: str) -> None:
    good(api.create(services, SERVICE))
    status: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
    for manager, kind in (("one", "A"), ("two", "B")):
        condition = {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "R",
                     "message": ""}  # fmt: skip
        body = {**status, "status": {"conditions": [condition]}}
        last = good(api.patch(f"{services}/web/status", body, APPLY, fieldManager=manager))
    assert [one["type"] for one in last.body["status"]["conditions"]] == ["A", "B"]


# --- status


def test_status_is_written_through_its_own_endpoint(api: Client, services: str) -> None:
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    made = good(api.create(services, {**SERVICE, "status": status})).body
    assert made["status"]["loadBalancer"] == {}
    assert good(api.patch(f"{services}/web", {"status": status})).body["status"]["loadBalancer"] == {}
    body = {"spec": {"externalTrafficPolicy": "Local"}, "status": status}
    done = good(api.patch(f"{services}/web/status", body)).body
    assert done["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1", "ipMode": "VIP"}]
    assert done["spec"]["externalTrafficPolicy"] == "Cluster"
    later = good(api.patch(f"{services}/web", {"spec": {"externalTrafficPolicy": "Local"}})).body
    assert later["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.1"


def test_service_defaults(api: Client, services: str) -> None:
    spec = good(api.create(services, SERVICE)).body["spec"]
    assert spec["clusterIP"] == spec["clusterIPs"][0]
    assert (spec["sessionAffinity"], spec["externalTrafficPolicy"]) == ("None", "Cluster")
    assert (spec["ports"][0]["protocol"], spec["ports"][0]["targetPort"]) == ("TCP", 80)
    assert 30000 <= spec["ports"][0]["nodePort"] < 32768
    body = {**SERVICE, "metadata": {"name": "bare"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}
    assert good(api.create(services, body)).body["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize(
    "spec, field",
    [
        ({"type": "LoadBalancer"}, "spec.ports"),
        ({"type": "Balancer", "ports": [{"port": 80}]}, "spec.type"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80}, {"port": 81}]}, "spec.ports[0].name"),
    ],
)
def test_wrong_services_are_refused(api: Client, services: str, spec: dict[str, Any], field: str) -> None:
    answer = api.create(services, {**SERVICE, "spec": spec})
    assert answer.code == 422, answer
    assert field in [cause["field"] for cause in answer.body["details"]["causes"]]


def test_ingress_needs_addresses(api: Client, services: str) -> None:
    good(api.create(services, SERVICE))
    answer = api.patch(f"{services}/web/status", {"status": {"loadBalancer": {"ingress": [{"ip": "nonsense"}]}}})
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "status.loadBalancer.ingress[0].ip")


# --- going away


def test_finalizers_hold_a_deleted_object(api: Client, maps: str) -> None:
    body = config_map("a")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    good(api.create(maps, body))
    assert good(api.delete(f"{maps}/a")).body["metadata"]["deletionTimestamp"]
    assert good(api.get(f"{maps}/a")).body["metadata"]["deletionTimestamp"]
    good(api.patch(f"{maps}/a", {"metadata": {"finalizers": None}}))
    assert api.get(f"{maps}/a").code == 404


def test_deletion_with_preconditions(api: Client, maps: str) -> None:
    meta = good(api.create(maps, config_map("a"))).body["metadata"]
    wrong = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    assert api.delete(f"{maps}/a", wrong).code == 409
    answer = good(api.delete(f"{maps}/a", {"preconditions": {"uid": meta["uid"]}}))
    assert (answer.body["kind"], answer.body["status"]) == ("Status", "Success")


def test_deletecollection_takes_what_is_selected(api: Client, maps: str) -> None:
    for name, kind in (("a", "x"), ("b", "y")):
        good(api.create(maps, {"metadata": {"name": name, "labels": {"kind": kind}}}))
    good(api.delete(maps, labelSelector="kind=x"))
    assert api.get(f"{maps}/a").code == 404
    assert api.get(f"{maps}/b").code == 200


def test_a_pod_on_a_node_goes_in_two_steps(api: Client, place: str) -> None:
    pods = f"/api/v1/namespaces/{place}/pods"
    spec = {"nodeName": "routerd-no-such-node", "containers": [{"name": "a", "image": "example.com/a"}],
            "automountServiceAccountToken": False}  # fmt: skip
    good(api.create(pods, {"metadata": {"name": "a"}, "spec": spec}))
    assert good(api.delete(f"{pods}/a")).body["metadata"]["deletionGracePeriodSeconds"] == 30
    assert api.get(f"{pods}/a").code == 200
    good(api.delete(f"{pods}/a", gracePeriodSeconds=0))
    assert api.get(f"{pods}/a").code == 404


def test_a_namespace_that_goes_takes_no_more(api: Client, place: str) -> None:
    maps = f"/api/v1/namespaces/{place}/configmaps"
    body = config_map("a")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    good(api.create(maps, body))
    good(api.delete(f"/api/v1/namespaces/{place}"))
    answer = api.create(maps, config_map("b"))
    assert (answer.code, answer.reason) == (403, "Forbidden")
    assert answer.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"


# --- other kinds


def test_times_of_a_lease_have_six_digits(api: Client, place: str) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{place}/leases"
    lease: dict[str, Any] = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}}
    assert api.create(leases, {**lease, "spec": {"renewTime": "2026-01-01T00:00:00Z"}}).code == 400
    good(api.create(leases, {**lease, "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}}))
    answer = api.patch(f"{leases}/a", {"spec": {"leaseDurationSeconds": 0}})
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "spec.leaseDurationSeconds")


def test_events_lie_where_their_object_lies(api: Client, place: str) -> None:
    events = f"/api/v1/namespaces/{place}/events"
    involved = {"kind": "EgressPolicy", "name": "web", "apiVersion": "routerd.io/v1alpha1"}
    event = {"metadata": {"name": "a"}, "reason": "R", "message": "m", "type": "Warning", "involvedObject": involved}
    answer = api.create(events, event)  # of a cluster-scoped object: belongs to namespace default
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "involvedObject.namespace")
    good(api.create(events, {**event, "involvedObject": {**involved, "namespace": place}}))
    newer = good(api.get(f"/apis/events.k8s.io/v1/namespaces/{place}/events/a")).body
    assert (newer["note"], newer["regarding"]["name"]) == ("m", "web")


def test_secrets(api: Client, place: str) -> None:
    secrets = f"/api/v1/namespaces/{place}/secrets"
    body = good(api.create(secrets, {"metadata": {"name": "a"}, "stringData": {"x": "1"}})).body
    assert (body["data"], body["type"], "stringData" in body) == ({"x": "MQ=="}, "Opaque", False)
    assert api.create(secrets, {"metadata": {"name": "b"}, "data": {"x": "!"}}).code == 400


@pytest.mark.parametrize("key", ["a b", "ä", "..a", "a/b"])
def test_keys_of_a_config_map(api: Client, maps: str, key: str) -> None:
    answer = api.create(maps, {"metadata": {"name": "a"}, "data": {key: "x"}})
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, f"data[{key}]")


def test_a_config_map_holds_a_mebibyte_of_strings(api: Client, maps: str) -> None:
    assert api.create(maps, {"metadata": {"name": "a"}, "data": {"x": 1}}).code == 400
    answer = api.create(maps, config_map("a", x="x" * (2**20 + 1)))
    assert answer.code == 422
    good(api.create(maps, config_map("a", x="x" * 2**20)))
