"""Routes of this node to pods of others: which prefixes, and by whose addresses; what of its aggregates is to have a
blackhole. Pure.

Whether a node is on a link with this one, and whether a prefix is somebody else's already, only the kernel knows: see
`fib.plan`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from heapq import nsmallest
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from fib.blackholes import AHEAD
from fib.plan import Desired
from fib.spans import Spans, around
from routerd.model import AddressPool, IPAddress, IPNetwork, Node, Refusal


def direct_routes(
    nodes: Mapping[str, Node], here: Node, pools: Mapping[str, AddressPool]
) -> tuple[Desired, tuple[Refusal, ...]]:
    """To the pod CIDRs of other nodes, each by its node's addresses of that family. What is this node's own, a pool's
    or two nodes' is left out.
    """
    owners: defaultdict[IPNetwork, list[Node]] = defaultdict(list)
    for node in nodes.values():
        for block in node.pod_cidrs if node.name != here.name else ():
            owners[block].append(node)
    ours = _ours(here, pools)
    spans = Spans(ours)
    reasons = {block: _reason(owners[block], spans.overlap(block), ours) for block in owners}
    refused = (f"no route to {block} of node {owners[block][0].name}: {why}" for block, why in reasons.items() if why)
    routes = {block: _addresses(owners[block][0], block.version) for block, why in reasons.items() if not why}
    return Desired({b: found for b, found in routes.items() if found}), tuple(_refusal(here, text) for text in refused)


def learnt_routes(
    told: Mapping[IPNetwork, tuple[IPAddress, ...]],
    networks: Sequence[IPNetwork],
    here: Node,
    nodes: Mapping[str, Node],
    pools: Mapping[str, AddressPool],
    peers: frozenset[IPAddress],
) -> tuple[dict[IPNetwork, tuple[IPAddress, ...]], tuple[Refusal, ...]]:
    """Of what BGP peers told: what lies in `networks` and is nobody's, by next hops of its family that are neither this
    node nor its pods. It is told what is left out because it is somebody's: but for this node's own, which peers may
    well reflect.
    """
    ours = _hosts(nodes, peers) | _ours(here, pools)
    spans = Spans(ours)
    usable_of = cache(partial(_usable, here))
    found: dict[IPNetwork, tuple[IPAddress, ...]] = {}
    refused: dict[IPNetwork, IPNetwork] = {}
    for prefix, next_hops in told.items():
        usable = usable_of(prefix.version, next_hops)
        if not usable or not _is_within(prefix, networks):
            continue
        other = spans.overlap(prefix)
        if other is not None and prefix not in here.pod_cidrs:
            refused[prefix] = other
        elif other is None:
            found[prefix] = usable
    return found, tuple(_left_out(refused, ours, here))


def parts_of(
    aggregates: frozenset[IPNetwork], pools: Mapping[str, AddressPool]
) -> dict[IPNetwork, tuple[IPNetwork, ...]]:
    """Of each aggregate what pools announce addresses of: of a range it may be more than that."""
    blocks = [block for pool in pools.values() if pool.protocol == "bgp" for block in pool.blocks]
    held, lengths = Spans(blocks), {each.prefixlen for each in aggregates}
    inside: defaultdict[IPNetwork, list[IPNetwork]] = defaultdict(list)
    for block in blocks:
        for whole in around(block, lengths):
            inside[whole].append(block)
    return {whole: (whole,) if held.holding(whole) is not None else tuple(inside[whole]) for whole in aggregates}


def spared_by(
    aggregates: frozenset[IPNetwork], hosts: Iterable[IPAddress], networks: Iterable[IPNetwork]
) -> frozenset[IPNetwork]:
    """Those of them that lie in aggregates, as prefixes."""
    spans = Spans(aggregates)
    return frozenset(each for each in (*map(_host, hosts), *networks) if spans.holding(each) is not None)


def _usable(here: Node, version: int, next_hops: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    """() = one is link-local, of which nobody knows the link."""
    found = (each for each in next_hops if each.version == version and each not in here.addresses)
    usable = tuple(each for each in found if not any(each in block for block in here.pod_cidrs))
    return () if any(each.is_link_local for each in usable) else usable


def _left_out(refused: Mapping[IPNetwork, IPNetwork], ours: Mapping[IPNetwork, str], here: Node) -> Iterator[Refusal]:
    """One line, however many peers announce."""
    first = nsmallest(AHEAD, refused, key=lambda prefix: (prefix.version, prefix))
    texts = [f"{prefix} overlaps with {refused[prefix]}, {ours[refused[prefix]]}" for prefix in first]
    texts += [f"{len(refused) - AHEAD} more"] if len(refused) > AHEAD else []
    if refused:
        yield _refusal(here, f"no route to {len(refused)} prefixes that BGP peers announce: {'; '.join(texts)}")


def _is_within(prefix: IPNetwork, networks: Sequence[IPNetwork]) -> bool:
    there = (each for each in networks if each.version == prefix.version and each.prefixlen <= prefix.prefixlen)
    return any(prefix.network_address in each for each in there)


def _ours(here: Node, pools: Mapping[str, AddressPool]) -> dict[IPNetwork, str]:
    """To which no route leads elsewhere."""
    own = dict.fromkeys(here.pod_cidrs, "this node's own")
    return own | {block: f"of pool {pool.name}" for pool in pools.values() for block in pool.blocks}


def _hosts(nodes: Mapping[str, Node], peers: frozenset[IPAddress]) -> dict[IPNetwork, str]:
    """To which packets go as they did: whoever announces them would get what is sent to gateways and peers."""
    of_peers = {_host(address): "a BGP peer" for address in peers}
    return of_peers | {_host(address): f"node {node.name}" for node in nodes.values() for address in node.addresses}


def _host(address: IPAddress) -> IPNetwork:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _addresses(node: Node, version: int) -> tuple[IPAddress, ...]:
    return tuple(address for address in node.addresses if address.version == version)


def _reason(owners: Sequence[Node], other: IPNetwork | None, ours: Mapping[IPNetwork, str]) -> str:
    """Why a block that overlaps with `other` gets none; "" = it may have one."""
    if len(owners) > 1:
        return f"node {owners[1].name} has it, too: give one of them another"
    return f"it overlaps with {other}, {ours[other]}" if other is not None else ""


def _refusal(here: Node, message: str) -> Refusal:
    return Refusal(here.ref, "RouteTaken", message)
