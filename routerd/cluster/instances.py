"""Nodes as instances of a cloud: which they are, and how many addresses their pods want. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cloud.demand import Demand
from routerd.model import Labels, Node, NodeReport, PodCount

AWS = re.compile(r"aws:///[a-z0-9-]+/(i-[0-9a-f]+)")  # spec.providerID, as Amazon's cloud controller writes it


def instance_of(node: Node) -> str:
    """ "" = it is none, or nobody has said so yet."""
    match = AWS.fullmatch(node.provider_id)
    return match[1] if match else ""


def demands(
    nodes: Mapping[str, Node], reports: Mapping[str, NodeReport], labels: Labels
) -> dict[str, Demand]:  # fmt: skip
    """By instance, of the nodes with these labels whose agents count their pods.

    Of two nodes that say they are the same instance neither is believed.
    """
    found: dict[str, list[Demand]] = {}
    for name, node in nodes.items():
        instance, report = instance_of(node), reports.get(name)
        if instance and report is not None and report.pods is not None and labels.items() <= node.labels.items():
            found.setdefault(instance, []).append(_demand(name, report.pods))
    return {instance: one for instance, (one, *others) in sorted(found.items()) if not others}


def _demand(node: str, pods: PodCount) -> Demand:
    return Demand(node, pods.with_address, pods.waiting)
