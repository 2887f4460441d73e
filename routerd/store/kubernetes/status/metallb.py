"""Objects by which MetalLB shows how things stand (metallb.io/v1beta1), where somebody reads these. Pure.

A ServiceBGPStatus says to which peers a node announces a Service's addresses, whether or not their sessions are up; the
ConfigurationState of the operator whether what is configured can be used. Both are as MetalLB has them, and lie in
routerd's own namespace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from routerd.formats.kinds import BY_NAME, KINDS
from routerd.model import Refusal, Snapshot
from routerd.refs import BGP, PEER

SERVICE_STATUSES = BY_NAME["metallb.io", "ServiceBGPStatus"]
CONFIGURATION_STATES = BY_NAME["metallb.io", "ConfigurationState"]
OWNER_LABEL = "routerd.io/status-of"  # whose they are: a node's agent, or the operator
NODE_ANNOTATION = "routerd.io/node"  # for `configs/deploy/admission.yaml`: a node's name may be too long for a label
OPERATOR = "operator"
ERRORS = ("errorSummary", "lastError")  # as its releases call it: an API server drops what its CRD has not
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_CONFIGURING = {kind.name for kind in KINDS if not {"bgp", "pools"}.isdisjoint(kind.parts)} | {PEER, BGP}


@dataclass(frozen=True, slots=True)
class Shown:
    """An object that one process makes, and nobody else."""

    labels: Mapping[str, str]
    status: Mapping[str, Any]
    annotations: Mapping[str, str] = field(default_factory=dict)


def owner_of(node: str) -> str:
    """A name may be longer than a label's value."""
    return f"node-{_digest(node)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def service_statuses(node: str, announced: Mapping[str, Sequence[str]]) -> dict[str, Shown]:
    """By name of the object. `announced`: peers by "namespace/name" of a Service."""
    return {f"bgp-{_digest(f'{node}/{key}')}": _service_status(node, key, peers) for key, peers in announced.items()}


def _service_status(node: str, key: str, peers: Sequence[str]) -> Shown:
    namespace, _, name = key.partition("/")
    labels = {"node": node, "service-name": name, "service-namespace": namespace}
    status = {"node": node, "serviceName": name, "serviceNamespace": namespace, "peers": sorted(peers)}
    fitting = {f"metallb.io/{word}": text for word, text in labels.items() if _LABEL_VALUE.fullmatch(text)}
    return Shown(fitting, status, {NODE_ANNOTATION: node})


def configuration_state(snapshot: Snapshot) -> dict[str, Shown]:
    """Of the configuration of peers and pools, of whichever kind."""
    wrong = [each for each in snapshot.refusals if each.severity == "error" and each.object.kind in _CONFIGURING]
    if wrong:
        result, error = "Invalid", _first_of(wrong)
    else:
        result, error = "Unknown" if snapshot.bgp is None or snapshot.pools is None else "Valid", ""
    status = {"result": result, **dict.fromkeys(ERRORS, error)}
    return {"routerd-operator": Shown({"metallb.io/component-type": "controller"}, status)}


def _first_of(refusals: list[Refusal]) -> str:
    first, *others = sorted(refusals, key=lambda each: each.order)
    more = f" (and {len(others)} more)" if others else ""
    return f"{first.object}: {first.reason}: {first.message}{more}"
