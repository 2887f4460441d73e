"""Kills agents, speakers and the operator at random moments under churn; checks what must never happen.

    make chaos        or: python -m tests.netns.stories.chaos [--kills N] [--seed S]

Each of the three is killed (SIGKILL) N times and started again, as a service manager would. After every kill the
cluster must come to exactly what is wanted: the ToR's table, and no node with anything left to do. All the while, long
connections through the gateways must live on byte for byte, new ones must be made, no packet of a selected pod may
show outside with another source, and the ToR (graceful restart) must not lose a path that is always wanted.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.netns.lab.churn import Churn
from tests.netns.lab.daemons import Daemon
from tests.netns.lab.footprint import footprint
from tests.netns.lab.lab import Lab
from tests.netns.lab.pathwatch import Paths, PathWatch
from tests.netns.lab.traffic import Echo, NewConnections
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.stories.run import Counts, Run, arguments, seed_of
from tests.netns.stories.story import EGRESS_IP, started

ROLES = ("agent", "speaker", "operator")
CONVERGE = 30.0  # seconds, from the moment everything runs again


@dataclass(slots=True)
class Outcome(Counts):
    """What a run counted. Times in seconds."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    kills_while_starting: int = 0
    kills_of_both: int = 0  # speaker and agent of a node together
    converged: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
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
            *self.rows_of_traffic(),
            Row(f"paths missed at the ToR, in {self.looks} looks", f"{len(self.lost_paths)} paths", "= 0 paths"),
            Row("  longest time between two looks", f"{self.longest_gap * 1000:.0f} ms"),
            Row("programs, maps and tunnels made anew", f"{len(self.replaced)} objects", "= 0 objects"),
        ]


class Chaos(Run[Outcome]):
    """One run on a running lab."""

    def run(self, kills: int, until: float) -> Outcome:
        """`kills` of each role in random order; none is begun after monotonic time `until`."""
        before = self._kept()
        todo = [role for role in ROLES for _ in range(kills)]
        self._rng.shuffle(todo)
        churn = self._churn()
        with PathWatch(self._lab.tor.control) as paths, self._traffic(*self._connections()):
            paths.wanted = self._always()
            with churn:
                for role in todo:
                    if time.monotonic() > until or self.outcome.faults:
                        break
                    self._one(role, churn)
        self._judge(churn, paths, before)
        return self.outcome

    def _connections(self) -> tuple[list[Echo], list[NewConnections]]:
        """Long and new ones."""
        lab, pool_ip = self._lab, self._story.pool_ip
        long = [Echo(lab.pod(name)) for name in ("snat-pod", "snat-gw", "batch")]
        nodes = {node.address for node in lab.nodes.values()}
        new = [
            NewConnections(lab.pod("snat-pod"), {EGRESS_IP}),
            NewConnections(lab.pod("batch"), {pool_ip}),
            NewConnections(lab.client, nodes, self._story.vip),
        ]
        return long, new

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
        self._converge(churn, f"{role} of {node}", CONVERGE, 0.03)
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

    def _always(self) -> Paths:
        """Paths that are wanted all the time, whatever churns."""
        pool = {(f"{self._story.pool_ip}/32", node) for node in ("gw1", "gw2")}
        vips = {(f"{self._story.vip}/32", node) for node in self._lab.nodes}
        return frozenset(pool | vips | {(f"{EGRESS_IP}/32", "gw1")})

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
        self._count(churn)
        found, after = self.outcome, self._kept()
        found.looks, found.longest_gap = paths.looks, paths.longest_gap
        found.lost_paths = [f"{prefix} of {node}" for _, prefix, node in paths.missed]
        found.replaced = [key for key in {*before, *after} if before.get(key) != after.get(key)]
        if paths.fault:
            found.faults.append(f"path watch: {paths.fault}")


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL; what has gone by itself is no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def complaints(outcome: Outcome) -> list[str]:
    """What did not hold, in words; empty when everything held."""
    return [*outcome.complaints(), *sorted(set(outcome.lost_paths)), *outcome.replaced]


def chaos(prefix: str, kills: int, seed: int, told: Transcript, limit: float = 7200.0) -> Outcome:
    """Builds the lab, starts everything and runs. `limit`: seconds after which no kill is begun."""
    begin = time.monotonic()
    with Lab(prefix) as lab:
        story = started(lab)
        outcome = Chaos(story, Outcome(seed), told).run(kills, begin + limit)
        if complaints(outcome):
            told.logs(story.daemons, lines=12)
    return outcome


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of agent, speaker and operator each")
    options = parser.parse_args()
    seed = seed_of(options)
    told = Transcript(sys.stdout)
    told.say(f"chaos: seed {seed}, {options.kills} kills of agent, speaker and operator each")
    begin = time.monotonic()
    outcome = chaos("chaos", options.kills, seed, told)
    told.failed += complaints(outcome)
    told.table([*outcome.rows(), Row("whole run", f"{time.monotonic() - begin:.0f} s")])
    return 1 if told.failed else 0


if __name__ == "__main__":
    sys.exit(main())
