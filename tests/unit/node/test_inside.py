"""What counts as in the cluster, and that no user's word does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from routerd.model import (
    Allocations,
    Endpoint,
    EndpointSlice,
    IPAddress,
    NodeAddresses,
    Origin,
    PodSelection,
    Service,
    Snapshot,
)
from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from routerd.node.inside import Inside, in_cluster
from routerd.tell.why import Step, explain
from tests.models import cluster

FW = ip_address("203.0.113.10")
STORAGE = ip_address("10.50.0.21")
CIDRS = (ip_network("172.20.0.0/16"),)


def is_inside(address: IPAddress | str, snapshot: Snapshot | None = None, inside: Inside | None = None) -> bool:
    found = in_cluster(snapshot or cluster.snapshot(), inside or Inside(CIDRS))
    return any(net.version == ip_address(address).version and ip_address(address) in net for net in found)


def services(*found: Service) -> Snapshot:
    return cluster.snapshot(services={each.key: each for each in found})


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.11", "10.0.0.12", "fd00::12", "10.1.12.9", "10.96.0.10", "10.96.7.7", "172.20.1.1", "192.0.2.1",
    ],
)  # fmt: skip
def test_what_operators_nodes_and_allocators_say(address: str) -> None:
    assert is_inside(address)


USERS_WORDS: dict[str, dict[str, Any]] = {
    "external IPs": {"external_ips": (FW,)},
    "external IPs of a ClusterIP service": {"external_ips": (FW,), "type": "ClusterIP"},
    "a requested address": {"requested_ips": (FW,)},
    "annotations": {"annotations": {"metallb.universe.tf/loadBalancerIPs": str(FW), "lbipam.cilium.io/ips": str(FW)}},
    "a ClusterIP outside the service CIDRs": {"cluster_ips": (FW,)},
    "a status without a load balancer": {"status_ips": (FW,), "type": "ClusterIP"},
}


@pytest.mark.parametrize("word", USERS_WORDS)
def test_what_a_user_writes_into_a_service_takes_nothing_out_of_a_policy(word: str) -> None:
    assert not is_inside(FW, services(cluster.service("innocent", **USERS_WORDS[word])))


@pytest.mark.parametrize(
    ("namespace", "service", "name", "is_api", "expected"),
    [
        ("default", "kubernetes", "kubernetes", True, True),
        ("default", "kubernetes", "kubernetes-1", False, True),
        ("default", "kubernetes", "forged", True, False),
        ("team-b", "kubernetes", "kubernetes", True, False),
        ("team-b", "kubernetes", "kubernetes", False, False),
        ("default", "web", "web", True, False),
    ],
)
def test_of_all_endpoints_only_the_api_servers_count(
    namespace: str, service: str, name: str, is_api: bool, expected: bool
) -> None:
    found = EndpointSlice(namespace, name, service, (Endpoint((FW,)),), Origin(is_api=is_api))
    assert is_inside(FW, cluster.snapshot(endpoint_slices=(found,))) is expected


def test_external_ips_count_in_the_networks_that_the_configuration_names() -> None:
    named = services(cluster.service("web", external_ips=(FW, ip_address("8.8.8.8"))))
    inside = Inside(external=(ip_network("203.0.113.0/24"),))
    assert is_inside(FW, named, inside)
    assert not is_inside("8.8.8.8", named, inside)
    assert not is_inside("203.0.113.11", named, inside)  # the network is no exemption by itself


def test_an_address_that_a_controller_wrote_into_a_status_counts() -> None:
    foreign = cluster.service("lb", load_balancer_class="example.com/cloud", status_ips=(FW,))
    assert is_inside(FW, services(foreign))


def test_a_cluster_ip_of_an_api_server_counts_and_so_does_one_where_no_service_cidr_is_known() -> None:
    written = cluster.service("web", cluster_ips=(FW,))
    assert is_inside(FW, services(replace(written, origin=Origin(is_api=True))))
    assert is_inside(FW, replace(services(written), service_cidrs=()))
    six = ip_address("fd00:10::1")
    assert is_inside(six, services(replace(written, cluster_ips=(six,))))  # of a family without service CIDRs


def test_every_address_of_every_node_counts() -> None:
    assert not is_inside("10.50.0.21")
    published = replace(cluster.snapshot(), allocations=Allocations(nodes=(NodeAddresses("b", (STORAGE,)),)))
    assert is_inside(STORAGE, published)
    assert is_inside("10.50.0.21", inside=Inside(own=(ip_address("10.50.0.21"),)))


# --- what people are told


def state(snapshot: Snapshot, *cidrs: str) -> NodeState:
    settings = Settings("a", cluster_cidrs=tuple(map(ip_network, cidrs)))
    return compose(snapshot, settings, LocalFacts(cluster.LOCAL))


def whys(snapshot: Snapshot) -> tuple[Step, ...]:
    return explain(snapshot, state(snapshot), Settings("a"), "pod/default/web-1")


def test_pods_outside_every_network_are_told_with_what_is_missing() -> None:
    stray = cluster.pod("stray", "172.21.0.5")
    snapshot = cluster.snapshot(pods={stray.key: stray})
    (told,) = [each for each in state(snapshot).refusals if each.reason == "PodOutsideCluster"]
    assert str(told.object) == "node/a"
    assert told.message == (
        "1 addresses of pods here, 172.21.0.5 among them, lie in no network of the cluster: "
        "selected pods of other nodes reach them by a gateway, if at all; add their network to cluster-cidrs"
    )
    assert "PodOutsideCluster" not in [each.reason for each in state(snapshot, "172.21.0.0/16").refusals]
    unselective = replace(snapshot, policies={})
    assert "PodOutsideCluster" not in [each.reason for each in state(unselective).refusals]


def test_why_tells_of_external_ips_that_a_policy_covers() -> None:
    web = cluster.service("web", external_ips=(FW, ip_address("8.8.8.8")))
    step = whys(services(web))[-1]
    assert (step.question, step.yes) == ("do its policies take it to externalIPs of services?", True)
    assert step.detail == (
        "203.0.113.10 (svc/default/web): any user may write them, so they are not in the cluster unless "
        "egress.in-cluster holds their network"
    )


def test_why_tells_of_endpoints_outside_that_a_policy_covers() -> None:
    found = EndpointSlice("default", "web-1", "web", (Endpoint((FW,)), Endpoint((ip_address("10.1.11.2"),))))
    step = whys(cluster.snapshot(endpoint_slices=(found,)))[-1]
    assert (step.question, step.yes) == ("do its policies take it to endpoints of services outside the cluster?", True)
    assert step.detail.startswith(
        "203.0.113.10 (svc/default/web): by the Service, on whatever node, that is dropped; cluster-cidrs"
    )


def test_why_does_not_tell_of_what_no_policy_of_the_pod_covers() -> None:
    excluded = cluster.policy(excluded=(ip_network("203.0.113.10/32"),))
    other = cluster.policy("other", selections=(PodSelection(),), destinations=())
    web = cluster.service("web", external_ips=(FW,))
    snapshot = replace(services(web), policies={each.key: each for each in (excluded, other)})
    assert not any("externalIPs" in step.question for step in whys(snapshot))
