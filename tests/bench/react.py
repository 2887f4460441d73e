"""How fast a changed manifest takes effect, on real parts: from the file to the ToR, and to the maps.

    make bench-react        or: python -m tests.bench.react [--rounds N]

Prints median, 95th percentile and maximum over the rounds; the exit code is 1 if a median misses its bar. A measurement
for people to read: no test asserts these times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

from bpf import layout
from bpf.loader import PinnedMaps
from tests.netns.lab import cluster
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import Lab

BAR = 0.5  # seconds, for the medians
POLL = 0.002
WORLD_POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: bench}}
spec:
  selectors:
  - podSelector: {{matchLabels: {{app: bench}}}}
  destinationCIDRs: [198.18.{third}.0/24]
  egressIP: 10.168.60.101
  gateways: {{nodeSelector: {{matchLabels: {{routerd.io/egress-gateway: ""}}}}}}
"""


def service(number: int) -> cluster.Document:
    """A Service of type LoadBalancer without a selector, with endpoints of its own."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"bench-{number}", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]},
    }


def seconds_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> float:
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout:
            raise SystemExit(f"bench: error: not within {timeout:g} s: {what}")
        time.sleep(POLL)
    return time.monotonic() - begin


def time_services(lab: Lab, rounds: int) -> list[float]:
    """From the rename of a Service's file to one more VIP at the ToR."""
    times = []
    for number in range(rounds):
        before = set(lab.tor.routes())
        slices = [cluster.endpoint_slice(f"bench-{number}", "default", 8080, [lab.pod("web")])]
        cluster.write(lab.manifests / f"bench-{number}.yaml", [service(number), *slices])
        times.append(seconds_until(lambda seen=before: bool(set(lab.tor.routes()) - seen), "the VIP at the ToR"))  # type: ignore[misc]
    return times


def time_policies(lab: Lab, rounds: int) -> list[float]:
    """From the rename of a policy's file to the new destination in the worker's map."""
    times = []
    maps = PinnedMaps(lab.node("worker").pin_dir / "routerd")
    for number in range(rounds):
        wanted = bytes([198, 18, number, 0])
        cluster.put(lab.manifests / "policy.yaml", WORLD_POLICY.format(third=number))

        def is_there(address: bytes = wanted) -> bool:
            keys = (layout.decode(layout.PolicyKey, key) for key in maps["policies"].items())
            return any(bytes(key.destination)[12:] == address for key in keys)

        times.append(seconds_until(is_there, "the policy in the worker's map"))
    maps.close()
    return times


def report(what: str, times: list[float]) -> bool:
    ordered = sorted(times)
    median, p95 = statistics.median(ordered), ordered[max(0, round(0.95 * len(ordered)) - 1)]
    held = median < BAR
    print(
        f"{what:<44} median {median * 1000:6.0f} ms   p95 {p95 * 1000:6.0f} ms   max {ordered[-1] * 1000:6.0f} ms   "
        f"{len(ordered)} rounds   bar {BAR * 1000:.0f} ms {'held' if held else 'MISSED'}"
    )
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with Lab(f"bench{os.getpid()}") as lab:
        lab.add_pod("web", "worker", {"app": "bench"})
        cluster.write_cluster(lab)
        cluster.copy(lab, "bgp-config-cilium-1.10.yaml")
        daemons = Daemons(lab)
        daemons.start()
        up = dict.fromkeys(lab.nodes, "Established")
        seconds_until(lambda: lab.tor.sessions() == up, "sessions up", 30)
        cluster.put(lab.manifests / "policy.yaml", WORLD_POLICY.format(third=255))
        seconds_until(lambda: "10.168.60.101/32" in lab.tor.routes(), "the first egress IP at the ToR", 30)
        held = [
            report("service added -> path at the ToR", time_services(lab, rounds)),
            report("policy changed -> in the worker's maps", time_policies(lab, rounds)),
        ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
