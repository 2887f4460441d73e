"""A node's desired state as text: egress in full, and how the parts stand or fall with what is synced."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from egress.policy import Desired
from routerd.model import Allocations, Namespace, PodSelection, PortRange, Refusal, Snapshot
from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from routerd.refs import Ref
from routerd.selectors import LabelSelector, Requirement
from routerd.tell.render import changes, egress_lines, refusal_lines, state_lines
from tests.models import cluster
from tests.models.cluster import LOCAL

FACTS = LocalFacts(sessions=LOCAL, uplinks=("eth0",))
SETTINGS = Settings("a", cluster_cidrs=(ip_network("172.20.0.0/16"),))

WHOLE = """\
peer 10.0.0.1 AS64512 10.0.0.11 -> AS64512 10.0.0.1 router-id 10.0.0.11 hold 90 graceful-restart 120
path 10.0.0.1 192.0.2.1/32 next-hop self local-pref 0
path 10.0.0.1 198.51.100.7/32 next-hop self local-pref 1047 med 2147483601
node a 10.0.0.11 udp 8473
pod 10.1.11.2 EgressPolicy/web
policy EgressPolicy/web -> group 7 to 203.0.113.0/24
group 7 198.51.100.7 slots 2 via b@10.0.0.12#0 a@10.0.0.11#1
cluster 10.0.0.11/32
cluster 10.0.0.12/32
cluster 10.1.11.0/24
cluster 10.1.12.0/24
cluster 10.96.0.0/12
cluster 10.96.0.10/32
cluster 172.20.0.0/16
cluster 192.0.2.1/32
cluster fd00::11/128
cluster fd00::12/128
pod-cidr 10.1.11.0/24
tunnel-node 10.0.0.11
tunnel-node 10.0.0.12
uplink eth0
"""


def state(facts: LocalFacts = FACTS, **fields: object) -> NodeState:
    return compose(cluster.snapshot(**fields), SETTINGS, facts)


def egress(facts: LocalFacts = FACTS, **fields: object) -> Desired:
    desired = state(facts, **fields).egress
    assert desired is not None
    return desired


def reasons(found: NodeState) -> dict[str, str]:
    return {str(refusal.object): refusal.reason for refusal in found.refusals}


def test_the_whole_state_as_text() -> None:
    found = state()
    assert "\n".join([*state_lines(found), *refusal_lines(found.refusals)]) + "\n" == WHOLE


@pytest.mark.parametrize("field", ["nodes", "namespaces", "pods", "services", "policies", "allocations"])
def test_egress_waits_for_all_that_it_needs(field: str) -> None:
    assert state(**{field: None}).egress is None


def test_an_empty_store_touches_nothing() -> None:
    assert compose(Snapshot(), SETTINGS, FACTS) == NodeState(None, {"egress": None, "bfd": None})


def test_a_node_that_the_store_does_not_know_touches_nothing_and_says_so() -> None:
    found = compose(cluster.snapshot(), Settings("elsewhere"), FACTS)
    assert (found.announcements, found.egress) == (None, None)
    assert reasons(found) == {"node/elsewhere": "UnknownNode"}


def test_refusals_of_the_store_are_passed_on() -> None:
    refused = Refusal(
        Ref.parse("EgressPolicy/bad"), "InvalidObject", "policies.yaml:3: spec.destinations: not a network"
    )
    assert refused in compose(cluster.snapshot(refusals=(refused,)), SETTINGS, FACTS).refusals


def pods(*found: object) -> dict[str, object]:
    return {"pods": {pod.key: pod for pod in found}}  # type: ignore[attr-defined]


def test_pods_of_this_node_only_and_only_with_an_address_of_their_own() -> None:
    desired = egress(
        **pods(
            cluster.pod("here", "10.1.11.2"),
            cluster.pod("other", "10.1.12.2", node="b"),
            cluster.pod("host", "10.0.0.11", host_network=True),
            cluster.pod("done", "10.1.11.3", finished=True),
            cluster.pod("plain", "10.1.11.4", labels={}),
            cluster.pod("young", "10.1.11.5", addresses=()),
            cluster.pod("six", "fd01::5"),
        )
    )
    assert {str(address): names for address, names in desired.pods.items()} == {
        "10.1.11.2": ("EgressPolicy/web",),
        "10.1.11.4": (),
        "fd01::5": ("EgressPolicy/web",),
    }


def test_a_pod_whose_namespace_is_not_there_yet_is_known_by_its_namespaces_name() -> None:
    by_name = LabelSelector((("kubernetes.io/metadata.name", "default"),))
    policies = {"EgressPolicy/web": cluster.policy(selections=(PodSelection(namespaces=by_name),))}
    assert egress(namespaces={}, policies=policies).pods == {ip_address("10.1.11.2"): ("EgressPolicy/web",)}


def test_namespace_labels_select() -> None:
    selector = LabelSelector((("team", "red"),))
    policies = {"EgressPolicy/web": cluster.policy(selections=(PodSelection(namespaces=selector),))}
    red = {"default": Namespace("default", {"team": "red"})}
    assert list(egress(policies=policies, namespaces=red).pods.values()) == [("EgressPolicy/web",)]
    assert list(egress(policies=policies).pods.values()) == [()]


@pytest.mark.parametrize(
    ("selection", "is_decided"),
    [
        (PodSelection(namespaces=LabelSelector((("team", "red"),))), False),
        (PodSelection(namespaces=LabelSelector((), (Requirement("team", "DoesNotExist"),))), False),
        (PodSelection(LabelSelector((("app", "other"),)), LabelSelector((("team", "red"),))), True),
        (PodSelection(namespaces=LabelSelector((("kubernetes.io/metadata.name", "x"), ("team", "red")))), True),
        (PodSelection(LabelSelector()), True),
    ],
)
def test_a_pod_is_undecided_while_labels_of_its_namespace_may_select_it(
    selection: PodSelection, is_decided: bool
) -> None:
    """Its Namespace comes by another watch, or its file is missing: what is not decided is dropped by the guard."""
    found = state(policies={"EgressPolicy/web": cluster.policy(selections=(selection,))}, namespaces={})
    assert found.egress is not None
    assert (ip_address("10.1.11.2") in found.egress.pods) == is_decided
    reasons = [(str(each.object), each.reason) for each in found.refusals if each.object.kind == "pod"]
    assert reasons == ([] if is_decided else [("pod/default/web-1", "UnknownNamespace")])


def test_a_policy_without_a_group_fails_closed() -> None:
    found = state(allocations=Allocations(1))
    assert found.egress is not None
    assert found.egress.policies["EgressPolicy/web"].group == 0
    assert found.egress.pods == {ip_address("10.1.11.2"): ("EgressPolicy/web",)}
    assert reasons(found)["EgressPolicy/web"] == "NoGroup"


def test_the_operators_reason_for_a_missing_group_is_told() -> None:
    told = Refusal(Ref.parse("EgressPolicy/web"), "PoolExhausted", "pool out has no free address")
    assert reasons(state(allocations=Allocations(1, refusals=(told,))))["EgressPolicy/web"] == "PoolExhausted"


def test_what_the_operator_refuses_of_a_policy_that_keeps_its_group_is_told() -> None:
    told = Refusal(Ref.parse("EgressPolicy/web"), "AddressInUse", "192.0.2.1 is in use by svc/default/web")
    found = state(allocations=Allocations(1, groups=(cluster.group(),), refusals=(told,)))
    assert found.egress is not None
    assert found.egress.policies["EgressPolicy/web"].group == 7
    assert ("AddressInUse", "192.0.2.1 is in use by svc/default/web; it keeps its egress IP 198.51.100.7") in [
        (each.reason, each.message) for each in found.refusals
    ]


SIX, FOUR = ip_network("2001:db8::/32"), ip_network("203.0.113.0/24")
NOT_YET = "IPv6 is not translated yet: what the selected pods send to 2001:db8::/32 is"


@pytest.mark.parametrize(
    ("fields", "group", "told"),
    [
        ({"destinations": (FOUR,)}, 7, ""),
        ({"destinations": (SIX, FOUR)}, 7, NOT_YET),
        ({"destinations": (SIX,)}, 0, NOT_YET),
        ({"destinations": (SIX, FOUR), "egress_ip": ip_address("2001:db8::1")}, 0,
         "nothing is translated to the IPv6 address 2001:db8::1: what pods send to 2001:db8::/32, 203.0.113.0/24 is"),
    ],
)  # fmt: skip
def test_what_is_not_translated_stays_covered_and_the_policy_says_so(
    fields: dict[str, object], group: int, told: str
) -> None:
    found = state(policies={"EgressPolicy/web": cluster.policy(**fields)})
    assert found.egress is not None
    policy = found.egress.policies["EgressPolicy/web"]
    assert (policy.destinations, policy.group) == (fields["destinations"], group)
    assert found.egress.pods[ip_address("10.1.11.2")] == ("EgressPolicy/web",)
    said = [(r.reason, r.message) for r in found.refusals if str(r.object) == "EgressPolicy/web"]
    assert said == ([("UnsupportedFamily", f"{told} dropped")] if told else [])


def test_a_group_that_nothing_is_translated_to_is_none() -> None:
    old = cluster.group(egress_ip=ip_address("2001:db8::1"))  # of a pool, as an operator once gave it
    found = state(allocations=Allocations(1, groups=(old,)))
    assert found.egress is not None
    assert found.egress.policies["EgressPolicy/web"].group == 0
    assert reasons(found)["EgressPolicy/web"] == "NoGroup"


def test_pods_of_both_families_are_inside_the_cluster() -> None:
    stray = cluster.pod("stray", "172.21.0.5", addresses=(ip_address("172.21.0.5"), ip_address("fd05::5")))
    inside = egress(**pods(stray)).cluster
    assert {ip_network("172.21.0.5/32"), ip_network("fd05::5/128")} <= inside


def test_ports_exclusions_and_priority_show() -> None:
    policies = {
        "EgressPolicy/web": cluster.policy(
            ports=(PortRange("TCP", 443, 443), PortRange("UDP", 1000, 2000), PortRange("ICMP")),
            excluded=(ip_network("203.0.113.128/25"),),
            priority=5,
        )
    }
    assert (
        "policy EgressPolicy/web -> group 7 to 203.0.113.0/24 except 203.0.113.128/25 ports TCP/443,UDP/1000-2000,ICMP"
        " priority 5"
    ) in egress_lines(egress(policies=policies))


def test_a_gateway_that_the_store_does_not_know_is_left_out() -> None:
    found = state(nodes={"a": cluster.node("a", 11)})
    assert found.egress is not None
    assert [gateway.node for gateway in found.egress.groups[7].gateways] == ["a"]
    assert reasons(found) == {"egress/198.51.100.7": "UnknownGateway"}


def test_a_group_without_gateways_is_kept_and_told() -> None:
    found = state(allocations=Allocations(1, (cluster.allocation("web", "192.0.2.1"),), (cluster.group(gateways=()),)))
    assert found.egress is not None
    assert found.egress.groups[7].gateways == ()
    assert reasons(found) == {"egress/198.51.100.7": "NoGateway"}


def test_a_gateway_that_our_probe_holds_down_is_marked() -> None:
    desired = egress(LocalFacts(sessions=LOCAL, uplinks=("eth0",), gateways_down=frozenset({"b"})))
    assert "group 7 198.51.100.7 slots 2 via b@10.0.0.12#0(down) a@10.0.0.11#1" in egress_lines(desired)


def test_a_node_without_ipv4_is_guarded_although_it_cannot_be_a_tunnel_endpoint() -> None:
    found = state(nodes={"a": cluster.node("a", 11, addresses=(ip_address("fd00::11"),))})
    assert found.egress is not None and found.egress.node_address is None
    assert found.egress.pods == {ip_address("10.1.11.2"): ("EgressPolicy/web",)}
    assert reasons(found)["node/a"] == "NoTunnelEndpoint"


def test_changes_are_the_lines_that_go_and_come() -> None:
    assert changes(["a", "b"], ["b", "c"]) == ["- a", "+ c"]
    assert changes(["a"], ["a"]) == []
