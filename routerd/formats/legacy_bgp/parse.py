"""Text of a BGP document -> peers and pools, in the order in which the original parsers check. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from routerd.errors import InputError
from routerd.formats.compose import first_document
from routerd.formats.document import NOWHERE, Source, Value
from routerd.formats.legacy_bgp import bfd, peers, pools
from routerd.formats.legacy_bgp.communities import parse_communities
from routerd.formats.legacy_bgp.decode import Decoder, syntax_error
from routerd.formats.legacy_bgp.structure import Dialect, structure
from routerd.model import AddressPool, Peer, Refusal
from routerd.refs import BGP, Ref


@dataclass(frozen=True, slots=True)
class LegacyConfig:
    """What a document says: in our model, with what of it we do not do."""

    peers: tuple[Peer, ...] = ()
    pools: tuple[AddressPool, ...] = ()  # in the order of the file
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class _Parsed:
    peers: tuple[peers.ParsedPeer, ...] = ()
    pools: tuple[AddressPool, ...] = ()
    misread: tuple[Refusal, ...] = ()


def parse(text: str, dialect: Dialect, source: Source = NOWHERE) -> LegacyConfig:
    """Raises InputError: the original's sentence, at the line and column of the culprit."""
    return _models(_parse(text, dialect, source))


def parse_document(document: Value, dialect: Dialect) -> LegacyConfig:
    """`parse` of a text that is composed already."""
    return _models(_parse_document(document, dialect))


def _models(parsed: _Parsed) -> LegacyConfig:
    models = [peers.to_model(peer) for peer in parsed.peers]
    not_done = tuple(refusal for _, found in models for refusal in found)
    return LegacyConfig(tuple(model for model, _ in models), parsed.pools, (*not_done, *parsed.misread))


def _misread(place: Value, number: int) -> Refusal:
    message = f'{place.origin}: {place.path}: "{place.text}" is read as {number}, as the original program reads it'
    return Refusal(Ref(BGP), "NumberMisread", f"{message}: write it in decimal, or the number that was meant")


def as_json(text: str, dialect: Dialect, source: Source = NOWHERE) -> dict[str, object]:
    """`{"ok": {"peers": […], "pools": {…}}}` or `{"error": "… (line L, column C)"}`, as `routerd check` prints it."""
    try:
        parsed = _parse(text, dialect, source)
    except InputError as error:
        return {"error": f"{error.message} (line {error.line}, column {error.column})"}
    shown_pools = {pool.name: pools.as_json(pool, dialect) for pool in parsed.pools}
    return {"ok": {"peers": [peers.as_json(peer, dialect) for peer in parsed.peers], "pools": shown_pools}}


def _parse(text: str, dialect: Dialect, source: Source) -> _Parsed:
    document = _first_document(text, dialect, source)
    return _parse_document(document, dialect) if document is not None else _Parsed()


def _parse_document(document: Value, dialect: Dialect) -> _Parsed:
    decoder = Decoder(strict=dialect == "native")
    top = decoder.struct(document, structure(dialect))
    decoder.check()
    profiles = bfd.read_profiles(top.structs("bfd-profiles"))
    templates = peers.read_templates(top.structs("peer-templates"))
    aliases = top.maps.get("bgp-communities", {})
    named = parse_communities(aliases, dialect) if dialect == "native" else {}  # the two parsers look at peers first
    parsed_peers = peers.parse_peers(top.structs("peers"), profiles, dialect, templates, named)
    communities = parse_communities(aliases, dialect)
    parsed_pools = pools.parse_pools(top.structs("address-pools"), communities, dialect)
    misread = tuple(_misread(place, number) for place, number in decoder.misread)
    return _Parsed(parsed_peers, tuple(parsed_pools.values()), misread)


def _first_document(text: str, dialect: Dialect, source: Source) -> Value | None:
    try:
        return first_document(text, source)
    except InputError as error:
        cause = error.__cause__
        if dialect == "native" or not isinstance(cause, yaml.YAMLError):
            raise
        problem = getattr(cause, "problem", None) or str(cause)
        raise syntax_error(error, problem, _counted_line(cause)) from error


def _counted_line(error: yaml.YAMLError) -> int:
    """The line as yaml.v2 names it: right for the scanner's errors, one too low for the parser's."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None or mark.line == 0 or isinstance(error, yaml.composer.ComposerError):
        return 0
    return int(mark.line) + isinstance(error, yaml.scanner.ScannerError)
