"""What is kept of the cluster's networks and of policies from plan to plan is what is made of them anew."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import collapse_addresses, ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from egress import plan
from egress.entries import NOBODYS, OF_THE_LINK, places
from egress.host.links import PodDevice
from egress.kept import Elements, Kept, Places, merged
from egress.policy import Desired, IPAddress, IPNetwork, Policy, Ports
from tests.models.node import FakeNode

BASES = ["10.0.0.0", "10.0.1.0", "10.0.255.0", "169.254.0.0", "240.0.0.0", "192.0.2.0", "fd00::", "fd00::100", "fe80::"]


def network(base: str, last: int, length: int) -> IPNetwork:
    address = ip_address(base) + last
    return ip_network(f"{address}/{length if address.version == 4 else length + 96}", strict=False)


NETWORKS = st.builds(network, st.sampled_from(BASES), st.integers(0, 7), st.sampled_from([8, 16, 23, 24, 25, 31, 32]))
KNOWN = st.sampled_from(sorted({*NOBODYS, *OF_THE_LINK}, key=str))
CLUSTERS = st.lists(st.frozensets(st.one_of(NETWORKS, KNOWN), max_size=12), max_size=5)


ADDRESSES: list[IPAddress] = [*map(ip_address, ["10.1.0.5", "10.1.0.6", "fd01::5"])]
DEVICES = {a: PodDevice(7 + n, f"veth{n}", f"veth{n}", bytes(6), bytes(6)) for n, a in enumerate(ADDRESSES)}
SOME = st.lists(NETWORKS, max_size=4).map(tuple)
PORTS = st.sampled_from([(), (Ports("TCP", 80, 90),)])
POLICIES = st.fixed_dictionaries(
    {name: st.builds(Policy, st.just(name), st.integers(0, 2), SOME, SOME, PORTS) for name in "abc"}
)
PODS = st.dictionaries(st.sampled_from(ADDRESSES), st.sets(st.sampled_from("abc")).map(sorted).map(tuple))
LIVES = st.lists(st.tuples(POLICIES, st.lists(PODS, min_size=1, max_size=3)), max_size=3)


def whole(networks: Any) -> list[IPNetwork]:
    return [each for version in (4, 6) for each in collapse_addresses(n for n in networks if n.version == version)]


@given(CLUSTERS)
def test_places(clusters: list[frozenset[IPNetwork]]) -> None:
    kept = Places()
    for cluster in clusters:
        assert kept.update(cluster) == places(Desired("n", None, cluster=cluster))


@given(CLUSTERS)
def test_elements_cover_the_same_and_do_not_overlap(clusters: list[frozenset[IPNetwork]]) -> None:
    kept = Elements()
    for cluster in clusters:
        texts = kept.update(cluster)
        found = [ip_network(text) for version in (4, 6) for text in texts[version]]
        assert whole(found) == whole(cluster)
        assert sum(each.num_addresses for each in found) == sum(each.num_addresses for each in whole(cluster))
        assert texts == Elements().update(cluster)


@given(st.frozensets(NETWORKS, max_size=12))
def test_merged_networks_are_those_that_collapse(networks: frozenset[IPNetwork]) -> None:
    for version in (4, 6):
        collapsed = collapse_addresses(each for each in networks if each.version == version)  # type: ignore[type-var]
        assert {ip_network(text) for text in merged(networks, version)} == {*collapsed}


@settings(max_examples=40)
@given(LIVES)
def test_plans_of_policies_are_the_same(lives: list[tuple[dict[str, Policy], list[dict[IPAddress, Any]]]]) -> None:
    kept, node = Kept(), FakeNode(DEVICES)
    for policies, each in lives:
        for pods in each:
            desired = Desired("n", ip_address("10.0.0.11"), pods=pods, policies=policies)
            actions = plan.plan(desired, node.observe(), kept)
            assert actions == plan.plan(desired, node.observe())
            for action in actions:
                node.apply(action)


@given(CLUSTERS)
def test_plans_are_the_same(clusters: list[frozenset[IPNetwork]]) -> None:
    kept, node = Kept(), FakeNode()
    desired = Desired("n", ip_address("10.0.0.11"))
    for cluster in clusters:
        desired = replace(desired, cluster=cluster)
        actions = plan.plan(desired, node.observe(), kept)
        assert actions == plan.plan(desired, node.observe())
        for action in actions:
            node.apply(action)
