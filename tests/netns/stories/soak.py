"""Churn for long, under traffic of both families: pods, policies, services and a gateway come and go; nothing is lost.

    make soak        or: python -m tests.netns.stories.soak [--minutes M] [--seed S]

No process is killed; that is what `chaos` is for, and it looks at services: when a node leaves, a router that spreads
anew may take a connection to one to another node. Here long connections must live on byte for byte, new ones must be
made, no packet of a selected pod may show outside with another source, memory must stay what it was after the first
part; and when the last policy has gone, every table of flows and ports must run empty.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bpf import syscall
from routerd.serve.api import agent_socket, ask
from tests.netns.lab import cluster
from tests.netns.lab.churn import Churn
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import Node
from tests.netns.lab.lab import FW_ADDRESS, FW_NETWORK, Lab
from tests.netns.lab.traffic import Echo, NewConnections, Worker
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.lab.wiring import six
from tests.netns.stories.chaos import Chaos
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
class Outcome:
    """What a run counted."""

    seed: int
    faults: list[str] = field(default_factory=list)
    changes: int = 0
    leaves: int = 0  # of the gateway, and its returns
    new_connections: int = 0
    echoes: int = 0
    lost: list[str] = field(default_factory=list)
    packets: int = 0
    packets_missed: int = 0
    leaks: int = 0
    flows: int = 0  # at the end, on all nodes
    ports: int = 0
    growth: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes after the first quarter and at the end

    def rows(self) -> list[Row]:
        grown = {name: (last - first) / first for name, (first, last) in self.growth.items() if first}
        worst = max(grown, key=lambda name: grown[name], default="")
        return [
            Row("seed", str(self.seed)),
            Row("changes of services, policies and pods", f"{self.changes} changes"),
            Row("a gateway left and came back", f"{self.leaves} times"),
            Row("echoes with checksum", f"{self.echoes} echoes"),
            Row("new connections, one after the other", f"{self.new_connections} made"),
            Row("connections lost, long and new", f"{len(self.lost)} lost", "= 0 lost"),
            Row(f"packets leaked, of {self.packets} captured", f"{self.leaks} packets", "= 0 packets"),
            Row("packets that the capture lost", f"{self.packets_missed} packets", "= 0 packets"),
            Row("flows when nothing is selected any more", f"{self.flows} flows", "= 0 flows"),
            Row("ports then, in use and at rest", f"{self.ports} ports", "= 0 ports"),
            Row(f"growth of memory, the most ({worst})", f"{100 * grown.get(worst, 0):.1f} %", f"< {100 * GROWTH:g} %"),
        ]


class Soak(Chaos):
    """One run on a running lab of both families."""

    def __init__(self, story: Story, seed: int, told: Transcript) -> None:
        super().__init__(story, seed, told)
        self.found = Outcome(seed)
        self._six = [story.lab.pod(name) for name in ("six", "six-gw")]

    def soak(self, seconds: float) -> Outcome:
        assert self._story.watch is not None
        slices = [
            cluster.endpoint_slice("web", "default", 8080, [self._lab.pod("web")]),
            cluster.endpoint_slice("dns", "kube-system", 53, [self._lab.pod("dns")], "UDP"),
        ]
        self._permit()
        churn = Churn(self._lab, self._story.watch, random.Random(self._rng.random()), slices)
        began, early = time.monotonic(), dict[str, int]()
        with self._traffic_of_both(), churn:
            while time.monotonic() < began + seconds and not self.found.faults:
                if not early and time.monotonic() > began + seconds / 4:
                    early = memory_of(self._daemons)
                self._leave_and_return(churn)
            late = memory_of(self._daemons)
        self.found.growth = {name: (size, late[name]) for name, size in early.items()}
        verdict = self._story.watch.settle()
        self.found.changes = churn.changes
        self.found.packets, self.found.leaks, self.found.packets_missed = (
            verdict.packets, verdict.leaks.total(), verdict.lost,
        )  # fmt: skip
        if churn.fault is not None:
            self.found.faults.append(f"churn: {churn.fault!r}")
        self._run_empty()
        return self.found

    @contextmanager
    def _traffic_of_both(self) -> Iterator[None]:
        lab, pool_ip = self._lab, self._story.pool_ip
        long = [*(Echo(lab.pod(name)) for name in ("snat-pod", "snat-gw", "batch")), *(Echo(p, FW6) for p in self._six)]
        new = [
            NewConnections(lab.pod("snat-pod"), {EGRESS_IP}),
            NewConnections(lab.pod("batch"), {pool_ip}),
            *(NewConnections(pod, {EGRESS_IP6}, FW6) for pod in self._six),
        ]
        workers: list[Worker] = [*long, *new]
        with ExitStack() as stack:
            for worker in workers:
                stack.enter_context(worker)
            yield
            self.found.lost += [fault for worker in workers if (fault := worker.end())]
        self.found.echoes = sum(echo.rounds for echo in long)
        self.found.new_connections = sum(each.made for each in new)

    def _leave_and_return(self, churn: Churn) -> None:
        time.sleep(self._rng.uniform(*STAYS))
        self._daemons.routerd(LEAVES, "drain")
        try:
            wait(self._is_safe, f"{LEAVES} is safe to stop", timeout=LEAVING, interval=0.1)
        except WaitTimeout:
            self.found.faults.append(f"{LEAVES} is not safe to stop: {self._departure()}")
        time.sleep(self._rng.uniform(*OUT_FOR))
        self._daemons.routerd(LEAVES, "undrain")
        self.found.leaves += 1
        began = time.monotonic()
        with churn.paused():
            try:
                wait(self._is_exact, "exactly what is wanted", timeout=60.0, interval=0.05)
            except WaitTimeout:
                self.found.faults.append(f"after {LEAVES} came back: {'; '.join(self._differences()[:6])}")
        name, size = max(memory_of(self._daemons).items(), key=lambda each: each[1])
        exact = f"all is exact after {time.monotonic() - began:.2f} s"
        self._told.say(f"  {self.found.leaves:4} {LEAVES} came back; {exact}; {name} has {size / MIB:.0f} MiB")

    def _departure(self) -> dict[str, Any]:
        """What the agent says of it."""
        status = ask(agent_socket(self._lab.node(LEAVES).directory / "run"), {"get": "status"})
        return dict(status["drain"])

    def _is_safe(self) -> bool:
        return self._departure()["state"] == "drained"

    def _run_empty(self) -> None:
        """Nothing is selected any more: flows end, ports have rested, nobody has ports of an egress IP."""
        for path in self._lab.manifests.glob("*.yaml"):
            if (
                "EgressPolicy" in (text := path.read_text())
                or "EgressGatewayPolicy" in text
                or "EgressNATPolicy" in text
            ):
                path.unlink()

        def is_empty() -> bool:
            sizes = [sizes_of(node) for node in self._lab.nodes.values()]
            self.found.flows = sum(each["flows"] for each in sizes)
            self.found.ports = sum(each["reverse"] for each in sizes)
            return not self.found.flows and not self.found.ports and not self._allocations().groups

        try:
            wait(is_empty, "no flow, no port, no group", timeout=EMPTY, interval=1.0)
        except WaitTimeout:
            self.found.faults.append(
                f"{self.found.flows} flows and {self.found.ports} ports are left after {EMPTY:g} s"
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
    leaked = [f"{outcome.leaks} packets leaked"] if outcome.leaks else []
    missed = [f"the capture lost {outcome.packets_missed} packets"] if outcome.packets_missed else []
    return [*outcome.faults, *outcome.lost, *grown, *leaked, *missed]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="of churn")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="repeats a run's choices (not its timing)")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    told = Transcript(sys.stdout)
    told.say(f"soak: seed {seed}, {options.minutes:g} minutes")
    with Lab("soak", ipv6=True) as lab:
        story = of_both_families(lab)
        outcome = Soak(story, seed, told).soak(60 * options.minutes)
        if complaints(outcome):
            told.logs(story.daemons, lines=12)
    told.failed += complaints(outcome)
    told.table(outcome.rows())
    return 1 if told.failed else 0


if __name__ == "__main__":
    sys.exit(main())
