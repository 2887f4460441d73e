"""A node of the fake cloud with the agent's own desk for pods' addresses, which is killed and hears late words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_interface
from pathlib import Path
from typing import Any

from cloud.demand import Demand
from cloud.records import Holdings
from routerd.agent.plugins.pod_addresses import PodAddressDesk
from routerd.cluster.instances import published_interfaces
from routerd.model import Node, NodeInterfaces, Snapshot, with_blocks
from tests.models.cloud.world import NodeModel
from tests.models.ipam_runtime import ask

KEPT = 16  # of what was published and reported last, any may be what is read


@dataclass
class DeskNode(NodeModel):
    """`choose` says how late it hears the operator, and how late the operator hears it: 0 = the last word."""

    name: str = "n"  # of the node
    directory: Path = Path()  # outlives the process
    clock: Callable[[], float] = lambda: 0.0
    run: Callable[[Coroutine[Any, Any, Any]], Any] = lambda story: None
    late: Callable[[], int] = lambda: 0
    given: dict[str, IPv4Address] = field(default_factory=dict)  # by container
    published: list[tuple[NodeInterfaces, ...]] = field(default_factory=lambda: [()])
    reports: list[Demand] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)  # containers whose ADD nobody answered
    snapshot: Snapshot = field(default_factory=Snapshot)
    desk: PodAddressDesk = field(init=False)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """As after kill -9: what is not on disk is gone."""
        self.desk = PodAddressDesk(
            self.name, self.directory / "pod-addresses.json", lambda: self.snapshot, of_cloud=lambda node: True,
            wired=self._wired, clock=self.clock,
        )  # fmt: skip

    def _wired(self) -> set[str]:
        """Every interface, at once."""
        return {each.mac for node in (self.snapshot.nodes or {}).values() for each in node.interfaces}

    def read(self, holdings: Holdings, name: str) -> None:
        node = Node(self.name, provider_id=f"aws:///a/{name}")
        self.published = [*self.published, published_interfaces(holdings.values(), {self.name: node})][-KEPT:]
        heard = self.published[-1 - min(self.late(), len(self.published) - 1)]
        nodes = with_blocks({self.name: node}, (), heard)
        self.snapshot = Snapshot(nodes=nodes, pods={})
        self.run(self._work())

    async def _work(self) -> None:
        for container in [*self.unanswered, *list(self.given)[self.used :]]:
            assert await ask(self.desk, "DEL", container) == (0, None)
            self.given.pop(container, None)
        self.unanswered = []
        while len(self.given) < self.used:
            container = f"c{next(self.numbers)}"
            code, found = await ask(self.desk, "ADD", container)
            if code:
                break
            self.given[container] = ip_interface(found["ips"][0]["address"]).ip
        await self.desk.look()

    def killed(self) -> None:
        """Between the disk and the answer: the runtime does not know what its container has, and ends it later."""
        container = f"c{next(self.numbers)}"
        self.run(ask(self.desk, "ADD", container))
        self.unanswered.append(container)
        self.restart()

    def demand(self, name: str) -> Demand:
        found = self.desk.block_report()
        demand = Demand(self.name, len(self.given), self.used - len(self.given))
        if found is not None:
            kept, busy = frozenset(found.kept), frozenset(found.busy)
            demand = replace(demand, kept=kept, busy=busy, generation=found.generation)
        self.reports = [*self.reports, demand][-KEPT:]
        return self.reports[-1 - min(self.late(), len(self.reports) - 1)]

    def addresses(self) -> list[IPv4Address]:
        return list(self.given.values())
