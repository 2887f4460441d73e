"""The guard as text for nft, and read back from nft's JSON."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from egress.entries import Facts
from egress.host.links import PodDevice
from egress.nftables.guard import Guard, digest, early, pod_bridges, render
from egress.nftables.nft import boot_text, parse, parse_counters, transaction
from egress.policy import Desired, Detour, Policy, Ports, Served
from tests.models.tables import granules

POD, PLAIN, UNKNOWN = (IPv4Address(f"10.1.0.{n}") for n in (5, 6, 7))
WORLD, OFFICE = IPv4Network("0.0.0.0/0"), IPv4Network("192.0.2.0/24")
WEB = Policy("web", 7, (WORLD,), excluded=(OFFICE,), ports=(Ports("TCP", 80, 443), Ports("UDP"), Ports("ICMP")))
DEVICES = {
    POD: PodDevice(3, "veth3", "veth3", bytes(6), bytes(6)),
    PLAIN: PodDevice(4, "veth4", "bridge", bytes(6), bytes(6)),  # a bridge's port: the forward hook sees the bridge
}
DESIRED = Desired(
    "n", IPv4Address("10.0.0.1"), pods={POD: ("web",), PLAIN: (), UNKNOWN: ("web",)}, policies={"web": WEB},
    nodes={1: IPv4Address("10.0.0.1"), 2: IPv6Address("2001:db8::2")}, cluster=frozenset({IPv4Network("10.1.0.0/16")}),
    pod_cidrs=frozenset({IPv4Network("10.1.0.0/24")}),
)  # fmt: skip
SIX, PLAIN6 = (IPv6Address(f"2001:db8:1::{n}") for n in (5, 6))

GOLDEN = """\
add table inet routerd
add counter inet routerd astray
add counter inet routerd detour
add counter inet routerd foreign_source
add counter inet routerd forged
add counter inet routerd selected
add counter inet routerd source_routed
add counter inet routerd spoofed
add counter inet routerd taken_port
add counter inet routerd undecided
add set inet routerd cluster { type ipv4_addr; flags interval; }
add set inet routerd covered { type ipv4_addr; flags interval; }
add set inet routerd pod_sources { type ipv4_addr; flags interval; }
add set inet routerd egress_ips { type ipv4_addr; }
add set inet routerd decided { type ifname . ipv4_addr; }
add set inet routerd no_pods { type ipv4_addr; }
add set inet routerd pools { type ipv4_addr; flags interval; }
add set inet routerd node_addresses { type ipv4_addr; }
add set inet routerd cluster6 { type ipv6_addr; flags interval; }
add set inet routerd covered6 { type ipv6_addr; flags interval; }
add set inet routerd pod_sources6 { type ipv6_addr; flags interval; }
add set inet routerd egress_ips6 { type ipv6_addr; }
add set inet routerd decided6 { type ifname . ipv6_addr; }
add set inet routerd no_pods6 { type ipv6_addr; }
add set inet routerd pools6 { type ipv6_addr; flags interval; }
add set inet routerd node_addresses6 { type ipv6_addr; }
add set inet routerd nodes { type ipv4_addr; }
add set inet routerd nodes6 { type ipv6_addr; }
add set inet routerd pod_devices { type ifname; }
add set inet routerd host_devices { type ifname; }
add set inet routerd hooked { type iface_index; }
add map inet routerd selected { type ifname . ipv4_addr : verdict; }
add map inet routerd selected6 { type ifname . ipv6_addr : verdict; }
add map inet routerd detoured { type ifname . ipv4_addr : verdict; }
add map inet routerd detoured6 { type ifname . ipv6_addr : verdict; }
add chain inet routerd prerouting { type filter hook prerouting priority -300; policy accept; }
flush chain inet routerd prerouting
add chain inet routerd came
flush chain inet routerd came
add chain inet routerd output { type filter hook output priority -300; policy accept; }
flush chain inet routerd output
add chain inet routerd forward { type filter hook forward priority -10; policy accept; }
flush chain inet routerd forward
add chain inet routerd input { type filter hook input priority -10; policy accept; }
flush chain inet routerd input
add chain inet routerd sent { type filter hook output priority -10; policy accept; }
flush chain inet routerd sent
add chain inet routerd foreign
flush chain inet routerd foreign
add chain inet routerd of_pods
flush chain inet routerd of_pods
add chain inet routerd SET
flush chain inet routerd SET
flush set inet routerd cluster
add element inet routerd cluster { 10.1.0.0/16, 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 }
flush set inet routerd cluster6
add element inet routerd cluster6 { fe80::/10, ff00::/8 }
flush set inet routerd covered
add element inet routerd covered { 0.0.0.0/0 }
flush set inet routerd covered6
flush set inet routerd decided
add element inet routerd decided { "bridge" . 10.1.0.6, "veth3" . 10.1.0.5 }
flush set inet routerd decided6
flush map inet routerd detoured
flush map inet routerd detoured6
flush set inet routerd egress_ips
flush set inet routerd egress_ips6
flush set inet routerd hooked
flush set inet routerd host_devices
add element inet routerd host_devices { "eth0", "lo" }
flush set inet routerd no_pods
add element inet routerd no_pods { 10.0.0.1 }
flush set inet routerd no_pods6
add element inet routerd no_pods6 { 2001:db8::2 }
flush set inet routerd node_addresses
flush set inet routerd node_addresses6
flush set inet routerd nodes
add element inet routerd nodes { 10.0.0.1 }
flush set inet routerd nodes6
add element inet routerd nodes6 { 2001:db8::2 }
flush set inet routerd pod_devices
add element inet routerd pod_devices { "bridge", "veth3" }
flush set inet routerd pod_sources
add element inet routerd pod_sources { 10.1.0.0/24 }
flush set inet routerd pod_sources6
flush set inet routerd pools
flush set inet routerd pools6
flush map inet routerd selected
add element inet routerd selected { "veth3" . 10.1.0.5 : jump SET }
flush map inet routerd selected6
add rule inet routerd prerouting udp dport 8473 iifname "eth0" ip daddr 10.0.0.1 ip saddr @nodes notrack accept
add rule inet routerd prerouting udp dport 8473 goto came
add rule inet routerd prerouting iifname @pod_devices jump of_pods
add rule inet routerd came iifname @pod_devices counter name forged drop
add rule inet routerd came iifname != @host_devices goto foreign
add rule inet routerd came ip saddr @nodes ip daddr @nodes notrack accept
add rule inet routerd came ip6 saddr @nodes6 ip6 daddr @nodes6 notrack accept
add rule inet routerd came goto foreign
add rule inet routerd output udp dport 8473 meta skuid 0-4294967295 goto foreign
add rule inet routerd output udp dport 8473 notrack
add rule inet routerd forward udp dport 8473 ct state != untracked jump foreign
add rule inet routerd forward ip option lsrr exists iifname != @host_devices counter name source_routed drop
add rule inet routerd forward ip option ssrr exists iifname != @host_devices counter name source_routed drop
add rule inet routerd forward exthdr rt exists iifname != @host_devices counter name source_routed drop
add rule inet routerd forward ip saddr @egress_ips iifname != @host_devices counter name forged drop
add rule inet routerd forward ip saddr @egress_ips ip daddr @egress_ips counter name forged drop
add rule inet routerd forward ip6 saddr @egress_ips6 iifname != @host_devices counter name forged drop
add rule inet routerd forward ip6 saddr @egress_ips6 ip6 daddr @egress_ips6 counter name forged drop
add rule inet routerd forward ct direction reply return
add rule inet routerd forward iifname @pod_devices ip saddr != @cluster ip saddr @covered ip daddr @cluster ip daddr != { 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 } iifname . ip saddr != @decided counter name foreign_source drop
add rule inet routerd forward ip daddr @cluster return
add rule inet routerd forward iifname . ip saddr vmap @selected
add rule inet routerd forward ip saddr @pod_sources ip daddr @covered iifname . ip saddr != @decided counter name undecided drop
add rule inet routerd forward iifname != @host_devices ip daddr @covered iifname . ip saddr != @decided counter name undecided drop
add rule inet routerd forward iifname @pod_devices ip6 saddr != @cluster6 ip6 saddr @covered6 ip6 daddr @cluster6 ip6 daddr != { fe80::/10, ff00::/8 } iifname . ip6 saddr != @decided6 counter name foreign_source drop
add rule inet routerd forward ip6 daddr @cluster6 return
add rule inet routerd forward iifname . ip6 saddr vmap @selected6
add rule inet routerd forward ip6 saddr @pod_sources6 ip6 daddr @covered6 iifname . ip6 saddr != @decided6 counter name undecided drop
add rule inet routerd forward iifname != @host_devices ip6 daddr @covered6 iifname . ip6 saddr != @decided6 counter name undecided drop
add rule inet routerd input udp dport 8473 ct state != untracked counter name forged drop
add rule inet routerd sent udp dport 8473 ct state != untracked goto foreign
add rule inet routerd foreign ip daddr @nodes counter name forged drop
add rule inet routerd foreign ip6 daddr @nodes6 counter name forged drop
add rule inet routerd of_pods ip saddr @no_pods counter name spoofed drop
add rule inet routerd of_pods iifname . ip saddr @decided return
add rule inet routerd of_pods ip saddr @pools counter name spoofed drop
add rule inet routerd of_pods ip saddr != @cluster ip saddr @covered ip daddr @cluster ip daddr != { 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 } counter name foreign_source drop
add rule inet routerd of_pods ip6 saddr @no_pods6 counter name spoofed drop
add rule inet routerd of_pods iifname . ip6 saddr @decided6 return
add rule inet routerd of_pods ip6 saddr @pools6 counter name spoofed drop
add rule inet routerd of_pods ip6 saddr != @cluster6 ip6 saddr @covered6 ip6 daddr @cluster6 ip6 daddr != { fe80::/10, ff00::/8 } counter name foreign_source drop
add rule inet routerd SET ip daddr { 0.0.0.0/0 } ip daddr != { 192.0.2.0/24 } tcp dport 80-443 counter name selected drop
add rule inet routerd SET ip daddr { 0.0.0.0/0 } ip daddr != { 192.0.2.0/24 } meta l4proto udp counter name selected drop
add rule inet routerd SET ip daddr { 0.0.0.0/0 } ip daddr != { 192.0.2.0/24 } meta l4proto icmp counter name selected drop
"""  # noqa: E501


def test_what_is_handed_to_the_host_is_untracked_and_leaves_by_uplinks_with_a_program() -> None:
    wanted = render(replace(DESIRED, network_policy="forward"), Facts(DEVICES, uplinks={"eth0": 2, 'a"b': 3}))
    mark = "meta mark and 0x1000 == 0x1000"
    assert wanted.chains["prerouting"][-1] == f"{mark} notrack"
    assert f"{mark} goto handed_in" in wanted.chains["forward"]
    assert wanted.chains["handed_in"] == ("oif @hooked accept", "counter name astray drop")
    assert wanted.sets["hooked"] == {"eth0"}
    assert "handed_in" not in render(DESIRED, Facts(DEVICES, uplinks={"eth0": 2})).chains


def test_nothing_that_is_handed_to_the_host_leaves_before_the_programs_are_there() -> None:
    forward, facts = replace(DESIRED, network_policy="forward"), Facts(DEVICES, uplinks={"eth0": 2})
    wanted = render(forward, facts)
    for present in (None, render(DESIRED, facts).digests(), render(forward, Facts(DEVICES)).digests()):
        assert early(wanted, present).sets["hooked"] == frozenset()
    assert early(wanted, wanted.digests()).sets["hooked"] == {"eth0"}
    assert "eth0" not in boot_text(wanted)


def test_the_host_bears_no_port_of_its_own_address_that_nodes_have() -> None:
    table = granules({2: [(61440, 128), (65472, 64)]})
    served = {IPv4Address("10.0.0.7"): Served(table, node_address=True), IPv4Address("192.0.2.7"): Served(table)}
    wanted = render(replace(DESIRED, served=served), Facts(DEVICES))
    (rule,) = wanted.chains["leaving"]
    assert rule.startswith("ip saddr 10.0.0.7 meta l4proto { tcp, udp, sctp } th sport { 61440-61567, 65472-65535 }")
    assert "add chain inet routerd leaving { type filter hook postrouting priority 110;" in transaction(wanted, None)
    before = render(DESIRED, Facts(DEVICES)).digests()
    assert "leaving" not in before.chains
    assert "delete table" not in transaction(wanted, before)  # nobody is undecided for its sake
    assert "delete chain inet routerd leaving" in transaction(render(DESIRED, Facts(DEVICES)), wanted.digests())


FAR, NEAR, WAY6 = IPv4Address("203.0.113.10"), IPv4Address("192.0.2.9"), IPv6Address("2001:db8:f::1")
NODES = frozenset({IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), IPv6Address("2001:db8::2")})


def detoured(*found: Detour, policy: Policy = WEB) -> Guard:
    desired = replace(DESIRED, policies={"web": policy}, detours=frozenset(found), node_addresses=NODES)
    return render(desired, Facts(DEVICES))


def test_no_pod_sends_with_an_address_of_a_node_but_one_that_is_its_own() -> None:
    found = render(replace(DESIRED, node_addresses=NODES | {POD, IPv4Address("10.50.0.2")}), Facts(DEVICES)).sets
    assert found["no_pods"] == {"10.0.0.1", "10.0.0.2", "10.50.0.2"}
    assert found["no_pods6"] == {"2001:db8::2"}


def detour_rules(guard: Guard) -> list[str]:
    return [rule for rules in guard.chains.values() for rule in rules if "counter name detour" in rule]


def test_what_a_service_leads_out_is_dropped_for_pods_of_policies_that_lead_there() -> None:
    own = frozenset({IPv4Address("10.96.0.7"), IPv4Address("10.96.0.8")})
    at_nodes, at_its_own = (
        Detour("TCP", 30443, frozenset({(FAR, 443)})),
        Detour("TCP", 8443, frozenset({(FAR, 0)}), own),
    )
    guard = detoured(at_nodes, at_its_own)
    assert detour_rules(guard) == [
        "ip daddr @node_addresses meta l4proto . th dport { tcp . 30443 } counter name detour drop",
        "ip daddr . meta l4proto . th dport { 10.96.0.7 . tcp . 8443, 10.96.0.8 . tcp . 8443 } "
        "counter name detour drop",
    ]
    assert guard.sets["node_addresses"] == {"10.0.0.1", "10.0.0.2"}
    (element,) = guard.sets["detoured"]
    assert element.startswith("veth3 . 10.1.0.5 : jump set-")
    forward = guard.chains["forward"]
    assert forward.index("iifname . ip saddr vmap @detoured") < forward.index("ip daddr @cluster return")
    undecided = [rule for rule in forward if "30443" in rule]
    assert [rule.partition(" ip daddr")[0] for rule in undecided] == [
        "ip saddr @pod_sources",
        "iifname != @host_devices",
    ]
    assert all(rule.endswith("iifname . ip saddr != @decided counter name undecided drop") for rule in undecided)
    assert not {"veth3", "30443 } counter name detour"} & {*boot_text(guard).split('"')}


NOT_LED = {  # the policy leads to TCP 80-443 of 0.0.0.0/0, without 192.0.2.0/24
    "an excluded network": Detour("TCP", 30443, frozenset({(NEAR, 443)})),
    "another port": Detour("TCP", 30443, frozenset({(FAR, 8443)})),
    "another protocol": Detour("SCTP", 30443, frozenset({(FAR, 443)})),
    "another family": Detour("TCP", 30443, frozenset({(WAY6, 443)})),
}


@pytest.mark.parametrize("why", NOT_LED)
def test_what_a_service_leads_elsewhere_goes_on(why: str) -> None:
    guard = detoured(NOT_LED[why])
    assert not detour_rules(guard) and not guard.sets["detoured"] and not guard.sets["detoured6"]
    assert guard.chains["forward"] == detoured().chains["forward"]


def test_one_end_that_is_led_out_is_enough() -> None:
    assert detour_rules(detoured(Detour("UDP", 30053, frozenset({(NEAR, 53), (FAR, 53)}))))


def test_a_service_of_ipv6_leads_out_of_a_policy_of_ipv6() -> None:
    both = replace(WEB, destinations=(IPv6Network("::/0"),), ports=())
    desired = replace(
        DESIRED, pods={SIX: ("web",)}, policies={"web": both}, node_addresses=NODES,
        detours=frozenset({Detour("UDP", 30053, frozenset({(WAY6, 53)}))}),
    )  # fmt: skip
    guard = render(desired, Facts({SIX: PodDevice(3, "veth3", "veth3", bytes(6), bytes(6))}))
    assert detour_rules(guard) == [
        "ip6 daddr @node_addresses6 meta l4proto . th dport { udp . 30053 } counter name detour drop"
    ]
    assert guard.sets["node_addresses6"] == {"2001:db8::2"}


def plain(text: str) -> str:
    """Without the rules' digests, and with one name for the only set."""
    lines = [line.partition(" comment ")[0] for line in text.splitlines()]
    chain = next(line.split()[4] for line in lines if line.startswith("add chain inet routerd set-"))
    return "\n".join(lines).replace(chain, "SET") + "\n"


def test_the_whole_table() -> None:
    facts = Facts(DEVICES, underlay="eth0", host_devices=frozenset({"eth0", "lo"}))
    assert plain(transaction(render(DESIRED, facts), None)) == GOLDEN


def test_every_rule_carries_its_digest() -> None:
    rules = [line for line in transaction(render(DESIRED, Facts(DEVICES)), None).splitlines() if "add rule" in line]
    for line in rules:
        rule, _, comment = line.partition(" comment ")
        assert comment == f'"{digest(rule.split(maxsplit=5)[5])}"'


def test_a_pod_without_a_device_is_undecided() -> None:
    sets = render(DESIRED, Facts(DEVICES)).sets
    assert not any(str(UNKNOWN) in element for name in ("decided", "selected") for element in sets[name])


def test_chains_that_are_not_wanted_any_more_are_deleted() -> None:
    before, after = render(DESIRED, Facts(DEVICES)), render(replace(DESIRED, policies={}, pods={}), Facts(DEVICES))
    chain = next(name for name in before.chains if name.startswith("set-"))
    lines = transaction(after, before).splitlines()
    assert lines[-2:] == [f"flush chain inet routerd {chain}", f"delete chain inet routerd {chain}"]
    assert lines.index("flush map inet routerd selected") < len(lines) - 2


def test_a_changed_policy_is_another_chain() -> None:
    before = set(render(DESIRED, Facts(DEVICES)).chains)
    after = set(render(replace(DESIRED, policies={"web": replace(WEB, excluded=())}), Facts(DEVICES)).chains)
    assert len(after - before) == 1


def test_early_decides_nothing_new() -> None:
    wanted = render(DESIRED, Facts(DEVICES))
    assert early(wanted, None).sets["decided"] == early(wanted, None).sets["selected"] == frozenset()
    assert early(wanted, wanted) == wanted
    released = render(replace(DESIRED, pods={POD: ()}), Facts(DEVICES))
    assert early(released, wanted).sets["selected"] == frozenset()


def test_a_pod_that_gets_more_policies_keeps_its_chain_until_its_map_entries_are_there() -> None:
    office = Policy("office", 8, (OFFICE,))
    policies = {"web": WEB, "office": office}
    one = render(replace(DESIRED, policies=policies, pods={POD: ("office",)}), Facts(DEVICES))
    two = render(replace(DESIRED, policies=policies, pods={POD: ("office", "web")}), Facts(DEVICES))
    more, fewer = early(two, one.digests()), early(one, two.digests())
    assert more.sets["selected"] == one.sets["selected"]  # the old chain, as the programs still do what is old
    assert fewer.sets["selected"] == one.sets["selected"]  # the new chain: the programs still take the rest
    [chain] = one.chains.keys() - two.chains.keys()
    assert more.digests().chains[chain] == one.digests().chains[chain]
    assert not [line for line in transaction(more, one.digests()).splitlines() if chain in line and "rule" in line]
    assert f"delete chain inet routerd {chain}" in transaction(two, more.digests())


def test_nothing_is_kept_of_a_table_that_is_made_anew() -> None:
    policies = {"web": WEB, "office": Policy("office", 8, (OFFICE,))}
    one = render(replace(DESIRED, policies=policies, pods={POD: ("office",)}), Facts(DEVICES)).digests()
    two = render(replace(DESIRED, policies=policies, pods={POD: ("office", "web")}), Facts(DEVICES))
    dormant = replace(one, frame={**one.frame, "table": "dormant"})
    assert early(two, dormant).sets["selected"] == frozenset()
    assert "=" not in transaction(early(two, dormant), dormant).replace("!=", "")


def test_chains_that_are_there_are_left() -> None:
    guard = render(DESIRED, Facts(DEVICES))
    assert not [line for line in transaction(guard, guard.digests()).splitlines() if "add rule" in line]


def test_what_nft_lists_is_read_back() -> None:
    document = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "routerd", "handle": 1}},
            {"counter": {"family": "inet", "name": "forged", "table": "routerd", "packets": 3, "bytes": 99}},
            {"set": {"name": "cluster", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "192.0.2.1"]}},
            {"set": {"name": "covered", "elem": [{"range": ["192.0.2.0", "192.0.2.2"]}]}},
            {"set": {"name": "nodes"}},
            {"set": {"name": "decided", "elem": [{"concat": ["veth3", "10.1.0.5"]}]}},
            {"map": {"name": "selected", "elem": [[{"concat": ["veth3", "10.1.0.5"]}, {"jump": {"target": "set-1"}}]]}},
            {"chain": {"name": "forward"}},
            {"chain": {"name": "set-1"}},
            {"rule": {"chain": "set-1", "comment": "aa"}},
            {"rule": {"chain": "set-1", "expr": []}},
        ]
    }
    sets = {
        "cluster": frozenset({"10.0.0.0/8", "192.0.2.1"}),
        "covered": frozenset({"192.0.2.0-192.0.2.2"}),
        "nodes": frozenset[str](),
        "decided": frozenset({"veth3 . 10.1.0.5"}),
        "selected": frozenset({"veth3 . 10.1.0.5 : jump set-1"}),
    }
    found = parse(document)
    assert found
    assert (found.sets, found.chains) == (sets, {"forward": (), "set-1": ("aa", "")})
    assert parse_counters(document) == {"forged": 3}


def test_no_table_is_none() -> None:
    assert parse({}) is None
    assert parse({"nftables": [{"metainfo": {}}]}) is None


def test_a_pod_outside_the_pod_cidrs_is_a_suspect_all_the_same() -> None:
    stray = IPv4Address("172.20.5.9")
    sets = render(replace(DESIRED, pods={stray: ("web",)}), Facts()).sets
    assert sets["pod_sources"] == {"10.1.0.0/24", "172.20.5.9"}


BOTH = replace(
    WEB, destinations=(*WEB.destinations, IPv6Network("::/0")), excluded=(OFFICE, IPv6Network("2001:db8:9::/48"))
)
DUAL = replace(
    DESIRED, policies={"web": BOTH}, pods={POD: ("web",), SIX: ("web",), PLAIN: (), PLAIN6: ()},
    cluster=frozenset({IPv6Network("2001:db8:1::/48")}),
    pod_cidrs=frozenset({IPv4Network("10.1.0.0/24"), IPv6Network("2001:db8:1::/64")}),
)  # fmt: skip


def verdicts(guard: Guard, name: str) -> dict[str, tuple[str, ...]]:
    """Key -> rules of the chain that it leads to."""
    pairs = (element.split(" : jump ") for element in guard.sets[name])
    return {key: guard.chains[chain] for key, chain in pairs}


def test_what_is_forwarded_of_a_selected_pods_ipv6_is_dropped_where_its_policies_cover_it() -> None:
    guard = render(DUAL, Facts({POD: DEVICES[POD], SIX: DEVICES[POD]}))
    [rules] = verdicts(guard, "selected6").values()
    assert verdicts(guard, "selected6").keys() == {f"veth3 . {SIX}"}
    assert rules[0] == "ip6 daddr { ::/0 } ip6 daddr != { 2001:db8:9::/48 } tcp dport 80-443 counter name selected drop"
    assert rules[-1].endswith("meta l4proto icmpv6 counter name selected drop")
    assert all("ip6" not in rule for rules in verdicts(guard, "selected").values() for rule in rules)
    assert guard.sets["cluster6"] == {"2001:db8:1::/48", "fe80::/10", "ff00::/8"}


def test_on_a_bridge_a_known_address_is_its_pods_and_an_unknown_one_is_anybodys() -> None:
    port = replace(DEVICES[POD], forward_name="bridge")
    guard = render(DUAL, Facts({POD: port, SIX: port, PLAIN: DEVICES[PLAIN], PLAIN6: DEVICES[PLAIN]}))
    assert guard.sets["decided6"] == {f"bridge . {SIX}", f"bridge . {PLAIN6}"}
    assert verdicts(guard, "selected6").keys() == {f"bridge . {SIX}"}


def test_ipv6_of_a_pod_that_is_not_known_yet_is_dropped_where_any_policy_covers_it() -> None:
    guard = render(DUAL, Facts(DEVICES, host_devices=frozenset({"eth0"})))
    assert guard.sets["covered6"] == {"::/0"}
    assert guard.sets["pod_sources6"] == {"2001:db8:1::/64"}
    assert guard.sets["host_devices"] == {"eth0"}
    suspects = [rule for rule in guard.chains["forward"] if "ip6 daddr @covered6" in rule]
    assert ["@pod_sources6" in rule for rule in suspects] == [True, False]
    assert all(rule.endswith("undecided drop") for rule in suspects)


STRAY = IPv4Address("172.20.5.9")
BRIDGED = PodDevice(10, "veth10", "br0", bytes(6), bytes(6))


@pytest.mark.parametrize(
    ("behind", "own", "found"),
    [
        ({STRAY: [BRIDGED]}, {}, set()),  # a container beside the cluster
        ({PLAIN: [BRIDGED]}, {}, {"br0"}),
        ({IPv4Address("10.1.0.99"): [BRIDGED]}, {}, {"br0"}),  # in the pod CIDRs, and not in the store yet
        ({}, {IPv4Address("10.1.0.1"): "br0", STRAY: "eth0"}, {"br0"}),  # no pod is on it yet
        ({POD: [DEVICES[POD]]}, {STRAY: "docker0"}, set()),
    ],
)
def test_a_bridge_is_one_of_pods_by_the_addresses_on_it(
    behind: dict[IPv4Address, list[PodDevice]], own: dict[IPv4Address, str], found: set[str]
) -> None:
    assert pod_bridges(DESIRED, dict(behind), dict(own)) == found


def test_tunnel_packets_may_come_by_the_underlay_even_where_pods_are_on_it() -> None:
    assert render(DESIRED, Facts(DEVICES)).sets["pod_devices"] == {"bridge", "veth3"}
    assert render(DESIRED, Facts(DEVICES, underlay="bridge")).sets["pod_devices"] == {"veth3"}
    seconds = Facts(DEVICES, second_devices=frozenset({"net1", "eth9", 'a"b'}), host_devices=frozenset({"eth9"}))
    assert render(DESIRED, seconds).sets["pod_devices"] == {"bridge", "veth3", "net1"}, "unless it is the host's"
