"""Which bits of the mark rules use, as nft, iptables and ip print them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from egress.host.marks import ALL, of_iptables, of_nft, of_rules
from eni.plan import Desired, Interface, Link, Observed, nft_chains, transaction
from tests.netns.lab.enforcers import Network, Workload, calico, kube_proxy, kube_router

NETWORK = Network("10.244.0.0/16", [Workload("pod-a", "10.244.3.2", shut=True)])
NFT = {
    "meta mark & 0x00010000 == 0x00010000 accept": 0x10000,
    "meta mark & 0x00004000 == 0x00000000 return": 0x4000,
    "counter meta mark set mark and 0xfff0ffff": 0xF0000,
    "counter meta mark set mark or 0x40000": 0x40000,
    "meta mark set meta mark ^ 0x00004000": 0x4000,
    "meta mark set meta mark & 0xffffff00 | 0x00000005": 0xFF,
    "meta mark 0x00000005 accept": ALL,
    "meta mark != 0x00000005 drop": ALL,
    "meta mark { 0x00000001, 0x00000002 } accept": ALL,
    "tcp dport 80 meta mark set 0x00000005": ALL,
    "meta mark & 0x00000001 == 0x00000001 meta mark set mark or 0x2": 3,
    "meta mark set ct mark": 0,
    "ct mark set meta mark & 0x000000ff": 0xFF,
    "ct mark & 0x00000001 == 0x00000001 accept": 0,
    "fib saddr . mark . iif oif 0 counter drop": 0,
    "jump KUBE-MARK-MASQ": 0,
    "jump mark-for-masquerade": 0,
    'counter drop comment "mark 5"': 0,
}


@pytest.mark.parametrize("rule", NFT)
def test_a_rule_of_nft(rule: str) -> None:
    ruleset = f"table ip a {{\n\tchain b {{\n\t\t{rule}\n\t}}\n}}\n"
    assert sum(use.bits for use in of_nft(ruleset)) == NFT[rule]
    assert list(of_nft(ruleset.replace(" a ", " routerd "))) == []
    assert all(use.rule == rule for use in of_nft(ruleset))


def test_what_our_rooms_load_is_nobody_elses() -> None:
    """On an instance of a cloud egress sees the table of its wiring, which leaves out what egress has marked."""
    mark = 0x1000
    link, primary = Link(3, "eth1", 1500, up=True), Link(2, "eth0", 1500, up=True)
    wire = Interface("02:00:00:00:00:01", (IPv4Address("10.9.0.1"),), (IPv4Network("10.9.0.16/28"),))
    desired = Desired((wire,), primary_mark=mark, untranslated=(IPv4Network("10.9.0.0/16"),))
    text = transaction(nft_chains(desired, desired.interfaces, Observed({wire.mac: link}, primary)))
    others = text.replace("table inet routerd_eni", "table inet routerdish")
    assert any(use.bits & mark for use in of_nft(others))
    assert list(of_nft(text)) == []


IPTABLES = {
    "-A A -m mark --mark 0x4000/0x4000 -j ACCEPT": 0x4000,
    "-A A -m mark ! --mark 0x10000/0x10000 -j DROP": 0x10000,
    "-A A -m mark --mark 0x5 -j DROP": ALL,
    "-A A -j MARK --set-xmark 0x0/0xf0000": 0xF0000,
    "-A A -j MARK --set-xmark 0x4000/0x0": 0x4000,
    "-A A -j MARK --set-xmark 0x5/0xffffffff": ALL,
    "-A A -m connmark --mark 0x80/0x80 -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80": 0,
    "-A A -m connmark ! --mark 0x80/0x80 -j CONNMARK --set-xmark 0x80/0x80": 0,
    "-A A -j DROP": 0,
}


@pytest.mark.parametrize("rule", IPTABLES)
def test_a_rule_of_iptables(rule: str) -> None:
    assert sum(use.bits for use in of_iptables(rule)) == IPTABLES[rule]


@pytest.mark.parametrize("text", [calico(NETWORK), kube_router(NETWORK), kube_proxy(NETWORK)])
def test_the_bit_that_is_ours_is_free_beside_those_of_cnis(text: str) -> None:
    assert not any(use.bits & 0x1000 for use in of_iptables(text))
    assert any(use.bits & 0x14000 for use in of_iptables(text))


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        ({"fwmark": "0x1000", "fwmask": "0x1000"}, 0x1000),
        ({"fwmark": "0x1000"}, 0x1000),
        ({"fwmark": "0x0", "fwmask": "0xf000"}, 0xF000),
        ({"fwmark": "0xca6c"}, 0),  # of a tunnel's own packets: who bears another mark is as one without
        ({"fwmark": "0x1000", "fwmask": "0x1000", "protocol": "203"}, 0),  # leads what is ours by the primary
        ({"src": "all"}, 0),
    ],
)
def test_a_rule_of_routing(rule: dict[str, str], bits: int) -> None:
    assert sum(use.bits for use in of_rules([rule])) == bits
