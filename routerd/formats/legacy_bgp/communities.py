"""`bgp-communities`, and communities by their aliases: the checks of the two parsers. Pure."""

from __future__ import annotations

from bgp.path import WELL_KNOWN_COMMUNITIES
from bgp.rib import extended
from routerd.formats.document import Value
from routerd.formats.legacy_bgp.golang import parse_uint, quote
from routerd.formats.legacy_bgp.structure import Dialect

Communities = dict[str, str]  # in normal form, by alias


def parse_communities(aliases: dict[str, tuple[str, Value]], dialect: Dialect) -> Communities:
    communities: Communities = {}
    for alias, (text, place) in aliases.items():
        try:
            communities[alias] = _community(text, dialect)
        except ValueError as error:
            raise place.error(f"parsing community {quote(alias)}: {error}") from error
    return communities


def _community(text: str, dialect: Dialect) -> str:
    """RFC 1997, "asn:value"; in our dialect also a large one (RFC 8092), an extended one (RFC 4360), and the well-known
    names.

    Raises ValueError with the original's message.
    """
    parts = text.split(":")
    if dialect == "native" and text in WELL_KNOWN_COMMUNITIES:
        return WELL_KNOWN_COMMUNITIES[text]
    if dialect == "native" and extended.is_named(text):
        return extended.normal(text)
    bits = 32 if dialect == "native" and len(parts) == 3 else 16
    if len(parts) != 2 and bits == 16:
        raise ValueError(f"invalid community string {quote(text)}")
    numbers = []
    for which, part in zip(("first", "second", "third"), parts, strict=False):
        try:
            numbers.append(parse_uint(part, bits))
        except ValueError as error:
            raise ValueError(f"invalid {which} section of community {quote(part)}: {error}") from error
    return ":".join(map(str, numbers))


def resolve(text: str, place: Value, communities: Communities, dialect: Dialect) -> str:
    """A community in normal form, of its alias or of what it is. Raises InputError."""
    if text in communities:
        return communities[text]
    try:
        return _community(text, dialect)
    except ValueError as error:
        raise place.error(f"invalid community {quote(text)} in BGP advertisement: {error}") from error
