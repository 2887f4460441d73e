"""Which nodes are the gateways of an egress IP, in which order: rendezvous hashing. Pure.

Every candidate has a score for every egress IP, and the best ones are the gateways, best first. So the choice depends
on the set of candidates only, egress IPs spread evenly over nodes, and a node that comes or goes moves nothing between
the others (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).

Who is a candidate (labels, readiness, who holds the address) is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

MAX_GATEWAYS = 4  # announced for one egress IP, in order of preference


@dataclass(frozen=True, slots=True)
class Choice:
    """The gateways of one egress IP. `gateways` are (node, slot) in order of preference."""

    gateways: tuple[tuple[str, int], ...] = ()
    slots: int = 1  # more than any slot: a power of two, never fewer than before
    epoch: int = 0  # grows with every change of `gateways` or `slots`; 0 = none has been published


def choose(egress_ip: str, candidates: Iterable[str], previous: Choice, limit: int = MAX_GATEWAYS) -> Choice:
    """The gateways of `egress_ip` among `candidates` (node names). `previous` is the choice that is in force.

    A node that stays keeps its slot. A node that comes takes the lowest free slot, if possible not one that was given
    up in this very step. Ports do not hang on slots: nodes have those of their port sets.
    """
    nodes = sorted(set(candidates), key=lambda node: (-score(egress_ip, node), node))[:limit]
    slots, kept = _slots(nodes, previous)
    gateways = tuple((node, kept[node]) for node in nodes)
    if previous.epoch and (gateways, slots) == (previous.gateways, previous.slots):
        return previous
    return Choice(gateways, slots, previous.epoch + 1)


def score(egress_ip: str, node: str) -> int:
    """How much `node` is preferred for `egress_ip`: the same on every machine and in every release."""
    return int.from_bytes(blake2b(f"{egress_ip} {node}".encode(), digest_size=8).digest(), "big")


def _slots(nodes: Sequence[str], previous: Choice) -> tuple[int, dict[str, int]]:
    """The number of slots, and the slot of each node."""
    before = dict(previous.gateways)
    slots = max(previous.slots, 1 << max(len(nodes) - 1, 0).bit_length())
    assigned = {node: before[node] for node in nodes if node in before}
    vacated = set(before.values()) - set(assigned.values())
    free = sorted(set(range(slots)) - set(assigned.values()), key=lambda slot: (slot in vacated, slot))
    newcomers = [node for node in nodes if node not in assigned]
    return slots, assigned | dict(zip(newcomers, free, strict=False))
