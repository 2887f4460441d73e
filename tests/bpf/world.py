"""A network namespace with the datapath loaded: devices to name in a test run, maps to fill, real packets to inject.

One namespace: `pod0`, `pod1` are pods' host-side devices, `uplink` leads to the world, `underlay` to the other nodes,
`other` is no uplink; their far ends are `…_peer`. Everything is gone after `close`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from bpf import layout, loader, syscall
from egress.attach import Attacher
from egress.entries import Facts, MapEntries, PodDevice, map_entries
from egress.policy import Desired
from tests.models.tables import Back, Flow, FlowKey, Mapped, NatKey, ReverseKey, State, Tables, ip4, tables
from tests.netns.lab import netns
from tests.netns.lab.mounts import own_mounts
from tests.waiting import PATIENCE

SELF, WORKER, WORKER2, STRANGER = (IPv4Address(f"10.200.0.{n}") for n in (1, 2, 3, 99))
EGRESS_IP, NODE_EGRESS_IP = IPv4Address("192.0.2.100"), IPv4Address("192.0.2.200")
POD, POD2, REMOTE_POD = IPv4Address("10.244.1.10"), IPv4Address("10.244.1.11"), IPv4Address("10.244.2.20")
POD_CIDRS = frozenset({IPv4Network("10.244.0.0/16")})
WORLD, BEHIND_OTHER, NOWHERE = (IPv4Network(t) for t in ("0.0.0.0/0", "203.0.113.0/24", "198.51.100.128/25"))
REMOTE = IPv4Address("198.51.100.7")
TUNNEL_PORT, UNDERLAY_MTU = 8473, 1500
TUNNEL_MTU = UNDERLAY_MTU - 50
DEVICES = ("pod0", "pod1", "uplink", "underlay", "other")
MACS = {name: bytes((2, 0, 0, 0, 1, n)) for n, name in enumerate((*DEVICES, "tunnel"))}
VERDICTS = {0xFFFFFFFF: "next", -1: "next", 2: "drop", 7: "redirect"}
ROOMS = {"flows": "flow_room", "nat": "nat_room", "reverse": "reverse_room"}
PACKET_OUTGOING = 4

_SETUP = f"""
{chr(10).join(f"link add {name} address {MACS[name].hex(':')} type veth peer name {name}_peer" for name in DEVICES)}
{chr(10).join(f"link set {name}{end} up" for name in DEVICES for end in ("", "_peer"))}
address add 192.0.2.1/24 dev uplink
address add {SELF}/24 dev underlay
route add default via 192.0.2.254 dev uplink
route add {BEHIND_OTHER} dev other
route add unreachable {NOWHERE}
neighbour add 192.0.2.254 lladdr 02:00:00:00:02:54 dev uplink nud permanent
neighbour add {WORKER} lladdr 02:00:00:00:00:02 dev underlay nud permanent
neighbour add {WORKER2} lladdr 02:00:00:00:00:03 dev underlay nud permanent
link add tunnel address {MACS["tunnel"].hex(":")} mtu {TUNNEL_MTU} type vxlan external dstport {TUNNEL_PORT} nolearning
link set tunnel up
"""
SMALL = {"flows": 8, "nat": 4, "reverse": 6}  # room of tables that fill soon


def put_all(bpf_map: syscall.BpfMap, entries: MapEntries) -> None:
    for key, value in entries.items():
        bpf_map.put(key, value)


class World:
    """The namespace, with the datapath loaded into a bpffs of its own. The creating thread is inside until `close`."""

    def __init__(self, name: str, sizes: Mapping[str, int] | None = None) -> None:
        self._namespace = netns.Namespace(name, name)
        self._directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._written: dict[str, MapEntries] = {}
        self._inside = ExitStack()
        self._programs: dict[str, int] = {}
        self.sizes = dict(sizes or {})
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        self._namespace.create()
        self._namespace.sysctl({"net.ipv6.conf.default.disable_ipv6": 1, "net.ipv4.ip_forward": 1})
        self._namespace.ip(*_SETUP.strip().splitlines())
        self._namespace.sysctl({"net.ipv4.conf.tunnel.forwarding": 1, "net.ipv4.conf.all.rp_filter": 0})
        self._inside.enter_context(own_mounts())
        self._inside.enter_context(netns.entered(self._namespace.name))
        netns.run(["mount", "-t", "bpf", "bpf", str(self._directory)])
        self.pins = self._directory / "routerd"
        loader.load(self.pins, self.sizes)
        self.maps = loader.PinnedMaps(self.pins)
        self._programs = {name: syscall.open_pinned(self.pins / "programs" / name) for name in layout.PROGRAMS}
        self.ifindex = {name: socket.if_nametoindex(name) for name in (*DEVICES, "tunnel")}
        self._attacher = Attacher(self.pins)
        self._reasons = layout.read_reasons()
        self._zero = bytes(self.maps["counters"].value_size)

    def close(self) -> None:
        if self._programs:
            for fd in self._programs.values():
                os.close(fd)
            self.maps.close()
        self._inside.close()
        netns.run(["ip", "netns", "del", self._namespace.name], check=False)
        self._directory.rmdir()

    # -- what user space wrote

    def facts(self) -> Facts:
        devices = {
            POD: PodDevice(self.ifindex["pod0"], "pod0", "pod0", b"\x02\0\0\0\x10\0", b"\x02\0\0\0\x20\0"),
            POD2: PodDevice(self.ifindex["pod1"], "pod1", "pod1", b"\x02\0\0\0\x10\x01", b"\x02\0\0\0\x20\x01"),
        }
        uplinks = {"uplink": self.ifindex["uplink"]}
        return Facts(devices, uplinks, tunnel_ifindex=self.ifindex["tunnel"], tunnel_mtu=TUNNEL_MTU)

    def fill(self, desired: Desired, state: State | None = None, age: float = 0) -> Tables:
        """Makes the maps say `desired`, and the programs' own hold `state`, last seen `age` seconds ago."""
        entries = map_entries(desired, self.facts(), {})
        for name, wanted in {**entries, **encode(state or State(), age)}.items():
            self._set(name, wanted)
        counters = self.maps["counters"]
        put_all(counters, {layout.u32(number): self._zero for number in self._reasons})
        routes = {WORLD: self.ifindex["uplink"], BEHIND_OTHER: self.ifindex["other"], NOWHERE: 0}
        decoded = tables(entries, routes)
        rooms: dict[str, Any] = {room: self.sizes[name] for name, room in ROOMS.items() if name in self.sizes}
        return replace(decoded, **rooms)

    def _set(self, name: str, wanted: MapEntries) -> None:
        bpf_map, volatile = self.maps[name], name in ("flows", "nat", "reverse")
        present = bpf_map.items() if volatile else self._written.get(name, {})
        for key in present.keys() - wanted.keys():
            bpf_map.delete(key)
        changed = {key: value for key, value in wanted.items() if present.get(key) != value}
        put_all(bpf_map, changed)
        if not volatile:
            self._written[name] = wanted

    # -- what the programs did

    def run(self, program: str, device: str, frame: bytes) -> tuple[str, bytes]:
        """(verdict, frame afterwards) of one run of a program on one frame that came by `device`."""
        verdict, out = syscall.run_program(self._programs[program], frame, self._context(device))
        return VERDICTS[verdict], out

    def time(self, program: str, device: str, frame: bytes, repeat: int) -> int:
        """Mean ns of `repeat` runs on the same packet, which a program that rewrites it changes further each time."""
        data, context = (ctypes.create_string_buffer(each) for each in (frame, self._context(device)))
        run = syscall.TestRun(
            self._programs[program], data_size_in=len(frame), data_in=ctypes.addressof(data), repeat=repeat,
            context_size_in=len(context) - 1, context_in=ctypes.addressof(context),
        )  # fmt: skip
        syscall.bpf(syscall.PROG_TEST_RUN, run)
        return int(run.duration)

    def _context(self, device: str) -> bytes:
        """`struct __sk_buff` of <linux/bpf.h>: only its ingress_ifindex and ifindex are set."""
        return bytes(36) + struct.pack("=II", self.ifindex[device], self.ifindex[device]) + bytes(192 - 44)

    def counted(self) -> dict[str, int]:
        """Packets by reason since `fill`, without the zeros."""
        found = {}
        for key, value in self.maps["counters"].items().items():
            packets = sum(struct.unpack(f"={len(value) // 8}Q", value)[::2])
            if packets:
                found[self._reasons[int.from_bytes(key, "little")].name] = packets
        return found

    def state(self) -> State:
        """What the programs keep now."""
        flows, nat, reverse = (self.maps[name].items() for name in ("flows", "nat", "reverse"))
        return State(
            dict(_flow(k, v) for k, v in flows.items()),
            dict(_mapped(k, v) for k, v in nat.items()),
            dict(_back(k, v) for k, v in reverse.items()),
        )

    def collect(self) -> layout.Collected:
        syscall.run_program(self._programs["collect"], bytes(64))
        value = self.maps["collected"].get(layout.u32(0))
        assert value is not None
        return layout.decode(layout.Collected, value)

    # -- real packets

    def attach(self) -> None:
        for program, device in (("from_tunnel", "tunnel"), ("from_uplink", "uplink"), ("from_pod", "pod0")):
            self._attacher.attach(program, self.ifindex[device])
        self._attacher.attach("to_pod", self.ifindex["pod0"])

    def wire(self, device: str) -> Wire:
        return Wire(f"{device}_peer")


class Wire:
    """The far end of a device: frames that are put on it arrive at the device, and what the device sent is read."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((device, 0))
        self._socket.settimeout(PATIENCE)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def put(self, frame: bytes) -> None:
        self._socket.send(frame)

    def get(self) -> bytes:
        """The next frame that came out of the device; TimeoutError if none comes."""
        while True:
            frame, address = self._socket.recvfrom(1 << 16)
            if address[2] != PACKET_OUTGOING:
                return frame


# --- the programs' own maps, as bytes and back ------------------------------------------------------------------------


def flow_key_bytes(key: FlowKey) -> bytes:
    pod, remote = layout.ip_field(key.pod), layout.ip_field(key.remote)
    return bytes(layout.FlowKey(pod, remote, key.pod_port, key.remote_port, key.protocol))


def nat_key_bytes(key: NatKey) -> bytes:
    pod, remote, pod_port, remote_port, protocol = key.flow
    return bytes(
        layout.NatKey(layout.ip_field(pod), layout.ip_field(remote), key.group, pod_port, remote_port, protocol)
    )


def reverse_key_bytes(key: ReverseKey) -> bytes:
    egress_ip, remote = layout.ip_field(key.egress_ip), layout.ip_field(key.remote)
    return bytes(layout.ReverseKey(egress_ip, remote, key.egress_port, key.remote_port, key.protocol))


def _node_field(node: IPv4Address | None) -> object:
    return layout.ip_field(node) if node else layout.Bytes16()


def encode(state: State, age: float) -> dict[str, MapEntries]:
    """Contents of the three maps, last seen `age` seconds ago."""
    seen = time.monotonic_ns() - int(age * 1e9)
    flows = {
        flow_key_bytes(k): bytes(layout.FlowValue(seen, v.group, v.slot, v.seen_out, v.seen_in))
        for k, v in state.flows.items()
    }
    nat = {
        nat_key_bytes(k): bytes(
            layout.NatValue(seen, layout.ip_field(v.egress_ip), _node_field(v.node), v.egress_port, v.seen_out)
        )
        for k, v in state.nat.items()
    }
    reverse = {
        reverse_key_bytes(k): bytes(
            layout.ReverseValue(seen, 0, layout.ip_field(v.pod), _node_field(v.node), v.group, v.pod_port, v.seen_in)
        )
        for k, v in state.reverse.items()
    }
    return {"flows": flows, "nat": nat, "reverse": reverse}


def _node_of(data: object) -> IPv4Address | None:
    return ip4(data) if any(bytes(data)) else None  # type: ignore[call-overload]


def _flow(key: bytes, value: bytes) -> tuple[FlowKey, Flow]:
    k, v = layout.decode(layout.FlowKey, key), layout.decode(layout.FlowValue, value)
    flow = FlowKey(ip4(k.pod), ip4(k.remote), k.pod_port, k.remote_port, k.protocol)
    return flow, Flow(v.group, v.slot, v.seen_out, v.seen_in)


def _mapped(key: bytes, value: bytes) -> tuple[NatKey, Mapped]:
    k, v = layout.decode(layout.NatKey, key), layout.decode(layout.NatValue, value)
    flow = FlowKey(ip4(k.pod), ip4(k.remote), k.pod_port, k.remote_port, k.protocol)
    return NatKey(flow, k.group), Mapped(ip4(v.egress_ip), _node_of(v.node), v.egress_port, v.seen_out)


def _back(key: bytes, value: bytes) -> tuple[ReverseKey, Back]:
    k, v = layout.decode(layout.ReverseKey, key), layout.decode(layout.ReverseValue, value)
    reverse = ReverseKey(ip4(k.egress_ip), ip4(k.remote), k.egress_port, k.remote_port, k.protocol)
    return reverse, Back(ip4(v.pod), _node_of(v.node), v.group, v.pod_port, v.seen_in)
