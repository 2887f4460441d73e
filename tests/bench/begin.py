"""How soon a pod's packets leave: from a published port set to its use, and a pod's first packet to its answer.

    make bench-begin        or: python -m tests.bench.begin [--rounds N]

The demo's cluster. `set in use`, with files: a policy with an egress IP of its own comes, and nodes get ports of it;
from the moment when the operator has published these until a gateway has echoed the worker's, which lets flows begin
there. `first packet`, with the API server (the double of tests/k8s), where nodes ask for ports: a pod of a policy that
nobody had pods of is scheduled, its runtime makes its network a second later, with the CNI plugin, and its first
datagram goes out as soon as that has returned. It is sent once: no answer within a second is a drop.

Rows go to `build/bench/begin.json`: `case, round, ms, answered`. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median, quantiles

from bpf import layout
from bpf.loader import PinnedMaps
from tests.bench.report import Row, at_most, forget, machine, write
from tests.models.many import parse_allocations
from tests.netns.lab import cluster
from tests.netns.lab.cni import Runtime, main_plugin, own
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import NodeSpec, PodHost
from tests.netns.lab.lab import FW_ADDRESS, NODES, Lab
from tests.netns.lab.stores import STORES
from tests.netns.stories.story import Story, started
from tests.waiting import wait

WORKER = NodeSpec("worker", "10.0.0.21", "10.244.8.0/21", NODES[-1].labels)
SUBNET = "10.244.12.0/22"  # of the pods that the runtime starts
IN_USE = 300.0  # ms, of the 95th percentile
LONGEST = 30.0  # seconds that a round may take
POLL = 0.002
POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: begin-{number}}}
spec:
  selectors:
  - podSelector: {{matchLabels: {{begin: b{selected}}}}}
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: default}}}}
  destinationCIDRs: [{destination}]
  egressIP: {egress_ip}
  gateways: {{nodeSelector: {{matchLabels: {{routerd.io/egress-gateway: ""}}}}}}
"""


def egress_ip_of(number: int) -> str:
    return str(IPv4Address("10.168.61.1") + number)


def put_policy(story: Story, number: int, selected: str, destination: str) -> None:
    text = POLICY.format(number=number, selected=selected, destination=destination, egress_ip=egress_ip_of(number))
    story.manifests.put(f"begin-{number}.yaml", text)


# --- a set that is published


def published(path: Path, egress_ip: str) -> float:
    """When the document that gives ports of the address was written, in seconds of the Unix epoch; 0 = none."""
    written, text = path.stat().st_mtime, path.read_text()
    if egress_ip not in text:
        return 0.0
    tables = parse_allocations(text, path.name).bindings
    return written if any(str(each.egress_ip) == egress_ip and any(each.numbers()) for each in tables) else 0.0


def is_in_use(maps: PinnedMaps, egress_ip: str) -> bool:
    """Whether some gateway has echoed a port set of the node's."""
    groups = (layout.decode(layout.GroupValue, value) for value in maps["groups"].items().values())
    blocks = (block for group in groups for block in group.blocks[: group.block_count])
    return any(block.echoed and str(layout.ip_of(block.egress_ip)) == egress_ip for block in blocks)


def sets_in_use(story: Story, rounds: int) -> list[Row]:
    lab, rows = story.lab, []
    path, maps = lab.manifests / "allocations.yaml", PinnedMaps(lab.node("worker").pin_dir / "routerd")
    for number in range(rounds):
        egress_ip = egress_ip_of(number)
        put_policy(story, number, "0", f"198.18.{number}.0/24")
        wait(lambda: is_in_use(maps, egress_ip), f"a set of {egress_ip} in use", LONGEST, POLL)  # noqa: B023
        took = 1000 * (time.time() - published(path, egress_ip))
        rows.append({"case": "set in use", "round": number, "ms": round(took, 1), "answered": True})
    maps.close()
    return rows


# --- a pod that starts


def scheduled(story: Story, number: int) -> PodHost:
    """A pod with a namespace and without a network, in the store."""
    lab = story.lab
    pod = PodHost(lab.directory, f"begin{number}", "", lab.node("worker"), {"begin": f"b{number}"}, "default")
    pod.directory.mkdir()
    pod.create()
    document = {**cluster.pod(pod), "status": {"phase": "Pending"}}
    story.manifests.put(f"pod-{number}.yaml", cluster.text([document]))
    return pod


def first_packets(story: Story, rounds: int) -> list[Row]:
    lab, rows = story.lab, []
    worker = lab.node("worker")
    runtime = Runtime(
        worker, main_plugin("bridge", SUBNET, worker.directory), own(worker.directory / "run", timeout=60)
    )
    for number in range(rounds):
        egress_ip = egress_ip_of(number)
        lab.fw.allow(egress_ip)
        put_policy(story, number, str(number), "0.0.0.0/0")
        wait(lambda: f"{egress_ip}/32" in lab.tor.kernel_routes(), f"{egress_ip} at the ToR", LONGEST)  # noqa: B023
        pod = scheduled(story, number)
        time.sleep(1)
        runtime.add(pod)
        began = time.monotonic()
        answer = pod.ask(FW_ADDRESS, timeout=1)
        took = 1000 * (time.monotonic() - began)
        rows.append(
            {"case": "first packet", "round": number, "ms": round(took, 2), "answered": answer.source == egress_ip}
        )
    return rows


def told(rows: list[Row], case: str) -> str:
    times = [row["ms"] for row in rows]
    unanswered = sum(not row["answered"] for row in rows)
    tail = quantiles(times, n=20)[-1]
    bar = at_most(tail, IN_USE) if case == "set in use" else f"unanswered {unanswered}: {at_most(unanswered, 0)}"
    return f"{case}: {len(rows)} rounds, median {median(times):.1f} ms, p95 {tail:.1f} ms   {bar}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-begin", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(f"make bench-begin: {machine()}")
    forget("begin")
    rows: list[Row] = []
    for store, case, measure in (
        ("files", "set in use", sets_in_use),
        ("kubernetes", "first packet", first_packets),
    ):
        with Lab(f"bb{os.getpid()}{store[0]}", nodes=(*NODES[:-1], WORKER)) as lab:
            manifests = STORES[store](lab)
            found = measure(started(lab, Daemons(lab, manifests.store), manifests), options.rounds)
        print(told(found, case), flush=True)
        rows += found
    print(write("begin", rows))


if __name__ == "__main__":
    main()
