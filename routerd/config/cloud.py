"""The block `cloud` of `routerd.yaml`: whose interfaces the operator makes, for which nodes, and how many addresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from cloud.demand import Choice, Rules
from cloud.model import Api, Vpc
from cloud.need import Watermarks
from cloud.providers import arm, ecs
from routerd.formats.document import Section
from routerd.model import IPNetwork, Labels

MOST_PODS = 4096  # addresses of one instance: more than any type holds
MOST_TAG = 127  # characters of a tag's key, 255 of its value (EC2); 128 of both (ECS)
NO_TAGS = ("aws:", "acs:", "aliyun", "routerd.io/")  # beginnings of tags that are not ours to set
Provider = Literal["none", "aws", "alibaba", "azure"]
VPCS: Mapping[str, Vpc] = {"aws": Vpc(), "alibaba": ecs.VPC, "azure": arm.VPC}
APIS: Mapping[str, Api] = {"alibaba": ecs.API, "azure": arm.API}


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """Of one cluster in one account and region."""

    provider: Provider = "none"
    """none = nothing of a cloud is asked or changed, and no SDK is imported."""
    region: str = ""
    """"" = as the provider's SDK finds it (AWS_REGION), or as the operator's own instance has it."""
    endpoint: str = ""
    """URL of the API; "" = the region's own; of Azure, its public cloud. For endpoints with another name. In that of
    Alibaba Cloud {product} stands for ecs and vpc."""
    nodes: Labels = field(default_factory=dict)
    """Labels of the nodes whose pods get addresses of the cloud; none = every node that is an instance."""
    calls: bool = True
    """Off: the cloud is not called at all, and what is on record stays."""
    pod_metadata: bool = False
    """Whether pods may ask the metadata service, which tells the node's credentials."""
    external_snat: bool = True
    """Off: nodes translate what pods send out of the VPC, to the primary interface's address."""
    snat_exempt: tuple[IPNetwork, ...] = ()
    """Networks outside of the VPC that know pods' own addresses."""
    egress_networks: tuple[IPNetwork, ...] = ()
    """Egress IPs in these are secondary addresses of a gateway's primary interface; none = egress asks no cloud."""
    rules: Rules = field(default_factory=lambda: Rules(""))

    @property
    def vpc(self) -> Vpc | None:
        """None = no cloud is configured."""
        return VPCS.get(self.provider)


def read_cloud(section: Section | None) -> CloudSettings:
    """Raises InputError. Without a block there is no cloud."""
    if section is None:
        return CloudSettings()
    section.only(
        "provider", "region", "endpoint", "cluster", "nodes", "calls", "releases", "interfaces", "addresses",
        "egress-networks", "pod-metadata", "external-snat", "snat-exempt",
    )  # fmt: skip
    provider = cast(Provider, section.require("provider").choice("none", "aws", "alibaba", "azure"))
    # A VM of Azure mostly has one interface, which is for pods then; not beside egress IPs.
    first = 0 if provider == "azure" and not section.items("egress-networks") else 1
    cluster = "" if provider == "none" else section.require("cluster").name("the cluster's name")
    rules = _rules(section, cluster, first)
    if provider == "alibaba":
        _first_index_1(section)
    if provider == "azure":
        _nothing_made(section)
    rules = replace(rules, api=APIS.get(provider, Api()))
    return CloudSettings(
        provider,
        region=section.string("region"),
        endpoint=_endpoint(section),
        nodes=section.texts("nodes"),
        calls=section.boolean("calls", True),
        pod_metadata=section.boolean("pod-metadata", False),
        external_snat=section.boolean("external-snat", True),
        snat_exempt=_ipv4_networks(section, "snat-exempt"),
        egress_networks=_egress_networks(section, rules),
        rules=rules,
    )


def _first_index_1(section: Section) -> None:
    """Its primary interface is never for pods, and interfaces have no index to choose."""
    interfaces = section.section("interfaces")
    if interfaces is not None and interfaces.integer("first-index", 0, 31, 1) != 1:
        interfaces.require("first-index").expected("1 with provider alibaba")


def _nothing_made(section: Section) -> None:
    """Interfaces are those that VMs have, and each is in the region that its VM's id leads to."""
    made = _sub(section, "interfaces", "first-index", "exclude-tags", "subnets", "security-groups", "tags")
    for where, key in ((section, "region"), (made, "subnets"), (made, "security-groups"), (made, "tags")):
        if where.get(key) is not None:
            where.require(key).expected("nothing with provider azure")


def _endpoint(section: Section) -> str:
    value = section.get("endpoint")
    if value is not None and not value.string().startswith(("http://", "https://")):
        value.expected("a URL that begins with https:// or http://")
    return value.text if value is not None else ""


def _egress_networks(section: Section, rules: Rules) -> tuple[IPNetwork, ...]:
    networks = _ipv4_networks(section, "egress-networks")
    if networks and not rules.first_index:
        section.require("egress-networks").expected(
            "none with interfaces.first-index 0: both would take the primary interface's addresses"
        )
    return networks


def _ipv4_networks(section: Section, key: str) -> tuple[IPNetwork, ...]:
    found = section.items(key)
    networks = tuple(item.network() for item in found)
    for item, network in zip(found, networks, strict=True):
        if network.version == 6:
            item.expected("an IPv4 network")
    return networks


def _sub(section: Section, key: str, *known: str) -> Section:
    return (section.section(key) or Section.empty(section.value)).only(*known)


def _rules(section: Section, cluster: str, first_index: int) -> Rules:
    interfaces = _sub(
        section, "interfaces", "first-index", "subnets", "security-groups", "exclude-tags", "tags"
    )  # fmt: skip
    addresses = _sub(section, "addresses", "pre-allocate", "min", "max", "above", "prefixes", "ipv6")
    return Rules(
        cluster,
        _marks(addresses),
        subnets=_choice(interfaces, "subnets"),
        groups=_choice(interfaces, "security-groups"),
        first_index=interfaces.integer("first-index", 0, 31, first_index),
        excluded=_tags(interfaces, "exclude-tags"),
        prefixes=addresses.boolean("prefixes", False),
        ipv6=addresses.boolean("ipv6", False),
        tags=_tags(interfaces, "tags"),
        releases=section.boolean("releases", True),
        tells_vpc=not section.boolean("external-snat", True),
    )


def _marks(addresses: Section) -> Watermarks:
    default = Watermarks()
    marks = Watermarks(
        addresses.integer("pre-allocate", 1, MOST_PODS, default.pre_allocate),
        addresses.integer("min", 0, MOST_PODS, default.minimum),
        addresses.integer("max", 0, MOST_PODS, default.maximum),
        addresses.integer("above", 0, MOST_PODS, default.above),
    )
    if marks.maximum and marks.maximum < marks.minimum:
        addresses.require("max").expected(f"at least min, {marks.minimum}")
    return marks


def _choice(interfaces: Section, key: str) -> Choice:
    chosen = _sub(interfaces, key, "ids", "tags")
    ids = frozenset(item.name("an id") for item in chosen.items("ids"))
    tags = _tags(chosen, "tags")
    if ids and tags:
        chosen.require("tags").expected("ids or tags, not both")
    return Choice(ids, tags)


def _tags(section: Section, key: str) -> Labels:
    tags = section.texts(key)
    for name, text in tags.items():
        if not 0 < len(name) <= MOST_TAG or len(text) > 255 or name.startswith(NO_TAGS):
            section.require(key).expected(
                f"tags whose keys have up to {MOST_TAG} characters and begin with none of {', '.join(NO_TAGS)}"
            )
    return tags
