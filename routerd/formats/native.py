"""Our own kinds `AddressPool` and `EgressPolicy` (routerd.io/v1alpha1): strict, every mistake with its place. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Literal, cast, get_args

from bgp.path import MAX_PREPEND, ORIGINS, WELL_KNOWN_COMMUNITIES, normal_communities
from bgp.rib import extended
from ipam.ranges import networks_between
from routerd.formats.document import MAX_DIGITS, MissingKey, Section, Value, parse_address, parse_network
from routerd.formats.meta import ENVELOPE, check_name, label_selector, read_meta, selector_at
from routerd.model import (
    AddressPool,
    Advertisement,
    EgressPolicy,
    GatewayMode,
    IPAddress,
    IPNetwork,
    PathOrigin,
    PodSelection,
    PortRange,
    ServiceSelection,
)
from routerd.selectors import LabelSelector

Use = Literal["loadbalancer", "egress"]
PRIORITY = 1_000_000  # priorities go from minus to plus this
_BLOCK = "a CIDR, an address, a range START-END, {cidr: …} or {start: …, end: …}"


def open_object(value: Value) -> Section:
    """The `spec` of one of our objects, its envelope checked."""
    value.section.only(*ENVELOPE)
    check_name(value)
    return value.section.require("spec").section


_POOL_KEYS = (
    "blocks", "uses", "protocol", "autoAssign", "avoidBuggyIPs", "priority", "disabled", "advertisements", "services",
    "gateways", "egressAnnotations",
)  # fmt: skip


# --- AddressPool -------------------------------------------------------------------------------------------------


def read_address_pool(value: Value) -> AddressPool:
    """Raises InputError."""
    spec = open_object(value)
    meta = read_meta(value)
    spec.only(*_POOL_KEYS)
    protocol = spec.get("protocol")
    kind = cast(Literal["bgp", "layer2"], protocol.choice("bgp", "layer2") if protocol else "bgp")
    blocks = blocks_of(spec.require("blocks").nonempty("block"), _block)
    return AddressPool(
        name=meta.name,
        blocks=blocks,
        protocol=kind,
        uses=_uses(spec),
        auto_assign=spec.boolean("autoAssign", True),
        avoid_buggy_ips=spec.boolean("avoidBuggyIPs", False),
        priority=spec.integer("priority", -PRIORITY, PRIORITY, 0),
        disabled=spec.boolean("disabled", False),
        advertisements=_advertisements(spec, kind, blocks),
        services=_services(spec),
        gateways=_pool_gateways(spec),
        egress_annotations=_egress_annotations(spec),
        origin=meta.origin,
    )


def _egress_annotations(spec: Section) -> bool:
    is_open = spec.boolean("egressAnnotations", False)
    if is_open and "egress" not in _uses(spec):
        raise spec.require("egressAnnotations").error("expected uses: [egress] beside it")
    return is_open


def _services(spec: Section) -> tuple[ServiceSelection, ...] | None:
    value = spec.get("services")
    return None if value is None else tuple(_service_selection(item) for item in value.nonempty("selector"))


def _pool_gateways(spec: Section) -> LabelSelector | None:
    gateways = spec.section("gateways")
    if gateways is None:
        return None
    return label_selector(gateways.only("nodeSelector").require("nodeSelector"), strict=True)


def _service_selection(value: Value) -> ServiceSelection:
    section = value.section.only("serviceSelector", "namespaceSelector")
    services = selector_at(section, "serviceSelector", strict=True)
    namespaces = selector_at(section, "namespaceSelector", strict=True)
    if services is None and namespaces is None:
        raise value.error("expected serviceSelector or namespaceSelector; {} selects all")
    return ServiceSelection(services, namespaces)


def _uses(spec: Section) -> frozenset[Use]:
    uses = spec.get("uses")
    if uses is None:
        return frozenset({"loadbalancer"})
    return frozenset(cast(Use, item.choice("loadbalancer", "egress")) for item in uses.nonempty("use"))


def blocks_of(items: Iterable[Value], networks_of: Callable[[Value], Iterable[IPNetwork]]) -> tuple[IPNetwork, ...]:
    """What the items of a pool say, as `networks_of` reads each. Raises InputError."""
    found: list[IPNetwork] = []
    for item in items:
        for network in networks_of(item):
            check_block(item, network, found)
            found.append(network)
    return tuple(found)


def check_block(item: Value, network: IPNetwork, others: list[IPNetwork]) -> None:
    """Raises InputError if it cannot be in a pool beside `others`."""
    if fault := unusable(network.network_address) or unusable(network.broadcast_address):
        raise item.error(f"{network} cannot be in a pool: {fault}")
    for other in others:
        if other.version == network.version and other.overlaps(network):
            raise item.error(f"{network} overlaps with {other} of the same pool")


def _block(item: Value) -> tuple[IPNetwork, ...]:
    if item.is_mapping:
        return _block_mapping(item.section)
    text = item.string(_BLOCK)
    if "-" in text:
        first, _, last = text.partition("-")
        return range_networks(item, parse_address(first.strip()), parse_address(last.strip()))
    if (address := parse_address(text)) is not None:
        return range_networks(item, address, address)
    if parse_network(text) is None:
        item.expected(_BLOCK)
    return (item.network(),)


def _block_mapping(section: Section) -> tuple[IPNetwork, ...]:
    section.only("cidr", "start", "end")
    cidr, start, end = section.get("cidr"), section.get("start"), section.get("end")
    if cidr is not None and start is None and end is None:
        return (cidr.network(),)
    if cidr is not None or start is None or end is None:
        raise section.value.error('expected either "cidr", or "start" and "end"')
    return range_networks(end, start.address(), end.address())


def range_networks(place: Value, start: IPAddress | None, end: IPAddress | None) -> tuple[IPNetwork, ...]:
    """Raises InputError if a range has no addresses."""
    if start is None or end is None:
        place.expected(_BLOCK)
    if start.version != end.version:
        raise place.error(f"the range from {start} to {end} goes from one address family to the other")
    if int(start) > int(end):
        raise place.error(f"the range starts at {start}, behind its end {end}")
    return networks_between(start, end)


def unusable(address: IPAddress) -> str:
    """Why an address can be nobody's public face; "" if it can."""
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_multicast:
        return "multicast"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "broadcast" if address == IPv4Address("255.255.255.255") else ""


def _advertisements(spec: Section, kind: str, blocks: tuple[IPNetwork, ...]) -> tuple[Advertisement, ...]:
    value = spec.get("advertisements")
    if kind == "layer2":
        if value is not None:
            raise value.error("a layer2 pool is not announced by BGP: remove the advertisements")
        return ()
    if value is None:
        return (Advertisement(),)
    found: list[Advertisement] = []
    for item in value.nonempty("advertisement"):
        advertisement = _advertisement(item.section, blocks)
        if advertisement in found:
            raise item.error(f"the same advertisement as number {found.index(advertisement) + 1}")
        found.append(advertisement)
    return tuple(found)


def _advertisement(section: Section, blocks: tuple[IPNetwork, ...]) -> Advertisement:
    section.only(
        "aggregationLength", "aggregationLengthV6", "localPref", "communities", "med", "asPathPrepend", "peers",
        "nodeSelectors", "serviceSelectors", "origin",
    )  # fmt: skip
    for key, version in (("aggregationLength", 4), ("aggregationLengthV6", 6)):
        _check_aggregation(section.get(key), version, blocks)
    med, peers, origin = section.get("med"), section.get("peers"), section.get("origin")
    return Advertisement(
        aggregation_length=section.integer("aggregationLength", 1, 32, 32),
        aggregation_length_v6=section.integer("aggregationLengthV6", 1, 128, 128),
        local_pref=section.integer("localPref", 0, 2**32 - 1, 0),
        communities=normal_communities(_read_any_community(item) for item in section.items("communities")),
        med=med.integer(0, 2**32 - 1) if med is not None else None,
        prepend=section.integer("asPathPrepend", 0, MAX_PREPEND, 0),
        peers=tuple(item.name() for item in peers.nonempty("peer")) if peers is not None else (),
        node_selectors=_selectors(section, "nodeSelectors", "node selector"),
        services=_selectors(section, "serviceSelectors", "service selector"),
        origin=cast(PathOrigin, origin.choice(*ORIGINS)) if origin is not None else "igp",
    )


def _selectors(section: Section, key: str, what: str) -> tuple[LabelSelector, ...]:
    """() where there is no such key: an empty list would be for nobody, and mean all."""
    value = section.get(key)
    return tuple(label_selector(item, strict=True) for item in value.nonempty(what)) if value is not None else ()


def _check_aggregation(value: Value | None, version: int, blocks: tuple[IPNetwork, ...]) -> None:
    """A longer block cannot be aggregated into a shorter prefix: the rest of it is not ours."""
    if value is None:
        return
    length = value.integer(1, 32 if version == 4 else 128)
    for block in blocks:
        if block.version == version and block.prefixlen > length:
            raise value.error(f"/{length} would announce more than the block {block} of this pool")


def _read_any_community(value: Value) -> str:
    """Also an extended one (RFC 4360)."""
    text = value.string("a community")
    if not extended.is_named(text):
        return read_community(value)
    try:
        return extended.normal(text)
    except ValueError as error:
        raise value.error(f"extended community {text!r}: {error}") from error


def read_community(value: Value) -> str:
    """RFC 1997 "asn:value", RFC 8092 "asn:value:value" or a well-known name; numbers without leading zeros."""
    what = "a community such as 64512:1, 64512:1:2 or no-export"
    text = value.string(what)
    if text in WELL_KNOWN_COMMUNITIES:
        return text
    parts = text.split(":")
    limit = {2: 2**16, 3: 2**32}.get(len(parts))
    if limit is None or not all(_is_below(part, limit) for part in parts):
        value.expected(what)
    return ":".join(str(int(part)) for part in parts)


def _is_below(text: str, limit: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and int(text) < limit


# --- EgressPolicy ------------------------------------------------------------------------------------------------


def read_egress_policy(value: Value) -> EgressPolicy:
    """Raises InputError. IPv6 parses; what the datapath does with it is not decided here."""
    spec = open_object(value).only(
        "selectors", "destinationCIDRs", "excludedCIDRs", "ports", "egressIP", "egressIPs", "pool", "count", "gateways",
        "priority", "exit", "service",
    )  # fmt: skip
    addresses, pool, count = _addresses(spec)
    if (selectors := spec.get("selectors")) is not None and spec.get("service") is not None:
        raise selectors.error('"service" selects the pods behind it: remove "selectors"')
    exit_ = spec.get("exit")
    gateways = spec.section("gateways")
    return replace(
        covered_by_egress_policy(value),
        ports=tuple(_ports(item) for item in spec.items("ports")),
        egress_ip=addresses[0] if addresses else None,
        further_ips=addresses[1:],
        pool=pool,
        count=count,
        gateways=selector_at(gateways, "nodeSelector", strict=True) if gateways is not None else None,
        gateway_mode=_gateway_mode(gateways) if gateways is not None else None,
        priority=spec.integer("priority", -PRIORITY, PRIORITY, 0),
        exit_local=exit_ is not None and exit_.choice("gateway", "local") == "local",
    )


def covered_by_egress_policy(value: Value) -> EgressPolicy:
    """Who it covers and to which destinations, by any port; without its egress IP. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    service, selectors = _service_key(spec), spec.get("selectors")
    if selectors is None and not service:
        selectors = spec.require("selectors")
    return EgressPolicy(
        name=meta.name,
        selections=tuple(_selection(item) for item in selectors.nonempty("selector")) if selectors is not None else (),
        destinations=tuple(item.network() for item in spec.require("destinationCIDRs").nonempty("CIDR")),
        excluded=tuple(item.network() for item in spec.items("excludedCIDRs")),
        created=meta.created,
        origin=meta.origin,
        service=service,
    )


def _service_key(spec: Section) -> str:
    service = spec.section("service")
    if service is None:
        return ""
    name = service.only("name", "namespace").require("name").name()
    namespace = service.get("namespace")
    return f"{namespace.name() if namespace is not None else 'default'}/{name}"


_EITHER = 'expected one of "egressIP", "egressIPs", "pool" and "service"'
MOST_EGRESS_IPS = 16  # of one policy


def _addresses(spec: Section) -> tuple[tuple[IPAddress, ...], str, int]:
    """The egress IPs, or the pool that they come from and how many."""
    keys = ("egressIP", "egressIPs", "pool", "service")
    found = {key: value for key in keys if (value := spec.get(key)) is not None}
    said = [*found.values()]
    if not said:
        raise MissingKey(spec.value, "egressIP", _EITHER)
    if len(said) > 1:
        several = " and ".join(f'"{key}"' for key in found)
        raise said[1].error(f"found {several}, {_EITHER}")
    pool, count = spec.get("pool"), spec.get("count")
    if pool is not None:
        return (), pool.name("the name of an AddressPool"), count.integer(1, MOST_EGRESS_IPS) if count else 1
    if count is not None:
        raise count.error('"count" goes with "pool"')
    if spec.get("service") is not None:
        return (), "", 1
    values = [said[0]] if spec.get("egressIP") is not None else said[0].nonempty("egress IP", MOST_EGRESS_IPS)
    addresses = tuple(map(_egress_ip, values))
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise values[number].error(f"{address} stands there twice")
    return addresses, "", 1


def _egress_ip(value: Value) -> IPAddress:
    address = value.address()
    if fault := unusable(address):
        raise value.error(f"{address} cannot be an egress IP: {fault}")
    return address


def _selection(value: Value) -> PodSelection:
    section = value.section.only("podSelector", "namespaceSelector", "nodeSelector")
    pods = selector_at(section, "podSelector", strict=True)
    namespaces = selector_at(section, "namespaceSelector", strict=True)
    if pods is None and namespaces is None:
        raise value.error("expected podSelector or namespaceSelector; {} selects all")
    return PodSelection(pods, namespaces, selector_at(section, "nodeSelector", strict=True))


def _ports(value: Value) -> PortRange:
    section = value.section.only("protocol", "port", "endPort")
    known = ("TCP", "UDP", "SCTP", "ICMP")
    protocol = cast(Literal["TCP", "UDP", "SCTP", "ICMP"], section.require("protocol").choice(*known))
    port, end = section.get("port"), section.get("endPort")
    if port is None:
        if end is not None:
            raise end.error('"endPort" needs "port"')
        return PortRange(protocol)
    if protocol == "ICMP":
        raise port.error("ICMP has no ports")
    first = port.integer(1, 65535)
    return PortRange(protocol, first, end.integer(first, 65535) if end else first)


def _gateway_mode(gateways: Section) -> GatewayMode | None:
    mode = gateways.only("nodeSelector", "mode").get("mode")
    if mode is None:
        gateways.require("nodeSelector")
        return None
    return cast(GatewayMode, mode.choice(*get_args(GatewayMode)))
