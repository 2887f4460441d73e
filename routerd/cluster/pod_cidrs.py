"""Which blocks of the cluster's pod CIDRs a node has: by need, never moved, rested before another node's. Pure.

What a Node says of itself (spec.podCIDRs) is its own, as far as it lies in these CIDRs and is nobody else's. Blocks are
taken in turn behind the one that was given last, so that those which were freed come last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from ipam.bitmap import Bitmap
from routerd.model import ClusterCIDR, IPNetwork, Node, NodeBlocks, NodeReport, PodPool, Refusal

REST = 3600.0  # seconds that the blocks of a node which is gone wait: it may be back, and its pods may run still
SPARE = 8  # addresses that a node has beyond those that pods have and wait for; it grows by this at a time
LEFT_OUT = 3  # addresses of a block that no pod gets
POOLS = "routerd.io/pod-pools"  # annotation of a Node: names of the pools that it has blocks of, with commas between
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
    pools: Mapping[int, PodPool] = field(default_factory=dict)  # by the number of a CIDR that is one's
    left_out: tuple[IPNetwork, ...] = ()
    left_out_of_pools: tuple[IPNetwork, ...] = ()
    records: dict[IPNetwork, BlockRecord] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    taken: list[Bitmap] = field(init=False)  # of each CIDR: which of its blocks are somebody's
    avoided: list[tuple[IPNetwork, ...]] = field(init=False)  # of each CIDR: what of it is left out
    last: list[tuple[float, int]] = field(init=False)  # of each CIDR: when a block was given last, and its number
    _used: dict[tuple[str, int], list[IPNetwork]] = field(init=False, default_factory=dict)  # by node and version

    def __post_init__(self) -> None:
        self.taken = [Bitmap(1 << each.node_prefix - each.network.prefixlen) for each in self.cidrs]
        self.avoided = [
            tuple(_overlapping(each, (*self.left_out, *(self.left_out_of_pools if number in self.pools else ()))))
            for number, each in enumerate(self.cidrs)
        ]
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

    def free_block(self, number: int) -> IPNetwork | None:
        """The next one of a CIDR: behind what was given last, and then from its beginning."""
        last = self.last[number][1]
        return self._free_from(number, last + 1) or self._free_from(number, 0)

    def _free_from(self, number: int, offset: int) -> IPNetwork | None:
        """Networks that are left out may be larger than any number of blocks: they are passed over as a whole."""
        cidr, found = self.cidrs[number], self.taken[number].lowest_free(offset)
        while found is not None:
            block = _block(cidr, found)
            hit = next((each for each in self.avoided[number] if each.overlaps(block)), None)
            if hit is None:
                return block
            found = self.taken[number].lowest_free(_offset(cidr, int(hit[-1])) + 1)
        return None

    def may_have(self, number: int, node: Node) -> bool:
        """Whether a node may have a further block of a CIDR."""
        pool, named = self.pools.get(number), named_pools(node)
        if pool is None:
            return not named
        is_meant = pool.name in named if named else not pool.asked_only
        return is_meant and not pool.disabled and (pool.nodes is None or pool.nodes.matches(node.labels))

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


def named_pools(node: Node) -> tuple[str, ...]:
    return tuple(word.strip() for word in node.annotations.get(POOLS, "").split(",") if word.strip())


def give_blocks(
    cidrs: tuple[ClusterCIDR, ...],
    records: tuple[BlockRecord, ...],
    nodes: Mapping[str, Node],
    reports: Mapping[str, NodeReport],
    service_cidrs: Iterable[IPNetwork],
    now: float,
    pools: Iterable[PodPool] | None = None,
    vips: Iterable[IPNetwork] = (),
) -> Blocks:
    """Of the CIDRs, and behind them of the pools; None = these are not asked. Without either nothing is given, and
    nothing is forgotten. The last pool that is deleted takes nothing away.

    No block has an address of `service_cidrs`, and none of a pool one of `vips`.
    """
    of_pools = [(pool, cidr) for pool in sorted(pools or (), key=lambda each: each.name) for cidr in pool.cidrs]
    if not cidrs and pools is None:
        return Blocks(records)
    numbered = {number: pool for number, (pool, _) in enumerate(of_pools, len(cidrs))}
    all_cidrs = (*cidrs, *(cidr for _, cidr in of_pools))
    reserved = (network for pool, _ in of_pools for network in pool.reserved)
    turn = _Turn(all_cidrs, now, numbered, tuple(service_cidrs), (*reserved, *vips))
    for each in (_at(each, nodes, now) for each in records):
        if _is_kept(each, now):
            turn.add(each)
    for _, node in sorted(nodes.items()):
        _adopt(turn, node)
    turn.refusals.extend(_stranded(turn))
    for name, node in sorted(nodes.items()):
        _serve(turn, node, reports.get(name))
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


def _overlapping(cidr: ClusterCIDR, networks: Iterable[IPNetwork]) -> Iterator[IPNetwork]:
    return (each for each in networks if each.version == cidr.network.version and each.overlaps(cidr.network))


def _is_within(block: IPNetwork, cidr: ClusterCIDR) -> bool:
    is_smaller = cidr.network.version == block.version and cidr.network.prefixlen <= block.prefixlen
    return is_smaller and cidr.network.overlaps(block)


def _stranded(turn: _Turn) -> Iterator[Refusal]:
    """Of nodes whose blocks an edit has left outside: pods have their addresses, so they stay."""
    left: dict[str, list[str]] = {}
    for each in turn.records.values():
        if each.state == "used" and not any(_is_within(each.block, cidr) for cidr in turn.cidrs):
            left.setdefault(each.node, []).append(str(each.block))
    for node, blocks in sorted(left.items()):
        message = (
            f"{', '.join(blocks)} of it lies in no CIDR any more: it keeps them; restore the CIDR, or replace the node"
        )
        yield Refusal(Node(node).ref, "PodCIDRsStranded", message)


def _serve(turn: _Turn, node: Node, report: NodeReport | None) -> None:
    may_have = [number for number in range(len(turn.cidrs)) if turn.may_have(number, node)]
    turn.refusals.extend(_unknown_pools(turn, node))
    for pool in named_pools(node):
        of_pool = [number for number in may_have if turn.pools[number].name == pool]
        for version in (4, 6):
            _begin(turn, node.name, [number for number in of_pool if turn.cidrs[number].network.version == version])
    for version in sorted({turn.cidrs[number].network.version for number in may_have}):
        numbers = [number for number in may_have if turn.cidrs[number].network.version == version]
        while _needs(usable := _usable(turn, turn.of(node.name, version), numbers), report):
            block = _next_free(turn, numbers)
            if block is None:
                turn.refusals.append(_short(turn, node, numbers, len(usable)))
                break
            turn.add(BlockRecord(block, node.name, since=turn.now))


def _usable(turn: _Turn, blocks: Iterable[IPNetwork], numbers: Collection[int]) -> list[IPNetwork]:
    """Without those of CIDRs that a node may have no more of, and those with what is reserved: agents give nothing of
    such. What lies in no CIDR any more is given as before.
    """
    found = []
    for block in blocks:
        of = [number for number, cidr in enumerate(turn.cidrs) if _is_within(block, cidr)]
        if not of or any(number in numbers and not _is_reserved(turn, block, number) for number in of):
            found.append(block)
    return found


def _is_reserved(turn: _Turn, block: IPNetwork, number: int) -> bool:
    pool = turn.pools.get(number)
    return pool is not None and any(each.version == block.version and each.overlaps(block) for each in pool.reserved)


def _begin(turn: _Turn, node: str, numbers: list[int]) -> None:
    """One block of each pool that a node names, of each family that the pool has."""
    mine = [block for version in (4, 6) for block in turn.of(node, version)]
    if not any(_is_within(block, turn.cidrs[number]) for block in mine for number in numbers):
        block = _next_free(turn, numbers)
        if block is not None:
            turn.add(BlockRecord(block, node, since=turn.now))


def _unknown_pools(turn: _Turn, node: Node) -> Iterator[Refusal]:
    known = {pool.name for pool in turn.pools.values()}
    for name in named_pools(node):
        if name not in known:
            message = f"annotation {POOLS} names {name}, and no pool of pods is called so"
            yield Refusal(node.ref, "UnknownPodPool", message)


def _short(turn: _Turn, node: Node, numbers: list[int], count: int) -> Refusal:
    cidrs = ", ".join(str(turn.cidrs[number].network) for number in numbers)
    reason, has = ("PodCIDRsShort", f"it has {count}") if count else ("PodCIDRsExhausted", "its pods get no address")
    where = "the pool" if any(number in turn.pools for number in numbers) else "pod-cidrs"
    return Refusal(node.ref, reason, f"no block of {cidrs} is free for it, {has}: add a CIDR to {where}")


def _needs(blocks: list[IPNetwork], report: NodeReport | None) -> bool:
    """Whether a node needs one more: needed = in use + waiting + spare, rounded up to the spare."""
    if not blocks:
        return True
    if report is None or report.pods is None:
        return False
    needed = min(report.pods.with_address + report.pods.waiting, MOST_PODS) + SPARE
    room = sum(max(block.num_addresses - LEFT_OUT, 0) for block in blocks)
    return room < -(-needed // SPARE) * SPARE


def _next_free(turn: _Turn, numbers: Iterable[int]) -> IPNetwork | None:
    """In the order of the CIDRs."""
    return next((block for number in numbers if (block := turn.free_block(number)) is not None), None)


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
