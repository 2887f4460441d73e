"""Policies that leave with the VIPs of a Service: which addresses they have, which nodes may be their gateways. Pure.

Whoever announces a VIP gets the answers to what left with it, so its gateways are among those nodes; all of them have
its table of ports. The upper half of its ports is for that: a gateway keeps no state, and could not tell a connection
to a port of the Service there from answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ipam.plan import Grant
from ipam.port_sets import VIP_PORTS
from routerd.cluster.requests import beyond, is_ours
from routerd.model import (
    EXCLUDE_LABEL,
    AddressPool,
    EgressGroup,
    EgressPolicy,
    IPAddress,
    Node,
    NodeReport,
    Refusal,
    Service,
)
from routerd.selectors import matches_any

MOST_VIPS = 1024  # every node has a table of ports for each: a quarter of what its map of egress IPs takes
NO_SERVICE = "NoService"  # reasons of refusals
PORT_IN_UPPER_HALF = "ServicePortInUpperHalf"
TOO_MANY = "TooManyVIPs"


@dataclass(frozen=True, slots=True)
class Vips:
    """By policy: the addresses that it has, and the nodes that announce them and may be its gateways."""

    grants: Mapping[str, Grant]
    announcing: Mapping[str, tuple[str, ...]]
    refusals: tuple[Refusal, ...]


def vips_of(
    policies: Mapping[str, EgressPolicy],
    services: Mapping[str, Service],
    grants: Mapping[str, Grant],
    pools: Mapping[str, AddressPool],
    nodes: Mapping[str, Node],
    needing: Mapping[str, Collection[str]],
    denied: Collection[str] = (),
) -> Vips:
    """`grants`: of services, by owner. `needing`: by policy, nodes with selected pods, as far as they said so.

    `denied`: owners of which the allocator says itself why they have no address.
    """
    at = _at_each_address(services, grants) if any(policy.service for policy in policies.values()) else {}
    found: dict[str, Grant] = {}
    announcing: dict[str, tuple[str, ...]] = {}
    refusals = []
    for key, policy in policies.items():
        if not policy.service or policy.refused:
            continue
        service = services.get(policy.service)
        grant = grants.get(str(service.ref)) if service is not None else None
        if grant is None and str(policy.ref) in denied:
            continue
        refusal = _refusal(policy, service, grant, pools, at)
        if refusal is not None or service is None or grant is None:
            refusals += [refusal] if refusal is not None else []
            continue
        found[key] = grant
        pool = pools.get(grant.pool)
        announcing[key] = tuple(_announcing(policy, service, pool, nodes, needing.get(key, ())))
    oldest = sorted((policies[key] for key in found), key=lambda each: (not each.created, each.created, each.key))
    for key in [*beyond(MOST_VIPS, oldest, {key: grant.addresses for key, grant in found.items()})]:
        message = f"svc/{policies[key].service}: {MOST_VIPS} VIPs are egress IPs already: name its pods in a policy"
        refusals.append(Refusal(policies[key].ref, TOO_MANY, message))
        del found[key], announcing[key]
    return Vips(found, announcing, tuple(refusals))


def _at_each_address(services: Mapping[str, Service], grants: Mapping[str, Grant]) -> dict[IPAddress, list[Service]]:
    found: dict[IPAddress, list[Service]] = {}
    for service in services.values():
        if (grant := grants.get(str(service.ref))) is not None:
            for address in grant.addresses:
                found.setdefault(address, []).append(service)
    return found


def _refusal(
    policy: EgressPolicy,
    service: Service | None,
    grant: Grant | None,
    pools: Mapping[str, AddressPool],
    at: Mapping[IPAddress, Sequence[Service]],
) -> Refusal | None:
    """Why the policy cannot have the addresses of its Service."""

    def refuse(reason: str, message: str) -> Refusal:
        return Refusal(policy.ref, reason, f"svc/{policy.service}: {message}")

    if service is None:
        return refuse(NO_SERVICE, "there is no such Service: nobody is selected, and there is no address to leave with")
    if service.type != "LoadBalancer":
        return refuse("NotLoadBalancer", f"its type is {service.type}: only LoadBalancer has VIPs")
    if not is_ours(service):
        return refuse("OtherClass", "its class leaves its VIPs to another load balancer: others get their answers")
    if not service.selector:
        return refuse("NoSelector", "it has no selector, which tells the pods behind it: name these in a policy")
    if grant is None:
        return refuse("NoAddress", "it has no VIP yet: see what its own status says")
    pool = pools.get(grant.pool)
    if pool is not None and pool.protocol != "bgp":
        return refuse("PoolNotBgp", f"pool {pool.name} has protocol {pool.protocol}: nobody announces its VIP by BGP")
    taken = next(_in_upper_half(grant, at), None)
    if taken is not None:
        whose, port = taken
        return refuse(
            PORT_IN_UPPER_HALF,
            f"port {port} of {whose.ref} lies in {VIP_PORTS}-65535, which is for what leaves with the VIP: a gateway "
            "keeps no state to tell the one from the other; give the Service a port below",
        )
    return None


def _in_upper_half(grant: Grant, at: Mapping[IPAddress, Sequence[Service]]) -> Iterator[tuple[Service, int]]:
    """Of the Service, and of those that share its addresses."""
    for service in (each for address in grant.addresses for each in at[address]):
        yield from ((service, port.port) for port in service.ports if port.port >= VIP_PORTS)


def _announcing(
    policy: EgressPolicy,
    service: Service,
    pool: AddressPool | None,
    nodes: Mapping[str, Node],
    needing: Collection[str],
) -> Iterator[str]:
    """With externalTrafficPolicy Local those with endpoints: nodes that need ports, once they have said so."""
    is_local = service.external_traffic_policy == "Local" and needing
    for name, node in nodes.items():
        if EXCLUDE_LABEL in node.labels or (is_local and name not in needing):
            continue
        if policy.gateways is not None and not policy.gateways.matches(node.labels):
            continue
        if pool is None or any(
            matches_any(how.node_selectors, node.labels)
            and (not how.services or matches_any(how.services, service.selectable))
            for how in pool.advertisements
        ):
            yield name


def needing_ports(groups: Iterable[EgressGroup], reports: Mapping[str, NodeReport]) -> dict[str, frozenset[str]]:
    """By policy of a Service: the nodes that ask for ports, as they have pods of it. `groups`: those published."""
    of_vips = {group.id: group for group in groups if group.service}
    found: dict[int, set[str]] = {number: set() for number in of_vips}
    for name, report in reports.items() if of_vips else ():
        for ask in report.ports.asks if report.ports is not None else ():
            if ask.group in found:
                found[ask.group].add(name)
    return {key: frozenset(found[number]) for number, group in of_vips.items() for key in group.policies}


def still_vips(group: EgressGroup, grants: Mapping[str, Grant]) -> bool:
    """Whether the addresses of a group are its Service's yet: else nobody announces them."""
    grant = grants.get(f"svc/{group.service}")
    return grant is not None and {*group.egress_ips} <= {*grant.addresses}
