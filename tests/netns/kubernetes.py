"""A lab whose cluster is at an API server double in the ToR's namespace, with every routerd process on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from tests.k8s.apiserver import ApiServer
from tests.k8s.store_lab import crds
from tests.k8s.store_lab import namespace as namespace_object
from tests.netns import cluster, netns
from tests.netns.daemons import Daemons
from tests.netns.lab import TOR_ADDRESS, Lab

Json = dict[str, Any]


class LabApiServer(ApiServer):
    """The double in the ToR's namespace, where every node reaches it."""

    def __init__(self, tor: str) -> None:
        super().__init__(host=TOR_ADDRESS)
        self._tor = tor

    def _run(self) -> None:
        with netns.entered(self._tor):
            super()._run()


@dataclass
class Story:
    lab: Lab
    server: ApiServer
    daemons: Daemons

    def vip(self, name: str) -> str:
        """The address in a service's status, "" while there is none."""
        row = self.server.storage.get("/services", f"default/{name}")
        ingress = ((row.object.get("status") or {}).get("loadBalancer") or {}).get("ingress") if row else None
        return str(ingress[0]["ip"]) if ingress else ""

    def serve(self, name: str, backend: str) -> None:
        """A Service of type LoadBalancer with one backend."""
        spec = {"type": "LoadBalancer", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
        meta = {"name": name, "namespace": "default"}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
        slices: Any = cluster.endpoint_slice(name, "default", 8080, [self.lab.pod(backend)])
        self.server.load([service, slices])


@contextmanager
def on_kubernetes(lab: Lab) -> Iterator[Story]:
    """The lab's nodes and pods as objects; sessions are up when it begins."""
    with LabApiServer(lab.tor.name) as server:
        server.load([namespace_object("routerd"), *crds()])
        lab.wait(lambda: server.catalogue.of_kind("routerd.io/v1alpha1", "EgressPolicy"), 5, "CRDs are served")
        objects: list[Any] = [cluster.node(host.spec) for host in lab.nodes.values()]
        objects += [cluster.pod(host) for host in lab.pods.values()]
        server.load(_with_containers(each) for each in objects)
        server.load(yaml.safe_load_all((cluster.MANIFESTS / "bgp-config-cilium-1.10.yaml").read_text()))
        daemons = Daemons(lab, {"kind": "kubernetes", "kubeconfig": server.kubeconfig})
        daemons.start()
        up = dict.fromkeys(lab.nodes, "Established")
        try:
            lab.wait(lambda: lab.tor.sessions() == up, 20, "sessions up")
            yield Story(lab, server, daemons)
        finally:
            netns.stop([daemon.process.pid for daemon in daemons.everyone()])


def _with_containers(each: Json) -> Json:
    if each["kind"] == "Pod":
        each["spec"]["containers"] = [{"name": "c", "image": "i"}]
    return each
