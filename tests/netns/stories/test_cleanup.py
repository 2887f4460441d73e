"""What is done to a host's own settings, and undone: by the script of the manifest, and by `routerd cleanup`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.netns.lab.mounts import BPFFS, own_bpffs
from tests.netns.lab.netns import Namespace, run

ROOT = Path(__file__).parents[3]
RESERVED = "net.ipv4.ip_local_reserved_ports"
OTHERS = "30000-30010,60990-61099"  # some of ours among them
IN_CONTAINER = "/etc/routerd/routerd.yaml"


@dataclass
class Host:
    """A network namespace, a pin directory of its own, and a configuration that names it."""

    namespace: Namespace
    config: Path
    pins: Path

    def routerd(self, *arguments: str, wrapped: str = "exec", check: bool = True) -> str:
        """`routerd ARGUMENTS` in it, by a shell in a mount namespace of its own; `wrapped` goes before the command."""
        command = f'{wrapped} "$@"'
        words = [sys.executable, "-m", "routerd.cli.main", "--config", str(self.config), *arguments]
        shell = ["unshare", "--mount", "sh", "-ec", command, "sh", "env", f"PYTHONPATH={ROOT}", *words]
        return self.namespace.run(shell, check=check)

    def prepare(self) -> None:
        """What the manifest runs once, at the start of a pod."""
        pod = yaml.safe_load((ROOT / "configs" / "deploy" / "agent.yaml").read_text())["spec"]["template"]["spec"]
        (once,) = pod["initContainers"]
        script = once["command"][-1]
        assert script.count(IN_CONTAINER) == 1
        words = [sys.executable, "-c", script.replace(IN_CONTAINER, str(self.config))]
        self.namespace.run(["env", f"PYTHONPATH={ROOT}", *words])

    def reserved(self) -> str:
        return self.namespace.run(["sysctl", "-n", RESERVED]).strip()


@pytest.fixture
def host() -> Iterator[Host]:
    tag = f"cleanup{os.getpid()}"
    namespace, pins = Namespace(tag, "host"), BPFFS / tag
    with tempfile.TemporaryDirectory(prefix="routerd-cleanup-") as directory:
        config = Path(directory) / "routerd.yaml"
        dirs = f"run-dir: {directory}/run\nstate-dir: {directory}/state\npin-dir: {pins}\n"
        config.write_text(f"apiVersion: routerd.io/v1alpha1\nkind: Config\n{dirs}")
        namespace.create()
        try:
            namespace.sysctl({RESERVED: OTHERS})
            with own_bpffs():
                yield Host(namespace, config, pins)
        finally:
            run(["ip", "netns", "del", namespace.name], check=False)


def test_cleanup_takes_back_what_the_start_of_a_pod_reserved(host: Host) -> None:
    host.prepare()
    assert host.reserved() == "30000-30010,60990-61099,61440-65535"
    assert host.namespace.run(["sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.default.forwarding"]) == "1\n1\n"
    host.prepare()  # of the next pod
    removed = host.routerd("cleanup").splitlines()
    assert removed == ["removed reserved ports 61440-65535", f"removed pins under {host.pins}"]
    assert host.reserved() == OTHERS
    assert not host.pins.exists()
    assert host.routerd("cleanup") == "nothing to remove\n"


def test_cleanup_takes_routes_and_rules_of_ours_and_nothing_else(host: Host) -> None:
    host.namespace.ip("link add pods type bridge", "link set pods up", "addr add 10.0.0.1/24 dev pods")
    host.namespace.ip(
        "route add 10.244.1.0/24 via 10.0.0.2 dev pods table 203 proto 204",
        "route add 10.244.2.0/24 dev pods table 203",
        "rule add pref 32000 table 203 protocol 204",
    )
    assert host.routerd("cleanup").splitlines()[-2:] == [
        "remove routes to 10.244.1.0/24",
        "delete IPv4 rule 32000 to table 203",
    ]
    assert host.namespace.run(["ip", "route", "show", "table", "203"]).split()[0] == "10.244.2.0/24"
    assert "203" not in host.namespace.run(["ip", "rule"])


def test_what_the_host_reserves_itself_stays(host: Host) -> None:
    host.namespace.sysctl({RESERVED: "60000-65535"})
    host.prepare()
    assert host.routerd("cleanup") == "nothing to remove\n"
    assert host.reserved() == "60000-65535"


def test_where_sysctls_cannot_be_written_all_else_goes_and_the_rest_is_told(host: Host) -> None:
    """As in a container that is not privileged; the next cleanup, in one that is, still knows what is ours."""
    host.prepare()
    host.namespace.ip("route add blackhole 192.0.2.1/32 proto 203", "link add routerd.vxlan type bridge")
    read_only = "mount -o bind,ro /proc/sys /proc/sys; exec"
    said = host.routerd("cleanup", wrapped=read_only, check=False)
    assert "ports 61440-65535 stay in net.ipv4.ip_local_reserved_ports: Read-only file system" in said
    assert host.namespace.run(["ip", "route"]) == host.namespace.run(["ip", "link", "show", "type", "bridge"]) == ""
    assert host.routerd("cleanup").splitlines()[0] == "removed reserved ports 61440-65535"
    assert host.reserved() == OTHERS
    assert not host.pins.exists()


def test_there_is_nothing_to_write_where_somebody_took_them_back(host: Host) -> None:
    host.prepare()
    host.namespace.sysctl({RESERVED: OTHERS})
    host.routerd("cleanup", wrapped="mount -o bind,ro /proc/sys /proc/sys; exec")
    assert not host.pins.exists()


def test_cleanup_takes_the_plugin_out_of_the_chain_and_the_guard_from_the_next_boot(host: Host) -> None:
    directories = {name: host.config.parent / name for name in ("conf", "bin")}
    directories["conf"].mkdir()
    chain = directories["conf"] / "10-pods.conflist"
    before = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}
    chain.write_text(json.dumps(before))
    options = [word for name, path in directories.items() for word in (f"--{name}-dir", str(path))]
    assert f"chained routerd-cni in {chain}" in host.routerd("cni", "install", *options)
    (main, ours) = json.loads(chain.read_text())["plugins"]
    assert (main, ours["socket"]) == ({"type": "bridge"}, str(host.config.parent / "run" / "cni.sock"))
    assert host.routerd("cni", "install", *options) == "nothing to do\n"
    assert host.routerd("cleanup", *options).splitlines() == [
        f"took routerd-cni out of {chain}",
        f"removed {directories['bin']}/routerd-ipam",
        f"removed {directories['bin']}/routerd-cni",
    ]
    assert json.loads(chain.read_text()) == before
    chain.unlink()
    kept = host.config.parent / "state" / "guard.nft"
    kept.parent.mkdir()
    kept.touch()
    assert host.routerd("cleanup", *options) == f"removed {kept}\n"
    assert not kept.exists()
    assert "no network configuration in" in host.routerd("cni", "install", *options, check=False)
