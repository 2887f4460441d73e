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
    ours = dict.fromkeys(here.pod_cidrs, "this node's own")
    ours |= {block: f"of pool {pool.name}" for pool in pools.values() for block in pool.blocks}
    reasons = {block: _reason(block, owners[block], ours) for block in owners}
    refused = (f"no route to {block} of node {owners[block][0].name}: {why}" for block, why in reasons.items() if why)
    routes = {block: _addresses(owners[block][0], block.version) for block, why in reasons.items() if not why}
    return Desired({b: found for b, found in routes.items() if found}), tuple(_refusal(here, text) for text in refused)


def _addresses(node: Node, version: int) -> tuple[IPAddress, ...]:
    return tuple(address for address in node.addresses if address.version == version)


def _reason(block: IPNetwork, owners: Sequence[Node], ours: Mapping[IPNetwork, str]) -> str:
    """Why it gets none; "" = it may have one."""
    if len(owners) > 1:
        return f"node {owners[1].name} has it, too: give one of them another"
    other = next((each for each in ours if each.version == block.version and each.overlaps(block)), None)
    return f"it overlaps with {other}, {ours[other]}" if other is not None else ""


def _refusal(here: Node, message: str) -> Refusal:
    return Refusal(here.ref, "RouteTaken", message)
