"""Reads the node's devices, addresses and routes by rtnetlink; changes the ones that are ours. Decides nothing.

Which device a pod hangs on is read from the kernel, not from the CNI: a veth whose peer is in another network namespace
has that namespace's id (IFLA_LINK_NETNSID), and addresses and links of a namespace can be dumped by its id
(IFA_TARGET_NETNSID, IFLA_TARGET_NETNSID; Linux 4.20) without entering it.

pyroute2's classes encode and decode messages. Its IPRoute cannot send such requests and refuses to run inside an
asyncio loop's thread, so reading uses a socket of our own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from egress.entries import PodDevice

TUNNEL = "routerd.vxlan"
ROUTE_PROTOCOL = 203  # rtm_protocol of what is ours; free in iproute2's rt_protos
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
RTN_UNICAST, RTN_BLACKHOLE = 1, 6
TABLE_MAIN = 254
IFF_UP = 1
RTMGRP_LINK, RTMGRP_IPV4_IFADDR = 1, 0x10
ADDRESS_ATTRIBUTE = "IFA_ADDRESS"


class TargetedAddresses(ifaddrmsg):  # type: ignore[misc]
    """pyroute2 0.9 has the type of this attribute wrong."""

    # pyroute2 compiles a class's attributes at its first use, and a subclass inherits the mark that it was done.
    _nlmsg_base__compiled_nla = False
    nla_map = tuple((name, "uint32" if name == "IFA_TARGET_NETNSID" else kind) for name, kind in ifaddrmsg.nla_map)


@dataclass(frozen=True, slots=True)
class Link:
    """A device. `peer` and `namespace` are set for a veth whose other end is in another network namespace."""

    ifindex: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    up: bool
    master: int
    peer: int
    namespace: int | None
    vxlan_port: int
    vxlan_external: bool


class RouteSocket:
    """One rtnetlink socket, used by one thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._marshal = MarshalRtnl()
        self._sequence = 0

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def request(self, message: Any, kind: int, flags: int) -> list[Any]:
        """Sends one request and returns the answers; OSError with the kernel's errno when it is refused."""
        self._sequence += 1
        header = message["header"]
        header["type"], header["flags"], header["pid"] = kind, NLM_F_REQUEST | flags, 0
        header["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(message.data)
        return list(self._answers(more=bool(flags & (NLM_F_DUMP | NLM_F_ACK))))

    def _answers(self, more: bool) -> Iterator[Any]:
        while True:
            for answer in self._marshal.parse(self._socket.recv(1 << 18)):
                kind = answer["header"]["type"]
                if kind == NLMSG_ERROR:
                    _raise(answer["header"]["error"])
                    return
                if kind == NLMSG_DONE:
                    return
                yield answer
            if not more:
                return


def _raise(error: Any) -> None:
    """pyroute2 gives None for an acknowledgement and an exception with the errno as its code for an error."""
    code = int(getattr(error, "code", 0) or 0)
    if code:
        raise OSError(code, os.strerror(code))


def _mac(text: str | None) -> bytes:
    return bytes.fromhex((text or "00:00:00:00:00:00").replace(":", ""))


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    data: Any = info.get_attr("IFLA_INFO_DATA") if info else None
    kind = (info.get_attr("IFLA_INFO_KIND") if info else "") or ""
    is_vxlan = kind == "vxlan" and data is not None
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        mac=_mac(message.get_attr("IFLA_ADDRESS")),
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
        peer=message.get_attr("IFLA_LINK") or 0,
        namespace=message.get_attr("IFLA_LINK_NETNSID"),
        vxlan_port=data.get_attr("IFLA_VXLAN_PORT") or 0 if is_vxlan else 0,
        vxlan_external=bool(data.get_attr("IFLA_VXLAN_COLLECT_METADATA")) if is_vxlan else False,
    )


def read_links(route: RouteSocket, namespace: int | None = None) -> dict[int, Link]:
    """Devices by ifindex, of this namespace or of the one with the id `namespace`."""
    message = ifinfmsg()
    if namespace is not None:
        message["attrs"] = [("IFLA_IF_NETNSID", namespace)]
    links = (_link(answer) for answer in route.request(message, RTM_GETLINK, NLM_F_DUMP))
    return {link.ifindex: link for link in links}


def read_addresses(route: RouteSocket, namespace: int | None = None) -> list[tuple[int, IPv4Address]]:
    """(ifindex, address) of every IPv4 address."""
    message = TargetedAddresses()
    message["family"] = socket.AF_INET
    if namespace is not None:
        message["attrs"] = [("IFA_TARGET_NETNSID", namespace)]
    found = []
    for answer in route.request(message, RTM_GETADDR, NLM_F_DUMP):
        address = ip_address(answer.get_attr("IFA_LOCAL") or answer.get_attr(ADDRESS_ATTRIBUTE))
        if isinstance(address, IPv4Address):
            found.append((answer["index"], address))
    return found


def pod_devices(route: RouteSocket, links: dict[int, Link]) -> dict[IPv4Address, PodDevice]:
    """Addresses behind this node's veths, with their devices. A namespace that goes meanwhile is left out."""
    found: dict[IPv4Address, PodDevice] = {}
    for link in links.values():
        if link.kind != "veth" or link.namespace is None:
            continue
        try:
            inside = read_links(route, link.namespace).get(link.peer)
            addresses = [a for index, a in read_addresses(route, link.namespace) if index == link.peer]
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.EPERM):
                continue
            raise
        if inside is None:
            continue
        master = links.get(link.master)
        seen_as = master.name if master and master.kind == "bridge" else link.name
        device = PodDevice(link.ifindex, link.name, seen_as, inside.mac, link.mac)
        found.update((address, device) for address in addresses if not address.is_loopback)
    return found


def read_routes(route: RouteSocket) -> list[Any]:
    message = rtmsg()
    message["family"] = socket.AF_INET
    answers = route.request(message, RTM_GETROUTE, NLM_F_DUMP)
    return [answer for answer in answers if answer.get_attr("RTA_TABLE") == TABLE_MAIN]


def default_devices(routes: list[Any]) -> set[int]:
    """Devices of the default routes, those of a multipath route included."""
    found: set[int] = set()
    for answer in routes:
        if answer["dst_len"] or answer["type"] != RTN_UNICAST:
            continue
        hops = answer.get_attr("RTA_MULTIPATH") or ()
        found.update(hop["oif"] for hop in hops)
        found.add(answer.get_attr("RTA_OIF") or 0)
    return found - {0}


def own_blackholes(routes: list[Any]) -> frozenset[IPv4Address]:
    return frozenset(
        IPv4Address(answer.get_attr("RTA_DST"))
        for answer in routes
        if answer["proto"] == ROUTE_PROTOCOL and answer["type"] == RTN_BLACKHOLE and answer["dst_len"] == 32
    )


def _blackhole(address: IPv4Address) -> Any:
    message = rtmsg()
    message["family"], message["dst_len"], message["table"] = socket.AF_INET, 32, TABLE_MAIN
    message["proto"], message["type"] = ROUTE_PROTOCOL, RTN_BLACKHOLE
    message["attrs"] = [("RTA_DST", str(address))]
    return message


def add_blackhole(route: RouteSocket, address: IPv4Address) -> None:
    with suppress(FileExistsError):
        route.request(_blackhole(address), RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def delete_blackhole(route: RouteSocket, address: IPv4Address) -> None:
    with suppress(ProcessLookupError):  # ESRCH: no such route
        route.request(_blackhole(address), RTM_DELROUTE, NLM_F_ACK)


def create_tunnel(route: RouteSocket, port: int, mtu: int) -> None:
    """A VXLAN device in external mode: remote address and VNI come with each packet, from the programs."""
    data = {
        "attrs": [
            ("IFLA_VXLAN_COLLECT_METADATA", True),
            ("IFLA_VXLAN_PORT", port),
            ("IFLA_VXLAN_LEARNING", 0),
        ]
    }
    message = ifinfmsg()
    message["flags"] = message["change"] = IFF_UP
    message["attrs"] = [
        ("IFLA_IFNAME", TUNNEL),
        ("IFLA_MTU", mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", data)]}),
    ]
    route.request(message, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
    set_forwarding(TUNNEL)


def configure_tunnel(route: RouteSocket, ifindex: int, mtu: int) -> None:
    message = ifinfmsg()
    message["index"] = ifindex
    message["flags"] = message["change"] = IFF_UP
    message["attrs"] = [("IFLA_MTU", mtu)]
    route.request(message, RTM_NEWLINK, NLM_F_ACK)
    set_forwarding(TUNNEL)


def delete_link(route: RouteSocket, ifindex: int) -> None:
    message = ifinfmsg()
    message["index"] = ifindex
    try:
        route.request(message, RTM_DELLINK, NLM_F_ACK)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


async def watch_links(on_change: Callable[[], None]) -> None:
    """Calls `on_change` after each change of a device or an IPv4 address of this namespace, until cancelled."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as events:
        events.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR))
        events.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.sock_recv(events, 1 << 16)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more events than fit: a change all the same
                    raise
            on_change()


# --- sysctls

_IPV4 = Path("/proc/sys/net/ipv4")


def is_forwarding(device: str) -> bool:
    try:
        return (_IPV4 / "conf" / device / "forwarding").read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        return False


def set_forwarding(device: str) -> None:
    if not is_forwarding(device):
        (_IPV4 / "conf" / device / "forwarding").write_text("1", encoding="ascii")


def ip_forward() -> bool:
    return (_IPV4 / "ip_forward").read_text(encoding="ascii").strip() == "1"


def reserved_ports() -> set[int]:
    """Ports that no connection of the host gets by itself. The kernel prints ranges, merged with their neighbours."""
    text = (_IPV4 / "ip_local_reserved_ports").read_text(encoding="ascii").strip()
    ranges = (part.partition("-") for part in text.split(",") if part)
    return {port for first, _, last in ranges for port in range(int(first), int(last or first) + 1)}


def are_reserved(ports: range) -> bool:
    return reserved_ports().issuperset(ports)


def reserve_ports(ports: range) -> None:
    _write_reserved(reserved_ports() | set(ports))


def release_ports(ports: set[int]) -> None:
    _write_reserved(reserved_ports() - ports)


def _write_reserved(ports: set[int]) -> None:
    """Replaces the list; as ranges, since the kernel takes no more than a page of text."""
    ordered = sorted(ports)
    starts = [port for port in ordered if port - 1 not in ports]
    ends = [port for port in ordered if port + 1 not in ports]
    text = ",".join(f"{first}-{last}" for first, last in zip(starts, ends, strict=True))
    (_IPV4 / "ip_local_reserved_ports").write_text(text or "\n", encoding="ascii")
