"""How packets of this node's pods reach another node, in a word. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from egress.policy import Desired
from egress.status import Probed, TunnelWay
from routerd.model import Allocations


def transport_to(
    name: str,
    egress: Desired | None,
    allocations: Allocations | None,
    probed: Sequence[Probed],
    tunnel_packets: TunnelWay | None = None,
) -> Literal["", "direct", "vxlan", "vxlan-device"]:
    """Nothing to itself, and where nothing goes. What is wanted, but for a link that fails."""
    number = next((each.number for each in allocations.numbers if each.node == name), 0) if allocations else 0
    if egress is None or name == egress.node or number not in egress.nodes:
        return ""
    fails = any(
        each.number == number and each.by == "link" and (each.filtered or each.state == "silent") for each in probed
    )
    if egress.transport != "vxlan" and number in egress.neighbours and not (fails and egress.transport == "auto"):
        return "direct"
    if egress.transport == "direct":
        return ""
    return "vxlan-device" if tunnel_packets == "device" else "vxlan"
