"""Egress IPs that are addresses of a cloud: answers come only to the gateway whose interface has them. Pure.

A group of such addresses has one gateway, the holder, as the cloud shows it. What the group's gateways are otherwise is
the order in which they may hold them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from cloud.egress import Seat, Wanted
from routerd.cluster.instances import instance_of
from routerd.cluster.ledger import GroupRecord
from routerd.model import EgressGroup, EgressPolicy, IPNetwork, Node, Refusal

Networks = Collection[IPNetwork]


def _of_cloud(group: EgressGroup, networks: Networks) -> tuple[IPv4Address, ...]:
    mine = (address for address in group.egress_ips if isinstance(address, IPv4Address))
    return tuple(address for address in mine if any(address in each for each in networks if each.version == 4))


def wanted_seats(
    groups: Iterable[EgressGroup], records: Iterable[GroupRecord], nodes: Mapping[str, Node], networks: Networks
) -> tuple[Wanted, ...]:
    """The addresses of each group that are the cloud's, and the instances that may hold them, the best first.

    Of a group that policies have left, the record names all gateways that it had.
    """
    gateways = {record.id: record.gateways for record in records}
    found = []
    for group in groups:
        if addresses := _of_cloud(group, networks):
            known = (nodes[name] for name in gateways.get(group.id, ()) if name in nodes)
            names = (instance_of(node) for node in known if group.policies or node.ready)
            found.append(Wanted(addresses, tuple(filter(None, names))))
    return tuple(found)


def with_holders(
    groups: tuple[EgressGroup, ...], seats: Iterable[Seat], nodes: Mapping[str, Node],
    policies: Mapping[str, EgressPolicy], networks: Networks, *, direct: bool = False,
) -> tuple[tuple[EgressGroup, ...], tuple[Refusal, ...]]:  # fmt: skip
    """The groups as they are published, and why some have no gateway. The same groups where none is the cloud's.

    `direct`: nodes send to gateways without a tunnel or not at all.
    """
    if not networks:
        return groups, ()
    held = {seat.address: seat.instance for seat in seats}
    names = {instance: name for name, node in nodes.items() if (instance := instance_of(node))}
    published: list[EgressGroup] = []
    refusals: list[Refusal] = []
    for group in groups:
        addresses = _of_cloud(group, networks)
        if not addresses:
            published.append(group)
            continue
        holders = {names.get(held.get(address, ""), "") for address in addresses}
        holder = holders.pop() if len(holders) == 1 else ""
        members = [policies[key] for key in group.policies if key in policies]
        local = [each for each in members if each.exit_local]
        gateways = (holder,) if holder and not local and not direct else ()
        published.append(replace(group, gateways=gateways, gateway_mode="active-standby"))
        refusals += [Refusal(each.ref, "CloudExitLocal", LOCAL) for each in local]
        refusals += [Refusal(each.ref, "CloudDirect", DIRECT) for each in members if direct]
        if not holder:
            shown = ", ".join(map(str, addresses))
            message = f"no gateway's interface has {shown} yet: `routerd show cloud` says why; its traffic is dropped"
            refusals += [Refusal(each.ref, "AwaitingCloud", message) for each in members]
    return tuple(published), tuple(refusals)


LOCAL = "exit: local does not go with an address of a cloud, which lets it out of one interface only: use gateways"
DIRECT = (
    "egress.transport: direct does not go with an address of a cloud, which drops it from another interface: "
    "set auto or vxlan"
)
