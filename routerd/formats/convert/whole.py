"""Files -> what other makers' objects in them are as ours. Pure.

Kubernetes' kinds and ours stay as they are, and are not repeated. What is printed was read back: it says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from routerd.errors import InputError
from routerd.formats.compose import documents, first_document, inner_source
from routerd.formats.convert import kube_ovn, terway
from routerd.formats.convert.aggregates import too_wide_as_ours
from routerd.formats.convert.manifests import Json, config_map, manifest, text_of
from routerd.formats.convert.meaning import UNREAD, without_meaning
from routerd.formats.convert.unread import unread_keys
from routerd.formats.core import expand_lists, read_service
from routerd.formats.document import Source, Value
from routerd.formats.foreign.calico import bgp as calico_bgp
from routerd.formats.foreign.calico.filters import Filter
from routerd.formats.foreign.cilium import bgp as cilium_bgp
from routerd.formats.foreign.cilium.overrides import NodeOverride
from routerd.formats.foreign.cilium.peering import PeeringPolicy
from routerd.formats.foreign.kube_ovn.joined import completed, known
from routerd.formats.foreign.kube_ovn.named import NamedAddress, NatGateway, Subnet
from routerd.formats.foreign.metallb_bgp import with_bfd, without_profile
from routerd.formats.foreign.policies import to_everywhere, with_destinations
from routerd.formats.foreign.together import together
from routerd.formats.kinds import BY_NAME, OURS, Kind, Object
from routerd.formats.legacy_bgp import Dialect, LegacyConfig, parse_document
from routerd.formats.meta import read_meta
from routerd.formats.objects import (
    Entry,
    Loaded,
    already_defined,
    bgp_text,
    read_file,
    read_object,
    read_piece,
    unique,
)
from routerd.formats.wishes import EGRESS, NOT_SUPPORTED
from routerd.model import (
    AddressPool,
    BfdProfile,
    CommunityNames,
    EgressPolicy,
    Peer,
    PodPool,
    PoolAdvertisement,
    Refusal,
)

BESIDE = "routerd"  # namespace of the ConfigMaps that stand for other kinds: that of the operator


@dataclass(frozen=True, slots=True)
class Converted:
    """`text` is manifests of ours; the other lines say what of the files is not in it."""

    text: str = ""
    notes: tuple[str, ...] = ()  # parts of an object
    errors: tuple[str, ...] = ()  # whole objects


@dataclass(frozen=True, slots=True)
class _Written:
    """What one object says as ours. `written` None = there is nothing to write."""

    about: str
    written: Json | None = None
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """With its notes as comments."""
        if self.written is None:
            return ""
        comments = "".join(f"# {' '.join(line.split())}\n" for line in (self.about, *self.notes))
        return f"---\n{comments}{text_of(self.written)}"


def _closed(peer: Peer) -> Iterator[Refusal]:
    """What has no word here: that it is closed on some nodes."""
    for each in peer.overrides:
        if each.closed:
            yield Refusal(peer.ref, "PeerConfigMissing", f"{peer.origin}: by {each.name}: {each.closed}")


class _Others:
    """What stands in the files and completes other objects, by name."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Of what is there twice the first counts, in the order of the files' names, as for daemons."""
        self.texts = texts
        files = [_loaded(file, text) for file, text in sorted(texts.items())]
        entries, _ = unique(entry for file in files for entry in file.entries)
        self.first = {entry.ref: entry.origin for entry in entries}
        objects = [entry.object for entry in entries]
        pools = {each.name: each for each in reversed(objects) if isinstance(each, AddressPool)}
        joined = together(objects, pools, nothing=[ref for file in files for ref in file.nothing])
        self.pools, self.ways = joined.pools, joined.ways
        closed = {peer.name: each for peer in joined.peers for each in _closed(peer)}
        self.peers = {peer.name: peer for peer in joined.peers if peer.name not in closed}
        self.told = (*joined.refusals, *closed.values())
        self.advertisements = [each for each in objects if isinstance(each, PoolAdvertisement)]
        self.named = known(objects)
        self.profiles = {each.name: each for each in objects if isinstance(each, BfdProfile)}

    def refused(self, loaded: Loaded) -> tuple[str, ...]:
        """Why an object is not the one of its name that counts, if it is not, and what else is wrong with it."""
        entries = [each for each in loaded.entries if self.first.get(each.ref, each.origin) != each.origin]
        twice = tuple(already_defined(each, self.first[each.ref]).message for each in entries)
        return (*twice, *(each.message for each in loaded.refusals)) if twice else ()

    def whole(self, found: AddressPool | EgressPolicy) -> AddressPool | EgressPolicy:
        """As it is with all that others say of it."""
        if isinstance(found, EgressPolicy):
            return to_everywhere(with_destinations(completed(found, self.named)[0], self.pools))
        announced = self.pools.get(found.name, found)
        return announced if announced.origin == found.origin else replace(found, labels=None, ranges=())


def convert(texts: Mapping[str, str]) -> Converted:
    """Texts by file name."""
    others = _Others(texts)
    found = _unique(each for file, text in sorted(texts.items()) for each in _of_file(file, text, others))
    return Converted(
        "".join(each.text for each in found),
        tuple(line for each in found for line in each.notes),
        tuple(line for each in found for line in each.errors),
    )


def _loaded(file: str, text: str) -> Loaded:
    try:
        return read_file(text, file)
    except InputError:
        return read_piece(text, Source(file))


def _unique(found: Iterator[tuple[str, _Written]]) -> list[_Written]:
    """Two kinds of other makers may be one of ours."""
    first: dict[str, str] = {}
    kept: list[_Written] = []
    for name, each in found:
        if name and first.setdefault(name, each.about) != each.about:
            message = f"{each.about}: it would be {name}, as is that of {first[name]}: rename one"
            kept.append(_Written(each.about, errors=(message,)))
        else:
            kept.append(each)
    return kept


def _of_file(file: str, text: str, others: _Others) -> Iterator[tuple[str, _Written]]:
    """Each object of other makers with the name that it has as ours."""
    lines = text.split("\n")
    try:
        values = [value for document in documents(text, Source(file)) for value in expand_lists(document)]
    except InputError as error:
        yield "", _Written(file, errors=(str(error),))
        return
    for value in values:
        try:
            yield from _of_object(value, lines, others)
        except InputError as error:
            yield "", _Written(str(value.origin), errors=(str(error),))


def _of_object(value: Value, lines: list[str], others: _Others) -> Iterator[tuple[str, _Written]]:
    """Raises InputError."""
    group, name = value.section.string("apiVersion").rpartition("/")[0], value.section.string("kind")
    if (group, name) == ("", "ConfigMap") and (text := terway.text_of(value)) is not None:
        configuration, told = terway.configuration(value, text, lines)
        yield "Config", _Written(f"{value.origin}: ConfigMap/{terway.NAME}", configuration, tuple(told))
        return
    if why := terway.refused(value, group, name):
        yield "", _Written(str(value.origin), errors=(why,))
        return
    if why := terway.note_of_node(value, group, name):
        yield "", _Written(str(value.origin), notes=(why,))
    if (group, name) == ("", "ConfigMap"):
        yield from _of_config_map(value, lines, others)
        return
    if (policy := kube_ovn.policy_of(value, group, name)) is not None:
        written, about = manifest(policy), f"{value.origin}: {name}/{policy.name}"
        notes = tuple(kube_ovn.notes_of(value, group, name))
        yield _name(written), _checked(_Written(about, written, notes), manifest)
    elif notes := tuple(kube_ovn.notes_of(value, group, name)):
        yield "", _Written(str(value.origin), notes=notes)
    if (group, name) == ("", "Service"):
        yield from _of_annotations(value)
    kind = BY_NAME.get((group, name))
    if kind is not None and not kind.custom:
        return
    loaded = read_object(value)
    if twice := others.refused(loaded):
        yield "", _Written(str(value.origin), errors=twice)
    elif not loaded.ignored:
        yield from _of_loaded(value, kind, loaded, others)


_SAID_BY_OTHERS = (  # peers and pools say what these say
    BfdProfile,
    PoolAdvertisement,
    CommunityNames,
    cilium_bgp.PeerConfig,
    NodeOverride,
    cilium_bgp.Advertised,
    calico_bgp.Configuration,
    Filter,
    NamedAddress,
    NatGateway,
    Subnet,
)


def _of_loaded(value: Value, kind: Kind | None, loaded: Loaded, others: _Others) -> Iterator[tuple[str, _Written]]:
    told = tuple(each.message for each in loaded.refusals)
    if loaded.entries and isinstance(config := loaded.entries[0].object, LegacyConfig):
        lacking = [one.message for peer in config.peers for one in without_profile(peer, others.profiles)]
        config = replace(config, peers=tuple(with_bfd(peer, others.profiles) for peer in config.peers))
        yield _of_peers(value, loaded, config, (*told, *lacking))
        return
    if loaded.entries and (names := _peers_by_others(loaded.entries[0].object)) is not None:
        peers = tuple(others.peers[name] for name in names if name in others.peers)
        lacking = [one.message for one in others.told if one.object.name in names]
        yield _of_peers(value, loaded, LegacyConfig(peers), (*told, *lacking))
        return
    if loaded.entries and isinstance(policy := loaded.entries[0].object, PeeringPolicy):
        yield _of_peers(value, loaded, LegacyConfig(policy.peers), told)
        return
    taken = [found for found in map(_object, loaded.entries) if found is not None]
    of_pods = [_as_configuration(each) for entry in loaded.entries if isinstance(each := entry.object, PodPool)]
    if of_pods or any(isinstance(entry.object, _SAID_BY_OTHERS) for entry in loaded.entries):
        lacking = [one.message for one in others.told if one.object == loaded.entries[0].ref]
        yield "", _Written(str(value.origin), notes=(*told, *of_pods, *without_meaning(value, loaded), *lacking))
    elif not taken and told:
        yield "", _Written(str(value.origin), errors=told)
    for found in taken:
        whole = others.whole(found)
        about = f"{value.origin}: {loaded.entries[0].ref}"
        if isinstance(found, EgressPolicy) and (lacks := completed(found, others.named)[1]):
            yield "", _Written(about, errors=tuple(each.message for each in lacks))
            continue
        if isinstance(found, AddressPool) and (
            wide := tuple(too_wide_as_ours(found, others.advertisements, others.texts))
        ):
            yield "", _Written(about, errors=wide)
            continue
        written = manifest(whole)
        if kind is None or kind.reader is None or kind.group == OURS:
            is_same = isinstance(found, EgressPolicy) or whole == found
            yield _name(written), _Written(about) if is_same else _checked(_Written(about, written), manifest)
            continue
        notes = (*told, *without_meaning(value, loaded), *_pool_elsewhere(value, found, others.pools))
        yield _name(written), _checked(_Written(about, written, notes), manifest)


def _peers_by_others(found: Object) -> list[str] | None:
    """Names of the peers that an object has and others complete; None = it is no such object."""
    if isinstance(found, cilium_bgp.ClusterConfig):
        return [each.peer.name for each in found.peers]
    return [found.peer.name] if isinstance(found, calico_bgp.FilteredPeer) else None


def _of_annotations(value: Value) -> Iterator[tuple[str, _Written]]:
    """A policy that a Service has by annotations of another make."""
    service, told = read_service(value)
    policy, about = service.egress, f"{value.origin}: {service.ref}"
    if policy is None or service.annotations.get(EGRESS):
        return
    if policy.refused:
        yield "", _Written(about, errors=tuple(each.message for each in told if each.reason == NOT_SUPPORTED))
        return
    written = manifest(to_everywhere(policy))
    yield _name(written), _checked(_Written(about, written, tuple(_pool_elsewhere(value, policy, {}))), manifest)


def _as_configuration(pool: PodPool) -> str:
    """A pool of pods is no object of ours."""
    cidrs = ", ".join(f"{{cidr: {each.network}, node-prefix: {each.node_prefix}}}" for each in pool.cidrs)
    said = f"as configuration it is pod-cidrs: [{cidrs}]" if cidrs else "nodes have no blocks of it"
    if cidrs and (pool.for_pods, pool.for_namespaces) != (None, None):
        said += ", which selects no pods"
    return f"{pool.origin}: pool {pool.name} is for pods, and read as it is; {said}"


def _of_peers(value: Value, loaded: Loaded, config: LegacyConfig, told: tuple[str, ...]) -> tuple[str, _Written]:
    """A BGP ConfigMap of its own, unless no peer is left."""
    ref = loaded.entries[0].ref
    written, about = partial(config_map, BESIDE, f"bgp-{ref.name}", "config.yaml"), f"{value.origin}: {ref}"
    if told and not config.peers:
        return "", _Written(about, errors=told)
    unread = without_meaning(value, loaded)
    return f"ConfigMap/bgp-{ref.name}", _checked(_Written(about, written(config), (*told, *unread)), written)


def _pool_elsewhere(value: Value, found: AddressPool | EgressPolicy, pools: Mapping[str, AddressPool]) -> list[str]:
    """A policy whose destinations its pool would say, or its Service."""
    if isinstance(found, AddressPool) or found.destinations or found.pool in pools:
        return []
    where = (
        f"pool {found.pool} is in none of these files"
        if not found.service
        else f"svc/{found.service} says in which families it has VIPs"
    )
    message = f"{where}: leave the family out of destinationCIDRs that it has not"
    return [str(value.error(message))]


def _object(entry: Entry) -> AddressPool | EgressPolicy | None:
    found = entry.object
    if isinstance(found, EgressPolicy):
        return None if found.refused else found
    return found if isinstance(found, AddressPool) else None


def _name(written: Json) -> str:
    return f"{written['kind']}/{written['metadata']['name']}"


def _of_config_map(value: Value, lines: list[str], others: _Others) -> Iterator[tuple[str, _Written]]:
    """Raises InputError."""
    loaded, given = read_object(value, lines), bgp_text(value)
    told = tuple(each.message for each in loaded.refusals)
    about = f"{value.origin}: ConfigMap"
    if given is None:
        yield "", _Written(about, errors=told)
        return
    if twice := others.refused(loaded):
        yield "", _Written(about, errors=twice)
        return
    text, dialect = given
    config = loaded.entries[0].object
    assert isinstance(config, LegacyConfig)
    lacking = _not_said(about, config, others)
    if dialect == "native":
        yield "", _Written(about, notes=lacking)
        return
    meta, key = read_meta(value), "config" if dialect == "metallb-0.12" else "config.yaml"
    written = partial(config_map, meta.namespace_or_default, meta.name, key)
    notes = (*told, *_unread_of(text, dialect, lines), *_empty_pools(config), *lacking)
    yield "", _checked(_Written(about, written(config), notes), written)


def _not_said(about: str, config: LegacyConfig, others: _Others) -> tuple[str, ...]:
    """Pools in the document that other objects complete, which it does not say itself."""
    peers = ", ".join(dict.fromkeys(peer for way in others.ways for peer in way.peers))
    if not peers or not any(pool.protocol == "bgp" for pool in config.pools):
        return ()
    return (
        f"{about}: its pools are announced to {peers} by CiliumBGPAdvertisements: write that in bgp-advertisements",
    )


def _unread_of(text: Value, dialect: Dialect, lines: list[str]) -> Iterator[str]:
    document = first_document(text.text, inner_source(text, lines))
    for each in unread_keys(document, partial(parse_document, dialect=dialect)) if document is not None else ():
        yield str(each.error(UNREAD))


def _empty_pools(config: LegacyConfig) -> Iterator[str]:
    for pool in config.pools:
        if not pool.blocks:
            yield f"{pool.origin}: pool {pool.name} has no address and is left out"


# --- reading back


_UNSEEN = re.compile(r"^<input>(:\d+)*: ")  # a place in what is not printed


def _checked(each: _Written, again: Callable[[Any], Json]) -> _Written:
    """`again`: what the object that is read back is as ours."""
    loaded = read_file(each.text)
    wrong = [f"{each.error.key} of what would be printed: {each.error.message}" for each in loaded.mistakes]
    wrong += [_UNSEEN.sub("", refusal.message) for refusal in loaded.refusals]
    if not wrong and [again(entry.object) for entry in loaded.entries] == [each.written]:
        return each
    message = wrong[0] if wrong else "it would be read as something else"
    return _Written(each.about, errors=(f"{each.about}: it cannot be written as ours: {message}",))
