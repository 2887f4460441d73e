"""Watches links with packet sockets and counts packets that bear a source they must not bear. Writes a pcap too.

What is judged: packets whose destination lies outside the cluster. Tunnel packets between nodes, traffic between pods
and what stays on a link have a destination inside, so they do not count. `lost` tells how many packets the kernel
could not hand over; a verdict is worth something only while it is 0.
"""

from __future__ import annotations

import ipaddress
import math
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.netns.lab.netns import Namespace
from tests.netns.lab.tap import ON_LINK, Tap
from tests.waiting import wait

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
TIME = struct.Struct("ll")  # seconds and nanoseconds of the clock, as SO_TIMESTAMPNS gives them
SNAP = 192  # bytes kept per packet in the pcap
Networks = dict[int, list[tuple[int, int]]]  # version -> address and mask, as numbers


@dataclass(slots=True)
class Verdict:
    """What has been seen so far, all links together (a routed packet is seen once per link it crosses)."""

    packets: int = 0
    outside: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, destination), destination outside
    leaks: Counter[tuple[str, str]] = field(default_factory=Counter)  # the same, with a source that must not show
    lost: int = 0


def _networks(texts: Iterable[str]) -> Networks:
    found: Networks = {4: [], 6: []}
    for network in map(ipaddress.ip_network, texts):
        found[network.version].append((int(network.network_address), int(network.netmask)))
    return found


def _ends(frame: bytes) -> tuple[int, int, int] | None:
    """Version, source and destination of an IP packet, as numbers; None for anything else."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ETH_P_IP and len(frame) >= 34:
        return 4, *struct.unpack_from("!II", frame, 26)
    if kind == ETH_P_IPV6 and len(frame) >= 54:
        return 6, int.from_bytes(frame[22:38], "big"), int.from_bytes(frame[38:54], "big")
    return None


def _text(version: int, address: int) -> str:
    return str(ipaddress.IPv4Address(address) if version == 4 else ipaddress.IPv6Address(address))


class SourceWatch:
    """A thread that reads every packet of `devices` in `namespace` until `close`.

    A packet to a destination outside `cluster` (CIDRs) is a leak if its source is in `forbid()`ed addresses; or if
    its destination is in `guarded` (CIDRs) and its source, being neither there nor `allow()`ed, is unaccounted for.
    """

    def __init__(
        self,
        namespace: Namespace,
        devices: list[str],
        *,
        cluster: Sequence[str],
        guarded: Sequence[str],
        pcap: Path,
        tap: Tap,
    ) -> None:
        self._cluster, self._guarded = _networks([*cluster, *ON_LINK]), _networks(guarded)
        self._forbidden: dict[int, tuple[float, float]] = {}  # since when and until when, by the clock
        self._allowed: frozenset[int] = frozenset()
        self.verdict = Verdict()
        self._tap, self._told = tap, set[str]()  # addresses that the tap forbids because of this watch
        self.pcap = pcap
        self._file = pcap.open("wb")
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP, 1))
        self._selector = selectors.DefaultSelector()
        self._sockets = [self._open(namespace, device) for device in devices]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, namespace: Namespace, device: str) -> socket.socket:
        packets = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: nothing arrives before bind
        packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        packets.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        packets.bind((device, ETH_P_ALL))
        packets.setblocking(False)
        self._selector.register(packets, selectors.EVENT_READ)
        return packets

    def forbid(self, *addresses: str) -> None:
        """From now on these sources must not show outside: pods that a policy selects."""
        now = time.time()
        self._tap.forbid(*{*addresses} - self._told)
        self._told |= {*addresses}
        self._forbidden |= {int(ipaddress.ip_address(address)): (now, math.inf) for address in addresses}

    def pardon(self, *addresses: str) -> None:
        """Takes back `forbid`: no policy selects these any more."""
        now = time.time()
        self._tap.pardon(*{*addresses} & self._told)
        self._told -= {*addresses}
        for address in (int(ipaddress.ip_address(each)) for each in addresses):
            self._forbidden[address] = self._forbidden.get(address, (now, now))[0], now

    def allow(self, *addresses: str) -> None:
        """These sources may show at a guarded destination: egress IPs, and pods that no policy selects."""
        self._allowed |= {int(ipaddress.ip_address(address)) for address in addresses}

    def settle(self) -> Verdict:
        """The verdict once everything that has been captured so far has been read."""
        seen = -1
        while seen != self.verdict.packets:
            seen = self.verdict.packets
            wait(lambda: not self._pending(), "the capture catches up")
            time.sleep(0.01)
        self._count_lost()
        return self.verdict

    def close(self) -> Verdict:
        """Reads what is left, stops, and returns the final verdict."""
        if not self._closing.is_set():
            self.settle()
            self._tap.pardon(*self._told)
            self._closing.set()
            self._thread.join()
            self._selector.close()
            for packets in self._sockets:
                packets.close()
            self._file.close()
        return self.verdict

    def _pending(self) -> bool:
        return bool(self._selector.select(0))

    def _count_lost(self) -> None:
        for packets in self._sockets:
            self.verdict.lost += struct.unpack("II", packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]

    def _read(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(0.1):
                self._drain(key.fileobj)  # type: ignore[arg-type]

    def _drain(self, packets: socket.socket) -> None:
        try:
            for _ in range(256):
                frame, said, _, _ = packets.recvmsg(65535, socket.CMSG_SPACE(TIME.size))
                self._take(frame, _time_of(said))
        except (BlockingIOError, OSError):
            return  # read empty, or the link went down with its namespace

    def _take(self, frame: bytes, at: float) -> None:
        kept = frame[:SNAP]
        self._file.write(struct.pack("<IIII", int(at), int(at % 1 * 1e6), len(kept), len(frame)) + kept)
        self._judge(frame, at)
        self.verdict.packets += 1

    def _judge(self, frame: bytes, at: float) -> None:
        ends = _ends(frame)
        if ends is None:
            return
        version, source, destination = ends
        if _within(destination, self._cluster[version]):
            return
        pair = _text(version, source), _text(version, destination)
        self.verdict.outside[pair] += 1
        guarded = self._guarded[version]
        unaccounted = _within(destination, guarded) and not _within(source, guarded) and source not in self._allowed
        since, until = self._forbidden.get(source, (math.inf, 0.0))
        if since <= at <= until or unaccounted:
            self.verdict.leaks[pair] += 1


def _time_of(said: list[tuple[int, int, bytes]]) -> float:
    """When the kernel saw the packet: a reader on a busy machine sees it later, when other sources are forbidden."""
    seconds, nanoseconds = TIME.unpack(said[0][2])
    return float(seconds + nanoseconds / 1e9)


def _within(address: int, networks: list[tuple[int, int]]) -> bool:
    return any(address & mask == network for network, mask in networks)
