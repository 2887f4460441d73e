"""A container runtime as far as CNI goes: it executes a list of plugins, real ones of Debian's and ours, for a pod.

Specification 1.0.0, section "Lifecycle & Ordering": ADD in order, each with the result of the one before; DEL in
reverse order with the last result.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.netns.lab import netns
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.netns import Namespace

PLUGINS = Path("/usr/lib/cni")  # of Debian's containernetworking-plugins
OURS = Path(__file__).parents[3] / "cni" / "routerd-cni"
VERSION = "1.0.0"
Json = dict[str, Any]


class PluginError(Exception):
    """A plugin refused; `code` is that of the specification."""

    def __init__(self, plugin: str, error: Json) -> None:
        super().__init__(f"{plugin}: {error.get('msg')}: {error.get('details', '')}")
        self.code = int(error.get("code", 0))


def main_plugin(kind: str, subnet: str, directory: Path) -> Json:
    """`bridge`, `ptp` or `macvlan` on eth0, with addresses of `subnet`."""
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "addresses"),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return _main(kind, ipam)


def delegating_plugin(kind: str, run_dir: Path) -> Json:
    """The same, with addresses from the agent with this run-dir."""
    return _main(kind, {"type": "routerd-ipam", "socket": str(run_dir / "ipam.sock")})


def _main(kind: str, ipam: Json) -> Json:
    more = {"bridge": {"bridge": "cni1", "isGateway": True}, "macvlan": {"master": "eth0"}}
    return {"type": kind, "ipam": ipam, **more.get(kind, {})}


@dataclass(slots=True)
class Runtime:
    """Of one node. `ours`: the configuration of routerd-cni; None = the main plugin alone. `programs`: a directory of
    further plugins.
    """

    node: Namespace
    main: Json
    ours: Json | None
    name: str = "pods"
    programs: Path = PLUGINS
    results: dict[str, Json] = field(default_factory=dict)  # by container

    def add(self, pod: PodHost, *, container: str = "", arguments: str = "") -> Json:
        """Makes the pod's network, which gives it an address. Raises PluginError; what was made by then stays."""
        result: Json = {}
        for plugin in self._plugins():
            result = self.call("ADD", pod, plugin, result, container=container, arguments=arguments)
            self.results[container or pod.name] = result
        pod.address = result["ips"][0]["address"].partition("/")[0]
        return result

    def delete(self, pod: PodHost, *, container: str = "") -> None:
        result = self.results.pop(container or pod.name, {})
        for plugin in reversed(self._plugins()):
            self.call("DEL", pod, plugin, result, container=container)

    def call(
        self, command: str, pod: PodHost, plugin: Json, result: Json, *, container: str = "", arguments: str = "",
        more: Mapping[str, object] | None = None,
    ) -> Json:  # fmt: skip
        """One command of one plugin. Raises PluginError."""
        network = {"cniVersion": VERSION, "name": self.name, **plugin, **(more or {})}
        network |= {"prevResult": result} if result else {}
        named = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.label};{arguments}"
        environment = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container or pod.name, "CNI_IFNAME": "eth0",
            "CNI_NETNS": str(netns.NETNS_DIR / pod.name), "CNI_PATH": f"{PLUGINS}:{self.programs}",
            "CNI_ARGS": named.rstrip(";"), "PATH": os.environ["PATH"],
        }  # fmt: skip
        program = OURS if plugin["type"] == OURS.name else self._program(plugin["type"])
        with netns.entered(self.node.name):
            done = subprocess.run(
                [program], input=json.dumps(network), env=environment, capture_output=True, text=True, timeout=60,
                check=False,
            )  # fmt: skip
        answer: Json = json.loads(done.stdout) if done.stdout else {}
        if done.returncode:
            raise PluginError(plugin["type"], answer)
        return answer

    def _program(self, name: str) -> Path:
        return next(path for path in (self.programs / name, PLUGINS / name) if path.exists())

    def _plugins(self) -> list[Json]:
        return [self.main, *([self.ours] if self.ours else [])]


def own(run_dir: Path, **more: object) -> Json:
    """The configuration of routerd-cni for an agent with this run-dir."""
    return {"type": "routerd-cni", "socket": str(run_dir / "cni.sock"), **more}
