"""MetalLB's BGPAdvertisement and Community (metallb.io/v1beta1): how its pools are announced. Pure.

A pool of MetalLB's is announced as all advertisements say that take it, and by nothing else once there is one of them.
One that names a community which nobody knows is not used: without it, its addresses might go where they must not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from bgp.path import normal_communities
from routerd.formats.document import Section, Value
from routerd.formats.meta import label_selector, read_meta
from routerd.formats.native import read_community
from routerd.model import (
    AddressPool,
    Advertisement,
    CommunityName,
    CommunityNames,
    PoolAdvertisement,
    Refusal,
)
from routerd.refs import Ref
from routerd.selectors import LabelSelector

KIND = "BGPAdvertisement"
_LARGE = "large:"  # before the three numbers of RFC 8092


def read_bgp_advertisement(value: Value) -> PoolAdvertisement:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.section("spec") or Section.empty(value)
    return PoolAdvertisement(
        Ref(meta.kind, meta.namespace_or_default, meta.name),
        Advertisement(
            aggregation_length=spec.integer("aggregationLength", 1, 32, 32),
            aggregation_length_v6=spec.integer("aggregationLengthV6", 1, 128, 128),
            local_pref=spec.integer("localPref", 0, 2**32 - 1, 0),
            communities=tuple(_value(item) or item.text for item in spec.items("communities")),
            peers=tuple(item.name() for item in spec.items("peers")),
            node_selectors=_selectors(spec, "nodeSelectors"),
            services=_selectors(spec, "serviceSelectors"),
        ),
        pools=tuple(item.name() for item in spec.items("ipAddressPools")),
        pool_selectors=_selectors(spec, "ipAddressPoolSelectors"),
        origin=value.origin,
    )


def _selectors(spec: Section, key: str) -> tuple[LabelSelector, ...]:
    return tuple(label_selector(item, strict=False) for item in spec.items(key))


def _value(item: Value) -> str:
    """A community in normal form; "" if it is a name, of which nothing is known here. Raises InputError."""
    text = item.name("a community")
    return _community(item) if ":" in text else ""


def _community(item: Value) -> str:
    text = item.name("a community")
    if not text.startswith(_LARGE):
        return read_community(item)
    numbers = text.removeprefix(_LARGE)
    return read_community(item.renamed(numbers)) if numbers.count(":") == 2 else item.expected("large:A:B:C")


def read_communities(value: Value) -> CommunityNames:
    """A Community. Raises InputError."""
    meta, spec = read_meta(value), value.section.section("spec") or Section.empty(value)
    about = Ref(meta.kind, meta.namespace_or_default, meta.name)
    items = [item.section for item in spec.items("communities")]
    return CommunityNames(
        about,
        tuple(CommunityName(item.require("name").name(), _community(item.require("value"))) for item in items),
        value.origin,
    )


# --- pools as advertisements say


@dataclass(frozen=True, slots=True)
class Advertised:
    """Pools as they are announced, and what of the advertisements is not done."""

    pools: Mapping[str, AddressPool]
    refusals: tuple[Refusal, ...] = ()


def advertised(
    pools: Mapping[str, AddressPool],
    advertisements: Iterable[PoolAdvertisement],
    names: Iterable[CommunityNames],
    *,
    unread: bool = False,
) -> Advertised:
    """Pools that advertisements announce, as those say that take them. `unread`: there is one that cannot be read."""
    advertisements = tuple(advertisements)
    if not any(pool.labels is not None for pool in pools.values()):
        return Advertised(pools)
    if not advertisements and not unread:
        return Advertised({name: replace(pool, labels=None, ranges=()) for name, pool in pools.items()})
    refusals: list[Refusal] = []
    known = _known(names, refusals)
    usable = [each for each in (_resolved(one, known, refusals) for one in advertisements) if each is not None]
    refusals += [no for each in usable for no in _unknown_pools(each, pools)]
    whole = {name: _announced(pool, usable, refusals) for name, pool in pools.items()}
    return Advertised(whole, tuple(refusals))


def _known(names: Iterable[CommunityNames], refusals: list[Refusal]) -> dict[str, str]:
    known: dict[str, str] = {}
    for each in names:
        for one in each.names:
            if known.setdefault(one.name, one.community) != one.community:
                message = f"{each.origin}: {one.name} is {known[one.name]} already, and not {one.community}"
                refusals.append(Refusal(each.ref, "Duplicate", message))
    return known


def _resolved(one: PoolAdvertisement, known: Mapping[str, str], refusals: list[Refusal]) -> PoolAdvertisement | None:
    """With communities for their names."""
    for name in one.way.communities:
        if ":" not in name and name not in known:
            message = f"{one.origin}: no Community has the name {name!r}; the advertisement is not used"
            refusals.append(Refusal(one.ref, "UnknownCommunity", message))
            return None
    communities = normal_communities(known.get(name, name) for name in one.way.communities)
    return replace(one, way=replace(one.way, communities=communities))


def _unknown_pools(one: PoolAdvertisement, pools: Mapping[str, AddressPool]) -> Iterator[Refusal]:
    theirs = {name for name, pool in pools.items() if pool.labels is not None}
    for name in one.pools:
        if name not in theirs:
            yield Refusal(one.ref, "UnknownPool", f"{one.origin}: there is no IPAddressPool {name!r}")


def _announced(pool: AddressPool, advertisements: Iterable[PoolAdvertisement], refusals: list[Refusal]) -> AddressPool:
    if pool.labels is None:
        return pool
    ways: list[Advertisement] = []
    for one in advertisements:
        if not takes(one, pool):
            continue
        if fault := too_wide(one.way, pool):
            message = f"{one.origin}: {fault}; it is not used for pool {pool.name}"
            refusals.append(Refusal(one.ref, "InvalidAggregation", message))
        else:
            ways.append(one.way)
    return replace(pool, advertisements=tuple(dict.fromkeys(ways)), labels=None, ranges=())


def takes(one: PoolAdvertisement, pool: AddressPool) -> bool:
    """Whether it is about the pool, by name or label."""
    if not one.pools and not one.pool_selectors:
        return True
    return pool.name in one.pools or any(each.matches(pool.labels or {}) for each in one.pool_selectors)


def too_wide(way: Advertisement, pool: AddressPool) -> str:
    """What an aggregate would announce beyond the pool; a range counts by its shortest prefix, as with MetalLB."""
    for blocks in pool.ranges:
        length = way.aggregation_length if blocks[0].version == 4 else way.aggregation_length_v6
        if length < min(block.prefixlen for block in blocks):
            return f"/{length} would announce more than {blocks[0].network_address}-{blocks[-1].broadcast_address}"
    return ""
