"""The configuration of Alibaba's CNI, Terway, as the block `cloud` of ours. Pure.

Its ConfigMap `eni-config` has a JSON document, `eni_conf`; a node's label `terway-config` names another one beside it.
Trunk interfaces, PodNetworkings, whole interfaces for pods and those for RDMA are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from routerd.formats.compose import first_document, inner_source
from routerd.formats.document import Section, Value

NAME, KEY = "eni-config", "eni_conf"
NODE_LABEL, EXCLUSIVE_LABEL = "terway-config", "k8s.aliyun.com/exclusive-mode-eni-type"
POD_NETWORKING = "network.alibabacloud.com"
MOST = 4096  # addresses of an instance
CLUSTER = "choose-a-name"
REFUSED: Mapping[str, str] = {
    "enable_eni_trunking": "trunk interfaces are not made here: pods share the interfaces of their node",
    "enable_erdma": "interfaces for RDMA are left alone, and none is given to pods",
}
LEFT_OUT: Mapping[str, str] = {
    "access_key": "credentials are what the SDK finds (docs/cloud-alibaba.md)",
    "access_secret": "credentials are what the SDK finds (docs/cloud-alibaba.md)",
    "service_cidr": "the cluster says it",
    "eni_tag_filter": "an interface is the operator's by the tag routerd.io/cluster",
    "resource_group_id": "interfaces are made in the default resource group",
    "min_eni": "interfaces are made for the addresses that are needed",
    "max_eni": "set addresses.max: so many addresses of a node at most",
    "eni_cap_ratio": "set addresses.max: so many addresses of a node at most",
    "eni_cap_shift": "set addresses.max: so many addresses of a node at most",
}
SAID = (
    "version", "vswitches", "vswitch_selection_policy", "security_group", "security_groups", "eni_tags",
    "eni_tag_block_list", "ip_stack", "min_pool_size", "max_pool_size", "ip_warm_up_size", "enable_ip_prefix",
)  # fmt: skip


def text_of(value: Value) -> Value | None:
    """The document in a ConfigMap; None if it is another one's."""
    return value.section.at("data", KEY)


def configuration(value: Value, text: Value, lines: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Ours, and what of theirs is not in it. Raises InputError for what cannot be ours."""
    if (name := value.section.require("metadata").section.string("name")) != NAME:
        raise text.error(f"{name} is for the nodes of the label {NODE_LABEL}: all nodes have one configuration here")
    document = first_document(text.text, inner_source(text, lines))
    if document is None:
        raise text.error(f"{KEY} is empty")
    given = document.section
    for key, why in REFUSED.items():
        if given.boolean(key, False):
            raise given.require(key).error(why)
    cloud = {
        "provider": "alibaba",
        "cluster": CLUSTER,
        "addresses": _addresses(given),
        "interfaces": _interfaces(given),
    }
    written = {key: part for key, part in cloud.items() if part}
    return {"apiVersion": "routerd.io/v1alpha1", "kind": "Config", "cloud": written}, [*_notes(given, text)]


def _addresses(given: Section) -> dict[str, Any]:
    """Idle addresses between a minimum and a maximum."""
    least, most = (given.integer(key, 0, MOST, 0) for key in ("min_pool_size", "max_pool_size"))
    stack = given.get("ip_stack")
    if stack is not None and stack.choice("ipv4", "dual", "ipv6") == "ipv6":
        raise stack.error("pods have IPv4 here, and IPv6 beside it")
    found = {
        "pre-allocate": max(least, 1) if least or most else 0,
        "above": max(most - max(least, 1), 0),
        "min": given.integer("ip_warm_up_size", 0, MOST, 0),
        "prefixes": given.boolean("enable_ip_prefix", False),
        "ipv6": stack is not None and stack.text == "dual",
    }
    return {key: value for key, value in found.items() if value}


def _interfaces(given: Section) -> dict[str, Any]:
    switches = given.section("vswitches")
    subnets = [item.name("an id") for zone in switches or () for item in switches.items(zone)] if switches else []
    groups = [item.name("an id") for item in given.items("security_groups")]
    groups += [given.string("security_group")] if given.string("security_group") else []
    found = {
        "subnets": {"ids": subnets} if subnets else {},
        "security-groups": {"ids": sorted(set(groups))} if groups else {},
        "exclude-tags": given.texts("eni_tag_block_list"),
        "tags": given.texts("eni_tags"),
    }
    return {key: value for key, value in found.items() if value}


def _notes(given: Section, text: Value) -> Iterator[str]:
    yield str(text.error(f"cluster: {CLUSTER} stands for a name that no other cluster of the account has"))
    policy = given.get("vswitch_selection_policy")
    if policy is not None and policy.string() != "most":
        yield str(policy.error("of a zone's vSwitches the one with the most free addresses is taken"))
    for key in given:
        if key in LEFT_OUT:
            yield str(given.require(key).error(f"left out: {LEFT_OUT[key]}"))
        elif key not in SAID and key not in REFUSED:
            yield str(given.require(key).error("has no meaning here and is left out"))


def refused(value: Value, group: str, kind: str) -> str:
    """Why an object has no equal here; "" = it is no such one."""
    if group == POD_NETWORKING:
        return str(value.error(f"{kind}: pods have the vSwitches and security groups of their node's interfaces"))
    label = _label(value, group, kind, EXCLUSIVE_LABEL)
    if label is None or label.string() == "default":
        return ""
    return str(label.error("a pod never has an interface of its own here: leave such nodes out by cloud.nodes"))


def note_of_node(value: Value, group: str, kind: str) -> str:
    """What is left out of a node; "" = nothing."""
    label = _label(value, group, kind, NODE_LABEL)
    message = "all nodes have one configuration here: the ConfigMap that this names for the node is left out"
    return str(label.error(message)) if label is not None else ""


def _label(value: Value, group: str, kind: str, key: str) -> Value | None:
    return value.section.at("metadata", "labels", key) if (group, kind) == ("", "Node") else None
