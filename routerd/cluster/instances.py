"""Nodes as instances of a cloud: which they are, how many addresses their pods want, and which they get. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Interface

from cloud.demand import Demand
from cloud.records import Held, Holding
from routerd.model import CloudInterface, Labels, Node, NodeInterfaces, NodeReport

# spec.providerID, as their cloud controllers write it.
PROVIDERS = (
    re.compile(r"aws:///[a-z0-9-]+/(i-[0-9a-f]+)"),
    re.compile(r"(?:alicloud://)?[a-z]+-[a-z0-9-]+\.(i-[0-9a-z]+)"),
    re.compile(
        r"azure://(/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.compute/"
        r"(?:virtualmachinescalesets/[^/]+/)?virtualmachines/[^/]+)",
        re.I,
    ),
)


def instance_of(node: Node) -> str:
    """ "" = it is none, or nobody has said so yet. Azure ignores case, and writes the same id in several ways."""
    found = (each.fullmatch(node.provider_id) for each in PROVIDERS)
    return next((match[1].lower() for match in found if match), "")


def takes_part(node: Node, labels: Labels) -> bool:
    """Whether its pods have addresses of the cloud; `labels` are those of the nodes that take part."""
    return bool(instance_of(node)) and labels.items() <= node.labels.items()


def published_interfaces(holdings: Iterable[Holding], nodes: Mapping[str, Node]) -> tuple[NodeInterfaces, ...]:
    """What each node may give its pods, whoever had the instance before; sorted by node.

    A block that is to be given back is published as one that leaves, so that its node lets go of it.
    """
    names: dict[str, list[str]] = {}
    for name, node in nodes.items():
        names.setdefault(instance_of(node), []).append(name)
    mine = ((names.get(each.instance, ()), each) for each in holdings if each.generation)
    return tuple(sorted(
        (NodeInterfaces(of[0], _all_of(each), each.generation) for of, each in mine if len(of) == 1),
        key=lambda each: each.node,
    ))  # fmt: skip


def _all_of(holding: Holding) -> tuple[CloudInterface, ...]:
    return tuple(filter(None, map(_published, holding.held)))


def _published(held: Held) -> CloudInterface | None:
    used = tuple(each.network for each in held.blocks if each.state == "used")
    leaving = tuple(each.network for each in held.blocks if each.state == "leaving")
    own = IPv4Interface((held.primary, held.subnet.prefixlen))
    return CloudInterface(held.mac, own, used, leaving, held.vpc) if used or leaving else None


def demands(
    nodes: Mapping[str, Node], reports: Mapping[str, NodeReport], labels: Labels
) -> dict[str, Demand]:  # fmt: skip
    """By instance, of the nodes with these labels whose agents count their pods.

    Of two nodes that say they are the same instance neither is believed.
    """
    found: dict[str, list[Demand]] = {}
    for name, node in nodes.items():
        report = reports.get(name)
        if report is not None and takes_part(node, labels) and (demand := _demand(node, report)):
            found.setdefault(instance_of(node), []).append(demand)
    return {instance: one for instance, (one, *others) in sorted(found.items()) if not others}


def _demand(node: Node, report: NodeReport) -> Demand | None:
    if report.pods is None:
        return None
    demand = Demand(node.name, report.pods.with_address, report.pods.waiting, most_pods=node.most_pods)
    if report.blocks is None:
        return demand
    blocks = report.blocks
    return replace(demand, kept=frozenset(blocks.kept), busy=frozenset(blocks.busy), generation=blocks.generation)
