"""Which blocks of the cluster's pod CIDRs a node has: by need, never moved, rested before another node's. Pure.

What a Node says of itself (spec.podCIDRs) is its own, as far as it lies in these CIDRs and is nobody else's. Blocks are
taken in turn behind the one that was given last, so that those which were freed come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from ipam.bitmap import Bitmap
from routerd.model import ClusterCIDR, IPNetwork, Node, NodeBlocks, NodeReport, Refusal

REST = 3600.0  # seconds that the blocks of a node which is gone wait: it may be back, and its pods may run still
SPARE = 8  # addresses that a node has beyond those that pods have and wait for; it grows by this at a time
LEFT_OUT = 3  # addresses of a block that no pod gets
MOST_PODS = 4096  # of one node, more than any has: one that says more does not take everybody's blocks


@dataclass(frozen=True, slots=True)
class BlockRecord:
    block: IPNetwork
    node: str  # of one that rests: the last one
    state: Literal["used", "resting"] = "used"
    since: float = 0.0  # when the state began, seconds of the Unix epoch


@dataclass(frozen=True, slots=True)
class Blocks:
    """`next_due`: when something has rested, seconds of the Unix epoch."""

    records: tuple[BlockRecord, ...] = ()
    published: tuple[NodeBlocks, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    next_due: float | None = None


def block_key(block: IPNetwork) -> tuple[int, int, int]:
    return block.version, int(block.network_address), block.prefixlen


@dataclass(slots=True)
class _Turn:
    """One decision while it is made."""

    cidrs: tuple[ClusterCIDR, ...]
    now: float
    records: dict[IPNetwork, BlockRecord] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    taken: list[Bitmap] = field(init=False)  # of each CIDR: which of its blocks are somebody's
    last: list[tuple[float, int]] = field(init=False)  # of each CIDR: when a block was given last, and its number
    _used: dict[tuple[str, int], list[IPNetwork]] = field(init=False, default_factory=dict)  # by node and version

    def __post_init__(self) -> None:
        self.taken = [Bitmap(1 << each.node_prefix - each.network.prefixlen) for each in self.cidrs]
        self.last = [(-inf, -1) for _ in self.cidrs]

    def of(self, node: str, version: int) -> list[IPNetwork]:
        return self._used.get((node, version), [])

    def add(self, record: BlockRecord) -> None:
        network = record.block
        self.records[network] = record
        if record.state == "used":
            self._used.setdefault((record.node, network.version), []).append(network)
        for number, offset in self._places(network):
            self.taken[number].occupy(offset)
            self.last[number] = max(self.last[number], (record.since, offset))

    def leave_out(self, network: IPNetwork) -> None:
        for number, offset in self._places(network):
            self.taken[number].occupy(offset)

    def owners(self, block: IPNetwork) -> list[BlockRecord]:
        """Who has something of a block that lies within the CIDRs."""
        if not any(offset in self.taken[number] for number, offset in self._places(block)):
            return []
        known = self.records.values()
        return [each for each in known if each.block.version == block.version and each.block.overlaps(block)]

    def _places(self, network: IPNetwork) -> Iterator[tuple[int, int]]:
        """The blocks that a network touches: number of the CIDR, and number in it."""
        for number, cidr in enumerate(self.cidrs):
            if network.version == cidr.network.version and network.overlaps(cidr.network):
                first, last = (_offset(cidr, int(end)) for end in (network[0], network[-1]))
                for offset in range(max(first, 0), min(last, self.taken[number].size - 1) + 1):
                    yield number, offset


def give_blocks(
    cidrs: tuple[ClusterCIDR, ...],
    records: tuple[BlockRecord, ...],
    nodes: Mapping[str, Node],
    reports: Mapping[str, NodeReport],
    service_cidrs: Iterable[IPNetwork],
    now: float,
) -> Blocks:
    """Without CIDRs nothing is given, and nothing is forgotten."""
    if not cidrs:
        return Blocks(records)
    turn = _Turn(cidrs, now)
    for network in service_cidrs:
        turn.leave_out(network)
    for each in (_at(each, nodes, now) for each in records):
        if _is_kept(each, now):
            turn.add(each)
    for _, node in sorted(nodes.items()):
        _adopt(turn, node)
    for name in sorted(nodes):
        _serve(turn, name, reports.get(name))
    return _result(turn, nodes)


def _at(record: BlockRecord, nodes: Mapping[str, Node], now: float) -> BlockRecord:
    """A node that comes back while its blocks rest has them again."""
    state: Literal["used", "resting"] = "used" if record.node in nodes else "resting"
    since = record.since if record.state == state else now
    return record if (state, since) == (record.state, record.since) else replace(record, state=state, since=since)


def _is_kept(record: BlockRecord, now: float) -> bool:
    return record.state == "used" or now - record.since < REST


def _adopt(turn: _Turn, node: Node) -> None:
    """What the Node says, from whichever controller it has it."""
    for block in node.pod_cidrs:
        mine = turn.records.get(block)
        if (mine is not None and mine.node == node.name) or not any(_is_within(block, each) for each in turn.cidrs):
            continue
        if others := turn.owners(block):
            whose = f"{others[0].block} is Node {others[0].node}'s"
            message = f"spec.podCIDRs has {block}, and {whose}: remove one of the two"
            turn.refusals.append(Refusal(node.ref, "PodCIDRTaken", message))
        else:
            turn.add(BlockRecord(block, node.name, since=turn.now))


def _is_within(block: IPNetwork, cidr: ClusterCIDR) -> bool:
    is_smaller = cidr.network.version == block.version and cidr.network.prefixlen <= block.prefixlen
    return is_smaller and cidr.network.overlaps(block)


def _serve(turn: _Turn, name: str, report: NodeReport | None) -> None:
    for version in sorted({each.network.version for each in turn.cidrs}):
        while _needs(turn.of(name, version), report):
            block = _next_free(turn, version)
            if block is None:
                cidrs = ", ".join(str(each.network) for each in turn.cidrs if each.network.version == version)
                count = len(turn.of(name, version))
                reason, has = (
                    ("PodCIDRsShort", f"it has {count}") if count else ("PodCIDRsExhausted", "its pods get no address")
                )
                message = f"no block of {cidrs} is free for it, {has}: add a CIDR to pod-cidrs"
                turn.refusals.append(Refusal(Node(name).ref, reason, message))
                break
            turn.add(BlockRecord(block, name, since=turn.now))


def _needs(blocks: list[IPNetwork], report: NodeReport | None) -> bool:
    """Whether a node needs one more: needed = in use + waiting + spare, rounded up to the spare."""
    if not blocks:
        return True
    if report is None or report.pods is None:
        return False
    needed = min(report.pods.with_address + report.pods.waiting, MOST_PODS) + SPARE
    room = sum(max(block.num_addresses - LEFT_OUT, 0) for block in blocks)
    return room < -(-needed // SPARE) * SPARE


def _next_free(turn: _Turn, version: int) -> IPNetwork | None:
    """In the order of the CIDRs; within one behind what was given last, and then from its beginning."""
    for cidr, taken, (_, last) in zip(turn.cidrs, turn.taken, turn.last, strict=True):
        if cidr.network.version == version:
            offset = taken.lowest_free(last + 1)
            offset = taken.lowest_free() if offset is None else offset
            if offset is not None:
                return _block(cidr, offset)
    return None


def _offset(cidr: ClusterCIDR, address: int) -> int:
    """The number of the block that an address, as a number, is in; outside of the CIDR it is none of its."""
    return (address - int(cidr.network.network_address)) >> (cidr.network.max_prefixlen - cidr.node_prefix)


def _block(cidr: ClusterCIDR, offset: int) -> IPNetwork:
    start = cidr.network[offset << (cidr.network.max_prefixlen - cidr.node_prefix)]
    return type(cidr.network)((int(start), cidr.node_prefix))


def _result(turn: _Turn, nodes: Mapping[str, Node]) -> Blocks:
    records = tuple(sorted(turn.records.values(), key=lambda each: block_key(each.block)))
    resting = [each.since + REST for each in records if each.state == "resting"]
    return Blocks(records, tuple(_published(records)), tuple(turn.refusals), min(resting, default=None))


def _published(records: Iterable[BlockRecord]) -> Iterator[NodeBlocks]:
    of: dict[str, list[IPNetwork]] = {}
    for each in records:
        if each.state == "used":
            of.setdefault(each.node, []).append(each.block)
    return (NodeBlocks(node, tuple(blocks)) for node, blocks in sorted(of.items()))
