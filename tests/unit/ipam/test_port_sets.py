"""Blocks of ports: sizes, the search for room, and who gets what, as text."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.port_plan import PortPlan, Wishes, plan_ports, retire
from ipam.port_sets import (
    GRANULE,
    RANGE,
    RESERVED,
    PortTable,
    counts,
    find,
    first_size,
    granule_mask,
    ports_in,
    power_at_least,
    without_ports,
)
from ipam.port_work import Space, Word
from tests.models.ports import owner

IP, SECOND = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def text(plan: PortPlan) -> str:
    """One line a table: who has what; "~" is asked back, "x" cools down."""
    mark = {"granted": "", "returning": "~", "cooling": "x"}
    tables = [
        f"{table.egress_ip} " + " ".join(f"{mark[s.state]}{s.node}:{s.first}+{s.size}" for s in table.sets)
        for table in plan.tables
    ]
    tables += [f"lacking {','.join(map(str, plan.lacking))}"] if plan.lacking else []
    tables += [f"short {dict(plan.short)}"] if plan.short else []
    return "\n".join(tables)


class Site:
    """One group that lives on."""

    def __init__(self, *addresses: object, room: int = RANGE, gateways: tuple[int, ...] = (1, 2)) -> None:
        self.addresses, self.room, self.now = addresses or (IP,), room, 1000.0
        self.tables: dict[object, PortTable] = {}
        self.wants: dict[int, int] = {}
        self.gateways = frozenset(gateways)
        self.alive = set(range(1, 8))
        self.unused: dict[object, dict[tuple[int, int, int], int]] = {}
        self.applied: dict[object, dict[int, int]] = {}

    def word(self) -> Word:
        return Word(frozenset(self.alive), self.unused, self.applied)  # type: ignore[arg-type]

    def decide(self, seconds: float = 1.0) -> str:
        self.now += seconds
        spaces = tuple(Space(address, self.room) for address in self.addresses)  # type: ignore[arg-type]
        self.last = plan_ports(Wishes(spaces, self.wants, self.gateways), self.tables, self.word(), self.now)  # type: ignore[arg-type]
        self.tables = {table.egress_ip: table for table in self.last.tables}
        return text(self.last)

    def returns(self, port: int, address: object = IP) -> None:
        """The node of that port says that it does not use its set."""
        table = self.tables[address]
        each = owner(table, port)
        assert each is not None
        self.unused.setdefault(address, {})[each.first, each.size, each.node] = table.version

    def confirm(self, *gateways: int, address: object = IP) -> None:
        for gateway in gateways:
            self.applied.setdefault(address, {})[gateway] = self.tables[address].version


def test_the_range_has_1008_granules_and_the_reserved_one_64() -> None:
    assert (RANGE.bit_count(), RESERVED.bit_count()) == (1008, 64)
    assert ports_in(RANGE) == 64512
    assert without_ports(RANGE, (80, 8080, 8081, 65535)).bit_count() == 1006, "80 is in none"


@pytest.mark.parametrize(("size", "blocks"), [(64, 1008), (256, 252), (1024, 63), (4096, 15), (16384, 3)])
def test_so_many_blocks_fit(size: int, blocks: int) -> None:
    free, firsts = RANGE, []
    while (first := find(free, size)) is not None:
        assert first % size == 0
        firsts.append(first)
        free &= ~granule_mask(first, first + size - 1)
    assert len(firsts) == blocks
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    ("nodes", "size"),
    [(0, 1024), (1, 1024), (31, 1024), (32, 512), (63, 512), (64, 256), (126, 256), (252, 128), (504, 64), (5000, 64)],
)
def test_the_first_set_of_a_node(nodes: int, size: int) -> None:
    assert first_size(ports_in(RANGE), nodes) == size


def test_the_first_set_where_little_can_be_given() -> None:
    assert first_size(ports_in(RESERVED), 3) == 512
    assert first_size(0, 3) == 64


@given(ports=st.integers(0, 70000))
def test_the_size_of_a_block_for_so_many_ports(ports: int) -> None:
    size = power_at_least(ports)
    assert size.bit_count() == 1 and 64 <= size <= 16384
    assert size >= min(ports, 16384) and (size == 64 or size // 2 < ports)


@given(taken=st.sets(st.integers(16, 1023)), order=st.integers(0, 8))
@settings(max_examples=300)
def test_the_search_takes_the_lowest_block_of_the_tightest_fit(taken: set[int], order: int) -> None:
    free = RANGE & ~sum(1 << each for each in taken)

    def is_free(first: int, count: int) -> bool:
        return first + count <= 1024 and all(free >> each & 1 for each in range(first, first + count))

    def room(first: int) -> int:
        """Of the largest aligned free block that holds it."""
        return max(1 << k for k in range(order, 10) if is_free(first >> k << k, 1 << k))

    count = 1 << order
    fits = [first for first in range(0, 1024, count) if is_free(first, count)]
    best = min(fits, key=lambda first: (room(first), first), default=None)
    assert find(free, count * GRANULE) == (None if best is None else best * GRANULE)


def test_every_node_gets_a_set_at_once_and_keeps_it() -> None:
    site = Site()
    site.wants = {3: 0, 1: 0}
    assert site.decide() == "192.0.2.1 1:1024+1024 3:2048+1024"
    version = site.tables[IP].version
    site.wants[2] = 0
    assert site.decide() == "192.0.2.1 1:1024+1024 3:2048+1024 2:3072+1024"
    assert site.tables[IP].version > version
    before = site.tables[IP]
    site.decide(10**6)
    assert site.tables[IP] is before, "nothing changed"


def test_who_needs_no_ports_any_more_is_asked_for_them_and_may_change_its_mind() -> None:
    site = Site()
    site.wants = {1: 0, 2: 0}
    site.decide()
    del site.wants[1]
    assert site.decide() == "192.0.2.1 ~1:1024+1024 2:2048+1024"
    site.wants[1] = 0
    assert site.decide() == "192.0.2.1 1:1024+1024 2:2048+1024"
    site.returns(1024)
    assert site.decide() == "192.0.2.1 1:1024+1024 2:2048+1024", "nobody asked"


def test_a_node_that_wants_more_gets_further_blocks() -> None:
    site = Site()
    site.wants = {1: 0, 2: 0}
    site.decide()
    site.wants[1] = 2100
    assert site.decide() == "192.0.2.1 1:1024+1024 2:2048+1024 1:4096+2048"
    site.wants[1] = 40000
    assert "short" not in site.decide()
    assert sum(s.size for s in site.tables[IP].sets if s.node == 1) >= 40000
    site.wants[2] = 64000
    site.decide()
    assert site.last.short == {2: 64000 - sum(s.size for s in site.tables[IP].sets if s.node == 2)}


def test_every_node_of_a_large_cluster_finds_a_first_set_in_whatever_order_they_come() -> None:
    site = Site()
    site.alive = set(range(1, 1001))
    for last in range(1, 1001, 37):
        site.wants |= dict.fromkeys(range(last, min(last + 37, 1001)), 0)
        assert "lacking" not in site.decide()
    assert len({each.node for each in site.tables[IP].sets}) == 1000
    assert {each.state for each in site.tables[IP].sets} == {"granted"}


def test_a_few_nodes_of_a_large_cluster_get_more_when_they_want_more() -> None:
    site = Site()
    site.alive = set(range(1, 1001))
    site.wants = {1: 0, 2: 0, 3: 0}
    assert site.decide() == "192.0.2.1 1:1024+512 2:1536+128 3:1664+64"
    site.wants = {1: 4096, 2: 4096, 3: 4096}
    assert "short" not in site.decide()
    site.wants = {1: 1 << 16}
    site.decide()
    assert sum(each.size for each in site.tables[IP].sets) <= 64512 // 2, "half is kept for others"


def test_nobody_gets_more_than_a_quarter_while_another_is_poor() -> None:
    site = Site()
    site.wants = dict.fromkeys(range(1, 200), 0)  # 128 ports each
    site.wants[1] = 60000
    site.decide()
    site.decide()
    assert sum(s.size for s in site.tables[IP].sets if s.node == 1) <= 64512 // 4
    assert len([s for s in site.tables[IP].sets if s.node == 1]) <= 8


def test_a_set_that_is_given_back_rests_until_time_and_gateways_let_it_go() -> None:
    site = Site()
    site.wants = {1: 0, 2: 0}
    site.decide()
    del site.wants[1]
    site.decide()
    site.returns(1024)
    assert site.decide() == "192.0.2.1 x1:1024+1024 2:2048+1024"
    assert site.last.next_due is None, "the gateways have it"
    site.confirm(1)
    site.wants[3] = 0
    assert site.decide(599) == "192.0.2.1 x1:1024+1024 2:2048+1024 3:3072+1024"
    site.wants[4] = 0
    assert site.decide(1) == "192.0.2.1 x1:1024+1024 2:2048+1024 3:3072+1024 4:4096+1024"
    site.confirm(2)
    site.wants[5] = 0
    assert site.decide() == "192.0.2.1 5:1024+1024 2:2048+1024 3:3072+1024 4:4096+1024"


def test_it_rests_for_ten_minutes_though_all_have_confirmed() -> None:
    site = Site()
    site.wants = {1: 0}
    site.decide()
    site.wants = {}
    site.decide()
    site.returns(1024)
    site.decide()
    site.confirm(1, 2)
    assert site.decide(599) == "192.0.2.1 x1:1024+1024"
    assert site.last.next_due == site.now + 1
    assert site.decide(1) == "192.0.2.1 "


def test_a_fenced_node_loses_its_sets_and_a_fenced_gateway_confirms_nothing() -> None:
    site = Site()
    site.wants = {1: 0, 7: 0}
    site.decide()
    site.alive.discard(7)
    assert site.decide() == "192.0.2.1 1:1024+1024 x7:2048+1024"
    site.confirm(1)
    assert site.decide(10**5) == "192.0.2.1 1:1024+1024 x7:2048+1024", "gateway 2 may still carry its packets"
    site.alive.discard(2)
    assert site.decide() == "192.0.2.1 1:1024+1024"


def test_a_gateway_that_is_none_any_more_must_have_confirmed_too() -> None:
    site = Site()
    site.wants = {1: 0, 7: 0}
    site.decide()
    site.gateways = frozenset({1, 3})
    site.alive.discard(7)
    site.decide()
    site.confirm(1)
    assert "x7" in site.decide(10**5), "3 never had it, 2 had"
    site.confirm(2)
    assert "x7" not in site.decide()
    assert [each.gateway for each in site.tables[IP].told] == [1, 3]


def test_an_old_word_does_not_count_for_a_later_set() -> None:
    site = Site()
    site.wants = {1: 0}
    site.decide()
    site.wants = {}
    site.decide()
    site.returns(1024)
    site.decide()
    site.confirm(1, 2)
    site.decide(600)
    site.wants = {1: 0}
    assert site.decide() == "192.0.2.1 1:1024+1024"
    site.wants = {}
    assert site.decide() == "192.0.2.1 ~1:1024+1024"
    assert site.decide() == "192.0.2.1 ~1:1024+1024", "what it said was of the set before"


def test_when_space_runs_short_newcomers_get_smaller_sets_and_blocks_are_asked_back() -> None:
    site = Site(room=granule_mask(1024, 4095))
    site.alive = {1}
    site.wants = {1: 0}
    assert site.decide() == "192.0.2.1 1:1024+1024"
    site.wants = {1: 3000}
    assert site.decide() == "192.0.2.1 1:1024+1024 1:2048+2048"
    site.alive = {1, 2}
    site.wants = {1: 3000, 2: 0}
    asked = "192.0.2.1 1:1024+512 ~1:1536+512 1:2048+2048"
    assert site.decide() == f"{asked}\nlacking 2"
    assert site.decide() == f"{asked}\nlacking 2\nshort {{1: 440}}", "asked once"
    site.returns(1536)
    assert site.decide() == f"{asked.replace('~', 'x')}\nlacking 2\nshort {{1: 440}}"
    site.confirm(1, 2)
    assert site.decide(600) == "192.0.2.1 1:1024+512 2:1536+512 1:2048+2048\nshort {1: 440}", "a newcomer first"


def test_a_whole_set_is_split_rather_than_taken() -> None:
    site = Site(room=granule_mask(1024, 2047))
    site.alive = {1, 2, 3, 4}
    site.wants = {1: 0}
    assert site.decide() == "192.0.2.1 1:1024+512"
    site.wants |= {2: 0}
    assert site.decide() == "192.0.2.1 1:1024+512 2:1536+256"
    site.wants |= {3: 0, 4: 0}
    assert site.decide() == "192.0.2.1 1:1024+512 2:1536+256 3:1792+128 4:1920+128"
    site.alive.add(5)
    site.wants |= {5: 0}
    assert site.decide() == "192.0.2.1 1:1024+256 ~1:1280+256 2:1536+256 3:1792+128 4:1920+128\nlacking 5"


def test_then_comes_the_next_address_then_a_refusal() -> None:
    site = Site(IP, SECOND, room=granule_mask(1024, 1151))
    site.wants = dict.fromkeys(range(1, 6), 0)
    lines = site.decide().splitlines()
    assert lines[-1] == "lacking 5"
    assert sorted(each.node for table in site.last.tables for each in table.sets) == [1, 2, 3, 4]
    assert all(each.size == 64 for table in site.last.tables for each in table.sets)


def test_nodes_are_spread_over_the_addresses() -> None:
    site = Site(IP, SECOND)
    site.alive = set(range(1, 101))
    site.wants = dict.fromkeys(range(1, 101), 0)
    site.decide()
    first, second = (len(table.sets) for table in site.last.tables)
    assert first + second == 100 and 30 <= first <= 70


def test_a_node_that_was_asked_and_has_nothing_else_keeps_it() -> None:
    site = Site(room=granule_mask(1024, 2047))
    site.wants = {1: 0}
    site.decide()
    site.room = RANGE & ~granule_mask(1024, 1087)
    assert site.decide() == "192.0.2.1 ~1:1024+512 1:2048+1024", "somebody else uses a port of it now"
    site.room = RANGE
    assert site.decide() == "192.0.2.1 ~1:1024+512 1:2048+1024"


def test_an_address_without_a_group_keeps_its_sets_until_a_deadline() -> None:
    site = Site()
    site.wants = {1: 0, 2: 0}
    site.decide()
    table = retire(site.tables[IP], site.word(), 2000.0, 3600.0)
    assert table is not None
    assert [each.state for each in table.sets] == ["returning", "returning"]
    site.tables, site.now = {IP: table}, 2000.0
    site.decide()
    assert [each.state for each in site.tables[IP].sets] == ["granted", "granted"], "the group is back"
    table = retire(site.tables[IP], site.word(), 3000.0, 3600.0)
    assert table is not None
    table = retire(table, site.word(), 6600.0, 3600.0)
    assert table is not None
    assert [each.state for each in table.sets] == ["cooling", "cooling"]
    assert retire(table, site.word(), 10**6, 3600.0) == table, "the gateways have not confirmed"
    site.applied = {IP: {1: table.version, 2: table.version}}
    assert retire(table, site.word(), 10**6, 3600.0) is None


def test_the_clock_is_set_back() -> None:
    site = Site()
    site.now = 10**9
    site.wants = {1: 0}
    site.decide()
    site.wants = {}
    site.decide()
    site.returns(1024)
    site.decide()
    site.confirm(1, 2)
    site.now = 500.0
    assert site.decide() == "192.0.2.1 x1:1024+1024"
    assert site.decide(600) == "192.0.2.1 "


def test_counts_add_up() -> None:
    site = Site()
    site.wants = {1: 0, 2: 0, 3: 0}
    site.decide()
    site.alive.discard(3)
    site.decide()
    site.room = RANGE & ~granule_mask(1024, 1087)
    site.decide()
    found = counts(site.room, site.tables[IP])
    assert (found.total, found.free, found.granted, found.returning, found.cooling) == (1008, 944, 32, 16, 16)
