"""Churn for long, under traffic of both families: pods, policies, services and a gateway come and go; nothing is lost.

    make soak        or: python -m tests.netns.stories.soak [--minutes M] [--seed S]

No process is killed; that is what `chaos` is for, and it looks at services: when a node leaves, a router that spreads
anew may take a connection to one to another node. Here long connections must live on byte for byte, new ones must be
made, no packet of a selected pod may show outside with another source, memory must stay what it was after the first
part; and when the last policy has gone, every table of flows and ports must run empty.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpf import syscall
from routerd.serve.api import agent_socket, ask
from tests.netns.lab.churn import Churn
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import Node
from tests.netns.lab.lab import FW_ADDRESS, FW_NETWORK, Lab
from tests.netns.lab.traffic import Echo, NewConnections
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.lab.wiring import six
from tests.netns.stories.run import Counts, Run, arguments, seed_of
from tests.netns.stories.story import EGRESS_IP, Story, started
from tests.waiting import WaitTimeout, wait

FW6, EGRESS_IP6 = six(FW_ADDRESS), "2001:db8:60::100"
SIX = f"""\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: six}}
spec:
  selectors: [{{podSelector: {{matchLabels: {{app: six}}}}}}]
  destinationCIDRs: ['{six(FW_NETWORK)}']
  egressIP: '{EGRESS_IP6}'
  gateways: {{nodeSelector: {{matchExpressions: [{{key: routerd.io/egress-gateway, operator: Exists}}]}}}}
"""
SHORT = {"flow-deadline": "5s"}  # that nodes keep the ports of an egress IP which no policy has any more
LEAVES = "gw2"  # gw1 alone has the address of the Cilium policy
LEAVING = 60.0  # seconds until it is safe to stop
OUT_FOR = (2.0, 6.0)  # seconds
STAYS = (4.0, 10.0)
EMPTY = 400.0  # seconds in which tables run empty: datagrams idle, ports rest
GROWTH = 0.10  # of resident memory after the first quarter
MIB = 1 << 20


@dataclass(slots=True)
class Outcome(Counts):
    """What a run counted."""

    leaves: int = 0  # of the gateway, and its returns
    flows: int = 0  # at the end, on all nodes
    ports: int = 0
    growth: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes after the first quarter and at the end

    def rows(self) -> list[Row]:
        grown = {name: (last - first) / first for name, (first, last) in self.growth.items() if first}
        worst = max(grown, key=lambda name: grown[name], default="")
        return [
            Row("seed", str(self.seed)),
            Row("a gateway left and came back", f"{self.leaves} times"),
            *self.rows_of_traffic(),
            Row("flows when nothing is selected any more", f"{self.flows} flows", "= 0 flows"),
            Row("ports then, in use and at rest", f"{self.ports} ports", "= 0 ports"),
            Row(f"growth of memory, the most ({worst})", f"{100 * grown[worst]:.1f} %", f"< {100 * GROWTH:g} %")
            if grown
            else Row("growth of memory", "too short a run"),
        ]


class Soak(Run[Outcome]):
    """One run on a running lab of both families."""

    def soak(self, seconds: float) -> Outcome:
        churn = self._churn()
        began, sizes = time.monotonic(), [(0.0, memory_of(self._daemons))]
        with self._traffic(*self._connections()), churn:
            while time.monotonic() < began + seconds and not self.outcome.faults:
                self._leave_and_return(churn)
                sizes.append((time.monotonic() - began, memory_of(self._daemons)))
        self.outcome.growth = growth(sizes)
        self._count(churn)
        self._run_empty()
        return self.outcome

    def _connections(self) -> tuple[list[Echo], list[NewConnections]]:
        """Long and new ones, of both families."""
        lab, pool_ip = self._lab, self._story.pool_ip
        of_six = [lab.pod(name) for name in ("six", "six-gw")]
        long = [
            *(Echo(lab.pod(name)) for name in ("snat-pod", "snat-gw", "batch")),
            *(Echo(pod, FW6) for pod in of_six),
        ]
        new = [
            NewConnections(lab.pod("snat-pod"), {EGRESS_IP}),
            NewConnections(lab.pod("batch"), {pool_ip}),
            *(NewConnections(pod, {EGRESS_IP6}, FW6) for pod in of_six),
        ]
        return long, new

    def _leave_and_return(self, churn: Churn) -> None:
        time.sleep(self._rng.uniform(*STAYS))
        self._daemons.routerd(LEAVES, "drain", timeout=LEAVING)  # a command is 0.4 s of a CPU, of which little is left
        try:
            wait(self._is_safe, f"{LEAVES} is safe to stop", timeout=LEAVING, interval=0.1)
        except WaitTimeout:
            self.outcome.faults.append(f"{LEAVES} is not safe to stop: {self._departure()}")
        time.sleep(self._rng.uniform(*OUT_FOR))
        self._daemons.routerd(LEAVES, "undrain", timeout=LEAVING)
        self.outcome.leaves += 1
        began = time.monotonic()
        self._converge(churn, f"{LEAVES} came back", 60.0, 0.05)
        name, size = max(memory_of(self._daemons).items(), key=lambda each: each[1])
        exact = f"all is exact after {time.monotonic() - began:.2f} s"
        self._told.say(f"  {self.outcome.leaves:4} {LEAVES} came back; {exact}; {name} has {size / MIB:.0f} MiB")

    def _departure(self) -> dict[str, Any]:
        """What the agent says of it."""
        status = ask(agent_socket(self._lab.node(LEAVES).directory / "run"), {"get": "status"})
        return dict(status["drain"])

    def _is_safe(self) -> bool:
        return self._departure()["state"] == "drained"

    def _run_empty(self) -> None:
        """Nothing is selected any more: flows end, ports have rested, nobody has ports of an egress IP."""
        for path in self._lab.manifests.glob("*.yaml"):
            if any(kind in path.read_text() for kind in ("EgressPolicy", "EgressGatewayPolicy", "EgressNATPolicy")):
                path.unlink()

        def is_empty() -> bool:
            sizes = [sizes_of(node) for node in self._lab.nodes.values()]
            self.outcome.flows = sum(each["flows"] for each in sizes)
            self.outcome.ports = sum(each["reverse"] for each in sizes)
            return not self.outcome.flows and not self.outcome.ports and not self._allocations().groups

        try:
            wait(is_empty, "no flow, no port, no group", timeout=EMPTY, interval=1.0)
        except WaitTimeout:
            self.outcome.faults.append(
                f"{self.outcome.flows} flows and {self.outcome.ports} ports are left after {EMPTY:g} s"
            )


def sizes_of(node: Node) -> dict[str, int]:
    """Entries of a node's tables of flows and of ports."""
    found = {}
    for name in ("flows", "reverse"):
        table = syscall.BpfMap(syscall.open_pinned(node.pin_dir / "routerd" / "maps" / name))
        try:
            found[name] = len(table.items())
        finally:
            table.close()
    return found


def growth(sizes: Sequence[tuple[float, Mapping[str, int]]]) -> dict[str, tuple[int, int]]:
    """Of memory at some seconds of the run: after its first quarter and at the end. Empty if that is one look."""
    end, late = sizes[-1]
    at, early = next(each for each in sizes if each[0] >= end / 4)
    return {name: (size, late[name]) for name, size in early.items()} if at < end else {}


def memory_of(daemons: Daemons) -> Mapping[str, int]:
    """Resident memory of each daemon, in bytes."""
    return {f"{each.role} of {each.host.label}": each.resident() for each in daemons.everyone()}


def complaints(outcome: Outcome) -> list[str]:
    """What did not hold, in words; empty when everything held."""
    grown = [
        f"{name} grew from {first / MIB:.1f} to {last / MIB:.1f} MiB"
        for name, (first, last) in outcome.growth.items()
        if last > first * (1 + GROWTH)
    ]
    return [*outcome.complaints(), *grown]


def of_both_families(lab: Lab) -> Story:
    """The demo's cluster, and two pods that leave by IPv6; the ToR has a route to their egress IP by both gateways."""
    daemons = Daemons(lab, options={"operator": SHORT})
    for name, node in (("six", "worker"), ("six-gw", "gw1")):
        lab.add_pod(name, node, {"app": "six"})
    lab.fw.start_server(http=80, udp=53, tcp=7, address=FW6)
    hops = " ".join(f"nexthop via {six(lab.node(name).address)}" for name in ("gw1", "gw2"))
    lab.tor.ip(f"route add {EGRESS_IP6}/128 {hops}")
    story = started(lab, daemons)
    assert story.watch is not None
    story.manifests.put("six.yaml", SIX)
    for pod in (lab.pod("six"), lab.pod("six-gw")):
        lab.wait(lambda: pod.ask(FW6, timeout=0.3).source == EGRESS_IP6, f"{pod.label} leaves by IPv6")  # noqa: B023
    story.watch.allow(EGRESS_IP6)
    story.watch.forbid(*(six(lab.pod(name).address) for name in ("six", "six-gw")))
    return story


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="of churn")
    options = parser.parse_args()
    seed = seed_of(options)
    told = Transcript(sys.stdout)
    told.say(f"soak: seed {seed}, {options.minutes:g} minutes")
    with Lab("soak", ipv6=True) as lab:
        story = of_both_families(lab)
        outcome = Soak(story, Outcome(seed), told).soak(60 * options.minutes)
        if complaints(outcome):
            told.logs(story.daemons, lines=12)
    told.failed += complaints(outcome)
    told.table(outcome.rows())
    return 1 if told.failed else 0


if __name__ == "__main__":
    sys.exit(main())
