"""Kube-OVN's kinds of egress as policies; what names they hold, and what of them is refused or told."""

from __future__ import annotations

import pytest

from routerd.errors import InputError
from routerd.formats.convert import convert
from routerd.formats.document import MOST
from routerd.formats.foreign.kube_ovn.joined import Known, completed
from routerd.formats.foreign.kube_ovn.named import Subnet, of_namespaces
from routerd.model import Awaited, EgressPolicy, Origin, PodPool, PodSelection, Snapshot
from routerd.selectors import EVERYTHING, LabelSelector
from routerd.store.merge import merge
from tests.models.manifests import read_text

HEAD = "apiVersion: kubeovn.io/v1\nkind: %s\nmetadata: {name: %s}\nspec: {%s}\n---\n"
SUBNET = HEAD % ("Subnet", "shop", 'cidrBlock: "10.17.0.0/16,fd17::/64", namespaces: [shop, till]')
EIP = HEAD % ("OvnEip", "out", 'v4Ip: 172.10.0.1, macAddress: "", type: nat')
NAT = HEAD % ("IptablesEIP", "nat", "natGwDp: gw, v4ip: 172.10.0.2")
GATEWAY = "kind: VpcEgressGateway\napiVersion: kubeovn.io/v1\nmetadata: {name: gw, namespace: prod}\nspec: {%s}\n"
VEG = "externalIPs: [172.10.0.5, 'fd00::5'], %s"
ALL = "selectors: [{namespaceSelector: {matchLabels: {a: b}}}]"


def merged(text: str) -> Snapshot:
    return merge([read_text(text, "f.yaml")], allocations=None)


def policy(text: str) -> EgressPolicy:
    (found,) = (merged(text).policies or {}).values()
    return found


def told(text: str) -> list[str]:
    return [f"{each.object} {each.reason}: {each.message}" for each in merged(text).refusals]


def namespaces(found: EgressPolicy) -> list[tuple[str, ...]]:
    return [each.values for s in found.selections if s.namespaces for each in s.namespaces.match_expressions]


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        (EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: shop"), "OvnSnatRule/r", "172.10.0.1"),
        (EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, v4IpCidr: 10.17.0.0/16"), "OvnSnatRule/r", "172.10.0.1"),
        (
            NAT + HEAD % ("IptablesSnatRule", "r", "eip: nat, internalCIDR: 10.17.0.0/16"),
            "IptablesSnatRule/r",
            "172.10.0.2",
        ),
    ],
)  # fmt: skip
def test_a_rule_is_a_policy_for_the_namespaces_of_its_subnet(text: str, name: str, address: str) -> None:
    found = policy(SUBNET + text)
    assert (found.key, str(found.egress_ip), found.further_ips) == (name, address, ())
    assert namespaces(found) == [("shop", "till")] and [str(each) for each in found.destinations] == ["0.0.0.0/0"]
    assert told(SUBNET + text) == []


def test_what_kube_ovn_chose_itself_stands_in_the_status() -> None:
    eip = "apiVersion: kubeovn.io/v1\nkind: OvnEip\nmetadata: {name: out}\nspec: {v4Ip: ''}\n"
    rule = "---\n" + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: shop")
    assert str(policy(SUBNET + eip + "status: {v4Ip: 172.10.0.9}\n" + rule).egress_ip) == "172.10.0.9"
    assert told(SUBNET + eip + rule) == [
        "OvnEip/out NoEgressIP: f.yaml:9:7: spec: neither v4Ip nor v6Ip: write the address, as Kube-OVN alone gives "
        "one of its externalSubnet",
        "OvnSnatRule/r NotFound: f.yaml:14:16: spec.ovnEip: there is no OvnEip out with an address (what it "
        "covers is dropped)",
    ]


def test_a_routers_own_address_is_nobodys() -> None:
    assert told(HEAD % ("OvnEip", "lrp", "type: lrp, externalSubnet: external")) == []


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("vpcSubnet: other", "NotFound: f.yaml:9:32: spec.vpcSubnet: there is no Subnet other (nothing of it is"),
        (
            "v4IpCidr: 10.18.0.0/16",
            "NotFound: f.yaml:9:31: spec.v4IpCidr: pods are selected by labels and namespaces, and no Subnet has the "
            "CIDR 10.18.0.0/16 (nothing of it is in force)",
        ),
        ("ipName: web-0.shop", 'PodByName: f.yaml:9:29: spec.ipName: a pod is not selected by its name'),
        ("vpc: x", "NoSelectors: f.yaml:9:7: spec: neither vpcSubnet nor v4IpCidr or v6IpCidr: it selects no pod"),
    ],
)  # fmt: skip
def test_a_rule_that_selects_by_what_is_not_there_is_refused(rule: str, why: str) -> None:
    (line,) = told(EIP + HEAD % ("OvnSnatRule", "r", f"ovnEip: out, {rule}"))
    assert line.startswith(f"OvnSnatRule/r {why}")


def test_a_subnet_without_namespaces_selects_nobody() -> None:
    bare = HEAD % ("Subnet", "ovn-default", "cidrBlock: 10.16.0.0/16, default: true")
    text = bare + EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: ovn-default")
    (line,) = told(text)
    assert "Subnet ovn-default is bound to no namespace (nothing of it is in force)" in line
    assert policy(text).refused


def subnet(name: str, vpc: str, namespace: str) -> str:
    return HEAD % ("Subnet", name, f"vpc: {vpc}, cidrBlock: 10.5.0.0/16, namespaces: [{namespace}]")


TENANTS = subnet("a-blue", "blue", "blue") + subnet("b-red", "red", "red")
NAT_GATEWAY = HEAD % ("VpcNatGateway", "gw", "vpc: red")


@pytest.mark.parametrize(
    "rule",
    [
        EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpc: red, v4IpCidr: 10.5.0.0/16"),
        EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: b-red, v4IpCidr: 10.5.0.0/16"),
        NAT_GATEWAY + NAT + HEAD % ("IptablesSnatRule", "r", "eip: nat, internalCIDR: 10.5.0.0/16"),
        GATEWAY % (VEG % "vpc: red, policies: [{snat: true, ipBlocks: [10.5.0.0/16]}]"),
    ],
    ids=["rule of a VPC", "rule of a subnet", "rule of a gateway's VPC", "gateway of a VPC"],
)
def test_of_two_tenants_with_one_cidr_that_of_the_vpc_is_taken(rule: str) -> None:
    found = policy(TENANTS + rule)
    assert not found.refused and namespaces(found) == [("red",)]


@pytest.mark.parametrize(
    ("rule", "why", "covered"),
    [
        (
            NAT + HEAD % ("IptablesSnatRule", "r", "eip: nat, internalCIDR: 10.5.0.0/16"),
            "spec.internalCIDR: several Subnets have the CIDR 10.5.0.0/16 (a-blue of VPC blue, b-red of VPC red): "
            "write in an EgressPolicy which pods are meant (what it covers is dropped)",
            [("blue",), ("red",)],
        ),
        (
            EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpc: green, v4IpCidr: 10.5.0.0/16"),
            "no Subnet of VPC green has the CIDR 10.5.0.0/16 (nothing of it is in force)",
            [],
        ),
        (
            EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpc: red, vpcSubnet: a-blue"),
            "spec.vpcSubnet: Subnet a-blue is of VPC blue, not of red (what it covers is dropped)",
            [("blue",)],
        ),
        (
            GATEWAY % (VEG % "policies: [{snat: true, subnets: [b-red]}]"),
            "spec.policies[0].subnets[0]: Subnet b-red is of VPC red, not of ovn-cluster (what it covers is dropped)",
            [("red",)],
        ),
    ],
    ids=["several", "none", "another VPC", "not the default VPC"],
)
def test_whose_pods_are_meant_is_not_guessed(rule: str, why: str, covered: list[tuple[str, ...]]) -> None:
    text = TENANTS + rule
    (line,) = told(text)
    assert line.endswith(why)
    assert policy(text).refused and namespaces(policy(text)) == covered


def test_namespaces_are_bound_to_a_subnet_by_name_and_by_label() -> None:
    selecting = "cidrBlock: 10.6.0.0/16, namespaceSelectors: [{matchLabels: {team: a}}], namespaces: [red]"
    text = HEAD % ("Subnet", "sel", selecting) + EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: sel")
    found = policy(text)
    assert told(text) == [] and not found.refused
    chosen = [each.namespaces for each in found.selections if each.namespaces is not None]
    matching = [
        any(each.matches(labels) for each in chosen)
        for labels in ({"kubernetes.io/metadata.name": "red"}, {"team": "a"}, {"team": "b"})
    ]
    assert matching == [True, True, False]


def test_a_pod_is_not_selected_by_its_address() -> None:
    (line,) = told(EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, v4IpCidr: 10.6.0.7"))
    assert "PodByName: f.yaml:9:31: spec.v4IpCidr: a pod is not selected by its address: give it the annotation" in line


def test_an_egress_gateway_is_a_policy_with_all_its_addresses() -> None:
    found = policy(
        SUBNET
        + GATEWAY
        % (
            VEG
            % (
                "selectors: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}], "
                "policies: [{snat: true, subnets: [shop]}], nodeSelector: [{matchLabels: {edge: 'yes'}}], "
                "tolerations: [], trafficPolicy: Cluster"
            )
        )
    )
    assert found.key == "VpcEgressGateway/prod/gw"
    assert [str(each) for each in found.egress_ips] == ["172.10.0.5", "fd00::5"] and len(found.destinations) == 2
    assert len(found.selections) == 2 and namespaces(found) == [("shop", "till")]
    assert found.gateways is not None and found.gateways.match_labels == (("edge", "yes"),)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (VEG % "vpc: ovn-cluster", "NoSelectors"),
        (VEG % "policies: [{subnets: [shop]}]", "NotTranslated"),
        (VEG % "selectors: [{}]", "NoSelectors"),
        (VEG % f"{ALL}, nodeSelector: [{{}}, {{}}]", "SeveralNodeSelectors"),
        (VEG % f"{ALL}, nodeSelector: [{{matchFields: [{{key: metadata.name, operator: In}}]}}]", "NodeByField"),
        (f"externalSubnet: e, {ALL}", "NoEgressIP"),
        (f"externalSubnet: e, externalIPPool: p, {ALL}", "PoolNotSupported"),
        (f"externalIPs: [224.0.0.1], {ALL}", "InvalidEgressIP"),
        (f"externalIPs: [{', '.join(f'172.10.0.{n}' for n in range(1, 18))}], {ALL}", "TooManyAddresses"),
    ],
)  # fmt: skip
def test_an_egress_gateway_that_cannot_be_is_refused_and_what_it_covers_dropped(spec: str, reason: str) -> None:
    text = SUBNET + GATEWAY % spec
    (line,) = told(text)
    assert line.startswith(f"VpcEgressGateway/prod/gw {reason}: f.yaml:9")
    assert all(each.refused for each in (merged(text).policies or {}).values())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("bandwidth: {egress: 100}", "traffic is not limited"),
        ("trafficPolicy: Local", "pods leave by all gateways alike"),
        ("bgpConf: b", "its addresses are announced to the peers of the BGP configuration"),
        ("evpnConf: e", "EVPN is not announced"),
        ("vpc: mine", "of a VPC its subnets count"),
        ("bfd: {enabled: true}", "when its agent is not heard any more"),
        ("replicas: 3", "no workload is made"),
        ("tolerations: [{key: a}]", "no workload is made"),
        ("resources: {limits: {cpu: 1}}", "no workload is made"),
        ("image: i", "no workload is made"),
        ("prefix: p", "no workload is made"),
        ("internalSubnet: s", "no workload is made"),
        ("internalIPs: [10.0.0.7]", "no workload is made"),
        ("internalIPPool: p", "no workload is made"),
        ("podAntiAffinity: Required", "no workload is made"),
        ("externalSubnet: e", "packets leave by the routes of a gateway node"),
        ("externalIps: [10.0.0.1]", 'unknown key "externalIps"; did you mean "externalIPs"?; it is left out'),
        ("policies: [{snat: true, subnets: [shop], ipBlock: [x]}]", 'unknown key "ipBlock"'),
        ("nodeSelector: [{matchLabel: {a: b}}]", 'unknown key "matchLabel"'),
        ("observability: {interfaceMetrics: {enabled: true}}", "who had which port"),
    ],
)
def test_what_of_an_egress_gateway_is_not_done_is_told(key: str, words: str) -> None:
    text = SUBNET + GATEWAY % (VEG % f"{ALL}, {key}")
    (line,) = told(text)
    assert line.startswith("VpcEgressGateway/prod/gw KeyNotUsed: f.yaml:9:") and words in line
    assert not policy(text).refused


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("gatewayType: centralized, gatewayNode: 'a,b'", "pods of the subnet do not leave by a,b: write an Egress"),
        ("gatewayNodeSelectors: [{matchLabels: {a: b}}]", "pods of the subnet do not leave by these nodes"),
        ("enableEcmp: true", "packets leave by the routes of a gateway node"),
        ("namespaceSelector: [{}]", 'unknown key "namespaceSelector"; did you mean "namespaceSelectors"?'),
        ("mtu: 1400, private: false, vips: [], excludeIps: [10.17.0.1]", "which change nothing here: mtu, excludeIps"),
        ("externalEgressGateway: 10.0.0.1", "packets leave by the routes of a gateway node"),
        ("natOutgoingPolicyRules: [{action: nat}]", "what is translated is what policies cover"),
    ],
)  # fmt: skip
def test_how_pods_of_a_subnet_leave_is_not_taken_from_it(key: str, words: str) -> None:
    (line,) = told(HEAD % ("Subnet", "s", f"cidrBlock: 10.17.0.0/16, natOutgoing: true, {key}"))
    assert line.startswith("Subnet/s KeyNotUsed: f.yaml:4:") and words in line
    plain = "cidrBlock: 10.17.0.0/16, natOutgoing: true, gatewayType: distributed, gatewayNode: ''"
    assert told(HEAD % ("Subnet", "s", plain)) == []


def test_what_an_address_has_for_kube_ovns_own_network_is_told_in_one_line() -> None:
    spec = "externalSubnet: external, v4Ip: 172.10.0.1, macAddress: '00:00:00:00:00:01'"
    message = "f.yaml:4:7: spec: keys of Kube-OVN's own network, which change nothing here: externalSubnet, macAddress"
    assert told(HEAD % ("OvnEip", "e", spec)) == [f"OvnEip/e KeyNotUsed: {message}"]


def test_an_address_is_of_the_family_of_its_key() -> None:
    with pytest.raises(InputError, match=r'spec.v4Ip: found the string "fd00::5", expected an IPv4 address'):
        read_text(HEAD % ("OvnEip", "e", "v4Ip: 'fd00::5'"), "f.yaml")


def test_the_quality_of_service_of_an_address_is_told() -> None:
    assert [line.split(":")[0] for line in told(HEAD % ("IptablesEIP", "n", "v4ip: 172.10.0.2, qosPolicy: q"))] == [
        "IptablesEIP/n KeyNotUsed"
    ]


def test_an_ip_pool_is_for_pods() -> None:
    text = HEAD % (
        "IPPool",
        "p",
        "subnet: shop, ips: [10.17.0.7, 10.17.0.8..10.17.0.9, 10.17.1.0/24], namespaces: [shop], "
        "enableAddressSet: true",
    )
    loaded = read_text(text, "f.yaml")
    (found,) = (each.object for each in loaded.entries)
    assert [each.message.split(":")[3] for each in loaded.refusals] == [" spec.enableAddressSet"]
    assert isinstance(found, PodPool) and found.for_namespaces is not None
    assert [str(each) for each in found.networks] == ["10.17.0.7/32", "10.17.0.8/31", "10.17.1.0/24"]
    assert found.for_namespaces.matches({"kubernetes.io/metadata.name": "shop"})
    assert not found.for_namespaces.matches({"kubernetes.io/metadata.name": "till"})


def test_they_are_printed_as_ours() -> None:
    converted = convert({"f.yaml": SUBNET + EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: shop")})
    assert converted.errors == () and converted.notes == ()
    assert "egressIP: 172.10.0.1" in converted.text and "values:" in converted.text
    lacking = convert({"f.yaml": EIP + HEAD % ("OvnSnatRule", "r", "ovnEip: out, vpcSubnet: shop")})
    assert lacking.text == ""
    assert lacking.errors == ("f.yaml:9:32: spec.vpcSubnet: there is no Subnet shop (nothing of it is in force)",)


def test_an_egress_gateway_is_printed_and_what_has_no_meaning_told() -> None:
    converted = convert({"f.yaml": GATEWAY % (VEG % f"{ALL}, replicas: 1, podAntiAffinity: Required")})
    assert converted.errors == () and "egressIPs:" in converted.text
    assert [note.split(": ")[1] for note in converted.notes] == ["spec.replicas", "spec.podAntiAffinity"]


def test_what_subnets_select_is_bounded_and_dropped_beyond_that() -> None:
    many = tuple(PodSelection(namespaces=LabelSelector((("team", str(number)),))) for number in range(MOST))
    subnets = {name: Subnet(name, "red", (), (of_namespaces([name]), *many), Origin("f.yaml", 1)) for name in "ab"}
    awaits = tuple(Awaited("Subnet", name, "") for name in subnets)
    whole, (refusal,) = completed(EgressPolicy("r", "OvnSnatRule", awaits=awaits), Known({}, subnets, {}))
    assert refusal.message.endswith(f"have {MOST + 2} selectors, at most {MOST} are taken (what it covers is dropped)")
    assert whole.refused and whole.selections == (PodSelection(EVERYTHING),)
