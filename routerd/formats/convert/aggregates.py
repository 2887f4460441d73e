"""Aggregates of MetalLB's that a pool of ours cannot have: there a range counts whole, here block by block. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from routerd.errors import InputError
from routerd.formats.compose import documents
from routerd.formats.core import expand_lists
from routerd.formats.document import Source, Value
from routerd.formats.foreign.metallb_advertisements import takes, too_wide
from routerd.model import AddressPool, Origin, PoolAdvertisement

_KEYS = {4: "aggregationLength", 6: "aggregationLengthV6"}


def too_wide_as_ours(
    pool: AddressPool, advertisements: Iterable[PoolAdvertisement], texts: Mapping[str, str]
) -> Iterator[str]:
    """`pool` as MetalLB has it. Each at the key of its advertisement, with what to write. `texts` by file name."""
    for one in advertisements if pool.labels is not None else ():
        if not takes(one, pool) or too_wide(one.way, pool):
            continue
        for version, length in ((4, one.way.aggregation_length), (6, one.way.aggregation_length_v6)):
            longer = [each for each in pool.blocks if each.version == version and each.prefixlen > length]
            if longer:
                needed = max(each.prefixlen for each in longer)
                why = (
                    f"/{length} would announce more than {longer[0]} of pool {pool.name} ({pool.origin}), whose ranges "
                    f"are single blocks as ours: write {needed}, or the pool's spec.addresses as networks of /{length}"
                )
                place = _at(texts, one.origin, "spec", _KEYS[version])
                yield str(place.error(why)) if place is not None else f"{one.origin}: {one.ref}: {why}"


def _at(texts: Mapping[str, str], origin: Origin, *path: str) -> Value | None:
    """A key of the object that begins there."""
    try:
        values = [each for text in documents(texts[origin.file], Source(origin.file)) for each in expand_lists(text)]
    except (InputError, KeyError):
        return None
    return next((each.section.at(*path) for each in values if each.origin == origin), None)
