"""Runs where the package is installed: loads the datapath, sends packets through it with BPF_PROG_TEST_RUN, and prints
what it found as one line of JSON. Imports the room `bpf` and the standard library alone, so that it also runs as the
only process of a virtual machine.

    python packet_check.py DIRECTORY [bcc]    a new directory on a BPF file system; it is removed again
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import struct
import sys
from ctypes import c_uint32
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import ModuleType

from bpf import layout, loader, syscall
from bpf.features import describe_kernel

POD, REMOTE = IPv4Address("10.244.1.5"), IPv4Address("203.0.113.9")
NODE, GATEWAY = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
POD6, REMOTE6 = IPv6Address("fd01::5"), IPv6Address("2001:db8:f::9")
EGRESS_IP, EGRESS_IP6 = IPv4Address("198.51.100.7"), IPv6Address("2001:db8:e::7")
HERE, ELSEWHERE = 1, 2  # numbers of the nodes
CLUSTER = IPv4Network("10.244.0.0/16")
REMOTE_GROUP, LOCAL_GROUP = 7, 8
REMOTE_PORT, LOCAL_PORT = 53, 54  # the policy sends each to a group of its own
SOURCE_PORT = 40000
FIRST_PORT = 2048  # of the 1,024 that the node has
LOOPBACK_IFINDEX = 1
TUNNEL_IFINDEX = 1  # a test run stops before the redirect
NEXT, SHOT, REDIRECT = -1, 2, 7  # <linux/pkt_cls.h>
SKB_IFINDEX_OFFSET, SKB_SIZE = 40, 192  # struct __sk_buff


def checksum(header: bytes) -> int:
    """RFC 1071."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - (total + (total >> 16) & 0xFFFF)


def udp_packet(source: IPv4Address, destination: IPv4Address, port: int) -> bytes:
    """Ethernet, IPv4, UDP without a checksum (RFC 768), 18 bytes of payload."""
    udp = struct.pack("!4H", SOURCE_PORT, port, 26, 0) + bytes(18)
    addresses = source.packed + destination.packed
    header = struct.pack("!2B3H2BH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return b"\x02" + bytes(5) + b"\x02" + bytes(4) + b"\x01" + b"\x08\x00" + header + udp


def udp6_packet(source: IPv6Address, destination: IPv6Address, port: int) -> bytes:
    """The same in IPv6, where UDP has a checksum (RFC 8200, section 8.1)."""
    udp = struct.pack("!4H", SOURCE_PORT, port, 26, 0) + bytes(18)
    addresses = source.packed + destination.packed
    udp = udp[:6] + checksum(addresses + pseudo_header(udp) + udp).to_bytes(2, "big") + udp[8:]
    header = struct.pack("!IHBB", 0x60000000, len(udp), socket.IPPROTO_UDP, 64) + addresses
    return b"\x02" + bytes(5) + b"\x02" + bytes(4) + b"\x01" + b"\x86\xdd" + header + udp


def pseudo_header(udp: bytes) -> bytes:
    return struct.pack("!2I", len(udp), socket.IPPROTO_UDP)


def fill(maps: loader.PinnedMaps, digest: int) -> None:
    """One selected pod; port 53 leaves by a gateway elsewhere, port 54 by this node."""
    settings = layout.Settings(
        object_digest=digest,
        node_address=layout.ip_field(NODE), layout_version=layout.LAYOUT_VERSION, tunnel_ifindex=TUNNEL_IFINDEX,
        tunnel_mtu=1450, tunnel_port=8473, udp_seconds=60, flow_mtu=1450, tunnels=1,
    )  # fmt: skip
    maps["settings"].put(layout.u32(0), bytes(settings))
    for pod in (POD, POD6):
        maps["pods"].put(bytes(layout.PodKey(LOOPBACK_IFINDEX, layout.ip_field(pod))), bytes(layout.PodValue(1)))
    maps["cluster"].put(layout.cidr_key(CLUSTER), layout.u32(1))
    value = layout.PolicyValue(count=2)
    value.rules[0] = layout.Rule(REMOTE_GROUP, REMOTE_PORT, REMOTE_PORT, socket.IPPROTO_UDP)
    value.rules[1] = layout.Rule(LOCAL_GROUP, LOCAL_PORT, LOCAL_PORT, socket.IPPROTO_UDP)
    for everywhere in (IPv4Network("0.0.0.0/0"), IPv6Network("::/0")):
        maps["policies"].put(layout.policy_key(1, everywhere), bytes(value))
    for number, address in ((HERE, NODE), (ELSEWHERE, GATEWAY)):
        maps["nodes"].put(layout.ip16(address), layout.u32(number))
        node = layout.NodeValue(layout.ip_field(address), local=int(number == HERE))
        maps["node_numbers"].put(layout.u32(number), bytes(node))
    for group, gateway in ((REMOTE_GROUP, ELSEWHERE), (LOCAL_GROUP, HERE)):
        group_value = layout.GroupValue(gateway_count=1, block_count=2)
        group_value.gateways[0] = layout.Gateway(gateway, 1)
        group_value.blocks[0] = layout.Block(layout.ip_field(EGRESS_IP), FIRST_PORT, 10, echoed=1)
        group_value.blocks[1] = layout.Block(layout.ip_field(EGRESS_IP6), FIRST_PORT, 10, echoed=1)
        maps["groups"].put(layout.u32(group), bytes(group_value))


def send(program: int, packet: bytes) -> tuple[int, bytes]:
    context = bytearray(SKB_SIZE)
    context[SKB_IFINDEX_OFFSET : SKB_IFINDEX_OFFSET + 4] = bytes(c_uint32(LOOPBACK_IFINDEX))
    return syscall.run_program(program, packet, bytes(context))


def counted(maps: loader.PinnedMaps) -> dict[str, int]:
    """Packets by outcome."""
    reasons, found = layout.read_reasons(), {}
    for key, value in maps["counters"].items().items():
        packets = sum(struct.unpack_from("Q", value, offset)[0] for offset in range(0, len(value), 16))
        if packets:
            found[reasons[int.from_bytes(key, sys.byteorder)].name] = packets
    return found


def verified(program: int) -> int:
    """Instructions that the verifier went through when it was loaded (Linux 5.16)."""
    text = Path(f"/proc/self/fdinfo/{program}").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields["verified_insns"])


def all_verified(directory: Path) -> dict[str, int]:
    found = {}
    for name in layout.PROGRAMS:
        program = syscall.open_pinned(directory / "programs" / name)
        found[name] = verified(program)
        os.close(program)
    return found


def check(directory: Path, backend: ModuleType) -> dict[str, object]:
    """What four packets of the pod met, and one round of collection."""
    loaded = backend.load(directory, {"flows": 1024, "reverse": 2048})
    maps = loader.PinnedMaps(directory)
    fill(maps, backend.digest())
    from_pod = syscall.open_pinned(directory / "programs" / "from_pod")
    inside, _ = send(from_pod, udp_packet(POD, IPv4Address("10.244.2.6"), REMOTE_PORT))
    tunnelled, packet = send(from_pod, udp_packet(POD, REMOTE, REMOTE_PORT))
    tunnelled6, packet6 = send(from_pod, udp6_packet(POD6, REMOTE6, REMOTE_PORT))
    local, _ = send(from_pod, udp_packet(POD, REMOTE, LOCAL_PORT))
    collect = syscall.open_pinned(directory / "programs" / "collect")
    syscall.run_program(collect, bytes(64))
    collected = maps["collected"].get(layout.u32(0))
    result = {
        "loaded": loaded,
        "adopted": not backend.load(directory),
        "verdicts": [inside, tunnelled, tunnelled6, local],
        "sources": [str(IPv4Address(packet[26:30])), str(IPv6Address(packet6[22:38]))],
        "ports": [int.from_bytes(port, "big") - FIRST_PORT for port in (packet[34:36], packet6[54:56])],
        "checksums": [checksum(packet[14:34]), checksum(packet6[22:54] + pseudo_header(packet6[54:]) + packet6[54:])],
        "flows_live": layout.decode(layout.Collected, collected or b"").flows_live,
        "counters": counted(maps),
        "verified": all_verified(directory),
    }
    maps.close()
    os.close(from_pod)
    os.close(collect)
    return result


def main(directory: Path, name: str) -> None:
    backend = importlib.import_module(f"bpf.{name}")
    try:
        found = check(directory, backend)
    finally:
        loader.remove_pins(directory)
    features = {feature.name: feature.present for feature in describe_kernel()}
    print(json.dumps({"release": os.uname().release, "room": backend.__file__, "features": features, **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "bcc_loader" if "bcc" in sys.argv[2:] else "loader")
