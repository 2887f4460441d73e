"""The systemd units: systemd takes them, and the agent's capabilities are enough for what it does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from routerd.config import Config, boot_guard
from tests.netns.lab.mounts import BPFFS

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "configs" / "systemd").glob("*.service"))
EXECUTABLE = "/usr/local/bin/routerd"
UPLINK = """ip link add up0 type veth peer name up1
ip addr add 192.0.2.1/24 dev up0
ip link set up1 up
ip link set up0 up
ip route add default via 192.0.2.254
echo 1 >/proc/sys/net/ipv4/ip_forward"""
EXPOSURE = {  # at most, of 10
    "routerd-agent": 3.0, "routerd-speaker": 2.0, "routerd-bfd": 2.4, "routerd-operator": 2.0, "routerd-guard": 3.0,
}  # fmt: skip
OF_NFT = "routerd-guard"  # needs no Python


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a command that exists here."""
    command = tmp_path / "routerd"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(EXECUTABLE, str(command)))
    return tmp_path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_nothing_to_say(units: Path) -> None:
    assert {unit.stem for unit in UNITS} == set(EXPOSURE)
    done = analyze("verify", "--recursive-errors=no", "--man=no", *units.glob("*.service"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", EXPOSURE)
def test_units_are_confined(units: Path, name: str) -> None:
    shown = analyze("security", "--offline=yes", units / f"{name}.service").stdout
    level = re.search(r"exposure level for \S+: ([\d.]+)", shown)
    assert level is not None, shown
    assert float(level[1]) <= EXPOSURE[name]


def test_the_guard_is_there_before_any_pod_and_comes_from_where_the_agent_keeps_it() -> None:
    text = (ROOT / "configs" / "systemd" / f"{OF_NFT}.service").read_text()
    assert {"containerd.service", "crio.service", "kubelet.service", "routerd-agent.service"} <= {
        *setting(text, "Before").split()
    }
    file = str(boot_guard(Config(node_name="a")))
    assert setting(text, "ConditionPathExists") == file
    assert setting(text, "ExecStart") == f"/usr/sbin/nft -f {file}"


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.stem != OF_NFT], ids=lambda unit: unit.stem)
def test_units_start_subcommands_that_exist(unit: Path) -> None:
    command = re.search(rf"^ExecStart={EXECUTABLE} (\w+)$", unit.read_text(), re.MULTILINE)
    assert command is not None
    done = subprocess.run(
        [sys.executable, "-m", "routerd.cli.main", command[1], "--help"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0


def paths(unit: str, *keys: str) -> set[Path]:
    """What a unit has of these settings, as whole paths."""
    roots = {"StateDirectory": "/var/lib", "RuntimeDirectory": "/run", "ConfigurationDirectory": "/etc"}
    text = (ROOT / "configs" / "systemd" / f"{unit}.service").read_text()
    return {Path(roots.get(key, "/")) / word for key in keys for word in setting(text, key).split()}


def setting(text: str, key: str) -> str:
    return " ".join(re.findall(rf"^{key}=(.*)$", text, re.MULTILINE))


def test_units_may_write_where_the_configuration_says_and_make_what_may_be_absent() -> None:
    config = Config(node_name="a")
    made = ("StateDirectory", "RuntimeDirectory")
    of_operator = paths("routerd-operator", *made, "ReadWritePaths")
    assert of_operator == {config.state_dir, config.run_dir, config.store.manifests}
    assert config.store.allocations.parent in of_operator and config.operator.ledger.parent in of_operator
    assert paths("routerd-agent", *made, "ReadWritePaths") == {config.state_dir, config.run_dir, config.pin_dir.parent}
    for unit in ("routerd-speaker", "routerd-bfd"):
        assert paths(unit, *made, "ReadWritePaths") == {config.run_dir}
    for unit in ("routerd-agent", "routerd-operator"):
        assert paths(unit, "ConfigurationDirectory") == {config.store.manifests}


def test_the_documents_name_the_directories_of_the_units() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    section = text[text.index("## With systemd") :].split("\n## ")[0]
    config = Config(node_name="a")
    for path in (config.store.manifests, config.state_dir, config.run_dir, config.pin_dir):
        assert f"`{path}`" in section


def after(name: str) -> set[str]:
    text = (ROOT / "configs" / "systemd" / f"{name}.service").read_text()
    return {word for line in re.findall(r"^After=(.*)$", text, re.MULTILINE) for word in line.split()}


def test_units_stop_before_what_they_lead_to() -> None:
    """Units stop in reverse: the agent, the speaker, then the network and whatever serves behind it."""
    assert {"routerd-speaker.service", "routerd-bfd.service"} <= after("routerd-agent")
    assert {"network.target", "containerd.service", "kubelet.service"} <= after("routerd-speaker")
    unordered = [unit.name for unit in UNITS if "DefaultDependencies=no" in unit.read_text()]
    assert unordered == [], "they would not stop before shutdown.target"


def capabilities(name: str) -> list[str]:
    text = (ROOT / "configs" / "systemd" / f"{name}.service").read_text()
    (value,) = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    return [word.removeprefix("CAP_").lower() for word in value.split()]


def run_confined(granted: list[str], pins: Path) -> subprocess.CompletedProcess[str]:
    """node_check.py in a network namespace with an uplink, as root with `granted` capabilities alone."""
    bounds = ",".join(["-all", *(f"+{name}" for name in granted)])
    confined = f"exec setpriv --bounding-set={bounds} --inh-caps={bounds} --no-new-privs"
    script = f"{UPLINK}; {confined} {sys.executable} {Path(__file__).with_name('node_check.py')} {pins}"
    command = ["unshare", "--net", "sh", "-e", "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("bpffs")
def test_the_agents_capabilities_are_enough() -> None:
    pins = BPFFS / "unit"
    done = run_confined(capabilities("routerd-agent"), pins)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "left to do:"
    assert "device routerd.vxlan" in done.stdout
    assert not pins.exists()


@pytest.mark.usefixtures("bpffs")
@pytest.mark.parametrize("left_out", ["net_admin", "net_raw", "bpf", "perfmon"])
def test_each_of_them_is_needed(left_out: str) -> None:
    done = run_confined([name for name in capabilities("routerd-agent") if name != left_out], BPFFS / "unit")
    assert done.returncode != 0
    assert "not permitted" in done.stderr or "Permission denied" in done.stderr, done.stderr
