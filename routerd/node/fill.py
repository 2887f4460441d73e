"""What an agent says of tables that fill, of ports that grow scarce, of pods that want more than their share. Pure.

Messages bear no numbers that change: each change would be a write to the node's object.
"""

from __future__ import annotations

from collections.abc import Iterator

from egress.status import EgressStatus
from routerd.model import Refusal
from routerd.refs import EGRESS, NODE, Ref

ALARM = 0.75  # of a table
TABLES = {
    "flows": "connections of the node's pods: a full table drops new ones; raise egress.nat-entries",
    "ports": "ports in use and at rest: a full table drops new connections; raise egress.nat-entries",
    "granules": "64s of ports whose use is counted: those beyond are not given back; spread egress IPs over more nodes",
}
PORTS_SCARCE = (
    "searches for a free port grow long: the node asks for more of them; if this stays, give a second address"
)
POD_NEAR_SHARE = (
    "the pod, or who connects to it, has nearly the pod's share of the node's tables, and what goes beyond is dropped:"
    " if so much is meant, raise egress.flows-per-pod and egress.ports-per-pod, or egress.nat-entries for what comes in"
)


def fill_refusals(node: str, egress: EgressStatus) -> Iterator[Refusal]:
    for table, room in egress.room.items():
        if egress.entries[table] >= ALARM * room:
            yield Refusal(Ref(NODE, name=node), "TableNearlyFull", f"three quarters of {room:,} {TABLES[table]}")
    for name in sorted(egress.pressed):
        ref = Ref.parse(name)
        if ref.kind == EGRESS:
            yield Refusal(ref, "PortsScarce", PORTS_SCARCE)
        else:
            yield Refusal(ref, "PodNearShare", POD_NEAR_SHARE)
