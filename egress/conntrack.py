"""Reads from the kernel's connection tracking which connections a pod has that it did not begin. Changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket


@dataclass(frozen=True, slots=True)
class Inbound:
    """A connection begun by `remote`, as the pod's answers bear it (after the kernel's own translation)."""

    pod: IPv4Address
    remote: IPv4Address
    pod_port: int
    remote_port: int
    protocol: int


def inbound(pods: frozenset[IPv4Address]) -> tuple[Inbound, ...]:
    """TCP and UDP connections to `pods`; () where the kernel tracks none. Not for an asyncio thread."""
    found: list[Inbound] = []
    with suppress(NetlinkError):  # connection tracking is not in this kernel
        sock = NFCTSocket()
        try:
            found = [row for answer in sock.dump() for row in _inbound(answer) if row.pod in pods]
        finally:
            sock.close()
    return tuple(found)


def _inbound(answer: Any) -> Iterator[Inbound]:
    if answer["nfgen_family"] != socket.AF_INET:
        return
    reply = answer.get_attr("CTA_TUPLE_REPLY")
    ip, proto = reply.get_attr("CTA_TUPLE_IP"), reply.get_attr("CTA_TUPLE_PROTO")
    number = proto.get_attr("CTA_PROTO_NUM")
    if number in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        yield Inbound(
            IPv4Address(ip.get_attr("CTA_IP_V4_SRC")),
            IPv4Address(ip.get_attr("CTA_IP_V4_DST")),
            proto.get_attr("CTA_PROTO_SRC_PORT"),
            proto.get_attr("CTA_PROTO_DST_PORT"),
            number,
        )
