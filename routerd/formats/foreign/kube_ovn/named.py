"""What policies name: addresses (OvnEip, IptablesEIP), Subnets, and the VPC of a VpcNatGateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from routerd.formats.closed import usable
from routerd.formats.document import Section, Value
from routerd.formats.foreign.kube_ovn.keys import NOT_USED, Keys, not_used, said
from routerd.formats.meta import label_selector, read_meta
from routerd.model import (
    NAMESPACE_NAME_LABEL,
    IPAddress,
    IPNetwork,
    LabelSelector,
    Origin,
    PodSelection,
    Refusal,
)
from routerd.refs import Ref
from routerd.selectors import Requirement

DEFAULT_VPC = "ovn-cluster"
BY_GATEWAY = "packets leave by the routes of a gateway node"
UNLIMITED = "traffic is not limited"
BY_OUR_PEERS = "its addresses are announced to the peers of the BGP configuration"


@dataclass(frozen=True, slots=True)
class NamedAddress:
    """An OvnEip or IptablesEIP."""

    ref: Ref
    addresses: tuple[IPAddress, ...]
    origin: Origin
    gateway: str = ""  # the VpcNatGateway of an IptablesEIP


@dataclass(frozen=True, slots=True)
class Subnet:
    """Whose pods have addresses of it: those of namespaces that are bound to it, by name or by a label selector."""

    name: str
    vpc: str
    networks: tuple[IPNetwork, ...]
    selections: tuple[PodSelection, ...]  # a namespace of any of them
    origin: Origin


@dataclass(frozen=True, slots=True)
class NatGateway:
    """A VpcNatGateway: in which VPC the rules are that leave by it."""

    name: str
    vpc: str
    origin: Origin


Named = NamedAddress | Subnet | NatGateway


# --- addresses

_OVN_EIP = Keys(("v4Ip", "v6Ip", "type"), {}, ("externalSubnet", "macAddress"))
_IPTABLES_EIP = Keys(
    ("v4ip", "v6ip", "natGwDp"), {"qosPolicy": UNLIMITED}, ("externalSubnet", "macAddress", "namespace")
)


def read_ovn_eip(value: Value) -> tuple[NamedAddress | None, tuple[Refusal, ...]]:
    """None of a router's or a gateway's own address. Raises InputError."""
    spec = value.section.require("spec").section
    kind = said(spec, "type")
    if kind is not None and kind.choice("nat", "lrp", "lsp") != "nat":
        return None, ()
    return _named_address(value, _OVN_EIP, "v4Ip", "v6Ip")


def read_iptables_eip(value: Value) -> tuple[NamedAddress | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    return _named_address(value, _IPTABLES_EIP, "v4ip", "v6ip")


def _named_address(value: Value, keys: Keys, *places: str) -> tuple[NamedAddress | None, tuple[Refusal, ...]]:
    """What Kube-OVN chose itself stands in the status."""
    meta, spec, status = read_meta(value), value.section.require("spec").section, value.section.section("status")
    given = [_address(place, key) for key in places if (place := said(spec, key) or said(status, _of_status(key)))]
    about, told = Ref(meta.kind, name=meta.name), tuple(not_used(value, keys))
    if not given:
        message = (
            f"neither {' nor '.join(places)}: write the address, as Kube-OVN alone gives one of its externalSubnet"
        )
        return None, (Refusal(about, "NoEgressIP", str(spec.value.error(message))), *told)
    return NamedAddress(about, tuple(given), meta.origin, spec.string("natGwDp")), told


def _address(place: Value, key: str) -> IPAddress:
    what = f"an IPv{key[1]} address"
    found = place.address(what)
    if found.version != int(key[1]):
        place.expected(what)
    return usable(place, found)


def _of_status(key: str) -> str:
    return "ip" if key == "v4ip" else key.replace("ip", "Ip")


# --- subnets

_CENTRALIZED = (
    "pods of the subnet do not leave by {}: write an EgressPolicy for its namespaces, with an egressIP of its own or "
    "the address of that node"
)
_SUBNET = Keys(
    (
        "vpc", "cidrBlock", "namespaces", "namespaceSelectors", "gatewayType", "gatewayNode",
        "default",  # for namespaces that are bound to none
        "natOutgoing",  # with its node's address leaves what no policy selects
    ),
    {
        "externalEgressGateway": f"{BY_GATEWAY}: write an EgressPolicy",
        "gatewayNodeSelectors": "pods of the subnet do not leave by these nodes: write an EgressPolicy",
        "natOutgoingPolicyRules": "what is translated is what policies cover: write an EgressPolicy",
        "policyRoutingPriority": BY_GATEWAY,
        "policyRoutingTableID": BY_GATEWAY,
        "enableEcmp": BY_GATEWAY,
    },
    (
        "protocol", "gateway", "excludeIps", "provider", "mtu", "private", "allowSubnets", "vlan", "vips",
        "logicalGateway", "disableGatewayCheck", "disableInterConnection", "enableDHCP", "dhcpV4Options",
        "dhcpV6Options", "enableIPv6RA", "ipv6RAConfigs", "acls", "allowEWTraffic", "u2oInterconnectionIP",
        "u2oInterconnection", "u2oFeatures", "enableLb", "enableMulticastSnoop", "enableExternalLBAddress",
        "routeTable", "nodeNetwork",
    ),
)  # fmt: skip


def read_subnet(value: Value) -> tuple[Subnet, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    block = spec.require("cidrBlock")
    networks = tuple(block.renamed(word.strip()).network() for word in block.string("CIDRs").split(","))
    names = tuple(item.name() for item in spec.items("namespaces"))
    selectors = (label_selector(item, strict=False) for item in spec.items("namespaceSelectors"))
    by_label = tuple(PodSelection(namespaces=each) for each in selectors)
    selections = (*((of_namespaces(names),) if names else ()), *by_label)
    found = Subnet(meta.name, spec.string("vpc") or DEFAULT_VPC, networks, selections, meta.origin)
    return found, (*_centralized(meta.name, spec), *not_used(value, _SUBNET))


def _centralized(name: str, spec: Section) -> Iterator[Refusal]:
    """A centralized gateway gives its node's address: which that is, a policy has to say."""
    kind = said(spec, "gatewayType")
    if kind is not None and kind.choice("distributed", "centralized") == "centralized":
        message = _CENTRALIZED.format(spec.string("gatewayNode") or "its gateway nodes")
        yield Refusal(Ref("Subnet", name=name), NOT_USED, str(kind.error(message)))


def of_namespaces(names: Iterable[str]) -> PodSelection:
    return PodSelection(namespaces=LabelSelector((), (Requirement(NAMESPACE_NAME_LABEL, "In", tuple(names)),)))


# --- NAT gateways

_NAT_GATEWAY = Keys(
    ("vpc",),
    {"qosPolicy": UNLIMITED, "bgpSpeaker": BY_OUR_PEERS},
    (
        "namespace", "subnet", "externalSubnets", "lanIp", "replicas", "selector", "tolerations", "affinity", "bfd",
        "internalSubnets", "internalCIDRs", "routes", "noDefaultEIP", "annotations",
    ),
)  # fmt: skip


def read_nat_gateway(value: Value) -> tuple[NatGateway, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    return NatGateway(meta.name, spec.require("vpc").name(), meta.origin), tuple(not_used(value, _NAT_GATEWAY))
