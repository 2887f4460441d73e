"""Which policies must not have the egress IP that they name or were given: it is somebody's, or not allowed. Pure.

A policy that is refused stays a policy without a group: its pods stay selected, and what it covers is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ipam.round import Record
from routerd.claims import TAKEN, Hosts, claims
from routerd.cluster.requests import beyond
from routerd.formats.foreign.policies import KIND, of_kind, open_to_annotations, policy_of_ask, with_gateways
from routerd.model import (
    NAMESPACE_NAME_LABEL,
    AddressPool,
    EgressAsk,
    EgressGroup,
    EgressPolicy,
    IPAddress,
    IPNetwork,
    Labels,
    Namespace,
    Node,
    NodeReport,
    Refusal,
    Snapshot,
    is_gateway,
)

NOT_ALLOWED = "AddressNotAllowed"
NO_POOL = "NoPoolForAnnotation"  # reasons of refusals
NOT_FOR_NAMESPACE = "PoolNotForNamespace"
DISABLED = "PoolDisabled"
TOO_MANY = "TooManyEgressIPs"
MOST_ASKED = 1024  # as `routerd.cluster.vips.MOST_VIPS`: every node has a table of ports for each


@dataclass(frozen=True, slots=True)
class Limits:
    """Which addresses may be egress IPs. `allowed` () = every one that is nobody's; what no host can have never is."""

    snapshot: Snapshot
    reports: Mapping[str, NodeReport]
    holders: Mapping[IPAddress, tuple[str, ...]] = field(default_factory=dict)  # nodes with the address on an interface
    allowed: tuple[IPNetwork, ...] = ()
    known: Hosts | None = None  # that has taken the snapshot
    of_cloud: tuple[IPNetwork, ...] = ()  # egress IPs in these are a cloud's, and in the networks of its nodes

    def refused(self, wanted: Mapping[str, Sequence[IPAddress]]) -> dict[str, Refusal]:
        """`wanted`: egress IPs by key of their policy, which is refused for any of them."""
        policies = self.snapshot.policies or {}
        named = [policies[key] for key in wanted]
        addresses = (address for key, each in wanted.items() for address in each if not policies[key].service)
        whose = claims(addresses, self.snapshot, self._networks(), self._held(named), self.known, self.of_cloud)
        found: dict[str, Refusal] = {}
        for key, own in wanted.items():
            claimed = {} if policies[key].service else whose
            refusals = (self._refusal(policies[key], each, claimed.get(each, "")) for each in own)
            if (refusal := next(filter(None, refusals), None)) is not None:
                found[key] = refusal
        return found

    def allows(self, group: EgressGroup) -> bool:
        """Whether a group that policies have left may go on: its addresses are nobody's yet."""
        if not group.node_address and not self.holders.keys().isdisjoint(group.egress_ips):
            return False
        held = group.egress_ips if group.node_address else ()
        whose = claims(group.egress_ips, self.snapshot, self._networks(), held, self.known, self.of_cloud)
        return not whose and (not self.allowed or all(_lies_in(each, self.allowed) for each in group.egress_ips))

    def _refusal(self, policy: EgressPolicy, address: IPAddress, whose: str) -> Refusal | None:
        remedy = "give the policy another egress IP" if policy.egress_ip else "take it out of the pool"
        if whose:
            return Refusal(policy.ref, TAKEN, f"{address} is {whose}: {remedy}")
        if self.allowed and not _lies_in(address, self.allowed):
            message = f"{address} lies outside egress.allowed-addresses ({', '.join(map(str, self.allowed))}): {remedy}"
            return Refusal(policy.ref, NOT_ALLOWED, message)
        return None

    def _networks(self) -> dict[str, tuple[IPNetwork, ...]]:
        nodes = self.snapshot.nodes or {}
        return {name: report.networks for name, report in self.reports.items() if name in nodes}

    def _held(self, policies: Iterable[EgressPolicy]) -> frozenset[IPAddress]:
        """Addresses that policies give, and that a node which they may leave by has on an interface."""
        nodes = self.snapshot.nodes or {}
        return frozenset(
            address
            for policy in policies
            for address in policy.egress_ips
            if any(_may_leave_with(policy, address, nodes[name]) for name in self.holders.get(address, ()))
        )


def _may_leave_with(policy: EgressPolicy, address: IPAddress, holder: Node) -> bool:
    """A policy without a selector takes the holder; with a node's main address only if it is labelled a gateway."""
    if is_gateway(policy.gateways, holder):
        return True
    return policy.gateways is None and address not in _main_addresses(holder)


def _main_addresses(node: Node) -> tuple[IPAddress, ...]:
    """The first of each family: the node's own, whatever else is on its interfaces."""
    return tuple({address.version: address for address in reversed(node.addresses)}.values())


def _lies_in(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(network.version == address.version and address in network for network in networks)


# --- egress IPs that pods ask for by annotation, of which the operator hears by agents
#
# Whoever may write a pod asks. So an address must be one of a pool that is open to it, the word of whoever owns the
# addresses, and the pool may be for some namespaces alone; one that a policy of the cluster's names is that policy's.


def with_asks(snapshot: Snapshot, reports: Mapping[str, NodeReport] | None) -> Snapshot:
    """With the policies of which nodes report that their pods ask for them; the same where none does."""
    if snapshot.policies is None or reports is None:
        return snapshot
    said = set(_believed(snapshot, reports)) if open_to_annotations(snapshot.pools or {}) else set()
    asked = {policy.key: policy for policy in map(policy_of_ask, said)} | of_kind(snapshot.policies.values())
    if not asked:
        return snapshot
    pools = tuple(pool for pool in (snapshot.pools or {}).values() if pool.gateways is not None)
    whole = {key: with_gateways(policy, pools) for key, policy in asked.items()}
    return replace(snapshot, policies={**snapshot.policies, **dict(sorted(whole.items()))})


def _believed(snapshot: Snapshot, reports: Mapping[str, NodeReport]) -> Iterator[EgressAsk]:
    """Of nodes and namespaces that are there: an agent may write what it likes."""
    nodes, namespaces = snapshot.nodes or {}, snapshot.namespaces or {}
    for name, report in reports.items():
        if name in nodes:
            yield from (ask for ask in report.egress_asks or () if ask.namespace in namespaces)


def not_allowed(
    policies: Mapping[str, EgressPolicy],
    pools: Iterable[AddressPool],
    namespaces: Mapping[str, Namespace],
    records: Iterable[Record],
) -> dict[str, Refusal]:
    """By key of the policy that must not have its address. `records`: who has one keeps it."""
    asked = of_kind(policies.values())
    if not asked:
        return {}
    named = _named(policies)
    of_egress = [pool for pool in pools if pool.egress_annotations]
    having = {record.owner for record in records}
    checked = ((policy, _why_not(policy, named, of_egress, namespaces, having)) for policy in asked.values())
    refused = {policy.key: refusal for policy, refusal in checked if refusal is not None}
    left = sorted((each for key, each in asked.items() if key not in refused), key=lambda each: each.key not in having)
    message = f"{MOST_ASKED} egress IPs are asked for by annotation already: name its pods in a policy"
    for key in beyond(MOST_ASKED, left, {each.key: each.egress_ips for each in left}):
        refused[key] = Refusal(asked[key].ref, TOO_MANY, message)
    return refused


def without_overtaken(records: tuple[Record, ...], policies: Mapping[str, EgressPolicy]) -> tuple[Record, ...]:
    """Without those that pods' asks have of an address which a policy of the cluster's names: it has it at once."""
    of_asks = [record for record in records if record.owner.startswith(f"{KIND}/")]
    named = _named(policies) if of_asks else {}
    if not any(record.address in named for record in of_asks):
        return records
    overtaken = {id(record) for record in of_asks if record.address in named}
    return tuple(record for record in records if id(record) not in overtaken)


def _named(policies: Mapping[str, EgressPolicy]) -> dict[IPAddress, EgressPolicy]:
    """Policies of the cluster by the addresses that they name."""
    return {address: each for each in policies.values() if each.kind != KIND for address in each.egress_ips}


def _why_not(
    policy: EgressPolicy,
    named: Mapping[IPAddress, EgressPolicy],
    pools: Collection[AddressPool],
    namespaces: Mapping[str, Namespace],
    holding: Collection[str],
) -> Refusal | None:
    address = policy.egress_ip
    if address is None:
        return None
    if address in named:
        message = f"{address} is the egress IP of {named[address].ref}, which says who leaves with it: ask for another"
        return Refusal(policy.ref, TAKEN, message)
    having = list(_having(address, pools))
    if not having:
        message = f"no AddressPool with egressAnnotations: true has {address}: ask for an address of one"
        return Refusal(policy.ref, NO_POOL, message)
    namespace = policy.ref.namespace
    known = namespaces.get(namespace)
    labels: Labels = known.labels if known is not None else {NAMESPACE_NAME_LABEL: namespace}
    fitting = [pool for pool in having if _is_for(pool, labels)]
    if fitting and policy.key not in holding and all(pool.disabled for pool in fitting):
        message = f"pool {fitting[0].name}, which has {address}, is disabled: it gives no new addresses"
        return Refusal(policy.ref, DISABLED, message)
    if fitting:
        return None
    message = f"pool {having[0].name}, which has {address}, is not for pods of namespace {namespace}: see its services"
    return Refusal(policy.ref, NOT_FOR_NAMESPACE, message)


def _having(address: IPAddress, pools: Iterable[AddressPool]) -> Iterator[AddressPool]:
    return (pool for pool in pools if any(address in block for block in pool.blocks))


def _is_for(pool: AddressPool, labels: Labels) -> bool:
    """What a pool says of Services it says of no pod."""
    if pool.services is None:
        return True
    return any(
        each.services is None and (each.namespaces is None or each.namespaces.matches(labels)) for each in pool.services
    )
