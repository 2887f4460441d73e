"""The published egress groups as one node has them: which a policy leaves by, and what the node serves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from egress.policy import (
    MOST_SERVED,
    UNSUPPORTED_FAMILY,
    Block,
    Desired,
    Gateway,
    Group,
    Neighbour,
    Served,
    egress_versions,
    unsupported,
)
from routerd.claims import TAKEN, Hosts, claims
from routerd.formats.published.bindings import OWNERS
from routerd.model import (
    OF_PORTS,
    Allocations,
    BindingTable,
    EgressGroup,
    EgressPolicy,
    IPAddress,
    IPNetwork,
    Node,
    NodeAddresses,
    NodeNumber,
    Refusal,
    Snapshot,
    is_gateway,
)
from routerd.node.port_sets import number_of
from routerd.refs import EGRESS, NODE, Ref

NOBODYS_PORTS = bytes(OWNERS)  # of an egress IP: no granule is any node's


def group_of(policy: EgressPolicy, allocations: Allocations) -> EgressGroup | None:
    """The published group that it leaves through."""
    groups = (g for g in allocations.groups if policy.key in g.policies)
    return None if policy.refused else next(groups, None)


def leaves_as(policy: EgressPolicy, group: EgressGroup | None) -> tuple[IPAddress, ...]:
    """The egress IPs that it has, or those that it names; () = a pool has given it none yet."""
    return group.egress_ips if group is not None else policy.egress_ips


def policy_groups(
    policies: Mapping[str, EgressPolicy], allocations: Allocations
) -> tuple[dict[str, int], tuple[Refusal, ...]]:
    """Group by key of each policy; 0 = it is refused or none is published, so its traffic is dropped."""
    published = {key: group for group in reversed(allocations.groups) for key in group.policies}
    told = _told(allocations.refusals)
    groups: dict[str, int] = {}
    refusals = []
    for key, policy in sorted(policies.items()):
        if policy.refused:
            groups[key] = 0
            continue
        given = leaves_as(policy, published.get(key))
        if lacking := unsupported(policy.destinations, given):
            refusals.append(Refusal(policy.ref, UNSUPPORTED_FAMILY, lacking))
        is_translated = bool(egress_versions(policy.destinations, given))
        group = published.get(key) if is_translated else None
        groups[key] = group.id if group is not None else 0
        if is_translated and group is None:
            refusals.append(_no_group(policy, told))
        elif group and group.gateways and key in told:  # without any, the group says it
            _, refused = told[key]
            kept = "" if refused.reason in OF_PORTS else f"; it keeps its egress IP {group.egress_ip}"
            refusals.append(Refusal(policy.ref, refused.reason, f"{refused.message}{kept}"))
    return groups, tuple(refusals)


def _told(refusals: Iterable[Refusal]) -> dict[str, tuple[int, Refusal]]:
    """What the operator refuses first of each object, with its place; what is not translated, the agent says itself."""
    told: dict[str, tuple[int, Refusal]] = {}
    for place, each in enumerate(refusals):
        if each.reason != UNSUPPORTED_FAMILY:
            told.setdefault(str(each.object), (place, each))
    return told


def _no_group(policy: EgressPolicy, told: Mapping[str, tuple[int, Refusal]]) -> Refusal:
    if policy.key in told:
        _, refused = told[policy.key]
        return Refusal(policy.ref, refused.reason, f"{refused.message}; traffic that the policy covers is dropped")
    message = "the operator has published no egress group for it: traffic that it covers is dropped until then"
    return Refusal(policy.ref, "NoGroup", message)


def published_groups(
    allocations: Allocations, nodes: Mapping[str, Node], here: str, down: frozenset[str]
) -> tuple[dict[int, Group], tuple[Refusal, ...]]:
    numbers = {each.node: each.number for each in allocations.numbers}
    tables = {table.egress_ip: table for table in allocations.bindings}
    told = _told(allocations.refusals)
    number = numbers.get(here, 0)
    groups: dict[int, Group] = {}
    refusals: list[Refusal] = []
    for group in allocations.groups:
        gateways = [_gateway(group, name, nodes, numbers, down) for name in group.gateways]
        refusals.extend(g for g in gateways if isinstance(g, Refusal))
        usable = tuple(g for g in gateways if isinstance(g, Gateway))
        if not group.gateways and group.policies:
            refusals.append(_no_gateway(group, told))
        blocks = tuple(block for ip in group.egress_ips for block in _blocks(tables.get(ip), number))
        in_order = group.gateway_mode == "active-standby"
        groups[group.id] = Group(group.id, group.egress_ips, usable, blocks, group.node_address, in_order)
    return groups, tuple(refusals)


def _blocks(table: BindingTable | None, number: int) -> tuple[Block, ...]:
    """What the node with this number has of the egress IP."""
    if table is None or not number:
        return ()
    return tuple(Block(table.egress_ip, each.first, each.size, each.returning) for each in table.blocks(number))


def served(allocations: Allocations, here: str) -> dict[IPAddress, Served]:
    """Egress IPs of groups that this node is a gateway of, also if no node has ports of one yet, as it is announced;
    and those that it was told of and no group has any more: connections still live there. VIPs are served by every
    node, as any may announce them. Those that policies have left get what room is left: they are not bounded, and a map
    that is full would stop all of egress.
    """
    tables = {table.egress_ip: table for table in allocations.bindings}
    number = number_of(allocations, here)
    groups = {address: group for group in allocations.groups for address in group.egress_ips}
    known = {address for address, group in groups.items() if here in group.gateways or group.service}
    mine = {address for address in known if groups[address].policies or not groups[address].service}
    former = {address for address, table in tables.items() if address not in groups and number in table.told}
    vips = {address for each in allocations.services for address in each.addresses} if former else set()
    left = sorted(known - mine | former, key=_in_order)[: max(MOST_SERVED - len(mine), 0)]
    return {
        address: Served(
            tables[address].owners if address in tables else NOBODYS_PORTS,
            node_address=address in groups and groups[address].node_address,
            group=groups[address].id if address in groups else 0,
            vip=bool(groups[address].service) if address in groups else address in vips,
        )
        for address in sorted(mine.union(left), key=_in_order)
    }


def _in_order(address: IPAddress) -> tuple[int, IPAddress]:
    return address.version, address


def tunnel_endpoints(nodes: Mapping[str, Node], given: Iterable[NodeNumber]) -> dict[int, IPAddress]:
    """Tunnel endpoints by the numbers of their nodes."""
    numbers = {each.node: each.number for each in given}
    endpoints = {name: node.tunnel_endpoint for name, node in nodes.items() if name in numbers}
    return {numbers[name]: endpoint for name, endpoint in sorted(endpoints.items()) if endpoint is not None}


def neighbours_of(
    told: Iterable[NodeAddresses],
    given: Iterable[NodeNumber],
    endpoints: Mapping[int, IPAddress],
    networks: Iterable[IPNetwork],
    here: IPAddress | None,
) -> dict[int, Neighbour]:
    """Nodes that may be reached without a tunnel, by their numbers: they say by which device, and their tunnel
    endpoints are in one network with this node's, `here`: what is on another NIC of it is a tunnel away. An IPv6 next
    hop is always a link-local address.
    """
    numbers, near = {each.node: each.number for each in given}, [each for each in networks if here and here in each]
    links = {numbers[each.node]: each.link for each in told if each.link is not None and each.node in numbers}
    return {
        number: Neighbour(bytes.fromhex(link.mac.replace(":", "")), link.link_local)
        for number, link in sorted(links.items())
        if (address := endpoints.get(number)) == link.address
        and (address.version == 4 or link.link_local is not None)
        and any(address in network for network in near if network.version == address.version)
    }


def not_on_link(desired: Desired) -> Iterator[Refusal]:
    """Gateways that are not reached without the tunnel, where nothing else is wanted."""
    if desired.transport != "direct":
        return
    for number, node in sorted({(g.number, g.node) for group in desired.groups.values() for g in group.gateways}):
        if number not in desired.neighbours and node != desired.node:
            message = (
                "it is on no link of this node, or its agent does not report one: with egress.transport: direct "
                "nothing is sent to it as a gateway; set auto"
            )
            yield Refusal(Ref(NODE, name=node), "NotOnLink", message)


def _no_gateway(group: EgressGroup, told: Mapping[str, tuple[int, Refusal]]) -> Refusal:
    found = [told[key] for key in group.policies if key in told]
    plain = f"no node is its gateway: traffic of {', '.join(group.policies)} is dropped"
    return Refusal(group.address_ref, "NoGateway", min(found)[1].message if found else plain)


def _gateway(
    group: EgressGroup, name: str, nodes: Mapping[str, Node], numbers: Mapping[str, int], down: frozenset[str]
) -> Gateway | Refusal:
    address = nodes[name].tunnel_endpoint if name in nodes else None
    if address is None:
        problem = "has no address" if name in nodes else "is not in the store"
        return Refusal(group.address_ref, "UnknownGateway", f"gateway node {name} {problem}: it is left out")
    if name not in numbers:
        return Refusal(group.address_ref, "UnknownGateway", f"gateway node {name} has no number yet: it is left out")
    return Gateway(name, numbers[name], up=name not in down)


def may_be_gateway(snapshot: Snapshot, name: str, addresses: Iterable[IPAddress]) -> bool | None:
    """A policy selects it, it is labelled, it has an egress IP on an interface, or a group has it now.

    Yes whenever the operator may choose the node, so that its agent beats as one: a gateway that beats too seldom would
    be none. `addresses` are those on its interfaces. None = not known yet.
    """
    if snapshot.nodes is None or snapshot.policies is None:
        return None
    node, policies = snapshot.nodes.get(name), snapshot.policies.values()
    if node is None:
        return False
    wanted = {address for policy in policies for address in policy.egress_ips}
    of_pools = {pool.gateways for pool in (snapshot.pools or {}).values()}  # of policies that pods elsewhere ask for
    groups = snapshot.allocations.groups if snapshot.allocations is not None else ()
    return (
        any(is_gateway(selector, node) for selector in {None, *of_pools, *(policy.gateways for policy in policies)})
        or any(policy.service and policy.gateways is None for policy in policies)
        or not wanted.isdisjoint(addresses)
        or any(name in group.gateways for group in groups)
    )


# --- the last defence


def without_conflicts(
    snapshot: Snapshot,
    node: str,
    networks: Iterable[IPNetwork],
    known: Hosts | None = None,
    of_cloud: Collection[IPNetwork] = (),
) -> tuple[Snapshot, tuple[Refusal, ...]]:
    """The snapshot without `node` as gateway of egress IPs that are somebody's; what it has on an interface is its own.

    The operator refuses such a policy. One that is older, or knows less than this node's kernel, may publish it all the
    same; then nothing of it is blackholed or announced from here.
    """
    allocations = snapshot.allocations
    here = [group for group in allocations.groups if _is_led_to(group, node)] if allocations else []
    addresses = (address for group in here for address in group.egress_ips)
    whose = claims(addresses, snapshot, {node: tuple(networks)}, known=known, of_cloud=of_cloud)
    if not whose or allocations is None:
        return snapshot, ()
    groups = (group if whose.keys().isdisjoint(group.egress_ips) else _without(group, node)
              for group in allocations.groups)  # fmt: skip
    refusals = [
        Refusal(Ref(EGRESS, name=str(address)), TAKEN, f"it is {whose[address]}: {node} is no gateway of it")
        for group in here
        for address in group.egress_ips
        if address in whose
    ]
    return replace(snapshot, allocations=replace(allocations, groups=tuple(groups))), tuple(refusals)


def _is_led_to(group: EgressGroup, node: str) -> bool:
    """Whether `node` blackholes and announces the address of `group`."""
    return not group.node_address and not group.service and node in group.gateways


def _without(group: EgressGroup, node: str) -> EgressGroup:
    return replace(group, gateways=tuple(name for name in group.gateways if name != node))
