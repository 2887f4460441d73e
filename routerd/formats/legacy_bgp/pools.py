"""`address-pools`: the checks of the two parsers, in their order. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from bgp.path import ORIGINS, normal_communities
from routerd.errors import InputError
from routerd.formats.document import Value
from routerd.formats.legacy_bgp.communities import Communities, resolve
from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.golang import parse_addresses, prefixed, quote
from routerd.formats.legacy_bgp.labels import node_selectors, selectors
from routerd.formats.legacy_bgp.structure import Dialect
from routerd.model import AddressPool, Advertisement, IPNetwork, PathOrigin

Protocol = Literal["bgp", "layer2"]
Use = Literal["loadbalancer", "egress"]


@dataclass(frozen=True, slots=True)
class _Block:
    """One entry of `addresses`; a range has several networks."""

    text: str
    networks: tuple[IPNetwork, ...]
    place: Value


def parse_pools(structs: list[Struct], communities: Communities, dialect: Dialect) -> dict[str, AddressPool]:
    """Pools by name, in the order of the file. Raises InputError with the original's message."""
    pools: dict[str, AddressPool] = {}
    taken: list[IPNetwork] = []
    for index, struct in enumerate(structs, 1):
        try:
            blocks = _head(struct, dialect)
            pool = _parse_pool(struct, blocks, communities, dialect)
        except InputError as error:
            raise prefixed(f"parsing address pool #{index}: ", error) from error
        if pool.name in pools:
            raise struct.at("name").error(f"duplicate definition of pool {quote(pool.name)}")
        _check_overlap(pool.name, blocks, taken)
        pools[pool.name] = pool
    return pools


def _check_overlap(name: str, blocks: list[_Block], taken: list[IPNetwork]) -> None:
    for block in blocks:
        for network in block.networks:
            for other in taken:
                if network.version == other.version and network.overlaps(other):
                    message = f'CIDR "{network}" in pool {quote(name)} overlaps with already defined CIDR "{other}"'
                    raise block.place.error(message)
            taken.append(network)


def _head(struct: Struct, dialect: Dialect) -> list[_Block]:
    name, addresses = struct.text("name"), struct.texts("addresses")
    if not name:
        raise struct.at("name").error("missing pool name")
    if not addresses:
        raise struct.at("addresses").error("pool has no prefixes defined")
    blocks = []
    for text, place in addresses:
        try:
            networks = parse_addresses(text, refuse_backwards=dialect != "cilium-1.10")
        except ValueError as error:
            raise place.error(f"invalid CIDR {quote(text)} in pool {quote(name)}: {error}") from error
        blocks.append(_Block(text, networks, place))
    return blocks


def _parse_pool(struct: Struct, blocks: list[_Block], communities: Communities, dialect: Dialect) -> AddressPool:
    protocol = struct.text("protocol")
    if protocol not in ("bgp", "layer2"):
        said = f"unknown protocol {quote(protocol)}" if protocol else "address pool is missing the protocol field"
        raise struct.at("protocol").error(said)
    if protocol == "layer2" and struct.structs("bgp-advertisements"):
        message = "cannot have bgp-advertisements configuration element in a layer2 address pool"
        raise struct.at("bgp-advertisements").error(message)
    uses, is_open = _uses(struct), struct.flag("egress-annotations")
    if is_open and "egress" not in uses:
        raise struct.at("egress-annotations").error("expected uses: [egress] beside it")
    return AddressPool(
        name=struct.text("name"),
        blocks=tuple(network for block in blocks for network in block.networks),
        protocol=cast(Protocol, protocol),
        uses=uses,
        auto_assign=struct.flag("auto-assign", True),
        avoid_buggy_ips=struct.flag("avoid-buggy-ips"),
        priority=struct.number("priority"),
        disabled=struct.flag("disabled"),
        egress_annotations=is_open,
        advertisements=_advertisements(struct, blocks, communities, dialect) if protocol == "bgp" else (),
        origin=struct.place.origin,
    )


def _uses(struct: Struct) -> frozenset[Use]:
    uses = struct.texts("uses")
    for use, place in uses:
        if use not in ("loadbalancer", "egress"):
            raise place.error(f"unknown use {quote(use)}, expected loadbalancer or egress")
    return frozenset(cast(Use, use) for use, _ in uses) or frozenset({"loadbalancer"})


def _advertisements(
    struct: Struct, blocks: list[_Block], communities: Communities, dialect: Dialect
) -> tuple[Advertisement, ...]:
    entries = struct.structs("bgp-advertisements")
    if not entries:
        return (Advertisement(),)
    try:
        if dialect != "cilium-1.10":
            _check_equal(entries)
        return tuple(_advertisement(entry, blocks, communities, dialect) for entry in entries)
    except InputError as error:
        raise prefixed("parsing BGP communities: ", error) from error


def _check_equal(entries: list[Struct]) -> None:
    def lists(entry: Struct) -> list[list[str]]:
        return [[text for text, _ in entry.texts(key)] for key in ("communities", "peers")]

    shown = [(entry.plain, lists(entry), node_selectors(entry), selectors(entry, "service")) for entry in entries]
    for second, one in enumerate(shown):
        first = shown.index(one)
        if first < second:
            message = f"duplicate definition of bgpadvertisements. advertisement {first + 1} and {second + 1} are equal"
            raise entries[second].place.error(message)


def _advertisement(entry: Struct, blocks: list[_Block], communities: Communities, dialect: Dialect) -> Advertisement:
    is_old = dialect == "cilium-1.10"
    texts = entry.texts("communities")
    if not is_old:
        _check_repeated(texts)
    length, length_v6 = entry.number("aggregation-length", 32), entry.number("aggregation-length-v6", 128)
    if length > 32:
        family = "" if is_old else " for IPv4"
        raise entry.at("aggregation-length").error(f"invalid aggregation length {length}{family}")
    if length_v6 > 128:
        raise entry.at("aggregation-length-v6").error(f"invalid aggregation length {length_v6} for IPv6")
    for block in blocks:
        (_check_every_prefix if is_old else _check_shortest_prefix)(entry, block, length, length_v6)
    _check_audience(entry)
    return Advertisement(
        aggregation_length=length,
        aggregation_length_v6=length_v6,
        local_pref=entry.number("localpref"),
        communities=normal_communities(resolve(text, place, communities, dialect) for text, place in texts),
        med=entry.number("med") if "med" in entry.plain else None,
        prepend=entry.number("as-path-prepend"),
        peers=tuple(text for text, _ in entry.texts("peers")),
        node_selectors=node_selectors(entry),
        services=selectors(entry, "service"),
        origin=_origin(entry),
    )


def _origin(entry: Struct) -> PathOrigin:
    """In our dialect alone."""
    text = entry.text("origin") if "origin" in entry.plain else "igp"
    if text not in ORIGINS:
        raise entry.at("origin").error(f"found {quote(text)}, expected one of {', '.join(ORIGINS)}")
    return text


def _check_audience(entry: Struct) -> None:
    """In our dialect alone. Nothing there and an empty list are not the same: that would announce it to all."""
    for key in ("peers", "node-selectors", "service-selectors"):
        if key in entry.places and not entry.lists.get(key):
            raise entry.at(key).error(f"an advertisement to no {key}: leave the key out for all")
    for text, place in entry.texts("peers"):
        if not text:
            raise place.error("a peer without a name")


def _check_repeated(texts: list[tuple[str, Value]]) -> None:
    seen: set[str] = set()
    for text, place in texts:
        if text in seen:
            raise place.error(f"duplicate definition of community {quote(text)}")
        seen.add(text)


def _check_every_prefix(entry: Struct, block: _Block, length: int, _length_v6: int) -> None:
    """MetalLB 0.9.6: one length for both families, and for each part of a range."""
    for network in block.networks:
        if length < network.prefixlen:
            raise entry.at("aggregation-length").error(
                f'invalid aggregation length {length}: prefix "{network}" in this pool is more specific than the '
                "aggregation length"
            )


def _check_shortest_prefix(entry: Struct, block: _Block, length: int, length_v6: int) -> None:
    """MetalLB 0.12: a range counts by its shortest prefix. The message names the IPv4 length even for IPv6."""
    if not block.networks:
        return
    is_v6 = block.networks[0].version == 6
    shortest = min(network.prefixlen for network in block.networks)
    if (length_v6 if is_v6 else length) < shortest:
        raise entry.at("aggregation-length-v6" if is_v6 else "aggregation-length").error(
            f"invalid aggregation length {length}: prefix {shortest} in this pool is more specific than the "
            f"aggregation length for addresses {block.text}"
        )


def as_json(pool: AddressPool, dialect: Dialect) -> dict[str, object]:
    """The shape in which results of the original parsers were recorded."""
    return {
        "protocol": pool.protocol,
        "cidrs": [str(block) for block in pool.blocks],
        "avoid_buggy_ips": pool.avoid_buggy_ips,
        "auto_assign": pool.auto_assign,
        "bgp_advertisements": [_advertisement_json(one, dialect) for one in pool.advertisements],
    }


def _advertisement_json(one: Advertisement, dialect: Dialect) -> dict[str, object]:
    v6 = {} if dialect == "cilium-1.10" else {"aggregation_length_v6": one.aggregation_length_v6}
    return {
        "aggregation_length": one.aggregation_length,
        **v6,
        "localpref": one.local_pref,
        "communities": list(one.communities),
    }
