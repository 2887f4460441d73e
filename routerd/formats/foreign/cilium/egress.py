"""Cilium's CiliumEgressNATPolicy (cilium.io/v2alpha1) and CiliumEgressGatewayPolicy (cilium.io/v2).

What is meant is taken; what we cannot do is refused by name, as a value. Unknown fields are ignored, as the API server
prunes them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from routerd.formats.closed import Read, Refused, usable
from routerd.formats.document import Section, Value
from routerd.formats.meta import label_selector, read_meta
from routerd.model import (
    EgressPolicy,
    IPAddress,
    IPNetwork,
    LabelSelector,
    PodSelection,
    Refusal,
)
from routerd.selectors import Requirement

MAX_GATEWAYS = 64
NAMESPACE_LABEL_PREFIX = "io.cilium.k8s.namespace.labels."  # in a pod selector: a label of the pod's namespace


@dataclass(frozen=True, slots=True)
class _Gateway:
    place: Value
    nodes: LabelSelector
    address: IPAddress


def read_egress_nat_policy(value: Value) -> Read:
    """CiliumEgressNATPolicy. The gateway is the node that holds the address, else the labelled gateways.

    Raises InputError, `Refused` among them; so do the other readers.
    """
    source_ip = value.section.require("spec").section.require("egressSourceIP")
    return replace(covered_by_nat_policy(value), egress_ip=usable(source_ip, source_ip.address())), ()


def read_egress_gateway_policy(value: Value) -> Read:
    """CiliumEgressGatewayPolicy."""
    gateway, unused = _gateway(value.section.require("spec").section)
    message = "only gateways of one egress IP, told apart by one label, can be taken together: this one is not used"
    policy = replace(covered_by_gateway_policy(value), egress_ip=gateway.address, gateways=gateway.nodes)
    return policy, tuple(Refusal(policy.ref, "GatewayNotUsed", str(each.place.error(message))) for each in unused)


def covered_by_nat_policy(value: Value) -> EgressPolicy:
    """Who and what it covers, without its egress IP."""
    return _covered(value, "egress")


def covered_by_gateway_policy(value: Value) -> EgressPolicy:
    """Who and what it covers, without its gateways."""
    policy, spec = _covered(value, "selectors"), value.section.require("spec").section
    return replace(policy, excluded=tuple(item.network(host_bits=True) for item in spec.items("excludedCIDRs")))


def _covered(value: Value, selectors: str) -> EgressPolicy:
    """`selectors`: the key of who is selected."""
    meta, spec = read_meta(value), value.section.require("spec").section
    return EgressPolicy(
        name=meta.name,
        kind=meta.kind,
        selections=_selections(spec.require(selectors)),
        destinations=_destinations(spec),
        created=meta.created,
        origin=meta.origin,
    )


def _destinations(spec: Section) -> tuple[IPNetwork, ...]:
    cidrs = spec.require("destinationCIDRs")
    if not cidrs.items():
        raise Refused(cidrs, "NoDestinations", "no destinations: the policy selects no traffic")
    return tuple(item.network(host_bits=True) for item in cidrs.items())


# --- who is selected ---------------------------------------------------------------------------------------------


def _selections(rules: Value) -> tuple[PodSelection, ...]:
    if not rules.items():
        raise Refused(rules, "NoSelectors", "no selectors: the policy selects no pod")
    return tuple(_selection(item) for item in rules.items())


def _selection(rule: Value) -> PodSelection:
    section = rule.section
    pods, namespaces, nodes = (_selector(section, f"{what}Selector") for what in ("pod", "namespace", "node"))
    if pods is None and namespaces is None:
        message = "neither podSelector nor namespaceSelector: say {} to select all"
        raise Refused(rule, "NoSelectors", message)
    pods, of_namespace = _split(pods)
    return PodSelection(pods, _both(namespaces, of_namespace), nodes)


def _selector(section: Section, key: str) -> LabelSelector | None:
    value = section.get(key)
    return None if value is None else label_selector(value, strict=False, rename=_without_source)


def _without_source(key: str) -> str:
    """`k8s:app` is `app`: the source that Cilium's labels may name."""
    return key.removeprefix("k8s:").removeprefix("any:")


def _split(pods: LabelSelector | None) -> tuple[LabelSelector | None, LabelSelector | None]:
    """A pod selector without what it says of the namespace's labels, and that."""
    if pods is None:
        return None, None
    own_labels = tuple(pair for pair in pods.match_labels if not pair[0].startswith(NAMESPACE_LABEL_PREFIX))
    own_rules = tuple(one for one in pods.match_expressions if not one.key.startswith(NAMESPACE_LABEL_PREFIX))
    start = len(NAMESPACE_LABEL_PREFIX)
    labels = tuple((key[start:], text) for key, text in pods.match_labels if key.startswith(NAMESPACE_LABEL_PREFIX))
    rules = tuple(
        Requirement(one.key[start:], one.operator, one.values)
        for one in pods.match_expressions
        if one.key.startswith(NAMESPACE_LABEL_PREFIX)
    )
    of_namespace = LabelSelector(labels, rules) if labels or rules else None
    return LabelSelector(own_labels, own_rules), of_namespace


def _both(one: LabelSelector | None, other: LabelSelector | None) -> LabelSelector | None:
    if one is None or other is None:
        return one or other
    return LabelSelector(one.match_labels + other.match_labels, one.match_expressions + other.match_expressions)


# --- by which gateway --------------------------------------------------------------------------------------------


def _gateway(spec: Section) -> tuple[_Gateway, list[_Gateway]]:
    """The gateway, and what of the list could not be taken. A list that is not empty replaces `egressGateway`."""
    several = spec.items("egressGateways")
    if len(several) > MAX_GATEWAYS:
        message = f"{len(several)} gateways, at most {MAX_GATEWAYS} are allowed"
        raise Refused(several[MAX_GATEWAYS], "TooManyGateways", message)
    gateways = [_read_gateway(item) for item in several or [spec.require("egressGateway")]]
    first = gateways[0]
    alike = [gateway for gateway in gateways if gateway.address == first.address]
    nodes = _any_of([gateway.nodes for gateway in alike])
    if nodes is None:
        alike, nodes = [first], first.nodes
    return replace(first, nodes=nodes), [gateway for gateway in gateways if gateway not in alike]


def _read_gateway(value: Value) -> _Gateway:
    section = value.section
    given = section.get("egressIP")
    address = given.address() if given is not None and given.text else None
    nodes = label_selector(section.require("nodeSelector"), strict=False, rename=_without_source)
    return _Gateway(value, nodes, _checked(value, section.string("interface"), address))


def _checked(place: Value, interface: str, address: IPAddress | None) -> IPAddress:
    if interface and address is not None:
        raise Refused(place, "InvalidGateway", "interface and egressIP exclude each other")
    if interface:
        message = f'interface "{interface}" is not supported: name the address with egressIP'
        raise Refused(place, "InterfaceNotSupported", message)
    if address is None:
        message = "no egressIP: the address of the gateway's default route is not supported, name one"
        raise Refused(place, "NoEgressIP", message)
    return usable(place, address)


def _any_of(selectors: list[LabelSelector]) -> LabelSelector | None:
    """One selector for what any of them selects; None if that cannot be said in one."""
    distinct = list(dict.fromkeys(selectors))
    if len(distinct) == 1:
        return distinct[0]
    pairs = [selector.match_labels[0] for selector in distinct if _is_one_label(selector)]
    if len(pairs) < len(distinct) or len({key for key, _ in pairs}) > 1:
        return None
    return LabelSelector((), (Requirement(pairs[0][0], "In", tuple(value for _, value in pairs)),))


def _is_one_label(selector: LabelSelector) -> bool:
    return len(selector.match_labels) == 1 and not selector.match_expressions
