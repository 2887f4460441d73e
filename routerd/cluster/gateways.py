"""Which nodes are the gateways of an egress IP, in which order: rendezvous hashing. Pure.

Every candidate has a score for every egress IP, and the best ones are the gateways, best first. So the choice depends
on the set of candidates only, egress IPs spread evenly over nodes, and a node that comes or goes moves nothing between
the others (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).

Who is a candidate (labels, readiness, who holds the address) is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

MAX_GATEWAYS = 16  # of one egress IP, in order of preference: what a node has room for


def choose(egress_ip: str, candidates: Iterable[str], limit: int = MAX_GATEWAYS) -> tuple[str, ...]:
    """The gateways of `egress_ip` among `candidates` (node names), the preferred first."""
    return tuple(sorted(set(candidates), key=lambda node: (-score(egress_ip, node), node))[:limit])


def score(egress_ip: str, node: str) -> int:
    """How much `node` is preferred for `egress_ip`: the same on every machine and in every release."""
    return int.from_bytes(blake2b(f"{egress_ip} {node}".encode(), digest_size=8).digest(), "big")
