"""Kills agents, speakers and the operator at random moments under churn; checks what must never happen.

    make chaos        or: python -m tests.netns.stories.chaos [--kills N] [--seed S]

Each of the three is killed (SIGKILL) N times and started again, as a service manager would. After every kill the
cluster must come to exactly what is wanted: the ToR's table, and no node with anything left to do. All the while, long
connections through the gateways must live on byte for byte, new ones must be made, no packet of a selected pod may
show outside with another source, and the ToR (graceful restart) must not lose a path that is always wanted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from routerd.errors import RouterdError
from routerd.model import Allocations
from tests.models.many import parse_allocations
from tests.netns.lab import cluster
from tests.netns.lab.churn import Churn
from tests.netns.lab.daemons import Daemon
from tests.netns.lab.footprint import footprint
from tests.netns.lab.lab import Lab
from tests.netns.lab.netns import run
from tests.netns.lab.pathwatch import Paths, PathWatch
from tests.netns.lab.traffic import Echo, NewConnections, Worker
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.stories.story import (
    EGRESS_IP,
    EGRESS_POOL,
    Story,
    started,
)
from tests.waiting import WaitTimeout, wait

ROLES = ("agent", "speaker", "operator")
CONVERGE = 30.0  # seconds, from the moment everything runs again


@dataclass(slots=True)
class Outcome:
    """What a run counted. Times in seconds."""

    seed: int
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    kills_while_starting: int = 0
    kills_of_both: int = 0  # speaker and agent of a node together
    converged: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    changes: int = 0
    new_connections: int = 0
    lost_connections: list[str] = field(default_factory=list)
    long_connections: int = 0
    echoes: int = 0
    packets: int = 0
    packets_missed: int = 0
    leaks: int = 0
    looks: int = 0
    longest_gap: float = 0.0
    lost_paths: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """The table."""
        rows = [Row("seed", str(self.seed))]
        for role in ROLES:
            times = sorted(self.converged[role])
            rows.append(Row(f"kills of {role}", f"{self.kills[role]} kills"))
            if times:
                rows.append(Row("  exact convergence afterwards, median", f"{times[len(times) // 2]:.2f} s"))
                rows.append(Row("  slowest", f"{times[-1]:.2f} s", f"< {CONVERGE:g} s"))
        return [
            *rows,
            Row("  of speakers, together with the agent", f"{self.kills_of_both} kills"),
            Row("kills again while starting (agent, operator)", f"{self.kills_while_starting} kills"),
            Row("changes of services, policies and pods meanwhile", f"{self.changes} changes"),
            Row("rounds that did not converge, and other faults", f"{len(self.faults)} faults", "= 0 faults"),
            Row("long connections, echoes with checksum", f"{self.long_connections}, {self.echoes} echoes"),
            Row("new connections, one after the other", f"{self.new_connections} made"),
            Row("connections lost, long and new", f"{len(self.lost_connections)} lost", "= 0 lost"),
            Row(f"packets leaked, of {self.packets} captured", f"{self.leaks} packets", "= 0 packets"),
            Row("packets that the capture lost", f"{self.packets_missed} packets", "= 0 packets"),
            Row(f"paths missed at the ToR, in {self.looks} looks", f"{len(self.lost_paths)} paths", "= 0 paths"),
            Row("  longest time between two looks", f"{self.longest_gap * 1000:.0f} ms"),
            Row("programs, maps and tunnels made anew", f"{len(self.replaced)} objects", "= 0 objects"),
        ]


class Chaos:
    """One run on a running lab."""

    def __init__(self, story: Story, seed: int, told: Transcript) -> None:
        self.outcome = Outcome(seed)
        self._story, self._lab, self._daemons = story, story.lab, story.daemons
        self._rng = random.Random(seed)
        self._told = told
        self._waited_for = ""  # the last difference seen in this round

    def run(self, kills: int, until: float) -> Outcome:
        """`kills` of each role in random order; none is begun after monotonic time `until`."""
        assert self._story.watch is not None
        slices = [
            cluster.endpoint_slice("web", "default", 8080, [self._lab.pod("web")]),
            cluster.endpoint_slice("dns", "kube-system", 53, [self._lab.pod("dns")], "UDP"),
        ]
        self._permit()
        before = self._kept()
        todo = [role for role in ROLES for _ in range(kills)]
        self._rng.shuffle(todo)
        churn = Churn(self._lab, self._story.watch, random.Random(self._rng.random()), slices)
        with PathWatch(self._lab.tor.bgp.socket) as paths, self._traffic():
            paths.wanted = self._always()
            with churn:
                for role in todo:
                    if time.monotonic() > until or self.outcome.faults:
                        break
                    self._one(role, churn)
        self._judge(churn, paths, before)
        return self.outcome

    def _permit(self) -> None:
        """Every address of the pool is an egress IP that fw may serve."""
        assert self._story.watch is not None
        head = EGRESS_POOL.rpartition(".")[0]
        pool = [f"{head}.{last}" for last in range(16)]
        self._story.watch.allow(*pool)
        for address in pool:
            if address != self._story.pool_ip:
                self._lab.fw.allow(address)

    @contextmanager
    def _traffic(self) -> Iterator[None]:
        """Long and new connections inside the block; what became of them goes into the outcome."""
        lab, pool_ip = self._lab, self._story.pool_ip
        long = [Echo(lab.pod(name)) for name in ("snat-pod", "snat-gw", "batch")]
        nodes = {node.address for node in lab.nodes.values()}
        new = [
            NewConnections(lab.pod("snat-pod"), {EGRESS_IP}),
            NewConnections(lab.pod("batch"), {pool_ip}),
            NewConnections(lab.client, nodes, self._story.vip),
        ]
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

    # --- one kill

    def _one(self, role: str, churn: Churn) -> None:
        """Kills at a random moment, starts again after a random pause, sometimes kills again while it starts."""
        rng = self._rng
        time.sleep(rng.uniform(0, 0.5))
        node = rng.choice([*self._lab.nodes])
        self._kill(role, node)
        while role != "speaker" and rng.random() < 0.25:
            # A speaker gets its time: a session that fails before End-of-RIB loses stale paths (RFC 4724, 4.2).
            time.sleep(rng.uniform(0, 0.8))
            self._kill(role, node, counted=False)
        begin = time.monotonic()
        time.sleep(rng.uniform(0, 0.3))
        with churn.paused():
            try:
                wait(self._is_exact, "exactly what is wanted", timeout=CONVERGE, interval=0.03)
            except WaitTimeout:
                self.outcome.faults.append(f"after {role} of {node}: {'; '.join(self._differences()[:6])}")
            self._note(role, node, time.monotonic() - begin)

    def _note(self, role: str, node: str, seconds: float) -> None:
        self.outcome.converged[role].append(seconds)
        number, where = sum(self.outcome.kills.values()), "" if role == "operator" else node
        self._told.say(f"  {number:4} {role:<9}{where:<8}{seconds:6.2f} s  last: {self._waited_for:.60}")
        self._waited_for = ""

    def _kill(self, role: str, node: str, *, counted: bool = True) -> None:
        daemon = self._daemon(role, node)
        company = role == "speaker" and self._rng.random() < 0.4  # the agent at the same time
        if role == "speaker" and self._rng.random() < 0.5:
            kill_all(daemon.relays())
        if company:
            self._daemons.agents[node].kill()
        daemon.kill()
        if counted:
            self.outcome.kills[role] += 1
        else:
            self.outcome.kills_while_starting += 1
        time.sleep(self._rng.uniform(0, 0.4))
        self._start(role, node)
        if company:
            self.outcome.kills_of_both += 1
            time.sleep(self._rng.uniform(0, 0.4))
            self._start("agent", node)

    def _start(self, role: str, node: str) -> None:
        match role:
            case "agent":
                self._daemons.start_agent(node)
            case "speaker":
                self._daemons.start_speaker(node)
            case _:
                self._daemons.start_operator()

    def _daemon(self, role: str, node: str) -> Daemon:
        if role == "operator":
            assert self._daemons.operator is not None
            return self._daemons.operator
        return {"agent": self._daemons.agents, "speaker": self._daemons.speakers}[role][node]

    # --- what is wanted

    def _allocations(self) -> Allocations:
        path = self._lab.manifests / "allocations.yaml"
        return parse_allocations(path.read_text(), path.name)

    def _always(self) -> Paths:
        """Paths that are wanted all the time, whatever churns."""
        pool = {(f"{self._story.pool_ip}/32", node) for node in ("gw1", "gw2")}
        vips = {(f"{self._story.vip}/32", node) for node in self._lab.nodes}
        return frozenset(pool | vips | {(f"{EGRESS_IP}/32", "gw1")})

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
        told = run(["birdc", "-s", str(self._lab.tor.bgp.socket), "show", "protocols", "all"])
        if "Neighbor graceful restart active" in told:
            return ["the ToR waits for End-of-RIB of a node"]
        try:
            return [f"{node}: {line}" for node in self._lab.nodes for line in self._daemons.plan(node)]
        except RouterdError as error:
            return [str(error)]

    # --- the verdict

    def _kept(self) -> dict[str, object]:
        """What must be the same objects at the end: programs, maps, tunnels."""
        return {
            f"{name} {key}": value
            for name, node in self._lab.nodes.items()
            for key, value in footprint(node).items()
            if key.startswith(("program ", "map ", "device "))
        }

    def _judge(self, churn: Churn, paths: PathWatch, before: dict[str, object]) -> None:
        assert self._story.watch is not None
        found, verdict, after = self.outcome, self._story.watch.settle(), self._kept()
        found.changes, found.looks, found.longest_gap = churn.changes, paths.looks, paths.longest_gap
        found.packets, found.leaks, found.packets_missed = verdict.packets, verdict.leaks.total(), verdict.lost
        found.lost_paths = [f"{prefix} of {node}" for _, prefix, node in paths.missed]
        found.replaced = [key for key in {*before, *after} if before.get(key) != after.get(key)]
        if churn.fault is not None:
            found.faults.append(f"churn: {churn.fault!r}")
        if paths.fault:
            found.faults.append(f"path watch: {paths.fault}")


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL; what has gone by itself is no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def complaints(outcome: Outcome) -> list[str]:
    """What did not hold, in words; empty when everything held."""
    return [
        *outcome.faults,
        *outcome.lost_connections,
        *sorted(set(outcome.lost_paths)),
        *outcome.replaced,
        *([f"{outcome.leaks} packets leaked"] if outcome.leaks else []),
        *([f"the capture lost {outcome.packets_missed} packets"] if outcome.packets_missed else []),
    ]


def chaos(prefix: str, kills: int, seed: int, told: Transcript, limit: float = 7200.0) -> Outcome:
    """Builds the lab, starts everything and runs. `limit`: seconds after which no kill is begun."""
    begin = time.monotonic()
    with Lab(prefix) as lab:
        story = started(lab)
        outcome = Chaos(story, seed, told).run(kills, begin + limit)
        if complaints(outcome):
            told.logs(story.daemons, lines=12)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of agent, speaker and operator each")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="repeats a run's choices (not its timing)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    told = Transcript(sys.stdout)
    told.say(f"chaos: seed {seed}, {options.kills} kills of agent, speaker and operator each")
    begin = time.monotonic()
    outcome = chaos("chaos", options.kills, seed, told)
    told.failed += complaints(outcome)
    told.table([*outcome.rows(), Row("whole run", f"{time.monotonic() - begin:.0f} s")])
    return 1 if told.failed else 0


if __name__ == "__main__":
    sys.exit(main())
