"""Where the router of a peer is, and from where its session goes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.golang import parse_ip, quote
from routerd.formats.legacy_bgp.structure import Dialect
from routerd.model import IPAddress

Found = Literal["", "router", "default-gateway"]
DEFAULT_GATEWAYS: Mapping[str, IPAddress] = {
    "default-gateway": IPv4Address("0.0.0.0"),
    "default-gateway-ipv6": IPv6Address("::"),
}
INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")


def _interface(struct: Struct, key: str) -> str:
    """A name of the kernel's, without what ExaBGP's configuration could not carry."""
    name = struct.text(key)
    if name and not INTERFACE.fullmatch(name):
        raise struct.at(key).error(f"{quote(name)} is no name of an interface")
    return name


def interface_of(struct: Struct) -> str:
    """By which alone the router is reached. Raises InputError; so do the others."""
    return _interface(struct, "interface")


def source_interface(struct: Struct) -> str:
    """Whose address is the source."""
    name = _interface(struct, "source-interface")
    if name and struct.text("source-address"):
        raise struct.at("source-interface").error("a peer has either source-address or source-interface")
    return name


def optional_ip(struct: Struct, key: str, message: str) -> IPAddress | None:
    return required_ip(struct, key, message) if struct.text(key) else None


def required_ip(struct: Struct, key: str, message: str) -> IPAddress:
    """`message`: what the original says before the text that is no address."""
    address = parse_ip(struct.text(key))
    if address is None:
        raise struct.at(key).error(f"{message} {quote(struct.text(key))}")
    return address


def address_of(struct: Struct, interface: str, dialect: Dialect) -> tuple[Found, IPAddress]:
    """What is to be found, and until then the address that stands for it (`routerd.node.found`)."""
    text = struct.text("peer-address")
    gateway = DEFAULT_GATEWAYS.get(text) if dialect == "native" else None
    if gateway is None and (text or not interface):
        return "", zoned(struct, required_ip(struct, "peer-address", "invalid peer IP"), interface)
    if not struct.text("name"):
        raise struct.place.error("a peer that is found on the node needs a name")
    if struct.text("bfd-profile") or struct.structs("bfd"):
        raise struct.at("bfd").error("BFD with a peer that is found is not done: without bfd, or with a peer-address")
    return ("default-gateway", gateway) if gateway is not None else ("router", IPv6Address(f"::%{interface}"))


def zoned(struct: Struct, address: IPAddress, interface: str) -> IPAddress:
    """With the interface as zone, if it is link-local: it says nothing without one."""
    if isinstance(address, IPv4Address) or not address.is_link_local or not interface:
        return address
    if struct.text("bfd-profile") or struct.structs("bfd"):
        raise struct.at("bfd").error("BFD with a link-local address is not done: without bfd, or another peer-address")
    return IPv6Address(f"{address}%{interface}")
