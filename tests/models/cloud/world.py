"""Nodes, an operator's turns and a cloud in virtual time: what a node may use is what was recorded and published."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

from cloud.backend import Backend, CloudFault
from cloud.calls import Outcome
from cloud.demand import Demand, Rules
from cloud.egress import Seats, Wanted
from cloud.model import Api, Network
from cloud.plan import Reason
from cloud.providers import arm, ecs
from cloud.records import Holdings, holding_row, read_holding
from cloud.turn import Memory, Order, Turn, decide, learn
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Cloud
from tests.models.cloud.direct import account
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front


def api_of(front: Front) -> Api:
    if front is AZURE_FRONT:
        return arm.API
    return ecs.API if front is ALIBABA_FRONT else Api()


@dataclass
class NodeModel:
    """What a node does: it takes up what is published as used, gives addresses to pods, lets go of what leaves."""

    used: int = 0  # pods that want an address
    kept: set[Network] = field(default_factory=set)
    pods: list[tuple[Network, int]] = field(default_factory=list)  # block, number of the address within it
    generation: int = 0
    most_pods: int = 0

    def read(self, holdings: Holdings, name: str) -> None:
        blocks = {block.network: block.state for _, block in holdings[name].blocks()} if name in holdings else {}
        self.generation = holdings[name].generation if name in holdings else 0
        busy = {network for network, _ in self.pods}
        self.kept = {network for network, state in blocks.items() if state == "used" or network in busy}
        self.pods = [each for each in self.pods if each[0] in self.kept][: self.used]
        usable = (network for network, state in blocks.items() if state == "used" and network.version == 4)
        free = ((network, number) for network in usable for number in range(network.num_addresses))
        for each in free:
            if len(self.pods) >= self.used:
                break
            if each not in self.pods:
                self.pods.append(each)

    def demand(self, name: str) -> Demand:
        busy = frozenset(network for network, _ in self.pods)
        return Demand(
            name, len(self.pods), self.used - len(self.pods), frozenset(self.kept), busy, self.generation,
            self.most_pods,
        )  # fmt: skip

    def addresses(self) -> list[IPv4Address]:
        """That pods have."""
        return [IPv4Address(int(network[0]) + number) for network, number in self.pods]


@dataclass
class World:
    cloud: Cloud = field(default_factory=Cloud)
    rules: Rules = field(default_factory=lambda: Rules("test"))
    nodes: dict[str, NodeModel] = field(default_factory=dict)  # by instance
    holdings: Holdings = field(default_factory=dict)  # as recorded
    memory: Memory = field(default_factory=Memory)
    reasons: tuple[Reason, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    seats: Seats = field(default_factory=dict)
    backend: Backend = field(init=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.backend = account(self.cloud, self.rules)

    @classmethod
    def of(
        cls, type_: str = "m5.large", cidr: str = "10.0.0.0/24", front: Front = EC2_FRONT, **rules: Any
    ) -> World:  # fmt: skip
        """One instance, i-1, in one subnet."""
        rules = {"api": api_of(front), **rules}
        world = cls(Cloud(front), Rules("test", **rules))
        world.cloud.add_subnet("subnet-1", cidr, cidr6="2001:db8::/64")
        world.cloud.add_group("sg-1")
        world.add("i-1", type_=type_)
        return world

    def add(self, name: str, subnet: str = "subnet-1", type_: str = "m5.large") -> NodeModel:
        self.cloud.add_instance(name, subnet, type_)
        self.nodes[name] = NodeModel()
        return self.nodes[name]

    def want(self, pods: int, name: str = "i-1") -> None:
        self.nodes[name].used = pods

    def decided(self) -> Turn | None:
        """A look and a decision, which is recorded. None = the look failed."""
        demands = {name: node.demand(f"node-{name}") for name, node in self.nodes.items()}
        try:
            gateways = {name for each in self.wanted for name in each.candidates}
            holders = {each.instance for each in self.seats.values()} - {""}
            inventory = self.backend.describe(demands.keys() | self.holdings.keys() | gateways | holders)
        except CloudFault:
            return None
        turn = decide(
            self.holdings, inventory, demands, self.rules, self.memory, self.cloud.now, self.backend.action,
            lambda name: f"{name}-{next(self._numbers)}", self.seats, self.wanted,
        )  # fmt: skip
        self.record(turn.holdings)
        self.memory, self.reasons, self.seats = turn.memory, turn.reasons, turn.seats
        return turn

    def record(self, holdings: Holdings) -> None:
        """As a store keeps it: in rows."""
        self.holdings = {name: read_holding(*holding_row(each)) for name, each in holdings.items()}

    def turn(self) -> dict[Order, Outcome]:
        """One whole turn; then nodes read what is recorded."""
        turn = self.decided()
        outcomes = {order: self.backend.send(order.call) for order in turn.orders} if turn else {}
        if turn:
            after = learn(turn, outcomes, self.cloud.now, self.backend.action)
            self.memory, self.seats = after.memory, after.seats
            self.record(after.holdings)
        for name, node in self.nodes.items():
            node.read(self.holdings, name)
        return outcomes

    def run(self, seconds: int, step: int = 5) -> None:
        for _ in range(0, seconds, step):
            self.turn()
            self.cloud.advance(step)

    def restart(self) -> None:
        """Another operator: what was remembered is gone, what was recorded is there."""
        self.memory = Memory()

    def replaced(self, **rules: Any) -> None:
        self.rules = replace(self.rules, **rules)

    def text(self) -> str:
        """What is on record, a line for each interface."""
        lines = []
        for name, holding in sorted(self.holdings.items()):
            for one in holding.held:
                blocks = " ".join(f"{'-' * (each.state != 'used')}{each.network}" for each in one.blocks)
                lines.append(f"{name}:{one.index} {one.subnet} {blocks}".rstrip())
        return "\n".join(lines)
