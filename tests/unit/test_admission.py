"""The admission policy of `configs/deploy` holds each agent to its own node; its expressions are evaluated by CEL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from routerd.store.kubernetes.resources import EVENTS, LEASES, REPORTS, heartbeat_lease
from routerd.store.kubernetes.status.metallb import NODE_ANNOTATION, SERVICE_STATUSES, service_statuses
from tests.models.cel import evaluated

DEPLOY = Path(__file__).parents[2] / "configs" / "deploy"
AGENT = "system:serviceaccount:routerd:routerd-agent"
NODE_CLAIM = "authentication.kubernetes.io/node-name"
OPERATIONS = {"create": "CREATE", "update": "UPDATE", "patch": "UPDATE", "delete": "DELETE"}  # by verb of RBAC


def policy() -> dict[str, Any]:
    found, binding = yaml.safe_load_all((DEPLOY / "admission.yaml").read_text())
    assert binding["spec"] == {"policyName": found["metadata"]["name"], "validationActions": ["Deny"]}
    spec: dict[str, Any] = found["spec"]
    return spec


def event_of(host: str, component: str = "routerd.io/agent") -> dict[str, Any]:
    return {"source": {"component": "routerd", "host": host}, "reportingComponent": component}


def admitted(
    user: str,
    claimed: str | None,
    resource: str,
    name: str,
    event: Mapping[str, Any] | None = {},
    before: Mapping[str, Any] | None = None,
) -> list[str]:
    """Messages of the validations that say no. `event`: beside its metadata; None = it is deleted."""
    spec = policy()
    extra = {NODE_CLAIM: [claimed]} if claimed is not None else {}
    request = {"userInfo": {"username": user, "extra": extra}, "resource": {"resource": resource}}
    if not all(evaluated(each["expression"], request=request) for each in spec["matchConditions"]):
        return []
    variables = {each["name"]: str(evaluated(each["expression"], request=request)) for each in spec["variables"]}
    known = {
        "request": request,
        "object": {"metadata": {"name": name}, **event} if event is not None else None,
        "oldObject": before,
        "variables": variables,
    }
    return [
        str(each.get("message") or evaluated(each["messageExpression"], **known))
        for each in spec["validations"]
        if not evaluated(each["expression"], **known)
    ]


def test_an_agent_writes_what_is_its_own() -> None:
    assert admitted(AGENT, "n1", REPORTS.plural, "n1") == []
    assert admitted(AGENT, "n1", LEASES.plural, heartbeat_lease("n1")) == []
    assert admitted(AGENT, "n1", EVENTS.plural, "web-1.0a", event_of("n1")) == []
    assert admitted(AGENT, "n1", EVENTS.plural, "web-1.0a", event_of("n1"), event_of("n1")) == []


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        (REPORTS.plural, "n2"),
        (LEASES.plural, heartbeat_lease("n2")),
        (LEASES.plural, "routerd-operator"),
        (LEASES.plural, "n1"),
    ],
)
def test_an_agent_writes_nothing_of_others(resource: str, name: str) -> None:
    assert admitted(AGENT, "n1", resource, name) == [f"an agent on node n1 may not write that of {name}"]


@pytest.mark.parametrize("other", [event_of("n2"), event_of("n1", "kubelet"), event_of("n1", "routerd.io/operator")])
def test_an_agent_neither_writes_nor_takes_an_event_of_others(other: dict[str, Any]) -> None:
    refused = ["an agent on node n1 may not write that of web-1.0a"]
    assert admitted(AGENT, "n1", EVENTS.plural, "web-1.0a", other) == refused
    assert admitted(AGENT, "n1", EVENTS.plural, "web-1.0a", event_of("n1"), other) == refused


def shown(node: str) -> dict[str, Any]:
    """A status of a Service on that node; "" = it does not say which."""
    return {"metadata": {"name": "bgp-1", "annotations": {NODE_ANNOTATION: node} if node else {}}}


def test_an_agent_shows_the_services_of_its_own_node_alone() -> None:
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", shown("n1")) == []
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", shown("n1"), shown("n1")) == []
    refused = ["an agent on node n1 may not write that of bgp-1"]
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", shown("n2")) == refused
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", shown("")) == refused
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", shown("n1"), shown("n2")) == refused
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", None, shown("n1")) == []
    assert admitted(AGENT, "n1", SERVICE_STATUSES.plural, "bgp-1", None, shown("n2")) == refused
    long = ".".join(["n" * 60] * 4)
    (found,) = service_statuses(long, {"default/web": ()}).values()
    made = {"metadata": {"name": "bgp-1", "labels": found.labels, "annotations": found.annotations}}
    assert admitted(AGENT, long, SERVICE_STATUSES.plural, "bgp-1", made) == []


def test_a_token_that_names_no_node_writes_nothing() -> None:
    assert admitted(AGENT, None, REPORTS.plural, "n1")[0].startswith("the token of this agent names no node")


def test_others_are_not_asked() -> None:
    assert admitted("system:serviceaccount:routerd:routerd-operator", None, REPORTS.plural, "n1") == []


def test_all_that_the_account_may_write_is_asked_about() -> None:
    """What RBAC grants and this policy does not look at any agent may write as any other."""
    documents = list(yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text()))
    roles = [
        each for each in documents if each["kind"].endswith("Role") and each["metadata"]["name"] == "routerd-agent"
    ]
    granted = {
        (group, resource, operation)
        for role in roles
        for rule in role["rules"]
        for operation in OPERATIONS.keys() & {*rule["verbs"]}
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    asked = {
        (group, resource, operation)
        for rule in policy()["matchConstraints"]["resourceRules"]
        for operation, word in OPERATIONS.items()
        if word in rule["operations"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted and granted <= asked
