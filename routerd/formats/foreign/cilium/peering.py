"""Cilium's CiliumBGPPeeringPolicy (cilium.io/v2alpha1), which came before its other BGP kinds. Pure.

It says peers and what they get in one object. What we cannot do is refused by name, as a value: a neighbor that could
not have its session costs itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bgp.path import normal_communities
from routerd.formats.document import Section, Value
from routerd.formats.foreign.cilium.bgp import LOCAL_PREF, read_communities, read_connect_retry, read_families
from routerd.formats.meta import label_selector, read_meta
from routerd.model import Advertisement, Gets, IPAddress, IPFamily, Peer, Refusal
from routerd.refs import Ref
from routerd.selectors import LabelSelector

VIPS, PODS = "CiliumLoadBalancerIPPool", ("PodCIDR", "CiliumPodIPPool")  # of what attributes are
BY_ANNOUNCE = {"ExternalIP": "external-ips", "ClusterIP": "cluster-ips"}


@dataclass(frozen=True, slots=True)
class PeeringPolicy:
    """Its peers, and how VIPs of every pool are announced to them."""

    ref: Ref
    peers: tuple[Peer, ...]
    ways: tuple[Advertisement, ...]


def read_peering_policy(value: Value) -> tuple[PeeringPolicy, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    ref = Ref(meta.kind, name=meta.name)
    nodes = spec.get("nodeSelector")
    selectors = (label_selector(nodes, strict=False),) if nodes is not None and not nodes.is_null else ()
    peers: list[Peer] = []
    ways: list[Advertisement] = []
    refusals: list[Refusal] = []
    for router in (item.section for item in spec.items("virtualRouters")):
        refusals += _told(ref, "AdvertisementNotSupported", _left_out(router))
        for item in router.items("neighbors"):
            if faults := [*_told(ref, "PeerNotSupported", _not_done(item.section))]:
                refusals += faults
                continue
            refusals += _told(ref, "AdvertisementNotSupported", _unheeded(item.section))
            retry, untrue = read_connect_retry(ref, item.section)
            refusals += untrue
            peer = replace(_peer(meta.name, router, item, selectors), connect_retry=retry)
            peers.append(peer)
            ways += _ways(router, item.section, peer)
    return PeeringPolicy(ref, tuple(peers), tuple(ways)), tuple(refusals)


def _told(ref: Ref, reason: str, faults: Iterable[tuple[Value, str]]) -> Iterator[Refusal]:
    return (Refusal(ref, reason, str(place.error(why))) for place, why in faults)


def _is_given(found: Value | None) -> bool:
    return found is not None and not found.is_null and not (found.is_scalar and not found.text)


def _left_out(router: Section) -> Iterator[tuple[Value, str]]:
    pools = router.get("podIPPoolSelector")
    if pools is not None and _is_given(pools):
        yield pools, "pools of pods are not selected: blocks of nodes are pod CIDRs, which exportPodCIDR is for"
    for kind in router.items("serviceAdvertisements"):
        if kind.text in BY_ANNOUNCE:
            key = BY_ANNOUNCE[kind.text]
            yield kind, f"name their networks in bgp.announce.{key} of the configuration: they go to all peers"


def _not_done(neighbor: Section) -> Iterator[tuple[Value, str]]:
    secret = neighbor.get("authSecretRef")
    if secret is not None and _is_given(secret):
        why = "this Secret is not read: write the peer in the BGP ConfigMap, with a password-file"
        yield secret, f"{why}; the neighbor is not used"
    number = neighbor.require("peerASN")
    if number.text == "0":
        yield number, "the AS number is not learnt from the router: give peerASN; the neighbor is not used"


def _unheeded(neighbor: Section) -> Iterator[tuple[Value, str]]:
    for item in neighbor.items("advertisedPathAttributes"):
        kind, selector = item.section.require("selectorType"), item.section.get("selector")
        if kind.choice(VIPS, *PODS) in PODS:
            yield kind, "pod CIDRs are announced without attributes of their own"
        elif selector is not None and not _takes_all(selector):
            yield selector, "attributes of some pools alone are not done: say them in the advertisements of these pools"


def _takes_all(selector: Value | None) -> bool:
    return selector is None or selector.is_null or label_selector(selector, strict=False).is_empty


def _address(neighbor: Section) -> IPAddress:
    """As a network of one address, or as it is."""
    given = neighbor.require("peerAddress")
    head, slash, length = given.text.partition("/")
    address = given.renamed(head).address()
    if slash and length != str(address.max_prefixlen):
        raise given.error(f"found {given.text}, expected one address, {address}/{address.max_prefixlen}")
    return address


def _peer(policy: str, router: Section, item: Value, nodes: tuple[LabelSelector, ...]) -> Peer:
    neighbor, local_as = item.section, router.require("localASN").integer(1, 2**32 - 1)
    remote_as = neighbor.require("peerASN").integer(1, 2**32 - 1)
    address, restart = _address(neighbor), neighbor.section("gracefulRestart") or Section.empty(item)
    hold_time = neighbor.integer("holdTimeSeconds", 3, 65535, 90)
    keepalive = neighbor.integer("keepAliveTimeSeconds", 1, 65535, min(30, hold_time))
    if keepalive > hold_time:
        raise neighbor.require("keepAliveTimeSeconds").error(
            f"found {keepalive} s, expected at most the hold time, {hold_time} s"
        )
    pods: tuple[Gets, ...] = ("pod-cidrs",) if router.boolean("exportPodCIDR", False) else ()
    families = dict(read_families(neighbor))
    return Peer(
        address=address,
        remote_as=remote_as,
        local_as=local_as,
        port=neighbor.integer("peerPort", 1, 65535, 179),
        hold_time=hold_time,
        keepalive_time=keepalive if "keepAliveTimeSeconds" in neighbor.entries else None,
        ebgp_multihop=neighbor.integer("eBGPMultihopTTL", 1, 255, 1) > 1 and remote_as != local_as,
        graceful_restart_time=restart.integer("restartTimeSeconds", 1, 4095, 120),
        families=_in_order(families),
        gets=(*pods, "egress"),
        node_selectors=nodes,
        name=f"{policy}/{local_as}/{address}",
        origin=item.origin,
    )


def _in_order(families: Iterable[IPFamily]) -> tuple[IPFamily, ...]:
    order: tuple[IPFamily, ...] = ("IPv4", "IPv6")
    return tuple(family for family in order if family in families)


def _ways(router: Section, neighbor: Section, peer: Peer) -> Iterator[Advertisement]:
    """Nothing without a selector of Services; attributes of several entries go together."""
    selector, kinds = router.get("serviceSelector"), [kind.text for kind in router.items("serviceAdvertisements")]
    if selector is None or selector.is_null or "LoadBalancerIP" not in (kinds or ["LoadBalancerIP"]):
        return
    items = [item.section for item in neighbor.items("advertisedPathAttributes")]
    said = [one for one in items if one.string("selectorType") == VIPS and _takes_all(one.get("selector"))]
    yield Advertisement(
        local_pref=max((one.integer("localPreference", 0, 2**32 - 1, LOCAL_PREF) for one in said), default=LOCAL_PREF),
        communities=normal_communities(
            community for one in said for community in read_communities(one.section("communities"))
        ),
        peers=(peer.label,),
        services=(label_selector(selector, strict=False),),
    )
