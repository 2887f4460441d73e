"""What a node asks for, gives back and confirms."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from egress.status import PortUse
from routerd.formats.published.bindings import binding_table
from routerd.model import (
    Allocations,
    AppliedTable,
    BindingTable,
    EgressGroup,
    IPAddress,
    NodeNumber,
    PortAsk,
    PortBlock,
    UnusedBlock,
)
from routerd.node.port_sets import ASKS, LINGER, LOOK, PortMemory, own_blocks, report_ports

IP, OTHER = ip_address("192.0.2.1"), ip_address("192.0.2.2")
A, B = PortBlock(1024, 1024, 1), PortBlock(2048, 1024, 2)


def published(*blocks: PortBlock, version: int = 1, awaited: int = 0, told: tuple[int, ...] = (2,)) -> Allocations:
    groups = (
        EgressGroup(5, IP, ("EgressPolicy/a", "EgressPolicy/b"), ("g",)),
        EgressGroup(6, OTHER, ("EgressPolicy/c",)),
    )
    table = binding_table(IP, version, blocks or (A, B), told=told, awaited=awaited)
    return Allocations(version, groups=groups, numbers=(NodeNumber("g", 2), NodeNumber("n", 1)), bindings=(table,))


class Desk:
    """One node that reports again and again."""

    def __init__(self, node: str = "n") -> None:
        self.node, self.memory, self.now = node, PortMemory(), 0.0
        self.applied: Allocations | None = None
        self.applied_since = float("-inf")
        self.use: PortUse | None = None

    def asks(self, *selecting: str, allocations: Allocations | None = None, seconds: float = 1.0) -> list[PortAsk]:
        self.now += seconds
        self.memory = report_ports(
            self.node, allocations or published(), frozenset(selecting), self.applied, self.use, self.memory, self.now,
            self.applied_since,
        )  # fmt: skip
        assert self.memory.report is not None
        return list(self.memory.report.asks)

    @property
    def used(self) -> list[int]:
        return [each.used for each in self.memory.report.asks] if self.memory.report else []

    @property
    def unused(self) -> tuple[UnusedBlock, ...]:
        return self.memory.report.unused if self.memory.report else ()

    @property
    def confirmed(self) -> tuple[AppliedTable, ...]:
        return self.memory.report.applied if self.memory.report else ()


def test_a_node_asks_for_the_groups_of_the_policies_that_select_a_pod_here() -> None:
    assert Desk().asks() == []
    assert Desk().asks("EgressPolicy/a", "EgressPolicy/b") == [PortAsk(5)]
    assert Desk().asks("EgressPolicy/b", "EgressPolicy/c", "EgressPolicy/unknown") == [PortAsk(5), PortAsk(6)]


def test_it_goes_on_asking_for_a_while_when_the_last_pod_has_gone() -> None:
    desk = Desk()
    desk.asks("EgressPolicy/a")
    assert desk.asks(seconds=LINGER - 1) == [PortAsk(5)]
    assert desk.asks("EgressPolicy/a", seconds=LINGER) == [PortAsk(5)]
    assert desk.asks(seconds=LINGER) == []
    desk.asks("EgressPolicy/a")
    assert desk.asks(allocations=replace(published(), groups=())) == [], "the group is gone"


def use(flows: int, *pressed: int, counted: float = 0.0, first: int = 1024, at: float = 1.5) -> PortUse:
    return PortUse(counted, {(IP, first): flows}, dict.fromkeys(pressed, at))


def test_it_wants_twice_when_searches_grow_long_and_half_when_little_is_used() -> None:
    """Flows to many remotes share ports: how many there are says little of how many are free towards one of them."""
    desk = Desk()
    desk.applied, desk.use = published(), use(5000)
    assert desk.asks("EgressPolicy/a") == [PortAsk(5, 0)]
    assert desk.used == [5000]
    desk.use = use(768, 5)
    assert desk.asks("EgressPolicy/a") == [PortAsk(5, 2048)]
    assert desk.used == [768]
    desk.use = use(900)
    assert desk.asks("EgressPolicy/a") == [PortAsk(5, 2048)], "what is in use alone is no news"
    assert desk.used == [768]
    grown = published(A, B, PortBlock(4096, 2048, 1))
    assert desk.asks("EgressPolicy/a", allocations=grown, seconds=LOOK) == [PortAsk(5, 2048)]
    assert desk.used == [900]
    desk.use = use(100)
    assert desk.asks("EgressPolicy/a", allocations=grown) == [PortAsk(5, 2048)]
    assert desk.used == [900]
    assert desk.asks("EgressPolicy/a", allocations=grown, seconds=LOOK) == [PortAsk(5, 1024)]
    assert desk.used == [100]


def test_one_moment_of_long_searches_makes_it_ask_once() -> None:
    """What is read of the searches may be older than the ports that the node has by now."""
    desk, grown = Desk(), published(A, B, PortBlock(4096, 2048, 1))
    desk.applied, desk.use = published(), use(1024, 5, at=0.5)
    assert desk.asks("EgressPolicy/a") == [PortAsk(5, 0)], "that was before it knew of its ports"
    desk.use = use(1024, 5, at=1.5)
    assert desk.asks("EgressPolicy/a") == [PortAsk(5, 2048)]
    assert desk.asks("EgressPolicy/a", allocations=grown) == [PortAsk(5, 2048)], "not in force yet"
    desk.applied = grown
    assert desk.asks("EgressPolicy/a", allocations=grown) == [PortAsk(5, 2048)]
    assert desk.asks("EgressPolicy/a", allocations=grown) == [PortAsk(5, 2048)]
    desk.use = use(3000, 5, at=desk.now + 0.5)
    assert desk.asks("EgressPolicy/a", allocations=grown) == [PortAsk(5, 6144)]


def test_a_block_that_was_asked_back_is_unused_when_the_table_is_in_force_and_no_flow_is_left() -> None:
    desk, asked = Desk(), published(replace(A, returning=True), B, version=7)
    desk.applied = published()
    desk.use = PortUse()
    desk.asks(allocations=asked)
    assert desk.unused == (), "the datapath may still make mappings there"
    desk.applied, desk.applied_since, desk.use = asked, 10.0, use(1, counted=11.0, first=1984)
    desk.asks(allocations=asked)
    assert desk.unused == ()
    desk.use = None
    desk.asks(allocations=asked)
    assert desk.unused == (), "nobody knows"
    desk.use = use(1, counted=9.0, first=2048)
    desk.asks(allocations=asked)
    assert desk.unused == (), "a flow may have begun after that was counted"
    desk.use = use(1, counted=11.0, first=2048)
    desk.asks(allocations=asked)
    assert desk.unused == (UnusedBlock(IP, 1024, 1024, 7),)
    desk.applied = published(version=8)
    desk.asks()
    assert desk.unused == (), "granted anew"


def test_a_gateway_confirms_what_waits_for_it_and_nothing_else() -> None:
    desk = Desk("g")
    desk.asks()
    assert desk.confirmed == (), "nothing was applied"
    desk.applied = published(version=7)
    desk.asks()
    assert desk.confirmed == (), "nothing waits"
    desk.applied = published(version=8, awaited=8)
    desk.asks()
    assert desk.confirmed == (AppliedTable(IP, 8),)
    desk.applied = published(version=9, awaited=8)
    desk.asks()
    assert desk.confirmed == (AppliedTable(IP, 8),), "that was enough"
    desk.applied = published(version=10, awaited=10)
    desk.asks()
    assert desk.confirmed == (AppliedTable(IP, 10),)
    desk.applied = published(version=11, awaited=10, told=(1,))
    desk.asks()
    assert desk.confirmed == (), "others are waited for"


def test_a_table_that_begins_anew_is_confirmed_as_it_is() -> None:
    desk = Desk("g")
    desk.applied = published(version=80, awaited=80)
    desk.asks()
    desk.applied = published(version=5, awaited=5)
    desk.asks()
    assert desk.confirmed == (AppliedTable(IP, 5),)


def test_own_blocks_by_group() -> None:
    allocations = published(A, replace(B, node=1, returning=True), PortBlock(4096, 64, 2))
    both = {5: ((IP, A), (IP, replace(B, node=1, returning=True))), 6: ()}
    assert own_blocks(allocations, "n", {5, 6}) == both
    assert own_blocks(allocations, "n", {6, 7}) == {6: ()}
    assert own_blocks(allocations, "stranger", {5, 6}) == {}


def test_tables_of_groups_without_a_pod_here_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[IPAddress] = []
    blocks = BindingTable.blocks
    monkeypatch.setattr(
        BindingTable, "blocks", lambda table, number: read.append(table.egress_ip) or blocks(table, number)
    )
    one = published()
    allocations = replace(one, bindings=(*one.bindings, binding_table(OTHER, 1, (A,))))
    desk = Desk()
    desk.use = PortUse()
    desk.asks("EgressPolicy/a", allocations=allocations)
    assert read == [IP]


# --- many nodes at once


def crowd(nodes: int, *groups: int) -> Allocations:
    found = tuple(EgressGroup(each, IP, (f"EgressPolicy/{each}",), ("g",)) for each in groups)
    return Allocations(1, groups=found, numbers=tuple(NodeNumber(f"n{each}", each) for each in range(1, nodes + 1)))


def asked_at(node: str, allocations: Allocations, later: Allocations, until: float = 60.0) -> list[float]:
    """When it asks for the first group and for the second, which comes at 10 s and takes a pod here at once."""
    desk, found = Desk(node), []
    while desk.now < until and len(found) < 2:
        before = len(found)
        there = allocations if desk.now < 9 else later
        if len(desk.asks("EgressPolicy/1", "EgressPolicy/2", allocations=there)) > before:
            found.append(desk.now)
    return found


def test_nodes_of_a_large_cluster_ask_for_a_new_group_in_turns() -> None:
    before, after = crowd(500, 1), crowd(500, 1, 2)
    times = [asked_at(f"n{number}", before, after) for number in range(1, 501)]
    assert {first for first, _ in times} == {1.0}, "what is there when an agent starts it asks for at once"
    seconds = [second for _, second in times]
    assert min(seconds) < 12 and 28 < max(seconds) <= 31
    assert max(seconds.count(second) for second in set(seconds)) < 2 * ASKS


def test_a_pod_that_comes_later_waits_for_no_turn_nor_does_anybody_in_a_small_cluster() -> None:
    desk = Desk("n3")
    desk.asks(allocations=crowd(500, 1))
    desk.asks(allocations=crowd(500, 1, 2))
    desk.asks(allocations=crowd(500, 1, 2), seconds=30.0)
    assert desk.asks("EgressPolicy/2", allocations=crowd(500, 1, 2)) == [PortAsk(2)]
    assert asked_at("n3", crowd(20, 1), crowd(20, 1, 2)) == [1.0, 10.0]


def test_pods_whose_policy_gets_another_egress_ip_wait_for_no_turn() -> None:
    """Whether its next group comes with the same decision that takes the old one away, later, or was there."""
    old, new = EgressGroup(1, IP, ("EgressPolicy/1",), ("g",)), EgressGroup(2, OTHER, ("EgressPolicy/1",), ("g",))
    before, without = crowd(500, 1), crowd(500)
    after = replace(before, groups=(new,))
    joined = replace(before, groups=(old, replace(new, policies=("EgressPolicy/2",))))
    for way in ((after,), (without, after), (joined, after)):
        desk = Desk("n3")
        assert desk.asks("EgressPolicy/1", "EgressPolicy/2", allocations=before) == [PortAsk(1)]
        for allocations in way:
            desk.asks("EgressPolicy/1", "EgressPolicy/2", allocations=allocations)
        assert desk.memory.report is not None and PortAsk(2) in desk.memory.report.asks
    idle = Desk("n3")
    idle.asks(allocations=before)
    assert idle.asks("EgressPolicy/1", allocations=after) == [], "no pod of it had ports here"


def test_the_next_turn_is_known() -> None:
    desk = Desk("n3")
    desk.asks(allocations=crowd(500, 1))
    assert desk.memory.next_turn == float("inf")
    desk.asks("EgressPolicy/2", allocations=crowd(500, 1, 2))
    turn = desk.memory.next_turn
    assert desk.now < turn < desk.now + 500 / ASKS
    assert desk.asks("EgressPolicy/2", allocations=crowd(500, 1, 2), seconds=turn - desk.now) == [PortAsk(2)]
    assert desk.memory.next_turn == float("inf")
