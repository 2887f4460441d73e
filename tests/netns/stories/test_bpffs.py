"""A machine without a BPF file system: who needs one mounts it where it belongs, or says who must."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from tests.netns.lab.mounts import BPFFS, mounted, own_mounts, shown
from tests.netns.lab.netns import Namespace, run, stop, wait

ROOT = Path(__file__).parents[3]
MANIFEST = ROOT / "configs" / "deploy" / "agent.yaml"
UNPRIVILEGED = "-all,+net_admin,+bpf,+perfmon"  # as the unit's process and the manifest's container
CONFINED = ["setpriv", f"--bounding-set={UNPRIVILEGED}", f"--inh-caps={UNPRIVILEGED}", "--no-new-privs"]
SECONDS = 60  # it takes one on a quiet machine
WHO = "as root on the host, run mount -t bpf bpf /sys/fs/bpf"


class Machine:
    """A network namespace of its own, a /sys without a BPF file system, and a configuration."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace, self.directory = namespace, directory
        self.config, self.log = directory / "routerd.yaml", directory / "log"
        (directory / "manifests").mkdir()
        self.configure(BPFFS / "routerd")

    def configure(self, pins: Path) -> None:
        document = {
            "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "n", "pin-dir": str(pins),
            "run-dir": f"{self.directory}/run", "state-dir": f"{self.directory}/state", "bgp": {"enabled": False},
            "store": {"manifests": f"{self.directory}/manifests"},
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(document))

    def words(self, command: str, wrapped: Sequence[str] = ()) -> list[str]:
        return [
            *wrapped, "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "routerd.cli.main", command,
            "--config", str(self.config),
        ]  # fmt: skip

    def start(self, command: str, wrapped: Sequence[str] = ()) -> str:
        """What it logs until the agent runs; then it is stopped."""
        self.log.unlink(missing_ok=True)
        self.namespace.popen(self.words(command, wrapped), self.log)
        try:
            wait(lambda: "agent-started" in self.log.read_text(), f"{command} to start")
        finally:
            stop(self.namespace.pids())
        return self.log.read_text()

    def refused(self, command: str, wrapped: Sequence[str] = ()) -> str:
        """What it says when the machine lacks something."""
        self.log.unlink(missing_ok=True)
        assert self.namespace.popen(self.words(command, wrapped), self.log).wait(SECONDS) == 3
        return self.log.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    tag = f"bpffs{os.getpid()}"
    namespace = Namespace(tag, "machine")
    namespace.create()
    try:
        with own_mounts():
            run(["umount", "--recursive", "--lazy", "/sys"])
            namespace.run(["mount", "-t", "sysfs", "sysfs", "/sys"])
            yield Machine(namespace, tmp_path)
    finally:
        stop(namespace.pids())
        run(["ip", "netns", "del", namespace.name])


@pytest.mark.parametrize("command", ["agent", "run"])
def test_what_is_missing_is_mounted_once(machine: Machine, command: str) -> None:
    assert shown() == "sysfs"
    assert machine.start(command).count("event=bpffs-mounted") == 1
    assert (shown(), mounted()) == ("bpf_fs", ["bpf"])
    assert BPFFS.stat().st_mode & 0o777 == 0o700
    assert "bpffs-mounted" not in machine.start(command)
    assert mounted() == ["bpf"]


def test_a_read_only_sys_is_no_hindrance(machine: Machine) -> None:
    """As that of a container."""
    run(["mount", "-o", "remount,ro,bind", "/sys"])
    machine.start("agent")
    assert shown() == "bpf_fs"


@pytest.mark.parametrize("command", ["agent", "run"])
def test_who_may_not_mount_says_who_must(machine: Machine, command: str) -> None:
    said = machine.refused(command, CONFINED)
    assert f"no BPF file system at {BPFFS}, and this process may not mount it (Operation not permitted" in said
    assert "it takes CAP_SYS_ADMIN" in said and WHO in said
    assert "systemd's sys-fs-bpf.mount" in said and "init container" in said
    assert said.count("\n") == 1
    assert shown() == "sysfs"


def test_who_may_not_mount_starts_where_somebody_did(machine: Machine) -> None:
    run(["mount", "-t", "bpf", "bpf", str(BPFFS)])
    assert "bpffs-mounted" not in machine.start("agent", CONFINED)
    assert mounted() == ["bpf"]


def test_a_pin_directory_elsewhere_is_not_mounted_for(machine: Machine) -> None:
    machine.configure(machine.directory / "pins")
    said = machine.refused("agent")
    assert f"{machine.directory}/pins: not on a BPF file system: {WHO}" in said
    assert (shown(), list(machine.directory.glob("pins"))) == ("sysfs", [])


def test_a_pin_directory_on_another_bpf_file_system_will_do(machine: Machine) -> None:
    other = machine.directory / "bpf"
    other.mkdir()
    run(["mount", "-t", "bpf", "bpf", str(other)])
    machine.configure(other / "routerd")
    assert "bpffs-mounted" not in machine.start("agent")
    assert shown() == "sysfs"


@pytest.mark.parametrize("masked", [BPFFS, BPFFS.parent])
def test_nothing_is_mounted_over_what_somebody_has_mounted(machine: Machine, masked: Path) -> None:
    """A container runtime masks a path by an empty tmpfs."""
    run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(masked)])
    said = machine.refused("agent")
    assert f"{BPFFS}/routerd: not on a BPF file system: {WHO}" in said
    assert shown(masked) == "tmpfs"
    assert "bpf" not in mounted()


def test_cleanup_mounts_nothing(machine: Machine) -> None:
    assert machine.namespace.run(machine.words("cleanup")) == "nothing to remove\n"
    assert shown() == "sysfs"


def prepare_host(machine: Machine) -> None:
    """Runs the script of the manifest in a container as the kubelet makes it: the host's directory, bound in."""
    (once,) = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]["initContainers"]
    (mount,) = [mount for mount in once["volumeMounts"] if mount["mountPath"] == str(BPFFS)]
    propagation = {"Bidirectional": "unchanged", "HostToContainer": "slave"}[mount["mountPropagation"]]
    script = once["command"][-1].replace("/etc/routerd/routerd.yaml", str(machine.config))
    assert str(machine.config) in script
    bind = f'mount --bind {BPFFS} {BPFFS} && exec "$@"'
    container = ["unshare", "--mount", "--propagation", propagation, "sh", "-euc", bind, "sh"]
    machine.namespace.run([*container, "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", script])


def test_what_the_init_container_mounts_is_the_hosts(machine: Machine) -> None:
    run(["mount", "--make-shared", "/sys"])  # as systemd does
    prepare_host(machine)
    assert (shown(), (BPFFS / "routerd" / "reserved").is_dir()) == ("bpf_fs", True)
    number = BPFFS.stat().st_dev
    prepare_host(machine)  # of the next pod
    assert BPFFS.stat().st_dev == number
