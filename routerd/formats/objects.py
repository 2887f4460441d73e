"""One file of manifests -> objects of the model: which reader reads which kind. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from routerd.errors import InputError
from routerd.formats import core, native
from routerd.formats.allocations import read_allocations, read_node_report
from routerd.formats.cilium import read_egress_gateway_policy, read_egress_nat_policy
from routerd.formats.compose import documents, inner_source
from routerd.formats.document import Source, Value, suggestion
from routerd.formats.ipv4 import ipv4_part
from routerd.formats.legacy_bgp import Dialect, LegacyConfig, parse
from routerd.formats.meta import ROUTERD, read_meta
from routerd.model import (
    AddressPool,
    Allocations,
    EgressPolicy,
    EndpointSlice,
    Namespace,
    Node,
    NodeReport,
    Origin,
    Pod,
    Refusal,
    Service,
)
from routerd.refs import Ref

_Cluster = Node | Namespace | Pod | Service | EndpointSlice
Object = _Cluster | AddressPool | EgressPolicy | LegacyConfig | Allocations | NodeReport
_Found = tuple[Object | None, tuple[Refusal, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An object and its identity."""

    ref: Ref
    object: Object
    origin: Origin


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one file says."""

    entries: tuple[Entry, ...] = ()
    refusals: tuple[Refusal, ...] = ()  # objects that were understood and cannot be done
    ignored: tuple[str, ...] = ()  # "FILE:LINE: Kind/name" of kinds that are no business of ours


# Kinds of others that mean something to a daemon like this and that we do not take (yet).
UNSUPPORTED = frozenset(
    {
        ("cilium.io", "CiliumLoadBalancerIPPool"),
        ("cilium.io", "CiliumBGPClusterConfig"),
        ("cilium.io", "CiliumBGPPeerConfig"),
        ("cilium.io", "CiliumBGPAdvertisement"),
        ("cilium.io", "CiliumBGPNodeConfigOverride"),
        ("cilium.io", "CiliumBGPPeeringPolicy"),
        ("metallb.io", "IPAddressPool"),
        ("metallb.io", "BGPPeer"),
        ("metallb.io", "BGPAdvertisement"),
        ("metallb.io", "BFDProfile"),
        ("metallb.io", "Community"),
        ("crd.antrea.io", "Egress"),
        ("crd.antrea.io", "ExternalIPPool"),
        ("k8s.ovn.org", "EgressIP"),
        ("isovalent.com", "IsovalentEgressGatewayPolicy"),
    }
)


def _plain(read: Callable[[Value], Object]) -> Callable[[Value], _Found]:
    return lambda value: (read(value), ())


def _read_egress_policy(value: Value) -> _Found:
    return ipv4_part(native.read_egress_policy(value))


READERS: dict[tuple[str, str], Callable[[Value], _Found]] = {
    ("", "Node"): _plain(core.read_node),
    ("", "Namespace"): _plain(core.read_namespace),
    ("", "Pod"): _plain(core.read_pod),
    ("", "Service"): _plain(core.read_service),
    ("discovery.k8s.io", "EndpointSlice"): _plain(core.read_endpoint_slice),
    ("cilium.io", "CiliumEgressNATPolicy"): read_egress_nat_policy,
    ("cilium.io", "CiliumEgressGatewayPolicy"): read_egress_gateway_policy,
    ("routerd.io", "AddressPool"): _plain(native.read_address_pool),
    ("routerd.io", "EgressPolicy"): _read_egress_policy,
}
OWN_DOCUMENTS: dict[str, Callable[[Value], Allocations | NodeReport]] = {
    "Allocations": read_allocations,
    "NodeReport": read_node_report,
}


def read_text(text: str, file: str = "") -> Loaded:
    """Every object of a file. Raises InputError at the first mistake that makes the file wrong."""
    lines = text.split("\n")
    try:
        values = [item for document in documents(text, Source(file)) for item in core.expand_lists(document)]
    except ValueError as error:  # as in `read_object`
        raise InputError(f"not understood: {error}", file=file) from error
    return _joined([read_object(value, lines) for value in values])


def _joined(parts: list[Loaded]) -> Loaded:
    return Loaded(
        tuple(entry for part in parts for entry in part.entries),
        tuple(refusal for part in parts for refusal in part.refusals),
        tuple(line for part in parts for line in part.ignored),
    )


def read_object(value: Value, lines: list[str] | None = None) -> Loaded:
    """One object. `lines` of the file let places inside a ConfigMap's text be named. Raises InputError."""
    try:
        return _read(value, lines)
    except ValueError as error:  # a mistake of ours: it costs the object, not the daemon
        raise value.error(f"not understood: {error}") from error


def _read(value: Value, lines: list[str] | None) -> Loaded:
    section = value.section
    version, kind = section.string("apiVersion"), section.require("kind").name()
    group = version.rpartition("/")[0]
    if group == "routerd.io" and kind == "Config":
        return Loaded(ignored=(f"{value.origin}: Config",))  # routerd's own configuration, lying beside the manifests
    if group == "routerd.io":
        _check_routerd(value, version, kind)
        if kind in OWN_DOCUMENTS:
            return Loaded((Entry(Ref(kind), OWN_DOCUMENTS[kind](value), value.origin),))
    if (group, kind) == ("", "ConfigMap"):
        return _config_map(value, lines or [])
    reader = READERS.get((group, kind))
    if reader is None:
        return _not_ours(value, group, kind)
    found, refusals = reader(value)
    entries = (Entry(_ref(value, found), found, value.origin),) if found is not None else ()
    return Loaded(entries, refusals)


def _check_routerd(value: Value, version: str, kind: str) -> None:
    known = [kind for group, kind in READERS if group == "routerd.io"] + list(OWN_DOCUMENTS)
    if version != ROUTERD:
        raise value.section.require("apiVersion").error(f'found "{version}", expected {ROUTERD}')
    if kind not in known:
        hint = suggestion(kind, known) or f", expected one of: {', '.join(sorted(known))}"
        raise value.section.require("kind").error(f'unknown kind "{kind}"{hint}')


def _ref(value: Value, found: Object) -> Ref:
    kind = value.section.string("kind")
    if isinstance(found, Pod | Service | EndpointSlice):
        return Ref(kind, found.namespace, found.name)
    return Ref(kind, name=read_meta(value).name)


def _not_ours(value: Value, group: str, kind: str) -> Loaded:
    name = value.section.at("metadata", "name")
    shown = Ref(kind, name=name.text if name is not None and name.is_scalar else "?")
    if (group, kind) not in UNSUPPORTED:
        return Loaded(ignored=(f"{value.origin}: {shown}",))
    message = f"{value.origin}: {kind} ({group}) is not supported: write it as ours"
    return Loaded(refusals=(Refusal(shown, "KindNotSupported", message),))


# --- ConfigMaps --------------------------------------------------------------------------------------------------

_NATIVE = re.compile(r"^[\"']?apiVersion[\"']?:\s*[\"']?routerd\.io/", re.MULTILINE)


def _config_map(value: Value, lines: list[str]) -> Loaded:
    """The BGP configuration in a ConfigMap; any other ConfigMap is no business of ours."""
    meta = read_meta(value)
    shown = Ref("ConfigMap", meta.namespace_or_default, meta.name)
    found = bgp_text(value)
    if found is None:
        return Loaded(ignored=(f"{value.origin}: {shown}",))
    text, dialect = found
    source = inner_source(text, lines) if lines else value.source
    config = parse(text.text, dialect, source)
    return Loaded((Entry(shown, config, value.origin),), config.refusals)


def bgp_text(value: Value) -> tuple[Value, Dialect] | None:
    """The BGP document in a ConfigMap and its dialect, by names and key; ours names itself by its apiVersion."""
    meta = read_meta(value)
    data = value.section.section("data")
    for key in ("config.yaml", "config"):
        text = data.get(key) if data else None
        if text is None or not text.is_scalar:
            continue
        if _NATIVE.search(text.text):
            return text, "native"
        if key == "config.yaml" and meta.name == "bgp-config":
            return text, "cilium-1.10"
        if key == "config" and meta.name == "config" and meta.namespace == "metallb-system":
            return text, "metallb-0.12"
    return None


__all__ = ["Entry", "InputError", "Loaded", "Object", "bgp_text", "read_object", "read_text"]
