"""Rules of SNAT and egress gateways as policies, which await what they name (`joined`). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from routerd.formats.closed import Read, Refused, usable
from routerd.formats.document import Section, Value, parse_address
from routerd.formats.foreign.kube_ovn.keys import Keys, not_used, said, unknown
from routerd.formats.foreign.kube_ovn.named import BY_GATEWAY, BY_OUR_PEERS, DEFAULT_VPC, UNLIMITED
from routerd.formats.foreign.policies import EVERYWHERE, everywhere
from routerd.formats.meta import Meta, label_selector, read_meta, selector_at
from routerd.formats.native import MOST_EGRESS_IPS
from routerd.model import Awaited, EgressPolicy, LabelSelector, PodSelection, Refusal

# --- rules of SNAT

_OVN_RULE = Keys(("ovnEip", "vpcSubnet", "ipName", "vpc", "v4IpCidr", "v6IpCidr"), {})
_IPTABLES_RULE = Keys(("eip", "internalCIDR"), {})
_POD = "a pod is not selected by its {}: give it the annotation ovn.kubernetes.io/snat"


def read_ovn_snat_rule(value: Value) -> Read:
    """Raises InputError, `Refused` among them."""
    policy = covered_by_ovn_snat_rule(value)
    eip = value.section.require("spec").section.require("ovnEip")
    return replace(policy, awaits=(_awaited("OvnEip", eip), *policy.awaits)), tuple(not_used(value, _OVN_RULE))


def covered_by_ovn_snat_rule(value: Value) -> EgressPolicy:
    """Raises InputError."""
    spec = value.section.require("spec").section
    if (name := said(spec, "ipName")) is not None:
        raise Refused(name, "PodByName", _POD.format("name"))
    blocks = [place for key in ("v4IpCidr", "v6IpCidr") if (place := said(spec, key)) is not None]
    subnet, vpc = said(spec, "vpcSubnet"), spec.string("vpc")
    if subnet is None and not blocks:
        raise Refused(spec.value, "NoSelectors", "neither vpcSubnet nor v4IpCidr or v6IpCidr: it selects no pod")
    named = (_awaited("Subnet", subnet, vpc),) if subnet is not None else ()
    return _rule(read_meta(value), (*named, *(_of_network(each, vpc) for each in blocks)))


def read_iptables_snat_rule(value: Value) -> Read:
    """Raises InputError."""
    policy = covered_by_iptables_snat_rule(value)
    eip = value.section.require("spec").section.require("eip")
    told = tuple(not_used(value, _IPTABLES_RULE))
    return replace(policy, awaits=(_awaited("IptablesEIP", eip), *policy.awaits)), told


def covered_by_iptables_snat_rule(value: Value) -> EgressPolicy:
    """Raises InputError."""
    block = value.section.require("spec").section.require("internalCIDR")
    return _rule(read_meta(value), (_of_network(block),))


def _awaited(kind: str, place: Value, vpc: str = "") -> Awaited:
    return Awaited(kind, place.name(), str(place.error("")), vpc)


def _of_network(place: Value, vpc: str = "") -> Awaited:
    if parse_address(place.text) is not None:
        raise Refused(place, "PodByName", _POD.format("address"))
    return Awaited("CIDR", str(place.network(host_bits=True)), str(place.error("")), vpc)


def _rule(meta: Meta, awaits: tuple[Awaited, ...]) -> EgressPolicy:
    return EgressPolicy(
        meta.name, meta.kind, destinations=EVERYWHERE, created=meta.created, origin=meta.origin, awaits=awaits
    )


# --- egress gateways

_NO_WORKLOAD = "no workload is made: gateways are nodes, those of nodeSelector or with our label"
_GATEWAY = Keys(
    ("externalIPs", "externalIPPool", "selectors", "policies", "nodeSelector"),
    {
        "vpc": "of a VPC its subnets count: selectors take pods of the whole cluster",
        "trafficPolicy": "pods leave by all gateways alike",
        "bandwidth": UNLIMITED,
        "bgpConf": BY_OUR_PEERS,
        "evpnConf": "EVPN is not announced",
        "observability": "`routerd who` and the metrics say who had which port",
        "bfd": "a gateway is replaced when its agent is not heard any more",
        "externalSubnet": BY_GATEWAY,
        **dict.fromkeys(
            (
                "replicas", "prefix", "image", "internalSubnet", "internalIPs", "internalIPPool", "podAntiAffinity",
                "tolerations", "resources",
            ),
            _NO_WORKLOAD,
        ),
    },
)  # fmt: skip
_PARTS = {
    "selectors": ("namespaceSelector", "podSelector"),
    "policies": ("snat", "ipBlocks", "subnets"),
    "nodeSelector": ("matchLabels", "matchExpressions", "matchFields"),
}


def read_vpc_egress_gateway(value: Value) -> Read:
    """Raises InputError, `Refused` among them."""
    spec = value.section.require("spec").section
    if (pool := said(spec, "externalIPPool")) is not None:
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
    policy = said(spec, "trafficPolicy")
    is_local = policy is not None and policy.choice("Cluster", "Local") == "Local"
    usual = {
        "vpc": spec.string("vpc") in ("", DEFAULT_VPC),
        "trafficPolicy": not is_local,
    }
    words = {key: text for key, text in _GATEWAY.words.items() if not usual.get(key, False)}
    silent = tuple(key for key, is_usual in usual.items() if is_usual)
    yield from not_used(value, Keys((*_GATEWAY.used, *silent), words))
    for key, known in _PARTS.items():
        for item in spec.items(key):
            yield from unknown(value, item.section, known)


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
    vpc = spec.string("vpc") or DEFAULT_VPC
    selections = tuple(_selection(item) for item in spec.items("selectors"))
    awaits = tuple(each for item in spec.items("policies") for each in _sources(item.section, vpc))
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


def _sources(item: Section, vpc: str) -> Iterator[Awaited]:
    if not item.boolean("snat", False):
        message = "without snat packets keep their source: nothing of that is done here, take the entry out"
        raise Refused(item.value, "NotTranslated", message)
    yield from (_awaited("Subnet", each, vpc) for each in item.items("subnets"))
    yield from (_of_network(each, vpc) for each in item.items("ipBlocks"))
