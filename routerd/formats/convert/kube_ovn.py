"""The egress IPs that Kube-OVN's annotations give to pods, as policies. Pure.

A policy selects pods by labels: those of the pod, or of the template of a workload, in its namespace.
"""

from __future__ import annotations

from collections.abc import Iterator

from routerd.formats.closed import usable
from routerd.formats.document import Section, Value
from routerd.formats.foreign.kube_ovn.pods import BOTH, INBOUND
from routerd.formats.foreign.policies import everywhere
from routerd.model import EIP, NAMESPACE_NAME_LABEL, SNAT, EgressPolicy, LabelSelector, PodSelection

WORKLOADS = frozenset({("apps", "DaemonSet"), ("apps", "Deployment"), ("apps", "ReplicaSet"), ("apps", "StatefulSet")})
OTHERS = "every pod of these labels in the namespace leaves with it"
_OVN = "ovn.kubernetes.io"
_RATES = {  # Mbit/s, as Kube-OVN's "Manage QoS" has it; in its place the annotation of the CNI plugin bandwidth
    f"{_OVN}/egress_rate": "kubernetes.io/egress-bandwidth",
    f"{_OVN}/ingress_rate": "kubernetes.io/ingress-bandwidth",
}
_NOT_DONE = {
    f"{_OVN}/egress_burst": "traffic is not limited",
    f"{_OVN}/ingress_burst": "traffic is not limited",
    f"{_OVN}/latency": "packets are not delayed",
    f"{_OVN}/jitter": "packets are not delayed",
    f"{_OVN}/limit": "packets are not delayed",
    f"{_OVN}/loss": "packets are not lost",
    f"{_OVN}/bgp": "no pod is announced for itself: bgp.announce.pod-cidrs announces the blocks of nodes",
}
UNLABELLED = "it is read as it is; an EgressPolicy selects pods by labels, and these have none"


def policy_of(value: Value, group: str, kind: str) -> EgressPolicy | None:
    """None if it asks for none, or if no label tells the pods apart. Raises InputError."""
    meta = _pod_meta(value, group, kind)
    given = {key: found for key in (EIP, SNAT) if (found := _annotation(meta, key)) is not None}
    if meta is None or not given or not meta.texts("labels"):
        return None
    place = next(iter(given.values()))
    address, labels = usable(place, place.address()), meta.texts("labels")
    head = value.section.require("metadata").section
    namespace = head.string("namespace", "default")
    return EgressPolicy(
        name=f"{namespace}-{head.require('name').name()}",
        selections=(_selection(labels, namespace),),
        destinations=everywhere([address]),
        egress_ip=address,
    )


def notes_of(value: Value, group: str, kind: str) -> Iterator[str]:
    """What the policy does otherwise."""
    meta = _pod_meta(value, group, kind)
    if (eip := _annotation(meta, EIP)) is not None:
        yield str(eip.error(INBOUND))
        if (snat := _annotation(meta, SNAT)) is not None and snat.address() != eip.address():
            yield str(snat.error(BOTH))
    if meta is None:
        return
    yield from _left_out(meta)
    given = (found for key in (EIP, SNAT) if (found := _annotation(meta, key)) is not None)
    if not meta.texts("labels"):
        yield from (str(each.error(UNLABELLED)) for each in given)
    elif kind == "Pod" and any(given):
        yield str(meta.require("labels").error(OTHERS))


def _left_out(meta: Section) -> Iterator[str]:
    """What Kube-OVN does with a pod's traffic and is not done here."""
    annotations = meta.section("annotations")
    for key, place in annotations.entries.items() if annotations is not None else ():
        if key in _RATES and (rate := place.text.strip()):
            instead = f"the CNI plugin bandwidth does it, by {_RATES[key]}: {rate}M"
            yield str(place.error(f"traffic is not limited: {instead}"))
        elif key in _NOT_DONE and place.text.strip() not in ("", "false"):
            yield str(place.error(_NOT_DONE[key]))


def _pod_meta(value: Value, group: str, kind: str) -> Section | None:
    """The metadata of a pod, or of those that a workload makes."""
    if (group, kind) == ("", "Pod"):
        return value.section.section("metadata")
    found = value.section.at("spec", "template", "metadata") if (group, kind) in WORKLOADS else None
    return found.section if found is not None else None


def _annotation(meta: Section | None, key: str) -> Value | None:
    annotations = meta.section("annotations") if meta is not None else None
    return annotations.get(key) if annotations is not None else None


def _selection(labels: dict[str, str], namespace: str) -> PodSelection:
    return PodSelection(LabelSelector(tuple(labels.items())), LabelSelector(((NAMESPACE_NAME_LABEL, namespace),)))
