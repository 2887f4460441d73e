"""Routes of this node to pods of others: which prefixes, and by whose addresses. Pure.

Whether a node is on a link with this one, and whether a prefix is somebody else's already, only the kernel knows: see
`fib.plan`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from fib.plan import Desired
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
    reasons = {block: _reason(block, owners[block], ours) for block in owners}
    refused = (f"no route to {block} of node {owners[block][0].name}: {why}" for block, why in reasons.items() if why)
    routes = {block: _addresses(owners[block][0], block.version) for block, why in reasons.items() if not why}
    return Desired({b: found for b, found in routes.items() if found}), tuple(_refusal(here, text) for text in refused)


def learnt_routes(
    told: Mapping[IPNetwork, tuple[IPAddress, ...]],
    networks: Sequence[IPNetwork],
    here: Node,
    pools: Mapping[str, AddressPool],
) -> tuple[dict[IPNetwork, tuple[IPAddress, ...]], tuple[Refusal, ...]]:
    """Of what BGP peers told: what lies in `networks` and is nobody's, by next hops of its family that are not this
    node. It is told what is left out because it is somebody's: but for this node's own, which peers may well reflect.
    """
    ours, own = _ours(here, pools), {*here.addresses}
    found: dict[IPNetwork, tuple[IPAddress, ...]] = {}
    refused = []
    for prefix, next_hops in told.items():
        usable = tuple(each for each in next_hops if each.version == prefix.version and each not in own)
        if not usable or any(each.is_link_local for each in usable) or not _is_within(prefix, networks):
            continue
        reason = _overlap(prefix, ours)
        if not reason:
            found[prefix] = usable
        elif prefix not in here.pod_cidrs:
            refused.append(_refusal(here, f"no route to {prefix}, which BGP peers announce: {reason}"))
    return found, tuple(refused)


def _is_within(prefix: IPNetwork, networks: Sequence[IPNetwork]) -> bool:
    there = (each for each in networks if each.version == prefix.version and each.prefixlen <= prefix.prefixlen)
    return any(prefix.network_address in each for each in there)


def _ours(here: Node, pools: Mapping[str, AddressPool]) -> dict[IPNetwork, str]:
    """To which no route leads elsewhere."""
    own = dict.fromkeys(here.pod_cidrs, "this node's own")
    return own | {block: f"of pool {pool.name}" for pool in pools.values() for block in pool.blocks}


def _addresses(node: Node, version: int) -> tuple[IPAddress, ...]:
    return tuple(address for address in node.addresses if address.version == version)


def _reason(block: IPNetwork, owners: Sequence[Node], ours: Mapping[IPNetwork, str]) -> str:
    """Why it gets none; "" = it may have one."""
    if len(owners) > 1:
        return f"node {owners[1].name} has it, too: give one of them another"
    return _overlap(block, ours)


def _overlap(block: IPNetwork, ours: Mapping[IPNetwork, str]) -> str:
    other = next((each for each in ours if each.version == block.version and each.overlaps(block)), None)
    return f"it overlaps with {other}, {ours[other]}" if other is not None else ""


def _refusal(here: Node, message: str) -> Refusal:
    return Refusal(here.ref, "RouteTaken", message)
