"""Policies by reference to a Service select the pods behind it. Pure.

The Service says who these are, and a policy by itself does not: so stores put it in whenever either is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from routerd.model import NAMESPACE_NAME_LABEL, EgressPolicy, PodSelection, Service
from routerd.selectors import LabelSelector


def with_backends(
    policies: Mapping[str, EgressPolicy] | None, services: Mapping[str, Service] | None
) -> Mapping[str, EgressPolicy] | None:
    """The same where none names a Service. Nobody is selected by one that is not there, or has no selector."""
    if policies is None or not any(policy.service for policy in policies.values()):
        return policies
    return {key: _with_backends(policy, services or {}) for key, policy in policies.items()}


def _with_backends(policy: EgressPolicy, services: Mapping[str, Service]) -> EgressPolicy:
    service = services.get(policy.service) if policy.service else None
    if service is None or not service.selector:
        return policy
    pods = LabelSelector(tuple(sorted(service.selector.items())))
    backends = PodSelection(pods, LabelSelector(((NAMESPACE_NAME_LABEL, service.namespace),)))
    return replace(policy, selections=(*policy.selections, backends))
