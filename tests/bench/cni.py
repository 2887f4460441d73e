"""What the CNI plugin adds to a pod's start: `make bench-cni`, or python -m tests.bench.cni [--pods N] [--at-once N].

The demo's cluster in network namespaces; the pods are the worker's, every second one is selected, and `bridge` of
Debian's containernetworking-plugins comes before ours. Counted is the time of routerd-cni's ADD: program, agent, a
round, its hooks. First one pod after the other on an empty node, then many, some of them at a time. Rows go to
`build/bench/cni.json`. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median, quantiles

from tests.bench.report import Row, at_most, forget, machine, write
from tests.netns.lab import cluster
from tests.netns.lab.cni import Runtime, main_plugin, own
from tests.netns.lab.hosts import NodeSpec, PodHost
from tests.netns.lab.lab import NODES, Lab
from tests.netns.stories.story import Story, started

WORKER = NodeSpec("worker", "10.0.0.21", "10.244.8.0/21", NODES[-1].labels)  # with room for the pods
SUBNET = "10.244.12.0/22"
ALONE = 30  # pods that start one after the other
BARS = {"alone": 60.0, "together": 200.0}  # ms, of the 95th percentile


class Node:
    """The worker's runtime."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.worker = story.lab.node("worker")
        main = main_plugin("bridge", SUBNET, self.worker.directory)
        self.runtime = Runtime(self.worker, main, own(self.worker.directory / "run", timeout=60))

    def scheduled(self, name: str, count: int) -> list[PodHost]:
        """Pods with namespaces and no network, in the store."""
        made = []
        for number in range(count):
            labels = {"app": "snat-pod" if number % 2 == 0 else "plain"}
            pod = PodHost(self.story.lab.directory, f"{name}{number}", "", self.worker, labels, "default")
            pod.directory.mkdir()
            pod.create()
            made.append(pod)
        documents = [{**cluster.pod(pod), "status": {"phase": "Pending"}} for pod in made]
        self.story.manifests.put(f"{name}.yaml", cluster.text(documents))
        return made

    def start(self, pod: PodHost) -> tuple[float, float]:
        """Milliseconds of the main plugin and of ours."""
        ours = self.runtime.ours
        assert ours is not None
        began = time.monotonic()
        result = self.runtime.call("ADD", pod, self.runtime.main, {})
        between = time.monotonic()
        self.runtime.call("ADD", pod, ours, result)
        return (between - began) * 1e3, (time.monotonic() - between) * 1e3


def report(case: str, times: Sequence[tuple[float, float]], seconds: float) -> Row:
    main, ours = ([each[place] for each in times] for place in (0, 1))
    tail = quantiles(ours, n=20)[-1]
    print(
        f"{case:9} {len(times)} pods in {seconds:.1f} s: bridge {median(main):.0f} ms, routerd-cni median "
        f"{median(ours):.0f} ms, p95 {tail:.0f} ms   {at_most(tail, BARS[case])}"
    )
    return {"case": case, "pods": len(times), "median_ms": median(ours), "p95_ms": tail, "bridge_ms": median(main)}


def main(arguments: argparse.Namespace) -> None:
    print(machine())
    forget("cni")
    with Lab(f"bc{os.getpid()}", nodes=(*NODES[:-1], WORKER)) as lab:
        node = Node(started(lab))
        pods = node.scheduled("alone", ALONE)
        began = time.monotonic()
        alone = [node.start(pod) for pod in pods]
        rows = [report("alone", alone, time.monotonic() - began)]
        pods = node.scheduled("together", arguments.pods)
        began = time.monotonic()
        with ThreadPoolExecutor(arguments.at_once) as runtime:
            together = list(runtime.map(node.start, pods))
        rows.append(report("together", together, time.monotonic() - began))
        write("cni", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=500, help="how many start together (default: 500)")
    parser.add_argument("--at-once", type=int, default=16, help="how many of them at a time (default: 16)")
    main(parser.parse_args())
