"""A lab whose cluster is at an API server double in the ToR's namespace, with every routerd process on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models.apiserver import ApiServer
from tests.netns.lab import cluster, netns
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import TOR_ADDRESS, Lab
from tests.netns.lab.stores import ApiObjects

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
        manifests = ApiObjects(lab, Path(server.kubeconfig))
        manifests.prepare()
        manifests.put("cluster", cluster.text(cluster.documents(lab)))
        manifests.put("bgp-config", (cluster.MANIFESTS / "bgp-config-cilium-1.10.yaml").read_text())
        daemons = Daemons(lab, manifests.store)
        daemons.start()
        up = dict.fromkeys(lab.nodes, "Established")
        try:
            lab.wait(lambda: lab.tor.sessions() == up, "sessions up")
            yield Story(lab, server, daemons)
        finally:
            daemons.stop()
