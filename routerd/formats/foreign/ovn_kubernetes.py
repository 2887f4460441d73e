"""OVN-Kubernetes' EgressIP and EgressService (k8s.ovn.org/v1). Pure.

Neither has destinations: what leaves the cluster in the families of its addresses is meant. Gateways of an EgressIP are
the nodes that bear its label, whatever the value. An EgressService has the name of its Service.
"""

from __future__ import annotations

from dataclasses import replace

from routerd.formats.closed import Read, Refused, usable
from routerd.formats.document import Value
from routerd.formats.foreign.policies import EVERYWHERE, everywhere
from routerd.formats.meta import label_selector, read_meta, selector_at
from routerd.formats.native import MOST_EGRESS_IPS
from routerd.model import LOWEST, EgressPolicy, IPAddress, PodSelection
from routerd.selectors import LabelSelector, Requirement

ANYWHERE = LabelSelector()
ASSIGNABLE = LabelSelector((), (Requirement("k8s.ovn.org/egress-assignable", "Exists"),))


def read_egress_ip(value: Value) -> Read:
    """Raises InputError, `Refused` among them."""
    addresses = _addresses(value.section.require("spec").section.require("egressIPs"))
    policy = replace(
        covered_by_egress_ip(value),
        destinations=everywhere(addresses),
        egress_ip=addresses[0],
        further_ips=addresses[1:],
        gateways=ASSIGNABLE,
    )
    return policy, ()


def _addresses(value: Value) -> tuple[IPAddress, ...]:
    """Each once."""
    found = dict.fromkeys(usable(item, item.address()) for item in value.nonempty("egress IP"))
    if len(found) > MOST_EGRESS_IPS:
        message = f"found {len(found)} addresses, at most {MOST_EGRESS_IPS} are taken of one policy"
        raise Refused(value, "TooManyAddresses", message)
    return tuple(found)


def covered_by_egress_ip(value: Value) -> EgressPolicy:
    """Whom it covers, without its addresses. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    namespaces = label_selector(spec.require("namespaceSelector"), strict=False)
    return EgressPolicy(
        name=meta.name,
        kind=meta.kind,
        selections=(PodSelection(selector_at(spec, "podSelector", strict=False), namespaces),),
        destinations=EVERYWHERE,
        created=meta.created,
        origin=meta.origin,
    )


def read_egress_service(value: Value) -> Read:
    """Raises InputError, `Refused` among them."""
    spec = value.section.require("spec").section
    by, network = spec.require("sourceIPBy"), spec.get("network")
    if by.choice("LoadBalancerIP", "Network") == "Network":
        message = "a source by network is not supported: there is no egress IP in it; write an EgressPolicy"
        raise Refused(by, "NetworkNotSupported", message)
    if network is not None and network.text:
        raise Refused(
            network, "NetworkNotSupported", "a network (VRF) is not supported: packets leave by the main table"
        )
    nodes = selector_at(spec, "nodeSelector", strict=False)
    return replace(covered_by_egress_service(value), gateways=nodes if nodes != ANYWHERE else None), ()


def covered_by_egress_service(value: Value) -> EgressPolicy:
    """A user's word about his own pods: with the lowest priority, as what a Service says itself."""
    meta = read_meta(value)
    key = f"{meta.namespace_or_default}/{meta.name}"
    return EgressPolicy(
        name=key, kind=meta.kind, priority=LOWEST, created=meta.created, origin=meta.origin, service=key
    )
