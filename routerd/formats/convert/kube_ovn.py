"""The egress IPs that Kube-OVN's annotations give to pods, as policies. Pure.

A policy selects pods by labels: those of the pod, or of the template of a workload, in its namespace.
"""

from __future__ import annotations

from collections.abc import Iterator

from routerd.formats.document import Section, Value
from routerd.formats.foreign.policies import everywhere, usable
from routerd.formats.resembling import EIP, SNAT
from routerd.model import NAMESPACE_NAME_LABEL, EgressPolicy, LabelSelector, PodSelection

WORKLOADS = frozenset({("apps", "DaemonSet"), ("apps", "Deployment"), ("apps", "ReplicaSet"), ("apps", "StatefulSet")})
INBOUND = "no connection from outside is brought to the pod: give it a Service"
BOTH = "the pod leaves with its eip, as Kube-OVN has it: this one is left out"
OTHERS = "every pod of these labels in the namespace leaves with it"


def policy_of(value: Value, group: str, kind: str) -> EgressPolicy | None:
    """None if it asks for none. Raises InputError, also where no label tells the pods apart."""
    meta = _pod_meta(value, group, kind)
    given = {key: found for key in (EIP, SNAT) if (found := _annotation(meta, key)) is not None}
    if meta is None or not given:
        return None
    place = next(iter(given.values()))
    address, labels = usable(place, place.address()), meta.texts("labels")
    if not labels:
        raise place.error("an EgressPolicy selects pods by labels, and these have none: add one to them")
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
    if meta is not None and kind == "Pod":
        yield str(meta.require("labels").error(OTHERS))


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
