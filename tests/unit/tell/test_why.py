"""`routerd why`: steps up to the first "no", agreeing with what is really announced and steered."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from bgp.path import SessionKey
from bgp.session import PeerStatus as Session
from egress.status import EgressStatus, Probed
from fib.plan import Hop, Observed
from fib.plan import Status as RouteStatus
from routerd.model import (
    GATEWAY_LABEL,
    Advertisement,
    Allocations,
    ClusterCIDR,
    EgressPolicy,
    NodeAddresses,
    NodeBlocks,
    NodeNumber,
    Peer,
    Peering,
    PodPool,
    PortRange,
    Refusal,
)
from routerd.node.checks import Rules
from routerd.node.desired import LocalFacts, Settings, compose
from routerd.node.sessions import Way
from routerd.refs import Ref, service_ref
from routerd.selectors import LabelSelector
from routerd.tell.views import PeerView
from routerd.tell.why import (
    NoSuchObject,
    Step,
    device_steps,
    explain,
    first_packet_steps,
    gateway_steps,
    route_steps,
    session_steps,
)
from tests.models import cluster
from tests.models.cluster import LOCAL, NOES, SESSION, TOR

SETTINGS = Settings("a")
HOP = Hop(ip_address("10.0.0.12"), 2)
SIX, FOUR = ip_network("2001:db8::/32"), ip_network("203.0.113.0/24")


def why(name: str, settings: Settings = SETTINGS, local: object = LOCAL, **fields: object) -> tuple[Step, ...]:
    snapshot = cluster.snapshot(**fields)
    state = compose(snapshot, settings, LocalFacts(sessions=local))  # type: ignore[arg-type]
    return explain(snapshot, state, settings, name)


def test_an_announced_service_is_all_yes_and_names_path_and_peer() -> None:
    steps = why("svc/default/web")
    assert all(step.yes for step in steps)
    assert steps[-1].detail == "192.0.2.1/32 next-hop self local-pref 0 to 10.0.0.1"


@pytest.mark.parametrize("reason", NOES)
def test_the_last_step_is_the_first_no(reason: str) -> None:
    steps = why("svc/default/web", **NOES[reason])
    assert [step.reason for step in steps if not step.yes] == [reason]
    assert not steps[-1].yes


def test_whose_pods_leave_with_its_vip_is_told_and_why_they_do_not() -> None:
    policy = cluster.policy(service="default/web")
    group = cluster.group(egress_ip=ip_address("192.0.2.1"), service="default/web")
    step = why("svc/default/web", policies={policy.key: policy}, allocations=cluster.allocations(group))[-1]
    assert (step.question, step.yes, step.detail) == (
        "do the pods behind it leave with its VIPs?", True, "EgressPolicy/web: as 192.0.2.1 by b, a",
    )  # fmt: skip
    refused = replace(cluster.allocations(), groups=(), refusals=(Refusal(policy.ref, "NoSelector", "it has none"),))
    step = why("svc/default/web", policies={policy.key: policy}, allocations=refused)[-1]
    assert (step.yes, step.reason, step.note) == (False, "NoSelector", True)
    assert step.detail == "EgressPolicy/web: it has none; what it covers is dropped"
    nobody = cluster.allocations(replace(group, gateways=()))
    step = why("svc/default/web", policies={policy.key: policy}, allocations=nobody)[-1]
    assert (step.yes, step.reason) == (False, "NoGateway")


def test_what_is_announced_although_its_pool_is_gone_is_told() -> None:
    steps = why("svc/default/web", pools={})
    assert [(step.question, step.reason, step.note) for step in steps if not step.yes] == [
        ("does 192.0.2.1 lie in a pool?", "AddressStranded", True)
    ]


def test_a_service_that_keeps_what_it_has_is_told_what_it_does_not_get() -> None:
    refusal = Refusal(service_ref("default/web"), "NotInPool", "it lies in pool b now")
    steps = why("svc/default/web", allocations=replace(cluster.snapshot().allocations, refusals=(refusal,)))
    assert [(step.reason, step.detail, step.note) for step in steps if not step.yes] == [
        ("NotInPool", "it lies in pool b now", True)
    ]
    assert steps[-1].yes


def test_a_cluster_ip_service_is_told_what_it_lacks() -> None:
    web = cluster.service("web", type="ClusterIP")
    assert why("svc/default/web", services={web.key: web})[-1].reason == "NotLoadBalancer"


def test_a_cluster_ip_that_is_announced_is_told_and_that_it_has_no_vip_is_a_note() -> None:
    web = cluster.service("web", type="ClusterIP", external_ips=(ip_address("203.0.113.5"),))
    rules = Rules(cluster_ips=(ip_network("10.96.0.0/12"),), external_ips=(ip_network("203.0.113.0/30"),))
    steps = why("svc/default/web", Settings("a", rules), services={web.key: web})
    assert [(step.reason, step.note) for step in steps if not step.yes] == [
        ("NotLoadBalancer", True),
        ("ExternalIPNotAllowed", False),
    ]
    assert steps[-1].detail == "10.96.0.10/32 next-hop self to 10.0.0.1"


def test_a_node_that_announces_no_services_says_so() -> None:
    assert why("svc/default/web", Settings("a", Rules(services=False)))[-1].reason == "NotConfigured"


def test_an_unsynced_store_is_told_by_name() -> None:
    step = why("svc/default/web", allocations=None, pools=None)[-1]
    assert (step.reason, step.detail) == (
        "NotSynced",
        "not yet read: address pools, allocations (the operator's); nothing is changed until then",
    )


def test_no_session_is_told_with_its_cause() -> None:
    steps = why("svc/default/web", local={Way(TOR): None})
    no = next(step for step in steps if not step.yes)
    assert no.reason == "NoPeers"
    assert "NoRoute" in no.detail


def test_peers_that_leave_the_node_out_are_told() -> None:
    peer = Peer(TOR, 1, 2, node_selectors=(LabelSelector((("x", "y"),)),))
    no = next(step for step in why("svc/default/web", bgp=Peering((peer,))) if not step.yes)
    assert no.detail == "the node selectors of every peer leave this node out"


def test_a_service_that_could_not_be_read_is_told_what_is_wrong_with_it() -> None:
    wrong = Refusal(Ref.parse("svc/default/odd"), "InvalidObject", "a.yaml:3:7: spec: found a list (…)")
    *_, last = why("svc/default/odd", refusals=(wrong,))
    assert (last.yes, last.reason, last.detail) == (False, "InvalidObject", wrong.message)


def test_a_family_without_endpoints_is_told_beside_the_one_that_is_announced() -> None:
    allocations = Allocations(1, (cluster.allocation("web", "192.0.2.1", "2001:db8::1"),))
    both = replace(cluster.pool(), blocks=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")))
    steps = why("svc/default/web", allocations=allocations, pools={"default": both})
    (no,) = (step for step in steps if not step.yes)
    assert (no.reason, no.note) == ("NoEndpoints", True)
    assert "IPv6" in no.detail
    assert steps[-1].detail == "192.0.2.1/32 next-hop self local-pref 0 to 10.0.0.1"


def test_a_session_that_is_down_is_told() -> None:
    state = compose(cluster.snapshot(), SETTINGS, LocalFacts(sessions=LOCAL))
    (step,) = session_steps(
        state.announcements, {SESSION: PeerView(SESSION, Session("down", last_reason="hold timer"))}
    )
    expected = "down: hold timer: check its address, AS numbers, password, and that no firewall is between"
    assert (step.yes, step.reason, step.detail) == (False, "SessionDown", expected)


def test_of_a_session_that_is_up_is_told_what_nobody_knows() -> None:
    state = compose(cluster.snapshot(), SETTINGS, LocalFacts(sessions=LOCAL))
    (step,) = session_steps(state.announcements, {SESSION: PeerView(SESSION, Session("up", announced=1))})
    assert step.yes and step.detail.startswith("whether the router uses the paths BGP does not tell")
    (step,) = session_steps(state.announcements, {SESSION: PeerView(SESSION, Session("up"))})
    assert (step.yes, step.detail) == (True, "")


def test_an_aggregate_without_a_blackhole_is_a_no_that_says_what_failed() -> None:
    wide, told = ip_network("192.0.2.0/26"), "NativeRouting: put blackhole routes to 192.0.2.0/26: not supported"
    whole, host = cluster.advertisement(aggregation_length=26), cluster.advertisement()

    def steps(*advertisements: Advertisement, failure: str = told) -> list[Step]:
        snapshot = cluster.snapshot(pools={"default": cluster.pool(advertisements=advertisements)})
        state = compose(snapshot, SETTINGS, LocalFacts(sessions=LOCAL))
        found = explain(snapshot, state, SETTINGS, "svc/default/web", unannounced={wide: failure})
        return [step for step in found if "/" in step.question]

    detail = f"it has no blackhole route on this node yet: {told}"
    no = Step(f"is {wide} announced?", False, "NoBlackhole", detail)
    assert steps(whole) == [no]
    assert steps(whole, failure="")[0].detail.endswith("yet: the next round puts it there")
    noted, announced = steps(whole, host)
    assert noted == replace(no, note=True), "the address is announced by itself"
    assert (announced.question, announced.yes) == ("is 192.0.2.1/32 announced?", True)


def dual_stack(*sessions: PeerView, **fields: object) -> list[tuple[str, bool, str, bool]]:
    """Steps about paths of a service with an address of each family, where these are the sessions."""
    snapshot = cluster.snapshot(
        **fields,
        endpoint_slices=(cluster.endpoints("web", "a"), cluster.endpoints("web", "a", version=6)),
        allocations=Allocations(1, (cluster.allocation("web", "192.0.2.1", "2001:db8::1"),)),
        bgp=Peering(tuple(Peer(session.key.peer, 64512, 64512) for session in sessions)),
    )
    local = {Way(session.key.peer): session.key.local for session in sessions}
    state = compose(snapshot, SETTINGS, LocalFacts(sessions=local))  # type: ignore[arg-type]
    steps = explain(snapshot, state, SETTINGS, "svc/default/web", {session.key: session for session in sessions})
    return [(step.question, step.yes, step.detail, step.note) for step in steps if "/" in step.question]


def test_a_router_that_has_not_negotiated_a_family_is_not_said_to_have_its_paths() -> None:
    only4 = PeerView(SESSION, Session("up", families=("ipv4 unicast",)))
    both = PeerView(
        SessionKey(ip_address("10.0.0.2"), SESSION.local), Session("up", families=("ipv4 unicast", "ipv6 unicast"))
    )
    lacking = "the router has not negotiated ipv6 unicast: activate that family for the session there"
    ipv6 = "2001:db8::1/128 next-hop fd00::11 local-pref 0"
    assert dual_stack(only4) == [
        ("is 192.0.2.1/32 announced?", True, "192.0.2.1/32 next-hop self local-pref 0 to 10.0.0.1", False),
        ("is 2001:db8::1/128 announced to 10.0.0.1?", False, lacking, False),
    ]
    assert dual_stack(only4, both)[1:] == [
        ("is 2001:db8::1/128 announced?", True, f"{ipv6} to 10.0.0.2", False),
        ("is 2001:db8::1/128 announced to 10.0.0.1?", False, lacking, True),
    ]


def test_each_path_of_a_prefix_is_told_with_its_peers_and_who_gets_none() -> None:
    first, second, third = (PeerView(SessionKey(ip_address(f"10.0.0.{last}"), SESSION.local)) for last in (1, 2, 3))
    ways = (cluster.advertisement(peers=("10.0.0.1",), med=5), cluster.advertisement(peers=("10.0.0.3",)))
    steps = dual_stack(first, second, third, pools={"default": cluster.pool(advertisements=ways)})
    assert steps[:3] == [
        ("is 192.0.2.1/32 announced?", True, "192.0.2.1/32 next-hop self local-pref 0 med 5 to 10.0.0.1", False),
        ("is 192.0.2.1/32 announced?", True, "192.0.2.1/32 next-hop self local-pref 0 to 10.0.0.3", False),
        (
            "is 192.0.2.1/32 announced to 10.0.0.2?", False,
            "advertisements are for others, its export rules reject it, or the session lacks its family or next hop",
            True,
        ),
    ]  # fmt: skip


def test_a_steered_pod_is_told_its_gateway_and_address() -> None:
    steps = why("pod/default/web-1")
    assert all(step.yes for step in steps)
    assert steps[-2].question == "does EgressPolicy/web take it to 203.0.113.0/24?"
    assert steps[-2].detail == "as 198.51.100.7 by gateway b or a (group 7)"


def test_where_gateways_take_turns_a_steered_pod_is_told_the_active_one() -> None:
    in_order = cluster.allocations(cluster.group(gateway_mode="active-standby"))
    assert why("pod/default/web-1", allocations=in_order)[-2].detail == "as 198.51.100.7 by gateway b (group 7)"
    assert why("egress/198.51.100.7", allocations=in_order)[2].detail == "b, a (in this order)"


def ports_step(**fields: object) -> Step:
    found = why("pod/default/web-1", allocations=cluster.allocations(**fields))
    (step,) = [each for each in found if "ports" in each.question]
    return step


def test_a_steered_pod_is_told_the_ports_of_its_node() -> None:
    step = ports_step()
    assert (step.yes, step.question) == (True, "has node a ports to leave with?")
    assert step.detail == f"1024: {cluster.group().egress_ip}:1024-2047", "what was asked back does not count"
    few = ports_step(numbers=(NodeNumber("a", 2), NodeNumber("b", 1)))
    assert few.detail.endswith("4096-4223; 7 bits of chance towards a resolver (RFC 6056)")


def test_a_steered_pod_whose_node_has_no_ports_is_told_why() -> None:
    number = NodeNumber("b", 2)  # it is the gateway; node a has none
    for lacking in ({"numbers": (number,)}, {"bindings": ()}):
        step = ports_step(**lacking)
        assert (step.yes, step.reason, step.note) == (False, "NoPorts", False)
        assert step.detail == "the operator gives it some when its agent asks"
    full = Refusal(Ref.parse("EgressPolicy/web"), "PortsExhausted", "give the policy 1 more egress address")
    assert ports_step(numbers=(number,), refusals=(full,)).detail == "give the policy 1 more egress address"


def test_a_pod_whose_packets_leave_by_its_own_node_is_told_who_brings_the_answers() -> None:
    policy = replace(cluster.snapshot().policies["EgressPolicy/web"], exit_local=True)
    steps = why("pod/default/web-1", policies={policy.key: policy})
    assert steps[-2].detail == "as 198.51.100.7 out by its own node, answers by gateway b or a (group 7)"


POD_NOES: dict[str, dict[str, object]] = {
    "OtherNode": {"node": "b"},
    "HostNetwork": {"host_network": True},
    "Finished": {"finished": True},
    "NoPodAddress": {"addresses": ()},
    "NotSelected": {"labels": {}},
}


@pytest.mark.parametrize("reason", POD_NOES)
def test_a_pod_that_is_not_steered_is_told_why(reason: str) -> None:
    pod = cluster.pod("web-1", "10.1.11.2", **POD_NOES[reason])
    steps = why("pod/default/web-1", pods={pod.key: pod})
    assert [step.reason for step in steps if not step.yes] == [reason]


def test_a_policy_without_a_group_and_a_group_without_a_gateway() -> None:
    assert why("pod/default/web-1", allocations=Allocations(1))[-1].reason == "NoGroup"
    assert (
        why("pod/default/web-1", allocations=Allocations(1, groups=(cluster.group(gateways=()),)))[-1].reason
        == "NoGateway"
    )


def test_a_pod_on_a_node_without_a_tunnel_endpoint_is_dropped() -> None:
    nodes = {"a": cluster.node("a", 11, addresses=()), "b": cluster.node("b", 12)}
    last = why("pod/default/web-1", nodes=nodes)[-1]
    assert (last.yes, last.reason) == (False, "NoTunnelEndpoint")


def test_what_is_not_translated_is_a_no_of_its_own() -> None:
    both = (SIX, FOUR)
    policies = {"EgressPolicy/web": cluster.policy(destinations=both)}
    taken, _, dropped = why("pod/default/web-1", policies=policies)[-3:]
    assert (taken.question, taken.yes) == ("does EgressPolicy/web take it to 203.0.113.0/24?", True)
    question = "does EgressPolicy/web take it to 2001:db8::/32?"
    assert (dropped.question, dropped.yes, dropped.reason) == (question, False, "UnsupportedFamily")
    assert (taken.note, dropped.note) == (False, True)
    alone = {"EgressPolicy/web": cluster.policy(destinations=both[:1])}
    noes = [step for step in why("pod/default/web-1", policies=alone) if not step.yes]
    assert [(step.reason, step.note) for step in noes] == [("UnsupportedFamily", False)]


def test_of_two_policies_of_one_destination_one_takes_the_pod() -> None:
    elder = cluster.policy(destinations=(FOUR,))
    other = replace(elder, name="other", destinations=(FOUR, ip_network("203.0.113.0/25")))

    def outcome(*policies: EgressPolicy) -> list[tuple[str, str, bool]]:
        steps = why("pod/default/web-1", policies={each.key: each for each in policies})
        return [
            (step.question.removeprefix("does EgressPolicy/"), step.reason, step.note)
            for step in steps
            if "take it to 203.0.113" in step.question
        ]

    to_all, to_part = "take it to 203.0.113.0/24?", "take it to 203.0.113.0/25?"
    assert outcome(replace(elder, priority=1), other) == [
        (f"other {to_all}", "OtherPolicyWins", True),
        (f"other {to_part}", "NoGroup", False),
        (f"web {to_all}", "", False),
    ]
    assert outcome(elder, replace(other, priority=1))[-1] == (f"web {to_all}", "OtherPolicyWins", True)
    assert outcome(replace(elder, created="2026"), other)[0] == (f"other {to_all}", "OtherPolicyWins", True)
    ports = replace(other, priority=1, ports=(PortRange("TCP", 443, 443),))
    assert outcome(elder, ports)[-1] == (f"web {to_all}", "", False), "the rest is its own"


def test_both_families_leave_where_the_group_has_an_address_of_each() -> None:
    policies = {"EgressPolicy/web": cluster.policy(destinations=(SIX, FOUR))}
    given = cluster.allocations(cluster.group(further_ips=(ip_address("2001:db8:1::7"),)))
    steps = why("pod/default/web-1", policies=policies, allocations=given)
    assert all(step.yes for step in steps)
    assert steps[-2].detail == "as 198.51.100.7 or 2001:db8:1::7 by gateway b or a (group 7)"


def test_what_no_gateway_sends_is_told_where_a_policy_covers_it() -> None:
    """A node's DNS cache and a cloud's metadata are reached as by any pod; it does not make the answer a no."""
    world = {"EgressPolicy/web": cluster.policy(destinations=(ip_network("0.0.0.0/0"),))}
    taken, link, nobodys = why("pod/default/web-1", policies=world)[-3:]
    assert taken.yes
    assert link.question == "do its policies take it to 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255/32?"
    assert nobodys.question == "do its policies take it to 0.0.0.0/8, 127.0.0.0/8, 240.0.0.0/4?"
    assert [(step.yes, step.reason, step.note) for step in (link, nobodys)] == [(False, "NeverLeaves", True)] * 2
    metadata = {"EgressPolicy/web": cluster.policy(destinations=(ip_network("169.254.169.254/32"),))}
    assert why("pod/default/web-1", policies=metadata)[-1].question == "do its policies take it to 169.254.0.0/16?"


def test_an_unknown_node_is_told() -> None:
    assert why("pod/default/web-1", Settings("elsewhere"))[-1].reason == "UnknownNode"


@pytest.mark.parametrize("name", ["svc/default/none", "pod/default/none", "svc/web", "node/none", "node", "web"])
def test_what_is_not_there_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(NoSuchObject, match=name.partition("/")[2] or name):
        why(name)


GATEWAYS = {
    "a": cluster.node("a", 11, labels={GATEWAY_LABEL: ""}),
    "b": cluster.node("b", 12, labels={GATEWAY_LABEL: ""}),
}
SILENT = NodeAddresses("b", silent_since="2026-01-01T00:00:00Z")
ABSENT = Refusal(Ref("node", name="b"), "AgentAbsent", "no word of its agent since 2026-01-01T00:00:00Z: start it")
NO_GATEWAY = Refusal(Ref("EgressPolicy", name="web"), "NoGateway", "nobody has an agent that serves")


def told(*steps: Step) -> list[str]:
    return [f"{'yes' if step.yes else 'note' if step.note else 'no'} {step.reason} {step.question}" for step in steps]


def test_the_gateways_of_an_egress_ip_and_whose_agent_is_silent() -> None:
    moved = cluster.group(gateways=("a",))
    published = cluster.allocations(moved, refusals=(ABSENT,), nodes=(SILENT,))
    for name in ("egress/198.51.100.7", "egress/7"):
        steps = why(name, nodes=GATEWAYS, allocations=published)
        assert told(*steps[1:]) == [
            f"yes  has {name.partition('/')[2]} an egress group?",
            "yes  has it a gateway whose agent serves?",
            "note AgentAbsent is the agent of b heard?",
            "yes  is the agent of a heard?",
        ]


def test_an_egress_ip_whose_gateways_are_all_silent_says_so_and_so_does_its_pod() -> None:
    published = cluster.allocations(refusals=(NO_GATEWAY, ABSENT), nodes=(SILENT,))
    steps = why("egress/198.51.100.7", nodes=GATEWAYS, allocations=published)
    assert "no NoGateway has it a gateway whose agent serves?" in told(*steps)
    (last,) = [
        each for each in why("pod/default/web-1", nodes=GATEWAYS, allocations=published) if "group 7" in each.detail
    ]
    assert last.detail.endswith("; nobody has an agent that serves")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("198.51.100.9", "AddressTaken"),
        ("198.51.100.99", "NoGroup"),
        ("98.51.100.9", "NoGroup"),
        ("198.51.100", "NoGroup"),
        ("9", "NoGroup"),
        ("2001:db8::1", "AddressTaken"),
        ("2001:db8::", "NoGroup"),
        ("db8::1", "NoGroup"),
    ],
)
def test_a_refusal_is_told_of_the_address_that_it_names_and_of_no_other(name: str, reason: str) -> None:
    words = "198.51.100.9 is the address of node a, and 2001:db8::1 is, too."
    refused = Refusal(Ref("EgressPolicy", name="other"), "AddressTaken", words)
    steps = why(f"egress/{name}", allocations=cluster.allocations(refusals=(refused,)))
    assert steps[-1].reason == reason


def test_an_address_that_is_no_egress_ip_is_told() -> None:
    steps = why("egress/198.51.100.99")
    assert told(*steps)[-1] == "no NoGroup has 198.51.100.99 an egress group?"
    with pytest.raises(NoSuchObject, match="none of svc/NAMESPACE/NAME"):
        why("egress")


def test_a_gateway_that_is_left_is_named_with_its_cause() -> None:
    """Beside which the pod leaves all the same: by the others."""
    good = Probed(1, "serves", (), 9, 9, 0.001, 0.0, "a")
    leaves = replace(good, state="leaves", reasons=("draining", "no-route"), node="b")
    link = Probed(1 << 16 | 4, "serves", (), 9, 9, 0.001, 0.0, "d", filtered=True)
    steps = gateway_steps([good, leaves, replace(good, state="silent", node="c"), link])
    assert [(each.question, each.reason, each.yes, each.note) for each in steps] == [
        ("does gateway b serve?", "GatewayLeaves", False, True),
        ("does gateway c answer probes?", "GatewaySilent", False, True),
        ("does the link to gateway d carry egress IPs?", "LinkFilters", False, True),
    ]
    assert steps[0].detail.startswith("draining, no-route: ")


REFUSED = Refusal(Ref.parse("node/a"), "NetworkPolicyBypassed", "Cilium enforces …")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (EgressStatus(), []),
        (EgressStatus(first_packets="direct"), []),
        (EgressStatus(first_packets="forward", passed={"handed_in": 5, "came_out": 5}), [(True, "", False)]),
        (EgressStatus(first_packets="forward", passed={"handed_in": 5, "came_out": 3}), [(False, "HeldBack", True)]),
        (EgressStatus(first_packets="refused"), [(False, "NetworkPolicyBypassed", False)]),
    ],
)
def test_a_pods_first_packets_are_told_of(status: EgressStatus, told: list[tuple[bool, str, bool]]) -> None:
    other = Refusal(Ref.parse("node/a"), "TableNearlyFull", "…")
    steps = first_packet_steps(status, (other, REFUSED))
    assert [(each.yes, each.reason, each.note) for each in steps] == told
    if told == [(False, "HeldBack", True)]:
        assert steps[0].detail.startswith("2 of 5, ")


def test_other_networks_of_a_pod_are_noted() -> None:
    (pod,) = cluster.snapshot().pods.values()  # type: ignore[union-attr]
    pod = replace(pod, annotations={"k8s.v1.cni.cncf.io/networks": "default/sriov@net1"})
    (noted,) = (step for step in why("pod/default/web-1", pods={pod.key: pod}) if step.reason == "FurtherNetworks")
    assert noted.note
    assert noted.detail.startswith("net1 (default/sriov): ")


def test_a_cap_that_a_pod_passes_by_is_noted() -> None:
    (pod,) = cluster.snapshot().pods.values()  # type: ignore[union-attr]
    pod = replace(pod, annotations={"kubernetes.io/egress-bandwidth": "10M"})
    (noted,) = (step for step in why("pod/default/web-1", pods={pod.key: pod}) if step.reason == "BandwidthNotLimited")
    assert noted.note
    assert noted.detail.startswith("kubernetes.io/egress-bandwidth does not limit what leaves with an egress IP")


def test_a_device_that_leads_past_the_programs_is_a_no() -> None:
    (pod,) = cluster.snapshot().pods.values()  # type: ignore[union-attr]
    past = Refusal(Ref.parse(f"pod-address/{pod.addresses[0]}"), "DeviceUnhooked", "it is on macvlan device eth0")
    other = Refusal(Ref.parse("pod-address/10.9.9.9"), "PodDeviceMissing", "no veth or netkit leads to 10.9.9.9")
    (step,) = device_steps(pod, (other, past))
    assert (step.yes, step.reason, step.detail) == (False, "DeviceUnhooked", past.message)
    (step,) = device_steps(pod, (other,))
    assert step.yes


# --- nodes


@pytest.mark.parametrize(
    ("main", "reason"), [({"10.0.0.0/24": 2}, "RoutePending"), ({}, "NotOnLink"), ({"10.1.12.128/25": 2}, "RouteTaken")]
)
def test_why_of_a_node_says_whether_there_is_a_route_of_ours_to_it(main: dict[str, int], reason: str) -> None:
    observed = Observed(main={ip_network(prefix): device for prefix, device in main.items()}, links={2: "eth0"})
    whole = cluster.snapshot()
    state = compose(whole, Settings("a", direct_routes=True), LocalFacts(sessions=LOCAL))
    (step,) = route_steps(state, RouteStatus(observed), whole, "b")
    assert (step.question, step.reason, step.note) == ("has this node a route of ours to 10.1.12.0/24?", reason, True)
    there = replace(
        observed, main={ip_network("10.0.0.0/24"): 2}, routes={ip_network("10.1.12.0/24"): frozenset({HOP})}
    )
    assert [each.yes for each in route_steps(state, RouteStatus(there), whole, "b")] == [True]
    assert route_steps(state, RouteStatus(there), whole, "a") == (), "its own"
    asked_nothing = compose(whole, Settings("a"), LocalFacts(sessions=LOCAL))
    assert route_steps(asked_nothing, RouteStatus(there), whole, "b") == ()


def test_why_of_a_node_says_which_blocks_it_has_and_from_whom() -> None:
    plain, gold = ip_network("10.9.0.0/26"), ip_network("10.8.0.0/26")
    pools = {"gold": PodPool("gold", (gold,), (ClusterCIDR(ip_network("10.8.0.0/24"), 26),))}
    told = Refusal(Ref("node", name="a"), "UnknownPodPool", "annotation routerd.io/pod-pools names silver")
    nodes = {"a": cluster.node("a", 1, pod_cidrs=(plain, gold)), "b": cluster.node("b", 2, pod_cidrs=())}
    allocations = Allocations(pod_cidrs=(NodeBlocks("a", (gold,)),), refusals=(told,))
    steps = why("node/a", nodes=nodes, allocations=allocations, pod_pools=pools)
    assert [(each.yes, each.reason, each.detail) for each in steps[1:]] == [
        (True, "", "10.9.0.0/26 (spec.podCIDRs), 10.8.0.0/26 (the operator, pool gold)"),
        (False, "UnknownPodPool", told.message),
    ]
    assert [each.reason for each in why("node/b", nodes=nodes, allocations=allocations)] == ["", "NoPodCIDRs"]
    with pytest.raises(NoSuchObject, match="no Node c"):
        why("node/c", nodes=nodes, allocations=allocations)
    assert [each.reason for each in why("node/a", nodes=None)] == ["NotSynced"]
