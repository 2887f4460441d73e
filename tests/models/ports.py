"""What tests ask of the ports of an egress IP."""

from __future__ import annotations

from ipam.port_sets import PortSet, PortTable


def owner(table: PortTable, port: int) -> PortSet | None:
    """The set that holds the port, in whatever state."""
    return next((each for each in table.sets if each.first <= port <= each.last), None)
