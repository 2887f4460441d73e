"""Calico's BGPConfiguration, BGPPeer and BGPFilter (projectcalico.org/v3, kept as crd.projectcalico.org/v1). Pure.

A peer has its local AS, its VIPs and its communities of the configuration `default`, and the rules of the filters that
it names. What we cannot do is refused by name, as a value: a session that would announce more than was meant is not
opened. They are read in files alone: where an API server has them, Calico's own speaker opens these sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from bgp.path import normal_communities
from routerd.formats.document import Section, Value
from routerd.formats.foreign.calico.filters import EVERYTHING, Filter, PeerType, rules_for
from routerd.formats.foreign.calico.selectors import alternatives
from routerd.formats.legacy_bgp.decode import as_number
from routerd.formats.legacy_bgp.golang import parse_duration, whole_seconds
from routerd.formats.legacy_bgp.structure import MAX_HOPS
from routerd.formats.legacy_bgp.times import MAX_RESTART_TIME
from routerd.formats.meta import ENVELOPE, Meta, read_meta
from routerd.formats.native import read_community
from routerd.model import Bfd, ExportRule, Gets, IPAddress, IPNetwork, Peer, Refusal
from routerd.refs import Ref
from routerd.selectors import LabelSelector, Requirement

CONFIGURATION = "BGPConfiguration"
DEFAULT = "default"  # the configuration of all nodes; others are of one node, "node.NAME"
AS_NUMBER = 64512  # of nodes, where nothing is said
HOSTNAME = "kubernetes.io/hostname"  # the label of a node by which `node` knows it
MAX_COUNT = 2**31 - 1
PASSWORDS = "routerd-passwords"  # the Secret of which agents have each key as a file


@dataclass(frozen=True, slots=True)
class Configuration:
    """What all peers have in common. `vips`: of addresses of Services these alone; () = none."""

    local_as: int = AS_NUMBER
    vips: tuple[IPNetwork, ...] = ()
    tags: tuple[ExportRule, ...] = ()  # communities by prefix


@dataclass(frozen=True, slots=True)
class FilteredPeer:
    """A peer without what the configuration and its filters say. `local_as` 0 = as the configuration has it."""

    peer: Peer
    filters: tuple[str, ...] = ()


# --- BGPConfiguration


_SPEC = (
    "asNumber", "bindMode", "communities", "ignoredInterfaces", "ipv4NormalRoutePriority", "ipv6NormalRoutePriority",
    "listenPort", "localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6", "logSeverityScreen", "nodeMeshMaxRestartTime",
    "nodeMeshPassword", "nodeToNodeMeshEnabled", "prefixAdvertisements", "programClusterRoutes", "serviceClusterIPs",
    "serviceExternalIPs", "serviceLoadBalancerAggregation", "serviceLoadBalancerIPs",
)  # fmt: skip


def read_configuration(value: Value) -> tuple[Configuration | None, tuple[Refusal, ...]]:
    """A key that Calico has not may be a misspelling of `asNumber` or of communities. Raises InputError."""
    meta, spec = read_meta(value), value.section.section("spec") or Section.empty(value)
    ref = Ref(meta.kind, name=meta.name)
    if meta.name != DEFAULT:
        message = str(value.error(f"only the one of the name {DEFAULT} is read: nodes are configured alike"))
        return None, (Refusal(ref, "PeeringNotSupported", message),)
    value.section.only(*ENVELOPE)
    spec.only(*_SPEC)
    named = [item.section.only("name", "value") for item in spec.items("communities")]
    names = {item.require("name").name(): read_community(item.require("value")) for item in named}
    number = spec.get("asNumber")
    found = Configuration(
        local_as=as_number(number) if number is not None else AS_NUMBER,
        vips=tuple(
            item.section.only("cidr").require("cidr").network(host_bits=True)
            for item in spec.items("serviceLoadBalancerIPs")
        ),
        tags=tuple(
            _tag(item.section.only("cidr", "communities"), names) for item in spec.items("prefixAdvertisements")
        ),
    )
    return found, tuple(_left_out(ref, spec))


def _tag(item: Section, names: Mapping[str, str]) -> ExportRule:
    communities = item.require("communities").nonempty("community")
    return ExportRule(
        prefixes=(item.require("cidr").network(host_bits=True),),
        communities=normal_communities(names.get(each.text) or read_community(each) for each in communities),
    )


_ELSEWHERE = {"serviceExternalIPs": "external-ips", "serviceClusterIPs": "cluster-ips"}


def _left_out(ref: Ref, spec: Section) -> Iterator[Refusal]:
    for key, ours in _ELSEWHERE.items():
        if (given := spec.get(key)) is not None and spec.items(key):
            why = f"name these networks in bgp.announce.{ours} of the configuration: they go to all peers"
            yield Refusal(ref, "AdvertisementNotSupported", str(given.error(why)))
    mesh, port = spec.get("nodeToNodeMeshEnabled"), spec.get("listenPort")
    if mesh is not None and mesh.boolean():
        why = "nodes open no sessions with each other: see native-routing for routes to pods of other nodes"
        yield Refusal(ref, "PeeringNotSupported", str(mesh.error(why)))
    if port is not None and port.integer(1, 65535) != 179:
        why = "nodes open these sessions, and listen for none of them: let the routers be passive"
        yield Refusal(ref, "PeeringNotSupported", str(port.error(why)))


# --- BGPPeer

_REFUSED = {
    "peerSelector": "nodes open no sessions with each other: see native-routing for routes to pods of other nodes",
    "localWorkloadSelector": "there are no sessions with pods",
    "externalNetwork": "sessions in a network of their own (VRF) are not supported",
}


_KNOWN = (
    "asNumber", "birdGatewayMode", "extensions", "externalNetwork", "failureDetection", "filters", "keepaliveTime",
    "keepOriginalNextHop", "localASNumber", "localWorkloadSelector", "maxRestartTime", "nextHopMode", "node",
    "nodeSelector", "numAllowedLocalASNumbers", "password", "peerIP", "peerSelector", "reachableBy", "restartMode",
    "reversePeering", "sourceAddress", "ttlSecurity",
)  # fmt: skip


def read_peer(value: Value) -> tuple[FilteredPeer | None, tuple[Refusal, ...]]:
    """A key that Calico has not may be a misspelling of `filters` or `nodeSelector`: no peer. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section.only(*_KNOWN)
    if fault := _refused(spec):
        place, why = fault
        message = str(place.error(f"{why}; the peer is not used"))
        return None, (Refusal(Ref(meta.kind, name=meta.name), "PeerNotSupported", message),)
    peer = _peer(meta, spec)
    filters = tuple(item.name("the name of a BGPFilter") for item in spec.items("filters"))
    return FilteredPeer(peer, filters), tuple(Refusal(peer.ref, *each) for each in _in_part(spec, peer))


def _given(spec: Section, key: str) -> Value | None:
    """What stands there, if it is not as an API server fills it in."""
    place = spec.get(key)
    return None if place is None or (place.is_scalar and place.text in ("", "0", "false", "None")) else place


def _refused(spec: Section) -> tuple[Value, str] | None:
    for key, why in _REFUSED.items():
        if (place := _given(spec, key)) is not None:
            return place, why
    secret = _secret(spec)
    if secret is not None and secret.string("name") != PASSWORDS:
        return secret.value, f"this Secret is not read: put its key into the Secret {PASSWORDS}, and name that"
    return None


def _secret(spec: Section) -> Section | None:
    password = spec.section("password")
    secret = password.only("secretKeyRef").section("secretKeyRef") if password is not None else None
    return secret.only("key", "name", "optional") if secret is not None else None


def _in_part(spec: Section, peer: Peer) -> Iterator[tuple[str, str]]:
    """Reason and message of what the session goes without."""
    if spec.integer("numAllowedLocalASNumbers", 0, MAX_COUNT, 0):
        why = "paths with an AS number of the node's own are not learnt, however often it is in them"
        yield "PeeringNotSupported", str(spec.require("numAllowedLocalASNumbers").error(why))
    if (gateway := _given(spec, "reachableBy")) is not None:
        why = f"no route by {gateway.address()} is made to the peer: the node's own routes lead there"
        yield "PeeringNotSupported", str(gateway.error(why))
    mode = spec.get("restartMode")
    if mode is not None and mode.text == "LongLivedGracefulRestart":
        yield "PeeringNotSupported", str(mode.error("it is not done (RFC 9494), graceful restart alone is"))
    detection = _given(spec, "failureDetection")
    if detection is not None and peer.bfd is None:
        yield "BFDNotSupported", str(detection.error("BFD over several hops is not done: the session runs without"))


def _peer(meta: Meta, spec: Section) -> Peer:
    address, port = _address(spec.require("peerIP"))
    local_as, hops, secret = _given(spec, "localASNumber"), spec.integer("ttlSecurity", 0, MAX_HOPS, 0), _secret(spec)
    restart, keepalive = _seconds(spec, "maxRestartTime"), _seconds(spec, "keepaliveTime")
    if restart is not None and restart > MAX_RESTART_TIME:
        raise spec.require("maxRestartTime").error(f"found {restart} s, expected at most {MAX_RESTART_TIME} s")
    detection = _given(spec, "failureDetection")
    if detection is not None:
        detection.choice("BFDIfDirectlyConnected")
    has_bfd = detection is not None and hops < 2 and not address.is_link_local
    usual = Peer(address, 0, 0)
    return replace(
        usual,
        remote_as=as_number(spec.require("asNumber")),
        local_as=as_number(local_as) if local_as is not None else 0,
        port=port,
        keepalive_time=keepalive,
        password_file=_key(secret.require("key")) if secret is not None else "",
        graceful_restart_time=usual.graceful_restart_time if restart is None else restart,
        ebgp_multihop=hops > 1,
        ttl_security=hops,
        bfd=Bfd() if has_bfd else None,
        families=("IPv4",) if address.version == 4 else ("IPv6",),
        node_selectors=_nodes(spec),
        name=meta.name,
        origin=meta.origin,
    )


def _address(place: Value) -> tuple[IPAddress, int]:
    """ADDRESS, IPv4:PORT or [IPv6]:PORT."""
    text, port = place.string("an address, with a port or without"), 179
    if text.startswith("[") or text.count(":") == 1:
        text, _, number = text.rpartition(":")
        port = place.renamed(number).integer(1, 65535)
    address = place.renamed(text.removeprefix("[").removesuffix("]")).address()
    if address.is_link_local:
        raise place.error("a link-local address says nothing without an interface: write the peer as one of ours")
    return address, port


def _key(place: Value) -> str:
    """A file's name."""
    name = place.name("a key of the Secret")
    if "/" in name or "\0" in name or name in (".", ".."):
        place.expected("a key of the Secret")
    return name


def _seconds(spec: Section, key: str) -> int | None:
    """Of a duration as Go writes it; None = it is not given."""
    place = spec.get(key)
    if place is None:
        return None
    try:
        seconds = whole_seconds(parse_duration(place.string("a duration such as 90s")))
    except ValueError as error:
        raise place.error(str(error)) from error
    return seconds if seconds >= 0 else place.expected("a duration such as 90s")


def _nodes(spec: Section) -> tuple[LabelSelector, ...]:
    name, place = _given(spec, "node"), spec.get("nodeSelector")
    if name is None:
        return alternatives(place)
    if place is not None and place.text:
        raise place.error("expected either node or nodeSelector, found both")
    return (LabelSelector((), (Requirement(HOSTNAME, "In", (name.name(),)),)),)


# --- together


@dataclass(frozen=True, slots=True)
class Joined:
    """Peers as all three kinds say, and those that are not used."""

    peers: tuple[Peer, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(slots=True)
class _Draft:
    peers: list[Peer] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def is_default(ref: Ref) -> bool:
    """Whether it may be the configuration of all nodes."""
    return ref.kind == CONFIGURATION and ref.name in ("", DEFAULT)


def joined(
    configurations: Iterable[Configuration],
    peers: Iterable[FilteredPeer],
    filters: Iterable[Filter],
    *,
    unread: bool = False,
) -> Joined:
    """Of several configurations the first one counts. `unread`: there is one that cannot be read."""
    common = next(iter(configurations), None if unread else Configuration())
    by_name = {each.name: each for each in filters}
    draft = _Draft()
    for each in peers:
        if common is None:
            why = f"{CONFIGURATION} {DEFAULT} cannot be read: there is no session, as it might be of another AS"
            draft.refusals.append(Refusal(each.peer.ref, "PeerConfigMissing", f"{each.peer.origin}: {why}"))
            continue
        lacking = [name for name in each.filters if name not in by_name]
        if lacking:
            why = f"no BGPFilter {lacking[0]!r} can be used: there is no session, as it might announce too much"
            draft.refusals.append(Refusal(each.peer.ref, "PeerConfigMissing", f"{each.peer.origin}: {why}"))
        else:
            draft.peers.append(_whole(each.peer, common, [by_name[name] for name in each.filters]))
    return Joined(tuple(draft.peers), tuple(draft.refusals))


def _whole(peer: Peer, common: Configuration, filters: Iterable[Filter]) -> Peer:
    local_as = peer.local_as or common.local_as
    services: tuple[Gets, ...] = ("services",) if common.vips else ()
    kind: PeerType = "iBGP" if local_as == peer.remote_as else "eBGP"
    return replace(
        peer,
        local_as=local_as,
        ebgp_multihop=peer.ebgp_multihop and kind == "eBGP",
        gets=(*services, "pod-cidrs", "egress"),
        export=(*_vips(common.vips), *common.tags, *(rule for each in filters for rule in rules_for(each, kind))),
    )


def _vips(networks: tuple[IPNetwork, ...]) -> Iterator[ExportRule]:
    """What is in none of them does not go out; a rule is about the families of its prefixes alone."""
    if not networks:
        return
    for version, every in EVERYTHING.items():
        theirs = tuple(each for each in networks if each.version == version)
        yield ExportRule("reject", theirs or (every,), "not-in" if theirs else "in", of=("services",))
