"""What services and egress policies want from the pools, in the allocator's terms. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from egress.policy import egress_versions
from ipam.plan import Grant
from ipam.pool import PoolSpec, Use, Version
from ipam.round import Request
from routerd.formats.foreign.policies import KIND as ASKED
from routerd.formats.foreign.policies import in_turns
from routerd.memo import Derived, Renewed
from routerd.model import NAMESPACE_NAME_LABEL, AddressPool, EgressPolicy, IPAddress, Labels, Namespace, Service

_FAMILIES: Mapping[str, Literal["one", "prefer-all", "all"]] = {
    "SingleStack": "one",
    "PreferDualStack": "prefer-all",
    "RequireDualStack": "all",
}


def pool_spec(pool: AddressPool) -> PoolSpec:
    return PoolSpec(
        pool.name,
        pool.blocks,
        frozenset(pool.uses),
        auto_assign=pool.auto_assign,
        avoid_buggy_ips=pool.avoid_buggy_ips,
        priority=pool.priority,
        disabled=pool.disabled,
    )


def is_ours(service: Service) -> bool:
    return service.type == "LoadBalancer" and service.is_left_to_us


def names_namespaces(pool: AddressPool) -> bool:
    """Whether labels of namespaces say whom the pool is for."""
    return any(each.namespaces is not None for each in pool.services or ())


def barred_from(service: Service, pools: Iterable[AddressPool], namespaces: Mapping[str, Namespace]) -> frozenset[str]:
    """Pools that are for other services. All of them while nobody can tell which addresses it asks for."""
    known = namespaces.get(service.namespace)
    labels: Labels = known.labels if known is not None else {NAMESPACE_NAME_LABEL: service.namespace}
    return frozenset(
        pool.name
        for pool in pools
        if service.unread_wishes
        or (pool.services is not None and not any(each.matches(service, labels) for each in pool.services))
    )


def service_request(service: Service, barred: frozenset[str] = frozenset()) -> Request:
    return Request(
        str(service.ref),
        "loadbalancer",
        _versions(service),
        _FAMILIES[service.ip_family_policy],
        addresses=service.requested_ips,
        pool=service.requested_pool,
        barred=barred,
        known=service.status_ips,
        use=_use(service),
        created=service.created,
    )


class KeptRequests:
    """What services want, by owner."""

    def __init__(self) -> None:
        self._limits: tuple[tuple[AddressPool, ...], Mapping[str, Namespace]] = ((), {})
        self._requests = self._derived()

    def __call__(
        self, services: Mapping[str, Service], pools: Iterable[AddressPool], namespaces: Mapping[str, Namespace]
    ) -> Renewed[str, Request]:
        every = tuple(pools)
        limits = every, (namespaces if any(pool.services is not None for pool in every) else {})
        if limits != self._limits:
            self._limits, self._requests = limits, self._derived(*limits)
        return self._requests(services)

    @staticmethod
    def _derived(
        pools: tuple[AddressPool, ...] = (), namespaces: Mapping[str, Namespace] | None = None
    ) -> Derived[Service, str, Request]:
        def wanted(service: Service) -> tuple[str, Request] | None:
            if not is_ours(service):
                return None
            request = service_request(service, barred_from(service, pools, namespaces or {}))
            return request.owner, request

        return Derived(wanted)


def policy_requests(policy: EgressPolicy, node_addresses: frozenset[IPAddress]) -> tuple[Request, ...]:
    """An address that policies give may be shared by them; one on a node's interface is the node's, so not bound.

    What a pool gives is one request for each of `count`, so that each keeps its own. () if no egress IP would be of
    use: the policy is refused, or nothing of it is translated.
    """
    versions = egress_versions(policy.destinations, policy.egress_ips)
    if policy.refused or policy.service or not versions:
        return ()
    families: Literal["one", "prefer-all"] = "prefer-all" if len(versions) > 1 else "one"
    request = Request(policy.key, "egress", versions, families, pool=policy.pool, bound=True, created=policy.created)
    if policy.egress_ips:
        given = tuple(address for address in policy.egress_ips if address.version in versions)
        is_bound = policy.kind != ASKED and node_addresses.isdisjoint(given)  # a user's word keeps nothing for later
        return (replace(request, addresses=given, use=Use("egress:given"), bound=is_bound, given=True),)
    return tuple(replace(request, owner=owner_of(policy.key, number)) for number in range(policy.count))


def owner_of(policy: str, number: int) -> str:
    """Who holds the address of a policy with this number, from 0 on: the others are told from the first."""
    return f"{policy}#{number + 1}" if number else policy


def policy_of(owner: str) -> str:
    return owner.partition("#")[0]


def beyond(most: int, ordered: Iterable[EgressPolicy], addresses: Mapping[str, Collection[IPAddress]]) -> Iterator[str]:
    """Keys of policies that have addresses of their users' choice, too many together. Those of the cluster come first;
    then each namespace in turn, so that none takes the room of another. `addresses`: by key.
    """
    taken: set[IPAddress] = set()
    for policy in in_turns(ordered, lambda each: each.ref.namespace):
        together = taken.union(addresses[policy.key])
        if len(together) > most:
            yield policy.key
        else:
            taken = together


def granted_to(policy: EgressPolicy, grants: Mapping[str, Grant]) -> Grant | None:
    """All that a policy has: as it gives them, else in the order of their numbers."""
    owners = [owner_of(policy.key, number) for number in range(1 if policy.egress_ips else policy.count)]
    found = [grants[owner] for owner in owners if owner in grants]
    if not found:
        return None
    addresses = [address for grant in found for address in grant.addresses]
    given = {address: number for number, address in enumerate(policy.egress_ips)}
    return Grant(found[0].pool, tuple(sorted(addresses, key=lambda each: given.get(each, len(given)))))


def _versions(service: Service) -> tuple[Version, ...]:
    """Wanted families, preferred first: those of the service, else of its cluster addresses, else IPv4 first."""
    named: list[Version] = [4 if family == "IPv4" else 6 for family in service.ip_families]
    cluster: list[Version] = [4 if address.version == 4 else 6 for address in service.cluster_ips]
    versions = tuple(dict.fromkeys(named or cluster))
    if service.ip_family_policy == "SingleStack":
        return versions[:1] or (4, 6)
    if service.ip_family_policy == "PreferDualStack" and cluster:
        return tuple(version for version in versions if version in cluster) or versions  # no VIP that nothing can serve
    return _both(versions)


def _both(preferred: Iterable[Version]) -> tuple[Version, ...]:
    order: tuple[Version, ...] = (*preferred, 4, 6)
    return tuple(dict.fromkeys(order))


def _use(service: Service) -> Use:
    """Backends must be the same where traffic stays on the node (externalTrafficPolicy Local), as in MetalLB."""
    local = service.external_traffic_policy == "Local"
    backend = ",".join(f"{key}={value}" for key, value in sorted(service.selector.items())) if local else ""
    ports = frozenset(f"{port.protocol.lower()}/{port.port}" for port in service.ports)
    if service.sharing_namespaces is None:
        return Use(f"service:{service.sharing_key}" if service.sharing_key else "", ports, backend)
    # A key of Cilium's holds within a namespace, and between those that name each other.
    return Use(f"scoped:{service.sharing_key}", ports, backend, service.namespace, service.sharing_namespaces)
