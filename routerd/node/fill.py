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
    "the pod has nearly its share of the node's flows or ports, and what it wants beyond is dropped: if it is meant to,"
    " raise egress.flows-per-pod and egress.ports-per-pod"
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
