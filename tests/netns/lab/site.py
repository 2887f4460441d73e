"""The whole product in a lab whose nodes differ in nothing but who is a gateway: some gateways, one worker with a pod.

Real ExaBGP, BFD and datapath; nodes reach each other without a tunnel while that works. The ToR is BIRD with BFD, 50 ms
x 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from routerd.errors import RouterdError
from routerd.serve.api import agent_socket, ask
from tests.netns.lab import cluster
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import NodeSpec, PodHost
from tests.netns.lab.lab import FW_ADDRESS, GATEWAY, TOR_ADDRESS, TOR_AS, Lab
from tests.netns.lab.stores import Files, Manifests
from tests.netns.lab.tor import TorPeer
from tests.waiting import wait

EGRESS_IP = "192.0.2.77"
SELECTED = {"app": "out"}  # labels of pods
MANIFESTS = f"""\
apiVersion: v1
kind: ConfigMap
metadata: {{name: bgp-config, namespace: routerd}}
data:
  config.yaml: |
    apiVersion: routerd.io/v1alpha1
    peers:
    - {{name: tor, peer-address: {TOR_ADDRESS}, my-asn: {TOR_AS}, peer-asn: {TOR_AS}, bfd: {{}}}}
---
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: all}}
spec:
  selectors: [{{podSelector: {{matchLabels: {{app: out}}}}}}]
  destinationCIDRs: [0.0.0.0/0]
  egressIP: {EGRESS_IP}
  gateways: {{nodeSelector: {{matchExpressions: [{{key: {GATEWAY}, operator: Exists}}]}}}}
"""
SILENT = """table netdev silent {{
    chain came {{ type filter hook ingress device {0} priority -500; drop; }}
    chain went {{ type filter hook egress device {0} priority -500; drop; }}
}}
"""


def nodes(gateways: int) -> list[NodeSpec]:
    found = [NodeSpec(f"gw{n}", f"10.0.0.{10 + n}", f"10.244.{n}.0/24", {GATEWAY: ""}) for n in range(1, gateways + 1)]
    return [*found, NodeSpec("worker", "10.0.0.99", "10.244.99.0/24")]


class Site:
    """A lab with some gateways, everything running and BFD up."""

    def __init__(
        self, lab: Lab, gateways: int, manifests: Manifests | None = None, *, clocks: bool = False, port_rest: float = 0
    ) -> None:
        """`manifests`: by files unless said. `clocks`: whether wall clocks can be set. `port_rest`: see `Daemons`."""
        store = manifests or Files(lab)
        self.lab, self.daemons = lab, Daemons(lab, store.store, options={"egress": {"transport": "auto"}})
        self.daemons.clocks, self.daemons.port_rest = clocks, port_rest
        self.gateways = [f"gw{n}" for n in range(1, gateways + 1)]
        self.pod = lab.add_pod("out", "worker", SELECTED)
        lab.fw.allow(EGRESS_IP)
        self.store = store
        store.prepare()
        self.tell_addresses({})
        store.put("all.yaml", MANIFESTS)
        self.daemons.start_operator()
        for name in lab.nodes:
            self.begin(name)
        self.settle()

    @property
    def pods(self) -> list[PodHost]:
        """Those that the policy selects."""
        return [pod for pod in self.lab.pods.values() if pod.labels == SELECTED]

    def select(self, pod: PodHost, labels: Mapping[str, str]) -> None:
        """Or not, by the labels that the pod has from now on."""
        pod.labels = labels
        self.store.put("cluster.yaml", cluster.text(cluster.documents(self.lab)))

    def tell_addresses(self, others: Mapping[str, str]) -> None:
        """To the ToR and the store: where nodes are, those of `others` by these addresses."""
        bgp, documents = self.lab.tor.bgp, cluster.documents(self.lab)
        peers = [
            TorPeer(name, others.get(name, node.address), TOR_AS, bfd=True) for name, node in self.lab.nodes.items()
        ]
        bgp.configure(bgp.config_text(peers, address=TOR_ADDRESS, local_as=TOR_AS))
        for each in documents:
            name = each["metadata"]["name"]  # type: ignore[index]
            if each["kind"] == "Node" and name in others:
                each["status"]["addresses"] = [{"type": "InternalIP", "address": others[name]}]  # type: ignore[index]
        self.store.put("cluster.yaml", cluster.text(documents))

    def begin(self, name: str) -> None:
        self.daemons.start_speaker(name)
        self.daemons.start_bfd(name)
        self.daemons.start_agent(name)

    def ends(self) -> list[str]:
        """Why each node's session went down last, as its agent was told."""
        peers = {"get": "show", "kind": "peers"}
        told = (ask(agent_socket(node.directory / "run"), peers) for node in self.lab.nodes.values())
        return [row["reason"] for rows in told for row in rows]

    def settle(self, timeout: float = 120.0) -> None:
        """Until all gateways carry packets and answers, as ToR and source see it."""
        for what, condition in {
            "sessions": lambda: set(self.lab.tor.sessions().values()) == {"Established"},
            "BFD with the ToR": lambda: [*self.lab.tor.bgp.bfd().values()].count("up") == len(self.lab.nodes),
            "paths of all gateways": self._has_paths,
            "agents": lambda: all(self.daemons.is_ready(name) for name in self.lab.nodes),
            "gateways live at the source": self._are_live,
            "the way": lambda: self.pod.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP,
        }.items():
            wait(condition, what, timeout=timeout)  # type: ignore[arg-type]

    def _has_paths(self) -> bool:
        hops = self.lab.tor.kernel_routes().get(f"{EGRESS_IP}/32", [])
        return hops == sorted(self.lab.node(name).address for name in self.gateways)

    def _are_live(self) -> bool:
        try:
            rows = ask(agent_socket(self.lab.node("worker").directory / "run"), {"get": "show", "kind": "gateways"})
        except RouterdError:
            return False
        ways = {(row["gateway"], row["by"]) for row in rows if row["state"] == "serves" and row["probes"]}
        return ways == set(product(self.gateways, ("tunnel", "link")))
