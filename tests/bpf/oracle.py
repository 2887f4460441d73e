"""Random packets, and the comparison of the programs with the model (egress/datapath.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, TypeVar

from egress.policy import Desired
from tests.bpf.packets import BadPacket, Shape, build, parse
from tests.bpf.world import EGRESS_IP, NODE_EGRESS_IP, POD, POD2, TUNNEL_MTU, WORKER, World
from tests.models import datapath
from tests.models.datapath import Outcome
from tests.models.tables import ICMP, TCP, UDP, Echo, FlowKey, Kind, Packet, ReverseKey, State, Tables

Item = TypeVar("Item")

SCTP, NO_ROUTE, NOT_UPLINK = 132, "198.51.100.200", "203.0.113.5"
REMOTES = tuple(
    map(
        IPv4Address,
        (
            "198.51.100.7",
            "198.51.100.8",
            "198.51.100.7",
            "192.0.2.77",
            NO_ROUTE,
            NOT_UPLINK,
            "10.244.2.20",
            "240.1.2.3",
            "169.254.169.254",
        ),
    )
)
SOURCES = (POD, POD, POD, POD, POD2, POD2, IPv4Address("10.244.1.99"))
POD_PORTS, REMOTE_PORTS = (40000, 40001, 61001, 5), (80, 443, 53, 8473)
TCP_FLAGS = ("S", "A", "SA", "AF", "R", "AR")
TTLS, LENGTHS = (64, 64, 64, 2, 1), (60, 60, 576, TUNNEL_MTU, TUNNEL_MTU + 1, 1500)
KINDS: tuple[Kind, ...] = ("flow",) * 9 + (
    "fragment", "unsupported", "unsupported", "malformed", "not-ipv4", "icmp-error",
)  # fmt: skip
DEVICES = {POD: "pod0", POD2: "pod1"}


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


def arrival(number: int, state: State) -> Arrival:
    """The packet that `number` stands for; answers are to what `state` holds."""
    choices = Choices(number)
    program = choices.of(("from_pod", "from_pod", "from_pod", "from_uplink", "from_uplink", "to_pod"))
    if program == "from_pod":
        return _from_pod(choices, state)
    return _from_uplink(choices, state) if program == "from_uplink" else _to_pod(choices, state)


def _finish(choices: Choices, packet: Packet) -> tuple[Packet, Shape]:
    """What any packet may have."""
    packet = replace(packet, ttl=choices.of(TTLS), options=choices.of((False,) * 4 + (True,)))
    shape = Shape(udp_checksum=choices.of((True, True, False)), mss_at=choices.of((0, 1, 2, 3)))
    if packet.kind not in ("icmp-error", "malformed"):
        packet = replace(packet, length=choices.of(LENGTHS), dont_fragment=choices.of((False, True)))
    if packet.protocol == TCP and packet.kind == "flow":
        flags = choices.of(TCP_FLAGS)
        packet = replace(packet, flags=flags, mss=choices.of((0, 536, 1460)) if "S" in flags else 0)
    if packet.kind == "fragment":
        shape = replace(shape, later_fragment=choices.of((False, True)))
    return packet, shape


def _flow(choices: Choices, source: IPv4Address, destination: IPv4Address, ports: tuple[int, int]) -> Packet:
    protocol = choices.of((UDP, TCP, ICMP))
    if protocol != ICMP:
        return Packet(source, destination, protocol, *ports)
    if choices.of(("request", "request", "reply")) == "reply":
        return Packet(source, destination, ICMP, 0, ports[1], echo="reply")
    return Packet(source, destination, ICMP, ports[0], 0, echo="request")


def _odd(choices: Choices, packet: Packet) -> Packet:
    """Sometimes not a flow at all."""
    kind = choices.of(KINDS)
    if kind == "flow":
        return packet
    if kind == "icmp-error":
        quoted = Packet(packet.destination, packet.source, UDP, 53, 40000)
        return Packet(packet.source, packet.destination, ICMP, kind=kind, quoted=quoted)
    if kind == "malformed":
        return Packet(packet.source, packet.destination, packet.protocol, kind=kind)
    protocol = choices.of((SCTP, ICMP)) if kind == "unsupported" else packet.protocol
    return replace(packet, kind=kind, protocol=protocol, echo="request" if protocol == ICMP else "")


def _from_pod(choices: Choices, state: State) -> Arrival:
    source = choices.of(SOURCES)
    ports = choices.of(POD_PORTS), choices.of(REMOTE_PORTS)
    destination = WORKER if choices.of((0,) * 19 + (1,)) else choices.of(REMOTES)
    packet, shape = _finish(choices, _odd(choices, _flow(choices, source, destination, ports)))
    known = [key for key in state.flows if key.pod == source]
    if known and packet.kind == "flow" and choices.of((False, True)):
        packet = _on_flow(packet, choices.of(known))
    return Arrival("from_pod", DEVICES.get(source, choices.of(("pod0", "pod1"))), packet, shape)


def _on_flow(packet: Packet, key: FlowKey) -> Packet:
    """The packet, as one of a flow that is there."""
    tcp: dict[str, Any] = (
        {} if packet.protocol == key.protocol == TCP else {"flags": "A" if key.protocol == TCP else "", "mss": 0}
    )
    echo: Echo = "" if key.protocol != ICMP else ("reply" if key.remote_port else "request")
    return replace(
        packet, source=key.pod, destination=key.remote, protocol=key.protocol, source_port=key.pod_port,
        destination_port=key.remote_port, echo=echo, **tcp,
    )  # fmt: skip


def _from_uplink(choices: Choices, state: State) -> Arrival:
    known = list(state.reverse)
    if not known or choices.of((False,) * 5 + (True,)):
        address = choices.of((EGRESS_IP, NODE_EGRESS_IP, IPv4Address("192.0.2.1")))
        ports = choices.of(REMOTE_PORTS), choices.of(POD_PORTS)
        packet = _odd(choices, _flow(choices, choices.of(REMOTES), address, ports))
        return Arrival("from_uplink", "uplink", *_finish(choices, packet))
    key = choices.of(known)
    if choices.of((False, False, False, True)):
        return Arrival("from_uplink", "uplink", *_finish(choices, _error_about(choices, key)))
    packet, shape = _finish(choices, _reply(key))
    return Arrival("from_uplink", "uplink", packet, shape)


def _reply(key: ReverseKey) -> Packet:
    echo: Echo = "reply" if key.protocol == ICMP else ""
    return Packet(key.remote, key.egress_ip, key.protocol, key.remote_port, key.egress_port, echo=echo)


def _error_about(choices: Choices, key: ReverseKey) -> Packet:
    """From a router on the way, about a translated packet."""
    echo: Echo = "request" if key.protocol == ICMP else ""
    quoted = Packet(key.egress_ip, key.remote, key.protocol, key.egress_port, key.remote_port, echo=echo)
    router = choices.of((key.remote, IPv4Address("192.0.2.253")))
    return Packet(router, key.egress_ip, ICMP, kind="icmp-error", quoted=choices.of((quoted, quoted, None)))


def _to_pod(choices: Choices, state: State) -> Arrival:
    pod = choices.of((POD, POD2))
    ports = choices.of(REMOTE_PORTS), choices.of(POD_PORTS)
    packet, shape = _finish(choices, _odd(choices, _flow(choices, choices.of(REMOTES), pod, ports)))
    known = [key for key in state.flows if key.pod == pod]
    if known and packet.kind == "flow" and choices.of((False, True)):
        key = choices.of(known)
        packet = _on_flow(packet, key)
        source_port, destination_port = key.remote_port, key.pod_port
        echo: Echo = "" if key.protocol != ICMP else ("request" if key.remote_port else "reply")
        packet = replace(
            packet, source=key.remote, destination=key.pod, source_port=source_port,
            destination_port=destination_port, echo=echo,
        )  # fmt: skip
    return Arrival("to_pod", DEVICES[pod], packet, shape)


# --- the comparison ---------------------------------------------------------------------------------------------------


def expect(world: World, tables: Tables, state: State, given: Arrival, drawn: int) -> Outcome:
    """What the model says. `drawn`: the port that the programs drew, taken if the model allows it."""
    device = world.ifindex[given.device]
    match given.program:
        case "from_pod":
            return datapath.from_pod(tables, state, device, given.packet, drawn)
        case "to_pod":
            return datapath.to_pod(tables, state, device, given.packet)
        case _:
            return datapath.from_uplink(tables, state, given.packet)


def step(world: World, tables: Tables, state: State, number: int) -> tuple[Arrival, Outcome]:
    """One packet through the program and the model: the verdict and the packet that leaves are the same."""
    given = arrival(number, state)
    verdict, out = world.run(given.program, given.device, build(given.packet, given.shape))
    after = _parse(out)
    expected = expect(world, tables, state, given, after.source_port if after else 0)
    assert verdict == expected.verdict, (given, expected, after)
    if expected.packet:
        assert after == _lengths(expected.packet, after), (given, expected)
    elif verdict == "redirect":
        assert after and after.kind == "icmp-error" and after.quoted, (given, after)
        assert after.quoted.key_outbound == given.packet.key_outbound, (given, after)
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
    """The length of an ICMP error is what its quote makes it; the quote of a SYN is too short for its flags."""
    if expected.kind != "icmp-error" or after is None:
        return expected
    quoted = expected.quoted and after.quoted and replace(expected.quoted, length=after.quoted.length)
    return replace(expected, length=after.length, quoted=quoted)


def check(world: World, desired: Desired, numbers: Sequence[int]) -> None:
    """A sequence of packets: afterwards counters and maps are the model's too."""
    tables, state, counted = world.fill(desired), State(), Counter[str]()
    for number in numbers:
        _, expected = step(world, tables, state, number)
        counted[expected.reason] += 1
    del counted[""]
    assert world.counted() == counted
    assert world.state() == state


def is_paired(state: State) -> bool:
    """Every forward half has its reverse half and the other way round."""
    forward = {(*key.flow, mapped.egress_port) for key, mapped in state.nat.items()}
    reverse = {
        (back.pod, key.remote, back.pod_port, key.remote_port, key.protocol, key.egress_port)
        for key, back in state.reverse.items()
    }
    return forward == reverse
