"""Which blocks of the cluster's pod CIDRs a node has: by need, never moved, rested before another node's. Pure.

What a Node says of itself (spec.podCIDRs) is its own, as far as it lies in these CIDRs and is nobody else's. Blocks are
taken in turn behind the one that was given last, so that those which were freed come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ipam.bitmap import Bitmap
from routerd.model import ClusterCIDR, IPNetwork, Node, NodeBlocks, NodeReport, Refusal

REST = 3600.0  # seconds that the blocks of a node which is gone wait: it may be back, and its pods may run still
SPARE = 8  # addresses that a node has beyond those that pods have and wait for; it grows by this at a time
LEFT_OUT = 3  # addresses of a block that no pod gets


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
    records: dict[IPNetwork, BlockRecord]
    taken: list[Bitmap] = field(default_factory=list)  # of each CIDR: which of its blocks are somebody's
    refusals: list[Refusal] = field(default_factory=list)

    def of(self, node: str, version: int) -> list[IPNetwork]:
        return [
            each.block
            for each in self.records.values()
            if each.node == node and each.state == "used" and each.block.version == version
        ]

    def take(self, block: IPNetwork, node: str) -> None:
        self.records[block] = BlockRecord(block, node, since=self.now)
        self.occupy(block)

    def occupy(self, network: IPNetwork) -> None:
        for cidr, taken in zip(self.cidrs, self.taken, strict=True):
            if network.version == cidr.network.version and network.overlaps(cidr.network):
                first, last = (_offset(cidr, int(end)) for end in (network[0], network[-1]))
                for offset in range(max(first, 0), min(last, taken.size - 1) + 1):
                    taken.occupy(offset)


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
    kept = {each.block: each for each in (_at(each, nodes, now) for each in records) if _is_kept(each, now)}
    turn = _Turn(cidrs, now, kept, [Bitmap(1 << each.node_prefix - each.network.prefixlen) for each in cidrs])
    for network in (*service_cidrs, *kept):
        turn.occupy(network)
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
        if not any(each.network.version == block.version and _is_within(block, each) for each in turn.cidrs):
            continue
        others = [
            each for each in turn.records.values() if each.block.version == block.version and each.block.overlaps(block)
        ]
        mine = turn.records.get(block)
        if mine is not None and mine.node == node.name:
            continue
        if others:
            whose = f"{others[0].block} is Node {others[0].node}'s"
            message = f"spec.podCIDRs has {block}, and {whose}: remove one of the two"
            turn.refusals.append(Refusal(node.ref, "PodCIDRTaken", message))
        else:
            turn.take(block, node.name)


def _is_within(block: IPNetwork, cidr: ClusterCIDR) -> bool:
    return cidr.network.prefixlen <= block.prefixlen and cidr.network.overlaps(block)


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
            turn.take(block, name)


def _needs(blocks: list[IPNetwork], report: NodeReport | None) -> bool:
    """Whether a node needs one more: needed = in use + waiting + spare, rounded up to the spare."""
    if not blocks:
        return True
    if report is None or report.pods is None:
        return False
    needed = report.pods.with_address + report.pods.waiting + SPARE
    room = sum(max(block.num_addresses - LEFT_OUT, 0) for block in blocks)
    return room < -(-needed // SPARE) * SPARE


def _next_free(turn: _Turn, version: int) -> IPNetwork | None:
    """In the order of the CIDRs; within one behind what was given last, and then from its beginning."""
    for cidr, taken in zip(turn.cidrs, turn.taken, strict=True):
        if cidr.network.version == version:
            offset = taken.lowest_free(_behind(turn, cidr))
            offset = taken.lowest_free() if offset is None else offset
            if offset is not None:
                return _block(cidr, offset)
    return None


def _behind(turn: _Turn, cidr: ClusterCIDR) -> int:
    within = (each for each in turn.records.values() if each.block.version == cidr.network.version)
    given = [(each.since, _offset(cidr, int(each.block[-1]))) for each in within if each.block.overlaps(cidr.network)]
    return max(given)[1] + 1 if given else 0


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
