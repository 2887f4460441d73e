"""Whose the ports of egress IPs are, in the document itself: a line for each record. Pure."""

from __future__ import annotations

from routerd.formats.compose import quoted
from routerd.formats.document import UNLIMITED, Section, Value
from routerd.formats.published.bindings import LAST_NUMBER, LAST_VERSION, MAX_GROUP, OWNERS, STARTS, base64_of, bytes_of
from routerd.model import (
    AppliedTable,
    BindingTable,
    CoolingPorts,
    NodeNumber,
    PortAsk,
    PortReport,
    UnusedBlock,
)

MAX_PORTS = 1 << 20  # that a node can want of one group


def number_line(one: NodeNumber) -> str:
    return f"{{node: {quoted(one.node)}, number: {one.number}}}"


def binding_line(one: BindingTable) -> str:
    cooling = ", ".join(
        f"{{since: {each.since}, version: {each.version}, ranges: [{', '.join(map(_range_text, each.ranges))}]}}"
        for each in one.cooling
    )
    asked = f", asked: {one.asked}" if one.asked else ""
    return (
        f'{{egressIP: "{one.egress_ip}", version: {one.version}, owners: "{base64_of(one.owners)}", '
        f'starts: "{base64_of(one.starts)}", returning: {list(one.returning)}, told: {list(one.told)}, '
        f"awaited: {one.awaited}, cooling: [{cooling}]{asked}}}"
    )


def _range_text(ports: tuple[int, int]) -> str:
    first, size = ports
    return f'"{first}-{first + size - 1}"'


def read_number(section: Section) -> NodeNumber:
    section.only("node", "number")
    return NodeNumber(section.require("node").name(), section.require("number").integer(1, LAST_NUMBER))


def read_binding(section: Section) -> BindingTable:
    """Raises InputError."""
    section.only("egressIP", "version", "owners", "starts", "returning", "told", "awaited", "cooling", "asked")
    return BindingTable(
        section.require("egressIP").address(),
        section.require("version").integer(0, LAST_VERSION),
        _read_bytes(section.require("owners"), OWNERS),
        _read_bytes(section.require("starts"), STARTS),
        tuple(_read_port(item) for item in section.items("returning", UNLIMITED)),
        tuple(item.integer(1, LAST_NUMBER) for item in section.items("told", UNLIMITED)),
        section.require("awaited").integer(0, LAST_VERSION),
        tuple(_read_cooling(item.section) for item in section.items("cooling", UNLIMITED)),
        section.integer("asked", 0, LAST_VERSION, 0),
    )


def _read_bytes(value: Value, size: int) -> bytes:
    try:
        return bytes_of(value.string(), size)
    except ValueError:
        value.expected(f"base64 of {size} bytes at most")


def _read_port(value: Value) -> int:
    port = value.integer(0, 65535)
    if port % 64:
        value.expected("the first port of a granule, a multiple of 64")
    return port


def _read_cooling(section: Section) -> CoolingPorts:
    section.only("since", "version", "ranges")
    since, version = (section.require(key).integer(0, LAST_VERSION) for key in ("since", "version"))
    return CoolingPorts(since, version, tuple(_read_range(item) for item in section.items("ranges", UNLIMITED)))


def _read_range(value: Value) -> tuple[int, int]:
    first, _, last = value.string().partition("-")
    if not (first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()) or len(first + last) > 10:
        value.expected("a range of ports such as 1024-2047")
    low, size = int(first), int(last) + 1 - int(first)
    if low % 64 or size % 64 or not 64 <= size <= 65536 - low:
        value.expected("a range of whole granules of 64 ports")
    return low, size


# --- what nodes report


def port_report_lines(one: PortReport) -> str:
    asks = ", ".join(f"{{group: {each.group}, ports: {each.ports}, used: {each.used}}}" for each in one.asks)
    unused = ", ".join(
        f'{{egressIP: "{each.egress_ip}", first: {each.first}, ports: {each.size}, version: {each.version}}}'
        for each in one.unused
    )
    applied = ", ".join(f'{{egressIP: "{each.egress_ip}", version: {each.version}}}' for each in one.applied)
    return f"ports:\n  asks: [{asks}]\n  unused: [{unused}]\n  applied: [{applied}]\n"


def read_port_report(section: Section) -> PortReport:
    """Raises InputError."""
    section.only("asks", "unused", "applied")
    return PortReport(
        tuple(_read_ask(item.section) for item in section.items("asks", UNLIMITED)),
        tuple(_read_unused(item.section) for item in section.items("unused", UNLIMITED)),
        tuple(_read_applied(item.section) for item in section.items("applied", UNLIMITED)),
    )


def _read_ask(section: Section) -> PortAsk:
    section.only("group", "ports", "used")
    ports, used = (section.integer(key, 0, MAX_PORTS, 0) for key in ("ports", "used"))
    return PortAsk(section.require("group").integer(1, MAX_GROUP), ports, used)


def _read_unused(section: Section) -> UnusedBlock:
    section.only("egressIP", "first", "ports", "version")
    return UnusedBlock(
        section.require("egressIP").address(),
        _read_port(section.require("first")),
        section.require("ports").integer(64, 65536),
        section.require("version").integer(0, LAST_VERSION),
    )


def _read_applied(section: Section) -> AppliedTable:
    section.only("egressIP", "version")
    return AppliedTable(section.require("egressIP").address(), section.require("version").integer(0, LAST_VERSION))
