"""Mirrors of `types.h` and `reasons.h` for user space. No I/O but reading the two shipped header files' text.

Addresses are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d. Ports that C calls `__be16` are big-endian here
too (`BigEndianPort`), everything else is in the host's order. A test holds every structure against the object's BTF.
"""

from __future__ import annotations

import re
from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

LAYOUT_VERSION = 1
MAX_RULES = 8
MAX_GATEWAYS = 16
POLICY_SET_BITS = 32
PLACE_INSIDE, PLACE_NOWHERE = 1, 2

SEEN_PACKET, SEEN_FIN, SEEN_RST = 1, 2, 4

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

Bytes16 = c_uint8 * 16
Bytes6 = c_uint8 * 6
BigEndianPort = c_uint16.__ctype_be__


class Settings(Structure):
    _fields_ = [
        ("node_address", Bytes16),
        ("object_digest", c_uint64),
        ("layout_version", c_uint32),
        ("tunnel_ifindex", c_uint32),
        ("tunnel_mtu", c_uint32),
        ("tunnel_port", c_uint16),
        ("reserved", c_uint16),
        ("tcp_established_seconds", c_uint32),
        ("tcp_opening_seconds", c_uint32),
        ("tcp_closing_seconds", c_uint32),
        ("udp_seconds", c_uint32),
        ("icmp_seconds", c_uint32),
        ("orphan_seconds", c_uint32),
    ]


class PodKey(Structure):
    _fields_ = [("ifindex", c_uint32), ("address", Bytes16)]


class PodValue(Structure):
    _fields_ = [("policy_set", c_uint32)]


class LocalPod(Structure):
    _fields_ = [("ifindex", c_uint32), ("pod_mac", Bytes6), ("device_mac", Bytes6)]


class PolicyKey(Structure):
    _fields_ = [("prefixlen", c_uint32), ("policy_set", c_uint32), ("destination", Bytes16)]


class Rule(Structure):
    _fields_ = [
        ("group", c_uint32),
        ("first_port", c_uint16),
        ("last_port", c_uint16),
        ("protocol", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class PolicyValue(Structure):
    _fields_ = [("count", c_uint32), ("rules", Rule * MAX_RULES)]


class CidrKey(Structure):
    _fields_ = [("prefixlen", c_uint32), ("address", Bytes16)]


class Gateway(Structure):
    _fields_ = [("address", Bytes16), ("slot", c_uint16), ("up", c_uint8), ("local", c_uint8)]


class PathValue(Structure):
    _fields_ = [("count", c_uint32), ("gateways", Gateway * MAX_GATEWAYS)]


class GroupValue(Structure):
    _fields_ = [("egress_ip", Bytes16), ("first_port", c_uint16), ("last_port", c_uint16)]


class EgressIpValue(Structure):
    _fields_ = [("node_address", c_uint32)]


class FlowKey(Structure):
    _fields_ = [
        ("pod", Bytes16),
        ("remote", Bytes16),
        ("pod_port", BigEndianPort),
        ("remote_port", BigEndianPort),
        ("protocol", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class FlowValue(Structure):
    _fields_ = [
        ("last_seen", c_uint64),
        ("group", c_uint32),
        ("slot", c_uint16),
        ("seen_out", c_uint8),
        ("seen_in", c_uint8),
    ]


class NatKey(Structure):
    _fields_ = [
        ("pod", Bytes16),
        ("remote", Bytes16),
        ("group", c_uint32),
        ("pod_port", BigEndianPort),
        ("remote_port", BigEndianPort),
        ("protocol", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class NatValue(Structure):
    _fields_ = [
        ("last_seen", c_uint64),
        ("egress_ip", Bytes16),
        ("node", Bytes16),
        ("egress_port", BigEndianPort),
        ("seen_out", c_uint8),
        ("reserved", c_uint8 * 5),
    ]


class ReverseKey(Structure):
    _fields_ = [
        ("egress_ip", Bytes16),
        ("remote", Bytes16),
        ("egress_port", BigEndianPort),
        ("remote_port", BigEndianPort),
        ("protocol", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class ReverseValue(Structure):
    _fields_ = [
        ("last_seen", c_uint64),
        ("orphaned", c_uint64),
        ("pod", Bytes16),
        ("node", Bytes16),
        ("group", c_uint32),
        ("pod_port", BigEndianPort),
        ("seen_in", c_uint8),
        ("reserved", c_uint8),
    ]


class Counter(Structure):
    _fields_ = [("packets", c_uint64), ("bytes", c_uint64)]


class Collected(Structure):
    _fields_ = [
        ("flows", c_uint64),
        ("flows_live", c_uint64),
        ("mappings", c_uint64),
        ("mappings_live", c_uint64),
        ("reverses", c_uint64),
        ("reverses_live", c_uint64),
    ]


# C name -> mirror, for the test against BTF.
MIRRORS: dict[str, type[Structure]] = {
    "settings": Settings, "pod_key": PodKey, "pod_value": PodValue, "local_pod": LocalPod, "policy_key": PolicyKey,
    "rule": Rule, "policy_value": PolicyValue, "cidr_key": CidrKey, "gateway": Gateway, "path_value": PathValue,
    "group_value": GroupValue, "egress_ip_value": EgressIpValue, "flow_key": FlowKey, "flow_value": FlowValue,
    "nat_key": NatKey, "nat_value": NatValue, "reverse_key": ReverseKey, "reverse_value": ReverseValue,
    "counter": Counter, "collected": Collected,
}  # fmt: skip

# Map -> (key, value); plain numbers and addresses are encoded by the functions below.
MAPS: dict[str, tuple[type[Structure] | None, type[Structure] | None]] = {
    "settings": (None, Settings), "pods": (PodKey, PodValue), "strict_devices": (None, None),
    "local_pods": (None, LocalPod), "policies": (PolicyKey, PolicyValue), "cluster": (CidrKey, None),
    "paths": (None, PathValue), "groups": (None, GroupValue), "egress_ips": (None, EgressIpValue),
    "nodes": (None, None), "uplinks": (None, None), "flows": (FlowKey, FlowValue), "nat": (NatKey, NatValue),
    "reverse": (ReverseKey, ReverseValue), "counters": (None, Counter), "collected": (None, Collected),
}  # fmt: skip

PROGRAMS = ("from_pod", "to_pod", "from_tunnel", "from_uplink", "collect")

AnyStructure = TypeVar("AnyStructure", bound=Structure)


def u32(number: int) -> bytes:
    """A plain `__u32` key or value, host byte order."""
    return bytes(c_uint32(number))


def number(data: bytes) -> int:
    """What `u32` made: a plain `__u32` key or value, host byte order."""
    return int(c_uint32.from_buffer_copy(data).value)


def ip16(address: Address) -> bytes:
    """`struct ip`: 16 bytes, network byte order, IPv4 mapped (RFC 4291, section 2.5.5.2)."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def ip_field(address: Address) -> object:
    """The same, as a structure's field."""
    return Bytes16.from_buffer_copy(ip16(address))


def ip_of(data: object) -> Address:
    """The address in a `struct ip`, from bytes or from a field; IPv4 is unmapped."""
    address = IPv6Address(bytes(data))  # type: ignore[call-overload]
    return address.ipv4_mapped or address


def prefix_bits(network: Network) -> int:
    """Length of the prefix within a mapped 128-bit address."""
    return network.prefixlen + (96 if network.version == 4 else 0)


def cidr_key(network: Network) -> bytes:
    return bytes(CidrKey(prefix_bits(network), ip_field(network.network_address)))


def policy_key(policy_set: int, network: Network) -> bytes:
    bits = POLICY_SET_BITS + prefix_bits(network)
    return bytes(PolicyKey(bits, policy_set, ip_field(network.network_address)))


def network_of(bits: int, address: object) -> Network:
    """The network of an LPM key whose address part counts `bits`."""
    ip = IPv6Address(bytes(address))  # type: ignore[call-overload]
    if ip.ipv4_mapped is not None and bits >= 96:
        return IPv4Network((ip.ipv4_mapped, bits - 96))
    return IPv6Network((ip, bits))


def decode(structure: type[AnyStructure], data: bytes) -> AnyStructure:
    return structure.from_buffer_copy(data)


@dataclass(frozen=True, slots=True)
class Reason:
    """One outcome of the datapath, as `reasons.h` has it. `name` is the metrics' label."""

    number: int
    name: str
    text: str

    @property
    def is_drop(self) -> bool:
        return self.number >= 32


_ROW = re.compile(r'R\((\d+),\s*(\w+),\s*"([^"]*)"\)')


def read_reasons() -> dict[int, Reason]:
    """The table of outcomes, parsed from the header that the programs were compiled with."""
    text = files("bpf").joinpath("reasons.h").read_text(encoding="ascii").replace("\\\n", " ")
    rows = (Reason(int(number), name.lower(), meaning) for number, name, meaning in _ROW.findall(text))
    return {row.number: row for row in rows}
