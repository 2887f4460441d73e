"""Nodes that are instances of a fake cloud, in a VPC that forwards as that says, with agents and the operator.

The lab's directory is /run/routerd-lab-PREFIX, as any lab's; the operator runs outside of all namespaces, where the
cloud's API is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from tests.models.cloud.core import Cloud
from tests.netns.lab import netns
from tests.netns.lab.cni import OURS, PluginError, Runtime, delegating_plugin
from tests.netns.lab.daemons import in_node
from tests.netns.lab.hosts import Node, NodeSpec, PodHost
from tests.netns.lab.lab import claim, directory_of, remove
from tests.netns.lab.providers import AWS, Fake
from tests.netns.lab.vpc import SUBNET, SUBNET6, Vpc
from tests.waiting import wait

ROOT = Path(__file__).parents[3]
# Seconds that a block is marked before the cloud has it back, and that an address rests, as a demo has them.
HURRY = """
import sys, cloud.release, ipam.pod_addresses
cloud.release.PATIENCE, ipam.pod_addresses.COOLDOWN = 5.0, 2.0
from routerd.cli.main import main
sys.exit(main())
"""
Json = dict[str, Any]


@dataclass(slots=True)
class CloudLab:
    """`nodes`: labels by name; the first one is instance i-1. `cloud_section`: more of the configuration."""

    prefix: str
    nodes: Mapping[str, Mapping[str, str]]
    cloud_section: Json = field(default_factory=dict)
    egress: bool = False
    hurry: bool = False
    fake: Fake = AWS
    cloud: Cloud = field(init=False)
    endpoint: str = field(init=False)  # of its API
    hosts: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, PodHost] = field(default_factory=dict)  # that are in the store
    objects: list[Json] = field(default_factory=list)  # more of the store
    not_ready: set[str] = field(default_factory=set)  # nodes that their Node objects say so of
    vpc: Vpc = field(init=False)
    runtimes: dict[str, Runtime] = field(default_factory=dict)
    _ended: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.cloud = Cloud(self.fake.front, attaching=0.5)

    @property
    def home(self) -> Path:
        return directory_of(self.prefix)

    def __enter__(self) -> Self:
        claim(self.prefix)
        self._ended.callback(remove, self.prefix)
        with ExitStack() as undone:
            undone.push(self._ended)
            self.endpoint = self._ended.enter_context(self.fake.served(self.cloud))
            self._build()
            undone.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.close()

    def _build(self) -> None:
        self.cloud.add_subnet("subnet-1", str(SUBNET), cidr6=str(SUBNET6))
        self.cloud.add_group("sg-1")
        for number, name in enumerate(self.nodes, 1):
            self.cloud.add_instance(f"i-{number}", "subnet-1")
            spec = NodeSpec(name, str(self.cloud.of(f"i-{number}")[0].primary), f"10.9.{number}.0/24")
            self.hosts[name] = Node(self.home, spec)
        instances = {f"i-{at}": self.hosts[name] for at, name in enumerate(self.nodes, 1)}
        self.vpc = Vpc(self.home, self.cloud, self.fake.vpc, instances)
        for directory in ("bin", "manifests", "bpf", "operator"):
            (self.home / directory).mkdir()
        (self.home / "bin" / "routerd-ipam").symlink_to(OURS)
        if self.egress:
            netns.run(["mount", "-t", "bpf", "-o", "mode=0700", f"lab-{self.prefix}", str(self.home / "bpf")])
        self.vpc.host.directory.mkdir()
        for host in self.hosts.values():
            host.directory.mkdir()
            host.create()
        self.vpc.create()
        self.vpc.sync()
        self.vpc.host.start_server(http=80)
        self.write()
        for name, host in self.hosts.items():
            self._configure(name, host.directory)
            self.runtimes[name] = Runtime(
                host, delegating_plugin("ptp", host.directory / "run"), None, "pods", self.home / "bin"
            )
        self._configure("", self.home / "operator")

    def _configure(self, node: str, directory: Path) -> None:
        cloud = {"provider": self.fake.name, "endpoint": self.endpoint, "cluster": "lab"}
        cloud |= {"region": self.fake.region} if self.fake.region else {}
        whole = {
            "apiVersion": "routerd.io/v1alpha1", "kind": "Config", **({"node-name": node} if node else {}),
            "state-dir": str(directory / "state"), "run-dir": str(directory / "run"), "metrics-listen": "",
            "pin-dir": "/sys/fs/bpf/routerd",
            "store": {
                "manifests": str(self.home / "manifests"),
                "node-reports": [str(self.home / "*" / "state" / "node.yaml")],
            },
            "operator": {"metrics-listen": ""}, "bgp": {"enabled": False}, "cluster-cidrs": [str(SUBNET)],
            "egress": {"enabled": self.egress}, "cloud": {**cloud, **self.cloud_section},
        }  # fmt: skip
        (directory / "routerd.yaml").write_text(yaml.safe_dump(whole))

    # --- what runs

    def start(self) -> None:
        for name in self.hosts:
            self.start_agent(name)
        self.start_operator()

    def start_agent(self, name: str) -> None:
        host = self.hosts[name]
        command = self._command(host.directory, "agent")
        if self.egress:
            host.pin_dir.mkdir()
            command = in_node(command, host.pin_dir, self.home / "manifests", read_only=True)
        host.popen(command, host.directory / "agent.log")

    def start_operator(self) -> None:
        directory = self.home / "operator"
        with (directory / "operator.log").open("wb") as log:
            command = self._command(directory, "operator")
            environment = {**os.environ, **self.fake.credentials(self.endpoint)}
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._ended.callback(child.wait, 30)
        self._ended.callback(child.terminate)

    def _command(self, directory: Path, role: str) -> list[str]:
        program = ["-c", HURRY] if self.hurry else ["-m", "routerd.cli.main"]
        return [sys.executable, *program, "--config", str(directory / "routerd.yaml"), role]

    # --- the store

    def write(self) -> None:
        objects = [self._node(number, name) for number, name in enumerate(self.nodes, 1)]
        objects += [*(_pod(name, pod) for name, pod in self.pods.items()), *self.objects]
        file = self.home / "manifests" / "cluster.yaml"
        file.with_suffix(".new").write_text(yaml.safe_dump_all(objects))
        file.with_suffix(".new").replace(file)

    def _node(self, number: int, name: str) -> Json:
        provider_id = self.fake.provider_id.format(self.fake.instance(f"i-{number}"))
        spec = {"podCIDR": self.hosts[name].spec.pod_cidr, "providerID": provider_id}
        ready = {"type": "Ready", "status": str(name not in self.not_ready)}
        status = {"addresses": [{"type": "InternalIP", "address": self.hosts[name].address}], "conditions": [ready]}
        metadata = {"name": name, "labels": dict(self.nodes[name])}
        return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": status}

    # --- pods

    def pod(self, name: str, node: str, labels: Mapping[str, str] | None = None) -> PodHost:
        """With an address, as a kubelet would try until it has one."""
        pod = self.pods[name] = PodHost(self.home, name, "", self.hosts[node], labels or {}, "default")
        pod.directory.mkdir()
        pod.create()
        self.write()

        def added() -> bool:
            self.vpc.sync()
            try:
                self.runtimes[node].add(pod)
            except PluginError as error:
                assert error.code == 11, error
                return False
            return True

        wait(added, f"the network of {name}", interval=0.2)
        self.write()
        self.vpc.sync()
        return pod

    def end(self, name: str) -> None:
        pod = self.pods.pop(name)
        self.runtimes[pod.node.label].delete(pod)
        self.write()

    def of_pods(self, instance: str = "i-1") -> set[str]:
        """What the cloud has for pods of an instance."""
        return {str(address) for eni in self.cloud.of(instance)[1:] for address in eni.addresses}


def _pod(name: str, pod: PodHost) -> Json:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(pod.labels)},
        "spec": {"nodeName": pod.node.label}, "status": {"podIPs": [{"ip": pod.address}] if pod.address else []},
    }  # fmt: skip
