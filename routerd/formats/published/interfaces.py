"""Interfaces that the operator made in a cloud, as it publishes them, and what agents say of their blocks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Interface, ip_network
from operator import attrgetter
from typing import Any

from routerd.formats.published.links import MAC
from routerd.formats.published.records import Row, Table
from routerd.model import BlockReport, CloudInterface, IPNetwork, NodeInterfaces


def _row(each: NodeInterfaces) -> Row:
    return [each.node, [_row_of(one) for one in each.interfaces], each.generation]


def _row_of(one: CloudInterface) -> Row:
    row = [one.mac, str(one.own), *map(_texts, (one.blocks, one.leaving))]
    return [*row, _texts(one.vpc)] if one.vpc else row


def _texts(blocks: Iterable[IPNetwork]) -> list[str]:
    return [str(block) for block in blocks]


def _made(node: str, interfaces: list[Row], generation: int = 0) -> NodeInterfaces:
    """Without a generation as earlier releases wrote it: a report that speaks of 0 gives back nothing newer."""
    return NodeInterfaces(node, tuple(_made_one(*each) for each in interfaces), int(generation))


def _made_one(mac: str, own: str, blocks: list[str], leaving: list[str], vpc: Iterable[str] = ()) -> CloudInterface:
    """Raises ValueError."""
    if not MAC.fullmatch(mac):
        raise ValueError(f"{mac!r} is no MAC address")
    networks = (tuple(map(ip_network, each)) for each in (blocks, leaving, vpc))
    return CloudInterface(mac, IPv4Interface(own), *networks)


INTERFACES: Table[NodeInterfaces] = Table(
    "interfaces", attrgetter("node"), lambda each: f"interfaces {each.node}", _row, _made
)


def blocks_status(one: BlockReport) -> dict[str, Any]:
    """In the status of a RouterdNode."""
    return {"kept": _texts(one.kept), "busy": _texts(one.busy), "generation": one.generation}


def told_blocks(status: Any) -> BlockReport | None:
    """From a status that the schema has let through; None = it says nothing."""
    if not isinstance(status, Mapping):
        return None
    try:
        kept, busy = (tuple(map(ip_network, status.get(key) or ())) for key in ("kept", "busy"))
        return BlockReport(kept, busy, int(status.get("generation") or 0))
    except (TypeError, ValueError):
        return None
