"""What 100,000 map entries cost a node: from a Snapshot to the kernel's maps, and one changed pod among them.

    make bench-entries        or: python -m tests.bench.entries [--destinations N] [--times N]

Pods of one node, each selected by a policy of its own that leads to some thousand networks, as files. The parts of an
agent run one after the other as in its rounds: the pure state of the node, what its kernel has, the plan, its actions,
until nothing is left to do. Reading the files is printed beside.

Rows go to `build/bench/entries.json`: `step, entries, actions, rounds, seconds, cpu_ms, nft_cpu_ms, reading_ms`; CPU of
nft is its own. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from statistics import median

import yaml

from egress.netdev import Datapath
from routerd.agent.egress import EgressRoom
from routerd.cluster.assign import assign
from routerd.cluster.ledger import Ledger
from routerd.model import Snapshot
from routerd.node.desired import EGRESS_ROOM, Kept, LocalFacts, Settings, compose
from routerd.store.embedded.store import FileStore
from tests.bench.report import Row, at_most, forget, machine, write
from tests.netns.lab import cluster, netns
from tests.netns.lab.lab import Lab

PODS = 100  # a policy has 1,000 networks at most
BARS = {"snapshot to maps": 3000.0, "one pod changed": 50.0}  # ms of the clock, of CPU


def policy(number: int, destinations: int) -> cluster.Document:
    first = int(IPv4Address("32.0.0.0")) + number * destinations * 512
    networks = [f"{IPv4Address(first + 512 * each)}/24" for each in range(destinations)]
    return {
        "apiVersion": "routerd.io/v1alpha1",
        "kind": "EgressPolicy",
        "metadata": {"name": f"policy-{number}"},
        "spec": {
            "selectors": [{"podSelector": {"matchLabels": {"app": f"a{number}"}}}],
            "destinationCIDRs": networks,
            "egressIP": f"10.168.61.{number + 1}",
        },
    }


@dataclass
class Node:
    """The worker's rounds, without an agent around them."""

    lab: Lab
    room: EgressRoom
    facts: LocalFacts = field(default_factory=lambda: LocalFacts(uplinks=("eth0",)))
    kept: Kept = field(default_factory=Kept)
    entries: int = 0  # of its maps, as observed last

    def bring_about(self, snapshot: Snapshot, step: str) -> Row:
        """Rounds until the kernel has what the snapshot asks for."""
        began, cpu, of_nft, done, rounds = time.monotonic(), time.process_time(), cpu_of_children(), 0, 0
        with netns.entered(self.lab.node("worker").name):
            while actions := self._round(snapshot):
                done, rounds = done + actions, rounds + 1
        cpu, took = time.process_time() - cpu, time.monotonic() - began
        return {
            "step": step, "entries": self.entries, "actions": done, "rounds": rounds + 1,
            "seconds": round(took, 3), "cpu_ms": round(1000 * cpu, 1),
            "nft_cpu_ms": round(1000 * (cpu_of_children() - of_nft), 1),
        }  # fmt: skip

    def _round(self, snapshot: Snapshot) -> int:
        """How many actions it took."""
        desired = compose(snapshot, Settings("worker"), self.facts, self.kept).rooms[EGRESS_ROOM]
        observed = self.room.observe(desired)
        self.entries = sum(map(len, observed.maps.values()))
        actions = self.room.plan(desired, observed)
        for action in actions:
            self.room.apply(action)
        return len(actions)


def cpu_of_children() -> float:
    """Seconds of processes that have ended: nft."""
    used = os.times()
    return used.children_user + used.children_system


def read(store: FileStore) -> tuple[Snapshot, float]:
    """What the store reads anew, and how many milliseconds of CPU that takes."""
    began = time.process_time()
    snapshot = store.load()
    return snapshot, round(1000 * (time.process_time() - began), 1)


def put_pods(lab: Lab) -> None:
    """A file for each pod: what is edited is read alone."""
    for host in lab.pods.values():
        cluster.write(lab.manifests / f"{host.label}.yaml", [cluster.pod(host)])


def measure(lab: Lab, node: Node, options: argparse.Namespace) -> list[Row]:
    others = [each for each in cluster.documents(lab) if each["kind"] != "Pod"]
    cluster.write(lab.manifests / "cluster.yaml", others)
    cluster.copy(lab, "bgp-config-cilium-1.10.yaml")
    documents = [policy(number, options.destinations) for number in range(PODS)]
    (lab.manifests / "policies.yaml").write_text(yaml.dump_all(documents, Dumper=yaml.CSafeDumper))
    put_pods(lab)
    store = FileStore(lab.manifests, lab.manifests / "allocations.yaml")
    snapshot, reading = read(store)
    store.write_allocations(assign(snapshot, Ledger(), {}, time.time()).allocations)
    rows = [{**node.bring_about(store.load(), "snapshot to maps"), "reading_ms": reading}]
    pod = next(iter(lab.pods.values()))
    for number in range(options.times):
        pod.labels = {"app": f"a{number % 2 + 1}"}
        put_pods(lab)
        snapshot, reading = read(store)
        rows.append({**node.bring_about(snapshot, "one pod changed"), "reading_ms": reading})
    return rows


def told(rows: list[Row]) -> Iterator[str]:
    first, changes = rows[0], rows[1:]
    yield (
        f"snapshot to maps: {first['entries']:,} entries in {first['seconds']:.2f} s, {first['rounds']} rounds   "
        f"{at_most(1000 * first['seconds'], BARS['snapshot to maps'])}   "
        f"(CPU {first['cpu_ms']:.0f} ms, nft {first['nft_cpu_ms']:.0f} ms, reading YAML {first['reading_ms']:.0f} ms)"
    )
    names = ("cpu_ms", "nft_cpu_ms", "reading_ms")
    cpu, nft_ms, reading_ms = (median(each[name] for each in changes) for name in names)
    rounds = median(each["rounds"] for each in changes)
    yield (
        f"one pod changed: median {cpu:.0f} ms of CPU, {rounds:.0f} rounds   {at_most(cpu, BARS['one pod changed'])}   "
        f"(nft {nft_ms:.0f} ms, reading YAML {reading_ms:.0f} ms)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-entries", description=__doc__, allow_abbrev=False)
    parser.add_argument("--destinations", type=int, default=1000, help="of each of 100 policies (default: 1000)")
    parser.add_argument("--times", type=int, default=15, help="a pod changes (default: 15)")
    options = parser.parse_args()
    print(f"make bench-entries: {machine()}")
    forget("entries")
    with Lab(f"be{os.getpid()}") as lab:
        for number in range(PODS):
            lab.add_pod(f"pod{number}", "worker", {"app": f"a{number}"})
        datapath = Datapath(lab.node("worker").pin_dir / "routerd")
        try:
            rows = measure(lab, Node(lab, EgressRoom(datapath)), options)
        finally:
            datapath.close()
    print(*told(rows), write("entries", rows), sep="\n")


if __name__ == "__main__":
    main()
