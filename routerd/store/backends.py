"""Policies by reference to a Service select the pods behind it; and Services may have such a policy themselves. Pure.

The Service says who these are, and a policy by itself does not: so stores put it in whenever either is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from routerd.formats.foreign.policies import EVERYWHERE, everywhere
from routerd.model import NAMESPACE_NAME_LABEL, EgressPolicy, IPNetwork, PodSelection, Service
from routerd.selectors import LabelSelector


def with_backends(
    policies: Mapping[str, EgressPolicy] | None, services: Mapping[str, Service] | None
) -> Mapping[str, EgressPolicy] | None:
    """The same where none names a Service. Nobody is selected by one that is not there, or has no selector."""
    own = {each.egress.key: each.egress for each in (services or {}).values() if each.egress is not None}
    if policies is None or not (own or any(policy.service for policy in policies.values())):
        return policies
    return {key: _with_backends(policy, services or {}) for key, policy in {**own, **policies}.items()}


def _with_backends(policy: EgressPolicy, services: Mapping[str, Service]) -> EgressPolicy:
    service = services.get(policy.service) if policy.service else None
    if service is None or not service.selector:
        return policy
    pods = LabelSelector(tuple(sorted(service.selector.items())))
    backends = PodSelection(pods, LabelSelector(((NAMESPACE_NAME_LABEL, service.namespace),)))
    return replace(
        policy,
        selections=(*policy.selections, backends),
        destinations=policy.destinations or _everywhere(service),
    )


def _everywhere(service: Service) -> tuple[IPNetwork, ...]:
    """In the families of a Service, of both where it does not say."""
    versions = {4 if each == "IPv4" else 6 for each in service.ip_families}
    return everywhere(service.cluster_ips) if not versions else tuple(n for n in EVERYWHERE if n.version in versions)
