"""Mirrors of `types.h` and `reasons.h` for user space. No I/O but reading the two shipped header files' text.

Addresses are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d. Ports that C calls `__be16` are big-endian here
too (`BigEndianPort`), everything else is in the host's order. A test holds every structure against the object's BTF.
"""

from __future__ import annotations

import re
from ctypes import Structure, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import Struct
from typing import TypeVar

LAYOUT_VERSION = 3
MAX_RULES = 8
MAX_GATEWAYS = 16
MAX_BLOCKS = 128
GRANULE_SHIFT = 6
GRANULE = 1 << GRANULE_SHIFT  # ports
GRANULES = 1024  # of one address
VIP_PORTS, ALL_PORTS = 32768, 65536  # below which a Service's address, or the node's own, has ports of the host
NODE_NUMBERS = 65536
ID_SEQUENCES = 1024
NO_NODE = 0
WAY_DIRECT = 1 << 16  # with a node's number: the way to it without the tunnel
WAYS = 2 * NODE_NUMBERS
ECHOED_DIRECT = 32  # bits of `block.echoed` from here on: who echoed without the tunnel
PROBES_KEPT = 8
FAMILY_BITS = 32  # in front of the address in keys of longest-prefix matches
PREFIX_IPV6 = 1 << 31
PLACE_INSIDE, PLACE_NOWHERE = 1, 2
POLICY_DIRECT, POLICY_FORWARD, POLICY_REFUSED = 0, 1, 2
VNI_BACK = 1 << 23  # of tunnel packets to the node of a port set; all others bear the number of their group
VNI_RELAYED = VNI_BACK | 1 << 22  # of answers that one gateway hands to another
VNI_SEEN = 0x1F  # of a fragment among these: how many gateways have seen it
VNI_PROBE = (1 << 24) - 1
PROBE_PORT, PROBE_TTL, PROBE_REQUEST, PROBE_REPLY, PROBE_MAC = 3785, 255, 1, 2, 0x02726400  # bpf/probe.h
DIRECT_PROBE_MAC, DIRECT_TRIAL_MAC, BOTH_WAYS = 0x02726402, 0x02726403, 1
SERVICE_DRAINING, SERVICE_NO_SESSION, SERVICE_NO_UPLINK, SERVICE_NO_ROUTE, SERVICE_NO_UPSTREAM = 1, 2, 4, 8, 16
TRIAL_PORT, TRIAL_TTL, TRIAL_REQUEST, TRIAL_REPLY = 9, 255, 1, 2  # bpf/trial.h

SEEN_PACKET, SEEN_FIN, SEEN_RST, SEEN_FIN_FIRST, SEEN_END, SEEN_AGAIN, SEEN_BEFORE = 1, 2, 4, 8, 16, 32, 64
ALL_PODS = 0  # the key of their sum in `uses`

# The state in the two highest bits of `reverse_value.owner`; the flow's id is below.
OWNER_ID = (1 << 62) - 1
OWNER_CLAIMED, OWNER_LIVE, OWNER_RESTING, OWNER_DYING = 0, 1 << 62, 2 << 62, 3 << 62

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

Bytes16 = c_uint8 * 16
Bytes6 = c_uint8 * 6
BigEndianPort = c_uint16.__ctype_be__


class Settings(Structure):
    _fields_ = [
        ("layout_version", c_uint32),
        ("hands_over", c_uint32),
        ("node_address", Bytes16),
        ("icmp_source4", Bytes16),
        ("icmp_source6", Bytes16),
        ("way_out4", Bytes16),
        ("way_out6", Bytes16),
        ("object_digest", c_uint64),
        ("probe_grace", c_uint64),
        ("tunnel_ifindex", c_uint32),
        ("tunnel_mtu", c_uint32),
        ("tcp_established_seconds", c_uint32),
        ("tcp_opening_seconds", c_uint32),
        ("tcp_closing_seconds", c_uint32),
        ("udp_seconds", c_uint32),
        ("icmp_seconds", c_uint32),
        ("flow_room", c_uint32),
        ("port_room", c_uint32),
        ("flows_per_pod", c_uint32),
        ("ports_per_pod", c_uint32),
        ("outside_flows", c_uint32),
        ("probe_multiplier", c_uint32),
        ("out_of_service", c_uint32),
        ("network_policy", c_uint32),
        ("forward_mark", c_uint32),
        ("deadline_seconds", c_uint32),
        ("direct_ifindex", c_uint32),
        ("flow_mtu", c_uint32),
        ("underlay_ifindex", c_uint32),
        ("tunnel_port", c_uint16),
        ("tunnels", c_uint8),
        ("reserved", c_uint8),
        ("reserved2", c_uint32),
    ]


class PodKey(Structure):
    _fields_ = [("ifindex", c_uint32), ("address", Bytes16)]


class PodValue(Structure):
    _fields_ = [("policy_set", c_uint32), ("pod_mac", Bytes6), ("device_mac", Bytes6)]


class PodMacKey(Structure):
    _fields_ = [("ifindex", c_uint32), ("mac", Bytes6), ("reserved", c_uint8 * 2)]


class PolicyKey(Structure):
    _fields_ = [("prefixlen", c_uint32), ("policy_set", c_uint32), ("destination", Bytes16)]


class Rule(Structure):
    _fields_ = [
        ("group", c_uint32),
        ("first_port", c_uint16),
        ("last_port", c_uint16),
        ("protocol", c_uint8),
        ("exit_local", c_uint8),
        ("reserved", c_uint8 * 2),
    ]


class PolicyValue(Structure):
    _fields_ = [("count", c_uint32), ("rules", Rule * MAX_RULES)]


class CidrKey(Structure):
    _fields_ = [("prefixlen", c_uint32), ("family", c_uint32), ("address", Bytes16)]


class NodeValue(Structure):
    _fields_ = [("address", Bytes16), ("link_local", Bytes16), ("local", c_uint32), ("direct", c_uint32)]


class NeighbourKey(Structure):
    _fields_ = [("mac", Bytes6), ("reserved", c_uint8 * 2)]


class Gateway(Structure):
    _fields_ = [("node", c_uint16), ("up", c_uint8), ("order", c_uint8)]


class Block(Structure):
    _fields_ = [
        ("egress_ip", Bytes16),
        ("first", c_uint16),
        ("shift", c_uint8),
        ("closed", c_uint8),
        ("reserved", c_uint32),
        ("echoed", c_uint64),
    ]


class GroupValue(Structure):
    _fields_ = [
        ("gateway_count", c_uint32),
        ("block_count", c_uint32),
        ("gateways", Gateway * MAX_GATEWAYS),
        ("blocks", Block * MAX_BLOCKS),
    ]


class EgressIpValue(Structure):
    _fields_ = [("host_below", c_uint32), ("group", c_uint32), ("nodes", c_uint16 * GRANULES)]


class FlowKey(Structure):
    _fields_ = [
        ("pod", Bytes16),
        ("remote", Bytes16),
        ("ifindex", c_uint32),
        ("pod_port", BigEndianPort),
        ("remote_port", BigEndianPort),
        ("protocol", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class FlowValue(Structure):
    _fields_ = [
        ("last_seen", c_uint64),
        ("id", c_uint64),
        ("egress_ip", Bytes16),
        ("group", c_uint32),
        ("epoch", c_uint32),
        ("egress_port", BigEndianPort),
        ("gateway", c_uint16),
        ("seen_out", c_uint8),
        ("seen_in", c_uint8),
        ("exit_local", c_uint8),
        ("direct", c_uint8),
        ("unwanted_since", c_uint64),
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
        ("owner", c_uint64),
        ("last_seen", c_uint64),
        ("rests_until", c_uint64),
        ("pod", Bytes16),
        ("ifindex", c_uint32),
        ("group", c_uint32),
        ("pod_port", BigEndianPort),
        ("gateway", c_uint16),
        ("pod_mac", Bytes6),
        ("device_mac", Bytes6),
        ("seen_in", c_uint8),
        ("reserved", c_uint8 * 7),
    ]


class FragmentKey(Structure):
    _fields_ = [
        ("source", Bytes16),
        ("destination", Bytes16),
        ("ifindex", c_uint32),
        ("id", c_uint32),
        ("protocol", c_uint8),
        ("reserved", c_uint8 * 3),
    ]


class FragmentValue(Structure):
    _fields_ = [
        ("begun", c_uint64),
        ("sent_id", c_uint32),
        ("source_port", BigEndianPort),
        ("destination_port", BigEndianPort),
        ("length", c_uint16),
        ("protocol", c_uint8),
        ("handed_in", c_uint8),
        ("reserved", c_uint8 * 4),
    ]


class Sequence(Structure):
    _fields_ = [("turn", c_uint64)]


class GranuleKey(Structure):
    _fields_ = [("egress_ip", Bytes16), ("granule", c_uint32)]


class GranuleUse(Structure):
    _fields_ = [("round", c_uint64), ("ports", c_uint64)]


class Use(Structure):
    _fields_ = [
        ("round", c_uint64),
        ("flows", c_int32),
        ("outside", c_int32),
        ("ports", c_int32),
        ("counted_flows", c_int32),
        ("counted_outside", c_int32),
        ("counted_ports", c_int32),
        ("pressed", c_uint32),
        ("reserved", c_uint32),
    ]


class Pressure(Structure):
    _fields_ = [("last_seen", c_uint64), ("searches", c_uint64)]


class Trial(Structure):
    """What the trial of a port set carries."""

    _fields_ = [
        ("kind", c_uint8),
        ("direct", c_uint8),
        ("gateway", c_uint16),
        ("group", c_uint32),
        ("token", c_uint64),
    ]


class TrialToken(Structure):
    _fields_ = [("token", c_uint64)]


class Relays(Structure):
    _fields_ = [("since", c_uint64), ("packets", c_uint64)]


class Left(Structure):
    _fields_ = [("at", c_uint64)]


class Liveness(Structure):
    _fields_ = [("sent", c_uint32), ("heard", c_uint32), ("service", c_uint32), ("asked", c_uint32)]


class SentProbe(Structure):
    _fields_ = [("token", c_uint64), ("at", c_uint64)]


class Probes(Structure):
    _fields_ = [("kept", SentProbe * PROBES_KEPT), ("answered", c_uint64), ("round_trip", c_uint64)]


class Probe(Structure):
    """What a probe's packet carries."""

    _fields_ = [("kind", c_uint8), ("service", c_uint8), ("reserved", c_uint8 * 6), ("token", c_uint64)]


class Counter(Structure):
    _fields_ = [("packets", c_uint64), ("bytes", c_uint64)]


class Collected(Structure):
    _fields_ = [
        ("flows", c_uint64),
        ("flows_live", c_uint64),
        ("ports", c_uint64),
        ("ports_live", c_uint64),
        ("ports_resting", c_uint64),
        ("round", c_uint64),
        ("ports_uncounted", c_uint64),
        ("granules", c_uint64),
    ]


# C name -> mirror, for the test against BTF.
MIRRORS: dict[str, type[Structure]] = {
    "settings": Settings, "pod_key": PodKey, "pod_value": PodValue, "pod_mac_key": PodMacKey, "policy_key": PolicyKey,
    "rule": Rule, "policy_value": PolicyValue, "cidr_key": CidrKey, "node_value": NodeValue,
    "neighbour_key": NeighbourKey, "gateway": Gateway, "block": Block,
    "group_value": GroupValue, "egress_ip_value": EgressIpValue, "flow_key": FlowKey, "flow_value": FlowValue,
    "reverse_key": ReverseKey, "reverse_value": ReverseValue,
    "fragment_key": FragmentKey, "fragment_value": FragmentValue, "sequence": Sequence,
    "granule_key": GranuleKey, "granule_use": GranuleUse, "use": Use, "pressure": Pressure,
    "trial": Trial, "trial_token": TrialToken, "left": Left,
    "relays": Relays, "liveness": Liveness, "sent_probe": SentProbe, "probes": Probes, "probe": Probe,
    "counter": Counter, "collected": Collected,
}  # fmt: skip

# Map -> (key, value); plain numbers and addresses are encoded by the functions below.
MAPS: dict[str, tuple[type[Structure] | None, type[Structure] | None]] = {
    "settings": (None, Settings), "pods": (PodKey, PodValue), "pod_macs": (PodMacKey, None),
    "pod_devices": (None, None), "strict_devices": (None, None), "policies": (PolicyKey, PolicyValue),
    "cluster": (CidrKey, None), "groups": (None, GroupValue),
    "epoch": (None, None), "egress_ips": (None, EgressIpValue), "nodes": (None, None),
    "node_numbers": (None, NodeValue), "liveness": (None, Liveness), "probes": (None, Probes),
    "uplinks": (None, None), "neighbours": (NeighbourKey, None), "own_egress_ips": (None, None),
    "flows": (FlowKey, FlowValue), "reverse": (ReverseKey, ReverseValue),
    "fragments": (FragmentKey, FragmentValue), "sequences": (None, Sequence),
    "granules": (GranuleKey, GranuleUse), "uses": (None, Use), "pressures": (None, Pressure),
    "trial_token": (None, TrialToken), "left_to_device": (None, Left), "relays": (None, Relays),
    "counters": (None, Counter), "collected": (None, Collected),
}  # fmt: skip

PROGRAMS = (
    "from_pod", "to_pod", "from_tunnel", "to_tunnel", "from_uplink", "to_uplink", "to_beneath", "send_trial", "collect",
)  # fmt: skip

AnyStructure = TypeVar("AnyStructure", bound=Structure)
_PREFIX_KEY = Struct("=II16s")  # CidrKey, and PolicyKey


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


def neighbour_key(mac: bytes) -> bytes:
    """Of a device's 6 bytes."""
    return bytes(NeighbourKey(Bytes6.from_buffer_copy(mac)))


def pod_mac_key(ifindex: int, mac: bytes) -> bytes:
    """Of 6 bytes."""
    return bytes(PodMacKey(ifindex, Bytes6.from_buffer_copy(mac)))


def ip_of(data: object) -> Address:
    """The address in a `struct ip`, from bytes or from a field; IPv4 is unmapped."""
    address = IPv6Address(bytes(data))  # type: ignore[call-overload]
    return address.ipv4_mapped or address


def prefix_bits(network: Network) -> int:
    """Length of the prefix in a key of a longest-prefix match: the family, then a mapped 128-bit address."""
    return FAMILY_BITS + network.prefixlen + (96 if network.version == 4 else 0)


def _family(network: Network) -> int:
    return PREFIX_IPV6 if network.version == 6 else 0


def cidr_key(network: Network) -> bytes:
    """The bytes of a `CidrKey`; packed, as there are many of them."""
    return _PREFIX_KEY.pack(prefix_bits(network), _family(network), ip16(network.network_address))


def policy_key(policy_set: int, network: Network) -> bytes:
    destination = ip_field(network.network_address)
    return bytes(PolicyKey(prefix_bits(network), policy_set | _family(network), destination))


def policy_set_of(key: PolicyKey) -> int:
    return int(key.policy_set & ~PREFIX_IPV6)


def in_set(policy_set: int, prefix: bytes) -> bytes:
    """The `PolicyKey` of a prefix, which is said as a `CidrKey`: both have the same words."""
    bits, family, address = _PREFIX_KEY.unpack(prefix)
    return _PREFIX_KEY.pack(bits, policy_set | family, address)


def set_and_prefix(key: bytes) -> tuple[int, bytes]:
    """What `in_set` made a `PolicyKey` of."""
    bits, word, address = _PREFIX_KEY.unpack(key)
    return word & ~PREFIX_IPV6, _PREFIX_KEY.pack(bits, word & PREFIX_IPV6, address)


def network_of(bits: int, family: int, address: object) -> Network:
    """The network of such a key: `bits` with the family's, `family` with anything in its other bits."""
    ip = IPv6Address(bytes(address))  # type: ignore[call-overload]
    if family & PREFIX_IPV6:
        return IPv6Network((ip, bits - FAMILY_BITS))
    assert ip.ipv4_mapped is not None
    return IPv4Network((ip.ipv4_mapped, bits - FAMILY_BITS - 96))


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
