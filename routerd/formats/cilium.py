"""Cilium's egress policies: CiliumEgressNATPolicy (cilium.io/v2alpha1) and CiliumEgressGatewayPolicy (cilium.io/v2).

What is meant is taken; what we cannot do is refused by name, as a value. Unknown fields are ignored, as the API server
prunes them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from routerd.formats.document import Section, Value
from routerd.formats.meta import Meta, label_selector, read_meta
from routerd.formats.native import unusable
from routerd.model import EgressPolicy, IPAddress, LabelSelector, PodSelection, Refusal
from routerd.refs import Ref
from routerd.selectors import Requirement

Read = tuple[EgressPolicy | None, tuple[Refusal, ...]]
MAX_GATEWAYS = 64
NAMESPACE_LABEL_PREFIX = "io.cilium.k8s.namespace.labels."  # in a pod selector: a label of the pod's namespace


@dataclass(frozen=True, slots=True)
class _Gateway:
    place: Value
    nodes: LabelSelector
    interface: str
    address: IPAddress | None


class _Refused(Exception):
    """Leaves a reader with the refusal of the whole policy."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def read_egress_nat_policy(value: Value) -> Read:
    """CiliumEgressNATPolicy. The gateway is the node that holds the address, else the labelled gateways."""
    meta = read_meta(value)
    try:
        return _nat_policy(value, meta)
    except _Refused as refused:
        return None, (refused.refusal,)


def read_egress_gateway_policy(value: Value) -> Read:
    """CiliumEgressGatewayPolicy."""
    meta = read_meta(value)
    try:
        return _gateway_policy(value, meta)
    except _Refused as refused:
        return None, (refused.refusal,)


def _refusal(meta: Meta, place: Value, reason: str, message: str) -> Refusal:
    return Refusal(Ref(meta.kind, name=meta.name), reason, str(place.error(message)))


def _nat_policy(value: Value, meta: Meta) -> Read:
    spec = value.section.require("spec").section
    source_ip = spec.require("egressSourceIP")
    policy = EgressPolicy(
        name=meta.name,
        kind=meta.kind,
        selections=_selections(meta, spec.require("egress")),
        destinations=tuple(item.network(host_bits=True) for item in _some_cidrs(meta, spec)),
        egress_ip=_usable(meta, source_ip, source_ip.address()),
        created=meta.created,
        origin=meta.origin,
    )
    return policy, ()


def _gateway_policy(value: Value, meta: Meta) -> Read:
    spec = value.section.require("spec").section
    gateway, refusals = _gateway(meta, spec)
    policy = EgressPolicy(
        name=meta.name,
        kind=meta.kind,
        selections=_selections(meta, spec.require("selectors")),
        destinations=tuple(item.network(host_bits=True) for item in _some_cidrs(meta, spec)),
        excluded=tuple(item.network(host_bits=True) for item in spec.items("excludedCIDRs")),
        egress_ip=gateway.address,
        gateways=gateway.nodes,
        created=meta.created,
        origin=meta.origin,
    )
    return policy, refusals


def _some_cidrs(meta: Meta, spec: Section) -> list[Value]:
    cidrs = spec.require("destinationCIDRs")
    if not cidrs.items():
        raise _Refused(_refusal(meta, cidrs, "NoDestinations", "no destinations: the policy selects no traffic"))
    return cidrs.items()


def _usable(meta: Meta, place: Value, address: IPAddress) -> IPAddress:
    if fault := unusable(address):
        raise _Refused(_refusal(meta, place, "InvalidEgressIP", f"{address} cannot be an egress IP: {fault}"))
    return address


# --- who is selected ---------------------------------------------------------------------------------------------


def _selections(meta: Meta, rules: Value) -> tuple[PodSelection, ...]:
    if not rules.items():
        raise _Refused(_refusal(meta, rules, "NoSelectors", "no selectors: the policy selects no pod"))
    return tuple(_selection(meta, item) for item in rules.items())


def _selection(meta: Meta, rule: Value) -> PodSelection:
    section = rule.section
    pods, namespaces, nodes = (_selector(section, f"{what}Selector") for what in ("pod", "namespace", "node"))
    if pods is None and namespaces is None:
        message = "neither podSelector nor namespaceSelector: say {} to select all"
        raise _Refused(_refusal(meta, rule, "NoSelectors", message))
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


def _gateway(meta: Meta, spec: Section) -> tuple[_Gateway, tuple[Refusal, ...]]:
    """The gateway, and what of the list could not be taken. A list that is not empty replaces `egressGateway`."""
    several = spec.items("egressGateways")
    if len(several) > MAX_GATEWAYS:
        message = f"{len(several)} gateways, at most {MAX_GATEWAYS} are allowed"
        raise _Refused(_refusal(meta, several[MAX_GATEWAYS], "TooManyGateways", message))
    gateways = [_read_gateway(item) for item in several or [spec.require("egressGateway")]]
    for gateway in gateways:
        _check_gateway(meta, gateway)
    first = gateways[0]
    alike = [gateway for gateway in gateways if gateway.address == first.address]
    nodes = _any_of([gateway.nodes for gateway in alike])
    if nodes is None:
        alike, nodes = [first], first.nodes
    rest = [gateway for gateway in gateways if gateway not in alike]
    message = "only gateways of one egress IP, told apart by one label, can be taken together: this one is not used"
    refusals = tuple(_refusal(meta, gateway.place, "GatewayNotUsed", message) for gateway in rest)
    return _Gateway(first.place, nodes, "", first.address), refusals


def _read_gateway(value: Value) -> _Gateway:
    section = value.section
    address = section.get("egressIP")
    given = address.address() if address is not None and address.text else None
    nodes = label_selector(section.require("nodeSelector"), strict=False, rename=_without_source)
    return _Gateway(value, nodes, section.string("interface"), given)


def _check_gateway(meta: Meta, gateway: _Gateway) -> None:
    if gateway.interface and gateway.address is not None:
        message = "interface and egressIP exclude each other"
        raise _Refused(_refusal(meta, gateway.place, "InvalidGateway", message))
    if gateway.interface:
        message = f'interface "{gateway.interface}" is not supported: name the address with egressIP'
        raise _Refused(_refusal(meta, gateway.place, "InterfaceNotSupported", message))
    if gateway.address is None:
        message = "no egressIP: the address of the gateway's default route is not supported, name one"
        raise _Refused(_refusal(meta, gateway.place, "NoEgressIP", message))
    _usable(meta, gateway.place, gateway.address)


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
