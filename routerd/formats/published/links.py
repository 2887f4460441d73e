"""How neighbours know a node's interface, as an agent reports and the operator publishes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

from routerd.model import NodeLink

MAC = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def link_status(one: NodeLink) -> dict[str, str]:
    """In the status of a RouterdNode."""
    link_local = {"linkLocal": str(one.link_local)} if one.link_local is not None else {}
    return {"address": str(one.address), "mac": one.mac, **link_local}


def link_row(one: NodeLink) -> list[str]:
    """In a part."""
    return [str(one.address), one.mac, str(one.link_local or "")]


def made_link(address: str, mac: str, link_local: str = "") -> NodeLink:
    """Raises ValueError."""
    given = IPv6Address(link_local) if link_local else None
    if not MAC.fullmatch(mac):
        raise ValueError(f"{mac!r} is no MAC address")
    return NodeLink(ip_address(address), mac, given)


def told_link(status: Mapping[str, Any]) -> NodeLink | None:
    """From a status that the schema has let through; None = it is none."""
    try:
        return made_link(str(status["address"]), str(status["mac"]), str(status.get("linkLocal") or ""))
    except (KeyError, ValueError):
        return None
