"""Dockerfile, .dockerignore, project file and manifests say the same. Nothing is built: no registry is needed."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from routerd.cli.main import COMMANDS
from tools.compile_c import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(zip(("packages", "build", "final"), TEXT.split("\nFROM ")[1:], strict=True))
IGNORE = (ROOT / ".dockerignore").read_text().split("\n")
DEPLOY = ROOT / "configs" / "deploy"
PODS = {
    each["kind"]: each["spec"]["template"]["spec"]
    for name in ("agent.yaml", "operator.yaml")
    for each in yaml.safe_load_all((DEPLOY / name).read_text())
    if "template" in each["spec"]
}


def copied() -> set[str]:
    """What COPY takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
    return {word for line in lines for word in line.split()}


def labels() -> dict[str, str]:
    return dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', STAGES["final"]))


def installed(stage: str) -> set[str]:
    found = re.search(r"apt-get install -y --no-install-recommends (.*?) &&", STAGES[stage])
    assert found
    return set(found[1].split())


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    assert "*" in IGNORE
    assert {line.removeprefix("!") for line in IGNORE if line.startswith("!")} == copied()
    assert [name for name in copied() if not (ROOT / name).exists()] == []


def test_no_object_and_no_byte_code_of_the_checkout_is_copied() -> None:
    last = max(number for number, line in enumerate(IGNORE) if line.startswith("!"))
    assert {"**/__pycache__", "**/*.o"} <= set(IGNORE[last:])


def test_every_package_is_copied() -> None:
    top = {name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert top <= copied()
    assert {PROJECT["project"]["readme"], "setup.py", "pyproject.toml"} <= copied()


def test_the_build_has_what_the_compiler_step_asks_for() -> None:
    assert installed("build") == set(PACKAGES.partition("install ")[2].split())


def test_the_image_has_the_programs_and_libraries_that_the_agent_calls() -> None:
    assert installed("final") == {
        "iproute2",
        "iptables",
        "libbpf1",
        "nftables",
    }  # tc, words of nft, libbpf.so.1


def test_the_backend_is_taken_from_the_lock() -> None:
    asked = re.search(r"sed -n '([^']+)' dev\.txt", STAGES["build"])
    assert asked
    command = ["sed", "-n", asked[1], str(ROOT / "requirements" / "dev.txt")]
    taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    assert re.fullmatch(r"setuptools==\S+( +--hash=sha256:\w+)+\n", taken)


def test_labels_are_those_of_the_project() -> None:
    found = labels()
    assert (found["title"], found["version"]) == (PROJECT["project"]["name"], PROJECT["project"]["version"])
    assert found["licenses"] == PROJECT["project"]["license"]
    assert {found["base.name"]} == {f"docker.io/library/{name}" for name in re.findall(r"^FROM (\S+)", TEXT, re.M)}


@pytest.mark.parametrize("kind", PODS)
def test_containers_run_subcommands_as_users_that_the_image_allows(kind: str) -> None:
    number = re.search(r"^USER (\d+):(\d+)$", STAGES["final"], re.MULTILINE)
    assert number and int(number[1]) != 0
    for container in PODS[kind]["containers"]:
        assert "command" not in container  # the image's entry point
        (name,) = container["args"]
        assert name in {command.name for command in COMMANDS}


def test_the_script_that_runs_once_names_what_is_there() -> None:
    (once,) = PODS["DaemonSet"]["initContainers"]
    tree = ast.parse(once["command"][-1])
    rooms = {
        alias.name: importlib.import_module(f"{node.module}.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("bpf", "egress")
        for alias in node.names
    }
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms
    }
    assert used
    assert [f"{room}.{name}" for room, name in sorted(used) if not hasattr(rooms[room], name)] == []
