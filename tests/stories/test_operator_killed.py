"""The operator, killed at random moments while services and policies change, decides as one that nobody disturbed.

Two operators with a directory each get the same changes; one of them is killed again and again. Freed addresses cool
down for longer than the test, so that what is given does not depend on when it was freed.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import yaml

from routerd.model import Allocations
from tests.models.many import parse_allocations
from tests.waiting import wait

REPOSITORY = Path(__file__).parents[2]
CHANGES = 40
CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {name: a, labels: {gateway: "yes"}}
status: {addresses: [{type: InternalIP, address: 10.0.0.11}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Node
metadata: {name: b, labels: {gateway: "yes"}}
status: {addresses: [{type: InternalIP, address: 10.0.0.12}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: routerd.io/v1alpha1
kind: AddressPool
metadata: {name: vips}
spec: {uses: [loadbalancer], blocks: [{cidr: 192.0.2.0/24}]}
---
apiVersion: routerd.io/v1alpha1
kind: AddressPool
metadata: {name: egress}
spec: {uses: [egress], blocks: [{cidr: 198.51.100.0/24}]}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{type: LoadBalancer, ports: [{{port: 80, protocol: TCP}}]}}
"""
NODE = """\
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status: {{addresses: [{{type: InternalIP, address: 10.0.1.{last}}}]}}
"""
POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: {name}}}
spec:
  selectors: [{{podSelector: {{matchLabels: {{app: x}}}}}}]
  destinationCIDRs: [203.0.113.{last}/32]
  pool: egress
  gateways: {{nodeSelector: {{matchLabels: {{gateway: "yes"}}}}}}
"""


class Site:
    """One operator with its directory."""

    def __init__(self, directory: Path) -> None:
        self.manifests = directory / "manifests"
        self.manifests.mkdir(parents=True)
        self.ledger = directory / "state" / "ledger.sqlite"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        (self.manifests / "cluster.yaml").write_text(CLUSTER)
        (self.manifests / "always.yaml").write_text(POLICY.format(name="always", last=255))  # so that ports are needed
        (directory / "routerd.yaml").write_text(yaml.safe_dump({
            "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "operator",
            "state-dir": str(directory / "state"), "run-dir": str(directory / "run"),
            "store": {"manifests": str(self.manifests)}, "operator": {"cooldown": "1h"},
        }))  # fmt: skip

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "routerd.cli.main",
            "operator",
            "--config",
            str(self._directory / "routerd.yaml"),
        ]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def put(self, name: str, text: str) -> None:
        fresh = self.manifests / f".{name}.new"
        fresh.write_text(text)
        fresh.replace(self.manifests / f"{name}.yaml")

    def allocations(self) -> Allocations:
        path = self.manifests / "allocations.yaml"
        return parse_allocations(path.read_text(), path.name) if path.exists() else Allocations()

    def log(self) -> str:
        return (self._directory / "log").read_text()


def owners(allocations: Allocations) -> dict[str, str]:
    """What each service and each policy has."""
    services = {one.service.partition("/")[2]: ", ".join(map(str, one.addresses)) for one in allocations.services}
    groups = {
        policy.rpartition("/")[2]: f"{group.egress_ip} as {group.id} by {group.gateways}"
        for group in allocations.groups
        for policy in group.policies
    }
    return services | groups | ports(allocations)


def ports(allocations: Allocations) -> dict[str, str]:
    """Which ports of a group's egress IP each node has."""
    names = {each.number: each.node for each in allocations.numbers}
    groups = {group.egress_ip for group in allocations.groups if group.policies}
    return {
        f"{names[block.node]} of {table.egress_ip}": f"{table.egress_ip}:{block.first}+{block.size} as {block.node}"
        for table in allocations.bindings
        if table.egress_ip in groups
        for block in table.blocks()
    }


def served(allocations: Allocations) -> set[str]:
    """Services, policies, and nodes that have ports of every group."""
    groups = [group.egress_ip for group in allocations.groups if group.policies]
    names = {each.number: each.node for each in allocations.numbers}
    having = [
        {names[block.node] for block in each.blocks()} for each in allocations.bindings if each.egress_ip in groups
    ]
    nodes = set.intersection(*having) if having else set()
    return {name for name in (*owners(allocations), *nodes) if name[1:2] == "-" and " " not in name}


def test_a_killed_operator_decides_as_an_undisturbed_one(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    calm, harried = Site(tmp_path / "calm"), Site(tmp_path / "harried")
    held: dict[str, str] = {}  # what the killed one has published
    kills = 0
    try:
        for site in (calm, harried):
            site.start()
        for number in range(CHANGES):
            _change(rng, number, (calm, harried))
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.3))
                harried.kill()
                kills += 1
                time.sleep(rng.uniform(0, 0.05))
                harried.start()
            now = owners(harried.allocations())
            addresses = [value.split(" ")[0] for value in now.values()]
            assert len(addresses) == len(set(addresses)), f"seed {seed}: an address has two owners: {now}"
            nodes_now = {name.split(" ")[0] for name in now if " of " in name}
            assert len({now[name].split(" as ")[1] for name in now if " of " in name}) == len(nodes_now), f"seed {seed}"
            moved = {name for name in now.keys() & held.keys() if now[name] != held[name]}
            assert not moved, f"seed {seed}: moved: {moved}"
            held = now
        wanted = {path.stem for path in calm.manifests.glob("?-*.yaml")}
        for site in (calm, harried):
            wait(lambda s=site: served(s.allocations()) == wanted, f"seed {seed}: {site.log()[-2000:]}")  # type: ignore[misc]
        assert owners(harried.allocations()) == owners(calm.allocations()), f"seed {seed}"
    finally:
        for site in (calm, harried):
            site.kill()
    with sqlite3.connect(harried.ledger) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger.close()
    assert kills > 5, f"seed {seed}"


def _change(rng: random.Random, number: int, sites: tuple[Site, ...]) -> None:
    """Adds in the order of names, as those seen together are served in it; removes only what has been served."""
    there = sorted(path.stem for path in sites[0].manifests.glob("?-*.yaml"))
    if there and rng.random() < 0.3:
        name = rng.choice([name for name in there if name[0] != "n"] or ["none"])
        if name == "none":
            return
        for site in sites:
            wait(lambda s=site: name in served(s.allocations()), f"{name} is served: {site.log()[-2000:]}")  # type: ignore[misc]
            (site.manifests / f"{name}.yaml").unlink()
        return
    kind, text = rng.choice((("s", SERVICE), ("p", POLICY), ("n", NODE)))
    for site in sites:
        site.put(f"{kind}-{number:03}", text.format(name=f"{kind}-{number:03}", last=number))
