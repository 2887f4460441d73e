"""Cilium's egress policies: what is meant is taken, what we cannot do is refused by name."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from routerd.model import EgressPolicy, Pod, PodSelection, selection_matches
from routerd.selectors import LabelSelector, Requirement
from tests.models.manifests import read_text

EXAMPLES = Path(__file__).parents[3] / "data" / "examples"
NAT = "apiVersion: cilium.io/v2alpha1\nkind: CiliumEgressNATPolicy\nmetadata: {name: e}\nspec:\n"
GATEWAY = "apiVersion: cilium.io/v2\nkind: CiliumEgressGatewayPolicy\nmetadata: {name: e}\nspec:\n"
SELECTORS = "  selectors: [{podSelector: {}}]\n  destinationCIDRs: [0.0.0.0/0]\n"


def read(text: str) -> tuple[EgressPolicy | None, list[str]]:
    loaded = read_text(text, "f.yaml")
    policies = [entry.object for entry in loaded.entries if isinstance(entry.object, EgressPolicy)]
    return (policies[0] if policies else None), [f"{one.reason}: {one.message}" for one in loaded.refusals]


def taken(text: str) -> EgressPolicy:
    policy, refusals = read(text)
    assert policy is not None
    assert refusals == []
    return policy


def test_nat_policy_of_a_user() -> None:
    policy = taken((EXAMPLES / "egress-nat-policy-cilium-1.10.yaml").read_text())
    assert policy.key == "CiliumEgressNATPolicy/egress-sample"
    assert policy.egress_ip == ip_address("192.168.33.100")
    assert policy.destinations == (ip_network("192.168.33.13/32"),)
    assert policy.gateways is None
    assert selection_matches(policy.selections[0], Pod("default", "a"), {}, {})
    assert not selection_matches(policy.selections[0], Pod("other", "a"), {}, {})


def test_gateway_policy_of_a_user() -> None:
    policy = taken((EXAMPLES / "egress-gateway-policy-cilium-v2.yaml").read_text())
    assert policy.egress_ip == ip_address("10.168.60.100")
    assert policy.gateways == LabelSelector((("node.kubernetes.io/name", "node1"),))
    pod = Pod("default", "a", labels={"app": "snat-pod"})
    assert selection_matches(policy.selections[0], pod, {}, {})
    assert not selection_matches(policy.selections[0], Pod("default", "a"), {}, {})


def test_labels_may_name_their_source_or_the_namespace() -> None:
    policy = taken(
        NAT
        + """\
  egress:
  - podSelector: {matchLabels: {"k8s:app": web, "k8s:io.cilium.k8s.namespace.labels.team": red}}
    namespaceSelector: {matchExpressions: [{key: env, operator: Exists}]}
  destinationCIDRs: [198.51.100.7/24]
  egressSourceIP: 192.0.2.1
"""
    )
    team = LabelSelector((("team", "red"),), (Requirement("env", "Exists"),))
    assert policy.selections == (PodSelection(LabelSelector((("app", "web"),)), team),)
    assert policy.destinations == (ip_network("198.51.100.0/24"),)


@pytest.mark.parametrize("destinations", ["'::/0'", "0.0.0.0/0, '::/0'"])
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize(
    "policy",
    [NAT + "  egress: [{podSelector: {}}]\n  destinationCIDRs: [%s]\n  egressSourceIP: '%s'\n",
     GATEWAY + "  selectors: [{podSelector: {}}]\n  destinationCIDRs: [%s]\n"
     "  egressGateway: {nodeSelector: {}, egressIP: '%s'}\n"],
)  # fmt: skip
def test_both_families_are_read_and_nothing_is_taken_from_them(policy: str, address: str, destinations: str) -> None:
    found = taken(policy % (destinations, address))
    assert ip_network("::/0") in found.destinations
    assert found.egress_ip == ip_address(address)


def test_unknown_fields_are_ignored_as_the_api_server_prunes_them() -> None:
    taken(GATEWAY + SELECTORS + "  egressGateway: {nodeSelector: {}, egressIP: 192.0.2.1, later: 1}\n  new: {}\n")


def test_gateways_of_one_address_told_apart_by_one_label_are_one_selector() -> None:
    rows = "".join(
        f"  - {{egressIP: 192.0.2.1, nodeSelector: {{matchLabels: {{rack: {rack}}}}}}}\n" for rack in ("a", "b")
    )
    policy = taken(GATEWAY + SELECTORS + "  egressGateway: {nodeSelector: {}}\n  egressGateways:\n" + rows)
    assert policy.gateways == LabelSelector((), (Requirement("rack", "In", ("a", "b")),))


def test_gateways_of_several_addresses_give_the_first() -> None:
    rows = "".join(f"  - {{egressIP: 192.0.2.{n}, nodeSelector: {{}}}}\n" for n in (1, 2))
    policy, refusals = read(GATEWAY + SELECTORS + "  egressGateways:\n" + rows)
    assert policy is not None
    assert policy.egress_ip == ip_address("192.0.2.1")
    assert refusals == [
        "GatewayNotUsed: f.yaml:9:5: spec.egressGateways[1]: only gateways of one egress IP, told apart by one label, "
        "can be taken together: this one is not used"
    ]


NAT_REST = "  destinationCIDRs: [198.51.100.0/24]\n  egressSourceIP: 192.0.2.1\n"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (NAT + "  egress: [{}]\n" + NAT_REST,
         "NoSelectors: f.yaml:5:12: spec.egress[0]: neither podSelector nor namespaceSelector: say {} to select all"),
        (NAT + "  egress: []\n" + NAT_REST,
         "NoSelectors: f.yaml:5:11: spec.egress: no selectors: the policy selects no pod"),
        (NAT + "  egress: [{podSelector: {}}]\n  destinationCIDRs: []\n  egressSourceIP: 192.0.2.1\n",
         "NoDestinations: f.yaml:6:21: spec.destinationCIDRs: no destinations: the policy selects no traffic"),
        (NAT + "  egress: [{podSelector: {}}]\n  destinationCIDRs: [0.0.0.0/0]\n  egressSourceIP: 0.0.0.0\n",
         "InvalidEgressIP: f.yaml:7:19: spec.egressSourceIP: 0.0.0.0 cannot be an egress IP: the unspecified address"),
        (GATEWAY + SELECTORS + "  egressGateway: {nodeSelector: {}, interface: eth1}\n",
         'InterfaceNotSupported: f.yaml:7:18: spec.egressGateway: interface "eth1" is not supported: name the address '
         "with egressIP"),
        (GATEWAY + SELECTORS + "  egressGateway: {nodeSelector: {}, interface: eth1, egressIP: 192.0.2.1}\n",
         "InvalidGateway: f.yaml:7:18: spec.egressGateway: interface and egressIP exclude each other"),
        (GATEWAY + SELECTORS + "  egressGateway: {nodeSelector: {}}\n",
         "NoEgressIP: f.yaml:7:18: spec.egressGateway: no egressIP: the address of the gateway's default route is not "
         "supported, name one"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(text: str, refusal: str) -> None:
    policy, refusals = read(text)
    assert refusals == [refusal]
    is_known = refusal.partition(":")[0] not in ("NoSelectors", "NoDestinations")  # what it covers, and so is dropped
    assert (policy is not None and policy.refused) == is_known
