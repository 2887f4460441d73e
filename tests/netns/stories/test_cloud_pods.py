"""A pod has an address of an interface that the operator made on the fake EC2: by `ptp` and `routerd-ipam`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.models.cloud.core import Cloud
from tests.models.cloud.server import ACCESS, SECRET, served
from tests.netns.lab.cni import OURS, PluginError, Runtime, delegating_plugin
from tests.netns.lab.hosts import Answer, Host, Node, NodeSpec, PodHost
from tests.netns.lab.netns import CommandError, run, stop
from tests.netns.lab.vpc import BEYOND, ROUTER, Vpc
from tests.waiting import wait

ROOT = Path(__file__).parents[3]
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


class Stage:
    """One instance, i-1, which is node n."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.home = home
        self.cloud = Cloud(attaching=0.5)
        self.cloud.add_subnet("subnet-1", "10.0.0.0/24")
        self.cloud.add_group("sg-1")
        self.cloud.add_instance("i-1", "subnet-1")
        self.address = str(self.cloud.of("i-1")[0].primary)
        self.node = Node(home, NodeSpec("n", self.address, "10.9.0.0/24"))
        self.vpc = Vpc(home, self.cloud, "i-1", self.node)
        self.pods: dict[str, PodHost] = {}
        self.made: list[PodHost] = []
        for host in (self.node, self.vpc.host):
            stack.callback(_remove, host)
            host.directory.mkdir()
        self.node.create()
        self.vpc.create()
        self.vpc.sync()
        self.vpc.host.start_server(http=80)
        (home / "bin").mkdir()
        (home / "bin" / "routerd-ipam").symlink_to(OURS)
        (home / "manifests").mkdir()
        self.write()
        self.config(stack.enter_context(served(self.cloud)))
        self.start("agent", stack)
        self.start("operator", stack)
        self.runtime = Runtime(self.node, delegating_plugin("ptp", home / "run"), None, "pods", home / "bin")

    def config(self, endpoint: str) -> None:
        report = str(self.home / "node.yaml")
        whole = {
            "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "n",
            "state-dir": str(self.home / "state"), "run-dir": str(self.home / "run"), "metrics-listen": "",
            "store": {"manifests": str(self.home / "manifests"), "node-report": report, "node-reports": [report]},
            "operator": {"metrics-listen": ""}, "egress": {"enabled": False}, "bgp": {"enabled": False},
            "cloud": {"provider": "aws", "region": "eu-central-1", "endpoint": endpoint, "cluster": "lab",
                      "addresses": {"pre-allocate": 2}},
        }  # fmt: skip
        (self.home / "routerd.yaml").write_text(yaml.safe_dump(whole))

    def write(self) -> None:
        spec = {"podCIDR": "10.9.0.0/24", "providerID": "aws:///a/i-1"}
        objects: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": spec}]
        objects += [_pod(name, pod.address) for name, pod in self.pods.items()]
        file = self.home / "manifests" / "cluster.yaml"
        file.with_suffix(".new").write_text(yaml.safe_dump_all(objects))
        file.with_suffix(".new").replace(file)

    def start(self, role: str, stack: ExitStack) -> None:
        words = [sys.executable, "-m", "routerd.cli.main", "--config", str(self.home / "routerd.yaml"), role]
        if role == "agent":
            child = self.node.popen(words, self.home / "agent.log")
        else:
            with (self.home / "operator.log").open("wb") as log:
                child = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **KEYS}, stdout=log, stderr=log)
        stack.callback(child.wait, 30)
        stack.callback(child.terminate)

    def pod(self, name: str) -> PodHost:
        """With an address, as a kubelet would try until it has one."""
        pod = self.pods[name] = PodHost(self.home, name, "", self.node, {}, "default")
        self.made.append(pod)
        pod.create()
        pod.directory.mkdir()
        self.write()

        def added() -> bool:
            self.vpc.sync()
            try:
                self.runtime.add(pod)
            except PluginError as error:
                assert error.code == 11, error
                return False
            return True

        wait(added, f"the network of {name}", interval=0.2)
        self.write()
        self.vpc.sync()
        return pod

    def end(self, name: str) -> None:
        self.runtime.delete(self.pods.pop(name))
        self.write()

    def secondaries(self) -> set[str]:
        """What the cloud has for pods."""
        return {str(address) for eni in self.cloud.of("i-1")[1:] for address in eni.addresses}


def _remove(host: Host) -> None:
    with suppress(CommandError):  # it was not made
        stop(host.pids())
        run(["ip", "netns", "del", host.name])


def _pod(name: str, address: str) -> dict[str, Any]:
    status = {"podIPs": [{"ip": address}] if address else []}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": "n"}, "status": status,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stage(clean_labs: list[str]) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix=f"routerd-vpc{os.getpid()}") as home, ExitStack() as stack:
        built = Stage(Path(home), stack)
        try:
            yield built
        finally:
            for pod in built.made:
                _remove(pod)


def test_a_pod_has_an_address_of_an_interface_and_is_reached_at_it(stage: Stage) -> None:
    one, two = stage.pod("one"), stage.pod("two")
    assert {one.address, two.address} <= stage.secondaries()
    assert one.get(BEYOND).source == one.address  # it leaves by the interface that has it
    one.start_server(http=80)
    assert stage.vpc.host.get(one.address).text.startswith("one")
    assert stage.node.get(one.address).text.startswith("one")
    assert two.get(one.address).source == two.address  # beside it on the node, and not by way of the VPC
    assert stage.vpc.dropped() == 0


def test_a_node_port_answers_by_the_interface_where_it_was_asked(stage: Stage) -> None:
    pod = stage.pod("served")
    pod.start_server(http=80)
    rule = f"fib daddr type local tcp dport 30080 dnat to {pod.address}:80"
    stage.node.nft(f"table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}; }}\n")
    assert stage.vpc.host.get(stage.address, 30080).source == ROUTER
    assert stage.vpc.dropped() == 0


def test_what_somebody_deletes_is_put_back(stage: Stage) -> None:
    pod = stage.pod("kept")
    stage.node.run(["ip", "rule", "flush"])
    stage.node.ip("rule add from all lookup main priority 32766")
    stage.node.run(["nft", "flush", "chain", "inet", "routerd_eni", "prerouting"])

    def is_back() -> bool:
        rules = json.loads(stage.node.run(["ip", "-j", "rule"]))
        table = stage.node.run(["nft", "list", "table", "inet", "routerd_eni"])
        return any(each.get("src") == pod.address for each in rules) and "ct mark" in table

    wait(is_back, "rules and marks are back")
    assert pod.get(BEYOND).source == pod.address


def test_pods_do_not_read_the_nodes_credentials(stage: Stage) -> None:
    pod = stage.pods["kept"]
    stage.vpc.host.ip("addr add 169.254.169.254/32 dev lo")
    assert pod.get("169.254.169.254", timeout=1) == Answer(refusal="timeout")
