"""Whose the ports of egress IPs are, as rows: at most 3 KiB for an address, however many nodes share it. Pure.

Owners and starts are base64 (RFC 4648, section 4) without the zero bytes at their end: blocks are given from the lowest
port on, so that tables with few are short.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from routerd.formats.published.records import Row, Table
from routerd.model import BindingTable, CoolingPorts, IPAddress, NodeNumber, PortBlock

GRANULES = 1024  # of 64 ports
LAST_NUMBER = 65535
MAX_GROUP = 2**24 - 1  # a VNI (RFC 7348)
LAST_VERSION = 2**63 - 1  # what SQLite holds
OWNERS, STARTS = 2 * GRANULES, GRANULES // 8  # bytes


def binding_table(egress_ip: IPAddress, version: int, blocks: Iterable[PortBlock], **more: Any) -> BindingTable:
    """The table with these blocks. `more`: its other fields."""
    numbers, starts = [0] * GRANULES, 0
    returning = []
    for each in blocks:
        first, count = each.first >> 6, each.size >> 6
        numbers[first : first + count] = [each.node] * count
        starts |= 1 << first
        if each.returning:
            returning.append(each.first)
    packed = struct.pack(f"!{GRANULES}H", *numbers)
    return BindingTable(egress_ip, version, packed, starts.to_bytes(STARTS, "little"), tuple(returning), **more)


def base64_of(data: bytes) -> str:
    return b64encode(data.rstrip(b"\0")).decode()


def bytes_of(text: str, size: int) -> bytes:
    """Raises ValueError."""
    data = b64decode(text, validate=True)
    if len(data) > size:
        raise ValueError(f"found {len(data)} bytes, expected {size} at most")
    return data.ljust(size, b"\0")


def granule_port(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 65535 or value % 64:
        raise ValueError(f"found {value!r}, expected the first port of a granule")
    return value


def natural(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"found {value!r}, expected {low} … {high}")
    return value


# --- rows


def _row(each: BindingTable) -> Row:
    cooling = [[one.since, one.version, [list(ports) for ports in one.ranges]] for one in each.cooling]
    return [str(each.egress_ip), each.version, base64_of(each.owners), base64_of(each.starts), list(each.returning),
            list(each.told), each.awaited, cooling, each.asked]  # fmt: skip


def _table(
    egress_ip: str, version: int, owners: str, starts: str, returning: list[int], told: list[int], awaited: int,
    cooling: list[Any], asked: int = 0,
) -> BindingTable:  # fmt: skip
    return BindingTable(
        ip_address(egress_ip),
        natural(version, 0, LAST_VERSION),
        bytes_of(owners, OWNERS),
        bytes_of(starts, STARTS),
        tuple(map(granule_port, returning)),
        tuple(natural(number, 1, LAST_NUMBER) for number in told),
        natural(awaited, 0, LAST_VERSION),
        tuple(_cooling(*one) for one in cooling),
        natural(asked, 0, LAST_VERSION),
    )


def _cooling(since: int, version: int, ranges: list[list[int]]) -> CoolingPorts:
    pairs = tuple((granule_port(first), natural(size, 64, 65536)) for first, size in ranges)
    return CoolingPorts(natural(since, 0, LAST_VERSION), natural(version, 0, LAST_VERSION), pairs)


def _order(each: BindingTable) -> tuple[int, int]:
    return each.egress_ip.version, int(each.egress_ip)


NUMBERS: Table[NodeNumber] = Table(
    "numbers", lambda each: each.node, lambda each: f"number {each.number >> 8}",
    lambda each: [each.node, each.number],
    lambda node, number: NodeNumber(node, natural(number, 1, LAST_NUMBER)),
)  # fmt: skip
BINDINGS: Table[BindingTable] = Table("bindings", _order, lambda each: f"ports {each.egress_ip}", _row, _table)
