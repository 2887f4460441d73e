"""What is made of the cluster and of policies as map entries and in nft's words, kept from plan to plan. Pure.

There are as many hosts as services, and policies of thousands of networks; a network's key and text are dear. So both
are made for what changed, and a value that was given out stays as it was. A new one gives the same at the price of a
first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from bpf import layout
from egress.entries import NOBODYS, OF_THE_LINK, KeptSets, MapEntries
from egress.memo import Made
from egress.policy import VERSIONS, IPNetwork

Head = tuple[int, int]  # IP version, and an address without its last 8 bits
HOST_BITS = 8  # networks of more are few; the others are merged with their neighbours only


@dataclass(slots=True)
class Places:
    """The `cluster` map (`entries.places`)."""

    entries: MapEntries = field(default_factory=dict)
    _networks: frozenset[IPNetwork] | None = None

    def update(self, networks: frozenset[IPNetwork]) -> MapEntries:
        if networks is self._networks:
            return self.entries
        before = self._networks
        gone = before - networks if before is not None else frozenset(NOBODYS)
        added = networks - before if before is not None else networks | frozenset(OF_THE_LINK)
        entries = dict(self.entries)
        for network in gone - frozenset(OF_THE_LINK):
            entries.pop(layout.cidr_key(network), None)
            if network in NOBODYS:
                entries[layout.cidr_key(network)] = layout.u32(layout.PLACE_NOWHERE)
        inside = layout.u32(layout.PLACE_INSIDE)
        entries.update((layout.cidr_key(network), inside) for network in added)
        self.entries, self._networks = entries, networks
        return entries


@dataclass(slots=True)
class Elements:
    """Networks as elements of interval sets, which may not overlap; by IP version."""

    texts: Mapping[int, frozenset[str]] = field(default_factory=lambda: dict.fromkeys(VERSIONS, frozenset()))
    _networks: frozenset[IPNetwork] = frozenset()
    _wide: frozenset[IPNetwork] = frozenset()
    _buckets: dict[Head, set[IPNetwork]] = field(default_factory=dict)
    _parts: dict[Head | None, dict[int, frozenset[str]]] = field(default_factory=dict)  # None: of those that are wide

    def update(self, networks: frozenset[IPNetwork]) -> Mapping[int, frozenset[str]]:
        if networks is self._networks:
            return self.texts
        added, gone = networks - self._networks, self._networks - networks
        wide = (self._wide - gone) | {network for network in added if _is_wide(network)}
        touched: set[Head | None] = {None, *self._buckets} if wide != self._wide else set()
        for network in (*added, *gone):
            if not _is_wide(network):
                bucket = self._buckets.setdefault(_head(network), set())
                bucket.add(network) if network in networks else bucket.discard(network)
                touched.add(_head(network))
        self._wide, self._networks = wide, networks
        self._renew(touched)
        return self.texts

    def _renew(self, touched: Iterable[Head | None]) -> None:
        heads = _heads(self._wide)
        before: dict[int, set[str]] = {version: set() for version in VERSIONS}
        after: dict[int, set[str]] = {version: set() for version in VERSIONS}
        for head in touched:
            for version, texts in self._parts.pop(head, {}).items():
                before[version] |= texts
            members = self._wide if head is None else self._buckets[head]
            if head is not None and not members:
                del self._buckets[head]
            if not members or (head is not None and _is_held(head, heads)):
                continue
            self._parts[head] = {version: merged(members, version) for version in VERSIONS}
            for version, texts in self._parts[head].items():
                after[version] |= texts
        self.texts = {version: (self.texts[version] - before[version]) | after[version] for version in VERSIONS}


def merged(networks: Iterable[IPNetwork], version: int) -> frozenset[str]:
    """Those of one family, merged, as an interval set may not overlap; a host without its length, as nft prints it.

    As `ipaddress.collapse_addresses` does it, by numbers: objects take a hundred times as long.
    """
    bits = 32 if version == 4 else 128
    own = {(int(each.network_address), each.prefixlen) for each in networks if each.version == version}
    found: list[tuple[int, int]] = []  # (first address, length), ascending, apart from each other
    for first, length in sorted(own):  # what holds others comes before them
        if found and first >> bits - found[-1][1] == found[-1][0] >> bits - found[-1][1]:
            continue
        found.append((first, length))
        while len(found) > 1 and _are_halves(found[-2], found[-1], bits):
            found[-2:] = [(found[-2][0], found[-2][1] - 1)]
    return frozenset(_text(first, version) + (f"/{length}" if length < bits else "") for first, length in found)


def _are_halves(one: tuple[int, int], next_one: tuple[int, int], bits: int) -> bool:
    return one[1] == next_one[1] and one[0] ^ next_one[0] == 1 << bits - one[1]


def _text(address: int, version: int) -> str:
    return ".".join(map(str, address.to_bytes(4, "big"))) if version == 4 else str(IPv6Address(address))


def _is_wide(network: IPNetwork) -> bool:
    return network.max_prefixlen - network.prefixlen > HOST_BITS


def _head(network: IPNetwork) -> Head:
    return network.version, int(network.network_address) >> HOST_BITS


def _heads(wide: Iterable[IPNetwork]) -> Mapping[tuple[int, int], set[int]]:
    """Heads that are held by wide networks, by version and by how many bits they are shortened."""
    heads: dict[tuple[int, int], set[int]] = {}
    for network in wide:
        shift = network.max_prefixlen - network.prefixlen - HOST_BITS
        heads.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift + HOST_BITS)
    return heads


def _is_held(head: Head, heads: Mapping[tuple[int, int], set[int]]) -> bool:
    version, number = head
    return any(family == version and number >> shift in found for (family, shift), found in heads.items())


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a map from what it should hold."""

    wanted: MapEntries
    present: MapEntries
    put: Sequence[tuple[bytes, bytes]]  # sorted, as `gone`
    gone: Sequence[bytes]


@dataclass(slots=True)
class Kept:
    places: Places = field(default_factory=Places)
    inside: Elements = field(default_factory=Elements)
    sets: KeptSets = field(default_factory=KeptSets)
    differences: Made[Difference] = field(default_factory=Made)  # by name of the map
    overloaded: Made[Sequence[IPNetwork]] = field(default_factory=Made)  # by names of policies
    covered: Made[frozenset[str]] = field(default_factory=Made)  # by IP version
    chains: Made[tuple[str, tuple[str, ...]]] = field(default_factory=Made)  # name and rules
