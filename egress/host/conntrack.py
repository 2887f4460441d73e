"""Reads from the kernel's connection tracking which connections a pod has. Changes nothing."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from egress.policy import IPAddress
from netlink.wire import Attributes, NetlinkSocket, attribute, attributes

# <linux/netfilter/nfnetlink_conntrack.h>
NETLINK_NETFILTER = 12
CT_GET = 1 << 8 | 1
NFGEN = struct.Struct("=BBH")
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 1, 2
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS, FILTER_IP_SRC = 25, 1, 2, 1 << 0  # Linux 5.8
NLA_F_NESTED = 1 << 15
COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")  # of the calling thread's network namespace
WALK = 250  # entries that are sent and read in the time in which the kernel walks through its table, 262,144 buckets
NO_TRACKING = (errno.EINVAL, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Connection:
    """As the pod's packets bear it, on their way into the host: before what the kernel translates of its own, and with
    what it gives back of answers.
    """

    pod: IPAddress
    remote: IPAddress
    pod_port: int
    remote_port: int
    protocol: int
    by_pod: bool  # whether the pod began it


def running(pods: Collection[IPAddress]) -> tuple[Connection, ...]:
    """TCP, UDP and SCTP connections of `pods`, whoever began them; () where the kernel tracks none."""
    try:
        tracked = int(COUNT.read_text())
        with NetlinkSocket(NETLINK_NETFILTER) as tracking:
            entries = [entry for body in _questions(pods, tracked) for entry in tracking.dump(CT_GET, body)]
    except OSError as error:
        if error.errno in NO_TRACKING:
            return ()
        raise
    return tuple(_of_pods(entries, frozenset(pod.packed for pod in pods)))


def _questions(pods: Collection[IPAddress], tracked: int) -> Iterator[bytes]:
    """Bodies of dumps. Each is a walk through the kernel's table: so all connections are asked for, unless there are so
    many that it takes longer than two walks for each IPv4 pod, for what it sent and for what it was sent.

    IPv6 pods cannot be asked for: ctnetlink_filter_match_tuple compares their addresses the wrong way round (seen with
    6.18).
    """
    fours = [pod for pod in pods if pod.version == 4]
    if tracked <= 2 * len(fours) * WALK or not fours:
        if tracked and pods:
            yield NFGEN.pack(socket.AF_UNSPEC if fours else socket.AF_INET6, 0, 0)
        return
    for pod in fours:
        source = attribute(CTA_TUPLE_IP | NLA_F_NESTED, attribute(CTA_IP_V4_SRC, pod.packed))
        for way, flags in ((CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS), (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS)):
            wanted = attribute(CTA_FILTER | NLA_F_NESTED, attribute(flags, struct.pack("=I", FILTER_IP_SRC)))
            yield NFGEN.pack(socket.AF_INET, 0, 0) + attribute(way | NLA_F_NESTED, source) + wanted
    if len(fours) < len(pods):
        yield NFGEN.pack(socket.AF_INET6, 0, 0)


def _of_pods(entries: Iterable[bytes], pods: frozenset[bytes]) -> Iterator[Connection]:
    for entry in entries:
        values = attributes(entry, NFGEN.size)
        for way in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            connection = _sent_by(pods, attributes(values.get(way, b"")), way == CTA_TUPLE_ORIG)
            if connection is not None:
                yield connection


def _sent_by(pods: frozenset[bytes], way: Attributes, is_original: bool) -> Connection | None:
    ip = attributes(way.get(CTA_TUPLE_IP, b""))
    source, remote = (_either(ip, *kinds) for kinds in ((CTA_IP_V4_SRC, CTA_IP_V6_SRC), (CTA_IP_V4_DST, CTA_IP_V6_DST)))
    if source not in pods:
        return None
    proto = attributes(way.get(CTA_TUPLE_PROTO, b""))
    number = proto[CTA_PROTO_NUM][0]
    if number not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP):
        return None
    pod_port, remote_port = (int.from_bytes(proto[kind], "big") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    return Connection(ip_address(source), ip_address(remote), pod_port, remote_port, number, is_original)


def _either(attributes_of_ip: Mapping[int, bytes], *kinds: int) -> bytes:
    """The address that is there, of whichever family."""
    return next((attributes_of_ip[kind] for kind in kinds if kind in attributes_of_ip), b"")
