"""No port has two users, whatever nodes, gateways and the operator do or miss: laws of the plan."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.pool import IPAddress
from ipam.port_plan import Wishes, plan_ports
from ipam.port_sets import COOLDOWN, MAX_BLOCKS, RESERVED, PortSet, PortTable, counts, granule_mask, in_order
from ipam.port_work import Space, Word
from tests.models.ports import owner

ADDRESSES: tuple[IPAddress, ...] = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
ROOM = granule_mask(1024, 4095)  # small, so that it runs short: 48 granules an address
NODES = range(1, 9)
GATEWAYS = (1, 2, 3)


@dataclass
class Node:
    """What a node has read last: its sets, the bindings it carries as a gateway, and what it has said."""

    tables: dict[IPAddress, PortTable] = field(default_factory=dict)
    bindings: dict[IPAddress, PortTable] = field(default_factory=dict)  # those of them that it serves
    flows: set[tuple[IPAddress, int]] = field(default_factory=set)  # ports it uses


class Cluster:
    """Nodes, gateways and an operator that see each other late."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 10_000.0
        self.tables = {address: PortTable(address) for address in ADDRESSES}
        self.nodes = {number: Node() for number in NODES}  # those that live
        self.deleted: set[int] = set()  # that are no Node any more: fenced
        self.wants: dict[int, int] = {}
        self.gateways = {1, 2}
        self.unused: dict[IPAddress, dict[tuple[int, int, int], int]] = {}
        self.applied: dict[IPAddress, dict[int, int]] = {}

    def alive(self) -> frozenset[int]:
        return frozenset(NODES) - self.deleted

    def plan(self, wants: dict[int, int]) -> dict[IPAddress, PortTable]:
        spaces = tuple(Space(address, ROOM) for address in ADDRESSES)
        wishes = Wishes(spaces, wants, frozenset(self.gateways))
        word = Word(self.alive(), self.unused, self.applied)
        return {table.egress_ip: table for table in plan_ports(wishes, self.tables, word, self.now).tables}

    def step(self) -> None:
        """What is frequent stands more than once."""
        rng, node, gateway = self.rng, self.rng.choice(NODES), self.rng.choice(GATEWAYS)
        steps = [
            *[self.decide] * 3, *[lambda: self.read(node)] * 4, *[lambda: self.confirm(gateway)] * 3,
            lambda: self.ask(node, rng.choice([0, 0, 64, 200, 1000, 3000])), lambda: self.wants.pop(node, None),
            *[lambda: self.connect(node)] * 2, self.nodes[node].flows.clear, *[lambda: self.give_back(node)] * 3,
            lambda: self.now_is(rng.choice([1.0, 60.0, COOLDOWN, 2 * COOLDOWN, -300.0])),
        ]  # fmt: skip
        if rng.random() < 0.05:
            steps = [
                lambda: self.gateways.symmetric_difference_update({gateway}),
                lambda: self.delete(node),
                lambda: self.deleted.discard(node),
                lambda: self.deleted.discard(node),
            ]
        rng.choice(steps)()
        self.no_port_has_two_nodes()
        self.nobody_carries_what_is_anothers()

    def decide(self) -> None:
        before, after = self.tables, self.plan(self.wants)
        order = list(self.wants.items())
        self.rng.shuffle(order)
        assert self.plan(dict(order)) == after, "the order of wishes makes no difference"
        for address in ADDRESSES:
            old, new = before[address], after[address]
            assert (old is new) == (old.sets == new.sets and old.told == new.told)
            assert old is new or new.version > old.version
            self.is_stable(old, new)
        self.tables = after

    def is_stable(self, old: PortTable, new: PortTable) -> None:
        """A living node has every port that it had; no more than asked back, and taken when it said so."""
        for each in old.sets:
            if not each.is_bound or each.node in self.deleted:
                continue
            said = self.unused.get(each.egress_ip, {}).get((each.first, each.size, each.node), -1) >= each.version
            for port in range(each.first, each.last, 64):
                now = owner(new, port)
                assert now is not None and now.node == each.node
                assert now.is_bound or said

    def ask(self, node: int, ports: int) -> None:
        if node not in self.deleted:
            self.wants[node] = ports

    def read(self, node: int) -> None:
        """What a node reads is in force at once; it stays in force until it reads again, whatever happens."""
        if node not in self.deleted:
            tables = dict(self.tables)
            mine = {a: t for a, t in tables.items() if any(o.gateway == node and not o.left for o in t.told)}
            self.nodes[node].tables, self.nodes[node].bindings = tables, mine

    def connect(self, node: int) -> None:
        own = [s for t in self.nodes[node].tables.values() for s in t.sets if s.node == node and s.state == "granted"]
        own = [s for s in own if not self.has_said(s)]
        if own and node not in self.deleted:
            each = self.rng.choice(own)
            self.nodes[node].flows.add((each.egress_ip, self.rng.randint(each.first, each.last)))

    def has_said(self, each: PortSet) -> bool:
        said = self.unused.get(each.egress_ip, {}).get((each.first, each.size, each.node), -1)
        return said >= each.version

    def give_back(self, node: int) -> None:
        """As an agent does: what it was asked for, never what has flows."""
        if node in self.deleted:
            return
        for address, table in self.nodes[node].tables.items():
            for each in table.sets:
                in_use = any((address, port) in self.nodes[node].flows for port in range(each.first, each.last + 1))
                if each.node == node and each.state == "returning" and not in_use:
                    self.unused.setdefault(address, {})[each.first, each.size, node] = table.version

    def confirm(self, gateway: int) -> None:
        for address, table in self.nodes[gateway].tables.items():
            self.applied.setdefault(address, {})[gateway] = table.version

    def delete(self, node: int) -> None:
        self.deleted.add(node)
        self.wants.pop(node, None)
        self.gateways.discard(node)
        self.nodes[node] = Node()

    def now_is(self, seconds: float) -> None:
        self.now += seconds

    def no_port_has_two_nodes(self) -> None:
        for table in self.tables.values():
            taken = 0
            for each in table.sets:
                assert each.first % each.size == 0 and each.size.bit_count() == 1 and 64 <= each.size <= 16384
                assert not each.mask & taken and each.mask & ROOM == each.mask
                taken |= each.mask
            assert table.sets == in_order(table.sets)
            for node in NODES:
                assert len([s for s in table.sets if s.node == node and s.is_bound]) <= MAX_BLOCKS
            found = counts(ROOM, table)
            assert found.total == 48 == found.free + found.granted + found.returning + found.cooling

    def nobody_carries_what_is_anothers(self) -> None:
        """What living nodes have read: users of a port, and gateways' bindings of ports that are in use."""
        for address in ADDRESSES:
            users: dict[int, int] = {}
            for number, node in self.nodes.items():
                table = node.tables.get(address, PortTable(address))
                for each in table.sets:
                    if each.node == number and each.is_bound and not self.has_said(each):
                        for granule in range(each.first >> 6, (each.last >> 6) + 1):
                            assert users.setdefault(granule, number) == number, f"{address} {granule}"
            for gateway in NODES:
                table = self.nodes[gateway].bindings.get(address, PortTable(address))
                for each in (each for each in self.tables[address].sets if each.is_bound):
                    for port in range(each.first, each.last, 64):
                        binding = owner(table, port)
                        is_same = binding is None or not binding.is_bound or binding.node == each.node
                        assert is_same, f"{gateway} has {binding}, {each} is another's"


@given(seed=st.integers(0, 1 << 64))
@settings(max_examples=40, deadline=None)
def test_no_port_has_two_users(seed: int) -> None:
    cluster = Cluster(random.Random(seed))
    for _ in range(250):
        cluster.step()


@given(nodes=st.sets(st.integers(1, 65535), min_size=1, max_size=300))
@settings(max_examples=30, deadline=None)
def test_half_of_an_address_stays_free_for_those_that_come(nodes: set[int]) -> None:
    """After all got their first set, and while 64 ports each are no more than the half."""
    spaces = tuple(Space(address) for address in ADDRESSES[:1])
    plan = plan_ports(Wishes(spaces, dict.fromkeys(nodes, 0)), {}, Word(frozenset(nodes)), 0.0)
    assert not plan.lacking
    assert len({each.size for each in plan.tables[0].sets}) == 1, "all alike"
    assert sum(each.size for each in plan.tables[0].sets) <= 64512 // 2


def test_no_room_is_kept_for_nodes_that_have_their_sets_again() -> None:
    """30 nodes resume what was asked back of them; 2 come, and want more."""
    egress_ip, nodes = ADDRESSES[0], range(1, 33)
    sets = tuple(PortSet(egress_ip, 61440 + 64 * node, 64, node, "returning", version=1) for node in nodes[:-2])
    wishes = Wishes((Space(egress_ip, RESERVED),), dict.fromkeys(nodes, 0) | {31: 512, 32: 512})
    planned = plan_ports(wishes, {egress_ip: PortTable(egress_ip, 1, sets)}, Word(frozenset(nodes)), 10_000.0)
    ports = {node: sum(each.size for each in planned.tables[0].sets if each.node == node) for node in nodes}
    assert (ports, planned.short) == (dict.fromkeys(nodes, 64) | {31: 576, 32: 576}, {})
