"""Random packets of both families, and the comparison of the programs with the model (tests/models/datapath.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from bpf import layout
from egress.policy import FORWARD_MARK, Desired, IPAddress
from tests.bpf.packets import BadPacket, Shape, build, parse, vxlan
from tests.bpf.wishes import HERE
from tests.bpf.world import (
    BESIDES4,
    BESIDES6,
    EGRESS_IP,
    EGRESS_IP6,
    MAC_BESIDES,
    MACS,
    NODE_EGRESS_IP,
    NODE_MACS,
    POD,
    POD2,
    POD6,
    POD26,
    SELF,
    TUNNEL_MTU,
    TUNNEL_PORT,
    VIP,
    VIP6,
    WORKER,
    WORKER2,
    World,
    flow_key_bytes,
    fragment_key_bytes,
)
from tests.models import datapath
from tests.models.datapath import Draw, Outcome
from tests.models.tables import (
    ICMPS,
    SCTP,
    TCP,
    UDP,
    Echo,
    FlowKey,
    FragmentKey,
    Kind,
    Packet,
    Port,
    PortKey,
    State,
    Tables,
    Use,
    icmp_of,
)

Item = TypeVar("Item")
Version = int

GRE = 47
OUTSIDE: dict[Version, tuple[IPAddress, ...]] = {  # a remote twice, the uplink's network, no route, no uplink, a pod
    4: tuple(map(IPv4Address, (
        "198.51.100.7", "198.51.100.8", "198.51.100.7", "192.0.2.77", "198.51.100.200", "203.0.113.5", "10.244.2.20",
        "240.1.2.3", "169.254.169.254",
    ))),
    6: tuple(map(IPv6Address, (
        "2001:db8:51::7", "2001:db8:51::8", "2001:db8:51::7", "2001:db8:2::77", "2001:db8:51:ff::1", "2001:db8:113::5",
        "2001:db8:244:2::20", "ff02::1:2",
    ))),
}  # fmt: skip
SOURCES: dict[Version, tuple[IPAddress, ...]] = {
    4: (POD, POD, POD, POD, POD2, POD2, IPv4Address("10.244.1.99"), IPv4Address("198.51.100.8")),
    6: (POD6, POD6, POD6, POD6, POD26, POD26, IPv6Address("2001:db8:244:1::99"), IPv6Address("2001:db8:51::8")),
}
BESIDES: dict[Version, tuple[IPAddress, ...]] = {4: BESIDES4, 6: BESIDES6}
PODS: dict[Version, tuple[IPAddress, ...]] = {4: (POD, POD2), 6: (POD6, POD26)}
EGRESS_IPS: dict[Version, tuple[IPAddress, ...]] = {
    4: (EGRESS_IP, NODE_EGRESS_IP, VIP, IPv4Address("192.0.2.1")),
    6: (EGRESS_IP6, EGRESS_IP6, VIP6, IPv6Address("2001:db8:2::1")),
}
ROUTERS: dict[Version, IPAddress] = {4: IPv4Address("192.0.2.253"), 6: IPv6Address("2001:db8:2::fd")}
POD_PORTS, REMOTE_PORTS = (40000, 40001, 61001, 5), (80, 443, 53, 8473)
EGRESS_PORTS = (41000, 33000, 61500, 20000)  # this node's, the worker's, of a node's own address, nobody's
TCP_FLAGS = ("S", "A", "SA", "AF", "R", "AR")
TTLS, LENGTHS = (64, 64, 64, 2, 1), (96, 96, 576, TUNNEL_MTU, TUNNEL_MTU + 1, 1500)
KINDS: tuple[Kind, ...] = ("flow",) * 9 + (
    "fragment", "bad-fragment", "unsupported", "unsupported", "malformed", "not-ip", "icmp-error", "icmp-error",
)  # fmt: skip
IDS, POSITIONS = (7, 41000, 33000 << 16 | 5), (8, 56, 1376)
DEVICES: dict[IPAddress, str] = {POD: "pod0", POD6: "pod0", POD2: "pod1", POD26: "pod1"}
PASSES = {  # whose fragments they are: a pod's, the world's
    True: ("from_pod", "to_uplink"),
    False: ("from_uplink", "from_link"),
}
STRANGERS_MAC = b"\x02\0\0\0\0\x99"
SLACK = 3.0  # seconds that an example may take


@dataclass(slots=True)
class Choices:
    """A number read as a sequence of choices; 0 chooses the first each time."""

    number: int

    def of(self, items: Sequence[Item]) -> Item:
        self.number, index = divmod(self.number, len(items))
        return items[index]


@dataclass(frozen=True, slots=True)
class Arrival:
    program: str
    device: str
    packet: Packet
    shape: Shape = field(default_factory=Shape)
    mark: int = 0
    tunnel: tuple[IPv4Address, int] | None = None  # the endpoint that it comes from, and its VNI

    @property
    def frame(self) -> bytes:
        inner = build(self.packet, self.shape)
        if self.tunnel is None:
            return inner
        endpoint, vni = self.tunnel
        return MACS["underlay"] + vxlan(inner, vni, TUNNEL_PORT, Packet(endpoint, SELF))[6:]


def arrival(number: int, state: State) -> Arrival:
    """The packet that `number` stands for; answers are to what `state` holds."""
    choices = Choices(number)
    program = choices.of(
        (
            "from_pod", "from_pod", "from_pod", "from_pod", "from_uplink", "from_uplink", "from_link", "to_pod",
            "to_uplink", "to_beneath", "from_node", "from_node",
        )
    )  # fmt: skip
    version = choices.of((4, 6))
    begun = [key for key in state.fragments if key.source.version == version and program in PASSES[bool(key.ifindex)]]
    if begun and choices.of((False, False, True)):
        return _follower(choices, state, program, choices.of(begun))
    if program == "to_beneath":
        given = _from_pod(choices, State(), version)
        source = choices.of((*BESIDES[version], *BESIDES[version], given.packet.source))
        shape = replace(given.shape, source_mac=choices.of((given.shape.source_mac, MAC_BESIDES)))
        packet = replace(given.packet, source=source)
        return replace(given, program=program, device="uplink", packet=packet, shape=shape)
    if program in ("from_pod", "to_uplink"):
        given = _from_pod(choices, state, version)
        return given if program == "from_pod" else replace(given, program=program, device="uplink", mark=FORWARD_MARK)
    if program == "from_link":
        return _from_link(choices, state, version)
    if program == "from_node":
        return _from_node(choices, state, version)
    return _from_uplink(choices, state, version) if program == "from_uplink" else _to_pod(choices, state, version)


def _finish(choices: Choices, packet: Packet) -> tuple[Packet, Shape]:
    """What any packet may have."""
    packet = replace(packet, ttl=choices.of(TTLS), options=choices.of((False,) * 4 + (True,)))
    summed = packet.version == 6 or choices.of((True, True, False))  # IPv6 knows no UDP without a checksum
    shape = Shape(summed=summed, mss_at=choices.of((0, 1, 2, 3)))
    if packet.kind == "flow" and choices.of((False, False, True)):
        packet = _understood(replace(packet, first=True, id=_id(choices, packet)))
    if packet.kind not in ("icmp-error", "malformed", "bad-fragment"):
        packet = replace(packet, length=choices.of(LENGTHS))
    if packet.version == 4 and packet.kind not in ("icmp-error", "malformed"):
        packet = replace(packet, dont_fragment=choices.of((False, True)))
    if packet.protocol == TCP and packet.kind == "flow":
        flags = choices.of(TCP_FLAGS)
        packet = replace(packet, flags=flags, mss=choices.of((0, 536, 1460)) if "S" in flags else 0)
    return packet, replace(shape, last=choices.of((False, True)) and packet.position > 0)


def _flow(choices: Choices, source: IPAddress, destination: IPAddress, ports: tuple[int, int]) -> Packet:
    icmp = icmp_of(source.version)
    protocol = choices.of((UDP, TCP, icmp, SCTP))
    if protocol != icmp:
        return Packet(source, destination, protocol, *ports)
    if choices.of(("request", "request", "reply")) == "reply":
        return Packet(source, destination, icmp, 0, ports[1], echo="reply")
    return Packet(source, destination, icmp, ports[0], 0, echo="request")


def _odd(choices: Choices, packet: Packet, state: State) -> Packet:
    """Sometimes not a flow at all."""
    kind = choices.of(KINDS)
    if kind == "flow":
        return packet
    icmp = icmp_of(packet.version)
    if kind == "icmp-error":
        return Packet(packet.source, packet.destination, icmp, kind=kind, quoted=_quoted(choices, packet, state))
    if kind == "bad-fragment":
        return replace(packet, kind=kind, first=True, flags="", mss=0, echo="", id=_id(choices, packet))
    if kind == "fragment":
        return _later(choices, packet)
    if kind == "malformed":
        return Packet(packet.source, packet.destination, packet.protocol, kind=kind)
    protocol = choices.of((GRE, icmp)) if kind == "unsupported" else packet.protocol
    return replace(packet, kind=kind, protocol=protocol, echo="request" if protocol in ICMPS else "")


def _id(choices: Choices, packet: Packet) -> int:
    return choices.of(IDS) & (0xFFFF if packet.version == 4 else 0xFFFFFFFF)


def _later(choices: Choices, packet: Packet) -> Packet:
    """A later fragment, most likely of a datagram whose first has not passed."""
    return Packet(
        packet.source, packet.destination, packet.protocol, kind="fragment", position=choices.of(POSITIONS),
        id=_id(choices, packet),
    )  # fmt: skip


def _follower(choices: Choices, state: State, program: str, key: FragmentKey) -> Arrival:
    """A later fragment of a datagram whose first has passed: behind it, or overlapping it."""
    end = (state.fragments[key].length + 7) // 8 * 8
    # What IPv6 says of a later fragment's protocol nobody looks at.
    packet = Packet(
        key.source, key.destination, key.protocol or choices.of((UDP, SCTP)), kind="fragment",
        position=choices.of((end, end, end + 800, 8)), id=key.id,
    )  # fmt: skip
    if program == "to_uplink":
        return Arrival(program, "uplink", *_finish(choices, packet), FORWARD_MARK)
    found = Arrival(program, DEVICES.get(key.source, "uplink"), *_finish(choices, packet))
    return _by_link(choices, found) if program == "from_link" else found


def _quoted(choices: Choices, packet: Packet, state: State) -> Packet:
    """What an error quotes that the source of `packet` sends: an answer to one of its flows, where it has any."""
    known = [key for key in state.flows if key.pod == packet.source and key.protocol not in ICMPS]
    if known and choices.of((True, True, False)):
        key = choices.of(known)
        return Packet(key.remote, key.pod, key.protocol, key.remote_port, key.pod_port)
    return Packet(packet.destination, packet.source, UDP, 53, 40000)


def _from_pod(choices: Choices, state: State, version: Version) -> Arrival:
    source = choices.of(SOURCES[version])
    ports = choices.of(POD_PORTS), choices.of(REMOTE_PORTS)
    to_node = version == 4 and choices.of((0,) * 19 + (1,))
    destination = WORKER if to_node else choices.of((*OUTSIDE[version], PODS[version][0]))
    packet, shape = _finish(choices, _odd(choices, _flow(choices, source, destination, ports), state))
    known = [key for key in state.flows if key.pod == source]
    if known and packet.kind == "flow" and choices.of((False, True)):
        packet = _on_flow(packet, choices.of(known))
    return Arrival("from_pod", DEVICES.get(source, choices.of(("pod0", "pod1"))), packet, shape)


def _understood(packet: Packet) -> Packet:
    """The checksum of SCTP in fragments cannot be corrected."""
    return replace(packet, kind="unsupported") if packet.first and packet.protocol == SCTP else packet


def _on_flow(packet: Packet, key: FlowKey) -> Packet:
    """The packet, as one of a flow that is there."""
    tcp: dict[str, Any] = (
        {} if packet.protocol == key.protocol == TCP else {"flags": "A" if key.protocol == TCP else "", "mss": 0}
    )
    echo: Echo = "" if key.protocol not in ICMPS else ("reply" if key.remote_port else "request")
    return _understood(replace(
        packet, source=key.pod, destination=key.remote, protocol=key.protocol, source_port=key.pod_port,
        destination_port=key.remote_port, echo=echo, **tcp,
    ))  # fmt: skip


def _from_uplink(choices: Choices, state: State, version: Version) -> Arrival:
    known = [key for key in state.ports if key.egress_ip.version == version]
    if not known or choices.of((False,) * 5 + (True,)):
        address = choices.of(EGRESS_IPS[version])
        ports = choices.of(REMOTE_PORTS), choices.of(EGRESS_PORTS)
        packet = _odd(choices, _flow(choices, choices.of(OUTSIDE[version]), address, ports), state)
        return Arrival("from_uplink", "uplink", *_finish(choices, packet))
    key = choices.of(known)
    if choices.of((False, False, False, True)):
        return Arrival("from_uplink", "uplink", *_finish(choices, _error_about(choices, key)))
    packet, shape = _finish(choices, _reply(key))
    return Arrival("from_uplink", "uplink", packet, shape)


def _from_link(choices: Choices, state: State, version: Version) -> Arrival:
    """From another node, or one that looks like it: what it sends out by this node, or an answer that it brings."""
    answers = choices.of((True, False))
    return _by_link(choices, (_from_uplink if answers else _on_its_way_out)(choices, state, version))


def _from_node(choices: Choices, state: State, version: Version) -> Arrival:
    """The same in a tunnel packet, which the program takes off. What is no IP, or expires, is the tunnel device's."""
    endpoint, back = choices.of((WORKER, WORKER, WORKER2)), layout.VNI_BACK
    vni = choices.of((HERE, HERE, back, back, back, layout.VNI_RELAYED, layout.VNI_RELAYED | 1))
    given = (_from_uplink if vni & back else _on_its_way_out)(choices, state, version)
    packet = replace(given.packet, kind="malformed") if given.packet.kind == "not-ip" else given.packet
    packet = replace(packet, ttl=max(packet.ttl, 2))
    return replace(given, device="underlay", packet=packet, tunnel=(endpoint, vni))


def _on_its_way_out(choices: Choices, state: State, version: Version) -> Arrival:
    source, ports = choices.of(EGRESS_IPS[version]), (choices.of(EGRESS_PORTS), choices.of(REMOTE_PORTS))
    packet, shape = _finish(choices, _odd(choices, _flow(choices, source, choices.of(OUTSIDE[version]), ports), state))
    return Arrival("from_uplink", "underlay", packet, shape)


def _by_link(choices: Choices, arrival: Arrival) -> Arrival:
    shape = replace(arrival.shape, source_mac=choices.of((*NODE_MACS.values(), *NODE_MACS.values(), STRANGERS_MAC)))
    return replace(arrival, program="from_uplink", device="underlay", shape=shape)


def _reply(key: PortKey) -> Packet:
    echo: Echo = "reply" if key.protocol in ICMPS else ""
    return Packet(key.remote, key.egress_ip, key.protocol, key.remote_port, key.egress_port, echo=echo)


def _error_about(choices: Choices, key: PortKey) -> Packet:
    """From a router on the way, about a translated packet."""
    echo: Echo = "request" if key.protocol in ICMPS else ""
    quoted = Packet(key.egress_ip, key.remote, key.protocol, key.egress_port, key.remote_port, echo=echo)
    version = key.egress_ip.version
    router, about = choices.of((key.remote, ROUTERS[version])), choices.of(("unreachable", "too-big", "ttl"))
    error = Packet(router, key.egress_ip, icmp_of(version), kind="icmp-error", about=about)  # type: ignore[arg-type]
    return replace(error, quoted=choices.of((quoted, quoted, None)))


def _to_pod(choices: Choices, state: State, version: Version) -> Arrival:
    pod = choices.of(PODS[version])
    ports = choices.of(REMOTE_PORTS), choices.of(POD_PORTS)
    packet, shape = _finish(choices, _odd(choices, _flow(choices, choices.of(OUTSIDE[version][:7]), pod, ports), state))
    known = [key for key in state.flows if key.pod == pod]
    if known and packet.kind == "flow" and choices.of((False, True)):
        key = choices.of(known)
        packet = _on_flow(packet, key)
        source_port, destination_port = key.remote_port, key.pod_port
        echo: Echo = "" if key.protocol not in ICMPS else ("request" if key.remote_port else "reply")
        packet = replace(
            packet, source=key.remote, destination=key.pod, source_port=source_port,
            destination_port=destination_port, echo=echo,
        )  # fmt: skip
    return Arrival("to_pod", DEVICES[pod], packet, shape)


# --- the comparison ---------------------------------------------------------------------------------------------------


def expect(world: World, tables: Tables, state: State, given: Arrival) -> Outcome:
    """What the model says; what the programs drew is taken if the model allows it."""
    device = world.ifindex[given.device]
    match given.program:
        case "from_pod":
            packet = replace(given.packet, sent_id=drawn_id(world, given.packet, device))
            return datapath.from_pod(tables, state, device, packet, drawn(world, state, packet.sent_by(device)))
        case "to_uplink":
            packet = replace(given.packet, sent_id=drawn_id(world, given.packet, device))
            key = packet.sent_by(tables.pod_devices.get(packet.source, 0))
            return datapath.to_uplink(tables, state, device, packet, drawn(world, state, key))
        case "to_beneath":
            return datapath.to_beneath(tables, device, given.packet, given.shape.source_mac)
        case "to_pod":
            return datapath.to_pod(tables, state, device, given.packet)
        case _ if given.tunnel:
            return datapath.from_tunnel(tables, state, *given.tunnel, given.packet)
        case _:
            return datapath.from_uplink(tables, state, given.packet, device, given.shape.source_mac)


def drawn(world: World, state: State, key: FlowKey) -> Draw | None:
    """The port and the id that the flow has in the programs' maps now."""
    raw = world.maps["flows"].get(flow_key_bytes(key))
    if raw is None:
        return _left_behind(world, state, key) if world.sizes else None
    value = layout.decode(layout.FlowValue, raw)
    return Draw(layout.ip_of(value.egress_ip), value.egress_port, value.id) if value.group else None


def drawn_id(world: World, packet: Packet, device: int) -> int:
    """The id that a first fragment got."""
    raw = world.maps["fragments"].get(fragment_key_bytes(packet.of_datagram(device))) if packet.first else None
    return layout.decode(layout.FragmentValue, raw).sent_id if raw else 0


def _left_behind(world: World, state: State, key: FlowKey) -> Draw | None:
    """The port of a flow that found no room itself."""
    for port_key, port in world.state().ports.items():
        before = state.ports.get(port_key)
        if (port.pod, port.pod_port) == (key.pod, key.pod_port) and (before is None or before.id != port.id):
            return Draw(port_key.egress_ip, port_key.egress_port, port.id)
    return None


def step(world: World, tables: Tables, state: State, number: int) -> tuple[Arrival, Outcome]:
    """One packet through the program and the model: the verdict and the packet that leaves are the same."""
    given = arrival(number, state)
    verdict, out = world.run(given.program, given.device, given.frame, given.mark)
    after = _parse(out)
    expected = expect(world, tables, state, given)
    assert verdict == expected.verdict, (given, expected, after, world.counted())
    if expected.packet:
        assert after == _lengths(expected.packet, after), (given, expected)
    state.apply(expected.changes)
    return given, expected


def _parse(frame: bytes) -> Packet | None:
    try:
        return parse(frame)
    except BadPacket as error:
        if "checksum" in str(error):
            return Packet(IPv4Address(0), IPv4Address(0), kind="malformed")
        return None


def _lengths(expected: Packet, after: Packet | None) -> Packet:
    """The length of an ICMP error is what its quote makes it; that of a SYN is too short for its MSS, and may be for
    its flags.
    """
    if expected.kind != "icmp-error" or after is None:
        return expected
    quoted = expected.quoted
    if quoted and after.quoted:
        flags = after.quoted.flags and quoted.flags
        quoted = replace(quoted, length=after.quoted.length, flags=flags, mss=0)
    return replace(expected, length=after.length, quoted=quoted)


def check(
    world: World,
    desired: Desired,
    numbers: Sequence[int],
    ranks: Mapping[int, int] | None = None,
    untried: Collection[tuple[IPAddress, int]] = (),
    asked: Collection[int] = (),
) -> None:
    """A sequence of packets: afterwards counters and maps are the model's too. `ranks` and so on: see `World.fill`."""
    tables, state = world.fill(desired, ranks=ranks, untried=untried, asked=asked), State()
    counted = Counter[str]()
    for number in numbers:
        _, expected = step(world, tables, state, number)
        counted.update((expected.before, expected.reason))
    del counted[""]
    assert world.counted() == counted
    assert_same(world.state(), state)
    assert world.uses() == uses(state)


def uses(state: State) -> dict[int, Use]:
    """By device, without those that have nothing."""
    devices = {0, *(key.ifindex for key in state.flows), *(port.ifindex for port in state.ports.values())}
    return {device: state.use(device) for device in devices if any(state.use(device))}


def assert_same(actual: State, expected: State) -> None:
    """Rests have gone on meanwhile."""
    assert actual.flows == expected.flows
    assert actual.fragments == expected.fragments
    assert {key: replace(port, rests=0) for key, port in actual.ports.items()} == {
        key: replace(port, rests=0) for key, port in expected.ports.items()
    }
    for key, port in actual.ports.items():
        if port.state == "resting":
            assert expected.ports[key].rests - SLACK <= port.rests <= expected.ports[key].rests + 0.1, (key, port)


def is_paired(state: State) -> bool:
    """Every translated flow has its port and every live port its flow."""
    flows = {
        (key.pod, key.ifindex, flow.egress_ip, flow.egress_port, flow.id)
        for key, flow in state.flows.items()
        if flow.group
    }
    ports = {_owned(key, port) for key, port in state.ports.items()}
    return flows <= ports and {_owned(k, p) for k, p in state.ports.items() if p.state == "live"} <= flows


def _owned(key: PortKey, port: Port) -> tuple[Any, ...]:
    return port.pod, port.ifindex, key.egress_ip, key.egress_port, port.id
