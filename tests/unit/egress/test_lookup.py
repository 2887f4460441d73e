"""What `routerd why` says about a pod and a destination. (The model's programs are held against the real ones in
tests/bpf.)
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from egress.entries import Facts, PodDevice, map_entries
from egress.lookup import explain_destination, from_pod
from egress.policy import Desired, Gateway, Group, Policy, Ports
from egress.tables import TCP, Packet, State, tables

NODE, GATEWAY = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
POD, PLAIN, STRANGER = IPv4Address("10.1.0.5"), IPv4Address("10.1.0.6"), IPv4Address("10.1.0.9")
OUTSIDE, OFFICE = IPv4Address("198.51.100.7"), IPv4Address("203.0.113.9")
EGRESS_IP = IPv4Address("192.0.2.100")
GROUP = Group(7, EGRESS_IP, (Gateway("g0", NODE, 0, up=False), Gateway("g1", GATEWAY, 1)), slots=2)
WEB = Policy("web", 7, (IPv4Network("0.0.0.0/0"),), (IPv4Network("203.0.113.0/24"),), (Ports("TCP", 443, 443),))
DESIRED = Desired(
    "worker", NODE, pods={POD: ("web",), PLAIN: ()}, policies={"web": WEB}, groups={7: GROUP},
    cluster=frozenset({IPv4Network("10.0.0.0/8")}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("pod", "destination", "port", "verdict", "because"),
    [
        (POD, OUTSIDE, 443, "egress", "policy web sends it out as 192.0.2.100 by g1"),
        (POD, OUTSIDE, 80, "direct", "no policy of 10.1.0.5 covers TCP 198.51.100.7:80"),
        (POD, OFFICE, 443, "direct", "no policy of 10.1.0.5 covers TCP 203.0.113.9:443"),
        (POD, GATEWAY, 443, "direct", "10.0.0.2 is inside the cluster"),
        (PLAIN, OUTSIDE, 443, "direct", "no policy of 10.1.0.6 covers TCP 198.51.100.7:443"),
        (STRANGER, OUTSIDE, 443, "dropped", "10.1.0.9 is no pod that worker knows: undecided, stopped where covered"),
    ],
)
def test_an_explanation(pod: IPv4Address, destination: IPv4Address, port: int, verdict: str, because: str) -> None:
    found = explain_destination(DESIRED, pod, destination, "TCP", port)
    assert (found.verdict, found.because) == (verdict, because)


def test_it_names_policy_group_address_and_gateway() -> None:
    found = explain_destination(DESIRED, POD, OUTSIDE, "TCP", 443)
    assert (found.policy, found.group, found.egress_ip, found.gateway) == ("web", 7, EGRESS_IP, "g1")


def test_without_a_group_or_a_gateway_it_is_dropped() -> None:
    unpublished = replace(DESIRED, policies={"web": replace(WEB, group=0)})
    assert explain_destination(unpublished, POD, OUTSIDE, "TCP", 443).verdict == "dropped"
    down = replace(DESIRED, groups={7: replace(GROUP, gateways=GROUP.gateways[:1])})
    found = explain_destination(down, POD, OUTSIDE, "TCP", 443)
    assert (found.verdict, found.because) == ("dropped", "no gateway of 192.0.2.100 is up")


@pytest.mark.parametrize("port", [443, 80])
@pytest.mark.parametrize("destination", [OUTSIDE, OFFICE, GATEWAY])
def test_it_says_what_the_maps_do(destination: IPv4Address, port: int) -> None:
    devices = {pod: PodDevice(n, f"veth{n}", f"veth{n}", bytes(6), bytes(6)) for n, pod in enumerate((POD, PLAIN), 5)}
    decoded = tables(map_entries(DESIRED, Facts(devices), {}), {})
    packet = Packet(POD, destination, TCP, 40000, port, flags="S")
    outcome = from_pod(decoded, State(), 5, packet)
    verdict = explain_destination(DESIRED, POD, destination, "TCP", port).verdict
    assert {"next": "direct", "redirect": "egress", "drop": "dropped"}[outcome.verdict] == verdict
