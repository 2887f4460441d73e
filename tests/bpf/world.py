"""A network namespace with the datapath loaded: devices to name in a test run, maps to fill, real packets to inject.

One namespace: `pod0`, `pod1` are pods' host-side devices, `uplink` leads to the world, `underlay` to the other nodes,
`other` is no uplink; their far ends are `…_peer`. Everything is gone after `close`.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from bpf import layout, loader, syscall
from egress.attach import Attacher
from egress.entries import Facts, Link, MapEntries, map_entries
from egress.host.links import PodDevice, Unhooked
from egress.plan import ARRAYS
from egress.policy import NO_LIMITS, Desired, IPAddress, Limits
from tests.bpf.packets import Shape, inside_vxlan, is_vxlan
from tests.models.liveness import Rank
from tests.models.tables import (
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    Port,
    PortKey,
    PortState,
    State,
    Tables,
    Use,
    tables,
)
from tests.netns.lab import netns
from tests.netns.lab.mounts import own_mounts
from tests.waiting import PATIENCE

SELF, WORKER, WORKER2, STRANGER = (IPv4Address(f"10.200.0.{n}") for n in (1, 2, 3, 99))
SELF6 = IPv6Address("2001:db8:200::1")
NUMBERS = {1: SELF, 2: WORKER, 3: WORKER2}
NODE_MACS = {2: b"\x02\0\0\0\0\x02", 3: b"\x02\0\0\0\0\x03"}
LINK_LOCALS = {2: IPv6Address("fe80::2"), 3: IPv6Address("fe80::3")}
LONG = 1 << 16  # about a minute, in the clock of asks
EGRESS_IP, NODE_EGRESS_IP, EGRESS_IP6 = (
    IPv4Address("192.0.2.100"),
    IPv4Address("192.0.2.200"),
    IPv6Address("2001:db8:2::100"),
)
VIP, VIP6 = IPv4Address("192.0.2.150"), IPv6Address("2001:db8:2::150")
POD, POD2, REMOTE_POD = IPv4Address("10.244.1.10"), IPv4Address("10.244.1.11"), IPv4Address("10.244.2.20")
POD6, POD26 = IPv6Address("2001:db8:244:1::10"), IPv6Address("2001:db8:244:1::11")
POD_CIDRS = frozenset({ip_network("10.244.0.0/16"), ip_network("2001:db8:244::/48")})
BESIDES4, BESIDES6 = (ip_address("10.99.0.5"),), (ip_address("2001:db8:99::5"),)  # of POD, by a device past the hooks
MAC_BESIDES = b"\x02\0\0\0\x99\x05"  # of that device
WORLD, BEHIND_OTHER, NOWHERE = (ip_network(t) for t in ("0.0.0.0/0", "203.0.113.0/24", "198.51.100.128/25"))
WORLD6, BEHIND_OTHER6, NOWHERE6 = (ip_network(t) for t in ("::/0", "2001:db8:113::/48", "2001:db8:51:ff::/64"))
REMOTE, REMOTE6 = IPv4Address("198.51.100.7"), IPv6Address("2001:db8:51::7")
TUNNEL_PORT, UNDERLAY_MTU = 8473, 1500
TUNNEL_MTU = UNDERLAY_MTU - 50
POD2_MTU = 1400  # the other pod's device carries what the tunnel does
DEVICES = ("pod0", "pod1", "uplink", "underlay", "other")
MACS = {name: bytes((2, 0, 0, 0, 1, n)) for n, name in enumerate((*DEVICES, "tunnel"))}
POD_MAC, DEVICE_MAC = b"\x02\0\0\0\x10\0", b"\x02\0\0\0\x20\0"  # of POD's device
PROBED = {
    Rank.SERVES: layout.Liveness(9, 8),
    Rank.LEAVES: layout.Liveness(9, 8, layout.SERVICE_DRAINING),
    Rank.SILENT: layout.Liveness(99, 8),
}
VERDICTS = {0xFFFFFFFF: "next", -1: "next", 2: "drop", 7: "redirect"}
ROOMS = {"flows": "flow_room", "reverse": "port_room"}
PACKET_OUTGOING = 4

_SETUP = f"""
{chr(10).join(f"link add {name} address {MACS[name].hex(':')} type veth peer name {name}_peer" for name in DEVICES)}
{chr(10).join(f"link set {name}{end} up" for name in DEVICES for end in ("", "_peer"))}
address add 192.0.2.1/24 dev uplink
address add {SELF}/24 dev underlay
address add 2001:db8:2::1/64 dev uplink nodad
address add {SELF6}/64 dev underlay nodad
route add default via 192.0.2.254 dev uplink
route add default via 2001:db8:2::fe dev uplink
route add {BEHIND_OTHER} dev other
route add {BEHIND_OTHER6} dev other
route add unreachable {NOWHERE}
route add unreachable {NOWHERE6}
neighbour add 192.0.2.254 lladdr 02:00:00:00:02:54 dev uplink nud permanent
neighbour add 2001:db8:2::fe lladdr 02:00:00:00:02:54 dev uplink nud permanent
neighbour add {WORKER} lladdr 02:00:00:00:00:02 dev underlay nud permanent
neighbour add {WORKER2} lladdr 02:00:00:00:00:03 dev underlay nud permanent
neighbour add fe80::2 lladdr 02:00:00:00:00:02 dev underlay nud permanent
neighbour add fe80::3 lladdr 02:00:00:00:00:03 dev underlay nud permanent
link set pod1 mtu {POD2_MTU}
link add tunnel address {MACS["tunnel"].hex(":")} mtu {TUNNEL_MTU} type vxlan external dstport {TUNNEL_PORT} nolearning
link set tunnel up
"""
SOL_PACKET, PACKET_VNET_HDR, VIRTIO_NET_HDR_F_NEEDS_CSUM = 263, 15, 1  # <linux/if_packet.h>, <linux/virtio_net.h>
SMALL = {"flows": 8, "reverse": 12, "granules": 2}  # room of tables that fill soon
TIGHT = Limits(flow_room=12, port_room=16, flows_per_pod=4, ports_per_pod=6, outside_flows=6)


def echoed(group: bytes, untried: Collection[tuple[IPAddress, int]], bits: Collection[int] = (0,)) -> bytes:
    """The entry of a group, with the echoes of all its gateways but these. `bits`: where those of each way begin."""
    value = layout.decode(layout.GroupValue, group)
    for block in value.blocks[: value.block_count]:
        for place, gateway in enumerate(value.gateways[: value.gateway_count]):
            for bit in bits:
                way = gateway.node | (layout.WAY_DIRECT if bit else 0)
                if (layout.ip_of(block.egress_ip), way) not in untried:
                    block.echoed |= 1 << place + bit
    return bytes(value)


def put_all(bpf_map: syscall.BpfMap, entries: MapEntries) -> None:
    for key, value in entries.items():
        bpf_map.put(key, value)


class World:
    """The namespace, with the datapath loaded into a bpffs of its own. The creating thread is inside until `close`."""

    def __init__(self, name: str, sizes: Mapping[str, int] | None = None) -> None:
        self.limits = NO_LIMITS  # that `fill` writes
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
        quiet = {
            f"net.ipv6.conf.default.{name}": value for name, value in {"addr_gen_mode": 1, "accept_dad": 0}.items()
        }
        self._namespace.sysctl({"net.ipv4.ip_forward": 1, **quiet})
        self._namespace.ip(*_SETUP.strip().splitlines())
        self._namespace.sysctl(
            {
                "net.ipv4.conf.tunnel.forwarding": 1,
                "net.ipv6.conf.tunnel.forwarding": 1,
                "net.ipv6.conf.all.forwarding": 1,
                "net.ipv4.conf.all.rp_filter": 0,
            }
        )
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
        first = PodDevice(self.ifindex["pod0"], "pod0", "pod0", POD_MAC, DEVICE_MAC)
        second = PodDevice(self.ifindex["pod1"], "pod1", "pod1", b"\x02\0\0\0\x10\x01", b"\x02\0\0\0\x20\x01")
        devices: dict[IPAddress, PodDevice] = {POD: first, POD6: first, POD2: second, POD26: second}
        uplinks = {"uplink": self.ifindex["uplink"]}
        tunnel = self.ifindex["tunnel"]
        link = Link(self.ifindex["underlay"], "underlay", UNDERLAY_MTU, frozenset({ip_network("10.200.0.0/24")}))
        besides = (Unhooked("net1", "macvlan", (*BESIDES4, *BESIDES6), uplinks["uplink"], "uplink", MAC_BESIDES),)
        return Facts(
            devices, uplinks, tunnel_ifindex=tunnel, tunnel_mtu=TUNNEL_MTU, limits=self.limits, link=link,
            unhooked={POD: besides, POD6: besides},
        )  # fmt: skip

    def fill(
        self,
        desired: Desired,
        state: State | None = None,
        age: float = 0,
        ranks: Mapping[int, int] | None = None,
        untried: Collection[tuple[IPAddress, int]] = (),
        asked: Collection[int] = (),
    ) -> Tables:
        """Makes the maps say `desired`, and the programs' own hold `state`, last seen `age` seconds ago.

        `ranks`: what probes say of ways to nodes. `untried`: egress IPs of which no port set was echoed by which ways;
        by all others they were. `asked`: which nodes have said just now that they get what comes by the link.
        """
        entries = map_entries(desired, self.facts(), {})
        bits = (0,) if desired.transport == "vxlan" else (0, layout.ECHOED_DIRECT)
        entries["groups"] = {key: echoed(value, untried, bits) for key, value in entries["groups"].items()}
        epoch = layout.number(entries["epoch"][layout.u32(0)])
        for name, wanted in {**entries, **encode(state or State(), age, epoch)}.items():
            self._set(name, wanted)
        counters = self.maps["counters"]
        put_all(counters, {layout.u32(number): self._zero for number in self._reasons})
        uplink, other = self.ifindex["uplink"], self.ifindex["other"]
        routes = {WORLD: uplink, WORLD6: uplink, BEHIND_OTHER: other, BEHIND_OTHER6: other, NOWHERE: 0, NOWHERE6: 0}
        sizes = {uplink: UNDERLAY_MTU, self.ifindex["underlay"]: UNDERLAY_MTU}
        sizes |= {self.ifindex["pod0"]: UNDERLAY_MTU, self.ifindex["pod1"]: POD2_MTU}
        decoded = tables(entries, routes, sizes)
        rooms: dict[str, Any] = {room: self.sizes[name] for name, room in ROOMS.items() if name in self.sizes}
        self._set_liveness(ranks or {}, asked)
        return replace(decoded, ranks=ranks or {}, asked=frozenset(asked), **rooms)

    def _set_liveness(self, ranks: Mapping[int, int], asked: Collection[int]) -> None:
        later = (time.monotonic_ns() >> 20) + LONG
        for way in (*NUMBERS, *(number | layout.WAY_DIRECT for number in NUMBERS)):
            value = layout.decode(layout.Liveness, bytes(PROBED[Rank(ranks.get(way, Rank.SERVES))]))
            value.asked = later if way - layout.WAY_DIRECT in asked else 0
            self.maps["liveness"].put(layout.u32(way), bytes(value))
        for key in self.maps["probes"].items():
            self.maps["probes"].delete(key)

    def _set(self, name: str, wanted: MapEntries) -> None:
        bpf_map, volatile = self.maps[name], name in ("groups", "flows", "reverse", "uses", "fragments")
        present = bpf_map.items() if volatile else self._written.get(name, {})
        for key in present.keys() - wanted.keys():
            if name in ARRAYS:
                bpf_map.put(key, bytes(bpf_map.value_size))
            else:
                bpf_map.delete(key)
        changed = {key: value for key, value in wanted.items() if present.get(key) != value}
        put_all(bpf_map, changed)
        if not volatile:
            self._written[name] = wanted

    # -- what the programs did

    def run(self, program: str, device: str, frame: bytes, mark: int = 0) -> tuple[str, bytes]:
        """(verdict, frame afterwards) of one run of a program on one frame that came by `device`; of a tunnel packet
        that it made, what is in there. By an uplink it comes for the device's own MAC, unless it bears another one.
        """
        if program == "from_uplink" and frame[:6] == Shape().destination_mac:
            frame = MACS[device] + frame[6:]
        verdict, out = syscall.run_program(self._programs[program], frame, self.context(device, mark))
        is_wrapped = VERDICTS[verdict] == "redirect" and is_vxlan(out, SELF, TUNNEL_PORT)
        return VERDICTS[verdict], inside_vxlan(out)[2] if is_wrapped else out

    def program(self, name: str) -> int:
        """Its file descriptor."""
        return self._programs[name]

    def context(self, device: str, mark: int = 0) -> bytes:
        """`struct __sk_buff` of <linux/bpf.h>: only its mark, ingress_ifindex and ifindex are set."""
        devices = struct.pack("=II", self.ifindex[device], self.ifindex[device])
        return bytes(8) + struct.pack("=I", mark) + bytes(24) + devices + bytes(192 - 44)

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
        flows, ports, fragments = (self.maps[name].items() for name in ("flows", "reverse", "fragments"))
        epoch = self.maps["epoch"].get(layout.u32(0)) or layout.u32(0)
        return State(
            dict(_flow(k, v, layout.number(epoch)) for k, v in flows.items()),
            dict(_port(k, v) for k, v in ports.items()),
            dict(_fragment(k, v) for k, v in fragments.items()),
        )

    def uses(self) -> dict[int, Use]:
        """What the programs have counted, by device; without those that have nothing."""
        decoded = ((layout.number(k), layout.decode(layout.Use, v)) for k, v in self.maps["uses"].items().items())
        found = {device: Use(use.flows, use.outside, use.ports) for device, use in decoded}
        return {device: use for device, use in found.items() if any(use)}

    def collect(self) -> layout.Collected:
        syscall.run_program(self._programs["collect"], bytes(64))
        value = self.maps["collected"].get(layout.u32(0))
        assert value is not None
        return layout.decode(layout.Collected, value)

    # -- real packets

    def attach(self) -> None:
        hooks = (
            ("from_tunnel", "tunnel"),
            ("to_tunnel", "tunnel"),
            ("from_uplink", "uplink"),
            ("to_uplink", "uplink"),
            ("from_uplink", "underlay"),
            ("from_pod", "pod0"),
            ("to_pod", "pod0"),
        )
        for program, device in hooks:
            self._attacher.attach(program, self.ifindex[device])

    @contextmanager
    def jumbo(self, tunnel: int = 2 * UNDERLAY_MTU) -> Iterator[None]:
        """The nodes' own network carries larger packets than the uplink, and so does the tunnel, up to its MTU."""
        usual = {"underlay": UNDERLAY_MTU, "underlay_peer": UNDERLAY_MTU, "tunnel": TUNNEL_MTU}
        try:
            for name in usual:
                netns.run(["ip", "link", "set", name, "mtu", str(tunnel if name == "tunnel" else 2 * UNDERLAY_MTU)])
            yield
        finally:
            for name, mtu in reversed(usual.items()):
                netns.run(["ip", "link", "set", name, "mtu", str(mtu)])

    @contextmanager
    def narrow_pod(self, mtu: int) -> Iterator[None]:
        """POD's device carries packets of so many bytes."""
        netns.run(["ip", "link", "set", "pod0", "mtu", str(mtu)])
        try:
            yield
        finally:
            netns.run(["ip", "link", "set", "pod0", "mtu", str(UNDERLAY_MTU)])

    @contextmanager
    def without_tunnel(self) -> Iterator[None]:
        """The tunnel device has gone, and user space has not seen it yet; after `fill`."""
        key = layout.u32(0)
        before = self.maps["settings"].get(key)
        assert before is not None
        gone = layout.decode(layout.Settings, before)
        gone.tunnel_ifindex = 1 << 20
        self.maps["settings"].put(key, bytes(gone))
        try:
            yield
        finally:
            self.maps["settings"].put(key, before)

    @contextmanager
    def without_offload(self, device: str) -> Iterator[None]:
        """The kernel computes the checksums that a sender left to the NIC."""
        self._namespace.compute_checksums(device, offloaded=False)
        try:
            yield
        finally:
            self._namespace.compute_checksums(device, offloaded=True)

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

    def put_unsummed(self, frame: bytes, start: int, offset: int) -> None:
        """As a pod's own stack sends by a veth: the transport's checksum, at `start` + `offset`, is left to the NIC."""
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.send(struct.pack("=BBHHHH", VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, start, offset) + frame)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 0)

    def get(self) -> bytes:
        """The next frame that came out of the device; TimeoutError if none comes."""
        while True:
            frame, address = self._socket.recvfrom(1 << 16)
            if address[2] != PACKET_OUTGOING and frame[:2] != b"\x33\x33":  # the kernel's own IPv6 multicast
                return frame


# --- the programs' own maps, as bytes and back ------------------------------------------------------------------------

STATES: dict[PortState, int] = {
    "claimed": layout.OWNER_CLAIMED, "live": layout.OWNER_LIVE, "resting": layout.OWNER_RESTING,
    "dying": layout.OWNER_DYING,
}  # fmt: skip
NAMES = {word: name for name, word in STATES.items()}


def mac(address: bytes) -> object:
    return layout.Bytes6.from_buffer_copy(address)


def flow_key_bytes(key: FlowKey) -> bytes:
    pod, remote = layout.ip_field(key.pod), layout.ip_field(key.remote)
    return bytes(layout.FlowKey(pod, remote, key.ifindex, key.pod_port, key.remote_port, key.protocol))


def port_key_bytes(key: PortKey) -> bytes:
    egress_ip, remote = layout.ip_field(key.egress_ip), layout.ip_field(key.remote)
    return bytes(layout.ReverseKey(egress_ip, remote, key.egress_port, key.remote_port, key.protocol))


def fragment_key_bytes(key: FragmentKey) -> bytes:
    source, destination = layout.ip_field(key.source), layout.ip_field(key.destination)
    return bytes(layout.FragmentKey(source, destination, key.ifindex, key.id, key.protocol))


def _fragment_value(value: Fragment, begun: int) -> bytes:
    ports = value.source_port, value.destination_port
    return bytes(layout.FragmentValue(begun, value.sent_id, *ports, value.length, value.protocol, value.handed_in))


def _flow_value(flow: Flow, seen: int, epoch: int) -> bytes:
    egress_ip = layout.ip_field(flow.egress_ip) if flow.egress_ip else layout.Bytes16()
    return bytes(
        layout.FlowValue(
            seen, flow.id, egress_ip, flow.group, epoch if flow.settled else 0, flow.egress_port, flow.gateway,
            flow.seen_out, flow.seen_in, flow.exit_local, flow.direct,
        )
    )  # fmt: skip


def _port_value(port: Port, seen: int) -> bytes:
    rests = time.monotonic_ns() + int(port.rests * 1e9) if port.state == "resting" else 0
    return bytes(
        layout.ReverseValue(
            STATES[port.state] | port.id, seen, max(rests, 0), layout.ip_field(port.pod), port.ifindex, port.group,
            port.pod_port, port.gateway, mac(POD_MAC), mac(DEVICE_MAC), port.seen_in,
        )
    )  # fmt: skip


def encode(state: State, age: float, epoch: int) -> dict[str, MapEntries]:
    """Contents of the maps, last seen `age` seconds ago."""
    seen = time.monotonic_ns() - int(age * 1e9)
    flows = {flow_key_bytes(key): _flow_value(flow, seen, epoch) for key, flow in state.flows.items()}
    ports = {port_key_bytes(key): _port_value(port, seen) for key, port in state.ports.items()}
    devices = {0, *(key.ifindex for key in state.flows), *(port.ifindex for port in state.ports.values())}
    uses = {layout.u32(device): bytes(layout.Use(0, *state.use(device))) for device in devices}
    fragments = {fragment_key_bytes(key): _fragment_value(value, seen) for key, value in state.fragments.items()}
    return {"flows": flows, "reverse": ports, "uses": uses, "fragments": fragments}


def _flow(key: bytes, value: bytes, epoch: int) -> tuple[FlowKey, Flow]:
    k, v = layout.decode(layout.FlowKey, key), layout.decode(layout.FlowValue, value)
    flow = FlowKey(layout.ip_of(k.pod), layout.ip_of(k.remote), k.ifindex, k.pod_port, k.remote_port, k.protocol)
    egress_ip = layout.ip_of(v.egress_ip) if any(v.egress_ip) else None
    settled = not v.group or v.epoch == epoch
    ways = bool(v.exit_local), bool(v.direct)
    return flow, Flow(v.group, v.seen_out, v.seen_in, egress_ip, v.egress_port, v.gateway, v.id, settled, *ways)


def _port(key: bytes, value: bytes) -> tuple[PortKey, Port]:
    k, v = layout.decode(layout.ReverseKey, key), layout.decode(layout.ReverseValue, value)
    port = PortKey(layout.ip_of(k.egress_ip), layout.ip_of(k.remote), k.egress_port, k.remote_port, k.protocol)
    state = NAMES[v.owner & ~layout.OWNER_ID]
    rests = round((v.rests_until - time.monotonic_ns()) / 1e9, 1) if state == "resting" else 0.0
    return port, Port(
        layout.ip_of(v.pod),
        v.ifindex,
        v.pod_port,
        v.group,
        v.owner & layout.OWNER_ID,
        state,
        v.seen_in,
        v.gateway,
        rests,
    )


def _fragment(key: bytes, value: bytes) -> tuple[FragmentKey, Fragment]:
    k, v = layout.decode(layout.FragmentKey, key), layout.decode(layout.FragmentValue, value)
    datagram = FragmentKey(layout.ip_of(k.source), layout.ip_of(k.destination), k.ifindex, k.id, k.protocol)
    return datagram, Fragment(v.source_port, v.destination_port, v.protocol, v.length, v.sent_id, bool(v.handed_in))
