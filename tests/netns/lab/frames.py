"""Raw frames: sent by a device of a namespace, and read as they come in by one."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tests.netns.lab.netns import Namespace, entered

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
PACKET_OUTGOING = 4


def mac_of(host: Namespace, device: str) -> bytes:
    """The MAC address of a device."""
    [link] = json.loads(host.run(["ip", "-j", "link", "show", device]))
    return bytes.fromhex(link["address"].replace(":", ""))


def inject(host: Namespace, device: str, frame: bytes) -> None:
    """Sends one Ethernet frame by a device, as it is."""
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        with entered(host.name):
            sender.bind((device, 0))
        sender.send(frame)


class Arrivals:
    """Frames that come in by a device, from now on; what the namespace itself sends by it is not among them."""

    def __init__(self, host: Namespace, device: str) -> None:
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: nothing arrives before bind
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        with entered(host.name):
            self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def read(self, patience: float = 0.05) -> Iterator[bytes]:
        """What has come since the last look; waits for up to `patience` seconds if that is nothing."""
        select.select([self._socket], [], [], patience)
        while True:
            try:
                frame, address = self._socket.recvfrom(65535)
            except BlockingIOError:
                return
            if address[2] != PACKET_OUTGOING:
                yield frame
