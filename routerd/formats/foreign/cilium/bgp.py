"""Cilium's CiliumBGPClusterConfig, PeerConfig and Advertisement (cilium.io/v2). Pure.

A cluster configuration names peers, each of these a peer configuration, and that selects advertisements by label. So a
peer gets what its advertisements say, and egress IPs. What we cannot do is refused by name, as a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from bgp.path import WELL_KNOWN_COMMUNITIES, normal_communities
from routerd.formats.document import Section, Value
from routerd.formats.foreign.cilium.overrides import NodeOverride, closed_by, of_nobody
from routerd.formats.legacy_bgp.times import MAX_CONNECT_RETRY
from routerd.formats.meta import label_selector, read_meta
from routerd.formats.native import read_community
from routerd.model import (
    AddressPool,
    Advertisement,
    Gets,
    IPFamily,
    Labels,
    Peer,
    Refusal,
)
from routerd.refs import Ref
from routerd.selectors import LabelSelector

CRD_RETRY = 120  # seconds; what an API server writes where an object says no connectRetryTimeSeconds
LOCAL_PREF = 100  # what is sent where nothing is said, as by every speaker (RFC 4271, section 5.1.5, leaves it open)
_FAMILIES: Mapping[tuple[str, str], IPFamily] = {("ipv4", "unicast"): "IPv4", ("ipv6", "unicast"): "IPv6"}
_WELL_KNOWN = {  # IANA's registry, beside those that have a name here
    "internet": "0:0",
    "planned-shut": WELL_KNOWN_COMMUNITIES["graceful-shutdown"],
    "accept-own": "65535:1",
    "route-filter-translated-v4": "65535:2",
    "route-filter-v4": "65535:3",
    "route-filter-translated-v6": "65535:4",
    "route-filter-v6": "65535:5",
    "llgr-stale": "65535:6",
    "no-llgr": "65535:7",
    **WELL_KNOWN_COMMUNITIES,
}


@dataclass(frozen=True, slots=True)
class ClusterPeer:
    """A peer without what its configuration says of it. `config` "" = it names none."""

    peer: Peer
    config: str
    instance: str = ""
    own_name: str = ""  # within the instance


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    ref: Ref
    peers: tuple[ClusterPeer, ...]


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """`families`: which advertisements each carries, None = none. Times in seconds."""

    name: str = ""
    port: int = 179
    source_interface: str = ""
    hold_time: int = 90
    keepalive_time: int | None = None
    connect_retry: int = 0
    ebgp_multihop: bool = False
    graceful_restart_time: int = 120
    families: tuple[tuple[IPFamily, LabelSelector | None], ...] = (("IPv4", None), ("IPv6", None))


@dataclass(frozen=True, slots=True)
class Advertised:
    """`ways`: how addresses of Services are announced; `pod_cidrs`: whether those of pods are, too."""

    ref: Ref
    labels: Labels
    ways: tuple[Advertisement, ...]
    pod_cidrs: bool = False


# --- peers


def read_cluster_config(value: Value) -> tuple[ClusterConfig, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    nodes = spec.get("nodeSelector")
    selectors = (label_selector(nodes, strict=False),) if nodes is not None else ()
    peers: list[ClusterPeer] = []
    refusals: list[Refusal] = []
    for instance in spec.items("bgpInstances"):
        for item in instance.section.items("peers"):
            name = f"{meta.name}/{instance.section.require('name').name()}/{item.section.require('name').name()}"
            if fault := _not_done(item.section):
                place, why = fault
                refusals.append(
                    Refusal(
                        Ref(meta.kind, name=meta.name),
                        "PeerNotSupported",
                        str(place.error(f"{why}; peer {name} is not used")),
                    )
                )
                continue
            peers.append(_cluster_peer(name, instance.section, item, selectors))
    return ClusterConfig(Ref(meta.kind, name=meta.name), tuple(peers)), tuple(refusals)


def _not_done(peer: Section) -> tuple[Value, str] | None:
    discovery, number = peer.get("autoDiscovery"), peer.get("peerASN")
    if discovery is not None and not discovery.is_null:
        return discovery, "routers are not discovered: name the router with peerAddress"
    if number is None or number.text == "0":
        return number or peer.value, "the AS number is not learnt from the router: give peerASN"
    return None


def _cluster_peer(name: str, instance: Section, item: Value, selectors: tuple[LabelSelector, ...]) -> ClusterPeer:
    reference = item.section.section("peerConfigRef")
    peer = Peer(
        address=item.section.require("peerAddress").address(),
        remote_as=item.section.require("peerASN").integer(1, 2**32 - 1),
        local_as=instance.require("localASN").integer(1, 2**32 - 1),
        node_selectors=selectors,
        name=name,
        origin=item.origin,
    )
    return ClusterPeer(
        peer,
        reference.require("name").name() if reference is not None else "",
        instance.require("name").name(),
        item.section.require("name").name(),
    )


def read_peer_config(value: Value) -> tuple[PeerConfig | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.section("spec") or Section.empty(value)
    secret = spec.get("authSecretRef")
    if secret is not None and not secret.is_null and secret.text:
        why = "this Secret is not read: write the peer in the BGP ConfigMap, with a password-file"
        message = str(secret.error(f"{why}; peers with this configuration are not used"))
        return None, (Refusal(Ref(meta.kind, name=meta.name), "PeerNotSupported", message),)
    timers, transport = (spec.section(key) or Section.empty(spec.value) for key in ("timers", "transport"))
    restart = spec.section("gracefulRestart") or Section.empty(spec.value)
    hold_time = timers.integer("holdTimeSeconds", 3, 65535, 90)
    keepalive = timers.integer("keepAliveTimeSeconds", 1, 65535, min(30, hold_time))
    if keepalive > hold_time:
        raise timers.require("keepAliveTimeSeconds").error(
            f"found {keepalive} s, expected at most the hold time, {hold_time} s"
        )
    retry, refusals = read_connect_retry(Ref(meta.kind, name=meta.name), timers)
    return PeerConfig(
        name=meta.name,
        port=transport.integer("peerPort", 1, 65535, 179),
        source_interface=transport.string("sourceInterface"),
        hold_time=hold_time,
        keepalive_time=keepalive if "keepAliveTimeSeconds" in timers.entries else None,
        connect_retry=retry,
        ebgp_multihop=spec.integer("ebgpMultihop", 1, 255, 1) > 1,
        graceful_restart_time=restart.integer("restartTimeSeconds", 1, 4095, 120),
        families=read_families(spec),
    ), refusals


def read_connect_retry(ref: Ref, timers: Section) -> tuple[int, tuple[Refusal, ...]]:
    """Seconds, 0 = not said. Raises InputError."""
    asked = timers.integer("connectRetryTimeSeconds", 0, 2**31 - 1, 0)
    if asked <= MAX_CONNECT_RETRY:
        return asked if asked != CRD_RETRY else 0, ()
    why = f"found {asked} s, expected at most {MAX_CONNECT_RETRY} s, which are used"
    message = str(timers.require("connectRetryTimeSeconds").error(why))
    return MAX_CONNECT_RETRY, (Refusal(ref, "PeeringNotSupported", message),)


def read_families(spec: Section) -> tuple[tuple[IPFamily, LabelSelector | None], ...]:
    found: dict[IPFamily, LabelSelector | None] = {}
    for item in spec.items("families"):
        names = item.section.string("afi", "ipv4"), item.section.string("safi", "unicast")
        if names not in _FAMILIES:
            raise item.error(f"found {'/'.join(names)}, expected ipv4/unicast or ipv6/unicast")
        selector = item.section.get("advertisements")
        found[_FAMILIES[names]] = label_selector(selector, strict=False) if selector is not None else None
    return tuple(found.items()) or PeerConfig().families


# --- advertisements


def read_advertisement(value: Value) -> tuple[Advertised, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    ref = Ref(meta.kind, name=meta.name)
    items = spec.items("advertisements")
    faults = [fault for item in items for fault in _left_out(item.section)]
    refusals = tuple(Refusal(ref, "AdvertisementNotSupported", str(place.error(why))) for place, why in faults)
    ways = tuple(way for item in items for way in _ways(item.section))
    pod_cidrs = any(item.section.string("advertisementType") == "PodCIDR" for item in items)
    return Advertised(ref, meta.labels, ways, pod_cidrs), refusals


def _left_out(item: Section) -> Iterator[tuple[Value, str]]:
    kind = item.require("advertisementType")
    attributes = item.get("attributes")
    if kind.text not in ("Service", "PodCIDR"):
        yield kind, f"{kind.text} is not announced: expected Service or PodCIDR"
    if kind.text == "PodCIDR" and attributes is not None:
        yield attributes, "pod CIDRs are announced without attributes of their own"
    for address in (item.section("service") or Section.empty(item.value)).items("addresses"):
        if address.text in ("ExternalIP", "ClusterIP"):
            key = "external-ips" if address.text == "ExternalIP" else "cluster-ips"
            yield address, f"name their networks in bgp.announce.{key} of the configuration: they go to all peers"


def _ways(item: Section) -> Iterator[Advertisement]:
    """Nothing is announced without a selector: there is a difference between none and {}."""
    service, selector = item.section("service"), item.get("selector")
    if item.string("advertisementType") != "Service" or service is None or selector is None:
        return
    if "LoadBalancerIP" not in [address.text for address in service.items("addresses")]:
        return
    attributes = item.section("attributes") or Section.empty(item.value)
    yield Advertisement(
        aggregation_length=service.integer("aggregationLengthIPv4", 0, 32, 32),
        aggregation_length_v6=service.integer("aggregationLengthIPv6", 0, 128, 128),
        local_pref=attributes.integer("localPreference", 0, 2**32 - 1, LOCAL_PREF),
        communities=normal_communities(read_communities(attributes.section("communities"))),
        services=(label_selector(selector, strict=False),),
    )


def read_communities(section: Section | None) -> Iterator[str]:
    if section is None:
        return
    for item in section.items("standard"):
        yield _standard(item)
    for item in section.items("wellKnown"):
        yield _WELL_KNOWN[item.choice(*_WELL_KNOWN)]
    for item in section.items("large"):
        yield read_community(item) if item.text.count(":") == 2 else item.expected("a large community, A:B:C")


def _standard(item: Value) -> str:
    """As two numbers of 16 bits, or as one of 32."""
    if ":" in item.text:
        return read_community(item) if item.text.count(":") == 1 else item.expected("a community, A:B")
    number = item.renamed(item.text).integer(0, 2**32 - 1)  # a string with a number is one
    return f"{number >> 16}:{number & 0xFFFF}"


# --- together


@dataclass(frozen=True, slots=True)
class Joined:
    """Peers as all three kinds say, how pools are announced to them, and what of it is not done."""

    peers: tuple[Peer, ...] = ()
    ways: tuple[Advertisement, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(slots=True)
class _Draft:
    peers: list[Peer] = field(default_factory=list)
    ways: dict[Advertisement, list[str]] = field(default_factory=dict)  # labels of peers that get what goes this way
    refusals: list[Refusal] = field(default_factory=list)


def joined(
    clusters: Iterable[ClusterConfig],
    configs: Iterable[PeerConfig],
    advertised: Iterable[Advertised],
    overrides: Iterable[NodeOverride] = (),
    *,
    nothing: Iterable[Ref] = (),
) -> Joined:
    """`nothing`: documents of which no object was made: an override among them closes the sessions of its node."""
    by_name = {"": PeerConfig(), **{each.name: each for each in configs}}
    advertised, overrides = tuple(advertised), tuple(overrides)
    closing = tuple(closed_by(nothing, overrides))
    peers = tuple(peer for cluster in clusters for peer in cluster.peers)
    draft = _Draft(refusals=[*of_nobody(overrides, {(each.instance, each.own_name) for each in peers})])
    for each in peers:
        config = by_name.get(each.config)
        if config is None:
            message = f"{each.peer.origin}: no CiliumBGPPeerConfig {each.config!r} can be used: there is no session"
            draft.refusals.append(Refusal(each.peer.ref, "PeerConfigMissing", message))
        else:
            changes = (one for override in overrides for one in override.of(each.instance, each.own_name))
            _join(draft, replace(each.peer, overrides=(*closing, *changes)), config, advertised)
    ways = tuple(replace(way, peers=tuple(labels)) for way, labels in draft.ways.items())
    return Joined(tuple(draft.peers), ways, tuple(draft.refusals))


@dataclass(frozen=True, slots=True)
class Pools:
    pools: Mapping[str, AddressPool]
    refusals: tuple[Refusal, ...] = ()


def with_ways(pools: Mapping[str, AddressPool], ways: tuple[Advertisement, ...]) -> Pools:
    """Pools of every kind, announced in these ways, too, but for aggregates that are more than a block."""
    if not ways:
        return Pools(pools)
    found, refusals = {}, []
    for name, pool in pools.items():
        faults = {way: fault for way in ways if (fault := _too_wide(way, pool))} if pool.protocol == "bgp" else {}
        taken = tuple(way for way in ways if way not in faults) if pool.protocol == "bgp" else ()
        found[name] = replace(pool, advertisements=(*pool.advertisements, *taken)) if taken else pool
        for way, fault in faults.items():
            message = f"{pool.origin}: {fault}: it is not announced to {', '.join(way.peers)}"
            refusals.append(Refusal(Ref("AddressPool", name=name), "InvalidAggregation", message))
    return Pools(found, tuple(refusals))


def _too_wide(way: Advertisement, pool: AddressPool) -> str:
    for block in pool.blocks:
        length = way.aggregation_length if block.version == 4 else way.aggregation_length_v6
        if length < block.prefixlen:
            return f"an aggregate /{length} of a CiliumBGPAdvertisement would be more than the block {block}"
    return ""


def _join(draft: _Draft, peer: Peer, config: PeerConfig, advertised: tuple[Advertised, ...]) -> None:
    taken = [
        {number for number, each in enumerate(advertised) if selector is not None and selector.matches(each.labels)}
        for _, selector in config.families
    ]
    of_all = set.intersection(*taken)
    for number in sorted(set.union(*taken) - of_all):
        about = f"{peer.origin}: {advertised[number].ref}"
        message = f"{about} is for one family of the session alone, which is not done: it is left out"
        draft.refusals.append(Refusal(peer.ref, "AdvertisementNotSupported", message))
    mine = [advertised[number] for number in sorted(of_all)]
    for way in (way for each in mine for way in each.ways):
        labels = draft.ways.setdefault(way, [])
        labels += [peer.label] if peer.label not in labels else []
    pods: tuple[Gets, ...] = ("pod-cidrs",) if any(each.pod_cidrs for each in mine) else ()
    local = {peer.local_as, *(each.local_as for each in peer.overrides)}  # hops of iBGP are any number
    draft.peers.append(
        replace(
            peer,
            port=config.port,
            source_interface=config.source_interface,
            hold_time=config.hold_time,
            keepalive_time=config.keepalive_time,
            connect_retry=config.connect_retry,
            ebgp_multihop=config.ebgp_multihop and peer.remote_as not in local,
            graceful_restart_time=config.graceful_restart_time,
            families=tuple(family for family in ("IPv4", "IPv6") if family in dict(config.families)),
            gets=(*pods, "egress"),
        )
    )
