"""Policies and pools of Antrea and OVN-Kubernetes: what is meant is taken, the rest is told by name."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routerd.formats.objects import Loaded
from routerd.model import AddressPool, EgressPolicy, Origin, PodSelection
from routerd.selectors import EVERYTHING, LabelSelector, Requirement
from routerd.store.merge import merge
from tests.models.manifests import read_text

HEAD = "apiVersion: crd.antrea.io/v1beta1\nkind: {}\nmetadata: {{name: x}}\nspec:\n"
APPLIED = "  appliedTo: {podSelector: {matchLabels: {app: web}}}\n"
WEB = LabelSelector((("app", "web"),))
IPV4, IPV6 = ip_network("0.0.0.0/0"), ip_network("::/0")


def told(loaded: Loaded) -> list[str]:
    return [f"{each.object} {each.reason}: {each.message}" for each in loaded.refusals]


def egress(text: str, kind: str = "Egress") -> EgressPolicy:
    loaded = read_text(HEAD.format(kind) + text, "f.yaml")
    (entry,) = loaded.entries
    assert isinstance(entry.object, EgressPolicy) and str(entry.ref) == f"{kind}/x"
    return replace(entry.object, origin=Origin())


def pool(text: str) -> tuple[AddressPool | None, list[str]]:
    loaded = read_text(HEAD.format("ExternalIPPool") + text, "f.yaml")
    pools = [entry.object for entry in loaded.entries if isinstance(entry.object, AddressPool)]
    return (pools[0] if pools else None), told(loaded)


def test_an_egress_takes_all_that_leaves_in_the_family_of_its_address() -> None:
    found = egress(APPLIED + "  egressIP: 203.0.113.1\n")
    expected = EgressPolicy(
        "x", "Egress", (PodSelection(WEB),), (IPV4,), egress_ip=ip_address("203.0.113.1"), gateways=None
    )
    assert found == expected
    assert egress(APPLIED + "  egressIP: 2001:db8::1\n").destinations == (IPV6,)
    old = HEAD.format("Egress").replace("v1beta1", "v1alpha2") + APPLIED + "  egressIP: 203.0.113.1\n"
    assert [str(each.ref) for each in read_text(old).entries] == ["Egress/x"]


@pytest.mark.parametrize(
    ("cidr", "destinations"), [("192.0.2.0/29", (IPV4,)), ("2001:db8::/64", (IPV6,)), ("", (IPV4, IPV6))]
)
def test_an_egress_of_a_pool_takes_all_that_leaves_in_the_families_of_the_pool(cidr: str, destinations: object) -> None:
    found = egress(APPLIED + "  externalIPPool: x\n")
    assert (found.pool, found.egress_ip) == ("x", None)
    pools = [read_text(POOL.replace("192.0.2.0/29", f'"{cidr}"'))] if cidr else []
    files = [*pools, read_text(HEAD.format("Egress") + APPLIED + "  externalIPPool: x\n")]
    (policy,) = (merge(files, allocations=None).policies or {}).values()
    assert policy.destinations == destinations


def test_an_address_that_antrea_has_taken_from_the_pool_stays() -> None:
    found = egress(APPLIED + "  externalIPPool: p\n  egressIP: 203.0.113.1\n")
    assert (found.pool, found.egress_ips) == ("", (ip_address("203.0.113.1"),))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("  appliedTo: {}\n  egressIP: 203.0.113.1\n",
         "NoSelectors: f.yaml:5:14: spec.appliedTo: neither podSelector nor namespaceSelector: the policy selects no "
         "pod"),
        (APPLIED, "NoEgressIP: f.yaml:5:3: spec: neither egressIP nor externalIPPool"),
        (APPLIED + "  egressIP: 224.0.0.1\n",
         "InvalidEgressIP: f.yaml:6:13: spec.egressIP: 224.0.0.1 cannot be an egress IP: multicast"),
        (APPLIED + "  egressIPs: [203.0.113.1]\n",
         "SeveralAddresses: f.yaml:6:14: spec.egressIPs: egressIPs is not supported, nor is it by Antrea: write an "
         "EgressPolicy with egressIPs, or pool and count"),
        (APPLIED + "  egressIP: x\n", 'InvalidObject: f.yaml:6:13: spec.egressIP: found "x", expected an IP address'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_what_it_covers_is_known(spec: str, reason: str) -> None:
    loaded = read_text(HEAD.format("Egress") + spec, "f.yaml")
    assert told(loaded) == [f"Egress/x {reason}"]
    if "appliedTo: {}" not in spec:
        found = egress(spec)
        assert found.refused and found.destinations == (IPV4, IPV6) and found.selections == (PodSelection(WEB),)


def test_a_bandwidth_is_told_and_the_rest_is_done() -> None:
    spec = APPLIED + "  egressIP: 203.0.113.1\n  bandwidth: {rate: 10M, burst: 1M}\n"
    loaded = read_text(HEAD.format("Egress") + spec, "f.yaml")
    assert told(loaded) == ["Egress/x BandwidthNotLimited: f.yaml:7:14: spec.bandwidth: traffic is not limited"]
    assert [each.severity for each in loaded.refusals] == ["warning"] and not egress(spec).refused


def test_a_pool_gives_what_antrea_gives_to_who_asks_for_it() -> None:
    found, refusals = pool(
        "  ipRanges: [{cidr: 192.0.2.0/29}, {start: 198.51.100.7, end: 198.51.100.8}, {cidr: '2001:db8::/126'}]\n"
        "  nodeSelector: {matchLabels: {app: web}}\n"
    )
    assert found is not None and not refusals
    given = [str(address) for block in found.blocks for address in block]
    assert given == [
        *(f"192.0.2.{number}" for number in range(1, 7)), "198.51.100.7", "198.51.100.8",
        "2001:db8::1", "2001:db8::2", "2001:db8::3",
    ]  # fmt: skip
    assert (found.uses, found.auto_assign, found.gateways) == ({"egress", "loadbalancer"}, False, WEB)


@pytest.mark.parametrize("cidr", ["192.0.2.0/31", "192.0.2.0/32", "2001:db8::/128"])
def test_a_pool_without_an_address_is_refused(cidr: str) -> None:
    found, refusals = pool(f"  ipRanges: [{{cidr: '{cidr}'}}]\n  nodeSelector: {{}}\n")
    assert found is None
    assert refusals == [
        "ExternalIPPool/x InvalidAddresses: f.yaml:5:13: spec.ipRanges: no address is left: of a CIDR the first "
        "address is not given, and of IPv4 not the last one"
    ]


def test_a_subnet_is_told() -> None:
    found, refusals = pool(
        "  ipRanges: [{cidr: 192.0.2.0/29}]\n  nodeSelector: {}\n  subnetInfo: {gateway: 192.0.2.1, prefixLength: 24}\n"
    )
    assert found is not None and found.gateways == EVERYTHING
    assert refusals == [
        "ExternalIPPool/x SubnetNotUsed: f.yaml:7:15: spec.subnetInfo: what has an address of the pool leaves by the "
        "node's own routes, not by this gateway or VLAN"
    ]


POOL = HEAD.format("ExternalIPPool") + "  ipRanges: [{cidr: 192.0.2.0/29}]\n  nodeSelector: {matchLabels: {app: web}}\n"


@pytest.mark.parametrize(
    ("spec", "gateways"),
    [
        ("  externalIPPool: x\n", WEB),
        ("  externalIPPool: x\n  egressIP: 192.0.2.2\n", WEB),
        ("  egressIP: 192.0.2.2\n", WEB),
        ("  egressIP: 203.0.113.1\n", None),
        ("  externalIPPool: other\n", None),
    ],
)
def test_a_pool_says_which_nodes_are_gateways_of_its_addresses(spec: str, gateways: LabelSelector | None) -> None:
    files = [read_text(POOL), read_text(HEAD.format("Egress") + APPLIED + spec)]
    (policy,) = (merge(files, allocations=None).policies or {}).values()
    assert policy.gateways == gateways


def test_a_policy_of_ours_that_says_its_gateways_keeps_them() -> None:
    ours = (
        "apiVersion: routerd.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: x}\nspec: {selectors: "
        "[{podSelector: {}}], destinationCIDRs: [0.0.0.0/0], pool: x, gateways: {nodeSelector: {}}}\n"
    )
    (policy,) = (merge([read_text(POOL), read_text(ours)], allocations=None).policies or {}).values()
    assert policy.gateways == EVERYTHING


# --- OVN-Kubernetes

OVN = HEAD.format("EgressIP").replace("crd.antrea.io/v1beta1", "k8s.ovn.org/v1")


def egress_ip(text: str) -> tuple[EgressPolicy, list[str]]:
    loaded = read_text(OVN + text, "f.yaml")
    (entry,) = loaded.entries
    assert isinstance(entry.object, EgressPolicy)
    return replace(entry.object, origin=Origin()), told(loaded)


def test_an_egress_ip_takes_all_that_leaves_in_the_families_of_its_addresses() -> None:
    found, refusals = egress_ip(
        "  egressIPs: [203.0.113.1, 203.0.113.2, 203.0.113.1]\n  namespaceSelector: {}\n"
        "  podSelector: {matchLabels: {app: web}}\n"
    )
    assert not refusals
    assert found == EgressPolicy(
        "x", "EgressIP", (PodSelection(WEB, EVERYTHING),), (IPV4,), egress_ip=ip_address("203.0.113.1"),
        further_ips=(ip_address("203.0.113.2"),),
        gateways=LabelSelector((), (Requirement("k8s.ovn.org/egress-assignable", "Exists"),)),
    )  # fmt: skip
    both, _ = egress_ip("  egressIPs: [203.0.113.1, '2001:db8::1']\n  namespaceSelector: {}\n")
    assert both.destinations == (IPV4, IPV6) and both.selections == (PodSelection(None, EVERYTHING),)


def test_an_egress_ip_with_too_many_addresses_is_refused_and_covers_what_it_says() -> None:
    many = ", ".join(f"203.0.113.{number}" for number in range(1, 18))
    found, refusals = egress_ip(f"  egressIPs: [{many}]\n  namespaceSelector: {{}}\n")
    assert found.refused and found.destinations == (IPV4, IPV6)
    assert refusals == [
        "EgressIP/x TooManyAddresses: f.yaml:5:14: spec.egressIPs: found 17 addresses, at most 16 are taken of "
        "one policy"
    ]
