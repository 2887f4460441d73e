"""Netlink, as far as reading devices, addresses, routes and connections fast asks for: requests, dumps, attributes.

pyroute2 decodes every attribute of every message into objects, about a millisecond a device: too slow for a node with
hundreds of pods that is read back in every round; and it takes 2 ms for each route that it adds. It stays in use where
little is changed. Numbers are those of <linux/netlink.h>.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  # length, type
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
RECEIVE = 1 << 18
DUMP_TRIES = 8
AT_ONCE = 200  # changes in one send: if all are refused, their answers still fit into the socket's buffer

Attributes = dict[int, bytes]


class DumpInterrupted(OSError):
    """What was dumped kept changing: what was read may lack something."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes, start: int = 0) -> Attributes:
    """Attributes from `start` on, by number; values without padding."""
    found: Attributes = {}
    while start + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[start + ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3
    return found


class NetlinkSocket:
    """One netlink socket, used by one thread. `protocol` as NETLINK_ROUTE."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._sequence = 0

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Bodies of all answers, read without an interruption. OSError with the kernel's errno when it is refused."""
        for _ in range(DUMP_TRIES):
            interrupted, found = self._dump_once(kind, body)
            if not interrupted:
                return found
        raise DumpInterrupted("the kernel's tables change faster than they can be read")

    def get(self, kind: int, body: bytes) -> bytes:
        """Body of the one answer."""
        self._send(kind, 0, body)
        return next(answer for _, answer in self._answers())

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """A change, acknowledged. OSError with the kernel's errno when it is refused."""
        self._send(kind, flags | NLM_F_ACK, body)
        for _ in self._answers():
            pass

    def request_all(self, kind: int, flags: int, bodies: Sequence[bytes]) -> dict[int, int]:
        """Many changes, many in one system call. Errno of those that the kernel refuses, by their place."""
        refused: dict[int, int] = {}
        for start in range(0, len(bodies), AT_ONCE):
            refused |= {
                start + place: code for place, code in self._request_some(kind, flags, bodies[start:][:AT_ONCE])
            }
        return refused

    def _request_some(self, kind: int, flags: int, bodies: Sequence[bytes]) -> Iterator[tuple[int, int]]:
        """The last is acknowledged, and so is what is refused."""
        first, self._sequence = self._sequence + 1, self._sequence + len(bodies)
        asked = [NLM_F_REQUEST | flags] * (len(bodies) - 1) + [NLM_F_REQUEST | NLM_F_ACK | flags]
        self._socket.send(
            b"".join(
                HEADER.pack(HEADER.size + len(body), kind, flag, number, 0) + body
                for number, (flag, body) in enumerate(zip(asked, bodies, strict=True), first)
            )
        )
        done = False
        while not done:
            for answered, sequence, code in _outcomes(self._socket.recv(RECEIVE)):
                if answered == NLMSG_ERROR and first <= sequence <= self._sequence:
                    if code < 0:
                        yield sequence - first, -code
                    done |= sequence == self._sequence

    def _dump_once(self, kind: int, body: bytes) -> tuple[bool, list[bytes]]:
        self._send(kind, NLM_F_DUMP, body)
        found, interrupted = [], False
        for flags, answer in self._answers():
            interrupted |= bool(flags & NLM_F_DUMP_INTR)
            found.append(answer)
        return interrupted or self._last_flags & NLM_F_DUMP_INTR != 0, found

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = HEADER.size + len(body)
        self._socket.send(HEADER.pack(length, kind, NLM_F_REQUEST | flags, self._sequence, 0) + body)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """(flags, body) until the last; answers to an earlier request that was given up are passed over."""
        self._last_flags = 0
        while True:
            data = self._socket.recv(RECEIVE)
            start = 0
            while start + HEADER.size <= len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
                body = data[start + HEADER.size : start + length]
                start += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    self._last_flags = flags
                    _raise(struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0)
                    return
                yield flags, body


def _outcomes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, sequence, code) of each answer; 0 = it is done."""
    start = 0
    while start + HEADER.size <= len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, start)
        is_long = length >= HEADER.size + 4
        yield kind, sequence, struct.unpack_from("=i", data, start + HEADER.size)[0] if is_long else 0
        start += (length + 3) & ~3


def _raise(code: int) -> None:
    if code < 0:
        raise OSError(-code, os.strerror(-code))
