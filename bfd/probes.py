"""Probes of gateways: unaffiliated BFD echo (RFC 9747), put on a tunnel device. What is sent when; pure, told the time.

A frame says in its destination MAC which node it is for; a program on the device gives it its tunnel key, notes its
token and takes the answer (bpf/probe.h). So this process never hears of answers: who is dead is decided in the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from bfd.wheel import Wheel
from bpf import layout

IPAddress = IPv4Address | IPv6Address
SPREAD = 0.1  # of the interval, by which one is sent earlier: nodes that begin together do not stay so
LATE = 2  # intervals: who sends later than that has stood still
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
UDP = 17
SOURCE_MAC = b"\x02rd\0\0\0"


@dataclass(frozen=True, slots=True)
class Probing:
    """What is wanted: by which device, from which of our tunnel endpoints, each how many microseconds, to which nodes:
    `gateways` through the tunnel, `direct` without it.

    Nodes are numbers. Without any, nothing is sent and no socket is open.
    """

    device: str
    local: IPAddress
    interval: int
    gateways: frozenset[int] = frozenset()
    direct: frozenset[int] = frozenset()

    @property
    def ways(self) -> frozenset[int]:
        """As the programs number them."""
        return self.gateways | {number | layout.WAY_DIRECT for number in self.direct}


@dataclass(frozen=True, slots=True)
class Stall:
    """How often the process stood still, and for how long in all, in seconds: meanwhile nobody could be found dead."""

    times: int = 0
    seconds: float = 0.0


class Prober:
    """Not thread-safe: one loop."""

    def __init__(self, chance: Callable[[], float], token: Callable[[], int]) -> None:
        """`chance`: from 0 up to 1. `token`: 64 bits that nobody guesses, 0 aside."""
        self._chance, self._token = chance, token
        self._wheel: Wheel[int] = Wheel()
        self._due: dict[int, float] = {}
        self.probing: Probing | None = None
        self.stall = Stall()

    def order(self, probing: Probing, now: float) -> None:
        """From now on these and no others. Who is new is probed within an interval, and so are all by another one."""
        is_same = self.probing is not None and self.probing.interval == probing.interval
        self.probing = probing
        for way in self._due.keys() - probing.ways:
            self._wheel.drop(way)
            del self._due[way]
        for way in probing.ways - (self._due.keys() if is_same else set()):
            self._put(way, now + self._chance() * probing.interval / 1e6)

    def _put(self, way: int, due: float) -> None:
        self._due[way] = due
        self._wheel.put(way, due)

    def advance(self, now: float) -> Iterator[bytes]:
        """The frames that are due. What was missed is not made up for: it would be answered no better."""
        if self.probing is None:
            return
        interval = self.probing.interval / 1e6
        latest = 0.0
        for way in list(self._wheel.take(now)):
            latest = max(latest, now - self._due[way])
            self._put(way, now + interval * (1 - SPREAD * self._chance()))
            yield frame(self.probing.local, way, self._token())
        if latest > LATE * interval:
            self.stall = Stall(self.stall.times + 1, self.stall.seconds + latest)

    @property
    def next_due(self) -> float:
        """No later than the next frame."""
        return self._wheel.next


def frame(local: IPAddress, way: int, token: int) -> bytes:
    """A probe by this way to a node, as the tunnel device gets it: Ethernet, IP from `local` to itself, UDP.

    UDP has no checksum in either family, as programs alone judge it. An IPv4 header has one.
    """
    carried = bytes(layout.Probe(layout.PROBE_REQUEST, token=token))
    size = 8 + len(carried)
    udp = struct.pack("!HHHH", layout.PROBE_PORT, layout.PROBE_PORT, size, 0) + carried
    mark, number = layout.DIRECT_PROBE_MAC if way & layout.WAY_DIRECT else layout.PROBE_MAC, way % layout.NODE_NUMBERS
    ethernet = struct.pack("!IH6sH", mark, number, SOURCE_MAC, ETHERTYPES[local.version])
    return ethernet + _ip_header(local, size) + udp


def _ip_header(local: IPAddress, size: int) -> bytes:
    if local.version == 6:
        return struct.pack("!IHBB", 6 << 28, size, UDP, layout.PROBE_TTL) + local.packed * 2
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, layout.PROBE_TTL, UDP, 0) + local.packed * 2
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:]


def _checksum(header: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)
