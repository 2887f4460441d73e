"""What Terway's configuration is as ours: the block `cloud`, and a word about each key that is not in it."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from cloud.demand import Choice
from cloud.need import Watermarks
from routerd.config import parse_config
from routerd.formats.convert import convert

WHOLE: dict[str, Any] = {
    "version": "1",
    "min_pool_size": 4,
    "max_pool_size": 10,
    "ip_warm_up_size": 6,
    "enable_eni_trunking": False,
    "access_key": "LTAI-do-not-print",
    "access_secret": "secret-do-not-print",
    "service_cidr": "172.21.0.0/20",
    "vswitches": {"cn-hangzhou-i": ["vsw-1", "vsw-2"], "cn-hangzhou-j": ["vsw-3"]},
    "vswitch_selection_policy": "ordered",
    "security_group": "sg-1",
    "security_groups": ["sg-2", "sg-1"],
    "eni_tags": {"team": "net"},
    "eni_tag_filter": {"a": "b"},
    "eni_tag_block_list": {"creator": "alibabacloud-erdma-controller"},
    "resource_group_id": "rg-1",
    "ip_stack": "dual",
    "min_eni": 1,
    "max_eni": 3,
    "eni_cap_ratio": 1.0,
    "eni_cap_shift": 0,
    "enable_ip_prefix": True,
    "trunk_tags": {},
}


def config_map(given: dict[str, Any], name: str = "eni-config") -> str:
    text = textwrap.indent(json.dumps(given, indent=2), "    ")
    head = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: kube-system}}\n"
    return f"{head}data:\n  10-terway.conf: '{{}}'\n  eni_conf: |\n{text}\n"


def test_each_key_that_has_a_meaning_is_in_the_block_and_each_other_is_told() -> None:
    found = convert({"terway.yaml": config_map(WHOLE)})
    assert found.errors == ()
    cloud = parse_config(found.text).cloud
    assert (cloud.provider, cloud.rules.cluster) == ("alibaba", "choose-a-name")
    assert cloud.rules.marks == Watermarks(pre_allocate=4, minimum=6, above=6)
    assert cloud.rules.subnets == Choice(ids=frozenset({"vsw-1", "vsw-2", "vsw-3"}))
    assert cloud.rules.groups == Choice(ids=frozenset({"sg-1", "sg-2"}))
    assert (cloud.rules.tags, cloud.rules.excluded) == ({"team": "net"}, {"creator": "alibabacloud-erdma-controller"})
    assert (cloud.rules.prefixes, cloud.rules.ipv6) == (True, True)
    told = "\n".join(found.notes)
    left_out = "access_key access_secret service_cidr vswitch_selection_policy eni_tag_filter resource_group_id"
    for key in f"{left_out} min_eni max_eni eni_cap_ratio eni_cap_shift trunk_tags".split():
        assert f" {key}: " in told, key
    assert "do-not-print" not in found.text + told
    line = 6 + list(WHOLE).index("access_key") + 2
    assert f"terway.yaml:{line}:" in told


def test_the_least_is_enough() -> None:
    found = convert({"f": config_map({"version": "1", "vswitches": {"a": ["vsw-1"]}, "security_group": "sg-1"})})
    rules = parse_config(found.text).cloud.rules
    assert (rules.marks, rules.prefixes, rules.ipv6) == (Watermarks(), False, False)
    assert (len(found.notes), found.errors) == (1, ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_eni_trunking": True}, "trunk interfaces are not made"),
        ({"enable_erdma": True}, "interfaces for RDMA are left alone"),
        ({"ip_stack": "ipv6"}, "pods have IPv4 here"),
        ({"ip_stack": "ipv5"}, 'found the string "ipv5", expected ipv4, dual or ipv6'),
        ({"max_pool_size": "many"}, 'found the string "many", expected an integer'),
        ({"vswitches": ["vsw-1"]}, "expected a mapping"),
    ],
)
def test_what_cannot_be_ours_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    found = convert({"f": config_map({**WHOLE, **given})})
    assert found.text == ""
    assert len(found.errors) == 1 and message in found.errors[0]


def test_a_configuration_of_some_nodes_and_exclusive_interfaces_and_pod_networkings_are_refused() -> None:
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {%s}}\n"
    networking = "apiVersion: network.alibabacloud.com/v1beta1\nkind: PodNetworking\nmetadata: {name: p}\nspec: {}\n"
    found = convert({
        "a": config_map(WHOLE, "eni-config-gpu"),
        "b": node % "k8s.aliyun.com/exclusive-mode-eni-type: eniOnly",
        "c": networking,
        "d": node % "terway-config: eni-config-gpu",
        "e": node % "k8s.aliyun.com/exclusive-mode-eni-type: default",
    })  # fmt: skip
    assert found.text == ""
    for error, word in zip(found.errors, ("one configuration", "of its own here", "PodNetworking"), strict=True):
        assert word in error
    assert len(found.notes) == 1 and "that this names" in found.notes[0]
