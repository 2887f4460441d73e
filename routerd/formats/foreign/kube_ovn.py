"""Kube-OVN's annotations `eip` and `snat`, as far as they are not done. Pure.

What they ask for is in `asked_egress`.
"""

from __future__ import annotations

from collections.abc import Iterator

from routerd.formats.document import Value
from routerd.formats.foreign.asked_egress import address_of
from routerd.model import EIP, SNAT, Labels, Namespace, Pod, Refusal
from routerd.refs import Ref

INBOUND = "no connection from outside is brought to the pod: give it a Service"
BOTH = "the pod leaves with its eip, as Kube-OVN has it: this one is left out"


def told_of_pod(found: Pod, value: Value) -> Iterator[Refusal]:
    return _told(Ref("Pod", found.namespace, found.name), found.annotations, value)


def told_of_namespace(found: Namespace, value: Value) -> Iterator[Refusal]:
    return _told(Ref("Namespace", name=found.name), found.annotations, value)


def _told(about: Ref, annotations: Labels, value: Value) -> Iterator[Refusal]:
    """What of annotations is not done."""
    given = {key: annotations[key].strip() for key in (EIP, SNAT) if annotations.get(key, "").strip()}
    for key in list(given)[:1]:
        if address_of(given[key]) is None:
            message = f'{key}: found "{given[key]}", expected an address: what the pod sends out is dropped'
            yield Refusal(about, "InvalidEgressIP", f"{value.origin}: {message}")
    if EIP in given:
        yield Refusal(about, "EgressByAnnotation", f"{value.origin}: {EIP}: {INBOUND}")
    if len(set(given.values())) > 1:
        yield Refusal(about, "EgressByAnnotation", f"{value.origin}: {SNAT}: {BOTH}")
