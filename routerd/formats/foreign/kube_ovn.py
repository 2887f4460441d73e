"""Kube-OVN's kinds of egress (kubeovn.io/v1) and its annotations `eip` and `snat`, as far as they are not done. Pure.

Rules of SNAT and egress gateways are policies. They name addresses (OvnEip, IptablesEIP) and subnets, which stores put
in (`completed`); of a subnet the namespaces count that are bound to it. What the annotations ask for is in
`policies`. A VPC is nothing here: its subnets select namespaces as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ipam.ranges import networks_between
from routerd.formats.closed import Read, Refused, usable
from routerd.formats.document import Section, Value
from routerd.formats.foreign.policies import EVERYWHERE, IN_PART, everywhere
from routerd.formats.meta import Meta, label_selector, read_meta, selector_at
from routerd.formats.native import MOST_EGRESS_IPS, check_block, range_networks
from routerd.model import (
    EIP,
    NAMESPACE_NAME_LABEL,
    SNAT,
    EgressPolicy,
    IPAddress,
    IPNetwork,
    Labels,
    LabelSelector,
    Namespace,
    Origin,
    Pod,
    PodPool,
    PodSelection,
    Refusal,
)
from routerd.refs import Ref
from routerd.selectors import Requirement

INBOUND = "no connection from outside is brought to the pod: give it a Service"
BOTH = "the pod leaves with its eip, as Kube-OVN has it: this one is left out"
DEFAULT_VPC = ("", "ovn-cluster")
NOT_USED = "KeyNotUsed"  # reason of a refusal: a key that changes what Kube-OVN does, and nothing here
CIDR = "CIDR"  # word before a network in `EgressPolicy.awaits`


@dataclass(frozen=True, slots=True)
class NamedAddress:
    """An OvnEip or IptablesEIP."""

    ref: Ref
    addresses: tuple[IPAddress, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Subnet:
    """Whose pods have addresses of it: those of namespaces that are bound to it."""

    name: str
    networks: tuple[IPNetwork, ...]
    namespaces: tuple[str, ...]
    origin: Origin


Named = NamedAddress | Subnet


# --- addresses and subnets


def read_ovn_eip(value: Value) -> tuple[NamedAddress | None, tuple[Refusal, ...]]:
    """None of a router's or a gateway's own address. Raises InputError."""
    spec = value.section.require("spec").section
    kind = spec.get("type")
    if kind is not None and kind.text and kind.choice("nat", "lrp", "lsp") != "nat":
        return None, ()
    return _named_address(value, "v4Ip", "v6Ip")


def read_iptables_eip(value: Value) -> tuple[NamedAddress | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    found, told = _named_address(value, "v4ip", "v6ip")
    return found, (*told, *_not_used(value, {"qosPolicy": "traffic is not limited"}))


def _named_address(value: Value, *keys: str) -> tuple[NamedAddress | None, tuple[Refusal, ...]]:
    """What Kube-OVN chose itself stands in the status."""
    meta, spec, status = read_meta(value), value.section.require("spec").section, value.section.section("status")
    given = [place for key in keys for place in (_said(spec, key) or _said(status, _of_status(key)),) if place]
    about = Ref(meta.kind, name=meta.name)
    if not given:
        message = f"neither {' nor '.join(keys)}: write the address, as Kube-OVN alone gives one of its externalSubnet"
        return None, (Refusal(about, "NoEgressIP", str(spec.value.error(message))),)
    return NamedAddress(about, tuple(usable(place, place.address()) for place in given), meta.origin), ()


def _said(section: Section | None, key: str) -> Value | None:
    place = section.get(key) if section is not None else None
    return place if place is not None and place.text else None


def _of_status(key: str) -> str:
    return "ip" if key == "v4ip" else key.replace("ip", "Ip")


def read_subnet(value: Value) -> tuple[Subnet, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    block = spec.require("cidrBlock")
    networks = tuple(block.renamed(word.strip()).network() for word in block.string("CIDRs").split(","))
    namespaces = tuple(item.name() for item in spec.items("namespaces"))
    return Subnet(meta.name, networks, namespaces, meta.origin), tuple(_of_subnet(value, spec))


_SUBNET_NOT_USED = {
    "externalEgressGateway": "packets leave by the routes of a gateway node: write an EgressPolicy",
    "natOutgoingPolicyRules": "what is translated is what policies cover: write an EgressPolicy",
}


def _of_subnet(value: Value, spec: Section) -> Iterator[Refusal]:
    """A centralized gateway gives its node's address: which that is, a policy has to say."""
    kind = spec.get("gatewayType")
    if kind is not None and kind.text and kind.choice("distributed", "centralized") == "centralized":
        nodes = spec.string("gatewayNode") or "its gateway nodes"
        message = (
            f"pods of the subnet do not leave by {nodes}: write an EgressPolicy for its namespaces, with an egressIP "
            "of its own or the address of that node"
        )
        yield Refusal(Ref("Subnet", name=read_meta(value).name), NOT_USED, str(kind.error(message)))
    yield from _not_used(value, _SUBNET_NOT_USED)


def _not_used(value: Value, words: Mapping[str, str]) -> Iterator[Refusal]:
    meta, spec = read_meta(value), value.section.require("spec").section
    for key, message in words.items():
        place = spec.get(key)
        if place is not None and (place.text if place.is_scalar else place.node.value):
            namespace = meta.namespace_or_default if meta.kind == "VpcEgressGateway" else ""
            yield Refusal(Ref(meta.kind, namespace, meta.name), NOT_USED, str(place.error(message)))


# --- rules of SNAT


def read_ovn_snat_rule(value: Value) -> Read:
    """Raises InputError, `Refused` among them."""
    spec = value.section.require("spec").section
    eip = f"OvnEip/{spec.require('ovnEip').name()}"
    policy = covered_by_ovn_snat_rule(value)
    return replace(policy, awaits=(eip, *policy.awaits)), ()


def covered_by_ovn_snat_rule(value: Value) -> EgressPolicy:
    """Raises InputError."""
    spec = value.section.require("spec").section
    if (name := _said(spec, "ipName")) is not None:
        message = "a pod is not selected by its name: give it the annotation ovn.kubernetes.io/snat"
        raise Refused(name, "PodByName", message)
    blocks = [place for key in ("v4IpCidr", "v6IpCidr") if (place := _said(spec, key)) is not None]
    subnet = _said(spec, "vpcSubnet")
    if subnet is None and not blocks:
        raise Refused(spec.value, "NoSelectors", "neither vpcSubnet nor v4IpCidr or v6IpCidr: it selects no pod")
    named = (f"Subnet/{subnet.name()}",) if subnet is not None else ()
    return _rule(read_meta(value), (*named, *(_network_word(each) for each in blocks)))


def read_iptables_snat_rule(value: Value) -> Read:
    """Raises InputError."""
    policy = covered_by_iptables_snat_rule(value)
    eip = value.section.require("spec").section.require("eip").name()
    return replace(policy, awaits=(f"IptablesEIP/{eip}", *policy.awaits)), ()


def covered_by_iptables_snat_rule(value: Value) -> EgressPolicy:
    """Raises InputError."""
    block = value.section.require("spec").section.require("internalCIDR")
    return _rule(read_meta(value), (_network_word(block),))


def _network_word(place: Value) -> str:
    return f"{CIDR}/{place.network(host_bits=True)}"


def _rule(meta: Meta, awaits: tuple[str, ...]) -> EgressPolicy:
    return EgressPolicy(
        meta.name, meta.kind, destinations=EVERYWHERE, created=meta.created, origin=meta.origin, awaits=awaits
    )


# --- egress gateways

_GATEWAY_NOT_USED = {
    "bandwidth": "traffic is not limited",
    "bgpConf": "its addresses are announced to the peers of the BGP configuration",
    "evpnConf": "EVPN is not announced",
    "observability": "`routerd who` and the metrics say who had which port",
    "vpc": "a VPC is nothing here: the pods that it selects are those of the cluster",
}


def read_vpc_egress_gateway(value: Value) -> Read:
    """Raises InputError, `Refused` among them."""
    spec = value.section.require("spec").section
    if (pool := _said(spec, "externalIPPool")) is not None:
        message = "no address of an IPPool is given to gateways: write externalIPs, or an EgressPolicy with a pool"
        raise Refused(pool, "PoolNotSupported", message)
    given = spec.get("externalIPs")
    if given is None or not given.items():
        message = "externalIPs is missing: write them, as Kube-OVN alone gives addresses of its externalSubnet"
        raise Refused(spec.value, "NoEgressIP", message)
    addresses = tuple(dict.fromkeys(usable(item, item.address()) for item in given.nonempty("address")))
    if len(addresses) > MOST_EGRESS_IPS:
        message = f"found {len(addresses)} addresses, at most {MOST_EGRESS_IPS} are taken of one policy"
        raise Refused(given, "TooManyAddresses", message)
    policy = replace(
        covered_by_vpc_egress_gateway(value),
        destinations=everywhere(addresses),
        egress_ip=addresses[0],
        further_ips=addresses[1:],
        gateways=_nodes(spec),
    )
    return policy, tuple(_of_gateway(value, spec))


def _of_gateway(value: Value, spec: Section) -> Iterator[Refusal]:
    words = {
        key: text for key, text in _GATEWAY_NOT_USED.items() if key != "vpc" or spec.string(key) not in DEFAULT_VPC
    }
    policy = spec.get("trafficPolicy")
    if policy is not None and policy.text and policy.choice("Cluster", "Local") == "Local":
        words["trafficPolicy"] = "pods leave by all gateways alike"
    yield from _not_used(value, words)


def _nodes(spec: Section) -> LabelSelector | None:
    """Which gateways: those with our label where it does not say."""
    items = spec.items("nodeSelector")
    if len(items) > 1:
        message = "one of several selectors of nodes cannot be said: write a label that all of these nodes have"
        raise Refused(items[1], "SeveralNodeSelectors", message)
    for item in items:
        if (fields := item.section.get("matchFields")) is not None and fields.items():
            raise Refused(fields, "NodeByField", "nodes are selected by labels alone: write matchLabels")
        return label_selector(item, strict=False)
    return None


def covered_by_vpc_egress_gateway(value: Value) -> EgressPolicy:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    selections = tuple(_selection(item) for item in spec.items("selectors"))
    awaits = tuple(word for item in spec.items("policies") for word in _sources(item.section))
    if not selections and not awaits:
        raise Refused(spec.value, "NoSelectors", "neither selectors nor policies: it selects no pod")
    name = f"{meta.namespace_or_default}/{meta.name}"
    return EgressPolicy(
        name, meta.kind, selections, EVERYWHERE, created=meta.created, origin=meta.origin, awaits=awaits
    )


def _selection(item: Value) -> PodSelection:
    pods, namespaces = (selector_at(item.section, f"{what}Selector", strict=False) for what in ("pod", "namespace"))
    if pods is None and namespaces is None:
        raise Refused(item, "NoSelectors", "neither podSelector nor namespaceSelector: it selects no pod")
    return PodSelection(pods, namespaces)


def _sources(item: Section) -> Iterator[str]:
    if not item.boolean("snat", False):
        message = "without snat packets keep their source: nothing of that is done here, take the entry out"
        raise Refused(item.value, "NotTranslated", message)
    yield from (f"Subnet/{each.name()}" for each in item.items("subnets"))
    yield from (_network_word(each) for each in item.items("ipBlocks"))


# --- what others say


@dataclass(frozen=True, slots=True)
class Known:
    """What policies name: addresses by Ref, subnets by name."""

    addresses: Mapping[str, NamedAddress]
    subnets: Mapping[str, Subnet]


def known(objects: Iterable[object]) -> Known:
    named = [each for each in objects if isinstance(each, Named)]
    return Known(
        {str(each.ref): each for each in named if isinstance(each, NamedAddress)},
        {each.name: each for each in named if isinstance(each, Subnet)},
    )


def completed(policy: EgressPolicy, others: Known) -> tuple[EgressPolicy, tuple[Refusal, ...]]:
    """With what it awaits: where something of that is not there, it covers what it can be told that it covers."""
    if not policy.awaits:
        return policy, ()
    addresses: list[IPAddress] = [*policy.egress_ips]
    selections, faults = [*policy.selections], []
    for word in policy.awaits:
        found = _found(word, others)
        if isinstance(found, str):
            faults.append(found)
        elif isinstance(found, NamedAddress):
            addresses += found.addresses
        else:
            selections.append(_of_namespaces(found.namespaces))
    whole = replace(policy, awaits=(), selections=tuple(dict.fromkeys(selections)))
    if faults or policy.refused:
        consequence = "what it covers is dropped" if selections else "nothing of it is in force"
        told = (Refusal(policy.ref, "NotFound", f"{policy.origin}: {each} ({consequence})") for each in faults)
        return replace(whole, refused=True), tuple(told)
    first, *further = dict.fromkeys(addresses)
    return replace(whole, egress_ip=first, further_ips=tuple(further), destinations=everywhere(addresses)), ()


def _found(word: str, others: Known) -> NamedAddress | Subnet | str:
    """Or what is wrong with it."""
    kind, _, name = word.partition("/")
    if kind == CIDR:
        subnets = [each for each in others.subnets.values() if name in map(str, each.networks)]
        if not subnets:
            return f"pods are selected by labels and namespaces, and no Subnet has the CIDR {name}"
        return next((each for each in subnets if each.namespaces), f"Subnet {subnets[0].name} is bound to no namespace")
    if kind == "Subnet":
        subnet = others.subnets.get(name)
        if subnet is None:
            return f"there is no Subnet {name}"
        return subnet if subnet.namespaces else f"Subnet {name} is bound to no namespace"
    return others.addresses.get(word, f"there is no {kind} {name} with an address")


def _of_namespaces(names: Iterable[str]) -> PodSelection:
    return PodSelection(namespaces=LabelSelector((), (Requirement(NAMESPACE_NAME_LABEL, "In", tuple(names)),)))


# --- pools of pods


def read_ip_pool(value: Value) -> PodPool:
    """Addresses, ranges START..END and CIDRs of a subnet, for pods of some namespaces. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    found: list[IPNetwork] = []
    for item in spec.require("ips").nonempty("address, range or CIDR"):
        for network in _networks(item):
            check_block(item, network, found)
            found.append(network)
    names = tuple(item.name() for item in spec.items("namespaces"))
    return PodPool(
        meta.name,
        tuple(found),
        for_namespaces=_of_namespaces(names).namespaces if names else None,
        origin=meta.origin,
    )


def _networks(item: Value) -> tuple[IPNetwork, ...]:
    text = item.string("an address, a range START..END or a CIDR")
    if ".." in text:
        first, _, last = text.partition("..")
        return range_networks(item, item.renamed(first.strip()).address(), item.renamed(last.strip()).address())
    if "/" in text:
        return (item.network(host_bits=True),)
    address = item.address()
    return networks_between(address, address)


# --- annotations


def told_of_pod(found: Pod, value: Value) -> Iterator[Refusal]:
    return _told(Ref("Pod", found.namespace, found.name), found.annotations, value)


def told_of_namespace(found: Namespace, value: Value) -> Iterator[Refusal]:
    return _told(Ref("Namespace", name=found.name), found.annotations, value)


def _told(about: Ref, annotations: Labels, value: Value) -> Iterator[Refusal]:
    """What of annotations is not done."""
    given = {key: annotations[key].strip() for key in (EIP, SNAT) if annotations.get(key, "").strip()}
    if EIP in given:
        yield Refusal(about, IN_PART, f"{value.origin}: {EIP}: {INBOUND}")
    if len(set(given.values())) > 1:
        yield Refusal(about, IN_PART, f"{value.origin}: {SNAT}: {BOTH}")
