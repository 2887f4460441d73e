"""The plugin's place on a host: in the chain that runtimes take, and out of it as if it had never been there."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cni.conflist import NotChainable
from cni.install import PROGRAM, install, uninstall
from tests.waiting import PATIENCE, wait

ENTRY = {"type": "routerd-cni", "socket": "/run/routerd/cni.sock", "timeout": 5, "onAgentAbsent": "refuse"}
BRIDGE = {"type": "bridge", "ipam": {"type": "host-local"}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
LIST = {"cniVersion": "0.3.1", "name": "pods", "plugins": [BRIDGE, PORTMAP], "disableCheck": True}
ONE = {"cniVersion": "0.4.0", "name": "pods", **BRIDGE}


class Host:
    def __init__(self, directory: Path, files: Mapping[str, object]) -> None:
        self.conf, self.bin, self.results = (directory / name for name in ("net.d", "bin", "results"))
        self.conf.mkdir()
        self.results.mkdir()
        for name, content in files.items():
            path = self.conf / name
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            path.chmod(0o600)

    def install(self, entry: Mapping[str, Any] = ENTRY) -> list[str]:
        return install(entry, self.conf, self.bin)

    def uninstall(self) -> list[str]:
        return uninstall(self.conf, self.bin, self.results)

    def files(self) -> dict[str, Any]:
        return {path.name: json.loads(path.read_text()) for path in sorted(self.conf.iterdir())}


def test_a_directory_is_no_configuration_whatever_its_name(tmp_path: Path) -> None:
    host = Host(tmp_path, {"10-pods.conflist": LIST})
    (host.conf / "00-old.conf").mkdir()
    assert host.install()[-1] == f"chained routerd-cni in {host.conf}/10-pods.conflist"
    assert host.uninstall()[0] == f"took routerd-cni out of {host.conf}/10-pods.conflist"


def test_the_last_of_the_first_list_and_away_again(tmp_path: Path) -> None:
    host = Host(tmp_path, {"10-pods.conflist": LIST, "20-more.conflist": LIST, "00-notes.txt": {}})
    assert host.install() == [
        f"installed {host.bin}/routerd-cni",
        f"installed {host.bin}/routerd-ipam",
        f"chained routerd-cni in {host.conf}/10-pods.conflist",
    ]
    assert host.files()["10-pods.conflist"] == {**LIST, "plugins": [BRIDGE, PORTMAP, ENTRY]}
    assert host.files()["20-more.conflist"] == LIST
    assert (host.bin / "routerd-cni").read_bytes() == PROGRAM.read_bytes()
    assert (host.bin / "routerd-cni").stat().st_mode & 0o777 == 0o755
    assert (host.conf / "10-pods.conflist").stat().st_mode & 0o777 == 0o600
    assert host.install() == []
    assert host.uninstall() == [
        f"took routerd-cni out of {host.conf}/10-pods.conflist",
        f"removed {host.bin}/routerd-ipam",
        f"removed {host.bin}/routerd-cni",
    ]
    assert host.files() == {"10-pods.conflist": LIST, "20-more.conflist": LIST, "00-notes.txt": {}}
    assert host.uninstall() == []


def test_another_entry_takes_the_place_of_the_one_that_is_there(tmp_path: Path) -> None:
    host = Host(tmp_path, {"10-pods.conflist": {**LIST, "plugins": [BRIDGE, {**ENTRY, "timeout": 9}, PORTMAP]}})
    host.install()
    assert host.files()["10-pods.conflist"]["plugins"] == [BRIDGE, ENTRY, PORTMAP]
    (host.bin / "routerd-cni").write_bytes(b"an older one")
    assert host.install() == [f"installed {host.bin}/routerd-cni"]


@pytest.mark.parametrize("suffix", ["conf", "json"])
def test_one_plugin_becomes_a_list_and_comes_back(tmp_path: Path, suffix: str) -> None:
    host = Host(tmp_path, {f"10-pods.{suffix}": ONE})
    host.install()
    wanted = {"cniVersion": "0.4.0", "name": "pods", "plugins": [BRIDGE, ENTRY]}
    assert host.files() == {f"10-pods.{suffix}.routerd": ONE, "10-pods.conflist": wanted}
    assert host.install() == []
    assert host.uninstall()[0] == f"restored {host.conf}/10-pods.{suffix}"
    assert host.files() == {f"10-pods.{suffix}": ONE}


def test_a_list_that_was_edited_meanwhile_stays_a_list(tmp_path: Path) -> None:
    host = Host(tmp_path, {"10-pods.conf": ONE})
    host.install()
    edited = host.files()["10-pods.conflist"]
    edited["plugins"].insert(1, PORTMAP)
    (host.conf / "10-pods.conflist").write_text(json.dumps(edited))
    host.uninstall()
    assert host.files()["10-pods.conflist"]["plugins"] == [BRIDGE, PORTMAP]


def test_an_installation_that_was_cut_goes_on(tmp_path: Path) -> None:
    """The list is there, and the configuration that it was made of has its name still."""
    wanted = {"cniVersion": "0.4.0", "name": "pods", "plugins": [BRIDGE, ENTRY]}
    host = Host(tmp_path, {"10-pods.conf": ONE, "10-pods.conflist": wanted})
    host.install()
    assert host.files() == {"10-pods.conf.routerd": ONE, "10-pods.conflist": wanted}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no network configuration in"),
        ({"a.conflist": "{"}, "a.conflist: it is no JSON"),
        ({"a.conflist": "[" * 100_000}, "a.conflist: it is no JSON"),
        ({"a.conflist": "[]"}, "a.conflist: it is no JSON object"),
        ({"a.conflist": {**LIST, "plugins": {}}}, "a.conflist: its plugins are no list"),
        ({"a.conflist": {**LIST, "plugins": [1]}}, "a.conflist: its plugins are no list"),
        ({"a.conflist": {**LIST, "plugins": []}}, "a.conflist: it has no main plugin"),
        ({"a.conflist": {**LIST, "plugins": [ENTRY]}}, "a.conflist: it has no main plugin"),
        ({"a.conflist": {**LIST, "cniVersion": "0.2.0"}}, "a.conflist: it is of CNI 0.2.0"),
        ({"a.conf": {"name": "x", "type": "bridge"}}, "a.conf: it is of CNI 0.1.0"),
        ({"a.conf": ONE, "a.conflist": LIST}, "a.conflist is beside it"),
        ({"a.conf": {"name": "x"}, "b.conflist": LIST}, "a.conf: its plugins are no list"),
    ],
)
def test_what_cannot_be_chained_is_named_and_left_alone(
    tmp_path: Path, files: Mapping[str, object], message: str
) -> None:
    host = Host(tmp_path, files)
    before = {path.name: path.read_text() for path in host.conf.iterdir()}
    with pytest.raises(NotChainable) as refused:
        host.install()
    assert message in str(refused.value)
    assert {path.name: path.read_text() for path in host.conf.iterdir()} == before
    assert not host.bin.exists()


def test_the_program_stays_while_a_runtime_may_end_pods_by_it(tmp_path: Path) -> None:
    """CRI-O takes the list with which it made a pod, from libcni's results."""
    host = Host(tmp_path, {"10-pods.conflist": LIST})
    host.install()
    config = base64.b64encode((host.conf / "10-pods.conflist").read_bytes()).decode()
    (host.results / "pods-c1-eth0").write_text(json.dumps({"kind": "cniCacheV1", "config": config}))
    (host.results / "other").write_text("no JSON")
    assert host.uninstall()[-1].startswith(f"kept {host.bin}/routerd-cni")
    assert (host.bin / "routerd-cni").exists()
    (host.results / "pods-c1-eth0").unlink()
    assert host.uninstall() == [f"removed {host.bin}/routerd-cni"]


def test_the_program_stays_while_a_main_plugin_asks_it_for_addresses(tmp_path: Path) -> None:
    routed = {"type": "ptp", "ipam": {"type": "routerd-ipam"}}
    host = Host(tmp_path, {"10-pods.conflist": {**LIST, "plugins": [routed]}})
    host.install()
    config = base64.b64encode((host.conf / "10-pods.conflist").read_bytes()).decode()
    assert host.uninstall()[1:] == [
        f"kept {host.bin}/routerd-ipam: a network configuration in {host.conf} names it as its ipam",
        f"removed {host.bin}/routerd-cni",
    ]
    (host.conf / "10-pods.conflist").write_text(json.dumps(LIST))
    (host.results / "pods-c1-eth0").write_text(json.dumps({"kind": "cniCacheV1", "config": config}))
    assert host.uninstall()[0].startswith(f"kept {host.bin}/routerd-ipam: a runtime may end the pods")
    (host.results / "pods-c1-eth0").unlink()
    assert host.uninstall() == [f"removed {host.bin}/routerd-ipam"]


def test_a_cni_that_writes_its_configuration_anew_is_followed_until_the_end(tmp_path: Path) -> None:
    """As a container runs it. That there is none yet is said, and does not end it."""
    host = Host(tmp_path, {})
    command = [sys.executable, "-m", "routerd.cli.main", "cni", "install", "--watch"]
    where = ["--conf-dir", str(host.conf), "--bin-dir", str(host.bin)]
    path = host.conf / "10-pods.conflist"
    with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stderr is not None
            assert "no network configuration in" in running.stderr.readline()
            for _ in range(2):
                path.write_text(json.dumps(LIST))
                wait(lambda: '"routerd-cni"' in path.read_text(), "it is in the chain")
        finally:
            running.terminate()
        output, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, errors) == (0, "")
    assert output.count(f"chained routerd-cni in {path}") == 2
