"""A port set is tried before it is used: which sets no gateway has echoed yet, and the packets that try them. Pure.

`bpf/trial.h` sends such a packet, the gateway returns it, and the programs mark the set as good by that gateway: a bit
of `block.echoed`, by the gateway's place in its group. So these bits are the programs' own, in entries of which all
else is ours: an entry that is written anew keeps those of blocks and gateways that stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack

from bpf import layout
from egress.entries import MapEntries
from egress.policy import IPAddress

ETHERTYPES = {4: 0x0800, 6: 0x86DD}
MACS = bytes.fromhex("02726f757401") + bytes.fromhex("02726f757402")  # nobody's: no device takes what bears them
UDP, UDP_HEADER = 17, 8


@dataclass(frozen=True, slots=True)
class Trial:
    """A block of ports that a gateway has not echoed."""

    group: int
    egress_ip: IPAddress
    port: int  # the block's first
    gateway: int  # number of its node


def untried(groups: MapEntries) -> list[Trial]:
    """In all groups, each block by each gateway; those that were asked back too, as flows live there."""
    return [trial for key, value in groups.items() for trial in _untried(layout.number(key), value)]


def _untried(number: int, value: bytes) -> Iterator[Trial]:
    group = layout.decode(layout.GroupValue, value)
    gateways = [gateway.node for gateway in group.gateways[: group.gateway_count]]
    everyone = (1 << len(gateways)) - 1
    for block in group.blocks[: group.block_count]:
        if block.echoed & everyone != everyone:
            address = layout.ip_of(block.egress_ip)
            lacking = (node for place, node in enumerate(gateways) if not block.echoed >> place & 1)
            yield from (Trial(number, address, block.first, node) for node in lacking)


def with_echoes(wanted: MapEntries, present: MapEntries) -> MapEntries:
    """Entries of `groups` to write where `present` is: with what was echoed there already."""
    return {key: _with_echoes(value, present[key]) if key in present else value for key, value in wanted.items()}


def _with_echoes(wanted: bytes, present: bytes) -> bytes:
    group, before = layout.decode(layout.GroupValue, wanted), layout.decode(layout.GroupValue, present)
    places = {gateway.node: place for place, gateway in enumerate(group.gateways[: group.gateway_count])}
    moved = [places.get(gateway.node) for gateway in before.gateways[: before.gateway_count]]
    echoed = {
        (bytes(block.egress_ip), block.first, block.shift): sum(
            1 << place for old, place in enumerate(moved) if place is not None and block.echoed >> old & 1
        )
        for block in before.blocks[: before.block_count]
    }
    for block in group.blocks[: group.block_count]:
        block.echoed |= echoed.get((bytes(block.egress_ip), block.first, block.shift), 0)
    return bytes(group)


def frame(trial: Trial, token: int) -> bytes:
    """The Ethernet frame that `send_trial` sends: UDP from the egress IP and a port of the set to the egress IP.

    It is for programs alone, so UDP has no checksum in either family (RFC 768; IPv6 asks for one of packets to hosts).
    """
    carried = bytes(layout.Trial(layout.TRIAL_REQUEST, gateway=trial.gateway, group=trial.group, token=token))
    udp = pack("!HHHH", trial.port, layout.TRIAL_PORT, UDP_HEADER + len(carried), 0) + carried
    address = trial.egress_ip.packed
    if trial.egress_ip.version == 6:
        ip = pack("!IHBB", 6 << 28, len(udp), UDP, layout.TRIAL_TTL) + address + address
    else:
        head = pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, layout.TRIAL_TTL, UDP, 0) + address + address
        ip = head[:10] + pack("!H", _checksum(head)) + head[12:]
    return MACS + pack("!H", ETHERTYPES[trial.egress_ip.version]) + ip + udp


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
