"""Cilium's CiliumBGPNodeConfigOverride (cilium.io/v2): what the node of its name has otherwise. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from routerd.formats.document import Section, Value, unknown_key
from routerd.formats.meta import read_meta
from routerd.model import IPAddress, Origin, PeerOverride, Refusal
from routerd.refs import Ref

KIND = "CiliumBGPNodeConfigOverride"
_OF_INSTANCE = ("name", "routerID", "localPort", "localASN", "peers")
_OF_PEER = ("name", "localAddress", "localPort")


@dataclass(frozen=True, slots=True)
class InstanceOverride:
    """`peers`: those that it names; `sources`: by the peer's name, the address of its session."""

    override: PeerOverride
    peers: tuple[str, ...]
    sources: Mapping[str, IPAddress]


@dataclass(frozen=True, slots=True)
class NodeOverride:
    """By instance."""

    ref: Ref
    instances: Mapping[str, InstanceOverride]
    origin: Origin = field(default=Origin(), compare=False)

    def of(self, instance: str, peer: str) -> Iterator[PeerOverride]:
        if (found := self.instances.get(instance)) is not None:
            override = replace(found.override, source_address=found.sources.get(peer))
            if not override.says_nothing:
                yield override


def read_node_override(value: Value) -> tuple[NodeOverride, tuple[Refusal, ...]]:
    """Its name is the node's. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    ref = Ref(meta.kind, name=meta.name)
    items = [item.section for item in spec.items("bgpInstances")]
    unknown = [*_unknown(spec, ("bgpInstances",)), *(one for item in items for one in _unknown_of(item))]
    refusals = tuple(Refusal(ref, "KeyNotUsed", message) for message in unknown)
    return NodeOverride(ref, dict(_instance(ref, item) for item in items), value.origin), refusals


def _unknown(section: Section, known: Collection[str]) -> Iterator[str]:
    for key in section.entries.keys() - {*known}:
        yield str(section.entries[key].error(unknown_key(key, known)))


def _unknown_of(instance: Section) -> Iterator[str]:
    yield from _unknown(instance, _OF_INSTANCE)
    for item in instance.items("peers"):
        yield from _unknown(item.section, _OF_PEER)


def _instance(ref: Ref, section: Section) -> tuple[str, InstanceOverride]:
    router_id, local_as, port = (
        found if found is not None and not found.is_null and found.text else None
        for found in map(section.get, ("routerID", "localASN", "localPort"))
    )
    override = PeerOverride(
        name=str(ref),
        nodes=(ref.name,),
        local_as=local_as.integer(1, 2**32 - 1) if local_as is not None else None,
        router_id=router_id.ipv4() if router_id is not None else None,
        listen_port=port.integer(1, 65535) if port is not None else None,
    )
    peers = [item.section for item in section.items("peers")]
    sources = {
        peer.require("name").name(): peer.require("localAddress").address()
        for peer in peers
        if peer.string("localAddress")
    }
    names = tuple(peer.require("name").name() for peer in peers)
    return section.require("name").name(), InstanceOverride(override, names, sources)


def closed_by(nothing: Iterable[Ref], overrides: Iterable[NodeOverride]) -> Iterator[PeerOverride]:
    """Of overrides that cannot be read, and never could: without what they say a session might be of another AS, or
    come from another address. One that has no name may be any node's, or where others are read, one of these.
    """
    read = {each.ref.name for each in overrides}
    names = {ref.name for ref in nothing if ref.kind == KIND} - read
    for name in sorted(names - {""} if read else names):
        why = "it cannot be read, and without it the session might be another one: there is none until it is mended"
        yield PeerOverride(str(Ref(KIND, name=name)), (name,) if name else (), closed=why)


def of_nobody(overrides: Iterable[NodeOverride], known: Collection[tuple[str, str]]) -> Iterator[Refusal]:
    """`known`: instance and name of each peer."""
    instances = {instance for instance, _ in known}
    for each in overrides:
        for instance, found in each.instances.items():
            if instance not in instances:
                yield _unknown_peer(each, f"no CiliumBGPClusterConfig has a peer in an instance {instance!r}")
                continue
            for peer in found.peers:
                if (instance, peer) not in known:
                    yield _unknown_peer(each, f"no CiliumBGPClusterConfig has a peer {peer!r} in instance {instance!r}")


def _unknown_peer(override: NodeOverride, why: str) -> Refusal:
    return Refusal(override.ref, "UnknownPeer", f"{override.origin}: {why}: nothing of this is in force")
