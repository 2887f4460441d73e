"""A port set is tried before it is used: what is sent, what a gateway sends back, which gateways a flow has then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from struct import pack

import pytest

from bpf import layout, syscall
from egress.policy import IPAddress
from egress.trials import Trial, frame, untried
from tests.bpf.gateway import INNER, Gateway, in_family
from tests.bpf.packets import build
from tests.bpf.wishes import SELF_NUMBER, SERVED_BY_ALL, THERE, WORKER2_NUMBER, WORKER_NUMBER, to_world
from tests.bpf.world import EGRESS_IP, EGRESS_IP6, NUMBERS, POD, REMOTE, STRANGER, WORKER, WORKER2, World
from tests.models.tables import TCP, UDP, Packet, State

BACK = layout.VNI_BACK
THEIRS, OURS = 32768, 40960  # first ports of the worker's set, and of this node's
TOKEN = 0x1122334455667788
EGRESS_IPS: dict[int, IPAddress] = {4: EGRESS_IP, 6: EGRESS_IP6}
SYN = Packet(POD, REMOTE, TCP, 40000, 443, flags="S")
NOBODY = [(address, number) for address in EGRESS_IPS.values() for number in (WORKER_NUMBER, WORKER2_NUMBER)]


def put_token(world: World, token: int = TOKEN) -> None:
    world.maps["trial_token"].put(layout.u32(0), pack("=Q", token))


def lacking(world: World, group: int = THERE) -> set[tuple[IPAddress, int]]:
    """Egress IPs and gateways that have not echoed this node's sets of them."""
    found = untried({layout.u32(group): world.maps["groups"].get(layout.u32(group)) or b""})
    return {(trial.egress_ip, trial.gateway) for trial in found}


def come_back(inner: bytes, **fields: int) -> bytes:
    """The frame, as a gateway sends it back; `fields` of the trial are otherwise."""
    trial = layout.decode(layout.Trial, inner[-16:])
    for name, value in {"kind": layout.TRIAL_REPLY, **fields}.items():
        setattr(trial, name, value)
    return inner[:-16] + bytes(trial)


# --- what is sent


@pytest.mark.parametrize("version", [4, 6])
def test_a_trial_leaves_by_the_tunnel_of_its_gateway_as_a_packet_of_the_set(gateway: Gateway, version: int) -> None:
    gateway.world.fill(to_world(THERE))
    inner = frame(Trial(THERE, EGRESS_IPS[version], OURS, WORKER2_NUMBER), TOKEN)
    syscall.run_program(gateway.world.program("send_trial"), inner)
    node, vni, sent = gateway.answered_frame()
    assert (node, vni, sent[6:]) == (WORKER2, THERE, inner[6:])
    assert gateway.world.counted() == {"trial_sent": 1}


def test_a_trial_by_a_gateway_that_is_not_known_is_not_sent(gateway: Gateway) -> None:
    gateway.world.fill(to_world(THERE))
    syscall.run_program(gateway.world.program("send_trial"), frame(Trial(THERE, EGRESS_IP, OURS, 9), TOKEN))
    assert gateway.world.counted() == {"no_gateway": 1}


# --- at the gateway


@pytest.mark.parametrize("version", [4, 6])
def test_a_gateway_sends_back_what_bears_a_port_of_the_sender(gateway: Gateway, version: int) -> None:
    inner = frame(Trial(THERE, EGRESS_IPS[version], THEIRS, SELF_NUMBER), TOKEN)
    gateway.take(inner, WORKER, THERE)
    node, vni, sent = gateway.answered_frame()
    assert (node, vni, sent[6:]) == (WORKER, BACK, come_back(inner)[6:])
    assert gateway.world.counted() == {"trial_echoed": 1}


def sent_to(inner: bytes, destination: IPv4Address) -> bytes:
    """The same with another destination."""
    packet = Packet(EGRESS_IP, destination, UDP, THEIRS, layout.TRIAL_PORT, ttl=255, length=len(inner) - 14)
    return build(packet, replace(INNER, payload=inner[-16:], summed=False))


def spoiled(at: int, byte: int) -> Callable[[bytes], bytes]:
    return lambda inner: inner[:at] + bytes([byte]) + inner[at + 1 :]


NOT_REFLECTED: dict[str, tuple[Callable[[bytes], bytes], IPv4Address, str]] = {
    "of another node": (lambda inner: inner, WORKER2, "foreign_port"),
    "of a node that is not known": (lambda inner: inner, STRANGER, "unknown_node"),
    "of an egress IP that is not served here": (
        lambda _: frame(Trial(THERE, IPv4Address("192.0.2.55"), THEIRS, SELF_NUMBER), TOKEN),
        WORKER,
        "unknown_egress_ip",
    ),
    "to another address": (lambda inner: sent_to(inner, REMOTE), WORKER, "bad_trial"),
    "to another port": (spoiled(14 + 20 + 3, 1), WORKER, "bad_trial"),
    "an answer": (come_back, WORKER, "bad_trial"),
    "of another kind": (lambda inner: come_back(inner, kind=3), WORKER, "bad_trial"),
    "without a token": (lambda inner: come_back(inner, kind=layout.TRIAL_REQUEST, token=0), WORKER, "bad_trial"),
    "with more behind it": (lambda inner: inner + b"\0", WORKER, "bad_trial"),
    "a packet with a payload of its own": (
        lambda _: build(Packet(EGRESS_IP, REMOTE, TCP, THEIRS, 443, flags="A", ttl=255), INNER), WORKER, "bad_trial"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_REFLECTED)
def test_a_gateway_sends_nothing_else_back_and_nothing_out(gateway: Gateway, case: str) -> None:
    spoil, node, reason = NOT_REFLECTED[case]
    gateway.world.fill(to_world(THERE))
    gateway.take(spoil(frame(Trial(THERE, EGRESS_IP, THEIRS, SELF_NUMBER), TOKEN)), node, THERE)
    assert gateway.world.counted() == {reason: 1}


# --- at the node of the set


@pytest.mark.parametrize("version", [4, 6])
def test_a_set_is_used_by_the_gateways_that_have_echoed_it(gateway: Gateway, version: int) -> None:
    world, address = gateway.world, EGRESS_IPS[version]
    world.fill(to_world(THERE), untried=NOBODY)
    put_token(world)
    syn = build(in_family(SYN, version))
    assert world.run("from_pod", "pod0", syn)[0] == "drop"
    assert world.counted() == {"untried_port_set": 1}
    gateway.take(come_back(frame(Trial(THERE, address, OURS, WORKER2_NUMBER), TOKEN)), WORKER2, BACK)
    assert lacking(world) == {*NOBODY} - {(address, WORKER2_NUMBER)}
    flows = [build(in_family(replace(SYN, source_port=port), version)) for port in range(40000, 40016)]
    assert {world.run("from_pod", "pod0", flow)[0] for flow in flows} == {"redirect"}
    assert {flow.gateway for flow in world.state().flows.values()} == {WORKER2_NUMBER}
    gateway.take(come_back(frame(Trial(THERE, address, OURS, WORKER_NUMBER), TOKEN)), WORKER, BACK)
    more = [build(in_family(replace(SYN, source_port=port), version)) for port in range(41000, 41016)]
    assert {world.run("from_pod", "pod0", flow)[0] for flow in more} == {"redirect"}
    assert {flow.gateway for flow in world.state().flows.values()} == {WORKER_NUMBER, WORKER2_NUMBER}


UNHEARD: dict[str, tuple[Callable[[bytes], bytes], IPv4Address, str]] = {
    "another token": (lambda inner: come_back(inner, token=TOKEN + 1), WORKER, "bad_trial"),
    "a request": (lambda inner: inner, WORKER, "bad_trial"),
    "of a group that is not known": (lambda inner: come_back(inner, group=99), WORKER, "bad_trial"),
        "from a node that is no gateway of the group": (come_back, STRANGER, "bad_trial"),
    "of a port that is not this node's": (
        lambda inner: come_back(frame(Trial(THERE, EGRESS_IP, THEIRS, WORKER_NUMBER), TOKEN)), WORKER, "bad_trial"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNHEARD)
def test_nothing_else_makes_a_set_good(gateway: Gateway, case: str) -> None:
    spoil, node, reason = UNHEARD[case]
    gateway.world.fill(replace(to_world(THERE), nodes={**NUMBERS, 9: STRANGER}), untried=NOBODY)
    put_token(gateway.world)
    gateway.take(spoil(frame(Trial(THERE, EGRESS_IP, OURS, WORKER_NUMBER), TOKEN)), node, BACK)
    assert gateway.world.counted() == {reason: 1}
    assert lacking(gateway.world) == {*NOBODY}


def test_no_echo_is_taken_before_a_token_was_drawn(gateway: Gateway) -> None:
    gateway.world.fill(to_world(THERE), untried=NOBODY)
    put_token(gateway.world, 0)
    gateway.take(come_back(frame(Trial(THERE, EGRESS_IP, OURS, WORKER_NUMBER), TOKEN)), WORKER, BACK)
    assert lacking(gateway.world) == {*NOBODY}


def test_a_node_that_is_a_gateway_itself_uses_its_sets_at_once(world: World) -> None:
    world.fill(to_world(SERVED_BY_ALL), untried=NOBODY)
    assert world.run("from_pod", "pod0", build(SYN))[0] == "redirect"
    assert {flow.gateway for flow in world.state().flows.values()} == {SELF_NUMBER}


def test_a_flow_goes_on_though_nobody_has_echoed_its_set_again(world: World) -> None:
    """Echoes are noted anew where an entry was written over them; what runs does not wait for that."""
    world.fill(to_world(THERE))
    assert world.run("from_pod", "pod0", build(SYN))[0] == "redirect"
    state = world.state()
    wish = to_world(THERE)
    fewer = replace(wish.groups[THERE], gateways=wish.groups[THERE].gateways[:1])
    world.fill(
        replace(wish, groups={THERE: fewer}),
        State({key: replace(flow, settled=False) for key, flow in state.flows.items()}, state.ports),
        untried=NOBODY,
    )
    assert world.run("from_pod", "pod0", build(replace(SYN, flags="A")))[0] == "redirect"
