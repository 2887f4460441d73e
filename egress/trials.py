"""A port set is tried before it is used: which sets no gateway has echoed yet, and the packets that try them. Pure.

`bpf/trial.h` sends such a packet, the gateway returns it, and the programs mark the set as good by that gateway: a bit
of `block.echoed`, by the gateway's place in its group. So these bits are the programs' own, in entries of which all
else is ours: an entry that is written anew keeps those of blocks and gateways that stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from struct import pack
from typing import NamedTuple

from bpf import layout
from egress.entries import MapEntries
from egress.policy import VERSIONS, IPAddress

ETHERTYPES = {4: 0x0800, 6: 0x86DD}
MACS = bytes.fromhex("02726f757401") + bytes.fromhex("02726f757402")  # nobody's: no device takes what bears them
UDP, UDP_HEADER = 17, 8


class Lacking(NamedTuple):
    """How many trials have not come back: of sets that are good by no way to the gateway, and of all."""

    needed: int
    total: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A block of ports that a gateway has not echoed."""

    group: int
    egress_ip: IPAddress
    port: int  # the block's first
    gateway: int  # number of its node
    direct: bool = False  # without the tunnel
    spare: bool = False  # the gateway has echoed the block by the other way


def untried(groups: MapEntries, on_link: Collection[tuple[int, int]] = (), *, tunnels: bool = True) -> list[Trial]:
    """In all groups, each block by each gateway and way to it; those that were asked back too, as flows live there.

    `on_link`: see below. `tunnels`: whether packets go through the tunnel at all.
    """
    trials = (
        trial
        for key, value in groups.items()
        for trial in _not_echoed(layout.number(key), layout.decode(layout.GroupValue, value))
    )
    return [each for each in trials if _is_reached(each, on_link, tunnels=tunnels)]


def on_link(nodes: MapEntries) -> frozenset[tuple[int, int]]:
    """Numbers of nodes in entries of `node_numbers`, each with the IP versions of packets that need no tunnel to it."""
    decoded = ((layout.number(key), layout.decode(layout.NodeValue, value)) for key, value in nodes.items())
    return frozenset(
        (number, version)
        for number, node in decoded
        if node.direct
        for version in VERSIONS
        if any(node.link_local) or version == layout.ip_of(node.address).version == 4
    )


def filtered(trials: Iterable[Trial]) -> frozenset[int]:
    """Ways by the link that keep back what comes through the tunnel: whoever filters sources there lets probes pass."""
    return frozenset(each.gateway | layout.WAY_DIRECT for each in trials if each.direct and each.spare)


def _is_reached(trial: Trial, on_link: Collection[tuple[int, int]], *, tunnels: bool) -> bool:
    return (trial.gateway, trial.egress_ip.version) in on_link if trial.direct else tunnels


def _not_echoed(number: int, group: layout.GroupValue) -> Iterator[Trial]:
    gateways = [gateway.node for gateway in group.gateways[: group.gateway_count]]
    for block in group.blocks[: group.block_count]:
        address = layout.ip_of(block.egress_ip)
        for place, node in enumerate(gateways):
            for direct, bit in ((False, place), (True, place + layout.ECHOED_DIRECT)):
                if not block.echoed >> bit & 1:
                    spare = block.echoed >> (place if direct else place + layout.ECHOED_DIRECT) & 1
                    yield Trial(number, address, block.first, node, direct, bool(spare))


def with_echoes(wanted: MapEntries, present: MapEntries) -> MapEntries:
    """Entries of `groups` to write where `present` is: with what was echoed there already."""
    return {key: _with_echoes(value, present[key]) if key in present else value for key, value in wanted.items()}


def _with_echoes(wanted: bytes, present: bytes) -> bytes:
    group, before = layout.decode(layout.GroupValue, wanted), layout.decode(layout.GroupValue, present)
    places = {gateway.node: place for place, gateway in enumerate(group.gateways[: group.gateway_count])}
    moved = [places.get(gateway.node) for gateway in before.gateways[: before.gateway_count]]
    kept = [
        (old + way, place + way)
        for way in (0, layout.ECHOED_DIRECT)
        for old, place in enumerate(moved)
        if place is not None
    ]
    echoed = {
        (bytes(block.egress_ip), block.first, block.shift): sum(
            1 << new for old, new in kept if block.echoed >> old & 1
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
    carried = bytes(
        layout.Trial(layout.TRIAL_REQUEST, int(trial.direct), trial.gateway, group=trial.group, token=token)
    )
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
