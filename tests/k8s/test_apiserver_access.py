"""Facts of an API server on CRDs, service accounts and RBAC: they hold for a real one and for the double.

The definitions that are made here have a group of their own, so that a cluster where routerd runs is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.client import APPLY, STRATEGIC, Answer, Client, Json, config_map, good
from tests.k8s.deployment import defined, established
from tests.k8s.target import DEFINITIONS, until

RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def definition(api: Client) -> Iterator[str]:
    with defined(api, "EgressPolicy") as path:
        yield path


@pytest.fixture
def policies(api: Client, definition: str) -> Iterator[str]:
    """An empty collection of EgressPolicies."""
    yield definition
    good(api.delete(definition))


def until_served(api: Client, path: str, **query: Any) -> list[Answer]:
    """The answers to a list until it is served."""
    answers = [api.get(path, **query)]
    until(lambda: answers[-1].code == 200 or answers.append(api.get(path, **query)))
    return answers


def policy(path: str, name: str = "a", **spec: Any) -> Json:
    body = {"selectors": [{"podSelector": {}}], "destinationCIDRs": ["192.0.2.0/24"], "pool": "a", **spec}
    group = path.split("/")[2]
    return {"apiVersion": f"{group}/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": name}, "spec": body}


# --- CRDs


def test_a_definition_appears_in_discovery(api: Client, policies: str) -> None:
    """A moment after its kind is served."""
    group = policies.split("/")[2]
    until(lambda: group in {each["name"] for each in good(api.get("/apis")).body["groups"]})
    until(lambda: api.get(f"/apis/{group}/v1alpha1").code == 200)
    found = {each["name"]: each for each in good(api.get(f"/apis/{group}/v1alpha1")).body["resources"]}
    assert found["egresspolicies"]["shortNames"] == ["rdep"]
    assert "egresspolicies/status" in found


def test_custom_objects_are_pruned_and_defaulted(api: Client, policies: str) -> None:
    body = policy(policies, unknown=1)
    assert api.create(policies, body, fieldValidation="Strict").code == 400
    spec = good(api.create(policies, body)).body["spec"]
    assert ("unknown" in spec, spec["priority"]) == (False, 0)


def test_items_of_custom_kinds_name_their_kind(api: Client, policies: str) -> None:
    good(api.create(policies, policy(policies)))
    body = good(api.get(policies)).body
    assert (body["kind"], body["items"][0]["kind"]) == ("EgressPolicyList", "EgressPolicy")


@pytest.mark.parametrize(
    "spec, field, reason",
    [
        ({"selectors": []}, "spec.selectors", "FieldValueInvalid"),
        ({"pool": 5}, "spec.pool", "FieldValueTypeInvalid"),
        ({"destinationCIDRs": ["x"]}, "spec.destinationCIDRs[0]", "FieldValueTypeInvalid"),
        ({"ports": [{"port": 80}]}, "spec.ports[0].protocol", "FieldValueRequired"),
        ({"ports": [{"protocol": "DCCP"}]}, "spec.ports[0].protocol", "FieldValueNotSupported"),
        ({"ports": [{"protocol": "TCP", "port": 0}]}, "spec.ports[0].port", "FieldValueInvalid"),
        ({"ports": [{"protocol": "TCP", "endPort": 9}]}, "spec.ports[0]", "FieldValueInvalid"),
        ({"egressIP": "192.0.2.1"}, "spec", "FieldValueInvalid"),
    ],
)
def test_wrong_custom_objects(api: Client, policies: str, spec: Json, field: str, reason: str) -> None:
    answer = api.create(policies, policy(policies, **spec))
    assert (answer.code, answer.reason) == (422, "Invalid")
    assert (field, reason) in [(each["field"], each["reason"]) for each in answer.body["details"]["causes"]]


def test_generation_grows_with_the_spec_alone(api: Client, policies: str) -> None:
    def generation(answer: Json) -> int:
        return int(answer["metadata"]["generation"])

    assert generation(good(api.create(policies, policy(policies))).body) == 1
    path = f"{policies}/a"
    assert generation(good(api.patch(path, {"metadata": {"labels": {"a": "b"}}})).body) == 1
    assert generation(good(api.patch(f"{path}/status", {"status": {"egressIP": "192.0.2.1"}})).body) == 1
    assert generation(good(api.patch(path, {"spec": {"priority": 3}})).body) == 2


def test_status_of_a_custom_object(api: Client, policies: str) -> None:
    status = {"egressIP": "192.0.2.1"}
    assert "status" not in good(api.create(policies, {**policy(policies), "status": status})).body
    path = f"{policies}/a"
    assert "status" not in good(api.patch(path, {"status": status})).body
    body = {"status": status, "spec": {"priority": 3}, "metadata": {"labels": {"a": "b"}}}
    done = good(api.patch(f"{path}/status", body)).body
    assert (done["status"], done["spec"]["priority"], "labels" in done["metadata"]) == (status, 0, False)
    condition = {"type": "Ready", "status": "Maybe", "reason": "R", "message": "", "lastTransitionTime": "x"}
    answer = api.patch(f"{path}/status", {"status": {"conditions": [condition]}})
    fields = {each["field"] for each in answer.body["details"]["causes"]}
    assert {"status.conditions[0].status", "status.conditions[0].lastTransitionTime"} <= fields


def test_custom_objects_need_a_version_to_be_replaced(api: Client, policies: str) -> None:
    made = good(api.create(policies, policy(policies))).body
    assert api.update(f"{policies}/a", policy(policies)).code == 422
    good(api.update(f"{policies}/a", {**made, "spec": {**made["spec"], "priority": 5}}))


def test_custom_objects_know_no_strategic_patch(api: Client, policies: str) -> None:
    good(api.create(policies, policy(policies)))
    assert api.patch(f"{policies}/a", {}, STRATEGIC).code == 415


def test_conditions_are_applied_by_type(api: Client, policies: str) -> None:
    good(api.create(policies, policy(policies)))
    for manager, kind in (("one", "Ready"), ("two", "Allocated")):
        condition = {"type": kind, "status": "True", "reason": "R", "message": "",
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
        body = {**policy(policies), "status": {"conditions": [condition]}}
        del body["spec"]
        last = good(api.patch(f"{policies}/a/status", body, APPLY, fieldManager=manager)).body
    assert [each["type"] for each in last["status"]["conditions"]] == ["Ready", "Allocated"]


def test_the_lists_of_a_new_kind_may_be_refused_for_a_moment(api: Client) -> None:
    """Until its cache is filled; the answer says when to ask again."""
    with established(api, "EgressPolicy") as policies:
        answers = until_served(api, policies)
    assert {each.code for each in answers} <= {200, 404, 429}
    for each in (each for each in answers if each.code == 429):
        assert (each.reason, each.message) == ("TooManyRequests", "storage is (re)initializing")
        assert int(each.headers["Retry-After"]) == each.body["details"]["retryAfterSeconds"] > 0


def test_a_page_of_a_new_kind_is_served_at_once(api: Client) -> None:
    """It is read past the cache, if nothing is selected."""
    with established(api, "EgressPolicy") as policies:
        assert 429 not in {each.code for each in until_served(api, policies, limit=500)}


def test_a_watch_ends_when_its_definition_changes(api: Client) -> None:
    with defined(api, "EgressPolicy") as policies:
        version = good(api.get(policies)).version
        with api.watch(policies, resourceVersion=version, timeoutSeconds=600) as events:
            names = {"spec": {"names": {"shortNames": ["rdep", "more"]}}}
            good(api.patch(f"{DEFINITIONS}/egresspolicies.{policies.split('/')[2]}", names))
            assert list(events) == []
        until_served(api, policies)
        with api.watch(policies, resourceVersion=version) as events:
            assert next(events)["object"]["code"] == 410  # its cache begins anew


def test_objects_go_with_their_definition(api: Client) -> None:
    with defined(api, "EgressPolicy") as policies:
        good(api.create(policies, policy(policies)))
        version = good(api.get(policies)).version
        with api.watch(policies, resourceVersion=version) as events:
            good(api.delete(f"{DEFINITIONS}/egresspolicies.{policies.split('/')[2]}"))
            assert next(events)["type"] in ("DELETED", "MODIFIED")
        until(lambda: api.get(policies).code == 404)


# --- service accounts and RBAC


@pytest.fixture
def account(api: Client, place: str) -> Client:
    """A service account that may do nothing yet."""
    path = f"/api/v1/namespaces/{place}/serviceaccounts"
    good(api.create(path, {"metadata": {"name": "robot"}}))
    spec = {"expirationSeconds": 3600}
    status = good(api.create(f"{path}/robot/token", {"spec": spec})).body["status"]
    assert status["expirationTimestamp"]
    return api.as_bearer(status["token"])


def allow(api: Client, place: str, rules: list[Json]) -> None:
    good(api.create(f"{RBAC}/namespaces/{place}/roles", {"metadata": {"name": "robot"}, "rules": rules}))
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "robot"}
    subject = {"kind": "ServiceAccount", "name": "robot", "namespace": place}
    body = {"metadata": {"name": "robot"}, "roleRef": reference, "subjects": [subject]}
    good(api.create(f"{RBAC}/namespaces/{place}/rolebindings", body))


def test_refusals_say_who_may_not_do_what_where(api: Client, account: Client, place: str) -> None:
    who = f'User "system:serviceaccount:{place}:robot"'
    answer = account.get("/api/v1/pods")
    assert (answer.code, answer.reason) == (403, "Forbidden")
    assert (
        answer.message == f'pods is forbidden: {who} cannot list resource "pods" in API group "" at the cluster scope'
    )
    path = f"/apis/coordination.k8s.io/v1/namespaces/{place}/leases/a"
    assert account.get(path).message == (
        f'leases.coordination.k8s.io "a" is forbidden: {who} cannot get resource "leases" in API group '
        f'"coordination.k8s.io" in the namespace "{place}"'
    )
    message = account.patch(f"/api/v1/namespaces/{place}/services/a/status", {}).message
    assert 'cannot patch resource "services/status"' in message


def test_what_is_not_served_is_refused_before_it_is_missed(account: Client) -> None:
    assert account.get("/apis/nothing.example.com/v1/things").code == 403


def test_rules_are_by_verb_and_name(api: Client, account: Client, place: str) -> None:
    maps = f"/api/v1/namespaces/{place}/configmaps"
    allow(api, place, [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"], "resourceNames": ["a"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
    ])  # fmt: skip
    until(lambda: account.create(maps, config_map("a")).code == 201)
    good(account.create(maps, config_map("b")))
    assert (account.get(f"{maps}/a").code, account.get(f"{maps}/b").code) == (200, 403)
    assert account.delete(f"{maps}/a").code == 403
    assert account.get(maps).code == 403
    assert good(account.get(maps, fieldSelector="metadata.name=a")).body["items"][0]["metadata"]["name"] == "a"


def test_a_rule_needs_verbs_groups_and_resources(api: Client, place: str) -> None:
    whole = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    for field in whole:
        body = {"metadata": {"name": "a"}, "rules": [{**whole, field: []}]}
        answer = api.create(f"{RBAC}/namespaces/{place}/roles", body)
        assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, f"rules[0].{field}")


def test_discovery_is_for_all_who_are_known(api: Client, account: Client) -> None:
    assert account.get("/api/v1").code == 200
    assert api.as_bearer("").get("/api/v1/pods").code in (401, 403)
    assert api.as_bearer("nonsense").get("/api/v1").code == 401


def test_a_token_ends_with_its_account(api: Client, account: Client, place: str) -> None:
    good(account.get("/api"))
    good(api.delete(f"/api/v1/namespaces/{place}/serviceaccounts/robot"))
    until(lambda: account.get("/api").code == 401)


def test_one_may_ask_what_one_may(api: Client, account: Client, place: str) -> None:
    def allowed(verb: str) -> bool:
        attributes = {"namespace": place, "verb": verb, "resource": "configmaps"}
        body = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
                "spec": {"resourceAttributes": attributes}}  # fmt: skip
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(good(account.create(path, body)).body["status"]["allowed"])

    allow(api, place, [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}])
    until(lambda: allowed("list"))
    assert not allowed("delete")
