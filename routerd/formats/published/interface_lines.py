"""The lines of a cloud's interfaces and their blocks in the files that routerd writes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface

from routerd.formats.compose import quoted
from routerd.formats.document import UNLIMITED, Section, Value
from routerd.formats.published.links import MAC
from routerd.model import BlockReport, CloudInterface, IPNetwork, NodeInterfaces


def interfaces_line(one: NodeInterfaces) -> str:
    interfaces = ", ".join(map(_line, one.interfaces))
    return f"{{node: {quoted(one.node)}, generation: {one.generation}, interfaces: [{interfaces}]}}"


def _line(one: CloudInterface) -> str:
    more = "".join(f", {key}: {_list(each)}" for key, each in (("leaving", one.leaving), ("vpc", one.vpc)) if each)
    return f'{{mac: "{one.mac}", own: "{one.own}", blocks: {_list(one.blocks)}{more}}}'


def _list(networks: Iterable[IPNetwork]) -> str:
    return "[" + ", ".join(f'"{network}"' for network in networks) + "]"


def read_interfaces(section: Section) -> NodeInterfaces:
    """Raises InputError."""
    section.only("node", "generation", "interfaces")
    found = (_read(item.section) for item in section.items("interfaces", UNLIMITED))
    return NodeInterfaces(section.require("node").name(), tuple(found), _generation(section))


def _read(section: Section) -> CloudInterface:
    section.only("mac", "own", "blocks", "leaving", "vpc")
    mac, own = section.require("mac"), section.require("own")
    if not MAC.fullmatch(mac.string()):
        mac.expected("a MAC address such as 02:00:5e:10:00:01")
    keys = ("blocks", "leaving", "vpc")
    networks = (tuple(each.network() for each in section.items(key, UNLIMITED)) for key in keys)
    return CloudInterface(mac.string(), _own(own), *networks)


def _own(value: Value) -> IPv4Interface:
    try:
        return IPv4Interface(value.string())
    except ValueError:
        value.expected("an IPv4 address with the length of its subnet, such as 10.0.1.5/24")


def block_report_line(one: BlockReport) -> str:
    return f"blocks: {{kept: {_list(one.kept)}, busy: {_list(one.busy)}, generation: {one.generation}}}\n"


def read_block_report(section: Section) -> BlockReport:
    """Raises InputError."""
    section.only("kept", "busy", "generation")
    kept, busy = (tuple(each.network() for each in section.items(key, UNLIMITED)) for key in ("kept", "busy"))
    return BlockReport(kept, busy, _generation(section))


def _generation(section: Section) -> int:
    return section.integer("generation", 0, 2**63 - 1, 0)
