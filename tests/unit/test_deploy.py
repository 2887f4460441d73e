"""The install manifests: parsed, complete, fitting together; privileges are those of the systemd units."""

from __future__ import annotations

import re
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cni.install import BIN_DIR, CONF_DIR, RESULTS
from routerd.cli.check import check_paths
from routerd.config import load_config, parse_config
from routerd.formats.kinds import KINDS, OURS, Role

ROOT = Path(__file__).parents[2]
DEPLOY, CLEANUP = ROOT / "configs" / "deploy", ROOT / "configs" / "cleanup"
OVERLAY = ROOT / "configs" / "overlay"
CNI = ROOT / "configs" / "cni"
PLUGIN = yaml.safe_load((CNI / "install.yaml").read_text())["spec"]["template"]["spec"]
PODS_OF_RUNTIME = {"name": "cni-pods", "hostPath": {"path": str(RESULTS.parent), "type": "DirectoryOrCreate"}}
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    each for name in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((DEPLOY / name).read_text())
]


def the(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [each for each in OBJECTS if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def pods() -> list[dict[str, Any]]:
    return [the("DaemonSet")["spec"]["template"]["spec"], the("Deployment")["spec"]["template"]["spec"]]


def containers() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for pod in pods() for each in pod["containers"]}


def test_every_manifest_is_a_resource_of_the_kustomization() -> None:
    assert {*KUSTOMIZATION["resources"], "kustomization.yaml"} == {path.name for path in DEPLOY.iterdir()}


def test_every_object_is_there_once() -> None:
    keys = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in OBJECTS]
    assert len(set(keys)) == len(keys)


def test_a_node_that_goes_down_has_a_moment_to_withdraw() -> None:
    """First the agent sees it in the Node, then the speaker sends it, then they are killed; an order to drain stays."""
    pod = the("DaemonSet")["spec"]["template"]["spec"]
    commands = {name: containers()[name]["lifecycle"]["preStop"]["exec"]["command"] for name in ("agent", "speaker")}
    seconds = {name: int(command[1]) for name, command in commands.items()}
    assert {command[0] for command in commands.values()} == {"sleep"}
    assert 0 < seconds["agent"] < seconds["speaker"] < pod["terminationGracePeriodSeconds"] / 2
    (state,) = [each for each in pod["volumes"] if each["name"] == "state"]
    assert state["hostPath"]["path"] == "/var/lib/routerd"


def test_no_image_names_a_registry() -> None:
    images = {each["image"] for pod in pods() for each in [*pod["containers"], *pod.get("initContainers", [])]}
    assert images == {KUSTOMIZATION["images"][0]["name"]}
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(bases) == {"python:3.11-slim-bookworm"}


def test_the_image_bears_the_project_s_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and KUSTOMIZATION["images"][0]["newTag"] == version[1]


def test_the_overlay_is_for_what_is_there() -> None:
    """Resources and what it patches exist, its images are the base's, and what it says of routerd has no mistake."""
    for directory, base in ((OVERLAY, DEPLOY), (OVERLAY / "cleanup", CLEANUP)):
        overlay = yaml.safe_load((directory / "kustomization.yaml").read_text())
        assert (directory / overlay["resources"][0]).resolve() == base
        below = yaml.safe_load((base / "kustomization.yaml").read_text())
        (image,), (its,) = below["images"], overlay["images"]
        assert (overlay["namespace"], its["name"], its["newTag"]) == (
            below["namespace"],
            image["name"],
            image["newTag"],
        )
        assert all((directory / name).is_file() for name in overlay["resources"][1:])
        for patch in overlay.get("patches", ()):
            changed = yaml.safe_load((directory / patch["path"]).read_text())
            assert patch["target"] == {"kind": changed["kind"], "name": changed["metadata"]["name"]}
            assert the(changed["kind"], changed["metadata"]["name"])["data"].keys() == changed["data"].keys()
    assert check_paths([OVERLAY]) == []


def test_the_overlay_s_configuration_is_the_base_s_but_for_what_is_yours() -> None:
    (of_overlay,) = yaml.safe_load_all((OVERLAY / "config.yaml").read_text())
    texts = the("ConfigMap")["data"]["routerd.yaml"], of_overlay["data"]["routerd.yaml"]
    assert parse_config(texts[0]) == parse_config(texts[1])


@pytest.mark.parametrize("name", ["agent", "speaker", "bfd"])
def test_capabilities_are_those_of_the_systemd_unit(name: str) -> None:
    unit = (ROOT / "configs" / "systemd" / f"routerd-{name}.service").read_text()
    bounds = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert bounds
    found = containers()[name]["securityContext"]["capabilities"]
    assert found["drop"] == ["ALL"]
    assert {f"CAP_{each}" for each in found.get("add", [])} == set(bounds[1].split())


def test_nothing_that_stays_is_privileged() -> None:
    for name, container in containers().items():
        context = container["securityContext"]
        assert not context.get("privileged"), name
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True), name


def test_only_what_runs_once_is_privileged_and_it_is_root() -> None:
    (once,) = the("DaemonSet")["spec"]["template"]["spec"]["initContainers"]
    assert (once["securityContext"]["privileged"], once["securityContext"]["runAsUser"]) == (True, 0)
    compile(once["command"][-1], once["name"], "exec")


def test_the_operator_touches_no_host() -> None:
    pod = the("Deployment")["spec"]["template"]["spec"]
    assert not pod.get("hostNetwork") and pod["securityContext"]["runAsNonRoot"]
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert "add" not in containers()["operator"]["securityContext"]["capabilities"]


def test_mounts_have_volumes_and_volumes_are_mounted() -> None:
    for pod in pods():
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_cleanup_runs_wherever_an_agent_ran_and_sees_what_it_saw() -> None:
    """A kustomization of its own, since it is applied when the agents are gone."""
    kustomization = yaml.safe_load((CLEANUP / "kustomization.yaml").read_text())
    assert {key: kustomization[key] for key in ("namespace", "images")} == {
        key: KUSTOMIZATION[key] for key in ("namespace", "images")
    }
    (name,) = kustomization["resources"]
    pod = yaml.safe_load((CLEANUP / name).read_text())["spec"]["template"]["spec"]
    agent = the("DaemonSet")["spec"]["template"]["spec"]
    for key in ("hostNetwork", "nodeSelector", "tolerations", "automountServiceAccountToken"):
        assert pod[key] == agent[key]
    volumes = {volume["name"]: volume for volume in (*agent["volumes"], *PLUGIN["volumes"], PODS_OF_RUNTIME)}
    assert [volume for volume in pod["volumes"] if volume != volumes[volume["name"]]] == []
    (once,), (left,) = pod["initContainers"], pod["containers"]
    (chain,) = PLUGIN["initContainers"]
    seen = [*containers()["agent"]["volumeMounts"], *chain["volumeMounts"]]
    assert [mount["name"] for mount in once["volumeMounts"] if mount not in seen] == [PODS_OF_RUNTIME["name"]]
    assert {mount["name"] for mount in once["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert re.match(r"routerd cleanup;", once["command"][-1]) and "e" in once["command"][1]
    assert (
        once["securityContext"] == the("DaemonSet")["spec"]["template"]["spec"]["initContainers"][0]["securityContext"]
    )
    assert not left["securityContext"].get("privileged") and "volumeMounts" not in left
    assert once["image"] == left["image"] == kustomization["images"][0]["name"]


def test_the_component_adds_the_plugin_to_the_agents_pods() -> None:
    component = yaml.safe_load((CNI / "kustomization.yaml").read_text())
    (patch,) = component["patches"]
    agent = the(patch["target"]["kind"], patch["target"]["name"])
    assert (CNI / patch["path"]).name == "install.yaml" and component["kind"] == "Component"
    (chain,) = PLUGIN["initContainers"]
    assert chain["args"] == ["cni", "install"] and chain["image"] == KUSTOMIZATION["images"][0]["name"]
    (keeper,) = PLUGIN["containers"]
    once = {key: value for key, value in keeper.items() if key != "resources"}
    assert once == {**chain, "name": "watch-cni", "args": ["cni", "install", "--watch"]}
    assert not chain["securityContext"]["privileged"] and "add" not in chain["securityContext"]["capabilities"]
    theirs = {each["name"] for each in agent["spec"]["template"]["spec"]["volumes"]}
    ours = {each["name"] for each in PLUGIN["volumes"]}
    assert {mount["name"] for mount in chain["volumeMounts"]} == ours | {"config", "cni-conf"} and not ours & theirs
    paths = {mount["name"]: mount["mountPath"] for mount in chain["volumeMounts"]}
    assert {each["name"]: each["hostPath"]["path"] for each in PLUGIN["volumes"]} == {
        name: paths[name] for name in ours
    }
    assert {paths["cni-conf"], paths["cni-bin"]} == {str(CONF_DIR), str(BIN_DIR)}
    assert "components: [../cni]" in (OVERLAY / "kustomization.yaml").read_text()


@pytest.mark.parametrize("name", ["speaker", "bfd"])
def test_who_asks_no_api_server_has_no_token(name: str) -> None:
    assert the("DaemonSet")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert "token" not in {mount["name"] for mount in containers()[name]["volumeMounts"]}


def test_bindings_name_roles_and_accounts_that_are_there() -> None:
    accounts = {each["metadata"]["name"] for each in OBJECTS if each["kind"] == "ServiceAccount"}
    for each in OBJECTS:
        if each["kind"].endswith("RoleBinding") or each["kind"] == "ClusterRoleBinding":
            the(each["roleRef"]["kind"], each["roleRef"]["name"])
            assert {(one["name"], one["namespace"]) for one in each["subjects"]} <= {
                (one, "routerd") for one in accounts
            }
    assert {pod["serviceAccountName"] for pod in pods()} == accounts


Verbs = dict[tuple[str, str], set[str]]
# Made and kept by routerd itself, or read by name: no rule for a whole kind says so.
NOT_BY_KIND = {"ConfigMap", "Lease", "Event", "ServiceBGPStatus", "ConfigurationState"}
BESIDE: dict[Role, Verbs] = {  # a taint and a condition, in objects that are somebody else's
    "operator": {("", "nodes"): {"get", "patch"}, ("", "nodes/status"): {"patch"}},
}


def needed(role: Role) -> Verbs:
    """By group and resource, what a role asks of the kinds that it reads, and of those whose status it writes."""
    verbs: Verbs = {}
    for kind in (each for each in KINDS if each.plural and each.name not in NOT_BY_KIND):
        reads, writes = role in kind.read_by, role in kind.status_by
        own = {"list", "watch"} if reads else {"create"} if writes else set()  # what it does not read it makes
        verbs[kind.group, kind.plural] = own | ({"get"} if writes else set())
        verbs[kind.group, f"{kind.plural}/status"] = {"patch"} if writes else set()
    for key, more in BESIDE.get(role, {}).items():
        verbs[key] |= more
    return {key: value for key, value in verbs.items() if value}


@pytest.mark.parametrize("role", get_args(Role))
def test_a_role_may_do_with_a_kind_what_the_table_of_kinds_says(role: Role) -> None:
    granted: Verbs = {}
    for rule in the("ClusterRole", f"routerd-{role}")["rules"]:
        for key in product(rule["apiGroups"], rule["resources"]):
            if key not in (("", "configmaps"), ("", "events")):
                granted.setdefault(key, set()).update(rule["verbs"])
            assert not rule.get("resourceNames") or key == ("", "configmaps")
    assert granted == needed(role)


def test_our_definitions_are_our_kinds() -> None:
    definitions = [each["spec"] for each in OBJECTS if each["kind"] == "CustomResourceDefinition"]
    served = {
        (spec["group"], version["name"], spec["names"]["kind"], spec["names"]["plural"], spec["scope"] == "Namespaced",
         "status" in version.get("subresources", {}))
        for spec in definitions for version in spec["versions"]
    }  # fmt: skip
    assert served == {
        (each.group, each.version, each.name, each.plural, each.namespaced, bool(each.status_by))
        for each in KINDS if each.group == OURS and each.plural
    }  # fmt: skip


def test_the_operator_s_metrics_are_for_the_monitoring_namespace_alone() -> None:
    spec, deployment = the("NetworkPolicy")["spec"], the("Deployment")["spec"]
    assert spec["podSelector"] == deployment["selector"] and spec["policyTypes"] == ["Ingress"]
    ((rule,), (port,)) = spec["ingress"], containers()["operator"]["ports"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["name"]}]
    monitoring = {"kubernetes.io/metadata.name": "monitoring"}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": monitoring}}]


def test_the_configuration_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routerd.yaml"
    path.write_text(the("ConfigMap")["data"]["routerd.yaml"])
    monkeypatch.setenv("NODE_NAME", "node7")
    config = load_config(path)
    assert (config.node_name, config.store.kind) == ("node7", "kubernetes")
    assert config.store.namespace == KUSTOMIZATION["namespace"] == the("Namespace")["metadata"]["name"]
    (port,) = containers()["agent"]["ports"]
    assert config.metrics_listen == (ip_address("0.0.0.0"), port["containerPort"])
    for kind, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        probe = containers()["agent"][kind]["httpGet"]
        assert probe == {"host": "127.0.0.1", "port": port["containerPort"], "path": path}
    (port,) = containers()["operator"]["ports"]
    assert config.operator.metrics_listen == (ip_address("0.0.0.0"), port["containerPort"])
    for kind, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert containers()["operator"][kind]["httpGet"] == {"port": port["name"], "path": path}
    mounts = {mount["mountPath"] for mount in containers()["agent"]["volumeMounts"]}
    assert {str(config.run_dir), str(config.state_dir), str(config.pin_dir.parent), "/etc/routerd"} <= mounts
