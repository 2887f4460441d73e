"""A server that is in use is not written to; what is looked at is the double, as if KUBECONFIG named it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.k8s import target
from tests.k8s.client import Client, Json, config_map, good
from tests.k8s.deployment import install
from tests.models.apiserver import ApiServer

RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with ApiServer() as running:
        monkeypatch.setenv(target.SWITCH, running.kubeconfig)
        monkeypatch.setattr(target, "_seen", set())
        yield Client(Path(running.kubeconfig))


def looked_at() -> None:
    with target.a_server():
        pass


def test_an_empty_server_is_for_tests(server: Client) -> None:
    looked_at()


def node(**annotations: str) -> Json:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": annotations}}


WEB: Json = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
IN_USE = {
    "nodes/n": ("/api/v1/nodes", node()),
    "namespaces/routerd": ("/api/v1/namespaces", {"metadata": {"name": "routerd"}}),
    "services/web": ("/api/v1/namespaces/default/services", WEB),
    "ConfigMap kube-system/bgp-config": ("/api/v1/namespaces/kube-system/configmaps", config_map("bgp-config")),
    "customresourcedefinitions/egresspolicies.routerd.io": (target.DEFINITIONS, install("crds.yaml")[0]),
}


@pytest.mark.parametrize("name", IN_USE)
def test_what_is_there_is_named(server: Client, name: str) -> None:
    path, body = IN_USE[name]
    good(server.create(path, body))
    with pytest.raises(target.NotForTests, match=f"is in use: it has {name};"):
        looked_at()


def test_what_a_test_has_left_is_no_use(server: Client) -> None:
    good(server.create("/api/v1/nodes", node(**{target.MADE: "yes"})))
    target.make_namespace(server, "routerd")
    good(server.create("/api/v1/namespaces/routerd/services", WEB))
    looked_at()
    target.leave(server)
    assert server.get("/api/v1/namespaces/routerd").code == 404


def test_one_who_may_not_see_everything_is_no_administrator(
    server: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(server.create("/api/v1/nodes", node()))
    good(server.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "robot"}}))
    rules = [{"apiGroups": [""], "resources": ["namespaces", "configmaps"], "verbs": ["*"]}]
    good(server.create(f"{RBAC}/clusterroles", {"metadata": {"name": "robot"}, "rules": rules}))
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "robot"}
    subject = {"kind": "ServiceAccount", "name": "robot", "namespace": "default"}
    binding = {"metadata": {"name": "robot"}, "roleRef": reference, "subjects": [subject]}
    good(server.create(f"{RBAC}/clusterrolebindings", binding))
    answer = good(server.create("/api/v1/namespaces/default/serviceaccounts/robot/token", {"spec": {}}))
    value = yaml.safe_load(server.kubeconfig.read_text())
    value["users"][0]["user"] = {"token": answer.body["status"]["token"]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(value))
    monkeypatch.setenv(target.SWITCH, str(tmp_path / "kubeconfig"))
    with pytest.raises(target.NotForTests, match="expected an administrator's kubeconfig"):
        looked_at()


def test_a_kubeconfig_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.SWITCH, "/nonexistent")
    with pytest.raises(target.NotForTests, match="KUBECONFIG=/nonexistent: no such file"):
        looked_at()
