"""A node's desired state as text: egress in full, and how the parts stand or fall with what is synced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network

import pytest

from cloud.model import Vpc
from cloud.providers import ecs
from egress.policy import FORWARD_MARK, Block, Desired, Gateway, Group, Watch
from eni.plan import Desired as Wiring
from eni.plan import Interface
from routerd.model import (
    Allocations,
    CloudInterface,
    IPNetwork,
    Namespace,
    NodeNumber,
    PodSelection,
    PortRange,
    Refusal,
    Snapshot,
)
from routerd.node import groups
from routerd.node.desired import LocalFacts, NodeState, Settings, compose, probing
from routerd.node.groups import may_be_gateway
from routerd.node.rooms.wiring import PodsOfCloud
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
path 10.0.0.1 198.51.100.7/32 next-hop self local-pref 1000 med 0
node a 10.0.0.11 udp 8473
pod 10.1.11.2 EgressPolicy/web
policy EgressPolicy/web -> group 7 to 203.0.113.0/24
group 7 198.51.100.7 via b#2 a#1 ports 198.51.100.7:1024-2047,198.51.100.7:2048-2111(closed)
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
pool 192.0.2.0/24
node-address 10.0.0.11
node-address 10.0.0.12
node-address fd00::11
node-address fd00::12
serve 198.51.100.7 group 7 1024-2111#1 4096-4223#2
tunnel-node 1 10.0.0.11
tunnel-node 2 10.0.0.12
icmp-source 10.0.0.11
icmp-source fd00::11
uplink eth0
"""


@pytest.mark.parametrize(
    ("vpc", "router"), [(Vpc(), "10.0.1.1 fe80:ec2::1"), (ecs.VPC, "10.0.1.253 2001:db8::ffff:ffff:ffff:fffd")]
)
def test_interfaces_of_a_cloud_are_wired_to_its_router_and_its_metadata_closed(vpc: Vpc, router: str) -> None:
    one, two, prefix, six = map(ip_network, ("10.0.1.8/32", "10.0.1.9/32", "10.0.1.32/28", "2001:db8:0:0:7::/80"))
    interface = CloudInterface("02:00:00:00:00:07", IPv4Interface("10.0.1.7/24"), (six, prefix, one), (two,))
    for pod_metadata in (False, True):
        settings = replace(SETTINGS, pods_of_cloud=PodsOfCloud(vpc, pod_metadata))
        found = compose(cluster.snapshot(**cluster.node_a(interfaces=(interface,))), settings, FACTS).rooms["eni"]
        wire = Interface("02:00:00:00:00:07", tuple(map(ip_address, router.split())), (one, two, prefix, six))
        assert found == Wiring((wire,), () if pod_metadata else vpc.metadata, FORWARD_MARK)


def test_what_leaves_the_vpc_is_translated_where_nobody_else_does_and_the_vpc_is_known() -> None:
    vpc, office = ip_network("10.0.0.0/16"), ip_network("192.168.0.0/16")

    def untranslated(known: bool, exempt: tuple[IPNetwork, ...] | None) -> tuple[IPNetwork, ...]:
        own, block = IPv4Interface("10.0.1.7/24"), ip_network("10.0.1.8/32")
        interface = CloudInterface("02:00:00:00:00:07", own, (block,), vpc=(vpc,) if known else ())
        settings = replace(SETTINGS, pods_of_cloud=PodsOfCloud(Vpc(), snat_exempt=exempt))
        found = compose(cluster.snapshot(**cluster.node_a(interfaces=(interface,))), settings, FACTS).rooms["eni"]
        assert isinstance(found, Wiring)
        return found.untranslated

    assert untranslated(True, (office,)) == (vpc, *SETTINGS.cluster_cidrs, office)
    assert untranslated(True, None) == untranslated(False, (office,)) == ()


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


@pytest.mark.parametrize(
    "field", ["nodes", "namespaces", "pods", "services", "endpoint_slices", "policies", "allocations"]
)
def test_egress_waits_for_all_that_it_needs(field: str) -> None:
    assert state(**{field: None}).egress is None


def test_an_empty_store_touches_nothing() -> None:
    settings = replace(SETTINGS, direct_routes=True)
    nothing = dict.fromkeys(("egress", "bfd", "probes", "fib"))
    assert compose(Snapshot(), settings, FACTS) == NodeState(None, nothing)


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
    found = state(allocations=cluster.allocations(refusals=(told,)))
    assert found.egress is not None
    assert found.egress.policies["EgressPolicy/web"].group == 7
    assert ("AddressInUse", "192.0.2.1 is in use by svc/default/web; it keeps its egress IP 198.51.100.7") in [
        (each.reason, each.message) for each in found.refusals
    ]


def test_a_group_without_gateways_tells_what_the_operator_refuses_of_its_policies_first() -> None:
    names = ("EgressPolicy/web", "EgressPolicy/zoo")
    said = (("api", "Other", "1"), ("zoo", "UnsupportedFamily", "2"), ("zoo", "X", "3"), ("web", "Y", "4"))
    told = tuple(Refusal(Ref("EgressPolicy", name=name), reason, message) for name, reason, message in said)
    allocations = cluster.allocations(cluster.group(policies=names, gateways=()), refusals=told)
    assert [r.message for r in state(allocations=allocations).refusals if r.reason == "NoGateway"] == ["3"]


class Walked(tuple[Refusal, ...]):
    """Counts how often all of them are looked at."""

    walks = 0

    def __iter__(self) -> Iterator[Refusal]:
        self.walks += 1
        return super().__iter__()


@pytest.mark.parametrize("gateways", [(), ("b",)])
def test_the_operators_refusals_are_not_walked_for_each_policy(gateways: tuple[str, ...]) -> None:
    def walks(count: int) -> int:
        policies = {each.key: each for each in (cluster.policy(f"p{number}") for number in range(count))}
        refusals = Walked(Refusal(each.ref, "AddressInUse", "it is in use") for each in policies.values())
        groups = (
            cluster.group(id=number, policies=(key,), gateways=gateways) for number, key in enumerate([*policies][1:])
        )
        state(policies=policies, allocations=cluster.allocations(*groups, refusals=refusals))
        return refusals.walks

    assert walks(20) == walks(3)


SIX, FOUR = ip_network("2001:db8::/32"), ip_network("203.0.113.0/24")
LACKING = "no egress IP of its family, but {}: what the selected pods send to {} is dropped"
SIX_DROPPED = LACKING.format("198.51.100.7", SIX)
EGRESS_SIX = ip_address("2001:db8:1::7")


@pytest.mark.parametrize(
    ("fields", "has", "group", "told"),
    [
        ({"destinations": (FOUR,)}, {}, 7, ""),
        ({"destinations": (SIX, FOUR)}, {}, 7, SIX_DROPPED),
        ({"destinations": (SIX,)}, {}, 0, SIX_DROPPED),
        ({"destinations": (SIX,)}, {"egress_ip": EGRESS_SIX}, 7, ""),
        ({"destinations": (SIX, FOUR)}, {"egress_ip": EGRESS_SIX}, 7, LACKING.format(EGRESS_SIX, FOUR)),
        ({"destinations": (FOUR,)}, {"egress_ip": EGRESS_SIX}, 0, LACKING.format(EGRESS_SIX, FOUR)),
        ({"destinations": (SIX, FOUR)}, {"further_ips": (EGRESS_SIX,)}, 7, ""),
        # The group of before stays in force until the operator forms another one.
        ({"destinations": (SIX, FOUR), "egress_ip": EGRESS_SIX}, {}, 7, SIX_DROPPED),
    ],
)
def test_what_is_not_translated_stays_covered_and_the_policy_says_so(
    fields: dict[str, object], has: dict[str, object], group: int, told: str
) -> None:
    allocations = cluster.allocations(cluster.group(**has))
    found = state(policies={"EgressPolicy/web": cluster.policy(**fields)}, allocations=allocations)
    assert found.egress is not None
    policy = found.egress.policies["EgressPolicy/web"]
    assert (policy.destinations, policy.group) == (fields["destinations"], group)
    assert found.egress.pods[ip_address("10.1.11.2")] == ("EgressPolicy/web",)
    said = [(r.reason, r.message) for r in found.refusals if str(r.object) == "EgressPolicy/web"]
    assert said == ([("UnsupportedFamily", told)] if told else [])


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
    found = state(allocations=cluster.allocations(cluster.group(gateways=())))
    assert found.egress is not None
    assert found.egress.groups[7].gateways == ()
    assert reasons(found) == {"egress/198.51.100.7": "NoGateway"}


def test_a_gateway_that_our_probe_holds_down_is_marked() -> None:
    desired = egress(LocalFacts(sessions=LOCAL, uplinks=("eth0",), gateways_down=frozenset({"b"})))
    assert [(gateway.node, gateway.up) for gateway in desired.groups[7].gateways] == [("b", False), ("a", True)]


def test_a_gateway_without_a_number_is_left_out_until_the_operator_gives_it_one() -> None:
    found = state(allocations=cluster.allocations(numbers=(NodeNumber("a", 1),)))
    assert found.egress is not None
    assert [gateway.node for gateway in found.egress.groups[7].gateways] == ["a"]
    assert found.egress.nodes == {1: ip_address("10.0.0.11")}
    assert reasons(found) == {"egress/198.51.100.7": "UnknownGateway"}


def test_ports_are_those_of_the_number_that_the_node_has() -> None:
    numbers = (NodeNumber("a", 2), NodeNumber("b", 1))
    egress_ip = ip_address("198.51.100.7")
    assert egress(allocations=cluster.allocations(numbers=numbers)).groups[7].blocks == (Block(egress_ip, 4096, 128),)
    assert egress(allocations=cluster.allocations(numbers=numbers[1:])).groups[7].blocks == ()
    assert egress(allocations=cluster.allocations(bindings=())).groups[7].blocks == ()


def test_a_gateway_serves_all_addresses_of_its_group_also_those_without_ports_and_no_other_node_does() -> None:
    """What it announces and no program takes must meet a blackhole."""
    given = cluster.allocations(cluster.group(further_ips=(EGRESS_SIX,)), bindings=(cluster.table(),))
    served = egress(allocations=given).served
    assert {str(address): set(each.numbers) for address, each in served.items()} == {
        "198.51.100.7": {0, 1, 2},
        str(EGRESS_SIX): {0},
    }
    elsewhere = cluster.allocations(cluster.group(gateways=("b",)))
    assert egress(allocations=elsewhere).served == {}


def test_an_egress_ip_of_no_group_is_served_by_those_that_were_told_of_its_ports() -> None:
    """Connections live there; whoever may have bindings keeps them until the operator takes the ports back."""
    given = cluster.allocations(bindings=(cluster.table(), cluster.table("198.51.100.8")))
    assert [str(address) for address in egress(allocations=given).served] == ["198.51.100.7"]
    swapped = replace(given, numbers=(NodeNumber("a", 2), NodeNumber("b", 1)))
    served = egress(allocations=swapped).served
    assert {str(address): each.group for address, each in served.items()} == {"198.51.100.7": 7, "198.51.100.8": 0}


def test_a_vip_is_served_by_every_node_and_announced_as_its_service_alone() -> None:
    """Also while it is nobody's egress IP any more, and a gateway has not confirmed it: the Service has it still."""
    vip = ip_address("192.0.2.1")
    group = cluster.group(egress_ip=vip, gateways=("b",), service="default/web")
    found = compose(cluster.snapshot(allocations=cluster.allocations(group)), SETTINGS, FACTS)
    assert found.egress is not None and found.announcements is not None
    assert [(address, each.vip, each.group) for address, each in found.egress.served.items()] == [(vip, True, 7)]
    assert [str(ref) for ref in found.announcements.owners[ip_network("192.0.2.1/32")]] == ["svc/default/web"]
    assert not [each for each in found.refusals if each.reason == "AddressTaken"]
    former = cluster.allocations(bindings=(replace(cluster.table("192.0.2.1"), told=(1,)),))
    served = egress(allocations=former).served
    assert [served[vip].vip, served[vip].group] == [True, 0]


def test_vips_that_policies_have_left_take_no_room_of_those_that_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes and unmakes Services fills no map: a node whose map is full changes nothing of egress any more."""
    monkeypatch.setattr(groups, "MOST_SERVED", 3)
    left = [cluster.group(id=each, egress_ip=ip_address(f"192.0.2.{each}"), policies=(), service="default/web")
            for each in range(1, 5)]  # fmt: skip
    held = cluster.group(id=9, egress_ip=ip_address("192.0.2.9"), service="default/web")
    found = groups.served(cluster.allocations(*left, held, cluster.group()), "a")
    assert [str(address) for address in found] == ["192.0.2.1", "192.0.2.9", "198.51.100.7"]


def test_whom_a_service_may_have_as_gateway_beats_as_one() -> None:
    snapshot = cluster.snapshot(policies={"web": cluster.policy(service="default/web")}, allocations=Allocations())
    assert may_be_gateway(snapshot, "a", ())
    elsewhere = cluster.policy(service="default/web", gateways=cluster.ONLY_B)
    assert not may_be_gateway(replace(snapshot, policies={"web": elsewhere}), "a", ())


def test_an_address_of_the_gateways_own_has_reserved_ports() -> None:
    found = egress(allocations=cluster.allocations(cluster.group(node_address=True)))
    assert [each.node_address for each in found.served.values()] == [True]
    assert found.groups[7].node_address


@pytest.mark.parametrize(
    ("addresses", "endpoint", "sources"),
    [
        ("fd00::11", "fd00::11", "fd00::11"),
        ("fd00::11 10.0.0.11", "10.0.0.11", "10.0.0.11 fd00::11"),
        ("fd00::11 fd00::12 10.0.0.12 10.0.0.11", "10.0.0.12", "10.0.0.12 fd00::11"),
    ],
)
def test_tunnels_end_at_the_first_ipv4_address_else_at_the_first_ipv6_one(
    addresses: str, endpoint: str, sources: str
) -> None:
    nodes = {
        "a": cluster.node("a", 11, addresses=tuple(map(ip_address, addresses.split()))),
        "b": cluster.node("b", 12),
    }
    found = egress(nodes=nodes)
    assert (str(found.node_address), str(found.nodes[1])) == (endpoint, endpoint)
    assert [str(address) for address in found.icmp_sources] == sources.split()


def test_a_node_without_an_address_is_guarded_although_it_cannot_be_a_tunnel_endpoint() -> None:
    found = state(nodes={"a": cluster.node("a", 11, addresses=())})
    assert found.egress is not None and found.egress.node_address is None
    assert found.egress.pods == {ip_address("10.1.11.2"): ("EgressPolicy/web",)}
    assert reasons(found)["node/a"] == "NoTunnelEndpoint"


def test_changes_are_the_lines_that_go_and_come() -> None:
    assert changes(["a", "b"], ["b", "c"]) == ["- a", "+ c"]
    assert changes(["a"], ["a"]) == []


def test_a_node_probes_the_other_gateways_of_groups_that_it_has_ports_of() -> None:
    block = Block(ip_address("192.0.2.9"), 1024, 64)
    here, other, third = Gateway("a", 1), Gateway("b", 2), Gateway("c", 3)
    used = Group(7, (block.egress_ip,), (here, other), (block,))
    groups = {7: used, 8: Group(8, (block.egress_ip,), (third,))}
    desired = Desired("a", ip_address("10.0.0.1"), groups=groups, watch=Watch(0.05, 3))
    found = probing(desired)
    assert found is not None
    assert (found.gateways, found.interval, found.local) == (frozenset({2}), 50_000, desired.node_address)
    off = probing(replace(desired, watch=None))
    assert off is not None and not off.gateways
    assert probing(replace(desired, node_address=None)) is None
