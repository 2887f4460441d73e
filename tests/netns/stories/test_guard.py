"""The guard's text against the real nft: what is applied is read back as what was rendered."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress.entries import Facts
from egress.host.links import PodDevice
from egress.host.recent import ruleset_generation
from egress.nftables.guard import Guard, early, render
from egress.nftables.nft import parse, parse_counters, transaction
from egress.policy import Desired, Detour, Policy, Ports
from tests.netns.lab.netns import Namespace, entered, run


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    made = Namespace(f"guard{os.getpid()}", "guard")
    made.create()
    try:
        yield made
    finally:
        run(["ip", "netns", "del", made.name])


def read_back(namespace: Namespace) -> Guard | None:
    return parse(json.loads(namespace.run(["nft", "-j", "list", "table", "inet", "routerd"])))


NAMES = [
    "eth0",
    "veth1.2",
    "cali-1_a",
    "0net",
    "bridge",
    "vlan",
    "ip",
    "_x",
    "drop",
    "c+d",
    "7",
    "@x",
    "$x",
    "lo;x",
    "{",
    "#",
]
UNSAYABLE = ['a"b', "*", "a*", "a\\*"]
not_in_names = "\0/: \t\n\v\f\r\xa0"
kernel_names = st.text(st.characters(codec="utf-8", exclude_characters=not_in_names), min_size=1, max_size=15)
networks = st.one_of(
    st.builds(
        lambda address, bits: IPv4Network((address, bits), strict=False),
        st.ip_addresses(v=4), st.sampled_from([0, 1, 8, 16, 24, 30, 31, 32]),
    ),
    st.builds(
        lambda address, bits: IPv6Network((address, bits), strict=False),
        st.ip_addresses(v=6), st.sampled_from([0, 1, 32, 48, 64, 96, 127, 128]),
    ),
)  # fmt: skip
some_networks = st.lists(networks, max_size=4).map(tuple)
ports = st.builds(
    lambda protocol, ends: Ports(protocol, *((0, 0) if protocol == "ICMP" else sorted(ends))),
    st.sampled_from(["TCP", "UDP", "ICMP"]), st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
)  # fmt: skip
several_ports = st.lists(st.one_of(ports, st.just(Ports("TCP"))), max_size=3).map(tuple)
parts = st.tuples(some_networks, some_networks, several_ports)
policies = st.lists(parts, max_size=3).map(
    lambda found: {f"p{n}": Policy(f"p{n}", 1, *part) for n, part in enumerate(found)}
)
detours = st.one_of([
    st.builds(
        Detour, st.sampled_from(["TCP", "UDP", "SCTP"]), st.integers(1, 65535),
        st.frozensets(st.tuples(addresses, st.integers(0, 65535)), min_size=1, max_size=2),
        st.frozensets(addresses, max_size=2),
    )
    for addresses in (st.ip_addresses(v=4), st.ip_addresses(v=6))
])  # fmt: skip
PODS = [*(IPv4Address(f"10.1.0.{n}") for n in range(1, 5)), *(IPv6Address(f"fd01::{n}") for n in range(1, 5))]


@st.composite
def wishes(draw: st.DrawFn) -> tuple[Desired, Facts]:
    known = draw(policies)
    chosen = st.lists(st.sampled_from(sorted(known)), unique=True).map(tuple) if known else st.just(())
    pods = {pod: draw(chosen) for pod in draw(st.lists(st.sampled_from(PODS), unique=True))}
    name = draw(st.one_of(st.sampled_from(NAMES + UNSAYABLE), kernel_names))
    devices = {pod: PodDevice(n, name, name, bytes(6), bytes(6)) for n, pod in enumerate(pods)}
    devices |= {PODS[0]: PodDevice(9, "late", "late", bytes(6), bytes(6))} if PODS[0] not in pods else {}
    endpoints = st.one_of(
        st.builds(IPv4Address, st.integers(1, 2**32 - 1)), st.builds(IPv6Address, st.integers(2**96, 2**127))
    )
    nodes = dict(enumerate(draw(st.lists(endpoints, max_size=3, unique=True)), start=1))
    desired = Desired(
        "n", draw(endpoints), pods=pods, policies=known, nodes=nodes, cluster=frozenset(draw(some_networks)),
        pod_cidrs=frozenset(draw(some_networks)), detours=draw(st.frozensets(detours, max_size=3)),
        node_addresses=frozenset(nodes.values()),
    )  # fmt: skip
    underlay = draw(st.one_of(st.sampled_from(NAMES + UNSAYABLE), kernel_names))
    return desired, Facts(devices, underlay=underlay, host_devices=frozenset({"eth0", draw(kernel_names)}))


@settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(wishes())
def test_what_is_applied_is_read_back(namespace: Namespace, wish: tuple[Desired, Facts]) -> None:
    """Over whatever the example before left there."""
    listed = namespace.run(["nft", "-j", "list", "ruleset"])
    wanted = render(*wish)
    namespace.nft(transaction(wanted, parse(json.loads(listed))))
    assert read_back(namespace) == wanted.digests()


@pytest.mark.parametrize("network", ["::ffff:0:0/96", "::ffff:192.0.2.1/128", "::192.0.2.1/128", "64:ff9b::/96"])
def test_a_network_with_an_ipv4_part_is_read_back(namespace: Namespace, network: str) -> None:
    """nft writes some of these in decimal."""
    desired = Desired("n", IPv4Address("10.0.0.1"), pod_cidrs=frozenset({IPv6Network(network)}))
    wanted = render(desired, Facts())
    listed = namespace.run(["nft", "-j", "list", "ruleset"])
    namespace.nft(transaction(wanted, parse(json.loads(listed))))
    assert read_back(namespace) == wanted.digests()


def test_a_pod_becomes_decided_and_is_forgotten_again(namespace: Namespace) -> None:
    policy = Policy("p", 7, (IPv4Network("0.0.0.0/0"),))
    device = PodDevice(3, "veth3", "veth3", bytes(6), bytes(6))
    desired = Desired("n", IPv4Address("10.0.0.1"), pods={PODS[0]: ("p",)}, policies={"p": policy})
    wanted = render(desired, Facts({PODS[0]: device}))
    for step in (early(wanted, None), wanted, render(desired, Facts()), wanted):
        namespace.run(["nft", "-c", "-f", "-"], stdin=transaction(step, read_back(namespace)))
        namespace.nft(transaction(step, read_back(namespace)))
        assert read_back(namespace) == step.digests()


def test_a_device_that_comes_in_the_place_of_another_is_not_taken_for_it(namespace: Namespace) -> None:
    """Though it bears its name: no program is on it yet."""
    desired = Desired("n", IPv4Address("10.0.0.1"), network_policy="forward")
    wanted = render(desired, Facts(uplinks={"up0": 2}))
    namespace.ip("link add up0 type veth peer name up1")
    namespace.nft(transaction(wanted, read_back(namespace)))
    assert read_back(namespace) == wanted.digests()
    namespace.ip("link del up0", "link add up0 type veth peer name up1")
    assert read_back(namespace) != wanted.digests()
    namespace.nft(transaction(wanted, read_back(namespace)))
    assert read_back(namespace) == wanted.digests()


def test_the_kernel_counts_what_is_committed(namespace: Namespace) -> None:
    """By that a table is known without being read."""
    generations = []
    for uplink in ("lo", "lo", "eth0"):
        wanted = render(Desired("n", IPv4Address("10.0.0.1")), Facts(underlay=uplink))
        present = parse(json.loads(namespace.run(["nft", "-j", "list", "ruleset"])))
        with entered(namespace.name):
            generations.append(ruleset_generation())
        namespace.nft(transaction(wanted, present))
    first = generations[0]
    assert first is not None
    assert generations == [first, first + 1, first + 2]


def test_counters_keep_their_values(namespace: Namespace) -> None:
    desired = Desired("n", IPv4Address("10.0.0.1"), nodes={1: IPv4Address("127.0.0.1")})
    namespace.nft(transaction(render(desired, Facts()), read_back(namespace)))
    with namespace.socket(2, 2) as sender, pytest.raises(PermissionError):
        sender.sendto(b"forged", ("127.0.0.1", desired.tunnel_port))  # a process, not the tunnel
    for _ in range(2):
        listed = json.loads(namespace.run(["nft", "-j", "list", "table", "inet", "routerd"]))
        assert parse_counters(listed) == {
            "astray": 0,
            "detour": 0,
            "foreign_source": 0,
            "forged": 1,
            "selected": 0,
            "source_routed": 0,
            "spoofed": 0,
            "taken_port": 0,
            "undecided": 0,
        }
        namespace.nft(transaction(render(desired, Facts()), parse(listed)))
