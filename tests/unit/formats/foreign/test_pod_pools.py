"""Pools of pods' addresses: Calico's and Antrea's IPPool, Cilium's CiliumPodIPPool."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from routerd.cluster.pod_cidrs import give_blocks
from routerd.errors import InputError
from routerd.model import AddressPool, ClusterCIDR, LabelSelector, Node, Origin, PodPool
from routerd.selectors import Requirement
from routerd.store.merge import merge
from tests.models.manifests import read_text

CALICO = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: "
CILIUM = "apiVersion: cilium.io/v2\nkind: CiliumPodIPPool\nmetadata: {name: p}\nspec: "
ANTREA = "apiVersion: crd.antrea.io/v1beta1\nkind: IPPool\nmetadata: {name: p}\nspec: "
V4 = ip_network("10.244.0.0/16")


def read(text: str) -> AddressPool | PodPool | None:
    loaded = read_text(text, "f.yaml")
    pools = [each.object for each in loaded.entries if isinstance(each.object, AddressPool | PodPool)]
    return pools[0] if pools else None


def of_pods(text: str) -> PodPool:
    found = read(text)
    assert isinstance(found, PodPool) and found.origin == Origin("f.yaml", 1)
    return found


def refusal(text: str) -> str:
    (found,) = read_text(text, "f.yaml").refusals
    return f"{found.object} {found.reason}: {found.message}"


def test_calico_s_pool_gives_blocks_of_its_size_to_the_nodes_that_it_selects() -> None:
    plain = of_pods(CALICO + "{cidr: 10.244.0.0/16, ipipMode: Always, natOutgoing: true}")
    assert (plain.networks, plain.cidrs, plain.nodes) == ((V4,), (ClusterCIDR(V4, 26),), None)
    assert (plain.disabled, plain.asked_only, plain.announced) == (False, False, True)
    other = of_pods(
        CALICO + "{cidr: 10.244.0.0/16, blockSize: 24, nodeSelector: \"rack == 'a' && has(gpu)\", disabled: true, "
        "assignmentMode: Manual, disableBGPExport: true, allowedUses: [Workload, Tunnel]}"
    )
    assert other.cidrs == (ClusterCIDR(V4, 24),)
    assert (other.disabled, other.asked_only, other.announced) == (True, True, False)
    assert other.nodes == LabelSelector((), (Requirement("rack", "In", ("a",)), Requirement("gpu", "Exists")))
    six = of_pods(CALICO + '{cidr: "fd00::/48"}')
    assert six.cidrs[0].node_prefix == 64, "65,536 blocks at most"


@pytest.mark.parametrize("cidr", ["10.9.0.0/28", "10.9.0.1/32", "fd00::/126"])
def test_a_calico_pool_smaller_than_its_blocks_is_one_block(cidr: str) -> None:
    (one,) = of_pods(CALICO + f'{{cidr: "{cidr}"}}').cidrs
    assert (one.network, one.node_prefix) == (ip_network(cidr), ip_network(cidr).prefixlen)
    given = give_blocks((one,), (), {"a": Node("a")}, {}, (), now=0.0)
    assert [each.block for each in given.records] == [ip_network(cidr)]


@pytest.mark.parametrize(
    ("text", "labels", "is_taken"),
    [
        ("all()", {}, True),
        ("!has(a)", {}, True),
        ("a != 'x'", {}, True),
        ("a in {'x', \"y\"}", {"a": "y"}, True),
        ("a not in { 'x' }", {"a": "x"}, False),
        ("all() && a=='x'", {"a": "x"}, True),
        ("a == 'x' && b == 'y'", {"a": "x"}, False),
    ],
)
def test_calico_s_selectors(text: str, labels: dict[str, str], is_taken: bool) -> None:
    pool = of_pods(f"{CALICO}\n  cidr: 10.244.0.0/16\n  nodeSelector: {text!r}\n".replace("\\'", "''"))
    assert (pool.nodes is None or pool.nodes.matches(labels)) == is_taken


@pytest.mark.parametrize("text", ["a == 'x' || b == 'y'", "a contains 'x'", "a ==", "(has(a))", "a in {}", "has(a b)"])
def test_what_a_label_selector_cannot_say_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="of the selector is not read"):
        read(f'{CALICO}\n  cidr: 10.244.0.0/16\n  nodeSelector: "{text}"\n')


def test_calico_s_pool_of_services_is_an_address_pool() -> None:
    pool = read(CALICO + "{cidr: 192.0.2.0/24, allowedUses: [LoadBalancer], disableBGPExport: true}")
    assert isinstance(pool, AddressPool)
    assert (pool.blocks, pool.uses) == ((ip_network("192.0.2.0/24"),), frozenset({"loadbalancer"}))
    assert (pool.protocol, pool.advertisements) == ("layer2", ()), "nothing of it is announced by BGP"
    announced = read(CALICO + "{cidr: 192.0.2.0/24, allowedUses: [LoadBalancer], assignmentMode: Manual}")
    assert isinstance(announced, AddressPool) and len(announced.advertisements) == 1 and not announced.auto_assign
    assert read(CALICO + "{cidr: 192.0.2.0/24, allowedUses: [Tunnel]}") is None


def test_what_calico_can_say_and_we_cannot_do_is_refused_by_name() -> None:
    assert refusal(CALICO + "{cidr: 10.244.0.0/16, namespaceSelector: \"team == 'a'\"}").startswith(
        "IPPool/p NamespaceSelectorNotSupported: f.yaml:4:"
    )
    with pytest.raises(InputError, match="LoadBalancer goes with no other use"):
        read(CALICO + "{cidr: 10.244.0.0/16, allowedUses: [Workload, LoadBalancer]}")


def test_cilium_s_pool_has_a_mask_for_each_family_and_reserves_ranges() -> None:
    pool = of_pods(
        CILIUM + "{ipv4: {maskSize: 26, cidrs: [{cidr: 10.244.0.0/24, reservedRange: 10.244.0.0-10.244.0.127}]}, "
        'ipv6: {maskSize: 120, cidrs: [{cidr: "fd00::/104"}]}}'
    )
    small, six = ip_network("10.244.0.0/24"), ip_network("fd00::/104")
    assert pool.cidrs == (ClusterCIDR(small, 26), ClusterCIDR(six, 120))
    assert pool.reserved == (ip_network("10.244.0.0/25"),)
    assert pool.networks == (ip_network("10.244.0.128/25"), six), "what is reserved is nobody's"
    assert pool.asked_only and not of_pods((CILIUM + OLD).replace("name: p", "name: default")).asked_only


OLD = "{ipv4: {maskSize: 26, cidrs: [10.244.0.0/16]}}"


def test_cilium_s_older_version_has_plain_cidrs() -> None:
    assert of_pods(CILIUM + OLD).cidrs == (ClusterCIDR(V4, 26),)


def test_cilium_s_pool_selects_pods_and_namespaces() -> None:
    plain = of_pods(CILIUM + OLD)
    assert (plain.for_pods, plain.for_namespaces) == (None, None)
    selecting = "{podSelector: {matchLabels: {app: db}}, namespaceSelector: {}, ipv4"
    pool = of_pods(CILIUM + OLD.replace("{ipv4", selecting))
    assert (pool.for_pods, pool.for_namespaces) == (LabelSelector((("app", "db"),)), LabelSelector())
    with pytest.raises(InputError, match="operator"):
        read(CILIUM + OLD.replace("{ipv4", "{podSelector: {matchExpressions: [{key: a, operator: Near}]}, ipv4"))


def test_antrea_s_pool_says_who_may_have_what_and_gives_nodes_nothing() -> None:
    pool = of_pods(ANTREA + "{ipRanges: [{start: 10.0.0.4, end: 10.0.0.7}, {cidr: 10.0.1.0/24}], subnetInfo: {}}")
    assert (pool.networks, pool.cidrs) == ((ip_network("10.0.0.4/30"), ip_network("10.0.1.0/24")), ())


def test_of_two_pools_that_overlap_the_later_one_is_refused_and_names_are_apart_from_those_of_services() -> None:
    texts = (
        CALICO + "{cidr: 10.244.0.0/16}", (CILIUM + OLD).replace("name: p", "name: other"),
        CILIUM + OLD.replace("10.244", "10.245"), (ANTREA + "{ipRanges: [{cidr: 10.244.1.0/24}]}").replace("p}", "a}"),
        "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec: {blocks: [10.244.9.0/24]}",
    )  # fmt: skip
    found = merge([read_text(text, f"{number}.yaml") for number, text in enumerate(texts)], allocations=None)
    assert set(found.pod_pools) == {"p", "a"} and set(found.pools or {}) == {"p"}
    assert [f"{each.object} {each.reason}: {each.message}" for each in found.refusals] == [
        "CiliumPodIPPool/other Conflicting: 1.yaml:1: 10.244.0.0/16 overlaps with 10.244.0.0/16 of pool p (0.yaml:1); "
        "pool other is not used",
        "CiliumPodIPPool/p Duplicate: 2.yaml:1: pool p is already defined at 0.yaml:1",
    ]
