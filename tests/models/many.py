"""Clusters with many services, as what was decided for them and what is remembered of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import strategies as st

from ipam.round import Record
from routerd.cluster.ledger import GroupRecord, Ledger
from routerd.formats.published import parts
from routerd.formats.published.bindings import binding_table
from routerd.formats.published.whole import AllocationsReader
from routerd.model import Allocations, BindingTable, EgressGroup, NodeNumber, PortBlock, Refusal, ServiceAllocation
from routerd.refs import Ref

GATEWAYS = ("node-1.example.net", "node-2.example.net")


def allocations_of(services: int, groups: int, generation: int = 1) -> Allocations:
    given = [
        ServiceAllocation(f"team-{number % 40}/service-{number}", "default", (_vip(number),))
        for number in range(services)
    ]
    return Allocations(
        generation,
        tuple(sorted(given, key=lambda each: each.service)),
        tuple(
            EgressGroup(number + 1, _egress_ip(number), (f"EgressPolicy/policy-{number}",), GATEWAYS, pool="egress")
            for number in range(groups)
        ),
    )


def ledger_of(services: int, groups: int) -> Ledger:
    vips = [
        Record(_vip(number), f"svc/team-{number % 40}/service-{number}", "default", "used", 1.7e9 + number / 7)
        for number in range(services)
    ]
    held = [
        Record(_egress_ip(number), f"EgressPolicy/policy-{number}", "egress", "used", 1.7e9 + number / 7, bound=True)
        for number in range(groups)
    ]
    numbers = (GroupRecord(n + 1, _egress_ip(n), "active", 1.7e9, GATEWAYS) for n in range(groups))
    return Ledger(1, "0" * 64, groups + 1, (*vips, *held), tuple(numbers))


def _vip(number: int) -> IPv4Address:
    return IPv4Address(0x0A000000 + number)


def _egress_ip(number: int) -> IPv4Address:
    return IPv4Address(0x0B000000 + number)


def parse_allocations(text: str, file: str) -> Allocations:
    """Of a document that is whole by itself. Raises InputError."""
    return AllocationsReader().read(text, file, lambda name: None)


@contextmanager
def small_parts() -> Iterator[None]:
    """So that a handful of records make several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "INLINE_SIZE", 300)
        patch.setattr(parts, "PART_SIZE", 200)
        yield


def _decision(
    services: dict[str, int], groups: int, refused: set[str], generation: int, bindings: tuple[BindingTable, ...]
) -> Allocations:
    given = (ServiceAllocation(name, "default", (_vip(last),)) for name, last in sorted(services.items()))
    refusals = tuple(Refusal(Ref.parse(f"svc/{name}"), "PoolExhausted", "é …") for name in sorted(refused))
    return replace(
        allocations_of(0, groups, generation), services=tuple(given), refusals=refusals, numbers=NUMBERS,
        bindings=bindings,
    )  # fmt: skip


def seen_by(node: str, allocations: Allocations) -> Allocations:
    """What a node needs of it: of ports its own blocks, unless it is a gateway, or was one."""
    number = next((each.number for each in allocations.numbers if each.node == node), 0)
    if any(node in group.gateways for group in allocations.groups) or any(
        number in table.told for table in allocations.bindings
    ):
        return allocations
    own = ((table, table.blocks(number)) for table in allocations.bindings if number)
    tables = (
        binding_table(table.egress_ip, table.asked if any(b.returning for b in blocks) else 0, blocks)
        for table, blocks in own
        if blocks
    )
    return replace(allocations, bindings=tuple(tables))


@st.composite
def _tables(draw: st.DrawFn) -> tuple[BindingTable, ...]:
    """Ports of some egress IPs, of nodes with and without a number, and gateways that are told."""
    found = []
    for place in range(draw(st.integers(0, 3))):
        owners = draw(st.dictionaries(st.integers(16, 40), st.tuples(st.integers(1, 5), st.booleans()), max_size=6))
        blocks = [PortBlock(first << 6, 64, number, asked) for first, (number, asked) in sorted(owners.items())]
        asked = draw(st.integers(1, 9)) if any(each.returning for each in blocks) else 0
        told = tuple(sorted(draw(st.sets(st.integers(1, 5), max_size=2))))
        found.append(binding_table(_egress_ip(place), draw(st.integers(9, 12)), blocks, told=told, asked=asked))
    return tuple(found)


NODES = ("node-1.example.net", "node-3.example.net", "node-4.example.net", "node-5.example.net")
NUMBERS = tuple(NodeNumber(name, place + 1) for place, name in enumerate(NODES))
NAMES = st.sampled_from([f"d/{letter}" for letter in "abcdefghijklmnop"])
DECISIONS = st.builds(
    _decision,
    st.dictionaries(NAMES, st.integers(0, 3)),
    st.integers(0, 4),
    st.sets(NAMES),
    st.integers(0, 2**62),
    _tables(),
)
