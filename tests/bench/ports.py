"""Ports of 100 egress IPs for 1,000 nodes: the operator's time for each step, and sizes. `make bench-ports`.

Rows go to `build/bench/ports.json`: `step, nodes, policies, cpu_ms, parts_written, bytes_written`. It judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from routerd.cluster.assign import Kept, assign
from routerd.cluster.ledger import Ledger
from routerd.formats.published.whole import AllocationsWriter
from routerd.model import PortAsk, PortReport
from routerd.store.kubernetes.documents import LedgerText
from tests.bench.report import forget, write
from tests.models.operator_world import World

NODES, POLICIES, GATEWAYS, AT_ONCE = 1000, 100, 10, 50


class Site:
    """One operator without a store: what it would write is counted."""

    def __init__(self, *, on_ask: bool) -> None:
        self.world, self.kept = World(), Kept()
        rules = replace(self.world.settings.port_rules, on_ask=on_ask)
        self.world.settings = replace(self.world.settings, port_rules=rules)
        for number in range(NODES):
            self.world.node(f"node-{number:04}.example.net", "" if number < GATEWAYS else None)
        self.names = list(self.world.nodes)
        self.world.agent(*self.names[:GATEWAYS])
        self.world.agent(*self.names[GATEWAYS:], gateway=False)
        self.world.live(60)
        for number in range(POLICIES):
            self.world.policy(f"policy-{number:03}", f"198.51.100.{number}")
        self.documents = AllocationsWriter(), LedgerText()
        self.known: set[str] = set()
        self.rows: list[dict[str, object]] = []

    def step(self, name: str, change: Callable[[], object] = lambda: None) -> None:
        change()
        world = self.world
        began = time.process_time()
        decision = assign(
            world.snapshot(), world.ledger, world.reports, world.now, world.settings, world.agents, self.kept
        )
        world.ledger, world.allocations = decision.ledger, decision.allocations
        published = self.documents[0].written(world.allocations)
        _, recorded = self.documents[1].written(world.ledger, ())
        spent = time.process_time() - began
        parts = [part for part in (*published.parts, *recorded) if part.name not in self.known]
        self.known |= {part.name for part in parts}
        row = {"step": name, "nodes": NODES, "policies": POLICIES, "cpu_ms": round(1000 * spent, 1)}
        row |= {"parts_written": len(parts), "bytes_written": sum(len(part.text) for part in parts)}
        self.rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in row.items()))

    def ask(self, names: list[str], ports: int = 0) -> None:
        asks = tuple(PortAsk(group, ports if group == 1 else 0) for group in range(1, POLICIES + 1))
        for name in names:
            self.world.reports[name] = replace(self.world.reports[name], ports=PortReport(asks))


def with_files() -> list[dict[str, object]]:
    site = Site(on_ask=False)
    site.step("files: roll-out")
    site.step("files: nothing changed")
    site.step("files: one node more", lambda: site.world.node("one-more", None))
    site.step("files: one policy gone", lambda: site.world.policies.pop("EgressPolicy/policy-050"))
    site.step("files: ledger lost", lambda: setattr(site.world, "ledger", Ledger()))
    return site.rows


def on_ask() -> list[dict[str, object]]:
    site = Site(on_ask=True)
    site.step("asked: groups")
    for first in range(0, NODES, AT_ONCE):
        site.step(f"asked: {AT_ONCE} nodes ask, {first} have", lambda at=first: site.ask(site.names[at : at + AT_ONCE]))  # type: ignore[misc]
    having = [len({block.node for block in each.blocks()}) for each in site.world.allocations.bindings]
    assert set(having) == {NODES}, "somebody has no ports"
    site.step("asked: nothing changed")
    site.step("asked: one node wants more", lambda: site.ask(site.names[500:501], 128))
    return site.rows


def main() -> None:
    forget("ports")
    write("ports", [*with_files(), *on_ask()])


if __name__ == "__main__":
    main()
