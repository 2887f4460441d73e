"""Egress IPs by Kube-OVN's annotations of pods and namespaces: policies, what nodes report, what is told."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from routerd.formats.compose import value_of
from routerd.formats.foreign.policies import MOST_ASKS, AskCounter, Asked, policy_of_ask, with_asked
from routerd.formats.objects import read_object
from routerd.model import EIP, SNAT, AddressPool, EgressAsk, Namespace, Pod, selection_matches

CONFIGS = Path(__file__).parents[4] / "configs"
BLOCKS = (ip_network("172.10.0.0/24"),)
OPEN = {"p": AddressPool("p", BLOCKS, uses=frozenset({"egress"}), egress_annotations=True)}
NAMED = {"kubernetes.io/metadata.name": "shop"}


def pod(name: str, node: str = "w", **fields: object) -> Pod:
    annotations = {{"eip": EIP, "snat": SNAT}[key]: str(fields.pop(key)) for key in ("eip", "snat") if key in fields}
    return Pod("shop", name, node, annotations=annotations, **fields)  # type: ignore[arg-type]


def policies(*pods: Pod, **namespaces: str) -> dict[str, list[str]]:
    """By name of the policy, the pods that it takes."""
    known = {name: Namespace(name, NAMED, {SNAT: text}) for name, text in namespaces.items()}
    found = Asked().policies({each.key: each for each in pods}, known, OPEN) or {}
    return {
        policy.name: [
            each.name for each in pods if any(selection_matches(s, each, NAMED, {}) for s in policy.selections)
        ]
        for policy in found.values()
    }


def test_a_policy_takes_the_pods_that_ask_for_its_address_and_no_other() -> None:
    asking = (pod("a", eip="172.10.0.1"), pod("b", snat=" 172.10.0.1 "), pod("c", snat="fd00::1"), pod("d"))
    assert policies(*asking) == {"shop/172.10.0.1": ["a", "b"], "shop/fd00::1": ["c"]}


def test_a_namespace_speaks_for_the_pods_that_do_not() -> None:
    assert policies(pod("a", eip="172.10.0.1"), pod("d"), shop="172.10.0.2") == {
        "shop/172.10.0.1": ["a"], "shop/172.10.0.2": ["d"],
    }  # fmt: skip
    assert policies(pod("a", eip="172.10.0.2"), pod("d"), shop="172.10.0.2") == {"shop/172.10.0.2": ["a", "d"]}


def test_what_is_no_address_keeps_its_pods_in() -> None:
    found = Asked().policies({"shop/a": pod("a", eip="x")}, {}, OPEN) or {}
    assert [(each.name, each.refused, len(each.destinations)) for each in found.values()] == [
        ("shop/unreadable", True, 2)
    ]


UNUSABLE = (
    "fd00::1%x", "fd00::1%1", "fe80::1", "169.254.0.1", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
    "::ffff:172.10.0.1", "::ffff:ac0a:1", "255.255.255.255", "172.10.0.1/32",
)  # fmt: skip


@pytest.mark.parametrize("text", UNUSABLE)
def test_what_no_packet_can_leave_with_is_no_address(text: str) -> None:
    asked, asking = Asked(), {"shop/a": pod("a", eip=text)}
    assert [each.name for each in (asked.policies(asking, {}, OPEN) or {}).values()] == ["shop/unreadable"]
    assert AskCounter("w").asks(asking, OPEN) == ()
    assert [each.reason for each in asked.refusals] == ["InvalidEgressIP"]


def test_a_report_carries_no_more_asks_than_its_schema_lets_through() -> None:
    crds = yaml.safe_load_all((CONFIGS / "deploy" / "crds.yaml").read_text())
    (version,) = next(each["spec"] for each in crds if each["spec"]["names"]["kind"] == "RouterdNode")["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert status["egressAsks"]["maxItems"] == MOST_ASKS
    many = [pod(f"p{number}", eip=f"fd00::{number + 1:x}") for number in range(MOST_ASKS + 5)]
    other = Pod("zoo", "a", "w", annotations={EIP: "172.10.0.1"})
    asks = AskCounter("w").asks({each.key: each for each in (*many, other)}, OPEN)
    assert asks is not None and len(asks) == MOST_ASKS and asks[-1].namespace == "zoo", "each namespace in turn"


def test_a_label_of_that_name_asks_for_nothing() -> None:
    labelled = Pod("shop", "b", "w", labels={EIP: "172.10.0.1"})
    assert policies(pod("a", eip="172.10.0.1"), labelled) == {"shop/172.10.0.1": ["a"]}


def test_what_did_not_change_is_the_same_object() -> None:
    asked = Asked()
    first = asked.policies({"shop/a": pod("a", eip="172.10.0.1")}, {}, OPEN) or {}
    again = asked.policies({"shop/a": pod("a", eip="172.10.0.1"), "shop/b": pod("b", eip="172.10.0.2")}, {}, OPEN) or {}
    (key,) = first
    assert again[key] is first[key]
    assert asked.policies({}, {}, OPEN) == {}


@pytest.mark.parametrize("pools", [{}, {"p": AddressPool("p", BLOCKS, uses=frozenset({"egress"}))}])
def test_while_no_pool_is_open_to_annotations_they_change_nothing_and_are_told(pools: dict[str, AddressPool]) -> None:
    asked, asking = Asked(), {"shop/a": pod("a", eip="172.10.0.1"), "shop/b": pod("b", snat="x")}
    namespaces = {"shop": Namespace("shop", NAMED, {SNAT: "172.10.0.2"})}
    assert asked.policies(asking, namespaces, pools) == {}
    assert AskCounter("w").asks(asking, pools) == ()
    assert sorted((str(each.object), each.reason, each.severity) for each in asked.refusals) == [
        (whom, "EgressAnnotationUnused", "warning") for whom in ("Namespace/shop", "Pod/shop/a", "Pod/shop/b")
    ]
    assert asked.policies(asking, namespaces, OPEN)
    assert [(str(each.object), each.reason, each.severity) for each in asked.refusals] == [
        ("Pod/shop/b", "InvalidEgressIP", "error")
    ]


def test_while_pools_are_not_read_nobody_knows_who_asks() -> None:
    asking = {"shop/a": pod("a", eip="172.10.0.1")}
    assert Asked().policies(asking, {}, None) is None and Asked().policies({}, {}, None) == {}
    assert AskCounter("w").asks(asking, None) is None
    assert with_asked({}, None) is None


def test_a_node_reports_what_its_own_pods_ask_for() -> None:
    counter = AskCounter("w")
    assert counter.asks(None, OPEN) is None, "pods have not been read"
    pods = (
        pod("a", eip="172.10.0.2"), pod("b", snat="172.10.0.1"), pod("c", "other", eip="172.10.0.3"),
        pod("d", eip="172.10.0.4", host_network=True), pod("e", eip="172.10.0.5", finished=True), pod("f", eip="x"),
    )  # fmt: skip
    asks = counter.asks({each.key: each for each in pods}, OPEN)
    assert asks == tuple(EgressAsk("shop", ip_address(f"172.10.0.{last}")) for last in (1, 2))
    found = Asked().policies({each.key: each for each in pods}, {}, OPEN) or {}
    assert all(policy_of_ask(ask).key in found for ask in asks or ())


@pytest.mark.parametrize("kind", ["Pod", "Namespace"])
@pytest.mark.parametrize(
    ("annotations", "reasons"),
    [
        ({EIP: "203.0.113.1"}, ["EgressByAnnotation: no connection from outside is brought to the pod"]),
        ({SNAT: "203.0.113.1"}, []),
        (
            {EIP: "203.0.113.1", SNAT: "203.0.113.2"},
            [
                "EgressByAnnotation: no connection from outside is brought to the pod",
                "EgressByAnnotation: the pod leaves with its eip, as Kube-OVN has it",
            ],
        ),
        ({EIP: "", "ovn.kubernetes.io/routed": "true"}, []),
    ],
)
def test_what_of_annotations_is_not_done_is_told(kind: str, annotations: dict[str, str], reasons: list[str]) -> None:
    value = value_of({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "annotations": annotations}})
    told = read_object(value).refusals
    assert [f"{each.reason}: {each.message.split(': ', 2)[2].split(': ')[0]}" for each in told] == reasons
