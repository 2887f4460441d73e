"""How the datapath treats IP fragments: later ones follow their first. Pure."""

from __future__ import annotations

from dataclasses import replace

from bpf import layout
from tests.models.tables import Change, Flow, Fragment, Packet, State, Tables


def followed(state: State, packet: Packet, ifindex: int) -> Packet:
    """A later fragment with what its first one says, if that has passed."""
    first = state.fragments.get(packet.of_datagram(ifindex)) if packet.kind == "fragment" else None
    if first is None:
        return packet
    if packet.position < first.length:
        return replace(packet, kind="bad-fragment")
    return replace(
        packet, kind="flow", source_port=first.source_port, destination_port=first.destination_port,
        protocol=first.protocol, said_protocol=packet.protocol, sent_id=first.sent_id, handed_in=first.handed_in,
    )  # fmt: skip


def remember(packet: Packet, ifindex: int, sent_id: int, handed_in: bool = False) -> tuple[Change, ...]:
    ports = packet.source_port, packet.destination_port
    value = Fragment(*ports, packet.protocol, packet.in_datagram, sent_id, handed_in)
    return (Change("fragments", packet.of_datagram(ifindex), value),) if packet.first else ()


def on_wire(packet: Packet) -> Packet:
    """A later fragment bears no ports."""
    if packet.position:
        return replace(
            packet, kind="fragment", source_port=0, destination_port=0, protocol=packet.said_protocol, said_protocol=0,
            sent_id=0, handed_in=False,
        )  # fmt: skip
    return replace(packet, sent_id=0)


def owner_of_id(packet: Packet) -> int:
    """The number in a fragment's id that is of a port set."""
    return packet.id >> 16 if packet.version == 6 else packet.id


def fresh_id(tables: Tables, packet: Packet, flow: Flow) -> int:
    """Any of the block that the flow's port is in: the one that the programs drew, if it is one."""
    blocks = tables.groups[flow.group].blocks if flow.group in tables.groups else ()
    holding = [
        range(block.first, block.first + block.size)
        for block in blocks
        if block.egress_ip == flow.egress_ip and block.first <= flow.egress_port < block.first + block.size
    ]
    granule = flow.egress_port // layout.GRANULE * layout.GRANULE
    ids = holding[0] if holding else range(granule, granule + layout.GRANULE)
    drawn = owner_of_id(replace(packet, id=packet.sent_id))
    return packet.sent_id if drawn in ids else ids[0]
