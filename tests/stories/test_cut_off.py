"""Hours of virtual time in which gateways, source nodes and the operator are cut from the store for longer than ports
rest, while ports change hands: no port has two users, and no connection is without a gateway that knows whose it is.

What nodes ask for and give back, and what the operator decides, is the real code; packets are not: a connection is a
port of a node's own sets, which it uses by gateways that knew the set when it began (`bpf/trial.h`), and its answers
come to any of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest

from egress.status import PortUse
from ipam.port_sets import COOLDOWN, GRANULE
from routerd.model import Allocations, PortReport
from routerd.node.groups import served
from routerd.node.port_sets import PortMemory, number_of, own_blocks, report_ports
from tests.models.operator_world import World

IP = ip_address("198.51.100.7")
TICK = 20.0  # seconds
GATEWAYS, WORKERS = ("g1", "g2", "g3"), ("w1", "w2", "w3")
NODES = (*GATEWAYS, *WORKERS)
LONG = int(4 * COOLDOWN / TICK)  # ticks


@dataclass
class Member:
    """A node: what it has read last, and the connections of its pods."""

    name: str
    is_busy: bool = True  # a selected pod runs on it
    is_cut: bool = False
    view: Allocations = field(default_factory=Allocations)
    since: float = 0.0  # when the view came into force
    owners: tuple[int, ...] = ()  # by 64 ports: the numbers of nodes, if it is a gateway
    memory: PortMemory = field(default_factory=PortMemory)
    flows: set[int] = field(default_factory=set)  # their ports

    def read(self, allocations: Allocations, now: float) -> PortReport | None:
        """Applies what is published and says what it needs, uses and has dropped."""
        if allocations is not self.view:
            self.view, self.since = allocations, now
            table = served(allocations, self.name).get(IP)
            self.owners = table.numbers if table is not None else ()
        used: dict[tuple[object, int], int] = {}
        for port in self.flows:
            first = port - port % GRANULE
            used[IP, first] = used.get((IP, first), 0) + 1
        selecting = frozenset({"EgressPolicy/out"} if self.is_busy else ())
        use = PortUse(used=used, counted=now + 1)
        self.memory = report_ports(self.name, self.view, selecting, self.view, use, self.memory, now, self.since)
        return self.memory.report

    def owner(self, port: int) -> int:
        """The number of the node whose the port is, by this gateway's table; 0 = nobody's."""
        return self.owners[port // GRANULE] if self.owners else 0


@dataclass
class History:
    """A cluster, tick by tick; `faults` is all that ever was wrong."""

    rng: random.Random
    world: World = field(default_factory=World)
    members: dict[str, Member] = field(default_factory=lambda: {name: Member(name) for name in NODES})
    ticks: float = 0.0  # seconds of a clock that nobody sets
    is_operator_away: bool = False
    begun: int = 0
    granted: set[tuple[str, int]] = field(default_factory=set)  # node and first port of all sets that ever were
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rules = replace(self.world.settings.port_rules, on_ask=True)
        self.world.settings = replace(self.world.settings, port_rules=rules)
        for name in NODES:
            self.world.node(name, "" if name in GATEWAYS else None)
            self.world.agent(name)
        self.world.policy("out", str(IP))
        self.run(5)
        assert all(member.flows for member in self.members.values())

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.ticks += TICK
            self.world.beat(TICK)
            for member in self.members.values():
                if not member.is_cut:
                    said = member.read(self.world.allocations, self.ticks)
                    report = self.world.reports[member.name]
                    self.world.reports[member.name] = replace(report, ports=said)
                self._change_flows(member)
            if not self.is_operator_away:
                self.world.decide()
            self._judge()

    def cut(self, *names: str) -> None:
        """From the store. Their kubelets are, too."""
        for name in names:
            self.members[name].is_cut = True
            self.world.nodes[name] = replace(self.world.nodes[name], ready=False)
        self.world.silence(*names)

    def heal(self, *names: str) -> None:
        for name in names:
            self.members[name].is_cut = False
            self.world.nodes[name] = replace(self.world.nodes[name], ready=True)
            self.world.agent(name)

    def move_ports(self) -> None:
        """Pods of some node go and it gives its ports back; another node wants many."""
        near = [member for member in self.members.values() if not member.is_cut]
        for member in near:
            member.is_busy = self.rng.random() < 0.5

    def _change_flows(self, member: Member) -> None:
        """Some end and some begin, by gateways that echo the port. Without pods all end, one after the other."""
        for port in sorted(member.flows):
            if self.rng.random() < (0.02 if member.is_busy else 0.4):
                member.flows.discard(port)
        blocks = own_blocks(member.view, member.name, {1}).get(1, ())
        usable = [block for _, block in blocks if not block.returning]
        number = number_of(member.view, member.name)
        for block in usable if member.is_busy else ():
            port = self.rng.randrange(block.first, block.last + 1)
            if len(member.flows) < 12 and any(self.members[name].owner(port) == number for name in GATEWAYS):
                member.flows.add(port)
                self.begun += 1
            self.granted.add((member.name, block.first))

    def _judge(self) -> None:
        users: dict[int, str] = {}
        for member in self.members.values():
            number = number_of(member.view, member.name)
            for port in member.flows:
                if port in users:
                    self.faults.append(f"{port}: of {users[port]} and {member.name}")
                users[port] = member.name
                owners = {name: self.members[name].owner(port) for name in GATEWAYS}
                if not {*owners.values()} <= {number, 0}:
                    self.faults.append(f"{port} of {member.name} ({number}) is another's: {owners}")
                if number not in owners.values():
                    self.faults.append(f"{port} of {member.name} ({number}) is known nowhere: {owners}")


@pytest.mark.parametrize(
    "names", [("g1",), ("g1", "w1"), ("g1", "g2"), ("g1", "g2", "w1", "w2"), (*GATEWAYS, "w1")], ids=" ".join
)
@pytest.mark.parametrize("away", [False, True], ids=["", "the operator away meanwhile"])
def test_who_is_cut_off_for_longer_than_ports_rest_loses_nothing(names: tuple[str, ...], away: bool) -> None:
    history = History(random.Random(7))
    before = len(history.granted)
    history.cut(*names)
    for turn in range(4):
        history.move_ports()
        history.is_operator_away = away and turn in (1, 2)
        history.run(LONG // 4)
    history.heal(*names)
    history.move_ports()
    history.run(LONG // 2)
    assert history.faults == []
    assert len(history.granted) > before, "ports changed hands"
    assert history.begun > 100


def test_hours_of_partitions_and_of_clocks_that_are_set_give_no_port_two_users() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    history = History(rng)
    for _ in range(12):
        cut = rng.sample(NODES, rng.randrange(4))
        history.cut(*cut)
        history.move_ports()
        history.is_operator_away = rng.random() < 0.3
        history.run(rng.randrange(2, LONG // 3))
        history.world.now += rng.choice((-300.0, 0.0, 300.0))
        if rng.random() < 0.8:
            history.heal(*(name for name in NODES if history.members[name].is_cut))
            history.is_operator_away = False
        history.run(rng.randrange(1, 20))
        assert history.faults == [], f"seed {seed}"
    assert history.begun > 100
