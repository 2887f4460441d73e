"""A node reads what it needs of ports, and does the same as one that reads everything."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from ipaddress import IPv4Address, ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from egress.status import PortUse
from routerd.formats.compose import quoted
from routerd.formats.meta import ROUTERD
from routerd.formats.published.allocations import sealed
from routerd.formats.published.bindings import binding_table
from routerd.formats.published.parts import Part
from routerd.formats.published.shares import GATEWAYS, READERS, NodePorts, share_of
from routerd.formats.published.whole import AllocationsReader, AllocationsWriter, Published
from routerd.model import Allocations, BindingTable, EgressGroup, IPAddress, NodeNumber, PortAsk, PortBlock
from routerd.node.desired import LocalFacts, Settings, compose
from routerd.node.port_sets import PortMemory, report_ports
from tests.models import cluster
from tests.models.many import DECISIONS, NODES, seen_by, small_parts


class Agent:
    """It has the parts for its readers alone, as an API server gives them by their label."""

    def __init__(self, node: str) -> None:
        self.node, self.reader = node, AllocationsReader(node=node)
        self.read = Counter[str]()  # by readers: texts that it asked for

    def reads(self, published: Published) -> Allocations:
        parts = {part.name: part for part in published.parts}

        def fetch(name: str) -> str:
            self.read[parts[name].readers] += 1
            return parts[name].text

        return self.reader.read(published.text, "f", fetch)


@given(st.lists(DECISIONS, min_size=1, max_size=4), st.sampled_from(NODES))
@settings(max_examples=60)
def test_a_node_finds_what_it_needs_and_asks_for_nothing_else(decisions: list[Allocations], node: str) -> None:
    with small_parts():
        writer, agent = AllocationsWriter(), Agent(node)
        for decision in decisions:
            published, needed = writer.written(decision), seen_by(node, decision)
            assert agent.reads(published) == (needed if published.parts else decision)
            assert Agent(node).reads(published) == (needed if published.parts else decision)
            is_gateway = needed is decision
            later = Agent(node)
            later.reads(published)
            assert later.read.keys() <= {"", share_of(node), *([GATEWAYS] if is_gateway else [])}


POLICY = "EgressPolicy/web"
ASKED_BACK = 4  # version of a table


@st.composite
def tables(draw: st.DrawFn) -> tuple[BindingTable, ...]:
    found = []
    for address in ("198.51.100.7", "198.51.100.8"):
        owners = draw(st.dictionaries(st.integers(16, 24), st.tuples(st.integers(1, 3), st.booleans()), max_size=6))
        blocks = [PortBlock(first << 6, 64, number, asked) for first, (number, asked) in sorted(owners.items())]
        asked = ASKED_BACK if any(each.returning for each in blocks) else 0
        found.append(binding_table(ip_address(address), 5, blocks, told=(2,), awaited=3, asked=asked))
    return tuple(found)


@given(tables())
def test_a_node_does_the_same_as_one_that_reads_everything(bindings: tuple[BindingTable, ...]) -> None:
    group = cluster.group(gateways=("b",), further_ips=(ip_address("198.51.100.8"),))
    whole = cluster.allocations(group, bindings=bindings)
    (all_of_it, part) = (
        compose(cluster.snapshot(allocations=each), Settings("a"), LocalFacts(cluster.LOCAL))
        for each in (whole, seen_by("a", whole))
    )
    assert all_of_it == part
    asks, unused = zip(*(said(each) for each in (whole, seen_by("a", whole))), strict=True)
    assert asks[0] == asks[1]
    assert [set(each) for each in unused] == [set(unused[0])] * 2
    assert set(unused[0]) == {
        (table.egress_ip, block.first, block.size) for table in bindings for block in table.blocks(1) if block.returning
    }
    assert all(version >= ASKED_BACK for each in unused for version in each.values()), "else it counts for nothing"


def said(allocations: Allocations) -> tuple[tuple[PortAsk, ...], dict[tuple[IPAddress, int, int], int]]:
    """What node a asks for, and by block that was asked back and is unused: of which version it says so."""
    use = PortUse(counted=1.0)
    report = report_ports("a", allocations, frozenset({POLICY}), allocations, use, PortMemory(), 2.0).report
    assert report is not None and not report.applied
    return report.asks, {(each.egress_ip, each.first, each.size): each.version for each in report.unused}


# --- a thousand nodes


def ports_of(nodes: int, policies: int) -> Allocations:
    """A granule of each egress IP for each node; the first two nodes are the gateways."""
    names = [f"node-{number:04}.example.net" for number in range(nodes)]
    blocks = [PortBlock(1024 + 64 * place, 64, place + 1) for place in range(nodes)]
    tables = (binding_table(IPv4Address(0xC6336400 + number), 1, blocks, told=(1, 2)) for number in range(policies))
    groups = (
        EgressGroup(number + 1, IPv4Address(0xC6336400 + number), (f"EgressPolicy/p{number}",), tuple(names[:2]))
        for number in range(policies)
    )
    numbers = tuple(NodeNumber(name, place + 1) for place, name in enumerate(names))
    return Allocations(1, groups=tuple(groups), numbers=numbers, bindings=tuple(tables))


def without(allocations: Allocations, number: int) -> Allocations:
    """The node with this number has no ports of the first egress IP any more."""
    first, *others = allocations.bindings
    less = binding_table(first.egress_ip, 2, (b for b in first.blocks() if b.node != number), told=first.told)
    return replace(allocations, generation=2, bindings=(less, *others))


def test_one_nodes_ports_are_another_part_for_its_share_and_for_gateways_alone() -> None:
    writer, before = AllocationsWriter(), ports_of(1000, 100)
    first, then = writer.written(before), writer.written(without(before, 500))
    made = {part.name: part.readers for part in then.parts if part not in first.parts}
    assert sorted(made.values()) == sorted([share_of("node-0499.example.net"), GATEWAYS])


def test_an_agent_of_a_thousand_nodes_with_a_hundred_policies_reads_little() -> None:
    published = AllocationsWriter().written(ports_of(1000, 100))
    sizes = Counter[str]()
    for part in published.parts:
        sizes[part.readers] += len(part.text)
        assert len(part.text) <= 256 << 10
    shares = [sizes[readers] for readers in READERS if readers in sizes]
    assert max(shares) < 64 << 10
    assert len(published.text) + sizes[""] + max(shares) < 160 << 10


def test_nodes_are_of_all_shares() -> None:
    names = [f"node-{number}" for number in range(1000)]
    assert {share_of(name) for name in names} == set(READERS)


def test_a_node_that_left_a_group_reads_the_tables_until_it_has_confirmed_that() -> None:
    told, after = ports_of(4, 1), replace(ports_of(4, 1).groups[0], gateways=("node-0000.example.net",))
    leaving = replace(told, groups=(after,))
    left = replace(leaving, bindings=(replace(leaving.bindings[0], told=(1,)),))
    agent = Agent("node-0001.example.net")
    with small_parts():
        writer = AllocationsWriter()
        assert agent.reads(writer.written(told)) == told
        assert agent.reads(writer.written(leaving)) == leaving
        assert Agent("node-0001.example.net").reads(writer.written(leaving)) == leaving
        assert agent.reads(writer.written(left)) == seen_by("node-0001.example.net", left)
        assert not agent.reader.is_gateway


def test_lines_of_nodes_without_ports_are_not_written() -> None:
    with small_parts():
        published = AllocationsWriter().written(without(ports_of(3, 1), 3))
    shares = [part.text for part in published.parts if part.readers in READERS]
    assert shares and not any("node-0002" in text for text in shares)
    assert NodePorts("a", False).own == ()


def test_an_agent_reads_all_of_an_index_of_a_release_without_shares() -> None:
    """An operator is brought up to date after some of the agents: this is as the last release wrote it."""
    rows = [
        ["numbers", "node-a", 1],
        ["groups", 1, "198.51.100.7", "egress", [POLICY], ["node-b"], False],
        ["bindings", "198.51.100.7", 5, "AQ==", "AA==", [], [1], 0, []],
        ["interfaces", "node-a", [["02:00:5e:10:00:01", "10.0.0.5/24", ["10.0.0.16/28"], []]]],
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    part = Part(sha256(text.encode()).hexdigest(), text)
    head = f"apiVersion: {ROUTERD}\nkind: Allocations\ngeneration: 7\n"
    index = sealed(f"{head}parts:\n- {quoted(part.name)}\n")
    found = Agent("node-a").reads(Published(index, (part,)))
    assert found == Agent("").reads(Published(index, (part,)))
    assert [table.egress_ip for table in found.bindings] == [IPv4Address("198.51.100.7")]
    assert found.bindings[0].version == 5 and found.groups and found.numbers
    [interfaces] = found.interfaces
    assert (interfaces.generation, [str(block) for each in interfaces.interfaces for block in each.blocks]) == (
        0, ["10.0.0.16/28"],
    )  # fmt: skip
