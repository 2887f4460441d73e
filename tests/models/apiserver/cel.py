"""Equivalents, in Python, of the CEL rules that CRDs of this project use, by the rule's text.

`make demo` installs nothing that evaluates CEL; a test holds these against cel-python. A CRD with a rule that is not
here is refused: a rule must never be skipped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RULES: dict[str, Callable[[Any], bool]] = {
    "!has(self.endPort) || has(self.port)": lambda value: "endPort" not in value or "port" in value,
    "!has(self.endPort) || !has(self.port) || self.endPort >= self.port": lambda value: (
        "endPort" not in value or "port" not in value or value["endPort"] >= value["port"]
    ),
    "!has(self.port) || self.protocol != 'ICMP'": lambda value: "port" not in value or value["protocol"] != "ICMP",
    "[has(self.egressIP), has(self.egressIPs), has(self.pool), has(self.service)].filter(said, said).size() == 1": (
        lambda value: sum(key in value for key in ("egressIP", "egressIPs", "pool", "service")) == 1
    ),
    "has(self.selectors) != has(self.service)": lambda value: ("selectors" in value) != ("service" in value),
    "!has(self.count) || has(self.pool)": lambda value: "count" not in value or "pool" in value,
    "has(self.serviceSelector) || has(self.namespaceSelector)": lambda value: (
        "serviceSelector" in value or "namespaceSelector" in value
    ),
    "has(self.podSelector) || has(self.namespaceSelector)": lambda value: (
        "podSelector" in value or "namespaceSelector" in value
    ),
    "!has(self.advertisements) || self.protocol != 'layer2'": lambda value: (
        "advertisements" not in value or value.get("protocol") != "layer2"
    ),
    "!has(self.egressAnnotations) || !self.egressAnnotations || (has(self.uses) && 'egress' in self.uses)": (
        lambda value: not value.get("egressAnnotations") or "egress" in value.get("uses", ())
    ),
    "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)": lambda value: (
        (value["operator"] in ("In", "NotIn")) == bool(value.get("values"))
    ),
}
