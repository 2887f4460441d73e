"""MetalLB's IPAddressPool (metallb.io/v1beta1), read as MetalLB reads it. Pure.

What we cannot do is refused by name, as a value. Unknown fields are ignored, as the API server prunes them. How it is
announced other objects say; without any of them it is announced as one of ours that says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from routerd.formats.document import Section, Value
from routerd.formats.legacy_bgp.golang import parse_addresses
from routerd.formats.meta import label_selector, read_meta
from routerd.formats.native import unusable
from routerd.model import NAMESPACE_NAME_LABEL, AddressPool, IPNetwork, LabelSelector, Refusal, ServiceSelection
from routerd.refs import Ref
from routerd.selectors import Requirement

Fault = tuple[Value, str, str]  # place, reason and message of what cannot be done
PRIORITIES = 2**63  # of an int64 of the API; its numbers are lower first, ours are higher first
FIRST = 1_000_000  # priority of its number 1: the highest that an AddressPool can have


def read_ip_address_pool(value: Value) -> tuple[AddressPool | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    blocks = _blocks(spec.require("addresses"))
    allocation = spec.section("serviceAllocation") or Section.empty(spec.value)
    about = Ref(meta.kind, meta.namespace_or_default, meta.name)
    faults = (*_unusable(blocks), *_limits(allocation))
    if faults:
        refusals = (Refusal(about, reason, str(place.error(message))) for place, reason, message in faults)
        return None, tuple(dict.fromkeys(refusals))  # a range is several networks
    pool = AddressPool(
        name=meta.name,
        blocks=tuple(network for _, network in blocks),
        auto_assign=spec.boolean("autoAssign", True),
        avoid_buggy_ips=spec.boolean("avoidBuggyIPs", False),
        priority=_priority(allocation),
        services=_services(allocation),
        labels=meta.labels,
        ranges=_ranges(blocks),
        origin=meta.origin,
    )
    return pool, ()


def _ranges(blocks: list[tuple[Value, IPNetwork]]) -> tuple[tuple[IPNetwork, ...], ...]:
    """Networks of one entry together."""
    by_entry = groupby(blocks, key=lambda each: each[0].path)
    return tuple(tuple(network for _, network in entry) for _, entry in by_entry)


def _blocks(addresses: Value) -> list[tuple[Value, IPNetwork]]:
    """Networks and where they stand."""
    found: list[tuple[Value, IPNetwork]] = []
    for item in addresses.nonempty("address range"):
        for network in _networks(item):
            for _, other in found:
                if other.version == network.version and other.overlaps(network):
                    raise item.error(f"{network} overlaps with {other} of the same pool")
            found.append((item, network))
    return found


def _networks(item: Value) -> tuple[IPNetwork, ...]:
    """A CIDR, whose host bits are cleared, or a range START-END."""
    try:
        networks = parse_addresses(item.string("a CIDR or a range START-END"), refuse_backwards=True)
    except ValueError as error:
        raise item.error(str(error)) from error
    if not networks:
        raise item.error("the range goes from one address family to the other")
    return networks


def _unusable(blocks: list[tuple[Value, IPNetwork]]) -> Iterator[Fault]:
    for place, network in blocks:
        if fault := unusable(network.network_address) or unusable(network.broadcast_address):
            yield (
                place,
                "InvalidAddresses",
                f"found {place.found()}, which cannot be in a pool: {fault}; the pool is not used",
            )


def _limits(allocation: Section) -> Iterator[Fault]:
    number = _number(allocation)
    if not 0 <= number <= FIRST:
        why = "a negative priority has no order" if number < 0 else f"a priority of more than {FIRST} is not kept apart"
        yield allocation.require("priority"), "InvalidPriority", f"{why}; the pool is not used"


def _services(allocation: Section) -> tuple[ServiceSelection, ...] | None:
    """In a namespace that is named or selected, if any is, and with labels that are selected, if any are."""
    names = tuple(item.name() for item in allocation.items("namespaces"))
    named = LabelSelector((), (Requirement(NAMESPACE_NAME_LABEL, "In", names),))
    selected = [label_selector(item, strict=False) for item in allocation.items("namespaceSelectors")]
    services = [label_selector(item, strict=False) for item in allocation.items("serviceSelectors")]
    namespaces = [named, *selected] if names else selected
    if not namespaces and not services:
        return None
    return tuple(ServiceSelection(each, place) for place in namespaces or (None,) for each in services or (None,))


def _number(allocation: Section) -> int:
    return allocation.integer("priority", -PRIORITIES, PRIORITIES - 1, 0)


def _priority(allocation: Section) -> int:
    """The lowest number is the first; 0 is none, and comes last, among those of ours that give none either."""
    number = _number(allocation)
    return FIRST + 1 - number if number else 0
