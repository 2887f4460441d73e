"""Pods get their addresses from the agent, behind Debian's `bridge` and `ptp`, in real network namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.netns.lab.cni import OURS, PluginError, Runtime, delegating_plugin
from tests.netns.lab.hosts import Node, NodeSpec, PodHost
from tests.netns.lab.netns import run
from tests.waiting import wait

ROOT = Path(__file__).parents[3]
BLOCKS = ("10.1.0.0/28", "fd00:1::/64")  # the first one has room for 13 pods


class Stage:
    """A node with its agent, which has neither egress nor BGP, and a runtime for each main plugin."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.node = Node(home, NodeSpec("n", "192.0.2.1", BLOCKS[0]))
        self.node.create()
        self.manifests = home / "manifests"
        self.manifests.mkdir()
        self.pods: dict[str, PodHost] = {}
        config = {
            "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "n", "state-dir": str(home / "state"),
            "run-dir": str(home / "run"), "metrics-listen": "", "store": {"manifests": str(self.manifests)},
            "egress": {"enabled": False}, "bgp": {"enabled": False},
        }  # fmt: skip
        self.config = home / "routerd.yaml"
        self.config.write_text(yaml.safe_dump(config))
        (home / "bin").mkdir()
        (home / "bin" / "routerd-ipam").symlink_to(OURS)
        self.write()
        self.agent = self.start()

    def write(self) -> None:
        spec = {"podCIDR": BLOCKS[0], "podCIDRs": list(BLOCKS)}
        objects: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": spec}]
        objects += [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": "n"}}
            for name in self.pods
        ]
        (self.manifests / "cluster.yaml").write_text(yaml.safe_dump_all(objects))

    def start(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "routerd.cli.main", "--config", str(self.config), "agent"]
        with (self.home / "agent.log").open("ab") as log:
            return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        self.agent.kill()
        self.agent.wait()

    def runtime(self, kind: str) -> Runtime:
        return Runtime(self.node, delegating_plugin(kind, self.home / "run"), None, kind, self.home / "bin")

    def pod(self, name: str) -> PodHost:
        pod = self.pods[name] = PodHost(self.home, name, "", self.node, {}, "default")
        pod.create()
        self.write()
        return pod

    def add(self, runtime: Runtime, pod: PodHost, container: str = "") -> list[str]:
        """As a kubelet does: again while it is refused for now."""

        def added() -> dict[str, Any] | None:
            try:
                return runtime.add(pod, container=container)
            except PluginError as error:
                if error.code != 11:
                    raise
                return None

        result = wait(added, f"the network of {pod.label}")
        assert result is not None
        return [str(ip_interface(each["address"]).ip) for each in result["ips"]]

    def close(self) -> None:
        self.kill()
        for host in (*self.pods.values(), self.node):
            run(["ip", "netns", "del", host.name], check=False)


@pytest.fixture(scope="module")
def stage(clean_labs: list[str]) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix=f"routerd-ipam{os.getpid()}") as home:
        built = Stage(Path(home))
        try:
            yield built
        finally:
            built.close()


def test_pods_behind_both_plugins_reach_their_node_at_addresses_of_its_blocks(stage: Stage) -> None:
    for kind, name in (("ptp", "first"), ("bridge", "second")):
        runtime, pod = stage.runtime(kind), stage.pod(name)
        addresses = stage.add(runtime, pod)
        assert [address.rpartition(":" if ":" in address else ".")[0] for address in addresses] == ["10.1.0", "fd00:1:"]
        assert pod.ping("10.1.0.1")
        assert pod.ping("fd00:1::1")
        inside = json.loads(pod.run(["ip", "-j", "address", "show", "dev", "eth0"]))[0]["addr_info"]
        assert {each["local"] for each in inside if each["scope"] == "global"} == set(addresses)
        runtime.call("CHECK", pod, runtime.main, runtime.results[pod.name])
        runtime.delete(pod)
        with pytest.raises(PluginError) as refused:
            runtime.call("CHECK", pod, delegating(runtime), {})
        assert refused.value.code == 3


def test_another_address_of_a_block_may_be_the_hosts_own(stage: Stage) -> None:
    runtime, pod = stage.runtime("ptp"), stage.pod("other")
    runtime.main["ipam"]["gateways"] = ["10.1.0.14", "fd00:1::ff"]
    stage.add(runtime, pod)
    wait(lambda: pod.ping("10.1.0.14"), "an address of the host itself answers")
    wait(lambda: pod.ping("fd00:1::ff"), "that of IPv6, too")
    runtime.delete(pod)


def delegating(runtime: Runtime) -> dict[str, Any]:
    """The IPAM plugin called by itself, for what Debian's main plugins do not ask of it."""
    return {"type": "routerd-ipam", "ipam": runtime.main["ipam"]}


def test_what_runs_keeps_its_address_over_a_kill_of_the_agent_and_over_a_new_sandbox(stage: Stage) -> None:
    runtime, pod = stage.runtime("ptp"), stage.pod("kept")
    before = stage.add(runtime, pod)
    stage.agent.send_signal(signal.SIGKILL)
    stage.agent.wait()
    with pytest.raises(PluginError) as refused:
        runtime.add(stage.pod("late"))
    assert refused.value.code == 11
    stage.agent = stage.start()
    late = stage.add(runtime, stage.pods["late"])
    assert not set(late) & set(before)
    assert pod.ping("10.1.0.1")
    runtime.delete(pod)
    runtime.delete(stage.pods["late"])


def test_a_node_without_a_free_address_says_so_until_one_has_rested(stage: Stage) -> None:
    runtime = stage.runtime("ptp")
    pods = [stage.pod(f"full{number}") for number in range(14)]
    stage.add(runtime, pods[0])
    refused = None
    for pod in pods[1:]:
        try:
            runtime.add(pod)
        except PluginError as error:
            refused = error
    assert refused is not None
    assert "no address of 10.1.0.0/28 is free" in str(refused)
    with pytest.raises(PluginError) as unavailable:
        runtime.call("STATUS", pods[0], delegating(runtime), {})
    assert unavailable.value.code == 50
    valid = [{"containerID": pods[0].name, "ifname": "eth0"}]
    runtime.call("GC", pods[0], delegating(runtime), {}, more={"cni.dev/valid-attachments": valid})
    shown = [
        sys.executable,
        "-m",
        "routerd.cli.main",
        "--config",
        str(stage.config),
        "show",
        "pod-addresses",
        "-o",
        "json",
    ]
    found = json.loads(run(["env", f"PYTHONPATH={ROOT}", *shown]))
    states = {each["container"]: each["state"] for each in found if each["network"] == "ptp"}
    assert [states.pop(pods[0].name), *set(states.values())] == ["used", "cooling"]
