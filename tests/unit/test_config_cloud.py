"""The block `cloud` of routerd.yaml: what it says, and one message per kind of mistake."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from cloud.demand import Choice, Rules
from cloud.model import Api, Vpc
from cloud.need import Watermarks
from cloud.providers import arm, ecs
from routerd.config import Config, parse_config
from routerd.config.cloud import CloudSettings
from routerd.errors import InputError

HEAD = "apiVersion: routerd.io/v1alpha1\nkind: Config\n"
GOOD = "{provider: aws, cluster: c"


def test_without_a_block_there_is_no_cloud() -> None:
    assert parse_config(HEAD) == Config()
    assert parse_config(HEAD + "cloud: {provider: none}\n") == Config()


def test_everything_can_be_set() -> None:
    config = parse_config(
        HEAD
        + """\
cloud:
  provider: aws
  region: eu-central-1
  endpoint: https://ec2.example
  cluster: prod-1
  nodes: {pods: vpc}
  calls: false
  releases: false
  egress-networks: [10.0.8.0/24]
  external-snat: false
  snat-exempt: [192.168.0.0/16]
  addresses: {pre-allocate: 3, min: 4, max: 50, above: 2, prefixes: true, ipv6: true}
  interfaces: {first-index: 2, subnets: {tags: {pods: "yes"}}, security-groups: {ids: [sg-1]}, exclude-tags: {a: b},
    tags: {team: net}}
"""
    )
    rules = Rules(
        "prod-1",
        Watermarks(3, 4, 50, 2),
        subnets=Choice(tags={"pods": "yes"}),
        groups=Choice(ids=frozenset({"sg-1"})),
        first_index=2,
        excluded={"a": "b"},
        prefixes=True,
        ipv6=True,
        tags={"team": "net"},
        releases=False,
        tells_vpc=True,
    )
    assert config.cloud == CloudSettings(
        "aws", "eu-central-1", "https://ec2.example", nodes={"pods": "vpc"}, calls=False,
        external_snat=False, snat_exempt=(ip_network("192.168.0.0/16"),), egress_networks=(ip_network("10.0.8.0/24"),),
        rules=rules,
    )  # fmt: skip


def test_a_provider_says_what_its_calls_and_its_networks_are_like() -> None:
    names = ("aws", "alibaba", "azure")
    aws, alibaba, azure = (parse_config(HEAD + f"cloud: {{provider: {name}, cluster: c}}\n").cloud for name in names)
    assert (aws.rules.api, aws.vpc) == (Api(), Vpc())
    assert (alibaba.rules.api, alibaba.vpc) == (ecs.API, ecs.VPC)
    assert (azure.rules.api, azure.vpc) == (arm.API, arm.VPC)
    assert parse_config(HEAD).cloud.vpc is None


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", 0),
        (", egress-networks: []", 0),
        (", egress-networks: [10.0.0.0/24]", 1),
        (", interfaces: {first-index: 2}", 2),
    ],
)
def test_a_vm_of_azure_serves_pods_by_its_first_interface_unless_that_is_for_egress(text: str, first: int) -> None:
    config = parse_config(HEAD + f"cloud: {{provider: azure, cluster: c{text}}}\n")
    assert config.cloud.rules.first_index == first


def test_the_bit_by_which_nodes_of_a_cloud_mark_is_not_egresses() -> None:
    egress = "egress: {forward-mark-bit: 7}\n"
    assert parse_config(f"{HEAD}{egress}cloud: {{provider: none}}\n").egress.forward_mark_bit == 7
    with pytest.raises(InputError, match=r'egress\.forward-mark-bit: found "7", expected another bit'):
        parse_config(f"{HEAD}{egress}cloud: {GOOD}}}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", 'f:3:8: cloud: the key "provider" is missing'),
        ("{provider: gcp}", 'f:3:19: cloud.provider: found "gcp", expected none, aws, alibaba or azure'),
        ("{provider: aws}", 'f:3:8: cloud: the key "cluster" is missing'),
        (f"{GOOD}, zone: a}}", 'f:3:36: cloud.zone: unknown key "zone"'),
        (f"{GOOD}, endpoint: ec2.example}}", 'f:3:46: cloud.endpoint: found "ec2.example", expected a URL'),
        (f"{GOOD}, addresses: {{pre-allocate: 0}}}}", "f:3:62: cloud.addresses.pre-allocate: found"),
        (f"{GOOD}, addresses: {{min: 9, max: 8}}}}", 'cloud.addresses.max: found "8", expected at least min, 9'),
        (f"{GOOD}, interfaces: {{first-index: 32}}}}", "f:3:62: cloud.interfaces.first-index: found"),
        (f"{GOOD}, interfaces: {{subnets: {{ids: [a], tags: {{a: b}}}}}}}}", "expected ids or tags, not both"),
        (f"{GOOD}, interfaces: {{tags: {{routerd.io/cluster: x}}}}}}", "begin with none of aws:, acs:"),
        (f"{GOOD}, interfaces: {{subnets: {{names: [a]}}}}}}", "cloud.interfaces.subnets.names: unknown key"),
        (f"{GOOD}, egress-networks: ['fd00::/64']}}", "f:3:54: cloud.egress-networks[0]: found"),
        (f"{GOOD}, snat-exempt: ['fd00::/64']}}", "f:3:50: cloud.snat-exempt[0]: found"),
        (f"{GOOD}, egress-networks: [10.0.0.0/24], interfaces: {{first-index: 0}}}}", "interfaces.first-index 0"),
        (f"{GOOD}, interfaces: {{tags: {{'acs:x': y}}}}}}", "begin with none of"),
        ("{provider: alibaba, cluster: c, interfaces: {first-index: 0}}", "expected 1 with provider alibaba"),
        ("{provider: azure, cluster: c, region: westeurope}", "cloud.region: found"),
        ("{provider: azure, cluster: c, interfaces: {subnets: {ids: [a]}}}", "expected nothing with provider azure"),
        ("{provider: azure, cluster: c, interfaces: {tags: {a: b}}}", "expected nothing with provider azure"),
        (f"{GOOD}, calls: perhaps}}", "f:3:43: cloud.calls: found"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(HEAD + f"cloud: {text}\n", "f")
    assert message in str(caught.value)
