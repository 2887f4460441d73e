"""The records of published allocations as rows: in parts, and under their digest. Pure, without YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from operator import attrgetter
from typing import Any, Literal, get_args

from bgp.path import MAX_PREPEND, ORIGINS
from routerd.formats.published.bindings import BINDINGS, MAX_GROUP, NUMBERS
from routerd.formats.published.interfaces import INTERFACES
from routerd.formats.published.links import link_row, made_link
from routerd.formats.published.records import Row, Table
from routerd.model import (
    Advertisement,
    EgressGroup,
    GatewayMode,
    NodeAddresses,
    NodeBlocks,
    PathOrigin,
    PoolWays,
    Refusal,
    ServiceAllocation,
)
from routerd.refs import Ref
from routerd.selectors import LabelSelector, Operator, Requirement


def _service_row(each: ServiceAllocation) -> Row:
    return [each.service, each.pool, [str(address) for address in each.addresses]]


def _service(service: str, pool: str, addresses: list[str]) -> ServiceAllocation:
    return ServiceAllocation(service, pool, tuple(map(ip_address, addresses)))


def _group_row(each: EgressGroup) -> Row:
    row: Row = [each.id, str(each.egress_ip), each.pool, [*each.policies], [*each.gateways], each.node_address]
    further = [str(address) for address in each.further_ips]
    if each.service:
        return [*row, further, each.gateway_mode, each.service]
    if each.gateway_mode != "ecmp":
        return [*row, further, each.gateway_mode]
    return [*row, further] if further else row


def _group(
    number: int, egress_ip: str, pool: str, policies: list[str], gateways: list[str], node_address: bool,
    further_ips: Sequence[str] = (), mode: GatewayMode = "ecmp", service: str = "",
) -> EgressGroup:  # fmt: skip
    if not 1 <= number <= MAX_GROUP:
        raise ValueError(f"group {number}: the number is out of its range")
    if not all(isinstance(name, str) for name in gateways):
        raise ValueError(f"group {number}: a gateway has no name")
    if mode not in get_args(GatewayMode):
        raise ValueError(f"group {number}: gateway mode {mode!r}")
    further = tuple(map(ip_address, further_ips))
    address = ip_address(egress_ip)
    return EgressGroup(number, address, tuple(policies), tuple(gateways), node_address, pool, further, mode, service)


def _node_row(each: NodeAddresses) -> Row:
    """Without what only releases since heartbeats know, where there is nothing of it to say."""
    row: Row = [each.node, [str(address) for address in each.addresses]]
    if each.link is not None:
        return [*row, each.silent_since, link_row(each.link)]
    return [*row, each.silent_since] if each.silent_since else row


def _node(node: str, addresses: list[str], silent_since: str = "", link: list[str] | None = None) -> NodeAddresses:
    known = made_link(*link) if link is not None else None
    return NodeAddresses(node, tuple(map(ip_address, addresses)), silent_since, known)


def _pool_row(each: PoolWays) -> Row:
    return [each.pool, each.protocol, [_way_row(way) for way in each.advertisements]]


def _way_row(way: Advertisement) -> Row:
    """Without what only later releases know, where there is nothing of it to say."""
    row: Row = [way.aggregation_length, way.aggregation_length_v6, way.local_pref, list(way.communities)]
    if way == replace(way, med=None, prepend=0, peers=(), node_selectors=(), services=(), origin="igp"):
        return row
    row += [way.med, way.prepend, list(way.peers), [_selector_row(each) for each in way.node_selectors]]
    has_origin = way.origin != "igp"
    row += [[_selector_row(each) for each in way.services]] if way.services or has_origin else []
    return [*row, way.origin] if has_origin else row


def _selector_row(each: LabelSelector) -> Row:
    wanted = [[one.key, one.operator, [*one.values]] for one in each.match_expressions]
    return [[[*pair] for pair in each.match_labels], wanted]


def _pool(pool: str, protocol: Literal["bgp", "layer2"], ways: list[list[Any]]) -> PoolWays:
    if protocol not in ("bgp", "layer2"):
        raise ValueError(f"pool {pool}: protocol {protocol!r}")
    return PoolWays(pool, protocol, tuple(_way(*way) for way in ways))


def _way(
    length: int, length_v6: int, local_pref: int, communities: list[str], med: int | None = None, prepend: int = 0,
    peers: Sequence[str] = (), nodes: Sequence[Row] = (), services: Sequence[Row] = (), origin: PathOrigin = "igp",
) -> Advertisement:  # fmt: skip
    if origin not in ORIGINS:
        raise ValueError(f"an advertisement: origin {origin!r}")
    in_range = 0 <= length <= 32 and 0 <= length_v6 <= 128 and 0 <= prepend <= MAX_PREPEND
    if not (in_range and all(0 <= number < 2**32 for number in (local_pref, med or 0))):
        raise ValueError("an advertisement: a number is out of its range")
    taken, selected = (tuple(_selector(*each) for each in selectors) for selectors in (nodes, services))
    return Advertisement(
        length, length_v6, local_pref, tuple(communities), med, prepend, tuple(peers), taken, selected, origin
    )


def _selector(labels: Sequence[Sequence[str]], wanted: Sequence[tuple[str, Operator, list[str]]]) -> LabelSelector:
    if any(operator not in get_args(Operator) for _, operator, _ in wanted):
        raise ValueError("a selector: an operator that is none")
    pairs = tuple((key, value) for key, value in labels)
    return LabelSelector(pairs, tuple(Requirement(key, how, tuple(values)) for key, how, values in wanted))


SERVICES: Table[ServiceAllocation] = Table(
    "services", attrgetter("service"), attrgetter("service"), _service_row, _service
)
GROUPS: Table[EgressGroup] = Table("groups", attrgetter("id"), lambda each: str(each.id), _group_row, _group)
REFUSALS: Table[Refusal] = Table(
    "refusals", attrgetter("order"), lambda each: str(each.object),
    lambda each: list(each.order), lambda about, reason, message: Refusal(Ref.parse(about), reason, message),
)  # fmt: skip
NODES: Table[NodeAddresses] = Table(
    "nodes", attrgetter("node"), attrgetter("node"),
    _node_row, _node,
)  # fmt: skip
POOLS: Table[PoolWays] = Table("pools", attrgetter("pool"), attrgetter("pool"), _pool_row, _pool)
POD_CIDRS: Table[NodeBlocks] = Table(
    "pod_cidrs", attrgetter("node"), lambda each: f"pods {each.node}",
    lambda each: [each.node, [str(block) for block in each.blocks]],
    lambda node, blocks: NodeBlocks(node, tuple(map(ip_network, blocks))),
)  # fmt: skip
TABLES: tuple[Table[Any], ...] = (SERVICES, GROUPS, REFUSALS, NODES, POOLS, NUMBERS, BINDINGS, POD_CIDRS, INTERFACES)
