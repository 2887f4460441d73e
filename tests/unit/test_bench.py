"""What the benches of the datapath compute and send."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bpf import layout
from tests.bench.packets import Site, Size
from tests.bench.report import at_least, at_most, ratios, spread

ROWS = [
    {"mode": mode, "policies": policies, "round": number, "rr": float(value)}
    for mode, policies, values in (("plain", 0, (10, 20, 40)), ("ours", 1, (5, 30, 40)), ("ours", 9, (1, 1, 1)))
    for number, value in enumerate(values)
]


def test_a_ratio_is_of_one_round_and_plain_routing_knows_no_policies() -> None:
    assert ratios(ROWS, "rr", "ours", "plain", 1) == (1.0, 0.75, 1.25)
    assert ratios(ROWS, "rr", "ours", "plain", 9)[0] == 0.05
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_a_bar_that_is_missed_says_by_how_much() -> None:
    assert (at_least(1.1, 1.1), at_least(0.99, 1.1)) == ("bar 1.1 held", "bar 1.1 MISSED by 10.0%")
    assert (at_most(300, 300), at_most(330, 300)) == ("bar 300 held", "bar 300 MISSED by 10.0%")


@pytest.mark.parametrize("version", [4, 6])
def test_flows_are_random_and_each_comes_from_where_its_port_belongs(version: int) -> None:
    site = Site(Size(flows=200, egress_ips=5, nodes=7, pods=100), version)  # type: ignore[arg-type]
    served, nodes = site.desired().served, site.desired().nodes
    assert len(served) == 5 and len(nodes) == 8
    for packet in site.back():
        assert served[packet.destination].numbers[packet.destination_port // layout.GRANULE] in site.numbers
    assert {packet.source for packet in site.out()} == set(served)
    assert len({packet.sent_by(1) for packet in site.from_pods()}) == 200
    assert len(site.established(1).ports) == 200
    inside = [network for network in site.desired().cluster if network.prefixlen in (24, 64)]
    assert all(any(packet.destination in network for network in inside) for packet in site.in_cluster())
    assert ip_network("0.0.0.0/0" if version == 4 else "::/0") not in inside
