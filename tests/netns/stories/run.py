"""A run on the demo's cluster under churn and traffic: what `chaos` and `soak` have in common, and judge alike."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from routerd.errors import RouterdError
from routerd.model import Allocations
from tests.models.many import parse_allocations
from tests.netns.lab import cluster
from tests.netns.lab.churn import Churn
from tests.netns.lab.netns import run
from tests.netns.lab.traffic import Echo, NewConnections, Worker
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.stories.story import EGRESS_POOL, Story
from tests.waiting import WaitTimeout, wait


@dataclass(slots=True)
class Counts:
    """What every run counts."""

    seed: int
    faults: list[str] = field(default_factory=list)
    changes: int = 0
    new_connections: int = 0
    lost_connections: list[str] = field(default_factory=list)
    long_connections: int = 0
    echoes: int = 0
    packets: int = 0
    packets_missed: int = 0
    leaks: int = 0

    def rows_of_traffic(self) -> list[Row]:
        return [
            Row("changes of services, policies and pods meanwhile", f"{self.changes} changes"),
            Row("rounds that did not converge, and other faults", f"{len(self.faults)} faults", "= 0 faults"),
            Row("long connections, echoes with checksum", f"{self.long_connections}, {self.echoes} echoes"),
            Row("new connections, one after the other", f"{self.new_connections} made"),
            Row("connections lost, long and new", f"{len(self.lost_connections)} lost", "= 0 lost"),
            Row(f"packets leaked, of {self.packets} captured", f"{self.leaks} packets", "= 0 packets"),
            Row("packets that the capture lost", f"{self.packets_missed} packets", "= 0 packets"),
        ]

    def complaints(self) -> list[str]:
        """What did not hold, in words; empty when everything held."""
        return [
            *self.faults,
            *self.lost_connections,
            *([f"{self.leaks} packets leaked"] if self.leaks else []),
            *([f"the capture lost {self.packets_missed} packets"] if self.packets_missed else []),
        ]


C = TypeVar("C", bound=Counts)


class Run(Generic[C]):
    """One run on a running lab."""

    def __init__(self, story: Story, outcome: C, told: Transcript) -> None:
        self.outcome = outcome
        self._story, self._lab, self._daemons = story, story.lab, story.daemons
        self._rng = random.Random(outcome.seed)
        self._told = told
        self._waited_for = ""  # the last difference seen in this round

    def _churn(self) -> Churn:
        """Not begun yet; fw serves whatever address it leads to."""
        assert self._story.watch is not None
        slices = [
            cluster.endpoint_slice("web", "default", 8080, [self._lab.pod("web")]),
            cluster.endpoint_slice("dns", "kube-system", 53, [self._lab.pod("dns")], "UDP"),
        ]
        self._permit()
        return Churn(self._lab, self._story.watch, random.Random(self._rng.random()), slices)

    def _permit(self) -> None:
        """Every address of the pool is an egress IP that fw may serve, and that may show by gateways: what a policy
        that is gone began goes on for a while when the ToR has no route to its address any more.
        """
        assert self._story.watch is not None
        head = EGRESS_POOL.rpartition(".")[0]
        pool = [f"{head}.{last}" for last in range(16)]
        self._story.watch.allow(*pool)
        self._lab.tap.lead(dict.fromkeys(pool, ("gw1", "gw2")))
        for address in pool:
            if address != self._story.pool_ip:
                self._lab.fw.allow(address)

    @contextmanager
    def _traffic(self, long: Sequence[Echo], new: Sequence[NewConnections]) -> Iterator[None]:
        """Long and new connections inside the block; what became of them goes into the outcome."""
        workers: list[Worker] = [*long, *new]
        with ExitStack() as stack:
            for worker in workers:
                stack.enter_context(worker)
            yield
            lost = [fault for worker in workers if (fault := worker.end())]
        self.outcome.lost_connections += lost
        self.outcome.long_connections = len(long)
        self.outcome.echoes = sum(echo.rounds for echo in long)
        self.outcome.new_connections = sum(each.made for each in new)

    def _converge(self, churn: Churn, after: str, timeout: float, interval: float) -> None:
        with churn.paused():
            try:
                wait(self._is_exact, "exactly what is wanted", timeout=timeout, interval=interval)
            except WaitTimeout:
                self.outcome.faults.append(f"after {after}: {'; '.join(self._differences()[:6])}")

    def _count(self, churn: Churn) -> None:
        assert self._story.watch is not None
        found, verdict = self.outcome, self._story.watch.settle()
        found.changes = churn.changes
        found.packets, found.leaks, found.packets_missed = verdict.packets, verdict.leaks.total(), verdict.lost
        found.faults += [f"leaked, by the tap: {seen}" for seen in self._lab.tap.settle()]
        if churn.fault is not None:
            found.faults.append(f"churn: {churn.fault!r}")

    # --- what is wanted

    def _allocations(self) -> Allocations:
        path = self._lab.manifests / "allocations.yaml"
        return parse_allocations(path.read_text(), path.name)

    def _wanted_paths(self, allocations: Allocations) -> set[tuple[str, str]]:
        vips = {str(address) for one in allocations.services for address in one.addresses}
        wanted = {(f"{vip}/32", node) for vip in vips for node in self._lab.nodes}
        announced = [group for group in allocations.groups if not group.node_address]
        prefixes = ((group, f"{ip}/{ip.max_prefixlen}") for group in announced for ip in group.egress_ips)
        return wanted | {(prefix, node) for group, prefix in prefixes for node in group.gateways}

    def _is_exact(self) -> bool:
        found = self._differences()
        self._waited_for = found[0] if found else self._waited_for
        return not found

    def _differences(self) -> list[str]:
        """What is not as wanted, cheapest first: the operator's document, the ToR's table, each node's plan."""
        churn_services = {path.stem for path in self._lab.manifests.glob("churn-service-*.yaml")}
        churn_policies = {path.stem for path in self._lab.manifests.glob("churn-policy-*.yaml")}
        allocations = self._allocations()
        served = {one.service for one in allocations.services}
        wanted = {"default/web"} | {f"default/{name.replace('service-', '')}" for name in churn_services}
        if served != wanted:
            return [f"allocations of services: {sorted(served ^ wanted)}"]
        grouped = {policy for group in allocations.groups for policy in group.policies if "churn" in policy}
        if len(grouped) != len(churn_policies):
            return [f"groups of policies: {sorted(grouped)}, wanted {sorted(churn_policies)}"]
        table = {(prefix, p.protocol) for prefix, some in self._lab.tor.routes().items() for p in some}
        if table != (paths := self._wanted_paths(allocations)):
            return [f"the ToR's table: {sorted(table ^ paths)[:6]}"]
        told = run(["birdc", "-s", str(self._lab.tor.control), "show", "protocols", "all"])
        if "Neighbor graceful restart active" in told:
            return ["the ToR waits for End-of-RIB of a node"]
        try:
            return [f"{node}: {line}" for node in self._lab.nodes for line in self._daemons.plan(node)]
        except RouterdError as error:
            return [str(error)]


def seed_of(options: argparse.Namespace) -> int:
    """That of `--seed`, or one at random."""
    return options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """With `--seed`. A signal that ends the program ends it as an exception does, so that the lab goes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="repeats a run's choices (not its timing)")
    return parser
