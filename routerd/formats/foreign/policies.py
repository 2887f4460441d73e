"""What egress policies of several makers have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_network

from routerd.model import AddressPool, EgressPolicy, IPAddress, IPNetwork

EVERYWHERE: tuple[IPNetwork, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def everywhere(found: Iterable[IPAddress | IPNetwork]) -> tuple[IPNetwork, ...]:
    """All destinations of the families of these; of both if there are none."""
    versions = {each.version for each in found}
    return tuple(network for network in EVERYWHERE if network.version in versions or not versions)


def with_destinations(policy: EgressPolicy, pools: Mapping[str, AddressPool]) -> EgressPolicy:
    """One that has none is for all that leaves in the families of its pool; of both while the pool is not known."""
    if policy.destinations or policy.service:  # its Service says the families, see `routerd.store.backends`
        return policy
    pool = pools.get(policy.pool)
    return replace(policy, destinations=everywhere(pool.blocks if pool is not None else ()))


def to_everywhere(policy: EgressPolicy) -> EgressPolicy:
    """One that still has none is for all that leaves."""
    return policy if policy.destinations else replace(policy, destinations=EVERYWHERE)


def with_gateways(policy: EgressPolicy, pools: Iterable[AddressPool]) -> EgressPolicy:
    """One that does not say which has those of the pool that it names, or that its address lies in.

    `pools`: those that say which.
    """
    pool = next((pool for pool in pools if _is_of(policy, pool)), None) if policy.gateways is None else None
    return policy if pool is None else replace(policy, gateways=pool.gateways)


def _is_of(policy: EgressPolicy, pool: AddressPool) -> bool:
    if policy.pool:
        return policy.pool == pool.name
    return any(address in block for address in policy.egress_ips[:1] for block in pool.blocks)
