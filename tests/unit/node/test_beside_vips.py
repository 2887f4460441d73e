"""ExternalIPs and ClusterIPs of Services: which are announced, and why not the others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from routerd.model import (
    EXCLUDE_LABEL,
    Allocations,
    EgressGroup,
    LabelSelector,
    Node,
    Peer,
    Peering,
    Service,
    Snapshot,
)
from routerd.node.announce import Announcements, announcements
from routerd.node.checks import Rules
from tests.models import cluster
from tests.models.cluster import LOCAL, SESSION, TOR

RULES = Rules(
    egress_ips=False,
    external_ips=(ip_network("203.0.113.0/28"), ip_network("2001:db8:f::/64")),
    cluster_ips=(ip_network("10.96.0.0/12"),),
)
OUTSIDE, INSIDE = "203.0.113.5", "10.96.0.10"


def web(**fields: Any) -> Service:
    return cluster.service("web", **{"type": "ClusterIP", "external_ips": (ip_address(OUTSIDE),), **fields})


def announced(service: Service, rules: Rules = RULES, **fields: Any) -> Announcements:
    snapshot: Snapshot = cluster.snapshot(services={service.key: service}, **fields)
    found = announcements(snapshot, "a", rules, LOCAL)
    assert found is not None
    return found


def outcome(found: Announcements) -> tuple[list[str], list[str]]:
    prefixes = sorted(str(prefix) for prefix in found.desired.ribs[SESSION])
    return prefixes, [f"{refusal.reason}: {refusal.message}" for refusal in found.refusals]


def test_both_kinds_are_announced_of_any_type_of_service() -> None:
    assert outcome(announced(web())) == ([f"{INSIDE}/32", f"{OUTSIDE}/32"], [])
    balanced = outcome(announced(web(type="LoadBalancer")))
    assert balanced == (["10.96.0.10/32", "192.0.2.1/32", "203.0.113.5/32"], [])
    without_vips = outcome(announced(web(type="LoadBalancer"), replace(RULES, services=False)))
    assert without_vips == ([f"{INSIDE}/32", f"{OUTSIDE}/32"], [])
    assert outcome(announced(web(type="ExternalName"))) == ([], [])


def test_nothing_of_it_is_announced_unless_its_networks_are_named() -> None:
    assert outcome(announced(web(), Rules(egress_ips=False))) == ([], [])


def test_an_address_outside_the_networks_is_told() -> None:
    found = outcome(announced(web(external_ips=(ip_address("198.51.100.1"), ip_address(OUTSIDE)))))
    message = "ExternalIP 198.51.100.1: it lies outside bgp.announce.external-ips (203.0.113.0/28, 2001:db8:f::/64)"
    assert found == ([f"{INSIDE}/32", f"{OUTSIDE}/32"], [f"ExternalIPNotAllowed: {message}"])
    found = outcome(announced(web(external_ips=(), cluster_ips=(ip_address("172.30.0.1"),))))
    assert found == (
        [],
        ["ClusterIPNotAllowed: ClusterIP 172.30.0.1: it lies outside bgp.announce.cluster-ips (10.96.0.0/12)"],
    )


@pytest.mark.parametrize(
    ("service", "left"),
    [
        (web(external_traffic_policy="Local"), [f"{INSIDE}/32"]),
        (web(internal_traffic_policy="Local"), [f"{OUTSIDE}/32"]),
    ],
)
def test_each_kind_heeds_its_own_traffic_policy(service: Service, left: list[str]) -> None:
    elsewhere = (cluster.endpoints("web", "b"),)
    prefixes, refusals = outcome(announced(service, endpoint_slices=elsewhere))
    assert (prefixes, [refusal.partition(":")[0] for refusal in refusals]) == (left, ["NoLocalEndpoints"])
    assert outcome(announced(service, endpoint_slices=(cluster.endpoints("web", "a"),)))[1] == []


def node(**fields: Any) -> dict[str, Node]:
    return {"a": replace(cluster.node("a", 11), **fields), "b": cluster.node("b", 12)}


LEFT_WITH = EgressGroup(1, ip_address(OUTSIDE), ("EgressPolicy/p",), ("b",))
ELSEWHERE = Peer(ip_address(OUTSIDE), 1, 2, node_selectors=(LabelSelector((("rack", "2"),)),))


@pytest.mark.parametrize(
    ("reason", "fields", "left"),
    [
        ("NodeExcluded", {"nodes": node(labels={EXCLUDE_LABEL: ""})}, [f"{INSIDE}/32"]),
        ("NetworkUnavailable", {"nodes": node(network_unavailable=True)}, []),
        ("NoEndpoints", {"endpoint_slices": (cluster.endpoints("web", "a", version=6),)}, []),
        ("AddressTaken", {"nodes": node(addresses=(ip_address(OUTSIDE),))}, [f"{INSIDE}/32"]),
        ("AddressTaken", {"nodes": {**node(), "c": Node("c", addresses=(ip_address(OUTSIDE),))}}, [f"{INSIDE}/32"]),
        ("AddressTaken", {"bgp": Peering((Peer(TOR, 1, 2), ELSEWHERE))}, [f"{INSIDE}/32"]),
        ("AddressTaken", {"allocations": Allocations(1, groups=(LEFT_WITH,))}, [f"{INSIDE}/32"]),
    ],
)
def test_what_a_node_must_not_announce(reason: str, fields: dict[str, Any], left: list[str]) -> None:
    prefixes, refusals = outcome(announced(web(), **fields))
    assert (prefixes, {refusal.partition(":")[0] for refusal in refusals}) == (left, {reason})


def test_each_family_asks_for_endpoints_of_its_own() -> None:
    both = web(external_ips=(ip_address(OUTSIDE), ip_address("2001:db8:f::5")), cluster_ips=())
    prefixes, refusals = outcome(announced(both))
    assert (prefixes, [refusal.partition(":")[0] for refusal in refusals]) == ([f"{OUTSIDE}/32"], ["NoEndpoints"])
