"""What changes in a cluster all the time: services, policies and pods that come and go, drawn from a seeded generator.

Churning pods are selected by a policy all their life, and ask the server beyond the ToR from their first moment, so
they leak if anything does. `Churn` is a thread; while it is paused nothing changes, and `services` and `policies` say
what there is.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Self

from tests.netns.lab import cluster
from tests.netns.lab.capture import SourceWatch
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS, Lab

SERVICES, POLICIES, PODS = 8, 3, 4  # at most so many at a time
POD_NODES = ("worker", "gw1")
DESTINATIONS = ("203.0.113.0/24", "203.0.113.10/32", "198.18.0.0/15", "0.0.0.0/0")
POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: churn-{number}}}
spec:
  selectors:
  - podSelector: {{matchLabels: {{churn: "yes"}}}}
  destinationCIDRs: [{destination}]
  pool: egress
  priority: {priority}
  gateways: {{nodeSelector: {{matchLabels: {{routerd.io/egress-gateway: ""}}}}}}
"""


def service(number: int) -> cluster.Document:
    """A Service of type LoadBalancer; its endpoints are given to it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"churn-{number}", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]},
    }


class Churn:
    """One change after the other until `close`; `pause` in seconds, the mean of what lies between two."""

    def __init__(
        self, lab: Lab, watch: SourceWatch, rng: random.Random, slices: list[cluster.Document], pause: float = 0.15
    ) -> None:
        self.services: set[int] = set()
        self.policies: set[int] = set()
        self.changes = 0
        self.fault: BaseException | None = None
        self._lab, self._watch, self._rng, self._slices, self._pause = lab, watch, rng, slices, pause
        self._pods: list[PodHost] = []
        self._free = {
            node: [f"{lab.node(node).spec.pod_cidr[:-4]}{last}" for last in range(200, 208)] for node in POD_NODES
        }
        self._names = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="churn", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(30)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing changes inside the block."""
        with self._lock:
            if self.fault is not None:
                raise self.fault
            yield

    def _run(self) -> None:
        try:
            while not self._closing.wait(self._rng.uniform(0, 2 * self._pause)):
                with self._lock:
                    self._change()
                    self.changes += 1
        except Exception as error:  # noqa: BLE001 - told by `paused`, in the thread that judges
            self.fault = error

    def _change(self) -> None:
        self._rng.choice((self._toggle_service, self._toggle_service, self._change_policy, self._change_pod))()

    def _toggle_service(self) -> None:
        number = self._rng.randrange(SERVICES)
        path = self._lab.manifests / f"churn-service-{number}.yaml"
        if number in self.services:
            path.unlink()
        else:
            backends = cluster.endpoint_slice(f"churn-{number}", "default", 8080, [self._lab.pod("web")])
            cluster.write(path, [service(number), backends])
        self.services ^= {number}

    def _change_policy(self) -> None:
        """Adds or edits a policy, or removes it."""
        number = self._rng.randrange(POLICIES)
        path = self._lab.manifests / f"churn-policy-{number}.yaml"
        if number in self.policies and self._rng.random() < 0.4:
            path.unlink()
            self.policies.discard(number)
            return
        destination, priority = self._rng.choice(DESTINATIONS), self._rng.randrange(3)
        cluster.put(path, POLICY.format(number=number, destination=destination, priority=priority))
        self.policies.add(number)

    def _change_pod(self) -> None:
        if len(self._pods) < PODS and self._rng.random() < 0.6:
            self._add_pod()
        elif self._pods:
            self._remove_pod(self._pods.pop(self._rng.randrange(len(self._pods))))

    def _add_pod(self) -> None:
        node = self._rng.choice(POD_NODES)
        address = self._free[node].pop(0)
        self._watch.forbid(address)
        self._names += 1
        labels = {"app": "batch", "churn": "yes"}
        pod = self._lab.add_pod(f"churn-{self._names}", node, labels, address=address)
        _ask_and_go(pod)
        self._pods.append(pod)
        self._list()
        _ask_and_go(pod)

    def _remove_pod(self, pod: PodHost) -> None:
        """The device first or the object first: both happen."""
        _ask_and_go(pod)
        hidden = self._rng.random() < 0.5
        if hidden:
            self._list(without=pod)
            _ask_and_go(pod)
        self._lab.remove_pod(pod.label)
        self._free[pod.node.label].append(pod.address)
        if not hidden:
            self._list()

    def _list(self, without: PodHost | None = None) -> None:
        held = self._lab.pods
        self._lab.pods = {name: pod for name, pod in held.items() if pod is not without}
        cluster.write_cluster(self._lab, self._slices)
        self._lab.pods = held


def _ask_and_go(pod: PodHost) -> None:
    pod.ask(FW_ADDRESS, timeout=0.01)
