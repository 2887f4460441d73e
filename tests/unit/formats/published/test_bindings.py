"""Whose the ports of an egress IP are: compact, and read back as it was."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.errors import InputError
from routerd.formats.published.bindings import BINDINGS, binding_table
from routerd.formats.published.records import lines
from routerd.formats.published.whole import AllocationsWriter
from routerd.model import Allocations, BindingTable, NodeNumber, PortBlock
from tests.models.many import parse_allocations

IP = ip_address("192.0.2.1")
HEAD = "apiVersion: routerd.io/v1alpha1\nkind: Allocations\ngeneration: 1\n"


def full(address: IPv4Address, version: int = 1) -> BindingTable:
    """Every granule is another node's."""
    return binding_table(
        address, version, (PortBlock(granule * 64, 64, 64000 + granule) for granule in range(16, 1024))
    )


@st.composite
def blocks(draw: st.DrawFn) -> tuple[PortBlock, ...]:
    found, first = [], 1024
    while first < 65536 and draw(st.integers(0, 20)):
        largest = min(first & -first, 65536 - first, 16384)
        size = 64 << draw(st.integers(0, (largest // 64).bit_length() - 1))
        if draw(st.booleans()):
            found.append(PortBlock(first, size, draw(st.integers(1, 3)), draw(st.booleans())))
        first += size
    return tuple(found)


@given(blocks())
def test_blocks_read_back_also_where_neighbours_are_one_nodes(given: tuple[PortBlock, ...]) -> None:
    table = binding_table(IP, 7, given)
    assert table.blocks() == given
    assert table.blocks(2) == tuple(each for each in given if each.node == 2)
    numbers = table.numbers()
    assert all(numbers[port >> 6] == each.node for each in given for port in (each.first, each.last))
    assert sum(1 for number in numbers if number) * 64 == sum(each.size for each in given)


def test_a_full_table_takes_less_than_4_kib_and_one_with_few_blocks_some_bytes() -> None:
    assert len(lines(BINDINGS, [full(IPv4Address("192.0.2.1"))])) < 3100
    few = binding_table(IP, 1764451234, [PortBlock(1024, 1024, 1), PortBlock(2048, 1024, 2)], told=(1, 2))
    assert len(lines(BINDINGS, [few])) < 300


def test_one_table_that_changes_makes_one_part_anew_and_several_share_one() -> None:
    tables = tuple(full(IPv4Address(0x0A000000 + number)) for number in range(100))
    numbers = tuple(NodeNumber(f"node-{number:04}.example.net", number) for number in range(1, 1001))
    writer = AllocationsWriter()
    first = writer.written(Allocations(1, bindings=tables, numbers=numbers))
    assert len(first.parts) < 20
    assert max(len(part.text) for part in first.parts) <= 256 << 10
    for number in (0, 50, 99):
        changed = (*tables[:number], replace(tables[number], version=2), *tables[number + 1 :])
        second = writer.written(Allocations(2, bindings=changed, numbers=numbers))
        assert len({part.name for part in second.parts} - {part.name for part in first.parts}) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("numbers: [{node: a, number: 65536}]",
         'f:4:29: numbers[0].number: found "65536", expected an integer from 1 to 65535'),
        ("bindings: [{egressIP: 192.0.2.1, version: 1, owners: '?', starts: '', awaited: 0}]",
         'f:4:54: bindings[0].owners: found the string "?", expected base64 of 2048 bytes at most'),
        ("bindings: [{egressIP: 192.0.2.1, version: 1, owners: '', starts: '', awaited: 0, returning: [65]}]",
         'f:4:94: bindings[0].returning[0]: found "65", expected the first port of a granule, a multiple of 64'),
        ("bindings: [{egressIP: 192.0.2.1, version: 1, owners: '', starts: '', awaited: 0, "
         "cooling: [{since: 1, version: 1, ranges: ['1024-1025']}]}]",
         'f:4:124: bindings[0].cooling[0].ranges[0]: found the string "1024-1025", '
         "expected a range of whole granules of 64 ports"),
    ],
)  # fmt: skip
def test_mistakes_are_named(line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_allocations(f"{HEAD}{line}\n", "f")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "row",
    [
        ["192.0.2.1", 1, "AA", "", [], [], 0, []],
        ["192.0.2.1", -1, "", "", [], [], 0, []],
        ["192.0.2.1", 1, "", "", [1], [], 0, []],
        ["192.0.2.1", 1, "", "", [], [0], 0, []],
        ["192.0.2.1", 1, "A" * 4096, "", [], [], 0, []],
        ["192.0.2.1", 1, "", "", [], [], True, []],
    ],
)
def test_a_row_that_is_none_is_refused(row: list[object]) -> None:
    with pytest.raises(ValueError, match=r"found|padding|Invalid"):
        BINDINGS.from_row(*row)
