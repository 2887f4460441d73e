"""One file of manifests -> objects of the model: which reader reads which kind. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from routerd.errors import InputError
from routerd.formats import core
from routerd.formats.compose import documents, inner_source
from routerd.formats.document import Source, Value, suggestion
from routerd.formats.kinds import BY_NAME, KINDS, NAMES, OURS, Kind, Object, policy_meant
from routerd.formats.legacy_bgp import Dialect, parse
from routerd.formats.meta import ROUTERD, read_meta
from routerd.formats.resembling import kind_meant, unread_configuration
from routerd.model import EgressPolicy, Origin, Refusal
from routerd.refs import Ref


@dataclass(frozen=True, slots=True)
class Entry:
    """An object and its identity."""

    ref: Ref
    object: Object
    origin: Origin


@dataclass(frozen=True, slots=True)
class Mistake:
    """A document of which no object could be made."""

    ref: Ref  # of which object, as far as it says so: a kind or name of "" is not told
    error: InputError = field(compare=False)
    text: str = ""  # of the error
    is_kept: bool = False  # what the object last said stays in force

    def may_be(self, ref: Ref) -> bool:
        """Whether it may be the document of that object. A kind that nobody knows may be a misspelling of any."""
        is_named = self.ref.name in ("", ref.name) and self.ref.namespace in ("", ref.namespace)
        return is_named and (self.ref.kind == ref.kind or self.ref.kind not in NAMES)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one file says."""

    entries: tuple[Entry, ...] = ()
    refusals: tuple[Refusal, ...] = ()  # objects that were understood and cannot be done
    ignored: tuple[str, ...] = ()  # "FILE:LINE: Kind/name" of kinds that are no business of ours
    unread: tuple[Ref, ...] = ()  # documents of which no object was made, by the kind that must have been meant
    is_silent: bool = False  # a file without any document
    mistakes: tuple[Mistake, ...] = ()

    @property
    def nothing(self) -> tuple[Ref, ...]:
        """Documents of which no object was made, for whatever reason, as far as they say whose they are."""
        return (*self.unread, *(wrong.ref for wrong in self.mistakes))


def unique(entries: Iterable[Entry]) -> tuple[list[Entry], list[Refusal]]:
    """Of each object the first entry, and a refusal for each further one. A policy that is refused comes last."""
    first: dict[Ref, Entry] = {}
    refusals = []
    for entry in sorted(entries, key=_is_refused):
        other = first.setdefault(entry.ref, entry)
        if other is not entry:
            refusals.append(already_defined(entry, other.origin))
    return list(first.values()), refusals


def already_defined(entry: Entry, other: Origin) -> Refusal:
    message = f"{entry.origin}: {entry.ref} is already defined at {other}; this one is not used"
    return Refusal(entry.ref, "Duplicate", message)


def _is_refused(entry: Entry) -> bool:
    return isinstance(entry.object, EgressPolicy) and entry.object.refused


def read_file(text: str, file: str = "") -> Loaded:
    """Each object of a file; one that is wrong is a mistake; the rest goes on. Raises InputError if all is no YAML."""
    source = Source(file)
    try:
        return _read_text(text, source)
    except ValueError as error:  # as in `read_object`
        raise InputError(f"not understood: {error}", file=file) from error
    except InputError:
        pieces = _pieces(text)
        if len(pieces) == 1:
            raise
    return _joined([read_piece(piece, replace(source, line=line)) for line, piece in pieces])


def _read_text(text: str, source: Source) -> Loaded:
    lines = text.split("\n")
    found = documents(text, source)
    return replace(_joined([part for document in found for part in _parts(document, lines)]), is_silent=not found)


def _pieces(text: str) -> list[tuple[int, str]]:
    """The documents of a text that is no YAML as a whole, each with the lines before it. None holds a line of `---`."""
    starts = [0, *(match.start() for match in _MARKER.finditer(text) if match.start()), len(text)]
    pieces = [text[start:end] for start, end in pairwise(starts)]
    lines = accumulate((piece.count("\n") for piece in pieces), initial=0)
    return [(line, piece) for line, piece in zip(lines, pieces, strict=False) if piece.strip()]


_MARKER = re.compile(r"^---(?=\s)", re.MULTILINE)
_KIND = re.compile(r"^kind:[ \t]*[\"']?(\w+)", re.MULTILINE)


def read_piece(text: str, source: Source) -> Loaded:
    """One document of a file that may be no YAML: then it may be of any object of its kind, or of any kind."""
    try:
        return _read_text(text, source)
    except (InputError, ValueError) as error:
        kind = _KIND.search(text)
        ref = Ref(kind[1] if kind and kind[1] in NAMES else "")
        wrong = error if isinstance(error, InputError) else InputError(f"not understood: {error}", file=source.file)
        return Loaded(mistakes=(Mistake(ref, wrong, str(wrong)),))


def _parts(document: Value, lines: list[str]) -> list[Loaded]:
    """What each object of a document says, or what is wrong with it."""
    try:
        values = core.expand_lists(document)
    except (InputError, ValueError) as error:
        return [_mistaken(document, error)]
    return [_spared(value, lines) for value in values]


def _spared(value: Value, lines: list[str]) -> Loaded:
    try:
        return read_object(value, lines)
    except InputError as error:
        return _mistaken(value, error)


def _mistaken(value: Value, error: Exception) -> Loaded:
    wrong = error if isinstance(error, InputError) else value.error(f"not understood: {error}")
    return Loaded(mistakes=(Mistake(identity(value), wrong, str(wrong)),))


def identity(value: Value) -> Ref:
    """Which object a document is about, though it may be wrong: what it does not say is ""."""

    def said(*path: str) -> str:
        try:
            found = value.section.at(*path)
        except InputError:
            return ""
        return found.text if found is not None and found.is_scalar else ""

    kind = BY_NAME.get((said("apiVersion").rpartition("/")[0], said("kind")))
    if kind is None:
        return Ref(said("kind"), "", said("metadata", "name"))
    name = said("metadata", "name")
    namespace = said("metadata", "namespace") or ("default" if name else "")
    return Ref(kind.name, namespace if kind.namespaced else "", name)


def _joined(parts: list[Loaded]) -> Loaded:
    return Loaded(
        tuple(entry for part in parts for entry in part.entries),
        tuple(refusal for part in parts for refusal in part.refusals),
        tuple(line for part in parts for line in part.ignored),
        tuple(ref for part in parts for ref in part.unread),
        mistakes=tuple(mistake for part in parts for mistake in part.mistakes),
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
    meta = read_meta(value.uncapped())
    return Ref(kind.name, meta.namespace_or_default if kind.namespaced else "", meta.name)


_READ = tuple(key for key, kind in BY_NAME.items() if kind.reader is not None or kind.name == "ConfigMap")


def _not_read(value: Value, kind: Kind | None, group: str, name: str) -> Loaded:
    given = value.section.at("metadata", "name")
    shown = Ref(name, name=given.text if given is not None and given.is_scalar else "?")
    if kind is None and (meant := policy_meant(group, name)) is not None:
        ref = Ref(meant.name, name=shown.name)
        message = f'{value.origin}: unknown kind "{group}/{name}"; did you mean "{meant.api_version}", "{meant.name}"?'
        return Loaded(refusals=(Refusal(ref, "UnknownKind", message),), unread=(ref,))
    if kind is None and (near := kind_meant(group, name, _READ)) is not None:
        meant = BY_NAME[near]
        said = f"{group}/{name}".lstrip("/")
        message = f'{value.origin}: unknown kind "{said}"; did you mean "{meant.api_version}", "{meant.name}"?'
        return Loaded(refusals=(Refusal(shown, "UnknownKind", message),), unread=(shown,))
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
        return Loaded(refusals=unread_configuration(value, meta), ignored=(f"{value.origin}: {shown}",))
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


__all__ = [
    "Entry", "InputError", "Loaded", "Mistake", "Object", "already_defined", "bgp_text", "identity", "read_file",
    "read_object", "read_piece", "unique",
]  # fmt: skip
