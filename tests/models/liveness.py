"""A model of which gateway a flow has, and of what becomes of a probe (bpf/probe.h). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import unpack

from bpf import layout
from egress.policy import IPAddress
from tests.models.tables import UDP, Carried, FlowKey, GroupHere, Hop, Packet, PortBlock, Tables, longest

WORD = 0xFFFFFFFF


class Rank(IntEnum):
    """From the best to the worst."""

    SERVES = 0
    LEAVES = 1
    SILENT = 2
    UNTRIED = 4  # with each of these: it has not echoed the port set


@dataclass(frozen=True, slots=True)
class Choice:
    """A flow's gateway, and the way to it. `settled`: there is none before it that may be good again."""

    node: int
    direct: bool = False
    settled: bool = True

    @property
    def way(self) -> int:
        return self.node | (layout.WAY_DIRECT if self.direct else 0)


def rank_of(tables: Tables, way: int) -> Rank:
    if tables.node_numbers.get(way, (None, False))[1]:
        return Rank.LEAVES if tables.out_of_service else Rank.SERVES
    return Rank(tables.ranks.get(way, Rank.SERVES)) if tables.multiplier else Rank.SERVES


def echoed_by(group: GroupHere, blocks: Iterable[PortBlock]) -> frozenset[int]:
    """Ways to gateways by which any of the blocks was echoed."""
    bits = {bit for block in blocks for bit in block.echoed}
    return frozenset(
        hop.node | (layout.WAY_DIRECT if bit else 0)
        for place, hop in enumerate(group.gateways)
        for bit in (0, layout.ECHOED_DIRECT)
        if place + bit in bits
    )


def flow_hash(key: FlowKey) -> int:
    ends = layout.ip_field(key.pod), layout.ip_field(key.remote)
    words = unpack("=11I", bytes(layout.FlowKey(*ends, key.ifindex, key.pod_port, key.remote_port, key.protocol)))
    found = 0
    for word in words:
        found = (found ^ word) * 0x9E3779B1 & WORD
        found ^= found >> 15
    return found


def mix(value: int) -> int:
    """MurmurHash3's last step."""
    value = (value ^ value >> 16) * 0x85EBCA6B & WORD
    value = (value ^ value >> 13) * 0xC2B2AE35 & WORD
    return value ^ value >> 16


def preference(found: int, number: int) -> int:
    return mix(found ^ number * 0x9E3779B1 & WORD)


def pick(tables: Tables, group: GroupHere, key: FlowKey, echoed: Collection[int], kept: int = 0) -> Choice | None:
    """The flow's gateway: `kept` while none is better, else the one that the flow prefers of the best. `echoed`: the
    ways by which its port set was.
    """
    version = key.pod.version

    def rank(way: int) -> int:
        return rank_of(tables, way) + (0 if way in echoed else Rank.UNTRIED)

    def ways(hop: Hop) -> list[int]:
        if tables.node_numbers.get(hop.node, (None, False))[1]:
            return [hop.node]
        link = [hop.node | layout.WAY_DIRECT] if (hop.node, version) in tables.on_link else []
        return [*link, *([hop.node] if tables.tunnels else [])]

    def merit(hop: Hop) -> tuple[int, int, bool, int]:
        return -min(map(rank, ways(hop))), -hop.order, hop.node == kept, preference(flow_hash(key), hop.node)

    best = max((hop for hop in group.gateways if hop.up and ways(hop)), key=merit, default=None)
    if best is None:
        return None
    way = min(ways(best), key=rank)  # the first of those that are alike
    link = best.node | layout.WAY_DIRECT
    stands_in = way != link and link in ways(best) and link in echoed
    return Choice(best.node, way != best.node, not best.order and not stands_in)


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a probe: the counter that goes up, and what is sent back."""

    reason: str
    reply: Packet | None = None


BAD = Answer("bad_probe")


def judge(tables: Tables, tokens: Mapping[int, Collection[int]], endpoint: IPAddress, packet: Packet) -> Answer:
    """A packet that came out of the tunnel as a probe. `tokens`: of the probes to each node that wait for an answer."""
    carried = packet.carries
    if carried is None or not carried.token or not _is_whole(packet):
        return BAD
    if carried.kind == layout.PROBE_REPLY:
        return Answer("probe_heard") if carried.token in tokens.get(tables.nodes[endpoint], ()) else BAD
    if carried.kind != layout.PROBE_REQUEST or packet.destination != endpoint:
        return BAD
    ways = [longest(tables.routes, address) for address in tables.ways_out]
    route = 0 if all(way in tables.uplinks for way in ways) else layout.SERVICE_NO_ROUTE
    told = Carried(layout.PROBE_REPLY, carried.token, tables.out_of_service | route)
    return Answer("probe_reflected", replace(packet, carries=told))


def _is_whole(packet: Packet) -> bool:
    length = (28 if packet.version == 4 else 48) + 16
    is_udp = packet.kind == "flow" and packet.protocol == UDP and packet.destination_port == layout.PROBE_PORT
    plain = not packet.options and not packet.first and packet.ttl == layout.PROBE_TTL and packet.length == length
    return is_udp and plain and packet.source == packet.destination
