"""What a node that is no gateway reads of ports: its own blocks, in a share of nodes, instead of all tables. Pure.

A table of an egress IP changes whenever any node gets or gives back ports, and a node of a thousand needs one line of
it. So beside the tables, which are for gateways, a line for each node says what it has of every egress IP, and a share
of them is one part: an index names the shares of all nodes, and a node reads its own. What is told there is told by the
tables as well, in other words: it rests on them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from operator import attrgetter
from typing import Any

from routerd.formats.published.bindings import LAST_VERSION, binding_table, granule_port, natural
from routerd.formats.published.parts import BUCKETS, bucket_of
from routerd.formats.published.records import Row, Table
from routerd.model import Allocations, BindingTable, IPAddress, NodeNumber, PortBlock

SHARES = 64  # of nodes, each in parts of its own: of a thousand nodes sixteen have one together
GATEWAYS = "gateways"  # the readers of tables
READERS = tuple(map(str, range(SHARES)))


@dataclass(frozen=True, slots=True)
class OwnBlocks:
    """Of one egress IP, in the order of their ports. `version` is said of blocks that are unused; 0 = none is asked."""

    egress_ip: IPAddress
    version: int
    blocks: tuple[PortBlock, ...]


@dataclass(frozen=True, slots=True)
class NodePorts:
    node: str
    is_gateway: bool  # or was one, and may have bindings still: it reads the tables
    own: tuple[OwnBlocks, ...] = ()


def share_of(node: str) -> str:
    """By which name its parts are for it."""
    return READERS[bucket_of(node) * SHARES // BUCKETS]


class Sharing:
    """Tables to what each node has. It remembers the last ones, so that what did not change costs little."""

    def __init__(self) -> None:
        self._split: dict[IPAddress, tuple[BindingTable, dict[int, OwnBlocks]]] = {}
        self._records: dict[str, NodePorts] = {}

    def shared(self, allocations: Allocations) -> tuple[NodePorts, ...]:
        """Of each node that has ports, or is a gateway, sorted by node."""
        self._split = {table.egress_ip: (table, self._of(table)) for table in allocations.bindings}
        split = [found for _, found in self._split.values()]
        gateways = gateways_of(allocations)
        made = (
            NodePorts(each.node, each.node in gateways, tuple(own[each.number] for own in split if each.number in own))
            for each in allocations.numbers
        )
        before = self._records
        self._records = {
            each.node: before[each.node] if before.get(each.node) == each else each
            for each in made
            if each.own or each.is_gateway
        }
        return tuple(self._records.values())

    def _of(self, table: BindingTable) -> dict[int, OwnBlocks]:
        """By the numbers of the nodes."""
        last, before = self._split.get(table.egress_ip, (None, {}))
        if last is table:
            return before
        blocks: dict[int, list[PortBlock]] = {}
        for block in table.blocks():
            blocks.setdefault(block.node, []).append(block)
        return {number: _own(table, found) for number, found in blocks.items()}


def _own(table: BindingTable, blocks: Sequence[PortBlock]) -> OwnBlocks:
    version = table.asked if any(each.returning for each in blocks) else 0
    return OwnBlocks(table.egress_ip, version, tuple(blocks))


def gateways_of(allocations: Allocations) -> frozenset[str]:
    """Nodes that carry packets of others, or may: of a group, or told of a table and not yet of its end."""
    told = {number for table in allocations.bindings for number in table.told}
    former = (each.node for each in allocations.numbers if each.number in told)
    return frozenset((*former, *(name for group in allocations.groups for name in group.gateways)))


def own_tables(ports: NodePorts | None, numbers: Iterable[NodeNumber]) -> tuple[BindingTable, ...]:
    """Tables in which everything but the node's own blocks is nobody's. None = it has none."""
    number = next((each.number for each in numbers if ports is not None and each.node == ports.node), 0)
    if ports is None or not number:
        return ()
    return tuple(
        binding_table(
            each.egress_ip, each.version, (PortBlock(b.first, b.size, number, b.returning) for b in each.blocks)
        )
        for each in ports.own
    )


# --- rows


def _row(each: NodePorts) -> Row:
    return [each.node, each.is_gateway, [_own_row(one) for one in each.own]]


def _own_row(one: OwnBlocks) -> Row:
    return [str(one.egress_ip), one.version, *([b.first, b.size, *([1] if b.returning else ())] for b in one.blocks)]


def _ports(node: str, is_gateway: bool, own: list[list[Any]]) -> NodePorts:
    return NodePorts(node, bool(is_gateway), tuple(_read_own(*each) for each in own))


def _read_own(egress_ip: str, version: int, *blocks: list[int]) -> OwnBlocks:
    return OwnBlocks(ip_address(egress_ip), natural(version, 0, LAST_VERSION), tuple(_block(*each) for each in blocks))


def _block(first: int, size: int, returning: int = 0) -> PortBlock:
    return PortBlock(granule_port(first), natural(size, 64, 65536), 0, bool(returning))


PORTS: Table[NodePorts] = Table("ports", attrgetter("node"), attrgetter("node"), _row, _ports)
