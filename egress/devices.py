"""Reads the node's devices, addresses and routes by rtnetlink; changes the ones that are ours. Decides nothing.

Which device a pod hangs on is read from the kernel, not from the CNI: a veth or netkit whose peer is in another network
namespace has that namespace's id (IFLA_LINK_NETNSID), and addresses and links of a namespace can be dumped by its id
(IFA_TARGET_NETNSID, IFLA_TARGET_NETNSID; Linux 4.20) without entering it. A namespace to which nothing leads has an id
here if a device was moved into it, or gets one by the file that a runtime keeps it by (RTM_NEWNSID; Linux 4.0).

pyroute2 encodes changes; reading uses `netlink.wire`, as every round reads all of it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from egress.host.links import Link, Namespace
from egress.policy import TUNNEL_DEVICE, IPAddress, IPNetwork
from netlink.wire import Attributes, NetlinkSocket, attribute, attributes

ROUTE_PROTOCOL = 203  # rtm_protocol of what is ours; free in iproute2's rt_protos
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
IFF_UP, IFF_LOWER_UP = 1, 1 << 16
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 1, 0x10, 0x100
ADDRESSES = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 1 << 6
NFT_TABLE = b"routerd\0"
SETTLE = 0.05  # seconds: a pod's device comes with several events

# <linux/if_link.h>, <linux/if_addr.h>, <linux/rtnetlink.h>
IFINFO, IFADDR, ROUTE, NEXT_HOP = (struct.Struct(form) for form in ("=BxHiII", "=BBBBI", "=BBBBBBBBI", "=HBBi"))
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_EXT_MASK, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID, IFLA_PARENT_DEV_NAME = 29, 37, 46, 56
RTEXT_FILTER_SKIP_STATS = 1 << 3
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_VXLAN_PORT, IFLA_VXLAN_COLLECT_METADATA = 15, 25
IFA_ADDRESS, IFA_LOCAL, IFA_TARGET_NETNSID = 1, 2, 10
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS = 1, 4, 5, 6, 8
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
RTAX_MTU = 2
RTN_UNICAST, RTN_BLACKHOLE = 1, 6
TABLE_MAIN = 254

HOST_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
EVERYTHING = {socket.AF_INET: ip_network("0.0.0.0/0"), socket.AF_INET6: ip_network("::/0")}

# <linux/net_namespace.h>; struct rtgenmsg, padded
NSID, SIGNED = struct.Struct("=B3x"), struct.Struct("=i")
RTM_NEWNSID, RTM_GETNSID = 88, 90
NETNSA_NSID, NETNSA_FD = 1, 3
NOT_ASSIGNED = -1
KEPT_NAMESPACES = (Path("/run/netns"), Path("/run/docker/netns"))
PCI_DEVICES = Path("/sys/bus/pci/devices")

# <linux/xfrm.h>; struct xfrmu_spdinfo begins with the policies in, out and forwarded
NETLINK_XFRM, XFRM_MSG_GETSPDINFO, XFRMA_SPD_INFO = 6, 0x25, 1

# A namespace or a device that goes while it is read.
GONE = (errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Routes:
    """What is read of the main tables. `hosts`: device of each unicast route to one address."""

    defaults: frozenset[int]  # devices of the default routes of IPv4, the tunnels' family
    hosts: Mapping[IPAddress, int]
    blackholes: frozenset[IPAddress]  # ours
    with_mtu: frozenset[int]  # devices of IPv4 routes that have an MTU of their own
    widest: Mapping[tuple[int, int], IPNetwork]  # (IP version, device) -> of what is reached beyond it, the widest


def _number(values: Attributes, kind: int) -> int:
    return int.from_bytes(values.get(kind, b""), "little" if struct.pack("=H", 1)[0] else "big")


def _text(values: Attributes, kind: int) -> str:
    return values.get(kind, b"").rstrip(b"\0").decode(errors="backslashreplace")


def _link(body: bytes) -> Link:
    _, kind_of_frames, ifindex, flags, _ = IFINFO.unpack_from(body)
    values = attributes(body, IFINFO.size)
    info = attributes(values.get(IFLA_LINKINFO, b""))
    kind = _text(info, IFLA_INFO_KIND)
    vxlan = attributes(info.get(IFLA_INFO_DATA, b"")) if kind == "vxlan" else {}
    return Link(
        ifindex=ifindex,
        name=_text(values, IFLA_IFNAME),
        kind=kind,
        mac=values.get(IFLA_ADDRESS, b"").ljust(6, b"\0")[:6],
        mtu=_number(values, IFLA_MTU),
        up=bool(flags & IFF_UP),
        master=_number(values, IFLA_MASTER),
        peer=_number(values, IFLA_LINK),
        namespace=_number(values, IFLA_LINK_NETNSID) if IFLA_LINK_NETNSID in values else None,
        vxlan_port=int.from_bytes(vxlan.get(IFLA_VXLAN_PORT, b""), "big"),
        vxlan_external=bool(vxlan.get(IFLA_VXLAN_COLLECT_METADATA, b"\0")[0]),
        carrier=bool(flags & IFF_LOWER_UP),
        is_ethernet=kind_of_frames == ARPHRD_ETHER,
        is_loopback=kind_of_frames == ARPHRD_LOOPBACK,
        is_virtual_function=_is_virtual_function(_text(values, IFLA_PARENT_DEV_NAME)),
    )


def _is_virtual_function(parent: str) -> bool:
    """Of SR-IOV. `parent`: the device's address on its bus (Linux 5.14), the same in every namespace."""
    return bool(parent) and (PCI_DEVICES / parent / "physfn").exists()


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


def read_links(route: NetlinkSocket, namespace: int | None = None) -> dict[int, Link]:
    """Devices by ifindex, of this namespace or of that with the id `namespace`."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_EXT_MASK, _u32(RTEXT_FILTER_SKIP_STATS))
    if namespace is not None:
        body += attribute(IFLA_TARGET_NETNSID, _u32(namespace))
    links = (_link(answer) for answer in route.dump(RTM_GETLINK, body))
    return {link.ifindex: link for link in links}


def read_addresses(route: NetlinkSocket, namespace: int | None = None) -> list[tuple[int, IPAddress]]:
    """(ifindex, address) of both families; of this namespace or of that with the id `namespace`."""
    body = IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    if namespace is not None:
        body += attribute(IFA_TARGET_NETNSID, _u32(namespace))
    found = []
    for answer in route.dump(RTM_GETADDR, body):
        values = attributes(answer, IFADDR.size)
        address = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
        if address:
            found.append((IFADDR.unpack_from(answer)[4], ip_address(address)))
    return found


FLEETING = 0x01 | 0x08 | 0x20 | 0x40  # IFA_F_TEMPORARY (of IPv4: SECONDARY), DADFAILED, DEPRECATED, TENTATIVE


def read_lasting_first(route: NetlinkSocket, ifindex: int) -> list[IPAddress]:
    """Addresses of a device, those behind the others that go by themselves or may not be used yet."""
    found: list[tuple[bool, IPAddress]] = []
    for answer in route.dump(RTM_GETADDR, IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, flags, _, index = IFADDR.unpack_from(answer)
        values = attributes(answer, IFADDR.size)
        if index == ifindex and (address := values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)):
            found.append((bool(flags & FLEETING), ip_address(address)))
    return [address for _, address in sorted(found, key=lambda each: each[0])]


def read_networks(route: NetlinkSocket) -> dict[int, frozenset[IPNetwork]]:
    """Networks that this namespace's interfaces are in, by ifindex. An address with a prefix of its own alone is in
    none.
    """
    found: dict[int, set[IPNetwork]] = defaultdict(set)
    for answer in route.dump(RTM_GETADDR, IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, length, _, _, ifindex = IFADDR.unpack_from(answer)
        address = attributes(answer, IFADDR.size).get(IFA_ADDRESS)
        if address and length < HOST_BITS[family]:
            network = ip_network((address, length), strict=False)
            if not (network.is_loopback or network.is_link_local):
                found[ifindex].add(network)
    return {ifindex: frozenset(networks) for ifindex, networks in found.items()}


class NextHop(NamedTuple):
    """Of a default route of IP `version`. Its address may be of the other one, or in no network of a device."""

    address: IPAddress
    ifindex: int
    metric: int
    version: int


def read_next_hops(route: NetlinkSocket) -> frozenset[NextHop]:
    """Of the default routes of the main tables."""
    found: set[NextHop] = set()
    for answer in (*_dump_routes(route, socket.AF_INET), *_dump_routes(route, socket.AF_INET6)):
        family, length, *_ = ROUTE.unpack_from(answer)
        if length == 0:
            values, version = attributes(answer, ROUTE.size), 4 if family == socket.AF_INET else 6
            hops = [(_number(values, RTA_OIF), values), *_hops(values.get(RTA_MULTIPATH, b""))]
            metric = _number(values, RTA_PRIORITY)
            found |= {NextHop(each, device, metric, version) for device, hop in hops for each in _gateway(hop)}
    return frozenset(found)


def _gateway(values: Attributes) -> Iterator[IPAddress]:
    """RTA_VIA is a gateway of the other family: struct rtvia, two bytes of family before the address."""
    address = values.get(RTA_GATEWAY) or values.get(RTA_VIA, b"")[2:]
    if address:
        yield ip_address(address)


def read_namespaces(route: NetlinkSocket, ids: Iterable[int]) -> list[Namespace]:
    """Network namespaces with these ids here, but those that go meanwhile."""
    return [space for space in (_read_namespace(route, each) for each in sorted(set(ids))) if space is not None]


def _read_namespace(route: NetlinkSocket, namespace: int) -> Namespace | None:
    try:
        addresses = tuple(read_addresses(route, namespace))
        return Namespace(namespace, read_links(route, namespace), addresses)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def other_namespaces(route: NetlinkSocket) -> frozenset[int]:
    """Ids of the network namespaces that have one here, and those of the files by which runtimes keep their pods'; an
    id is the kernel's own, and goes with its namespace. To look at every process would tell of a few more, for much.
    """
    known = (attributes(answer, NSID.size) for answer in route.dump(RTM_GETNSID, NSID.pack(socket.AF_UNSPEC)))
    there = (path for place in KEPT_NAMESPACES if place.is_dir() for path in sorted(place.iterdir()))
    kept = {_id_of(route, path) for path in there if path.is_file()}
    ids = {_signed(values[NETNSA_NSID]) for values in known} | kept
    return frozenset(ids - {NOT_ASSIGNED})


def _id_of(route: NetlinkSocket, path: Path) -> int:
    """Here, of the namespace that `path` keeps; one that has none gets one. NOT_ASSIGNED if it keeps none."""
    try:
        with path.open("rb") as file:
            about = NSID.pack(socket.AF_UNSPEC) + attribute(NETNSA_FD, _u32(file.fileno()))
            found = _asked_id(route, about)
            if found == NOT_ASSIGNED:
                route.request(RTM_NEWNSID, 0, about + attribute(NETNSA_NSID, SIGNED.pack(NOT_ASSIGNED)))
                found = _asked_id(route, about)
            return found
    except OSError as error:
        if error.errno in GONE:
            return NOT_ASSIGNED
        raise


def _asked_id(route: NetlinkSocket, about: bytes) -> int:
    return _signed(attributes(route.get(RTM_GETNSID, about), NSID.size)[NETNSA_NSID])


def _signed(value: bytes) -> int:
    number: int = SIGNED.unpack(value)[0]
    return number


def read_routes(route: NetlinkSocket) -> Routes:
    """Of the main tables, what this room needs."""
    defaults: set[int] = set()
    hosts: dict[IPAddress, int] = {}
    blackholes: set[IPAddress] = set()
    with_mtu: set[int] = set()
    widest: dict[tuple[int, int], IPNetwork] = {}
    for answer in (*_dump_routes(route, socket.AF_INET), *_dump_routes(route, socket.AF_INET6)):
        family, length, _, _, _, protocol, _, kind, _ = ROUTE.unpack_from(answer)
        values = attributes(answer, ROUTE.size)
        if family == socket.AF_INET and RTAX_MTU in attributes(values.get(RTA_METRICS, b"")):
            with_mtu |= _devices(values)
        if length not in (0, HOST_BITS[family]):
            if kind == RTN_UNICAST:
                _note_widest(widest, length, values)
            continue
        if length == 0 and kind == RTN_UNICAST:
            for device in _devices(values):
                widest[4 if family == socket.AF_INET else 6, device] = EVERYTHING[family]
        if length == 0 and kind == RTN_UNICAST and family == socket.AF_INET:
            defaults |= _devices(values)
        elif length and kind == RTN_UNICAST and RTA_OIF in values:
            hosts[ip_address(values[RTA_DST])] = _number(values, RTA_OIF)
        elif length and kind == RTN_BLACKHOLE and protocol == ROUTE_PROTOCOL:
            blackholes.add(ip_address(values[RTA_DST]))
    return Routes(frozenset(defaults - {0}), hosts, frozenset(blackholes), frozenset(with_mtu), widest)


def _devices(values: Attributes) -> set[int]:
    """By which a route leads; 0 with those of several next hops."""
    return {_number(values, RTA_OIF), *(device for device, _ in _hops(values.get(RTA_MULTIPATH, b"")))}


def _note_widest(widest: dict[tuple[int, int], IPNetwork], length: int, values: Attributes) -> None:
    """Only of what lies behind a next hop: the device's own network is no way out."""
    if RTA_OIF not in values or not {RTA_GATEWAY, RTA_VIA} & values.keys():
        return
    address = ip_address(values[RTA_DST])
    key = address.version, _number(values, RTA_OIF)
    if key not in widest or widest[key].prefixlen > length:
        widest[key] = ip_network((address, length))


def _dump_routes(route: NetlinkSocket, family: int) -> list[bytes]:
    body = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_TABLE, _u32(TABLE_MAIN))
    try:
        return route.dump(RTM_GETROUTE, body)
    except FileNotFoundError:  # a namespace that never had a route has no such table
        return []


def _hops(data: bytes) -> list[tuple[int, Attributes]]:
    """Devices of a multipath route, each with the attributes of its hop."""
    found, start = [], 0
    while start + NEXT_HOP.size <= len(data):
        length, _, _, ifindex = NEXT_HOP.unpack_from(data, start)
        found.append((ifindex, attributes(data[start : start + length], NEXT_HOP.size)))
        start += max((length + 3) & ~3, NEXT_HOP.size)
    return found


def has_ipsec() -> bool:
    """Whether this namespace has an IPsec policy: what its stack sends and takes may be encrypted by it. So it is taken
    for one that has some where the kernel does not say.
    """
    try:
        with NetlinkSocket(NETLINK_XFRM) as xfrm:
            counts = attributes(xfrm.get(XFRM_MSG_GETSPDINFO, _u32(0)), len(_u32(0))).get(XFRMA_SPD_INFO, b"")
    except OSError as error:
        return error.errno != errno.EPROTONOSUPPORT  # a kernel without
    return any(struct.unpack_from("=3I", counts))


# --- what is ours


def _change(route: NetlinkSocket, message: Any, kind: int, flags: int = 0) -> None:
    """Sends a message that pyroute2 encodes."""
    message["header"]["type"] = kind
    message.encode()
    route.request(kind, flags, bytes(message.data)[16:])


def _blackhole(address: IPAddress) -> Any:
    message = rtmsg()
    message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
    message["dst_len"], message["table"] = address.max_prefixlen, TABLE_MAIN
    message["proto"], message["type"] = ROUTE_PROTOCOL, RTN_BLACKHOLE
    message["attrs"] = [("RTA_DST", str(address))]
    return message


def add_blackhole(route: NetlinkSocket, address: IPAddress) -> None:
    with suppress(FileExistsError):
        _change(route, _blackhole(address), RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)


def delete_blackhole(route: NetlinkSocket, address: IPAddress) -> None:
    with suppress(ProcessLookupError):  # ESRCH: no such route
        _change(route, _blackhole(address), RTM_DELROUTE)


def create_tunnel(route: NetlinkSocket, port: int, mtu: int) -> None:
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
        ("IFLA_IFNAME", TUNNEL_DEVICE),
        ("IFLA_MTU", mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", data)]}),
    ]
    _change(route, message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    set_forwarding(TUNNEL_DEVICE)


def configure_tunnel(route: NetlinkSocket, ifindex: int, mtu: int) -> None:
    message = ifinfmsg()
    message["index"] = ifindex
    message["flags"] = message["change"] = IFF_UP
    message["attrs"] = [("IFLA_MTU", mtu)]
    _change(route, message, RTM_NEWLINK)
    set_forwarding(TUNNEL_DEVICE)


def delete_link(route: NetlinkSocket, ifindex: int) -> None:
    message = ifinfmsg()
    message["index"] = ifindex
    try:
        _change(route, message, RTM_DELLINK)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


async def watch(on_change: Callable[[], None]) -> None:
    """Calls `on_change` soon after a change of a device, an address or our nft table here, until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(socket.NETLINK_ROUTE, RTMGRP_LINK | ADDRESSES, b"", on_change))
        group.create_task(_watch(NETLINK_NETFILTER, NFNLGRP_NFTABLES, NFT_TABLE, on_change))


async def _watch(protocol: int, groups: int, about: bytes, on_change: Callable[[], None]) -> None:
    """Events that hold `about`; those that come within `SETTLE` are one."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as events:
        events.bind((0, groups))
        events.setblocking(False)
        while True:
            if about in await _next(loop, events):
                on_change()
                await asyncio.sleep(SETTLE)


async def _next(loop: asyncio.AbstractEventLoop, events: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(events, 1 << 16)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return NFT_TABLE  # more events than fit: a change all the same, and one of ours for all we know


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
