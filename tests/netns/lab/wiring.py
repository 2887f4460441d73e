"""How a pod is wired to its node, as text for `ip -batch`: routed (Calico, ptp) or through a bridge (flannel). Pure.

routed: the pod has a /32 and the link-local next hop 169.254.1.1, which a permanent neighbour entry resolves to the
host side's fixed MAC; the node has a /32 route to the host side. bridge: cni0 holds the first address of the node's
pod network, and the pod's veth is a port of it.
"""

from __future__ import annotations

import ipaddress
from typing import Literal

Cni = Literal["routed", "bridge"]
PREFIX6 = 0xFD00 << 112
HOST_MAC = "ee:ee:ee:ee:ee:ee"  # what Calico gives each host side


def six(text: str) -> str:
    """The IPv6 address, network or interface (address/length of a network) in the place of an IPv4 one."""
    address, slash, length = text.partition("/")
    mapped = ipaddress.IPv6Address(PREFIX6 + int(ipaddress.IPv4Address(address)))
    return f"{mapped}{slash}{int(length) + 96 if slash else ''}"


def bridge_address(pod_cidr: str) -> str:
    """The address of cni0."""
    return str(ipaddress.IPv4Network(pod_cidr)[1])


def prepare_node(cni: Cni, pod_cidr: str) -> list[str]:
    """What a node needs once."""
    if cni == "routed":
        return [
            f"route add blackhole {pod_cidr}"
        ]  # as Calico does: an address without a pod must not go back to the ToR
    return [
        "link add cni0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"addr add {bridge_address(pod_cidr)}/{ipaddress.IPv4Network(pod_cidr).prefixlen} dev cni0",
        "link set cni0 up",
    ]


def pod_lines(cni: Cni, device: str, address: str, pod_cidr: str, mtu: int) -> tuple[list[str], list[str]]:
    """Lines for the node and for the pod; the veth exists already, `eth0` in the pod."""
    if cni == "routed":
        outside = [
            f"link set {device} address {HOST_MAC} mtu {mtu} up",
            f"route add {address} dev {device} scope link",
        ]
        inside = [
            f"addr add {address}/32 dev eth0",
            f"link set eth0 mtu {mtu} up",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1",
            f"neigh replace 169.254.1.1 lladdr {HOST_MAC} dev eth0 nud permanent",
        ]
        return outside, inside
    length = ipaddress.IPv4Network(pod_cidr).prefixlen
    outside = [f"link set {device} mtu {mtu} master cni0 up"]
    inside = [
        f"addr add {address}/{length} dev eth0",
        f"link set eth0 mtu {mtu} up",
        f"route add default via {bridge_address(pod_cidr)}",
    ]
    return outside, inside


def pod_sysctls(cni: Cni, device: str) -> dict[str, int | str]:
    """Sysctls of the host side, set while it is still down."""
    return {f"net.ipv4.conf.{device}.proxy_arp": 1} if cni == "routed" else {}


def prepare_node6(cni: Cni, pod_cidr: str) -> list[str]:
    """What a node needs once for IPv6, behind `prepare_node`."""
    if cni == "routed":
        return [f"route add blackhole {six(pod_cidr)}"]
    return [f"addr add {six(f'{bridge_address(pod_cidr)}/{ipaddress.IPv4Network(pod_cidr).prefixlen}')} dev cni0"]


def pod_lines6(cni: Cni, device: str, address: str, pod_cidr: str) -> tuple[list[str], list[str]]:
    """Lines for the node and for the pod that has `pod_lines` already."""
    if cni == "routed":
        inside = [
            f"addr add {six(address)}/128 dev eth0",
            f"neigh replace fe80::1 lladdr {HOST_MAC} dev eth0 nud permanent",
            "route add ::/0 via fe80::1 dev eth0",
        ]
        return [f"route add {six(address)}/128 dev {device}"], inside
    length = ipaddress.IPv4Network(pod_cidr).prefixlen
    return [], [
        f"addr add {six(f'{address}/{length}')} dev eth0",
        f"route add ::/0 via {six(bridge_address(pod_cidr))}",
    ]
