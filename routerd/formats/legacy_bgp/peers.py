"""`peers`: the checks of the two parsers, in their order. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import get_args

from routerd.errors import InputError
from routerd.formats.legacy_bgp.addresses import (
    Found,
    address_of,
    interface_of,
    optional_ip,
    required_ip,
    source_interface,
    zoned,
)
from routerd.formats.legacy_bgp.bfd import Profile, read_bfd
from routerd.formats.legacy_bgp.communities import Communities
from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.export import read_export
from routerd.formats.legacy_bgp.golang import prefixed, quote, whole_seconds
from routerd.formats.legacy_bgp.labels import node_selectors
from routerd.formats.legacy_bgp.structure import Dialect
from routerd.formats.legacy_bgp.times import MAX_HOLD_TIME, connect_retry, hold_time, keepalive_time, restart_time
from routerd.model import Bfd, ExportRule, Gets, IPAddress, IPFamily, Origin, Peer, PeerOverride, Refusal
from routerd.refs import PEER, Ref
from routerd.selectors import LabelSelector

ALL_OF_IT: tuple[Gets, ...] = get_args(Gets)
FAMILY_WORDS: Mapping[str, IPFamily] = {"ipv4": "IPv4", "ipv6": "IPv6"}


@dataclass(frozen=True, slots=True)
class ParsedPeer:
    """A peer as the original parser keeps it; two that are equal are a mistake."""

    my_asn: int
    peer_asn: int
    address: IPAddress
    port: int
    hold_time: int  # seconds
    keepalive_time: int  # nanoseconds; a third of the hold time where none is given
    router_id: IPAddress | None
    source_address: IPAddress | None
    selectors: tuple[LabelSelector, ...]
    password: str = field(repr=False)
    bfd_profile: str
    ebgp_multihop: bool
    name: str = ""
    graceful_restart_time: int = 120  # seconds
    bfd: Bfd | None = None
    families: tuple[IPFamily, ...] = ("IPv4", "IPv6")
    gets: tuple[Gets, ...] = ALL_OF_IT
    ttl_security: int = 0  # hops
    extended_next_hop: bool = False
    max_prefixes: int = 0
    found: Found = ""
    interface: str = ""
    source_interface: str = ""
    password_file: str = ""
    export: tuple[ExportRule, ...] = ()
    connect_retry: int = 0  # seconds
    overrides: tuple[PeerOverride, ...] = ()
    passive: bool = False
    listen_port: int = 0
    keepalive_given: bool = field(default=False, compare=False)
    profile: Profile | None = field(default=None, compare=False)  # the one of `bfd_profile`
    origin: Origin = field(default=Origin(), compare=False)


def read_templates(structs: list[Struct]) -> dict[str, Struct]:
    """What several peers have in common, by name. Raises InputError."""
    templates: dict[str, Struct] = {}
    for struct in structs:
        name = struct.text("name")
        if not name or name in templates:
            fault = f"a second template of the name {quote(name)}" if name else "a peer template needs a name"
            raise struct.at("name").error(fault)
        templates[name] = struct
    return templates


def _with_template(struct: Struct, templates: Mapping[str, Struct]) -> Struct:
    name = struct.text("template")
    if not name:
        return struct
    if name not in templates:
        raise struct.at("template").error(f"there is no peer template {quote(name)}")
    return struct.over(templates[name], "name")


def parse_peers(
    structs: list[Struct],
    profiles: Mapping[str, Profile],
    dialect: Dialect,
    templates: Mapping[str, Struct],
    communities: Communities,
) -> tuple[ParsedPeer, ...]:
    """Raises InputError with the original's message."""
    peers: list[ParsedPeer] = []
    for index, struct in enumerate(structs, 1):
        try:
            struct = _with_template(struct, templates)
            peer = _parse_peer(struct, dialect, communities)
        except InputError as error:
            raise prefixed(f"parsing peer #{index}: ", error) from error
        if peer.bfd_profile:
            if peer.bfd_profile not in profiles:
                message = f"peer #{index} referencing non existing bfd profile {peer.bfd_profile}"
                raise struct.at("bfd-profile").error(message)
            peer = replace(peer, profile=profiles[peer.bfd_profile])
        if peer in peers:
            raise struct.place.error(f"peer #{index} already exists")
        peers.append(peer)
    return tuple(peers)


def _parse_peer(struct: Struct, dialect: Dialect, communities: Communities) -> ParsedPeer:
    my_asn, peer_asn = struct.number("my-asn"), struct.number("peer-asn")
    if not my_asn:
        raise struct.at("my-asn").error("missing local ASN")
    if not peer_asn:
        raise struct.at("peer-asn").error("missing peer ASN")
    _refuse_multihop_of_ibgp(struct)
    interface = interface_of(struct)
    found, address = address_of(struct, interface, dialect)
    hold = hold_time(struct, dialect)
    keepalive = keepalive_time(struct, hold)
    router_id = optional_ip(struct, "router-id", "invalid router ID")
    source = optional_ip(struct, "source-address", "invalid source IP")
    return ParsedPeer(
        my_asn=my_asn,
        peer_asn=peer_asn,
        address=address,
        found=found,
        port=struct.number("peer-port") or 179,
        hold_time=hold,
        keepalive_time=keepalive,
        router_id=router_id,
        source_address=source,
        selectors=node_selectors(struct),
        password=struct.text("password"),
        bfd_profile=struct.text("bfd-profile"),
        ebgp_multihop=struct.flag("ebgp-multihop"),
        name=struct.text("name"),
        graceful_restart_time=restart_time(struct),
        bfd=read_bfd(struct),
        families=_families(struct),
        gets=_gets(struct),
        ttl_security=_ttl_security(struct),
        extended_next_hop=_extended_next_hop(struct, address, found),
        max_prefixes=struct.number("max-prefixes"),
        interface=interface,
        source_interface=source_interface(struct),
        password_file=_password_file(struct),
        export=read_export(struct, communities),
        connect_retry=connect_retry(struct),
        overrides=tuple(_override(each, struct, found) for each in struct.structs("node-overrides")),
        passive=_passive(struct, found),
        listen_port=struct.number("listen-port"),
        keepalive_given=bool(struct.text("keepalive-time")),
        origin=struct.place.origin,
    )


def _refuse_multihop_of_ibgp(struct: Struct) -> None:
    if struct.number("my-asn") == struct.number("peer-asn") and struct.flag("ebgp-multihop"):
        raise struct.at("ebgp-multihop").error("invalid ebgp-multihop parameter set for an ibgp peer")


def _families(struct: Struct) -> tuple[IPFamily, ...]:
    """In the order of BGP's numbers."""
    wanted: set[IPFamily] = set()
    for text, place in struct.texts("families"):
        if text not in FAMILY_WORDS:
            raise place.error(f"unknown family {quote(text)}, expected {' or '.join(FAMILY_WORDS)}")
        wanted.add(FAMILY_WORDS[text])
    if "families" in struct.places and not wanted:
        raise struct.at("families").error("a session without a family announces nothing: leave the key out for both")
    return tuple(family for family in FAMILY_WORDS.values() if family in wanted or not wanted)


def _gets(struct: Struct) -> tuple[Gets, ...]:
    """`announce`, in the order of our words; an empty list is for what names the peer alone."""
    wanted: set[Gets] = set()
    for text, place in struct.texts("announce"):
        if text not in ALL_OF_IT:
            raise place.error(f"unknown {quote(text)}, expected {', '.join(ALL_OF_IT)}")
        wanted.add(text)
    return tuple(each for each in ALL_OF_IT if each in wanted) if "announce" in struct.places else ALL_OF_IT


def _password_file(struct: Struct) -> str:
    """A name, as whoever writes peers must not have any file of a node read."""
    name, place = struct.text("password-file"), struct.at("password-file")
    if name and struct.text("password"):
        raise place.error("a peer has either password or password-file")
    if "/" in name or "\0" in name or name in (".", ".."):
        raise place.error(f"{quote(name)} is not the name of a file in bgp.password-dir")
    return name


def _passive(struct: Struct, found: Found) -> bool:
    """Whether the router opens the session, which it can with an address that it knows."""
    passive = struct.flag("passive")
    if found == "router" and (passive or struct.number("listen-port")):
        key = "passive" if passive else "listen-port"
        raise struct.at(key).error("a router that is found on a link knows no address of the node: without it")
    if passive and struct.number("peer-port"):
        raise struct.at("peer-port").error("a passive peer connects from any port; listen-port says where to")
    return passive


def _ttl_security(struct: Struct) -> int:
    """How many hops the router is away at most, as its own setting of that name has it; 0 = not asked."""
    hops = struct.number("ttl-security")
    if hops > 1 and not struct.flag("ebgp-multihop") and struct.number("my-asn") != struct.number("peer-asn"):
        raise struct.at("ttl-security").error(f"{hops} hops, but without ebgp-multihop the peer is one hop away")
    return hops


def _extended_next_hop(struct: Struct, address: IPAddress, found: Found) -> bool:
    """A router of a link without configured addresses can have no other one; others take what they are told to."""
    is_usual = found == "router" and len(_families(struct)) > 1
    asked, place = struct.flag("extended-next-hop", is_usual), struct.at("extended-next-hop")
    if asked and address.version == 4:
        raise place.error("next hops of IPv6 need a session over IPv6: without extended-next-hop, or another address")
    if asked and len(_families(struct)) == 1:
        raise place.error("next hops of IPv6 for IPv4 paths need both families: without extended-next-hop, or families")
    return asked


def _override(struct: Struct, peer: Struct, found: Found) -> PeerOverride:
    """What the peer is on some nodes, which are named or selected: "" and 0 are said, too, and null is not."""
    nodes, selected = tuple(text for text, _ in struct.texts("nodes")), node_selectors(struct)
    if not nodes and not selected:
        raise struct.place.error("an override of all nodes: name `nodes`, or select them by node-selectors")
    if not struct.plain:
        raise struct.place.error("an override that says nothing")
    for key in ("peer-address", "listen-port"):
        if found and key in struct.plain:
            raise struct.at(key).error(f"the router is found on the node: without {key}")
    router_id = _said_ip(struct, "router-id", "invalid router ID")
    if isinstance(router_id, IPv6Address):
        raise struct.at("router-id").error(f"invalid router ID {quote(struct.text('router-id'))}: expected IPv4")
    address = _said_ip(struct, "peer-address", "invalid peer IP")
    override = PeerOverride(
        name=f"node-overrides of {peer.text('name') or peer.text('peer-address')} at {struct.place.origin}",
        nodes=nodes,
        node_selectors=selected,
        address=zoned(peer, address, peer.text("interface")) if address is not None else None,
        local_as=struct.number("my-asn") or None,
        router_id=router_id,
        source_address=_said_ip(struct, "source-address", "invalid source IP"),
        listen_port=struct.number("listen-port") if "listen-port" in struct.plain else None,
        password=struct.text("password") if "password" in struct.plain else None,
        password_file=_password_file(struct) if "password-file" in struct.plain else None,
    )
    _refuse_what_does_not_go_together(struct, peer, override, found)
    return override


def _said_ip(struct: Struct, key: str, message: str) -> IPAddress | None:
    return required_ip(struct, key, message) if key in struct.plain else None


def _refuse_what_does_not_go_together(struct: Struct, peer: Struct, override: PeerOverride, found: Found) -> None:
    """The peer as it is on these nodes must be one that could stand there for all."""
    whole = replace(struct, places={key: struct.places[key] for key in struct.plain}).over(peer)
    try:
        _refuse_multihop_of_ibgp(whole)
        _ttl_security(whole)
        if override.address is not None:
            _extended_next_hop(whole, override.address, found)
    except InputError as error:
        raise struct.place.error(f"on the nodes of this override: {error.message}") from error


def to_model(peer: ParsedPeer) -> tuple[Peer, tuple[Refusal, ...]]:
    """Our peer, and what of the original we do not do."""
    model = Peer(
        address=peer.address,
        remote_as=peer.peer_asn,
        local_as=peer.my_asn,
        port=peer.port,
        source_address=peer.source_address,
        router_id=peer.router_id if isinstance(peer.router_id, IPv4Address) else None,
        hold_time=min(peer.hold_time, MAX_HOLD_TIME),
        keepalive_time=max(peer.keepalive_time, 0) // 10**9 if peer.keepalive_given else None,
        password=peer.password,
        ebgp_multihop=peer.ebgp_multihop,
        graceful_restart_time=peer.graceful_restart_time,
        bfd=None if peer.ebgp_multihop else _bfd(peer),
        families=peer.families,
        gets=peer.gets,
        ttl_security=peer.ttl_security,
        extended_next_hop=peer.extended_next_hop,
        max_prefixes=peer.max_prefixes,
        found=peer.found,
        interface=peer.interface,
        source_interface=peer.source_interface,
        password_file=peer.password_file,
        export=peer.export,
        connect_retry=peer.connect_retry,
        overrides=peer.overrides,
        passive=peer.passive,
        listen_port=peer.listen_port,
        node_selectors=peer.selectors,
        name=peer.name,
        origin=peer.origin,
    )
    return model, tuple(_not_done(peer))


def _bfd(peer: ParsedPeer) -> Bfd | None:
    return peer.profile.bfd if peer.profile is not None else peer.bfd


def _not_done(peer: ParsedPeer) -> list[Refusal]:
    name, place = Ref(PEER, name=peer.name or str(peer.address)), peer.origin
    found = []
    if _bfd(peer) is not None and peer.ebgp_multihop:
        message = f"{place}: BFD over several hops is not done: without ebgp-multihop, or the session runs without BFD"
        found.append(Refusal(name, "BFDNotSupported", message))
    elif peer.profile is not None and peer.profile.not_done:
        message = f'{place}: bfd-profile "{peer.bfd_profile}": {peer.profile.not_done}'
        found.append(Refusal(name, "BFDNotSupported", message))
    if peer.router_id is not None and not isinstance(peer.router_id, IPv4Address):
        message = f"{place}: router-id {peer.router_id} is not an IPv4 address: the session's default is used"
        found.append(Refusal(name, "InvalidRouterID", message))
    if peer.hold_time > MAX_HOLD_TIME:
        message = f"{place}: hold-time of {peer.hold_time} s does not fit BGP: {MAX_HOLD_TIME} s are used"
        found.append(Refusal(name, "HoldTimeTooLong", message))
    return found


def as_json(peer: ParsedPeer, dialect: Dialect) -> dict[str, object]:
    """The shape in which results of the original parsers were recorded."""
    shown: dict[str, object] = {
        "my_asn": peer.my_asn,
        "peer_asn": peer.peer_asn,
        "peer_address": str(peer.address),
        "peer_port": peer.port,
        "hold_time_s": peer.hold_time,
        "router_id": str(peer.router_id or ""),
        "password": peer.password,
        "node_selectors": len(peer.selectors) or 1,
    }
    if dialect == "cilium-1.10":
        return shown
    return shown | {
        "keepalive_s": whole_seconds(peer.keepalive_time),
        "source_address": str(peer.source_address or ""),
        "bfd_profile": peer.bfd_profile,
        "ebgp_multihop": peer.ebgp_multihop,
    }


def without_place(peer: Peer) -> Peer:
    """For comparing peers of several ConfigMaps."""
    return replace(peer, origin=Origin())
