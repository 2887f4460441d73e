"""One file of manifests -> objects of the model: which reader reads which kind. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from routerd.errors import InputError
from routerd.formats import core
from routerd.formats.compose import documents, inner_source
from routerd.formats.document import Source, Value, suggestion
from routerd.formats.kinds import BY_NAME, KINDS, OURS, Kind, Object, policy_meant
from routerd.formats.legacy_bgp import Dialect, parse
from routerd.formats.meta import ROUTERD, read_meta
from routerd.model import Origin, Refusal
from routerd.refs import Ref


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
    unread: tuple[Ref, ...] = ()  # documents of which no object was made, by the kind that must have been meant
    is_silent: bool = False  # a file without any document


def read_text(text: str, file: str = "") -> Loaded:
    """Every object of a file. Raises InputError at the first mistake that makes the file wrong."""
    lines = text.split("\n")
    try:
        found = documents(text, Source(file))
        values = [item for document in found for item in core.expand_lists(document)]
    except ValueError as error:  # as in `read_object`
        raise InputError(f"not understood: {error}", file=file) from error
    return replace(_joined([read_object(value, lines) for value in values]), is_silent=not found)


def _joined(parts: list[Loaded]) -> Loaded:
    return Loaded(
        tuple(entry for part in parts for entry in part.entries),
        tuple(refusal for part in parts for refusal in part.refusals),
        tuple(line for part in parts for line in part.ignored),
        tuple(ref for part in parts for ref in part.unread),
    )


def read_object(value: Value, lines: list[str] | None = None) -> Loaded:
    """One object. `lines` of the file let places inside a ConfigMap's text be named. Raises InputError."""
    try:
        return _read(value, lines)
    except ValueError as error:  # a mistake of ours: it costs the object, not the daemon
        raise value.error(f"not understood: {error}") from error


def _read(value: Value, lines: list[str] | None) -> Loaded:
    section = value.section
    version, name = section.string("apiVersion"), section.require("kind").name()
    group = version.rpartition("/")[0]
    if (group, name) == (OURS, "Config"):
        return Loaded(ignored=(f"{value.origin}: Config",))  # routerd's own configuration, lying beside the manifests
    if group == OURS:
        _check_own(value, version, name)
    if (group, name) == ("", "ConfigMap"):
        return _config_map(value, lines or [])
    kind = BY_NAME.get((group, name))
    if kind is None or kind.reader is None:
        return _not_read(value, kind, group, name)
    found, refusals = kind.reader(value)
    ref = _ref(value, kind)
    return Loaded((Entry(ref, found, value.origin),), refusals) if found else Loaded((), refusals, unread=(ref,))


def _check_own(value: Value, version: str, name: str) -> None:
    known = [each.name for each in KINDS if each.group == OURS and each.reader is not None]
    if version != ROUTERD:
        raise value.section.require("apiVersion").error(f'found "{version}", expected {ROUTERD}')
    if name not in known and policy_meant(OURS, name) is None:
        hint = suggestion(name, known) or f", expected one of: {', '.join(sorted(known))}"
        raise value.section.require("kind").error(f'unknown kind "{name}"{hint}')


def _ref(value: Value, kind: Kind) -> Ref:
    """A document of ours has no name: there is one of its kind."""
    if not kind.plural:
        return Ref(kind.name)
    meta = read_meta(value)
    return Ref(kind.name, meta.namespace_or_default if kind.namespaced else "", meta.name)


def _not_read(value: Value, kind: Kind | None, group: str, name: str) -> Loaded:
    given = value.section.at("metadata", "name")
    shown = Ref(name, name=given.text if given is not None and given.is_scalar else "?")
    if kind is None and (meant := policy_meant(group, name)) is not None:
        ref = Ref(meant.name, name=shown.name)
        message = f'{value.origin}: unknown kind "{group}/{name}"; did you mean "{meant.api_version}", "{meant.name}"?'
        return Loaded(refusals=(Refusal(ref, "UnknownKind", message),), unread=(ref,))
    if kind is None or not kind.instead:
        return Loaded(ignored=(f"{value.origin}: {shown}",), unread=(shown,))
    message = f"{value.origin}: {name} ({kind.group}) is not supported: {kind.instead}"
    return Loaded(refusals=(Refusal(shown, "KindNotSupported", message),), unread=(shown,))


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
