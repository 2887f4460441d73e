"""Objects of other makers that say of pools and peers what those do not say themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from routerd.formats.foreign import metallb_advertisements
from routerd.formats.foreign.calico import bgp as calico_bgp
from routerd.formats.foreign.calico.filters import Filter
from routerd.formats.foreign.cilium import bgp as cilium_bgp
from routerd.formats.foreign.cilium.overrides import NodeOverride
from routerd.formats.foreign.cilium.peering import PeeringPolicy
from routerd.model import AddressPool, Advertisement, CommunityNames, Peer, PoolAdvertisement, Refusal
from routerd.refs import Ref

T = TypeVar("T")
ADVERTISEMENT = metallb_advertisements.KIND  # one of these that cannot be read announces nothing, and opens nothing


@dataclass(frozen=True, slots=True)
class Together:
    """Pools as they are announced, `ways` of them those that Cilium's objects add; and Cilium's and Calico's peers."""

    pools: Mapping[str, AddressPool]
    peers: tuple[Peer, ...]
    ways: tuple[Advertisement, ...]
    refusals: tuple[Refusal, ...]


def together(objects: Iterable[object], pools: Mapping[str, AddressPool], *, nothing: Iterable[Ref]) -> Together:
    """`nothing`: documents of which no object was made, as far as they say whose they are."""
    objects, nothing = tuple(objects), tuple(nothing)
    unread = any(each.kind == ADVERTISEMENT for each in nothing)
    announced = metallb_advertisements.advertised(
        pools, _of(objects, PoolAdvertisement), _of(objects, CommunityNames), unread=unread
    )
    theirs = cilium_bgp.joined(
        _of(objects, cilium_bgp.ClusterConfig),
        _of(objects, cilium_bgp.PeerConfig),
        _of(objects, cilium_bgp.Advertised),
        _of(objects, NodeOverride),
        nothing=nothing,
    )
    calicos = calico_bgp.joined(
        _of(objects, calico_bgp.Configuration),
        _of(objects, calico_bgp.FilteredPeer),
        _of(objects, Filter),
        unread=any(map(calico_bgp.is_default, nothing)),
    )
    policies = _of(objects, PeeringPolicy)
    ways = (*theirs.ways, *(way for policy in policies for way in policy.ways))
    whole = cilium_bgp.with_ways(announced.pools, ways)
    refusals = (*announced.refusals, *theirs.refusals, *whole.refusals, *calicos.refusals)
    peers = (*theirs.peers, *(peer for policy in policies for peer in policy.peers), *calicos.peers)
    return Together(whole.pools, peers, ways, refusals)


def _of(objects: tuple[object, ...], kind: type[T]) -> list[T]:
    return [each for each in objects if isinstance(each, kind)]
